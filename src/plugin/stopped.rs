//! Why a message did not pass a plugin.

use crate::plugin::hook::Hook;
use prometheus_client::encoding::EncodeLabelValue;
use std::fmt;
use std::sync::Arc;

/// A hook that did not let its message pass.
#[derive(Debug)]
pub struct Stopped {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// Which of its hooks.
    pub hook: Hook,
    /// What happened.
    pub why: Why,
}

/// Why a message did not pass.
#[derive(Debug)]
pub enum Why {
    /// The plugin decided that it is not to be relayed.
    Rejected(String),
    /// The plugin could not do its work.
    Failed(Kind, String),
}

/// Kinds of failure of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are label values")]
pub enum Kind {
    /// It said so itself.
    failed,
    /// It broke off.
    trap,
    /// It took too long.
    timeout,
    /// It needed too much memory.
    memory,
    /// It returned what is not allowed.
    output,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 5] =
        [Self::failed, Self::trap, Self::timeout, Self::memory, Self::output];
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin {}, {}: ", self.plugin, self.hook)?;
        match &self.why {
            Why::Rejected(text) => write!(f, "rejected: {text}"),
            Why::Failed(Kind::failed, text) => write!(f, "failed: {text}"),
            Why::Failed(_, text) => f.write_str(text),
        }
    }
}
