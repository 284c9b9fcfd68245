//! The span around one call, by the semantic conventions of OpenTelemetry for HTTP clients (version
//! 1.38).

use crate::message::Message;
use crate::trace::{Span, Start};
use crate::webhook::endpoint::{Answer, Unanswered};
use crate::webhook::target::Target;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

/// Begins the span of the `attempt`-th call of `target` for `message`.
pub(super) fn begin(message: &Message, target: &Target, attempt: u32) -> Span {
    let span = message.span(Start { name: "POST", kind: SpanKind::Client, at: None });
    span.describe(|| {
        let destination = &target.endpoint.destination;
        let mut attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("url.full", destination.to_string()),
            KeyValue::new("server.address", destination.host().to_owned()),
        ];
        if let Some(port) = destination.url().port_or_known_default() {
            attributes.push(KeyValue::new("server.port", i64::from(port)));
        }
        if let Some((_, address)) = target.instance() {
            attributes.push(KeyValue::new("network.peer.address", address.to_string()));
        }
        if attempt > 1 {
            let before = i64::from(attempt - 1);
            attributes.push(KeyValue::new("http.request.resend_count", before));
        }
        attributes
    });
    span
}

/// Ends it with what came back.
pub(super) fn end(span: &Span, answer: &Result<Answer, Unanswered>) {
    match answer {
        Ok(Answer { status, .. }) => {
            let code = i64::from(status.as_u16());
            span.describe(|| vec![KeyValue::new("http.response.status_code", code)]);
            if !status.is_success() {
                span.fail(status.as_u16().to_string(), "");
            }
        }
        Err(Unanswered { error, is_timeout, .. }) => {
            span.fail(if *is_timeout { "timeout" } else { "no_answer" }, error);
        }
    }
    span.end();
}
