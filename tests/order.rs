//! The two things that the relay exists for: the barrier, and order per subject with full
//! concurrency across subjects.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::nats::NatsServer;
use support::relay::Relay;
use support::{eventually, within};

#[tokio::test]
async fn a_message_is_posted_and_republished_unchanged_after_it_was_accepted() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::start(|_| Reply::ok().after(Duration::from_millis(300))).await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    client.flush().await.unwrap();

    let payload: Vec<u8> = (0..=255).collect();
    client.publish("cms.cache.article.42", payload.clone().into()).await.unwrap();

    let message = within("relayed", relayed.next()).await.unwrap();
    let seen_at = Instant::now();
    let call = endpoint.calls().remove(0);
    assert_eq!((call.method.as_str(), call.path.as_str()), ("POST", "/hook"));
    assert_eq!(call.body, payload);
    assert_eq!(call.subject(), "cms.cache.article.42");
    assert_eq!(message.subject.as_str(), "relayed.cache.article.42");
    assert_eq!(message.payload, payload);
    assert!(call.answered_at.unwrap() <= seen_at, "relayed before the answer");
    assert!(message.reply.is_none());

    assert!(relay.stop().await.success());
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn ten_thousand_messages_arrive_once_in_order_and_after_their_answer() {
    const MESSAGES: usize = 10_000;
    const SUBJECTS: usize = 200;
    let nats = NatsServer::start();
    let accepted_at = std::sync::Arc::new(Mutex::new(HashMap::new()));
    let failures = Mutex::new(fastrand::Rng::with_seed(42));
    let accepted = accepted_at.clone();
    let endpoint = Endpoint::start(move |call| {
        let mut random = failures.lock().unwrap();
        let after = Duration::from_micros(random.u64(0..20_000));
        if random.u8(0..100) < 5 {
            return Reply::status(500).after(after);
        }
        let number: usize = std::str::from_utf8(&call.body).unwrap().parse().unwrap();
        // Noted before the delay: the answer can only be later.
        accepted.lock().unwrap().insert(number, Instant::now() + after);
        Reply::ok().after(after)
    })
    .await;
    let mut relay = Relay::start(
        &nats.url(),
        &endpoint.url(),
        &[("RUST_LOG", "warn,nats_webhook_relay::command=info")],
    )
    .await;
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    client.flush().await.unwrap();

    for number in 0..MESSAGES {
        client
            .publish(format!("cms.cache.s{}", number % SUBJECTS), number.to_string().into())
            .await
            .unwrap();
    }
    let mut last: HashMap<String, usize> = HashMap::new();
    for _ in 0..MESSAGES {
        let message = within("next relayed message", relayed.next()).await.unwrap();
        let number: usize = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        let accepted = accepted_at.lock().unwrap().get(&number).copied();
        assert!(
            accepted.is_some_and(|at| at <= Instant::now()),
            "{number} was relayed before its webhook's answer"
        );
        let before = last.insert(message.subject.to_string(), number);
        let expected = before.map_or(number % SUBJECTS, |before| before + SUBJECTS);
        assert_eq!(number, expected, "{} is out of order, lost or repeated", message.subject);
    }
    assert!(relay.stop().await.success());
    client.flush().await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), relayed.next()).await.is_err(),
        "something was relayed twice"
    );

    // At the webhook: order per subject, where a failed call is followed by the same message.
    let calls = endpoint.calls();
    assert!(
        calls.len() > MESSAGES + MESSAGES / 50,
        "too few failures to mean anything: {}",
        calls.len()
    );
    let mut seen: HashMap<String, usize> = HashMap::new();
    for call in &calls {
        let number: usize = std::str::from_utf8(&call.body).unwrap().parse().unwrap();
        let before = seen.insert(call.subject().to_owned(), number);
        let in_order = before
            .map_or(number < SUBJECTS, |before| number == before || number == before + SUBJECTS);
        assert!(in_order, "{} got {number} after {before:?}", call.subject());
    }
}

#[tokio::test]
async fn a_subject_that_hangs_or_waits_for_a_retry_delays_no_other() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::start(|call| match call.subject() {
        "cms.cache.hangs" => Reply::ok().after(Duration::from_secs(3600)),
        "cms.cache.waits" => Reply::status(503).header("retry-after", "3600"),
        _ => Reply::ok(),
    })
    .await;
    // Two may be worked on at once: one hangs, the one that waits must not count.
    let relay = Relay::start(
        &nats.url(),
        &endpoint.url(),
        &[("MAX_IN_FLIGHT", "2"), ("WEBHOOK_TIMEOUT", "1h")],
    )
    .await;
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    client.flush().await.unwrap();
    client.publish("cms.cache.hangs", "".into()).await.unwrap();
    client.publish("cms.cache.waits", "".into()).await.unwrap();
    endpoint.received(2).await;
    for number in 0..200 {
        client.publish(format!("cms.cache.a{number}"), "".into()).await.unwrap();
    }
    for _ in 0..200 {
        let message = within("other subjects", relayed.next()).await.unwrap();
        assert!(message.subject.starts_with("relayed.cache.a"));
    }
    drop(relay);
}

#[tokio::test]
async fn as_many_as_max_in_flight_are_called_at_once() {
    let nats = NatsServer::start();
    let endpoint = Held::start().await;
    let _relay = Relay::start(&nats.url(), &endpoint.url(), &[("MAX_IN_FLIGHT", "7")]).await;
    let client = nats.client().await;
    for number in 0..35 {
        client.publish(format!("cms.cache.a{number}"), "".into()).await.unwrap();
    }
    endpoint.called(7).await;
    endpoint.release();
    endpoint.called(35).await;
}

#[tokio::test]
async fn no_more_than_max_in_flight_are_called_at_once() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::start(|_| Reply::ok().after(Duration::from_millis(200))).await;
    let _relay = Relay::start(&nats.url(), &endpoint.url(), &[("MAX_IN_FLIGHT", "7")]).await;
    let client = nats.client().await;
    for number in 0..35 {
        client.publish(format!("cms.cache.a{number}"), "".into()).await.unwrap();
    }
    let calls = endpoint.answered(35).await;
    for call in &calls {
        let open = calls
            .iter()
            .filter(|other| other.at <= call.at && other.answered_at.unwrap() > call.at)
            .count();
        assert!(open <= 7, "{open} calls at once");
    }
}

#[tokio::test]
async fn a_retried_message_holds_back_its_own_subject_only() {
    let nats = NatsServer::start();
    let failures = AtomicU32::new(3);
    let fails = move || {
        failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
    };
    let endpoint =
        Endpoint::start(
            move |call| if call.body == "1" && fails() { Reply::status(500) } else { Reply::ok() },
        )
        .await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    client.flush().await.unwrap();
    for payload in ["1", "2", "3"] {
        client.publish("cms.cache.same", payload.into()).await.unwrap();
    }
    for payload in ["1", "2", "3"] {
        assert_eq!(within("relayed", relayed.next()).await.unwrap().payload, payload);
    }
    let bodies: Vec<_> = endpoint.calls().into_iter().map(|call| call.body).collect();
    assert_eq!(bodies, ["1", "1", "1", "1", "2", "3"]);
    eventually("logged", || relay.lines("\"message\":\"relayed\"").len() == 3).await;
}
