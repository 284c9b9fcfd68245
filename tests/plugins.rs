//! Plugins: what each hook can change, what becomes of a message whose plugin misbehaves, and
//! what no plugin can do. The components are made by hand (see `support::component`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::component::{
    BODY, Component, Folder, HEADERS, HOOKS, LOOP, OUT, PAYLOAD, PUT_CALLS, PUT_INPUT, PUT_PAYLOAD,
    PUT_TAIL, SAY_OUT, SUBJECT, TRAP, failed, headers, on, put, quoted, reject, say, text, times,
    unchanged, zeros,
};
use support::endpoint::{Call, Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::{Relay, run};
use support::setup::{Setup, header, values};
use tempfile::TempDir;

/// A log line's field.
fn logged(line: &str, name: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line[name].as_str().unwrap_or_else(|| panic!("{name} in {line}")).to_owned()
}

/// What the plugins have written: plugin and line.
fn said(relay: &Relay) -> Vec<(String, String)> {
    relay
        .lines("\"message\":\"plugin says\"")
        .iter()
        .map(|line| (logged(line, "plugin"), logged(line, "line")))
        .collect()
}

fn all_values<'a>(call: &'a Call, name: &str) -> Vec<&'a [u8]> {
    call.headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
}

// ---- What hooks do -----------------------------------------------------------------------

#[tokio::test]
async fn each_hook_changes_its_own_part_and_nothing_else() {
    let original: Vec<u8> = (0..=255).collect();
    let made: Vec<u8> = (0..=255).rev().collect();
    for hook in HOOKS {
        let body = match hook {
            HEADERS => headers(&[("x-made", "1")]),
            SUBJECT => text("made.7"),
            _ => text(&made),
        };
        let folder = Folder::with(&[("one", &Component::with(hook, &body))]);
        let endpoint = Endpoint::ok().await;
        let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
        setup.publish_with("cms.cache.article.42", &[("X-Own", "2")], original.clone()).await;
        let message = setup.relayed().await;
        setup.end().await;
        let call = endpoint.calls().remove(0);
        assert_eq!(call.body, if hook == BODY { &made } else { &original }.as_slice(), "{hook}");
        assert_eq!(
            message.payload,
            if hook == PAYLOAD { &made } else { &original }.as_slice(),
            "{hook}"
        );
        assert_eq!(
            all_values(&call, "x-made"),
            if hook == HEADERS { vec![b"1"] } else { vec![] },
            "{hook}"
        );
        assert_eq!((call.header("x-own"), call.subject()), ("2", "cms.cache.article.42"), "{hook}");
        assert_eq!(
            (values(&message, "X-Own"), values(&message, "x-made")),
            (vec!["2"], vec![]),
            "{hook}"
        );
        let subject =
            if hook == SUBJECT { "relayed.cache.made.7" } else { "relayed.cache.article.42" };
        assert_eq!(message.subject.as_str(), subject, "{hook}");
    }
}

