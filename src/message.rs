//! A message on its way through the relay, and the identity it keeps.

use async_nats::{HeaderMap, Subject};
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;
use tokio_util::bytes::Bytes;

/// A message as it was received.
#[derive(Debug)]
pub struct Message {
    /// The subject it was published on.
    pub subject: Arc<str>,
    /// Its NATS headers.
    pub headers: HeaderMap,
    /// Its payload: any bytes.
    pub payload: Bytes,
    /// Its identity at the webhook and on the relayed message.
    pub id: Id,
    /// What has become of it, once that is known: counted and logged once, and not changed.
    pub(crate) end: OnceLock<End>,
    /// Where it is kept; `None` where it is nowhere but here.
    pub(crate) stored: Option<Stored>,
}

/// What can become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was republished, and that was confirmed.
    Relayed,
    /// A plugin has decided that it is not relayed.
    Rejected,
    /// The stream delivers it again, to this process or another one.
    GivenBack,
    /// It was not relayed.
    Failed,
}

/// A message's place in a stream.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its sequence.
    pub(crate) sequence: u64,
    /// When it was stored, in nanoseconds since 1970. A stream that takes the place of another
    /// one counts from 1 again, at another time.
    pub(crate) time_ns: i128,
    /// Whether it is still to be worked on.
    pub(crate) hold: Arc<Hold>,
    /// Why its headers could not be read, and are missing.
    pub(crate) unreadable: Option<&'static str>,
}

impl Message {
    /// A message that is kept nowhere but here.
    #[must_use]
    pub fn new(subject: &str, headers: HeaderMap, payload: Bytes, id: Id) -> Self {
        Self { subject: subject.into(), headers, payload, id, end: OnceLock::new(), stored: None }
    }

    /// Whether it is to be worked on: always, where it is not stored.
    #[must_use]
    pub(crate) fn fate(&self) -> Fate {
        self.stored.as_ref().map_or(Fate::Ours, |stored| stored.hold.fate())
    }

    /// Returns when it is no more to be worked on.
    pub(crate) async fn not_ours(&self) {
        match &self.stored {
            Some(stored) => stored.hold.not_ours().await,
            None => std::future::pending().await,
        }
    }

    /// Returns when another process is to relay it.
    pub(crate) async fn given_up(&self) {
        self.not_ours().await;
        if self.fate() != Fate::GivenUp {
            // That it has gone from the stream is no reason not to say what became of it.
            std::future::pending().await
        }
    }

    /// Takes the payload out of the connection's read buffer. A slice would keep all of the
    /// buffer alive, and what waits would occupy several times its size.
    #[must_use]
    pub(crate) fn detached(mut self) -> Self {
        self.payload = Bytes::copy_from_slice(&self.payload);
        self
    }

    /// The bytes that it occupies while it waits.
    #[must_use]
    pub(crate) fn size(&self) -> usize {
        self.subject.len() + crate::headers::wire_size(&self.headers) + self.payload.len()
    }
}

/// What is to become of a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fate {
    /// It is to be relayed.
    Ours,
    /// The stream no longer keeps it.
    Gone,
    /// Another process is to relay it.
    GivenUp,
}

/// A message's fate, and whoever waits for it to change.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    fate: AtomicU8,
    changed: Notify,
}

impl Hold {
    /// What is to become of the message.
    #[must_use]
    pub(crate) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            0 => Fate::Ours,
            1 => Fate::Gone,
            _ => Fate::GivenUp,
        }
    }

    /// Changes it.
    pub(crate) fn end(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Release);
        self.changed.notify_waiters();
    }

    async fn not_ours(&self) {
        let changed = self.changed.notified();
        if self.fate() == Fate::Ours {
            changed.await;
        }
    }
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Where to.
    pub subject: Subject,
    /// With which headers.
    pub headers: HeaderMap,
    /// What.
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
    /// that it is delivered, and another one in a stream that has taken the name of one that was removed.
    #[must_use]
    pub(crate) fn stored(stream: &str, sequence: u64, stored_ns: i128, relay: &str) -> Self {
        Self(format!("msg_{stream}_{sequence}_{stored_ns:x}_{relay}"))
    }

    /// The identity of the message as it is relayed with another `tail` than its own: a stream that
    /// has it under one subject must not take it for a repetition under another.
    #[must_use]
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
#[must_use]
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
