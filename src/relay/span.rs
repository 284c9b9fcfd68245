//! The span around a republishing, by the semantic conventions of OpenTelemetry for messaging
//! (version 1.38): a producer that sends a message.

use crate::message::{Message, Outbound};
use crate::nats::publisher::{Confirmed, PublishFailure};
use crate::trace::{HEADER_BYTES, Span, Start, messaging};
use opentelemetry::trace::SpanKind;

/// Begins the span of republishing `message` as `relayed`, which says so to those who receive it
/// where that leaves it within `limit` bytes, which is not asked for without a trace.
pub(super) fn begin(
    message: &Message,
    relayed: &mut Outbound,
    limit: impl FnOnce() -> usize,
) -> Span {
    let span = message.span(Start { name: "publish", kind: SpanKind::Producer, at: None });
    span.describe(|| {
        let Outbound { subject, payload, .. } = &*relayed;
        messaging(("send", "publish"), subject, message.id.as_str(), payload)
    });
    if span.is_some() && relayed.size() + HEADER_BYTES <= limit() {
        span.mark_message(&mut relayed.headers);
    }
    span
}

pub(super) fn end(span: &Span, published: &Result<Confirmed, PublishFailure>) {
    if let Err(failure) = published {
        span.fail("not_confirmed", failure);
    }
    span.end();
}
