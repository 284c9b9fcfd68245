//! The connection while the relay runs, and what it says about itself.
//!
//! Owns reconnects, permissions and gaps: a lost connection, a denied subject and messages
//! that may have been missed are each said once, counted, and visible in readiness.
//!
//! Server errors and replies arrive over one connection in the server's order. The relay runs
//! on one thread, whose tasks are woken first come, first served: once who waits for a reply has
//! it and has let all others run that were woken before, a denial that came before it is noted here.

use crate::nats::failure::shown;
use crate::nats::settings::Settings;
use crate::observe::metrics::Metrics;
use async_nats::connection::State;
use async_nats::{Client, ClientError, Event, ServerError};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, warn};

/// How often a server that can not be reached is mentioned again.
pub(crate) const REMIND: Duration = Duration::from_secs(60);
/// How often a state is looked at for which there is no reliable event.
const LOOK: Duration = Duration::from_millis(200);
/// How many denied subjects are remembered: more than can wait for their proof at once, and an
/// end to those that nobody asks about, such as acknowledgements.
const MOST_DENIED: usize = 1024;

/// A connection to NATS. Clones share it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Shared>);

struct Shared {
    metrics: Metrics,
    settings: Settings,
    client: Mutex<Current>,
    report: Mutex<Report>,
    changed: Notify,
}

/// What becomes of messages while there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Nobody keeps them.
    Perhaps,
    /// A stream does.
    Nothing,
}

/// The client in use: it reconnects for ever and subscribes again by itself. It is replaced
/// only when it has ended, which it does by a panic over a message that it can not parse.
#[derive(Default)]
struct Current {
    client: Option<Client>,
    number: u64,
    /// Connections of the clients before it.
    earlier_connections: u64,
}

#[derive(Default)]
struct Report {
    lost_at: Option<Instant>,
    reason_said: Option<Instant>,
    slow_consumer_said: bool,
    denied_ack_said: bool,
    /// The connection in which the subscription is known to be active.
    subscribed_in: u64,
    denied_publishes: VecDeque<String>,
    denied_subscriptions: VecDeque<String>,
}

