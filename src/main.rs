//! The program: see the library's documentation, or run it with `--help`.

use std::process::ExitCode;

/// That of musl is slow under load.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    nats_webhook_relay::command::main(std::env::args_os())
}
