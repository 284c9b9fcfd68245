//! Standard Webhooks signatures (<https://www.standardwebhooks.com>), by which a receiver knows
//! that a call is the relay's: HMAC-SHA256 over `id.timestamp.body`, with each of the keys.
//!
//! Owns the form of a secret. No key can be printed.

use crate::headers::{self, WEBHOOK_ID, WEBHOOK_TIMESTAMP};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use ring::hmac;
use std::fmt;
use std::ops::RangeInclusive;

/// How many bytes the specification allows in a key.
const KEY_BYTES: RangeInclusive<usize> = 24..=64;

/// What calls are signed with. Each key gives a signature of its own, so that a receiver which
/// knows one of them is content while they are being rotated.
#[derive(Clone, Default)]
pub(crate) struct Keys(Vec<hmac::Key>);

impl Keys {
    /// Reads secrets, `whsec_` and base64 each, separated by white space.
    ///
    /// # Errors
    /// What is wrong with each that is not one, by its number.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<String>> {
        let (mut keys, mut mistakes) = (Vec::new(), Vec::new());
        for (index, secret) in text.split_whitespace().enumerate() {
            match key(secret) {
                Ok(key) => keys.push(key),
                Err(mistake) => mistakes.push(format!("number {} {mistake}", index + 1)),
            }
        }
        if mistakes.is_empty() { Ok(Self(keys)) } else { Err(mistakes) }
    }

    /// The signatures of a call with these headers, which have its id and time; `None` without
    /// keys.
    pub(crate) fn sign(&self, call: &HeaderMap, body: &[u8]) -> Option<HeaderValue> {
        let (id, timestamp) =
            (call.get(WEBHOOK_ID)?.as_bytes(), call.get(WEBHOOK_TIMESTAMP)?.as_bytes());
        let signatures = self.0.iter().map(|key| {
            let mut signed = hmac::Context::with_key(key);
            [id, b".", timestamp, b".", body].into_iter().for_each(|part| signed.update(part));
            format!("v1,{}", STANDARD.encode(signed.sign()))
        });
        let signatures = signatures.collect::<Vec<_>>();
        (!signatures.is_empty()).then(|| headers::value(&signatures.join(" ")))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(***)")
    }
}

fn key(secret: &str) -> Result<hmac::Key, &'static str> {
    let encoded = secret.strip_prefix("whsec_").ok_or("does not begin with whsec_")?;
    let bytes =
        STANDARD.decode(encoded).map_err(|_| "is not base64 (with padding) after whsec_")?;
    if !KEY_BYTES.contains(&bytes.len()) {
        return Err("has fewer than 24 or more than 64 bytes");
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &'static str, timestamp: &'static str) -> HeaderMap {
        HeaderMap::from_iter([
            (WEBHOOK_ID, HeaderValue::from_static(id)),
            (WEBHOOK_TIMESTAMP, HeaderValue::from_static(timestamp)),
        ])
    }

    /// The example of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_signature_is_that_of_the_official_libraries() {
        let call = call("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330");
        let body = b"{\"test\": 2432232314}";
        assert_eq!(Keys::parse(SECRET).unwrap().sign(&call, body).unwrap(), SIGNATURE);
        let both = format!("\n{SECRET}\t whsec_{} ", STANDARD.encode([7; 64]));
        let signatures = Keys::parse(&both).unwrap().sign(&call, body).unwrap();
        let signatures: Vec<_> = signatures.to_str().unwrap().split(' ').collect();
        assert!(
            signatures.len() == 2 && signatures[0] == SIGNATURE && signatures[1].starts_with("v1,"),
            "{signatures:?}"
        );
        assert_ne!(signatures[0], signatures[1]);
    }

    #[test]
    fn every_part_of_a_call_is_signed() {
        let keys = Keys::parse(SECRET).unwrap();
        let sign = |id, timestamp, body: &[u8]| keys.sign(&call(id, timestamp), body).unwrap();
        let all = [
            sign("a", "1", b"x"),
            sign("b", "1", b"x"),
            sign("a", "2", b"x"),
            sign("a", "1", b"\xff\0"),
            sign("a", "1", b""),
        ];
        for (index, one) in all.iter().enumerate() {
            assert_eq!(all.iter().filter(|other| *other == one).count(), 1, "{index}");
        }
    }

    #[test]
    fn without_keys_nothing_is_signed() {
        assert!(Keys::default().sign(&call("a", "1"), b"").is_none());
    }

    #[test]
    fn a_malformed_secret_is_named_by_its_number_and_not_shown() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![b'k'; bytes]));
        for (secret, expected) in [
            (of(23), "fewer than 24"),
            (of(65), "fewer than 24"),
            ("whsec_".to_owned(), "fewer than 24"),
            (SECRET.trim_start_matches("whsec_").to_owned(), "whsec_"),
            ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), "whsec_"),
            (format!("{SECRET}="), "base64"),
            (of(25).trim_end_matches('=').to_owned(), "base64"),
            ("whsec_hunter2hunter2hunter2hunter2!!!".to_owned(), "base64"),
            (format!("{SECRET},{SECRET}"), "base64"),
        ] {
            let mistakes = Keys::parse(&format!("{SECRET} {secret}")).unwrap_err();
            assert!(
                mistakes.len() == 1
                    && mistakes[0].starts_with("number 2 ")
                    && mistakes[0].contains(expected),
                "{mistakes:?}"
            );
            assert!(
                !mistakes[0].contains("hunter2") && !mistakes[0].contains("MfKQ"),
                "{mistakes:?}"
            );
        }
        for bytes in [24, 25, 32, 64] {
            assert_eq!(Keys::parse(&of(bytes)).unwrap().0.len(), 1, "{bytes}");
        }
        assert_eq!(format!("{:?}", Keys::parse(SECRET).unwrap()), "Keys(***)");
    }
}
