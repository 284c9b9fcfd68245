//! A message's claim on the limit of messages that are worked on at once.
//!
//! The claim is held while any part of the message's work runs, and given back while all of it
//! waits, so that a message that waits for a retry, or for the rate limit of a destination, keeps
//! no other from being worked on. Where replicas take turns, nothing is worked on while the turn
//! may be another's.

use crate::message::Message;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// While it lives, the message counts as being worked on.
pub(crate) type Working = Option<Arc<OwnedSemaphorePermit>>;

pub(crate) struct Slot<'a> {
    limit: &'a Arc<Semaphore>,
    message: &'a Message,
    held: Mutex<Weak<OwnedSemaphorePermit>>,
}

impl<'a> Slot<'a> {
    /// The claim of `message` on `limit`, not held yet.
    pub(crate) fn new(limit: &'a Arc<Semaphore>, message: &'a Message) -> Self {
        Self { limit, message, held: Mutex::default() }
    }

    /// The message whose claim it is.
    pub(crate) fn message(&self) -> &Message {
        self.message
    }

    /// Waits for the claim, unless another part of the same message holds it already. It is
    /// held until all that was returned is dropped.
    pub(crate) async fn enter(&self) -> Working {
        if let Some(permit) = self.held().upgrade() {
            return Some(permit);
        }
        let permit = loop {
            // Fails only when the semaphore is closed, which never happens.
            let permit = self.limit.clone().acquire_owned().await.ok()?;
            if self.message.origin.is_our_turn() {
                break Arc::new(permit);
            }
            drop(permit);
            self.message.origin.our_turn().await;
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

    #[tokio::test]
    async fn a_slot_is_shared_within_a_message_and_given_back_while_all_of_it_waits() {
        let limit = Arc::new(Semaphore::new(1));
        let message = || Message::new("a", Default::default(), "".into(), Id::unique());
        let (first, second) = (message(), message());
        let (a, b) = (Slot::new(&limit, &first), Slot::new(&limit, &second));
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
