//! COALESCE: messages that wait on one subject share a call, and nothing else changes.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::component::{BODY, Component, Folder, text};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::setup::Setup;
use support::stream;

const EQUAL: (&str, &str) = ("COALESCE", "true");
const METRICS: (&str, &str) = ("HTTP_LISTEN", "127.0.0.1:0");

/// The payloads and the ids of the next relayed messages.
async fn relayed(setup: &mut Setup, count: usize) -> (Vec<String>, BTreeSet<String>) {
    let (mut payloads, mut ids) = (Vec::new(), BTreeSet::new());
    for _ in 0..count {
        let message = setup.relayed().await;
        payloads.push(String::from_utf8(message.payload.to_vec()).unwrap());
        ids.insert(message.headers.unwrap().get("Nats-Msg-Id").unwrap().to_string());
    }
    (payloads, ids)
}

/// What the endpoint was called with.
fn words(endpoint: &Held) -> Vec<String> {
    endpoint.calls().into_iter().map(|call| call.word).collect()
}

#[tokio::test]
async fn equal_messages_that_wait_share_a_call_and_each_is_relayed_in_its_turn() {
    let endpoint = Held::start().await;
    let mut setup = Setup::start(&endpoint.url(), &[EQUAL, METRICS]).await;
    setup.publish("cms.cache.a", "x").await;
    // Its call has begun: what it announces may have been read before the next change.
    endpoint.called(1).await;
    let payloads = ["x", "x", "x", "y", "x", "x"];
    for payload in payloads {
        setup.publish("cms.cache.a", payload).await;
    }
    setup.publish("cms.cache.b", "x").await;
    endpoint.called(2).await;
    setup.relay.counted("messages_received_total", 8).await;
    endpoint.release();
    let (mut in_order, mut ids) = (Vec::new(), BTreeSet::new());
    for _ in 0..8 {
        let message = setup.relayed().await;
        ids.insert(message.headers.unwrap().get("Nats-Msg-Id").unwrap().to_string());
        if message.subject.as_str() == "relayed.cache.a" {
            in_order.push(String::from_utf8(message.payload.to_vec()).unwrap());
        }
    }
    assert_eq!(in_order, ["x", "x", "x", "x", "y", "x", "x"]);
    assert_eq!(ids.len(), 8, "each has its own id: {ids:?}");
    // The first, that of the other subject, and three for the six that waited.
    assert_eq!(words(&endpoint), ["x", "x", "x", "y", "x"]);
    assert_eq!(setup.relay.metric("messages_merged_total").await, 3);
    assert_eq!(setup.relay.metric("messages_relayed_total").await, 8);
    let answered = setup.relay.lines("\"answered\"");
    let merged = answered.iter().filter(|line| line.contains("\"merged\":2")).count();
    assert_eq!((answered.len(), merged), (5, 1), "{answered:?}");
    setup.end().await;
}

#[tokio::test]
async fn what_makes_another_call_is_not_merged() {
    let endpoint = Held::start().await;
    let mut setup = Setup::start(&endpoint.url(), &[EQUAL, METRICS]).await;
    setup.publish("cms.cache.a", "first").await;
    endpoint.called(1).await;
    for (name, value) in
        [("x-tenant", "1"), ("x-tenant", "2"), ("Nats-Msg-Id", "3"), ("Nats-Msg-Id", "4")]
    {
        setup.publish_with("cms.cache.a", &[(name, value)], "x").await;
    }
    setup.relay.counted("messages_received_total", 5).await;
    endpoint.release();
    relayed(&mut setup, 5).await;
    // Headers that the webhook gets tell calls apart; those that it does not get, do not.
    assert_eq!(words(&endpoint), ["first", "x", "x", "x"]);
    assert_eq!(setup.relay.metric("messages_merged_total").await, 1);
    setup.end().await;
}

#[tokio::test]
async fn all_of_a_subject_share_the_call_of_the_newest() {
    let endpoint = Held::start().await;
    let mut setup = Setup::start(&endpoint.url(), &[("COALESCE", "subject"), METRICS]).await;
    for payload in ["1", "2", "3", "4", "5"] {
        setup.publish("cms.cache.a", payload).await;
        endpoint.called(1).await;
    }
    setup.relay.counted("messages_received_total", 5).await;
    endpoint.release();
    let (payloads, ids) = relayed(&mut setup, 5).await;
    assert_eq!(payloads, ["1", "2", "3", "4", "5"]);
    assert_eq!(words(&endpoint), ["1", "5"]);
    let calls = endpoint.calls();
    assert!(ids.len() == 5 && ids.contains(&calls[1].id), "{ids:?}");
    assert_eq!(setup.relay.metric("messages_merged_total").await, 3);
    setup.end().await;
}

