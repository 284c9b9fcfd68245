//! Plugins as people write them: every hook in every language, and the examples in plugins/.
//!
//! `scripts/build-plugins` makes the components, of what `plugin new` writes and of the examples,
//! so these tests need what it needs: Node, Python, and a Rust that can make WebAssembly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use support::endpoint::{Call, Endpoint};
use support::relay::{BINARY, Relay};
use support::setup::{Setup, header, values};

const TOP: &str = env!("CARGO_MANIFEST_DIR");

/// Where compiled code stays from one test run to the next: it takes long in a debug build.
fn code() -> String {
    format!("{}/plugin-code", env!("CARGO_TARGET_TMPDIR"))
}

/// Builds a plugin of plugins/, or a project elsewhere, unless it is up to date, and returns its
/// component, whose code is in the cache: compiling it may take longer than a test waits.
fn build(plugin: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _building = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(format!("{TOP}/scripts/build-plugins")).arg(plugin).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "scripts/build-plugins: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let component = PathBuf::from(text.trim());
    let mut run = Command::new(BINARY);
    run.env_clear()
        .env("PLUGIN_CACHE", code())
        .args(["plugin", "run"])
        .arg(&component)
        .stdin(Stdio::null());
    let output = run.output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("calls"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    component
}

/// A relay with this plugin of plugins/.
async fn with(plugin: &str, endpoint: &Endpoint, variables: &[(&str, &str)]) -> Setup {
    let (component, code) = (build(plugin), code());
    let mut all = vec![("PLUGINS", component.to_str().unwrap()), ("PLUGIN_CACHE", &code)];
    all.extend_from_slice(variables);
    Setup::start(&endpoint.url(), &all).await
}

fn body(call: &Call) -> Value {
    serde_json::from_slice(&call.body).unwrap()
}

/// Writes the project that `plugin new` makes, with all that it has in comments for the other
/// hooks taken out of them, and builds it.
fn every_hook(language: &str) -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugin-projects");
    let name = format!("every-hook-{language}");
    let new = tempfile::tempdir().unwrap();
    let made = Command::new(BINARY)
        .current_dir(new.path())
        .args(["plugin", "new", "--lang", language, &name])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (source, comment) = match language {
        "rust" => ("src/lib.rs", "//"),
        "js" => ("plugin.js", "//"),
        _ => ("app.py", "#"),
    };
    let new = new.path().join(&name);
    let world = std::fs::read_to_string(new.join("wit/world.wit")).unwrap();
    std::fs::write(new.join("wit/world.wit"), world.replace("// export", "export")).unwrap();
    let text = std::fs::read_to_string(new.join(source)).unwrap();
    let hooks = ["hooks::webhook_payload", "webhookPayload", "WebhookPayload"];
    assert!(hooks.iter().any(|hook| text.contains(hook)), "{text}");
    let uncommented = |line: &str| {
        let text = line.strip_prefix(comment).unwrap_or(line);
        text.strip_prefix(' ').unwrap_or(text).to_owned()
    };
    let blocks = text.split("\n\n").map(|block| {
        let is_hook =
            ["impl hooks::", "export const", "(exports."].iter().any(|word| block.contains(word));
        match is_hook && block.lines().all(|line| line.is_empty() || line.starts_with(comment)) {
            true => block.lines().map(uncommented).collect::<Vec<_>>().join("\n"),
            false => block.to_owned(),
        }
    });
    std::fs::write(new.join(source), blocks.collect::<Vec<_>>().join("\n\n")).unwrap();

    // Only what has changed is written, so that nothing is built in vain.
    let folder = parent.join(&name);
    copy_changed(&new, &folder);
    build(folder.to_str().unwrap())
}

