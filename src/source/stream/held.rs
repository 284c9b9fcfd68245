//! What the stream has handed out to this process and not been told the end of.
//!
//! A message that is delivered again while it is still here, or whose acknowledgement was
//! lost, is known by its sequence in the stream and not relayed once more. While a message
//! waits or is worked on, the server hears so, and does not give it to another client.

use crate::nats::link::Link;
use crate::origin::{Fate, Hold, Kept, Settled, Step};
use async_nats::Subject;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::bytes::Bytes;

/// How many settled messages are remembered whose acknowledgement may be lost: far more than are
/// settled in the seconds that it takes the server to deliver one again.
const MOST_SETTLED: usize = 1 << 16;

/// How a settled message is acknowledged (ADR-15).
fn acknowledgement(settled: Settled) -> Bytes {
    Bytes::from_static(match settled {
        Settled::Done => b"+ACK",
        Settled::Failed => b"+TERM",
        Settled::GivenBack => b"-NAK",
    })
}

/// A message's place in a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) sequence: u64,
    /// When it was stored, in nanoseconds since 1970. A stream that takes the place of another
    /// one counts from 1 again, at another time.
    pub(super) time_ns: i128,
}

/// A stream's message: what its origin is to the relay.
pub(super) struct Stored {
    place: Place,
    hold: Arc<Hold>,
    /// Why its headers could not be read, and are missing.
    unreadable: Option<&'static str>,
    held: Held,
}

impl Stored {
    pub(super) fn new(place: Place, unreadable: Option<&'static str>, held: &Held) -> Self {
        Self { place, hold: Arc::default(), unreadable, held: held.clone() }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Kept for Stored {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    fn unreadable(&self) -> Option<&'static str> {
        self.unreadable
    }

    fn begin(&self) -> Step<'_, bool> {
        Box::pin(self.held.begin(self))
    }

    fn is_our_turn(&self) -> bool {
        self.held.is_ours()
    }

    fn our_turn(&self) -> Step<'_, ()> {
        Box::pin(self.held.ours())
    }

    fn settle(&self, settled: Settled) -> Step<'_, ()> {
        Box::pin(self.held.settle(self, settled))
    }
}

/// What a delivery is to this process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A message to relay.
    New,
    /// A message that is being worked on or waits for it.
    Known,
    /// A message that is settled: what the server was told of it has been lost.
    Settled(Settled),
}

/// The messages of one consumer. Clones share them.
#[derive(Clone)]
pub(crate) struct Held(Arc<Shared>);

struct Shared {
    link: Link,
    state: Mutex<State>,
    settled: Notify,
    turn: watch::Sender<Certainty>,
}

/// What is known about whose turn it is. Nothing is begun while it may be another replica's.
struct Certainty {
    /// Not after a reconnect, until the server has said.
    is_certain: bool,
    /// When the turn may end unless the server is asked again; `None` where there are no turns. A
    /// process that was frozen wakes up after that.
    until: Option<Instant>,
}

impl Certainty {
    fn is_ours(&self) -> bool {
        self.is_certain && self.until.is_none_or(|until| Instant::now() < until)
    }
}

#[derive(Default)]
struct State {
    /// By sequence in the stream.
    unsettled: BTreeMap<u64, Unsettled>,
    /// Settled, and perhaps the server does not know; the latest [`MOST_SETTLED`] of them.
    settled: BTreeMap<u64, Past>,
    /// Their order.
    settled_order: VecDeque<u64>,
    /// The highest sequence that was delivered.
    last: u64,
}

/// A message that is settled here.
#[derive(Clone, Copy)]
struct Past {
    settled: Settled,
    /// When the message was stored, in nanoseconds since 1970.
    time_ns: i64,
}

struct Unsettled {
    reply: Subject,
    time_ns: i128,
    /// When the stream was known to keep it.
    confirmed: Instant,
    told: Instant,
    hold: Arc<Hold>,
    /// Whether work on it has begun.
    begun: bool,
    /// Whether it cannot be delivered again without harm.
    is_unreadable: bool,
}

impl State {
    fn remember(&mut self, sequence: u64, past: Past) {
        if self.settled.insert(sequence, past).is_none() {
            self.settled_order.push_back(sequence);
        }
        if self.settled_order.len() > MOST_SETTLED
            && let Some(oldest) = self.settled_order.pop_front()
        {
            self.settled.remove(&oldest);
        }
    }
}

