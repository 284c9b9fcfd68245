//! The connection while the program runs, and what it says about itself.
//!
//! Owns reconnects, the replacement of a client that has ended, permissions and gaps: a lost
//! connection, a denied subject and messages that may have been missed are each said once,
//! counted, and visible in readiness. Any number of users share it; they only subscribe and
//! publish, and learn by its number that there is another connection or another client.

use crate::nats::ack;
use crate::nats::connect::{self, Connected, Listener};
use crate::nats::denied::{Denied, denied};
use crate::nats::failure::shown;
use crate::nats::settings::{REMIND, Settings};
use crate::observe::Observer;
use crate::observe::event::{Event, Gap};
use async_nats::connection::State;
use async_nats::{Client, ClientError, Event as Reported, ServerError};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, warn};

/// How often a state is looked at for which there is no reliable event.
const LOOK: Duration = Duration::from_millis(200);
/// How many denied subjects are remembered: more than can wait for their proof at once, and an
/// end to those that are never asked about, such as acknowledgements.
const MOST_DENIED: usize = 1024;

/// A connection to NATS. Clones share it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Shared>);

struct Shared {
    settings: Settings,
    observer: Observer,
    client: Mutex<Current>,
    report: Mutex<Report>,
    changed: Notify,
}

/// What becomes of messages while there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Nothing keeps them.
    Perhaps,
    /// A stream does.
    Nothing,
}

/// The client in use: it reconnects without end and subscribes again by itself. It is replaced
/// only when it has ended, which it does by a panic over a message that it cannot parse.
#[derive(Default)]
struct Current {
    client: Option<Client>,
    number: u64,
    /// Connections of the clients before it.
    earlier_connections: u64,
    /// Whether there will be no other client.
    is_given_up: bool,
}

#[derive(Default)]
struct Report {
    lost_at: Option<Instant>,
    reason_said: Option<Instant>,
    slow_consumer_said: bool,
    denied_ack_said: bool,
    /// The connection in which messages are known to arrive.
    subscribed_in: u64,
    denied_publishes: VecDeque<String>,
    denied_subscriptions: VecDeque<String>,
}

impl Link {
    /// A link without a client yet.
    pub(crate) fn new(settings: &Settings, observer: &Observer) -> Self {
        let (client, report) = (Mutex::default(), Mutex::default());
        let (settings, observer) = (settings.clone(), observer.clone());
        Self(Arc::new(Shared { settings, observer, client, report, changed: Notify::new() }))
    }

    /// Connects to the first server that answers, waiting for one for as long as it takes. From
    /// then on, clients that end are replaced.
    ///
    /// # Errors
    /// When waiting would not help: wrong credentials, or TLS that cannot be set up.
    pub(crate) async fn open(settings: &Settings, observer: &Observer) -> anyhow::Result<Self> {
        let link = Self::new(settings, observer);
        let connected = connect::wait(settings, &link.listener()).await?;
        link.keep(connected);
        Ok(link)
    }

    /// As [`Self::open`], but tries each server once.
    ///
    /// # Errors
    /// Says why there is no connection.
    pub(crate) async fn try_open(settings: &Settings, observer: &Observer) -> anyhow::Result<Self> {
        let link = Self::new(settings, observer);
        let connected = connect::once(settings, &link.listener()).await;
        link.keep(connected.map_err(|failure| anyhow::anyhow!(failure.reason))?);
        Ok(link)
    }

    /// Uses a client for as long as it lives, and then others.
    fn keep(&self, mut connected: Connected) {
        let link = self.clone();
        link.use_client(connected.client);
        tokio::spawn(async move {
            loop {
                // Anybody who can publish one message that makes a client panic could otherwise
                // end the program.
                connected.ended.await;
                error!(
                    "the NATS client failed, perhaps on a message that it cannot parse; connecting \
                     again"
                );
                link.client_ended();
                match connect::wait(&link.0.settings, &link.listener()).await {
                    Ok(other) => {
                        link.use_client(other.client);
                        connected.ended = other.ended;
                    }
                    Err(error) => {
                        error!(%error, "cannot connect to NATS again");
                        link.current().is_given_up = true;
                        return link.0.changed.notify_waiters();
                    }
                }
            }
        });
    }

