//! New versions of plugins in a running relay.
//!
//! The new chain is complete before it takes the place of the old one, or does not. Messages
//! that have begun finish on the chain they began with, which is freed after the last of them.

use crate::observe::event::Event;
use crate::plugin::chain::Chain;
use crate::plugin::{Plugins, files, output};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the files are looked at with `PLUGIN_WATCH`.
const WATCH: Duration = Duration::from_millis(500);

impl Plugins {
    /// Loads all plugins again; where one is bad, all stay as they are.
    pub(crate) async fn reload(&self) {
        match self.load_again().await {
            Ok(chain) => {
                chain.expect(&self.observer);
                *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(chain);
                let plugins = self.describe().join(", ");
                self.observer.note(&Event::PluginsReloaded { plugins: &plugins });
            }
            Err(error) => {
                self.observer.note(&Event::PluginsKept { error: &format_args!("{error:#}") });
            }
        }
    }

    async fn load_again(&self) -> anyhow::Result<Chain> {
        let files = files::found(&self.config.paths)?;
        self.seen().clone_from(&files);
        Chain::load(&files, &self.config.settings, &self.host, output::log(&self.observer)).await
    }

    /// Returns when the plugins' files have changed and rest since. Never without `PLUGIN_WATCH`.
    ///
    /// The files are looked at from time to time: that works on every file system and in every
    /// container, and a file that is still being written is not read.
    pub(crate) async fn changed(&self) {
        if !self.config.watch {
            return std::future::pending().await;
        }
        let mut before = None;
        loop {
            tokio::time::sleep(WATCH).await;
            // Nothing while a file is missing, as between the two steps of some builds.
            let now = files::find(&self.config.paths).ok();
            if now.is_some() && now == before && now.as_ref() != Some(&*self.seen()) {
                return;
            }
            before = now;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Vec<files::File>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
