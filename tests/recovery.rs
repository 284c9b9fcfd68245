//! Reading from a stream while something goes wrong: servers that stop, consumers and streams
//! that vanish, messages that cannot be read. Whatever the stream has acknowledged is relayed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod support;

use serde_json::json;
use std::time::{Duration, Instant, SystemTime};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::nats::NatsServer;
use support::proxy::Proxy;
use support::relay::Relay;
use support::setup::{Setup, by_hand, header, hpub};
use support::stream::{
    CONSUMER, FAILED, HTTP, JETSTREAM, JetStream, PATIENT, STREAM, complete_and_in_order, number,
    numbers, server, setup,
};
use support::{eventually, signal};

const ERROR: &str = "\"level\":\"ERROR\"";
const WARN: &str = "\"level\":\"WARN\"";
const CREATED: &str = "\"created the consumer\"";
const UNANSWERED: &str = "a pull request was not answered";

fn bodies(endpoint: &Endpoint) -> Vec<String> {
    endpoint.calls().iter().map(|call| String::from_utf8(call.body.to_vec()).unwrap()).collect()
}

// The server

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_costs_no_message_and_no_order() {
    const SUBJECTS: usize = 20;
    let (mut nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let endpoint = Endpoint::start(|_| Reply::ok().after(Duration::from_millis(5))).await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    let load = stream.load(SUBJECTS, Duration::from_millis(2));
    for outage in 1..=3 {
        endpoint.received(endpoint.count() + 100).await;
        nats.kill();
        relay.logged_times("lost the connection to NATS", outage).await;
        nats.restart();
        let line = relay.logged_times("reconnected to NATS", outage).await.pop().unwrap();
        assert!(
            line.contains(WARN)
                && line.contains("the stream kept the messages published in the meantime"),
            "{line}"
        );
    }
    endpoint.received(endpoint.count() + 100).await;
    let messages = load.end().await;
    stream.settled().await;
    complete_and_in_order(&numbers(&endpoint.calls()), messages, SUBJECTS);
    let relayed: Vec<_> =
        stream.messages("RELAYED").await.iter().map(|(_, payload)| number(payload)).collect();
    assert_eq!(complete_and_in_order(&relayed, messages, SUBJECTS), 0, "stored twice");
    assert_eq!((relay.metric("reconnects_total").await, relay.metric("gaps_total").await), (3, 0));
    assert_eq!(
        (relay.lines("lost the connection").len(), relay.lines("reconnected to NATS").len()),
        (3, 3)
    );
    assert!(relay.stop().await.success());
    assert!(relay.lines(ERROR).is_empty(), "{:?}", relay.lines(ERROR));
}

#[tokio::test]
async fn what_is_accepted_while_the_server_is_away_is_relayed_when_it_is_back_and_not_called_again()
{
    let (mut nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let endpoint = Held::start().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP, PATIENT]).await;
    stream.fill(0..30, 10, 0).await;
    endpoint.called(10).await;
    nats.kill();
    relay.logged("cannot reconnect to NATS yet").await;
    endpoint.release();
    relay.logged_times("\"message\":\"answered\"", 10).await;
    assert_eq!(relay.metric("messages_relayed_total").await, 0);
    nats.restart();
    stream.settled().await;
    relay.counted("messages_relayed_total", 30).await;
    let relayed: Vec<_> =
        stream.messages("RELAYED").await.iter().map(|(_, payload)| number(payload)).collect();
    assert_eq!(complete_and_in_order(&relayed, 30, 10), 0);
    assert_eq!(endpoint.subjects().len(), 30, "called again");
}

#[tokio::test]
async fn a_server_that_stands_still_is_asked_again_and_nothing_is_called_twice() {
    let (nats, stream) = server().await;
    let endpoint = Held::start().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP, PATIENT]).await;
    stream.fill(0..30, 10, 0).await;
    endpoint.called(10).await;
    signal(nats.pid(), "STOP");
    // By now the server would have delivered again what nobody has told it about.
    let line = relay.logged(UNANSWERED).await;
    assert!(line.contains(WARN), "{line}");
    endpoint.release();
    relay.logged_times("\"message\":\"answered\"", 10).await;
    signal(nats.pid(), "CONT");
    stream.fill(30..60, 10, 0).await;
    stream.settled().await;
    relay.counted("messages_relayed_total", 60).await;
    assert_eq!(endpoint.subjects().len(), 60, "called again");
    assert_eq!(relay.lines(UNANSWERED).len(), 1);
    assert!(relay.lines(ERROR).is_empty(), "{:?}", relay.lines(ERROR));
}