#[tokio::test]
async fn headers_of_a_plugin_take_the_place_of_those_before_and_the_operators_of_all() {
    let first: &[(&str, &[u8])] = &[
        ("X-Replaced", b"new"),
        ("x-REPLACED", b"newer"),
        ("Authorization", b"Bearer made"),
        ("X-Operator", b"plugin"),
        ("content-type", b"text/plain"),
        ("x-latin", b"\xe9"),
        ("x-chained", b"1"),
        ("x-chained", b"2"),
    ];
    let folder = Folder::with(&[
        ("a", &Component::with(HEADERS, &headers(first))),
        ("b", &Component::with(HEADERS, &headers(&[("X-Chained", "3")]))),
        ("c", &Component::with(HEADERS, &unchanged(HEADERS))),
    ]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(
        &endpoint.url(),
        &folder.all(),
        &[("WEBHOOK_HEADERS", "x-operator=operator")],
    )
    .await;
    let own = [
        ("X-Replaced", "1"),
        ("x-replaced", "2"),
        ("X-Kept", "3"),
        ("X-Kept", "4"),
        ("Content-Type", "text/html"),
        ("X-Operator", "5"),
    ];
    setup.publish_with("cms.cache.a", &own, "").await;
    let message = setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    for (name, expected) in [
        ("x-replaced", [b"new".as_slice(), b"newer"].as_slice()),
        ("x-kept", &[b"3", b"4"]),
        ("content-type", &[b"text/plain"]),
        ("authorization", &[b"Bearer made"]),
        ("x-operator", &[b"operator"]),
        ("x-latin", &[b"\xe9"]),
        ("x-chained", &[b"3"]),
    ] {
        assert_eq!(all_values(&call, name), expected, "{name}");
    }
    let relayed = [
        "X-Replaced",
        "x-replaced",
        "X-Kept",
        "Content-Type",
        "X-Operator",
        "Authorization",
        "x-chained",
    ];
    let relayed: Vec<_> = relayed.iter().flat_map(|name| values(&message, name)).collect();
    assert_eq!(
        relayed,
        ["1", "2", "3", "4", "text/html", "5"],
        "the relayed message has its own headers"
    );
}

#[tokio::test]
async fn each_hook_runs_through_all_plugins_and_each_sees_what_the_one_before_returned() {
    let plugin = |name: &str| {
        Component::with_all(|hook| {
            let say = format!("{} {PUT_INPUT} {SAY_OUT}", put(format!("{hook} ")));
            match hook {
                BODY => format!("{say} {PUT_PAYLOAD} {} {OUT}", put(format!("+{name}"))),
                HEADERS => say + &headers(&[("X-Set", name), (&format!("x-{name}"), "1")]),
                PAYLOAD => format!("{say} {PUT_PAYLOAD} {} {OUT}", put(format!("-{name}"))),
                _ => format!("{say} {} {PUT_TAIL} {OUT}", put(format!("{name}."))),
            }
        })
    };
    let folder = Folder::with(&[("a", &plugin("a")), ("b", &plugin("b")), ("c", &plugin("c"))]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    let own = [("X-Own", "1"), ("X-Own", "2"), ("x-set", "0"), ("Nats-Any", "3")];
    setup.publish_with("cms.cache.article.42", &own, "in").await;
    let message = setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!(call.body, "in+a+b+c");
    assert_eq!(["x-set", "x-a", "x-b", "x-c"].map(|name| call.header(name)), ["c", "1", "1", "1"]);
    assert_eq!(
        (message.subject.as_str(), &message.payload[..]),
        ("relayed.cache.c.b.a.article.42", b"in-a-b-c".as_slice())
    );

    // Plugin, hook, tail, headers, payload.
    let webhook = "Nats-Any=3 X-Own=1 X-Own=2 x-set=0";
    let relayed = "X-Own=1 X-Own=2 x-set=0";
    let expected = [
        ("a", BODY, "article.42", webhook, "in"),
        ("b", BODY, "article.42", webhook, "in+a"),
        ("c", BODY, "article.42", webhook, "in+a+b"),
        ("a", HEADERS, "article.42", webhook, "in+a+b+c"),
        ("b", HEADERS, "article.42", "Nats-Any=3 X-Own=1 X-Own=2 x-a=1 x-set=a", "in+a+b+c"),
        ("c", HEADERS, "article.42", "Nats-Any=3 X-Own=1 X-Own=2 x-a=1 x-b=1 x-set=b", "in+a+b+c"),
        ("a", PAYLOAD, "article.42", relayed, "in"),
        ("b", PAYLOAD, "article.42", relayed, "in-a"),
        ("c", PAYLOAD, "article.42", relayed, "in-a-b"),
        ("a", SUBJECT, "article.42", relayed, "in-a-b-c"),
        ("b", SUBJECT, "a.article.42", relayed, "in-a-b-c"),
        ("c", SUBJECT, "b.a.article.42", relayed, "in-a-b-c"),
    ];
    let said = said(&setup.relay);
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for ((plugin, line), expected) in said.iter().zip(expected) {
        let (hook, input) = line.split_once(' ').unwrap();
        let [id, subject, tail, headers, payload] = input.split('|').collect::<Vec<_>>()[..] else {
            panic!("{input}")
        };
        let mut headers: Vec<_> = headers.split_terminator('&').collect();
        headers.sort_unstable();
        assert_eq!((plugin.as_str(), hook, tail, headers.join(" ").as_str(), payload), expected);
        assert_eq!((id, subject), (call.header("webhook-id"), "cms.cache.article.42"));
    }
}

#[tokio::test]
async fn plugins_run_in_the_order_of_the_variable_and_those_of_a_folder_by_name() {
    let plugin = |name: &str| Component::with(BODY, &format!("{PUT_PAYLOAD} {} {OUT}", put(name)));
    let folder = Folder::new();
    for name in ["z", "sub/b", "sub/a", "sub/10", "m"] {
        folder.add(name, &plugin(&format!(" {}", name.trim_start_matches("sub/"))));
    }
    folder.write("sub/notes.txt", b"not a plugin");
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.list(&["z.wasm", "sub", "m.wasm"]), &[]).await;
    setup.publish("cms.cache.a", "in").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!(endpoint.calls()[0].body, "in z 10 a b m");
    let loaded = setup.relay.logged("plugins loaded").await;
    assert_eq!(
        logged(&loaded, "plugins"),
        ["z", "10", "a", "b", "m"].map(|name| format!("{name} (webhook-payload)")).join(", ")
    );
}

#[tokio::test]
async fn a_plugin_can_return_as_much_as_the_server_takes() {
    let component = Component::with(BODY, &zeros(4096))
        .hook(PAYLOAD, &zeros(4096))
        .hook(HEADERS, &headers(&[("x", "y".repeat(32_767))]));
    let folder = Folder::with(&[("full", &component)]);
    let endpoint = Endpoint::ok().await;
    let variables = [("PLUGINS", folder.all()), ("PLUGIN_CACHE", "off".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut setup =
        Setup::on(NatsServer::with_config("max_payload: 4096"), &endpoint.url(), &variables).await;
    setup.publish("cms.cache.a", "").await;
    assert_eq!(setup.relayed().await.payload, vec![0; 4096]);
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!((call.body.len(), call.header("x").len()), (4096, 32_767));
}

// ---- Failures ----------------------------------------------------------------------------

/// One way in which a hook fails a message.
struct Bad {
    hook: &'static str,
    name: String,
    body: String,
    kind: &'static str,
    /// Part of what is said about it.
    error: String,
}

impl Bad {
    fn new(
        hook: &'static str,
        name: impl Into<String>,
        body: impl Into<String>,
        kind: &'static str,
        error: impl Into<String>,
    ) -> Self {
        Self { hook, name: name.into(), body: body.into(), kind, error: error.into() }
    }

    /// The payload that makes the plugin do it.
    fn payload(&self) -> String {
        format!("{} {}", self.hook, self.name)
    }

    fn tail(&self) -> String {
        format!("{}.{}", self.hook, self.name)
    }
}

/// A plugin that does what is bad on demand, and changes nothing otherwise.
fn on_demand(bad: &[Bad]) -> Component {
    Component::with_all(|hook| {
        let cases =
            bad.iter().filter(|bad| bad.hook == hook).map(|bad| on(&bad.payload(), &bad.body));
        cases.collect::<String>() + &unchanged(hook)
    })
}

/// Each of these fails its message, with all that is said about it, and the next one goes on.
async fn fail(bad: &[Bad], component: &Component, variables: &[(&str, &str)]) {
    let folder = Folder::with(&[("bad", component)]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), variables).await;
    for case in bad {
        for payload in [case.payload().as_str(), "good"] {
            setup
                .publish_with(&format!("cms.cache.{}", case.tail()), &[("X-Own", "1")], payload)
                .await;
        }
    }
    let relayed = setup.relayed_by_subject(bad.len()).await;
    let mut letters: HashMap<_, _> = HashMap::new();
    for message in setup.failed_by_subject(bad.len()).await {
        assert!(
            letters.insert(message.subject.to_string(), message).is_none(),
            "one failed message a subject"
        );
    }
    for case in bad {
        let letter = &letters[&format!("failed.cache.{}", case.tail())];
        assert_eq!(
            (&letter.payload[..], header(letter, "X-Own")),
            (case.payload().as_bytes(), "1")
        );
        let reasons =
            ["Relay-Reason", "Relay-Plugin", "Relay-Hook"].map(|name| values(letter, name));
        assert_eq!(reasons, [["plugin"], ["bad"], [case.hook]], "{letter:?}");
        let text = header(letter, "Relay-Error");
        assert!(
            text.starts_with(&format!("plugin bad, {}: ", case.hook)) && text.contains(&case.error),
            "{} {}: {text}",
            case.hook,
            case.name
        );
    }
    for name in ["messages_failed_total{reason=\"plugin\"}", "messages_relayed_total"] {
        setup.relay.counted(name, bad.len() as u64).await;
    }
    let metrics = setup.relay.get("/metrics").await.1;
    setup.end().await;

    assert!(relayed.iter().all(|message| message.payload == "good"), "{relayed:?}");
    let calls = endpoint.calls();
    assert!(calls.len() == bad.len() && calls.iter().all(|call| call.body == "good"), "{calls:?}");
    let errors = setup.relay.lines("\"level\":\"ERROR\"");
    let mut counts = BTreeMap::<_, u64>::new();
    for case in bad {
        let Bad { hook, kind, error, .. } = case;
        let subject = format!("cms.cache.{}", case.tail());
        let lines: Vec<_> =
            errors.iter().filter(|line| logged(line, "subject") == subject).collect();
        let [line] = lines[..] else { panic!("one line for {subject}: {lines:#?}") };
        assert_eq!(
            (logged(line, "message"), logged(line, "reason")),
            ("not relayed".to_owned(), "plugin".to_owned())
        );
        assert!(
            logged(line, "error").contains(error)
                && logged(line, "error").starts_with("plugin bad, "),
            "{line}"
        );
        *counts
            .entry(format!(
                "plugin_calls_failed_total{{plugin=\"bad\",hook=\"{hook}\",kind=\"{kind}\"}}"
            ))
            .or_default() += 1;
    }
    assert_eq!(errors.len(), bad.len(), "{errors:#?}");
    let counted: BTreeMap<_, _> =
        failed_calls(&metrics).into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, counts);
}

/// Every `plugin_calls_failed_total` of /metrics.
fn failed_calls(metrics: &str) -> BTreeMap<String, u64> {
    let lines = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("nats_webhook_relay_")?.rsplit_once(' '));
    lines
        .filter(|(name, _)| name.starts_with("plugin_calls_failed_total{"))
        .map(|(name, count)| (name.to_owned(), count.parse().unwrap()))
        .collect()
}

const MB: usize = 1_000_000;

