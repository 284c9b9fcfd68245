//! The plan of `src/` (`docs/architecture.md`): imports go one way only, and what has to be read
//! at once stays short.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The most columns of a line, and lines of a function.
const COLUMNS: usize = 100;
const LINES: usize = 60;

/// Modules by their path (`nats::link`), each with its text.
type Modules = BTreeMap<String, String>;
/// What imports what.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn modules() -> Modules {
    let mut modules = Modules::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut modules);
    modules
}

fn collect(folder: &Path, prefix: &str, modules: &mut Modules) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
        if path.is_dir() && name != "templates" {
            collect(&path, &module, modules);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            modules.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The text without comments and without its unit tests, which may import what they like.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let line = |line: &str| line.split("//").next().unwrap().to_owned();
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Every path into the crate that `module` names, with groups (`a::{b, c::d}`) taken apart.
fn paths(module: &str, text: &str) -> Vec<String> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = Vec::new();
    for (root, prefix) in [("crate::", ""), ("super::", parent)] {
        for (start, _) in text.match_indices(root) {
            let is_whole = !text[..start]
                .ends_with(|c: char| c.is_alphanumeric() || "_:(".contains(c))
                || text[..start].ends_with('(');
            if is_whole {
                expand(&text[start + root.len()..], prefix, &mut found);
            }
        }
    }
    found
}

/// Reads the path or the group at the start of `text`; returns how much of it that was.
fn expand(text: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let path = match (prefix, name.as_str()) {
        (prefix, "self" | "") => prefix.to_owned(),
        ("", name) => name.to_owned(),
        (prefix, name) => format!("{prefix}::{name}"),
    };
    let rest = &text[name.len()..];
    if let Some(inner) = rest.strip_prefix("::") {
        return name.len() + 2 + expand(inner, &path, found);
    }
    if !name.is_empty() || !rest.starts_with('{') {
        found.push(path);
        return name.len();
    }
    let mut at = 1;
    while !rest[at..].starts_with('}') {
        match rest[at..].starts_with(|c: char| c.is_whitespace() || c == ',') {
            true => at += 1,
            false => at += expand(&rest[at..], prefix, found).max(1),
        }
    }
    at + 1
}

