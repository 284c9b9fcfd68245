//! `plugin new`: a project that builds with one command.

use crate::observe::log::say;
use crate::plugin::files::folded;
use anyhow::{Context, ensure};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

/// What there are templates for.
pub(crate) const LANGUAGES: [&str; 3] = ["rust", "js", "python"];

/// A file of a project: where it goes, and its text with `{{name}}` for the plugin's name,
/// `{{NAME}}` for
/// the name as it is in variables, and `{{file}}` for the name as it is in Rust's files.
type Template = (&'static str, &'static str);

/// The interface, which every project has a copy of.
const WIT: [Template; 2] = [
    ("wit/deps/nats-webhook-relay-plugin/plugin.wit", include_str!("../../../wit/plugin.wit")),
    ("wit/deps/wasi-config/store.wit", include_str!("../../../wit/deps/wasi-config/store.wit")),
];

const RUST: &[Template] = &[
    ("Cargo.toml", include_str!("../../plugin/templates/rust/Cargo.toml.template")),
    ("README.md", include_str!("../../plugin/templates/rust/README.md")),
    ("event.json", include_str!("../../plugin/templates/rust/event.json")),
    (".gitignore", include_str!("../../plugin/templates/rust/gitignore")),
    ("src/lib.rs", include_str!("../../plugin/templates/rust/src/lib.rs")),
    ("wit/world.wit", include_str!("../../plugin/templates/rust/wit/world.wit")),
];
const JS: &[Template] = &[
    ("README.md", include_str!("../../plugin/templates/js/README.md")),
    ("event.json", include_str!("../../plugin/templates/js/event.json")),
    (".gitignore", include_str!("../../plugin/templates/js/gitignore")),
    ("package.json", include_str!("../../plugin/templates/js/package.json")),
    ("path.js", include_str!("../../plugin/templates/js/path.js")),
    ("path.test.js", include_str!("../../plugin/templates/js/path.test.js")),
    ("plugin.js", include_str!("../../plugin/templates/js/plugin.js")),
    ("wit/world.wit", include_str!("../../plugin/templates/js/wit/world.wit")),
];
const PYTHON: &[Template] = &[
    ("README.md", include_str!("../../plugin/templates/python/README.md")),
    ("app.py", include_str!("../../plugin/templates/python/app.py")),
    ("build", include_str!("../../plugin/templates/python/build")),
    ("event.json", include_str!("../../plugin/templates/python/event.json")),
    (".gitignore", include_str!("../../plugin/templates/python/gitignore")),
    ("path.py", include_str!("../../plugin/templates/python/path.py")),
    ("requirements.txt", include_str!("../../plugin/templates/python/requirements.txt")),
    ("test_path.py", include_str!("../../plugin/templates/python/test_path.py")),
    ("wit/world.wit", include_str!("../../plugin/templates/python/wit/world.wit")),
];

/// Writes a project into the folder `name` of `parent`.
///
/// # Errors
/// When the name will not do or the folder exists.
pub(crate) fn new(language: &str, name: &str, parent: &Path) -> anyhow::Result<ExitCode> {
    let is_letter = |c: char| c.is_ascii_lowercase();
    ensure!(
        name.starts_with(is_letter)
            && name
                .split('-')
                .all(|word| !word.is_empty()
                    && word.chars().all(|c| is_letter(c) || c.is_ascii_digit())),
        "{name:?} is not a name for a plugin: expected lower case letters, digits and hyphens, \
         such as article-tags"
    );
    let folder = parent.join(name);
    ensure!(!folder.exists(), "{} exists already", folder.display());
    let files = match language {
        "rust" => RUST,
        "js" => JS,
        _ => PYTHON,
    };
    for (path, text) in files.iter().chain(&WIT) {
        let path = folder.join(path);
        let context = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(context)?;
        }
        let text = text
            .replace("{{name}}", name)
            .replace("{{NAME}}", &folded(name))
            .replace("{{file}}", &name.replace('-', "_"));
        std::fs::write(&path, text).with_context(context)?;
        if path.file_name().is_some_and(|name| name == "build") {
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).with_context(context)?;
        }
    }
    say(format_args!(
        "wrote {}; how to build, test and run it: {}",
        folder.display(),
        folder.join("README.md").display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
