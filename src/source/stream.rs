//! Intake from JetStream: pull requests to a durable consumer, bounded by what may wait here.
//!
//! **Order.** Messages of one subject reach their lane in the stream's order, also when some
//! are delivered again. Whenever deliveries may have been lost or another process may still
//! hold some (a new connection, a new turn as the replica that works, a gap in the consumer's
//! count), a gate is closed: what arrives waits behind it until the consumer says that everything
//! delivered before is settled or held here. Then the gate opens, and all goes on in order.
//!
//! **One replica works.** With a pinned-client priority group (ADR-42) the server hands messages
//! to one client until that has been silent for some seconds. Each request says that it is alive.

pub(crate) mod consumer;
mod gate;
pub(crate) mod held;
mod look;
mod requests;
mod turn;
mod unreadable;

use crate::message::{Id, Message, Stored};
use crate::nats;
use crate::nats::link::{Link, REMIND};
use crate::nats::publisher::Publisher;
use crate::observe::metrics::Metrics;
use crate::pending::Limits;
use crate::source::stream::consumer::Settings;
use crate::source::stream::consumer::{Consumer, Made, SetUpError, Start};
use crate::source::stream::gate::Gate;
use crate::source::stream::held::{Delivery, Held};
use crate::source::stream::look::Looked;
use crate::source::stream::requests::{LATE, Session};
use crate::source::stream::turn::{LOOK_CLOSED, Turn};
use crate::source::stream::unreadable::Unreadable;
use anyhow::{Context, bail};
use async_nats::HeaderMap;
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, warn};

/// How long a pull request waits at the server. The next one is a sign of life.
const EXPIRES: Duration = Duration::from_secs(1);
/// How soon after a failure it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How much may wait unless something else is said: the rest stays in the stream.
pub(crate) const LIMITS: Limits = Limits { messages: 1000, bytes: 16 << 20 };

/// The consumer's messages.
pub(crate) struct Pull {
    stream: Settings,
    /// What tells this relay from others of the stream.
    relay: String,
    consumer: Consumer,
    made: Made,
    limits: Limits,
    link: Link,
    publisher: Publisher,
    metrics: Metrics,
    held: Held,
    keeping: AbortHandle,
    session: Session,
    sessions: u64,
    turn: Turn,
    looking: Option<Looking>,
    look_at: Instant,
    /// What is to be relayed next.
    ready: VecDeque<Message>,
    gate: Gate,
    /// The library's reader of where a message is from.
    reader: async_nats::jetstream::Message,
    /// Where the last message is answered.
    reply: String,
    floor: u64,
    /// Up to this sequence, all that was delivered has been searched for messages that cannot be read.
    searched: u64,
    /// What was found and may be settled already, since when.
    suspects: VecDeque<Unreadable>,
    suspected_at: Instant,
    /// In which session, and when, the first of them was provoked to be delivered again.
    provoked: Option<(u64, Instant)>,
    /// Whether somebody seems to have changed the consumer.
    is_changed: bool,
    said: Said,
    stopped: bool,
}

/// What has been said, so that it is said once.
#[derive(Default)]
struct Said {
    active: Option<bool>,
    paused: bool,
    unanswered: bool,
    refused: Option<u16>,
    failing: Option<Instant>,
}

type Looking = Pin<Box<dyn Future<Output = Result<Looked, SetUpError>> + Send>>;

enum Step {
    Delivered(Option<async_nats::Message>),
    Looked(Result<Looked, SetUpError>),
    Reconnected,
    Room,
    Due,
}

