//! The end: what has arrived is finished, what cannot be finished is told, and nothing hangs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::Client;
use futures_util::StreamExt;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::nats::NatsServer;
use support::relay::Relay;
use support::{eventually, round_trip, signal, subscribe, within};

const PATIENT: (&str, &str) = ("WEBHOOK_TIMEOUT", "1h");
const LONG_GRACE: (&str, &str) = ("SHUTDOWN_GRACE", "1h");
const SHORT_GRACE: (&str, &str) = ("SHUTDOWN_GRACE", "500ms");
const FAILED: (&str, &str) = ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache");
const RECEIVED: &str = "\"message\":\"received\"";
const ERROR: &str = "\"level\":\"ERROR\"";

/// Waits until nobody listens on `subject`: the server then answers a request by itself.
async fn nobody_listens(client: &Client, subject: &str) {
    let asked = async {
        loop {
            let request = async_nats::Request::new().timeout(Some(Duration::from_millis(100)));
            match client.send_request(subject.to_owned(), request).await {
                Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => return,
                _ => {}
            }
        }
    };
    within("nobody listens", asked).await;
}

#[tokio::test]
async fn a_signal_stops_the_intake_and_what_has_arrived_is_finished() {
    for name in ["TERM", "INT"] {
        let nats = NatsServer::start();
        let endpoint = Held::start().await;
        let mut relay = Relay::start(
            &nats.url(),
            &endpoint.url(),
            &[PATIENT, LONG_GRACE, ("MAX_IN_FLIGHT", "2")],
        )
        .await;
        let client = nats.client().await;
        let mut relayed = subscribe(&client, "relayed.cache.>").await;
        for number in 0..12 {
            client
                .publish(format!("cms.cache.s{}", number % 3), number.to_string().into())
                .await
                .unwrap();
        }
        relay.logged_times(RECEIVED, 12).await;
        endpoint.called(2).await;

        signal(relay.pid(), name);
        // The webhook still holds the first messages while the intake is already over.
        nobody_listens(&client, "cms.cache.poll").await;
        client.publish("cms.cache.late", "".into()).await.unwrap();
        round_trip(&client).await;
        assert!(relay.is_running());
        endpoint.release();
        assert!(relay.exit().await.success());

        let (mut last, mut count) = (HashMap::new(), 0);
        while count < 12 {
            let message = within("relayed", relayed.next()).await.unwrap();
            if message.subject.ends_with("poll") {
                continue;
            }
            count += 1;
            let number: usize = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
            assert!(
                last.insert(message.subject.to_string(), number)
                    .is_none_or(|before| before + 3 == number),
                "out of order"
            );
        }
        assert!(
            last.len() == 3 && last.values().all(|number| *number >= 9),
            "not all were relayed: {last:?}"
        );
        assert!(
            relay.lines("cms.cache.late").is_empty()
                && !endpoint.subjects().contains(&"cms.cache.late".to_owned())
        );
        assert!(relay.lines(ERROR).is_empty());
    }
}

#[tokio::test]
async fn what_the_server_had_sent_before_the_signal_is_relayed() {
    const MESSAGES: usize = 300;
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    // More than the sockets hold: a part of it is still with the server at the signal.
    signal(relay.pid(), "STOP");
    let payload = "x".repeat(100_000);
    for number in 0..MESSAGES {
        client.publish(format!("cms.cache.s{number}"), payload.clone().into()).await.unwrap();
    }
    round_trip(&client).await;
    signal(relay.pid(), "TERM");
    signal(relay.pid(), "CONT");
    assert!(relay.exit().await.success());
    round_trip(&client).await;
    let mut subjects = HashSet::new();
    while let Ok(message) = tokio::time::timeout(Duration::from_millis(200), relayed.next()).await {
        subjects.insert(message.unwrap().subject.to_string());
    }
    assert_eq!(subjects.len(), MESSAGES);
}