    fn use_client(&self, client: Client) {
        let mut current = self.current();
        current.number += 1;
        current.client = Some(client);
        drop(current);
        self.0.changed.notify_waiters();
    }

    /// The client in use has ended: there is no connection until it is replaced.
    fn client_ended(&self) {
        self.note(Reported::Disconnected);
        let mut current = self.current();
        let connections = current.client.take().as_ref().map_or(0, connections);
        current.earlier_connections += connections;
        drop(current);
        self.0.changed.notify_waiters();
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

    /// The client in use with its number and the number of its connection; `None` where there is no
    /// connection now.
    pub(crate) fn connected_client(&self) -> Option<(u64, Client, u64)> {
        let current = self.current();
        let client = current.client.as_ref()?;
        let is_connected = client.connection_state() == State::Connected;
        let generation = current.earlier_connections + connections(client);
        is_connected.then(|| (current.number, client.clone(), generation))
    }

    /// The client after the one with this number, which has ended; `None` when there will be none.
    pub(crate) async fn client_after(&self, number: u64) -> Option<(u64, Client)> {
        loop {
            let (current, is_given_up) = {
                let current = self.current();
                let client = current.client.clone().filter(|_| current.number > number);
                (client.map(|client| (current.number, client)), current.is_given_up)
            };
            match current {
                Some(current) => return Some(current),
                None if is_given_up => return None,
                None => self.change().await,
            }
        }
    }

    /// How many connections there have been. What was published and what came back under the
    /// same number travelled over the same connection, in order.
    pub(crate) fn generation(&self) -> u64 {
        let current = self.current();
        current.earlier_connections + current.client.as_ref().map_or(0, connections)
    }

    /// Whether there is a connection now.
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

    /// Waits until the connection `generation` is no longer the current one.
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
    pub(crate) fn max_payload(&self) -> usize {
        self.current().client.as_ref().map_or(usize::MAX, Client::max_payload)
    }

    /// Notes that messages can arrive in the connection `generation`, and reports the gap if
    /// there was one before.
    pub(crate) fn subscribed(&self, generation: u64, missed: Missed) {
        let mut report = self.report();
        report.subscribed_in = generation;
        let Some(lost_at) = report.lost_at.take() else { return };
        let gap = lost_at.elapsed();
        self.0.observer.note(&match missed {
            Missed::Perhaps => Event::Gap(Gap::Reconnected { gap }),
            Missed::Nothing => Event::Reconnected { gap },
        });
    }

    /// Notes that no messages can arrive, though there is a connection.
    pub(crate) fn unsubscribed(&self) {
        self.report().subscribed_in = 0;
    }

    /// Whether messages can be published now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn can_publish(&self) -> Result<(), String> {
        match self.is_connected() {
            true => Ok(()),
            false => Err("there is no connection to NATS".to_owned()),
        }
    }

