//! Which headers travel where: from the NATS message to the webhook, and to the relayed message.
//!
//! The two protocols allow different names and values, and some names would let a message
//! change what the call means. An illegal header is dropped and counted; it never fails a delivery.

use async_nats::header as nats;
use reqwest::header::{self as http, HeaderMap, HeaderName, HeaderValue};
use std::borrow::Cow;

/// The header that carries the message's subject to the webhook.
pub const NATS_SUBJECT: HeaderName = HeaderName::from_static("nats-subject");
/// Standard Webhooks: the message's identity, the same over all attempts.
pub const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
/// Standard Webhooks: seconds since 1970 at this attempt.
pub const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// Standard Webhooks: the signature of this attempt.
pub const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The names of the headers that say on the failed subject why a message was not relayed
/// (`relay::outcome` gives them their values).
pub(crate) mod reason {
    pub(crate) const SUBJECT: &str = "Relay-Subject";
    pub(crate) const ID: &str = "Relay-Id";
    pub(crate) const REASON: &str = "Relay-Reason";
    pub(crate) const ERROR: &str = "Relay-Error";
    pub(crate) const TIME: &str = "Relay-Time";
    pub(crate) const DESTINATION: &str = "Relay-Destination";
    pub(crate) const STATUS: &str = "Relay-Status";
    pub(crate) const ATTEMPTS: &str = "Relay-Attempts";
    pub(crate) const DESTINATION_ERROR: &str = "Relay-Destination-Error";
    pub(crate) const PLUGIN: &str = "Relay-Plugin";
    pub(crate) const HOOK: &str = "Relay-Hook";
    pub(crate) const PAYLOAD_OMITTED: &str = "Relay-Payload-Omitted";
    pub(crate) const HEADERS_OMITTED: &str = "Relay-Headers-Omitted";
}

/// Those headers. A message that is published again from there does not take them along.
pub const REASONS: [&str; 13] = [
    reason::SUBJECT,
    reason::ID,
    reason::REASON,
    reason::ERROR,
    reason::TIME,
    reason::DESTINATION,
    reason::STATUS,
    reason::ATTEMPTS,
    reason::DESTINATION_ERROR,
    reason::PLUGIN,
    reason::HOOK,
    reason::PAYLOAD_OMITTED,
    reason::HEADERS_OMITTED,
];

/// The most headers that travel to a webhook; servers refuse far fewer, and a header map has an
/// upper bound of its own.
pub(crate) const MAX_HEADERS: usize = 1000;

/// What belongs to one hop of HTTP or frames its body (RFC 9110, section 7.6.1, and RFC 9112,
/// section 6), so that only the HTTP client may set it.
const FRAMING: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What else a publisher may not decide, because it speaks for the relay or its operator.
const DENIED: [&str; 6] = [
    "accept-encoding",
    "authorization",
    "cookie",
    "proxy-authenticate",
    "proxy-authorization",
    "user-agent",
];
const DENIED_PREFIXES: [&str; 3] = ["nats-", "relay-", "webhook-"];

/// By these a reverse proxy says where a call came from (RFC 7239 and what was there before it),
/// what its method and path
/// were, and Next.js that its middleware has run. Frontends believe them, and take ours for a
/// proxy's.
const PROXY: [&str; 6] = [
    "forwarded",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-real-ip",
    "x-rewrite-url",
];
const PROXY_PREFIXES: [&str; 3] = ["x-forwarded-", "x-middleware-", "x-original-"];

/// What a server may make of a name before its application sees it: CGI, WSGI and PHP know no
/// difference between `webhook-id`, `webhook_id` and `webhook.id`. So none is made here.
pub(crate) fn folded(name: &HeaderName) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match name.as_str() {
        plain if plain.chars().all(is_plain) => Cow::Borrowed(plain),
        other => Cow::Owned(other.chars().map(|c| if is_plain(c) { c } else { '-' }).collect()),
    }
}

/// Whether only the HTTP client may set `name`.
#[must_use]
pub fn is_framing(name: &HeaderName) -> bool {
    FRAMING.contains(&&*folded(name))
}

/// Whether the relay gives `name` its value itself.
#[must_use]
pub fn is_ours(name: &HeaderName) -> bool {
    let folded = folded(name);
    [NATS_SUBJECT, WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE]
        .iter()
        .any(|ours| ours.as_str() == folded)
}

/// Whether a publisher may not decide `name`.
fn is_denied(name: &HeaderName) -> bool {
    let name = &*folded(name);
    [&FRAMING[..], &DENIED, &PROXY].iter().any(|names| names.contains(&name))
        || DENIED_PREFIXES.iter().chain(&PROXY_PREFIXES).any(|prefix| name.starts_with(prefix))
}

