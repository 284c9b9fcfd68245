//! The way of log lines to standard error, on a thread of its own: a reader that stops reading, a
//! full disk or a closed descriptor holds up nothing else.
//!
//! Lines that find no room are dropped whole and counted. What waits is bounded.

use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tracing::warn;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// How many lines may wait for the reader: about 5 MB.
const MOST_WAITING: usize = 1 << 14;
/// How many bytes of lines are written at once.
const AT_ONCE: usize = 64 * 1024;
/// How often it is looked whether lines were dropped.
const LOOK: Duration = Duration::from_secs(1);

/// Ends the thread once what waits is written, or after a second.
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);
/// Lines for which there was no room.
static NO_ROOM: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines that could not be written.
static UNWRITTEN: AtomicUsize = AtomicUsize::new(0);

pub(super) fn start() -> NonBlocking {
    let builder =
        NonBlockingBuilder::default().buffered_lines_limit(MOST_WAITING).thread_name("log");
    let (lines, guard) = builder.finish(Lines { waiting: Vec::with_capacity(AT_ONCE), count: 0 });
    *GUARD.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    let _ = NO_ROOM.set(lines.error_counter());
    lines
}

/// Writes what waits, within a second or so. Nothing is logged after that.
pub(crate) fn end() {
    let guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner).take();
    // When it is too late to say something, the guard says so on standard output, which may be
    // closed.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(guard)));
}

/// How many lines were dropped.
pub(crate) fn dropped() -> usize {
    NO_ROOM.get().map_or(0, ErrorCounter::dropped_lines) + UNWRITTEN.load(Ordering::Relaxed)
}

/// Says how many lines were dropped, once there is room for it again. Does not return.
pub(crate) async fn tell_dropped() {
    let mut told = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let before = dropped();
        if before == told {
            continue;
        }
        warn!(lines = before - told, "log lines were dropped: standard error did not take them");
        tokio::time::sleep(LOOK).await;
        if dropped() == before {
            told = before;
        }
    }
}

/// Lines on their way out: those that come close together are written together.
struct Lines {
    waiting: Vec<u8>,
    count: usize,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.waiting.len() + line.len() > AT_ONCE {
            self.flush()?;
        }
        self.waiting.extend_from_slice(line);
        self.count += 1;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = io::stderr().write_all(&self.waiting);
        if written.is_err() {
            UNWRITTEN.fetch_add(self.count, Ordering::Relaxed);
        }
        self.waiting.clear();
        self.count = 0;
        Ok(())
    }
}
