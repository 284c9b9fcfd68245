//! The span around the work on a message, and those inside it that are known only once they are
//! over.
//!
//! Names follow the semantic conventions of OpenTelemetry for messaging (version 1.38): a consumer
//! that processes a message. A span's name has no subject, of which there are any number.

use crate::message::Message;
use crate::observe::event::{Event, Steps};
use crate::trace::{Start, Tracer, messaging};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use std::time::SystemTime;

const PLUGIN: &str = "nats_webhook_relay.plugin";

/// Begins or ends a span with an event, where there is one to begin or to end.
pub(super) fn note(tracer: &Tracer, event: &Event<'_>) {
    match event {
        Event::Received(message) => {
            let start = Start { name: "process", kind: SpanKind::Consumer, at: None };
            let span = tracer.begin(start, &message.headers);
            let Message { subject, id, payload, .. } = message;
            span.describe(|| messaging(("process", "process"), subject, id.as_str(), payload));
            let _ = message.span.set(span);
        }
        Event::HookCalled { message, plugin, hook, elapsed } => {
            let at = SystemTime::now().checked_sub(*elapsed);
            let span = message.span(Start { name: hook, kind: SpanKind::Internal, at });
            span.describe(|| {
                let plugin = KeyValue::new(PLUGIN, (*plugin).to_owned());
                vec![plugin, KeyValue::new("nats_webhook_relay.hook", *hook)]
            });
        }
        Event::Relayed { message, relayed, steps } => end(message, "relayed", || {
            let Steps { call, waited, .. } = steps;
            let relayed = (*relayed).to_owned();
            vec![
                KeyValue::new("nats_webhook_relay.relayed_subject", relayed),
                KeyValue::new("nats_webhook_relay.merged", call.merged as i64),
                KeyValue::new("nats_webhook_relay.waited_ms", waited.as_millis() as i64),
            ]
        }),
        Event::Rejected { message, plugin, reason, .. } => end(message, "rejected", || {
            let reason = KeyValue::new("nats_webhook_relay.reason", (*reason).to_owned());
            vec![KeyValue::new(PLUGIN, (*plugin).to_owned()), reason]
        }),
        Event::GivenBack(message) => end(message, "given_back", Vec::new),
        Event::Failed { message, reason, error } => {
            if let Some(span) = message.span.get() {
                span.fail(*reason, error);
            }
            end(message, "failed", Vec::new);
        }
        _ => {}
    }
}

fn end(message: &Message, outcome: &'static str, more: impl FnOnce() -> Vec<KeyValue>) {
    if let Some(span) = message.span.get() {
        span.describe(|| {
            let mut attributes = more();
            attributes.push(KeyValue::new("nats_webhook_relay.outcome", outcome));
            attributes
        });
        span.end();
    }
}
