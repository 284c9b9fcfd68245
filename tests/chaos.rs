//! Everything that can break breaks at random, and at the end nothing is lost, repeated, out of order, or early.
//!
//! Publishers, several relays on one consumer, their connections, the server or a cluster of three,
//! and the webhook: all faults are drawn from one seed and printed as they happen. `CHAOS_SEED`,
//! `CHAOS_SECONDS`, `CHAOS_SERVERS` (1 or 3; without it both) and `CHAOS_ATTEMPTS` (the relay's
//! `WEBHOOK_MAX_ATTEMPTS`) choose the run; `scripts/chaos` makes a long one. All logs of a run in which something is
//! wrong are kept in `target/tmp`; with `CHAOS_KEEP` those of any run.
//!
//! A replica that was frozen may publish once more what it had in calls, after newer messages of the subject. The stream
//! on the relayed subjects drops these copies: what it has is judged, and it knows no exception.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod support;

use async_nats::{Client, HeaderMap, Request};
use fastrand::Rng;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use support::cluster::{Cluster, Stored, ask, read_stream, until};
use support::endpoint::{raw, request};
use support::judge::{Answer, Call, Copy, Key, Record, Verdict};
use support::proxy::Proxy;
use support::relay::Relay;
use support::signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const CONSUMER: &str = "nats-webhook-relay";
const PUBLISHERS: usize = 4;
const SUBJECTS_EACH: usize = 4;
const RELAYS: usize = 3;
/// How long nothing at all may happen when everything works again.
const STANDSTILL: Duration = Duration::from_secs(90);
/// The most that a relay may ever occupy, in KiB. Of this, 16 MiB of messages may wait (NATS_PENDING_BYTES).
const MOST_MEMORY: u64 = 120 * 1024;

const SELF_ENDED: &str = "relay ended by itself";

/// One after the other: each is about as much as a small machine can do.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_one_server() {
    chaos(1, false).await;
}

/// COALESCE and NATS_RESYNC_SUBJECT: calls stand for several messages, and others for none.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_one_server_shared_calls_and_resyncs() {
    chaos(1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_a_cluster_of_three() {
    chaos(3, false).await;
}

async fn chaos(servers: usize, shared: bool) {
    let wanted = |name: &str, default: &str| {
        std::env::var(name).ok().filter(|text| !text.is_empty()).unwrap_or(default.to_owned())
    };
    let number = |name: &str, default: &str| {
        wanted(name, default).parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number"))
    };
    if number("CHAOS_SERVERS", &servers.to_string()) != servers as u64 {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().await;
    let (seed, seconds) =
        (number("CHAOS_SEED", "1"), Duration::from_secs(number("CHAOS_SECONDS", "20")));
    let attempts = wanted("CHAOS_ATTEMPTS", "unlimited");
    println!(
        "chaos: seed {seed}, {seconds:?}, {servers} server(s), {attempts} attempts, shared calls: {shared}"
    );

    let mut rng = Rng::with_seed(seed);
    let diary = Diary::begin();
    let mut cluster = Cluster::start(servers).await;
    let client = cluster.client().await;
    for (stream, subjects) in
        [("CMS", "cms.cache.>"), ("RELAYED", "relayed.>"), ("FAILED", "failed.>")]
    {
        cluster
            .create_stream(
                &client,
                stream,
                subjects,
                json!({ "duplicate_window": Duration::from_secs(86400).as_nanos() as u64 }),
            )
            .await;
    }
    let webhook = Webhook::start(rng.u64(..)).await;
    let mut relays = Vec::new();
    for number in 0..RELAYS {
        relays.push(Replica::start(number, &cluster, &webhook, &attempts, shared).await);
    }

    let end = Instant::now() + seconds;
    let mut publishers = Vec::new();
    for number in 0..PUBLISHERS {
        publishers.push(tokio::spawn(publish(number, cluster.client().await, rng.fork(), end)));
    }
    let (for_relays, for_servers, for_connections) = (rng.fork(), rng.fork(), rng.fork());
    let proxies: Vec<_> = relays.iter().map(|relay| relay.proxies.clone()).collect();
    let drain = Drain::default();
    tokio::join!(
        break_relays(&mut relays, &webhook, &drain, for_relays, end, &diary),
        break_servers(&mut cluster, &client, &drain, for_servers, end, &diary),
        break_connections(&proxies, &client, &webhook, for_connections, end, &diary),
        tell_progress(&client, end, &diary),
    );

    diary.say("the chaos is over");
    let mut record = Record { shared, ..Record::default() };
    for publisher in publishers {
        record.acknowledged.extend(publisher.await.unwrap());
    }
    let finished = finish(&client, &mut relays, &diary).await;
    let memory = relays.iter().map(|relay| relay.memory).max().unwrap_or_default();
    let logs: Vec<_> = relays.drain(..).flat_map(Replica::into_logs).collect();
    record.source = read_stream(&client, "CMS")
        .await
        .iter()
        .map(|stored| key(&stored.subject, &stored.payload))
        .collect();
    record.relayed = read_stream(&client, "RELAYED")
        .await
        .iter()
        .map(|stored| copy(stored, "Nats-Msg-Id"))
        .collect();
    record.failed = read_stream(&client, "FAILED")
        .await
        .iter()
        .map(|stored| copy(stored, "Relay-Id"))
        .collect();
    record.calls = webhook.calls();

    let verdict = Verdict::of(&record);
    println!(
        "\nchaos: seed {seed}, {seconds:?}, {servers} server(s), {attempts} attempts\n{verdict}{}",
        diary.counts()
    );
    println!("{:<24}{:>8} {:?}", "webhook calls", record.calls.len(), by_answer(&record.calls));
    let resyncs = webhook.resyncs.load(Ordering::Relaxed);
    println!("{:<24}{resyncs:>8}", "resyncs called");
    println!("{:<24}{memory:>8} KiB of {MOST_MEMORY}", "memory at its highest");
    let mut wrong = verdict.wrong();
    if attempts == "unlimited" && verdict.failed > 0 {
        wrong.push(("failed, though the attempts are unlimited", &[]));
    }
    if !finished {
        wrong.insert(0, ("at a standstill", &[]));
    }
    if diary.times(SELF_ENDED) > 0 {
        wrong.push((SELF_ENDED, &[]));
    }
    if shared && (resyncs == 0 || record.calls.len() >= record.relayed.len()) {
        wrong.push(("no call was shared, or no resync called", &[]));
    }
    if memory > MOST_MEMORY {
        wrong.push(("too much memory", &[]));
    }
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}-{servers}-{shared}"));
    if !wrong.is_empty() || std::env::var_os("CHAOS_KEEP").is_some() {
        keep(&folder, &logs, &mut cluster, &record);
    }
    if !wrong.is_empty() {
        for (what, key) in
            wrong.iter().flat_map(|(what, keys)| keys.iter().take(3).map(move |key| (what, key)))
        {
            println!("\n{what}: {key}\n{}", story(key, &record, &logs));
        }
        let wrong: Vec<_> = wrong.iter().map(|(what, _)| *what).collect();
        panic!("seed {seed}: {}; see {}", wrong.join(", "), folder.display());
    }
    assert!(verdict.relayed > 0, "nothing was relayed");
}

// ---- What happens ------------------------------------------------------------------------

/// Prints what happens when it happens, and counts it.
struct Diary {
    begun: Instant,
    counts: Mutex<BTreeMap<&'static str, usize>>,
}

impl Diary {
    fn begin() -> Self {
        Self { begun: Instant::now(), counts: Mutex::default() }
    }

    fn say(&self, what: &str) {
        println!(
            "{:8.3} {} {what}",
            self.begun.elapsed().as_secs_f64(),
            humantime::format_rfc3339_millis(SystemTime::now())
        );
    }

    fn count(&self, fault: &'static str, details: &str) {
        self.add(fault, 1);
        self.say(&format!("{fault}: {details}"));
    }

    fn add(&self, fault: &'static str, times: usize) {
        *self.counts.lock().unwrap().entry(fault).or_default() += times;
    }

    fn times(&self, fault: &str) -> usize {
        self.counts.lock().unwrap().get(fault).copied().unwrap_or_default()
    }

    fn counts(&self) -> String {
        let counts = self.counts.lock().unwrap();
        counts.iter().map(|(fault, count)| format!("{fault:<24}{count:>8}\n")).collect()
    }
}

/// Gives every kind of fault in turn, each turn in another order.
struct Deck<T: 'static> {
    kinds: &'static [T],
    left: Vec<T>,
}

