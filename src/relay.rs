//! One message's way: prepare, deliver, republish, settle. Read [`Relay::relay`] first.
//!
//! Nothing is republished that was not accepted: `republish` takes an `Accepted`, which only
//! an answer of 2xx from every destination makes. Nothing counts as relayed that was not
//! confirmed: `relay` returns a `Confirmed`, which only the publisher's proof makes.

pub(crate) mod dead_letter;
pub(crate) mod intake;
pub(crate) mod lane;

use crate::headers;
use crate::message::{End, Fate, Message, Outbound};
use crate::nats::link::Link;
use crate::nats::publisher::{Confirmed, PublishFailure, Publisher};
use crate::observe::metrics::{FailedLabels, Metrics, Reason};
use crate::plugin::{Limits, Plugins, Shaped, Stopped, Why};
use crate::relay::dead_letter::dead_letter;
use crate::relay::lane::{Lanes, Slot};
use crate::source::stream::held::{Ack, Held};
use crate::subject::{MAX_SUBJECT_BYTES, Prefix};
use crate::webhook::{Delivery, Undelivered, Webhook};
use async_nats::header::NATS_MESSAGE_ID;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

/// How long a stored message waits that could not be published on the failed subject.
const FAILED_AGAIN: Duration = Duration::from_secs(10);

/// Messages worked on at once unless something else is said.
pub(crate) const MAX_IN_FLIGHT: usize = 128;
pub(crate) const MOST_IN_FLIGHT: usize = 65_536;
/// Time to finish what has arrived unless something else is said.
pub(crate) const GRACE: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(crate) struct Settings {
    /// Messages below this prefix are relayed.
    pub(crate) listen: Prefix,
    /// Accepted messages are republished below this prefix.
    pub(crate) relayed: Prefix,
    /// Messages that could not be relayed are published below this prefix.
    pub(crate) failed: Option<Prefix>,
    /// Messages worked on at once.
    pub(crate) max_in_flight: usize,
    /// Time to finish what has arrived when told to stop.
    pub(crate) grace: Duration,
}

/// Everything that relaying needs, shared by all lanes.
pub(crate) struct Relay {
    listen: Prefix,
    relayed: Prefix,
    failed: Option<Prefix>,
    limit: Arc<Semaphore>,
    plugins: Option<Arc<Plugins>>,
    webhook: Webhook,
    publisher: Publisher,
    link: Link,
    held: Option<Held>,
    metrics: Metrics,
    /// What has been received and not been settled.
    pub(crate) lanes: Lanes,
    /// Cancelled when no lane may go on.
    pub(crate) halt: CancellationToken,
}

