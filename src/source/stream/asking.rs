//! Asking for messages: one pull request at a time, for as much as there is room, and what the
//! server says to it.

use crate::source::stream::Pull;
use crate::source::stream::consumer::PINNED;
use crate::source::stream::session::{EXPIRES, LATE, LATE_STOPPING};
use async_nats::StatusCode;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// How soon after the server has refused a request another one is made.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a sign of life waits at the server.
const SIGN_EXPIRES: Duration = Duration::from_millis(100);
/// From sending a request until the turn may end without another one, with some room for clocks.
const OURS: Duration = PINNED.saturating_sub(Duration::from_millis(100));
/// The most messages that are asked for by a replica that stands by.
const STANDING_BY: usize = 32;
/// How many are asked for while messages are delivered again behind a closed gate.
const AGAIN: usize = 256;
/// The most bytes that one request asks for. A server keeps what a slow connection has not taken
/// yet, and closes the connection once that is too much (`max_pending`, `write_deadline`).
const MOST_BYTES: usize = 4 << 20;
/// What a message may take beside its payload and headers: its subject and where it is answered.
const OVERHEAD: usize = 8 << 10;
/// Room for a single message of any size: `max_payload` cannot be more than 64 MiB.
const ONE_MESSAGE: usize = (64 << 20) + OVERHEAD;
/// What the answers to signs of life arrive on, with the time of the question after it.
const SIGN: &str = "alive";

impl Pull {
    /// When something is to be done even if nothing happens.
    pub(super) fn due(&self) -> Instant {
        let now = Instant::now();
        let mut due =
            if self.session.outstanding > 0 && !(self.stopped && self.session.is_answered()) {
                self.session.late_at(if self.stopped { LATE_STOPPING } else { LATE })
            } else {
                let asked_at = self.session.asked_at.unwrap_or(now);
                self.session.ask_after.max(asked_at + EXPIRES).max(now + ASK_AGAIN)
            };
        if self.turn.pin().is_some() {
            due =
                due.min(self.session.alive_at.map_or(now, |at| at + EXPIRES).max(now + ASK_AGAIN));
        }
        if self.inspecting.is_some() { due } else { due.min(self.inspect_at) }
    }

    /// Makes the next pull request, when there is room and the one before has ended; else tells the
    /// server from time to time that this replica lives.
    pub(super) async fn ask(&mut self) {
        let now = Instant::now();
        if self.session.outstanding > 0 && self.session.late_at(LATE) < now && !self.stopped {
            if !std::mem::replace(&mut self.said.unanswered, true) {
                warn!(
                    stream = self.consumer.settings.name,
                    consumer = self.consumer.settings.consumer,
                    "a pull request was not answered, asking again"
                );
            }
            (self.session.outstanding, self.session.is_current) = (0, false);
            self.inspect_at = now;
        }
        if !self.link.is_connected() {
            return;
        }
        self.make_room().await;
        let may_ask = self.session.outstanding == 0
            && self.session.inspected
            && !self.stopped
            && self.session.ask_after <= now;
        if let Some((messages, bytes)) = may_ask.then(|| self.room()).flatten() {
            self.session.request += 1;
            self.request(&self.session.request.to_string(), messages, bytes, EXPIRES).await;
            (self.session.asked_at, self.session.outstanding, self.session.arrived) =
                (Some(now), messages, 0);
        } else if self.turn.pin().is_some()
            && self.session.alive_at.is_none_or(|at| now.duration_since(at) >= EXPIRES)
        {
            // A request that nothing fits into.
            let asked = now.duration_since(self.session.began).as_millis();
            self.request(&format!("{SIGN}{asked}"), 1, 1, SIGN_EXPIRES).await;
        } else {
            return;
        }
        self.session.alive_at = Some(now);
    }

    async fn request(&self, name: &str, messages: usize, bytes: usize, expires: Duration) {
        debug!(name, messages, bytes, "asking for messages");
        let mut request =
            json!({ "batch": messages, "max_bytes": bytes, "expires": expires.as_nanos() as u64 });
        if let (Some(fields), Some(group)) = (request.as_object_mut(), self.made.group) {
            fields.insert("group".into(), json!(group));
            fields.extend(self.turn.pin().iter().map(|pin| ("id".to_owned(), json!(pin))));
        }
        let (_, client) = self.link.client().await;
        let reply = format!("{}.{name}", self.session.inbox);
        // It fails only when the client has ended, and then the subscription says so.
        let _ = client
            .publish_with_reply(self.consumer.next(), reply, request.to_string().into())
            .await;
    }

