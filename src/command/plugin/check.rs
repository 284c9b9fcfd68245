//! `plugin check`: what a component is, and whether the relay would take it.

use crate::observe::log::{complain, say, shown};
use crate::plugin::guest::{Guest, Setup};
use crate::plugin::output::Hide;
use crate::plugin::settings::{Cache, Settings};
use crate::plugin::{files, host::Host};
use bytesize::ByteSize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Prints what each plugin is; fails when one cannot be used.
pub(crate) async fn check(config: Settings) -> anyhow::Result<ExitCode> {
    // The time is that of a compilation.
    let config = Settings { cache: Cache::Off, ..config };
    let host = Arc::new(Host::new(&config)?);
    let mut code = ExitCode::SUCCESS;
    for file in files::found(&config.paths)? {
        let began = Instant::now();
        let setup = Setup { config: Vec::new(), hide: Hide::default(), sink: Arc::new(|_, _| {}) };
        match Guest::load(&file, setup, &host).await {
            Ok(guest) => {
                let imports = guest.imports();
                say(format_args!("{}", file.path.display()))?;
                say(format_args!(
                    "  name      {} (configured by PLUGIN_{}_<KEY>)",
                    guest.name,
                    files::folded(&guest.name)
                ))?;
                say(format_args!("  hooks     {}", guest.hook_names()))?;
                say(format_args!(
                    "  imports   {}",
                    if imports.is_empty() {
                        "nothing".to_owned()
                    } else {
                        shown(&imports.join("\n            "))
                    }
                ))?;
                say(format_args!("  size      {}", ByteSize::b(file.bytes).display().iec()))?;
                say(format_args!(
                    "  compiled  and instantiated in {} ms",
                    began.elapsed().as_millis()
                ))?;
                say(format_args!(
                    "  memory    {} when instantiated",
                    ByteSize::b(guest.idle_memory()).display().iec()
                ))?;
                let memory = ByteSize::b(config.memory as u64).display().iec();
                say(format_args!(
                    "  limits    {} a call (PLUGIN_TIMEOUT), {memory} of memory (PLUGIN_MEMORY)",
                    humantime::format_duration(config.timeout)
                ))?;
            }
            Err(error) => {
                complain(format_args!(
                    "{}: cannot be used: {}",
                    file.path.display(),
                    shown(&format!("{error:#}"))
                ));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
