//! From configuration to a connection, and what the connection says about itself.
//!
//! Owns reconnects, permissions and gaps: a lost connection, a denied subject and messages
//! that may have been missed are each said once, counted, and visible in readiness.
//!
//! Server errors and replies arrive over one connection in the server's order. The relay runs
//! on one thread, whose tasks are woken first come, first served: a denial is therefore noted
//! here before the reply that followed it is seen by whoever waits for it.

use crate::config::{self, Login};
use crate::metrics::Metrics;
use anyhow::bail;
use async_nats::connection::State as ConnectionState;
use async_nats::{Client, ClientError, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How often a server that can not be reached is mentioned again.
const REMIND: Duration = Duration::from_secs(60);
/// A silent connection is noticed after two to three of these.
const PING: Duration = Duration::from_secs(10);
/// How often a state is looked at for which there is no reliable event.
const LOOK: Duration = Duration::from_millis(200);

/// A connection to NATS. Clones share it.
#[derive(Clone)]
pub struct Link {
    /// The client; it reconnects for ever and subscribes again by itself.
    pub client: Client,
    state: Arc<State>,
}

struct State {
    metrics: Metrics,
    /// Whether messages published while there is no connection are missed.
    core_intake: bool,
    report: Mutex<Report>,
    changed: Notify,
}

#[derive(Default)]
struct Report {
    lost_at: Option<Instant>,
    connected_before: bool,
    reason_said: bool,
    slow_said: Option<Instant>,
    denied_publishes: Vec<String>,
    denied_subscriptions: Vec<String>,
}

/// Connects to the first server that answers, waiting for one for as long as it takes.
///
/// # Errors
/// When waiting would not help: wrong credentials, or TLS that can not be set up.
pub async fn connect(config: &config::Nats, metrics: &Metrics) -> anyhow::Result<Link> {
    let servers = shown(config);
    let (mut said, mut said_at) = (String::new(), Instant::now());
    let mut wait = Duration::from_millis(100);
    loop {
        let reason = match connect_once(config, metrics).await {
            Ok(link) => return Ok(link),
            Err(error) if is_final(error.kind()) => bail!("{}", explain(&error, &servers)),
            Err(error) => explain(&error, &servers),
        };
        if reason != said || said_at.elapsed() >= REMIND {
            warn!(reason, "waiting for NATS");
            (said, said_at) = (reason, Instant::now());
        }
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(Duration::from_secs(2));
    }
}

/// Connects, or says in words why not.
///
/// # Errors
/// After one try of each server.
pub async fn connect_or_fail(config: &config::Nats, metrics: &Metrics) -> anyhow::Result<Link> {
    connect_once(config, metrics).await.map_err(|error| anyhow::anyhow!(explain(&error, &shown(config))))
}

async fn connect_once(config: &config::Nats, metrics: &Metrics) -> Result<Link, ConnectError> {
    let state = Arc::new(State { metrics: metrics.clone(), core_intake: true, report: Mutex::default(), changed: Notify::new() });
    let listener = state.clone();
    let options = ConnectOptions::new()
        .name("nats-webhook-relay")
        .ping_interval(PING)
        // async-nats drops what does not fit. Messages are moved on at every turn of the
        // thread, and it is the pending limits that decide what is dropped.
        .subscription_capacity(1 << 20)
        .event_callback(move |event| {
            listener.note(event);
            std::future::ready(())
        });
    let options = match config.login.clone() {
        Login::Anonymous => options,
        Login::Password { user, password } => options.user_and_password(user, password.expose().to_owned()),
        Login::Token(token) => options.token(token.expose().to_owned()),
    };
    let client = options.connect(config.servers.as_slice()).await?;
    Ok(Link { client, state })
}

impl Link {
    /// How many connections there have been. What was published and what came back under the
    /// same number travelled over the same connection, in order.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Acquire)
    }

    /// Whether there is a connection now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == ConnectionState::Connected
    }

    /// Waits for a connection and returns its number.
    pub async fn connected(&self) -> u64 {
        while !self.is_connected() {
            let _ = tokio::time::timeout(LOOK, self.state.changed.notified()).await;
        }
        self.generation()
    }

    /// Waits until the connection `generation` is no more the current one.
    pub async fn replaced(&self, generation: u64) {
        while self.generation() == generation {
            let _ = tokio::time::timeout(LOOK, self.state.changed.notified()).await;
        }
    }

    /// Whether the server has denied a publish on `subject` that was not asked about before.
    #[must_use]
    pub fn take_denied_publish(&self, subject: &str) -> bool {
        let mut report = self.state.lock();
        let found = report.denied_publishes.iter().position(|denied| denied == subject);
        found.map(|index| report.denied_publishes.swap_remove(index)).is_some()
    }

    /// Whether so many publishes were denied at once that some may not have been noted: the
    /// client's event channel holds 128.
    #[must_use]
    pub fn may_have_missed_denials(&self) -> bool {
        self.state.lock().denied_publishes.len() > 100
    }

    /// Forgets denied publishes that nobody asks about any more.
    pub fn forget_denied_publishes(&self) {
        self.state.lock().denied_publishes.clear();
    }

    /// Whether the server has denied the subscription to `subject`.
    #[must_use]
    pub fn is_subscription_denied(&self, subject: &str) -> bool {
        self.state.lock().denied_subscriptions.iter().any(|denied| denied == subject)
    }

    /// Returns when the server denies the subscription to `subject`.
    pub async fn subscription_denied(&self, subject: &str) {
        loop {
            let changed = self.state.changed.notified();
            if self.is_subscription_denied(subject) {
                return;
            }
            changed.await;
        }
    }

    /// Whether the server's version is at least `major.minor`.
    #[must_use]
    pub fn server_is_at_least(&self, major: i64, minor: i64) -> bool {
        self.client.is_server_compatible(major, minor, 0)
    }
}

