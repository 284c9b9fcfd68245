//! How the relay proves to NATS who it is.
//!
//! Owns the forms that a proof has (password, token, seed, JWT) and the answer to a server's
//! challenge. What was given as a file is read again for each connection, so that it may be
//! replaced while the relay runs. Nothing here puts a secret into an error.

use crate::nats::jwt::Claims;
use crate::secret::Secret;
use async_nats::Auth;
use nkeys::{KeyPair, KeyPairType};
use std::path::PathBuf;
use std::time::SystemTime;

/// How to log in to NATS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Login {
    /// The server asks for nothing.
    #[default]
    Anonymous,
    Password {
        user: String,
        /// Its password, which may be empty.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of a key whose public part the server knows.
    Nkey(SecretSource),
    /// The JWT of a user with its seed, together.
    Credentials(SecretSource),
    /// The JWT of a user, and its seed, which that of a bearer does without.
    Jwt {
        /// The JWT.
        jwt: Secret,
        /// The seed of the user that it names.
        seed: Option<Secret>,
    },
}

/// A secret itself, or where it is to be read again each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretSource {
    Text(Secret),
    /// The path of a file that holds it.
    File(PathBuf),
}

impl SecretSource {
    /// The secret.
    ///
    /// # Errors
    /// Says why the file cannot be read, without its path, which could be a misplaced secret.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => std::fs::read_to_string(path)
                .map(Secret::new)
                .map_err(|error| format!("cannot read the file that it names: {error}")),
        }
    }
}

impl Login {
    /// Whether everything that is needed can be read and fits together.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.answer(&[]).map(drop)
    }

    /// What the relay says to a server that has sent `nonce`.
    ///
    /// # Errors
    /// Says what is wrong with the login.
    pub(crate) fn answer(&self, nonce: &[u8]) -> Result<Auth, String> {
        let mut auth = Auth::new();
        match self {
            Self::Anonymous => {}
            Self::Password { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.expose().to_owned());
            }
            Self::Token(token) => auth.token = Some(token.expose().to_owned()),
            Self::Nkey(source) => {
                let key = user_key(source.read()?.expose())?;
                auth.signature = Some(sign(&key, nonce)?);
                auth.nkey = Some(key.public_key());
            }
            Self::Credentials(source) => {
                let text = source.read()?;
                let key = user_key(text.expose())?;
                answer_with_jwt(&mut auth, text.expose(), Some(&key), nonce)?;
            }
            Self::Jwt { jwt, seed } => {
                let key = seed.as_ref().map(|seed| user_key(seed.expose())).transpose()?;
                answer_with_jwt(&mut auth, jwt.expose(), key.as_ref(), nonce)?;
            }
        }
        Ok(auth)
    }

    /// When the login ends to be valid, where it says so itself.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        let text = match self {
            Self::Credentials(source) => source.read().ok()?,
            Self::Jwt { jwt, .. } => jwt.clone(),
            Self::Anonymous | Self::Password { .. } | Self::Token(_) | Self::Nkey(_) => {
                return None;
            }
        };
        Claims::find(text.expose()).ok()?.1.expires
    }

    /// Since when the login is not valid any more.
    pub(crate) fn expired(&self) -> Option<SystemTime> {
        self.expires().filter(|end| *end <= SystemTime::now())
    }
}

/// The key of a user whose seed is in `text`: alone, or within the file of a seed or of
/// credentials.
///
/// # Errors
/// Says what is there instead.
pub(crate) fn user_key(text: &str) -> Result<KeyPair, String> {
    const LENGTH: usize = 58;
    let seeds =
        text.split_whitespace().filter(|word| word.len() == LENGTH && word.starts_with('S'));
    let mut keys = seeds.filter_map(|seed| KeyPair::from_seed(seed).ok()).peekable();
    let other = keys.peek().map(KeyPair::key_pair_type);
    match (keys.find(|key| matches!(key.key_pair_type(), KeyPairType::User)), other) {
        (Some(key), _) => Ok(key),
        (None, Some(_)) => Err("holds the seed of something else than a user".to_owned()),
        (None, None) => Err("holds no valid seed of a user (SU...)".to_owned()),
    }
}

