//! The connection to NATS: waiting for it, logging in, permissions, outages, what may be lost
//! and how that is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::nats::{Absent, NatsServer};
use support::proxy::Proxy;
use support::relay::{self, Relay, field};
use support::{eventually, round_trip, signal, subscribe, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HTTP: (&str, &str) = ("HTTP_LISTEN", "127.0.0.1:0");
/// For endpoints that hold a call: it is not tried again meanwhile.
const PATIENT: (&str, &str) = ("WEBHOOK_TIMEOUT", "1h");
const FAILED: (&str, &str) = ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache");
const RELAYED: &str = "\"message\":\"relayed\"";
const ERROR: &str = "\"level\":\"ERROR\"";

async fn publish(client: &Client, subject: &str, payload: &str) {
    client.publish(subject.to_owned(), payload.to_owned().into()).await.unwrap();
}

async fn next(subscriber: &mut Subscriber) -> (String, String) {
    let message = within("the next message", subscriber.next()).await.unwrap();
    (message.subject.to_string(), String::from_utf8(message.payload.to_vec()).unwrap())
}

/// Publishes until something is relayed: after a reconnect nothing tells from outside when the
/// relay's subscription is back.
async fn relays_again(client: &Client, relayed: &mut Subscriber) {
    let probe = client.new_inbox();
    let relays = async {
        loop {
            publish(client, "cms.cache.probe", &probe).await;
            if let Ok(message) =
                tokio::time::timeout(Duration::from_millis(100), relayed.next()).await
            {
                // Others may be left from a time before.
                if message.unwrap().payload == probe {
                    return;
                }
            }
        }
    };
    within("relays again", relays).await;
}

fn position(relay: &Relay, text: &str) -> usize {
    relay
        .log()
        .iter()
        .position(|line| line.contains(text))
        .unwrap_or_else(|| panic!("not logged: {text}"))
}

// Getting there

#[tokio::test]
async fn a_relay_that_is_there_before_its_server_says_so_once_and_waits() {
    let absent = Absent::reserve();
    let endpoint = Endpoint::ok().await;
    let variables = [HTTP, ("RUST_LOG", "info,async_nats=debug")];
    let relay = Relay::spawn(&absent.url(), &endpoint.url(), &variables);
    relay.logged_times("connecting to server", 5).await;
    let waiting = relay.lines("waiting for NATS");
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    let expected = format!(
        "nothing listens on 127.0.0.1:{} (NATS_HOST): is nats-server running?",
        absent.port
    );
    assert!(
        waiting[0].contains(&expected) && waiting[0].contains("\"level\":\"WARN\""),
        "{waiting:?}"
    );
    assert_eq!(relay.get("/healthz").await.0, 200);
    assert_eq!(relay.get("/readyz").await.0, 503);

    let nats = NatsServer::at(absent);
    relay.logged("\"message\":\"ready\"").await;
    relay.readyz(200).await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    publish(&client, "cms.cache.a", "1").await;
    assert_eq!(next(&mut relayed).await, ("relayed.cache.a".into(), "1".into()));
}

#[tokio::test]
async fn a_relay_that_waits_for_its_server_can_be_stopped() {
    let absent = Absent::reserve();
    for name in ["TERM", "INT"] {
        let mut relay = Relay::spawn(&absent.url(), "http://127.0.0.1:9/", &[]);
        relay.logged("waiting for NATS").await;
        signal(relay.pid(), name);
        assert!(relay.exit().await.success());
        assert!(relay.lines(ERROR).is_empty());
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_named_and_waited_for() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let relay = Relay::spawn(&format!("nats://{address}"), "http://127.0.0.1:9/", &[]);
    let line = relay.logged("waiting for NATS").await;
    assert!(line.contains(&format!("{address} did not answer in time (NATS_HOST)")), "{line}");
}

#[tokio::test]
async fn the_next_server_is_used_when_the_first_is_dead_and_when_it_dies() {
    let (dead, later) = (Absent::reserve(), Absent::reserve());
    let mut first = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let servers = [dead.url(), first.url(), later.url()].join(",");
    let relay = Relay::start(&servers, &endpoint.url(), &[]).await;
    let client = first.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    publish(&client, "cms.cache.a", "1").await;
    next(&mut relayed).await;

    let second = NatsServer::at(later);
    first.kill();
    let client = second.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    relays_again(&client, &mut relayed).await;
    drop(relay);
}

#[tokio::test]
async fn kubernetes_variables_of_a_service_named_nats_are_ignored() {
    let nats = NatsServer::start();
    let variables = [
        ("NATS_PORT", "tcp://10.0.0.1:4222"),
        ("NATS_SERVICE_HOST", "10.0.0.1"),
        ("NATS_SERVICE_PORT", "4222"),
        ("NATS_PORT_4222_TCP", "tcp://10.0.0.1:4222"),
        ("NATS_PORT_4222_TCP_ADDR", "10.0.0.1"),
    ];
    let relay = Relay::start(&nats.url(), "http://127.0.0.1:9/", &variables).await;
    assert!(!relay.log().concat().contains("10.0.0.1"));
    assert!(!relay.log().concat().contains("WARN"));
}

#[tokio::test]
async fn a_web_socket_will_do() {
    let nats = NatsServer::with_config("websocket { host: 127.0.0.1, port: -1, no_tls: true }");
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.websocket_url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    publish(&client, "cms.cache.a", "1").await;
    assert_eq!(next(&mut relayed).await, ("relayed.cache.a".into(), "1".into()));
    drop(relay);
}

// Logging in

#[tokio::test]
async fn a_refused_login_ends_the_start_with_one_error_and_no_password_in_it() {
    let nats = NatsServer::with_config(r#"authorization { user: relay, password: right }"#);
    let address = format!("127.0.0.1:{}", nats.port);
    let in_url = format!("nats://relay:Wr0ng-one@{address}");
    let token = format!("nats://Wr0ng-one@{address}");
    for (host, variables) in [
        (&nats.url(), &[("NATS_USER", "relay"), ("NATS_PASS", "Wr0ng-one")][..]),
        (&in_url, &[]),
        (&token, &[]),
        (&nats.url(), &[]),
    ] {
        // The client's own log is switched on: it must not tell the password either.
        let log = [variables, &[("RUST_LOG", "info,async_nats=trace")]].concat();
        let mut told = Relay::spawn(host, "http://127.0.0.1:9/", &log);
        assert_eq!(told.exit().await.code(), Some(1));
        assert!(!told.log().concat().contains("Wr0ng-one"));

        let mut relay = Relay::spawn(host, "http://127.0.0.1:9/", variables);
        assert_eq!(relay.exit().await.code(), Some(1));
        let errors = relay.lines(ERROR);
        assert_eq!(errors.len(), 1, "{errors:?}");
        for expected in [&address, "refused the login", "NATS_USER", "NATS_PASS"] {
            assert!(errors[0].contains(expected), "{expected} is missing in {}", errors[0]);
        }
        assert!(relay.lines("WARN").is_empty());
    }
    let (status, output, errors) = relay::run(
        &["check"],
        &[
            ("WEBHOOK_DESTINATION", "http://127.0.0.1:9/"),
            ("NATS_HOST", &in_url),
            ("NATS_SUBJECT_PREFIX", "a"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "b"),
        ],
    );
    assert!(!status.success() && errors.contains("refused the login"));
    assert!(!(output + &errors).contains("Wr0ng-one"));
}

#[tokio::test]
async fn a_login_is_taken_from_variables_files_and_the_url() {
    let password = "p@ss/w:rd %25";
    let nats = NatsServer::with_config(&format!(
        r#"authorization {{ user: "relay@cms", password: "{password}" }}"#
    ));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{password}").unwrap();
    let path = file.path().to_str().unwrap();
    let in_url = format!("nats://relay%40cms:p%40ss%2Fw%3Ard%20%2525@127.0.0.1:{}", nats.port);
    for (host, variables) in [
        (&nats.url(), &[("NATS_USER", "relay@cms"), ("NATS_PASS", password)][..]),
        (&nats.url(), &[("NATS_USER", "relay@cms"), ("NATS_PASSWORD", password)]),
        (&nats.url(), &[("NATS_USER", "relay@cms"), ("NATS_PASS_FILE", path)]),
        (&in_url, &[]),
        // What is set explicitly wins over what the URL says.
        (
            &format!("nats://other:one@127.0.0.1:{}", nats.port),
            &[("NATS_USER", "relay@cms"), ("NATS_PASS", password)],
        ),
    ] {
        let mut relay = Relay::start(host, "http://127.0.0.1:9/", variables).await;
        assert!(relay.stop().await.success());
        assert!(!relay.log().concat().contains("p@ss"));
    }

    let nats = NatsServer::with_config(r#"authorization { token: "t0ken/x" }"#);
    let mut relay = Relay::start(
        &format!("nats://t0ken%2Fx@127.0.0.1:{}", nats.port),
        "http://127.0.0.1:9/",
        &[],
    )
    .await;
    assert!(relay.stop().await.success());
    assert!(!relay.log().concat().contains("t0ken"));
}

// Permissions

const LOGIN: [(&str, &str); 2] = [("NATS_USER", "relay"), ("NATS_PASS", "pw")];

/// A server whose user `relay` has `permissions`, and whose user `admin` may do anything.
fn server_with(permissions: &str) -> NatsServer {
    NatsServer::with_config(&users(permissions))
}

fn users(permissions: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: admin, password: pw }}, \
         {{ user: relay, password: pw, permissions: {{ {permissions} }} }} ] }}"
    )
}

