//! Resync: after a gap, the webhook and then the browsers learn what they may have missed.
//!
//! What was missed is noticed by listening to events, merged while a resync is under way or was
//! just made, and told once: the same JSON is the body of a call and, only after every destination
//! has accepted that, a message on the resync subject. What cannot be told is kept and told later.

use crate::message::{Id, Message, Outbound};
use crate::observe::event::{Event, Gap};
use crate::observe::{Listener, Observer};
use crate::relay::Relay;
use crate::slot::Slot;
use crate::webhook::destination::Destination;
use crate::webhook::proxy::Proxy;
use crate::webhook::{self, Delivery, Webhook};
use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The header by which a webhook tells a resync from a message: its reasons.
const NATS_RESYNC: HeaderName = HeaderName::from_static("nats-resync");
/// Time between two resyncs unless something else is said.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// How often the time is doubled after failures.
const MOST_DOUBLED: u32 = 6;
/// How long the last resync may take when the process ends.
const LAST: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Settings {
    /// Where browsers listen for resyncs.
    pub(crate) subject: String,
    /// What is called; `None` for the destinations of messages.
    pub(crate) destinations: Option<Vec<(Destination, Option<Proxy>)>>,
    pub(crate) on: BTreeSet<Reason>,
    /// Time between two of them; what is noticed meanwhile is merged.
    pub(crate) interval: Duration,
}

/// Why something may have been missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// What was published before the start.
    Start,
    Reconnect,
    SlowConsumer,
    /// Messages beyond the pending limits were dropped.
    Limits,
    /// A message was given up.
    Failed,
}

impl Reason {
    pub(crate) const ALL: [Self; 5] =
        [Self::Start, Self::Reconnect, Self::SlowConsumer, Self::Limits, Self::Failed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reconnect => "reconnect",
            Self::SlowConsumer => "slow-consumer",
            Self::Limits => "limits",
            Self::Failed => "failed",
        }
    }

    /// Whether an event means that something was missed, and how long ago that began.
    fn of(event: &Event<'_>) -> Option<(Self, Duration)> {
        match event {
            Event::Gap(Gap::Reconnected { gap }) => Some((Self::Reconnect, *gap)),
            Event::Gap(Gap::SlowConsumer) => Some((Self::SlowConsumer, Duration::ZERO)),
            Event::Gap(Gap::Limits { within, .. }) => Some((Self::Limits, *within)),
            Event::Failed { message, .. } => Some((Self::Failed, message.received.elapsed())),
            _ => None,
        }
    }
}

/// What may have been missed and was not told yet.
#[derive(Debug, Clone, Default)]
struct Missed {
    reasons: BTreeSet<Reason>,
    /// When the first of it began; `None` where that is not known.
    since: Option<SystemTime>,
}

impl Missed {
    fn new(reason: Reason, since: Option<SystemTime>) -> Self {
        Self { reasons: BTreeSet::from([reason]), since }
    }

    fn and(mut self, other: Self) -> Self {
        self.reasons.extend(other.reasons);
        self.since = self.since.zip(other.since).map(|(one, other)| one.min(other));
        self
    }

    fn reason(&self) -> String {
        let names: Vec<_> = self.reasons.iter().map(|reason| reason.name()).collect();
        names.join(",")
    }

    fn payload(&self) -> Bytes {
        let since = self.since.map(|time| humantime::format_rfc3339_millis(time).to_string());
        let mut payload = json!({ "type": "resync", "reason": self.reason() });
        if let (Some(since), Some(payload)) = (since, payload.as_object_mut()) {
            payload.insert("since".to_owned(), since.into());
        }
        payload.to_string().into()
    }
}

#[derive(Default)]
struct State {
    missed: Option<Missed>,
    /// Whether a resync is under way.
    is_busy: bool,
}

/// Notices what was missed and tells it.
pub(crate) struct Resync {
    subject: String,
    on: BTreeSet<Reason>,
    interval: Duration,
    state: Mutex<State>,
    changed: Notify,
    stopping: CancellationToken,
}

impl Resync {
    pub(crate) fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            subject: settings.subject.clone(),
            on: settings.on.clone(),
            interval: settings.interval,
            state: Mutex::default(),
            changed: Notify::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// What notices the gaps among events.
    pub(crate) fn listener(self: &Arc<Self>) -> Listener {
        let resync = self.clone();
        Box::new(move |event| {
            if let Some((reason, ago)) = Reason::of(event) {
                resync.notice(reason, SystemTime::now().checked_sub(ago));
            }
        })
    }