#[tokio::test]
async fn a_connection_that_is_dead_in_one_direction_is_given_up_and_loses_nothing() {
    for deaf in [false, true] {
        let (nats, stream) = server().await;
        let proxy = Proxy::to(nats.port).await;
        let endpoint = Endpoint::ok().await;
        let relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM, HTTP]).await;
        stream.publish("cms.cache.s0", "0").await;
        stream.settled().await;
        if deaf {
            proxy.silence()
        } else {
            proxy.swallow()
        }
        stream.fill(1..20, 1, 0).await;
        // Two to three of the relay's pings: half a minute.
        stream.settled().await;
        assert_eq!(numbers(&endpoint.calls()), (0..20).collect::<Vec<_>>());
        relay.logged("reconnected to NATS").await;
        assert_eq!(relay.lines("reconnected to NATS").len(), 1);
        relay.counted("messages_relayed_total", 20).await;
    }
}

#[tokio::test]
async fn a_relay_that_is_there_before_jetstream_waits_for_it() {
    let mut nats = NatsServer::with_config("debug: false");
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::spawn(&nats.url(), &endpoint.url(), &[STREAM, HTTP]);
    assert_eq!(relay.exit().await.code(), Some(1), "switched off is not late");
    // A server that is starting.
    nats.kill();
    let mut relay = Relay::spawn(&nats.url(), &endpoint.url(), &[STREAM, HTTP]);
    relay.logged("waiting for NATS").await;
    nats.reconfigure(JETSTREAM);
    nats.restart();
    assert_eq!(relay.exit().await.code(), Some(1), "the stream is missing");
    let stream = JetStream::new(&nats.client().await);
    stream.add("CMS", "cms.cache.>", json!({})).await;
    let _relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    stream.publish("cms.cache.a", "").await;
    endpoint.received(1).await;
}

#[tokio::test]
async fn acknowledgements_that_are_forbidden_are_told_once_and_what_is_settled_is_not_relayed_again()
 {
    let users = |relay: &str| {
        format!(
            "{JETSTREAM}, authorization {{ users: [ {{ user: admin, password: pw }}, \
             {{ user: relay, password: pw, permissions: {{ subscribe: \"_INBOX.>\", publish: {relay} }} }} ] }}"
        )
    };
    let nats = NatsServer::with_config(&users("\">\""));
    let client = nats.client_as("admin", "pw").await;
    let stream = JetStream::new(&client);
    stream.add("CMS", "cms.cache.>", json!({})).await;
    let endpoint = Endpoint::ok().await;
    let variables = [STREAM, HTTP, ("NATS_USER", "relay"), ("NATS_PASS", "pw")];
    let relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    stream.publish("cms.cache.a", "1").await;
    stream.settled().await;
    nats.reload(&users("{ allow: \">\", deny: \"$JS.ACK.>\" }"));
    eventually("the server has read it", || nats.log().contains("Reloaded server configuration"))
        .await;
    stream.publish("cms.cache.a", "2").await;
    let line = relay.logged("may not acknowledge messages").await;
    assert!(line.contains(ERROR) && line.contains("$JS.ACK."), "{line}");
    stream.publish("cms.cache.a", "3").await;
    stream.until("they come again", |info| info["num_redelivered"] == 2).await;
    assert_eq!(bodies(&endpoint), ["1", "2", "3"]);
    nats.reload(&users("\">\""));
    stream.settled().await;
    assert_eq!(bodies(&endpoint), ["1", "2", "3"]);
    assert_eq!(relay.lines("may not acknowledge messages").len(), 1);
}

// The consumer

