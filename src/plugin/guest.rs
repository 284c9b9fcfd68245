//! One plugin: a compiled component, its hooks, and the instances that wait to be called.

use crate::plugin::files::File;
use crate::plugin::hook::{Exports, Hook, HookError, Input, Output, PACKAGE, VERSION};
use crate::plugin::host::Host;
use crate::plugin::instance::Live;
use crate::plugin::output::{Channel, Hide, Lines, Sink, cut};
use crate::plugin::state::{State, prepare};
use crate::plugin::stopped::{Kind, Why};
use anyhow::{Context, anyhow, bail};
use bytesize::ByteSize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::{info, warn};
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;

/// The most instances of one plugin at work.
const MAX_INSTANCES: usize = 16;
/// The most instances that are kept for the next call.
const MAX_IDLE: usize = 4;
/// A compilation that takes longer is mentioned.
const LONG: Duration = Duration::from_millis(300);

/// A plugin that is ready to be called.
pub(crate) struct Guest {
    /// The file's name without `.wasm`.
    pub(crate) name: Arc<str>,
    pub(crate) hooks: Vec<Hook>,
    pre: InstancePre<State>,
    exports: Exports,
    host: Arc<Host>,
    setup: Setup,
    idle: Mutex<Vec<Live>>,
    permits: Semaphore,
}

/// What a plugin is set up with, beside its code.
pub(crate) struct Setup {
    pub(crate) config: Vec<(String, String)>,
    /// Values that are not to be shown.
    pub(crate) hide: Hide,
    pub(crate) sink: Sink,
}

impl Guest {
    /// Compiles, links and rehearses a plugin.
    ///
    /// # Errors
    /// What is wrong with the component, and what was expected.
    pub(crate) async fn load(
        file: &File,
        setup: Setup,
        host: &Arc<Host>,
    ) -> anyhow::Result<Arc<Self>> {
        let component = compile(file, host).await?;
        let pre = host.linker.instantiate_pre(&component).map_err(explain_import)?;
        let exports = Exports::find(&pre)?;
        let hooks = exports.hooks();
        if hooks.is_empty() {
            bail!("it exports no hook of {PACKAGE}@{VERSION}; {}", exported(&component));
        }
        let unknown = foreign_hooks(&component);
        if !unknown.is_empty() {
            warn!(
                plugin = file.name,
                exports = unknown.join(", "),
                "exports hooks that this version does not call"
            );
        }
        let guest = Arc::new(Self {
            name: file.name.as_str().into(),
            hooks,
            pre,
            exports,
            host: host.clone(),
            setup,
            idle: Mutex::default(),
            permits: Semaphore::new(MAX_INSTANCES),
        });
        let rehearsed = guest.clone();
        match host.run(async move { rehearsed.instantiate(0).await }).await {
            None => bail!(
                "it was not instantiated within {} (PLUGIN_TIMEOUT)",
                humantime::format_duration(host.timeout)
            ),
            // A wrong type comes with what was expected, which is worth more than the kind.
            Some(Err((error, exceeded))) => match broken(&error, exceeded, &guest) {
                (Kind::Trap, _) => bail!("{}", guest.printable(&format!("{error:#}"))),
                (_, text) => bail!("{text}"),
            },
            Some(Ok(live)) => guest.idle().push(live),
        }
        Ok(guest)
    }

    /// Calls a hook that this plugin has. It may return up to `limit` bytes.
    ///
    /// # Errors
    /// The plugin's own word, or what became of it.
    pub(crate) async fn call(
        self: &Arc<Self>,
        hook: Hook,
        input: Input,
        limit: usize,
    ) -> Result<Output, Why> {
        // Fails only when the semaphore is closed, which nobody does.
        let _permit = self.permits.acquire().await;
        let guest = self.clone();
        let work = async move {
            let idle = guest.idle().pop();
            let failed = |error: &wasmtime::Error, exceeded| {
                let (kind, text) = broken(error, exceeded, &guest);
                Why::Failed(kind, text)
            };
            let mut live = match idle {
                Some(live) => live,
                None => guest
                    .instantiate(limit)
                    .await
                    .map_err(|(error, exceeded)| failed(&error, exceeded))?,
            };
            match live.call(hook, &input, limit).await {
                Ok(result) => {
                    guest.keep(live);
                    result.map_err(|error| match error {
                        HookError::Reject(text) => Why::Rejected(guest.printable(&text)),
                        HookError::Failed(text) => {
                            Why::Failed(Kind::Failed, guest.printable(&text))
                        }
                    })
                }
                Err(error) => Err(match (failed(&error, live.is_exceeded()), live.last_words()) {
                    // The message of a panic, or an exception.
                    (Why::Failed(Kind::Trap, text), Some(last)) => {
                        Why::Failed(Kind::Trap, guest.printable(&format!("{text}: {last}")))
                    }
                    (failed, _) => failed,
                }),
            }
        };
        self.host.run(work).await.unwrap_or_else(|| {
            let limit = humantime::format_duration(self.host.timeout);
            Err(Why::Failed(
                Kind::Timeout,
                format!("did not return within {limit} (PLUGIN_TIMEOUT)"),
            ))
        })
    }