/// Why a message was not relayed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Too large to be republished.
    #[error(
        "the relayed message would have {size} bytes with its headers, the server takes {limit} (max_payload)"
    )]
    TooLarge {
        /// Its size.
        size: usize,
        /// The server's `max_payload`.
        limit: usize,
    },
    /// Its subject is too long to be republished.
    #[error(
        "the relayed subject would have {0} bytes, at most {MAX_SUBJECT_BYTES} can be published"
    )]
    SubjectTooLong(usize),
    /// Its headers are not ones that the client library can read.
    #[error("{0}, so that NATS clients cannot read the message")]
    Unreadable(&'static str),
    /// A plugin failed, or decided so.
    #[error("{0}")]
    Plugin(Stopped),
    /// A destination did not accept it.
    #[error("{0}")]
    Webhook(Undelivered),
    /// It was accepted and could not be republished.
    #[error("accepted by the webhook, but not republished: {0}")]
    Publish(#[source] PublishFailure),
    /// Another replica relays it.
    #[error("given back: another replica relays it")]
    GivenUp,
    /// The relay was told to stop.
    #[error("the relay was stopped before the message was relayed")]
    Shutdown,
    /// A bug of the relay.
    #[error("the relay failed on this message; please report it")]
    Bug,
}

impl Relay {
    /// Puts the parts together.
    pub(crate) fn new(
        settings: &Settings,
        plugins: Option<Arc<Plugins>>,
        webhook: Webhook,
        publisher: Publisher,
        link: &Link,
        held: Option<Held>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            listen: settings.listen.clone(),
            relayed: settings.relayed.clone(),
            failed: settings.failed.clone(),
            limit: Arc::new(Semaphore::new(settings.max_in_flight)),
            plugins,
            webhook,
            publisher,
            link: link.clone(),
            held,
            metrics: metrics.clone(),
            lanes: Lanes::new(metrics),
            halt: CancellationToken::new(),
        }
    }

    /// Takes a message in: it waits in its lane until those before it are settled.
    pub(crate) fn receive(self: &Arc<Self>, message: Message) {
        info!(subject = %message.subject, id = %message.id, bytes = message.payload.len(), "received");
        if let Some(why) = message.stored.as_ref().and_then(|stored| stored.unreadable) {
            // It is not relayed, so that nothing has to wait for it or be waited for.
            let relay = self.clone();
            tokio::spawn(
                async move { relay.settle(&message, Err(Failure::Unreadable(why))).await },
            );
            return;
        }
        let mut next = self.lanes.push(message);
        if next.is_some() {
            let relay = self.clone();
            tokio::spawn(async move {
                while let Some(message) = next {
                    let work = pin!(async {
                        if let (Some(held), Some(stored)) = (&relay.held, &message.stored)
                            && !held.begin(stored).await
                        {
                            relay.given_back(&message);
                            return;
                        }
                        let result = AssertUnwindSafe(relay.relay(&message)).catch_unwind().await;
                        relay.settle(&message, result.unwrap_or(Err(Failure::Bug))).await;
                    });
                    if relay.halt.run_until_cancelled(work).await.is_none() {
                        return;
                    }
                    next = relay.lanes.settled(&message);
                }
            });
        }
    }

    /// One message from NATS to the webhook and back to NATS.
    async fn relay(&self, message: &Arc<Message>) -> Result<Confirmed, Failure> {
        let slot = Slot::new(self.limit.clone(), self.held.clone());
        let working = slot.enter().await;
        if message.fate() == Fate::GivenUp {
            return Err(Failure::GivenUp);
        }
        let delivery = self.prepare(message).await?;
        let accepted =
            self.webhook.deliver(delivery, &slot, working).await.map_err(Failure::Webhook)?;
        // The call that takes the freed place goes out first.
        tokio::task::yield_now().await;
        self.publisher.republish(accepted).await.map_err(Failure::Publish)
    }

    /// What will be sent to the webhook, and what will be republished once that is accepted.
    /// Whatever can be known to fail fails here, before the message has had any effect.
    async fn prepare(&self, message: &Arc<Message>) -> Result<Delivery, Failure> {
        let tail = self.listen.tail(&message.subject).unwrap_or(&message.subject);
        let limit = self.link.max_payload();
        let shaped = match &self.plugins {
            None => Shaped::unchanged(message, tail),
            // Boxed, so that a message costs no more where there are no plugins.
            Some(plugins) => {
                Box::pin(plugins.shape(message, tail, Limits::new(limit, &self.relayed)))
                    .await
                    .map_err(Failure::Plugin)?
            }
        };
        let id = if shaped.tail == tail {
            message.id.to_string()
        } else {
            message.id.relayed_as(&shaped.tail)
        };
        let relayed =
            relayed_copy(message, &self.relayed, &shaped.tail, shaped.payload, id, limit)?;
        Ok(Delivery::new(message, shaped.body, shaped.headers, relayed, &self.metrics))
    }

    /// Counts and logs what became of a message; a failed one goes to the failed subject. After
    /// that, and not before, the stream is told that it is done with.
    pub(crate) async fn settle(&self, message: &Message, result: Result<Confirmed, Failure>) {
        let ack = match result {
            Ok(confirmed) => {
                if message.end.set(End::Relayed).is_ok() {
                    self.metrics.relayed.inc();
                    info!(subject = %message.subject, id = %message.id, relayed = %confirmed.subject(), "relayed");
                }
                Ack::Done
            }
            Err(Failure::Plugin(Stopped { plugin, hook, why: Why::Rejected(reason) })) => {
                if message.end.set(End::Rejected).is_ok() {
                    self.metrics.rejected.inc();
                    info!(subject = %message.subject, id = %message.id, %plugin, %hook, reason, "rejected");
                }
                Ack::Done
            }
            Err(_) if message.fate() == Fate::GivenUp => {
                self.given_back(message);
                Ack::GivenBack
            }
            Err(failure) => {
                if message.end.set(End::Failed).is_ok() {
                    let reason = failure.reason();
                    self.metrics.failed.get_or_create(&FailedLabels { reason }).inc();
                    error!(subject = %message.subject, id = %message.id, reason = reason.label(), error = %failure, "not relayed");
                }
                tokio::select! {
                    biased;
                    () = self.publish_failed(message, &failure) => Ack::Terminated,
                    // Another replica works: it waits for this message.
                    () = message.given_up() => Ack::GivenBack,
                }
            }
        };
        if let (Some(held), Some(stored)) = (&self.held, &message.stored) {
            held.settle(stored, ack).await;
        }
    }

    /// Counts a message that the stream delivers again.
    pub(crate) fn given_back(&self, message: &Message) {
        if message.end.set(End::GivenBack).is_ok() {
            self.metrics.given_back.inc();
            debug!(subject = %message.subject, id = %message.id, "given back to the stream");
        }
    }

    async fn publish_failed(&self, message: &Message, failure: &Failure) {
        let Some(prefix) = &self.failed else { return };
        let tail = self.listen.tail(&message.subject).unwrap_or(&message.subject);
        loop {
            let letter =
                dead_letter(prefix.subject(tail), message, failure, self.link.max_payload());
            let Err(error) = self.publisher.publish_failed(letter).await else { return };
            self.not_published_failed(message, &error);
            if message.stored.is_none() {
                return;
            }
            // The stream keeps it for as long as it takes.
            tokio::time::sleep(FAILED_AGAIN).await;
        }
    }

    /// Counts and logs a failed message that could not be published on the failed subject.
    pub(crate) fn not_published_failed(&self, message: &Message, error: &dyn std::fmt::Display) {
        self.metrics.failed_unpublished.inc();
        error!(subject = %message.subject, id = %message.id, %error, "failed message not published on the failed subject");
    }
}

