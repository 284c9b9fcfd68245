//! From configuration to a connection.

use crate::config::{self, Login};
use crate::link::{Link, REMIND};
use crate::metrics::Metrics;
use anyhow::{anyhow, bail};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};
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
pub async fn connect(config: &config::Nats, metrics: &Metrics) -> anyhow::Result<Link> {
    let link = Link::new(shown(config), metrics);
    let client = wait_for_client(config, &link).await?;
    link.replace(client);
    Ok(link)
}

/// A client of its own that reports to `link`; waits for a server for as long as it takes.
///
/// # Errors
/// When waiting would not help: wrong credentials, or TLS that can not be set up.
pub async fn wait_for_client(config: &config::Nats, link: &Link) -> anyhow::Result<Client> {
    let servers = shown(config);
    let mut said: Option<(String, Instant)> = None;
    let mut wait = Duration::from_millis(100);
    loop {
        let reason = match connect_once(config, link).await {
            Ok(client) => return Ok(client),
            Err(error) if is_final(error.kind()) => bail!("{}", explain(&error, &servers)),
            Err(error) => explain(&error, &servers),
        };
        let due = said.as_ref().is_none_or(|(text, at)| at.elapsed() >= if *text == reason { REMIND } else { OTHER_REASON });
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
pub async fn new_client(config: &config::Nats, link: &Link) -> anyhow::Result<Client> {
    error!("the NATS client has failed, perhaps over a message that it cannot parse; connecting anew");
    link.client_ended();
    wait_for_client(config, link).await.inspect_err(|error| error!(%error, "cannot connect anew"))
}

/// Connects, or says in words why not.
///
/// # Errors
/// After one try of each server.
pub async fn connect_or_fail(config: &config::Nats, metrics: &Metrics) -> anyhow::Result<Link> {
    let link = Link::new(shown(config), metrics);
    let client = connect_once(config, &link).await.map_err(|error| anyhow!(explain(&error, &shown(config))))?;
    link.replace(client);
    Ok(link)
}

async fn connect_once(config: &config::Nats, link: &Link) -> Result<Client, ConnectError> {
    let listener = link.clone();
    let options = ConnectOptions::new()
        .name("nats-webhook-relay")
        .ping_interval(PING)
        .read_buffer_capacity(32 * 1024)
        // async-nats drops what does not fit. Messages are moved on at every turn of the
        // thread, and it is the pending limits that decide what is dropped.
        .subscription_capacity(1 << 20)
        .event_callback(move |event: Event| {
            listener.note(event);
            std::future::ready(())
        });
    let options = match config.login.clone() {
        Login::Anonymous => options,
        Login::Password { user, password } => options.user_and_password(user, password.expose().to_owned()),
        Login::Token(token) => options.token(token.expose().to_owned()),
    };
    options.connect(config.servers.as_slice()).await
}

fn is_final(kind: ConnectErrorKind) -> bool {
    use ConnectErrorKind::{Authentication, AuthorizationViolation, ServerParse, Tls};
    matches!(kind, Authentication | AuthorizationViolation | ServerParse | Tls)
}

fn explain(error: &ConnectError, servers: &str) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let mut io = causes.clone().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            format!("{servers} refused the login: check NATS_USER and NATS_PASS, or the user info in NATS_HOST")
        }
        ConnectErrorKind::Dns => format!("cannot find the host of {servers} (NATS_HOST)"),
        ConnectErrorKind::TimedOut => format!("{servers} did not answer in time (NATS_HOST)"),
        _ if io.any(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) => {
            format!("nothing listens on {servers} (NATS_HOST): is nats-server running?")
        }
        kind => {
            let detail = causes.last().map_or_else(|| kind.to_string(), |cause| cause.to_string());
            format!("cannot connect to {servers} (NATS_HOST): {detail}")
        }
    }
}

/// The configured servers as `host:port, host:port`.
fn shown(config: &config::Nats) -> String {
    let servers = config.servers.iter().map(|server| format!("{}:{}", server.host(), server.port()));
    servers.collect::<Vec<_>>().join(", ")
}
