//! Signed calls, judged by the official Standard Webhooks libraries for JavaScript and Python.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use support::component::{BODY, Component, Folder, text};
use support::endpoint::{Call, Endpoint, Reply};
use support::setup::Setup;

const OLD: &str = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk";
const NEW: &str = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3";
const OTHER: &str = "whsec_b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVy";

/// What a receiver would hand to its library.
fn received(secret: &str, call: &Call) -> Value {
    let headers: serde_json::Map<_, _> = call
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().into()))
        .collect();
    json!({ "secret": secret, "headers": headers, "body": std::str::from_utf8(&call.body).unwrap() })
}

/// The verdicts of the library for `language`: empty, or what is wrong.
fn verdicts(language: &str, calls: &[Value]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/standardwebhooks");
    let mut library = Command::new(script)
        .arg(language)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    library.stdin.take().unwrap().write_all(json!(calls).to_string().as_bytes()).unwrap();
    let output = library.wait_with_output().unwrap();
    assert!(output.status.success(), "scripts/standardwebhooks {language} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn the_official_libraries_accept_signed_calls_and_no_others() {
    let failing = std::sync::atomic::AtomicBool::new(true);
    let endpoint =
        Endpoint::start(move |_| match failing.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => Reply::status(503).header("retry-after", "2"),
            false => Reply::ok(),
        })
        .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secrets"), format!("{OLD}\n{NEW}\n")).unwrap();
    let file = folder.path().join("secrets");
    let mut setup = Setup::start(
        &endpoint.url(),
        &[("WEBHOOK_SECRET_FILE", file.to_str().unwrap()), ("RUST_LOG", "trace")],
    )
    .await;
    for (subject, payload) in
        [("a", "{\"text\":\"größe 🦀\"}"), ("b", ""), ("c", "no JSON\r\n.\0.")]
    {
        setup
            .publish_with(
                &format!("cms.cache.{subject}"),
                &[("webhook-signature", "v1,forged"), ("Webhook-Id", "forged")],
                payload,
            )
            .await;
        setup.relayed().await;
    }
    setup.end().await;
    let calls = endpoint.calls();
    assert_eq!(calls.len(), 4, "one was called again");
    for call in &calls {
        let signatures: Vec<_> = call.header("webhook-signature").split(' ').collect();
        assert!(
            signatures.len() == 2 && signatures.iter().all(|one| one.starts_with("v1,")),
            "{signatures:?}"
        );
        assert_eq!(call.headers.get_all("webhook-signature").iter().count(), 1);
    }
    // A retry has a time and so a signature of its own.
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
    assert_ne!(calls[0].header("webhook-timestamp"), calls[1].header("webhook-timestamp"));
    assert_ne!(calls[0].header("webhook-signature"), calls[1].header("webhook-signature"));

    let right: Vec<_> = [OLD, NEW]
        .iter()
        .flat_map(|secret| calls.iter().map(|call| received(secret, call)))
        .collect();
    let mut wrong: Vec<_> = calls.iter().map(|call| received(OTHER, call)).collect();
    for (part, value) in [
        ("webhook-id", "msg_other"),
        ("webhook-timestamp", calls[1].header("webhook-timestamp")),
        ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ] {
        let mut call = received(NEW, &calls[0]);
        call["headers"][part] = value.into();
        wrong.push(call);
    }
    let mut altered = received(NEW, &calls[0]);
    altered["body"] = "{\"text\":\"größe\"}".into();
    wrong.push(altered);
    for language in ["js", "python"] {
        let found = verdicts(language, &right);
        assert!(
            found.len() == right.len() && found.iter().all(String::is_empty),
            "{language}: {found:?}"
        );
        let found = verdicts(language, &wrong);
        assert!(
            found.len() == wrong.len() && found.iter().all(|verdict| verdict.contains("signature")),
            "{language}: {found:?}"
        );
    }
    for secret in [OLD, NEW] {
        assert!(setup.relay.lines(secret.trim_start_matches("whsec_")).is_empty());
    }
}

#[tokio::test]
async fn what_a_plugin_made_of_the_payload_is_what_is_signed() {
    let endpoint = Endpoint::ok().await;
    let folder = Folder::with(&[("shape", &Component::with(BODY, &text("shaped")))]);
    let mut setup =
        Setup::with_plugins(&endpoint.url(), &folder.all(), &[("WEBHOOK_SECRET", NEW)]).await;
    setup.publish("cms.cache.a", "published").await;
    setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!(call.body, "shaped");
    assert_eq!(verdicts("js", &[received(NEW, &call)]), [""]);
}
