//! The documents: every link leads somewhere, every anchor is a heading, nothing is left out of
//! the table of contents, and every warning and error is explained.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents that people read, by their paths from the root.
fn documents() -> Vec<PathBuf> {
    let mut documents: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(PathBuf::from).into();
    for folder in ["docs", "plugins", "examples"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let path = if path.is_dir() { path.join("README.md") } else { path };
            if path.exists() && path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    documents
}

/// A document without its code blocks and code spans.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence && !line.starts_with("    ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors that GitHub and mdBook make of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let heading = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        heading.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The targets of the links in a document.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text).replace('\n', " ");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// What is wrong with a link in the document at `path`.
fn broken(path: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) =
        link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = match file {
        "" => root().join(path),
        file => root().join(path).parent().unwrap().join(file),
    };
    if !target.exists() {
        return Some(format!("{}: {link} leads nowhere", path.display()));
    }
    let anchor = anchor?;
    let found = anchors(&std::fs::read_to_string(&target).unwrap());
    (!found.contains(anchor)).then(|| format!("{}: {link} has no such heading", path.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    let mut mistakes = Vec::new();
    for path in documents() {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        let links = links(&text);
        count += links.len();
        mistakes.extend(links.iter().filter_map(|link| broken(&path, link)));
    }
    assert!(count > 100, "{count} links");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

/// What makes the test above fail.
#[test]
fn a_dead_link_and_a_dead_anchor_are_found() {
    let readme = Path::new("README.md");
    for (link, is_broken) in [
        ("docs/none.md", true),
        ("docs/jetstream.md#none", true),
        ("#none", true),
        ("docs/jetstream.md#permissions", false),
        ("#plugins", false),
        ("https://nats.io/none", false),
    ] {
        assert_eq!(broken(readme, link).is_some(), is_broken, "{link}");
    }
    assert_eq!(links("a [b](c#d)\n```\n[e](f)\n```\n    [g](h)\n"), ["c#d"]);
    assert!(anchors("## What it `is`, and 1 + 1\n").contains("what-it-is-and-1--1"));
}

#[test]
fn the_book_and_the_readme_list_every_document() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let index = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let in_docs = documents().into_iter().filter(|path| path.starts_with("docs"));
    for path in in_docs.filter(|path| !path.ends_with("SUMMARY.md") && !path.ends_with("README.md"))
    {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(summary.contains(&format!("({name})")), "{name} is not in docs/SUMMARY.md");
        assert!(index.contains(&format!("({name})")), "{name} is not in docs/README.md");
        assert!(readme.contains(&format!("(docs/{name})")), "{name} is not in README.md");
    }
}

/// The texts of all warnings and errors that the source below `folder` logs.
fn logged(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            logged(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for call in text.split("warn!(").skip(1).chain(text.split("error!(").skip(1)) {
                found.insert(message(call).unwrap_or_else(|| panic!("{}: {call}", path.display())));
            }
        }
    }
}

/// The message among the arguments of a log macro: the first literal that stands for itself.
fn message(call: &str) -> Option<String> {
    let mut rest = call;
    loop {
        let (before, literal) = rest.split_once('"')?;
        let (literal, after) = literal.split_once('"')?;
        // Others are formats and separators inside of an argument.
        if !before.trim_end().ends_with('(') || before.trim().is_empty() {
            let lines = literal.split("\\\n").map(str::trim_start);
            return Some(lines.collect::<Vec<_>>().concat());
        }
        rest = after;
    }
}

/// Without what varies: `{name}` in the source, `(name)` in the document.
fn constant(text: &str) -> String {
    let mut depth = 0;
    let constant = text.chars().filter(|&c| {
        depth += i32::from(c == '{' || c == '(');
        let is_constant = depth == 0;
        depth -= i32::from(c == '}' || c == ')');
        is_constant
    });
    constant.collect::<String>().trim().to_owned()
}

#[test]
fn every_warning_and_error_is_explained_and_no_other() {
    let mut texts = BTreeSet::new();
    logged(&root().join("src"), &mut texts);
    let operations = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let part = operations.split("<!-- log lines:").nth(1).unwrap();
    let part = part.split("<!-- end of log lines -->").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    let lines: BTreeSet<_> = rows.map(|row| constant(row.split('`').nth(3).unwrap())).collect();
    let texts: BTreeSet<_> = texts.iter().map(|text| constant(text)).collect();
    let (missing, stale): (Vec<_>, Vec<_>) =
        (texts.difference(&lines).collect(), lines.difference(&texts).collect());
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:#?}");
    assert!(stale.is_empty(), "docs/operations.md explains what is not logged: {stale:#?}");
}
