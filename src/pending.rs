//! What waits in the process, and how much may: the ledger that limits are decided by.
//!
//! Messages are entered when they are received and struck off when they are settled; bytes that
//! a plugin made beside a message are entered too. The gauges of the metrics mirror it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most messages that anybody can allow to wait.
pub(crate) const MOST_MESSAGES: usize = 10_000_000;

/// The most that may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    /// Of subject, headers and payload.
    pub(crate) bytes: usize,
}

/// The ledger. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

/// Bytes on the ledger for as long as this lives.
pub(crate) struct Extra {
    bytes: usize,
    pending: Pending,
}

impl Pending {
    /// Enters a message of `bytes`.
    pub(crate) fn enter(&self, bytes: usize) {
        self.0.messages.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Strikes off a message of `bytes` that was entered.
    pub(crate) fn strike(&self, bytes: usize) {
        self.0.messages.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Enters `bytes` that wait beside a message.
    pub(crate) fn extra(&self, bytes: usize) -> Extra {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Extra { bytes, pending: self.clone() }
    }

    pub(crate) fn messages(&self) -> usize {
        self.0.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether another message of `bytes` would exceed `limits`. One that is larger than the
    /// limit by itself may still be the only one that waits.
    pub(crate) fn is_full(&self, limits: Limits, bytes: usize) -> bool {
        let messages = self.messages();
        messages > 0 && (messages >= limits.messages || self.bytes() + bytes > limits.bytes)
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.pending.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_entered_counts_until_it_is_struck_off() {
        let (pending, limits) = (Pending::default(), Limits { messages: 2, bytes: 10 });
        assert!(!pending.is_full(limits, 100), "the only one may be larger than the limit");
        pending.enter(4);
        let extra = pending.extra(3);
        assert_eq!((pending.messages(), pending.bytes()), (1, 7));
        assert!(pending.is_full(limits, 4) && !pending.is_full(limits, 3));
        drop(extra);
        pending.enter(1);
        assert!(pending.is_full(limits, 0), "two messages are the most");
        pending.strike(4);
        pending.strike(1);
        assert_eq!((pending.messages(), pending.bytes()), (0, 0));
    }
}
