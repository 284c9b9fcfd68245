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

use super::Api;
use super::consumer::{Consumer, Look, Made, PINNED, SetUpError, Start};
use super::gate::Gate;
use super::held::{Delivery, Held};
use super::look::{Looked, Looker};
use super::unreadable::{self, Unreadable};
use crate::config::{self, Config, Pending};
use crate::link::{Link, Missed, REMIND};
use crate::message::{Id, Message, Stored};
use crate::metrics::Metrics;
use crate::nats;
use crate::publisher::Publisher;
use anyhow::{Context, bail};
use async_nats::{HeaderMap, StatusCode, Subscriber};
use futures_util::StreamExt;
use serde_json::json;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info, warn};

/// How long a pull request waits at the server. The next one is a sign of life.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much later than that the server's answer may be before it counts as lost.
const LATE: Duration = Duration::from_secs(4);
/// The same while stopping: what comes later is delivered to somebody else.
const LATE_STOPPING: Duration = Duration::from_secs(1);
/// How often the consumer is looked at, and how often while the gate is closed.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_CLOSED: Duration = Duration::from_millis(200);
/// How soon after a failure it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How soon after the server has refused a request another one is made.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The most messages that are asked for by a replica that stands by.
const STANDING_BY: usize = 32;
/// How many are asked for while messages are delivered again behind a closed gate.
const AGAIN: usize = 256;
/// How long after its turn has begun a replica goes on: by then the one before knows that its turn is over.
const HANDED_OVER: Duration = Duration::from_millis(1200);
/// How long a replica that stands by leaves it to the one that works to make a lost consumer
/// anew: that one knows best where to go on.
const AFTER_YOU: Duration = Duration::from_secs(2);

/// The consumer's messages.
pub struct Pull {
    config: config::Nats,
    stream: config::Stream,
    consumer: Consumer,
    made: Made,
    limits: Pending,
    link: Link,
    publisher: Publisher,
    metrics: Metrics,
    held: Held,
    keeping: AbortHandle,
    session: Session,
    sessions: u64,
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

/// One connection's requests and deliveries.
struct Session {
    generation: u64,
    inbox: String,
    subscriber: Subscriber,
    request: u64,
    asked_at: Option<Instant>,
    ask_after: Instant,
    /// Messages that were asked for and have not arrived.
    outstanding: usize,
    /// Whether the next message alone is larger than all that may wait.
    oversize: bool,
    pin: Option<String>,
    /// The consumer's count at the next delivery.
    next_delivery: Option<u64>,
    looked: bool,
    /// Whether the last delivery was not the first of its message: there may be more of these.
    again: bool,
    /// Whether messages were missing in this turn, and whether what waits behind the gate was
    /// asked for once more since.
    had_missing: bool,
    asked_anew: bool,
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
    pub async fn open(
        config: &Config,
        stream: &config::Stream,
        link: &Link,
        publisher: &Publisher,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let api = Api::of_stream(stream, link);
        let consumer = Consumer::new(api.clone(), stream, &config.listen, config.pending.messages);
        let mut said: Option<Instant> = None;
        let made = loop {
            match consumer.set_up(Start::Configured).await {
                Ok(made) => break made,
                Err(error) if error.is_passing() => {
                    if said.is_none_or(|said| said.elapsed() >= REMIND) {
                        said = Some(Instant::now());
                        warn!(reason = %error, "waiting for JetStream");
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => bail!("{error}"),
            }
        };
        consumer.may_be_used(publisher).await?;
        let held = Held::new(link);
        let keeping = tokio::spawn(held.clone().keep(made.ack_wait)).abort_handle();
        let context = api.context().await;
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
            config: config.nats.clone(),
            reply: format!("$JS.ACK.{}.{}.1.0.1.0.0", stream.name, stream.consumer),
            stream: stream.clone(),
            consumer,
            made,
            limits: config.pending,
            link: link.clone(),
            publisher: publisher.clone(),
            metrics: metrics.clone(),
            held,
            keeping,
            session,
            sessions: 1,
            looking: None,
            look_at: Instant::now(),
            ready: VecDeque::new(),
            gate: Gate::closed(),
            reader: async_nats::jetstream::Message { message, context },
            floor: 0,
            is_changed: false,
            said: Said::default(),
            stopped: false,
        })
    }

