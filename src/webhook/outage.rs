//! What is said about a destination that does not accept: one line when it starts, one when
//! it is over, and at most one every [`REPEAT`] while it lasts or comes and goes.

use crate::webhook::destination::Destination;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// How long a destination's next line is held back.
const REPEAT: Duration = Duration::from_secs(30);

/// The state of one destination.
pub(crate) struct Outage {
    destination: String,
    state: Mutex<State>,
}

/// What is said while this machine is short of something that calls need: a line every [`REPEAT`].
#[derive(Default)]
pub(crate) struct Shortage(Mutex<Option<Instant>>);

impl Shortage {
    /// A call could not be made, and will be tried again.
    pub(crate) fn noticed(&self, what: &'static str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= REPEAT) {
            *said = Some(Instant::now());
            warn!(
                what,
                "this machine is short of what calls need, trying again; that does not count as an attempt"
            );
        }
    }
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    said: Option<Instant>,
    failures: u64,
}

impl Outage {
    pub(crate) fn new(destination: &Destination) -> Self {
        Self { destination: destination.to_string(), state: Mutex::default() }
    }

    /// A call was not accepted and will be tried again.
    pub(crate) fn failed(&self, error: &str) {
        let mut state = self.lock();
        state.since.get_or_insert_with(Instant::now);
        state.failures += 1;
        if state.said.is_none_or(|said| said.elapsed() >= REPEAT) {
            state.said = Some(Instant::now());
            let failures = std::mem::take(&mut state.failures);
            warn!(destination = %self.destination, error, failures, "webhook does not accept, trying again");
        }
    }

    /// A call was accepted.
    pub(crate) fn ended(&self) {
        let mut state = self.lock();
        let Some(since) = state.since.take() else { return };
        // An end is only worth a line when its start had one.
        if state.said.is_some_and(|said| said >= since) {
            info!(destination = %self.destination, outage_ms = since.elapsed().as_millis() as u64, "webhook accepts again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
