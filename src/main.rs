//! The program: see the library's documentation, or run it with `--help`.

use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

/// The system's allocator keeps several times what large messages take, and musl's is slow.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    nats_webhook_relay::command::main(std::env::args_os())
}