#[tokio::test]
async fn a_consumer_that_is_removed_is_made_again_and_misses_and_repeats_nothing() {
    let endpoint = Endpoint::ok().await;
    let (setup, stream) = setup(&endpoint.url(), &[]).await;
    stream.fill(0..20, 5, 0).await;
    stream.settled().await;
    for round in 1..=2 {
        stream.remove_consumer().await;
        // Published to a stream that nobody reads.
        stream.fill(round * 20..round * 20 + 20, 5, 0).await;
        endpoint.received(20 + round * 20).await;
        stream.settled().await;
        assert_eq!(
            complete_and_in_order(&numbers(&endpoint.calls()), 20 + round * 20, 5),
            0,
            "called again"
        );
        // Once at the start.
        assert_eq!(setup.relay.lines(CREATED).len(), 1 + round);
    }
    assert_eq!(stream.consumer().await["config"]["ack_wait"], 3_000_000_000_u64);
    setup.relay.counted("messages_relayed_total", 60).await;
}

#[tokio::test]
async fn a_consumer_that_is_removed_while_messages_are_worked_on_misses_and_repeats_nothing() {
    let endpoint = Held::start().await;
    let (setup, stream) = setup(&endpoint.url(), &[PATIENT]).await;
    stream.publish("cms.cache.first", "").await;
    endpoint.called(1).await;
    stream.fill(0..20, 5, 0).await;
    endpoint.called(6).await;
    stream.remove_consumer().await;
    stream.fill(20..40, 5, 0).await;
    setup.relay.logged_times(CREATED, 2).await;
    endpoint.release();
    stream.settled().await;
    setup.relay.counted("messages_relayed_total", 41).await;
    assert_eq!(endpoint.subjects().len(), 41, "called again");
    assert_eq!(setup.relay.lines(CREATED).len(), 2);
}

#[tokio::test]
async fn a_consumer_that_is_removed_while_the_relay_is_cut_off_misses_nothing() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    stream.fill(0..20, 5, 0).await;
    stream.settled().await;
    proxy.close();
    relay.logged("lost the connection to NATS").await;
    stream.fill(20..30, 5, 0).await;
    stream.remove_consumer().await;
    stream.fill(30..40, 5, 0).await;
    proxy.open();
    endpoint.received(40).await;
    stream.settled().await;
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), 40, 5), 0, "called again");
}

#[tokio::test]
async fn a_consumer_that_is_changed_while_it_is_used_keeps_its_messages() {
    let endpoint = Endpoint::ok().await;
    let (setup, stream) = setup(&endpoint.url(), &[]).await;
    stream.fill(0..20, 5, 0).await;
    stream.settled().await;
    let mut config = stream.consumer().await["config"].clone();
    config["description"] = json!("changed by hand");
    config["max_ack_pending"] = json!(2);
    let update = json!({ "stream_name": "CMS", "config": config, "action": "update" });
    stream.call(&format!("CONSUMER.CREATE.CMS.{CONSUMER}.cms.cache.>"), update).await;
    stream.fill(20..60, 5, 0).await;
    endpoint.received(60).await;
    stream.settled().await;
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), 60, 5), 0);
    assert_eq!(setup.relay.metric("messages_redelivered_total").await, 0);
}

#[tokio::test]
async fn a_paused_consumer_is_told_once_and_goes_on_when_it_is_resumed() {
    let endpoint = Held::start().await;
    let (setup, stream) = setup(&endpoint.url(), &[PATIENT]).await;
    stream.publish("cms.cache.held", "").await;
    endpoint.called(1).await;
    let pause =
        |until: SystemTime| json!({ "pause_until": humantime::format_rfc3339(until).to_string() });
    let request = format!("CONSUMER.PAUSE.CMS.{CONSUMER}");
    stream.call(&request, pause(SystemTime::now() + Duration::from_secs(3600))).await;
    let line = setup.relay.logged("the consumer is paused").await;
    assert!(line.contains(WARN) && line.contains("nats consumer resume"), "{line}");
    stream.fill(0..10, 5, 0).await;
    // What had been delivered is finished meanwhile.
    endpoint.release();
    stream.unsettled(0).await;
    let info = stream.consumer().await;
    assert_eq!((&info["num_pending"], &info["paused"]), (&json!(10), &json!(true)));
    assert_eq!(endpoint.subjects().len(), 1);
    setup.relay.readyz(200).await;

    stream.call(&request, json!({})).await;
    stream.settled().await;
    setup.relay.logged("the consumer is resumed").await;
    setup.relay.counted("messages_relayed_total", 11).await;
    assert_eq!(
        (endpoint.subjects().len(), setup.relay.lines("the consumer is paused").len()),
        (11, 1)
    );
    assert!(setup.relay.lines(ERROR).is_empty(), "{:?}", setup.relay.lines(ERROR));
}