const EXACT: &str = r#"subscribe: ["cms.cache.>", "_INBOX.>"], publish: ["relayed.cache.>", "failed.cache.>", "_INBOX.>"]"#;

#[tokio::test]
async fn a_permission_that_is_missing_ends_the_start_with_an_error_that_names_it() {
    for (permissions, subject) in [
        (r#"subscribe: ["_INBOX.>"], publish: ">""#, "may not subscribe to cms.cache.>"),
        // Without round trips as well.
        (r#"subscribe: ["other.>"], publish: ">""#, "cms.cache.>"),
        (
            r#"subscribe: ">", publish: ["failed.cache.>", "_INBOX.>"]"#,
            "may not publish on relayed.cache.>",
        ),
        (
            r#"subscribe: ">", publish: ["relayed.cache.>", "_INBOX.>"]"#,
            "may not publish on failed.cache.>",
        ),
    ] {
        let nats = server_with(permissions);
        let mut relay =
            Relay::spawn(&nats.url(), "http://127.0.0.1:9/", &[&LOGIN[..], &[FAILED]].concat());
        assert_eq!(relay.exit().await.code(), Some(1), "{permissions}");
        let errors = relay.lines(ERROR);
        assert_eq!(errors.len(), 1, "{permissions}: {errors:?}");
        assert!(errors[0].contains(subject), "{permissions}: {errors:?}");
    }
}

#[tokio::test]
async fn exactly_the_documented_permissions_are_enough_and_asking_for_them_reaches_nobody() {
    let nats = server_with(EXACT);
    let endpoint = Endpoint::start(|call| {
        Reply::status(if call.subject() == "cms.cache.b" { 400 } else { 200 })
    })
    .await;
    let client = nats.client_as("admin", "pw").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let mut failed = subscribe(&client, "failed.>").await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[&LOGIN[..], &[FAILED]].concat()).await;
    publish(&client, "cms.cache.a", "1").await;
    publish(&client, "cms.cache.b", "2").await;
    assert_eq!(next(&mut relayed).await, ("relayed.cache.a".into(), "1".into()));
    assert_eq!(next(&mut failed).await, ("failed.cache.b".into(), "2".into()));
    assert!(relay.stop().await.success());
    assert!(relay.lines("WARN").is_empty(), "{:?}", relay.lines("WARN"));
}

#[tokio::test]
async fn a_relay_without_an_inbox_says_once_that_it_cannot_confirm_and_relays() {
    for permissions in [
        r#"subscribe: ["cms.cache.>"], publish: ["relayed.cache.>", "failed.cache.>"]"#,
        r#"subscribe: ["cms.cache.>"], publish: ["relayed.cache.>", "failed.cache.>", "_INBOX.>"]"#,
        r#"subscribe: ["cms.cache.>", "_INBOX.>"], publish: ["relayed.cache.>", "failed.cache.>"]"#,
    ] {
        let nats = server_with(permissions);
        let endpoint = Endpoint::ok().await;
        let client = nats.client_as("admin", "pw").await;
        let mut relayed = subscribe(&client, "relayed.>").await;
        let mut relay = Relay::start(&nats.url(), &endpoint.url(), &LOGIN).await;
        relays_again(&client, &mut relayed).await;
        for number in 0..20 {
            publish(&client, "cms.cache.a", &number.to_string()).await;
        }
        for number in 0..20 {
            assert_eq!(next(&mut relayed).await.1, number.to_string());
        }
        assert!(relay.stop().await.success());
        let warnings = relay.lines("WARN");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("_INBOX.>") && warnings[0].contains("not confirmed"),
            "{warnings:?}"
        );
        assert!(relay.lines(ERROR).is_empty());
    }
}

