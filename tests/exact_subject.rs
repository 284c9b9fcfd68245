//! One exact subject instead of prefixes: what is received, where it is republished, what a plugin
//! may make of that, and what is said about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::{Value, json};
use support::component::{Component, Folder, PAYLOAD, SUBJECT, on, say, text, unchanged};
use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::{BINARY, Relay, field, finish, run};
use support::setup::{Setup, header, values};
use support::stream::{JETSTREAM, JetStream, STREAM};
use support::{round_trip, subscribe, within};

/// From `feathers-sync` to `relayed.feathers`, without the prefixes that are set otherwise.
const EXACT: [(&str, &str); 4] = [
    ("NATS_SUBJECT", "feathers-sync"),
    ("NATS_RELAYED_SUBJECT", "relayed.feathers"),
    ("NATS_SUBJECT_PREFIX", ""),
    ("NATS_RELAYED_SUBJECT_PREFIX", ""),
];
const FAILED: (&str, &str) = ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache");
/// Nothing listens there.
const NOBODY: &str = "http://127.0.0.1:9/";

fn exact<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&EXACT[..], more].concat()
}

/// Refuses the call of a message whose body is `no`.
async fn endpoint() -> Endpoint {
    Endpoint::start(|call| Reply::status(if call.body == "no" { 400 } else { 200 })).await
}

#[tokio::test]
async fn what_is_published_on_it_is_relayed_in_order_and_nothing_else_is() {
    let endpoint = endpoint().await;
    let mut setup = Setup::start(&endpoint.url(), &exact(&[])).await;
    for other in ["feathers-sync.a", "feathers", "feathers-syncs", "cms.cache.a", "relayed.other"] {
        setup.publish(other, "other").await;
    }
    for number in 0..20 {
        setup.publish("feathers-sync", number.to_string()).await;
    }
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.other");
    for number in 0..20 {
        let relayed = setup.relayed().await;
        assert_eq!(relayed.subject.as_str(), "relayed.feathers");
        assert_eq!(relayed.payload, number.to_string());
        let call = &endpoint.calls()[number];
        assert_eq!((call.subject(), &call.body), ("feathers-sync", &relayed.payload));
        assert_eq!(call.header("webhook-id"), header(&relayed, "Nats-Msg-Id"));
    }
    assert_eq!(endpoint.count(), 20);
    setup.end().await;
    let ready = setup.relay.logged("\"message\":\"ready\"").await;
    assert_eq!(field(&ready, "from"), "feathers-sync");
    let starting = setup.relay.logged("\"message\":\"starting\"").await;
    assert_eq!(field(&starting, "relayed"), "relayed.feathers");
}

#[tokio::test]
async fn a_failed_message_goes_below_the_failed_prefix_with_its_whole_subject() {
    let endpoint = endpoint().await;
    let mut setup = Setup::start(&endpoint.url(), &exact(&[])).await;
    setup.publish("feathers-sync", "no").await;
    let failed = setup.failed().await;
    assert_eq!(failed.subject.as_str(), "failed.cache.feathers-sync");
    assert_eq!(header(&failed, "Relay-Subject"), "feathers-sync");
    assert_eq!(failed.payload, "no");
    setup.end().await;
}

#[tokio::test]
async fn a_resync_is_told_beside_it() {
    let endpoint = endpoint().await;
    let variables = exact(&[("NATS_RESYNC_SUBJECT", "relayed.resync"), ("RESYNC_ON", "failed")]);
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    setup.publish("feathers-sync", "no").await;
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.resync");
    assert_eq!(endpoint.calls()[1].header("nats-resync"), "failed");
    setup.failed().await;
    setup.end().await;
}

/// Makes `done.<payload>` of some payloads, and of others what is not a subject.
fn remapping() -> Component {
    let body = on("remap", &text("todos.created"))
        + &on("bad", &text(".a"))
        + &on("wild", &text("*"))
        + &unchanged(SUBJECT);
    Component::with(SUBJECT, &body)
}

