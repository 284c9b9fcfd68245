//! The span around the work on a message, and those inside it that are known only once they are
//! over.
//!
//! Names follow the semantic conventions of OpenTelemetry for messaging (version 1.38): a consumer
//! that processes a message. A span's name has no subject, of which there are any number.

use crate::message::Message;
use crate::observe::event::{Event, Steps};
use crate::trace::{Start, Tracer};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use std::time::SystemTime;

/// What became of a message.
const OUTCOME: &str = "nats_webhook_relay.outcome";

/// Begins or ends a span with an event, where there is one to begin or to end.
pub(super) fn note(tracer: &Tracer, event: &Event<'_>) {
    match event {
        Event::Received(message) => {
            let span = tracer.begin(process(message), &message.headers);
            let _ = message.span.set(span);
        }
        Event::HookCalled { message, plugin, hook, elapsed } => {
            let at = SystemTime::now().checked_sub(*elapsed);
            message.span(|| {
                let attributes = vec![
                    KeyValue::new("nats_webhook_relay.plugin", (*plugin).to_owned()),
                    KeyValue::new("nats_webhook_relay.hook", *hook),
                ];
                Start { name: (*hook).to_owned(), kind: SpanKind::Internal, at, attributes }
            });
        }
        Event::Relayed { message, relayed, steps } => {
            if let Some(span) = message.span.get() {
                let Steps { call, waited, .. } = steps;
                span.add("nats_webhook_relay.relayed_subject", (*relayed).to_owned());
                span.add("nats_webhook_relay.merged", call.merged as i64);
                span.add("nats_webhook_relay.waited_ms", waited.as_millis() as i64);
            }
            end(message, "relayed");
        }
        Event::Rejected { message, plugin, reason, .. } => {
            if let Some(span) = message.span.get() {
                span.add("nats_webhook_relay.plugin", (*plugin).to_owned());
                span.add("nats_webhook_relay.reason", (*reason).to_owned());
            }
            end(message, "rejected");
        }
        Event::GivenBack(message) => end(message, "given_back"),
        Event::Failed { message, reason, error } => {
            if let Some(span) = message.span.get() {
                span.fail(*reason, error);
            }
            end(message, "failed");
        }
        _ => {}
    }
}

fn process(message: &Message) -> Start {
    let attributes = vec![
        KeyValue::new("messaging.system", "nats"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.operation.name", "process"),
        KeyValue::new("messaging.destination.name", message.subject.to_string()),
        KeyValue::new("messaging.message.id", message.id.to_string()),
        KeyValue::new("messaging.message.body.size", message.payload.len() as i64),
    ];
    Start { name: "process".to_owned(), kind: SpanKind::Consumer, at: None, attributes }
}

fn end(message: &Message, outcome: &'static str) {
    if let Some(span) = message.span.get() {
        span.add(OUTCOME, outcome);
        span.end();
    }
}
