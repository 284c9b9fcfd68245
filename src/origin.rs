//! Where a message came from, and what it takes to begin it, to give it back and to settle it.
//!
//! A message of core NATS is kept nowhere but here. What a stream (or anything else that keeps
//! messages) has to know about one is behind [`Kept`], which its source implements.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Notify;

/// A future that a keeper returns.
pub(crate) type Step<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a message came from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Core NATS: what is lost here is lost.
    Core,
    /// Something that keeps the message until it is settled.
    Kept(Box<dyn Kept>),
}

/// How a message is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It was relayed, or a plugin decided that it is not relayed.
    Done,
    /// It failed for good and must not be delivered again.
    Failed,
    /// It was not begun or not finished: it is delivered again, here or elsewhere.
    GivenBack,
}

/// Whether a kept message is still this process's to work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fate {
    Ours,
    /// Its keeper no longer has it.
    Gone,
    /// Another replica relays it.
    GivenUp,
}

/// What the keeper of a message does for it.
pub(crate) trait Kept: Debug + Send + Sync {
    fn hold(&self) -> &Hold;
    /// Why the message cannot be relayed: the client library could not read it.
    fn unreadable(&self) -> Option<&'static str>;
    /// Marks the message as begun, once it is certain whose turn it is; false where it was
    /// given back in the meantime.
    fn begin(&self) -> Step<'_, bool>;
    /// Whether it is certain that this process may work on its messages now.
    fn is_our_turn(&self) -> bool;
    /// Returns when [`Self::is_our_turn`] holds.
    fn our_turn(&self) -> Step<'_, ()>;
    /// Tells the keeper what became of the message.
    fn settle(&self, settled: Settled) -> Step<'_, ()>;
}

impl Origin {
    fn kept(&self) -> Option<&dyn Kept> {
        match self {
            Self::Core => None,
            Self::Kept(kept) => Some(&**kept),
        }
    }

    /// Whether the message is delivered again unless it is settled.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept().is_some()
    }

    pub(crate) fn fate(&self) -> Fate {
        self.kept().map_or(Fate::Ours, |kept| kept.hold().fate())
    }

    pub(crate) fn unreadable(&self) -> Option<&'static str> {
        self.kept()?.unreadable()
    }

    /// Whether the message may be worked on. Waits until it is certain whose turn it is.
    pub(crate) async fn begin(&self) -> bool {
        match self.kept() {
            None => true,
            Some(kept) => kept.begin().await,
        }
    }

    pub(crate) fn is_our_turn(&self) -> bool {
        self.kept().is_none_or(Kept::is_our_turn)
    }

    pub(crate) async fn our_turn(&self) {
        if let Some(kept) = self.kept() {
            kept.our_turn().await;
        }
    }

    /// Returns when the message is no longer this process's to work on.
    pub(crate) async fn not_ours(&self) {
        match self.kept() {
            None => std::future::pending().await,
            Some(kept) => kept.hold().not_ours().await,
        }
    }

    /// Returns when another replica is to relay the message.
    pub(crate) async fn given_up(&self) {
        self.not_ours().await;
        if self.fate() != Fate::GivenUp {
            // A message that its keeper no longer has still gets its outcome reported.
            std::future::pending().await
        }
    }

    pub(crate) async fn settle(&self, settled: Settled) {
        if let Some(kept) = self.kept() {
            kept.settle(settled).await;
        }
    }
}

/// A kept message's fate, and whoever waits for it to change.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    fate: AtomicU8,
    changed: Notify,
}

impl Hold {
    pub(crate) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            0 => Fate::Ours,
            1 => Fate::Gone,
            _ => Fate::GivenUp,
        }
    }

    pub(crate) fn end(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Release);
        self.changed.notify_waiters();
    }

    async fn not_ours(&self) {
        let changed = self.changed.notified();
        if self.fate() == Fate::Ours {
            changed.await;
        }
    }
}
