//! What waits in the process, and how much may.

/// The most messages that anybody can allow to wait.
pub(crate) const MOST_MESSAGES: usize = 10_000_000;

/// The most that may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    /// Of subject, headers and payload.
    pub(crate) bytes: usize,
}
