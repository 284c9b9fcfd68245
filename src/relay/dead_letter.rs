//! What is published on the failed subject: the message that was not relayed, and why.

use crate::headers;
use crate::message::{Message, Outbound};
use crate::plugin::Stopped;
use crate::relay::Failure;
use crate::subject::MAX_SUBJECT_BYTES;
use crate::webhook::Undelivered;
use async_nats::HeaderMap;
use std::time::SystemTime;

/// A message for the failed subject; only [`dead_letter`] makes one.
pub(crate) struct DeadLetter(Outbound);

impl DeadLetter {
    /// The message to publish.
    #[must_use]
    pub(crate) fn into_outbound(self) -> Outbound {
        self.0
    }
}

/// The original message with headers that say why it was not relayed. What does not fit into
/// `limit` bytes gives way: the payload first, then the message's own headers.
#[must_use]
pub(crate) fn dead_letter(
    mut subject: String,
    message: &Message,
    failure: &Failure,
    limit: usize,
) -> DeadLetter {
    // `Relay-Subject` has the whole of it.
    subject.truncate(subject.floor_char_boundary(MAX_SUBJECT_BYTES));
    subject.truncate(subject.trim_end_matches('.').len());
    let mut reasons = HeaderMap::new();
    let mut add = |name: &str, value: &dyn std::fmt::Display| {
        reasons.append(name, one_line(&value.to_string()))
    };
    add("Relay-Subject", &message.subject);
    add("Relay-Id", &message.id);
    add("Relay-Reason", &failure.reason().label());
    add("Relay-Error", failure);
    add("Relay-Time", &humantime::format_rfc3339_millis(SystemTime::now()));
    if let Failure::Webhook(Undelivered(refusals)) = failure {
        for refusal in refusals {
            add("Relay-Destination", &refusal.destination);
            add(
                "Relay-Status",
                &refusal
                    .status
                    .map_or_else(|| "none".to_owned(), |status| status.as_u16().to_string()),
            );
            add("Relay-Attempts", &refusal.attempts);
            add("Relay-Destination-Error", &refusal.error);
        }
    }
    if let Failure::Plugin(Stopped { plugin, hook, .. }) = failure {
        add("Relay-Plugin", plugin);
        add("Relay-Hook", hook);
    }
    let with = |mut headers: HeaderMap| {
        for (name, values) in reasons.iter() {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        headers
    };
    let headers = with(headers::to_relayed(&message.headers));
    let mut letter =
        Outbound { subject: subject.into(), headers, payload: message.payload.clone() };
    if letter.size() > limit {
        letter.headers.insert("Relay-Payload-Omitted", message.payload.len().to_string());
        letter.payload.clear();
    }
    if letter.size() > limit {
        letter.headers = with(HeaderMap::new());
        letter.headers.insert("Relay-Payload-Omitted", message.payload.len().to_string());
        letter.headers.insert("Relay-Headers-Omitted", message.headers.len().to_string());
    }
    DeadLetter(letter)
}

/// A text without what a NATS header can not hold.
fn one_line(text: &str) -> String {
    text.replace(|character: char| character.is_control(), " ")
}
