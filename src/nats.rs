//! From configuration to a connection.

pub(crate) mod answers;
pub(crate) mod capture;
pub(crate) mod failure;
pub(crate) mod jetstream;
pub(crate) mod jwt;
pub(crate) mod link;
pub(crate) mod login;
pub(crate) mod publisher;
pub(crate) mod settings;
pub(crate) mod tls;

use crate::nats::failure::{Failure, has_expired, in_words};
use crate::nats::link::{Link, REMIND};
use crate::nats::settings::Settings;
use crate::observe::metrics::Metrics;
use anyhow::{anyhow, bail};
use async_nats::{AuthError, Client, ClientError, ConnectOptions, Event, Server};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, warn};

/// How soon after it another reason is mentioned; two that alternate are no news.
const OTHER_REASON: Duration = Duration::from_secs(5);
/// A silent connection is noticed after two to three of these.
const PING: Duration = Duration::from_secs(10);

/// Connects to the first server that answers, waiting for one for as long as it takes.
///
/// # Errors
/// When waiting would not help: wrong credentials, or TLS that can not be set up.
pub(crate) async fn connect(settings: &Settings, metrics: &Metrics) -> anyhow::Result<Link> {
    let link = Link::new(settings, metrics);
    let client = wait_for_client(&link).await?;
    link.replace(client);
    Ok(link)
}

/// A client of its own that reports to `link`; waits for a server for as long as it takes.
///
/// # Errors
/// When waiting would not help: wrong credentials, or TLS that can not be set up.
pub(crate) async fn wait_for_client(link: &Link) -> anyhow::Result<Client> {
    let mut said: Option<(String, Instant)> = None;
    let mut wait = Duration::from_millis(100);
    loop {
        let reason = match connect_once(link).await {
            Ok(client) => return Ok(client),
            Err(failure) if failure.is_final => bail!(failure.reason),
            Err(failure) => failure.reason,
        };
        let due = said.as_ref().is_none_or(|(text, at)| {
            at.elapsed() >= if *text == reason { REMIND } else { OTHER_REASON }
        });
        if due {
            warn!(reason, "waiting for NATS");
            said = Some((reason, Instant::now()));
        }
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(Duration::from_secs(2));
    }
}

/// A client in the place of one that has ended, to be handed to [`Link::replace`]. With one
/// message that makes a client panic anybody could end the relay.
///
/// # Errors
/// As [`wait_for_client`].
pub(crate) async fn new_client(link: &Link) -> anyhow::Result<Client> {
    error!(
        "the NATS client has failed, perhaps over a message that it cannot parse; connecting anew"
    );
    link.client_ended();
    wait_for_client(link).await.inspect_err(|error| error!(%error, "cannot connect anew"))
}

/// Connects, or says in words why not.
///
/// # Errors
/// After one try of each server.
pub(crate) async fn connect_or_fail(
    settings: &Settings,
    metrics: &Metrics,
) -> anyhow::Result<Link> {
    let link = Link::new(settings, metrics);
    let client = connect_once(&link).await.map_err(|failure| anyhow!(failure.reason))?;
    link.replace(client);
    Ok(link)
}

async fn connect_once(link: &Link) -> Result<Client, Failure> {
    let config = link.settings();
    config
        .login
        .check()
        .map_err(|problem| Failure::of_settings(format!("{}: {problem}", config.login_from)))?;
    let listener = link.clone();
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        std::future::ready(log_in(&listener, &nonce))
    });
    let (listener, teller) = (link.clone(), link.clone());
    options = options
        .name("nats-webhook-relay")
        .ping_interval(PING)
        .read_buffer_capacity(32 * 1024)
        .custom_inbox_prefix(&config.inbox_prefix)
        .require_tls(config.tls.required)
        // async-nats drops what does not fit. Messages are moved on at every turn of the
        // thread, and it is the pending limits that decide what is dropped.
        .subscription_capacity(1 << 20)
        .event_callback(move |event: Event| {
            // That a connection was not made is told in more detail below.
            if !matches!(event, Event::ClientError(ClientError::Other(_))) {
                listener.note(event);
            }
            std::future::ready(())
        })
        .reconnect_to_server_callback(move |servers, _| {
            let reason = |server: &Server| {
                let error = in_words(server.last_error.as_ref()?);
                Some(format!("{}:{}: {error}", server.addr.host(), server.addr.port()))
            };
            // One that has none was not tried since it was connected to.
            let reasons = servers.iter().map(reason).collect::<Option<Vec<_>>>();
            if let Some(reasons) = reasons {
                teller.note(Event::ClientError(ClientError::Other(reasons.join("; "))));
            }
            // The choice of a server is the client's.
            std::future::ready(None)
        });
    if let Some(ca) = &config.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &config.tls.identity {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if config.tls.first {
        options = options.tls_first();
    }
    if config.servers.iter().any(async_nats::ServerAddr::is_websocket) {
        // A cluster tells of its others without saying how to speak to them, and the client
        // would take them for servers that speak without web sockets.
        options = options.ignore_discovered_servers();
    }
    options.connect(config.servers.as_slice()).await.map_err(|error| Failure::new(&error, config))
}

/// The answer to a server's challenge. When it fails in a later connection than the first, only this can tell why.
fn log_in(link: &Link, nonce: &[u8]) -> Result<async_nats::Auth, AuthError> {
    let config = link.settings();
    let answer =
        config.login.answer(nonce).map_err(|problem| format!("{}: {problem}", config.login_from));
    let problem = answer.as_ref().err().cloned().or_else(|| has_expired(config));
    if let Some(problem) = problem.filter(|_| link.generation() > 0) {
        link.note(Event::ClientError(ClientError::Other(problem)));
    }
    answer.map_err(AuthError::new)
}