// The stream

#[tokio::test]
async fn a_stream_that_is_removed_and_made_again_is_read_from_its_first_message() {
    let endpoint = Endpoint::ok().await;
    let (setup, stream) = setup(&endpoint.url(), &[]).await;
    stream.fill(0..20, 5, 0).await;
    stream.settled().await;
    stream.remove("CMS").await;
    stream.add("CMS", "cms.cache.>", json!({})).await;
    stream.fill(20..40, 5, 0).await;
    endpoint.received(40).await;
    stream.settled().await;
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), 40, 5), 0);
    let line = setup.relay.logged("another stream took the place").await;
    assert!(line.contains(WARN), "{line}");
    setup.relay.counted("messages_relayed_total", 40).await;
}

#[tokio::test]
async fn what_is_in_work_of_a_removed_stream_settles_nothing_of_the_one_in_its_place() {
    let endpoint = Held::start().await;
    let (setup, stream) = setup(&endpoint.url(), &[PATIENT]).await;
    stream.fill(0..5, 5, 0).await;
    endpoint.called(5).await;
    stream.remove("CMS").await;
    stream.add("CMS", "cms.cache.>", json!({})).await;
    // The same sequences, of other messages: one behind each.
    stream.fill(5..10, 5, 0).await;
    setup.relay.logged("another stream took the place").await;
    stream.unsettled(5).await;
    endpoint.release();
    endpoint.called(10).await;
    stream.settled().await;
    setup.relay.counted("messages_relayed_total", 10).await;
    assert_eq!(endpoint.subjects().len(), 10);
}

#[tokio::test]
async fn a_stream_that_the_relay_may_make_is_made_again() {
    let nats = NatsServer::with_config(JETSTREAM);
    let endpoint = Endpoint::ok().await;
    let setup = Setup::on(nats, &endpoint.url(), &[STREAM, ("NATS_STREAM_CREATE", "true")]).await;
    let stream = JetStream::new(&setup.client);
    stream.publish("cms.cache.s0", "0").await;
    stream.settled().await;
    stream.remove("CMS").await;
    setup.relay.logged_times("created the missing stream", 2).await;
    stream.publish("cms.cache.s0", "1").await;
    endpoint.received(2).await;
    assert_eq!(numbers(&endpoint.calls()), [0, 1]);
}

#[tokio::test]
async fn a_stream_that_is_missing_for_a_while_is_told_once_and_read_when_it_is_there() {
    let endpoint = Endpoint::ok().await;
    let (setup, stream) = setup(&endpoint.url(), &[]).await;
    stream.fill(0..20, 5, 0).await;
    stream.settled().await;
    stream.remove("CMS").await;
    let line = setup.relay.logged("cannot read from the stream").await;
    assert!(line.contains(ERROR) && line.contains("CMS"), "{line}");
    // A few more looks that find nothing.
    support::stream::let_pass(Duration::from_secs(4)).await;
    stream.add("CMS", "cms.cache.>", json!({})).await;
    stream.fill(20..40, 5, 0).await;
    endpoint.received(40).await;
    stream.settled().await;
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), 40, 5), 0);
    setup.relay.logged("reading from the stream again").await;
    assert_eq!(setup.relay.lines("cannot read from the stream").len(), 1);
}

#[tokio::test]
async fn a_stream_that_is_purged_under_waiting_messages_holds_nothing_up() {
    let endpoint = Held::start().await;
    let (setup, stream) = setup(&endpoint.url(), &[PATIENT]).await;
    stream.fill(0..20, 5, 0).await;
    endpoint.called(5).await;
    stream.call("STREAM.PURGE.CMS", json!({})).await;
    endpoint.release();
    stream.fill(20..40, 5, 0).await;
    stream.settled().await;
    // What the relay had is relayed all the same, and nothing comes twice.
    setup.relay.counted("messages_relayed_total", 40).await;
    assert_eq!(endpoint.subjects().len(), 40);
}