impl Pull {
    /// Finds or makes stream and consumer, waiting for a server that is busy with itself.
    ///
    /// # Errors
    /// When they do not fit, or the user may not use them.
    pub(crate) async fn open(
        consumer: Consumer,
        relay: String,
        limits: Limits,
        link: &Link,
        publisher: &Publisher,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let stream = consumer.settings.clone();
        let mut said: Option<Instant> = None;
        let made = loop {
            match consumer.set_up(Start::Configured).await {
                Ok(made) => break made,
                Err(error) if error.is_passing() || (error.is_off() && stream.is_elsewhere()) => {
                    if said.is_none_or(|said| said.elapsed() >= REMIND) {
                        said = Some(Instant::now());
                        match error.is_off() {
                            true => warn!(
                                api = stream.api_prefix,
                                "waiting for JetStream: nobody answers there yet"
                            ),
                            false => warn!(reason = %error, "waiting for JetStream"),
                        }
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => bail!("{error}"),
            }
        };
        consumer.may_be_used(publisher).await?;
        let held = Held::new(link);
        let keeping = tokio::spawn(held.clone().keep(made.ack_wait)).abort_handle();
        let context = consumer.api.context().await;
        let message = async_nats::Message {
            subject: async_nats::Subject::from_static("none"),
            reply: None,
            payload: Default::default(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        let session = Session::begin(link).await.context("cannot subscribe to an inbox")?;
        Ok(Self {
            reply: format!("$JS.ACK.{}.{}.1.0.1.0.0", stream.name, stream.consumer),
            relay,
            stream,
            consumer,
            made,
            limits,
            link: link.clone(),
            publisher: publisher.clone(),
            metrics: metrics.clone(),
            held,
            keeping,
            session,
            sessions: 1,
            turn: Turn::default(),
            looking: None,
            look_at: Instant::now(),
            ready: VecDeque::new(),
            gate: Gate::closed(),
            reader: async_nats::jetstream::Message { message, context },
            floor: 0,
            searched: 0,
            suspects: VecDeque::new(),
            suspected_at: Instant::now(),
            provoked: None,
            is_changed: false,
            said: Said::default(),
            stopped: false,
        })
    }

    /// What is to be settled.
    #[must_use]
    pub(crate) fn held(&self) -> Held {
        self.held.clone()
    }

    /// The next message; `None` once stopped and when no more is on its way.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.stopped && self.is_answered() {
                return None;
            }
            self.advance().await?;
        }
    }

    /// Keeps this replica's turn after all has arrived, or notices that it is lost. Does not return.
    pub(crate) async fn hold(&mut self) {
        while self.advance().await.is_some() {}
        std::future::pending().await
    }

    /// Waits for something to happen and does what follows from it; `None` when nothing more can.
    async fn advance(&mut self) -> Option<()> {
        self.ask().await;
        if self.looking.is_none() && self.look_at <= Instant::now() {
            self.looking = Some(self.look());
        }
        match self.step().await {
            Step::Delivered(Some(message)) => self.delivered(message).await,
            Step::Delivered(None) => self.replace_client().await?,
            Step::Looked(looked) => self.looked(looked),
            Step::Reconnected => self.begin().await,
            Step::Room | Step::Due => {}
        }
        Some(())
    }

    /// Asks for no more messages.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Gives back what is not settled, lets another replica take over, and returns when the
    /// server knows all that was said.
    pub(crate) async fn close(mut self) {
        self.keeping.abort();
        // Or what is given back would be delivered here once more.
        let _ = self.session.subscriber.unsubscribe().await;
        let returned = self.held.give_back_all().await;
        if returned > 0 {
            warn!(messages = returned, "left in the stream: not finished in time");
        }
        if self.link.is_connected() {
            // Else it may be another replica's turn already.
            if self.turn.pin.is_some() && self.held.is_ours() {
                self.consumer.unpin().await;
            }
            let _ = timeout(LATE, self.publisher.handled()).await;
        }
    }

    async fn step(&mut self) -> Step {
        let due = self.due();
        let looking = async {
            match &mut self.looking {
                Some(looking) => looking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.session.subscriber.next() => Step::Delivered(message),
            looked = looking => Step::Looked(looked),
            () = self.link.replaced(self.session.generation) => Step::Reconnected,
            () = self.held.settled(), if self.session.outstanding == 0 => Step::Room,
            () = sleep_until(due) => Step::Due,
        }
    }

    async fn delivered(&mut self, message: async_nats::Message) {
        if message.reply.as_deref().is_none_or(|reply| !reply.starts_with("$JS.ACK.")) {
            return self.told(
                message.subject.as_str(),
                message.status,
                message.description.as_deref().unwrap_or_default(),
            );
        }
        self.session.outstanding = self.session.outstanding.saturating_sub(1);
        self.session.arrived += 1;
        self.session.arrived_at = Some(Instant::now());
        self.session.oversize = false;
        self.said.unanswered = false;
        self.reader.message = message;
        let info = match self.reader.info() {
            Ok(info) => (
                info.stream_sequence,
                info.consumer_sequence,
                info.delivered,
                info.published.unix_timestamp_nanos(),
                info.pending,
            ),
            Err(error) => {
                error!(%error, "the stream delivered a message whose origin cannot be read");
                return;
            }
        };
        let (sequence, consumer_sequence, deliveries, stored_ns, pending) = info;
        self.metrics.stream_pending.set(pending as i64);
        self.session.again = deliveries > 1 && self.gate.may_be_missing(sequence);
        if deliveries > 1 {
            self.metrics.redelivered.inc();
        }
        if self.made.group.is_some() {
            let message = &self.reader.message;
            let pin = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get_last(async_nats::header::NATS_PIN_ID));
            let is_new = pin.is_some_and(|pin| self.turn.pin.as_deref() != Some(pin.as_str()));
            if is_new {
                let pin = pin.map(|pin| pin.as_str().to_owned());
                self.end_turn();
                self.turn = Turn::new(pin);
                self.gate = Gate::closed();
            }
            if is_new || self.session.next_delivery.is_some_and(|next| next != consumer_sequence) {
                self.close_gate();
            }
            self.session.next_delivery = Some(consumer_sequence + 1);
            if is_new || self.session.arrived == 1 {
                let is_current = self.session.is_current;
                self.is_ours_since(
                    self.session.asked_at.filter(|_| is_current).unwrap_or(self.session.began),
                );
            }
        }
        let message = &mut self.reader.message;
        let (Some(reply), payload) = (message.reply.take(), std::mem::take(&mut message.payload))
        else {
            return;
        };
        let (subject, headers) = (
            Arc::<str>::from(message.subject.as_str()),
            message.headers.take().unwrap_or_default(),
        );
        self.reply.clear();
        self.reply.push_str(&reply);
        let id = Id::stored(&self.stream.name, sequence, stored_ns, &self.relay);
        // White space of other alphabets ends a subject for the client library.
        let is_misread = subject.split('.').any(str::is_empty);
        let stored = Stored {
            sequence,
            time_ns: stored_ns,
            hold: Arc::default(),
            unreadable: is_misread.then_some("its subject has white space"),
        };
        let message = Message {
            subject,
            headers,
            payload,
            id,
            end: OnceLock::new(),
            stored: Some(stored.clone()),
        };
        match self.held.receive(&stored, reply.clone()) {
            // It fails, so that nothing has to wait for it.
            Delivery::New if is_misread => self.ready.push_back(message),
            Delivery::New => self.arrived(sequence, message),
            Delivery::Known => {}
            Delivery::Settled(ack) => self.held.acknowledge(reply, ack).await,
        }
    }

    /// A message is here: it goes on, or waits behind the gate.
    fn arrived(&mut self, sequence: u64, message: Message) {
        match self.gate.arrived(sequence, message) {
            Some(message) => self.ready.push_back(message),
            // It may have been the last one that was missing.
            None if self.gate.missing().is_none() => {
                self.look_at = self.look_at.min(Instant::now() + LOOK_CLOSED / 10)
            }
            None => {}
        }
    }

    /// A message that cannot arrive goes on at once, to fail.
    fn take_unreadable(&mut self, found: Unreadable, deliveries: u64) {
        let Unreadable { sequence, subject, payload, why, stored_ns } = found;
        let stored =
            Stored { sequence, time_ns: stored_ns, hold: Arc::default(), unreadable: Some(why) };
        if self.held.receive(&stored, unreadable::reply(&self.reply, sequence, deliveries))
            != Delivery::New
        {
            return;
        }
        let id = Id::stored(&self.stream.name, sequence, stored_ns, &self.relay);
        let (subject, headers) = (subject.into(), HeaderMap::new());
        let message =
            Message { subject, headers, payload, id, end: OnceLock::new(), stored: Some(stored) };
        self.ready.push_back(message);
    }

    /// Whether another replica works, as far as is known.
    fn stands_by(&self) -> bool {
        self.made.group.is_some() && self.turn.pin.is_none()
    }

    /// What was not begun is another replica's now.
    fn end_turn(&mut self) {
        if self.made.group.is_some() {
            self.turn = Turn::default();
            self.ready.clear();
            self.gate.clear();
            self.held.stand_down();
            self.held.ours_until(None);
        }
    }

    fn close_gate(&mut self) {
        self.gate.close();
        // A look that was taken before says nothing about what is missing now.
        (self.looking, self.look_at) = (None, Instant::now());
    }

    /// Goes on in a new connection: what the old one had on its way will be delivered again.
    async fn begin(&mut self) {
        match Session::begin(&self.link).await {
            Ok(session) => self.session = session,
            // The client has ended, and its subscription says so.
            Err(_) => return,
        }
        self.sessions += 1;
        if self.made.group.is_some() {
            // Whether it is still this replica that works, the next look tells.
            self.held.uncertain();
        }
        self.close_gate();
    }

    async fn replace_client(&mut self) -> Option<()> {
        let client = nats::new_client(&self.link).await.ok()?;
        self.link.replace(client);
        self.begin().await;
        Some(())
    }
}