/// The copy of `message` that is republished below `prefix`.
///
/// # Errors
/// When a server that takes `limit` bytes (`max_payload`) would refuse it.
pub fn relayed_copy(
    message: &Message,
    prefix: &Prefix,
    tail: &str,
    payload: Bytes,
    id: String,
    limit: usize,
) -> Result<Outbound, Failure> {
    let subject = prefix.subject(tail);
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(Failure::SubjectTooLong(subject.len()));
    }
    let headers = headers::to_relayed(&message.headers);
    let mut relayed = Outbound { subject: subject.into(), headers, payload };
    if relayed.size() > limit {
        return Err(Failure::TooLarge { size: relayed.size(), limit });
    }
    relayed.headers.insert(NATS_MESSAGE_ID, id);
    if relayed.size() > limit {
        // Of a message that fills max_payload to the brim, the copy goes without an id.
        relayed.headers = headers::to_relayed(&message.headers);
    }
    Ok(relayed)
}

impl Failure {
    /// Whether a plugin decided so, which is no failure of anything.
    #[must_use]
    pub(crate) fn is_rejection(&self) -> bool {
        matches!(self, Self::Plugin(Stopped { why: Why::Rejected(_), .. }))
    }

    /// Its kind, for counters, logs and headers.
    #[must_use]
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Unreadable(_) => Reason::unreadable,
            Self::Plugin(_) => Reason::plugin,
            Self::Webhook(_) => Reason::webhook,
            Self::TooLarge { .. } | Self::SubjectTooLong(_) => Reason::too_large,
            Self::Publish(_) => Reason::publish,
            Self::GivenUp | Self::Shutdown => Reason::shutdown,
            Self::Bug => Reason::bug,
        }
    }
}