// Messages that the client library cannot read

/// An `HPUB` command with exactly these header bytes.
fn publish_raw(subject: &str, headers: &[u8], payload: &str) -> Vec<u8> {
    let sizes = format!("HPUB {subject} {} {}\r\n", headers.len(), headers.len() + payload.len());
    [sizes.as_bytes(), headers, payload.as_bytes(), b"\r\n"].concat()
}

const POISONS: [&[u8]; 3] = [b"bad name: x", b"name: \xff\xfe", b"no colon at all"];

fn poisoned(line: &[u8]) -> Vec<u8> {
    [b"NATS/1.0\r\n", line, b"\r\n\r\n"].concat()
}

#[tokio::test]
async fn a_message_that_cannot_be_read_fails_within_seconds_and_delays_no_other() {
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) = setup(&endpoint.url(), &[]).await;
    for (index, poison) in POISONS.iter().enumerate() {
        let (before, after) = (format!("{index} before"), format!("{index} after"));
        stream.publish("cms.cache.a", before.clone()).await;
        assert_eq!(setup.relayed().await.payload, before);
        // Or it could be published again in the next connection.
        stream.settled().await;
        let sequence = stream.stream("CMS").await["state"]["last_seq"].as_u64().unwrap() + 1;
        let began = Instant::now();
        setup.publish_by_hand(&publish_raw("cms.cache.a", &poisoned(poison), "poisoned")).await;
        stream.publish("cms.cache.a", after.clone()).await;
        stream.publish("cms.cache.b", after.clone()).await;

        let letter = setup.failed().await;
        println!("{} is failed after {:?}", String::from_utf8_lossy(poison), began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert_eq!(
            (letter.subject.as_str(), &letter.payload[..]),
            ("failed.cache.a", &b"poisoned"[..])
        );
        assert_eq!(
            (header(&letter, "Relay-Reason"), header(&letter, "Relay-Subject")),
            ("unreadable", "cms.cache.a")
        );
        assert!(
            header(&letter, "Relay-Id").starts_with(&format!("msg_CMS_{sequence}_")),
            "{}",
            header(&letter, "Relay-Id")
        );
        let relayed = setup.relayed_by_subject(2).await;
        let relayed =
            relayed.iter().map(|message| (message.subject.as_str(), &message.payload[..]));
        assert_eq!(
            relayed.collect::<Vec<_>>(),
            [("relayed.cache.a", after.as_bytes()), ("relayed.cache.b", after.as_bytes())]
        );
        stream.settled().await;
    }
    assert_eq!(setup.relay.lines("\"not relayed\"").len(), 3);
    setup.relay.counted("messages_failed_total{reason=\"unreadable\"}", 3).await;
    setup.end().await;
    assert_eq!(endpoint.count(), 9, "called again");
}

#[tokio::test]
async fn many_messages_that_cannot_be_read_among_others_fail_and_the_others_keep_their_order() {
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) = setup(&endpoint.url(), &[]).await;
    let mut commands = Vec::new();
    for number in 0..60 {
        let subject = format!("cms.cache.s{}", number % 5);
        match number % 6 {
            5 => commands.extend(publish_raw(
                &subject,
                &poisoned(POISONS[number % 3]),
                &number.to_string(),
            )),
            _ => commands.extend(hpub(&subject, &["X-Fine: yes"], number.to_string().as_bytes())),
        }
    }
    let began = Instant::now();
    setup.publish_by_hand(&commands).await;
    let mut relayed: Vec<Vec<usize>> = vec![Vec::new(); 5];
    for _ in 0..50 {
        let number = number(std::str::from_utf8(&setup.relayed().await.payload).unwrap());
        relayed[number % 5].push(number);
    }
    assert!(relayed.iter().all(|numbers| numbers.is_sorted()), "{relayed:?}");
    for _ in 0..10 {
        let letter = setup.failed().await;
        assert_eq!(header(&letter, "Relay-Reason"), "unreadable");
        assert_eq!(number(std::str::from_utf8(&letter.payload).unwrap()) % 6, 5);
    }
    println!("10 unreadable messages among 50 are got past in {:?}", began.elapsed());
    stream.settled().await;
    setup.end().await;
    assert_eq!(endpoint.count(), 50, "called again");
}