fn answer_with_jwt(
    auth: &mut Auth,
    text: &str,
    key: Option<&KeyPair>,
    nonce: &[u8],
) -> Result<(), String> {
    let (jwt, claims) = Claims::find(text)?;
    match key {
        Some(key) if key.public_key() != claims.user => {
            return Err("the seed is not that of the user in the JWT".to_owned());
        }
        Some(key) => auth.signature = Some(sign(key, nonce)?),
        None if claims.bearer => {}
        None => return Err("the JWT needs its seed".to_owned()),
    }
    auth.jwt = Some(jwt.to_owned());
    Ok(())
}

fn sign(key: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>, String> {
    key.sign(nonce).map_err(|_| "the seed cannot sign".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

    fn jwt(user: &KeyPair, more: &str) -> String {
        let claims = format!(r#"{{"sub":"{}","nats":{{"type":"user"{more}}}}}"#, user.public_key());
        format!(
            "{}.{}.{}",
            BASE64.encode(r#"{"typ":"JWT"}"#),
            BASE64.encode(claims),
            BASE64.encode("signature")
        )
    }

    #[test]
    fn a_seed_is_found_wherever_it_may_be() {
        let user = KeyPair::new_user();
        let (seed, jwt) = (user.seed().unwrap(), jwt(&user, ""));
        for text in [
            seed.clone(),
            format!("{seed}\n{}\n", user.public_key()),
            format!(
                "-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
            ),
            format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER \
                 JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n---"
            ),
        ] {
            assert_eq!(user_key(&text).unwrap().public_key(), user.public_key(), "{text}");
        }
    }

    #[test]
    fn what_is_no_seed_of_a_user_is_refused_without_being_shown() {
        let (user, account) =
            (KeyPair::new_user().seed().unwrap(), KeyPair::new_account().seed().unwrap());
        let broken = format!("{}{}", &user[..57], if user.ends_with('A') { 'E' } else { 'A' });
        for (text, expected) in [
            (account.as_str(), "something else than a user"),
            (&user[1..], "no valid seed"),
            (&user.to_lowercase(), "no valid seed"),
            (&format!("{user}A"), "no valid seed"),
            (&broken, "no valid seed"),
            ("", "no valid seed"),
        ] {
            let error = user_key(text).map(|key| key.public_key()).unwrap_err();
            assert!(
                error.contains(expected) && (text.is_empty() || !error.contains(text)),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_jwt_and_its_seed_belong_together() {
        let (user, other) = (KeyPair::new_user(), KeyPair::new_user());
        let login = |more: &str, seed: Option<&KeyPair>| Login::Jwt {
            jwt: Secret::new(jwt(&user, more)),
            seed: seed.map(|key| Secret::new(key.seed().unwrap())),
        };
        let answer = login("", Some(&user)).answer(b"nonce").unwrap();
        user.verify(b"nonce", &answer.signature.unwrap()).unwrap();
        assert_eq!(answer.jwt, Some(jwt(&user, "")));
        assert!(login("", Some(&other)).check().unwrap_err().contains("not that of the user"));
        assert!(login("", None).check().unwrap_err().contains("needs its seed"));
        let bearer = login(r#","bearer_token":true"#, None).answer(b"nonce").unwrap();
        assert!(bearer.jwt.is_some() && bearer.signature.is_none());
    }

    #[test]
    fn a_file_is_read_again_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let login = Login::Nkey(SecretSource::File(file.path().to_owned()));
        assert!(login.check().is_err());
        for user in [KeyPair::new_user(), KeyPair::new_user()] {
            std::fs::write(file.path(), user.seed().unwrap()).unwrap();
            assert_eq!(login.answer(b"n").unwrap().nkey, Some(user.public_key()));
        }
    }
}
