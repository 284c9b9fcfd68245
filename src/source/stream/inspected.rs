//! What an inspection of the consumer tells: whose turn it is, and whether the gate may open.

use crate::nats::ack;
use crate::nats::link::Missed;
use crate::nats::settings::REMIND;
use crate::observe::event::Event;
use crate::source::stream::consumer::{ConsumerState, Made, SetUpError, Settings, Start};
use crate::source::stream::inspection::{Inspected, Inspection};
use crate::source::stream::turn::Turn;
use crate::source::stream::unreadable::{self, Unreadable};
use crate::source::stream::{AGAIN, INSPECT_CLOSED, Inspecting, Pull};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// How often the consumer is inspected, and how often while the gate is closed.
const INSPECT: Duration = Duration::from_secs(5);
/// How long after its turn has begun a replica goes on: by then the one before knows that its turn
/// is over.
const HANDED_OVER: Duration = Duration::from_millis(1200);
/// How long a replica that stands by leaves it to the one that works to make a lost consumer
/// again: that one knows best where to resume.
const AFTER_YOU: Duration = Duration::from_secs(2);

impl Pull {
    pub(super) fn inspect(&self) -> Inspecting {
        let is_first = !self.session.inspected;
        debug!(is_first, "inspecting the consumer");
        let created = self.made.stream_created.clone();
        let inspection = Inspection {
            consumer: self.consumer.clone(),
            held: self.held.clone(),
            capture: self.capture.clone(),
            is_first,
            is_changed: self.is_changed,
            created: self.made.created.clone(),
            reply: self.reply.clone(),
            is_shared: self.made.group.is_none(),
            searched: (is_first && self.sessions > 1).then_some(self.suspects.searched()),
            suspects: self.suspects.sequences(),
            resume: Start::At { sequence: self.resume_at(), of: created },
            after_you: if self.turn.stands_by() { AFTER_YOU } else { Duration::ZERO },
        };
        Box::pin(inspection.run())
    }

    /// Where another consumer has to begin for nothing to be missed.
    fn resume_at(&self) -> u64 {
        // Behind a closed gate, and while standing by, what was delivered and is not here may be
        // unsettled.
        if self.gate.is_open() && !self.turn.stands_by() {
            self.held.resume_at(self.floor)
        } else {
            self.floor + 1
        }
    }

    pub(super) fn inspected(&mut self, inspected: Result<Inspected, SetUpError>) {
        self.inspecting = None;
        let Inspected { state, unreadable, made } = match inspected {
            Ok(inspected) => inspected,
            Err(error) => return self.failed(&error),
        };
        if self.said.failing.take().is_some() {
            let Settings { name, consumer, .. } = &self.consumer.settings;
            info!(stream = name, consumer, "reading from the stream again");
        }
        if let Some(made) = made {
            self.is_made(made);
        }
        self.floor = state.floor;
        self.held.known_to_be_settled(state.floor);
        self.observer.note(&Event::StreamPending(state.waiting));
        self.report(&state);
        self.session.inspected = true;
        self.link.subscribed(self.session.generation, Missed::Nothing);
        let is_shared = self.made.group.is_none();
        let is_own =
            is_shared || (state.pinned.is_some() && state.pinned.as_deref() == self.turn.pin());
        match is_own {
            true => self.turn.began_by(state.delivered),
            false => self.end_turn(),
        }
        if is_shared {
            self.held.ours_until(None);
        }
        self.held.certain();
        let missing = self.sort_out(unreadable, &state);
        let (is_open, unsettled, delivered) =
            (self.gate.is_open(), state.unsettled, state.delivered);
        debug!(is_own, missing, unsettled, delivered, held = self.held.len(), is_open, "inspected");
        self.decide(&state, is_own, missing);
        // Standing by, it has to know nothing in a hurry: its turn begins with a message.
        let is_settled = self.gate.is_open() || !is_own;
        let is_calm = is_settled && self.suspects.is_empty();
        self.inspect_at = Instant::now() + if is_calm { INSPECT } else { INSPECT_CLOSED };
    }

    /// The consumer could not be asked.
    fn failed(&mut self, error: &SetUpError) {
        self.inspect_at = Instant::now() + AGAIN;
        self.link.unsubscribed();
        if self.said.failing.is_none_or(|said| said.elapsed() >= REMIND) {
            self.said.failing = Some(Instant::now());
            error!(%error, "cannot read from the stream, retrying");
        }
    }

