//! What an instance of a plugin may reach, and how much memory it may have.
//!
//! It can reach nothing but its own configuration, clocks, random numbers, and two streams
//! whose lines go to the log: no files, no network, not the relay's environment.

use crate::plugin::output::Lines;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::WasiConfigVariables;

/// The most random bytes in one call: the call cannot be interrupted.
const MAX_RANDOM: u64 = 64 * 1024;
/// The most things such as streams and clocks' subscriptions that an instance may hold.
const MAX_HANDLES: usize = 1000;

/// What the host keeps for an instance.
pub(crate) struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    /// What `wasi:config/store` answers.
    pub(crate) config: WasiConfigVariables,
    pub(crate) memory: Memory,
    pub(super) output: [Lines; 2],
}

impl State {
    /// A state with this configuration, in which `output` takes the lines of stdout and stderr.
    pub(crate) fn new(config: &[(String, String)], memory: usize, output: [Lines; 2]) -> Self {
        let mut wasi = WasiCtx::builder();
        let [stdout, stderr] = &output;
        wasi.stdout(stdout.clone()).stderr(stderr.clone()).envs(config);
        wasi.allow_tcp(false).allow_udp(false).max_random_size(MAX_RANDOM);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        Self {
            wasi: wasi.build(),
            table,
            config: config.iter().cloned().collect(),
            memory: Memory { used: 0, limit: memory, growing: 0, exceeded: false },
            output,
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// The bytes of all memories and tables of an instance, which may be many.
pub(crate) struct Memory {
    pub(super) used: usize,
    pub(super) limit: usize,
    growing: usize,
    exceeded: bool,
}

impl Memory {
    /// Whether more was asked for than there is.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let fits = self.used.checked_add(bytes).is_some_and(|used| used <= self.limit);
        self.growing = if fits { bytes } else { 0 };
        self.used += self.growing;
        self.exceeded |= !fits;
        fits
    }

    /// What was allowed and then did not happen.
    fn give_back(&mut self) {
        self.used -= std::mem::take(&mut self.growing);
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(size_of::<usize>())))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back();
        Ok(())
    }
}

/// Readies a store for one call that may return up to `limit` bytes.
pub(crate) fn prepare(store: &mut Store<State>, limit: usize) {
    // The call yields when it has run for one to two ticks of the epoch, and at each tick after.
    store.set_epoch_deadline(2);
    store.data_mut().memory.exceeded = false;
    store.set_hostcall_fuel(limit.saturating_add(64 * 1024));
}
