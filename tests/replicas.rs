//! Several relays on one consumer: one works and the others stand by, or all share the work.
//! Whatever happens to one of them, nothing is lost, and each subject keeps its order.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};
use support::endpoint::{Call, Endpoint, Reply};
use support::nats::NatsServer;
use support::proxy::Proxy;
use support::relay::{Relay, field};
use support::stream::{
    CONSUMER, HTTP, JetStream, Load, PATIENT, STREAM, complete_and_in_order, number, numbers,
    server, until_true,
};
use support::{eventually, signal};

use serde_json::json;

const ERROR: &str = "\"level\":\"ERROR\"";
const WORKS: &str = "this replica is the one that works";
const STANDS_BY: &str = "standing by: another replica works";

/// Relays on one consumer. Each tells the endpoint its name.
struct Replicas {
    nats: String,
    endpoint: String,
    variables: Vec<(String, String)>,
    started: usize,
    relays: HashMap<String, Relay>,
}

impl Replicas {
    async fn start(
        count: usize,
        nats: &str,
        endpoint: &Endpoint,
        variables: &[(&str, &str)],
    ) -> Self {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut replicas = Self {
            nats: nats.to_owned(),
            endpoint: endpoint.url(),
            variables,
            started: 0,
            relays: HashMap::new(),
        };
        for _ in 0..count {
            replicas.add().await;
        }
        replicas
    }

    /// Starts one more, and returns its name.
    async fn add(&mut self) -> String {
        let nats = self.nats.clone();
        self.add_through(&nats).await
    }

    async fn add_through(&mut self, nats: &str) -> String {
        let name = format!("r{}", self.started);
        self.started += 1;
        let header = format!("x-replica={name}");
        let own: Vec<_> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let variables = [&[STREAM, HTTP, ("WEBHOOK_HEADERS", &header)][..], &own].concat();
        let relay = Relay::start(nats, &self.endpoint, &variables).await;
        self.relays.insert(name.clone(), relay);
        name
    }

    /// Waits until exactly one works, and returns its name.
    async fn active(&self) -> String {
        let active = std::cell::RefCell::new(Vec::new());
        until_true("one works", || async {
            let mut found = Vec::new();
            for (name, relay) in &self.relays {
                if relay.metric("active").await == 1 {
                    found.push(name.clone());
                }
            }
            *active.borrow_mut() = found;
            active.borrow().len() == 1
        })
        .await;
        active.into_inner().remove(0)
    }

    /// Ends one as a crash would. Returns when.
    fn kill(&mut self, name: &str) -> Instant {
        let relay = self.relays.remove(name).unwrap();
        signal(relay.pid(), "KILL");
        Instant::now()
    }

    /// Ends one with SIGTERM, and waits for it.
    async fn stop(&mut self, name: &str) -> Relay {
        let mut relay = self.relays.remove(name).unwrap();
        assert!(relay.stop().await.success());
        relay
    }

    async fn stop_all(mut self) {
        for name in self.relays.keys().cloned().collect::<Vec<_>>() {
            self.stop(&name).await;
        }
    }
}

fn replica(call: &Call) -> &str {
    call.header("x-replica")
}

/// How long after `since` another one than `name` called first.
async fn taken_over(endpoint: &Endpoint, name: &str, known: &[String], since: Instant) -> Duration {
    let first = || {
        let calls = endpoint.calls();
        calls
            .iter()
            .find(|call| {
                call.at > since
                    && replica(call) != name
                    && !known.contains(&replica(call).to_owned())
            })
            .map(|call| call.at)
    };
    eventually("another takes over", || first().is_some()).await;
    first().unwrap() - since
}

/// An endpoint that takes a moment, each time another one.
async fn unsteady() -> Endpoint {
    let random = std::sync::Mutex::new(fastrand::Rng::with_seed(11));
    Endpoint::start(move |_| {
        Reply::ok().after(Duration::from_millis(random.lock().unwrap().u64(0..20)))
    })
    .await
}