    /// Gives back what is newer than all that is missing, where there is no room for that. It comes
    /// again behind it, in the place of others that would be newer still.
    async fn make_room(&mut self) {
        while !self.gate.is_open()
            && self.session.outstanding == 0
            && self.free() == 0
            && let Some(sequence) = self.gate.drop_newest()
        {
            self.held.give_back(sequence).await;
        }
    }

    /// How many bytes may still wait here.
    fn free(&self) -> usize {
        self.limits.bytes.saturating_sub(self.pending.bytes() + self.gate.bytes())
    }

    /// How many messages and bytes may be asked for.
    fn room(&self) -> Option<(usize, usize)> {
        let bytes = self.free();
        let most =
            MOST_BYTES.max(self.link.max_payload().saturating_add(OVERHEAD).min(ONE_MESSAGE));
        let held = self.held.len();
        if !self.gate.is_open() {
            let wanted = match self.gate.missing() {
                Some(missing) => missing,
                None if self.session.again => AGAIN,
                None if self.session.asked_at.is_some_and(|at| at.elapsed() < EXPIRES) => {
                    return None;
                }
                None => 1,
            };
            // What is missing has to come, even where it takes more room than there is now.
            let fits = wanted > 1 && bytes > 0 && !self.session.oversize;
            return Some(if fits { (wanted, bytes.min(most)) } else { (1, ONE_MESSAGE) });
        }
        if held == 0 && self.session.oversize {
            return Some((1, ONE_MESSAGE));
        }
        let messages = self.limits.messages.saturating_sub(held);
        if messages == 0
            || bytes == 0
            || (held > 0 && (messages < self.limits.messages / 4 || bytes < self.limits.bytes / 4))
        {
            return None;
        }
        Some((
            if self.turn.stands_by() { messages.min(STANDING_BY) } else { messages },
            bytes.min(most).max(2),
        ))
    }

    /// The turn is this replica's for a while: the server has answered what was asked at
    /// `asked_at`.
    pub(super) fn is_ours_since(&self, asked_at: Instant) {
        if self.turn.pin().is_some() {
            self.held.ours_until(Some(asked_at + OURS));
        }
    }

    /// The server has said something about a request.
    pub(super) fn told(&mut self, subject: &str, status: Option<StatusCode>, description: &str) {
        let code = status.map_or(0, |status| status.as_u16());
        let name = subject.rsplit('.').next().unwrap_or_default();
        let sign =
            name.strip_prefix(SIGN).and_then(|asked| asked.parse().ok()).map(Duration::from_millis);
        let is_current = name.parse() == Ok(self.session.request);
        debug!(name, code, description, "the server says");
        if sign.is_none() && !is_current {
            return;
        }
        self.said.unanswered = false;
        self.session.is_current |= is_current;
        // Another replica works.
        if code == 423 {
            (self.session.next_delivery, self.inspect_at) = (None, Instant::now());
            self.end_turn();
            self.held.certain();
        } else if code < 500 {
            self.is_ours_since(
                sign.map_or(self.session.asked_at.unwrap_or(self.session.began), |asked| {
                    self.session.began + asked
                }),
            );
        }
        // All of a completed batch has been delivered, and that was counted.
        if sign.is_some() || description == "Batch Completed" {
            return;
        }
        self.session.outstanding = 0;
        self.session.again = false;
        match code {
            404 | 408 | 423 => {}
            // The next message is one for which there is no room in the request.
            409 if description == "Message Size Exceeds MaxBytes" => {
                if self.session.arrived == 0 {
                    self.session.oversize = true;
                    if self.gate.is_open() {
                        self.session.ask_after = Instant::now() + ASK_AGAIN;
                    }
                }
            }
            code => {
                self.session.ask_after = Instant::now() + ASK_AGAIN;
                self.inspect_at = Instant::now();
                // Others are said by what is done about them, if anything has to be.
                if !matches!(code, 409 | 503) && self.said.refused.replace(code) != Some(code) {
                    warn!(
                        stream = self.consumer.settings.name,
                        consumer = self.consumer.settings.consumer,
                        code,
                        description,
                        "a pull request was refused"
                    );
                }
                self.is_changed = code == 400;
            }
        }
    }
}