fn copy_changed(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) =
            (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if from.is_dir() {
            copy_changed(&from, &to);
        } else if std::fs::read(&to).ok() != Some(std::fs::read(&from).unwrap()) {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// What the comments of the templates say that the hooks do.
async fn all_hooks_work(language: &str) {
    let component = every_hook(language);
    let endpoint = Endpoint::ok().await;
    let variables = [
        ("PLUGINS", component.to_str().unwrap()),
        ("PLUGIN_CACHE", &code()),
        (&format!("PLUGIN_EVERY_HOOK_{}_BASE", language.to_uppercase()), "/de"),
    ];
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    setup
        .publish_with("cms.cache.article.42", &[("X-Length", "of the message")], r#"{"id":42}"#)
        .await;

    let relayed = setup.relayed().await;
    assert_eq!(
        (relayed.subject.as_str(), &relayed.payload[..]),
        ("relayed.cache.pages.article.42", &b"{}"[..]),
        "{language}"
    );
    let calls = endpoint.received(1).await;
    assert_eq!(body(&calls[0]), json!({"id": 42, "path": "/de/article/42"}), "{language}");
    assert_eq!(calls[0].header("x-length"), calls[0].body.len().to_string(), "{language}");

    // What is no JSON fails, and the next message goes on.
    setup.publish("cms.cache.article.42", "<xml>").await;
    setup.publish("cms.cache.article.42", "{}").await;
    let failed = setup.failed().await;
    assert_eq!(
        (header(&failed, "Relay-Reason"), header(&failed, "Relay-Hook")),
        ("plugin", "webhook-payload"),
        "{language}"
    );
    assert!(header(&failed, "Relay-Error").contains("failed: "), "{language}: {failed:?}");
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.cache.pages.article.42");
    setup.end().await;
    assert_eq!(endpoint.count(), 2, "{language}");
}

#[tokio::test]
async fn every_hook_in_rust() {
    all_hooks_work("rust").await;
}

#[tokio::test]
async fn every_hook_in_javascript() {
    all_hooks_work("js").await;
}

#[tokio::test]
async fn every_hook_in_python() {
    all_hooks_work("python").await;
}

// ---- The examples ------------------------------------------------------------------------

#[tokio::test]
async fn nextjs_tags() {
    let endpoint = Endpoint::ok().await;
    let mut setup = with(
        "nextjs-tags",
        &endpoint,
        &[("PLUGIN_NEXTJS_TAGS_TAGS", "{entity}:{id} {$1} {langcode}")],
    )
    .await;
    let event = r#"{"entity":"node","id":42}"#;
    setup.publish("cms.cache.article.42", event).await;
    let relayed = setup.relayed().await;
    assert_eq!(
        (relayed.subject.as_str(), &relayed.payload[..]),
        ("relayed.cache.article.42", event.as_bytes())
    );
    assert_eq!(body(&endpoint.calls()[0]), json!({"tags": ["node:42", "article"]}));
    setup.end().await;
}

#[tokio::test]
async fn cloudevents() {
    let endpoint = Endpoint::ok().await;
    let mut setup =
        with("cloudevents", &endpoint, &[("PLUGIN_CLOUDEVENTS_SOURCE", "/my cms")]).await;
    setup
        .publish_with(
            "cms.cache.article.42",
            &[("Content-Type", "text/plain"), ("ce-type", "given")],
            "as it is",
        )
        .await;
    let relayed = setup.relayed().await;
    let call = &endpoint.calls()[0];
    assert_eq!((&call.body[..], &relayed.payload[..]), (&b"as it is"[..], &b"as it is"[..]));
    for (name, expected) in [
        ("ce-specversion", "1.0"),
        ("ce-id", header(&relayed, "Nats-Msg-Id")),
        ("ce-source", "/my%20cms"),
        ("ce-type", "given"),
        ("ce-subject", "article.42"),
        ("content-type", "text/plain"),
    ] {
        assert_eq!(call.header(name), expected, "{name}");
    }
    assert!(
        values(&relayed, "ce-id").is_empty(),
        "headers of the call are not those of the relayed message"
    );
    setup.end().await;
}

#[tokio::test]
async fn drupal_path() {
    let endpoint = Endpoint::ok().await;
    let mut setup =
        with("drupal-path", &endpoint, &[("PLUGIN_DRUPAL_PATH_SECRET", "hunter2-of-drupal")]).await;
    let event = r#"{"entity_type":"node","id":"42","path":"/blog/hello"}"#;
    setup.publish("cms.cache.node.42", event).await;
    assert_eq!(&setup.relayed().await.payload[..], event.as_bytes());
    assert_eq!(
        body(&endpoint.calls()[0]),
        json!({"path": "/blog/hello", "secret": "hunter2-of-drupal"})
    );
    // Nothing to revalidate.
    setup.publish("cms.cache.node.43", r#"{"path":null}"#).await;
    setup.relay.logged("\"message\":\"rejected\"").await;
    setup.publish("cms.cache.node.44", r#"{"path":"no path"}"#).await;
    assert!(header(&setup.failed().await, "Relay-Error").contains("not a path"));
    setup.end().await;
    assert_eq!(endpoint.count(), 1);
    assert!(setup.relay.log().iter().all(|line| !line.contains("hunter2")));
}

#[tokio::test]
async fn feathers_event() {
    let endpoint = Endpoint::ok().await;
    let mut setup =
        with("feathers-event", &endpoint, &[("PLUGIN_FEATHERS_EVENT_EVENTS", "created patched")])
            .await;
    let event = |event: &str| {
        json!({"event": event, "path": "articles", "data": {"id": 1}, "context": {"params": {"headers": {"authorization": "hunter2"}}}})
            .to_string()
    };
    setup.publish("cms.cache.feathers", event("created")).await;
    let expected = json!({"event": "created", "path": "articles", "data": {"id": 1}});
    assert_eq!(serde_json::from_slice::<Value>(&setup.relayed().await.payload).unwrap(), expected);
    let call = &endpoint.calls()[0];
    assert_eq!(
        (body(call), call.header("x-feathers-event"), call.header("x-feathers-path")),
        (expected, "created", "articles")
    );
    setup.publish("cms.cache.feathers", event("removed")).await;
    setup.relay.logged("\"message\":\"rejected\"").await;
    setup.publish("cms.cache.feathers", r#"{"path":"articles","context":{}}"#).await;
    assert!(header(&setup.failed().await, "Relay-Error").contains("feathers-sync"));
    setup.end().await;
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn tenant_subject() {
    let endpoint = Endpoint::ok().await;
    let mut setup =
        with("tenant-subject", &endpoint, &[("PLUGIN_TENANT_SUBJECT_FIELD", "site.tenant")]).await;
    let event = r#"{"site":{"tenant":"acme"},"type":"article","id":42,"author":{"mail":"a@b"}}"#;
    setup.publish("cms.cache.article.42", event).await;
    let relayed = setup.relayed().await;
    assert_eq!(relayed.subject.as_str(), "relayed.cache.acme.article.42");
    let payload: Value = serde_json::from_slice(&relayed.payload).unwrap();
    assert_eq!(payload, json!({"id": 42, "type": "article", "site": {"tenant": "acme"}}));
    assert_eq!(endpoint.calls()[0].body, event.as_bytes());
    setup.publish("cms.cache.article.43", r#"{"id":43}"#).await;
    setup.relay.logged("\"message\":\"rejected\"").await;
    setup.publish("cms.cache.article.44", r#"{"site":{"tenant":"a.>"}}"#).await;
    assert!(header(&setup.failed().await, "Relay-Error").contains("not one token"));
    setup.end().await;
    assert_eq!(endpoint.count(), 1);
}

/// All languages in one chain.
#[tokio::test]
async fn examples_work_together() {
    let plugins = ["feathers-event", "tenant-subject", "cloudevents"].map(build);
    let plugins = std::env::join_paths(plugins).unwrap().into_string().unwrap();
    let endpoint = Endpoint::ok().await;
    let variables = [
        ("PLUGINS", plugins.as_str()),
        ("PLUGIN_CACHE", &code()),
        ("PLUGIN_TENANT_SUBJECT_FIELD", "data.tenant"),
        ("PLUGIN_TENANT_SUBJECT_KEEP", "event path data.id"),
    ];
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    let event = r#"{"event":"created","path":"articles","data":{"id":1,"tenant":"acme","text":"long"},"context":{"user":1}}"#;
    setup.publish("cms.cache.feathers", event).await;
    let relayed = setup.relayed().await;
    assert_eq!(relayed.subject.as_str(), "relayed.cache.acme.feathers");
    let payload: Value = serde_json::from_slice(&relayed.payload).unwrap();
    assert_eq!(
        payload,
        json!({"event": "created", "path": "articles", "data": {"id": 1, "tenant": "acme"}})
    );
    let call = &endpoint.calls()[0];
    assert_eq!(
        body(call),
        json!({"event": "created", "path": "articles", "data": {"id": 1, "tenant": "acme", "text": "long"}})
    );
    assert_eq!(
        (call.header("x-feathers-event"), call.header("ce-subject")),
        ("created", "feathers")
    );
    setup.end().await;
}

/// A relay with plugins tells what they are, also to `check`.
#[tokio::test]
async fn check_names_the_plugins() {
    let (component, code) = (build("nextjs-tags"), code());
    let nats = support::nats::NatsServer::start();
    let variables = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:9/"),
        ("NATS_HOST", &nats.url()),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("PLUGINS", component.to_str().unwrap()),
        ("PLUGIN_CACHE", &code),
    ];
    let (status, stdout, stderr) = support::relay::run(&["check"], &variables);
    assert!(status.success(), "{stderr}");
    assert!(stdout.contains("plugin nextjs-tags (webhook-payload)"), "{stdout}");
    let relay = Relay::start(&nats.url(), "http://127.0.0.1:9/", &variables[4..]).await;
    assert_eq!(relay.lines("plugins loaded").len(), 1);
}
