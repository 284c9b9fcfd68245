//! Coalescing: one call for messages that wait on the same subject.
//!
//! Only what waits when a call begins is merged into it: what arrives later may announce a change
//! that the webhook's answer did not see. Each message keeps its turn, its id and its own proof;
//! what the call of another one has accepted is kept here until then.

use crate::message::Message;
use crate::webhook::{Accepted, Delivery};
use std::sync::Arc;
use std::time::Duration;

/// The most messages that one call stands for.
pub(crate) const MOST: usize = 1024;

/// The longest that a message may wait for others to share its call.
pub(crate) const LONGEST_WINDOW: Duration = Duration::from_secs(10);

/// Which messages share a call, and how long to wait for more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) which: Which,
    pub(crate) window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those whose calls would be equal.
    Equal,
    /// All of a subject; the call is that of the newest.
    Subject,
}

impl Which {
    /// The one delivery whose call stands for all of these, of which there is one at least.
    pub(crate) fn call(self, first: Delivery, mut others: Vec<Delivery>) -> Delivery {
        let newest = match self {
            Self::Equal => None,
            Self::Subject => others.pop(),
        };
        match newest {
            None => first.standing_for(others),
            Some(newest) => {
                others.insert(0, first);
                newest.standing_for(others)
            }
        }
    }

    /// Whether it can be known at once that the call of `first` does not stand for `other`.
    pub(crate) fn excludes(self, first: &Delivery, other: &Message) -> bool {
        self == Self::Equal && first.message.payload != other.payload
    }

    /// Whether the call of `first` may stand for `other`.
    pub(crate) fn merges(self, first: &Delivery, other: &Delivery) -> bool {
        self == Self::Subject || first.is_same_call(other)
    }
}

/// What has been accepted ahead of the turns of its messages.
#[derive(Default)]
pub(crate) struct Ahead(Vec<Accepted>);

impl Ahead {
    /// What was accepted for `message`.
    pub(crate) fn take(&mut self, message: &Arc<Message>) -> Option<Accepted> {
        let is_its = |accepted: &Accepted| Arc::ptr_eq(accepted.message(), message);
        let index = self.0.iter().position(is_its)?;
        Some(self.0.remove(index))
    }

    /// Keeps what one call has accepted. What is left of another one had its turn and could not
    /// use it.
    pub(crate) fn keep(&mut self, accepted: Vec<Accepted>) {
        self.0 = accepted;
    }
}
