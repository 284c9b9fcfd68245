//! A message on its way through the relay, and the identity it keeps.

use crate::origin::Origin;
use crate::trace::{Span, Start};
use async_nats::{HeaderMap, Subject};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio_util::bytes::Bytes;

/// A message as it was received.
#[derive(Debug)]
pub struct Message {
    pub subject: Arc<str>,
    pub headers: HeaderMap,
    /// Any bytes.
    pub payload: Bytes,
    /// Its identity at the webhook and on the relayed message.
    pub id: Id,
    pub(crate) origin: Origin,
    pub(crate) received: Instant,
    /// What has become of it: counted and logged once, and not changed after that.
    pub(crate) end: OnceLock<End>,
    /// The work on it, where that is traced.
    pub(crate) span: OnceLock<Span>,
}

/// What can become of a message, without the details (see `relay::outcome`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Relayed,
    Rejected,
    GivenBack,
    Failed,
}

impl Message {
    /// A message of core NATS, or of nowhere.
    #[must_use]
    pub fn new(subject: &str, headers: HeaderMap, payload: Bytes, id: Id) -> Self {
        let (subject, origin, received) = (subject.into(), Origin::Core, Instant::now());
        let (end, span) = (OnceLock::new(), OnceLock::new());
        Self { subject, headers, payload, id, origin, received, end, span }
    }

    pub(crate) fn of(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// Takes the payload out of the connection's read buffer. A slice would keep all of the
    /// buffer alive, and what waits would occupy several times its size.
    pub(crate) fn detached(mut self) -> Self {
        self.payload = Bytes::copy_from_slice(&self.payload);
        self
    }

    /// A span inside the one of the message.
    pub(crate) fn span(&self, start: Start) -> Span {
        self.span.get().map(|span| span.child(start)).unwrap_or_default()
    }

    /// The bytes that it occupies while it waits.
    pub(crate) fn size(&self) -> usize {
        self.subject.len() + crate::headers::wire_size(&self.headers) + self.payload.len()
    }
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outbound {
    pub subject: Subject,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

impl Outbound {
    /// The bytes that count against the server's `max_payload`: headers and payload.
    #[must_use]
    pub fn size(&self) -> usize {
        crate::headers::wire_size(&self.headers) + self.payload.len()
    }
}

/// A message's identity: `webhook-id` over all attempts and `Nats-Msg-Id` of the relayed copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id(String);

impl Id {
    /// A new identity: random for the process, counted within it. Unique, not secret.
    #[must_use]
    pub fn unique() -> Self {
        static PROCESS: OnceLock<String> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let process = PROCESS
            .get_or_init(|| std::iter::repeat_with(fastrand::alphanumeric).take(16).collect());
        Self(format!("msg_{process}{:06x}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The identity of a message in a stream for one `relay` (see [`relay_of`]): the same each time
    /// that it is delivered, and another one in a stream that has taken the name of one that was
    /// removed.
    pub(crate) fn stored(stream: &str, sequence: u64, stored_ns: i128, relay: &str) -> Self {
        Self(format!("msg_{stream}_{sequence}_{stored_ns:x}_{relay}"))
    }

    /// The identity of the message as it is relayed with another `tail` than its own: a stream that
    /// has it under one subject must not take it for a repetition under another.
    pub(crate) fn relayed_as(&self, tail: &str) -> String {
        format!("{}_{}", self.0, digest(&[tail]))
    }

    /// The identity as text, without dots (Standard Webhooks signs `id.timestamp.payload`).
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What tells the relays of one stream apart, wherever their messages meet again: the consumer
/// that they read from and the prefix that they relay to. Replicas have both in common.
pub(crate) fn relay_of(consumer: &str, relayed: &str) -> String {
    digest(&[consumer, relayed])
}

/// 64 bits of a SHA-256 over texts without NUL, as hexadecimal digits.
fn digest(texts: &[&str]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, texts.join("\0").as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
