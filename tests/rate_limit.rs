//! `WEBHOOK_RATE_LIMIT`: how often a destination is called, and what waits meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::endpoint::{Endpoint, Reply};
use support::setup::{Setup, header};

#[tokio::test]
async fn a_destination_is_called_no_more_often_than_the_limit_says_retries_included() {
    const SUBJECTS: usize = 20;
    let seen = Mutex::new(HashSet::new());
    let endpoint = Endpoint::start(move |call| {
        let is_first = seen.lock().unwrap().insert(call.subject().to_owned());
        Reply::status(if is_first { 500 } else { 200 })
    })
    .await;
    let variables = [("WEBHOOK_RATE_LIMIT", "20/s"), ("HTTP_LISTEN", "127.0.0.1:0")];
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    let start = Instant::now();
    for subject in 0..SUBJECTS {
        setup.publish(&format!("cms.cache.{subject}"), "").await;
    }
    setup.relayed_by_subject(SUBJECTS).await;
    let took = start.elapsed();
    // Two of the 40 calls may be made at once, and then one every 50 ms.
    assert!(took >= Duration::from_millis(38 * 50), "{took:?}");
    assert!(setup.relay.metric("webhook_rate_limit_waits_total").await > 0);
    setup.end().await;
    assert_eq!(endpoint.count(), 2 * SUBJECTS);
}

#[tokio::test]
async fn without_a_limit_nothing_waits() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[("HTTP_LISTEN", "127.0.0.1:0")]).await;
    for subject in 0..200 {
        setup.publish(&format!("cms.cache.{subject}"), "").await;
    }
    setup.relayed_by_subject(200).await;
    assert_eq!(setup.relay.metric("webhook_rate_limit_waits_total").await, 0);
    setup.end().await;
}

#[tokio::test]
async fn each_destination_has_a_limit_of_its_own() {
    let (one, other) = (Endpoint::ok().await, Endpoint::ok().await);
    let both = format!("{} {}", one.url(), other.url());
    let mut setup = Setup::start(&both, &[("WEBHOOK_RATE_LIMIT", "1/h")]).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((one.count(), other.count()), (1, 1));
}

#[tokio::test]
async fn a_message_that_waits_for_the_limit_keeps_no_other_from_being_worked_on() {
    let endpoint = Endpoint::ok().await;
    let variables = [
        ("WEBHOOK_RATE_LIMIT", "1/h"),
        ("MAX_IN_FLIGHT", "1"),
        ("HTTP_LISTEN", "127.0.0.1:0"),
        ("SHUTDOWN_GRACE", "0s"),
    ];
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    for subject in ["cms.cache.b", "cms.cache.c"] {
        setup.publish(subject, "").await;
    }
    setup.relay.counted("webhook_rate_limit_waits_total", 2).await;
    // Its relayed subject would be too long, which is found out by working on it.
    setup.publish(&format!("cms.cache.{}", "x".repeat(LONGEST - 10)), "").await;
    assert_eq!(header(&setup.failed().await, "Relay-Reason"), "too_large");
    assert!(!setup.relay.stop().await.success());
    for message in setup.failed_by_subject(2).await {
        assert_eq!(header(&message, "Relay-Reason"), "shutdown");
    }
    assert_eq!(endpoint.count(), 1);
}

/// The longest subject that a server takes.
const LONGEST: usize = 4000;
