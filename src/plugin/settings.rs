//! What plugins are loaded from, and how much they may use.

use crate::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;

/// Time for one call unless something else is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes for one instance unless something else is said.
pub(crate) const MEMORY: usize = 128 << 20;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Files, and folders of files; none means no plugins.
    pub paths: Vec<PathBuf>,
    /// Time for one call.
    pub timeout: Duration,
    /// Bytes for one instance.
    pub memory: usize,
    /// Whether to load plugins again when their files change.
    pub watch: bool,
    /// Where compiled plugins are kept.
    pub cache: Cache,
    /// The settings that all plugins are given.
    pub settings: Vec<Setting>,
}

/// Where compiled plugins are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    Off,
    /// In the user's cache folder.
    User,
    At(PathBuf),
}

/// One `PLUGIN_<NAME>_<KEY>`.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The variable's name without `PLUGIN_`, and without `_FILE` where it was given as a file.
    pub name: String,
    pub value: Secret,
    /// Whether it was given as a file, as secrets are.
    pub from_file: bool,
}