impl<T: std::marker::Copy> Deck<T> {
    fn of(kinds: &'static [T]) -> Self {
        Self { kinds, left: Vec::new() }
    }

    fn draw(&mut self, rng: &mut Rng) -> T {
        if self.left.is_empty() {
            self.left = self.kinds.to_vec();
            rng.shuffle(&mut self.left);
        }
        self.left.pop().unwrap()
    }
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

/// Waits, at most until `end`; whether that is still to come.
async fn pause(duration: Duration, end: Instant) -> bool {
    tokio::time::sleep_until((Instant::now() + duration).min(end).into()).await;
    Instant::now() < end
}

/// A relay that drains after SIGTERM, and its server.
#[derive(Default)]
struct Drain {
    is_under_way: AtomicBool,
    kill_a_server: Notify,
}

/// Kills and stops relays, the one that works more often than others, and starts each again. Some of those that are
/// stopped have calls that last, and lose their connection, their server or their time while they drain.
async fn break_relays(
    relays: &mut [Replica],
    webhook: &Webhook,
    drain: &Drain,
    mut rng: Rng,
    end: Instant,
    diary: &Diary,
) {
    let mut deck = Deck::of(&[
        ("relay kill -9", true),
        ("relay kill -9", false),
        ("relay SIGTERM", true),
        ("relay SIGTERM", false),
        ("cut off in a drain", true),
        ("frozen in a drain", true),
        ("server to die in a drain", true),
    ]);
    while pause(millis(&mut rng, 500..3500), end).await {
        for relay in relays.iter_mut() {
            relay.revive(diary);
            relay.measure();
        }
        let (any, away) = (rng.usize(..RELAYS), millis(&mut rng, 0..2000));
        let (cut_off, frozen) = (millis(&mut rng, 200..6000), millis(&mut rng, 4000..8000));
        let (fault, busiest) = deck.draw(&mut rng);
        let number = if busiest {
            (0..RELAYS).max_by_key(|number| relays[*number].last_received()).unwrap()
        } else {
            any
        };
        let relay = &mut relays[number];
        let details =
            format!("relay {number} for {away:?}{}", if busiest { ", the busiest" } else { "" });
        match fault {
            "relay kill -9" | "relay SIGTERM" => {
                diary.count(fault, &details);
                relay.end(if fault == "relay kill -9" { "KILL" } else { "TERM" }, diary).await;
            }
            _ => {
                webhook.slow.store(true, Ordering::Relaxed);
                sleep(Duration::from_millis(500)).await;
                drain.is_under_way.store(true, Ordering::Relaxed);
                relay.signal("TERM");
                match fault {
                    "cut off in a drain" => {
                        diary.count(fault, &format!("{details}; cut off for {cut_off:?}"));
                        relay.proxies.iter().for_each(|proxy| proxy.close());
                        sleep(cut_off).await;
                        relay.proxies.iter().for_each(|proxy| proxy.open());
                    }
                    "frozen in a drain" => {
                        diary.count(fault, &format!("{details}; frozen for {frozen:?}"));
                        // One that has ended remains for as long as nobody asks.
                        relay.signal("STOP");
                        sleep(frozen).await;
                        relay.signal("CONT");
                    }
                    _ => {
                        diary.count(fault, &details);
                        drain.kill_a_server.notify_one();
                    }
                }
                relay.measure();
                relay.ended("TERM", diary).await;
                drain.is_under_way.store(false, Ordering::Relaxed);
                webhook.slow.store(false, Ordering::Relaxed);
            }
        }
        sleep(away).await;
        relays[number].spawn();
    }
}

/// Breaks servers, one at a time; what they serve is whole again before the next one.
async fn break_servers(
    cluster: &mut Cluster,
    client: &Client,
    drain: &Drain,
    mut rng: Rng,
    end: Instant,
    diary: &Diary,
) {
    const ALONE: &[&str] = &["server kill -9", "server SIGTERM", "server SIGSTOP"];
    const TOGETHER: &[&str] = &[
        "server kill -9",
        "server SIGTERM",
        "server SIGSTOP",
        "stream leader stepdown",
        "stream leader stepdown",
        "consumer leader stepdown",
    ];
    let size = cluster.nodes().len();
    let mut deck = Deck::of(if size == 1 { ALONE } else { TOGETHER });
    loop {
        let due = pause(millis(&mut rng, 300..3000), end);
        let in_a_drain = tokio::select! {
            () = drain.kill_a_server.notified() => drain.is_under_way.load(Ordering::Relaxed),
            _ = due => false,
        };
        if Instant::now() >= end {
            break;
        }
        let (number, away, stream) = (
            rng.usize(..size),
            millis(&mut rng, 100..6000),
            *rng.choice(&["CMS", "RELAYED"]).unwrap(),
        );
        let fault = if in_a_drain { "server kill -9" } else { deck.draw(&mut rng) };
        diary.add("server died in a drain", usize::from(in_a_drain));
        let node = &mut cluster.nodes()[number];
        match fault {
            "stream leader stepdown" => {
                let answer =
                    ask(client, format!("STREAM.LEADER.STEPDOWN.{stream}"), json!({})).await;
                diary.count(fault, &format!("of {stream}{}", answer.err().unwrap_or_default()));
            }
            "consumer leader stepdown" => {
                let answer =
                    ask(client, format!("CONSUMER.LEADER.STEPDOWN.CMS.{CONSUMER}"), json!({}))
                        .await;
                diary.count(fault, &answer.err().unwrap_or_default());
            }
            "server SIGSTOP" => {
                diary.count(fault, &format!("node {number} for {away:?}"));
                node.freeze();
                sleep(away).await;
                node.thaw();
            }
            _ => {
                diary.count(fault, &format!("node {number} for {away:?}"));
                if fault == "server kill -9" {
                    node.kill()
                } else {
                    node.terminate().await
                }
                sleep(away).await;
                node.restart().await;
            }
        }
        let whole = async {
            for stream in ["CMS", "RELAYED", "FAILED"] {
                until(&format!("{stream} is whole"), || cluster.is_complete(client, stream)).await;
            }
        };
        let whole = timeout(Duration::from_secs(30), whole).await.is_ok();
        diary.say(if whole { "the servers are whole" } else { "the servers are still not whole" });
    }
}

/// Cuts the relays' connections, between messages or within one, makes one of them slow, removes the consumer while
/// all are cut off, and has the webhook refuse everything for a while.
async fn break_connections(
    proxies: &[Vec<Arc<Proxy>>],
    client: &Client,
    webhook: &Webhook,
    mut rng: Rng,
    end: Instant,
    diary: &Diary,
) {
    let mut deck = Deck::of(&[
        "connection cut",
        "in mid-message",
        "in mid-message",
        "in mid-message",
        "webhook away",
        "slow link",
        "slow link",
        "consumer removed",
    ]);
    let all = || proxies.iter().flatten();
    while pause(millis(&mut rng, 300..2500), end).await {
        let (number, bytes, away) =
            (rng.usize(..RELAYS), rng.usize(1..30_000), millis(&mut rng, 200..3000));
        let rate = rng.usize(5_000_000..20_000_000);
        match deck.draw(&mut rng) {
            "webhook away" => {
                diary.count("webhook away", &format!("for {away:?}"));
                webhook.away.store(true, Ordering::Relaxed);
                pause(away, end).await;
                webhook.away.store(false, Ordering::Relaxed);
            }
            "connection cut" => {
                diary.count("connection cut", &format!("of relay {number}"));
                proxies[number].iter().for_each(|proxy| proxy.cut());
            }
            "slow link" => {
                // Until it is another's.
                diary.count("slow link", &format!("of relay {number}, {rate} bytes a second"));
                all().for_each(|proxy| proxy.unthrottle());
                proxies[number].iter().for_each(|proxy| {
                    proxy.throttle(rate);
                    proxy.cut();
                });
            }
            "consumer removed" => {
                all().for_each(|proxy| proxy.close());
                let answer =
                    ask(client, format!("CONSUMER.DELETE.CMS.{CONSUMER}"), json!({})).await;
                diary.count(
                    "consumer removed",
                    &format!("and all cut off for {away:?} {}", answer.err().unwrap_or_default()),
                );
                pause(away, end).await;
                all().for_each(|proxy| proxy.open());
            }
            _ => {
                diary.say(&format!("cut in mid-message: of all relays, after {bytes} bytes"));
                all().for_each(|proxy| proxy.cut_after(bytes));
            }
        }
    }
    all().for_each(|proxy| {
        proxy.spare();
        proxy.unthrottle();
    });
    diary.add("cut in mid-message", all().map(|proxy| proxy.times_cut()).sum());
    webhook.healthy.store(true, Ordering::Relaxed);
}

/// Says how far the relays have come, for who looks on.
async fn tell_progress(client: &Client, end: Instant, diary: &Diary) {
    while pause(Duration::from_secs(15), end).await {
        let mut counts = Vec::new();
        for stream in ["CMS", "RELAYED"] {
            let info = ask(client, format!("STREAM.INFO.{stream}"), json!({})).await;
            counts.push(
                info.map_or_else(|error| error, |info| info["state"]["messages"].to_string()),
            );
        }
        diary.say(&format!("{} stored, {} relayed", counts[0], counts[1]));
    }
}

/// Waits until the relays have nothing left to do, and stops them. Whether they came to that.
async fn finish(client: &Client, relays: &mut [Replica], diary: &Diary) -> bool {
    let (mut last, mut changed, mut said) = (String::new(), Instant::now(), Instant::now());
    let finished = loop {
        for relay in relays.iter_mut() {
            relay.revive(diary);
            relay.measure();
        }
        let relayed = ask(client, "STREAM.INFO.RELAYED", json!({}))
            .await
            .map_or(json!(null), |info| info["state"]["messages"].clone());
        let end = ask(client, "STREAM.INFO.CMS", json!({}))
            .await
            .ok()
            .and_then(|info| info["state"]["last_seq"].as_u64());
        // A leader that was just elected counts nothing at first.
        let is_settled = |info: &Value| {
            let is_empty = info["num_pending"] == 0 && info["num_ack_pending"] == 0;
            is_empty && end.is_some() && info["ack_floor"]["stream_seq"].as_u64() >= end
        };
        let state = match ask(client, format!("CONSUMER.INFO.CMS.{CONSUMER}"), json!({})).await {
            Ok(info) if is_settled(&info) => break true,
            Ok(info) => format!(
                "{} waiting, {} being worked on, {relayed} relayed",
                info["num_pending"], info["num_ack_pending"]
            ),
            Err(error) => format!("{error}, {relayed} relayed"),
        };
        if state != last {
            (last, changed) = (state, Instant::now());
        }
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            diary.say(&last);
        }
        if changed.elapsed() > STANDSTILL {
            diary.say(&format!("nothing has happened for {STANDSTILL:?}: {last}"));
            break false;
        }
        sleep(Duration::from_millis(100)).await;
    };
    diary.say("stopping the relays");
    for relay in relays {
        relay.end("TERM", diary).await;
    }
    finished
}

