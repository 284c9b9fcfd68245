//! The pure arithmetic of subjects: what a prefix is, what lies under it, and how a subject
//! moves from one prefix, or from one exact subject, to another.
//!
//! A prefix is always whole tokens: `cms.cache` covers `cms.cache.article` and never
//! `cms.cachet`. Nothing here knows a connection or a message.

use std::fmt;

/// The longest subject that is published. nats-server closes a connection that sends a
/// control line above 4096 bytes (`max_control_line`); the rest is room for the verb and sizes.
pub const MAX_SUBJECT_BYTES: usize = 4000;

/// One or more literal tokens that subjects begin with, such as `cms.cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// What a relay listens on, or republishes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// Everything below a prefix.
    Below(Prefix),
    /// One subject. Only what a plugin remaps is republished below it.
    Exact(Prefix),
}

/// Why a text is not literal tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Nothing, or only white space.
    #[error("it is empty")]
    Empty,
    /// `*` or `>` anywhere.
    #[error("it has a wildcard (* or >)")]
    Wildcard,
    /// White space or a control character anywhere.
    #[error("it has white space or a control character")]
    WhiteSpace,
    /// A dot at the start or the end, or two in a row.
    #[error("it has an empty token (a dot at its start or end, or two in a row)")]
    EmptyToken,
    /// No room would be left for the rest of a subject.
    #[error("it is longer than 1000 bytes")]
    TooLong,
}

/// Whether `text` is one or more literal tokens.
///
/// # Errors
/// Names the first rule that `text` breaks.
pub fn check(text: &str) -> Result<(), SubjectError> {
    if text.is_empty() {
        Err(SubjectError::Empty)
    } else if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Err(SubjectError::WhiteSpace)
    } else if text.contains(['*', '>']) {
        Err(SubjectError::Wildcard)
    } else if text.split('.').any(str::is_empty) {
        Err(SubjectError::EmptyToken)
    } else {
        Ok(())
    }
}

impl Prefix {
    /// Reads a prefix.
    ///
    /// # Errors
    /// Names the first rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, SubjectError> {
        check(text)?;
        if text.len() > 1000 { Err(SubjectError::TooLong) } else { Ok(Self(text.to_owned())) }
    }

    /// The subject to subscribe to: everything below the prefix.
    #[must_use]
    pub fn wildcard(&self) -> String {
        format!("{}.>", self.0)
    }

    /// What of `subject` lies below the prefix, without the dot between; `None` where it is
    /// not below it. The prefix itself is not below itself.
    #[must_use]
    pub fn tail<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let tail = subject.strip_prefix(self.0.as_str())?.strip_prefix('.')?;
        (!tail.is_empty()).then_some(tail)
    }

    /// The subject that has `tail` below this prefix.
    #[must_use]
    pub fn subject(&self, tail: &str) -> String {
        [self.0.as_str(), ".", tail].concat()
    }
}

impl Subjects {
    /// The subject to subscribe to.
    #[must_use]
    pub fn pattern(&self) -> String {
        match self {
            Self::Below(prefix) => prefix.wildcard(),
            Self::Exact(subject) => subject.to_string(),
        }
    }

    /// All that may be republished on, with what plugins remap.
    #[must_use]
    pub fn published(&self) -> Vec<String> {
        match self {
            Self::Below(prefix) => vec![prefix.wildcard()],
            Self::Exact(subject) => vec![subject.to_string(), subject.wildcard()],
        }
    }

    /// Whether something that is republished on these may be received by a subscription to
    /// `pattern`.
    #[must_use]
    pub fn may_reach(&self, pattern: &str) -> bool {
        self.published().iter().any(|published| meets(published, pattern))
    }

    /// What tells `subject` from the others of these, which is nothing for the exact one; `None`
    /// where it is not one of them.
    #[must_use]
    pub fn tail<'a>(&self, subject: &'a str) -> Option<&'a str> {
        match self {
            Self::Below(prefix) => prefix.tail(subject),
            Self::Exact(Prefix(exact)) => (subject == exact).then_some(""),
        }
    }

    /// The subject to republish on that has `tail`.
    #[must_use]
    pub fn subject(&self, tail: &str) -> String {
        match self {
            Self::Exact(subject) if tail.is_empty() => subject.to_string(),
            Self::Below(prefix) | Self::Exact(prefix) => prefix.subject(tail),
        }
    }
}

/// Whether every subject that `inner` stands for also belongs to `outer`. Both may have the
/// wildcards `*` (one token) and `>` (one or more tokens at the end).
#[must_use]
pub fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b && a != ">" => {}
            _ => return false,
        }
    }
}

