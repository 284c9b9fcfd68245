//! One message's way: prepare, deliver, republish, settle. Read [`Relay::relay`] first.
//!
//! Nothing is republished that was not accepted: `republish` takes an `Accepted`, which only
//! an answer of 2xx from every destination makes. Nothing counts as relayed that was not
//! confirmed: `relay` returns a `Confirmed`, which only the publisher's proof makes.

pub mod copy;
pub(crate) mod dead_letter;
pub(crate) mod intake;
pub(crate) mod lane;
pub(crate) mod merge;
pub mod outcome;
pub(crate) mod resync;
mod span;

use crate::message::Message;
use crate::nats::link::Link;
use crate::nats::publisher::{Confirmed, PublishFailure, Publisher};
use crate::observe::Observer;
use crate::observe::event::{Event, Steps};
use crate::observe::metrics::{Gauges, Reading};
use crate::origin::{Fate, Settled};
use crate::pending::Pending;
use crate::plugin::{Limits, Plugins, Shaped};
use crate::relay::copy::relayed_copy;
use crate::relay::dead_letter::dead_letter;
use crate::relay::lane::Lanes;
use crate::relay::merge::Ahead;
use crate::relay::outcome::{Failure, Outcome};
use crate::slot::Slot;
use crate::subject::{Prefix, Subjects};
use crate::webhook::{Accepted, Delivery, Webhook};
use futures_util::FutureExt;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Messages worked on at once unless something else is said.
pub(crate) const MAX_IN_FLIGHT: usize = 128;
pub(crate) const MOST_IN_FLIGHT: usize = 65_536;
/// Time to finish what has arrived unless something else is said.
pub(crate) const GRACE: Duration = Duration::from_secs(25);
/// How long a kept message waits that could not be published on the failed subject.
const FAILED_AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Settings {
    /// Messages on these are relayed.
    pub(crate) listen: Subjects,
    /// Accepted messages are republished on these.
    pub(crate) relayed: Subjects,
    /// Messages that could not be relayed are published below this prefix.
    pub(crate) failed: Option<Prefix>,
    /// Messages worked on at once.
    pub(crate) max_in_flight: usize,
    /// Whether messages share calls.
    pub(crate) merge: Option<merge::Settings>,
    /// Whether and how frontends and browsers learn that they may have missed something.
    pub(crate) resync: Option<resync::Settings>,
    /// Time to finish what has arrived when told to stop.
    pub(crate) grace: Duration,
}

/// Everything that relaying needs, shared by all lanes.
pub(crate) struct Relay {
    listen: Subjects,
    relayed: Subjects,
    failed: Option<Prefix>,
    limit: Arc<Semaphore>,
    merge: Option<merge::Settings>,
    plugins: Option<Arc<Plugins>>,
    webhook: Webhook,
    publisher: Publisher,
    link: Link,
    observer: Observer,
    pending: Pending,
    /// What has been received and not been settled.
    pub(crate) lanes: Lanes,
    /// Cancelled when no lane may go on.
    pub(crate) halt: CancellationToken,
}

impl Relay {
    pub(crate) fn new(
        settings: &Settings,
        plugins: Option<Arc<Plugins>>,
        webhook: Webhook,
        publisher: Publisher,
        link: &Link,
        observer: &Observer,
        pending: &Pending,
    ) -> Self {
        observer.metrics().expect_failures(Failure::REASONS.into_iter());
        Self {
            listen: settings.listen.clone(),
            relayed: settings.relayed.clone(),
            failed: settings.failed.clone(),
            limit: Arc::new(Semaphore::new(settings.max_in_flight)),
            merge: settings.merge,
            plugins,
            webhook,
            publisher,
            link: link.clone(),
            observer: observer.clone(),
            pending: pending.clone(),
            lanes: Lanes::new(pending),
            halt: CancellationToken::new(),
        }
    }

    /// What can be read off at any time.
    pub(crate) fn gauges(self: &Arc<Self>) -> Gauges {
        // The observer, which the relay has, must not keep the relay.
        let (relay, most) = (Arc::downgrade(self), self.limit.available_permits());
        Box::new(move || match relay.upgrade() {
            None => Reading::default(),
            Some(relay) => Reading {
                oldest: relay.lanes.oldest(),
                in_flight: most.saturating_sub(relay.limit.available_permits()),
            },
        })
    }

