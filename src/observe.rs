//! What is counted, logged and shown.

pub(crate) mod lines;
pub(crate) mod log;
pub mod metrics;
pub(crate) mod monitor;
pub(crate) mod supervisor;
