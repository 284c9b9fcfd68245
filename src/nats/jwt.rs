//! What a user's JWT says of itself. Whether it is genuine is for the server to find out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::Value;
use std::time::{Duration, SystemTime};

/// The claims that matter to the user itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The public key of the user.
    pub(crate) user: String,
    /// When it ends to be valid, if it does.
    pub(crate) expires: Option<SystemTime>,
    /// Whether it is enough by itself, without a signature.
    pub(crate) bearer: bool,
}

impl Claims {
    /// The JWT in `text`, alone or within a credentials file, with its claims.
    ///
    /// # Errors
    /// Says what is there instead.
    pub(crate) fn find(text: &str) -> Result<(&str, Self), String> {
        // The header is a JSON object, which in base64 begins like this.
        let jwt = text
            .split_whitespace()
            .find(|word| word.starts_with("eyJ") && word.split('.').count() == 3);
        let jwt = jwt.ok_or("holds no JWT (eyJ...)")?;
        let claims =
            jwt.split('.').nth(1).and_then(|part| BASE64.decode(part.trim_end_matches('=')).ok());
        let claims: Value = claims
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or("holds a JWT that cannot be read")?;
        let nats = claims.get("nats");
        // The first version of the claims had the type beside them.
        let kind =
            nats.and_then(|nats| nats.get("type")).or(claims.get("type")).and_then(Value::as_str);
        let user = claims.get("sub").and_then(Value::as_str).filter(|_| kind == Some("user"));
        let user = user.ok_or("holds a JWT that is not one of a NATS user")?.to_owned();
        let expires = claims.get("exp").and_then(Value::as_u64).filter(|seconds| *seconds > 0);
        let expires = expires
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let bearer = nats
            .and_then(|nats| nats.get("bearer_token"))
            .and_then(Value::as_bool)
            .unwrap_or_default();
        Ok((jwt, Self { user, expires, bearer }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!(
            "{}.{}.{}",
            BASE64.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#),
            BASE64.encode(claims),
            BASE64.encode("signature")
        )
    }

    #[test]
    fn claims_are_found_alone_and_in_a_credentials_file() {
        let jwt = jwt(r#"{"sub":"UA","exp":1700000000,
                "nats":{"type":"user","version":2,"bearer_token":true}}"#);
        let expires = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        for text in [
            jwt.clone(),
            format!(
                "-----BEGIN NATS USER JWT-----\r\n{jwt}\r\n------END NATS USER JWT------\r\nSUA"
            ),
        ] {
            assert_eq!(
                Claims::find(&text).unwrap(),
                (jwt.as_str(), Claims { user: "UA".to_owned(), expires, bearer: true })
            );
        }
    }

    #[test]
    fn without_an_end_a_jwt_is_valid_for_ever() {
        for claims in [
            r#"{"sub":"UA","nats":{"type":"user"}}"#,
            r#"{"sub":"UA","exp":0,"type":"user","nats":{}}"#,
        ] {
            let jwt = jwt(claims);
            assert_eq!(
                Claims::find(&jwt).unwrap().1,
                Claims { user: "UA".to_owned(), expires: None, bearer: false }
            );
        }
    }

    #[test]
    fn what_is_no_jwt_of_a_user_is_told_apart() {
        let account = jwt(r#"{"sub":"AA","nats":{"type":"account"}}"#);
        let nobody = jwt(r#"{"nats":{"type":"user"}}"#);
        for (text, expected) in [
            ("", "no JWT"),
            ("hunter2", "no JWT"),
            ("eyJ.hunter2", "no JWT"),
            ("eyJ.%%%.x", "cannot be read"),
            ("eyJ.aHVudGVyMg.x", "cannot be read"),
            (&account, "not one of a NATS user"),
            (&nobody, "not one of a NATS user"),
        ] {
            let error = Claims::find(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
