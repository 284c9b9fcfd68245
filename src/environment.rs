//! Where settings come from: the process environment, `.env.local`, `.env`.
//!
//! The first of the three that has a name decides, also when it sets it to nothing, which
//! means unset. Nothing is written into the process environment, and no value is ever part
//! of an error.

use std::collections::BTreeMap;
use std::path::Path;

/// A snapshot of all settings, taken once at start.
#[derive(Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process environment over `.env.local` over `.env`, both looked for in `folder`.
    ///
    /// # Errors
    /// One line for each file that exists and cannot be read or parsed.
    pub fn load(folder: &Path) -> Result<Self, Vec<String>> {
        let mut settings = BTreeMap::new();
        let mut mistakes = Vec::new();
        for name in [".env", ".env.local"] {
            match dotenvy::from_path_iter(folder.join(name)) {
                Err(dotenvy::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => mistakes.push(format!("{name}: {}", reason(&error))),
                Ok(entries) => {
                    for (index, entry) in entries.enumerate() {
                        match entry {
                            Ok((key, value)) => drop(settings.insert(key, value)),
                            Err(error) => {
                                mistakes.push(format!("{name}: entry {}: {}", index + 1, reason(&error)));
                                break;
                            }
                        }
                    }
                }
            }
        }
        for (key, value) in std::env::vars_os() {
            if let Ok(key) = key.into_string() {
                // A value that is not UTF-8 belongs to somebody else, or is a mistake that
                // its reader reports as such: the replacement character is in no valid value.
                settings.insert(key, value.to_string_lossy().into_owned());
            }
        }
        if mistakes.is_empty() { Ok(Self(settings)) } else { Err(mistakes) }
    }

    /// The value of `name`; `None` where it is missing or only white space.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// All names that are set, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|name| self.get(name).is_some())
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// What is wrong, without dotenvy's quote of the line, which may hold a password.
fn reason(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(_, position) => {
            format!("expected NAME=value (quote a value that has spaces or #), stopped at character {position} of the line")
        }
        dotenvy::Error::Io(error) => format!("cannot be read: {error}"),
        _ => "cannot be read".to_owned(),
    }
}