impl Link {
    /// A link without a client yet.
    #[must_use]
    pub(crate) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let (client, report) = (Mutex::default(), Mutex::default());
        let (settings, metrics) = (settings.clone(), metrics.clone());
        Self(Arc::new(Shared { metrics, settings, client, report, changed: Notify::new() }))
    }

    /// What the connection is made with.
    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Uses `client` from now on: the first, or the one after [`Self::client_ended`].
    pub(crate) fn replace(&self, client: Client) {
        let mut current = self.current();
        current.number += 1;
        current.client = Some(client);
        drop(current);
        self.0.changed.notify_waiters();
    }

    /// The client in use has ended: there is no connection until it is replaced.
    pub(crate) fn client_ended(&self) {
        self.note(Event::Disconnected);
        let mut current = self.current();
        let connections = current.client.take().as_ref().map_or(0, connections);
        current.earlier_connections += connections;
    }

    /// The client in use, and its number; waits while there is none.
    pub(crate) async fn client(&self) -> (u64, Client) {
        loop {
            let current = {
                let current = self.current();
                current.client.clone().map(|client| (current.number, client))
            };
            match current {
                Some(current) => return current,
                None => self.change().await,
            }
        }
    }

    /// How many connections there have been. What was published and what came back under the
    /// same number travelled over the same connection, in order.
    #[must_use]
    pub(crate) fn generation(&self) -> u64 {
        let current = self.current();
        current.earlier_connections + current.client.as_ref().map_or(0, connections)
    }

    /// Whether there is a connection now.
    #[must_use]
    pub(crate) fn is_connected(&self) -> bool {
        self.current()
            .client
            .as_ref()
            .is_some_and(|client| client.connection_state() == State::Connected)
    }

    /// Waits for a connection and returns its number.
    pub(crate) async fn connected(&self) -> u64 {
        while !self.is_connected() {
            self.change().await;
        }
        self.generation()
    }

    /// Waits until the connection `generation` is no more the current one.
    pub(crate) async fn replaced(&self, generation: u64) {
        while self.generation() == generation {
            self.change().await;
        }
    }

    /// Waits until there is no connection.
    pub(crate) async fn disconnected(&self) {
        while self.is_connected() {
            self.change().await;
        }
    }

    /// The largest message that the server takes, headers included, in bytes.
    #[must_use]
    pub(crate) fn max_payload(&self) -> usize {
        self.current().client.as_ref().map_or(usize::MAX, Client::max_payload)
    }

    /// Notes that messages can arrive in the connection `generation`, and reports the gap if
    /// there was one before.
    pub(crate) fn subscribed(&self, generation: u64, missed: Missed) {
        let mut report = self.report();
        report.subscribed_in = generation;
        let Some(lost_at) = report.lost_at.take() else { return };
        self.0.metrics.reconnects.inc();
        let gap_ms = lost_at.elapsed().as_millis() as u64;
        match missed {
            Missed::Perhaps => {
                self.0.metrics.gaps.inc();
                error!(
                    gap_ms,
                    "reconnected to NATS; what was published meanwhile has not reached the relay"
                );
            }
            Missed::Nothing => warn!(
                gap_ms,
                "reconnected to NATS; the stream has kept what was published meanwhile"
            ),
        }
    }

    /// Notes that no messages can arrive, though there is a connection.
    pub(crate) fn unsubscribed(&self) {
        self.report().subscribed_in = 0;
    }

    /// Whether messages can arrive now.
    #[must_use]
    pub(crate) fn is_subscribed(&self) -> bool {
        self.is_connected() && self.report().subscribed_in == self.generation()
    }

    /// Whether the server has denied a publish on `subject` that was not asked about before.
    #[must_use]
    pub(crate) fn take_denied_publish(&self, subject: &str) -> bool {
        let mut report = self.report();
        let found = report.denied_publishes.iter().position(|denied| denied == subject);
        found.map(|index| report.denied_publishes.remove(index)).is_some()
    }

    /// Returns when the server denies a publish on `subject`.
    pub(crate) async fn publish_denied(&self, subject: &str) {
        self.noted(|| self.take_denied_publish(subject)).await;
    }

    /// Forgets denied publishes that nobody asks about any more.
    pub(crate) fn forget_denied_publishes(&self) {
        self.report().denied_publishes.clear();
    }

    /// Whether the server has denied the subscription to `subject`.
    #[must_use]
    pub(crate) fn is_subscription_denied(&self, subject: &str) -> bool {
        self.report().denied_subscriptions.iter().any(|denied| denied == subject)
    }

    /// Returns when the server denies the subscription to `subject`.
    pub(crate) async fn subscription_denied(&self, subject: &str) {
        self.noted(|| self.is_subscription_denied(subject)).await;
    }

    /// Takes note of what a client reports.
    pub(crate) fn note(&self, event: Event) {
        let mut report = self.report();
        match event {
            Event::Connected => {
                report.reason_said = None;
                report.slow_consumer_said = false;
                report.denied_publishes.clear();
                report.denied_subscriptions.clear();
            }
            Event::Disconnected => {
                report.lost_at.get_or_insert_with(Instant::now);
                warn!("lost the connection to NATS, reconnecting");
            }
            Event::ClientError(ClientError::Other(reason)) => {
                if report.reason_said.is_none_or(|said| said.elapsed() >= REMIND) {
                    report.reason_said = Some(Instant::now());
                    warn!(
                        servers = shown(&self.0.settings),
                        reason, "cannot reconnect to NATS yet, trying again"
                    );
                }
            }
            Event::SlowConsumer(_) => {
                self.0.metrics.lost.inc();
                if !std::mem::replace(&mut report.slow_consumer_said, true) {
                    self.0.metrics.gaps.inc();
                    error!("the NATS client dropped messages before the relay could take them");
                }
            }
            Event::LameDuckMode => warn!("the NATS server is about to stop (lame duck mode)"),
            Event::ServerError(ServerError::Other(text)) => match denied(&text) {
                Some((Denied::Publish, subject)) => {
                    if subject.starts_with("$JS.ACK.")
                        && !subject.ends_with(".check")
                        && !std::mem::replace(&mut report.denied_ack_said, true)
                    {
                        error!(
                            subject,
                            "the NATS user may not acknowledge messages, so that they come again for ever: grant publish on $JS.ACK.>"
                        );
                    }
                    remember(&mut report.denied_publishes, subject);
                }
                Some((Denied::Subscription, subject)) => {
                    remember(&mut report.denied_subscriptions, subject)
                }
                None if text.to_lowercase().contains("authentication expired") => {
                    error!(
                        reason = text,
                        "the NATS server has ended the connection, because the login is not valid any more: renew it"
                    );
                }
                None => warn!(reason = text, "NATS server reported an error"),
            },
            Event::ServerError(reason) => warn!(%reason, "NATS server reported an error"),
            Event::ClientError(_) | Event::Draining | Event::Closed => {}
        }
        drop(report);
        self.0.changed.notify_waiters();
    }

    /// Returns when something is noted after which `holds` does.
    async fn noted(&self, holds: impl Fn() -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    async fn change(&self) {
        let _ = tokio::time::timeout(LOOK, self.0.changed.notified()).await;
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.0.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connections(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Acquire)
}

#[derive(Debug, PartialEq, Eq)]
enum Denied {
    Publish,
    Subscription,
}

/// Adds to what was denied; the oldest goes where there is no room.
fn remember(denied: &mut VecDeque<String>, subject: String) {
    if denied.len() >= MOST_DENIED {
        denied.pop_front();
    }
    denied.push_back(subject);
}

/// Reads nats-server's `Permissions Violation for Publish to "SUBJECT"` and its twin for
/// subscriptions. The subject is quoted as Go's `%q` does.
fn denied(text: &str) -> Option<(Denied, String)> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let (kind, quoted) = match rest.strip_prefix("Publish to \"") {
        Some(quoted) => (Denied::Publish, quoted),
        None => (Denied::Subscription, rest.strip_prefix("Subscription to \"")?),
    };
    Some((kind, unquote(quoted)?))
}

