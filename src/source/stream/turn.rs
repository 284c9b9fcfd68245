//! What a look at the consumer tells: whose turn it is, and whether the gate may open.

use crate::nats::link::{Missed, REMIND};
use crate::source::stream::consumer::{Look, SetUpError, Start};
use crate::source::stream::look::{Looked, Looker};
use crate::source::stream::unreadable::{self, Unreadable};
use crate::source::stream::{LOOK_AGAIN, Looking, Pull};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How often the consumer is looked at, and how often while the gate is closed.
const LOOK: Duration = Duration::from_secs(5);
pub(super) const LOOK_CLOSED: Duration = Duration::from_millis(200);
/// How long after its turn has begun a replica goes on: by then the one before knows that its turn is over.
const HANDED_OVER: Duration = Duration::from_millis(1200);
/// How long a replica that stands by leaves it to the one that works to make a lost consumer
/// anew: that one knows best where to go on.
const AFTER_YOU: Duration = Duration::from_secs(2);

/// A stay as the replica that works; where replicas share the work, there is one that does not end.
#[derive(Default)]
pub(super) struct Turn {
    /// What the server knows it by; `None` while standing by and where replicas share.
    pub(super) pin: Option<String>,
    /// What is above this sequence was delivered to this replica first.
    began_at: Option<u64>,
    /// Whether messages were missing when it began, and whether it was made sure that what waits
    /// behind the gate is not settled.
    had_missing: bool,
    is_handed_over: bool,
}

impl Turn {
    pub(super) fn new(pin: Option<String>) -> Self {
        Self { pin, ..Self::default() }
    }
}

impl Pull {
    pub(super) fn look(&self) -> Looking {
        let is_first = !self.session.looked;
        let looker = Looker {
            consumer: self.consumer.clone(),
            held: self.held.clone(),
            publisher: self.publisher.clone(),
            is_first,
            is_changed: self.is_changed,
            created: self.made.created.clone(),
            reply: self.reply.clone(),
            is_shared: self.made.group.is_none(),
            searched: (is_first && self.sessions > 1).then_some(self.searched),
            suspects: self.suspects.iter().map(|found| found.sequence).collect(),
            resume: Start::At { sequence: self.resume_at(), of: self.made.stream_created.clone() },
            after_you: if self.stands_by() { AFTER_YOU } else { Duration::ZERO },
        };
        Box::pin(looker.look())
    }

    /// Where another consumer has to begin for nothing to be missed.
    fn resume_at(&self) -> u64 {
        // Behind a closed gate, and standing by, what was delivered and is not here may be unsettled.
        if self.gate.is_open() && !self.stands_by() {
            self.held.resume_at(self.floor)
        } else {
            self.floor + 1
        }
    }

    pub(super) fn looked(&mut self, looked: Result<Looked, SetUpError>) {
        self.looking = None;
        let Looked { look, unreadable, made } = match looked {
            Ok(looked) => looked,
            Err(error) => {
                self.look_at = Instant::now() + LOOK_AGAIN;
                self.link.unsubscribed();
                if self.said.failing.is_none_or(|said| said.elapsed() >= REMIND) {
                    self.said.failing = Some(Instant::now());
                    error!(%error, "nothing can be read from the stream, trying again");
                }
                return;
            }
        };
        if self.said.failing.take().is_some() {
            info!(
                stream = self.stream.name,
                consumer = self.stream.consumer,
                "reading from the stream again"
            );
        }
        if let Some(made) = made {
            if made.stream_created != self.made.stream_created {
                warn!(
                    stream = self.stream.name,
                    "another stream has taken the place of the one before; beginning with its first message"
                );
                self.held.forget_all();
                self.suspects.clear();
                (self.floor, self.searched) = (0, 0);
            }
            if made.ack_wait != self.made.ack_wait {
                self.keeping.abort();
                self.keeping = tokio::spawn(self.held.clone().keep(made.ack_wait)).abort_handle();
            }
            self.made = made;
            (self.is_changed, self.searched) = (false, 0);
            self.session.next_delivery = None;
            self.close_gate();
        }
        self.floor = look.floor;
        self.held.known_to_be_settled(look.floor);
        self.metrics.stream_pending.set(look.waiting as i64);
        self.report(&look);
        self.session.looked = true;
        self.link.subscribed(self.session.generation, Missed::Nothing);
        // Where replicas share the work, others always hold some. What was lost on its way to
        // this one has been delivered again by then.
        let is_shared = self.made.group.is_none();
        let is_own = is_shared || (look.pinned.is_some() && look.pinned == self.turn.pin);
        if is_own {
            self.turn.began_at.get_or_insert(look.delivered);
        } else {
            self.end_turn();
        }
        if is_shared {
            self.held.ours_until(None);
        }
        self.held.certain();
        let missing = self.sort_out(unreadable, &look);
        self.turn.had_missing |= missing > 0;
        let is_over = is_shared
            && (self.sessions == 1 || self.gate.closed_for() > self.made.ack_wait + LOOK_AGAIN);
        if !is_own {
            self.gate.missing_are(0, look.delivered);
        } else if missing == 0
            && !is_shared
            && self.turn.had_missing
            && !self.turn.is_handed_over
            && !self.gate.is_open()
        {
            // Somebody else may have settled a part of what is here. What comes back is not settled.
            if self.gate.closed_for() >= HANDED_OVER {
                self.turn.is_handed_over = true;
                self.gate.clear();
                tokio::spawn(self.held.clone().give_back_unbegun());
                self.session.again = true;
            }
        } else if missing == 0 || is_over {
            self.turn.is_handed_over = true;
            self.ready.extend(self.gate.open());
        } else {
            self.gate.missing_are(missing, look.delivered);
        }
        // Standing by, it has to know nothing in a hurry: its turn begins with a message.
        let is_settled = self.gate.is_open() || !is_own;
        self.look_at = Instant::now()
            + if is_settled && self.suspects.is_empty() { LOOK } else { LOOK_CLOSED };
    }