#[tokio::test]
async fn what_breaks_a_call_of_any_hook_fails_that_message_alone() {
    let grow = |what: &str, none: &str, by: usize| {
        format!("(if (i32.eq ({what} {none} (i32.const {by})) (i32.const -1)) (then unreachable))")
    };
    // Each is within the limit of 128 MiB; together they are not.
    let memories = ["$m1", "$m2", "$m3"]
        .map(|memory| grow(&format!("memory.grow {memory}"), "", 50 << 4))
        .concat();
    let tables = ["$t1", "$t2", "$t3"]
        .map(|table| grow(&format!("table.grow {table}"), "(ref.null func)", 50 << 17))
        .concat();
    let memory = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    let mut bad = Vec::new();
    for hook in HOOKS {
        for (name, body, kind, error) in [
            ("failed", failed("no luck\r\ntoday"), "failed", "failed: no luck"),
            ("trap", TRAP.to_owned(), "trap", "unreachable"),
            (
                "recursion",
                "(drop (call $recurse (i32.const 0))) unreachable".to_owned(),
                "trap",
                "call stack exhausted",
            ),
            (
                "memory",
                memory.to_owned(),
                "memory",
                "needed more than 128.0 MiB of memory (PLUGIN_MEMORY)",
            ),
            (
                "memories",
                memories.clone() + TRAP,
                "memory",
                "needed more than 128.0 MiB of memory (PLUGIN_MEMORY)",
            ),
            (
                "tables",
                tables.clone() + TRAP,
                "memory",
                "needed more than 128.0 MiB of memory (PLUGIN_MEMORY)",
            ),
            (
                "100-mb",
                format!(
                    "(call $ok (call $alloc (i32.const {})) (i32.const {}))",
                    100 * MB,
                    if hook == HEADERS { 6 * MB } else { 100 * MB }
                ),
                "output",
                "max_payload",
            ),
            (
                "100-mb-error",
                format!(
                    "(call $err (i32.const 1) (call $alloc (i32.const {0})) (i32.const {0}))",
                    100 * MB
                ),
                "output",
                "max_payload",
            ),
            (
                "pointer",
                "(call $ok (i32.const -16) (i32.const 100))".to_owned(),
                "trap",
                "broke off: ",
            ),
            (
                "discriminant",
                "(i32.store (i32.const 32) (i32.const 9)) (i32.const 32)".to_owned(),
                "trap",
                "broke off: ",
            ),
            (
                "exit",
                "(call $exit (i32.const 1)) unreachable".to_owned(),
                "trap",
                "ended itself with exit code 1",
            ),
            (
                "exit-0",
                "(call $exit (i32.const 0)) unreachable".to_owned(),
                "trap",
                "ended itself with exit code 0",
            ),
        ] {
            bad.push(Bad::new(hook, name, body, kind, error));
        }
    }
    let component = on_demand(&bad)
        .field("(memory $m1 0) (memory $m2 0) (memory $m3 0) (table $t1 0 funcref) (table $t2 0 funcref) (table $t3 0 funcref)");
    fail(&bad, &component, &[("PLUGIN_TIMEOUT", "50s")]).await;
}

#[tokio::test]
async fn what_no_hook_may_return_fails_the_message() {
    let mut bad = Vec::new();
    let mut output = |hook, name: String, body, error: &str| {
        bad.push(Bad::new(hook, name, body, "output", error))
    };
    for hook in [BODY, PAYLOAD] {
        output(
            hook,
            "large".into(),
            zeros(1024 * 1024 + 1),
            "returned 1048577 bytes, the server takes 1048576 in one message (max_payload)",
        );
    }
    for (number, name) in
        ["", "a b", "a:b", "a\r\nx-injected", "a\0", "größe", "a/b"].into_iter().enumerate()
    {
        output(
            HEADERS,
            format!("name-{number}"),
            headers(&[("x-good", "1"), (name, "1")]),
            "returned a header whose name is not legal",
        );
    }
    for (number, value) in ["1\r\nx-injected: 2", "1\n", "1\0", "1\u{7f}"].into_iter().enumerate() {
        output(
            HEADERS,
            format!("value-{number}"),
            headers(&[("x-bad", value)]),
            "returned the header x-bad with a value that is not legal",
        );
    }
    for name in [
        "Content-Length",
        "transfer-encoding",
        "Host",
        "connection",
        "TE",
        "upgrade",
        "expect",
        "trailer",
        "keep-alive",
    ] {
        output(
            HEADERS,
            name.to_owned(),
            headers(&[(name, "1")]),
            &format!("returned the header {}, which only the relay sets", name.to_lowercase()),
        );
    }
    for name in ["Nats-Subject", "webhook-id", "Webhook-Timestamp", "webhook-signature"] {
        output(
            HEADERS,
            name.to_owned(),
            headers(&[(name, "1")]),
            &format!("returned the header {}, which only the relay sets", name.to_lowercase()),
        );
    }
    output(
        HEADERS,
        "many".into(),
        headers(&[("x", ""); 101]),
        "returned 101 headers of 101 bytes, at most 100",
    );
    output(
        HEADERS,
        "long".into(),
        headers(&[("x", "y".repeat(32_768))]),
        "returned 1 headers of 32769 bytes, at most 100 of 32768 bytes",
    );
    for (number, (tail, error)) in [
        ("", "it is empty"),
        ("*", "it has a wildcard (* or >)"),
        ("a.>", "it has a wildcard (* or >)"),
        ("a*b", "it has a wildcard (* or >)"),
        (".a", "it has an empty token"),
        ("a.", "it has an empty token"),
        ("a..b", "it has an empty token"),
        (".", "it has an empty token"),
        ("a b", "it has white space or a control character"),
        ("a\r\nPUB cms.cache.x 0\r\n", "it has white space or a control character"),
        ("a\0", "it has white space or a control character"),
        ("a\u{a0}b", "it has white space or a control character"),
    ]
    .into_iter()
    .enumerate()
    {
        output(
            SUBJECT,
            format!("tail-{number}"),
            text(tail),
            &format!("returned the subject {tail:?}: {error}"),
        );
    }
    bad.push(Bad::new(SUBJECT, "utf-8", text([b'a', 0xff]), "trap", "utf-8"));
    fail(&bad, &on_demand(&bad), &[("PLUGIN_TIMEOUT", "50s")]).await;
}

#[tokio::test]
async fn a_relayed_subject_that_cannot_be_published_is_the_plugins_failure() {
    let bad = [Bad::new(SUBJECT, "long", text("a".repeat(5000)), "output", " bytes")];
    fail(&bad, &on_demand(&bad), &[]).await;
}

#[tokio::test]
async fn a_hook_that_does_not_return_in_time_fails_its_message() {
    let mut bad = Vec::new();
    for hook in HOOKS {
        bad.push(Bad::new(
            hook,
            "loop",
            LOOP,
            "timeout",
            "did not return within 500ms (PLUGIN_TIMEOUT)",
        ));
        let sleep = "(call $sleep (i64.const 3600000000000)) unreachable";
        bad.push(Bad::new(
            hook,
            "sleep",
            sleep,
            "timeout",
            "did not return within 500ms (PLUGIN_TIMEOUT)",
        ));
    }
    fail(&bad, &on_demand(&bad), &[("PLUGIN_TIMEOUT", "500ms")]).await;
}

#[tokio::test]
async fn a_rejected_message_is_done_without_a_trace_but_a_line_and_a_count() {
    for hook in HOOKS {
        let first = Component::with(
            hook,
            &format!("{} {}", on("unwanted", &reject("no\ntenant")), unchanged(hook)),
        );
        let later = Component::with(hook, &format!("{} {}", say("called"), unchanged(hook)));
        let folder = Folder::with(&[("a", &first), ("b", &later)]);
        let endpoint = Endpoint::ok().await;
        let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
        for payload in ["unwanted", "wanted"] {
            setup.publish("cms.cache.a", payload).await;
        }
        assert_eq!(setup.relayed().await.payload, "wanted");
        for (name, count) in [
            ("messages_rejected_total", 1),
            ("messages_relayed_total", 1),
            ("messages_failed_total{reason=\"plugin\"}", 0),
        ] {
            setup.relay.counted(name, count).await;
        }
        let metrics = setup.relay.get("/metrics").await.1;
        assert!(failed_calls(&metrics).values().all(|count| *count == 0), "{metrics}");
        setup.end().await;
        let bodies: Vec<_> = endpoint.calls().into_iter().map(|call| call.body).collect();
        assert_eq!(bodies, ["wanted"], "{hook}");
        let line = setup.relay.lines("\"message\":\"rejected\"").remove(0);
        let fields =
            ["level", "subject", "plugin", "hook", "reason"].map(|name| logged(&line, name));
        assert_eq!(fields, ["INFO", "cms.cache.a", "a", hook, "no\ntenant"]);
        assert_eq!(setup.relay.lines("\"level\":\"ERROR\""), Vec::<String>::new());
        assert_eq!(said(&setup.relay).len(), 1, "a later plugin has seen the rejected message");
    }
}

#[tokio::test]
async fn what_plugins_make_of_messages_that_wait_counts_as_pending() {
    const MADE: usize = 100_000;
    let component = Component::with(BODY, &zeros(MADE)).hook(PAYLOAD, &zeros(MADE));
    let folder = Folder::with(&[("large", &component)]);
    let released = Arc::new(AtomicBool::new(false));
    let seen = released.clone();
    let endpoint = Endpoint::start(move |_| {
        Reply::status(if seen.load(Ordering::SeqCst) { 200 } else { 503 })
    })
    .await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("WEBHOOK_MAX_ATTEMPTS", "1000")])
            .await;
    for number in 0..3 {
        setup.publish(&format!("cms.cache.{number}"), "").await;
    }
    let subjects = (3 * "cms.cache.0".len()) as u64;
    setup.relay.counted("messages_pending_bytes", 6 * MADE as u64 + subjects).await;
    released.store(true, Ordering::SeqCst);
    setup.relayed_by_subject(3).await;
    setup.relay.counted("messages_pending_bytes", 0).await;
    setup.end().await;
}

