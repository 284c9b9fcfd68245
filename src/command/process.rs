//! What every long-running command does as a process: signals, and the limit on open files.

use crate::observe::log;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

/// What `work` returns, unless `stop` resolves before.
pub(super) async fn unless<T>(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = stop => None,
    }
}

/// Each call takes a file descriptor, and the usual soft limit is meant for programs that use
/// select(2).
pub(super) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where that is not possible, calls wait for one another.
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_err() {
        // macOS takes no more than this (OPEN_MAX), whatever the hard limit says.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(10_240), ..limit });
    }
}

/// Resolves at the first SIGTERM or SIGINT. The second one ends the process at once.
pub(super) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match first.take() {
                Some(first) => drop(first.send(())),
                None => {
                    error!(
                        "stopped immediately by a second signal; messages being worked on are not \
                         relayed"
                    );
                    log::end();
                    std::process::exit(1);
                }
            }
        }
    });
    Ok(async move { drop(stop.await) })
}