// ---- The publishers ----------------------------------------------------------------------

/// Publishes on the publisher's own subjects until `end`. A subject's next message is sent when the stream has
/// acknowledged the one before.
async fn publish(publisher: usize, client: Client, mut rng: Rng, end: Instant) -> Vec<Key> {
    let mut acknowledged = Vec::new();
    let (mut numbers, mut burst) = ([0; SUBJECTS_EACH], 0_usize);
    while pause(millis(&mut rng, 0..if burst > 0 { 1 } else { 60 }), end).await {
        let own = rng.usize(..SUBJECTS_EACH);
        numbers[own] += 1;
        let key =
            Key { subject: format!("s{}", publisher * SUBJECTS_EACH + own), number: numbers[own] };
        // More than a server keeps for a client that is slow, now and then.
        burst = if rng.u16(..6000) == 0 { 120 } else { burst.saturating_sub(1) };
        let filler = match rng.u16(..600) {
            rare if rare < 4 || burst > 0 => rng.usize(300_000..1_000_000),
            4..24 => 50_000,
            _ => rng.usize(..1500),
        };
        let payload = payload(key.number, filler);
        // The id lets the stream take one of several tries.
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", key.to_string());
        let attempt = || async {
            let request = Request::new()
                .headers(headers.clone())
                .payload(payload.clone().into())
                .timeout(Some(Duration::from_secs(1)));
            let answer = client
                .send_request(format!("cms.cache.{}", key.subject), request)
                .await
                .map_err(|error| error.to_string())?;
            let answer = String::from_utf8_lossy(&answer.payload).into_owned();
            if answer.contains("\"stream\":\"CMS\"") && !answer.contains("\"error\"") {
                Ok(())
            } else {
                Err(answer)
            }
        };
        while attempt().await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        acknowledged.push(key);
    }
    acknowledged
}