#[tokio::test]
async fn a_relay_is_ready_only_when_the_server_has_its_subscription() {
    ready_only_with_subscription(EXACT).await;
}

#[tokio::test]
async fn a_relay_without_an_inbox_is_ready_only_when_the_server_has_its_subscription() {
    ready_only_with_subscription(r#"subscribe: ["cms.cache.>"], publish: ["relayed.cache.>"]"#)
        .await;
}

async fn ready_only_with_subscription(permissions: &str) {
    let nats = server_with(permissions);
    let proxy = Proxy::to(nats.port).await;
    proxy.hold("SUB cms.cache.>");
    let relay = Relay::spawn(&proxy.url(), "http://127.0.0.1:9/", &[&LOGIN[..], &[HTTP]].concat());
    eventually("the subscription is on its way", || proxy.is_holding()).await;
    for _ in 0..100 {
        assert_eq!(relay.get("/readyz").await.0, 503);
    }
    assert!(relay.lines("\"message\":\"ready\"").is_empty());
    proxy.resume();
    relay.readyz(200).await;
}

#[tokio::test]
async fn a_message_that_may_not_be_republished_fails_and_no_other() {
    let nats = server_with(
        r#"subscribe: ["cms.cache.>", "_INBOX.>"],
           publish: { allow: ["relayed.cache.>", "failed.cache.>", "_INBOX.>"], deny: ["relayed.cache.secret.>"] }"#,
    );
    let endpoint = Endpoint::ok().await;
    let client = nats.client_as("admin", "pw").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let mut failed = subscribe(&client, "failed.>").await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[&LOGIN[..], &[FAILED, HTTP]].concat()).await;
    for number in 0..20 {
        publish(&client, &format!("cms.cache.a.{number}"), "").await;
        publish(&client, &format!("cms.cache.secret.{number}"), "").await;
    }
    let (mut subjects, mut letters) = (HashSet::new(), HashSet::new());
    for _ in 0..20 {
        subjects.insert(next(&mut relayed).await.0);
        let letter = within("a dead letter", failed.next()).await.unwrap();
        assert_eq!(letter.headers.unwrap().get("Relay-Reason").unwrap().as_str(), "publish");
        letters.insert(letter.subject.to_string());
    }
    assert_eq!(subjects, (0..20).map(|number| format!("relayed.cache.a.{number}")).collect());
    assert_eq!(letters, (0..20).map(|number| format!("failed.cache.secret.{number}")).collect());
    relay.counted("messages_relayed_total", 20).await;
    relay.counted("messages_failed_total{reason=\"publish\"}", 20).await;
    relay.counted("messages_failed_unpublished_total", 0).await;
    assert!(relay.stop().await.success());
    assert!(relay.lines(RELAYED).iter().all(|line| !line.contains("secret")));
    let errors = relay.lines(ERROR);
    assert_eq!(errors.len(), 20);
    assert!(
        errors.iter().all(|line| line.contains("may not publish on relayed.cache.secret.")),
        "{}",
        errors[0]
    );
}