#[tokio::test]
async fn an_instance_that_is_large_from_the_beginning_is_used_again() {
    let folder =
        Folder::with(&[("counter", &Component::with(BODY, &format!("{PUT_CALLS} {OUT}")))]);
    let endpoint = Endpoint::ok().await;
    // Two pages of 64 KiB.
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("PLUGIN_MEMORY", "200KiB")]).await;
    for _ in 0..3 {
        setup.publish("cms.cache.a", "").await;
    }
    setup.relayed_by_subject(3).await;
    let bodies: Vec<_> = endpoint
        .calls()
        .into_iter()
        .map(|call| String::from_utf8(call.body.to_vec()).unwrap())
        .collect();
    assert_eq!(bodies, ["1", "2", "3"]);
    setup.end().await;
}

#[tokio::test]
async fn an_instance_is_used_again_until_a_call_of_it_breaks_off() {
    let large = format!("(drop (memory.grow (i32.const 1100))) {}", text("large"));
    let cases = [
        ("failed", failed("")),
        ("reject", reject("")),
        ("trap", TRAP.to_owned()),
        ("loop", LOOP.to_owned()),
        ("exit", "(call $exit (i32.const 1)) unreachable".to_owned()),
        ("pointer", "(call $ok (i32.const -16) (i32.const 100))".to_owned()),
        ("large", large),
    ];
    let body =
        cases.iter().map(|(payload, body)| on(payload, body)).collect::<String>() + PUT_CALLS + OUT;
    let folder = Folder::with(&[("counter", &Component::with(BODY, &body))]);
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("PLUGIN_TIMEOUT", "1s")]).await;
    let payloads = [
        "", "", "failed", "", "reject", "", "trap", "", "", "loop", "", "", "exit", "", "",
        "pointer", "", "", "large", "", "",
    ];
    for payload in payloads {
        setup.publish("cms.cache.a", payload).await;
    }
    let bodies: Vec<_> = endpoint
        .received(15)
        .await
        .into_iter()
        .map(|call| String::from_utf8(call.body.to_vec()).unwrap())
        .collect();
    let expected = ["1", "2", "4", "6", "1", "2", "1", "2", "1", "2", "1", "2", "large", "1", "2"];
    assert_eq!(bodies, expected);
    setup.relayed_by_subject(expected.len()).await;
    setup.failed_by_subject(5).await;
    setup.end().await;
}

#[tokio::test]
async fn a_refused_growth_that_a_plugin_copes_with_is_not_the_reason_of_a_later_failure() {
    let cope = format!(
        "(if (i32.ne (memory.grow (i32.const 3000)) (i32.const -1)) (then unreachable)) {}",
        text("coped")
    );
    let body = on("grow", &cope) + &on("trap", TRAP) + &unchanged(BODY);
    let folder = Folder::with(&[("coping", &Component::with(BODY, &body))]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    for payload in ["grow", "trap"] {
        setup.publish("cms.cache.a", payload).await;
    }
    setup.relayed().await;
    let error = header(&setup.failed().await, "Relay-Error").to_owned();
    setup.end().await;
    assert_eq!(endpoint.calls()[0].body, "coped");
    assert!(error.contains("unreachable") && !error.contains("PLUGIN_MEMORY"), "{error}");
}

#[tokio::test]
async fn endless_loops_keep_no_other_subject_from_being_relayed() {
    let body = on("loop", LOOP)
        + &on("sleep", "(call $sleep (i64.const 3600000000000)) unreachable")
        + &unchanged(BODY);
    let folder = Folder::with(&[("looping", &Component::with(BODY, &body))]);
    let endpoint = Endpoint::ok().await;
    let variables = [("PLUGIN_TIMEOUT", "1h"), ("SHUTDOWN_GRACE", "500ms")];
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &variables).await;
    for number in 0..8 {
        setup
            .publish(
                &format!("cms.cache.stuck.{number}"),
                if number % 2 == 0 { "loop" } else { "sleep" },
            )
            .await;
    }
    // So many that some are interrupted on a machine whose processors are all taken by the loops.
    for number in 0..1000 {
        setup.publish(&format!("cms.cache.free.{}", number % 100), "").await;
    }
    for message in setup.relayed_by_subject(1000).await {
        assert!(message.subject.starts_with("relayed.cache.free."), "{message:?}");
    }
    assert_eq!(endpoint.count(), 1000);

    // Nor do they keep the relay from stopping.
    assert_eq!(setup.relay.stop().await.code(), Some(1));
    let letters = setup.failed_by_subject(8).await;
    assert!(
        letters.iter().all(|letter| header(letter, "Relay-Reason") == "shutdown"),
        "{letters:?}"
    );
    assert_eq!(setup.relay.lines("panic"), Vec::<String>::new());
}

#[tokio::test]
async fn a_plugin_that_traps_on_every_tenth_message_fails_exactly_those() {
    const MESSAGES: usize = 2_000;
    // Of each subject, every tenth message.
    const SUBJECTS: usize = 101;
    let fails = |number: usize| number % 10 == 9;
    let mark = |mark: &str| format!("{PUT_PAYLOAD} {} {OUT}", put(mark));
    let last_digit = "(i32.load8_u (i32.sub (i32.add (local.get $payload) (local.get $payload_len)) (i32.const 2)))";
    let remap = format!(
        "(if (i32.eq {last_digit} (i32.const {})) (then unreachable)) {}",
        b'9',
        unchanged(SUBJECT)
    );
    let component =
        Component::with(BODY, &mark("w")).hook(PAYLOAD, &mark("r")).hook(SUBJECT, &remap);
    let folder = Folder::with(&[("trapping", &component)]);
    let accepted_at = Arc::new(Mutex::new(HashMap::new()));
    let accepted = accepted_at.clone();
    let random = Mutex::new(fastrand::Rng::with_seed(42));
    let number_of = |bytes: &[u8], mark: &str| -> usize {
        std::str::from_utf8(bytes).unwrap().strip_suffix(mark).unwrap().parse().unwrap()
    };
    let endpoint = Endpoint::start(move |call| {
        let after = Duration::from_micros(random.lock().unwrap().u64(0..5_000));
        accepted.lock().unwrap().insert(number_of(&call.body, "w"), Instant::now() + after);
        Reply::ok().after(after)
    })
    .await;
    let variables = [
        ("RUST_LOG", "error,nats_webhook_relay::command=info,nats_webhook_relay::serve=info"),
        ("PLUGIN_TIMEOUT", "50s"),
    ];
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &variables).await;
    for number in 0..MESSAGES {
        setup.publish(&format!("cms.cache.s{}", number % SUBJECTS), number.to_string()).await;
    }
    let good: Vec<_> = (0..MESSAGES).filter(|number| !fails(*number)).collect();
    let mut relayed: HashMap<String, Vec<usize>> = HashMap::new();
    for _ in &good {
        let message = setup.relayed().await;
        let number = number_of(&message.payload, "r");
        let accepted = accepted_at.lock().unwrap().get(&number).copied();
        assert!(
            accepted.is_some_and(|at| at <= Instant::now()),
            "{number} was relayed before its webhook's answer"
        );
        relayed.entry(message.subject.to_string()).or_default().push(number);
    }
    let mut letters: Vec<_> = setup
        .failed_by_subject(MESSAGES - good.len())
        .await
        .iter()
        .map(|letter| number_of(&letter.payload, ""))
        .collect();
    let metric =
        "plugin_calls_failed_total{plugin=\"trapping\",hook=\"relayed-subject\",kind=\"trap\"}";
    assert_eq!(setup.relay.metric(metric).await, letters.len() as u64);
    setup.end().await;
    letters.sort_unstable();
    assert_eq!(letters, (0..MESSAGES).filter(|number| fails(*number)).collect::<Vec<_>>());

    let of_subject = |subject: usize| {
        good.iter().copied().filter(|number| number % SUBJECTS == subject).collect::<Vec<_>>()
    };
    let mut called: HashMap<String, Vec<usize>> = HashMap::new();
    for call in endpoint.calls() {
        called.entry(call.subject().to_owned()).or_default().push(number_of(&call.body, "w"));
    }
    for subject in 0..SUBJECTS {
        assert_eq!(relayed[&format!("relayed.cache.s{subject}")], of_subject(subject), "relayed");
        assert_eq!(called[&format!("cms.cache.s{subject}")], of_subject(subject), "called");
    }
    assert_eq!(setup.relay.lines("\"message\":\"not relayed\"").len(), letters.len());
}

