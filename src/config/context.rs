//! Contexts of the `nats` command line: connection settings in a file, with a name.
//!
//! Owns where they are found and what their values refer to (files, variables, data). Which of
//! them count beside the relay's own variables is for `config` to say. No value is ever part
//! of an error.

use crate::config::environment::Environment;
use crate::nats::login::SecretSource;
use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};

/// A context that was read.
pub struct Context {
    /// Its name, or the path by which it was asked for.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    fields: Map<String, Value>,
}

impl Context {
    /// The context that is called `name`, or that is in the file `name`.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) fn named(environment: &Environment, name: &str) -> Result<Self, String> {
        if name.contains('{') {
            return Err("expected the name of a context or the path of its file, not its content"
                .to_owned());
        }
        if name.contains('/') {
            return Self::read(name, path(environment, name)?);
        }
        let folder = folder(environment).ok_or_else(|| {
            format!("cannot find context {name}: neither XDG_CONFIG_HOME nor HOME is set")
        })?;
        Self::read(name, folder.join("context").join(format!("{name}.json")))
    }

    /// The context that `nats context select` has chosen, if it has.
    ///
    /// # Errors
    /// Says why it cannot be read.
    pub(crate) fn selected(environment: &Environment) -> Result<Option<Self>, String> {
        let Some(file) = folder(environment).map(|folder| folder.join("context.txt")) else {
            return Ok(None);
        };
        match std::fs::read_to_string(&file) {
            Ok(name) if name.trim().is_empty() => Ok(None),
            Ok(name) => Self::named(environment, name.trim())
                .map(Some)
                .map_err(|error| format!("selected in {}: {error}", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            // Not readable for this user: not meant for it.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(format!("cannot read {}: {error}", file.display())),
        }
    }

    fn read(name: &str, path: PathBuf) -> Result<Self, String> {
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(name, &path, &text)
    }

    /// The context that `text` describes.
    ///
    /// # Errors
    /// Says where it is not what `nats context save` writes.
    pub fn parse(name: &str, path: &Path, text: &str) -> Result<Self, String> {
        let fields = serde_json::from_str(text).map_err(|error| {
            format!(
                "{} is not a JSON object (line {}, column {})",
                path.display(),
                error.line(),
                error.column()
            )
        })?;
        Ok(Self { name: name.to_owned(), path: path.to_owned(), fields })
    }

    /// The text of a field; `None` where it is missing or empty.
    ///
    /// # Errors
    /// Where it is something else than a text.
    pub fn text(&self, field: &str) -> Result<Option<&str>, String> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some(_) => Err(format!("{field}: expected a text")),
        }
    }

    /// Whether a field says true.
    ///
    /// # Errors
    /// Where it is something else than true or false.
    pub fn flag(&self, field: &str) -> Result<bool, String> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(format!("{field}: expected true or false")),
        }
    }

    /// The secret in a field, which may say where to find it.
    ///
    /// # Errors
    /// Where it is not to be found.
    pub fn secret(&self, environment: &Environment, field: &str) -> Result<Option<Secret>, String> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        let secret = match resolve(environment, text) {
            Some(source) => source.and_then(|source| source.read()),
            None => Ok(Secret::new(text)),
        };
        match secret {
            Ok(secret) => Ok(Some(Secret::new(secret.expose().trim_end_matches(['\r', '\n'])))),
            Err(error) => Err(format!("{field}: {error}")),
        }
    }

    /// The file that a field names, or the secret that it says where to find.
    ///
    /// # Errors
    /// Where it is not to be found.
    pub(crate) fn source(
        &self,
        environment: &Environment,
        field: &str,
    ) -> Result<Option<SecretSource>, String> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        let source = resolve(environment, text)
            .unwrap_or_else(|| path(environment, text).map(SecretSource::File));
        source.map(Some).map_err(|error| format!("{field}: {error}"))
    }

    /// The path in a field.
    ///
    /// # Errors
    /// Where it is none.
    pub fn path(&self, environment: &Environment, field: &str) -> Result<Option<PathBuf>, String> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        let is_path = matches!(scheme(text), None | Some("file"));
        let path =
            if is_path { path(environment, text) } else { Err("expected a path".to_owned()) };
        path.map(Some).map_err(|error| format!("{field}: {error}"))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.name.contains('/') {
            write!(f, "context {path}")
        } else {
            write!(f, "context {} ({path})", self.name)
        }
    }
}

