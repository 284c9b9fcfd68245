//! The command `plugin`: what authors check, run and begin their plugins with; and the package
//! in `wit/` that they write them for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use nats_webhook_relay::plugin::hook::{PACKAGE, VERSION};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use support::component::{
    BODY, Component, Folder, HEADERS, HOOKS, OUT, PAYLOAD, PUT_INPUT, PUT_PAYLOAD, SAY_OUT,
    SUBJECT, TRAP, failed, headers, on, put, quoted, reject, say, text, unchanged, zeros,
};
use support::relay::{command, finish};
use tempfile::TempDir;
use wit_parser::{Resolve, WorldItem};

/// Runs `nats-webhook-relay plugin ARGUMENTS` in `folder` with this on stdin: status, standard output, standard error.
fn plugin_in(
    folder: &TempDir,
    arguments: &[&str],
    variables: &[(&str, &str)],
    stdin: &[u8],
) -> (ExitStatus, String, String) {
    let mut all = vec![("PLUGIN_CACHE", "off"), ("HOME", folder.path().to_str().unwrap())];
    all.extend_from_slice(variables);
    // In a file: a program that does not read it does not break the pipe.
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(stdin).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let mut command = command(folder, &all);
    command.arg("plugin").args(arguments).stdin(Stdio::from(input));
    finish(command)
}