    /// The consumer was made again or changed.
    fn is_made(&mut self, made: Made) {
        if made.stream_created != self.made.stream_created {
            warn!(
                stream = self.consumer.settings.name,
                "another stream took the place of the previous one; starting with its first message"
            );
            self.held.forget_all();
            self.suspects.clear();
            self.floor = 0;
        }
        if made.ack_wait != self.made.ack_wait {
            self.keeping.abort();
            self.keeping = tokio::spawn(self.held.clone().keep(made.ack_wait)).abort_handle();
        }
        if made.group.is_some() != self.made.group.is_some() {
            self.turn = Turn::first(made.group.is_some());
        }
        self.made = made;
        self.is_changed = false;
        self.suspects.search_again();
        self.session.next_delivery = None;
        self.close_gate();
    }

    /// Opens the gate where nothing is missing any more.
    fn decide(&mut self, state: &ConsumerState, is_own: bool, missing: usize) {
        if missing > 0 {
            self.turn.note_missing();
        }
        // Where replicas share the work, others always hold some. What was lost on its way to
        // this one has been delivered again by then.
        let is_over = self.made.group.is_none()
            && (self.sessions == 1 || self.gate.closed_for() > self.made.ack_wait + AGAIN);
        if !is_own {
            self.gate.missing_are(0, state.delivered);
        } else if missing == 0 && self.turn.had_missing() && !self.gate.is_open() {
            // The replica before this one may have settled a part of what is here. What comes
            // back is not settled.
            if self.gate.closed_for() >= HANDED_OVER {
                self.turn.caught_up();
                self.gate.clear();
                tokio::spawn(self.held.clone().give_back_unbegun());
                self.session.again = true;
            }
        } else if missing == 0 || is_over {
            self.turn.caught_up();
            self.ready.extend(self.gate.open());
        } else {
            self.gate.missing_are(missing, state.delivered);
        }
    }

    /// Has messages fail that cannot be read, and returns how many others were delivered and are
    /// neither settled nor here.
    fn sort_out(&mut self, found: Option<(Vec<Unreadable>, u64)>, state: &ConsumerState) -> usize {
        if let Some((found, searched)) = found {
            let began_at = self.turn.began_at().unwrap_or(u64::MAX);
            for found in self.suspects.found(found, searched, began_at) {
                self.take_unreadable(found, state.deliveries);
            }
        }
        // Nothing is delivered while the consumer is paused.
        let patience = if state.paused { Duration::MAX } else { self.made.ack_wait };
        if let Some(found) = self.suspects.decided(self.sessions, patience) {
            self.take_unreadable(found, state.deliveries);
        }
        let here = self.held.count_to(state.delivered);
        let mut missing = (state.unsettled as usize).saturating_sub(here);
        // What was delivered last has not come, whatever has become of others that are here.
        let is_last_lost = state.unsettled > 0 && state.delivered > self.held.last();
        if !self.gate.is_open() && self.turn.is_caught_up() && is_last_lost {
            missing = missing.max(1);
        }
        if missing == 0 {
            self.suspects.clear();
        }
        let patience = self.made.ack_wait + AGAIN;
        if let Some(sequence) = self.suspects.provoke(self.sessions, patience) {
            let reply = ack::of_other(&self.reply, sequence, state.deliveries);
            tokio::spawn(unreadable::provoke(self.consumer.clone(), reply));
            self.session.again = true;
        }
        missing
    }

    /// Says, once, what has changed about the consumer.
    fn report(&mut self, state: &ConsumerState) {
        let Settings { name: stream, consumer, .. } = &self.consumer.settings;
        if state.paused != std::mem::replace(&mut self.said.paused, state.paused) {
            match state.paused {
                true => warn!(
                    stream,
                    consumer,
                    "the consumer is paused: nothing is relayed until you resume it (nats consumer \
                     resume)"
                ),
                false => info!(stream, consumer, "the consumer is resumed"),
            }
        }
        if self.made.group.is_none() {
            return;
        }
        let active = match &state.pinned {
            Some(pinned) => Some(self.turn.pin() == Some(pinned.as_str())),
            None => self.said.active.filter(|_| self.turn.pin().is_some()),
        };
        self.observer.note(&Event::Active(active == Some(true)));
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