/// Which module imports which: a path belongs to the innermost module that it leads into.
fn imports(modules: &Modules) -> Graph {
    let owner = |path: &str| {
        let mut path = path;
        loop {
            if modules.contains_key(path) {
                return Some(path.to_owned());
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let of = |(module, text): (&String, &String)| {
        let paths = paths(module, &code(text));
        let others = paths.iter().filter_map(|path| owner(path)).filter(|other| other != module);
        (module.clone(), others.collect())
    };
    modules.iter().filter(|(module, _)| !module.ends_with("tests")).map(of).collect()
}

/// The same between folders: a module stands for the first `depth` parts of its path.
fn folders(files: &Graph, depth: usize) -> Graph {
    let folder = |module: &str| module.split("::").take(depth).collect::<Vec<_>>().join("::");
    let mut graph = Graph::new();
    for (module, others) in files {
        let entry = graph.entry(folder(module)).or_default();
        let others = others.iter().map(|other| folder(other));
        // A folder's own file stands above what is in the folder.
        entry.extend(others.filter(|other| *other != folder(module)));
    }
    graph
}

/// One circle, as the modules on it; empty where there is none.
fn circle(graph: &Graph) -> Vec<String> {
    fn visit(
        graph: &Graph,
        module: &str,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> bool {
        if let Some(start) = way.iter().position(|other| other == module) {
            way.drain(..start);
            return true;
        }
        if !done.insert(module.to_owned()) {
            return false;
        }
        way.push(module.to_owned());
        for other in graph.get(module).into_iter().flatten() {
            if visit(graph, other, way, done) {
                return true;
            }
        }
        way.pop();
        false
    }
    let (mut way, mut done) = (Vec::new(), BTreeSet::new());
    graph.keys().any(|module| visit(graph, module, &mut way, &mut done));
    way
}

#[test]
fn imports_go_one_way_between_files_and_between_folders() {
    let files = imports(&modules());
    assert!(files["relay"].contains("webhook"), "the imports are read: {files:?}");
    assert_eq!(circle(&files), Vec::<String>::new(), "a circle of files");
    for depth in 1..3 {
        assert_eq!(circle(&folders(&files, depth)), Vec::<String>::new(), "a circle of folders");
    }
}

/// What makes the test above fail.
#[test]
fn a_circle_is_found_however_the_import_is_written() {
    let find = |texts: &[(&str, &str)]| {
        let owned = texts.iter().map(|(module, text)| ((*module).to_owned(), (*text).to_owned()));
        let files = imports(&owned.collect());
        (circle(&files).len(), circle(&folders(&files, 1)).len())
    };
    for (back, expected) in [
        ("use crate::a::A;", (2, 2)),
        ("use crate::{c, a::{self, A}};", (2, 2)),
        ("fn f() { g(crate::a::f()) }", (2, 2)),
        ("pub(crate) use super::a;", (2, 2)),
        ("// crate::a::A", (0, 0)),
        ("fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}", (0, 0)),
        ("use crate::ab::A;", (0, 0)),
    ] {
        assert_eq!(find(&[("a", "use crate::b::B;"), ("b", back), ("c", "")]), expected, "{back}");
    }
    let within = [("a", "use crate::a::b::B;"), ("a::b", "use crate::a::A;")];
    assert_eq!(find(&within), (2, 0), "a folder's own file and what is in it");
    let across =
        [("a::x", "use crate::b::y;"), ("b::y", ""), ("b::z", "use crate::a::w;"), ("a::w", "")];
    assert_eq!(find(&across), (0, 2), "folders that import each other by different files");
}

/// The arrows of the floor plan in `docs/architecture.md`, and the rooms at its foot, which
/// everybody may import.
fn floor_plan(document: &str) -> (Graph, BTreeSet<String>) {
    let figure = document.split("```mermaid\n").nth(1).unwrap().split("```").next().unwrap();
    let common = figure.split("common[\"").nth(1).unwrap().split('"').next().unwrap();
    let mut arrows = Graph::new();
    for (from, to) in figure.lines().filter_map(|line| line.split_once(" --> ")) {
        for room in from.trim().split(" & ") {
            let to = to.split(" & ").map(str::to_owned);
            arrows.entry(room.to_owned()).or_default().extend(to);
        }
    }
    (arrows, common.split(", ").map(str::to_owned).collect())
}

/// Where the arrows lead from a room, directly or by way of others.
fn below(arrows: &Graph, room: &str) -> BTreeSet<String> {
    let next = arrows.get(room).into_iter().flatten();
    next.flat_map(|next| below(arrows, next).into_iter().chain([next.clone()])).collect()
}

#[test]
fn the_floor_plan_is_the_real_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let (arrows, common) = floor_plan(&std::fs::read_to_string(path).unwrap());
    let drawn = |room: &String| match common.contains(room) {
        true => "common".to_owned(),
        false => room.clone(),
    };
    let mut real = Graph::new();
    for (room, others) in folders(&imports(&modules()), 1) {
        real.entry(drawn(&room)).or_default().extend(others.iter().map(drawn));
    }
    for (room, others) in &real {
        let below = below(&arrows, room);
        for other in others.iter().filter(|other| *other != room) {
            assert!(below.contains(other), "{room} imports {other}: no arrow leads there");
        }
    }
    for (room, others) in &arrows {
        for other in others {
            assert!(real[room].contains(other), "{room} --> {other}: there is no such import");
        }
    }
}

#[test]
fn rooms_beside_each_other_do_not_know_each_other() {
    let rooms = folders(&imports(&modules()), 1);
    for (room, strangers) in [
        ("webhook", &["nats", "plugin", "source", "relay", "config", "command"][..]),
        ("plugin", &["nats", "webhook", "source", "relay", "config", "command"]),
        ("nats", &["webhook", "plugin", "source", "relay", "config", "command"]),
        ("source", &["webhook", "plugin", "relay", "config", "command"]),
        ("relay", &["config", "command"]),
        ("gateway", &["webhook", "plugin", "source", "relay", "config", "command", "serve"]),
        ("serve", &["plugin", "source", "relay", "config", "command", "gateway"]),
        ("exchange", &["nats", "webhook", "plugin", "source", "relay", "config", "command"]),
        ("observe", &["webhook", "plugin", "nats", "source", "relay", "config", "command"]),
        ("message", &["observe", "webhook", "plugin", "nats", "source", "relay", "config"]),
    ] {
        for stranger in strangers {
            assert!(!rooms[room].contains(*stranger), "{room} imports {stranger}");
        }
    }
}

#[test]
fn lines_and_functions_are_short() {
    for (module, text) in modules() {
        let lines: Vec<_> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let columns = line.chars().count();
            assert!(columns <= COLUMNS, "{module}, line {}: {columns} columns", index + 1);
            let (code, indent) = (line.trim_start(), line.len() - line.trim_start().len());
            let words = ["pub", "pub(crate)", "pub(super)", "const", "async", "fn"];
            let starts =
                code.split(' ').take_while(|word| words.contains(word)).any(|word| word == "fn");
            if !starts || code.ends_with(';') {
                continue;
            }
            let end = |line: &&&str| line.len() == indent + 1 && line.trim_start() == "}";
            let length = lines[index..].iter().take_while(|line| !end(line)).count() + 1;
            assert!(length <= LINES || code.ends_with('}'), "{module}: {code} has {length} lines");
        }
    }
}
