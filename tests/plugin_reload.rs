//! New versions of plugins in a running relay: on SIGHUP, and with `PLUGIN_WATCH` on change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};
use support::component::{BODY, Component, Folder, HEADERS, PAYLOAD, on, put, text, unchanged};
use support::endpoint::Endpoint;
use support::nats::NatsServer;
use support::relay::Relay;
use support::setup::Setup;
use support::{eventually, signal, within};

const RELOADED: &str = "\"message\":\"plugins reloaded\"";
const REFUSED: &str = "\"message\":\"plugins not reloaded, the previous ones stay in use\"";

/// A version of a plugin that says which one it is.
fn version(name: &str) -> Component {
    Component::with(BODY, &text(name))
}

/// Has the plugins loaded again, which must end with a line that contains `outcome`; returns that.
async fn reload(relay: &Relay, outcome: &str) -> String {
    let before = relay.lines(outcome).len();
    signal(relay.pid(), "HUP");
    relay.logged_times(outcome, before + 1).await.pop().unwrap()
}

/// What the webhook gets for a message now.
async fn body(setup: &mut Setup, endpoint: &Endpoint) -> String {
    setup.publish("cms.cache.a", "in").await;
    setup.relayed().await;
    String::from_utf8(endpoint.calls().pop().unwrap().body.to_vec()).unwrap()
}

/// Sends messages until the webhook gets `expected`.
async fn becomes(setup: &mut Setup, endpoint: &Endpoint, expected: &str) {
    let changed = async {
        while body(setup, endpoint).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(&format!("the body becomes {expected}"), changed).await;
}

/// Writes a new version beside a file and puts it in its place.
fn replace(folder: &Folder, name: &str, component: &Component) {
    let new = folder.write("new", &component.binary());
    std::fs::rename(new, folder.path().join(name)).unwrap();
}

// ---- SIGHUP ------------------------------------------------------------------------------

#[tokio::test]
async fn a_signal_while_plugins_are_loaded_for_the_first_time_does_not_end_the_relay() {
    let stuck = Component::with(BODY, &text(""))
        .field("(func $begin (loop $again (br $again))) (start $begin)");
    let folder = Folder::with(&[("stuck", &stuck)]);
    let nats = NatsServer::start();
    let variables =
        [("PLUGINS", &*folder.all()), ("PLUGIN_CACHE", "off"), ("PLUGIN_TIMEOUT", "2s")];
    let mut relay = Relay::spawn(&nats.url(), "http://127.0.0.1:9/", &variables);
    eventually("a thread of the plugins", || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap();
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
            .any(|name| name == "plugin-ticker\n")
    })
    .await;
    signal(relay.pid(), "HUP");
    relay.logged("it was not instantiated within 2s (PLUGIN_TIMEOUT)").await;
    assert_eq!(relay.exit().await.code(), Some(1), "ended by the plugin, not by the signal");
}

#[tokio::test]
async fn a_message_in_work_finishes_on_the_old_version_and_the_next_is_for_the_new_one() {
    let sleep = "(call $sleep (i64.const 2000000000))";
    let plugin = |name: &str| {
        Component::with(BODY, &(on("slow", &format!("{sleep} {}", text(name))) + &text(name)))
            .hook(PAYLOAD, &text(name))
    };
    let (old, new) = (plugin("old"), plugin("new"));
    let folder = Folder::with(&[("a", &old)]);
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("PLUGIN_TIMEOUT", "50s")]).await;
    for round in 0.. {
        setup.publish("cms.cache.slow", "slow").await;
        setup
            .relay
            .logged_times("\"message\":\"received\",\"subject\":\"cms.cache.slow\"", round * 2 + 1)
            .await;
        replace(&folder, "a.wasm", &new);
        reload(&setup.relay, RELOADED).await;
        let in_time = endpoint.count() == round * 3;
        for subject in ["cms.cache.slow", "cms.cache.other"] {
            setup.publish(subject, "in").await;
        }
        let mut relayed = Vec::new();
        for message in setup.relayed_by_subject(3).await {
            relayed.push((
                message.subject.to_string(),
                String::from_utf8(message.payload.to_vec()).unwrap(),
            ));
        }
        let mut bodies: Vec<_> = endpoint.calls()[round * 3..]
            .iter()
            .map(|call| (call.subject().to_owned(), String::from_utf8(call.body.to_vec()).unwrap()))
            .collect();
        bodies.sort_by(|a, b| a.0.cmp(&b.0));
        let pairs = |texts: [(&str, &str); 3]| texts.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(
            relayed,
            pairs([
                ("relayed.cache.other", "new"),
                ("relayed.cache.slow", "old"),
                ("relayed.cache.slow", "new")
            ])
        );
        assert_eq!(
            bodies,
            pairs([
                ("cms.cache.other", "new"),
                ("cms.cache.slow", "old"),
                ("cms.cache.slow", "new")
            ])
        );
        // On a machine where the reload took longer than the message, nothing was shown.
        if in_time {
            break;
        }
        assert!(round < 10, "the message was never in work while the plugins were reloaded");
        replace(&folder, "a.wasm", &old);
        reload(&setup.relay, RELOADED).await;
    }
    setup.end().await;
}