impl Held {
    pub(crate) fn new(link: &Link) -> Self {
        Self(Arc::new(Shared {
            link: link.clone(),
            state: Mutex::default(),
            settled: Notify::new(),
            turn: watch::Sender::new(Certainty { is_certain: true, until: None }),
        }))
    }

    /// Takes note of a delivery, to be answered on `reply`.
    pub(crate) fn receive(&self, stored: &Stored, reply: Subject) -> Arrival {
        let Place { sequence, time_ns } = stored.place;
        let mut state = self.lock();
        state.last = state.last.max(sequence);
        match state.settled.get(&sequence) {
            Some(past) if i128::from(past.time_ns) == time_ns => {
                return Arrival::Settled(past.settled);
            }
            _ => {}
        }
        let now = Instant::now();
        match state.unsettled.get_mut(&sequence) {
            // Given up, and delivered here again before the work on it has ended: it takes another
            // turn in its lane, so that what is behind it cannot overtake it.
            Some(unsettled)
                if unsettled.time_ns == time_ns && unsettled.hold.fate() == Fate::GivenUp => {}
            Some(unsettled) if unsettled.time_ns == time_ns => {
                (unsettled.reply, unsettled.told, unsettled.confirmed) = (reply, now, now);
                return Arrival::Known;
            }
            // Of a stream that is no more.
            Some(unsettled) => unsettled.hold.end(Fate::Gone),
            None => {}
        }
        state.unsettled.insert(
            sequence,
            Unsettled {
                reply,
                time_ns,
                confirmed: now,
                told: now,
                hold: stored.hold.clone(),
                begun: false,
                is_unreadable: stored.unreadable.is_some(),
            },
        );
        Arrival::New
    }

    /// Whether a message may be begun: it is still held here. Waits until it is certain whose
    /// turn it is.
    pub(crate) async fn begin(&self, stored: &Stored) -> bool {
        self.ours().await;
        let mut state = self.lock();
        match state.unsettled.get_mut(&stored.place.sequence) {
            Some(unsettled) if Arc::ptr_eq(&unsettled.hold, &stored.hold) => {
                unsettled.begun = true;
                true
            }
            _ => false,
        }
    }

    /// Nothing more is begun until [`Self::certain`].
    pub(crate) fn uncertain(&self) {
        self.0.turn.send_modify(|turn| turn.is_certain = false);
    }

    /// What is here may be begun.
    pub(crate) fn certain(&self) {
        self.0.turn.send_modify(|turn| turn.is_certain = true);
    }

    /// The server has given this replica the turn until then; `None` where there are no turns.
    pub(crate) fn ours_until(&self, until: Option<Instant>) {
        self.0.turn.send_modify(|turn| turn.until = until);
    }

    /// Returns when it is certain that this replica works.
    pub(crate) async fn ours(&self) {
        let mut turn = self.0.turn.subscribe();
        // Fails only when the sender has gone, which is here.
        let _ = turn.wait_for(Certainty::is_ours).await;
    }

    /// Whether it is certain that this replica works.
    pub(crate) fn is_ours(&self) -> bool {
        self.0.turn.borrow().is_ours()
    }

    /// It is another replica's turn, or may be: what was not begun is forgotten, and delivered to
    /// whoever works once it has been silent for long enough.
    pub(crate) fn stand_down(&self) {
        self.lock().unsettled.retain(|_, unsettled| {
            if unsettled.is_unreadable {
                return true;
            }
            unsettled.hold.end(Fate::GivenUp);
            unsettled.begun
        });
        self.0.settled.notify_one();
    }

    /// Has what was not begun delivered again at once, oldest first.
    pub(crate) async fn give_back_unbegun(self) {
        let replies: Vec<_> = {
            let mut state = self.lock();
            let unbegun: Vec<u64> = state
                .unsettled
                .iter()
                .filter(|(_, unsettled)| !unsettled.begun && !unsettled.is_unreadable)
                .map(|(sequence, _)| *sequence)
                .collect();
            unbegun
                .into_iter()
                .filter_map(|sequence| Some(state.unsettled.remove(&sequence)?.reply))
                .collect()
        };
        for reply in replies {
            self.acknowledge(reply, Settled::GivenBack).await;
        }
    }