#[tokio::test]
async fn a_denied_subject_is_recognized_whatever_characters_it_has() {
    let long = format!("{}.\u{1}", "\u{2}".repeat(3900));
    // As nats-server writes them: \u200b, \x01, \U000e0001, \" and \\, \x7f, and four characters for each of 3900.
    let denied = ["a\u{200b}b", "a\u{1}b", "a\u{e0001}b", r#"a"b\x01"#, "a\u{7f}é😀", &long];
    let quoted = denied.iter().map(|tail| {
        format!("\"relayed.cache.{}\"", tail.replace('\\', r"\\").replace('"', r#"\""#))
    });
    let nats = server_with(&format!(
        r#"subscribe: ["cms.cache.>", "_INBOX.>"],
           publish: {{ allow: ["relayed.cache.>", "failed.cache.>", "_INBOX.>"], deny: [{}] }}"#,
        quoted.collect::<Vec<_>>().join(", ")
    ));
    let endpoint = Endpoint::ok().await;
    let client = nats.client_as("admin", "pw").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let mut failed = subscribe(&client, "failed.>").await;
    let mut relay =
        Relay::start(&nats.url(), &endpoint.url(), &[&LOGIN[..], &[FAILED, HTTP]].concat()).await;
    for tail in denied {
        publish(&client, &format!("cms.cache.{tail}"), "").await;
        let letter = within("a dead letter", failed.next()).await.unwrap();
        assert_eq!(letter.subject.as_str(), format!("failed.cache.{tail}"));
        assert_eq!(letter.headers.unwrap().get("Relay-Reason").unwrap().as_str(), "publish");
    }
    // Its twins are not denied.
    for tail in ["au200bb", "ax01b"] {
        publish(&client, &format!("cms.cache.{tail}"), "").await;
        assert_eq!(next(&mut relayed).await.0, format!("relayed.cache.{tail}"));
    }
    relay.counted("messages_failed_total{reason=\"publish\"}", denied.len() as u64).await;
    relay.counted("messages_relayed_total", 2).await;
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn many_denials_at_once_fail_nothing_that_was_republished() {
    const DENIED: usize = 400;
    let nats = server_with(
        r#"subscribe: ["cms.cache.>", "_INBOX.>"],
           publish: { allow: ["relayed.cache.>", "failed.cache.>", "_INBOX.>"], deny: ["relayed.cache.secret.>"] }"#,
    );
    let endpoint = Held::start().await;
    let client = nats.client_as("admin", "pw").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let variables = [&LOGIN[..], &[FAILED, HTTP, PATIENT, ("MAX_IN_FLIGHT", "1000")]].concat();
    let relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    for number in 0..DENIED {
        publish(&client, &format!("cms.cache.secret.{number}"), "").await;
        if number % 8 == 0 {
            publish(&client, &format!("cms.cache.a.{number}"), "").await;
        }
    }
    endpoint.called(DENIED + DENIED / 8).await;
    // All are accepted at one moment, and so all are republished at once.
    endpoint.release();
    let mut subjects = HashSet::new();
    for _ in 0..DENIED / 8 {
        assert!(subjects.insert(next(&mut relayed).await.0), "relayed twice");
    }
    eventually("all are settled", || {
        relay.lines(RELAYED).len() + relay.lines("\"not relayed\"").len() == DENIED + DENIED / 8
    })
    .await;
    relay.counted("messages_relayed_total", DENIED as u64 / 8).await;
    relay.counted("messages_failed_total{reason=\"publish\"}", DENIED as u64).await;
}

#[tokio::test]
async fn a_subscription_that_is_taken_away_ends_the_relay_with_an_error() {
    let nats = server_with(EXACT);
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &LOGIN).await;
    nats.reload(&users(r#"subscribe: ["other.>", "_INBOX.>"], publish: ">""#));
    assert_eq!(relay.exit().await.code(), Some(1));
    let errors = relay.lines(ERROR);
    assert!(
        errors.iter().any(|line| line.contains("cms.cache.>") && line.contains("subscri")),
        "{errors:?}"
    );
}

#[tokio::test]
async fn a_login_that_is_taken_away_is_told_and_shows_in_readiness_until_it_is_back() {
    let nats = server_with(EXACT);
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[&LOGIN[..], &[HTTP]].concat()).await;
    relay.readyz(200).await;
    nats.reload("authorization { users: [ { user: admin, password: pw } ] }");
    relay.readyz(503).await;
    relay.logged("cannot reconnect to NATS yet").await;
    nats.reload(&users(EXACT));
    relay.readyz(200).await;
    let client = nats.client_as("admin", "pw").await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    relays_again(&client, &mut relayed).await;
    assert_eq!(relay.lines("cannot reconnect to NATS yet").len(), 1);
}

// Outages

#[tokio::test]
async fn what_was_received_before_an_outage_is_relayed_after_it_and_the_gap_is_reported() {
    const MESSAGES: usize = 50;
    let mut nats = NatsServer::start();
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Held::start().await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[HTTP, PATIENT]).await;
    let client = nats.client().await;
    for number in 0..MESSAGES {
        publish(&client, &format!("cms.cache.s{}", number % 10), &number.to_string()).await;
    }
    relay.counted("messages_received_total", MESSAGES as u64).await;
    endpoint.called(10).await;

    nats.kill();
    proxy.close();
    relay.logged("lost the connection to NATS").await;
    let lost = Instant::now();
    relay.readyz(503).await;
    // The webhook goes on accepting; what it has accepted waits for the server.
    endpoint.release();
    relay.logged("cannot reconnect to NATS yet").await;
    assert_eq!(relay.metric("messages_relayed_total").await, 0);

    nats.restart();
    // The relay comes back last, so that nothing it republishes is missed here.
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    let away = lost.elapsed();
    proxy.open();
    let mut numbers = HashSet::new();
    let mut last = [None; 10];
    for _ in 0..MESSAGES {
        let number: usize = next(&mut relayed).await.1.parse().unwrap();
        assert!(numbers.insert(number), "{number} was relayed twice");
        assert!(last[number % 10].replace(number) < Some(number), "{number} is out of order");
    }
    relay.readyz(200).await;
    relay.counted("messages_relayed_total", MESSAGES as u64).await;
    relays_again(&client, &mut relayed).await;

    let gaps = relay.lines("gap_ms");
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].contains(ERROR) && gaps[0].contains("reconnected"), "{gaps:?}");
    let gap_ms: u64 = field(&gaps[0], "gap_ms").parse().unwrap();
    assert!(
        u128::from(gap_ms) >= away.as_millis()
            && u128::from(gap_ms) <= lost.elapsed().as_millis() + 60_000,
        "{gap_ms}, {away:?}"
    );
    assert_eq!(relay.lines("lost the connection").len(), 1);
    assert_eq!(relay.lines("cannot reconnect").len(), 1);
    assert_eq!((relay.metric("gaps_total").await, relay.metric("reconnects_total").await), (1, 1));
}

#[tokio::test]
async fn every_outage_is_told_once() {
    let mut nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[HTTP]).await;
    for outage in 1..=3 {
        nats.kill();
        relay.logged_times("lost the connection to NATS", outage).await;
        relay.logged_times("cannot reconnect to NATS yet", outage).await;
        nats.restart();
        relay.logged_times("gap_ms", outage).await;
        let client = nats.client().await;
        let mut relayed = subscribe(&client, "relayed.cache.>").await;
        relays_again(&client, &mut relayed).await;
        for line in ["lost the connection to NATS", "cannot reconnect to NATS yet", "gap_ms"] {
            assert_eq!(relay.lines(line).len(), outage, "{line}");
        }
        let said = relay.lines("cannot reconnect to NATS yet").pop().unwrap();
        assert!(said.contains(&format!("127.0.0.1:{}", nats.port)), "which server? {said}");
    }
    relay.counted("reconnects_total", 3).await;
}

