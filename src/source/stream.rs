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

mod arriving;
mod asking;
mod gate;
mod held;
mod inspected;
mod inspection;
mod session;
mod suspects;
mod turn;
mod unreadable;

use crate::message::Message;
use crate::nats::ack;
use crate::nats::capture::Capture;
use crate::nats::link::Link;
use crate::nats::round_trip::RoundTrips;
use crate::nats::settings::REMIND;
use crate::observe::Observer;
use crate::pending::{Limits, Pending};
use crate::source::stream::consumer::{Consumer, Made, SetUpError, Start};
use crate::source::stream::gate::Gate;
use crate::source::stream::held::Held;
use crate::source::stream::inspection::Inspected;
use crate::source::stream::session::{LATE, Session};
use crate::source::stream::suspects::Suspects;
use crate::source::stream::turn::Turn;
use anyhow::{Context, bail};
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

/// How much may wait unless something else is said: the rest stays in the stream.
pub(crate) const LIMITS: Limits = Limits { messages: 1000, bytes: 16 << 20 };
/// How soon something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the consumer is inspected while the gate is closed.
const INSPECT_CLOSED: Duration = Duration::from_millis(200);

/// The consumer's messages.
pub(crate) struct Pull {
    /// What tells this relay from others of the stream.
    relay: String,
    consumer: Consumer,
    made: Made,
    limits: Limits,
    link: Link,
    round_trips: RoundTrips,
    capture: Option<Capture>,
    observer: Observer,
    pending: Pending,
    held: Held,
    /// Tells the server that what is held here is being worked on.
    keeping: AbortHandle,
    session: Session,
    sessions: u64,
    turn: Turn,
    inspecting: Option<Inspecting>,
    inspect_at: Instant,
    /// What is to be relayed next.
    ready: VecDeque<Message>,
    gate: Gate,
    /// The library's reader of where a message is from.
    reader: async_nats::jetstream::Message,
    /// Where the last message is answered.
    reply: String,
    /// All up to this sequence in the stream is settled.
    floor: u64,
    suspects: Suspects,
    /// Whether the consumer seems to have been changed.
    is_changed: bool,
    said: Said,
    stopped: bool,
}

/// What the stream needs to know of the process around it.
pub(crate) struct Parts<'a> {
    pub(crate) link: &'a Link,
    pub(crate) round_trips: &'a RoundTrips,
    pub(crate) capture: Option<Capture>,
    pub(crate) observer: &'a Observer,
    pub(crate) pending: &'a Pending,
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

type Inspecting = Pin<Box<dyn Future<Output = Result<Inspected, SetUpError>> + Send>>;

enum Step {
    Delivered(Option<async_nats::Message>),
    Inspected(Result<Inspected, SetUpError>),
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
        parts: Parts<'_>,
    ) -> anyhow::Result<Self> {
        let Parts { link, round_trips, capture, observer, pending } = parts;
        let made = set_up(&consumer).await?;
        consumer.may_be_used(round_trips).await?;
        let held = Held::new(link);
        let keeping = tokio::spawn(held.clone().keep(made.ack_wait)).abort_handle();
        let context = consumer.api.context().await;
        let session = Session::begin(link).await.context("cannot subscribe to an inbox")?;
        Ok(Self {
            reply: ack::first(&consumer.settings.name, &consumer.settings.consumer),
            relay,
            consumer,
            limits,
            link: link.clone(),
            round_trips: round_trips.clone(),
            capture,
            observer: observer.clone(),
            pending: pending.clone(),
            held,
            keeping,
            session,
            sessions: 1,
            turn: Turn::first(made.group.is_some()),
            made,
            inspecting: None,
            inspect_at: Instant::now(),
            ready: VecDeque::new(),
            gate: Gate::closed(),
            reader: async_nats::jetstream::Message { message: nothing(), context },
            floor: 0,
            suspects: Suspects::new(),
            is_changed: false,
            said: Said::default(),
            stopped: false,
        })
    }

    /// The next message; `None` once stopped and when no more is on its way.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.stopped && self.session.is_answered() {
                return None;
            }
            self.advance().await?;
        }
    }

    /// Keeps this replica's turn after all has arrived, or notices that it is lost. Does not
    /// return.
    pub(crate) async fn hold(&mut self) {
        while self.advance().await.is_some() {}
        std::future::pending().await
    }

    /// Waits for something to happen and does what follows from it; `None` when nothing more can.
    async fn advance(&mut self) -> Option<()> {
        self.ask().await;
        if self.inspecting.is_none() && self.inspect_at <= Instant::now() {
            self.inspecting = Some(self.inspect());
        }
        match self.step().await {
            Step::Delivered(Some(message)) => self.delivered(message).await,
            Step::Delivered(None) => {
                self.link.client_after(self.session.client).await?;
                self.begin().await;
            }
            Step::Inspected(inspected) => self.inspected(inspected),
            Step::Reconnected => self.begin().await,
            Step::Room | Step::Due => {}
        }
        Some(())
    }

    async fn step(&mut self) -> Step {
        let due = self.due();
        let inspecting = async {
            match &mut self.inspecting {
                Some(inspecting) => inspecting.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.session.subscriber.next() => Step::Delivered(message),
            inspected = inspecting => Step::Inspected(inspected),
            () = self.link.replaced(self.session.generation) => Step::Reconnected,
            () = self.held.settled(), if self.session.outstanding == 0 => Step::Room,
            () = sleep_until(due) => Step::Due,
        }
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
            // Whether it is still this replica that works, the next inspection tells.
            self.held.uncertain();
        }
        self.close_gate();
    }

    /// What was not begun is another replica's now.
    fn end_turn(&mut self) {
        if self.made.group.is_some() {
            self.turn = Turn::StandingBy;
            self.ready.clear();
            self.gate.clear();
            self.held.stand_down();
            self.held.ours_until(None);
        }
    }

    fn close_gate(&mut self) {
        self.gate.close();
        // An inspection that was begun before says nothing about what is missing now.
        (self.inspecting, self.inspect_at) = (None, Instant::now());
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
            if self.turn.pin().is_some() && self.held.is_ours() {
                self.consumer.unpin().await;
            }
            let _ = timeout(LATE, self.round_trips.handled()).await;
        }
    }
}

/// Finds or makes the consumer, waiting for a server that is busy with itself.
async fn set_up(consumer: &Consumer) -> anyhow::Result<Made> {
    let settings = &consumer.settings;
    let mut said: Option<Instant> = None;
    loop {
        let error = match consumer.set_up(Start::Configured).await {
            Ok(made) => return Ok(made),
            Err(error) => error,
        };
        let waits = error.is_passing() || (error.is_off() && settings.is_elsewhere());
        if !waits {
            bail!("{error}");
        }
        if said.is_none_or(|said| said.elapsed() >= REMIND) {
            said = Some(Instant::now());
            match error.is_off() {
                true => {
                    let api = &settings.api_prefix;
                    warn!(api, "waiting for JetStream: nothing answers there yet");
                }
                false => warn!(reason = %error, "waiting for JetStream"),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A message before the first one.
fn nothing() -> async_nats::Message {
    async_nats::Message {
        subject: async_nats::Subject::from_static("none"),
        reply: None,
        payload: Default::default(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    }
}