    /// Tells the server the end of a message. Should that be lost, the message is delivered
    /// again, and so is the acknowledgement.
    pub(crate) async fn settle(&self, stored: &Stored, settled: Settled) {
        let Some(reply) = self.take(stored, settled) else { return };
        self.0.settled.notify_one();
        self.acknowledge(reply, settled).await;
    }

    /// Where to answer for a message that ends now; `None` where no answer is expected,
    /// because the message was forgotten.
    fn take(&self, stored: &Stored, settled: Settled) -> Option<Subject> {
        let mut state = self.lock();
        // Another stream may have a message of the same sequence. What was relayed is done with,
        // also where it was delivered again.
        let is_same = |unsettled: &Unsettled| {
            Arc::ptr_eq(&unsettled.hold, &stored.hold)
                || settled == Settled::Done && unsettled.time_ns == stored.place.time_ns
        };
        let unsettled = match state.unsettled.entry(stored.place.sequence) {
            Entry::Occupied(entry) if is_same(entry.get()) => entry.remove(),
            _ => return None,
        };
        if settled != Settled::GivenBack {
            state.remember(
                stored.place.sequence,
                Past { settled, time_ns: i64::try_from(stored.place.time_ns).unwrap_or(0) },
            );
        }
        Some(unsettled.reply)
    }

    /// Tells the server `ack`.
    pub(crate) async fn acknowledge(&self, reply: Subject, settled: Settled) {
        let (_, client) = self.0.link.client().await;
        // It fails only when the client has ended; then the message is delivered again.
        let _ = client.publish(reply, acknowledgement(settled)).await;
    }

    /// Gives back everything that is left, oldest first. Returns how many.
    pub(crate) async fn give_back_all(&self) -> usize {
        let left = std::mem::take(&mut self.lock().unsettled);
        for unsettled in left.values() {
            self.acknowledge(unsettled.reply.clone(), Settled::GivenBack).await;
        }
        left.len()
    }

    /// Has a message that was not begun delivered again at once.
    pub(crate) async fn give_back(&self, sequence: u64) {
        let given_back = self.lock().unsettled.remove(&sequence);
        if let Some(unsettled) = given_back {
            self.acknowledge(unsettled.reply, Settled::GivenBack).await;
        }
    }

    /// Forgets everything: another stream has taken the place of the one it came from.
    pub(crate) fn forget_all(&self) {
        let before = std::mem::take(&mut *self.lock());
        before.unsettled.values().for_each(|unsettled| unsettled.hold.end(Fate::Gone));
    }

    /// The failed messages among the settled ones above `floor`.
    pub(crate) fn failed_above(&self, floor: u64) -> Vec<u64> {
        let state = self.lock();
        let above =
            state.settled.range(floor + 1..).filter(|(_, past)| past.settled == Settled::Failed);
        above.map(|(sequence, _)| *sequence).collect()
    }

    /// Forgets settled messages that the server knows to be: all up to `floor`.
    pub(crate) fn known_to_be_settled(&self, floor: u64) {
        let mut state = self.lock();
        state.settled = state.settled.split_off(&(floor + 1));
        while state.settled_order.pop_front_if(|sequence| *sequence <= floor).is_some() {}
    }

    /// How many messages are unsettled.
    pub(crate) fn len(&self) -> usize {
        self.lock().unsettled.len()
    }

    /// The highest sequence that was delivered here.
    pub(crate) fn last(&self) -> u64 {
        self.lock().last
    }

    /// How many messages up to `sequence` are unsettled.
    pub(crate) fn count_to(&self, sequence: u64) -> usize {
        let state = self.lock();
        state
            .unsettled
            .range(..=sequence)
            .filter(|(_, unsettled)| unsettled.hold.fate() == Fate::Ours)
            .count()
    }

    /// Whether `sequence` is unsettled here, or settled.
    pub(crate) fn knows(&self, sequence: u64) -> bool {
        let state = self.lock();
        state.unsettled.contains_key(&sequence) || state.settled.contains_key(&sequence)
    }

    /// The sequence that another consumer has to begin with for nothing to be missed, when all
    /// up to `floor` is known to be settled.
    pub(crate) fn resume_at(&self, floor: u64) -> u64 {
        let state = self.lock();
        let oldest = state.unsettled.first_key_value().map(|(sequence, _)| *sequence);
        oldest.unwrap_or(state.last.max(floor) + 1)
    }