#[tokio::test]
async fn a_broken_version_is_refused_and_all_old_ones_stay() {
    let folder = Folder::with(&[
        ("a", &version("old")),
        ("b", &Component::with(HEADERS, &unchanged(HEADERS))),
    ]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    assert_eq!(body(&mut setup, &endpoint).await, "old");
    let trapping = version("new").field("(func $start unreachable) (start $start)").binary();
    let broken: [(&str, Option<Vec<u8>>, &str); 5] = [
        ("b.wasm", Some(b"text".to_vec()), "it is not WebAssembly"),
        ("b.wasm", Some(trapping), "unreachable"),
        ("b.wasm", Some(wat::parse_str("(component)").unwrap()), "it exports no hook"),
        ("A.wasm", Some(version("new").binary()), "have the same name"),
        ("b.wasm", Some(Vec::new()), "the file is empty"),
    ];
    // A good new version of the other does not come in alone.
    replace(&folder, "a.wasm", &version("new"));
    for (index, (name, binary, reason)) in broken.iter().enumerate() {
        if let Some(binary) = binary {
            folder.write(name, binary);
        }
        let line = reload(&setup.relay, REFUSED).await;
        assert!(
            line.contains("\"level\":\"ERROR\"") && line.contains(reason) && line.contains(name),
            "{reason}: {line}"
        );
        assert_eq!(body(&mut setup, &endpoint).await, "old", "{reason}");
        setup.relay.counted("plugin_reloads_total{result=\"refused\"}", index as u64 + 1).await;
        if *name != "b.wasm" {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
    }
    for name in ["a.wasm", "b.wasm"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert!(reload(&setup.relay, REFUSED).await.contains("the folder has no .wasm file"));
    assert_eq!(body(&mut setup, &endpoint).await, "old");
    folder.add("a", &version("new"));
    reload(&setup.relay, RELOADED).await;
    assert_eq!(body(&mut setup, &endpoint).await, "new");
    setup.relay.counted("plugin_reloads_total{result=\"loaded\"}", 1).await;
    setup.end().await;
}

#[tokio::test]
async fn files_that_come_into_a_folder_or_leave_it_are_taken_in_and_out() {
    let adds = |name: &str| {
        Component::with(
            BODY,
            &format!(
                "(call $put (local.get $payload) (local.get $payload_len)) {} (call $ok (call $out))",
                put(name)
            ),
        )
    };
    let folder = Folder::with(&[("b", &adds(" b"))]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    assert_eq!(body(&mut setup, &endpoint).await, "in b");
    folder.add("c", &adds(" c"));
    folder.add("a", &adds(" a"));
    let line = reload(&setup.relay, RELOADED).await;
    assert!(
        line.contains("a (webhook-payload), b (webhook-payload), c (webhook-payload)"),
        "{line}"
    );
    assert_eq!(body(&mut setup, &endpoint).await, "in a b c");
    std::fs::remove_file(folder.path().join("b.wasm")).unwrap();
    reload(&setup.relay, RELOADED).await;
    assert_eq!(body(&mut setup, &endpoint).await, "in a c");
    setup.end().await;
}

/// Reloads large plugins 200 times; the resident memory in KiB after each ten.
async fn memory_over_reloads(cache: &str) -> Vec<u64> {
    // So large that keeping a tenth of them would show.
    let code: String = (0..500)
        .map(|number| {
            format!("(func (param i32) (result i32) (i32.mul (local.get 0) (i32.const {number})))")
        })
        .collect();
    let data = format!("(data \"{}\")", "x".repeat(500_000));
    let versions = ["even", "odd"].map(|name| version(name).field(&code).field(&data).binary());
    let folder = Folder::new();
    folder.write("a.wasm", &versions[0]);
    let log = "warn,nats_webhook_relay::plugin::reload=info,nats_webhook_relay::command=info";
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(
        &endpoint.url(),
        &folder.all(),
        &[("PLUGIN_CACHE", cache), ("RUST_LOG", log)],
    )
    .await;
    let mut memory = Vec::new();
    for round in 1..=200 {
        folder.write("a.wasm", &versions[round % 2]);
        reload(&setup.relay, RELOADED).await;
        if round % 10 == 0 {
            assert_eq!(body(&mut setup, &endpoint).await, "even");
            memory.push(setup.relay.memory("VmRSS"));
        }
    }
    setup.end().await;
    memory
}

#[tokio::test]
async fn two_hundred_reloads_from_the_cache_leave_no_memory_behind() {
    let cache = tempfile::TempDir::new().unwrap();
    let memory = memory_over_reloads(cache.path().to_str().unwrap()).await;
    assert!(memory[19] < memory[4] + 4 * 1024, "KiB after each ten reloads: {memory:?}");
}

#[tokio::test]
async fn two_hundred_reloads_with_their_compilations_leave_no_memory_behind() {
    let memory = memory_over_reloads("off").await;
    assert!(memory[19] < memory[4] + 16 * 1024, "KiB after each ten reloads: {memory:?}");
}

// ---- PLUGIN_WATCH ------------------------------------------------------------------------

#[tokio::test]
async fn a_watched_file_is_loaded_again_when_it_has_changed_in_any_way() {
    let folder = Folder::with(&[("a", &version("first"))]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(
        &endpoint.url(),
        &folder.list(&["a.wasm"]),
        &[("PLUGIN_WATCH", "true")],
    )
    .await;
    assert_eq!(body(&mut setup, &endpoint).await, "first");

    replace(&folder, "a.wasm", &version("renamed"));
    becomes(&mut setup, &endpoint, "renamed").await;
    // The same size.
    folder.add("a", &version("written"));
    becomes(&mut setup, &endpoint, "written").await;

    // Away for longer than it takes to notice, and back.
    std::fs::remove_file(folder.path().join("a.wasm")).unwrap();
    let away = Instant::now();
    while away.elapsed() < Duration::from_millis(1700) {
        assert_eq!(body(&mut setup, &endpoint).await, "written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(setup.relay.lines("\"level\":\"ERROR\""), Vec::<String>::new());
    folder.add("a", &version("back"));
    becomes(&mut setup, &endpoint, "back").await;

    // Broken, and mended.
    let refused = setup.relay.lines(REFUSED).len();
    folder.write("a.wasm", b"half");
    setup.relay.logged_times(REFUSED, refused + 1).await;
    assert_eq!(body(&mut setup, &endpoint).await, "back");
    folder.add("a", &version("mended"));
    becomes(&mut setup, &endpoint, "mended").await;

    // SIGHUP still works, and a file that rests is not loaded again and again.
    reload(&setup.relay, RELOADED).await;
    let count = setup.relay.lines(RELOADED).len();
    let rest = Instant::now();
    while rest.elapsed() < Duration::from_millis(1700) {
        assert_eq!(body(&mut setup, &endpoint).await, "mended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(setup.relay.lines(RELOADED).len(), count, "loaded again without a change");
    setup.end().await;
}

#[tokio::test]
async fn a_new_file_in_a_watched_folder_is_taken_in() {
    let folder = Folder::with(&[("a", &version("a"))]);
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("PLUGIN_WATCH", "true")]).await;
    assert_eq!(body(&mut setup, &endpoint).await, "a");
    folder.add("b", &version("b"));
    becomes(&mut setup, &endpoint, "b").await;
    std::fs::remove_file(folder.path().join("b.wasm")).unwrap();
    becomes(&mut setup, &endpoint, "a").await;
    setup.end().await;
}

#[tokio::test]
async fn an_unwatched_file_is_left_alone() {
    let folder = Folder::with(&[("a", &version("old"))]);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    folder.add("a", &version("new"));
    let rest = Instant::now();
    while rest.elapsed() < Duration::from_millis(1700) {
        assert_eq!(body(&mut setup, &endpoint).await, "old");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    setup.end().await;
}

// ---- What plugins cost where there are none ----------------------------------------------

/// The threads of a process: name, and how often it has gone to sleep.
fn threads(pid: u32) -> Vec<(String, u64)> {
    let mut threads = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let read = |name: &str| {
            std::fs::read_to_string(Path::new(&task.as_ref().unwrap().path()).join(name))
                .unwrap_or_default()
        };
        let sleeps = read("status")
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
        threads.push((read("comm").trim().to_owned(), sleeps.unwrap_or_default()));
    }
    threads
}

#[tokio::test]
async fn without_plugins_there_is_no_thread_for_them_and_with_plugins_it_sleeps_while_none_runs() {
    let endpoint = Endpoint::ok().await;
    let mut without = Setup::start(&endpoint.url(), &[]).await;
    without.publish("cms.cache.a", "in").await;
    without.relayed().await;
    let names: Vec<_> = threads(without.relay.pid()).into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"plugin-ticker".to_owned()), "{names:?}");

    let folder = Folder::with(&[("a", &version("made"))]);
    let mut with = Setup::with_plugins(&endpoint.url(), &folder.all(), &[]).await;
    assert_eq!(body(&mut with, &endpoint).await, "made");
    let sleeps = || {
        threads(with.relay.pid())
            .into_iter()
            .find(|(name, _)| name == "plugin-ticker")
            .expect("the thread")
            .1
    };
    let mut before = sleeps();
    // It ticks a thousand times a second while a plugin runs.
    eventually("the thread sleeps", || {
        std::thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut before, sleeps()) == before
    })
    .await;
    with.end().await;
    without.end().await;
}