// ---- Output ------------------------------------------------------------------------------

#[tokio::test]
async fn a_trap_carries_what_the_guest_said_last_on_standard_error() {
    let said = "begun\n\nthread panicked at src/lib.rs:10:5:\nhunter2 is no article\n    at f (x.js)\n\
                note: run with RUST_BACKTRACE=1\n";
    // Of the first message; the second one says nothing.
    let complain =
        format!("(if (local.get $payload_len) (then (call $complain {})))", quoted(said));
    let folder = Folder::with(&[("panics", &Component::with(BODY, &(complain + TRAP)))]);
    let endpoint = Endpoint::ok().await;
    let variables = [("PLUGIN_PANICS_SECRET", "hunter2")];
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &variables).await;
    for (payload, expected) in
        [("x", "begun thread panicked at src/lib.rs:10:5: *** is no article"), ("", "")]
    {
        setup.publish("cms.cache.a", payload).await;
        let letter = setup.failed().await;
        let error = header(&letter, "Relay-Error");
        assert!(error.starts_with("plugin panics, webhook-payload: "), "{error}");
        assert!(error.contains("unreachable") && error.ends_with(expected), "{error}");
        assert_eq!(error.contains("panicked"), !payload.is_empty(), "{error}");
    }
    setup.end().await;
    assert_eq!(
        setup.relay.lines("*** is no article").len(),
        2,
        "as it was written, and as the error"
    );
    assert!(setup.relay.lines("hunter2").is_empty());
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn what_a_plugin_writes_is_logged_with_its_name() {
    let complain = format!("(call $complain {})", quoted("look\nhere\n"));
    let unended = format!("(call $print {})", quoted("without an end"));
    let long = times(10, &format!("(call $print {})", quoted("x".repeat(1000)))) + &say("");
    let component = Component::with(
        BODY,
        &(say("tab\tquote\" größe") + &complain + &long + &unended + &unchanged(BODY)),
    );
    let trapping =
        Component::with(PAYLOAD, &(format!("(call $print {})", quoted("last words")) + TRAP));
    let folder = Folder::with(&[("sayer", &component), ("trapping", &trapping)]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    setup.publish("cms.cache.a", "").await;
    setup.failed().await;
    setup.end().await;
    let lines = setup.relay.lines("\"message\":\"plugin says\"");
    for line in &lines {
        assert_eq!(logged(line, "subject"), "cms.cache.a", "{line}");
        assert!(logged(line, "id").starts_with("msg_"), "{line}");
    }
    let lines: Vec<_> = lines
        .iter()
        .map(|line| ["level", "plugin", "line"].map(|name| logged(line, name)))
        .collect();
    let cut = format!("{} ...", "x".repeat(1024));
    let expected = [
        ["INFO", "sayer", "tab\tquote\" größe"],
        ["WARN", "sayer", "look"],
        ["WARN", "sayer", "here"],
        ["INFO", "sayer", &cut],
        ["INFO", "sayer", "without an end"],
        ["INFO", "trapping", "last words"],
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn the_last_words_before_a_time_out_are_logged() {
    let body = format!("(call $print {}) {LOOP}", quoted("about to loop"));
    let folder = Folder::with(&[("looping", &Component::with(BODY, &body))]);
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("PLUGIN_TIMEOUT", "200ms")]).await;
    setup.publish("cms.cache.a", "").await;
    setup.failed().await;
    setup.end().await;
    assert_eq!(said(&setup.relay), [("looping".to_owned(), "about to loop".to_owned())]);
}

#[tokio::test]
async fn ten_thousand_lines_do_not_flood_the_log() {
    // 2 MB: more than one result may have.
    let body = on("much", &(times(10_000, &say("x".repeat(200))) + &text("done")))
        + &say("one line")
        + &unchanged(BODY);
    let quiet = Component::with(BODY, &(say("another plugin") + &unchanged(BODY)));
    let folder = Folder::with(&[("loud", &Component::with(BODY, &body)), ("quiet", &quiet)]);
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("PLUGIN_TIMEOUT", "50s")]).await;
    let began = Instant::now();
    setup.publish("cms.cache.a", "much").await;
    assert_eq!(setup.relayed().await.payload, "much");
    assert_eq!(endpoint.calls()[0].body, "done");
    // At most 100 in each second.
    let most = 100 * (began.elapsed().as_secs() as usize + 2);
    let count = setup.relay.lines("xxxx").len();
    assert!((100..=most).contains(&count), "{count} lines, at most {most} expected");
    let notice = setup.relay.logged("writes more than 100 lines a second").await;
    assert_eq!(
        (logged(&notice, "level"), logged(&notice, "plugin")),
        ("WARN".to_owned(), "loud".to_owned())
    );
    assert!(
        said(&setup.relay).contains(&("quiet".to_owned(), "another plugin".to_owned())),
        "another plugin has lost its line"
    );

    // When the time is over, it is said how many there were, and lines are logged again.
    while setup.relay.lines("one line").is_empty() {
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
    }
    let dropped: u64 = setup
        .relay
        .lines("lines of the plugin were not logged")
        .iter()
        .map(|line| number(line, "lines"))
        .sum();
    setup.end().await;
    let all = setup.relay.lines("xxxx").len() as u64 + dropped;
    assert!(
        (10_000..10_000 + setup.relay.lines("\"message\":\"received\"").len() as u64)
            .contains(&all),
        "{all} of 10,000 lines are accounted for"
    );
}

fn number(line: &str, name: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(line).unwrap()[name].as_u64().unwrap()
}

/// A plugin that does with its configuration's `secret` and `key` all that shows them.
fn leaking() -> Component {
    let both = format!(
        "(call $put_config {}) {} (call $put_config {})",
        quoted("SECRET"),
        put(" and "),
        quoted("KEY")
    );
    let out = |kind: u32| format!("{both} (call $err (i32.const {kind}) (call $out))");
    let secret = format!("(call $put_config {})", quoted("SECRET"));
    let set = |name: &str, value: &str| {
        format!(
            "{secret} (call $begin_headers (i32.const 1)) (call $header {name} {value}) (call $ok (call $all_headers))"
        )
    };
    let cases = on("reject", &out(0)) + &on("failed", &out(1));
    let say = format!(
        "{both} {SAY_OUT} {both} (call $put_byte (i32.const 10)) (call $complain (call $out)) (global.set $out_len (i32.const 0))"
    );
    Component::with(BODY, &(say + &cases + &unchanged(BODY)))
        .hook(
            HEADERS,
            &(on(
                "name",
                &(format!("{secret} {}", put(" x"))
                    + &set("(call $out)", "(i32.const 0) (i32.const 0)")),
            ) + &set(&quoted("x-signed"), "(call $out)")),
        )
        .hook(
            SUBJECT,
            &(on("tail", &format!("{secret} {} {OUT}", put(" x"))) + &unchanged(SUBJECT)),
        )
}

