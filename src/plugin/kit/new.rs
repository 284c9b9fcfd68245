//! `plugin new`: a project that builds with one command.

use anyhow::{Context, ensure};
use std::path::Path;
use std::process::ExitCode;

/// What there are templates for.
pub const LANGUAGES: [&str; 3] = ["rust", "js", "python"];

/// A file of a project: where it goes, and its text with `{{name}}` for the plugin's name.
type Template = (&'static str, &'static str);

/// The interface, which every project has a copy of.
const WIT: [Template; 2] = [
    ("wit/deps/nats-webhook-relay-plugin/plugin.wit", include_str!("../../../wit/plugin.wit")),
    ("wit/deps/wasi-config/store.wit", include_str!("../../../wit/deps/wasi-config/store.wit")),
];

const RUST: &[Template] = &[];
const JS: &[Template] = &[];
const PYTHON: &[Template] = &[];

/// Writes a project into the folder `name` of `parent`.
///
/// # Errors
/// When the name will not do or the folder exists.
#[allow(clippy::print_stdout, reason = "this is what the command is for")]
pub fn new(language: &str, name: &str, parent: &Path) -> anyhow::Result<ExitCode> {
    let is_letter = |c: char| c.is_ascii_lowercase();
    ensure!(
        name.starts_with(is_letter)
            && name.split('-').all(|word| !word.is_empty() && word.chars().all(|c| is_letter(c) || c.is_ascii_digit())),
        "{name:?} is not a name for a plugin: expected lower case letters, digits and hyphens, such as article-tags"
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
        std::fs::write(&path, text.replace("{{name}}", name)).with_context(context)?;
    }
    println!("wrote {}; how to build, test and run it: {}", folder.display(), folder.join("README.md").display());
    Ok(ExitCode::SUCCESS)
}