/// The path that `text` means: after `file://` if that is there, with `~`, `$NAME` and `${NAME}`
/// replaced.
///
/// # Errors
/// Where it names a variable that is not set.
pub(crate) fn path(environment: &Environment, text: &str) -> Result<PathBuf, String> {
    let text = expand(environment, text.strip_prefix("file://").unwrap_or(text))?;
    match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = environment.get("HOME").ok_or("~ stands for HOME, which is not set")?;
            Ok(PathBuf::from(format!("{home}{rest}")))
        }
        _ => Ok(PathBuf::from(text)),
    }
}

/// Where a reference such as `env://NAME` leads; `None` where `text` is none.
fn resolve(environment: &Environment, text: &str) -> Option<Result<SecretSource, String>> {
    let scheme = scheme(text)?;
    let rest = text.get(scheme.len() + 1..)?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let secret = |text: &str| SecretSource::Text(Secret::new(text));
    Some(match scheme {
        "file" => path(environment, rest).map(SecretSource::File),
        "env" => environment
            .get(rest)
            .map(secret)
            .ok_or_else(|| "the variable that env:// names is not set".to_owned()),
        "data" => data(rest)
            .map(|text| secret(&text))
            .ok_or_else(|| "data: is not followed by ;base64, and base64".to_owned()),
        _ => Err(format!("{scheme}:// is not supported: save what it stands for in a file")),
    })
}

/// The scheme of a reference that the `nats` command line knows.
fn scheme(text: &str) -> Option<&'static str> {
    let lower = text.get(..7).unwrap_or(text).to_ascii_lowercase();
    let begins = |(_, start): &&(&str, &str)| lower.starts_with(start);
    [("file", "file://"), ("env", "env://"), ("op", "op://"), ("nsc", "nsc://"), ("data", "data:")]
        .iter()
        .find(begins)
        .map(|(scheme, _)| *scheme)
}

fn data(text: &str) -> Option<String> {
    let (head, payload) = text.split_once(',')?;
    head.split(';').any(|part| part.trim() == "base64").then_some(())?;
    String::from_utf8(STANDARD.decode(payload).ok()?).ok()
}