#[tokio::test]
async fn a_message_counts_as_relayed_only_when_the_server_has_it() {
    let nats = NatsServer::start();
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Held::start().await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[HTTP, PATIENT]).await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    publish(&client, "cms.cache.a", "1").await;
    publish(&client, "cms.cache.a", "2").await;
    endpoint.called(1).await;

    proxy.swallow();
    endpoint.release();
    eventually("the republished message is swallowed", || proxy.has_swallowed("relayed.cache.a"))
        .await;
    assert_eq!(relay.metric("messages_relayed_total").await, 0);
    proxy.cut();
    assert_eq!(next(&mut relayed).await.1, "1");
    assert_eq!(next(&mut relayed).await.1, "2");
    relay.counted("messages_relayed_total", 2).await;
    relay.counted("messages_republished_again_total", 1).await;
    assert!(position(&relay, "gap_ms") < position(&relay, RELAYED), "relayed before the reconnect");
    assert_eq!(relay.lines(RELAYED).len(), 2);
    assert_eq!(endpoint.subjects().len(), 2, "the webhook was called again");
}

#[tokio::test]
async fn a_connection_on_which_nothing_arrives_any_more_is_given_up_and_loses_nothing() {
    let nats = NatsServer::start();
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[HTTP]).await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    proxy.swallow();
    publish(&client, "cms.cache.a", "1").await;
    // Two to three of the relay's pings: half a minute.
    assert_eq!(next(&mut relayed).await.1, "1");
    relay.counted("messages_relayed_total", 1).await;
    assert!(position(&relay, "gap_ms") < position(&relay, RELAYED));
}

