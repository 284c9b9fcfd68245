//! Lanes: one first-in-first-out queue for each subject, side by side.
//!
//! A lane works on its oldest message and takes the next only when that one is settled, so
//! order holds per subject and nothing else waits. A message stays in its lane until it is
//! settled: what is in the lanes is all that the process still owes.

use crate::message::Message;
use crate::pending::Pending;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// All messages that have been received and not been settled.
pub(crate) struct Lanes {
    lanes: Mutex<HashMap<Arc<str>, VecDeque<Arc<Message>>>>,
    idle: Notify,
    pending: Pending,
}

impl Lanes {
    /// No messages yet; how many there are is entered in `pending`.
    pub(crate) fn new(pending: &Pending) -> Self {
        Self { lanes: Mutex::default(), idle: Notify::new(), pending: pending.clone() }
    }

    /// Appends `message` to its lane. Returns it when the lane was empty: the caller then works
    /// on it, and on all that [`Self::settled`] returns after it.
    pub(crate) fn push(&self, message: Message) -> Option<Arc<Message>> {
        let message = Arc::new(message);
        self.pending.enter(message.size());
        let mut lanes = self.lock();
        let lane = lanes.entry(message.subject.clone()).or_default();
        lane.push_back(message.clone());
        (lane.len() == 1).then_some(message)
    }

    /// Takes a settled message out of its lane and returns the next one of that lane.
    pub(crate) fn settled(&self, message: &Message) -> Option<Arc<Message>> {
        let mut lanes = self.lock();
        let lane = lanes.get_mut(&message.subject)?;
        let settled = lane.pop_front()?;
        self.forget(&settled);
        let next = lane.front().cloned();
        if next.is_none() {
            lanes.remove(&message.subject);
            if lanes.is_empty() {
                self.idle.notify_waiters();
            }
        }
        next
    }

    /// The messages that wait behind `message`, the first of its lane: the oldest `most` of them.
    pub(crate) fn behind(&self, message: &Message, most: usize) -> Vec<Arc<Message>> {
        let lanes = self.lock();
        let lane = lanes.get(&message.subject);
        lane.into_iter().flatten().skip(1).take(most).cloned().collect()
    }

    /// The age of the oldest message.
    pub(crate) fn oldest(&self) -> Duration {
        let lanes = self.lock();
        let oldest = lanes.values().filter_map(|lane| Some(lane.front()?.received)).min();
        oldest.map(|received| received.elapsed()).unwrap_or_default()
    }

    /// Returns when no message is left.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.lock().is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Takes out all messages that are left, oldest first within each subject.
    pub(crate) fn abandon(&self) -> Vec<Arc<Message>> {
        let left: Vec<_> = std::mem::take(&mut *self.lock()).into_values().flatten().collect();
        left.iter().for_each(|message| self.forget(message));
        left
    }

    fn forget(&self, message: &Message) {
        self.pending.strike(message.size());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, VecDeque<Arc<Message>>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Id;
    use futures_util::FutureExt;

    fn message(subject: &str, payload: &'static str) -> Message {
        Message::new(subject, Default::default(), payload.into(), Id::unique())
    }

    #[test]
    fn a_lane_hands_out_one_message_at_a_time_in_order_of_arrival() {
        let pending = Pending::default();
        let lanes = Lanes::new(&pending);
        let first = lanes.push(message("a", "1")).unwrap();
        assert!(lanes.push(message("a", "2")).is_none());
        assert!(lanes.push(message("a", "3")).is_none());
        let other = lanes.push(message("b", "4")).unwrap();
        assert_eq!((pending.messages(), pending.bytes()), (4, 8));

        assert!(lanes.settled(&other).is_none());
        let second = lanes.settled(&first).unwrap();
        assert_eq!(second.payload, "2");
        let third = lanes.settled(&second).unwrap();
        assert_eq!(third.payload, "3");
        assert!(lanes.settled(&third).is_none());
        assert_eq!((pending.messages(), pending.bytes()), (0, 0));
        assert!(lanes.push(message("a", "5")).is_some(), "an emptied lane starts again");
    }

    #[test]
    fn abandoned_are_all_that_were_not_settled_also_those_in_work() {
        let pending = Pending::default();
        let lanes = Lanes::new(&pending);
        let first = lanes.push(message("a", "1")).unwrap();
        lanes.push(message("a", "2"));
        lanes.push(message("a", "3"));
        lanes.settled(&first);
        let left: Vec<_> = lanes.abandon().iter().map(|message| message.payload.clone()).collect();
        assert_eq!(left, ["2", "3"]);
        assert_eq!((pending.messages(), pending.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_message() {
        let pending = Pending::default();
        let lanes = Lanes::new(&pending);
        let first = lanes.push(message("a", "1")).unwrap();
        let mut idle = std::pin::pin!(lanes.idle());
        assert!(idle.as_mut().now_or_never().is_none());
        lanes.settled(&first);
        idle.await;
    }
}
