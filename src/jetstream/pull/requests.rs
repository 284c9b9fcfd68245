//! Pull requests: one at a time, for as much as there is room, and what the server says to them.

use super::{EXPIRES, Pull};
use crate::link::Link;
use async_nats::{StatusCode, Subscriber};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How much later than that the server's answer may be before it counts as lost.
pub(super) const LATE: Duration = Duration::from_secs(4);
/// The same while stopping: what comes later is delivered to somebody else.
pub(super) const LATE_STOPPING: Duration = Duration::from_secs(1);
/// How soon after the server has refused a request another one is made.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The most messages that are asked for by a replica that stands by.
const STANDING_BY: usize = 32;
/// How many are asked for while messages are delivered again behind a closed gate.
const AGAIN: usize = 256;

/// One connection's requests and deliveries.
pub(super) struct Session {
    pub(super) generation: u64,
    pub(super) inbox: String,
    pub(super) subscriber: Subscriber,
    pub(super) request: u64,
    pub(super) asked_at: Option<Instant>,
    pub(super) ask_after: Instant,
    /// Messages that were asked for and have not arrived.
    pub(super) outstanding: usize,
    /// Whether the next message alone is larger than all that may wait.
    pub(super) oversize: bool,
    pub(super) pin: Option<String>,
    /// The consumer's count at the next delivery.
    pub(super) next_delivery: Option<u64>,
    pub(super) looked: bool,
    /// Whether the last delivery was not the first of its message: there may be more of these.
    pub(super) again: bool,
    /// Whether messages were missing in this turn, and whether what waits behind the gate was
    /// asked for once more since.
    pub(super) had_missing: bool,
    pub(super) asked_anew: bool,
}

impl Session {
    pub(super) async fn begin(link: &Link) -> anyhow::Result<Self> {
        let generation = link.connected().await;
        let (_, client) = link.client().await;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*")).await?;
        Ok(Self {
            generation,
            inbox,
            subscriber,
            request: 0,
            asked_at: None,
            ask_after: Instant::now(),
            outstanding: 0,
            oversize: false,
            pin: None,
            next_delivery: None,
            looked: false,
            again: false,
            had_missing: false,
            asked_anew: false,
        })
    }
}

impl Pull {
    /// When something is to be done even if nothing happens.
    pub(super) fn due(&self) -> Instant {
        let now = Instant::now();
        let asked_at = self.session.asked_at.unwrap_or(now);
        let ask = if self.session.outstanding > 0 {
            asked_at + EXPIRES + if self.stopped { LATE_STOPPING } else { LATE }
        } else {
            self.session.ask_after.max(asked_at + EXPIRES).max(now + ASK_AGAIN)
        };
        if self.looking.is_some() { ask } else { ask.min(self.look_at) }
    }

    pub(super) fn is_late(&self, by: Duration) -> bool {
        self.session.asked_at.is_none_or(|at| at.elapsed() > EXPIRES + by)
    }

    /// Makes the next pull request, when there is room and the one before has ended.
    pub(super) async fn ask(&mut self) {
        let now = Instant::now();
        if self.session.outstanding > 0 {
            if !self.is_late(LATE) {
                return;
            }
            if !std::mem::replace(&mut self.said.unanswered, true) {
                warn!(stream = self.stream.name, consumer = self.stream.consumer, "a pull request was not answered, asking again");
            }
            self.session.outstanding = 0;
            self.look_at = now;
        }
        if self.stopped || !self.session.looked || now < self.session.ask_after || !self.link.is_connected() {
            return;
        }
        let since_asked = self.session.asked_at.map_or(EXPIRES, |at| at.elapsed());
        let (messages, bytes) = match self.room() {
            Some(room) => room,
            // A request that nothing fits into: a sign of life.
            None if self.session.pin.is_some() && since_asked >= EXPIRES => (1, 1),
            None => return,
        };
        let is_sign = bytes == 1;
        self.session.request += 1;
        let mut request = json!({ "batch": messages, "expires": EXPIRES.as_nanos() as u64 });
        if let Some(fields) = request.as_object_mut() {
            if bytes > 0 {
                fields.insert("max_bytes".into(), json!(bytes));
            }
            if let Some(group) = self.made.group {
                fields.insert("group".into(), json!(group));
                fields.extend(self.session.pin.iter().map(|pin| ("id".to_owned(), json!(pin))));
            }
        }
        let (_, client) = self.link.client().await;
        let reply = format!("{}.{}", self.session.inbox, self.session.request);
        // It fails only when the client has ended, and then the subscription says so.
        let _ = client.publish_with_reply(self.consumer.next(), reply, request.to_string().into()).await;
        self.session.asked_at = Some(now);
        self.session.outstanding = if is_sign { 0 } else { messages };
    }

    /// How many messages and bytes may be asked for; 0 bytes is without a limit.
    fn room(&mut self) -> Option<(usize, usize)> {
        let pending = usize::try_from(self.metrics.pending_bytes.get()).unwrap_or(0) + self.gate.bytes();
        let held = self.held.len();
        if !self.gate.is_open() {
            if let Some(missing) = self.gate.missing() {
                return Some((missing, 0));
            }
            if self.session.again {
                return Some((AGAIN, 0));
            }
            if self.session.asked_at.is_some_and(|at| at.elapsed() < EXPIRES) {
                return None;
            }
            if self.gate.bytes() >= self.limits.bytes
                && let Some(sequence) = self.gate.drop_newest()
            {
                // It is delivered again later.
                self.held.forget(sequence);
            }
            return Some((1, 0));
        }
        if held == 0 && self.session.oversize {
            return Some((1, 0));
        }
        let messages = self.limits.messages.saturating_sub(held);
        let bytes = self.limits.bytes.saturating_sub(pending);
        if messages == 0 || bytes == 0 || (held > 0 && (messages < self.limits.messages / 4 || bytes < self.limits.bytes / 4)) {
            return None;
        }
        Some((if self.stands_by() { messages.min(STANDING_BY) } else { messages }, bytes.max(2)))
    }

    /// The server has said something about a request.
    pub(super) fn told(&mut self, subject: &str, status: Option<StatusCode>, description: &str) {
        let number = subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
        // All of it has been delivered; that was counted.
        if number != Some(self.session.request) || description == "Batch Completed" {
            return;
        }
        self.said.unanswered = false;
        let had_asked = std::mem::take(&mut self.session.outstanding) > 0;
        self.session.again = false;
        match status.map_or(0, |status| status.as_u16()) {
            404 | 408 => {}
            // Another replica works.
            423 => {
                (self.session.pin, self.session.next_delivery, self.look_at) = (None, None, Instant::now());
                self.stand_down();
                self.held.certain();
            }
            // The next message is one for which there is no room yet; nothing fits into a sign of life.
            409 if description == "Message Size Exceeds MaxBytes" => {
                if had_asked {
                    self.session.oversize = true;
                    self.session.ask_after = Instant::now() + ASK_AGAIN;
                }
            }
            code => {
                self.session.ask_after = Instant::now() + ASK_AGAIN;
                self.look_at = Instant::now();
                // Others are said by what is done about them, if anything has to be.
                if !matches!(code, 409 | 503) && self.said.refused.replace(code) != Some(code) {
                    warn!(stream = self.stream.name, consumer = self.stream.consumer, code, description, "a pull request was refused");
                }
                self.is_changed = code == 400;
            }
        }
    }
}
