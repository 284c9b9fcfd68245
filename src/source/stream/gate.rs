//! The gate that keeps order where messages are delivered again.
//!
//! While it is closed, what arrives waits behind it. It opens when nothing that was delivered
//! before is missing any more, and lets all through in the stream's order.

use crate::message::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Open, or closed with what waits behind it.
pub(crate) struct Gate {
    closed: Option<Closed>,
    /// By sequence in the stream.
    waiting: BTreeMap<u64, Message>,
    bytes: usize,
}

struct Closed {
    since: Instant,
    /// Messages that somebody else holds, or that were lost on their way, as far as is known.
    missing: usize,
    /// The highest sequence that they can have.
    up_to: u64,
    /// The highest sequence that had been delivered when it was closed, once that is known.
    before: Option<u64>,
    /// Newer messages that were given back to make room: they are missing too.
    dropped: BTreeSet<u64>,
    /// Whether they have begun to arrive.
    arriving: bool,
}

impl Gate {
    /// Closed, and nothing is known.
    pub(crate) fn closed() -> Self {
        let mut gate = Self { closed: None, waiting: BTreeMap::new(), bytes: 0 };
        gate.close();
        gate
    }

    /// Closes it, where it is open.
    pub(crate) fn close(&mut self) {
        self.closed.get_or_insert_with(|| Closed {
            since: Instant::now(),
            missing: 0,
            up_to: 0,
            before: None,
            dropped: BTreeSet::new(),
            arriving: false,
        });
    }

    /// Whether messages pass.
    pub(crate) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// For how long it has been closed.
    pub(crate) fn closed_for(&self) -> Duration {
        self.closed.as_ref().map_or(Duration::ZERO, |closed| closed.since.elapsed())
    }

    /// How many messages are to be asked for next; `None` where single ones are, to find out
    /// whether those that are missing are delivered again by now. They come before new ones.
    pub(crate) fn missing(&self) -> Option<usize> {
        self.closed.as_ref().filter(|closed| closed.arriving).map(|closed| closed.missing)
    }

    /// The bytes that wait behind it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a message may have been delivered before it was closed.
    pub(crate) fn may_be_missing(&self, sequence: u64) -> bool {
        self.closed
            .as_ref()
            .is_some_and(|closed| closed.before.is_none_or(|before| sequence <= before))
    }

    /// A message has arrived: it is returned where it may go on.
    pub(crate) fn arrived(&mut self, sequence: u64, message: Message) -> Option<Message> {
        let may_be_missing = self.may_be_missing(sequence);
        let Some(closed) = &mut self.closed else { return Some(message) };
        if sequence <= closed.up_to {
            closed.missing = closed.missing.saturating_sub(1);
        }
        closed.dropped.remove(&sequence);
        // Those that are missing come before others.
        closed.arriving = may_be_missing && closed.missing > 0;
        let message = message.detached();
        self.bytes += message.size();
        self.waiting.insert(sequence, message);
        None
    }

    /// Takes note that `missing` messages up to the sequence `up_to` are missing.
    pub(crate) fn missing_are(&mut self, missing: usize, up_to: u64) {
        if let Some(closed) = &mut self.closed {
            (closed.missing, closed.up_to) = (missing, up_to);
            closed.before.get_or_insert(up_to);
        }
    }

    /// Opens it, and returns what has waited in the stream's order.
    pub(crate) fn open(&mut self) -> impl Iterator<Item = Message> {
        (self.closed, self.bytes) = (None, 0);
        std::mem::take(&mut self.waiting).into_values()
    }

    /// Drops all that waits: whatever was delivered until now is missing.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
        if let Some(closed) = &mut self.closed {
            closed.dropped.clear();
            closed.before = None;
        }
    }

    /// Takes out the newest message, to make room for older ones that are missing, where there are
    /// some and it is none of them. Returns its sequence.
    pub(crate) fn drop_newest(&mut self) -> Option<u64> {
        let (sequence, _) = self.waiting.last_key_value()?;
        let may_be_missing = self.may_be_missing(*sequence);
        let closed = self
            .closed
            .as_mut()
            .filter(|closed| !may_be_missing && closed.missing > closed.dropped.len())?;
        let (sequence, message) = self.waiting.pop_last()?;
        closed.dropped.insert(sequence);
        closed.missing += 1;
        self.bytes -= message.size();
        Some(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Id;
    use async_nats::HeaderMap;

    fn message(subject: &str) -> Message {
        Message::new(subject, HeaderMap::new(), "x".into(), Id::unique())
    }

    #[test]
    fn what_arrives_behind_it_passes_in_order_once_it_opens() {
        let mut gate = Gate::closed();
        gate.missing_are(2, 6);
        assert!(gate.arrived(9, message("nine")).is_none());
        assert_eq!(gate.missing(), None, "a new one says nothing about those that are missing");
        assert!(gate.arrived(5, message("five")).is_none());
        assert_eq!(gate.missing(), Some(1));
        assert!(gate.arrived(6, message("six")).is_none());
        assert_eq!(gate.bytes(), 4 + 4 + 3 + 3);
        let passed: Vec<_> = gate.open().map(|message| message.subject.to_string()).collect();
        assert_eq!(passed, ["five", "six", "nine"]);
        assert_eq!(gate.bytes(), 0);
        assert!(gate.arrived(10, message("ten")).is_some());
    }

    #[test]
    fn the_newest_makes_room_unless_it_may_be_missing() {
        let mut gate = Gate::closed();
        gate.arrived(4, message("four"));
        assert_eq!(gate.drop_newest(), None, "nothing is known yet");
        gate.missing_are(2, 3);
        gate.missing_are(3, 5);
        assert_eq!(gate.drop_newest(), Some(4));
        gate.arrived(4, message("four"));
        assert_eq!(gate.missing(), None, "a newer one says nothing about those that are missing");
        assert_eq!(gate.drop_newest(), Some(4));
        gate.missing_are(2, 5);
        gate.arrived(2, message("two"));
        assert_eq!(gate.missing(), Some(1), "the one that was dropped");
        gate.arrived(4, message("four"));
        assert_eq!(gate.bytes(), (4 + 1) + (3 + 1));
        assert_eq!(gate.drop_newest(), None, "nothing older is missing any more");
        assert_eq!(gate.open().count(), 2);
    }
}
