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
    pub(crate) fn load(folder: &Path) -> Result<Self, Vec<String>> {
        let mut settings = BTreeMap::new();
        let mut mistakes = Vec::new();
        for name in [".env", ".env.local"] {
            let text = match std::fs::read_to_string(folder.join(name)) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    mistakes.push(format!("{name}: cannot be read: {error}"));
                    continue;
                }
            };
            // Some editors begin a file with a byte-order mark.
            let text = text.trim_start_matches('\u{feff}').as_bytes();
            for (index, entry) in dotenvy::from_read_iter(text).enumerate() {
                match entry {
                    Ok((key, value)) => drop(settings.insert(key, value)),
                    Err(error) => {
                        mistakes.push(format!("{name}: entry {}: {}", index + 1, reason(&error)));
                        break;
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
            format!(
                "expected NAME=value; a value with spaces or # needs quotes, and a quote needs \
                 its end (near character {position})"
            )
        }
        dotenvy::Error::Io(error) => format!("cannot be read: {error}"),
        _ => "cannot be read".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A variable of the process that every test runner has.
    const PRESENT: &str = "PATH";

    fn load(env: &str, local: &str) -> Result<Environment, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".env"), env).unwrap();
        std::fs::write(folder.path().join(".env.local"), local).unwrap();
        Environment::load(folder.path())
    }

    #[test]
    fn local_wins_over_env_and_the_process_over_both() {
        let environment = load(
            &format!("RELAY_A=env\nRELAY_B=env\n{PRESENT}=env"),
            &format!("RELAY_B=local\nRELAY_C=local\n{PRESENT}=local"),
        )
        .unwrap();
        let get = |name| environment.get(name);
        assert_eq!(
            (get("RELAY_A"), get("RELAY_B"), get("RELAY_C")),
            (Some("env"), Some("local"), Some("local"))
        );
        assert_eq!(get(PRESENT), std::env::var(PRESENT).ok().as_deref());
        assert!(
            std::env::var_os("RELAY_A").is_none(),
            "nothing is written into the process environment"
        );
    }

    #[test]
    fn set_to_nothing_is_unset_also_over_a_value() {
        let environment =
            load("RELAY_A=env\nRELAY_B=\nRELAY_C=' '\nRELAY_D=' d '", "RELAY_A=").unwrap();
        for name in ["RELAY_A", "RELAY_B", "RELAY_C", "RELAY_NONE"] {
            assert_eq!(environment.get(name), None, "{name}");
            assert!(environment.names().all(|other| other != name), "{name}");
        }
        assert_eq!(environment.get("RELAY_D"), Some("d"));
        assert!(environment.names().any(|name| name == "RELAY_D"));
    }

    #[test]
    fn the_files_are_optional() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment::load(folder.path()).unwrap();
        assert_eq!(environment.get(PRESENT), std::env::var(PRESENT).ok().as_deref());
    }

    #[test]
    fn values_are_read_as_the_example_file_says() {
        let text = "RELAY_A='pa$$ #1'\nRELAY_B=a#b\nRELAY_C=a # b\nRELAY_D=\"a # b\"\nexport \
         RELAY_E=e\n# RELAY_F=f\nRELAY_G=\"${RELAY_E}!\"\n";
        let environment = load(text, "").unwrap();
        for (name, expected) in [
            ("A", Some("pa$$ #1")),
            ("B", Some("a#b")),
            ("C", Some("a")),
            ("D", Some("a # b")),
            ("E", Some("e")),
            ("F", None),
            ("G", Some("e!")),
        ] {
            assert_eq!(environment.get(&format!("RELAY_{name}")), expected, "{name}");
        }
    }

    #[test]
    fn both_files_mistakes_are_reported_and_no_line_is_quoted() {
        let mistakes = load("RELAY_A=1\nhunter2 hunter2", "RELAY_B=\"hunter2").err().unwrap();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with(".env: entry 2: ")
                && mistakes[1].starts_with(".env.local: entry 1: "),
            "{mistakes:?}"
        );
        assert!(mistakes.iter().all(|mistake| !mistake.contains("hunter2")), "{mistakes:?}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".env")).unwrap();
        let mistakes = Environment::load(folder.path()).err().unwrap();
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(".env: "), "{mistakes:?}");
    }
}