#[tokio::test]
async fn a_plugin_sees_no_tail_and_republishes_on_the_relayed_subject_or_below_it() {
    let folder = Folder::new();
    folder.add("1-remapping", &remapping());
    // Takes back what the first has decided.
    let back = on("remap and back", &text("")) + &unchanged(SUBJECT);
    let first = on("remap and back", &text("todos.removed")) + &unchanged(SUBJECT);
    folder.add("2-first", &Component::with(SUBJECT, &first));
    folder.add("3-back", &Component::with(SUBJECT, &back));
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &exact(&[])).await;
    for payload in ["keep", "remap", "remap and back", "bad", "wild", "end"] {
        setup.publish("feathers-sync", payload).await;
    }
    for (payload, subject) in [
        ("keep", "relayed.feathers"),
        ("remap", "relayed.feathers.todos.created"),
        ("remap and back", "relayed.feathers"),
        ("end", "relayed.feathers"),
    ] {
        let relayed = setup.relayed().await;
        assert_eq!((relayed.subject.as_str(), &relayed.payload[..]), (subject, payload.as_bytes()));
        // One stream on both subjects must not take the one for the other.
        let call = endpoint.calls().into_iter().find(|call| call.body == payload).unwrap();
        let (id, relayed) = (call.header("webhook-id"), header(&relayed, "Nats-Msg-Id"));
        assert_eq!(relayed == id, subject == "relayed.feathers", "{payload}: {id} {relayed}");
    }
    for error in ["it has an empty token", "it has a wildcard"] {
        let failed = setup.failed().await;
        assert_eq!(failed.subject.as_str(), "failed.cache.feathers-sync");
        assert!(header(&failed, "Relay-Error").contains(error), "{failed:?}");
    }
    setup.end().await;
}

#[tokio::test]
async fn the_tail_that_a_plugin_sees_is_empty() {
    let folder = Folder::new();
    folder.add("telling", &Component::with(PAYLOAD, &tells_tail()));
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::with_plugins(&endpoint.url(), &folder.all(), &exact(&[])).await;
    setup.publish("feathers-sync", "x").await;
    assert_eq!(setup.relayed().await.payload, "tail=");
    setup.end().await;
}

fn tells_tail() -> String {
    use support::component::{OUT, PUT_TAIL, put};
    format!("{} {PUT_TAIL} {OUT}", put("tail="))
}