/// An endpoint that answers 503 until it is opened, and from then on with `answers`, then 200.
struct Gated {
    endpoint: Endpoint,
    is_open: Arc<AtomicBool>,
    /// Calls since it was opened.
    calls: Arc<AtomicUsize>,
}

impl Gated {
    async fn start(answers: &'static [u16]) -> Self {
        let (is_open, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (open, count) = (is_open.clone(), calls.clone());
        let endpoint = Endpoint::start(move |_| match open.load(Ordering::SeqCst) {
            false => Reply::status(503),
            true => {
                let answer = answers.get(count.fetch_add(1, Ordering::SeqCst));
                Reply::status(answer.copied().unwrap_or(200))
            }
        })
        .await;
        Self { endpoint, is_open, calls }
    }

    /// Lets `messages` wait behind the first one, and opens it.
    async fn relay(&self, which: &str, messages: usize) -> Setup {
        let variables = [("COALESCE", which), METRICS, ("WEBHOOK_MAX_ATTEMPTS", "unlimited")];
        let setup = Setup::start(&self.endpoint.url(), &variables).await;
        setup.publish("cms.cache.a", "x").await;
        self.endpoint.received(1).await;
        for _ in 0..messages {
            setup.publish("cms.cache.a", "x").await;
        }
        setup.relay.counted("messages_received_total", messages as u64 + 1).await;
        self.is_open.store(true, Ordering::SeqCst);
        setup
    }
}

#[tokio::test]
async fn nothing_of_a_shared_call_is_relayed_before_it_was_accepted() {
    for which in ["true", "subject"] {
        // The first message, and the call of the others, which is accepted at the third attempt.
        let gated = Gated::start(&[200, 503, 503, 200]).await;
        let mut setup = gated.relay(which, 4).await;
        setup.relayed().await;
        for _ in 0..4 {
            setup.relayed().await;
            assert_eq!(gated.calls.load(Ordering::SeqCst), 4, "{which}: relayed early");
        }
        assert_eq!(setup.relay.metric("messages_merged_total").await, 3);
        setup.end().await;
    }
}

#[tokio::test]
async fn a_shared_call_that_is_refused_fails_one_message_and_the_others_go_on() {
    let gated = Gated::start(&[200, 400, 200]).await;
    let mut setup = gated.relay("true", 3).await;
    let failed = setup.failed().await;
    assert_eq!(failed.headers.unwrap().get("Relay-Reason").unwrap().as_str(), "webhook");
    relayed(&mut setup, 3).await;
    assert_eq!(gated.calls.load(Ordering::SeqCst), 3);
    assert_eq!(setup.relay.metric("messages_merged_total").await, 1);
    setup.end().await;
}

#[tokio::test]
async fn a_window_waits_for_more() {
    let endpoint = Held::start().await;
    endpoint.release();
    let window = ("COALESCE_WINDOW", "5s");
    let mut setup = Setup::start(&endpoint.url(), &[EQUAL, METRICS, window]).await;
    for _ in 0..5 {
        setup.publish("cms.cache.a", "x").await;
    }
    relayed(&mut setup, 5).await;
    assert_eq!(words(&endpoint), ["x"]);
    setup.end().await;
}

#[tokio::test]
async fn from_a_stream_each_message_is_acknowledged_by_itself() {
    let endpoint = Held::start().await;
    let (mut setup, stream) = stream::setup(&endpoint.url(), &[EQUAL]).await;
    stream.publish("cms.cache.a", "x").await;
    endpoint.called(1).await;
    for _ in 0..20 {
        stream.publish("cms.cache.a", "x").await;
    }
    setup.relay.counted("messages_received_total", 21).await;
    endpoint.release();
    let (_, ids) = relayed(&mut setup, 21).await;
    assert_eq!((ids.len(), words(&endpoint).len()), (21, 2));
    stream.settled().await;
    setup.end().await;
}

#[tokio::test]
async fn a_plugin_decides_what_calls_are_equal() {
    // It makes the payload of each call the same, and the relayed one keeps its own.
    let folder = Folder::with(&[("same", &Component::with(BODY, &text("same")))]);
    let endpoint = Held::start().await;
    let mut setup =
        Setup::with_plugins(&endpoint.url(), folder.path().to_str().unwrap(), &[EQUAL]).await;
    setup.publish("cms.cache.a", "x").await;
    endpoint.called(1).await;
    for _ in 0..3 {
        setup.publish("cms.cache.a", "x").await;
    }
    setup.relay.counted("messages_received_total", 4).await;
    endpoint.release();
    let (payloads, _) = relayed(&mut setup, 4).await;
    assert_eq!(payloads, ["x"; 4]);
    assert_eq!(words(&endpoint), ["same", "same"]);
    setup.end().await;
}