    /// What is to be settled.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held.clone()
    }

    /// The next message; `None` once stopped and when no more is on its way.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            self.ask().await;
            if self.stopped && (self.session.outstanding == 0 || self.is_late(LATE_STOPPING)) {
                return None;
            }
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
        }
    }

    /// Asks for no more messages.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Gives back what is not settled, lets another replica take over, and returns when the
    /// server knows all that was said.
    pub async fn close(mut self) {
        self.keeping.abort();
        // Or what is given back would be delivered here once more.
        let _ = self.session.subscriber.unsubscribe().await;
        let returned = self.held.give_back_all().await;
        if returned > 0 {
            warn!(messages = returned, "left in the stream: not finished in time");
        }
        if self.link.is_connected() {
            // Else it may be another replica's turn already.
            if self.session.pin.is_some() && !self.is_late(PINNED - EXPIRES) {
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

    /// When something is to be done even if nothing happens.
    fn due(&self) -> Instant {
        let now = Instant::now();
        let asked_at = self.session.asked_at.unwrap_or(now);
        let ask = if self.session.outstanding > 0 {
            asked_at + EXPIRES + if self.stopped { LATE_STOPPING } else { LATE }
        } else {
            self.session.ask_after.max(asked_at + EXPIRES).max(now + ASK_AGAIN)
        };
        if self.looking.is_some() { ask } else { ask.min(self.look_at) }
    }

    fn is_late(&self, by: Duration) -> bool {
        self.session.asked_at.is_none_or(|at| at.elapsed() > EXPIRES + by)
    }

    /// Makes the next pull request, when there is room and the one before has ended.
    async fn ask(&mut self) {
        let now = Instant::now();
        if self.session.outstanding > 0 {
            if !self.is_late(LATE) {
                return;
            }
            if !std::mem::replace(&mut self.said.unanswered, true) {
                warn!(stream = self.stream.name, consumer = self.stream.consumer, "a pull request was not answered, asking again");
            }
            self.session.outstanding = 0;
            self.look_at = now;
        }
        if self.stopped || !self.session.looked || now < self.session.ask_after || !self.link.is_connected() {
            return;
        }
        let since_asked = self.session.asked_at.map_or(EXPIRES, |at| at.elapsed());
        let (messages, bytes) = match self.room() {
            Some(room) => room,
            // A request that nothing fits into: a sign of life.
            None if self.session.pin.is_some() && since_asked >= EXPIRES => (1, 1),
            None => return,
        };
        let is_sign = bytes == 1;
        self.session.request += 1;
        let mut request = json!({ "batch": messages, "expires": EXPIRES.as_nanos() as u64 });
        if let Some(fields) = request.as_object_mut() {
            if bytes > 0 {
                fields.insert("max_bytes".into(), json!(bytes));
            }
            if let Some(group) = self.made.group {
                fields.insert("group".into(), json!(group));
                fields.extend(self.session.pin.iter().map(|pin| ("id".to_owned(), json!(pin))));
            }
        }
        let (_, client) = self.link.client().await;
        let reply = format!("{}.{}", self.session.inbox, self.session.request);
        // It fails only when the client has ended, and then the subscription says so.
        let _ = client.publish_with_reply(self.consumer.next(), reply, request.to_string().into()).await;
        self.session.asked_at = Some(now);
        self.session.outstanding = if is_sign { 0 } else { messages };
    }

    /// How many messages and bytes may be asked for; 0 bytes is without a limit.
    fn room(&mut self) -> Option<(usize, usize)> {
        let pending = usize::try_from(self.metrics.pending_bytes.get()).unwrap_or(0) + self.gate.bytes();
        let held = self.held.len();
        if !self.gate.is_open() {
            if let Some(missing) = self.gate.missing() {
                return Some((missing, 0));
            }
            if self.session.again {
                return Some((AGAIN, 0));
            }
            if self.session.asked_at.is_some_and(|at| at.elapsed() < EXPIRES) {
                return None;
            }
            if self.gate.bytes() >= self.limits.bytes
                && let Some(sequence) = self.gate.drop_newest()
            {
                // It is delivered again later.
                self.held.forget(sequence);
            }
            return Some((1, 0));
        }
        if held == 0 && self.session.oversize {
            return Some((1, 0));
        }
        let messages = self.limits.messages.saturating_sub(held);
        let bytes = self.limits.bytes.saturating_sub(pending);
        if messages == 0 || bytes == 0 || (held > 0 && (messages < self.limits.messages / 4 || bytes < self.limits.bytes / 4)) {
            return None;
        }
        let stands_by = self.made.group.is_some() && self.session.pin.is_none();
        Some((if stands_by { messages.min(STANDING_BY) } else { messages }, bytes.max(2)))
    }

    async fn delivered(&mut self, message: async_nats::Message) {
        if message.reply.as_deref().is_none_or(|reply| !reply.starts_with("$JS.ACK.")) {
            return self.told(message.subject.as_str(), message.status, message.description.as_deref().unwrap_or_default());
        }
        self.session.outstanding = self.session.outstanding.saturating_sub(1);
        self.session.oversize = false;
        self.said.unanswered = false;
        self.reader.message = message;
        let info = match self.reader.info() {
            Ok(info) => (info.stream_sequence, info.consumer_sequence, info.delivered, info.published.unix_timestamp_nanos(), info.pending),
            Err(error) => {
                error!(%error, "the stream delivered a message whose origin cannot be read");
                return;
            }
        };
        let (sequence, consumer_sequence, deliveries, stored_ns, pending) = info;
        self.metrics.stream_pending.set(pending as i64);
        self.session.again = deliveries > 1;
        if deliveries > 1 {
            self.metrics.redelivered.inc();
        }
        if self.made.group.is_some() {
            let message = &self.reader.message;
            let pin = message.headers.as_ref().and_then(|headers| headers.get_last(async_nats::header::NATS_PIN_ID));
            let is_new = pin.is_some_and(|pin| self.session.pin.as_deref() != Some(pin.as_str()));
            if is_new {
                self.session.pin = pin.map(|pin| pin.as_str().to_owned());
                self.stand_down();
                self.gate = Gate::closed();
                (self.session.had_missing, self.session.asked_anew) = (false, false);
            }
            if is_new || self.session.next_delivery.is_some_and(|next| next != consumer_sequence) {
                self.close_gate();
            }
            self.session.next_delivery = Some(consumer_sequence + 1);
        }
        let message = &mut self.reader.message;
        let (Some(reply), payload) = (message.reply.take(), std::mem::take(&mut message.payload)) else { return };
        let (subject, headers) = (Arc::<str>::from(message.subject.as_str()), message.headers.take().unwrap_or_default());
        self.reply.clear();
        self.reply.push_str(&reply);
        let id = Id::stored(&self.stream.name, sequence, stored_ns);
        // White space of other alphabets ends a subject for the client library.
        let is_misread = subject.split('.').any(str::is_empty);
        let stored =
            Stored { sequence, time_ns: stored_ns, hold: Arc::default(), unreadable: is_misread.then_some("its subject has white space") };
        let message = Message { subject, headers, payload, id, failure_told: AtomicBool::new(false), stored: Some(stored.clone()) };
        match self.held.receive(&stored, reply.clone()) {
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
            None if self.gate.missing().is_none() => self.look_at = self.look_at.min(Instant::now() + LOOK_CLOSED / 10),
            None => {}
        }
    }

    /// The server has said something about a request.
    fn told(&mut self, subject: &str, status: Option<StatusCode>, description: &str) {
        let number = subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
        // All of it has been delivered; that was counted.
        if number != Some(self.session.request) || description == "Batch Completed" {
            return;
        }
        self.said.unanswered = false;
        let had_asked = std::mem::take(&mut self.session.outstanding) > 0;
        self.session.again = false;
        match status.map_or(0, |status| status.as_u16()) {
            404 | 408 => {}
            // Another replica works.
            423 => {
                (self.session.pin, self.session.next_delivery, self.look_at) = (None, None, Instant::now());
                self.stand_down();
                self.held.certain();
            }
            // The next message is one for which there is no room yet; nothing fits into a sign of life.
            409 if description == "Message Size Exceeds MaxBytes" => {
                if had_asked {
                    self.session.oversize = true;
                    self.session.ask_after = Instant::now() + ASK_AGAIN;
                }
            }
            code => {
                self.session.ask_after = Instant::now() + ASK_AGAIN;
                self.look_at = Instant::now();
                // Others are said by what is done about them, if anything has to be.
                if !matches!(code, 409 | 503) && self.said.refused.replace(code) != Some(code) {
                    warn!(stream = self.stream.name, consumer = self.stream.consumer, code, description, "a pull request was refused");
                }
                self.is_changed = code == 400;
            }
        }
    }

    fn look(&self) -> Looking {
        let is_first = !self.session.looked;
        let stands_by = self.made.group.is_some() && self.session.pin.is_none();
        let looker = Looker {
            consumer: self.consumer.clone(),
            held: self.held.clone(),
            publisher: self.publisher.clone(),
            is_first,
            is_changed: self.is_changed,
            reply: self.reply.clone(),
            ack_wait: self.made.ack_wait,
            is_suspicious: is_first && self.sessions > 1,
            resume: Start::At { sequence: self.held.resume_at(self.floor), of: self.made.stream_created.clone() },
            after_you: if stands_by { AFTER_YOU } else { Duration::ZERO },
        };
        Box::pin(looker.look())
    }

    fn looked(&mut self, looked: Result<Looked, SetUpError>) {
        self.looking = None;
        let Looked { look, unreadable, made } = match looked {
            Ok(looked) => looked,
            Err(error) => {
                self.look_at = Instant::now() + LOOK_AGAIN;
                if self.said.failing.is_none_or(|said| said.elapsed() >= REMIND) {
                    self.said.failing = Some(Instant::now());
                    error!(%error, "nothing can be read from the stream, trying again");
                }
                return;
            }
        };
        if self.said.failing.take().is_some() {
            info!(stream = self.stream.name, consumer = self.stream.consumer, "reading from the stream again");
        }
        if let Some(made) = made {
            if made.stream_created != self.made.stream_created {
                warn!(stream = self.stream.name, "another stream has taken the place of the one before; beginning with its first message");
                self.held.forget_all();
                self.floor = 0;
            }
            if made.ack_wait != self.made.ack_wait {
                self.keeping.abort();
                self.keeping = tokio::spawn(self.held.clone().keep(made.ack_wait)).abort_handle();
            }
            self.made = made;
            self.is_changed = false;
            self.session.next_delivery = None;
            self.close_gate();
        }
        self.floor = look.floor;
        self.held.known_to_be_settled(look.floor);
        self.metrics.stream_pending.set(look.waiting as i64);
        self.report(&look);
        if !std::mem::replace(&mut self.session.looked, true) {
            self.link.subscribed(self.session.generation, Missed::Nothing);
        }
        let missing = (look.unsettled as usize).saturating_sub(self.held.count_to(look.delivered));
        // Where replicas share the work, others always hold some. What was lost on its way to
        // this one has been delivered again by then.
        let is_shared = self.made.group.is_none();
        let is_own = is_shared || (look.pinned.is_some() && look.pinned == self.session.pin);
        if !is_own {
            self.stand_down();
        }
        for found in unreadable {
            self.take_unreadable(found);
        }
        self.held.certain();
        self.session.had_missing |= missing > 0;
        let is_over = is_shared && (self.sessions == 1 || self.gate.closed_for() > self.made.ack_wait + LOOK_AGAIN);
        if !is_own {
            self.gate.missing_are(0, look.delivered);
        } else if missing == 0 && !is_shared && self.session.had_missing && !self.session.asked_anew && !self.gate.is_open() {
            // Somebody else may have settled a part of what is here. What comes back is not settled.
            if self.gate.closed_for() >= HANDED_OVER {
                self.session.asked_anew = true;
                self.gate.clear();
                tokio::spawn(self.held.clone().give_back_unbegun());
                self.session.again = true;
            }
        } else if missing == 0 || is_over {
            self.ready.extend(self.gate.open());
        } else {
            self.gate.missing_are(missing, look.delivered);
        }
        // Standing by, it has to know nothing in a hurry: its turn begins with a message.
        self.look_at = Instant::now() + if self.gate.is_open() || !is_own { LOOK } else { LOOK_CLOSED };
    }

    /// Says, once, what has changed about the consumer.
    fn report(&mut self, look: &Look) {
        let (stream, consumer) = (self.stream.name.as_str(), self.stream.consumer.as_str());
        if look.paused != std::mem::replace(&mut self.said.paused, look.paused) {
            match look.paused {
                true => warn!(stream, consumer, "the consumer is paused: nothing is relayed until it is resumed (nats consumer resume)"),
                false => info!(stream, consumer, "the consumer is resumed"),
            }
        }
        if self.made.group.is_none() {
            return;
        }
        let active = match &look.pinned {
            Some(pinned) => Some(self.session.pin.as_ref() == Some(pinned)),
            None => self.said.active.filter(|_| self.session.pin.is_some()),
        };
        self.metrics.active.set(i64::from(active == Some(true)));
        if active != self.said.active {
            match active {
                Some(true) => info!(stream, consumer, "this replica is the one that works"),
                Some(false) => info!(stream, consumer, "standing by: another replica works"),
                None => {}
            }
            self.said.active = active;
        }
    }

    /// A message that can not arrive goes on at once, to fail.
    fn take_unreadable(&mut self, found: Unreadable) {
        let Unreadable { sequence, subject, payload, why, stored_ns } = found;
        let stored = Stored { sequence, time_ns: stored_ns, hold: Arc::default(), unreadable: Some(why) };
        if self.held.receive(&stored, unreadable::reply(&self.reply, sequence)) != Delivery::New {
            return;
        }
        let id = Id::stored(&self.stream.name, sequence, stored_ns);
        let (subject, headers) = (subject.into(), HeaderMap::new());
        let message = Message { subject, headers, payload, id, failure_told: AtomicBool::new(false), stored: Some(stored) };
        self.ready.push_back(message);
    }

    /// What was not begun is another replica's now.
    fn stand_down(&mut self) {
        if self.made.group.is_some() {
            self.ready.clear();
            self.gate.clear();
            self.held.stand_down();
        }
    }

    fn close_gate(&mut self) {
        self.gate.close();
        // A look that was taken before says nothing about what is missing now.
        (self.looking, self.look_at) = (None, Instant::now());
    }

    /// Begins anew in a new connection: what the old one had on its way will be delivered again.
    async fn begin(&mut self) {
        match Session::begin(&self.link).await {
            // Whether it is still this replica that works, the server says at the first request.
            Ok(session) => self.session = Session { pin: self.session.pin.take(), ..session },
            // The client has ended, and its subscription says so.
            Err(_) => return,
        }
        self.sessions += 1;
        if self.made.group.is_some() {
            self.held.uncertain();
            self.stand_down();
        }
        self.close_gate();
    }

    async fn replace_client(&mut self) -> Option<()> {
        let client = nats::new_client(&self.config, &self.link).await.ok()?;
        self.link.replace(client);
        self.begin().await;
        Some(())
    }
}

impl Session {
    async fn begin(link: &Link) -> anyhow::Result<Self> {
        let generation = link.connected().await;
        let (_, client) = link.client().await;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*")).await?;
        Ok(Self {
            generation,
            inbox,
            subscriber,
            request: 0,
            asked_at: None,
            ask_after: Instant::now(),
            outstanding: 0,
            oversize: false,
            pin: None,
            next_delivery: None,
            looked: false,
            again: false,
            had_missing: false,
            asked_anew: false,
        })
    }
}
