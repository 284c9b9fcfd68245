//! Messages that the client library cannot read.
//!
//! A server lets any bytes through as headers, and async-nats closes the connection over those
//! that it cannot parse. In a stream such a message would come again after every reconnect. The
//! stream's own way of handing out a message, as base64 in JSON, cannot break anything: it is
//! asked for what was delivered and has not arrived.

use crate::nats::jetstream::{ApiError, number, text};
use crate::source::stream::consumer::Consumer;
use crate::source::stream::held::Held;
use async_nats::{HeaderName, HeaderValue, Request, StatusCode, Subject};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use std::pin::pin;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::bytes::Bytes;

/// How long the server may take to put a message off.
const PUT_OFF: Duration = Duration::from_secs(2);
/// How long a message is put off: until it has been decided what becomes of it.
const PUT_OFF_FOR: Duration = Duration::from_secs(30);
/// How many sequences are searched one after another, beside others of as many.
const STRETCH: u64 = 256;
/// How many stretches are searched at once, as long as each answer is small.
const MOST_AT_ONCE: usize = 16;
/// How many bytes of answers may arrive at once.
const ANSWERS: usize = 16 << 20;
/// How many bytes of payload are enough for one time.
const MOST_FOUND: usize = 1 << 20;

/// A message that cannot arrive, as the stream keeps it.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// Its sequence in the stream.
    pub(crate) sequence: u64,
    /// The subject it was published on.
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
    /// When it was stored, in nanoseconds since 1970.
    pub(crate) stored_ns: i128,
    /// Why it cannot be read.
    pub(crate) why: &'static str,
}

/// The unreadable messages above the sequence `after` and up to `to` that are not in `held`, and
/// up to where all of them were found: there may be more than should be in memory at once.
///
/// # Errors
/// When the stream cannot be asked.
pub(crate) async fn find(
    consumer: &Consumer,
    held: &Held,
    after: u64,
    to: u64,
) -> Result<(Vec<Unreadable>, u64), ApiError> {
    // An answer is a message in base64.
    let answer = consumer.api.max_payload().await.saturating_mul(4) / 3;
    let at_once = (ANSWERS / answer.max(1)).clamp(1, MOST_AT_ONCE);
    let starts = (after + 1..=to).step_by(STRETCH as usize);
    let stretches = futures_util::stream::iter(starts)
        .map(|start| search(consumer, held, start, to.min(start + STRETCH - 1)));
    let mut stretches = pin!(stretches.buffered(at_once));
    let (mut all, mut bytes) = (Vec::new(), 0);
    while let Some((found, is_whole)) = stretches.try_next().await? {
        bytes += found.iter().map(|found| found.payload.len()).sum::<usize>();
        all.extend(found);
        if !is_whole || bytes > MOST_FOUND {
            let last = all.last().map_or(after, |found: &Unreadable| found.sequence);
            return Ok((all, last));
        }
    }
    Ok((all, to))
}

/// The unreadable messages from the sequence `next` up to `to` that are not in `held`, and whether
/// these are all.
async fn search(
    consumer: &Consumer,
    held: &Held,
    mut next: u64,
    to: u64,
) -> Result<(Vec<Unreadable>, bool), ApiError> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    while bytes <= MOST_FOUND {
        while next <= to && held.knows(next) {
            next += 1;
        }
        if next > to {
            return Ok((found, true));
        }
        let Some(message) = consumer.stored(next).await? else { return Ok((found, true)) };
        let sequence = number(&message, "/seq");
        if sequence > to {
            return Ok((found, true));
        }
        if let Some(why) = why_unreadable(&message).filter(|_| !held.knows(sequence)) {
            let payload = BASE64_STANDARD.decode(text(&message, "/data")).unwrap_or_default();
            let stored = humantime::parse_rfc3339(text(&message, "/time"))
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let stored_ns = stored.map_or(0, |time| time.as_nanos() as i128);
            let subject = text(&message, "/subject").to_owned();
            bytes += payload.len();
            found.push(Unreadable { sequence, subject, payload: payload.into(), stored_ns, why });
        }
        next = sequence + 1;
    }
    Ok((found, false))
}