/// All that the relay says and publishes when [`leaking`] has these settings and shows them on
/// these payloads; and what the webhook gets.
async fn leaks(failing: &[&str], variables: &[(&str, &str)]) -> (Vec<String>, Call) {
    let folder = Folder::with(&[("leaking", &leaking())]);
    let endpoint = Endpoint::ok().await;
    let mut all = vec![("RUST_LOG", "trace")];
    all.extend_from_slice(variables);
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &all).await;
    for payload in ["reject", "good"].iter().chain(failing) {
        setup.publish(&format!("cms.cache.{payload}"), *payload).await;
    }
    let letters = setup.failed_by_subject(failing.len()).await;
    setup.relayed().await;
    setup.relay.logged("\"message\":\"rejected\"").await;
    setup.end().await;
    let mut shown = setup.relay.log();
    shown.extend(letters.iter().map(|letter| format!("{letter:?}")));
    assert!(shown.iter().any(|line| line.contains("*** and ")), "{shown:#?}");
    (shown, endpoint.calls().remove(0))
}

fn hidden(secrets: &[&str], shown: &[String]) {
    for secret in secrets {
        let lines: Vec<_> = shown.iter().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{secret} in {lines:#?}");
    }
}

#[tokio::test]
async fn a_configured_secret_that_a_plugin_tells_is_neither_logged_nor_published() {
    let folder = Folder::new();
    let key = folder.write("key", b"k3y-0f-the-file\n");
    let variables =
        [("PLUGIN_LEAKING_SECRET", "s3cret"), ("PLUGIN_LEAKING_KEY_FILE", key.to_str().unwrap())];
    let (shown, call) = leaks(&["failed"], &variables).await;
    assert_eq!(call.header("x-signed"), "s3cret", "the plugin itself has it");
    hidden(&["s3cret", "k3y-0f-the-file"], &shown);
}

#[tokio::test]
async fn a_configured_secret_in_what_a_plugin_may_not_return_is_neither_logged_nor_published() {
    let (shown, _) = leaks(&["name", "tail"], &[("PLUGIN_LEAKING_SECRET", "s3cret")]).await;
    hidden(&["s3cret"], &shown);
}

#[tokio::test]
async fn a_secret_that_begins_with_another_one_is_hidden_as_a_whole() {
    let variables = [
        ("PLUGIN_LEAKING_AN_OLD_TOKEN", "s3cr"),
        ("PLUGIN_LEAKING_SECRET", "s3cret-long"),
        ("PLUGIN_LEAKING_Z_TOKEN", "long"),
    ];
    let (shown, _) = leaks(&["failed"], &variables).await;
    hidden(&["s3cr", "et-", "long"], &shown);
}

#[tokio::test]
async fn a_secret_of_several_lines_is_hidden_also_where_its_lines_are() {
    let folder = Folder::new();
    let key = folder.write("key", b"-----BEGIN-----\nbWFueSBsaW5lcw\nb2Yga2V5cw\n-----END-----\n");
    let variables =
        [("PLUGIN_LEAKING_SECRET", "s3cret"), ("PLUGIN_LEAKING_KEY_FILE", key.to_str().unwrap())];
    let (shown, _) = leaks(&["failed"], &variables).await;
    hidden(&["bWFueSBsaW5lcw", "b2Yga2V5cw"], &shown);
}

// ---- Configuration -----------------------------------------------------------------------

#[tokio::test]
async fn a_plugin_is_given_its_own_settings_and_nothing_else() {
    let shows = |name: &str| {
        let get = ["GREETING", "greeting", "NONE"]
            .map(|key| format!("(call $put_config {}) {}", quoted(key), put(" ")))
            .concat();
        let all = format!(
            "{} (call $put_all_config) {} (call $put_environment) {}",
            put("all "),
            put(" environment "),
            put("\n")
        );
        Component::with(
            BODY,
            &format!("{PUT_PAYLOAD} {} {get} {all} {OUT}", put(format!("{name} "))),
        )
    };
    let folder = Folder::with(&[
        ("My-plugin.v2", &shows("first")),
        ("my", &shows("second")),
        ("x", &shows("third")),
    ]);
    let value = folder.write("value", "größe = 1\n".as_bytes());
    let endpoint = Endpoint::ok().await;
    let variables = [
        ("PLUGIN_MY_PLUGIN_V2_GREETING", "hello"),
        ("PLUGIN_my_Plugin_v2_lower", "1"),
        ("PLUGIN_MY_PLUGIN_V2_SIZE_FILE", value.to_str().unwrap()),
        ("PLUGIN_MY_GREETING", "hi"),
        ("PLUGIN_MY_EMPTY", ""),
        ("PLUGIN_NOBODY_GREETING", "n0body"),
        ("PLUGIN_TIMEOT", "5s"),
        ("HOME", "/h0me"),
    ];
    let list = folder.list(&["My-plugin.v2.wasm", "my.wasm", "x.wasm"]);
    let mut setup = Setup::with_plugins(&endpoint.url(), &list, &variables).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    let sorted = |text: &str| {
        let mut pairs: Vec<_> = text.split_terminator('&').map(str::to_owned).collect();
        pairs.sort_unstable();
        pairs.join("&")
    };
    let seen = String::from_utf8(endpoint.calls()[0].body.to_vec()).unwrap();
    let seen: Vec<_> = seen
        .split_terminator("&\n")
        .flat_map(|text| text.split_terminator('\n'))
        .map(|line| {
            let (start, rest) = line.split_once(" all ").unwrap();
            let (config, environment) = rest.split_once(" environment ").unwrap();
            assert_eq!(sorted(config), sorted(environment), "{line}");
            format!("{start}: {}", sorted(config))
        })
        .collect();
    assert_eq!(
        seen,
        [
            "first hello - -: GREETING=hello&SIZE=größe = 1&lower=1",
            "second hi - -: GREETING=hi",
            "third - - -: "
        ]
    );
    let warned: Vec<_> = setup
        .relay
        .lines("belongs to none of the plugins")
        .iter()
        .map(|line| logged(line, "variable"))
        .collect();
    assert_eq!(warned, ["PLUGIN_NOBODY_GREETING", "PLUGIN_TIMEOT"]);
    assert!(setup.relay.lines("n0body").is_empty(), "a value is shown");
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_a_mistake_of_the_configuration() {
    let folder = Folder::with(&[("x", &Component::with(BODY, &unchanged(BODY)))]);
    let variables = [
        ("PLUGINS", folder.all()),
        ("PLUGIN_CACHE", "off".into()),
        ("PLUGIN_X_KEY", "k3y".into()),
        ("PLUGIN_X_KEY_FILE", "/dev/null".into()),
        ("PLUGIN_Y_KEY_FILE", "/n0ne".into()),
        ("PLUGIN_MEMORY", "much".into()),
    ];
    let mut relay = Relay::spawn(
        "nats://127.0.0.1:1",
        "http://127.0.0.1:1",
        &variables.each_ref().map(|(name, value)| (*name, value.as_str())),
    );
    assert_eq!(relay.exit().await.code(), Some(64));
    let said = relay.log().join("\n");
    assert!(
        ["PLUGIN_X_KEY: both", "PLUGIN_Y_KEY_FILE", "PLUGIN_MEMORY"]
            .iter()
            .all(|name| said.contains(name))
            && !said.contains("k3y"),
        "{said}"
    );
}

// ---- The sandbox -------------------------------------------------------------------------

#[tokio::test]
async fn a_plugin_has_a_clock_and_random_numbers_but_no_folder_no_socket_and_no_environment() {
    let body = format!(
        "{} (call $put_folders) {} (call $put_sockets) {} (call $put_environment) {} (call $put_seconds) {} (call $put_random) {} (call $put_random) {OUT}",
        put("folders "),
        put(" sockets "),
        put("environment "),
        put(" seconds "),
        put(" random "),
        put(" ")
    );
    let folder = Folder::with(&[("curious", &Component::with(BODY, &body))]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(
        &endpoint.url(),
        &folder.all(),
        &[("HOME", "/tmp"), ("HTTP_PROXY", "http://pr0xy")],
    )
    .await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    let seen = std::str::from_utf8(&call.body).unwrap();
    // 1: access-denied.
    let (rest, random) = seen
        .strip_prefix("folders 0 sockets 1 1 environment  seconds ")
        .unwrap_or_else(|| panic!("{seen}"))
        .split_once(" random ")
        .unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - rest.parse::<u64>().unwrap() < 3600, "{seen}");
    let (first, second) = random.split_once(' ').unwrap();
    assert_ne!(first, second);
}

// ---- Bad files at the start --------------------------------------------------------------

/// Starts a relay that has to refuse its plugins: what it says.
async fn refused(nats: &NatsServer, plugins: &str, variables: &[(&str, &str)]) -> String {
    let mut all = vec![("PLUGINS", plugins), ("PLUGIN_CACHE", "off")];
    all.extend_from_slice(variables);
    let mut relay = Relay::spawn(&nats.url(), "http://127.0.0.1:1", &all);
    assert_eq!(relay.exit().await.code(), Some(1), "{:#?}", relay.log());
    assert!(relay.lines("\"message\":\"ready\"").is_empty(), "{:#?}", relay.log());
    let line = relay.lines("ended with an error").remove(0);
    assert_eq!(logged(&line, "level"), "ERROR");
    logged(&line, "error")
}

/// `wasm` is WebAssembly text.
fn raw(wasm: &str) -> Vec<u8> {
    wat::parse_str(wasm).unwrap()
}

#[tokio::test]
async fn every_component_that_cannot_be_used_is_reported_at_the_start_with_its_reason() {
    let good = Component::with(BODY, &unchanged(BODY)).binary();
    let hook = |change: fn(Component) -> Component| {
        change(Component::with(BODY, &unchanged(BODY))).binary()
    };
    let foreign = r#"(component (import "acme:db/query@1.0.0" (instance (export "run" (func)))))"#;
    let files: &[(&str, Vec<u8>, &[&str])] = &[
        ("empty", Vec::new(), &["the file is empty"]),
        ("text", b"#!/bin/sh\necho hello\n".to_vec(), &["it is not WebAssembly"]),
        (
            "wat",
            b"(component)".to_vec(),
            &["it is not WebAssembly (expected a component in binary form)"],
        ),
        ("magic", b"\0asm".to_vec(), &["it is not WebAssembly"]),
        ("core", raw("(module)"), &["it is a core module, not a component", "wasm32-wasip2"]),
        ("truncated", good[..good.len() / 2].to_vec(), &["it is not a valid component"]),
        ("damaged", [&good[..], &[0xff; 8]].concat(), &["it is not a valid component"]),
        (
            "nothing",
            raw("(component)"),
            &["it exports no hook of nats-webhook-relay:plugin@1.0.0; it exports nothing"],
        ),
        (
            "other",
            raw(r#"(component (instance $i) (export "acme:hooks/transform@3.0.0" (instance $i)))"#),
            &["no hook", "it exports acme:hooks/transform@3.0.0"],
        ),
        (
            "version-2",
            hook(|c| c.against("plugin@1.0.0", "plugin@2.0.0")),
            &[
                "no hook of nats-webhook-relay:plugin@1.0.0",
                "it exports nats-webhook-relay:plugin/webhook-payload@2.0.0",
            ],
        ),
        (
            "version-0",
            hook(|c| c.against("plugin@1.0.0", "plugin@0.9.0")),
            &["no hook of nats-webhook-relay:plugin@1.0.0", "webhook-payload@0.9.0"],
        ),
        (
            "mistyped",
            hook(|c| c.against("result<list<u8>, hook-error>", "list<u8>")),
            &["webhook-payload has another type than nats-webhook-relay:plugin@1.0.0 defines"],
        ),
        (
            "mistyped-in",
            hook(|c| c.against("subject: string", "subject: list<u8>")),
            &["webhook-payload has another type than nats-webhook-relay:plugin@1.0.0 defines"],
        ),
        (
            "misnamed",
            hook(|c| c.against("transform: func", "convert: func")),
            &["webhook-payload", "transform"],
        ),
        (
            "hollow",
            raw(
                r#"(component (instance $i) (export "nats-webhook-relay:plugin/relayed-subject@1.0.0" (instance $i)))"#,
            ),
            &["relayed-subject", "remap"],
        ),
        (
            "plain",
            raw(
                r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m)) (func (export "relayed-subject") (canon lift (core func $i "f"))))"#,
            ),
            &["no hook", "it exports relayed-subject"],
        ),
        (
            "import",
            raw(foreign),
            &["it needs something that plugins are not given", "acme:db/query@1.0.0"],
        ),
        (
            "http",
            hook(|c| {
                c.beside(
                    "import wasi:http/fetching@0.2.0;",
                    "package wasi:http@0.2.0 { interface fetching { fetch: func(); } }",
                    r#"(import "wasi:http/fetching@0.2.0" "fetch" (func))"#,
                )
            }),
            &["wasi:http/fetching@0.2.0", "--disable http"],
        ),
        (
            "starting",
            hook(|c| c.field("(func $start unreachable) (start $start)")),
            &["unreachable"],
        ),
        (
            "exiting",
            hook(|c| c.field("(func $start (call $exit (i32.const 1))) (start $start)")),
            &["exit status 1"],
        ),
        (
            "looping",
            hook(|c| c.field("(func $start (loop $l (br $l))) (start $start)")),
            &["it was not instantiated within 1s (PLUGIN_TIMEOUT)"],
        ),
        (
            "huge",
            hook(|c| c.field("(memory $huge 1000)")),
            &["needed more than 16.0 MiB of memory (PLUGIN_MEMORY)"],
        ),
        (
            "growing",
            hook(|c| {
                c.field("(func $start (if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))) (start $start)")
            }),
            &["needed more than 16.0 MiB of memory (PLUGIN_MEMORY)"],
        ),
    ];
    let folder = Folder::new();
    folder.write("fine.wasm", &good);
    for (name, binary, _) in files {
        folder.write(&format!("{name}.wasm"), binary);
    }
    let nats = NatsServer::start();
    let error =
        refused(&nats, &folder.all(), &[("PLUGIN_TIMEOUT", "1s"), ("PLUGIN_MEMORY", "16MiB")])
            .await;
    let reports = error
        .strip_prefix("plugin ")
        .unwrap()
        .split("; plugin ")
        .map(|report| report.split_once(".wasm: ").unwrap());
    let mut reports: BTreeMap<_, _> = reports
        .map(|(path, report)| (Path::new(path).file_name().unwrap().to_str().unwrap(), report))
        .collect();
    for (name, _, expected) in files {
        let report =
            reports.remove(name).unwrap_or_else(|| panic!("{name} is not reported in {error}"));
        assert!(
            expected.iter().all(|expected| report.contains(expected)),
            "{name}: {report}, expected {expected:?}"
        );
    }
    assert!(reports.is_empty(), "{reports:?}");
}