fn plugin(
    arguments: &[&str],
    variables: &[(&str, &str)],
    stdin: &[u8],
) -> (ExitStatus, String, String) {
    plugin_in(&TempDir::new().unwrap(), arguments, variables, stdin)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

// ---- check -------------------------------------------------------------------------------

#[test]
fn check_prints_what_a_plugin_is() {
    let all = Component::with_all(|hook| format!("{} {}", say("x"), unchanged(hook)));
    let folder = Folder::with(&[
        ("my-plugin", &all),
        ("small", &Component::with(SUBJECT, &unchanged(SUBJECT))),
    ]);
    let (status, out, error) = plugin(
        &["check", &folder.all()],
        &[("PLUGIN_TIMEOUT", "250ms"), ("PLUGIN_MEMORY", "32MiB")],
        b"",
    );
    assert_eq!((status.code(), error.as_str()), (Some(0), ""));
    let (first, second) = out.split_once(path(&folder.path().join("small.wasm"))).unwrap();
    for expected in [
        path(&folder.path().join("my-plugin.wasm")),
        "PLUGIN_MY_PLUGIN_<KEY>",
        "webhook-payload, webhook-headers, relayed-payload, relayed-subject",
        "wasi:cli/stdout@0.2.0",
        "wasi:io/streams@0.2.0",
        " KiB",
        " ms",
        "250ms",
        "32.0 MiB",
    ] {
        assert!(first.contains(expected), "{expected:?} in {first}");
    }
    assert!(
        second.contains("relayed-subject")
            && !second.contains("webhook-payload")
            && !second.contains("wasi:"),
        "{second}"
    );
}

#[test]
fn check_tells_of_each_bad_plugin_why_and_still_prints_the_good_ones() {
    let folder = Folder::with(&[("good", &Component::with(BODY, &unchanged(BODY)))]);
    let version_2 = Component::with(BODY, &unchanged(BODY)).against("plugin@1.0.0", "plugin@2.0.0");
    folder.add("later", &version_2);
    folder.write("core.wasm", &wat::parse_str("(module)").unwrap());
    let files = ["core", "good", "later"].map(|name| folder.path().join(format!("{name}.wasm")));
    let (status, out, error) =
        plugin(&["check", path(&files[0]), path(&files[1]), path(&files[2])], &[], b"");
    assert_eq!(status.code(), Some(1));
    assert!(
        out.contains(path(&files[1])) && !out.contains("core.wasm") && !out.contains("later.wasm"),
        "{out}"
    );
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(
        lines[0].contains("core.wasm") && lines[0].contains("it is a core module, not a component"),
        "{error}"
    );
    assert!(
        lines[1].contains("later.wasm")
            && lines[1].contains("webhook-payload@2.0.0")
            && lines[1].contains("plugin@1.0.0"),
        "{error}"
    );

    for (arguments, expected) in
        [(["check", "/n0ne.wasm"].as_slice(), "/n0ne.wasm: No such file"), (&["check"], "<FILE>")]
    {
        let (status, _, error) = plugin(arguments, &[], b"");
        assert!(!status.success() && error.contains(expected), "{arguments:?} {status}: {error}");
    }
    let (status, _, error) =
        plugin(&["check", path(&files[1])], &[("PLUGIN_TIMEOUT", "soon")], b"");
    assert!(status.code() == Some(64) && error.contains("PLUGIN_TIMEOUT"), "{error}");
}

#[test]
fn check_tells_of_hooks_that_are_not_called() {
    let mixed = Component::with(PAYLOAD, &text("relayed")).beside(
        "export nats-webhook-relay:plugin/later-hook@1.7.0;",
        "package nats-webhook-relay:plugin@1.7.0 { interface later-hook { remap: func(); } }",
        r#"(func (export "nats-webhook-relay:plugin/later-hook@1.7.0#remap") unreachable)"#,
    );
    let folder = Folder::with(&[("mixed", &mixed)]);
    let (status, out, error) = plugin(&["check", &folder.all()], &[], b"");
    assert!(status.success() && (out + &error).contains("later-hook@1.7.0"), "{error}");
}

/// A plugin is tried before it is trusted.
#[test]
fn no_plugin_steers_the_terminal_of_who_tries_it() {
    let begun = Component::with(BODY, &text("x"))
        .field(r#"(func $begin (@name "\1b[2J") unreachable) (start $begin)"#);
    let works = Component::with(BODY, &format!("{} {}", say("say\x1b[2J"), text("body\t\x1b[2J")));
    let folder = Folder::with(&[
        ("begun", &begun),
        ("refuses", &Component::with(BODY, &reject("no\x1b[2J"))),
        ("works", &works),
    ]);
    for (command, name, expected) in [
        ("check", "begun", ["!\\u{1b}[2J"].as_slice()),
        ("run", "begun", &["!\\u{1b}[2J"]),
        ("run", "refuses", &["rejected: no\\u{1b}[2J\n"]),
        ("run", "works", &["stdout: say\\u{1b}[2J\n", "  body\t\\u{1b}[2J\n"]),
    ] {
        let (_, out, error) =
            plugin(&[command, path(&folder.path().join(format!("{name}.wasm")))], &[], b"");
        let all = out + &error;
        assert!(
            !all.contains('\x1b') && expected.iter().all(|expected| all.contains(expected)),
            "{command} {name}: {all}"
        );
    }
}

// ---- run ---------------------------------------------------------------------------------

/// A plugin with all hooks that shows what it is given.
fn showing() -> Component {
    Component::with_all(|hook| {
        let say = format!("{} {PUT_INPUT} {SAY_OUT}", put(format!("{hook} ")));
        match hook {
            BODY => format!("{say} {PUT_PAYLOAD} {} {OUT}", put("+body")),
            HEADERS => say + &headers(&[("X-Made", "1"), ("x-made", "2")]),
            PAYLOAD => format!("{say} {PUT_PAYLOAD} {} {OUT}", put("+payload")),
            _ => format!("{say} (call $complain {}) {}", quoted("aside"), text("made.7")),
        }
    })
}

fn json_of(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[test]
fn run_prints_what_would_be_sent_and_republished() {
    let folder = Folder::with(&[
        ("a", &showing()),
        ("b", &Component::with(BODY, &format!("{PUT_PAYLOAD} {} {OUT}", put("+b")))),
    ]);
    let files = ["a", "b"].map(|name| folder.path().join(format!("{name}.wasm")));
    let arguments = [
        "run",
        path(&files[0]),
        path(&files[1]),
        "--subject",
        "cms.cache.x.1",
        "--header",
        "X-Own: 1",
        "--header",
        "X-Own:a:b",
    ];
    let (status, out, error) = plugin(&[&arguments[..], &["--json"]].concat(), &[], b"in");
    assert_eq!((status.code(), error.as_str()), (Some(0), ""));
    let report = json_of(&out);
    assert_eq!(report["result"], "relayed");
    assert_eq!(report["webhook"]["body"], "in+body+b");
    let sent = &report["webhook"]["headers"];
    for (name, expected) in [
        ("x-made", json!(["1", "2"])),
        ("x-own", json!(["1", "a:b"])),
        ("nats-subject", json!(["cms.cache.x.1"])),
        ("content-type", json!(["application/json"])),
    ] {
        assert_eq!(sent[name], expected, "{name} in {out}");
    }
    let id = sent["webhook-id"][0].as_str().unwrap();
    assert!(sent["webhook-timestamp"][0].as_str().unwrap().parse::<u64>().is_ok(), "{out}");
    assert_eq!(
        report["relayed"],
        json!({"subject": "relayed.cache.made.7", "headers": {"X-Own": ["1", "a:b"], "Nats-Msg-Id": [id]}, "payload": "in+payload"})
    );
    let line = |hook: &str, tail: &str, headers: &str| {
        format!("{hook} {id}|cms.cache.x.1|{tail}|{headers}|in")
    };
    let output = json!([
        {"plugin": "a", "stream": "stdout", "line": line(BODY, "x.1", "X-Own=1&X-Own=a:b&")},
        {"plugin": "a", "stream": "stdout", "line": line(HEADERS, "x.1", "X-Own=1&X-Own=a:b&") + "+body+b"},
        {"plugin": "a", "stream": "stdout", "line": line(PAYLOAD, "x.1", "X-Own=1&X-Own=a:b&")},
        {"plugin": "a", "stream": "stdout", "line": line(SUBJECT, "x.1", "X-Own=1&X-Own=a:b&") + "+payload"},
        {"plugin": "a", "stream": "stderr", "line": "aside"},
    ]);
    assert_eq!(report["output"], output);
    let calls: Vec<_> = report["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| (call["plugin"].as_str().unwrap(), call["hook"].as_str().unwrap()))
        .collect();
    assert_eq!(calls, [("a", BODY), ("b", BODY), ("a", HEADERS), ("a", PAYLOAD), ("a", SUBJECT)]);
    assert!(
        report["calls"].as_array().unwrap().iter().all(|call| call["ms"].as_f64().unwrap() > 0.0),
        "{out}"
    );

    let (status, out, error) = plugin(&arguments, &[], b"in");
    assert_eq!((status.code(), error.as_str()), (Some(0), ""));
    let mut rest = out.as_str();
    for expected in [
        "webhook\n",
        "  in+body+b\n",
        "relayed as relayed.cache.made.7\n",
        "  in+payload\n",
        "output\n",
        "  a stdout: webhook-payload ",
        "  a stderr: aside\n",
        "calls\n",
        "  a webhook-payload: ",
        "  b webhook-payload: ",
        "  a relayed-subject: ",
        " ms\n",
    ] {
        rest = rest
            .split_once(expected)
            .unwrap_or_else(|| panic!("{expected:?} in its place in {out}"))
            .1;
    }
    let before = out.split_once("relayed as").unwrap().0;
    for expected in
        ["  x-made: 1\n", "  x-made: 2\n", "  x-own: a:b\n", "  nats-subject: cms.cache.x.1\n"]
    {
        assert!(before.contains(expected), "{expected:?} in {out}");
    }
}

#[test]
fn run_takes_any_payload() {
    let folder = Folder::with(&[("same", &Component::with(BODY, &unchanged(BODY)))]);
    let file = folder.path().join("same.wasm");
    let (_, out, _) = plugin(&["run", path(&file), "--json"], &[], b"\xff\0\x01");
    let report = json_of(&out);
    assert_eq!(
        (&report["webhook"]["body_base64"], &report["relayed"]["payload_base64"]),
        (&json!("/wAB"), &json!("/wAB"))
    );
    assert!(
        report["webhook"].get("body").is_none() && report["relayed"].get("payload").is_none(),
        "{out}"
    );
    assert!(
        plugin(&["run", path(&file)], &[], b"\xff\0\x01").1.contains("(3 bytes that are not text)")
    );
    let (_, out, _) = plugin(&["run", path(&file), "--json"], &[], b"");
    assert_eq!(
        (&json_of(&out)["webhook"]["body"], &json_of(&out)["webhook"]["headers"]["content-length"]),
        (&json!(""), &json!(["0"]))
    );
    assert!(plugin(&["run", path(&file)], &[], b"").1.contains("(nothing)"));
    let all: String = ('a'..='z').cycle().take(1024 * 1024).collect();
    assert_eq!(
        json_of(&plugin(&["run", path(&file), "--json"], &[], all.as_bytes()).1)["webhook"]["body"],
        all
    );
    let (status, out, _) = plugin(&["run", path(&file)], &[], (all + "!").as_bytes());
    assert!(status.code() == Some(1) && out.contains("max_payload"), "{out}");
}

#[test]
fn run_exits_with_what_became_of_the_message() {
    let cases = [
        ("rejected", reject("no tenant"), 2, "plugin x, webhook-payload: rejected: no tenant"),
        ("failed", failed("no luck"), 1, "plugin x, webhook-payload: failed: no luck"),
        (
            "trap",
            TRAP.to_owned(),
            1,
            "plugin x, webhook-payload: wasm trap: wasm `unreachable` instruction executed",
        ),
        (
            "loop",
            "(loop $l (br $l)) unreachable".to_owned(),
            1,
            "plugin x, webhook-payload: did not return within 300ms (PLUGIN_TIMEOUT)",
        ),
        ("large", zeros(1024 * 1024 + 1), 1, "max_payload"),
        ("memory", zeros(20_000_000), 1, "needed more than 16.0 MiB of memory (PLUGIN_MEMORY)"),
    ];
    let body = say("hello")
        + &cases.iter().map(|(payload, body, ..)| on(payload, body)).collect::<String>()
        + &unchanged(BODY);
    let folder = Folder::with(&[("x", &Component::with(BODY, &body))]);
    let variables = [("PLUGIN_TIMEOUT", "300ms"), ("PLUGIN_MEMORY", "16MiB")];
    for (payload, _, code, error) in cases {
        let (status, out, _) =
            plugin(&["run", &folder.all(), "--json"], &variables, payload.as_bytes());
        let report = json_of(&out);
        assert_eq!(
            (status.code(), &report["result"]),
            (Some(code), &json!(if code == 2 { "rejected" } else { "failed" })),
            "{out}"
        );
        assert!(
            report["error"].as_str().unwrap().contains(error) && report.get("webhook").is_none(),
            "{out}"
        );
        assert_eq!(
            (&report["output"][0]["line"], &report["calls"][0]["hook"]),
            (&json!("hello"), &json!(BODY)),
            "{out}"
        );
        let (status, out, _) = plugin(&["run", &folder.all()], &variables, payload.as_bytes());
        assert!(
            status.code() == Some(code) && out.starts_with("not relayed: ") && out.contains(error),
            "{out}"
        );
    }
}

#[test]
fn run_reads_the_relays_variables() {
    let show = format!("(call $put_config {}) {} {PUT_INPUT} {OUT}", quoted("KEY"), put("|"));
    let folder = Folder::with(&[("a-b", &Component::with(BODY, &show))]);
    let variables = [
        ("PLUGIN_A_B_KEY", "configured"),
        ("NATS_SUBJECT_PREFIX", "shop"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "browsers.shop"),
        // For the relay only, which would not start with it.
        ("WEBHOOK_DESTINATION", "nowhere"),
    ];
    let run = |more: &[&str]| {
        plugin(&[&["run", &folder.all(), "--json"], more].concat(), &variables, b"in")
    };
    let (status, out, error) = run(&[]);
    assert!(status.success(), "{error}");
    let report = json_of(&out);
    assert_eq!(report["relayed"]["subject"], "browsers.shop.article.42");
    let body = report["webhook"]["body"].as_str().unwrap();
    assert!(
        body.starts_with("configured|") && body.ends_with("|shop.article.42|article.42||in"),
        "{body}"
    );
    assert_eq!(json_of(&run(&["--subject", "shop.a"]).1)["relayed"]["subject"], "browsers.shop.a");

    // The settings may stand in the folder's .env.
    let here = TempDir::new().unwrap();
    std::fs::write(here.path().join(".env"), "PLUGIN_A_B_KEY=from-a-file\n").unwrap();
    let (_, out, _) = plugin_in(&here, &["run", &folder.all(), "--json"], &[], b"in");
    assert!(
        json_of(&out)["webhook"]["body"].as_str().unwrap().starts_with("from-a-file|"),
        "{out}"
    );
}

#[test]
fn run_refuses_arguments_that_make_no_message() {
    let folder = Folder::with(&[("x", &Component::with(BODY, &unchanged(BODY)))]);
    let all = folder.all();
    for (arguments, variables, expected) in [
        (["--subject", "other.a"].as_slice(), [].as_slice(), "\"other.a\" is not below cms.cache"),
        (&["--subject", "cms.cache"], &[], "\"cms.cache\" is not below cms.cache"),
        (
            &["--subject", "cms.cache.a"],
            &[("NATS_SUBJECT_PREFIX", "shop")],
            "is not below shop (NATS_SUBJECT_PREFIX)",
        ),
        (&[], &[("NATS_SUBJECT_PREFIX", "shop.>")], "NATS_SUBJECT_PREFIX"),
        (&["--header", "no-colon"], &[], "--header: expected NAME:VALUE"),
        (&["--header", "a b: 1"], &[], "--header: \"a b\" is not a name"),
        (&["--header", "a: 1\r\nb: 2"], &[], "--header: the value of a has a line break"),
        (&[], &[("PLUGIN_MEMORY", "much")], "PLUGIN_MEMORY"),
        (&["/n0ne.wasm"], &[], "/n0ne.wasm: No such file"),
        (&["--what"], &[], "--what"),
    ] {
        let (status, out, error) = plugin(&[&["run", &all], arguments].concat(), variables, b"in");
        assert!(!status.success(), "{arguments:?} {status}");
        assert!(out.is_empty() && error.contains(expected), "{arguments:?} {variables:?}: {error}");
    }
    let (status, _, error) = plugin(&["run"], &[], b"in");
    assert!(!status.success() && error.contains("<FILE>"), "{error}");
}

#[test]
fn run_refuses_a_message_that_nobody_can_publish() {
    let folder = Folder::with(&[("x", &Component::with(BODY, &unchanged(BODY)))]);
    for arguments in
        [["--subject", "cms.cache.a b"], ["--subject", "cms.cache.a\r\n"], ["--header", ": 1"]]
    {
        let (status, out, error) =
            plugin(&[&["run", &folder.all()], &arguments[..]].concat(), &[], b"in");
        assert!(
            !status.success()
                && out.is_empty()
                && error.contains(arguments[0].trim_start_matches('-')),
            "{arguments:?}: {out}{error}"
        );
    }
}

// ---- new ---------------------------------------------------------------------------------

#[test]
fn new_writes_a_project_with_the_wit_inside() {
    for (language, source) in [("rust", "src/lib.rs"), ("js", "plugin.js"), ("python", "app.py")] {
        let here = TempDir::new().unwrap();
        let (status, out, error) =
            plugin_in(&here, &["new", "--lang", language, "article-tags-2"], &[], b"");
        assert!(
            status.success() && out.contains("article-tags-2") && out.contains("README.md"),
            "{language}: {out}{error}"
        );
        let project = here.path().join("article-tags-2");
        for file in [source, "README.md", ".gitignore", "wit/world.wit", "event.json"] {
            let text = std::fs::read_to_string(project.join(file))
                .unwrap_or_else(|error| panic!("{language} {file}: {error}"));
            assert!(!text.contains("{{"), "{language} {file} has a place that was not filled in");
        }
        let readme = std::fs::read_to_string(project.join("README.md")).unwrap();
        assert!(readme.contains("article-tags-2") && readme.contains("plugin run"), "{readme}");
        // The project's world is complete: all that it names is in the project.
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(project.join("wit")).unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        let exports: Vec<_> =
            resolve.worlds[world].exports.keys().map(|key| resolve.name_world_key(key)).collect();
        assert!(
            !exports.is_empty()
                && exports.iter().all(|name| HOOKS
                    .iter()
                    .any(|hook| *name == format!("{PACKAGE}/{hook}@{VERSION}"))),
            "{exports:?}"
        );
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("wit/plugin.wit");
        let copy = project.join("wit/deps/nats-webhook-relay-plugin/plugin.wit");
        assert_eq!(
            std::fs::read_to_string(copy).unwrap(),
            std::fs::read_to_string(ours).unwrap(),
            "{language}"
        );
    }
}

#[test]
fn new_refuses_what_it_cannot_name_or_would_overwrite() {
    let here = TempDir::new().unwrap();
    for name in [
        "",
        "Tags",
        "2-tags",
        "article_tags",
        "article tags",
        "../tags",
        "tags-",
        "-tags",
        "tags--x",
        "größe",
        "a/b",
        ".",
    ] {
        let (status, out, error) =
            plugin_in(&here, &["new", "--lang", "rust", "--", name], &[], b"");
        assert!(!status.success() && out.is_empty() && !error.is_empty(), "{name:?}: {out}{error}");
    }
    assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 0, "something was written");
    std::fs::create_dir(here.path().join("taken")).unwrap();
    let (status, _, error) = plugin_in(&here, &["new", "--lang", "js", "taken"], &[], b"");
    assert!(status.code() == Some(1) && error.contains("taken exists already"), "{error}");
    assert_eq!(
        std::fs::read_dir(here.path().join("taken")).unwrap().count(),
        0,
        "something was written"
    );
    for arguments in
        [["new", "--lang", "cobol", "tags"].as_slice(), &["new", "tags"], &["new", "--lang", "js"]]
    {
        let (status, _, error) = plugin_in(&here, arguments, &[], b"");
        assert!(
            !status.success() && (error.contains("rust, js, python") || error.contains("required")),
            "{arguments:?}: {error}"
        );
    }
}

// ---- wit/ --------------------------------------------------------------------------------

#[test]
fn the_package_parses_is_documented_and_has_the_version_that_the_host_expects() {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("wit")).unwrap();
    let name = &resolve.packages[package].name;
    assert_eq!(name.to_string(), format!("{PACKAGE}@{VERSION}"));
    assert!(resolve.packages[package].docs.contents.is_some());

    let world = resolve.select_world(&[package], Some("every-hook")).unwrap();
    let exports: Vec<_> =
        resolve.worlds[world].exports.keys().map(|key| resolve.name_world_key(key)).collect();
    assert_eq!(exports, HOOKS.map(|hook| format!("{PACKAGE}/{hook}@{VERSION}")));
    let imports = resolve.select_world(&[package], Some("imports")).unwrap();
    let imports: Vec<_> =
        resolve.worlds[imports].imports.keys().map(|key| resolve.name_world_key(key)).collect();
    assert_eq!(imports, ["wasi:config/store@0.2.0-rc.1"]);

    let mut undocumented = Vec::new();
    for (name, interface) in &resolve.packages[package].interfaces {
        let interface = &resolve.interfaces[*interface];
        let mut expect = |item: &str, docs: &wit_parser::Docs| {
            if docs.contents.as_ref().is_none_or(|text| text.trim().is_empty()) {
                undocumented.push(format!("{name} {item}"));
            }
        };
        expect("", &interface.docs);
        interface.functions.iter().for_each(|(name, function)| expect(name, &function.docs));
        for (name, id) in &interface.types {
            let definition = &resolve.types[*id];
            match &definition.kind {
                wit_parser::TypeDefKind::Record(record) => {
                    record.fields.iter().for_each(|field| expect(&field.name, &field.docs))
                }
                wit_parser::TypeDefKind::Variant(variant) => {
                    variant.cases.iter().for_each(|case| expect(&case.name, &case.docs))
                }
                // Used from another interface.
                wit_parser::TypeDefKind::Type(_) => continue,
                _ => {}
            }
            expect(name, &definition.docs);
        }
    }
    for world in resolve.packages[package].worlds.values() {
        let world = &resolve.worlds[*world];
        if world.docs.contents.is_none() {
            undocumented.push(world.name.clone());
        }
        assert!(world.exports.values().all(|item| matches!(item, WorldItem::Interface { .. })));
    }
    assert_eq!(undocumented, Vec::<String>::new());
}