/// Whether `name` is one of [`REASONS`], in any case.
fn is_reason(name: &str) -> bool {
    REASONS.iter().any(|reason| reason.eq_ignore_ascii_case(name))
}

/// The message's headers as HTTP headers, and how many of them HTTP does not allow.
#[must_use]
pub fn to_http(message: &nats::HeaderMap) -> (HeaderMap, u64) {
    let mut headers = HeaderMap::new();
    let mut illegal = 0;
    for (name, values) in message.iter() {
        let name: &str = name.as_ref();
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            illegal += 1;
            continue;
        };
        if is_denied(&name) {
            continue;
        }
        for value in values {
            match HeaderValue::from_bytes(value.as_str().as_bytes()) {
                Ok(value) if headers.len() < MAX_HEADERS => _ = headers.append(name.clone(), value),
                _ => illegal += 1,
            }
        }
    }
    // A repeated content type would be a contradiction; the first value is the message's.
    if let Some(first) = headers.get(http::CONTENT_TYPE).cloned() {
        headers.insert(http::CONTENT_TYPE, first);
    }
    (headers, illegal)
}

/// A text as a header's value: what HTTP does not allow in one is percent-encoded.
#[must_use]
pub fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text)
        .or_else(|_| HeaderValue::from_bytes(text.as_bytes()))
        .unwrap_or_else(|_| {
            let encoded =
                percent_encoding::utf8_percent_encode(text, percent_encoding::CONTROLS).to_string();
            HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
        })
}

/// The headers of a copy of the message: its own without those that a NATS server would obey,
/// which were meant for the original, and without an earlier failure's [`REASONS`].
#[must_use]
pub fn to_relayed(message: &nats::HeaderMap) -> nats::HeaderMap {
    let mut relayed = nats::HeaderMap::new();
    for (name, values) in message.iter() {
        let text: &str = name.as_ref();
        if !is_control(text) && !is_reason(text) {
            for value in values {
                relayed.append(name.clone(), value.clone());
            }
        }
    }
    relayed
}

