//! What a look at the consumer tells: whose turn it is, and whether the gate may open.

use super::{LOOK_AGAIN, Looking, Pull};
use crate::jetstream::consumer::{Look, SetUpError, Start};
use crate::jetstream::look::{Looked, Looker};
use crate::link::{Missed, REMIND};
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

impl Pull {
    pub(super) fn look(&self) -> Looking {
        let is_first = !self.session.looked;
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
            after_you: if self.stands_by() { AFTER_YOU } else { Duration::ZERO },
        };
        Box::pin(looker.look())
    }

    pub(super) fn looked(&mut self, looked: Result<Looked, SetUpError>) {
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
}