impl State {
    fn note(&self, event: Event) {
        let mut report = self.lock();
        match event {
            Event::Connected if !report.connected_before => report.connected_before = true,
            Event::Connected => {
                report.reason_said = false;
                report.denied_publishes.clear();
                report.denied_subscriptions.clear();
                self.metrics.reconnects.inc();
                let away_ms = report.lost_at.take().map_or(0, |lost_at| lost_at.elapsed().as_millis() as u64);
                if self.core_intake {
                    self.metrics.gaps.inc();
                    error!(gap_ms = away_ms, "reconnected to NATS; what was published meanwhile has not reached the relay");
                } else {
                    info!(away_ms, "reconnected to NATS");
                }
            }
            Event::Disconnected => {
                report.lost_at.get_or_insert_with(Instant::now);
                warn!("lost the connection to NATS, reconnecting");
            }
            Event::ClientError(ClientError::Other(reason)) if !report.reason_said => {
                report.reason_said = true;
                warn!(reason, "cannot reconnect to NATS yet, trying again");
            }
            Event::SlowConsumer(_) => {
                if report.slow_said.is_none_or(|said| said.elapsed() >= REMIND) {
                    report.slow_said = Some(Instant::now());
                    self.metrics.gaps.inc();
                    error!("the NATS client dropped messages before the relay could take them");
                }
                self.metrics.lost.inc();
            }
            Event::LameDuckMode => warn!("the NATS server is about to stop (lame duck mode)"),
            Event::ServerError(ServerError::Other(text)) => match denied(&text) {
                Some((Denied::Publish, subject)) => report.denied_publishes.push(subject),
                Some((Denied::Subscription, subject)) => report.denied_subscriptions.push(subject),
                None => warn!(reason = text, "NATS server reported an error"),
            },
            Event::ServerError(reason) => warn!(%reason, "NATS server reported an error"),
            Event::ClientError(_) | Event::Draining | Event::Closed => {}
        }
        drop(report);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Denied {
    Publish,
    Subscription,
}

/// Reads nats-server's `Permissions Violation for Publish to "SUBJECT"` and its twin for
/// subscriptions. The subject is quoted as Go's `%q` does.
fn denied(text: &str) -> Option<(Denied, String)> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let (kind, quoted) = match rest.strip_prefix("Publish to \"") {
        Some(quoted) => (Denied::Publish, quoted),
        None => (Denied::Subscription, rest.strip_prefix("Subscription to \"")?),
    };
    let mut subject = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some((kind, subject)),
            '\\' => subject.push(characters.next()?),
            character => subject.push(character),
        }
    }
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
            format!("{servers} refused the login: check NATS_USER and NATS_PASS")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_read_as_the_server_writes_them() {
        for (text, expected) in [
            (r#"Permissions Violation for Publish to "a.b""#, Some((Denied::Publish, "a.b"))),
            (r#"Permissions Violation for Publish to "a.\"q\"\\""#, Some((Denied::Publish, r#"a."q"\"#))),
            (r#"Permissions Violation for Subscription to "a.>""#, Some((Denied::Subscription, "a.>"))),
            (r#"Permissions Violation for Subscription to "a.>" using queue "q""#, Some((Denied::Subscription, "a.>"))),
            ("Authorization Violation", None),
            (r#"Permissions Violation for Publish to "unfinished"#, None),
        ] {
            assert_eq!(denied(text), expected.map(|(kind, subject)| (kind, subject.to_owned())), "{text}");
        }
    }
}