/// The number, the length of the filler, and a filler that shows when a byte of it is missing.
fn payload(number: u64, filler: usize) -> String {
    let (after, before) = "abcdefghijklmnopqrstuvwxyz".split_at((number % 26) as usize);
    let letters = [before, after].concat().repeat(filler / 26 + 1);
    format!("{number} {filler}\n") + &letters[..filler]
}

/// The message that has this subject, under whichever prefix, and this payload, of which not a byte may have changed.
fn key(subject: &str, bytes: &[u8]) -> Key {
    let text = std::str::from_utf8(bytes).unwrap();
    let (head, _) = text.split_once('\n').unwrap();
    let (number, filler) = head.split_once(' ').unwrap();
    let number = number.parse().unwrap();
    assert_eq!(text, payload(number, filler.parse().unwrap()), "{subject} {number} was changed");
    Key { subject: subject.rsplit('.').next().unwrap().to_owned(), number }
}

fn copy(stored: &Stored, id: &str) -> Copy {
    let id = stored.header(id).unwrap_or_default().to_owned();
    Copy { key: key(&stored.subject, &stored.payload), id, at: stored.at }
}

// ---- The webhook -------------------------------------------------------------------------

/// An HTTP endpoint that accepts most calls and records each. What it does with a message at the n-th call depends on
/// nothing but the seed.
struct Webhook {
    port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
    away: Arc<AtomicBool>,
    /// Calls that begin meanwhile last for some seconds.
    slow: Arc<AtomicBool>,
    /// From then on it accepts everything, at once.
    healthy: Arc<AtomicBool>,
    /// How many resyncs have been called.
    resyncs: Arc<AtomicUsize>,
}

