//! States that are rare and that a review broke: turns that end at a bad moment, messages that vanish, consumers that somebody else has made.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod support;

use futures_util::StreamExt;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::endpoint::{Call, Endpoint, Reply};
use support::proxy::Proxy;
use support::relay::Relay;
use support::setup::{Setup, poison};
use support::stream::{CONSUMER, FAILED, HTTP, JetStream, STREAM, let_pass, number, server, setup};
use support::{eventually, signal, subscribe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const UNLIMITED: (&str, &str) = ("WEBHOOK_MAX_ATTEMPTS", "unlimited");
const GRACE: (&str, &str) = ("SHUTDOWN_GRACE", "1s");
/// Far longer than a takeover takes.
const SOON: Duration = Duration::from_secs(40);

fn replica(call: &Call) -> &str {
    call.header("x-replica")
}

fn text(call: &Call) -> String {
    String::from_utf8(call.body.to_vec()).unwrap()
}

async fn named(name: &str, nats: &str, endpoint: &Endpoint, more: &[(&str, &str)]) -> Relay {
    let header = format!("x-replica={name}");
    Relay::start(
        nats,
        &endpoint.url(),
        &[&[STREAM, HTTP, ("WEBHOOK_HEADERS", &header)], more].concat(),
    )
    .await
}

async fn all_but(subject: &'static str, status: u16) -> Endpoint {
    Endpoint::start(move |call| Reply::status(if call.subject() == subject { status } else { 200 }))
        .await
}

async fn unpin(stream: &JetStream) {
    stream.call(&format!("CONSUMER.UNPIN.CMS.{CONSUMER}"), json!({ "group": "relay" })).await;
}

#[tokio::test]
async fn a_settled_unreadable_message_that_a_new_consumer_delivers_again_holds_nothing_up() {
    let endpoint = all_but("cms.cache.never", 503).await;
    let (mut setup, stream) = setup(&endpoint.url(), &[UNLIMITED, GRACE]).await;
    stream.publish("cms.cache.never", "0").await;
    endpoint.received(1).await;
    setup.publish_by_hand(&poison("cms.cache.s0", "p")).await;
    setup.failed().await;
    stream.unsettled(1).await;
    stream.remove_consumer().await;
    setup.relay.logged_times("created the consumer", 2).await;
    stream.publish("cms.cache.s1", "after").await;
    let relayed = timeout(SOON, setup.relayed.next()).await;
    assert!(relayed.is_ok(), "nothing is relayed within {SOON:?}");
}

#[tokio::test]
async fn messages_removed_from_the_stream_while_they_are_retried_do_not_open_the_gate() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = all_but("cms.cache.a", 503).await;
    let url = proxy.url();
    let setup =
        Setup::on(nats, &endpoint.url(), &[STREAM, HTTP, UNLIMITED, GRACE, ("NATS_HOST", &url)])
            .await;
    for number in 0..10 {
        stream.publish("cms.cache.a", number.to_string()).await;
    }
    setup.relay.counted("messages_received_total", 10).await;
    stream.call("STREAM.PURGE.CMS", json!({ "filter": "cms.cache.a" })).await;
    stream.unsettled(0).await;
    proxy.silence();
    stream.publish("cms.cache.b", "1").await;
    stream.unsettled(1).await;
    proxy.cut();
    setup.relay.logged("reconnected to NATS").await;
    stream.publish("cms.cache.b", "2").await;
    let of_b = || {
        endpoint
            .calls()
            .iter()
            .filter(|call| call.subject() == "cms.cache.b")
            .map(text)
            .collect::<Vec<_>>()
    };
    eventually("two calls", || of_b().len() >= 2).await;
    assert_eq!(of_b(), ["1", "2"]);
}

#[tokio::test]
async fn a_replica_that_is_short_of_files_and_loses_its_turn_does_not_hold_up_the_other() {
    let (nats, stream) = server().await;
    let endpoint = Endpoint::start(|_| Reply::ok().header("connection", "close")).await;
    let more = [("WEBHOOK_TIMEOUT", "2s"), GRACE];
    let first = named("first", &nats.url(), &endpoint, &more).await;
    stream.publish("cms.cache.s0", "0").await;
    endpoint.received(1).await;
    let _other = named("other", &nats.url(), &endpoint, &more).await;
    stream.settled().await;
    let done = std::process::Command::new("prlimit")
        .args(["--nofile=5:5", "--pid", &first.pid().to_string()])
        .status()
        .unwrap();
    assert!(done.success());
    stream.publish("cms.cache.s1", "1").await;
    first.logged("open files").await;
    unpin(&stream).await;
    stream.publish("cms.cache.s2", "2").await;
    let began = Instant::now();
    while began.elapsed() < SOON && !endpoint.calls().iter().any(|call| text(call) == "2") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() < SOON, "the other replica relays nothing");
}

