//! An operator with one account, as `nsc` sets them up, whose server trusts its JWTs.

use super::nats::NatsServer;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use nkeys::KeyPair;
use serde_json::{Value, json};

pub struct Operator {
    key: KeyPair,
    account: KeyPair,
}

/// A user of the account.
pub struct User {
    pub jwt: String,
    pub seed: String,
}

impl Operator {
    pub fn new() -> Self {
        Self { key: KeyPair::new_operator(), account: KeyPair::new_account() }
    }

    pub fn server(&self) -> NatsServer {
        let operator = jwt(
            &self.key,
            &self.key.public_key(),
            json!({}),
            json!({"type": "operator", "version": 2}),
        );
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        let account = self.account.public_key();
        let claims = json!({"type": "account", "version": 2, "limits": limits});
        let account_jwt = jwt(&self.key, &account, json!({}), claims);
        NatsServer::with_config(&format!(
            "operator: {operator}\nresolver: MEMORY\nresolver_preload: {{ {account}: {account_jwt} }}"
        ))
    }

    /// A user who may do anything.
    pub fn user(&self) -> User {
        self.user_with(json!({}), json!({}))
    }

    /// A user with more in the JWT: beside what NATS defines, and within it.
    pub fn user_with(&self, more: Value, nats: Value) -> User {
        let key = KeyPair::new_user();
        let claims = merged(
            json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}),
            nats,
        );
        User { jwt: jwt(&self.account, &key.public_key(), more, claims), seed: key.seed().unwrap() }
    }
}

impl User {
    /// The content of a credentials file.
    pub fn credentials(&self) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\
             NKEYs are sensitive and should be treated as secrets.\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n",
            self.jwt, self.seed
        )
    }
}

fn jwt(issuer: &KeyPair, subject: &str, more: Value, nats: Value) -> String {
    let claims = json!({"iss": issuer.public_key(), "sub": subject, "name": "test", "iat": 1_700_000_000, "nats": nats});
    let head = BASE64.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let text = format!("{head}.{}", BASE64.encode(merged(claims, more).to_string()));
    let signature = BASE64.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

fn merged(mut value: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    value.as_object_mut().unwrap().extend(more);
    value
}
