//! The console: what is logged, in three shapes.
//!
//! `pretty` is for a person who watches messages pass: one line each for the message, the
//! answer and the republished message, in the manner of webhook command lines. `compact` and
//! `json` show the same events with all fields.

pub(crate) use crate::observe::lines::{dropped, end, tell_dropped};

use crate::observe::lines;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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
    match format {
        Format::Pretty => builder.event_format(Pretty).finish().with(without_logins()).init(),
        Format::Compact => builder
            .compact()
            .with_target(false)
            .fmt_fields(escaped())
            .finish()
            .with(without_logins())
            .init(),
        Format::Json => {
            let json = builder
                .json()
                .flatten_event(true)
                .with_target(false)
                .with_current_span(false)
                .with_span_list(false);
            json.finish().with(without_logins()).init();
        }
    }
}

/// Writes a line of a command's result to standard output. Its reader may have seen enough, as
/// `head` has.
///
/// # Errors
/// When it cannot be written for another reason.
pub(crate) fn say(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
        }),
    }
}

/// Says on standard error why a command has failed. Where that cannot be said, the exit code tells.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The NATS client tells at `trace` how it logs in, with the user.
fn without_logins() -> FilterFn {
    FilterFn::new(|event| event.fields().field("connect_info").is_none())
}

/// A panic as a line like any other, with its place but without its text, which may quote a value.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        error!(place, "a part of the program has failed (panic)");
    }));
}

/// `RUST_LOG`, with the NATS client silent unless it is named: what it has to say is said once
/// and in better words by `nats`.
fn filter(text: &str) -> EnvFilter {
    let text = if text.contains("async_nats") {
        text.to_owned()
    } else {
        format!("{text},async_nats=off")
    };
    EnvFilter::new(text)
}

/// Fields as `name=value`, control characters escaped: subjects and server texts hold any.
fn escaped() -> impl for<'writer> FormatFields<'writer> {
    let field = format::debug_fn(|out, field, value| {
        let text = printable(&format!("{value:?}"));
        match field.name() {
            "message" => out.write_str(&text),
            name => write!(out, "{name}={text}"),
        }
    });
    field.delimited(" ")
}

/// `text` with its control characters escaped.
fn printable(text: &str) -> String {
    escape(text, char::is_control)
}

/// What plugins, servers or messages have a part in, for a person: lines are kept, and nothing in it steers the terminal.
#[must_use]
pub(crate) fn shown(text: &str) -> String {
    escape(text, |character| character.is_control() && !['\n', '\t'].contains(&character))
}

fn escape(text: &str, which: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match which(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped
}

/// One line an event, made to be read.
struct Pretty;

impl<S, N> FormatEvent<S, N> for Pretty
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let time = now.get(11..24).unwrap_or_default();
        let color = out.has_ansi_escapes();
        let paint = |code: &str, text: &str| {
            if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
        };
        write!(out, "{} ", paint("2", time))?;
        match fields.message.as_str() {
            "received" => {
                let (subject, id, bytes) =
                    (fields.take("subject"), fields.take("id"), fields.take("bytes"));
                write!(
                    out,
                    "{} {subject} {}",
                    paint("36", "  -->"),
                    paint("2", &format!("{bytes} bytes, {id}"))
                )?;
            }
            "answered" => {
                let (status, destination, elapsed) =
                    (fields.take("status"), fields.take("destination"), fields.take("elapsed_ms"));
                let attempt = match fields.take("attempt").as_str() {
                    "1" => String::new(),
                    attempt => format!(", attempt {attempt}"),
                };
                let aside = format!("{elapsed} ms, {}{attempt}", fields.take("id"));
                write!(
                    out,
                    "{} {} POST {destination} {}",
                    paint("32", " <-- "),
                    paint("32", &format!("[{status}]")),
                    paint("2", &aside)
                )?;
                fields.take("subject");
            }
            "relayed" => {
                let (relayed, id) = (fields.take("relayed"), fields.take("id"));
                write!(out, "{} {relayed} {}", paint("36", "  ==>"), paint("2", &id))?;
                fields.take("subject");
            }
            "rejected" => {
                let (plugin, reason, id) =
                    (fields.take("plugin"), fields.take("reason"), fields.take("id"));
                write!(
                    out,
                    "{} {} by {plugin}: {reason} {}",
                    paint("36", "  --|"),
                    paint("33", "rejected"),
                    paint("2", &id)
                )?;
                fields.take("hook");
            }
            "plugin says" => {
                let (plugin, line) = (fields.take("plugin"), fields.take("line"));
                let level = if *event.metadata().level() == Level::WARN {
                    paint("33", "WARN  ")
                } else {
                    "      ".to_owned()
                };
                write!(out, "{level}{} {line}", paint("35", &format!("{plugin}:")))?;
            }
            message => {
                let (code, level) = match *event.metadata().level() {
                    Level::ERROR => ("1;31", "ERROR "),
                    Level::WARN => ("33", "WARN  "),
                    Level::INFO => ("32", "      "),
                    _ => ("2", "DEBUG "),
                };
                write!(out, "{}{message}", paint(code, level))?;
            }
        }
        for (name, value) in &fields.rest {
            write!(out, "  {} {value}", paint("2", name))?;
        }
        writeln!(out)
    }
}

/// An event's fields as text, control characters escaped.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Fields {
    fn take(&mut self, name: &str) -> String {
        let index = self.rest.iter().position(|(field, _)| *field == name);
        index.map(|index| self.rest.remove(index).1).unwrap_or_default()
    }

    fn push(&mut self, field: &Field, value: &str) {
        let text = printable(value);
        match field.name() {
            "message" => self.message = text,
            name => self.rest.push((name, text)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"));
    }
}
