//! Reads variables one by one and keeps every mistake, so that all are reported together.
//!
//! The value of a variable that may hold a secret is never part of a mistake.

use crate::config::context;
use crate::config::environment::Environment;
use crate::config::variables::Variable;
use crate::subject::{self, Prefix};
use percent_encoding::percent_decode_str;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub(super) const SIZE: &str = "a size such as 512KiB or 64MiB";
const PREFIX: &str = "a subject prefix such as cms.cache";
pub(super) const DURATION: &str = "a duration such as 250ms, 30s or 2min";

pub(super) struct Reader<'a> {
    pub(super) environment: &'a Environment,
    pub(super) mistakes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, mistakes: Vec::new() }
    }

    pub(super) fn mistake(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    /// The value in `result`; its error is a mistake.
    pub(super) fn good<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    /// Whether the variable is set by its own name.
    pub(super) fn is_set(&self, variable: &Variable) -> bool {
        self.environment.get(variable.name).is_some()
    }

    /// Says of each of `variables` that is set that it needs another one.
    pub(super) fn needs(&mut self, needed: &Variable, variables: &[&Variable]) {
        if self.is_set(needed) {
            return;
        }
        for variable in variables {
            let text = self.environment.get(variable.name);
            if text.is_some_and(|text| variable.default != Some(text)) {
                self.mistake(format!(
                    "{}: has no effect without {}; set it, or unset this",
                    variable.name, needed.name
                ));
            }
        }
    }

    /// The variable's text: by its name, its aliases, or their `_FILE` forms.
    pub(super) fn text(&mut self, variable: &Variable) -> Option<String> {
        for name in variable.names() {
            let direct = self.environment.get(name);
            let file = variable.secret.then(|| format!("{name}_FILE"));
            let file = file.filter(|file| self.environment.get(file).is_some());
            match (direct, file) {
                (Some(_), Some(file)) => {
                    self.mistake(format!("{name}: both {name} and {file} are set; unset one"));
                    return None;
                }
                (Some(text), None) => return Some(text.to_owned()),
                (None, Some(file)) => return self.file(&file),
                (None, None) => {}
            }
        }
        None
    }

    /// The content of the file that the variable `name`, which ends with `_FILE`, names.
    pub(super) fn file(&mut self, name: &str) -> Option<String> {
        let path = self.path_in(name, self.environment.get(name)?)?;
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => {
                self.mistake(format!("{name}: the file that it names is empty"));
            }
            Ok(text) => return Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            // The secret itself may have been put there by mistake.
            Err(error) => self.mistake(format!(
                "{name}: cannot read the file that it names: {error}; it takes a path, and {} \
                 takes the value itself",
                name.trim_end_matches("_FILE")
            )),
        }
        None
    }

    /// The path that a variable's text means.
    pub(super) fn path_in(&mut self, name: &str, text: &str) -> Option<PathBuf> {
        let path = context::path(self.environment, text);
        self.good(path.map_err(|error| format!("{name}: {error}")))
    }

    /// What `read` finds in the file that a variable names.
    pub(super) fn read_path<T>(
        &mut self,
        variable: &Variable,
        read: impl Fn(&Path) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(variable)?;
        let path = self.path_in(variable.name, &text)?;
        self.good(read(&path).map_err(|error| format!("{}: {error}", variable.name)))
    }

    /// The parsed value; a mistake where the text does not parse, and `None` without one where
    /// the variable is unset.
    pub(super) fn optional<T>(
        &mut self,
        variable: &Variable,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(variable)?;
        let value = parse(&text);
        if value.is_none() {
            let got = if variable.secret { String::new() } else { format!(", not {text:?}") };
            self.mistake(format!("{}: expected {expected}{got}", variable.name));
        }
        value
    }

    /// As [`Self::optional`], with the default of the room that the value is for.
    pub(super) fn or<T>(
        &mut self,
        variable: &Variable,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
        default: T,
    ) -> T {
        self.optional(variable, expected, parse).unwrap_or(default)
    }

    /// As [`Self::optional`], but an unset variable is a mistake too.
    pub(super) fn required<T>(
        &mut self,
        variable: &Variable,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let before = self.mistakes.len();
        let value = self.optional(variable, expected, parse);
        if value.is_none() && self.mistakes.len() == before {
            self.mistake(format!("{}: required; expected {expected}", variable.name));
        }
        value
    }

    /// What `parse` makes of each name and its decoded value; the others are mistakes.
    pub(super) fn pairs<T>(
        &mut self,
        variable: &Variable,
        parse: impl Fn(&str, Vec<u8>) -> Option<T>,
    ) -> Vec<T> {
        let (text, mut pairs) = (self.text(variable).unwrap_or_default(), Vec::new());
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            let pair = entry.split_once('=').and_then(|(name, value)| {
                parse(name.trim(), percent_decode_str(value.trim()).collect())
            });
            match pair {
                Some(pair) => pairs.push(pair),
                None => self.mistake(format!(
                    "{}: expected name=value,name=value with percent-encoded values; entry {} is \
                     not",
                    variable.name,
                    index + 1
                )),
            }
        }
        pairs
    }

    /// False unless the variable says true.
    pub(super) fn flag(&mut self, variable: &Variable) -> bool {
        self.or(variable, "true or false", |text| text.parse().ok(), false)
    }

    /// The literal tokens that the variable has.
    pub(super) fn tokens(&mut self, variable: &Variable, expected: &str) -> Option<Prefix> {
        let text = self.text(variable)?;
        let tokens = Prefix::parse(&text);
        self.good(tokens.map_err(|error| {
            format!("{}: expected {expected}, not {text:?}: {error}", variable.name)
        }))
    }

    /// As [`Self::tokens`], but an unset variable is a mistake too.
    pub(super) fn required_tokens(
        &mut self,
        variable: &Variable,
        expected: &str,
    ) -> Option<Prefix> {
        let before = self.mistakes.len();
        let tokens = self.tokens(variable, expected);
        if tokens.is_none() && self.mistakes.len() == before {
            self.mistake(format!("{}: required; expected {expected}", variable.name));
        }
        tokens
    }

    pub(super) fn prefix(&mut self, variable: &Variable) -> Option<Prefix> {
        self.tokens(variable, PREFIX)
    }

    pub(super) fn required_prefix(&mut self, variable: &Variable) -> Option<Prefix> {
        self.required_tokens(variable, PREFIX)
    }
}

pub(super) fn size(text: &str) -> Option<usize> {
    let size = text.parse::<bytesize::ByteSize>().ok()?;
    usize::try_from(size.as_u64()).ok().filter(|bytes| *bytes > 0)
}

pub(super) fn duration(at_least_ms: u128) -> impl Fn(&str) -> Option<Duration> {
    const YEAR: Duration = Duration::from_secs(86_400 * 365);
    move |text| {
        let value = humantime::parse_duration(text).ok()?;
        (value.as_millis() >= at_least_ms && value <= YEAR).then_some(value)
    }
}

pub(super) fn number<T: FromStr + PartialOrd>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Option<T> {
    move |text| text.parse().ok().filter(|value| range.contains(value))
}

pub(super) fn is_subject(text: &str) -> Option<String> {
    subject::check(text).is_ok().then(|| text.to_owned())
}
