//! What systemd is told about the process (sd_notify(3)): ready, loading plugins again, stopping.
//!
//! It listens where `NOTIFY_SOCKET` says, which it sets for a service of `Type=notify`. Without
//! that nobody is told anything.

use sd_notify::NotifyState;
use tracing::warn;

/// What the relay is doing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// It relays.
    Ready,
    /// It loads its plugins again; [`Phase::Ready`] ends that.
    Reloading,
    /// It finishes what has arrived.
    Stopping,
}

/// Tells the supervisor, if there is one.
pub(crate) fn tell(phase: Phase) {
    let told = match phase {
        Phase::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Phase::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Phase::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        warn!(%error, ?phase, "could not notify systemd");
    }
}