/// An endpoint where the first replica's calls hang.
async fn first_hangs() -> Endpoint {
    Endpoint::start(|call| match replica(call) {
        "r0" => Reply::ok().after(Duration::from_secs(3600)),
        _ => Reply::ok(),
    })
    .await
}

async fn relayed_numbers(stream: &JetStream) -> Vec<usize> {
    stream.messages("RELAYED").await.iter().map(|(_, payload)| number(payload)).collect()
}

/// Replicas and more and more messages, of which what is relayed is kept.
struct UnderLoad {
    nats: NatsServer,
    stream: JetStream,
    endpoint: Endpoint,
    replicas: Replicas,
    load: Load,
    subjects: usize,
}

impl UnderLoad {
    async fn start(count: usize, subjects: usize, variables: &[(&str, &str)]) -> Self {
        let (nats, stream) = server().await;
        stream.add("RELAYED", "relayed.cache.>", json!({})).await;
        let endpoint = unsteady().await;
        let replicas = Replicas::start(count, &nats.url(), &endpoint, variables).await;
        let load = stream.load(subjects, Duration::from_millis(5));
        Self { nats, stream, endpoint, replicas, load, subjects }
    }

    /// Waits for a hundred more calls.
    async fn goes_on(&self) {
        self.endpoint.received(self.endpoint.count() + 100).await;
    }

    /// Ends it when all is relayed, with nothing lost, stored twice, or out of order. Returns how many were called again.
    async fn end(self) -> usize {
        self.goes_on().await;
        let messages = self.load.end().await;
        self.stream.settled().await;
        let repeated =
            complete_and_in_order(&numbers(&self.endpoint.calls()), messages, self.subjects);
        println!("{repeated} of {messages} were called again");
        assert_eq!(
            complete_and_in_order(&relayed_numbers(&self.stream).await, messages, self.subjects),
            0,
            "stored twice"
        );
        self.replicas.active().await;
        self.replicas.stop_all().await;
        repeated
    }
}

// One works

#[tokio::test]
async fn one_of_three_works_and_two_stand_by() {
    let (nats, stream) = server().await;
    let endpoint = unsteady().await;
    let replicas = Replicas::start(3, &nats.url(), &endpoint, &[]).await;
    stream.fill(0..300, 20, 0).await;
    endpoint.received(300).await;
    stream.settled().await;
    let active = replicas.active().await;
    let calls = endpoint.calls();
    assert!(calls.iter().all(|call| replica(call) == active));
    assert_eq!(complete_and_in_order(&numbers(&calls), 300, 20), 0);
    for (name, relay) in &replicas.relays {
        let (expected, received) = if *name == active { (WORKS, 300) } else { (STANDS_BY, 0) };
        relay.logged(expected).await;
        assert_eq!(relay.metric("messages_received_total").await, received, "{name}");
        relay.readyz(200).await;
    }
    // It stays so while there is nothing to do, for longer than a silent one keeps its turn.
    support::stream::let_pass(Duration::from_secs(5)).await;
    stream.fill(300..320, 20, 0).await;
    stream.settled().await;
    assert!(endpoint.calls().iter().all(|call| replica(call) == active));
    for (name, relay) in &replicas.relays {
        let said = (relay.lines(WORKS).len(), relay.lines(STANDS_BY).len());
        assert!(if *name == active { said.0 == 1 } else { said == (0, 1) }, "{name} said {said:?}");
    }
    replicas.stop_all().await;
}

#[tokio::test]
async fn one_that_is_killed_is_replaced_within_seconds_and_nothing_is_lost_or_out_of_order() {
    let mut all = UnderLoad::start(3, 20, &[]).await;
    let (mut gone, mut times) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        all.goes_on().await;
        let active = all.replicas.active().await;
        let killed = all.replicas.kill(&active);
        gone.push(active.clone());
        let took = taken_over(&all.endpoint, &active, &gone, killed).await;
        assert!(took < Duration::from_secs(30), "{took:?}");
        times.push(took);
        all.replicas.add().await;
    }
    println!("taken over after kill -9 under load within {times:?}");
    all.end().await;
}