#[tokio::test]
async fn a_header_that_the_client_cannot_read_stops_the_relay_for_a_moment_only() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    let poisons: [&[u8]; 3] = [b"bad name: x", b"name: \xff\xfe", b"no colon at all"];
    for (index, poison) in poisons.iter().enumerate() {
        let headers = [b"NATS/1.0\r\n", *poison, b"\r\n\r\n"].concat();
        hpub(nats.port, "cms.cache.poison", &headers, b"payload").await;
        let line = relay.logged_times("gap_ms", index + 1).await.pop().unwrap();
        assert!(line.contains(ERROR), "{line}");
        relays_again(&client, &mut relayed).await;
    }
    assert_eq!(relay.lines("lost the connection").len(), 3);
}

/// Publishes header bytes that no client would.
async fn hpub(port: u16, subject: &str, headers: &[u8], payload: &[u8]) {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let total = headers.len() + payload.len();
    let mut bytes = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {subject} {} {total}\r\n",
        headers.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&[headers, payload, b"\r\nPING\r\n"].concat());
    stream.write_all(&bytes).await.unwrap();
    let mut answer = String::new();
    let pong = async {
        while !answer.contains("PONG") {
            assert!(!answer.contains("-ERR"), "{answer}");
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            answer.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    };
    within("the server takes it", pong).await;
}

