//! Why a message did not pass a plugin.

use crate::plugin::hook::Hook;
use std::fmt;
use std::sync::Arc;

/// A hook that did not let its message pass.
#[derive(Debug)]
pub struct Stopped {
    pub plugin: Arc<str>,
    pub hook: Hook,
    pub why: Why,
}

/// Why a message did not pass.
#[derive(Debug)]
pub enum Why {
    /// The plugin decided that the message is not relayed.
    Rejected(String),
    /// The plugin could not do its work.
    Failed(Kind, String),
}

/// Kinds of failure of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It said so itself.
    Failed,
    /// It broke off.
    Trap,
    /// It took too long.
    Timeout,
    /// It needed too much memory.
    Memory,
    /// It returned what is not allowed.
    Output,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Failed, Self::Trap, Self::Timeout, Self::Memory, Self::Output];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Output => "output",
        }
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin {}, {}: ", self.plugin, self.hook)?;
        match &self.why {
            Why::Rejected(text) => write!(f, "rejected: {text}"),
            Why::Failed(Kind::Failed, text) => write!(f, "failed: {text}"),
            Why::Failed(_, text) => f.write_str(text),
        }
    }
}
