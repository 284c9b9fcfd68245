//! Unreadable messages that may be settled already, by an earlier process or another replica.
//!
//! Each is provoked to be delivered once more: where the connection breaks over it, it is not
//! settled and fails here; where nothing happens, it is.

use crate::source::stream::unreadable::Unreadable;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

pub(super) struct Suspects {
    /// Up to this sequence, all that was delivered has been searched.
    searched: u64,
    found: VecDeque<Unreadable>,
    found_at: Instant,
    /// In which session, and when, the first of them was provoked.
    provoked: Option<(u64, Instant)>,
}

impl Suspects {
    pub(super) fn new() -> Self {
        Self { searched: 0, found: VecDeque::new(), found_at: Instant::now(), provoked: None }
    }

    pub(super) fn searched(&self) -> u64 {
        self.searched
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn sequences(&self) -> Vec<u64> {
        self.found.iter().map(|found| found.sequence).collect()
    }

    /// All is searched again.
    pub(super) fn search_again(&mut self) {
        self.searched = 0;
    }

    /// None is under suspicion.
    pub(super) fn clear(&mut self) {
        (self.provoked, self.found) = (None, VecDeque::new());
    }

    /// Takes note of a search up to `searched`. Returns what cannot have been settled by others:
    /// what was delivered here first, after `began_at`.
    pub(super) fn found(
        &mut self,
        found: Vec<Unreadable>,
        searched: u64,
        began_at: u64,
    ) -> Vec<Unreadable> {
        self.searched = self.searched.max(searched);
        self.found_at = Instant::now();
        let (ours, suspects): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| found.sequence > began_at);
        self.found.extend(suspects);
        ours
    }

    /// Decides about the one that was provoked. Returns it where the connection broke since, in
    /// an earlier session than `session`. After `patience` without that, it is settled.
    pub(super) fn decided(&mut self, session: u64, patience: Duration) -> Option<Unreadable> {
        let (provoked_in, since) = self.provoked?;
        if provoked_in != session {
            self.provoked = None;
            return self.found.pop_front();
        }
        if since.elapsed() > patience {
            self.provoked = None;
            // It is searched for again after the next lost connection, should it be unsettled
            // after all.
            let settled = self.found.pop_front();
            self.searched = self.searched.min(settled.map_or(u64::MAX, |found| found.sequence - 1));
        }
        None
    }

    /// The next one to provoke in `session`, once whatever else was lost on its way has been
    /// delivered again, which takes `patience`.
    pub(super) fn provoke(&mut self, session: u64, patience: Duration) -> Option<u64> {
        let sequence = self.found.front()?.sequence;
        if self.provoked.is_some() || self.found_at.elapsed() <= patience {
            return None;
        }
        self.provoked = Some((session, Instant::now()));
        Some(sequence)
    }
}