// Limits

#[tokio::test]
async fn what_exceeds_the_pending_messages_is_dropped_counted_and_told() {
    let nats = NatsServer::start();
    let endpoint = Held::start().await;
    let relay = Relay::start(
        &nats.url(),
        &endpoint.url(),
        &[HTTP, PATIENT, ("NATS_PENDING_MESSAGES", "100")],
    )
    .await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    for number in 0..1000 {
        publish(&client, &format!("cms.cache.s{}", number % 3), &number.to_string()).await;
    }
    relay.counted("messages_lost_total", 900).await;
    relay.counted("messages_received_total", 100).await;
    let line = relay.logged("messages dropped").await;
    assert!(line.contains(ERROR) && line.contains("NATS_PENDING_MESSAGES"), "{line}");
    let told = || {
        relay
            .lines("messages dropped")
            .iter()
            .map(|line| field(line, "messages").parse::<u64>().unwrap())
            .sum::<u64>()
    };
    eventually("all are told", || told() == 900).await;
    assert!(relay.lines("messages dropped").len() <= 10, "a flood of lines");

    endpoint.release();
    let mut last = [None; 3];
    for _ in 0..100 {
        let number: usize = next(&mut relayed).await.1.parse().unwrap();
        assert!(number < 100, "{number} was dropped");
        assert!(last[number % 3].replace(number) < Some(number), "{number} is out of order");
    }
    relay.counted("messages_relayed_total", 100).await;
    // There is room again.
    publish(&client, "cms.cache.s0", "1000").await;
    assert_eq!(next(&mut relayed).await.1, "1000");
    assert_eq!(relay.metric("messages_lost_total").await, 900);
}

#[tokio::test]
async fn a_flood_of_large_messages_takes_no_more_memory_than_the_pending_bytes_and_some() {
    const MESSAGES: u64 = 3_000;
    let nats = NatsServer::start();
    let endpoint = Held::start().await;
    let relay = Relay::start(
        &nats.url(),
        &endpoint.url(),
        &[
            HTTP,
            PATIENT,
            ("NATS_PENDING_BYTES", "16MiB"),
            ("RUST_LOG", "warn,nats_webhook_relay::serve=info,nats_webhook_relay::command=info"),
        ],
    )
    .await;
    let client = nats.client().await;
    let payload = "x".repeat(100_000);
    for number in 0..MESSAGES {
        publish(&client, &format!("cms.cache.s{}", number % 50), &payload).await;
    }
    round_trip(&client).await;
    let expected = (16 * 1024 * 1024) / (payload.len() as u64 + "cms.cache.s00".len() as u64);
    relay.counted("messages_lost_total", MESSAGES - expected).await;
    relay.counted("messages_received_total", expected).await;
    let highest = relay.memory("VmHWM");
    assert!(highest < (16 + 32) * 1024, "{highest} KiB");
    relay.logged("messages dropped").await;
    assert!(relay.lines("lost the connection").is_empty());

    endpoint.release();
    relay.counted("messages_relayed_total", expected).await;
}

