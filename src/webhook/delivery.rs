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
    pub(crate) headers_dropped: u64,
    pub(super) relayed: Outbound,
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
        Self { message: message.clone(), body, set, headers_dropped, relayed, _extra: extra }
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