#[tokio::test]
async fn what_is_not_finished_within_the_grace_is_told_and_goes_to_the_failed_subject() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::start(|call| match call.subject() {
        "cms.cache.waits" => Reply::status(503).header("retry-after", "3600"),
        "cms.cache.hangs" => Reply::ok().after(Duration::from_secs(3600)),
        _ => Reply::ok(),
    })
    .await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[PATIENT, SHORT_GRACE, FAILED]).await;
    let client = nats.client().await;
    let mut failed = subscribe(&client, "failed.>").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let unfinished = [("hangs", "1"), ("hangs", "2"), ("waits", "3"), ("waits", "4")];
    for (subject, payload) in unfinished {
        client.publish(format!("cms.cache.{subject}"), payload.into()).await.unwrap();
    }
    client.publish("cms.cache.done", "5".into()).await.unwrap();
    assert_eq!(within("relayed", relayed.next()).await.unwrap().payload, "5");
    endpoint.received(3).await;

    let asked = Instant::now();
    assert_eq!(relay.stop().await.code(), Some(1));
    assert!(asked.elapsed() >= Duration::from_millis(500), "the grace was not used");
    let mut letters = HashSet::new();
    let mut order: HashMap<String, Vec<u8>> = HashMap::new();
    for _ in unfinished {
        let letter = within("a dead letter", failed.next()).await.unwrap();
        assert_eq!(
            letter.headers.as_ref().unwrap().get("Relay-Reason").unwrap().as_str(),
            "shutdown"
        );
        order.entry(letter.subject.to_string()).or_default().push(letter.payload[0]);
        letters.insert((
            letter.subject.to_string(),
            String::from_utf8(letter.payload.to_vec()).unwrap(),
        ));
    }
    assert_eq!(
        letters,
        unfinished
            .map(|(subject, payload)| (format!("failed.cache.{subject}"), payload.to_owned()))
            .into()
    );
    assert!(order.values().all(|payloads| payloads.is_sorted()), "{order:?}");
    let errors = relay.lines("\"not relayed\"");
    assert_eq!(errors.len(), 4, "{errors:?}");
    for subject in ["cms.cache.hangs", "cms.cache.waits"] {
        let of = |line: &&String| {
            line.contains(subject)
                && line.contains(ERROR)
                && line.contains("\"reason\":\"shutdown\"")
        };
        assert_eq!(errors.iter().filter(of).count(), 2, "{errors:?}");
    }
    assert!(
        relay
            .logged("ended with an error")
            .await
            .contains("4 messages could not be finished within SHUTDOWN_GRACE")
    );
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "INT"), ("TERM", "INT")] {
        let nats = NatsServer::start();
        let endpoint = Held::start().await;
        let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[PATIENT, LONG_GRACE]).await;
        let client = nats.client().await;
        client.publish("cms.cache.a", "".into()).await.unwrap();
        endpoint.called(1).await;
        signal(relay.pid(), first);
        relay.logged("\"message\":\"stopping").await;
        signal(relay.pid(), second);
        assert_eq!(relay.exit().await.code(), Some(1));
        assert_eq!(relay.lines("second signal").len(), 1);
    }
}

#[tokio::test]
async fn an_idle_relay_stops_without_using_its_grace() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[LONG_GRACE]).await;
    assert!(relay.stop().await.success());
    assert!(relay.lines(ERROR).is_empty());
}

#[tokio::test]
async fn an_idle_relay_stops_without_using_its_grace_while_nats_is_away() {
    let mut nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[LONG_GRACE]).await;
    nats.kill();
    relay.logged("cannot reconnect to NATS yet").await;
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn a_message_that_was_accepted_while_nats_is_away_is_told_when_the_grace_is_over() {
    let mut nats = NatsServer::start();
    let endpoint = Held::start().await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[PATIENT, SHORT_GRACE, FAILED]).await;
    let client = nats.client().await;
    client.publish("cms.cache.a", "".into()).await.unwrap();
    endpoint.called(1).await;
    nats.kill();
    relay.logged("cannot reconnect to NATS yet").await;
    endpoint.release();
    relay.logged("\"message\":\"answered\"").await;
    assert_eq!(relay.stop().await.code(), Some(1));
    let told = relay.lines("\"not relayed\"");
    assert!(
        told.len() == 1 && told[0].contains("cms.cache.a") && told[0].contains(ERROR),
        "{told:?}"
    );
    let unpublished = relay.lines("not published on the failed subject");
    assert!(unpublished.len() == 1 && unpublished[0].contains("cms.cache.a"), "{unpublished:?}");
}

#[tokio::test]
async fn a_message_that_was_refused_while_nats_is_away_is_told_once() {
    let mut nats = NatsServer::start();
    let endpoint = Endpoint::start(|_| Reply::status(400).after(Duration::from_secs(3))).await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[SHORT_GRACE, FAILED]).await;
    let client = nats.client().await;
    client.publish("cms.cache.a", "".into()).await.unwrap();
    endpoint.received(1).await;
    nats.kill();
    relay.logged("\"not relayed\"").await;
    assert_eq!(relay.stop().await.code(), Some(1));
    let told = relay.lines("\"not relayed\"");
    assert!(told.len() == 1 && told[0].contains("answered 400"), "{told:?}");
    let unpublished = relay.lines("not published on the failed subject");
    assert!(unpublished.len() == 1 && unpublished[0].contains("cms.cache.a"), "{unpublished:?}");
}

#[tokio::test]
async fn a_message_that_was_accepted_while_nats_is_away_is_relayed_when_it_is_back_within_the_grace()
 {
    let mut nats = NatsServer::start();
    let proxy = support::proxy::Proxy::to(nats.port).await;
    let endpoint = Held::start().await;
    let mut relay = Relay::start(&proxy.url(), &endpoint.url(), &[PATIENT, LONG_GRACE]).await;
    let client = nats.client().await;
    client.publish("cms.cache.a", "1".into()).await.unwrap();
    endpoint.called(1).await;
    nats.kill();
    proxy.close();
    relay.logged("cannot reconnect to NATS yet").await;
    endpoint.release();
    signal(relay.pid(), "TERM");
    relay.logged("\"message\":\"stopping").await;
    nats.restart();
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    proxy.open();
    assert_eq!(within("relayed", relayed.next()).await.unwrap().payload, "1");
    assert!(relay.exit().await.success());
    eventually("relayed", || relay.lines("\"message\":\"relayed\"").len() == 1).await;
}