/// `text` with variables replaced as a shell does.
fn expand(environment: &Environment, text: &str) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, behind) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').ok_or("${ has no end")?,
            None => after.split_at(
                after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()),
            ),
        };
        match (name, environment.get(name)) {
            ("", _) => expanded.push('$'),
            (_, Some(value)) => expanded.push_str(value),
            // Its name is not shown: the text may be a secret that has a $ in it.
            (_, None) => return Err("a variable that the path names is not set".to_owned()),
        }
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Where the `nats` command line keeps its settings.
fn folder(environment: &Environment) -> Option<PathBuf> {
    let settings = environment.get("XDG_CONFIG_HOME").map(PathBuf::from);
    let settings =
        settings.or_else(|| environment.get("HOME").map(|home| Path::new(home).join(".config")));
    settings.map(|folder| folder.join("nats"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("HOME", "/home/me"), ("DIR", "/run/secrets"), ("TOKEN", "hunter2")].into_iter().collect()
    }

    fn context(text: &str) -> Context {
        Context::parse("c", Path::new("/c.json"), text).unwrap()
    }

    #[test]
    fn paths_are_read_as_the_command_line_reads_them() {
        for (text, expected) in [
            ("/a/b", Ok("/a/b")),
            ("a", Ok("a")),
            ("file:///a", Ok("/a")),
            ("~/a", Ok("/home/me/a")),
            ("file://~/a", Ok("/home/me/a")),
            ("~other/a", Ok("~other/a")),
            ("/a/~", Ok("/a/~")),
            ("$DIR/a", Ok("/run/secrets/a")),
            ("${DIR}a", Ok("/run/secretsa")),
            ("$HOME/$", Ok("/home/me/$")),
            ("a$-b", Ok("a$-b")),
            ("$NONE/a", Err("a variable that the path names is not set")),
            ("${DIR", Err("${ has no end")),
        ] {
            assert_eq!(
                path(&environment(), text),
                expected.map(PathBuf::from).map_err(str::to_owned),
                "{text}"
            );
        }
        assert!(path(&Environment::default(), "~/a").unwrap_err().contains("HOME"));
    }

    #[test]
    fn a_secret_is_there_or_said_to_be_elsewhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        let url = format!("file://{}", file.path().display());
        for text in [
            "hunter2",
            " hunter2 ",
            "env://TOKEN",
            "data:;base64,aHVudGVyMg==",
            "data:text/plain;base64,aHVudGVyMgo=",
            &url,
        ] {
            let context = context(&format!(r#"{{"token":"{text}"}}"#));
            assert_eq!(
                context.secret(&environment(), "token"),
                Ok(Some(Secret::new("hunter2"))),
                "{text}"
            );
        }
        for (text, expected) in [
            ("env://hunter2", "env://"),
            ("data:hunter2", "base64"),
            ("data:;base64,hunter2!", "base64"),
            ("op://hunter2/x", "op:// is not supported"),
            ("NSC://hunter2/x", "nsc:// is not supported"),
            ("file:///none/hunter2", "No such file"),
        ] {
            let error = context(&format!(r#"{{"token":"{text}"}}"#))
                .secret(&environment(), "token")
                .unwrap_err();
            assert!(
                error.starts_with("token: ")
                    && error.contains(expected)
                    && !error.contains("hunter2"),
                "{text}: {error}"
            );
        }
        // What only looks like a reference is itself.
        let plain = context(r#"{"token":"http://x","nothing":"","null":null}"#);
        assert_eq!(plain.secret(&environment(), "token"), Ok(Some(Secret::new("http://x"))));
        assert_eq!(
            (plain.text("nothing"), plain.text("null"), plain.text("none")),
            (Ok(None), Ok(None), Ok(None))
        );
    }

    #[test]
    fn files_and_flags() {
        let context = context(
            r#"{"creds":"~/c","nkey":"env://TOKEN","ca":"file://~/ca","cert":"env://TOKEN",
                "tls_first":true,"url":true}"#,
        );
        let environment = environment();
        assert_eq!(
            context.source(&environment, "creds"),
            Ok(Some(SecretSource::File("/home/me/c".into())))
        );
        assert_eq!(
            context.source(&environment, "nkey"),
            Ok(Some(SecretSource::Text(Secret::new("hunter2"))))
        );
        assert_eq!(context.path(&environment, "ca"), Ok(Some("/home/me/ca".into())));
        assert_eq!(context.path(&environment, "cert"), Err("cert: expected a path".to_owned()));
        assert_eq!((context.flag("tls_first"), context.flag("none")), (Ok(true), Ok(false)));
        assert_eq!(context.text("url"), Err("url: expected a text".to_owned()));
        assert_eq!(context.flag("ca"), Err("ca: expected true or false".to_owned()));
    }

    #[test]
    fn what_is_no_context_is_named_and_not_quoted() {
        for text in
            ["", "hunter2", "[]", r#"{"token":"hunter2""#, r#"{"token" hunter2}"#, "\"hunter2\""]
        {
            let error = Context::parse("c", Path::new("/c.json"), text).map(|_| ()).unwrap_err();
            assert!(
                error.starts_with("/c.json is not a JSON object") && !error.contains("hunter2"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn contexts_are_found_by_name_by_path_and_by_selection() {
        let folder = tempfile::tempdir().unwrap();
        let nats = folder.path().join(".config/nats");
        std::fs::create_dir_all(nats.join("context")).unwrap();
        let file = nats.join("context/ngs.js.json");
        std::fs::write(&file, r#"{"url":"nats://there"}"#).unwrap();
        let (home, config) = (folder.path().to_str().unwrap(), folder.path().join(".config"));
        let by_home: Environment = [("HOME", home)].into_iter().collect();
        let by_xdg: Environment =
            [("XDG_CONFIG_HOME", config.to_str().unwrap()), ("HOME", "/none")]
                .into_iter()
                .collect();
        for environment in [&by_home, &by_xdg] {
            assert_eq!(
                Context::named(environment, "ngs.js").unwrap().text("url"),
                Ok(Some("nats://there"))
            );
            assert!(
                Context::named(environment, "other")
                    .map(|_| ())
                    .unwrap_err()
                    .contains("context/other.json: No such file")
            );
        }
        assert_eq!(
            Context::named(&by_home, "~/.config/nats/context/ngs.js.json").unwrap().path,
            file
        );
        assert!(
            Context::named(&Environment::default(), "ngs.js")
                .map(|_| ())
                .unwrap_err()
                .contains("HOME")
        );

        assert!(Context::selected(&by_home).unwrap().is_none());
        assert!(Context::selected(&Environment::default()).unwrap().is_none());
        for (text, expected) in
            [("ngs.js\n", Ok(Some("ngs.js"))), ("\n", Ok(None)), ("gone", Err("context.txt"))]
        {
            std::fs::write(nats.join("context.txt"), text).unwrap();
            let selected = Context::selected(&by_xdg);
            match (selected, expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.map(|context| context.name).as_deref(), expected)
                }
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (found, _) => {
                    panic!("{text}: {:?}", found.map(|context| context.map(|context| context.name)))
                }
            }
        }
    }
}
