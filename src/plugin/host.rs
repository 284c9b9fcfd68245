//! What all plugins share: the engine, what it links them with, the code cache, and the clock
//! that interrupts them.
//!
//! Nothing of this exists in a relay without plugins.

use crate::plugin::settings::{Cache, Settings};
use crate::plugin::state::State;
use anyhow::{Context, anyhow};
use std::future::Future;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wasmtime::component::Linker;
use wasmtime::{CacheConfig, Config, Engine, OptLevel};
use wasmtime_wasi_config::WasiConfig;

/// How often a call that runs is interrupted to look at the time.
const TICK: Duration = Duration::from_millis(1);

/// The turns of one to two ticks that a call has in the relay's own thread. More than one, since a
/// turn
/// of a short call can also end because the machine did something else in the meantime.
const TURNS: u32 = 4;

/// How long a call waits for a thread before it has another turn.
const PATIENCE: Duration = Duration::from_millis(100);

/// The engine and what belongs to it.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    /// Everything that a plugin may import.
    pub(crate) linker: Linker<State>,
    /// The longest that a call may take.
    pub(crate) timeout: Duration,
    /// The most memory that an instance may have.
    pub(crate) memory: usize,
    ticker: Ticker,
    threads: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Host {
    /// Sets up the engine; compiles nothing yet.
    ///
    /// # Errors
    /// When this machine cannot run compiled code.
    pub(crate) fn new(config: &Settings) -> anyhow::Result<Self> {
        let mut settings = Config::new();
        settings
            .epoch_interruption(true)
            .concurrency_support(false)
            .cranelift_opt_level(OptLevel::Speed);
        match cache(&config.cache) {
            Ok(cache) => drop(settings.cache(cache)),
            Err(error) => warn!(error = format!("{error:#}"), "compiled plugins are not cached"),
        }
        let engine = Engine::new(&settings)
            .map_err(|error| anyhow!("cannot set up WebAssembly on this machine: {error:#}"))?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| {
            WasiConfig::from(&state.config)
        })?;
        Ok(Self {
            ticker: Ticker::start(&engine).context("cannot start a thread")?,
            engine,
            linker,
            timeout: config.timeout,
            memory: config.memory,
            threads: Arc::new(Semaphore::new(threads() as usize)),
            closed: CancellationToken::new(),
        })
    }

    /// Runs `work`, which runs WebAssembly, within the time limit; `None` when that is over.
    ///
    /// A short call, as nearly all are, runs here and now. One that does not come to its end
    /// within a few turns goes on in a thread of its own, so that it delays nothing else. There are
    /// as many threads as processors; waiting for one does not count as the call's time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut work = Box::pin(work);
        let ticking = self.ticker.tick();
        for _ in 0..TURNS {
            if let Poll::Ready(result) = futures_util::poll!(Pin::as_mut(&mut work)) {
                return Some(result);
            }
            tokio::task::yield_now().await;
        }
        let mut thread = pin!(self.threads.clone().acquire_owned());
        let thread = loop {
            match tokio::time::timeout(PATIENCE, &mut thread).await {
                Ok(thread) => break thread.ok()?,
                // All threads are busy, perhaps for long: it may need no more than another turn.
                Err(_) => {
                    if let Poll::Ready(result) = futures_util::poll!(Pin::as_mut(&mut work)) {
                        return Some(result);
                    }
                }
            }
        };
        let (runtime, timeout, closed) = (Handle::current(), self.timeout, self.closed.clone());
        let span = tracing::Span::current();
        let slow = tokio::task::spawn_blocking(move || {
            let work = closed.run_until_cancelled(tokio::time::timeout(timeout, work));
            let result = span.in_scope(|| runtime.block_on(work));
            drop((thread, ticking));
            result?.ok()
        });
        match slow.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The program ends.
            Err(Err(_)) => None,
        }
    }

    /// Breaks off the calls that still run in threads, which need the runtime, and returns when
    /// they are gone.
    pub(crate) async fn close(&self) {
        self.closed.cancel();
        let gone = self.threads.acquire_many(threads());
        let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
    }
}

/// How many slow calls run at once.
fn threads() -> u32 {
    std::thread::available_parallelism().map_or(2, |n| (n.get() as u32).max(2))
}

/// A thread that advances the engine's epoch while a call runs, and sleeps otherwise.
struct Ticker {
    shared: Arc<Ticks>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Ticks {
    running: AtomicUsize,
    ended: AtomicBool,
}

/// While it lives, the epoch advances.
struct Ticking(Arc<Ticks>);

impl Ticker {
    fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Ticks::default());
        let (ticks, engine) = (shared.clone(), engine.clone());
        let thread =
            std::thread::Builder::new().name("plugin-ticker".to_owned()).spawn(move || {
                while !ticks.ended.load(Ordering::Acquire) {
                    match ticks.running.load(Ordering::Acquire) {
                        0 => std::thread::park(),
                        _ => {
                            std::thread::sleep(TICK);
                            engine.increment_epoch();
                        }
                    }
                }
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn tick(&self) -> Ticking {
        if self.shared.running.fetch_add(1, Ordering::AcqRel) == 0 {
            self.unpark();
        }
        Ticking(self.shared.clone())
    }

    fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.unpark();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The cache of compiled code. What lies in it is executed, so its folder must be ours alone.
fn cache(config: &Cache) -> anyhow::Result<Option<wasmtime::Cache>> {
    let folder = match config {
        Cache::Off => return Ok(None),
        Cache::At(folder) => folder.clone(),
        Cache::User => user_cache().context("the user has no cache folder: set PLUGIN_CACHE")?,
    };
    let context = || format!("PLUGIN_CACHE {}", folder.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(context)?;
    let folder = folder.canonicalize().with_context(context)?;
    check_owner(&folder).with_context(context)?;
    let mut cache = CacheConfig::new();
    // Never compressed again: that takes more memory than the relay does.
    cache.with_directory(folder).with_optimized_compression_usage_counter_threshold(u64::MAX);
    Ok(Some(wasmtime::Cache::new(cache)?))
}

/// `CACHE_DIRECTORY` is what systemd gives a service.
fn user_cache() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("CACHE_DIRECTORY").or_else(|| {
        Some(
            folder("XDG_CACHE_HOME")
                .or_else(|| Some(folder("HOME")?.join(".cache")))?
                .join("nats-webhook-relay"),
        )
    })
}

fn check_owner(folder: &Path) -> anyhow::Result<()> {
    let found = folder.metadata()?;
    anyhow::ensure!(
        found.uid() == rustix::process::geteuid().as_raw(),
        "it belongs to another user"
    );
    anyhow::ensure!(found.mode() & 0o022 == 0, "others may write into it: chmod go-w");
    Ok(())
}
