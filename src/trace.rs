//! Spans of OpenTelemetry, and the W3C Trace Context by which they hang together.
//!
//! Without a [`Tracer`] there are no spans: every [`Span`] is empty and does nothing, and what a
//! message says of its trace passes on as it came.

use async_nats::{HeaderMap, HeaderName};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue, StringValue};
use opentelemetry_http::HeaderInjector;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use std::fmt;
use std::time::SystemTime;

/// What the headers of a trace take at most: `traceparent`, and an empty `tracestate`.
pub(crate) const HEADER_BYTES: usize = "traceparent: 00--00".len() + 16 + 32 + 16;

/// Begins the spans of messages.
pub(crate) struct Tracer(pub(crate) SdkTracer);

impl Tracer {
    /// A span in the trace that `headers` name, or in one of its own.
    pub(crate) fn begin(&self, start: Start, headers: &HeaderMap) -> Span {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        Span::begin(&self.0, start, &parent)
    }
}

/// How a span begins.
pub(crate) struct Start {
    pub(crate) name: &'static str,
    pub(crate) kind: SpanKind,
    /// Now, unless something else is said.
    pub(crate) at: Option<SystemTime>,
}

/// What an operation on a message is, by the semantic conventions for messaging (version 1.38).
pub(crate) fn messaging(
    (kind, name): (&'static str, &'static str),
    subject: &str,
    id: &str,
    payload: &[u8],
) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "nats"),
        KeyValue::new("messaging.operation.type", kind),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new("messaging.destination.name", subject.to_owned()),
        KeyValue::new("messaging.message.id", id.to_owned()),
        KeyValue::new("messaging.message.body.size", payload.len() as i64),
    ]
}

/// A piece of work, from its beginning to its end.
#[derive(Default)]
pub(crate) struct Span(Option<Box<Open>>);

struct Open {
    tracer: SdkTracer,
    context: Context,
    /// Whether anything is recorded, so that there is something to say.
    is_recorded: bool,
}

impl Span {
    fn begin(tracer: &SdkTracer, start: Start, parent: &Context) -> Self {
        let Start { name, kind, at } = start;
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        builder.start_time = at;
        let context = parent.with_span(tracer.build_with_context(builder, parent));
        let is_recorded = context.span().is_recording();
        Self(Some(Box::new(Open { tracer: tracer.clone(), context, is_recorded })))
    }

    /// A span inside this one. Where nothing is recorded it stands for this one.
    pub(crate) fn child(&self, start: Start) -> Self {
        match &self.0 {
            None => Self::default(),
            Some(open) if open.is_recorded => Self::begin(&open.tracer, start, &open.context),
            Some(open) => {
                let (tracer, context) = (open.tracer.clone(), open.context.clone());
                Self(Some(Box::new(Open { tracer, context, is_recorded: false })))
            }
        }
    }

    /// Adds what is known of it, which is not made where nothing is recorded.
    pub(crate) fn describe(&self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(open) = self.recorded() {
            open.context.span().set_attributes(attributes());
        }
    }

    /// Whether there is a trace that others may belong to.
    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    fn recorded(&self) -> Option<&Open> {
        self.0.as_deref().filter(|open| open.is_recorded)
    }

    /// Says to the one who is called that the call belongs to this span.
    pub(crate) fn mark_call(&self, headers: &mut reqwest::header::HeaderMap) {
        self.inject(&mut Filled(HeaderInjector(headers)));
    }

    /// Says to those who receive a message that it belongs to this span.
    pub(crate) fn mark_message(&self, headers: &mut HeaderMap) {
        self.inject(&mut Filled(HeadersInjector(headers)));
    }

    fn inject(&self, headers: &mut dyn Injector) {
        if let Some(open) = &self.0 {
            TraceContextPropagator::new().inject_context(&open.context, headers);
        }
    }

    /// What went wrong: of which kind it is, and for a person.
    pub(crate) fn fail(&self, kind: impl Into<StringValue>, error: impl fmt::Display) {
        if let Some(open) = self.recorded() {
            let span = open.context.span();
            span.set_attribute(KeyValue::new("error.type", kind.into()));
            span.set_status(Status::error(error.to_string()));
        }
    }

    /// Ends it. One that is dropped ends as well.
    pub(crate) fn end(&self) {
        if let Some(open) = self.recorded() {
            open.context.span().end();
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_some() { "Span" } else { "no span" })
    }
}

/// Names are the same in any case: some clients write `Traceparent`.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut headers = self.0.iter();
        let values = headers.find(|(name, _)| is(name, key))?.1;
        values.first().map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

struct HeadersInjector<'a>(&'a mut HeaderMap);

impl Injector for HeadersInjector<'_> {
    /// The name keeps its spelling, of which there is one then.
    fn set(&mut self, key: &str, value: String) {
        let same = self.0.iter().map(|(name, _)| name).filter(|name| is(name, key));
        let mut same = same.cloned().collect::<Vec<_>>().into_iter();
        let name = same.next();
        if same.next().is_some() {
            let before = std::mem::take(self.0);
            for (name, values) in before.iter().filter(|(name, _)| !is(name, key)) {
                values.iter().for_each(|value| self.0.append(name.clone(), value.clone()));
            }
        }
        match name {
            Some(name) => self.0.insert(name, value),
            None => self.0.insert(key, value),
        }
    }
}

fn is(name: &HeaderName, key: &str) -> bool {
    let name: &str = name.as_ref();
    name.eq_ignore_ascii_case(key)
}

/// Leaves out what has no value: an empty `tracestate`.
struct Filled<T>(T);

impl<T: Injector> Injector for Filled<T> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.set(key, value);
        }
    }
}