#[tokio::test]
async fn one_that_is_killed_while_there_is_nothing_to_do_is_replaced_within_seconds() {
    let (nats, stream) = server().await;
    let endpoint = Endpoint::ok().await;
    let mut replicas = Replicas::start(3, &nats.url(), &endpoint, &[]).await;
    stream.publish("cms.cache.s0", "0").await;
    stream.settled().await;
    let mut gone = Vec::new();
    for number in 1..=2 {
        let active = replicas.active().await;
        let killed = replicas.kill(&active);
        gone.push(active.clone());
        stream.publish("cms.cache.s0", number.to_string()).await;
        let took = taken_over(&endpoint, &active, &gone, killed).await;
        println!("taken over after kill -9 in silence within {took:?}");
        assert!(took < Duration::from_secs(30), "{took:?}");
        // Or the next one to be killed would still have it to do.
        stream.settled().await;
    }
    assert_eq!(numbers(&endpoint.calls()), [0, 1, 2]);
}

#[tokio::test]
async fn one_that_is_killed_with_all_its_room_taken_is_replaced_within_seconds() {
    let (nats, stream) = server().await;
    let endpoint = first_hangs().await;
    let mut replicas =
        Replicas::start(1, &nats.url(), &endpoint, &[PATIENT, ("NATS_PENDING_MESSAGES", "20")])
            .await;
    stream.fill(0..100, 5, 0).await;
    replicas.relays["r0"].counted("messages_received_total", 20).await;
    endpoint.received(5).await;
    replicas.add().await;
    let killed = replicas.kill("r0");
    let took = taken_over(&endpoint, "r0", &[], killed).await;
    println!("taken over with all room taken within {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    stream.settled().await;
    assert_eq!(complete_and_in_order(&numbers(&endpoint.calls()), 100, 5), 5);
}

#[tokio::test]
async fn one_that_is_stopped_is_replaced_at_once_and_nothing_is_repeated() {
    let mut all = UnderLoad::start(3, 20, &[]).await;
    let mut gone = Vec::new();
    for _ in 0..2 {
        all.goes_on().await;
        let active = all.replicas.active().await;
        let told = Instant::now();
        let relay = all.replicas.stop(&active).await;
        let ended = told.elapsed();
        gone.push(active.clone());
        let took = taken_over(&all.endpoint, &active, &gone, told).await;
        println!("taken over {took:?} after SIGTERM, whose process ended after {ended:?}");
        // One that is merely gone keeps its turn for more than two seconds.
        assert!(took < ended + Duration::from_millis(1500), "{took:?} after SIGTERM");
        assert!(
            relay.lines(ERROR).is_empty() && relay.lines("left in the stream").is_empty(),
            "{:?}",
            relay.log()
        );
    }
    assert_eq!(all.end().await, 0, "called again");
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_and_repeats_nothing() {
    let mut all = UnderLoad::start(3, 30, &[]).await;
    for name in ["r0", "r1", "r2"] {
        all.goes_on().await;
        all.replicas.stop(name).await;
        all.replicas.add().await;
    }
    // Once more, beginning with the one that works.
    for _ in 0..3 {
        all.goes_on().await;
        let active = all.replicas.active().await;
        all.replicas.stop(&active).await;
        all.replicas.add().await;
    }
    assert_eq!(all.end().await, 0, "called again");
}

#[tokio::test]
async fn what_is_unfinished_at_the_end_of_the_grace_is_relayed_by_another_in_order() {
    for share in ["false", "true"] {
        let (nats, stream) = server().await;
        let endpoint = first_hangs().await;
        let variables = [PATIENT, ("SHUTDOWN_GRACE", "500ms"), ("NATS_REPLICAS_SHARE", share)];
        let mut replicas = Replicas::start(1, &nats.url(), &endpoint, &variables).await;
        stream.fill(0..30, 3, 0).await;
        endpoint.received(3).await;
        replicas.relays["r0"].counted("messages_received_total", 30).await;
        replicas.add().await;
        let told = Instant::now();
        let first = replicas.stop("r0").await;
        println!("share {share}: ended {:?} after SIGTERM with a grace of 500ms", told.elapsed());
        let line = first.lines("left in the stream");
        assert!(line.len() == 1 && field(&line[0], "messages") == "30", "{:?}", first.log());
        assert!(first.lines(ERROR).is_empty(), "{:?}", first.lines(ERROR));
        stream.settled().await;
        let calls = endpoint.calls();
        let (hung, relayed): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|call| replica(call) == "r0");
        assert_eq!((hung.len(), relayed.len()), (3, 30));
        if share == "false" {
            assert_eq!(complete_and_in_order(&numbers(&relayed), 30, 3), 0);
        }
        for call in hung {
            let again = relayed.iter().find(|again| again.body == call.body).unwrap();
            assert_eq!(again.header("webhook-id"), call.header("webhook-id"));
        }
        println!("share {share}: all relayed {:?} after SIGTERM", told.elapsed());
        // Where replicas share, what is not given back comes again after ten.
        assert!(told.elapsed() < Duration::from_secs(6), "{:?} after SIGTERM", told.elapsed());
        replicas.stop_all().await;
    }
}

#[tokio::test]
async fn one_that_is_cut_off_is_replaced_and_stands_by_when_it_is_back() {
    const SUBJECTS: usize = 10;
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.cache.>", json!({})).await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = unsteady().await;
    let mut replicas = Replicas::start(0, &nats.url(), &endpoint, &[]).await;
    let cut_off = replicas.add_through(&proxy.url()).await;
    stream.fill(0..10, SUBJECTS, 0).await;
    stream.settled().await;
    let other = replicas.add().await;
    let load = stream.load_from(10, SUBJECTS, Duration::from_millis(5));
    endpoint.received(100).await;
    let cut = Instant::now();
    proxy.close();
    let took = taken_over(&endpoint, &cut_off, &[], cut).await;
    println!("taken over from one that was cut off within {took:?}");
    replicas.relays[&cut_off].readyz(503).await;
    replicas.relays[&other].logged(WORKS).await;
    proxy.open();
    replicas.relays[&cut_off].logged("reconnected to NATS").await;
    replicas.relays[&cut_off].readyz(200).await;
    replicas.relays[&cut_off].logged(STANDS_BY).await;
    assert_eq!(replicas.active().await, other);
    endpoint.received(endpoint.count() + 100).await;
    let messages = load.end().await;
    stream.settled().await;
    complete_and_in_order(&numbers(&endpoint.calls()), messages, SUBJECTS);
    assert_eq!(
        complete_and_in_order(&relayed_numbers(&stream).await, messages, SUBJECTS),
        0,
        "stored twice"
    );
    replicas.stop_all().await;
}

#[tokio::test]
async fn one_that_stands_still_is_replaced_and_does_no_harm_when_it_goes_on() {
    let all = UnderLoad::start(2, 10, &[]).await;
    all.goes_on().await;
    let active = all.replicas.active().await;
    let relay = &all.replicas.relays[&active];
    let stopped = Instant::now();
    signal(relay.pid(), "STOP");
    let took = taken_over(&all.endpoint, &active, &[], stopped).await;
    println!("taken over from one that stands still within {took:?}");
    all.goes_on().await;
    signal(relay.pid(), "CONT");
    relay.logged(STANDS_BY).await;
    assert_ne!(all.replicas.active().await, active);
    all.end().await;
}

#[tokio::test]
async fn one_that_has_lost_its_turn_gives_back_what_it_does_not_call_for() {
    let (nats, stream) = server().await;
    let endpoint = Endpoint::start(|call| match replica(call) {
        "r0" => Reply::status(503).header("retry-after", "300"),
        _ => Reply::ok(),
    })
    .await;
    let mut replicas = Replicas::start(1, &nats.url(), &endpoint, &[]).await;
    stream.fill(0..30, 5, 0).await;
    endpoint.answered(5).await;
    replicas.relays["r0"].counted("messages_received_total", 30).await;
    let next = replicas.add().await;
    // Its turn passes to the other while it still holds everything.
    let first = replicas.relays["r0"].pid();
    signal(first, "STOP");
    stream.call(&format!("CONSUMER.UNPIN.CMS.{CONSUMER}"), json!({ "group": "relay" })).await;
    stream.publish("cms.cache.s0", "30").await;
    stream
        .until("another works", |info| info["priority_groups"][0]["pinned_client_id"].is_string())
        .await;
    signal(first, "CONT");
    replicas.relays[&next].logged(WORKS).await;
    stream.settled().await;
    let relayed: Vec<_> =
        endpoint.calls().into_iter().filter(|call| replica(call) == next).collect();
    assert_eq!(complete_and_in_order(&numbers(&relayed), 31, 5), 0);
    replicas.relays["r0"].counted("messages_pending", 0).await;
    assert!(
        replicas.relays["r0"].lines(ERROR).is_empty(),
        "{:?}",
        replicas.relays["r0"].lines(ERROR)
    );
    replicas.stop_all().await;
}

#[tokio::test]
async fn a_consumer_that_is_removed_under_three_replicas_loses_nothing_and_no_order() {
    let all = UnderLoad::start(3, 10, &[]).await;
    for _ in 0..2 {
        all.goes_on().await;
        all.stream.remove_consumer().await;
    }
    all.goes_on().await;
    // The new consumer may choose another one than the one that has messages in work.
    all.end().await;
}

#[tokio::test]
async fn a_server_that_is_killed_under_three_replicas_costs_nothing() {
    let mut all = UnderLoad::start(3, 10, &[]).await;
    for _ in 0..2 {
        all.goes_on().await;
        all.nats.kill();
        all.nats.restart();
    }
    all.end().await;
}

// All work

#[tokio::test]
async fn replicas_that_share_all_work_and_nothing_is_repeated() {
    const MESSAGES: usize = 600;
    let (nats, stream) = server().await;
    let endpoint = Endpoint::start(|_| Reply::ok().after(Duration::from_millis(20))).await;
    let share = [("NATS_REPLICAS_SHARE", "true"), ("NATS_PENDING_MESSAGES", "20")];
    let replicas = Replicas::start(3, &nats.url(), &endpoint, &share).await;
    stream.fill(0..MESSAGES, MESSAGES, 0).await;
    stream.settled().await;
    let calls = endpoint.calls();
    assert_eq!(complete_and_in_order(&numbers(&calls), MESSAGES, MESSAGES), 0, "called again");
    for (name, relay) in &replicas.relays {
        let share = calls.iter().filter(|call| replica(call) == name).count();
        assert!(share > MESSAGES / 10, "{name} did {share}");
        assert!(relay.lines(STANDS_BY).is_empty() && relay.lines(WORKS).is_empty());
        assert_eq!(
            (relay.metric("active").await, relay.metric("messages_redelivered_total").await),
            (0, 0),
            "{name}"
        );
    }
    replicas.stop_all().await;
}

#[tokio::test]
async fn what_one_of_those_that_share_had_when_it_was_killed_is_relayed_by_others() {
    let share = [("NATS_REPLICAS_SHARE", "true"), ("NATS_PENDING_MESSAGES", "20")];
    let mut all = UnderLoad::start(3, 20, &share).await;
    all.endpoint.received(200).await;
    all.replicas.kill("r0");
    all.goes_on().await;
    all.replicas.stop("r1").await;
    all.goes_on().await;
    let messages = all.load.end().await;
    all.stream.settled().await;
    // Order holds within each only.
    let mut relayed = relayed_numbers(&all.stream).await;
    relayed.sort_unstable();
    assert_eq!(relayed, (0..messages).collect::<Vec<_>>());
    all.replicas.stop_all().await;
}
