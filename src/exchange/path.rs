//! Paths and subjects, one to one: each segment of a path is a token.
//!
//! A segment is percent-decoded, and what a token cannot hold is percent-encoded again:
//! `/files/a.tar.gz` is `files.a%2Etar%2Egz`. A trailing slash does not change the subject.

use crate::exchange::Malformed;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What a path segment cannot hold as it is (RFC 3986, section 3.3).
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The tokens of a request target, joined by dots; empty for `/`.
///
/// # Errors
/// When a segment is empty, leads upwards, or the target is not a path.
pub fn to_tokens(target: &str) -> Result<String, Malformed> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let Some(path) = path.strip_prefix('/') else {
        return Err(Malformed::new("the request target is not a path: it does not begin with /"));
    };
    if path.is_empty() {
        return Ok(String::new());
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut tokens = String::new();
    for segment in path.split('/') {
        let decoded: Vec<u8> = percent_decode_str(segment).collect();
        if decoded.is_empty() {
            return Err(Malformed::new("the path has an empty segment (//)"));
        }
        if has_dots(&decoded) {
            return Err(Malformed::new("the path has a segment that is . or .."));
        }
        if !tokens.is_empty() {
            tokens.push('.');
        }
        push_token(&mut tokens, &decoded);
    }
    Ok(tokens)
}

/// The tokens of a request target as nats-proxy makes them: every slash and every dot separates,
/// encoded or not.
///
/// # Errors
/// When what comes of that is no subject.
pub fn to_literal_tokens(target: &str) -> Result<String, Malformed> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = percent_decode_str(path).decode_utf8();
    let path = path.map_err(|_| Malformed::new("the path is not UTF-8"))?;
    let tokens = path.trim_start_matches('/').replace('/', ".");
    let tokens = tokens.trim_end_matches('.');
    match crate::subject::check(tokens) {
        Ok(()) => Ok(tokens.to_owned()),
        Err(_) if tokens.is_empty() => Ok(String::new()),
        Err(error) => Err(Malformed::new(format!("the path is not a subject: {error}"))),
    }
}

/// Whether a decoded segment is `.` or `..`, or becomes one where a server takes the encoded
/// slashes and backslashes in it for separators.
fn has_dots(segment: &[u8]) -> bool {
    let mut parts = segment.split(|byte| matches!(byte, b'/' | b'\\'));
    parts.any(|part| matches!(part, b"." | b".."))
}

/// Appends bytes as one token.
fn push_token(tokens: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_plain(character) {
                tokens.push(character);
            } else {
                push_encoded(tokens, character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        push_encoded(tokens, chunk.invalid());
    }
}

/// Whether a token can hold a character as it is.
fn is_plain(character: char) -> bool {
    !matches!(character, '.' | '*' | '>' | '%')
        && !character.is_whitespace()
        && !character.is_control()
}

fn push_encoded(tokens: &mut String, bytes: &[u8]) {
    for byte in bytes {
        tokens.push_str(&format!("%{byte:02X}"));
    }
}

/// The path that `tokens` stand for.
///
/// # Errors
/// When they are not what [`to_tokens`] makes of that path: a path has one subject only, or
/// permissions on subjects could be bypassed.
pub fn from_tokens(tokens: &str) -> Result<String, Malformed> {
    let path = path_of(tokens, |token| percent_decode_str(token).collect())?;
    match to_tokens(&path)? == tokens {
        true => Ok(path),
        false => Err(Malformed::new("the subject is not the one of its path")),
    }
}

/// The path that `tokens` of [`to_literal_tokens`] stand for: they are decoded already.
///
/// # Errors
/// When a token is no segment of a path.
pub fn from_literal_tokens(tokens: &str) -> Result<String, Malformed> {
    path_of(tokens, |token| token.as_bytes().to_vec())
}

fn path_of(tokens: &str, segment: impl Fn(&str) -> Vec<u8>) -> Result<String, Malformed> {
    let mut path = String::new();
    for token in tokens.split('.').filter(|_| !tokens.is_empty()) {
        let segment = segment(token);
        if segment.is_empty() || has_dots(&segment) {
            return Err(Malformed::new("the subject has a token that is no path segment"));
        }
        path.push('/');
        for chunk in segment.utf8_chunks() {
            path.extend(utf8_percent_encode(chunk.valid(), SEGMENT));
            push_encoded(&mut path, chunk.invalid());
        }
    }
    if path.is_empty() {
        path.push('/');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_is_a_subject_and_back() {
        for (target, tokens, path) in [
            ("/", "", "/"),
            ("/?x=1", "", "/"),
            ("/a/b/c", "a.b.c", "/a/b/c"),
            ("/a/b/", "a.b", "/a/b"),
            ("/files/a.tar.gz", "files.a%2Etar%2Egz", "/files/a.tar.gz"),
            ("/a%2Fb", "a/b", "/a%2Fb"),
            ("/a%20b/%2A/%3E", "a%20b.%2A.%3E", "/a%20b/*/%3E"),
            ("/100%25", "100%25", "/100%25"),
            ("/gr%C3%B6%C3%9Fe", "größe", "/gr%C3%B6%C3%9Fe"),
            ("/%FF", "%FF", "/%FF"),
            ("/%0d%0aPUB", "%0D%0APUB", "/%0D%0APUB"),
            ("/a%00b", "a%00b", "/a%00b"),
            ("/$SYS/x", "$SYS.x", "/$SYS/x"),
            ("/a%", "a%25", "/a%25"),
        ] {
            assert_eq!(to_tokens(target).as_deref(), Ok(tokens), "{target}");
            assert_eq!(from_tokens(tokens).as_deref(), Ok(path), "{tokens}");
        }
    }

    #[test]
    fn what_is_no_path_of_segments_is_refused() {
        for target in [
            "*",
            "",
            "a",
            "//",
            "/a//b",
            "/./a",
            "/a/..",
            "/%2e%2E/a",
            "/a/%2e",
            "http://h/a",
            "/a%2f..%2Fb",
            "/%2e.%5cb",
            "/a%2F.",
        ] {
            assert!(to_tokens(target).is_err(), "{target}");
        }
        for tokens in ["a..b", ".a", "a.", "%2E%2E", "a.%2e", "a/%2E%2E/b"] {
            assert!(from_tokens(tokens).is_err(), "{tokens}");
        }
    }

    #[test]
    fn a_path_has_one_subject_only() {
        for tokens in ["%61dmin", "a%2etar", "a%2Fb", "gr%C3%B6", "a\u{1b}", "a%", "a*"] {
            assert!(from_tokens(tokens).is_err(), "{tokens}");
        }
    }

    proptest! {
        #[test]
        fn different_paths_are_different_subjects(
            bytes in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            let segment: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
            let target = format!("/{segment}");
            if let Ok(tokens) = to_tokens(&target) {
                prop_assert!(crate::subject::check(&tokens).is_ok(), "{}", tokens);
                prop_assert!(!tokens.contains('.'));
                let back: Vec<u8> = percent_decode_str(&tokens).collect();
                prop_assert_eq!(&back, &bytes);
                let path = from_tokens(&tokens).unwrap();
                prop_assert_eq!(to_tokens(&path).unwrap(), tokens);
            }
        }

        #[test]
        fn any_target_is_a_subject_or_refused(target in any::<String>()) {
            if let Ok(tokens) = to_tokens(&target) {
                prop_assert!(tokens.is_empty() || crate::subject::check(&tokens).is_ok());
            }
        }
    }
}