    /// Messages that the stream was not asked about for `age`, oldest first, at most `most`. The
    /// caller asks now.
    pub(crate) fn unconfirmed(&self, age: Duration, most: usize) -> Vec<u64> {
        let now = Instant::now();
        let mut state = self.lock();
        let old = state
            .unsettled
            .iter_mut()
            .filter(|(_, unsettled)| now.duration_since(unsettled.confirmed) > age)
            .take(most);
        old.map(|(sequence, unsettled)| {
            unsettled.confirmed = now;
            *sequence
        })
        .collect()
    }

    /// The stream no longer keeps this message.
    pub(crate) fn is_gone(&self, sequence: u64) {
        if let Some(unsettled) = self.lock().unsettled.get(&sequence) {
            unsettled.hold.end(Fate::Gone);
        }
    }

    /// Returns when a message was settled since the last call.
    pub(crate) async fn settled(&self) {
        self.0.settled.notified().await;
    }

    /// Keeps telling the server that what is here is being worked on, so that it waits for
    /// longer than `ack_wait`.
    pub(crate) async fn keep(self, ack_wait: Duration) {
        let beat = ack_wait / 4;
        let mut ticks = tokio::time::interval(beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Without a connection it would all be sent later.
            if !self.0.link.is_connected() {
                continue;
            }
            let (_, client) = self.0.link.client().await;
            for reply in self.due(beat) {
                let _ = client.publish(reply, Bytes::from_static(b"+WPI")).await;
            }
        }
    }

    fn due(&self, after: Duration) -> Vec<Subject> {
        let now = Instant::now();
        let mut state = self.lock();
        let due = state
            .unsettled
            .values_mut()
            .filter(|unsettled| now.duration_since(unsettled.told) >= after);
        due.map(|unsettled| {
            unsettled.told = now;
            unsettled.reply.clone()
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::settings::Settings;
    use crate::observe::Observer;

    #[test]
    fn a_delivery_is_known_by_its_place_in_the_stream_and_the_time_it_was_stored() {
        let held = Held::new(&Link::new(&Settings::default(), &Observer::default()));
        let stored = |sequence, time_ns| Stored::new(Place { sequence, time_ns }, None, &held);
        let first = stored(1, 100);
        assert_eq!(held.receive(&first, "a".into()), Arrival::New);
        assert_eq!(held.receive(&stored(1, 100), "b".into()), Arrival::Known);
        assert_eq!(
            held.take(&first, Settled::Done).as_deref(),
            Some("b"),
            "answered where it was delivered last"
        );
        assert_eq!(held.receive(&stored(1, 100), "c".into()), Arrival::Settled(Settled::Done));
        // Given up while it is worked on, and delivered here again.
        for end in [Settled::GivenBack, Settled::Done] {
            let second = stored(2, 150);
            assert_eq!(held.receive(&second, "g".into()), Arrival::New);
            held.lock().unsettled.get_mut(&2).unwrap().begun = true;
            held.stand_down();
            let once_more = stored(2, 150);
            assert_eq!(held.receive(&once_more, "h".into()), Arrival::New);
            assert_eq!(held.receive(&stored(2, 150), "i".into()), Arrival::Known);
            let answered = held.take(&second, end);
            match end {
                Settled::Done => assert_eq!(answered.as_deref(), Some("i"), "it is done with"),
                _ => {
                    assert_eq!(answered, None, "it has another turn");
                    assert!(held.take(&once_more, Settled::GivenBack).is_some());
                }
            }
        }
        // Another stream has taken the place of the first one.
        let again = stored(1, 200);
        assert_eq!(held.receive(&again, "d".into()), Arrival::New);
        assert_eq!(held.take(&first, Settled::Done), None, "the first one settles nothing of it");
        let third = stored(1, 300);
        assert_eq!(held.receive(&third, "e".into()), Arrival::New);
        assert_eq!(again.hold.fate(), Fate::Gone);
        assert_eq!(held.take(&again, Settled::Done), None);
        assert!(held.take(&third, Settled::GivenBack).is_some());
        assert_eq!(
            held.receive(&stored(1, 300), "f".into()),
            Arrival::New,
            "what was given back may come again"
        );
    }
}