impl Webhook {
    async fn start(seed: u64) -> Self {
        let (calls, tries) =
            (Arc::<Mutex<Vec<Call>>>::default(), Arc::<Mutex<HashMap<Key, u64>>>::default());
        let [away, slow, healthy] = std::array::from_fn(|_| Arc::<AtomicBool>::default());
        let shared = (calls.clone(), away.clone(), slow.clone(), healthy.clone());
        let resyncs = Arc::<AtomicUsize>::default();
        let counted = resyncs.clone();
        let port = raw(move |_, mut stream| {
            let (tries, (calls, away, slow, healthy)) = (tries.clone(), shared.clone());
            let resyncs = counted.clone();
            Box::pin(async move {
                while let Some(request) = request(&mut stream).await {
                    if request.contains("\r\nnats-resync: ") {
                        resyncs.fetch_add(1, Ordering::Relaxed);
                        match reply(&mut stream, Answer::Accepted).await {
                            true => continue,
                            false => return,
                        }
                    }
                    let (mut call, delay) = {
                        let (key, id) = called(&request);
                        let mut tries = tries.lock().unwrap();
                        let nth = tries.entry(key.clone()).or_default();
                        *nth += 1;
                        let (answer, delay, if_slow) = decide(seed, &key, *nth);
                        let delay =
                            if slow.load(Ordering::Relaxed) { delay.max(if_slow) } else { delay };
                        let answer = match () {
                            () if healthy.load(Ordering::Relaxed) => Answer::Accepted,
                            () if away.load(Ordering::Relaxed) => Answer::Refused,
                            () => answer,
                        };
                        (Call { key, id, answer, at: SystemTime::now() }, delay)
                    };
                    let begun = Instant::now();
                    while begun.elapsed() < delay
                        && !(call.answer == Answer::Accepted && healthy.load(Ordering::Relaxed))
                    {
                        sleep((delay - begun.elapsed().min(delay)).min(Duration::from_millis(50)))
                            .await;
                    }
                    call.at = SystemTime::now();
                    let answer = call.answer;
                    calls.lock().unwrap().push(call);
                    if !reply(&mut stream, answer).await {
                        return;
                    }
                }
            })
        })
        .await;
        Self { port, calls, away, slow, healthy, resyncs }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

/// What becomes of a call, after how long, and after how long where calls last.
fn decide(seed: u64, key: &Key, nth: u64) -> (Answer, Duration, Duration) {
    let mut hasher = DefaultHasher::new();
    (seed, key, nth).hash(&mut hasher);
    let mut rng = Rng::with_seed(hasher.finish());
    let answer = match rng.u8(..100) {
        ..6 => Answer::Refused,
        6..8 => Answer::Hung,
        8..11 => Answer::Closed,
        11..14 => Answer::Torn,
        _ => Answer::Accepted,
    };
    let (delay, if_slow) = (millis(&mut rng, 0..30), millis(&mut rng, 0..10_000));
    // One in a while seems to hang.
    let hangs = answer == Answer::Accepted && rng.u16(..1500) == 0;
    (answer, if hangs { millis(&mut rng, 5_000..25_000) } else { delay }, if_slow)
}

/// Answers a call; whether the connection can have another one.
async fn reply(stream: &mut TcpStream, answer: Answer) -> bool {
    let bytes: &[u8] = match answer {
        Answer::Accepted => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        Answer::Refused => b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
        Answer::Torn => b"HTTP/1.1 200 OK\r\ncontent-le",
        Answer::Closed | Answer::Hung => b"",
    };
    if answer == Answer::Hung {
        // A relay gives up first, if it is not one with patience.
        let _ = timeout(Duration::from_millis(1500), stream.read(&mut [0])).await;
    }
    stream.write_all(bytes).await.is_ok() && matches!(answer, Answer::Accepted | Answer::Refused)
}

/// The message and the `webhook-id` of a request.
fn called(request: &str) -> (Key, String) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap()
    };
    (key(header("nats-subject"), body.as_bytes()), header("webhook-id").to_owned())
}

