//! The program: see the library's documentation, or run it with `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nats_webhook_relay::command::main(std::env::args_os())
}