#[tokio::test]
async fn a_replica_that_cannot_publish_a_failed_message_and_loses_its_turn_does_not_hold_up_the_other()
 {
    let (nats, stream) = server().await;
    stream.add("FAILED", "failed.cache.>", json!({ "max_msg_size": 1 })).await;
    let endpoint = all_but("cms.cache.bad", 404).await;
    let first = named("first", &nats.url(), &endpoint, &[FAILED, GRACE]).await;
    stream.publish("cms.cache.s0", "0").await;
    endpoint.received(1).await;
    let _other = named("other", &nats.url(), &endpoint, &[FAILED, GRACE]).await;
    stream.settled().await;
    stream.publish("cms.cache.bad", "1").await;
    first.logged("not relayed").await;
    // Other subjects are not held up.
    stream.publish("cms.cache.s1", "2").await;
    endpoint.received(3).await;
    unpin(&stream).await;
    stream.publish("cms.cache.s2", "3").await;
    let began = Instant::now();
    while began.elapsed() < 2 * SOON && !endpoint.calls().iter().any(|call| text(call) == "3") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() < 2 * SOON, "the other replica relays nothing");
}

const SUBJECTS: usize = 40;

/// How many of those that `first` relayed came after a newer one of their subject.
fn late(relayed: &[usize]) -> Vec<usize> {
    let place = |number| relayed.iter().position(|other| *other == number).unwrap();
    let is_late =
        |index: usize, number: usize| number < SUBJECTS && index > place(number + SUBJECTS);
    relayed
        .iter()
        .enumerate()
        .filter(|(index, number)| is_late(*index, **number))
        .map(|(_, number)| *number)
        .collect()
}

async fn drained(relayed: &mut async_nats::Subscriber) -> Vec<usize> {
    let mut numbers = Vec::new();
    while let Ok(Some(message)) = timeout(Duration::from_secs(1), relayed.next()).await {
        numbers.push(number(std::str::from_utf8(&message.payload).unwrap()));
    }
    numbers
}

#[tokio::test]
async fn a_replica_that_is_cut_off_begins_no_call_after_its_turn() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::start(|call| {
        Reply::ok().after(Duration::from_millis(if replica(call) == "first" { 400 } else { 0 }))
    })
    .await;
    let more = [("MAX_IN_FLIGHT", "1"), GRACE];
    let first = named("first", &proxy.url(), &endpoint, &more).await;
    stream.fill(0..SUBJECTS, SUBJECTS, 0).await;
    first.counted("messages_received_total", SUBJECTS as u64).await;
    let _other = named("other", &nats.url(), &endpoint, &more).await;
    proxy.close();
    let cut = Instant::now();
    stream.fill(SUBJECTS..2 * SUBJECTS, SUBJECTS, 0).await;
    stream.settled().await;
    let_pass(Duration::from_secs(3)).await;
    proxy.open();
    first.logged("reconnected").await;
    let_pass(Duration::from_secs(3)).await;
    let calls = endpoint.calls();
    let begun = |since: Instant| {
        calls.iter().filter(|call| replica(call) == "first" && call.at > since).count()
    };
    assert_eq!(begun(cut + Duration::from_secs(4)), 0);
}

#[tokio::test]
async fn a_replica_that_was_frozen_repeats_no_attempt_after_its_turn() {
    let (nats, stream) = server().await;
    let client = nats.client().await;
    let mut relayed = subscribe(&client, "relayed.>").await;
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let endpoint = Endpoint::start(move |_| match is_up.load(Ordering::Relaxed) {
        true => Reply::ok(),
        false => Reply::status(503).header("retry-after", "6"),
    })
    .await;
    let more = [("MAX_IN_FLIGHT", "1"), GRACE];
    let first = named("first", &nats.url(), &endpoint, &more).await;
    stream.fill(0..SUBJECTS, SUBJECTS, 0).await;
    endpoint.answered(SUBJECTS).await;
    let _other = named("other", &nats.url(), &endpoint, &more).await;
    signal(first.pid(), "STOP");
    let frozen = Instant::now();
    up.store(true, Ordering::Relaxed);
    stream.fill(SUBJECTS..2 * SUBJECTS, SUBJECTS, 0).await;
    stream.settled().await;
    eventually("the retries are due", || frozen.elapsed() > Duration::from_secs(8)).await;
    let woken = Instant::now();
    signal(first.pid(), "CONT");
    let_pass(Duration::from_secs(4)).await;
    let numbers = drained(&mut relayed).await;
    let calls = endpoint.calls();
    let begun = calls.iter().filter(|call| replica(call) == "first" && call.at > woken).count();
    assert!(late(&numbers).len() <= 1, "MAX_IN_FLIGHT is 1");
    assert!(begun <= 1);
}

