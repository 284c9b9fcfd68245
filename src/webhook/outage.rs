//! What is said about a destination that does not accept: one line when it starts, one when
//! it is over, and at most one every [`REPEAT`] while it lasts or comes and goes.

use crate::observe::Observer;
use crate::observe::event::Event;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a destination's next line is held back.
const REPEAT: Duration = Duration::from_secs(30);

/// The state of one destination.
pub(super) struct Outage {
    destination: Arc<str>,
    state: Mutex<State>,
    observer: Observer,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    said: Option<Instant>,
    failures: u64,
}

/// What is said while this machine is out of something that calls need: a line every [`REPEAT`].
pub(super) struct Shortage {
    said: Mutex<Option<Instant>>,
    observer: Observer,
}

impl Shortage {
    pub(super) fn new(observer: &Observer) -> Self {
        Self { said: Mutex::default(), observer: observer.clone() }
    }

    /// A call could not be made, and will be tried again.
    pub(super) fn noticed(&self, what: &'static str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= REPEAT) {
            *said = Some(Instant::now());
            self.observer.note(&Event::OutOfResources { what });
        }
    }
}

impl Outage {
    pub(super) fn new(destination: &Arc<str>, observer: &Observer) -> Self {
        let (destination, observer) = (destination.clone(), observer.clone());
        Self { destination, state: Mutex::default(), observer }
    }

    /// A call was not accepted and will be tried again.
    pub(super) fn failed(&self, error: &str) {
        let mut state = self.lock();
        state.since.get_or_insert_with(Instant::now);
        state.failures += 1;
        if state.said.is_none_or(|said| said.elapsed() >= REPEAT) {
            state.said = Some(Instant::now());
            let failures = std::mem::take(&mut state.failures);
            let destination = &self.destination;
            self.observer.note(&Event::DestinationFailing { destination, error, failures });
        }
    }

    /// A call was accepted.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        let Some(since) = state.since.take() else { return };
        // An end is only worth a line when its start had one.
        if state.said.is_some_and(|said| said >= since) {
            let (destination, outage) = (&*self.destination, since.elapsed());
            self.observer.note(&Event::DestinationRecovered { destination, outage });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