// ---- The relays --------------------------------------------------------------------------

/// One of several relays on the same consumer, over its lives, with a proxy before each server.
struct Replica {
    number: usize,
    proxies: Vec<Arc<Proxy>>,
    webhook: String,
    attempts: String,
    shared: bool,
    relay: Relay,
    /// The most that any of its lives has occupied, in KiB, as far as was seen.
    memory: u64,
    /// Of its ended lives.
    logs: Vec<Vec<String>>,
}

impl Replica {
    async fn start(
        number: usize,
        cluster: &Cluster,
        webhook: &Webhook,
        attempts: &str,
        shared: bool,
    ) -> Self {
        let mut proxies = Vec::new();
        for port in cluster.ports() {
            proxies.push(Arc::new(Proxy::to(port).await));
        }
        let (webhook, attempts) = (webhook.url(), attempts.to_owned());
        let relay = spawn(number, &proxies, &webhook, &attempts, shared);
        Self { number, proxies, webhook, attempts, shared, relay, memory: 0, logs: Vec::new() }
    }

    /// Begins another life.
    fn spawn(&mut self) {
        self.logs.push(self.relay.log());
        let Self { number, proxies, webhook, attempts, shared, .. } = self;
        self.relay = spawn(*number, proxies, webhook, attempts, *shared);
    }

    /// Ends a life.
    async fn end(&mut self, name: &str, diary: &Diary) {
        if !self.relay.is_running() {
            return;
        }
        self.measure();
        self.signal(name);
        self.ended(name, diary).await;
    }

    /// Waits until the signal `name` has ended it.
    async fn ended(&mut self, name: &str, diary: &Diary) {
        let status = self.relay.exit().await;
        if name == "TERM" && !status.success() {
            diary.count("relay ended in failure", &format!("relay {}: {status}", self.number));
        }
    }

    /// Sends a signal to the process, which may have ended without anybody having asked.
    fn signal(&self, name: &str) {
        signal(self.relay.pid(), name);
    }

    /// Takes note of how much memory it has occupied.
    fn measure(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.relay.pid()))
            .unwrap_or_default();
        // One that has ended occupies none.
        let highest = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        self.memory = self.memory.max(highest.unwrap_or(0));
    }

    /// Begins another life when the relay has ended by itself.
    fn revive(&mut self, diary: &Diary) {
        if !self.relay.is_running() {
            let log = self.relay.log();
            diary.count(
                SELF_ENDED,
                &format!("relay {}: {}", self.number, log.last().map_or("", String::as_str)),
            );
            assert!(diary.times(SELF_ENDED) < 20, "relays do not run: {}", log.join("\n"));
            self.spawn();
        }
    }

    /// When it last took a message in, as its log has it.
    fn last_received(&self) -> Option<String> {
        let log = self.relay.log();
        let line = log.iter().rev().find(|line| line.contains("\"message\":\"received\""))?;
        Some(support::relay::field(line, "timestamp").to_owned())
    }

    /// The log of each life, with a name.
    fn into_logs(mut self) -> Vec<(String, Vec<String>)> {
        self.logs.push(self.relay.log());
        let number = self.number;
        self.logs
            .into_iter()
            .enumerate()
            .map(|(life, log)| (format!("relay-{number}-{life}"), log))
            .collect()
    }
}

fn spawn(
    number: usize,
    proxies: &[Arc<Proxy>],
    webhook: &str,
    attempts: &str,
    shared: bool,
) -> Relay {
    // The first one has no patience: neither with calls nor at its end.
    let (call, grace) = if number == 0 { ("1s", "3s") } else { ("30s", "12s") };
    let nats: Vec<_> = proxies.iter().map(|proxy| proxy.url()).collect();
    let mut variables = vec![
        ("NATS_STREAM", "CMS"),
        ("NATS_CONSUMER", CONSUMER),
        ("NATS_DELIVER", "all"),
        ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache"),
        ("WEBHOOK_MAX_ATTEMPTS", attempts),
        ("WEBHOOK_TIMEOUT", call),
        ("SHUTDOWN_GRACE", grace),
        (
            "RUST_LOG",
            "info,nats_webhook_relay::relay=debug,nats_webhook_relay::webhook=debug,nats_webhook_relay::source=debug",
        ),
    ];
    if shared {
        variables.extend([
            ("COALESCE", "subject"),
            ("COALESCE_WINDOW", "20ms"),
            ("NATS_RESYNC_SUBJECT", "resync"),
            ("RESYNC_ON", "start,reconnect,failed"),
            ("RESYNC_INTERVAL", "1s"),
        ]);
    }
    Relay::spawn(&nats.join(","), webhook, &variables)
}

// ---- Evidence ----------------------------------------------------------------------------

fn by_answer(calls: &[Call]) -> BTreeMap<Answer, usize> {
    let mut counts = BTreeMap::new();
    calls.iter().for_each(|call| *counts.entry(call.answer).or_default() += 1);
    counts
}

