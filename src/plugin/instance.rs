//! One live instance of a plugin.

use crate::plugin::hook::{Functions, Hook, HookError, Input, Output};
use crate::plugin::output::Lines;
use crate::plugin::state::{Memory, State, prepare};
use wasmtime::Store;

/// A store with its one instance.
pub(crate) struct Live {
    store: Store<State>,
    functions: Functions,
    /// The memory that it began with.
    began: usize,
}

impl Live {
    pub(crate) fn new(store: Store<State>, functions: Functions) -> Self {
        let began = store.data().memory.used;
        Self { store, functions, began }
    }

    /// Calls a hook. After an error the instance is not to be used again.
    pub(crate) async fn call(
        &mut self,
        hook: Hook,
        input: &Input,
        limit: usize,
    ) -> wasmtime::Result<Result<Output, HookError>> {
        prepare(&mut self.store, limit);
        self.store.data().output.iter().for_each(Lines::begin);
        let result = self.functions.call(&mut self.store, hook, input).await;
        self.store.data().output.iter().for_each(Lines::end);
        result
    }

    /// What it said last on standard error in this call.
    pub(crate) fn last_words(&self) -> Option<String> {
        let [_, stderr] = &self.store.data().output;
        stderr.last()
    }

    /// Whether it has grown to more than half of the memory it may have: it may be leaking.
    pub(crate) fn is_large(&self) -> bool {
        let Memory { used, limit, .. } = self.store.data().memory;
        used > self.began && used > limit / 2
    }

    /// The bytes of its memories and tables.
    pub(crate) fn memory(&self) -> usize {
        self.store.data().memory.used
    }

    /// Whether it asked for more memory than it may have.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.store.data().memory.is_exceeded()
    }
}
