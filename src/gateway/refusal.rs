//! What a client is answered when there is no reply for it, and when none is expected.

use crate::exchange::{Format, Malformed, Response};
use crate::nats::answers::Stored;
use crate::nats::publisher::OnceFailure;
use reqwest::StatusCode;
use reqwest::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use tokio_util::bytes::Bytes;

/// An answer that the gateway gives itself.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
    /// Whether no other request may follow on the connection.
    is_last: bool,
}

fn refusal(status: StatusCode, text: impl Into<String>) -> Refusal {
    Refusal { status, text: text.into(), is_last: false }
}

impl Refusal {
    pub(super) fn no_token() -> Self {
        refusal(StatusCode::UNAUTHORIZED, "the request has no valid bearer token")
    }

    pub(super) fn unsigned() -> Self {
        let text = "the request has no valid signature that is less than five minutes old";
        refusal(StatusCode::UNAUTHORIZED, text)
    }

    pub(super) fn busy() -> Self {
        refusal(StatusCode::SERVICE_UNAVAILABLE, "too many requests are under way")
    }

    pub(super) fn not_connected() -> Self {
        refusal(StatusCode::SERVICE_UNAVAILABLE, "there is no connection to NATS")
    }

    pub(super) fn no_responders() -> Self {
        let text = "nothing answers on the subject (nats: no responders)";
        refusal(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    pub(super) fn denied() -> Self {
        refusal(StatusCode::SERVICE_UNAVAILABLE, "the NATS user may not publish on the subject")
    }

    pub(super) fn no_reply() -> Self {
        refusal(StatusCode::GATEWAY_TIMEOUT, "there was no reply in time")
    }

    pub(super) fn late_body() -> Self {
        refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")
    }

    /// Where one program sees the end of the body, another may see more requests.
    pub(super) fn unknown_framing() -> Self {
        let text = "the transfer encoding is not only chunked";
        Self { is_last: true, ..refusal(StatusCode::BAD_REQUEST, text) }
    }

    pub(super) fn broken_body() -> Self {
        refusal(StatusCode::BAD_REQUEST, "the body is malformed or ended early")
    }

    pub(super) fn too_large(size: usize, limit: usize) -> Self {
        let text = format!("the body has {size} bytes or more, at most {limit} are accepted");
        refusal(StatusCode::PAYLOAD_TOO_LARGE, text)
    }

    pub(super) fn bad_reply(error: Malformed) -> Self {
        refusal(StatusCode::BAD_GATEWAY, format!("the reply cannot be used: {error}"))
    }

    /// The response for a client of this format: nats-proxy answers every error with 400.
    pub(super) fn response(self, format: Format) -> Response {
        let status = match format {
            Format::NatsProxy => StatusCode::BAD_REQUEST,
            _ => self.status,
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.is_last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Response { status, headers, body: Bytes::from(self.text + "\n") }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        refusal(StatusCode::BAD_REQUEST, malformed.0)
    }
}

impl From<OnceFailure> for Refusal {
    fn from(failure: OnceFailure) -> Self {
        match failure {
            OnceFailure::TooLarge => refusal(StatusCode::PAYLOAD_TOO_LARGE, failure.to_string()),
            failure => refusal(StatusCode::SERVICE_UNAVAILABLE, failure.to_string()),
        }
    }
}

/// What a client is answered whose message was sent, or stored.
pub(super) fn accepted(stored: Option<Stored>) -> Response {
    let mut headers = HeaderMap::new();
    if let Some(Stored { stream, sequence, is_duplicate }) = stored {
        if let Ok(stream) = HeaderValue::from_str(&stream) {
            headers.insert("nats-stream", stream);
        }
        headers.insert("nats-sequence", HeaderValue::from(sequence));
        if is_duplicate {
            headers.insert("nats-duplicate", HeaderValue::from_static("true"));
        }
    }
    Response { status: StatusCode::ACCEPTED, headers, body: Bytes::new() }
}
