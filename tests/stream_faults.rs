//! Reading from a stream in states that are rare and broke a promise once: a link that is slow, a
//! server that is away while the relay drains, a call that hangs, a message that nobody can settle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod support;

use async_nats::Client;
use futures_util::StreamExt;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::endpoint::{Call, Endpoint, Reply};
use support::held::Held;
use support::nats::{Absent, NatsServer};
use support::proxy::Proxy;
use support::relay::{Relay, field};
use support::setup::{Setup, by_hand, header, hpub, poison};
use support::stream::{
    CONSUMER, FAILED, HTTP, JETSTREAM, JetStream, PATIENT, STREAM, complete_and_in_order, let_pass,
    number, numbers, server, setup,
};
use support::{eventually, signal, subscribe, within};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

const LOST: &str = "lost the connection to NATS";
const FROM_THE_BEGINNING: (&str, &str) = ("NATS_DELIVER", "all");
/// How long nothing at all may happen where there is something to do.
const STANDSTILL: Duration = Duration::from_secs(30);

/// What moves much or measures is alone on a small machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The numbers of what is relayed, as a subscriber gets them.
struct Relayed {
    numbers: Arc<Mutex<Vec<usize>>>,
    task: JoinHandle<()>,
}

impl Relayed {
    async fn listen(client: &Client) -> Self {
        let mut subscriber = subscribe(client, "relayed.>").await;
        let numbers = Arc::<Mutex<Vec<usize>>>::default();
        let shared = numbers.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                shared.lock().unwrap().push(number(std::str::from_utf8(&message.payload).unwrap()));
            }
        });
        Self { numbers, task }
    }

    fn numbers(&self) -> Vec<usize> {
        self.numbers.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.numbers.lock().unwrap().len()
    }

    /// Waits for `count` of them for as long as there are more and more, and `holds` is content.
    async fn grow_to(&self, count: usize, mut holds: impl FnMut()) {
        let (mut last, mut since) = (self.count(), Instant::now());
        while last < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
            holds();
            let now = self.count();
            if now > last {
                (last, since) = (now, Instant::now());
            }
            assert!(
                since.elapsed() < STANDSTILL,
                "{last} of {count} are relayed, and nothing for {STANDSTILL:?}"
            );
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// Large messages

#[tokio::test]
async fn the_link_of_these_tests_is_as_slow_as_it_says_and_the_server_feels_it() {
    const BYTES: usize = 16_000_000;
    let _alone = ALONE.lock().await;
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let server = support::endpoint::raw(move |_, mut stream| {
        let written = counted.clone();
        Box::pin(async move {
            while written.load(Ordering::Relaxed) < BYTES
                && stream.write_all(&[0; 10_000]).await.is_ok()
            {
                written.fetch_add(10_000, Ordering::Relaxed);
            }
        })
    })
    .await;
    let proxy = Proxy::to(server).await;
    proxy.throttle(10_000_000);
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    let (mut buffer, mut read, began) = (vec![0; 100_000], 0, Instant::now());
    while let Ok(bytes @ 1..) = client.read(&mut buffer).await {
        read += bytes;
        let fastest = 130_000 + began.elapsed().as_millis() as usize * 10_000;
        assert!(read <= fastest, "{read} bytes instead of {fastest} at most");
        // What is on its way is in the buffers of the system.
        let ahead = written.load(Ordering::Relaxed) - read.min(written.load(Ordering::Relaxed));
        assert!(ahead < 8_000_000, "{ahead} bytes ahead");
    }
    assert_eq!(read, BYTES);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// A backlog of large messages, and the link that they come over.
struct Backlog {
    messages: usize,
    bytes: usize,
    subjects: usize,
    /// Bytes per second; `None` is as fast as this machine.
    link: Option<usize>,
}

impl Backlog {
    /// A relay with its room full of them is killed, and the next one relays all, over one connection.
    async fn survives_a_crash(self) {
        let Self { messages, bytes, subjects, link } = self;
        let _alone = ALONE.lock().await;
        let nats = NatsServer::with_config(&format!("{JETSTREAM}, max_payload: 8MB"));
        let client = nats.client().await;
        let stream = JetStream::new(&client);
        stream.add("CMS", "cms.cache.>", json!({})).await;
        let mut filled = 0;
        while filled < messages {
            // A server drops what it cannot store in time.
            let end = messages.min(filled + 1 + 16_000_000 / bytes);
            stream.fill(filled..end, subjects, bytes).await;
            filled = end;
        }
        let proxy = Proxy::to(nats.port).await;
        if let Some(link) = link {
            proxy.throttle(link);
        }
        let endpoint = Held::start().await;
        let variables =
            [STREAM, HTTP, PATIENT, FROM_THE_BEGINNING, ("NATS_PENDING_BYTES", "16MiB")];
        let first = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
        let room = (16 << 20) / bytes as u64;
        support::stream::until_true("its room is full", || async {
            first.metric("messages_received_total").await >= room * 3 / 4
        })
        .await;
        endpoint.called(subjects).await;
        assert!(room > subjects as u64, "none waits");
        signal(first.pid(), "KILL");
        drop(first);

        let relayed = Relayed::listen(&client).await;
        endpoint.release();
        let began = Instant::now();
        let relay = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
        let keeps_its_connection = || {
            assert!(relay.lines(LOST).is_empty(), "lost the connection after {:?}", began.elapsed())
        };
        relayed.grow_to(messages, keeps_its_connection).await;
        stream.settled().await;
        keeps_its_connection();
        let highest = relay.memory("VmHWM");
        println!(
            "{messages} messages of {bytes} bytes after {:?}, memory up to {highest} KiB",
            began.elapsed()
        );
        assert_eq!(
            complete_and_in_order(&relayed.numbers(), messages, subjects),
            0,
            "relayed again"
        );
        complete_and_in_order(&endpoint.numbers(), messages, subjects);
        assert!(highest < 120 * 1024, "{highest} KiB");
    }
}

#[tokio::test]
async fn large_messages_over_a_link_are_relayed_after_a_crash() {
    Backlog { messages: 400, bytes: 300_000, subjects: 10, link: Some(20_000_000) }
        .survives_a_crash()
        .await;
}

#[tokio::test]
async fn large_messages_over_a_slow_link_are_relayed_after_a_crash() {
    Backlog { messages: 300, bytes: 300_000, subjects: 10, link: Some(3_000_000) }
        .survives_a_crash()
        .await;
}

#[tokio::test]
async fn messages_of_a_megabyte_are_relayed_after_a_crash_in_little_memory() {
    Backlog { messages: 250, bytes: 1_000_000, subjects: 5, link: None }.survives_a_crash().await;
}

#[tokio::test]
async fn messages_of_several_megabytes_are_relayed_after_a_crash() {
    Backlog { messages: 60, bytes: 4_000_000, subjects: 2, link: None }.survives_a_crash().await;
}

#[tokio::test]
async fn messages_of_several_megabytes_over_a_link_are_relayed_after_a_crash() {
    Backlog { messages: 40, bytes: 4_000_000, subjects: 2, link: Some(20_000_000) }
        .survives_a_crash()
        .await;
}

// Messages that cannot be read, far above the floor

/// An endpoint that accepts everything but `cms.cache.never`.
async fn all_but_one() -> Endpoint {
    Endpoint::start(|call| {
        Reply::status(if call.subject() == "cms.cache.never" { 503 } else { 200 })
    })
    .await
}

/// Publishes one that cannot be read. It fails within seconds, and others are relayed after it.
async fn gets_past_poison(setup: &mut Setup, stream: &JetStream, payload: &str) {
    let began = Instant::now();
    setup.publish_by_hand(&poison("cms.cache.s0", payload)).await;
    for subject in ["cms.cache.s0", "cms.cache.s1"] {
        stream.publish(subject, payload).await;
    }
    let letter = setup.failed().await;
    println!("{payload} is failed after {:?}", began.elapsed());
    assert_eq!(
        (header(&letter, "Relay-Reason"), &letter.payload[..]),
        ("unreadable", payload.as_bytes())
    );
    let relayed = setup.relayed_by_subject(2).await;
    assert_eq!(
        relayed.iter().map(|message| &message.payload[..]).collect::<Vec<_>>(),
        [payload.as_bytes(); 2]
    );
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    stream.unsettled(1).await;
}

/// A message that nobody accepts keeps the consumer's floor where it is, and many after it are settled.
async fn far_above_the_floor(endpoint: &Endpoint) -> (Setup, JetStream) {
    const MESSAGES: usize = 10_500;
    let (mut setup, stream) = setup(&endpoint.url(), &LONELY).await;
    stream.publish("cms.cache.never", "0").await;
    for first in (0..MESSAGES).step_by(1_500) {
        stream.fill(first..first + 1_500, 50, 0).await;
    }
    for _ in 0..MESSAGES {
        setup.relayed().await;
    }
    stream.unsettled(1).await;
    (setup, stream)
}

/// For one relay and a message that it cannot finish.
const LONELY: [(&str, &str); 3] = [
    ("WEBHOOK_MAX_ATTEMPTS", "unlimited"),
    ("SHUTDOWN_GRACE", "1s"),
    ("RUST_LOG", "warn,nats_webhook_relay=info"),
];

#[tokio::test]
async fn a_message_that_cannot_be_read_far_above_the_floor_fails_once() {
    let endpoint = all_but_one().await;
    let (mut setup, stream) = far_above_the_floor(&endpoint).await;
    gets_past_poison(&mut setup, &stream, "first").await;
    gets_past_poison(&mut setup, &stream, "second").await;
    setup.end().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_read_far_above_the_floor_fails_once_after_a_restart() {
    let endpoint = all_but_one().await;
    let (mut setup, stream) = far_above_the_floor(&endpoint).await;
    let nats = setup.nats.url();
    restart(&mut setup, &endpoint, &nats).await;
    gets_past_poison(&mut setup, &stream, "first").await;
    restart(&mut setup, &endpoint, &nats).await;
    gets_past_poison(&mut setup, &stream, "second").await;
    setup.end().await;
}

/// Kills the relay and starts another one, which has what is not settled when this returns.
async fn restart(setup: &mut Setup, endpoint: &Endpoint, nats: &str) {
    signal(setup.relay.pid(), "KILL");
    let calls = endpoint.count();
    setup.relay =
        Relay::start(nats, &endpoint.url(), &[&[STREAM, HTTP, FAILED], &LONELY[..]].concat()).await;
    endpoint.received(calls + 1).await;
}

/// The relay's connection is cut, after which it looks for what may have broken it, and nothing more fails.
async fn nothing_fails_over_cuts(setup: &mut Setup, stream: &JetStream, proxy: &Proxy) {
    for cut in 1..=2 {
        // Or what is settled only here would come again.
        stream.unsettled(1).await;
        proxy.cut();
        setup.relay.logged_times("reconnected to NATS", cut).await;
        stream.publish("cms.cache.s0", cut.to_string()).await;
        assert_eq!(setup.relayed().await.payload, cut.to_string());
    }
    setup.end().await;
}

#[tokio::test]
async fn what_could_not_be_read_before_a_restart_fails_no_second_time() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = all_but_one().await;
    let mut setup =
        Setup::on(nats, &endpoint.url(), &[&[STREAM, HTTP], &LONELY[..]].concat()).await;
    stream.publish("cms.cache.never", "0").await;
    endpoint.received(1).await;
    gets_past_poison(&mut setup, &stream, "first").await;
    restart(&mut setup, &endpoint, &proxy.url()).await;
    nothing_fails_over_cuts(&mut setup, &stream, &proxy).await;
}

#[tokio::test]
async fn what_could_not_be_read_by_another_replica_fails_no_second_time() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = all_but_one().await;
    let mut setup =
        Setup::on(nats, &endpoint.url(), &[&[STREAM, HTTP], &LONELY[..]].concat()).await;
    stream.publish("cms.cache.never", "0").await;
    endpoint.received(1).await;
    let other = Relay::start(
        &proxy.url(),
        &endpoint.url(),
        &[&[STREAM, HTTP, FAILED], &LONELY[..]].concat(),
    )
    .await;
    gets_past_poison(&mut setup, &stream, "first").await;
    signal(setup.relay.pid(), "KILL");
    setup.relay = other;
    stream.publish("cms.cache.s0", "taken over").await;
    assert_eq!(setup.relayed().await.payload, "taken over");
    nothing_fails_over_cuts(&mut setup, &stream, &proxy).await;
}

// While a relay drains

/// How many subjects there are, of which each begins with a call that lasts.
const LANES: usize = 3;

/// A replica that drains, with calls that last and messages that wait behind them.
struct Draining {
    nats: NatsServer,
    proxy: Proxy,
    relay: Relay,
}

impl Draining {
    /// Two replicas, of which the one that works is stopped, has its first calls answered `after` they have begun, and
    /// suffers `fault` meanwhile. What it had not begun by then is called for by one of the two, in order.
    async fn suffers(after: Duration, fault: impl AsyncFnOnce(&mut Draining)) {
        const MESSAGES: usize = 45;
        let (nats, stream) = server().await;
        stream.add("RELAYED", "relayed.cache.>", json!({})).await;
        let endpoint = Endpoint::start(move |call| {
            let is_first = number(std::str::from_utf8(&call.body).unwrap()) < LANES;
            Reply::ok().after(if replica(call) == "first" && is_first {
                after
            } else {
                Duration::from_millis(150)
            })
        })
        .await;
        let proxy = Proxy::to(nats.port).await;
        let relay = named("first", &proxy.url(), &endpoint).await;
        stream.fill(0..MESSAGES, LANES, 0).await;
        endpoint.received(LANES).await;
        relay.counted("messages_received_total", MESSAGES as u64).await;
        let mut other = named("other", &nats.url(), &endpoint).await;
        let mut draining = Draining { nats, proxy, relay };
        signal(draining.relay.pid(), "TERM");
        draining.relay.logged("\"message\":\"stopping").await;
        let begun = numbers(&endpoint.calls());
        assert_eq!(begun.len(), LANES, "only the first of each subject: {begun:?}");
        fault(&mut draining).await;

        stream.settled().await;
        assert!(draining.relay.exit().await.success());
        let calls = endpoint.calls();
        let shown: Vec<_> = calls
            .iter()
            .map(|call| format!("{}:{}", replica(call), std::str::from_utf8(&call.body).unwrap()))
            .collect();
        println!("{}", shown.join(" "));
        let mut seen = HashSet::new();
        let twice: Vec<_> = numbers(&calls)
            .into_iter()
            .filter(|number| !seen.insert(*number) && !begun.contains(number))
            .collect();
        assert!(twice.is_empty(), "called for twice: {twice:?} in {shown:?}");
        complete_and_in_order(&numbers(&calls), MESSAGES, LANES);
        let relayed: Vec<_> =
            stream.messages("RELAYED").await.iter().map(|(_, payload)| number(payload)).collect();
        assert_eq!(complete_and_in_order(&relayed, MESSAGES, LANES), 0, "stored twice");
        assert!(other.stop().await.success());
    }
}

/// A relay that tells the endpoint its name.
async fn named(name: &str, nats: &str, endpoint: &Endpoint) -> Relay {
    named_with(name, nats, endpoint, &[("SHUTDOWN_GRACE", "50s")]).await
}

async fn named_with(
    name: &str,
    nats: &str,
    endpoint: &Endpoint,
    variables: &[(&str, &str)],
) -> Relay {
    let header = format!("x-replica={name}");
    let variables = [&[STREAM, HTTP, PATIENT, ("WEBHOOK_HEADERS", &header)], variables].concat();
    Relay::start(nats, &endpoint.url(), &variables).await
}

fn replica(call: &Call) -> &str {
    call.header("x-replica")
}

#[tokio::test]
async fn a_server_that_restarts_while_a_replica_drains_has_no_message_called_for_by_both() {
    Draining::suffers(Duration::from_secs(9), async |draining| {
        draining.nats.kill();
        let_pass(Duration::from_secs(2)).await;
        draining.nats.restart();
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_is_cut_off_while_it_drains_has_no_message_called_for_by_both() {
    Draining::suffers(Duration::from_secs(9), async |draining| {
        draining.proxy.close();
        let_pass(Duration::from_secs(5)).await;
        draining.proxy.open();
    })
    .await;
}

/// For longer than a silent replica keeps its turn, and its messages.
async fn freeze(draining: &Draining) {
    signal(draining.relay.pid(), "STOP");
    let_pass(Duration::from_secs(7)).await;
    signal(draining.relay.pid(), "CONT");
}

#[tokio::test]
async fn a_replica_that_is_frozen_while_it_drains_has_no_message_called_for_by_both() {
    // It has time to find out that its turn is over.
    Draining::suffers(Duration::from_secs(10), async |draining| freeze(draining).await).await;
}

#[tokio::test]
async fn a_replica_that_is_answered_while_it_is_frozen_and_drains_has_no_message_called_for_by_both()
 {
    Draining::suffers(Duration::from_secs(4), async |draining| freeze(draining).await).await;
}

#[tokio::test]
async fn a_relay_that_is_stopped_before_it_has_looked_after_a_reconnect_ends_at_once() {
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Held::start().await;
    let variables = [STREAM, HTTP, PATIENT, ("SHUTDOWN_GRACE", "30s")];
    let mut relay = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
    stream.fill(0..10, 1, 0).await;
    relay.counted("messages_received_total", 10).await;
    endpoint.called(1).await;
    // The first thing that it asks in a connection, so that it knows nothing in it.
    proxy.hold("STREAM.LIST");
    proxy.cut();
    eventually("it is connected again and asks", || proxy.is_holding()).await;
    endpoint.release();
    relay.logged("\"message\":\"answered\"").await;
    signal(relay.pid(), "TERM");
    relay.logged("\"message\":\"stopping").await;
    let stopped = Instant::now();
    proxy.resume();
    assert!(relay.exit().await.success());
    assert!(
        stopped.elapsed() < Duration::from_secs(15),
        "ended after {:?} with nothing in work",
        stopped.elapsed()
    );
    // What is left is the next one's.
    let _next = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    stream.settled().await;
    complete_and_in_order(&endpoint.numbers(), 10, 1);
}

// A consumer that is removed

/// A relay with one message in work and nine behind it, which come from a consumer that is then removed.
struct Waiting {
    stream: JetStream,
    proxy: Proxy,
    endpoint: Held,
    relayed: Relayed,
    relay: Relay,
    _nats: NatsServer,
}

impl Waiting {
    async fn start() -> Self {
        let (nats, stream) = server().await;
        let proxy = Proxy::to(nats.port).await;
        let endpoint = Held::start().await;
        let relayed = Relayed::listen(&nats.client().await).await;
        let relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM, HTTP, PATIENT]).await;
        stream.fill(0..10, 1, 0).await;
        relay.counted("messages_received_total", 10).await;
        endpoint.called(1).await;
        Self { stream, proxy, endpoint, relayed, relay, _nats: nats }
    }

    /// The relay lets go of what it has not begun, and finishes the rest.
    async fn reconnects(&self) {
        self.proxy.cut();
        self.relay.logged("reconnected to NATS").await;
        self.endpoint.release();
        self.relay.logged("\"message\":\"relayed\"").await;
    }

    async fn loses_its_consumer_while_cut_off(&self, losses: usize) {
        self.proxy.close();
        self.relay.logged_times(LOST, losses).await;
        self.stream.remove_consumer().await;
        self.proxy.open();
    }

    /// All ten are relayed, from the consumer that is made in the place of the one before.
    async fn ends_relayed(self) {
        self.relay.logged_times("\"created the consumer\"", 2).await;
        self.endpoint.release();
        self.stream.settled().await;
        let told = self.relay.lines("\"message\":\"relayed\"").len();
        eventually("what is settled has come here", || self.relayed.count() >= told).await;
        complete_and_in_order(&self.relayed.numbers(), 10, 1);
        complete_and_in_order(&self.endpoint.numbers(), 10, 1);
    }
}

#[tokio::test]
async fn what_waits_when_the_consumer_is_removed_and_the_relay_is_cut_off_is_relayed() {
    let waiting = Waiting::start().await;
    waiting.loses_its_consumer_while_cut_off(1).await;
    waiting.ends_relayed().await;
}

#[tokio::test]
async fn what_was_let_go_of_when_the_consumer_is_removed_is_relayed() {
    let waiting = Waiting::start().await;
    waiting.reconnects().await;
    waiting.stream.remove_consumer().await;
    waiting.ends_relayed().await;
}

#[tokio::test]
async fn what_was_let_go_of_when_the_consumer_is_removed_and_the_relay_is_cut_off_is_relayed() {
    let waiting = Waiting::start().await;
    waiting.reconnects().await;
    waiting.loses_its_consumer_while_cut_off(2).await;
    waiting.ends_relayed().await;
}

// Memory

#[tokio::test]
async fn memory_does_not_grow_with_what_is_settled_while_a_message_is_retried() {
    const STEP: usize = 5_000;
    let _alone = ALONE.lock().await;
    let port = support::endpoint::raw(move |_, mut stream| {
        Box::pin(async move {
            while let Some(request) = support::endpoint::request(&mut stream).await {
                let status = if request.contains("cms.cache.never") { 503 } else { 200 };
                let answer = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
    })
    .await;
    let (nats, stream) = server().await;
    // Without a line for each message.
    let log = "warn,nats_webhook_relay=info,nats_webhook_relay::relay=warn,nats_webhook_relay::webhook=warn";
    let variables =
        [STREAM, HTTP, PATIENT, ("WEBHOOK_MAX_ATTEMPTS", "unlimited"), ("RUST_LOG", log)];
    let relay =
        Relay::start(&nats.url(), &format!("http://127.0.0.1:{port}/hook"), &variables).await;
    stream.publish("cms.cache.never", "").await;
    let began = Instant::now();
    let memory_after = async |steps: std::ops::Range<usize>| {
        for step in steps.clone() {
            stream.fill(step * STEP..(step + 1) * STEP, 100, 0).await;
            relay.counted("messages_relayed_total", ((step + 1) * STEP) as u64).await;
        }
        stream.unsettled(1).await;
        let memory = relay.memory("RssAnon");
        println!("{memory} KiB after {} messages and {:?}", steps.end * STEP, began.elapsed());
        memory
    };
    let early = memory_after(0..10).await;
    let late = memory_after(10..30).await;
    assert!(late < early + 3 * 1024, "{early} KiB after 50,000 messages, {late} KiB after 150,000");
}

// The end without NATS

/// Where messages come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Stream,
    Core,
}

/// A relay that has more messages than the client keeps commands for, and finishes none.
struct Full {
    nats: NatsServer,
    proxy: Proxy,
    relay: Relay,
    _endpoint: Held,
}

impl Full {
    const MESSAGES: usize = 3_000;

    async fn start(from: From) -> Self {
        let (nats, stream) = server().await;
        let proxy = Proxy::to(nats.port).await;
        let endpoint = Held::start().await;
        let log = "warn,nats_webhook_relay=info,nats_webhook_relay::webhook=warn";
        let mut variables = vec![
            HTTP,
            PATIENT,
            FAILED,
            ("NATS_PENDING_MESSAGES", "5000"),
            ("SHUTDOWN_GRACE", "2s"),
            ("RUST_LOG", log),
        ];
        variables.extend((from == From::Stream).then_some(STREAM));
        let relay = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
        stream.fill(0..Self::MESSAGES, 300, 0).await;
        relay.counted("messages_received_total", Self::MESSAGES as u64).await;
        Self { nats, proxy, relay, _endpoint: endpoint }
    }

    /// SIGTERM ends it within five seconds after its grace of two, or a supervisor would kill it.
    async fn ends(mut self, from: From) {
        signal(self.relay.pid(), "TERM");
        let asked = Instant::now();
        while self.relay.is_running() {
            assert!(
                asked.elapsed() < Duration::from_secs(9),
                "it runs {:?} after SIGTERM",
                asked.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("ended {:?} after SIGTERM", asked.elapsed());
        let status = self.relay.exit().await;
        let not_relayed = self.relay.lines("\"message\":\"not relayed\"").len();
        match from {
            // They are in the stream.
            From::Stream => {
                assert!(status.success() && not_relayed == 0, "{status}, {not_relayed} not relayed")
            }
            From::Core => assert!(
                status.code() == Some(1) && not_relayed == Self::MESSAGES,
                "{status}, {not_relayed} not relayed"
            ),
        }
    }
}

async fn full_while_the_server_is_away(from: From) {
    let mut full = Full::start(from).await;
    full.nats.kill();
    full.relay.logged("cannot reconnect to NATS yet").await;
    full.ends(from).await;
}

#[tokio::test]
async fn a_relay_full_of_a_stream_ends_while_the_server_is_away() {
    full_while_the_server_is_away(From::Stream).await;
}

#[tokio::test]
async fn a_full_relay_ends_while_the_server_is_away() {
    full_while_the_server_is_away(From::Core).await;
}

async fn full_while_the_server_stands_still(from: From) {
    let full = Full::start(from).await;
    signal(full.nats.pid(), "STOP");
    full.ends(from).await;
}

#[tokio::test]
async fn a_relay_full_of_a_stream_ends_while_the_server_stands_still() {
    full_while_the_server_stands_still(From::Stream).await;
}

#[tokio::test]
async fn a_full_relay_ends_while_the_server_stands_still() {
    full_while_the_server_stands_still(From::Core).await;
}

async fn full_while_there_is_no_client(from: From) {
    let full = Full::start(from).await;
    // It cannot have another one.
    full.proxy.refuse();
    by_hand(full.nats.port, &hpub("cms.cache.s0", &["A: b\rc"], b"0")).await;
    full.relay.logged("the NATS client failed").await;
    full.relay.logged("waiting for NATS").await;
    full.ends(from).await;
}

#[tokio::test]
async fn a_relay_full_of_a_stream_ends_when_its_client_has_ended() {
    full_while_there_is_no_client(From::Stream).await;
}

#[tokio::test]
async fn a_full_relay_ends_when_its_client_has_ended() {
    full_while_there_is_no_client(From::Core).await;
}

// A call that hangs

#[tokio::test]
async fn a_call_that_hangs_over_a_reconnect_delays_no_other_subject() {
    const SUBJECTS: usize = 10;
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Held::hanging(|call| call.subject == "cms.cache.hangs").await;
    let relayed = Relayed::listen(&nats.client().await).await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM, HTTP, PATIENT]).await;
    // Numbers of no subject of the others.
    for number in [100_000, 100_001] {
        stream.publish("cms.cache.hangs", format!("{number} ")).await;
    }
    stream.fill(0..30, SUBJECTS, 0).await;
    endpoint.called(1 + SUBJECTS).await;
    relay.counted("messages_received_total", 32).await;
    let mut expected = 30;
    for cut in 1..=2 {
        proxy.cut();
        let began = Instant::now();
        endpoint.release();
        relay.logged_times("reconnected to NATS", cut).await;
        // Those that waited, and new ones.
        stream.fill(expected..expected + 30, SUBJECTS, 0).await;
        expected += 30;
        while relayed.count() < expected {
            let (count, elapsed) = (relayed.count(), began.elapsed());
            assert!(
                elapsed < Duration::from_secs(15),
                "{count} of {expected} are relayed {elapsed:?} after a short reconnect"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{expected} are relayed {:?} after the cut", began.elapsed());
        stream
            .until("all others are settled", |info| info["num_ack_pending"].as_u64() <= Some(2))
            .await;
    }
    assert_eq!(
        endpoint.subjects().iter().filter(|subject| *subject == "cms.cache.hangs").count(),
        1,
        "called again, or overtaken"
    );
    complete_and_in_order(&relayed.numbers(), expected, SUBJECTS);
    endpoint.release_all();
    stream.settled().await;
    let hung: Vec<_> = endpoint.numbers().into_iter().filter(|number| *number >= 100_000).collect();
    assert_eq!(
        complete_and_in_order(
            &hung.iter().map(|number| number - 100_000).collect::<Vec<_>>(),
            2,
            1
        ),
        0
    );
}

// Readiness

#[tokio::test]
async fn readyz_tells_that_the_stream_is_gone_and_when_it_is_back() {
    let (nats, stream) = server().await;
    let endpoint = Endpoint::ok().await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[STREAM, HTTP]).await;
    stream.publish("cms.cache.s0", "0").await;
    stream.settled().await;
    for round in 1..=2 {
        relay.readyz(200).await;
        stream.remove("CMS").await;
        let removed = Instant::now();
        while relay.get("/readyz").await.0 == 200 {
            assert!(
                removed.elapsed() < Duration::from_secs(15),
                "ready {:?} after the stream was removed",
                removed.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("not ready {:?} after the stream was removed", removed.elapsed());
        // It stays so.
        let_pass(Duration::from_secs(2)).await;
        assert_eq!(relay.get("/readyz").await.0, 503);
        assert_eq!(relay.get("/healthz").await.0, 200);
        stream.add("CMS", "cms.cache.>", json!({})).await;
        relay.readyz(200).await;
        stream.publish("cms.cache.s0", round.to_string()).await;
        endpoint.received(1 + round).await;
        stream.settled().await;
    }
}

// What is counted

/// All that a relay has received has come to an end, and to one only.
async fn adds_up(relay: &Relay) -> u64 {
    relay.counted("messages_pending", 0).await;
    let (_, metrics) = relay.get("/metrics").await;
    let sum = |name: &str| -> u64 {
        let of = |line: &str| {
            let rest = line
                .strip_prefix("nats_webhook_relay_messages_")?
                .strip_prefix(name)?
                .strip_prefix("_total")?;
            rest.rsplit_once(' ')?.1.parse::<u64>().ok()
        };
        metrics.lines().filter_map(of).sum::<u64>()
    };
    let received = sum("received");
    let ends = ["relayed", "rejected", "failed", "given_back"].map(|name| (name, sum(name)));
    println!("received {received}, of which {ends:?}");
    assert_eq!(
        received,
        ends.iter().map(|(_, count)| count).sum::<u64>(),
        "received on the left, of which {ends:?}"
    );
    received
}

#[tokio::test]
async fn what_is_received_adds_up_after_a_reconnect() {
    const MESSAGES: usize = 60;
    let (nats, stream) = server().await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Held::start().await;
    let relay = Relay::start(&proxy.url(), &endpoint.url(), &[STREAM, HTTP, PATIENT, FAILED]).await;
    stream.fill(0..MESSAGES, 5, 0).await;
    relay.counted("messages_received_total", MESSAGES as u64).await;
    endpoint.called(5).await;
    proxy.cut();
    relay.logged("reconnected to NATS").await;
    // While they wait, too.
    let (received, pending) =
        (relay.metric("messages_received_total").await, relay.metric("messages_pending").await);
    println!("received {received} with {pending} pending after the reconnect");
    endpoint.release();
    stream.settled().await;
    assert!(adds_up(&relay).await >= MESSAGES as u64);
    assert_eq!(relay.metric("messages_relayed_total").await, MESSAGES as u64);
}

#[tokio::test]
async fn what_is_received_adds_up_after_a_lost_turn() {
    const MESSAGES: usize = 60;
    let (nats, stream) = server().await;
    let endpoint = Endpoint::start(|call| match replica(call) {
        "first" => Reply::status(503).header("retry-after", "300"),
        _ => Reply::ok(),
    })
    .await;
    let first = named("first", &nats.url(), &endpoint).await;
    stream.fill(0..MESSAGES, 5, 0).await;
    endpoint.answered(5).await;
    first.counted("messages_received_total", MESSAGES as u64).await;
    let other = named("other", &nats.url(), &endpoint).await;
    signal(first.pid(), "STOP");
    stream.call(&format!("CONSUMER.UNPIN.CMS.{CONSUMER}"), json!({ "group": "relay" })).await;
    stream.publish("cms.cache.s0", MESSAGES.to_string()).await;
    stream
        .until("another works", |info| info["priority_groups"][0]["pinned_client_id"].is_string())
        .await;
    signal(first.pid(), "CONT");
    other.logged("this replica is the one that works").await;
    stream.settled().await;
    adds_up(&first).await;
    assert!(adds_up(&other).await > MESSAGES as u64);
}

#[tokio::test]
async fn no_message_ends_twice_when_the_endpoint_accepts_as_the_grace_ends() {
    const MESSAGES: usize = 3_000;
    let _alone = ALONE.lock().await;
    // Where in the rush of answers the end falls is chance.
    for early in [100, 300, 500, 700, 900] {
        let nats = NatsServer::start();
        let client = nats.client().await;
        let endpoint = Held::start().await;
        let variables =
            [HTTP, PATIENT, FAILED, ("SHUTDOWN_GRACE", "2s"), ("MAX_IN_FLIGHT", "4000")];
        let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
        for number in 0..MESSAGES {
            client
                .publish(format!("cms.cache.s{number}"), number.to_string().into())
                .await
                .unwrap();
        }
        relay.counted("messages_received_total", MESSAGES as u64).await;
        endpoint.called(MESSAGES).await;
        signal(relay.pid(), "TERM");
        relay.logged("\"message\":\"stopping").await;
        let_pass(Duration::from_millis(2_000 - early)).await;
        endpoint.release();
        relay.exit().await;
        let ended = |text: &str| -> Vec<String> {
            relay.lines(text).iter().map(|line| field(line, "id").to_owned()).collect()
        };
        let (relayed, failed) =
            (ended("\"message\":\"relayed\""), ended("\"message\":\"not relayed\""));
        println!(
            "{} relayed and {} failed of {MESSAGES}, released {early} ms before the end",
            relayed.len(),
            failed.len()
        );
        let failed: HashSet<_> = failed.into_iter().collect();
        let both: Vec<_> = relayed.iter().filter(|id| failed.contains(*id)).collect();
        assert!(both.is_empty(), "{} are relayed and failed: {both:?}", both.len());
        assert_eq!(relayed.len() + failed.len(), MESSAGES);
    }
}

// Replicas that share

#[tokio::test]
async fn a_message_that_is_gone_from_the_stream_fails_while_another_replica_holds_one() {
    let (nats, stream) = server().await;
    let client = nats.client().await;
    let mut failed = subscribe(&client, "failed.>").await;
    let endpoint = Endpoint::start(|_| Reply::status(503)).await;
    let share = [("NATS_REPLICAS_SHARE", "true"), FAILED, ("WEBHOOK_MAX_ATTEMPTS", "unlimited")];
    let _first = named_with("first", &nats.url(), &endpoint, &share).await;
    let _other = named_with("other", &nats.url(), &endpoint, &share).await;
    // Until each has one.
    let mut sequences = Vec::new();
    let holders =
        || endpoint.calls().iter().map(|call| replica(call).to_owned()).collect::<HashSet<_>>();
    while holders().len() < 2 {
        let number = sequences.len();
        sequences.push(stream.publish(&format!("cms.cache.s{number}"), number.to_string()).await);
        let has_it = || numbers(&endpoint.calls()).contains(&number);
        eventually("somebody has it", has_it).await;
        assert!(number < 100, "one replica has them all");
    }
    // The last one that was called for first, so that its replica has had no other.
    let number = sequences.len() - 1;
    stream.call("STREAM.MSG.DELETE.CMS", json!({ "seq": sequences[number] })).await;
    let deleted = Instant::now();
    let letter = tokio::time::timeout(Duration::from_secs(90), failed.next()).await;
    let letter = letter
        .unwrap_or_else(|_| panic!("{number} has not failed 90 s after it was deleted"))
        .unwrap();
    println!("{number} failed {:?} after it was deleted", deleted.elapsed());
    assert_eq!(letter.payload, number.to_string());
    assert!(
        header(&letter, "Relay-Error").contains("the stream no longer keeps the message"),
        "{letter:?}"
    );
    // The others are left alone.
    stream.unsettled(number as u64).await;
}

// A domain that is not there yet

#[tokio::test]
async fn a_domain_that_cannot_be_reached_yet_is_waited_for() {
    let hub = Absent::reserve();
    let leaf = NatsServer::with_config(&format!(
        "leafnodes {{ reconnect: \"1s\", remotes: [ {{ url: \"{}\" }} ] }}",
        hub.url()
    ));
    let endpoint = Endpoint::ok().await;
    let relay = Relay::spawn(
        &leaf.url(),
        &endpoint.url(),
        &[STREAM, HTTP, ("NATS_JETSTREAM_DOMAIN", "hub")],
    );
    relay.logged("waiting for JetStream").await;
    // A few more tries.
    let_pass(Duration::from_secs(4)).await;
    assert!(relay.is_running());
    assert_eq!(relay.lines("waiting for JetStream").len(), 1);
    relay.readyz(503).await;

    let port = hub.port;
    drop(hub);
    let hub = NatsServer::with_config(&format!(
        "jetstream {{ domain: hub }}, leafnodes {{ listen: \"127.0.0.1:{port}\" }}"
    ));
    let stream = JetStream::with_prefix(&hub.client().await, "$JS.hub.API");
    stream.add("CMS", "cms.cache.>", json!({})).await;
    relay.logged("\"message\":\"ready\"").await;
    stream.publish("cms.cache.a", "0").await;
    endpoint.received(1).await;
    stream.settled().await;
    relay.readyz(200).await;
}

// Several frontends on one stream

/// Relays what is in the stream CMS through one consumer each.
async fn two_frontends(prefixes: [(&str, &str); 2]) -> Vec<(String, String)> {
    const MESSAGES: usize = 20;
    let (nats, stream) = server().await;
    stream.add("RELAYED", "relayed.>", json!({})).await;
    let endpoint = Endpoint::ok().await;
    let mut relays = Vec::new();
    for (consumer, prefix) in prefixes {
        let own =
            [STREAM, HTTP, ("NATS_CONSUMER", consumer), ("NATS_RELAYED_SUBJECT_PREFIX", prefix)];
        relays.push(Relay::start(&nats.url(), &endpoint.url(), &own).await);
    }
    stream.fill(0..MESSAGES, 4, 0).await;
    for relay in &relays {
        relay.counted("messages_relayed_total", MESSAGES as u64).await;
    }
    stream.messages("RELAYED").await
}

#[tokio::test]
async fn two_frontends_on_one_stream_have_each_message_stored_for_both() {
    let relayed = two_frontends([("shop", "relayed.shop"), ("blog", "relayed.blog")]).await;
    for prefix in ["relayed.shop.", "relayed.blog."] {
        let of: Vec<_> = relayed
            .iter()
            .filter(|(subject, _)| subject.starts_with(prefix))
            .map(|(_, payload)| number(payload))
            .collect();
        assert_eq!(complete_and_in_order(&of, 20, 4), 0, "{prefix}");
    }
    assert_eq!(relayed.len(), 40);
}

#[tokio::test]
async fn two_consumers_that_relay_to_the_same_subjects_have_each_message_stored_for_both() {
    let relayed = two_frontends([("shop", "relayed.cache"), ("blog", "relayed.cache")]).await;
    let all: Vec<_> = relayed.iter().map(|(_, payload)| number(payload)).collect();
    assert_eq!(all.len(), 40, "{all:?}");
    assert!(
        (0..20).all(|number| all.iter().filter(|other| **other == number).count() == 2),
        "{all:?}"
    );
}

#[tokio::test]
async fn a_copy_is_stored_once_for_each_of_two_frontends_also_when_it_is_relayed_again() {
    let (nats, stream) = server().await;
    let client = nats.client().await;
    stream.add("RELAYED", "relayed.>", json!({})).await;
    let proxy = Proxy::to(nats.port).await;
    let endpoint = Endpoint::ok().await;
    let of = |consumer| {
        [
            STREAM,
            HTTP,
            ("NATS_CONSUMER", consumer),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ]
    };
    let shop = Relay::start(&proxy.url(), &endpoint.url(), &of("shop")).await;
    let blog = Relay::start(&nats.url(), &endpoint.url(), &of("blog")).await;
    let mut confirmed = subscribe(&client, "relayed.>").await;
    // The first one dies when the message is relayed and before the stream knows.
    proxy.hold("+ACK");
    stream.publish("cms.cache.a", "1").await;
    eventually("the acknowledgement is on its way", || proxy.is_holding()).await;
    blog.counted("messages_relayed_total", 1).await;
    signal(shop.pid(), "KILL");
    proxy.cut();
    proxy.resume();
    let shop = Relay::start(&nats.url(), &endpoint.url(), &of("shop")).await;
    shop.counted("messages_relayed_total", 1).await;

    let mut ids = Vec::new();
    for _ in 0..3 {
        let message = within("a relayed message", confirmed.next()).await.unwrap();
        ids.push(header(&message, "Nats-Msg-Id").to_owned());
    }
    let different: HashSet<_> = ids.iter().collect();
    assert_eq!(different.len(), 2, "one for each frontend, also when it is relayed again: {ids:?}");
    let stored = stream.messages("RELAYED").await;
    assert_eq!(stored.len(), 2, "{stored:?}");
}
