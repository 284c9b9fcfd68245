//! How long a client may take: for its first request, and for each answer.
//!
//! hyper waits for both without end. An answer counts as taken when its last byte is in the
//! socket; until then it has its request's place, so that there are no more of them in memory than
//! may be worked on.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::bytes::{Buf, Bytes};

/// The client at the other end of a connection.
#[derive(Default)]
pub(super) struct Client(Mutex<State>);

#[derive(Default)]
struct State {
    has_asked: bool,
    last: u64,
    /// Since when there are answers that it has not taken, by their numbers.
    untaken: BTreeMap<u64, Instant>,
}

impl Client {
    /// A request has arrived.
    pub(super) fn has_asked(&self) {
        self.state().has_asked = true;
    }

    /// The body of an answer, which gives `place` back when the client has taken it.
    pub(super) fn untaken(
        self: Arc<Self>,
        bytes: Bytes,
        place: Option<OwnedSemaphorePermit>,
    ) -> Untaken {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.untaken.insert(number, Instant::now());
        drop(state);
        Untaken { bytes, number, client: self, _place: place }
    }

    /// Returns when the client has not sent a request within `first`, or has not taken an answer
    /// within `answer`, and says which.
    pub(super) async fn is_too_slow(
        self: Arc<Self>,
        first: Duration,
        answer: Duration,
    ) -> &'static str {
        tokio::time::sleep(first).await;
        if !self.state().has_asked {
            return "its client sent no request in time";
        }
        loop {
            let now = Instant::now();
            let oldest = self.state().untaken.values().next().copied().unwrap_or(now);
            if oldest + answer < now {
                return "its client did not take an answer in time";
            }
            tokio::time::sleep_until(oldest + answer + Duration::from_millis(1)).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a body that is not in the socket yet.
pub(super) struct Untaken {
    bytes: Bytes,
    number: u64,
    client: Arc<Client>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Buf for Untaken {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.client.state().untaken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_client_has_time_for_its_first_request_and_for_each_answer() {
        let client = Arc::new(Client::default());
        let is_too_slow = || client.clone().is_too_slow(SHORT, SHORT);
        assert!(is_too_slow().await.contains("no request"));
        client.has_asked();
        assert!(tokio::time::timeout(SHORT * 20, is_too_slow()).await.is_err());
        drop(client.clone().untaken("taken".into(), None));
        assert!(tokio::time::timeout(SHORT * 20, is_too_slow()).await.is_err());
        let _untaken = client.clone().untaken("x".into(), None);
        assert!(is_too_slow().await.contains("an answer"));
    }
}
