//! What is counted, logged and shown: the one place that every [`Event`] goes to.
//!
//! An event is counted by [`Metrics`], logged by `entries`, and handed to listeners, so that the
//! three cannot drift apart.

mod console;
mod entries;
pub(crate) mod event;
mod lines;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod monitor;
pub(crate) mod process;
pub(crate) mod supervisor;

use crate::message::Message;
use crate::observe::event::Event;
use crate::observe::metrics::Metrics;
use crate::pending::Pending;
use std::sync::Arc;
use tracing::{Span, info_span};

/// What is called for each event, after it was counted and logged.
pub(crate) type Listener = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Takes note of events. Clones share everything.
#[derive(Clone, Default)]
pub struct Observer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    metrics: Metrics,
    listeners: Vec<Listener>,
}

impl Observer {
    /// An observer that counts, logs and calls `listeners`; the metrics mirror `pending`.
    pub(crate) fn new(pending: &Pending, listeners: Vec<Listener>) -> Self {
        Self(Arc::new(Shared { metrics: Metrics::new(pending), listeners }))
    }

    pub(crate) fn note(&self, event: &Event<'_>) {
        self.0.metrics.count(event);
        entries::write(event);
        self.0.listeners.iter().for_each(|listener| listener(event));
    }

    /// The span around the work on a message, by which lines of libraries and plugins belong to it.
    pub(crate) fn span(&self, message: &Message) -> Span {
        let Message { subject, id, .. } = message;
        info_span!(target: entries::name::MESSAGE, "message", %subject, %id)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::event::Gap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_event_is_counted_and_reaches_every_listener() {
        let heard = Arc::new(AtomicUsize::new(0));
        let listener = || {
            let heard = heard.clone();
            let listen = move |event: &Event<'_>| {
                heard.fetch_add(usize::from(matches!(event, Event::Gap(_))), Ordering::Relaxed);
            };
            Box::new(listen) as Listener
        };
        let observer = Observer::new(&Pending::default(), vec![listener(), listener()]);
        observer.note(&Event::Gap(Gap::SlowConsumer));
        observer.note(&Event::Dropped);
        assert_eq!(heard.load(Ordering::Relaxed), 2);
        let metrics = observer.metrics().encode();
        assert!(metrics.contains("_gaps_total 1\n") && metrics.contains("_lost_total 1\n"));
    }
}