    /// Whether messages can arrive now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn can_receive(&self) -> Result<(), String> {
        self.can_publish()?;
        match self.report().subscribed_in == self.generation() {
            true => Ok(()),
            false => Err("connected to NATS, but no subscription or consumer is active".to_owned()),
        }
    }

    /// Whether the server has denied a publish on `subject` that was not asked about before.
    pub(crate) fn take_denied_publish(&self, subject: &str) -> bool {
        let mut report = self.report();
        let found = report.denied_publishes.iter().position(|denied| denied == subject);
        found.map(|index| report.denied_publishes.remove(index)).is_some()
    }

    /// Returns when the server denies a publish on `subject`.
    pub(crate) async fn publish_denied(&self, subject: &str) {
        self.noted(|| self.take_denied_publish(subject)).await;
    }

    /// Forgets denied publishes that no publish waits to hear about.
    pub(crate) fn forget_denied_publishes(&self) {
        self.report().denied_publishes.clear();
    }

    /// Whether the server has denied the subscription to `subject`.
    pub(crate) fn is_subscription_denied(&self, subject: &str) -> bool {
        self.report().denied_subscriptions.iter().any(|denied| denied == subject)
    }

    /// Returns when the server denies the subscription to `subject`.
    pub(crate) async fn subscription_denied(&self, subject: &str) {
        self.noted(|| self.is_subscription_denied(subject)).await;
    }

    /// Takes note of what a client reports.
    fn note(&self, reported: Reported) {
        let mut report = self.report();
        match reported {
            Reported::Connected => {
                report.reason_said = None;
                report.slow_consumer_said = false;
                report.denied_publishes.clear();
                report.denied_subscriptions.clear();
            }
            Reported::Disconnected => {
                report.lost_at.get_or_insert_with(Instant::now);
                self.0.observer.note(&Event::Disconnected);
            }
            Reported::ClientError(ClientError::Other(reason)) => {
                if report.reason_said.is_none_or(|said| said.elapsed() >= REMIND) {
                    report.reason_said = Some(Instant::now());
                    let servers = shown(&self.0.settings);
                    warn!(servers, reason, "cannot reconnect to NATS yet, retrying");
                }
            }
            Reported::SlowConsumer(_) => {
                self.0.observer.note(&Event::Dropped);
                if !std::mem::replace(&mut report.slow_consumer_said, true) {
                    self.0.observer.note(&Event::Gap(Gap::SlowConsumer));
                }
            }
            Reported::LameDuckMode => warn!("the NATS server is shutting down (lame duck mode)"),
            Reported::ServerError(ServerError::Other(text)) => report.server_error(text),
            Reported::ServerError(reason) => warn!(%reason, "the NATS server reported an error"),
            Reported::ClientError(_) | Reported::Draining | Reported::Closed => {}
        }
        drop(report);
        self.0.changed.notify_waiters();
    }

    fn listener(&self) -> Arc<dyn Listener> {
        Arc::new(self.clone())
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

impl Listener for Link {
    fn note(&self, reported: Reported) {
        Self::note(self, reported);
    }

    fn is_reconnecting(&self) -> bool {
        self.generation() > 0
    }
}

impl Report {
    /// The server said something, as text.
    fn server_error(&mut self, text: String) {
        match denied(&text) {
            Some((Denied::Publish, subject)) => {
                if ack::is_ack(&subject) && !std::mem::replace(&mut self.denied_ack_said, true) {
                    error!(
                        subject,
                        "the NATS user may not acknowledge messages, so they are redelivered \
                         indefinitely: grant publish on $JS.ACK.>"
                    );
                }
                remember(&mut self.denied_publishes, subject);
            }
            Some((Denied::Subscription, subject)) => {
                remember(&mut self.denied_subscriptions, subject);
            }
            None if text.to_lowercase().contains("authentication expired") => error!(
                reason = text,
                "the NATS server closed the connection because the login expired: renew it"
            ),
            None => warn!(reason = text, "the NATS server reported an error"),
        }
    }
}

fn connections(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Acquire)
}

/// Adds to what was denied; the oldest goes where there is no room.
fn remember(denied: &mut VecDeque<String>, subject: String) {
    if denied.len() >= MOST_DENIED {
        denied.pop_front();
    }
    denied.push_back(subject);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_denied_is_remembered_within_bounds() {
        let mut denied = VecDeque::new();
        (0..=MOST_DENIED).for_each(|number| remember(&mut denied, number.to_string()));
        assert_eq!(denied.len(), MOST_DENIED);
        assert_eq!(denied.back(), Some(&MOST_DENIED.to_string()));
    }
}