#[tokio::test]
async fn a_stream_may_hold_it_and_another_what_is_relayed() {
    let nats = NatsServer::with_config(JETSTREAM);
    let stream = JetStream::new(&nats.client().await);
    let subjects = json!({ "subjects": ["feathers-sync", "feathers-sync.>", "other"] });
    stream.add("CMS", "feathers-sync", subjects).await;
    stream.add("DONE", "relayed.feathers.>", json!({ "subjects": ["relayed.>"] })).await;
    let folder = Folder::with(&[("remapping", &remapping())]);
    let (endpoint, plugins) = (endpoint().await, folder.all());
    let all = [STREAM, ("NATS_DELIVER", "all"), ("PLUGINS", &plugins), ("PLUGIN_CACHE", "off")];
    let variables = exact(&all);
    for payload in ["1", "no", "remap", "2"] {
        stream.publish("other", "other").await;
        stream.publish("feathers-sync.a", "other").await;
        stream.publish("feathers-sync", payload).await;
    }
    let mut setup = Setup::on(nats, &endpoint.url(), &variables).await;
    for (payload, subject) in [
        ("1", "relayed.feathers"),
        ("remap", "relayed.feathers.todos.created"),
        ("2", "relayed.feathers"),
    ] {
        let relayed = setup.relayed().await;
        assert_eq!((relayed.subject.as_str(), &relayed.payload[..]), (subject, payload.as_bytes()));
    }
    assert_eq!(setup.failed().await.subject.as_str(), "failed.cache.feathers-sync");
    let info = stream.settled().await;
    assert_eq!(info["config"]["filter_subject"], "feathers-sync");
    assert_eq!(endpoint.count(), 4);
    setup.end().await;
    // What `Setup` itself has published on `relayed` is before it and after it.
    let kept = async {
        while stream.stream("DONE").await["state"]["messages"] != 3 + 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within("the stream has what was relayed", kept).await;
    assert!(setup.relay.lines("\"level\":\"WARN\"").is_empty(), "{:?}", setup.relay.log());
}

#[tokio::test]
async fn a_missing_stream_is_made_for_it_and_one_without_it_is_refused() {
    let nats = NatsServer::with_config(JETSTREAM);
    let stream = JetStream::new(&nats.client().await);
    let create = ("NATS_STREAM_CREATE", "true");
    let mut relay = Relay::start(&nats.url(), NOBODY, &exact(&[STREAM, create])).await;
    assert_eq!(stream.stream("CMS").await["config"]["subjects"], json!(["feathers-sync"]));
    assert!(relay.stop().await.success());
    stream.add("OTHER", "feathers.>", json!({})).await;
    let mut relay = Relay::spawn(&nats.url(), NOBODY, &exact(&[("NATS_STREAM", "OTHER")]));
    assert_eq!(relay.exit().await.code(), Some(1));
    relay.logged("does not capture feathers-sync (NATS_SUBJECT), only feathers.>").await;
}

/// A server whose user `relay` may publish on these subjects, and whose user `admin` may do anything.
fn server_with(subscribe: &str, publish: &str) -> NatsServer {
    NatsServer::with_config(&format!(
        "authorization {{ users: [ {{ user: admin, password: pw }}, {{ user: relay, password: pw, \
         permissions: {{ subscribe: [{subscribe}, \"_INBOX.>\"], \
         publish: [{publish}, \"failed.cache.>\", \"_INBOX.>\"] }} }} ] }}"
    ))
}

const LOGIN: [(&str, &str); 2] = [("NATS_USER", "relay"), ("NATS_PASS", "pw")];

#[tokio::test]
async fn it_starts_only_with_the_permissions_on_the_two_subjects_and_asking_reaches_nobody() {
    let own = "\"feathers-sync\"";
    let folder = Folder::with(&[("remapping", &remapping())]);
    let plugins = folder.all();
    let remaps = [("PLUGINS", plugins.as_str()), ("PLUGIN_CACHE", "off")];
    for (subscribed, published, more, denied) in [
        (own, "\"relayed.feathers\"", &[][..], None),
        (own, "\"relayed.feathers\", \"relayed.feathers.>\"", &remaps, None),
        (own, "\"relayed.feathers\"", &remaps, Some("may not publish on relayed.feathers.>")),
        (own, "\"relayed.feathers.>\"", &[], Some("may not publish on relayed.feathers:")),
        ("\"feathers-sync.>\"", "\">\"", &[], Some("may not subscribe to feathers-sync:")),
    ] {
        let nats = server_with(subscribed, published);
        let client = nats.client_as("admin", "pw").await;
        let mut all = subscribe(&client, "relayed.>").await;
        let variables = exact(&[&LOGIN[..], &[FAILED], more].concat());
        let mut relay = Relay::spawn(&nats.url(), NOBODY, &variables);
        match denied {
            None => {
                relay.logged("\"message\":\"ready\"").await;
                assert!(relay.stop().await.success());
                assert!(relay.lines("\"level\":\"WARN\"").is_empty(), "{:?}", relay.log());
            }
            Some(denied) => {
                assert_eq!(relay.exit().await.code(), Some(1), "{denied}");
                relay.logged(denied).await;
            }
        }
        client.publish("relayed.end", "".into()).await.unwrap();
        round_trip(&client).await;
        let next = futures_util::StreamExt::next(&mut all).await.unwrap();
        assert_eq!(next.subject.as_str(), "relayed.end");
        assert!(values(&next, "Nats-Trace-Only").is_empty());
    }
}

#[test]
fn check_says_what_would_be_relayed_where() {
    let nats = NatsServer::start();
    let url = nats.url();
    let mut variables = exact(&[("WEBHOOK_DESTINATION", NOBODY), ("NATS_HOST", &url)]);
    variables.push(FAILED);
    let (status, stdout, stderr) = run(&["check"], &variables);
    assert!(status.success(), "{stderr}");
    for line in [
        "listens on    feathers-sync\n",
        "republishes   relayed.feathers\n",
        "on failure    failed.cache.>\n",
        "for example   feathers-sync\n          ->  relayed.feathers\n",
    ] {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }
}

/// Runs the plugin with one message of `payload`, which is published on `NATS_SUBJECT` by default.
fn plugin_run(
    payload: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (i32, String, String) {
    let folder = Folder::new();
    let body = format!("{} {}", say("called"), unchanged(SUBJECT));
    let body = on("remap", &text("todos.created")) + &body;
    let plugin = folder.add("plugin", &Component::with(SUBJECT, &body));
    let input = folder.write("input", payload.as_bytes());
    let mut command = std::process::Command::new(BINARY);
    command
        .env_clear()
        .current_dir(folder.path())
        .envs([("PLUGIN_CACHE", "off")])
        .envs(variables.iter().copied())
        .args(["plugin", "run", "--json", plugin.to_str().unwrap()])
        .args(arguments)
        .stdin(std::fs::File::open(input).unwrap());
    let (status, stdout, stderr) = finish(command);
    (status.code().unwrap(), stdout, stderr)
}

#[test]
fn plugin_run_knows_it() {
    for (payload, variables, expected) in [
        ("keep", &EXACT[..], "relayed.feathers"),
        ("remap", &EXACT, "relayed.feathers.todos.created"),
        ("keep", &EXACT[..1], "relayed"),
    ] {
        let (code, stdout, stderr) = plugin_run(payload, &[], variables);
        assert_eq!(code, 0, "{stdout}{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["relayed"]["subject"], expected, "{report}");
        assert_eq!(report["webhook"]["headers"]["nats-subject"], json!(["feathers-sync"]));
    }
    let (code, _, stderr) = plugin_run("x", &["--subject", "feathers-sync.a"], &EXACT);
    assert_eq!(code, 1);
    assert!(stderr.contains("is not feathers-sync (NATS_SUBJECT)"), "{stderr}");
}