    /// Has messages fail that cannot be read, and returns how many others were delivered and are
    /// neither settled nor here.
    fn sort_out(&mut self, found: Option<(Vec<Unreadable>, u64)>, look: &Look) -> usize {
        if let Some((found, searched)) = found {
            self.searched = self.searched.max(searched);
            self.suspected_at = Instant::now();
            let began_at = self.turn.began_at.unwrap_or(u64::MAX);
            for found in found {
                match found.sequence > began_at {
                    true => self.take_unreadable(found, look.deliveries),
                    // An earlier process, or another replica, may have settled it.
                    false => self.suspects.push_back(found),
                }
            }
        }
        if let Some((session, since)) = self.provoked {
            // Where the connection broke, it was not settled.
            if session != self.sessions {
                self.provoked = None;
                self.suspects
                    .pop_front()
                    .into_iter()
                    .for_each(|found| self.take_unreadable(found, look.deliveries));
            } else if since.elapsed() > self.made.ack_wait && !look.paused {
                self.provoked = None;
                // It is searched for again after the next lost connection, should it be unsettled after all.
                let settled = self.suspects.pop_front();
                self.searched =
                    self.searched.min(settled.map_or(u64::MAX, |found| found.sequence - 1));
            }
        }
        let mut missing =
            (look.unsettled as usize).saturating_sub(self.held.count_to(look.delivered));
        // What was delivered last has not come, whatever has become of others that are here.
        if !self.gate.is_open()
            && look.unsettled > 0
            && self.turn.is_handed_over
            && look.delivered > self.held.last()
        {
            missing = missing.max(1);
        }
        if missing == 0 {
            (self.provoked, self.suspects) = (None, VecDeque::new());
        }
        // Whatever else was lost on its way has been delivered again by then.
        let is_due = self.suspected_at.elapsed() > self.made.ack_wait + LOOK_AGAIN;
        if let Some(suspect) = self.suspects.front().filter(|_| is_due && self.provoked.is_none()) {
            let reply = unreadable::reply(&self.reply, suspect.sequence, look.deliveries);
            tokio::spawn(unreadable::provoke(self.consumer.clone(), reply));
            self.provoked = Some((self.sessions, Instant::now()));
            self.session.again = true;
        }
        missing
    }

    /// Says, once, what has changed about the consumer.
    fn report(&mut self, look: &Look) {
        let (stream, consumer) = (self.stream.name.as_str(), self.stream.consumer.as_str());
        if look.paused != std::mem::replace(&mut self.said.paused, look.paused) {
            match look.paused {
                true => warn!(
                    stream,
                    consumer,
                    "the consumer is paused: nothing is relayed until it is resumed (nats consumer resume)"
                ),
                false => info!(stream, consumer, "the consumer is resumed"),
            }
        }
        if self.made.group.is_none() {
            return;
        }
        let active = match &look.pinned {
            Some(pinned) => Some(self.turn.pin.as_ref() == Some(pinned)),
            None => self.said.active.filter(|_| self.turn.pin.is_some()),
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
}
