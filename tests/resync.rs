//! Resync: after a gap, the webhook is called and then the same is published.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::Message;
use futures_util::StreamExt;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use support::endpoint::{Call, Endpoint, Reply};
use support::held::Held;
use support::nats::NatsServer;
use support::relay::run;
use support::setup::Setup;
use support::within;

const SUBJECT: (&str, &str) = ("NATS_RESYNC_SUBJECT", "relayed.resync");
const METRICS: (&str, &str) = ("HTTP_LISTEN", "127.0.0.1:0");
/// Nothing at the start.
const LATER: (&str, &str) = ("RESYNC_ON", "reconnect,slow-consumer,limits,failed");

fn payload(message: &Message) -> Value {
    assert_eq!(message.subject.as_str(), "relayed.resync", "{message:?}");
    let payload: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(payload["type"], "resync");
    payload
}

fn since(payload: &Value) -> SystemTime {
    humantime::parse_rfc3339(payload["since"].as_str().unwrap()).unwrap()
}

fn is_resync(call: &Call) -> bool {
    call.headers.contains_key("nats-resync")
}

/// Accepts messages, and resyncs once it is opened.
async fn gated() -> (Endpoint, Arc<AtomicBool>) {
    let is_open = Arc::new(AtomicBool::new(false));
    let open = is_open.clone();
    let endpoint = Endpoint::start(move |call| match is_resync(call) {
        true if !open.load(Ordering::SeqCst) => Reply::status(503),
        _ => Reply::ok(),
    })
    .await;
    (endpoint, is_open)
}

#[tokio::test]
async fn the_start_in_core_mode_is_a_gap_and_the_barrier_holds_for_it() {
    let (endpoint, is_open) = gated().await;
    let mut setup = Setup::start(&endpoint.url(), &[SUBJECT, METRICS]).await;
    endpoint.received(2).await;
    // Messages are relayed as usual meanwhile, and nothing is told before it was accepted.
    setup.publish("cms.cache.a", "1").await;
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.cache.a");
    assert_eq!(setup.relay.metric("resyncs_total").await, 0);
    is_open.store(true, Ordering::SeqCst);
    let told = setup.relayed().await;
    let payload = payload(&told);
    assert_eq!((&payload["reason"], &payload["since"]), (&"start".into(), &Value::Null));
    let calls = endpoint.calls();
    let calls: Vec<_> = calls.iter().filter(|call| is_resync(call)).collect();
    for call in &calls {
        assert_eq!((call.method.as_str(), call.header("nats-resync")), ("POST", "start"));
        assert_eq!(call.header("content-type"), "application/json");
        assert_eq!(call.body, told.payload, "both are told the same");
        assert_eq!(call.header("webhook-id"), calls[0].header("webhook-id"));
    }
    let id = told.headers.unwrap().get("Nats-Msg-Id").unwrap().to_string();
    assert_eq!(id, calls[0].header("webhook-id"));
    setup.relay.counted("resyncs_total", 1).await;
    // It is no message: those are counted alone.
    assert_eq!(setup.relay.metric("messages_received_total").await, 1);
    setup.end().await;
}

#[tokio::test]
async fn a_reconnect_is_a_gap_since_the_connection_was_lost() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[SUBJECT, LATER]).await;
    let before = SystemTime::now() - Duration::from_secs(1);
    setup.nats.kill();
    setup.relay.logged("lost the connection to NATS").await;
    let lost = SystemTime::now();
    setup.nats.restart();
    // The relay's subscriber may be there before ours: what it publishes is read by its log.
    setup.relay.logged("resync accepted and published").await;
    let call = endpoint.received(1).await.remove(0);
    assert_eq!(call.header("nats-resync"), "reconnect");
    let payload: Value = serde_json::from_slice(&call.body).unwrap();
    assert!((before..=lost).contains(&since(&payload)), "{payload}");
}

#[tokio::test]
async fn many_failures_are_told_at_once_and_no_more_often_than_allowed() {
    let endpoint = Endpoint::start(|call| match is_resync(call) {
        true => Reply::ok(),
        false => Reply::status(400),
    })
    .await;
    // The first is told at once; all others fall into the interval after it.
    let interval = ("RESYNC_INTERVAL", "1h");
    let mut setup = Setup::start(&endpoint.url(), &[SUBJECT, LATER, METRICS, interval]).await;
    setup.publish("cms.cache.a", "1").await;
    setup.failed().await;
    let first = setup.relayed().await;
    let first = payload(&first);
    assert_eq!(first["reason"], "failed");
    assert!(since(&first) <= SystemTime::now());
    for number in 0..50 {
        setup.publish("cms.cache.b", number.to_string()).await;
        setup.failed().await;
    }
    assert_eq!(setup.relay.metric("resyncs_total").await, 1);
    // What was noticed is not lost at the end.
    assert!(setup.relay.stop().await.success());
    payload(&setup.relayed().await);
    setup.client.publish("relayed.end", "".into()).await.unwrap();
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.end");
    assert_eq!(endpoint.calls().iter().filter(|call| is_resync(call)).count(), 2);
}

