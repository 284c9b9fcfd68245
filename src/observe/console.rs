//! The shapes of a log line.
//!
//! [`Pretty`] is for a person who watches messages pass: one line each for the message, the
//! answer and the republished message, in the manner of webhook command lines. [`Plain`] shows
//! the same entries with all fields. A line that does not name its message itself (of a plugin,
//! of a library) says which one it belongs to.

use crate::observe::entries::name;
use std::fmt;
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{self, Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// One line an entry, made to be read.
pub(super) struct Pretty;
/// One line of text with all fields.
pub(super) struct Plain;
/// One JSON object a line.
pub(super) struct Object(Format<Json>);

/// `text` with its control characters escaped.
pub(super) fn printable(text: &str) -> String {
    escape(text, char::is_control)
}

/// Text that plugins, servers or messages have a part in, for a person: lines are kept, and
/// nothing in it steers the terminal.
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

/// Fields as `name=value`, control characters escaped: subjects and server texts hold any.
pub(super) fn escaped() -> impl for<'writer> FormatFields<'writer> {
    let field = format::debug_fn(|out, field, value| {
        let text = printable(&format!("{value:?}"));
        match field.name() {
            "message" => out.write_str(&text),
            name => write!(out, "{name}={text}"),
        }
    });
    field.delimited(" ")
}

/// Whether an entry says itself which message it is about, or is about none.
fn stands_alone(event: &Event<'_>) -> bool {
    event.is_root() || event.metadata().fields().field("subject").is_some()
}

/// The fields of the message that an entry belongs to and does not name.
fn message_fields<S, N>(context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Option<String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    // Libraries have spans of their own around and within it.
    let is_message = |span: &SpanRef<'_, S>| span.metadata().target() == name::MESSAGE;
    let span = context.event_scope().filter(|_| !stands_alone(event))?.find(is_message)?;
    let fields = span.extensions().get::<FormattedFields<N>>().map(ToString::to_string);
    fields.filter(|fields| !fields.is_empty())
}

impl Object {
    pub(super) fn new() -> Self {
        let json = format::format().json().flatten_event(true).with_target(false);
        Self(json.with_current_span(false).with_span_list(false))
    }
}

impl<S, N> FormatEvent<S, N> for Object
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(fields) = message_fields(context, event) else {
            return self.0.format_event(context, out, event);
        };
        // Both are objects: the fields of the message become the last ones of the entry.
        let mut entry = String::new();
        self.0.format_event(context, Writer::new(&mut entry), event)?;
        let (entry, fields) = (
            entry.trim_end().strip_suffix("}").unwrap_or_default(),
            fields.trim_start_matches('{'),
        );
        writeln!(out, "{entry},{fields}")
    }
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        write!(out, "{time} {:>5} ", event.metadata().level())?;
        context.format_fields(out.by_ref(), event)?;
        if let Some(fields) = message_fields(context, event) {
            write!(out, " {fields}")?;
        }
        writeln!(out)
    }
}

impl<S, N> FormatEvent<S, N> for Pretty
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let paint = Paint { color: out.has_ansi_escapes() };
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        write!(out, "{} ", paint.dim(now.get(11..24).unwrap_or_default()))?;
        let level = *event.metadata().level();
        match event.metadata().name() {
            name::RECEIVED => received(&mut out, &mut fields, &paint)?,
            name::ANSWERED => answered(&mut out, &mut fields, &paint)?,
            name::RELAYED => relayed(&mut out, &mut fields, &paint)?,
            name::REJECTED => rejected(&mut out, &mut fields, &paint)?,
            name::PLUGIN_SAYS => plugin_says(&mut out, &mut fields, &paint, level)?,
            _ => write!(out, "{}{}", paint.level(level), fields.message)?,
        }
        for (name, value) in &fields.rest {
            write!(out, "  {} {value}", paint.dim(name))?;
        }
        if let Some(fields) = message_fields(context, event) {
            write!(out, "  {}", paint.dim(&fields))?;
        }
        writeln!(out)
    }
}

fn received(out: &mut Writer<'_>, fields: &mut Fields, paint: &Paint) -> fmt::Result {
    let (subject, id, bytes) = (fields.take("subject"), fields.take("id"), fields.take("bytes"));
    let aside = paint.dim(&format!("{bytes} bytes, {id}"));
    write!(out, "{} {subject} {aside}", paint.cyan("  -->"))
}

fn answered(out: &mut Writer<'_>, fields: &mut Fields, paint: &Paint) -> fmt::Result {
    let (status, destination) = (fields.take("status"), fields.take("destination"));
    let (elapsed, id) = (fields.take("elapsed_ms"), fields.take("id"));
    let attempt = match fields.take("attempt").as_str() {
        "1" => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let merged = match fields.take("merged").as_str() {
        "" => String::new(),
        merged => format!(", for {merged} more"),
    };
    fields.take("subject");
    let (arrow, status) = (paint.green(" <-- "), paint.green(&format!("[{status}]")));
    let aside = paint.dim(&format!("{elapsed} ms, {id}{attempt}{merged}"));
    write!(out, "{arrow} {status} POST {destination} {aside}")
}

fn relayed(out: &mut Writer<'_>, fields: &mut Fields, paint: &Paint) -> fmt::Result {
    let (relayed, id) = (fields.take("relayed"), fields.take("id"));
    fields.take("subject");
    write!(out, "{} {relayed} {}", paint.cyan("  ==>"), paint.dim(&id))
}

fn rejected(out: &mut Writer<'_>, fields: &mut Fields, paint: &Paint) -> fmt::Result {
    let (plugin, reason, id) = (fields.take("plugin"), fields.take("reason"), fields.take("id"));
    fields.take("hook");
    let (arrow, rejected) = (paint.cyan("  --|"), paint.yellow("rejected"));
    write!(out, "{arrow} {rejected} by {plugin}: {reason} {}", paint.dim(&id))
}

fn plugin_says(
    out: &mut Writer<'_>,
    fields: &mut Fields,
    paint: &Paint,
    level: Level,
) -> fmt::Result {
    let (plugin, line) = (fields.take("plugin"), fields.take("line"));
    write!(out, "{}{} {line}", paint.level(level), paint.magenta(&format!("{plugin}:")))
}

/// Colours, where the terminal has them.
struct Paint {
    color: bool,
}

impl Paint {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn cyan(&self, text: &str) -> String {
        self.paint("36", text)
    }

    fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }

    fn magenta(&self, text: &str) -> String {
        self.paint("35", text)
    }

    /// A level before a text; `info`, the usual one, is only room.
    fn level(&self, level: Level) -> String {
        match level {
            Level::ERROR => self.paint("1;31", "ERROR "),
            Level::WARN => self.yellow("WARN  "),
            Level::INFO => "      ".to_owned(),
            _ => self.dim("DEBUG "),
        }
    }
}

/// An entry's fields as text, control characters escaped.
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