#[tokio::test]
async fn a_first_message_that_cannot_be_read_does_not_stop_a_relay_that_starts() {
    for share in ["false", "true"] {
        let (nats, stream) = server().await;
        let endpoint = Endpoint::ok().await;
        let idle = Setup::on(nats, &endpoint.url(), &[STREAM]).await;
        let Setup { mut relay, client, relayed, failed, nats } = idle;
        assert!(relay.stop().await.success());
        stream.remove_consumer().await;
        let variables =
            [STREAM, HTTP, FAILED, ("NATS_DELIVER", "all"), ("NATS_REPLICAS_SHARE", share)];
        let mut setup = Setup { relay, client, relayed, failed, nats };
        setup.publish_by_hand(&publish_raw("cms.cache.a", &poisoned(POISONS[0]), "poisoned")).await;
        stream.publish("cms.cache.a", "1").await;
        let began = Instant::now();
        setup.relay = Relay::start(&setup.nats.url(), &endpoint.url(), &variables).await;
        assert_eq!(header(&setup.failed().await, "Relay-Reason"), "unreadable");
        assert_eq!(setup.relayed().await.payload, "1");
        println!("share {share}: got past in {:?}", began.elapsed());
        stream.settled().await;
        setup.relay.readyz(200).await;
        setup.end().await;
    }
}

#[tokio::test]
async fn without_a_failed_subject_what_cannot_be_read_is_told_and_terminated() {
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) = setup(&endpoint.url(), &[("NATS_FAILED_SUBJECT_PREFIX", "")]).await;
    setup.publish_by_hand(&publish_raw("cms.cache.a", &poisoned(POISONS[1]), "poisoned")).await;
    stream.publish("cms.cache.a", "1").await;
    assert_eq!(setup.relayed().await.payload, "1");
    stream.settled().await;
    let told = setup.relay.lines("\"not relayed\"");
    assert!(
        told.len() == 1
            && told[0].contains(ERROR)
            && told[0].contains("unreadable")
            && told[0].contains("cms.cache.a"),
        "{told:?}"
    );
}

const BLOCKS: [&[u8]; 28] = [
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\nA:b\r\n\r\n",
    b"NATS/1.0\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nA: b\rc\r\n\r\n",
    b"NATS/1.0\r\nA: b\nc\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n folded\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n fol\rded\r\n\r\n",
    b"NATS/1.0\r\n starts folded\r\n\r\n",
    b"NATS/1.0\r\n starts: folded\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n\r\n folded: late\r\n\r\n",
    b"NATS/1.0\r\nA: \0\r\n\r\n",
    b"NATS/1.0\r\nA\0: b\r\n\r\n",
    b"NATS/1.0\r\nA: \xc3\xa4\r\n\r\n",
    b"NATS/1.0\r\n\xc3\xa4: b\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 many\r\n\r\n",
    b"NATS/1.0\t503\tGone\r\n\r\n",
    b"NATS/1.0x\r\nA: b\r\n\r\n",
    b"NATS/2.0\r\nA: b\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n",
    b"NATS/1.0\r\n",
    b"NATS/1.0",
    b"NATS/1.0\r\nNats-Pin-Id: mine\r\n\r\n",
    b"\r\n\r\n",
    b"x",
];

#[tokio::test]
async fn no_header_bytes_stop_a_relay() {
    any_header_bytes("false").await;
}

#[tokio::test]
async fn no_header_bytes_stop_a_relay_that_shares() {
    any_header_bytes("true").await;
}