/// Reads what Go's `strconv.Quote` has written, from behind the first quotation mark to the
/// second. It escapes what is not printable, by Go's own tables of Unicode, and each byte that is
/// not UTF-8; a subject with such a byte is none of the relay's.
fn unquote(quoted: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = quoted.chars();
    loop {
        let character = match rest.next()? {
            '"' => return String::from_utf8(bytes).ok(),
            '\\' => match rest.next()? {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                'x' => {
                    bytes.push(u8::try_from(hexadecimal(&mut rest, 2)?).ok()?);
                    continue;
                }
                'u' => char::from_u32(hexadecimal(&mut rest, 4)?)?,
                'U' => char::from_u32(hexadecimal(&mut rest, 8)?)?,
                itself => itself,
            },
            character => character,
        };
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The number that the next `digits` characters are, eight at most.
fn hexadecimal(text: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0, |number, _| Some(number * 16 + text.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write;

    #[test]
    fn denials_are_read_as_the_server_writes_them() {
        for (text, expected) in [
            (r#"Permissions Violation for Publish to "a.b""#, Some((Denied::Publish, "a.b"))),
            (
                r#"Permissions Violation for Publish to "a.\"q\"\\""#,
                Some((Denied::Publish, r#"a."q"\"#)),
            ),
            (
                r#"Permissions Violation for Subscription to "a.>""#,
                Some((Denied::Subscription, "a.>")),
            ),
            (
                r#"Permissions Violation for Subscription to "a.>" using queue "q""#,
                Some((Denied::Subscription, "a.>")),
            ),
            (
                r#"Permissions Violation for Publish to "a.\u200bb""#,
                Some((Denied::Publish, "a.\u{200b}b")),
            ),
            (
                r#"Permissions Violation for Publish to "\a\b\f\n\r\t\v""#,
                Some((Denied::Publish, "\u{7}\u{8}\u{c}\n\r\t\u{b}")),
            ),
            (
                r#"Permissions Violation for Publish to "\x01\x7f\u00a0""#,
                Some((Denied::Publish, "\u{1}\u{7f}\u{a0}")),
            ),
            (
                r#"Permissions Violation for Publish to "\U000e0001😀é\ufeff""#,
                Some((Denied::Publish, "\u{e0001}😀é\u{feff}")),
            ),
            (
                r#"Permissions Violation for Publish to "a.\\x01\\u200b""#,
                Some((Denied::Publish, r"a.\x01\u200b")),
            ),
            (
                r#"Permissions Violation for Subscription to "a.\u200b" using queue "\x01""#,
                Some((Denied::Subscription, "a.\u{200b}")),
            ),
            // Not UTF-8, and what Go does not write.
            (r#"Permissions Violation for Publish to "a.\xff""#, None),
            (r#"Permissions Violation for Publish to "a.\ud800""#, None),
            (r#"Permissions Violation for Publish to "a.\u200""#, None),
            (r#"Permissions Violation for Publish to "a.\UFFFFFFFF""#, None),
            ("Authorization Violation", None),
            (r#"Permissions Violation for Publish to "unfinished"#, None),
        ] {
            assert_eq!(
                denied(text),
                expected.map(|(kind, subject)| (kind, subject.to_owned())),
                "{text}"
            );
        }
    }

    /// Quotes as Go does, which escapes more than it must: what is not printable.
    fn quote(subject: &[(char, bool)]) -> String {
        let mut quoted = String::new();
        for &(character, is_printable) in subject {
            let code = u32::from(character);
            match character {
                '"' | '\\' => quoted.extend(['\\', character]),
                '\u{7}' => quoted.push_str(r"\a"),
                '\u{8}' => quoted.push_str(r"\b"),
                '\u{b}' => quoted.push_str(r"\v"),
                '\u{c}' => quoted.push_str(r"\f"),
                '\n' => quoted.push_str(r"\n"),
                '\r' => quoted.push_str(r"\r"),
                '\t' => quoted.push_str(r"\t"),
                '\0'..' ' | '\u{7f}' => write!(quoted, r"\x{code:02x}").unwrap(),
                ' '..='~' => quoted.push(character),
                _ if is_printable => quoted.push(character),
                ..='\u{ffff}' => write!(quoted, r"\u{code:04x}").unwrap(),
                _ => write!(quoted, r"\U{code:08x}").unwrap(),
            }
        }
        quoted
    }

    proptest! {
        #[test]
        fn any_subject_that_go_quotes_is_read_back(subject in any::<Vec<(char, bool)>>()) {
            let expected = subject.iter().map(|(character, _)| *character).collect::<String>();
            let text = format!("Permissions Violation for Publish to \"{}\"", quote(&subject));
            prop_assert_eq!(denied(&text), Some((Denied::Publish, expected)));
        }

        #[test]
        fn reading_a_denial_never_panics(subject in any::<String>()) {
            let _ = denied(&format!("Permissions Violation for Publish to \"{subject}"));
        }
    }

    #[test]
    fn what_was_denied_is_remembered_within_bounds() {
        let mut denied = VecDeque::new();
        (0..=MOST_DENIED).for_each(|number| remember(&mut denied, number.to_string()));
        assert_eq!(denied.len(), MOST_DENIED);
        assert_eq!(denied.back(), Some(&MOST_DENIED.to_string()));
    }
}
