//! What is published on the failed subject: the message that was not relayed, and why.

use crate::headers::{self, reason};
use crate::message::{Message, Outbound};
use crate::relay::outcome::Failure;
use crate::subject::MAX_SUBJECT_BYTES;
use async_nats::HeaderMap;

/// The original message with headers that say why it was not relayed. What does not fit into
/// `limit` bytes gives way: the payload first, then the message's own headers.
pub(crate) fn dead_letter(
    mut subject: String,
    message: &Message,
    failure: &Failure,
    limit: usize,
) -> Outbound {
    // The header for the subject has the whole of it.
    subject.truncate(subject.floor_char_boundary(MAX_SUBJECT_BYTES));
    subject.truncate(subject.trim_end_matches('.').len());
    let reasons = failure.headers(message);
    let with = |mut headers: HeaderMap| {
        for (name, values) in reasons.iter() {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        headers
    };
    let headers = with(headers::to_relayed(&message.headers));
    let mut letter =
        Outbound { subject: subject.into(), headers, payload: message.payload.clone() };
    let omitted = message.payload.len().to_string();
    if letter.size() > limit {
        letter.headers.insert(reason::PAYLOAD_OMITTED, omitted.clone());
        letter.payload.clear();
    }
    if letter.size() > limit {
        letter.headers = with(HeaderMap::new());
        letter.headers.insert(reason::PAYLOAD_OMITTED, omitted);
        letter.headers.insert(reason::HEADERS_OMITTED, message.headers.len().to_string());
    }
    letter
}