/// Starts a relay whose `PLUGINS` is a mistake of the configuration: what it says.
async fn mistaken(nats: &NatsServer, plugins: &str) -> String {
    let mut relay = Relay::spawn(
        &nats.url(),
        "http://127.0.0.1:1",
        &[("PLUGINS", plugins), ("PLUGIN_CACHE", "off"), ("MAX_IN_FLIGHT", "0")],
    );
    assert_eq!(relay.exit().await.code(), Some(64), "{:#?}", relay.log());
    let said = relay.log().join("\n");
    assert!(said.contains("MAX_IN_FLIGHT"), "the other mistakes are not reported: {said}");
    said
}

#[tokio::test]
async fn files_that_are_not_there_are_reported_at_the_start() {
    let folder = Folder::with(&[("a", &Component::with(BODY, &unchanged(BODY)))]);
    folder.write("empty/readme.txt", b"");
    folder.write("more/A.wasm", b"");
    std::fs::create_dir(folder.path().join("folder.wasm")).unwrap();
    let nats = NatsServer::start();
    for (names, expected) in [
        (["none.wasm"].as_slice(), ["none.wasm", "No such file"].as_slice()),
        (&["empty"], &["empty", "the folder has no .wasm file"]),
        (&["folder.wasm"], &["folder.wasm", "has no .wasm file"]),
        (&["a.wasm", "more"], &["a.wasm", "more/A.wasm", "have the same name"]),
        (&["a.wasm", "a.wasm"], &["a.wasm", "have the same name"]),
    ] {
        let said = mistaken(&nats, &folder.list(names)).await;
        assert!(
            said.contains("PLUGINS: ") && expected.iter().all(|expected| said.contains(expected)),
            "{names:?}: {said}"
        );
    }
}