/// All that is known about a message, in the order of time.
fn story(wanted: &Key, record: &Record, logs: &[(String, Vec<String>)]) -> String {
    let mut lines = Vec::new();
    let time = |at| humantime::format_rfc3339_micros(at).to_string();
    let mut ids = Vec::new();
    for call in record.calls.iter().filter(|call| call.key == *wanted) {
        lines.push((time(call.at), format!("webhook: {:?}, id {}", call.answer, call.id)));
        ids.push(&call.id);
    }
    for (stream, copies) in [("RELAYED", &record.relayed), ("FAILED", &record.failed)] {
        for (at, copy) in copies.iter().enumerate().filter(|(_, copy)| copy.key == *wanted) {
            lines.push((time(copy.at), format!("{stream}: as number {at}, id {}", copy.id)));
            ids.push(&copy.id);
        }
    }
    for (name, log) in logs {
        for line in
            log.iter().filter(|line| ids.iter().any(|id| line.contains(&format!("\"{id}\""))))
        {
            lines.push((
                support::relay::field(line, "timestamp").to_owned(),
                format!("{name}: {line}"),
            ));
        }
    }
    lines.sort();
    lines.dedup();
    let count = record.acknowledged.iter().filter(|key| *key == wanted).count();
    let stored = record.source.iter().filter(|key| *key == wanted).count();
    let mut story = format!("  acknowledged {count} time(s), in CMS {stored} time(s)\n");
    for (at, line) in lines {
        writeln!(story, "  {at} {line}").unwrap();
    }
    story
}

/// Writes all logs and the record into a folder.
fn keep(folder: &Path, logs: &[(String, Vec<String>)], cluster: &mut Cluster, record: &Record) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
    for (name, log) in logs {
        std::fs::write(folder.join(name), log.join("\n")).unwrap();
    }
    for (number, node) in cluster.nodes().iter().enumerate() {
        std::fs::write(folder.join(format!("server-{number}")), node.log()).unwrap();
    }
    let time = |at| humantime::format_rfc3339_micros(at);
    let calls: Vec<_> = record
        .calls
        .iter()
        .map(|call| format!("{} {} {} {:?}", time(call.at), call.key, call.id, call.answer))
        .collect();
    std::fs::write(folder.join("calls"), calls.join("\n")).unwrap();
    for (name, copies) in [("relayed", &record.relayed), ("failed", &record.failed)] {
        let copies: Vec<_> = copies
            .iter()
            .map(|copy| format!("{} {} {}", time(copy.at), copy.key, copy.id))
            .collect();
        std::fs::write(folder.join(name), copies.join("\n")).unwrap();
    }
    std::fs::write(
        folder.join("source"),
        record.source.iter().map(|key| format!("{key}\n")).collect::<String>(),
    )
    .unwrap();
}

// ---- The judge is just -------------------------------------------------------------------

/// A record of two subjects on which all went well: each message is called and accepted a second before it is relayed.
fn good() -> Record {
    let keys: Vec<_> =
        (0..8).map(|at| Key { subject: format!("s{}", at % 2), number: at / 2 + 1 }).collect();
    let at = |index: usize, extra: u64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(10 * index as u64 + extra)
    };
    let id = |key: &Key| format!("id of {key}");
    let call = |(index, key): (usize, &Key)| Call {
        key: key.clone(),
        id: id(key),
        answer: Answer::Accepted,
        at: at(index, 0),
    };
    let copy =
        |(index, key): (usize, &Key)| Copy { key: key.clone(), id: id(key), at: at(index, 1) };
    Record {
        acknowledged: keys.clone(),
        source: keys.clone(),
        calls: keys.iter().enumerate().map(call).collect(),
        relayed: keys.iter().enumerate().map(copy).collect(),
        failed: Vec::new(),
        shared: false,
    }
}

/// What is wrong with a good record after this has been done to it, and with which messages.
fn wrong_after(spoil: impl FnOnce(&mut Record)) -> Vec<String> {
    let mut record = good();
    spoil(&mut record);
    Verdict::of(&record)
        .wrong()
        .iter()
        .map(|(what, keys)| {
            format!("{what}: {}", keys.iter().map(Key::to_string).collect::<Vec<_>>().join(", "))
        })
        .collect()
}

#[test]
fn the_call_of_a_later_message_counts_where_calls_are_shared() {
    // The first message of s0 has no call of its own, and that of the second comes before or after it is relayed.
    let spoil = |record: &mut Record, at: u64| {
        record.calls.remove(0);
        record.calls[1].at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
    };
    let before = |record: &mut Record| spoil(record, 0);
    assert_eq!(wrong_after(before), ["barrier violation: s0 1"]);
    let shared = |at| {
        move |record: &mut Record| {
            record.shared = true;
            spoil(record, at);
        }
    };
    assert!(wrong_after(shared(0)).is_empty());
    assert_eq!(wrong_after(shared(15)), ["barrier violation: s0 1"]);
}