/// Why the client library would not read this stored message; `None` where it would.
fn why_unreadable(message: &Value) -> Option<&'static str> {
    if text(message, "/subject").contains(char::is_whitespace) {
        return Some("its subject has white space");
    }
    let headers = BASE64_STANDARD.decode(text(message, "/hdrs")).unwrap_or_default();
    if headers.is_empty() {
        return None;
    }
    let Ok(headers) = std::str::from_utf8(&headers) else {
        return Some("its headers are not UTF-8");
    };
    // A server that adds a header of its own cuts the end off (ADR-4).
    if !headers.ends_with("\r\n\r\n") {
        return Some("its headers do not end with an empty line");
    }
    let mut lines = headers.lines().peekable();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else {
        return Some("its headers do not begin with NATS/1.0");
    };
    let status = status.trim().split(' ').next().unwrap_or_default();
    if !status.is_empty() && StatusCode::from_str(status).is_err() {
        return Some("its headers begin with a malformed status");
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Some("one of its header lines has no colon");
        };
        if HeaderName::from_str(name).is_err() {
            return Some("the name of one of its headers is malformed");
        }
        let mut value = value.to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        if HeaderValue::from_str(value.trim()).is_err() {
            return Some("the value of one of its headers is malformed");
        }
    }
    None
}

/// Has the server wait before it delivers a message again that is answered on `reply`, so that it
/// is out of the way of the next requests. Returns when the server has done so.
pub(crate) async fn put_off(consumer: &Consumer, reply: Subject) {
    answer(consumer, reply, format!("-NAK {{\"delay\": {}}}", PUT_OFF_FOR.as_nanos())).await;
}

/// Has the server deliver such a message at the next request, unless it is settled.
pub(crate) async fn provoke(consumer: Consumer, reply: Subject) {
    answer(&consumer, reply, "-NAK".to_owned()).await;
}

async fn answer(consumer: &Consumer, reply: Subject, text: String) {
    let context = consumer.api.context().await;
    // Without an answer it breaks the connection once more, and is put off again.
    let request = Request::new().payload(text.into()).timeout(Some(PUT_OFF));
    let _ = context.client().send_request(reply, request).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(subject: &str, headers: &[u8]) -> Value {
        json!({ "subject": subject, "hdrs": BASE64_STANDARD.encode(headers), "seq": 1 })
    }

    #[test]
    fn what_the_client_would_not_read_is_known() {
        for (headers, readable) in [
            (&b""[..], true),
            (b"NATS/1.0\r\nA: b\r\n\r\n", true),
            (b"NATS/1.0\r\nA:b\r\n folded\r\n\r\n", true),
            (b"NATS/1.0 503 gone\r\nA: b\r\n\r\n", true),
            (b"NATS/1.0\r\nA: \xc3\xa4\r\n\r\n", true),
            (b"NATS/1.0\r\nbad name: x\r\n\r\n", false),
            (b"NATS/1.0\r\nname: \xff\xfe\r\n\r\n", false),
            (b"NATS/1.0\r\nno colon at all\r\n\r\n", false),
            (b"NATS/1.0 many\r\n\r\n", false),
            (b"NATS/2.0\r\n\r\n", false),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", false),
            (b"NATS/1.0\r\nA: b\r\r\n\r\n", true),
            (b"NATS/1.0\r\nA: b\r\n fol\rded\r\n\r\n", false),
            (b"NATS/1.0\r\n starts: folded\r\n\r\n", false),
            (b"NATS/1.0\r\nA: b\r\n\r\n late\r\n\r\n", false),
            (b"NATS/1.0\r\nA: b\r\n", false),
            (b"NATS/1.0\t503\tGone\r\n\r\n", false),
            (b"NATS/1.0\r\n: x\r\n\r\n", true),
        ] {
            assert_eq!(
                why_unreadable(&stored("cms.a", headers)).is_none(),
                readable,
                "{}",
                String::from_utf8_lossy(headers)
            );
        }
        assert!(why_unreadable(&stored("cms.a\u{a0}b", b"")).is_some());
    }
}