#[tokio::test]
async fn a_small_message_that_waits_takes_little_more_than_itself() {
    const MESSAGES: u64 = 20_000;
    let nats = NatsServer::start();
    let endpoint = Held::start().await;
    let quiet =
        ("RUST_LOG", "warn,nats_webhook_relay::serve=info,nats_webhook_relay::command=info");
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[HTTP, PATIENT, quiet]).await;
    let client = nats.client().await;
    let before = relay.memory("VmHWM");
    for number in 0..MESSAGES {
        // Each has a lane of its own.
        publish(&client, &format!("cms.cache.s{number}"), "x").await;
    }
    relay.counted("messages_received_total", MESSAGES).await;
    let grown = relay.memory("VmHWM") - before;
    assert!(grown * 1024 / MESSAGES < 4096, "{grown} KiB for {MESSAGES} messages");
    endpoint.release();
    relay.counted("messages_relayed_total", MESSAGES).await;
}

#[tokio::test]
async fn relays_of_one_queue_group_share_the_messages() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let group = [HTTP, ("NATS_QUEUE_GROUP", "frontend")];
    let relays = [
        Relay::start(&nats.url(), &endpoint.url(), &group).await,
        Relay::start(&nats.url(), &endpoint.url(), &group).await,
    ];
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.cache.>").await;
    let mut numbers = HashSet::new();
    for number in 0..200 {
        publish(&client, &format!("cms.cache.s{number}"), &number.to_string()).await;
    }
    for _ in 0..200 {
        assert!(numbers.insert(next(&mut relayed).await.1), "relayed twice");
    }
    assert_eq!(endpoint.count(), 200);
    relays[0]
        .counted("messages_relayed_total", relays[0].metric("messages_received_total").await)
        .await;
    let shares = [
        relays[0].metric("messages_received_total").await,
        relays[1].metric("messages_received_total").await,
    ];
    assert!(shares[0] > 0 && shares[1] > 0 && shares[0] + shares[1] == 200, "{shares:?}");
}

// Health and metrics

#[tokio::test]
async fn metrics_count_what_happened() {
    let nats = NatsServer::start();
    let retried = std::sync::atomic::AtomicBool::new(false);
    let endpoint = Endpoint::start(move |call| match call.subject() {
        "cms.cache.refused" => Reply::status(400),
        "cms.cache.retried" if !retried.swap(true, std::sync::atomic::Ordering::SeqCst) => {
            Reply::status(503)
        }
        _ => Reply::ok(),
    })
    .await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[HTTP]).await;
    let client = nats.client().await;
    for subject in ["a", "b", "c", "refused", "retried"] {
        publish(&client, &format!("cms.cache.{subject}"), "12345").await;
    }
    relay.counted("messages_relayed_total", 4).await;
    for (name, value) in [
        ("messages_received_total", 5),
        ("messages_failed_total{reason=\"webhook\"}", 1),
        ("messages_lost_total", 0),
        ("gaps_total", 0),
        ("reconnects_total", 0),
        ("webhook_retries_total", 1),
        ("webhook_call_seconds_count", 6),
    ] {
        relay.counted(name, value).await;
    }
    let (status, text) = relay.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(relay.get("/healthz").await.0, 200);
    assert_eq!(relay.get("/elsewhere").await.0, 404);
}

#[tokio::test]
async fn what_waits_is_in_the_metrics() {
    let nats = NatsServer::start();
    let endpoint = Held::start().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[HTTP, PATIENT]).await;
    let client = nats.client().await;
    for subject in ["cms.cache.a", "cms.cache.a", "cms.cache.b"] {
        publish(&client, subject, "12345").await;
    }
    endpoint.called(2).await;
    relay.counted("messages_received_total", 3).await;
    relay.counted("messages_pending", 3).await;
    relay.counted("messages_pending_bytes", 3 * 16).await;
    endpoint.release();
    relay.counted("messages_pending", 0).await;
    relay.counted("messages_pending_bytes", 0).await;
}