#[test]
fn a_good_record_is_found_good() {
    assert!(wrong_after(|_| {}).is_empty());
    let verdict = Verdict::of(&good());
    assert_eq!((verdict.acknowledged, verdict.relayed, verdict.failed), (8, 8, 0));
    // Subjects may overtake one another.
    assert!(wrong_after(|record| record.relayed.swap(2, 3)).is_empty());
    // A message may be called again after it was accepted, and may fail in place of being relayed.
    assert!(
        wrong_after(|record| record
            .calls
            .push(Call { answer: Answer::Refused, ..record.calls[0].clone() }))
        .is_empty()
    );
    assert!(wrong_after(|record| record.failed.push(record.relayed.remove(3))).is_empty());
    // What was not acknowledged may be lost, or relayed.
    assert!(
        wrong_after(|record| drop((record.acknowledged.remove(3), record.relayed.remove(3))))
            .is_empty()
    );
    assert!(wrong_after(|record| drop(record.acknowledged.remove(3))).is_empty());
}

#[test]
fn a_lost_message_is_found() {
    assert_eq!(wrong_after(|record| drop(record.relayed.remove(3))), ["lost: s1 2"]);
    assert_eq!(wrong_after(|record| record.relayed.clear())[0].matches(", ").count(), 7);
}

#[test]
fn a_second_copy_is_found() {
    // With the id that it had, which the stream should have known, and with another.
    let again = |record: &mut Record| record.relayed.push(record.relayed[3].clone());
    assert_eq!(wrong_after(again), ["duplicated: s1 2"]);
    let with_another_id = |record: &mut Record| {
        let other = "another id".to_owned();
        record.calls.push(Call { id: other.clone(), ..record.calls[3].clone() });
        record.relayed.push(Copy { id: other, ..record.relayed[3].clone() });
    };
    assert_eq!(wrong_after(with_another_id), ["duplicated: s1 2"]);
    let same_id_for_another = |record: &mut Record| {
        let id = record.relayed[3].id.clone();
        (record.calls[5].id, record.relayed[5].id) = (id.clone(), id);
    };
    assert_eq!(wrong_after(same_id_for_another), ["duplicated: s1 3"]);
}

#[test]
fn a_message_that_was_overtaken_is_found() {
    assert_eq!(wrong_after(|record| record.relayed.swap(2, 4)), ["out of order: s0 2"]);
    // One that waits until the end is overtaken once, whatever has overtaken it.
    assert_eq!(
        wrong_after(|record| {
            let first = record.relayed.remove(0);
            record.relayed.push(first);
        }),
        ["out of order: s0 1"]
    );
    // A second copy is out of place, but not out of order.
    assert_eq!(
        wrong_after(|record| record.relayed.insert(7, record.relayed[1].clone())),
        ["duplicated: s1 1"]
    );
}

#[test]
fn a_message_that_was_relayed_too_early_is_found() {
    let violation = ["barrier violation: s1 2"];
    assert_eq!(wrong_after(|record| drop(record.calls.remove(3))), violation);
    for answer in [Answer::Refused, Answer::Hung, Answer::Closed, Answer::Torn] {
        assert_eq!(wrong_after(|record| record.calls[3].answer = answer), violation);
    }
    assert_eq!(
        wrong_after(|record| record.calls[3].at = record.relayed[3].at + Duration::from_millis(1)),
        violation
    );
    assert_eq!(wrong_after(|record| record.calls[3].id = "another".to_owned()), violation);
    assert_eq!(wrong_after(|record| record.calls[3].key = record.calls[4].key.clone()), violation);
    // The first of several accepted calls counts.
    let accepted_again = |record: &mut Record| {
        let at = record.calls[3].at + Duration::from_secs(100);
        record.calls.push(Call { at, ..record.calls[3].clone() });
    };
    assert!(wrong_after(accepted_again).is_empty());
}

#[test]
fn what_is_not_the_relays_fault_is_told_apart() {
    assert_eq!(
        wrong_after(|record| drop((record.source.remove(3), record.relayed.remove(3)))),
        ["lost: s1 2", "lost by the server: s1 2"]
    );
    assert_eq!(
        wrong_after(|record| record.source.push(record.source[3].clone())),
        ["stored twice by the server: s1 2"]
    );
    let invented =
        |record: &mut Record| drop((record.source.remove(3), record.acknowledged.remove(3)));
    assert_eq!(wrong_after(invented), ["never published: s1 2"]);
}

#[test]
fn a_changed_payload_is_found() {
    assert_eq!(
        key("cms.cache.s1", payload(7, 100).as_bytes()),
        Key { subject: "s1".to_owned(), number: 7 }
    );
    for changed in [
        payload(7, 100).replace('k', "l"),
        payload(7, 100) + "a",
        payload(7, 100).replacen('7', "8", 1),
    ] {
        assert!(std::panic::catch_unwind(|| key("relayed.cache.s1", changed.as_bytes())).is_err());
    }
}

#[test]
fn the_webhook_decides_by_the_seed_alone() {
    let keys: Vec<_> = (0..1000).map(|number| Key { subject: "s0".to_owned(), number }).collect();
    let decide_all = |seed| keys.iter().map(|key| decide(seed, key, 1).0).collect::<Vec<_>>();
    let hanging = |key: &&Key| decide(1, key, 1).1 >= Duration::from_secs(5);
    assert!(
        (0..10_000)
            .map(|number| Key { subject: "s1".to_owned(), number })
            .filter(|key| hanging(&key))
            .count()
            > 1
    );
    assert_eq!(decide_all(1), decide_all(1));
    assert_ne!(decide_all(1), decide_all(2));
    for answer in [Answer::Accepted, Answer::Refused, Answer::Hung, Answer::Closed, Answer::Torn] {
        assert!(decide_all(1).contains(&answer), "{answer:?}");
    }
}