#[tokio::test]
async fn dropped_messages_are_a_gap() {
    let held = Held::start().await;
    let resyncs = Endpoint::ok().await;
    let (most, resync) = (("NATS_PENDING_MESSAGES", "5"), resyncs.url());
    let resync = ("WEBHOOK_RESYNC_DESTINATION", resync.as_str());
    let mut setup = Setup::start(&held.url(), &[SUBJECT, LATER, most, resync]).await;
    for number in 0..20 {
        setup.publish("cms.cache.a", number.to_string()).await;
    }
    // The other destination is called although that of messages hangs.
    let told = setup.relayed().await;
    assert_eq!(payload(&told)["reason"], "limits");
    assert_eq!(resyncs.count(), 1);
    assert!(held.calls().iter().all(|call| call.subject == "cms.cache.a"));
    held.release();
    for _ in 0..5 {
        setup.relayed().await;
    }
    setup.end().await;
}

#[tokio::test]
async fn what_is_not_accepted_is_told_later_together_with_what_is_new() {
    let (endpoint, is_open) = gated().await;
    let once = ("WEBHOOK_MAX_ATTEMPTS", "1");
    let interval = ("RESYNC_INTERVAL", "100ms");
    let mut setup = Setup::start(&endpoint.url(), &[SUBJECT, METRICS, once, interval]).await;
    let errors = setup.relay.logged_times("resync failed, retrying", 3).await;
    assert!(errors[0].contains("\"ERROR\"") && errors[0].contains("answered 503"), "{errors:?}");
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(payload(&setup.relayed().await)["reason"], "start");
    assert!(setup.relay.metric("resyncs_failed_total").await >= 3);
    setup.end().await;
}

#[tokio::test]
async fn what_was_not_accepted_is_told_once_more_at_the_end() {
    let (endpoint, is_open) = gated().await;
    let once = ("WEBHOOK_MAX_ATTEMPTS", "1");
    let mut setup =
        Setup::start(&endpoint.url(), &[SUBJECT, once, ("RESYNC_INTERVAL", "1h")]).await;
    setup.relay.logged("resync failed, retrying").await;
    is_open.store(true, Ordering::SeqCst);
    assert!(setup.relay.stop().await.success());
    assert_eq!(payload(&setup.relayed().await)["reason"], "start");
    assert_eq!(endpoint.count(), 2);
}

#[tokio::test]
async fn with_a_stream_only_what_failed_is_a_gap() {
    let endpoint = Endpoint::start(|call| match call.body.as_ref() {
        b"bad" => Reply::status(400),
        _ => Reply::ok(),
    })
    .await;
    let (mut setup, stream) = support::stream::setup(&endpoint.url(), &[SUBJECT]).await;
    setup.nats.kill();
    setup.relay.logged("lost the connection to NATS").await;
    setup.nats.restart();
    let client = setup.nats.client().await;
    let mut relayed = support::subscribe(&client, "relayed.>").await;
    let stream_again = support::stream::JetStream::new(&client);
    drop(stream);
    stream_again.publish("cms.cache.a", "good").await;
    let next = within("a relayed message", relayed.next()).await.unwrap();
    assert_eq!(next.subject.as_str(), "relayed.cache.a", "neither the start nor the reconnect");
    stream_again.publish("cms.cache.a", "bad").await;
    let next = within("a resync", relayed.next()).await.unwrap();
    assert_eq!(payload(&next)["reason"], "failed");
}

#[test]
fn mistakes_are_told_and_check_shows_where_resyncs_go() {
    let required = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:1/"),
        ("NATS_HOST", "nats://127.0.0.1:1"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
    ];
    for (variables, expected) in [
        (&[("NATS_RESYNC_SUBJECT", "cms.cache.resync")][..], "a loop"),
        (&[("NATS_RESYNC_SUBJECT", "relayed.*")], "a subject such as relayed.resync"),
        (&[SUBJECT, ("RESYNC_ON", "start,never")], "some of start, reconnect"),
        (&[SUBJECT, ("RESYNC_INTERVAL", "soon")], "a duration"),
        (&[SUBJECT, ("WEBHOOK_RESYNC_DESTINATION", "ftp://h")], "number 1 is not one"),
        (&[("RESYNC_ON", "start")], "has no effect without NATS_RESYNC_SUBJECT"),
        (&[("WEBHOOK_RESYNC_DESTINATION", "http://h/")], "has no effect without"),
    ] {
        let (status, _, stderr) = run(&["check"], &[&required[..], variables].concat());
        assert_eq!(status.code(), Some(64), "{variables:?}");
        assert!(stderr.contains("1 mistake") || stderr.contains("a mistake"), "{stderr}");
        assert!(stderr.contains(expected), "{variables:?}: {stderr}");
    }
    let nats = NatsServer::start();
    let url = nats.url();
    let variables = [&required[..], &[SUBJECT, ("NATS_HOST", &url)]].concat();
    let (status, stdout, _) = run(&["check"], &variables);
    assert!(status.success() && stdout.contains("after a gap   relayed.resync"), "{stdout}");
}