    /// Takes a message in: it waits in its lane until those before it are settled.
    pub(crate) fn receive(self: &Arc<Self>, message: Message) {
        self.observer.note(&Event::Received(&message));
        if let Some(why) = message.origin.unreadable() {
            // It is not relayed, so nothing has to wait for it or be waited for.
            let relay = self.clone();
            let unreadable = Outcome::Failed(Failure::Unreadable(why));
            tokio::spawn(async move { relay.settle(&message, unreadable).await });
            return;
        }
        if let Some(first) = self.lanes.push(message) {
            let relay = self.clone();
            tokio::spawn(async move {
                let (mut next, mut ahead) = (Some(first), Ahead::default());
                while let Some(message) = next {
                    let span = relay.observer.span(&message);
                    let work = relay.work(&message, &mut ahead).instrument(span);
                    let work = std::pin::pin!(work);
                    if relay.halt.run_until_cancelled(work).await.is_none() {
                        return;
                    }
                    next = relay.lanes.settled(&message);
                }
            });
        }
    }

    /// Works on a message until it is settled.
    async fn work(&self, message: &Arc<Message>, ahead: &mut Ahead) {
        if !message.origin.begin().await {
            return self.report(message, &Outcome::GivenBack);
        }
        let relayed = AssertUnwindSafe(self.relay(message, ahead)).catch_unwind().await;
        let outcome = match relayed {
            Ok(Ok((confirmed, steps))) => Outcome::Relayed(confirmed, steps),
            Ok(Err(outcome)) => outcome,
            Err(_) => Outcome::Failed(Failure::Bug),
        };
        self.settle(message, outcome).await;
    }

    /// One message from NATS to the webhook and back to NATS.
    async fn relay(
        &self,
        message: &Arc<Message>,
        ahead: &mut Ahead,
    ) -> Result<(Confirmed, Steps), Outcome> {
        let (waited, began) = (message.received.elapsed(), Instant::now());
        let accepted = match ahead.take(message) {
            Some(accepted) => accepted,
            None => self.deliver(message, ahead).await?,
        };
        let (call, called) = (accepted.call(), began.elapsed());
        let confirmed = self.republish(accepted).await;
        let confirmed = confirmed.map_err(|failure| Outcome::Failed(Failure::Publish(failure)))?;
        let published = began.elapsed().saturating_sub(called);
        Ok((confirmed, Steps { call, waited, called, published }))
    }

    /// Calls the webhook for a message, and for those that are merged into the call.
    async fn deliver(
        &self,
        message: &Arc<Message>,
        ahead: &mut Ahead,
    ) -> Result<Accepted, Outcome> {
        if let Some(merge) = self.merge
            && !merge.window.is_zero()
        {
            tokio::time::sleep(merge.window).await;
        }
        let slot = Slot::new(&self.limit, message);
        let working = slot.enter().await;
        if message.origin.fate() == Fate::GivenUp {
            return Err(Outcome::GivenBack);
        }
        let mut delivery = self.prepare(message).await?;
        if let Some(merge) = self.merge {
            // Boxed, so that a message costs no more where nothing is merged.
            delivery = Box::pin(self.merge(delivery, merge.which)).await;
        }
        self.note_headers(&delivery);
        let accepted = self.webhook.deliver(delivery, &slot, working).await;
        let accepted = accepted.map_err(|refused| Outcome::Failed(Failure::Webhook(refused)));
        let (accepted, mut merged) = accepted?;
        // The call that takes the freed place goes out first.
        tokio::task::yield_now().await;
        if merged.is_empty() {
            return Ok(accepted);
        }
        self.observer.note(&Event::Merged(merged.len()));
        merged.push(accepted);
        ahead.keep(merged);
        ahead.take(message).ok_or(Outcome::Failed(Failure::Bug))
    }

    /// A delivery whose call stands for `first` and for what may share it of what waits behind.
    async fn merge(&self, first: Delivery, which: merge::Which) -> Delivery {
        let mut others = Vec::new();
        for message in self.lanes.behind(&first.message, merge::MOST) {
            if which.excludes(&first, &message) {
                break;
            }
            match self.prepare(&message).await {
                Ok(other) if which.merges(&first, &other) => others.push(other),
                // It has its own turn, and what is behind it stays behind it.
                Ok(_) | Err(_) => break,
            }
        }
        which.call(first, others)
    }