/// Whether a NATS server gives `name` a meaning (ADR-8, ADR-41, ADR-43, ADR-51 and the header
/// constants of nats-server). Servers compare these without regard to case in places, so do we.
fn is_control(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

/// The bytes that `headers` take on the wire (ADR-4); 0 where there are none.
#[must_use]
pub fn wire_size(headers: &nats::HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + value.as_str().len() + 4)
    });
    12 + lines.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(entries: &[(&str, &str)]) -> nats::HeaderMap {
        let mut map = nats::HeaderMap::new();
        for (name, value) in entries {
            map.append(*name, *value);
        }
        map
    }

    #[test]
    fn repeated_headers_and_any_legal_value_travel() {
        let (http, illegal) = to_http(&message(&[
            ("X-A", "1"),
            ("X-A", "2"),
            ("X-B", "größe"),
            ("Content-Type", "text/plain"),
        ]));
        assert_eq!(illegal, 0);
        assert_eq!(http.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(http["x-b"].as_bytes(), "größe".as_bytes());
        assert_eq!(http["content-type"], "text/plain");
    }

    #[test]
    fn names_and_values_that_http_does_not_allow_are_dropped_and_counted() {
        for name in ["a/b", "a(b)", "a=b", "a@b", "{x}", "a,b", "a;b", "a\"b", "a b"] {
            let mut map = message(&[("X-Good", "1")]);
            let Ok(name) = name.parse::<async_nats::HeaderName>() else { continue };
            map.append(name, "v");
            let (http, illegal) = to_http(&map);
            assert_eq!((http.len(), illegal), (1, 1), "{map:?}");
        }
        for value in ["a\0b", "a\u{1}b", "a\u{7f}b"] {
            let (http, illegal) = to_http(&message(&[("X-Good", "1"), ("X-Bad", value)]));
            assert_eq!((http.len(), illegal), (1, 1), "{value:?}");
        }
    }

    #[test]
    fn a_message_cannot_frame_the_call_nor_speak_for_the_relay() {
        let denied = [
            "Connection",
            "Content-Length",
            "Transfer-Encoding",
            "TE",
            "Trailer",
            "Upgrade",
            "Keep-Alive",
            "Proxy-Connection",
            "Expect",
            "HTTP2-Settings",
            "Host",
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "User-Agent",
            "webhook-id",
            "Webhook-Timestamp",
            "WEBHOOK-SIGNATURE",
            "Nats-Subject",
            "nats-msg-id",
            "Nats-Expected-Stream",
            "Nats-Anything",
            "Webhook-Anything",
            "RELAY-Reason",
            "Relay-Anything",
            "Accept-Encoding",
            "Forwarded",
            "X-Forwarded-For",
            "x-forwarded-host",
            "X-Real-IP",
            "X-HTTP-Method-Override",
            "X-Original-URL",
            "X-Middleware-Subrequest",
            "X_Forwarded_Proto",
            // What servers make the same name of.
            "webhook_id",
            "Webhook_Signature",
            "WEBHOOK.TIMESTAMP",
            "webhook!id",
            "nats_subject",
            "Relay_Id",
            "content_length",
            "Transfer_Encoding",
            "user_agent",
            "Proxy_Authorization",
        ];
        for name in denied {
            let (http, illegal) = to_http(&message(&[(name, "x"), ("X-Good", "1")]));
            assert_eq!((http.len(), illegal), (1, 0), "{name}");
        }
    }

    #[test]
    fn neither_operator_nor_plugin_can_set_what_a_server_takes_for_the_relays_own() {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
        for ours in
            ["webhook-id", "Webhook_Id", "webhook.signature", "webhook!timestamp", "nats_subject"]
        {
            assert!(is_ours(&name(ours)) && !is_framing(&name(ours)), "{ours}");
        }
        for framing in ["Host", "content_length", "Transfer.Encoding"] {
            assert!(is_framing(&name(framing)) && !is_ours(&name(framing)), "{framing}");
        }
        assert!(!is_ours(&name("webhook-key")) && !is_framing(&name("authorization")));
    }

    #[test]
    fn what_only_begins_like_a_denied_name_travels() {
        for name in [
            "natsy",
            "webhooks",
            "relayed-by",
            "x-webhook-id",
            "x_nats_subject",
            "hosts",
            "forwarded-by",
            "x-forwarder",
            "content-type",
            "content_type",
        ] {
            assert_eq!(to_http(&message(&[(name, "x")])).0.len(), 1, "{name}");
        }
    }

    #[test]
    fn thousands_of_headers_are_cut_not_a_panic() {
        let mut map = nats::HeaderMap::new();
        for n in 0..40_000 {
            map.append(format!("h{n}"), "");
        }
        let (mut http, illegal) = to_http(&map);
        assert_eq!((http.len(), illegal), (1000, 39_000));
        http.insert(WEBHOOK_ID, value("x"));
    }

    #[test]
    fn the_relayed_copy_has_all_but_what_a_server_obeys() {
        let copy = to_relayed(&message(&[
            ("Nats-Msg-Id", "x"),
            ("nats-rollup", "all"),
            ("Nats-Expected-Last-Sequence", "1"),
            ("Nats-TTL", "1s"),
            ("Nats-Schedule", "@at"),
            ("Nats-Trace-Dest", "x"),
            ("X-Case", "1"),
            ("X-Case", "2"),
            ("a/b", "3"),
            ("Nats", "4"),
            ("Relay-Reason", "forged"),
            ("relay-ERROR", "forged"),
        ]));
        assert_eq!(copy.len(), 3, "{copy:?}");
        assert_eq!(
            copy.get_all("X-Case").map(|value| value.as_str()).collect::<Vec<_>>(),
            ["1", "2"]
        );
        assert_eq!(copy.get("a/b").unwrap().as_str(), "3");
    }

    #[test]
    fn any_text_becomes_a_value() {
        for (text, expected) in [("cms.größe", "cms.größe"), ("a\u{1}b", "a%01b"), ("", "")] {
            assert_eq!(value(text).as_bytes(), expected.as_bytes());
        }
    }

    fn any_headers() -> impl Strategy<Value = nats::HeaderMap> {
        let name = "[!-9;-~]{1,20}";
        let text = any::<String>().prop_map(|text| text.replace(['\r', '\n'], ""));
        prop::collection::vec((name, text), 0..20).prop_map(|entries| {
            let mut map = nats::HeaderMap::new();
            for (name, value) in entries {
                map.append(name, value);
            }
            map
        })
    }

    proptest! {
        #[test]
        fn whatever_travels_is_legal_and_nothing_is_unaccounted(headers in any_headers()) {
            let (http, illegal) = to_http(&headers);
            for (name, value) in &http {
                prop_assert!(!is_denied(name));
                prop_assert!(!value.as_bytes().iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127)));
            }
            let values: usize = headers.iter().map(|(_, values)| values.len()).sum();
            prop_assert!(http.len() as u64 + illegal <= values as u64);
        }

        #[test]
        fn the_size_on_the_wire_is_exact(headers in any_headers()) {
            let mut expected = 0;
            if !headers.is_empty() {
                expected = "NATS/1.0\r\n\r\n".len();
                for (name, values) in headers.iter() {
                    for value in values {
                        expected += format!("{name}: {}\r\n", value.as_str()).len();
                    }
                }
            }
            prop_assert_eq!(wire_size(&headers), expected);
        }

        #[test]
        fn a_value_is_made_of_any_text(text in any::<String>()) {
            let made = value(&text);
            prop_assert!(!made.as_bytes().iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127)));
            prop_assert_eq!(made.is_empty(), text.is_empty());
        }
    }
}
