//! The copy of a message that is republished.

use crate::headers;
use crate::message::{Message, Outbound};
use crate::relay::outcome::Oversize;
use crate::subject::{MAX_SUBJECT_BYTES, Subjects};
use async_nats::header::NATS_MESSAGE_ID;
use tokio_util::bytes::Bytes;

/// The copy of `message` that is republished as that of `subjects` with `tail`.
///
/// # Errors
/// When a server that takes `limit` bytes (`max_payload`) would refuse it.
pub fn relayed_copy(
    message: &Message,
    subjects: &Subjects,
    tail: &str,
    payload: Bytes,
    id: String,
    limit: usize,
) -> Result<Outbound, Oversize> {
    let subject = subjects.subject(tail);
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(Oversize::Subject(subject.len()));
    }
    let headers = headers::to_relayed(&message.headers);
    let mut relayed = Outbound { subject: subject.into(), headers, payload };
    if relayed.size() > limit {
        return Err(Oversize::Message { size: relayed.size(), limit });
    }
    relayed.headers.insert(NATS_MESSAGE_ID, id);
    if relayed.size() > limit {
        // The copy of a message that fills max_payload to the brim goes without an id.
        relayed.headers = headers::to_relayed(&message.headers);
    }
    Ok(relayed)
}