#[tokio::test]
async fn a_delivery_that_was_late_does_not_give_the_turn_for_a_newer_request() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let first = named("first", &proxy.url(), &endpoint, &[GRACE]).await;
    stream.publish("cms.cache.s0", "0").await;
    endpoint.received(1).await;
    let other = named("other", &nats.url(), &endpoint, &[GRACE]).await;
    stream.settled().await;
    first.logged("this replica is the one").await;
    proxy.stall();
    stream.publish("cms.cache.s1", "1").await;
    stream.unsettled(1).await;
    proxy.hold("CONSUMER.MSG.NEXT");
    // It is redelivered to the other one, and relayed there.
    endpoint.received(2).await;
    stream.publish("cms.cache.s1", "2").await;
    endpoint.received(3).await;
    other.logged("this replica is the one").await;
    first.logged("a pull request was not answered").await;
    let woken = Instant::now();
    proxy.go_on();
    let_pass(Duration::from_millis(1500)).await;
    let calls = endpoint.calls();
    proxy.resume();
    let seen: Vec<_> = calls
        .iter()
        .map(|call| {
            format!("{} {} {:?}", replica(call), text(call), call.at.checked_duration_since(woken))
        })
        .collect();
    assert_eq!(seen.iter().filter(|seen| seen.starts_with("first 1")).count(), 0);
}

/// Takes the next message from the consumer without settling it, whatever its headers are.
async fn take_raw(port: u16) {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = r#"{"batch":1,"expires":5000000000,"group":"relay"}"#;
    let commands = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true}}\r\nSUB raw.in 1\r\nPUB $JS.API.CONSUMER.MSG.NEXT.CMS.{CONSUMER} raw.in {}\r\n{request}\r\n",
        request.len()
    );
    stream.write_all(commands.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let taken = async {
        while !String::from_utf8_lossy(&read).contains("bad name") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            read.extend_from_slice(&buffer[..count]);
        }
    };
    support::within("a raw message", taken).await;
}

#[tokio::test]
async fn a_suspect_that_a_paused_consumer_does_not_deliver_is_not_forgotten() {
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) = setup(&endpoint.url(), &[GRACE]).await;
    stream.publish("cms.cache.s0", "0").await;
    setup.relayed().await;
    stream.settled().await;
    setup.relay.stop().await;
    setup.publish_by_hand(&poison("cms.cache.s0", "p")).await;
    take_raw(setup.nats.port).await;
    setup.relay =
        Relay::start(&setup.nats.url(), &endpoint.url(), &[STREAM, HTTP, FAILED, GRACE]).await;
    setup.relay.logged("reconnected to NATS").await;
    let until = humantime::format_rfc3339(std::time::SystemTime::now() + Duration::from_secs(3600))
        .to_string();
    stream.call(&format!("CONSUMER.PAUSE.CMS.{CONSUMER}"), json!({ "pause_until": until })).await;
    let_pass(Duration::from_secs(15)).await;
    assert_eq!(setup.relay.lines("not relayed").len(), 0, "paused too late");
    stream.call(&format!("CONSUMER.PAUSE.CMS.{CONSUMER}"), json!({})).await;
    stream.publish("cms.cache.s1", "after").await;
    let relayed = timeout(SOON, setup.relayed.next()).await;
    assert!(relayed.is_ok(), "nothing is relayed within {SOON:?}");
}