/// Whatever a publisher makes of the headers, the message is relayed or fails, and the next one comes.
async fn any_header_bytes(share: &str) {
    let endpoint = Endpoint::ok().await;
    let (mut setup, stream) = setup(&endpoint.url(), &[("NATS_REPLICAS_SHARE", share)]).await;
    let mut commands = Vec::new();
    for (index, block) in BLOCKS.iter().enumerate() {
        commands.extend(publish_raw("cms.cache.a", block, &format!("{index}")));
        commands.extend(hpub("cms.cache.a", &["X-Fine: yes"], format!("after {index}").as_bytes()));
    }
    let began = Instant::now();
    setup.publish_by_hand(&commands).await;
    // In the order of the stream, and each follower among them.
    let (mut relayed, mut followers) = (Vec::new(), 0);
    while followers < BLOCKS.len() {
        let message = setup.relayed().await;
        match std::str::from_utf8(&message.payload).unwrap().strip_prefix("after ") {
            Some(follower) => {
                assert_eq!(follower.parse(), Ok(followers));
                followers += 1;
            }
            None => relayed.push(number(std::str::from_utf8(&message.payload).unwrap())),
        }
    }
    let elapsed = began.elapsed();
    for (index, block) in BLOCKS.iter().enumerate().filter(|(index, _)| !relayed.contains(index)) {
        let letter = setup.failed().await;
        let shown = String::from_utf8_lossy(block);
        assert_eq!(
            (header(&letter, "Relay-Reason"), &letter.payload[..]),
            ("unreadable", index.to_string().as_bytes()),
            "{shown:?}"
        );
        println!("unreadable: {shown:?}");
    }
    println!(
        "share {share}: past {} of {} in {elapsed:?}",
        BLOCKS.len() - relayed.len(),
        BLOCKS.len()
    );
    stream.settled().await;
    setup.end().await;
}

#[tokio::test]
async fn a_subject_that_cannot_be_read_fails_and_delays_no_other() {
    let (nats, stream) = server().await;
    stream
        .add("OUT", "failed.cache.>", json!({ "subjects": ["failed.cache.>", "relayed.cache.>"] }))
        .await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP, FAILED]).await;
    // White space to the client library, and none to the server.
    for subject in ["cms.cache.a\u{a0}b", "cms.cache.\u{2003}", "cms.cache.a\u{b}b"] {
        by_hand(nats.port, format!("PUB {subject} 8\r\npoisoned\r\n").as_bytes()).await;
        stream.publish("cms.cache.a", "1").await;
    }
    endpoint.received(3).await;
    stream.settled().await;
    relay.counted("messages_failed_total{reason=\"unreadable\"}", 3).await;
    let letters = stream
        .messages("OUT")
        .await
        .into_iter()
        .filter(|(_, payload)| payload == "poisoned")
        .count();
    assert_eq!(letters, 3);
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn an_unreadable_message_that_the_failed_subject_will_not_have_delays_no_other() {
    let (nats, stream) = server().await;
    stream.add("FAILED", "failed.cache.>", json!({ "max_msgs": 1, "discard": "new" })).await;
    stream.publish("failed.cache.before", "").await;
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[STREAM, HTTP]).await;
    setup.publish_by_hand(&publish_raw("cms.cache.a", &poisoned(POISONS[0]), "poisoned")).await;
    setup.relay.logged("\"not relayed\"").await;
    stream.publish("cms.cache.b", "1").await;
    assert_eq!(setup.relayed().await.payload, "1");
    setup.relay.logged("not published on the failed subject").await;
    stream.unsettled(1).await;
    stream.change("FAILED", json!({ "max_msgs": 10 })).await;
    stream.settled().await;
    assert_eq!(stream.messages("FAILED").await[1].1, "poisoned");
    assert_eq!(setup.relay.lines("\"not relayed\"").len(), 1);
}

#[tokio::test]
async fn an_unreadable_message_and_a_cut_connection_at_once_lose_nothing() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Held::start().await;
    let mut setup =
        Setup::on(nats, &endpoint.url(), &[STREAM, HTTP, PATIENT, ("NATS_HOST", &proxy.url())])
            .await;
    stream.fill(0..10, 5, 0).await;
    endpoint.called(5).await;
    setup.publish_by_hand(&publish_raw("cms.cache.s0", &poisoned(POISONS[2]), "poisoned")).await;
    stream.fill(10..20, 5, 0).await;
    proxy.cut();
    endpoint.release();
    assert_eq!(setup.failed().await.payload, "poisoned");
    stream.settled().await;
    let mut relayed = Vec::new();
    for _ in 0..20 {
        relayed.push(number(std::str::from_utf8(&setup.relayed().await.payload).unwrap()));
    }
    assert_eq!(complete_and_in_order(&relayed, 20, 5), 0);
    eventually("each is called once", || endpoint.subjects().len() == 20).await;
    setup.relay.counted("messages_relayed_total", 20).await;
}