    /// Notes the headers of a delivery's messages that do not travel.
    fn note_headers(&self, delivery: &Delivery) {
        for (message, headers) in delivery.headers_dropped() {
            self.observer.note(&Event::HeadersDropped { message, headers });
        }
    }

    /// What will be sent to the webhook, and what will be republished once that is accepted.
    /// Whatever can be known to fail fails here, before the message has had any effect.
    async fn prepare(&self, message: &Arc<Message>) -> Result<Delivery, Outcome> {
        let tail = self.listen.tail(&message.subject).unwrap_or(&message.subject);
        let limit = self.link.max_payload();
        let shaped = match &self.plugins {
            None => Shaped::unchanged(message, tail),
            // Boxed, so that a message costs no more where there are no plugins.
            Some(plugins) => {
                Box::pin(plugins.shape(message, tail, Limits::new(limit, &self.relayed))).await?
            }
        };
        let Shaped { body, headers, payload, tail: shaped } = shaped;
        let id = match shaped == tail {
            true => message.id.to_string(),
            false => message.id.relayed_as(&shaped),
        };
        let relayed = relayed_copy(message, &self.relayed, &shaped, payload, id, limit)?;
        Ok(Delivery::new(message, body, headers, relayed, &self.pending))
    }

    /// Publishes what every destination has accepted, until it is confirmed.
    async fn republish(&self, accepted: Accepted) -> Result<Confirmed, PublishFailure> {
        let (message, mut relayed) = accepted.into_relayed();
        let span = span::begin(&message, &mut relayed, || self.link.max_payload());
        // Boxed, so that a message that waits is small.
        let published = Box::pin(self.publisher.publish(relayed)).await;
        span::end(&span, &published);
        published
    }

    /// Counts and logs what became of a message; a failed one goes to the failed subject. After
    /// that, and not before, its origin learns that the message is done with.
    pub(crate) async fn settle(&self, message: &Message, outcome: Outcome) {
        let outcome = match outcome {
            // Whatever happened here, another replica relays it.
            Outcome::Failed(_) if message.origin.fate() == Fate::GivenUp => Outcome::GivenBack,
            outcome => outcome,
        };
        self.report(message, &outcome);
        let settled = match outcome {
            Outcome::Relayed(..) | Outcome::Rejected { .. } => Settled::Done,
            Outcome::GivenBack => Settled::GivenBack,
            Outcome::Failed(failure) => tokio::select! {
                biased;
                () = self.publish_failed(message, &failure) => Settled::Failed,
                // Another replica works: it waits for this message.
                () = message.origin.given_up() => Settled::GivenBack,
            },
        };
        message.origin.settle(settled).await;
    }

    /// Notes what became of a message, once.
    pub(crate) fn report(&self, message: &Message, outcome: &Outcome) {
        if message.end.set(outcome.end()).is_err() {
            return;
        }
        self.observer.note(&match outcome {
            Outcome::Relayed(confirmed, steps) => {
                Event::Relayed { message, relayed: confirmed.subject().as_str(), steps }
            }
            Outcome::Rejected { plugin, hook, reason } => {
                Event::Rejected { message, plugin, hook: hook.name(), reason }
            }
            Outcome::GivenBack => Event::GivenBack(message),
            Outcome::Failed(failure) => {
                Event::Failed { message, reason: failure.reason(), error: failure }
            }
        });
    }

    async fn publish_failed(&self, message: &Message, failure: &Failure) {
        let Some(prefix) = &self.failed else { return };
        let tail = self.listen.tail(&message.subject).filter(|tail| !tail.is_empty());
        let tail = tail.unwrap_or(&message.subject);
        loop {
            let limit = self.link.max_payload();
            let letter = dead_letter(prefix.subject(tail), message, failure, limit);
            let Err(error) = Box::pin(self.publisher.publish(letter)).await else { return };
            self.failed_unpublished(message, &error);
            if !message.origin.is_kept() {
                return;
            }
            // It is kept for as long as it takes.
            tokio::time::sleep(FAILED_AGAIN).await;
        }
    }

    /// Notes a failed message that could not be published on the failed subject.
    pub(crate) fn failed_unpublished(&self, message: &Message, error: &dyn Display) {
        self.observer.note(&Event::FailedUnpublished { message, error });
    }
}