#[tokio::test]
async fn an_unreadable_message_is_found_though_removed_messages_are_still_retried() {
    let endpoint = all_but("cms.cache.a", 503).await;
    let (mut setup, stream) = setup(&endpoint.url(), &[UNLIMITED, GRACE]).await;
    for number in 0..10 {
        stream.publish("cms.cache.a", number.to_string()).await;
    }
    setup.relay.counted("messages_received_total", 10).await;
    stream.call("STREAM.PURGE.CMS", json!({ "filter": "cms.cache.a" })).await;
    stream.unsettled(0).await;
    setup.publish_by_hand(&poison("cms.cache.s0", "p")).await;
    let failed = timeout(SOON, setup.failed.next()).await;
    assert!(failed.is_ok(), "it does not fail within {SOON:?}");
}

/// User and system time that a process has used, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn a_relay_that_drains_while_the_server_is_silent_uses_no_processor() {
    let (nats, stream) = server().await;
    let endpoint = Endpoint::start(|_| Reply::ok().after(Duration::from_secs(20))).await;
    let relay = named("a", &nats.url(), &endpoint, &[("SHUTDOWN_GRACE", "15s")]).await;
    stream.publish("cms.cache.s0", "0").await;
    endpoint.received(1).await;
    signal(nats.pid(), "STOP");
    signal(relay.pid(), "TERM");
    relay.logged("stopping").await;
    let_pass(Duration::from_secs(4)).await;
    let before = ticks(relay.pid());
    let_pass(Duration::from_secs(4)).await;
    let used = ticks(relay.pid()) - before;
    signal(nats.pid(), "CONT");
    assert!(used < 40, "{used}");
}

#[tokio::test]
async fn what_cannot_be_read_is_found_in_a_stream_whose_consumer_somebody_else_has_made() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let url = proxy.url();
    let mut setup =
        Setup::on(nats, &endpoint.url(), &[STREAM, HTTP, GRACE, ("NATS_HOST", &url)]).await;
    for number in 0..10 {
        stream.publish("cms.cache.s0", number.to_string()).await;
        setup.relayed().await;
    }
    setup.publish_by_hand(&poison("cms.cache.s0", "p")).await;
    setup.failed().await;
    stream.settled().await;
    proxy.close();
    let config = stream.consumer().await["config"].clone();
    stream.remove("CMS").await;
    stream.add("CMS", "cms.cache.>", json!({})).await;
    let mut config = config;
    config["deliver_policy"] = json!("all");
    config.as_object_mut().unwrap().remove("metadata");
    stream
        .call(
            &format!("CONSUMER.DURABLE.CREATE.CMS.{CONSUMER}"),
            json!({ "stream_name": "CMS", "config": config }),
        )
        .await;
    proxy.open();
    setup.relay.logged_times("reconnected to NATS", 2).await;
    stream.publish("cms.cache.s0", "new").await;
    assert_eq!(setup.relayed().await.payload, "new");
    setup.publish_by_hand(&poison("cms.cache.s0", "q")).await;
    stream.publish("cms.cache.s1", "after").await;
    let failed = timeout(SOON, setup.failed.next()).await;
    assert!(failed.is_ok(), "it does not fail within {SOON:?}");
}

#[tokio::test]
async fn what_is_in_work_of_a_removed_stream_settles_nothing_of_another_replica() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = support::held::Held::hanging(|call| call.replica == "other").await;
    let start = async |name: &str, nats: &str| {
        let header = format!("x-replica={name}");
        Relay::start(
            nats,
            &endpoint.url(),
            &[STREAM, HTTP, support::stream::PATIENT, GRACE, ("WEBHOOK_HEADERS", &header)],
        )
        .await
    };
    let first = start("first", &proxy.url()).await;
    stream.publish("cms.cache.s0", "old").await;
    endpoint.called(1).await;
    proxy.close();
    let mut config = stream.consumer().await["config"].clone();
    stream.remove("CMS").await;
    stream.add("CMS", "cms.cache.>", json!({})).await;
    config["deliver_policy"] = json!("all");
    config.as_object_mut().unwrap().remove("metadata");
    stream
        .call(
            &format!("CONSUMER.DURABLE.CREATE.CMS.{CONSUMER}"),
            json!({ "stream_name": "CMS", "config": config }),
        )
        .await;
    let _other = start("other", &nats.url()).await;
    stream.publish("cms.cache.s0", "new").await;
    endpoint.called(2).await;
    proxy.open();
    first.logged("reconnected to NATS").await;
    first.logged("standing by").await;
    endpoint.release();
    first.logged("\"message\":\"relayed\"").await;
    let_pass(Duration::from_secs(2)).await;
    let info = stream.consumer().await;
    assert_eq!(info["num_ack_pending"], 1, "the message is settled and was not relayed");
}