    /// Its hooks as a list.
    pub(crate) fn hook_names(&self) -> String {
        self.hooks.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn imports(&self) -> Vec<String> {
        let component = self.pre.component();
        component
            .component_type()
            .imports(component.engine())
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// The bytes that its waiting instances occupy.
    pub(crate) fn idle_memory(&self) -> u64 {
        self.idle().iter().map(|live| live.memory() as u64).sum()
    }

    /// A new instance. The error comes with whether it asked for too much memory.
    async fn instantiate(&self, limit: usize) -> Result<Live, (wasmtime::Error, bool)> {
        let lines = |stream| Lines::new(stream, self.setup.hide.clone(), self.setup.sink.clone());
        let output = [lines(Channel::Stdout), lines(Channel::Stderr)];
        let mut store =
            Store::new(&self.host.engine, State::new(&self.setup.config, self.host.memory, output));
        store.limiter(|state| &mut state.memory);
        store.epoch_deadline_async_yield_and_update(1);
        prepare(&mut store, limit);
        let functions = match self.pre.instantiate_async(&mut store).await {
            Ok(instance) => self.exports.load(&mut store, &instance),
            Err(error) => Err(error),
        };
        functions
            .map_err(|error| (error, store.data().memory.is_exceeded()))
            .map(|functions| Live::new(store, functions))
    }

    /// Keeps an instance for the next call, unless it is large or there are enough.
    fn keep(&self, live: Live) {
        let mut idle = self.idle();
        if !live.is_large() && idle.len() < MAX_IDLE {
            idle.push(live);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Live>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes from the plugin, fit to be shown.
    pub(crate) fn printable(&self, text: &str) -> String {
        cut(&self.setup.hide.apply(text))
    }
}

/// What became of a call that returned nothing.
fn broken(error: &wasmtime::Error, memory_exceeded: bool, guest: &Guest) -> (Kind, String) {
    let cause = guest.printable(&error.root_cause().to_string());
    if memory_exceeded {
        let limit = ByteSize::b(guest.host.memory as u64).display().iec();
        (Kind::Memory, format!("needed more than {limit} of memory (PLUGIN_MEMORY): {cause}"))
    } else if let Some(I32Exit(code)) = error.downcast_ref() {
        (Kind::Trap, format!("ended itself with exit code {code}"))
    } else if cause.contains("too much data is being copied") {
        (
            Kind::Output,
            "returned more than the server takes in one message (max_payload)".to_owned(),
        )
    } else if error.downcast_ref::<Trap>().is_some() {
        (Kind::Trap, cause)
    } else {
        (Kind::Trap, format!("broke off: {cause}"))
    }
}

/// Compiles in another thread; what was compiled before comes from the cache.
async fn compile(file: &File, host: &Host) -> anyhow::Result<Component> {
    let (path, engine) = (file.path.clone(), host.engine.clone());
    let mut compiling = tokio::task::spawn_blocking(move || {
        let binary = std::fs::read(path)?;
        check_layer(&binary)?;
        Component::from_binary(&engine, &binary).map_err(explain_compilation)
    });
    if let Ok(compiled) = tokio::time::timeout(LONG, &mut compiling).await {
        return compiled.context("the compiler has failed")?;
    }
    let size = ByteSize::b(file.bytes).display().iec();
    info!(plugin = file.name, %size, "compiling a plugin; its code is kept for the next start, \
     unless PLUGIN_CACHE is off");
    compiling.await.context("the compiler has failed")?
}

/// Tells components from what else people have at hand (the preamble of the binary format).
fn check_layer(binary: &[u8]) -> anyhow::Result<()> {
    const MAGIC: &[u8] = b"\0asm";
    match (binary.get(..4), binary.get(6)) {
        (Some(MAGIC), Some(1)) => Ok(()),
        (Some(MAGIC), Some(0)) => bail!(
            "it is a core module, not a component: build for the target wasm32-wasip2, or make a \
             component of it with `wasm-tools component new`"
        ),
        (_, _) if binary.is_empty() => bail!("the file is empty"),
        _ => bail!("it is not WebAssembly (expected a component in binary form)"),
    }
}

fn explain_compilation(error: wasmtime::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    match text.contains("memory executable") {
        true => {
            anyhow!(
                "this process may not make memory executable, as compiled code needs it (systemd: \
                 MemoryDenyWriteExecute=no): {text}"
            )
        }
        false => anyhow!("it is not a valid component: {text}"),
    }
}

fn explain_import(error: wasmtime::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let hint = match text.contains("`wasi:http") {
        true => "; in JavaScript, leave it out with `--disable http fetch-event`",
        false => "",
    };
    anyhow!("it needs something that plugins are not given: {text}{hint}")
}

/// What a component exports, for a person who expected something else.
fn exported(component: &Component) -> String {
    let names = exports(component);
    if names.is_empty() {
        "it exports nothing".to_owned()
    } else {
        format!("it exports {}", names.join(", "))
    }
}

fn exports(component: &Component) -> Vec<String> {
    component
        .component_type()
        .exports(component.engine())
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Interfaces of our package that this version does not call: new ones, and those of another major
/// version.
fn foreign_hooks(component: &Component) -> Vec<String> {
    let (major, _) = VERSION.split_once('.').unwrap_or((VERSION, ""));
    let known = |name: &String| {
        Hook::ALL.iter().any(|hook| name.starts_with(&format!("{PACKAGE}/{hook}@{major}.")))
    };
    exports(component)
        .into_iter()
        .filter(|name| name.starts_with(PACKAGE) && !known(name) && !name.contains("/types@"))
        .collect()
}
