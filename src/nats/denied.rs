//! What nats-server says about permissions, read back: which subject it denies.

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    Publish,
    Subscription,
}

/// Reads nats-server's `Permissions Violation for Publish to "SUBJECT"` and its twin for
/// subscriptions. The subject is quoted as Go's `%q` does.
pub(super) fn denied(text: &str) -> Option<(Denied, String)> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let (kind, quoted) = match rest.strip_prefix("Publish to \"") {
        Some(quoted) => (Denied::Publish, quoted),
        None => (Denied::Subscription, rest.strip_prefix("Subscription to \"")?),
    };
    Some((kind, unquote(quoted)?))
}

/// Reads what Go's `strconv.Quote` wrote, from after the first quotation mark to the second. It
/// escapes what is not printable, by Go's own tables of Unicode, and each byte that is not UTF-8;
/// the relay uses no subject with such a byte.
fn unquote(quoted: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = quoted.chars();
    loop {
        let character = match rest.next()? {
            '"' => return String::from_utf8(bytes).ok(),
            '\\' => match rest.next()? {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                'x' => {
                    bytes.push(u8::try_from(hexadecimal(&mut rest, 2)?).ok()?);
                    continue;
                }
                'u' => char::from_u32(hexadecimal(&mut rest, 4)?)?,
                'U' => char::from_u32(hexadecimal(&mut rest, 8)?)?,
                itself => itself,
            },
            character => character,
        };
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The number that the next `digits` characters are, eight at most.
fn hexadecimal(text: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0, |number, _| Some(number * 16 + text.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write;

    #[test]
    fn denials_are_read_as_the_server_writes_them() {
        for (text, expected) in [
            (r#"Permissions Violation for Publish to "a.b""#, Some((Denied::Publish, "a.b"))),
            (
                r#"Permissions Violation for Publish to "a.\"q\"\\""#,
                Some((Denied::Publish, r#"a."q"\"#)),
            ),
            (
                r#"Permissions Violation for Subscription to "a.>""#,
                Some((Denied::Subscription, "a.>")),
            ),
            (
                r#"Permissions Violation for Subscription to "a.>" using queue "q""#,
                Some((Denied::Subscription, "a.>")),
            ),
            (
                r#"Permissions Violation for Publish to "a.\u200bb""#,
                Some((Denied::Publish, "a.\u{200b}b")),
            ),
            (
                r#"Permissions Violation for Publish to "\a\b\f\n\r\t\v""#,
                Some((Denied::Publish, "\u{7}\u{8}\u{c}\n\r\t\u{b}")),
            ),
            (
                r#"Permissions Violation for Publish to "\x01\x7f\u00a0""#,
                Some((Denied::Publish, "\u{1}\u{7f}\u{a0}")),
            ),
            (
                r#"Permissions Violation for Publish to "\U000e0001😀é\ufeff""#,
                Some((Denied::Publish, "\u{e0001}😀é\u{feff}")),
            ),
            (
                r#"Permissions Violation for Publish to "a.\\x01\\u200b""#,
                Some((Denied::Publish, r"a.\x01\u200b")),
            ),
            (
                r#"Permissions Violation for Subscription to "a.\u200b" using queue "\x01""#,
                Some((Denied::Subscription, "a.\u{200b}")),
            ),
            // Not UTF-8, and what Go does not write.
            (r#"Permissions Violation for Publish to "a.\xff""#, None),
            (r#"Permissions Violation for Publish to "a.\ud800""#, None),
            (r#"Permissions Violation for Publish to "a.\u200""#, None),
            (r#"Permissions Violation for Publish to "a.\UFFFFFFFF""#, None),
            ("Authorization Violation", None),
            (r#"Permissions Violation for Publish to "unfinished"#, None),
        ] {
            assert_eq!(
                denied(text),
                expected.map(|(kind, subject)| (kind, subject.to_owned())),
                "{text}"
            );
        }
    }

    /// Quotes as Go does, which escapes more than it must: what is not printable.
    fn quote(subject: &[(char, bool)]) -> String {
        let mut quoted = String::new();
        for &(character, is_printable) in subject {
            let code = u32::from(character);
            match character {
                '"' | '\\' => quoted.extend(['\\', character]),
                '\u{7}' => quoted.push_str(r"\a"),
                '\u{8}' => quoted.push_str(r"\b"),
                '\u{b}' => quoted.push_str(r"\v"),
                '\u{c}' => quoted.push_str(r"\f"),
                '\n' => quoted.push_str(r"\n"),
                '\r' => quoted.push_str(r"\r"),
                '\t' => quoted.push_str(r"\t"),
                '\0'..' ' | '\u{7f}' => write!(quoted, r"\x{code:02x}").unwrap(),
                ' '..='~' => quoted.push(character),
                _ if is_printable => quoted.push(character),
                ..='\u{ffff}' => write!(quoted, r"\u{code:04x}").unwrap(),
                _ => write!(quoted, r"\U{code:08x}").unwrap(),
            }
        }
        quoted
    }

    proptest! {
        #[test]
        fn any_subject_that_go_quotes_is_read_back(subject in any::<Vec<(char, bool)>>()) {
            let expected = subject.iter().map(|(character, _)| *character).collect::<String>();
            let text = format!("Permissions Violation for Publish to \"{}\"", quote(&subject));
            prop_assert_eq!(denied(&text), Some((Denied::Publish, expected)));
        }

        #[test]
        fn reading_a_denial_never_panics(subject in any::<String>()) {
            let _ = denied(&format!("Permissions Violation for Publish to \"{subject}"));
        }
    }
}
