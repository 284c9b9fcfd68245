//! From settings to a client that is connected.

use crate::nats::failure::{Unconnected, has_expired, in_words};
use crate::nats::settings::{REMIND, Settings};
use anyhow::bail;
use async_nats::{AuthError, Client, ClientError, ConnectOptions, Event, Server};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

/// How soon after it another reason is mentioned; two that alternate are no news.
const OTHER_REASON: Duration = Duration::from_secs(5);
/// A silent connection is noticed after two to three of these.
const PING: Duration = Duration::from_secs(10);

/// Receives what a client reports.
pub(super) trait Listener: Send + Sync {
    fn note(&self, reported: Event);
    /// Whether there was a connection before.
    fn is_reconnecting(&self) -> bool;
}

pub(super) struct Connected {
    pub(super) client: Client,
    /// Resolves when the client has ended.
    pub(super) ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Connects to the first server that answers, waiting for one for as long as it takes.
///
/// # Errors
/// When waiting would not help: wrong credentials, or TLS that cannot be set up.
pub(super) async fn wait(
    settings: &Settings,
    listener: &Arc<dyn Listener>,
) -> anyhow::Result<Connected> {
    let mut said: Option<(String, Instant)> = None;
    let mut wait = Duration::from_millis(100);
    loop {
        let reason = match once(settings, listener).await {
            Ok(connected) => return Ok(connected),
            Err(failure) if failure.is_final => bail!(failure.reason),
            Err(failure) => failure.reason,
        };
        let is_due = said.as_ref().is_none_or(|(text, at)| {
            at.elapsed() >= if *text == reason { REMIND } else { OTHER_REASON }
        });
        if is_due {
            warn!(reason, "waiting for NATS");
            said = Some((reason, Instant::now()));
        }
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(Duration::from_secs(2));
    }
}

/// Tries each server once.
///
/// # Errors
/// Says in words why there is no connection.
pub(super) async fn once(
    settings: &Settings,
    listener: &Arc<dyn Listener>,
) -> Result<Connected, Unconnected> {
    let login = settings.login.check();
    login.map_err(|problem| {
        Unconnected::of_settings(format!("{}: {problem}", settings.login_from))
    })?;
    // The client drops its callbacks when it has ended.
    let (alive, ended) = oneshot::channel::<()>();
    let client = options(settings, listener, alive).connect(settings.servers.as_slice()).await;
    let client = client.map_err(|error| Unconnected::new(&error, settings))?;
    Ok(Connected { client, ended: Box::pin(async { drop(ended.await) }) })
}

fn options(
    settings: &Settings,
    listener: &Arc<dyn Listener>,
    alive: oneshot::Sender<()>,
) -> ConnectOptions {
    let (asked, asker) = (settings.clone(), listener.clone());
    let answer = move |nonce: Vec<u8>| std::future::ready(log_in(&asked, &*asker, &nonce));
    let (noting, telling) = (listener.clone(), listener.clone());
    let mut options = ConnectOptions::with_auth_callback(answer)
        .name("nats-webhook-relay")
        .ping_interval(PING)
        .read_buffer_capacity(32 * 1024)
        .custom_inbox_prefix(&settings.inbox_prefix)
        .require_tls(settings.tls.required)
        // async-nats drops what does not fit. Messages are moved on at every turn of the
        // thread, and it is the pending limits that decide what is dropped.
        .subscription_capacity(1 << 20)
        .event_callback(move |event: Event| {
            let _ = &alive;
            // The next callback tells in more detail why a connection was not made.
            if !matches!(event, Event::ClientError(ClientError::Other(_))) {
                noting.note(event);
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
                telling.note(Event::ClientError(ClientError::Other(reasons.join("; "))));
            }
            // The choice of a server is the client's.
            std::future::ready(None)
        });
    if let Some(ca) = &settings.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &settings.tls.identity {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if settings.tls.first {
        options = options.tls_first();
    }
    if settings.servers.iter().any(async_nats::ServerAddr::is_websocket) {
        // A cluster announces its other servers without saying how to speak to them, and the
        // client would take them for servers that speak without web sockets.
        options = options.ignore_discovered_servers();
    }
    options
}

/// The answer to a server's challenge. When it fails in a later connection than the first, only
/// this can tell why.
fn log_in(
    settings: &Settings,
    listener: &dyn Listener,
    nonce: &[u8],
) -> Result<async_nats::Auth, AuthError> {
    let answer = settings.login.answer(nonce);
    let answer = answer.map_err(|problem| format!("{}: {problem}", settings.login_from));
    let problem = answer.as_ref().err().cloned().or_else(|| has_expired(settings));
    if let Some(problem) = problem.filter(|_| listener.is_reconnecting()) {
        listener.note(Event::ClientError(ClientError::Other(problem)));
    }
    answer.map_err(AuthError::new)
}