#[tokio::test]
async fn all_files_that_are_not_there_are_reported_at_once() {
    let folder = Folder::new();
    folder.write("empty/readme.txt", b"");
    let names = ["none.wasm", "missing.wasm", "empty"];
    let said = mistaken(&NatsServer::start(), &folder.list(&names)).await;
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
}

#[tokio::test]
async fn the_relays_check_loads_plugins_too() {
    let folder = Folder::with(&[(
        "good",
        &Component::with(BODY, &unchanged(BODY)).hook(SUBJECT, &unchanged(SUBJECT)),
    )]);
    let nats = NatsServer::start();
    let url = nats.url();
    let check = |plugins: &str| {
        let variables = [
            ("WEBHOOK_DESTINATION", "http://127.0.0.1:1/"),
            ("NATS_HOST", &url),
            ("NATS_SUBJECT_PREFIX", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
            ("PLUGINS", plugins),
            ("PLUGIN_CACHE", "off"),
        ];
        run(&["check"], &variables)
    };
    let (status, out, error) = check(&folder.all());
    assert!(
        status.success() && out.contains("plugin good (webhook-payload, relayed-subject)"),
        "{out}{error}"
    );
    folder.write("bad.wasm", b"");
    let (status, out, error) = check(&folder.all());
    assert!(status.code() == Some(1) && out.is_empty(), "{out}");
    assert!(error.contains("bad.wasm: the file is empty"), "{error}");
}

#[tokio::test]
async fn plugins_of_a_later_minor_version_run_and_their_new_hooks_are_warned_about() {
    let later = Component::with(BODY, &text("made"))
        .against("@1.0.0;", "@1.1.0;")
        .against("interface webhook-payload {", "interface later-hook { use types.{message, hook-error}; remap: func(message: message) -> result<string, hook-error>; }\ninterface webhook-payload {")
        .hook("later-hook", TRAP);
    // Whatever else a component exports is its own business.
    let other = Component::with(HEADERS, &headers(&[("x", "1")])).beside(
        "export acme:tests/run;",
        "package acme:tests { interface run { run: func(); } }",
        r#"(func (export "acme:tests/run#run") unreachable)"#,
    );
    let folder = Folder::with(&[("later", &later), ("other", &other)]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    setup.publish("cms.cache.a", "in").await;
    setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!((&call.body[..], call.header("x")), (b"made".as_slice(), "1"));
    let warned: Vec<_> = setup
        .relay
        .lines("\"level\":\"WARN\"")
        .iter()
        .map(|line| (logged(line, "plugin"), logged(line, "exports")))
        .collect();
    assert_eq!(
        warned,
        [("later".to_owned(), "nats-webhook-relay:plugin/later-hook@1.1.0".to_owned())]
    );
}

#[tokio::test]
async fn a_known_hook_of_another_major_version_is_warned_about_where_the_plugin_has_others() {
    let mixed = Component::with(PAYLOAD, &text("relayed")).beside(
        "export nats-webhook-relay:plugin/relayed-subject@2.0.0;",
        "package nats-webhook-relay:plugin@2.0.0 { interface relayed-subject { remap: func(); } }",
        r#"(func (export "nats-webhook-relay:plugin/relayed-subject@2.0.0#remap") unreachable)"#,
    );
    let folder = Folder::with(&[("mixed", &mixed)]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    setup.publish("cms.cache.a", "in").await;
    let message = setup.relayed().await;
    setup.end().await;
    assert_eq!(
        (message.subject.as_str(), &message.payload[..]),
        ("relayed.cache.a", b"relayed".as_slice())
    );
    let warned: Vec<_> = setup
        .relay
        .lines("\"level\":\"WARN\"")
        .iter()
        .map(|line| logged(line, "exports"))
        .collect();
    assert_eq!(warned, ["nats-webhook-relay:plugin/relayed-subject@2.0.0"]);
}

// ---- The cache of compiled code ----------------------------------------------------------

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// The body of a webhook call that a relay with this plugin makes.
async fn body_made(plugins: &str, variables: &[(&str, &str)]) -> (String, Vec<String>) {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), plugins, variables).await;
    setup.publish("cms.cache.a", "in").await;
    setup.relayed().await;
    setup.end().await;
    (
        String::from_utf8(endpoint.calls()[0].body.to_vec()).unwrap(),
        setup.relay.lines("\"level\":\"WARN\""),
    )
}

#[tokio::test]
async fn code_is_compiled_once_and_then_taken_from_the_cache() {
    let folder = Folder::with(&[
        ("a", &Component::with(BODY, &text("made by a"))),
        ("b", &Component::with(BODY, &text("made by b"))),
    ]);
    let caches = TempDir::new().unwrap();
    let mut compiled = Vec::new();
    for name in ["a", "b"] {
        let cache = caches.path().join("deep").join(name);
        let variables = [("PLUGIN_CACHE", cache.to_str().unwrap())];
        let (body, warned) = body_made(&folder.list(&[&format!("{name}.wasm")]), &variables).await;
        assert_eq!((body, warned), (format!("made by {name}"), vec![]));
        assert_eq!(
            cache.metadata().unwrap().permissions().mode() & 0o077,
            0,
            "others may look into it"
        );
        let mut files = files(&cache);
        files.retain(|file| file.extension().is_none());
        assert_eq!(files.len(), 1, "{files:?}");
        compiled.push(files.remove(0));
    }
    // What is in the cache is what runs.
    std::fs::copy(&compiled[1], &compiled[0]).unwrap();
    let cache = caches.path().join("deep/a");
    let (body, _) =
        body_made(&folder.list(&["a.wasm"]), &[("PLUGIN_CACHE", cache.to_str().unwrap())]).await;
    assert_eq!(body, "made by b", "compiled again");
}

#[tokio::test]
async fn the_cache_is_in_the_users_folder_or_off_and_never_where_others_may_write() {
    let folder = Folder::with(&[("a", &Component::with(BODY, &text("made")))]);
    let home = TempDir::new().unwrap();
    let at = |path: &str| home.path().join(path).to_str().unwrap().to_owned();
    let (xdg, systemd, shared) = (at("xdg"), at("systemd"), at("shared"));
    for (variables, expected) in [
        (vec![("PLUGIN_CACHE", "")], Some(".cache/nats-webhook-relay")),
        (vec![("PLUGIN_CACHE", ""), ("XDG_CACHE_HOME", &xdg)], Some("xdg/nats-webhook-relay")),
        (
            vec![("PLUGIN_CACHE", ""), ("XDG_CACHE_HOME", &xdg), ("CACHE_DIRECTORY", &systemd)],
            Some("systemd"),
        ),
        (vec![("PLUGIN_CACHE", "off"), ("XDG_CACHE_HOME", &xdg)], None),
    ] {
        let mut all = vec![("HOME", home.path().to_str().unwrap())];
        all.extend_from_slice(&variables);
        assert_eq!(
            body_made(&folder.all(), &all).await,
            ("made".to_owned(), vec![]),
            "{variables:?}"
        );
        let found = files(home.path());
        let place = expected.map(|expected| home.path().join(expected));
        assert_eq!(found.is_empty(), place.is_none(), "{variables:?} {found:?}");
        assert!(
            found.iter().all(|file| place.as_ref().is_some_and(|place| file.starts_with(place))),
            "{variables:?} {found:?}"
        );
        for entry in std::fs::read_dir(home.path()).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }
    for mode in [0o775, 0o757] {
        let _ = std::fs::create_dir(&shared);
        std::fs::set_permissions(&shared, PermissionsExt::from_mode(mode)).unwrap();
        let (body, warned) = body_made(&folder.all(), &[("PLUGIN_CACHE", &shared)]).await;
        assert_eq!(body, "made");
        assert!(
            warned.len() == 1 && logged(&warned[0], "message") == "compiled plugins are not cached",
            "{warned:?}"
        );
        assert!(
            logged(&warned[0], "error").contains(&shared)
                && warned[0].contains("others may write into it"),
            "{warned:?}"
        );
        assert_eq!(files(Path::new(&shared)), Vec::<PathBuf>::new());
    }
}
