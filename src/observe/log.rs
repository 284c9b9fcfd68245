//! Logging: what is logged and in which shape, and how commands write their results.

pub(crate) use crate::observe::console::shown;
pub(crate) use crate::observe::lines::{end, tell_dropped};

use crate::observe::console::{Object, Plain, Pretty, escaped};
use crate::observe::{entries, lines};
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged unless something else is said.
pub(crate) const FILTER: &str = "info";

/// What is logged and how.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The shape of a line; by default it depends on where the log goes.
    pub(crate) format: Option<Format>,
    /// `RUST_LOG`.
    pub(crate) filter: String,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For a person at a terminal.
    Pretty,
    /// One line of text with all fields.
    Compact,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error.
pub(crate) fn start(log: &Settings) {
    log_panics();
    let terminal = std::io::stderr().is_terminal();
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.filter))
        .with_ansi(color)
        .with_writer(lines::start())
        .log_internal_errors(false);
    let format = log.format.unwrap_or(if terminal { Format::Pretty } else { Format::Compact });
    // At 1,000 messages a second, three lines for each are too many for what collects them.
    if format != Format::Pretty && !terminal {
        entries::be_brief();
    }
    let builder = builder.fmt_fields(escaped());
    match format {
        Format::Pretty => builder.event_format(Pretty).finish().with(without_logins()).init(),
        Format::Compact => builder.event_format(Plain).finish().with(without_logins()).init(),
        Format::Json => {
            let json = builder.fmt_fields(JsonFields::new()).event_format(Object::new());
            json.finish().with(without_logins()).init();
        }
    }
}

/// Writes a line of a command's result to standard output. A reader that has seen enough, as
/// `head` has, is no error.
pub(crate) fn say(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
        }),
    }
}

/// Says on standard error why a command failed. Where that is not possible, the exit code tells.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The NATS client logs at `trace` how it logs in, with the user.
fn without_logins() -> FilterFn {
    FilterFn::new(|event| event.fields().field("connect_info").is_none())
}

/// A panic as a line like any other, with its place but without its text, which may quote a value.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        error!(place, "a part of the program failed (panic)");
    }));
}

/// `RUST_LOG`, with the NATS client silent unless it is named: the relay says once, and in
/// better words, what the client has to say.
fn filter(text: &str) -> EnvFilter {
    let text = if text.contains("async_nats") {
        text.to_owned()
    } else {
        format!("{text},async_nats=off")
    };
    EnvFilter::new(text)
}