/// Whether some subject belongs to both `a` and `b`, either of which may have wildcards.
#[must_use]
pub fn meets(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The prefix or the subject, as it was configured.
impl fmt::Display for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(text) | Self::Exact(text) => text.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::parse(text).unwrap()
    }

    #[test]
    fn a_pattern_covers_what_lies_within_it_and_meets_what_it_shares() {
        for (outer, inner, covered, met) in [
            ("cms.>", "cms.cache.>", true, true),
            ("cms.cache.>", "cms.cache.>", true, true),
            ("cms.cache.*", "cms.cache.>", false, true),
            ("cms.cache.article.>", "cms.cache.>", false, true),
            (">", "cms.cache.>", true, true),
            ("*.cache.>", "cms.cache.>", true, true),
            ("cms.*.a", "cms.cache.>", false, true),
            ("cms.cachet.>", "cms.cache.>", false, false),
            ("cms.cache", "cms.cache.>", false, false),
            ("cms.>", "cms", false, false),
            ("cms.*", "cms.a", true, true),
            ("cms.*", "cms.a.b", false, false),
            ("cms.a.b", "cms.a.b", true, true),
            ("cms.a", "cms.a.b", false, false),
            ("*", "*", true, true),
            ("*", ">", false, true),
        ] {
            assert_eq!(covers(outer, inner), covered, "{outer} covers {inner}");
            assert_eq!(meets(outer, inner), met, "{outer} meets {inner}");
            assert_eq!(meets(inner, outer), met, "{inner} meets {outer}");
        }
    }

    #[test]
    fn a_prefix_is_literal_whole_tokens() {
        for (text, expected) in [
            ("", SubjectError::Empty),
            ("cms.*", SubjectError::Wildcard),
            ("cms.>", SubjectError::Wildcard),
            ("c*s", SubjectError::Wildcard),
            ("cms cache", SubjectError::WhiteSpace),
            ("cms\u{0}", SubjectError::WhiteSpace),
            (" ", SubjectError::WhiteSpace),
            (".cms", SubjectError::EmptyToken),
            ("cms.", SubjectError::EmptyToken),
            ("cms..cache", SubjectError::EmptyToken),
        ] {
            assert_eq!(Prefix::parse(text), Err(expected), "{text:?}");
        }
        assert_eq!(Prefix::parse(&"a".repeat(1001)), Err(SubjectError::TooLong));
        for text in ["cms", "cms.cache", "größe.$x", "a-b_c/d"] {
            assert_eq!(prefix(text).to_string(), text);
        }
    }

    #[test]
    fn only_the_leading_prefix_is_replaced_and_only_at_a_token_boundary() {
        let listen = prefix("cms.cache");
        let relayed = prefix("relayed.cache");
        for (subject, expected) in [
            ("cms.cache.article.42", Some("relayed.cache.article.42")),
            ("cms.cache.cms.cache.x", Some("relayed.cache.cms.cache.x")),
            ("cms.cache.a.*.>", Some("relayed.cache.a.*.>")),
            ("cms.cachet.article", None),
            ("cms.cache", None),
            ("cms.cache.", None),
            ("xcms.cache.article", None),
            ("CMS.cache.article", None),
        ] {
            let moved = listen.tail(subject).map(|tail| relayed.subject(tail));
            assert_eq!(moved.as_deref(), expected, "{subject}");
        }
    }

    #[test]
    fn an_exact_subject_moves_to_the_other_and_to_nowhere_else() {
        let (listen, relayed) =
            (Subjects::Exact(prefix("feathers-sync")), Subjects::Exact(prefix("relayed.feathers")));
        assert_eq!(listen.pattern(), "feathers-sync");
        assert_eq!(listen.tail("feathers-sync"), Some(""));
        for other in ["feathers-sync.a", "feathers", "feathers-syncs", "a.feathers-sync", ""] {
            assert_eq!(listen.tail(other), None, "{other}");
        }
        assert_eq!(relayed.subject(""), "relayed.feathers");
        assert_eq!(relayed.subject("todos.created"), "relayed.feathers.todos.created");
        assert_eq!(relayed.published(), ["relayed.feathers", "relayed.feathers.>"]);
        let below = Subjects::Below(prefix("cms.cache"));
        assert_eq!(
            (below.pattern(), below.published()),
            ("cms.cache.>".into(), vec![below.pattern()])
        );
        assert_eq!(below.tail("cms.cache.a"), Some("a"));
        assert_eq!(below.subject("a"), "cms.cache.a");
    }

    #[test]
    fn what_is_republished_reaches_what_overlaps_a_prefix_or_is_above_an_exact_subject() {
        let (below, exact) = (Subjects::Below, Subjects::Exact);
        for (relayed, pattern, expected) in [
            (below(prefix("cms.cache")), "cms.cache.>", true),
            (below(prefix("cms.cache.relayed")), "cms.cache.>", true),
            (below(prefix("cms")), "cms.cache.>", true),
            (below(prefix("cms.cachet")), "cms.cache.>", false),
            (below(prefix("relayed.cache")), "cms.cache.>", false),
            (below(prefix("a")), "a.b", true),
            (below(prefix("a")), "a", false),
            (exact(prefix("a")), "a", true),
            (exact(prefix("a")), "a.b", true),
            (exact(prefix("a.b")), "a", false),
            (exact(prefix("a.b")), "a.>", true),
            (exact(prefix("b")), "a", false),
        ] {
            assert_eq!(relayed.may_reach(pattern), expected, "{relayed:?} {pattern}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_it_accepts_is_sound(text in any::<String>()) {
            if let Ok(prefix) = Prefix::parse(&text) {
                prop_assert_eq!(prefix.to_string(), text.clone());
                prop_assert!(!text.contains(['*', '>', ' ', '\r', '\n']));
                prop_assert!(text.split('.').all(|token| !token.is_empty()));
            }
        }

        #[test]
        fn moving_there_and_back_is_the_identity(
            from in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}",
            to in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}",
            tail in "[^\\s\\.]{1,8}(\\.[^\\s\\.]{1,8}){0,4}",
        ) {
            let (from, to) = (prefix(&from), prefix(&to));
            let subject = from.subject(&tail);
            let moved = to.subject(from.tail(&subject).unwrap());
            prop_assert_eq!(to.tail(&moved), Some(tail.as_str()));
            prop_assert_eq!(from.subject(to.tail(&moved).unwrap()), subject);
        }

        #[test]
        fn a_tail_is_below_its_prefix_whatever_the_subject(text in any::<String>()) {
            let listen = prefix("cms.cache");
            if let Some(tail) = listen.tail(&text) {
                prop_assert_eq!(listen.subject(tail), text.clone());
                prop_assert!(!tail.is_empty());
            } else {
                prop_assert!(!text.starts_with("cms.cache.") || text == "cms.cache.");
            }
        }
    }
}
