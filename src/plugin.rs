//! Plugins: WebAssembly components that shape what is sent and republished (`wit/plugin.wit`).
//!
//! Owns the chain of hooks that every message passes before its webhook is called, and checks
//! all that comes out of it. A message whose hooks did not all succeed has no effect. Which
//! components make up the chain can change while the relay runs; a message keeps the chain it began
//! with.

mod bindings;
pub(crate) mod chain;
pub(crate) mod files;
pub(crate) mod guest;
pub mod hook;
pub(crate) mod host;
mod instance;
pub(crate) mod output;
mod reload;
pub mod settings;
mod state;
pub(crate) mod stopped;

pub use chain::{Limits, Shaped};
pub use hook::Hook;
pub use stopped::{Kind, Stopped, Why};

use crate::message::Message;
use crate::observe::Observer;
use crate::observe::event::Event;
use crate::plugin::chain::{Chain, HookCall};
use crate::plugin::host::Host;
use crate::plugin::settings::Settings;
use std::sync::{Arc, Mutex, PoisonError};

/// The plugins of a relay.
pub struct Plugins {
    host: Arc<Host>,
    config: Settings,
    chain: Mutex<Arc<Chain>>,
    /// The files as they were when they were last loaded, or refused.
    seen: Mutex<Vec<files::File>>,
    observer: Observer,
}

impl Plugins {
    /// Loads all plugins of `config`; `None` when there are none.
    ///
    /// # Errors
    /// What is wrong with each of those that cannot be used.
    pub async fn load(config: &Settings, observer: &Observer) -> anyhow::Result<Option<Self>> {
        if config.paths.is_empty() {
            return Ok(None);
        }
        let host = Arc::new(Host::new(config)?);
        let files = files::found(&config.paths)?;
        let chain = Chain::load(&files, &config.settings, &host, output::log(observer)).await?;
        chain.expect(observer);
        Ok(Some(Self {
            host,
            config: config.clone(),
            chain: Mutex::new(Arc::new(chain)),
            seen: Mutex::new(files),
            observer: observer.clone(),
        }))
    }

    /// Leads a message through all hooks.
    ///
    /// # Errors
    /// The first hook that does not let it pass.
    pub async fn shape(
        &self,
        message: &Arc<Message>,
        tail: &str,
        limits: Limits,
    ) -> Result<Shaped, Stopped> {
        let called = |call: &HookCall<'_>| {
            let HookCall { guest, hook, elapsed } = *call;
            let (plugin, hook) = (&*guest.name, hook.name());
            self.observer.note(&Event::HookCalled { plugin, hook, elapsed });
        };
        let result = self.chain().shape(message, tail, limits, called).await;
        if let Err(Stopped { plugin, hook, why: Why::Failed(kind, _) }) = &result {
            let (hook, kind) = (hook.name(), kind.name());
            self.observer.note(&Event::HookFailed { plugin, hook, kind });
        }
        result
    }

    /// Ends what plugins still do, before the runtime ends.
    pub async fn close(&self) {
        self.host.close().await;
    }

    /// Each plugin's name and hooks, for a person.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.chain()
            .0
            .iter()
            .map(|guest| format!("{} ({})", guest.name, guest.hook_names()))
            .collect()
    }

    /// Whether one of them has this hook.
    pub(crate) fn have(&self, hook: Hook) -> bool {
        self.chain().0.iter().any(|guest| guest.hooks.contains(&hook))
    }

    fn chain(&self) -> Arc<Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
