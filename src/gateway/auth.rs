//! Who may use the gateway: bearer tokens, and signatures of webhook senders.

use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use ring::{digest, hmac};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subtle::ConstantTimeEq;

/// How far a signature's time may be from ours.
const CLOCK: Duration = Duration::from_secs(5 * 60);

/// How a sender signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    Standard,
    /// `X-Hub-Signature-256`.
    GitHub,
    /// `Stripe-Signature`.
    Stripe,
}

/// The secrets that bodies may be signed with, several while they are being rotated.
#[derive(Clone)]
pub struct Verifier {
    scheme: Scheme,
    keys: Vec<hmac::Key>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?}, ***)", self.scheme)
    }
}

/// A bearer token, kept so that comparing takes the same time for each.
#[derive(Clone)]
pub struct Token(digest::Digest);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Token {
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(digest::digest(&digest::SHA256, text.as_bytes()))
    }

    /// Whether a request carries one of these tokens.
    #[must_use]
    pub fn is_in(tokens: &[Self], headers: &HeaderMap) -> bool {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = value.and_then(|value| value.split_once(' ')) else {
            return false;
        };
        let given = Self::new(token.trim());
        let equal = |token: &Self| bool::from(token.0.as_ref().ct_eq(given.0.as_ref()));
        // All are compared, so that it does not show which one it was.
        scheme.eq_ignore_ascii_case("bearer")
            & tokens.iter().fold(false, |any, one| any | equal(one))
    }
}

impl Verifier {
    /// Reads secrets separated by white space.
    ///
    /// # Errors
    /// Names those that are malformed by their number.
    pub fn new(scheme: Scheme, secrets: &Secret) -> Result<Self, Vec<String>> {
        let (mut keys, mut mistakes) = (Vec::new(), Vec::new());
        for (index, secret) in secrets.expose().split_whitespace().enumerate() {
            let key = match scheme {
                Scheme::Standard => secret
                    .strip_prefix("whsec_")
                    .and_then(|encoded| STANDARD.decode(encoded).ok())
                    .filter(|key| (24..=64).contains(&key.len())),
                Scheme::GitHub | Scheme::Stripe => Some(secret.as_bytes().to_vec()),
            };
            match key {
                Some(key) => keys.push(hmac::Key::new(hmac::HMAC_SHA256, &key)),
                None => mistakes.push(format!(
                    "number {} is not whsec_ and the base64 of 24 to 64 bytes",
                    index + 1
                )),
            }
        }
        if mistakes.is_empty() { Ok(Self { scheme, keys }) } else { Err(mistakes) }
    }

    /// Whether the body is signed with one of the secrets, within five minutes of `now`.
    #[must_use]
    pub fn accepts(&self, headers: &HeaderMap, body: &[u8], now: SystemTime) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        match self.scheme {
            Scheme::Standard => {
                let (Some(id), Some(time)) = (text("webhook-id"), text("webhook-timestamp")) else {
                    return false;
                };
                let given = text("webhook-signature").unwrap_or_default().split(' ');
                let given = given.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
                is_recent(time, now) && self.signed(&[id, ".", time, "."], body, given)
            }
            Scheme::GitHub => {
                let given = text("x-hub-signature-256").and_then(|one| one.strip_prefix("sha256="));
                self.signed(&[], body, given.and_then(hexadecimal).into_iter())
            }
            Scheme::Stripe => {
                let parts = text("stripe-signature").unwrap_or_default().split(',');
                let parts: Vec<_> = parts.filter_map(|part| part.trim().split_once('=')).collect();
                let Some((_, time)) = parts.iter().find(|(name, _)| *name == "t") else {
                    return false;
                };
                let given = parts.iter().filter(|(name, _)| *name == "v1");
                let given = given.filter_map(|(_, value)| hexadecimal(value));
                is_recent(time, now) && self.signed(&[time, "."], body, given)
            }
        }
    }

    /// Whether one of the signatures is one of what `head` and `body` are together.
    fn signed(&self, head: &[&str], body: &[u8], given: impl Iterator<Item = Vec<u8>>) -> bool {
        let signed = [head.concat().as_bytes(), body].concat();
        let verify = |signature: &[u8]| {
            self.keys.iter().any(|key| hmac::verify(key, &signed, signature).is_ok())
        };
        given.take(10).any(|signature| verify(&signature))
    }
}

