//! One message as the webhook gets it, together with what is republished once it is accepted.

use crate::headers;
use crate::message::{Message, Outbound};
use crate::pending::{Extra, Pending};
use crate::webhook::endpoint::replace;
use reqwest::header::{self, HeaderMap, HeaderValue};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_util::bytes::Bytes;

pub struct Delivery {
    pub(crate) message: Arc<Message>,
    pub(super) body: Bytes,
    /// Take the place of the message's of the same name.
    set: HeaderMap,
    /// How many headers of the message HTTP does not allow.
    headers_dropped: u64,
    pub(super) relayed: Outbound,
    /// Deliveries of the same lane that this call stands for too.
    pub(super) merged: Vec<Delivery>,
    /// What a plugin made waits beside the message.
    _extra: Extra,
}

impl Delivery {
    /// `relayed` stays locked up until every destination has accepted; `body` and the headers
    /// `set` are what the destinations get.
    pub(crate) fn new(
        message: &Arc<Message>,
        body: Bytes,
        set: HeaderMap,
        relayed: Outbound,
        pending: &Pending,
    ) -> Self {
        let (_, headers_dropped) = headers::to_http(&message.headers);
        let made = [&body, &relayed.payload]
            .into_iter()
            .filter(|bytes| bytes.as_ptr() != message.payload.as_ptr());
        let extra = pending.extra(made.map(Bytes::len).sum());
        let (message, merged) = (message.clone(), Vec::new());
        Self { message, body, set, headers_dropped, relayed, merged, _extra: extra }
    }

    /// This delivery, whose call stands for `others` too.
    pub(crate) fn standing_for(self, others: Vec<Delivery>) -> Self {
        Self { merged: others, ..self }
    }

    /// The messages with headers that HTTP does not allow, and how many of them each has.
    pub(crate) fn headers_dropped(&self) -> impl Iterator<Item = (&Arc<Message>, u64)> {
        let all = std::iter::once(self).chain(&self.merged);
        all.map(|delivery| (&delivery.message, delivery.headers_dropped)).filter(|(_, n)| *n > 0)
    }

    /// Whether the calls of both differ in nothing but the identity of their messages.
    pub(crate) fn is_same_call(&self, other: &Self) -> bool {
        let headers = |delivery: &Self| headers::to_http(&delivery.message.headers).0;
        self.body == other.body && self.set == other.set && headers(self) == headers(other)
    }

    /// A delivery that is not sent, for commands and tests that look at its headers.
    #[must_use]
    pub fn rehearsed(
        message: &Arc<Message>,
        body: Bytes,
        set: HeaderMap,
        relayed: Outbound,
    ) -> Self {
        Self::new(message, body, set, relayed, &Pending::default())
    }

    /// The headers of a call, without those that the operator fixed, and unsigned.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let (mut headers, _) = headers::to_http(&self.message.headers);
        headers.reserve(7 + self.set.len());
        replace(&mut headers, &self.set);
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        if self.body.is_empty() {
            // hyper leaves it out, and some servers then answer 411 Length Required.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        headers.insert(headers::NATS_SUBJECT, headers::value(&self.message.subject));
        headers.insert(headers::WEBHOOK_ID, headers::value(self.message.id.as_str()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        headers.insert(headers::WEBHOOK_TIMESTAMP, HeaderValue::from(now));
        headers
    }
}
