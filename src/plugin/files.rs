//! Which files are the plugins, and which variables configure which of them.

use crate::plugin::settings::Setting;
use anyhow::{Context, anyhow, bail};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A plugin's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Its name without `.wasm`, which is the plugin's name.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    modified: Option<SystemTime>,
}

/// The plugins of `PLUGINS`, in order: files as they are named, those of a folder by name.
///
/// # Errors
/// One line for each that is not there, or could not be told apart from another by its variables.
pub(crate) fn find(paths: &[PathBuf]) -> Result<Vec<File>, Vec<String>> {
    let mut files: Vec<File> = Vec::new();
    let mut mistakes = Vec::new();
    for path in paths {
        let found = if path.is_dir() { in_folder(path) } else { file(path).map(|file| vec![file]) };
        match found {
            Ok(found) => files.extend(found),
            Err(error) => mistakes.push(format!("PLUGINS: {}: {error:#}", path.display())),
        }
    }
    for (index, file) in files.iter().enumerate() {
        if let Some(other) =
            files.iter().take(index).find(|other| folded(&other.name) == folded(&file.name))
        {
            mistakes.push(format!(
                "PLUGINS: {} and {} have the same name: rename one",
                other.path.display(),
                file.path.display()
            ));
        }
    }
    if mistakes.is_empty() { Ok(files) } else { Err(mistakes) }
}

/// As [`find`], with all mistakes as one error.
///
/// # Errors
/// Those of [`find`].
pub(crate) fn found(paths: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    find(paths).map_err(|mistakes| anyhow!(mistakes.join("; ")))
}

fn in_folder(folder: &Path) -> anyhow::Result<Vec<File>> {
    let entries = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut found: Vec<_> = entries
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
        .collect();
    if found.is_empty() {
        bail!("the folder has no .wasm file");
    }
    found.sort();
    found.iter().map(|path| file(path).with_context(|| path.display().to_string())).collect()
}

fn file(path: &Path) -> anyhow::Result<File> {
    let found = path.metadata()?;
    if !found.is_file() {
        bail!("it is not a file");
    }
    let name = path.file_stem().and_then(|stem| stem.to_str()).context("its name is not UTF-8")?;
    Ok(File {
        name: name.to_owned(),
        path: path.to_owned(),
        modified: found.modified().ok(),
        bytes: found.len(),
    })
}

/// A name as it is written in a variable: upper case, with `_` for what is no letter or digit.
pub(crate) fn folded(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// A plugin's settings, each with its key.
pub(crate) type Keyed<'a> = Vec<(&'a str, &'a Setting)>;

/// The settings of each of the plugins `names`, and those of none of them.
///
/// `PLUGIN_A_B_C` belongs to the plugin `a-b` as `C` when there is one, and to `a` as `B_C`
/// otherwise.
pub(crate) fn assign<'a>(
    settings: &'a [Setting],
    names: &[&str],
) -> (Vec<Keyed<'a>>, Vec<&'a Setting>) {
    let mut assigned = vec![Vec::new(); names.len()];
    let mut left = Vec::new();
    for setting in settings {
        let key = |name: &str| {
            let prefix = format!("{}_", folded(name));
            let (start, key) = setting.name.split_at_checked(prefix.len())?;
            (folded(start) == prefix && !key.is_empty()).then_some(key)
        };
        let keys = names
            .iter()
            .zip(&mut assigned)
            .filter_map(|(name, assigned)| Some((key(name)?, assigned)));
        match keys.min_by_key(|(key, _)| key.len()) {
            Some((key, assigned)) => assigned.push((key, setting)),
            None => left.push(setting),
        }
    }
    (assigned, left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_setting_belongs_to_the_plugin_with_the_longest_name_that_fits() {
        let settings: Vec<_> = ["A_B_C", "A_X", "a_b_d", "A_B", "A_", "AB_C", "C_D"]
            .map(|name| Setting {
                name: name.to_owned(),
                value: Secret::new(name),
                from_file: false,
            })
            .into();
        let (assigned, left) = assign(&settings, &["a", "a-b", "ü.x"]);
        let keys: Vec<Vec<_>> = assigned
            .iter()
            .map(|settings| settings.iter().map(|(key, _)| *key).collect())
            .collect();
        assert_eq!(keys, [vec!["X", "B"], vec!["C", "d"], vec![]]);
        assert_eq!(
            left.iter().map(|setting| setting.name.as_str()).collect::<Vec<_>>(),
            ["A_", "AB_C", "C_D"]
        );
    }

    #[test]
    fn files_in_order_and_folders_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        for path in ["z.wasm", "inner/b.wasm", "inner/a.wasm", "inner/readme.md"] {
            std::fs::write(folder.path().join(path), "").unwrap();
        }
        let empty = tempfile::tempdir().unwrap();
        let names = |paths: &[PathBuf]| {
            find(paths).map(|files| files.into_iter().map(|file| file.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[folder.path().join("z.wasm"), inner.clone()]).unwrap(), ["z", "a", "b"]);
        for (paths, expected) in [
            (vec![folder.path().join("none.wasm")], "none.wasm: No such file"),
            (vec![inner.join("a.wasm"), inner.clone()], "have the same name"),
            (vec![empty.path().to_owned()], "the folder has no .wasm file"),
        ] {
            let error = names(&paths).unwrap_err().join("; ");
            assert!(error.starts_with("PLUGINS: ") && error.contains(expected), "{error}");
        }
        std::fs::create_dir(inner.join("folder.wasm")).unwrap();
        let error = names(&[inner.clone(), "none.wasm".into()]).unwrap_err().join("; ");
        assert!(
            error.contains("inner/folder.wasm: it is not a file")
                && error.contains("none.wasm: No such file"),
            "{error}"
        );
        std::fs::remove_dir(inner.join("folder.wasm")).unwrap();
        std::fs::write(inner.join("A.wasm"), "").unwrap();
        assert!(names(&[inner]).is_err(), "names that differ only in case could not be told apart");
    }
}