fn is_recent(time: &str, now: SystemTime) -> bool {
    let Some(time) =
        time.parse().ok().and_then(|time| UNIX_EPOCH.checked_add(Duration::from_secs(time)))
    else {
        return false;
    };
    let apart = now.duration_since(time).or_else(|_| time.duration_since(now));
    apart.is_ok_and(|apart| apart <= CLOCK)
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<_>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    let byte = |pair: &[u32]| pair.iter().fold(0, |byte, digit| byte * 16 + *digit as u8);
    Some(digits.chunks(2).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn standard_webhooks_are_verified_as_the_official_libraries_do() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let verifier = Verifier::new(Scheme::Standard, &secret).unwrap();
        let (body, time) = (b"{\"test\": 2432232314}", 1_614_265_330);
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let signed = |id, time, signature| {
            headers(&[
                ("webhook-id", id),
                ("webhook-timestamp", time),
                ("webhook-signature", signature),
            ])
        };
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let good = signed(id, "1614265330", signature);
        assert!(
            verifier.accepts(&good, body, at(time))
                && verifier.accepts(&good, body, at(time + 299))
        );
        let two = format!("v1,AAAA {signature}");
        let both = signed(id, "1614265330", &two);
        assert!(verifier.accepts(&both, body, at(time - 299)));
        for (headers, body, now) in [
            (good.clone(), &body[1..], at(time)),
            (good.clone(), &body[..], at(time + 301)),
            (good, &body[..], at(time - 301)),
            (signed("msg_other", "1614265330", signature), &body[..], at(time)),
            (signed(id, "1614265331", signature), &body[..], at(time)),
            (signed(id, "99999999999999999999", signature), &body[..], at(time)),
            (signed(id, "1614265330", "v2,x"), &body[..], at(time)),
            (HeaderMap::new(), &body[..], at(time)),
        ] {
            assert!(!verifier.accepts(&headers, body, now), "{headers:?}");
        }
    }

    #[test]
    fn github_and_stripe_sign_in_their_own_ways() {
        // The example of GitHub's documentation.
        let secret = Secret::new("It's-a-Secret-to-Everybody".replace('-', " ").replace(' ', "_"));
        let github = Verifier::new(Scheme::GitHub, &secret).unwrap();
        let sign = |secret: &Secret, text: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
            let tag = hmac::sign(&key, text.as_bytes());
            tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let given = format!("sha256={}", sign(&secret, "Hello, World!"));
        let good = headers(&[("x-hub-signature-256", &given)]);
        assert!(github.accepts(&good, b"Hello, World!", at(0)));
        assert!(!github.accepts(&good, b"Hello, World?", at(0)));
        assert!(!github.accepts(&headers(&[("x-hub-signature-256", "sha256=0")]), b"", at(0)));

        let secret = Secret::new("whsec_old whsec_new");
        let stripe = Verifier::new(Scheme::Stripe, &secret).unwrap();
        let given = format!("t=1000,v1=00,v1={}", sign(&Secret::new("whsec_new"), "1000.{}"));
        let good = headers(&[("stripe-signature", &given)]);
        assert!(stripe.accepts(&good, b"{}", at(1200)) && !stripe.accepts(&good, b"{}", at(1301)));
        assert!(!stripe.accepts(&good, b"{ }", at(1000)));
    }

    #[test]
    fn a_token_is_one_of_those_that_are_known() {
        let tokens = [Token::new("hunter2"), Token::new("other")];
        for (value, expected) in [
            ("Bearer hunter2", true),
            ("bearer other", true),
            ("Bearer hunter", false),
            ("Basic hunter2", false),
            ("hunter2", false),
        ] {
            assert_eq!(
                Token::is_in(&tokens, &headers(&[("authorization", value)])),
                expected,
                "{value}"
            );
        }
        assert!(!Token::is_in(&tokens, &HeaderMap::new()));
        assert!(!format!("{tokens:?}").contains("hunter2"));
    }
}
