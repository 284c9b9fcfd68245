//! Lanes: one first-in-first-out queue for each subject, side by side.
//!
//! A lane works on its oldest message and takes the next only when that one is settled, so
//! order holds per subject and nothing else waits. A message stays in its lane until it is
//! settled: what is in the lanes is all that the process still owes.

use crate::message::Message;
use crate::observe::metrics::Metrics;
use crate::source::stream::held::Held;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All messages that have been received and not been settled.
pub(crate) struct Lanes {
    lanes: Mutex<HashMap<Arc<str>, VecDeque<Arc<Message>>>>,
    idle: Notify,
    metrics: Metrics,
}

impl Lanes {
    /// No messages yet; how many there are is kept in `metrics`.
    #[must_use]
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self { lanes: Mutex::default(), idle: Notify::new(), metrics: metrics.clone() }
    }

    /// Appends `message` to its lane. Returns it when the lane was empty: the caller then works
    /// on it, and on all that [`Self::settled`] returns after it.
    pub(crate) fn push(&self, message: Message) -> Option<Arc<Message>> {
        let message = Arc::new(message);
        self.metrics.pending.inc();
        self.metrics.pending_bytes.inc_by(message.size() as i64);
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

    /// How many messages wait or are worked on, and their bytes.
    pub(crate) fn pending(&self) -> (usize, usize) {
        (self.metrics.pending.get() as usize, self.metrics.pending_bytes.get() as usize)
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
        self.metrics.pending.dec();
        self.metrics.pending_bytes.dec_by(message.size() as i64);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, VecDeque<Arc<Message>>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, the message counts as being worked on.
pub(crate) type Working = Option<Arc<OwnedSemaphorePermit>>;

/// One message's claim on the limit of messages being worked on at once.
///
/// The claim is held while any part of the message's work runs, and given back while all of
/// it waits, so that a message that waits for a retry keeps no other from being worked on.
pub(crate) struct Slot {
    limit: Arc<Semaphore>,
    /// Where replicas take turns: nothing is worked on while the turn may be another's.
    turns: Option<Held>,
    held: Mutex<Weak<OwnedSemaphorePermit>>,
}

impl Slot {
    /// A claim on `limit`, not held yet.
    #[must_use]
    pub(crate) fn new(limit: Arc<Semaphore>, turns: Option<Held>) -> Self {
        Self { limit, turns, held: Mutex::default() }
    }

    /// Waits for the claim, unless another part of the same message holds it already. It is
    /// held until all that was returned is dropped.
    pub(crate) async fn enter(&self) -> Working {
        if let Some(permit) = self.held().upgrade() {
            return Some(permit);
        }
        let permit = loop {
            // Fails only when the semaphore is closed, which nobody does.
            let permit = self.limit.clone().acquire_owned().await.ok()?;
            match self.turns.as_ref().filter(|turns| !turns.is_ours()) {
                None => break Arc::new(permit),
                Some(turns) => {
                    drop(permit);
                    turns.ours().await;
                }
            }
        };
        *self.held() = Arc::downgrade(&permit);
        Some(permit)
    }

    fn held(&self) -> MutexGuard<'_, Weak<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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
        let lanes = Lanes::new(&Metrics::default());
        let first = lanes.push(message("a", "1")).unwrap();
        assert!(lanes.push(message("a", "2")).is_none());
        assert!(lanes.push(message("a", "3")).is_none());
        let other = lanes.push(message("b", "4")).unwrap();
        assert_eq!(lanes.pending(), (4, 8));

        assert!(lanes.settled(&other).is_none());
        let second = lanes.settled(&first).unwrap();
        assert_eq!(second.payload, "2");
        let third = lanes.settled(&second).unwrap();
        assert_eq!(third.payload, "3");
        assert!(lanes.settled(&third).is_none());
        assert_eq!(lanes.pending(), (0, 0));
        assert!(lanes.push(message("a", "5")).is_some(), "an emptied lane starts again");
    }

    #[test]
    fn abandoned_are_all_that_were_not_settled_also_those_in_work() {
        let lanes = Lanes::new(&Metrics::default());
        let first = lanes.push(message("a", "1")).unwrap();
        lanes.push(message("a", "2"));
        lanes.push(message("a", "3"));
        lanes.settled(&first);
        let left: Vec<_> = lanes.abandon().iter().map(|message| message.payload.clone()).collect();
        assert_eq!(left, ["2", "3"]);
        assert_eq!(lanes.pending(), (0, 0));
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_message() {
        let lanes = Lanes::new(&Metrics::default());
        let first = lanes.push(message("a", "1")).unwrap();
        let mut idle = std::pin::pin!(lanes.idle());
        assert!(idle.as_mut().now_or_never().is_none());
        lanes.settled(&first);
        idle.await;
    }

    #[tokio::test]
    async fn a_slot_is_shared_within_a_message_and_given_back_while_all_of_it_waits() {
        let limit = Arc::new(Semaphore::new(1));
        let (a, b) = (Slot::new(limit.clone(), None), Slot::new(limit.clone(), None));
        let one = a.enter().await;
        let two = a.enter().await;
        drop(one);
        assert_eq!(limit.available_permits(), 0, "one part still works");
        let mut other = std::pin::pin!(b.enter());
        assert!(other.as_mut().now_or_never().is_none());
        drop(two);
        assert!(other.await.is_some());
    }
}