    /// Notes that something may have been missed since a time, where that is known.
    pub(crate) fn notice(&self, reason: Reason, since: Option<SystemTime>) {
        if self.on.contains(&reason) {
            self.keep(Missed::new(reason, since));
        }
    }

    /// Tells what is noticed, until the process ends.
    pub(crate) async fn run(self: Arc<Self>, relay: Arc<Relay>, webhook: Option<Webhook>) {
        let observer = &relay.observer;
        let (mut failures, mut is_last) = (0, false);
        loop {
            let missed = self.next().await;
            let told = self.tell(&relay, webhook.as_ref(), &missed).await;
            let reason = missed.reason();
            match &told {
                Ok(()) => {
                    failures = 0;
                    observer.note(&Event::Resynced { reason: &reason });
                }
                Err(error) => {
                    failures += 1;
                    self.keep(missed);
                    observer.note(&Event::ResyncFailed { reason: &reason, error });
                }
            }
            self.state().is_busy = false;
            self.changed.notify_waiters();
            // A call that was accepted before its message could not be published is made again.
            let wait = self.interval.saturating_mul(1 << failures.min(MOST_DOUBLED));
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stopping.cancelled(), if !is_last => is_last = true,
            }
        }
    }

    /// Has what is noticed told at once, and waits for that a while.
    pub(crate) async fn finish(&self) {
        self.stopping.cancel();
        let told = async {
            loop {
                let changed = self.changed.notified();
                let State { missed: None, is_busy: false } = *self.state() else {
                    changed.await;
                    continue;
                };
                return;
            }
        };
        if timeout(LAST, told).await.is_err() {
            warn!("ended before a resync was accepted: frontends and browsers may be stale");
        }
    }

    async fn next(&self) -> Missed {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(missed) = state.missed.take() {
                    state.is_busy = true;
                    return missed;
                }
            }
            changed.await;
        }
    }

    fn keep(&self, missed: Missed) {
        let mut state = self.state();
        state.missed = Some(match state.missed.take() {
            Some(before) => before.and(missed),
            None => missed,
        });
        drop(state);
        self.changed.notify_waiters();
    }

    /// Calls the webhook and then publishes the same, as a message is relayed.
    async fn tell(
        &self,
        relay: &Relay,
        webhook: Option<&Webhook>,
        missed: &Missed,
    ) -> Result<(), String> {
        let payload = missed.payload();
        let message = Message::new(&self.subject, HeaderMap::new(), payload.clone(), Id::unique());
        let message = Arc::new(message);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, message.id.as_str());
        let subject = self.subject.as_str().into();
        let relayed = Outbound { subject, headers, payload: payload.clone() };
        let reason = HeaderValue::from_str(&missed.reason()).map_err(|error| error.to_string())?;
        let set = reqwest::header::HeaderMap::from_iter([(NATS_RESYNC, reason)]);
        let delivery = Delivery::new(&message, payload, set, relayed, &relay.pending);
        let slot = Slot::new(&relay.limit, &message);
        let working = slot.enter().await;
        let webhook = webhook.unwrap_or(&relay.webhook);
        let accepted = webhook.deliver(delivery, &slot, working).await;
        let (accepted, _) = accepted.map_err(|undelivered| undelivered.to_string())?;
        let confirmed = relay.republish(accepted).await;
        confirmed.map(drop).map_err(|failure| failure.to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The webhook for resyncs, where it is not that of messages.
///
/// # Errors
/// When TLS cannot be set up on this machine.
pub(crate) fn webhook(
    settings: &Settings,
    calls: &webhook::Settings,
    observer: &Observer,
) -> anyhow::Result<Option<Webhook>> {
    let destinations = settings.destinations.as_ref();
    destinations.map(|destinations| Webhook::new(calls, destinations, observer)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noticed_is_merged_from_its_beginning_on() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let both = Missed::new(Reason::Failed, at(20)).and(Missed::new(Reason::Reconnect, at(10)));
        assert_eq!(
            both.payload(),
            r#"{"reason":"reconnect,failed","since":"1970-01-01T00:00:10.000Z","type":"resync"}"#
        );
        let unknown = both.and(Missed::new(Reason::Start, None));
        assert_eq!(unknown.payload(), r#"{"reason":"start,reconnect,failed","type":"resync"}"#);
    }
}
