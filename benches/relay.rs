//! The relay beside a bare HTTP client, in one run on one machine. Run it with `scripts/bench`.
//!
//! Prints, for each payload size and endpoint: messages per second, CPU time per message of the
//! process that makes the calls, latency from publish to relayed message, and peak memory, of
//! (a) a reqwest client that POSTs the same bodies with the same concurrency and does nothing
//! else, (b) the relay, and the ratios. Then: one message at a time, start, idle and flood.
//! Every process is one of its own, so that CPU time and memory are of that process alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use async_nats::Client;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

mod coalesce;
mod gateway;
mod jetstream;
mod operate;
mod plugins;

#[path = "../tests/support/nats.rs"]
#[allow(dead_code, unreachable_pub)]
mod nats;

#[path = "../tests/support/dns.rs"]
#[allow(dead_code, unreachable_pub)]
mod dns;

// What `nats` takes from the tests' support.
const LIMIT: Duration = Duration::from_secs(60);
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}
#[allow(dead_code)]
fn signal(pid: u32, signal: &str) {
    Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
}

const IN_FLIGHT: usize = 128;
/// The machine's speed drifts: each case is measured so often, in turn, and the medians are printed.
const ROUNDS: usize = 3;
/// Subjects, and messages under way at once: enough that the relay always has work.
const SUBJECTS: usize = 2 * IN_FLIGHT;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let number = |index: usize| arguments[index].parse().unwrap();
    match arguments.get(1).map(String::as_str) {
        Some("endpoint") => runtime.block_on(endpoint(number(2))),
        Some("responder") => runtime.block_on(gateway::responder(number(2), &arguments[3])),
        Some("echo") => runtime.block_on(gateway::echo(number(2))),
        Some("bare") => {
            // As such a client is usually written, and on one thread as the relay runs.
            let mut builder = match arguments[2].as_str() {
                "threads" => tokio::runtime::Builder::new_multi_thread(),
                _ => tokio::runtime::Builder::new_current_thread(),
            };
            let (url, size, messages) =
                (arguments[3].clone(), number(4) as usize, number(5) as usize);
            builder.enable_all().build().unwrap().block_on(bare(url, size, messages));
        }
        _ => {
            let quick = arguments.iter().any(|argument| argument == "--quick");
            if arguments.iter().any(|argument| argument == "--plugins") {
                return runtime.block_on(plugins::compare(quick));
            }
            if arguments.iter().any(|argument| argument == "--jetstream") {
                return runtime.block_on(jetstream::compare(quick));
            }
            if arguments.iter().any(|argument| argument == "--coalesce") {
                return runtime.block_on(coalesce::compare(quick));
            }
            if arguments.iter().any(|argument| argument == "--operate") {
                return runtime.block_on(operate::compare(quick));
            }
            if arguments.iter().any(|argument| argument == "--gateway") {
                return runtime.block_on(gateway::compare(quick));
            }
            let only = arguments
                .iter()
                .position(|argument| argument == "--only")
                .and_then(|index| arguments.get(index + 1));
            runtime.block_on(compare(quick, only.map_or("", String::as_str)));
        }
    }
}

async fn compare(quick: bool, only: &str) {
    let scale = if quick { 10 } else { 1 };
    println!(
        "bare: a reqwest client that only POSTs, on tokio's default runtime and on one thread; MAX_IN_FLIGHT {IN_FLIGHT}, {SUBJECTS} subjects, logs at warn unless said\n"
    );
    println!(
        "{:46} {:>9} {:>12} {:>9} {:>9} {:>10}",
        "", "msg/s", "CPU us/msg", "p50 ms", "p99 ms", "peak MiB"
    );
    for (size, after, messages) in
        [(300, 0, 60_000), (300, 20, 25_000), (100_000, 0, 6_000), (100_000, 20, 6_000)]
    {
        let messages = messages / scale;
        let case = format!("{size} B, endpoint after {after} ms");
        if !case.contains(only) {
            continue;
        }
        let mut figures = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            figures[0].push(bare_run("threads", after, size, messages));
            figures[1].push(bare_run("thread", after, size, messages));
            figures[2].push(relay_run(after, size, messages, "warn").await);
        }
        let [bare, bare_one, relay] = figures.map(median);
        bare.print(&format!("{case}: bare"));
        bare_one.print(&format!("{case}: bare, 1 thread"));
        relay.print(&format!("{case}: relay"));
        let ideal = IN_FLIGHT as f64 * 1000.0 / after as f64;
        let of_ideal = if after > 0 {
            format!("; {:.0} % of MAX_IN_FLIGHT / {after} ms", relay.rate / ideal * 100.0)
        } else {
            String::new()
        };
        let (cpu, cpu_one) = (relay.cpu_us / bare.cpu_us, relay.cpu_us / bare_one.cpu_us);
        println!(
            "  relay / bare: throughput x {:.2}, CPU x {cpu:.2} (1 thread: x {cpu_one:.2}){of_ideal}\n",
            relay.rate / bare.rate
        );
    }
    if !only.is_empty() {
        return;
    }
    relay_run(0, 300, 60_000 / scale, "info").await.print("300 B, after 0 ms: relay, info log");
    one_at_a_time(2000 / scale).await;
    start_and_idle().await;
    flood(if quick { 1500 } else { 5000 }).await;
}

struct Figures {
    rate: f64,
    cpu_us: f64,
    latency: Option<(f64, f64)>,
    peak_mib: f64,
}

impl Figures {
    fn print(&self, name: &str) {
        let latency = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
        };
        let (p50, p99) = (latency(self.latency.map(|l| l.0)), latency(self.latency.map(|l| l.1)));
        println!(
            "{name:46} {:9.0} {:12.1} {p50:>9} {p99:>9} {:10.1}",
            self.rate, self.cpu_us, self.peak_mib
        );
    }
}

/// The median of each figure.
fn median(runs: Vec<Figures>) -> Figures {
    let of = |figure: &dyn Fn(&Figures) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let latency = runs[0]
        .latency
        .map(|_| (of(&|run| run.latency.unwrap().0), of(&|run| run.latency.unwrap().1)));
    Figures {
        rate: of(&|run| run.rate),
        cpu_us: of(&|run| run.cpu_us),
        latency,
        peak_mib: of(&|run| run.peak_mib),
    }
}

// --- (a) the bare client ---------------------------------------------------------------------

fn bare_run(runtime: &str, after_ms: u64, size: usize, messages: usize) -> Figures {
    let (_endpoint, url) = start_endpoint(after_ms);
    let arguments = ["bare", runtime, &url, &size.to_string(), &messages.to_string()];
    let output = Command::new(std::env::current_exe().unwrap()).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    Figures {
        rate: messages as f64 / numbers[0],
        cpu_us: numbers[1] / messages as f64,
        latency: None,
        peak_mib: numbers[2],
    }
}

async fn bare(url: String, size: usize, messages: usize) {
    provide_tls();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url: reqwest::Url = url.parse().unwrap();
    let body = body(size, 0);
    let post_all = async |count: usize| {
        let workers = (0..IN_FLIGHT).map(|_| {
            let (client, url, body) = (client.clone(), url.clone(), body.clone());
            tokio::spawn(async move {
                for _ in 0..count / IN_FLIGHT {
                    let post = client
                        .post(url.clone())
                        .header("content-type", "application/json")
                        .body(body.clone());
                    post.send().await.unwrap().bytes().await.unwrap();
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
    };
    post_all(IN_FLIGHT * 10).await;
    let (start, cpu) = (Instant::now(), cpu_us("self"));
    post_all(messages).await;
    println!(
        "{} {} {}",
        start.elapsed().as_secs_f64(),
        cpu_us("self") - cpu,
        memory_mib("self", "VmHWM")
    );
}

// --- (b) the relay ---------------------------------------------------------------------------

async fn relay_run(after_ms: u64, size: usize, messages: usize, log: &str) -> Figures {
    relay_with(after_ms, size, messages, log, &[]).await
}

async fn relay_with(
    after_ms: u64,
    size: usize,
    messages: usize,
    log: &str,
    environment: &[(&str, String)],
) -> Figures {
    relay_on(nats::NatsServer::start(), after_ms, size, messages, log, environment).await
}

async fn relay_on(
    nats: nats::NatsServer,
    after_ms: u64,
    size: usize,
    messages: usize,
    log: &str,
    environment: &[(&str, String)],
) -> Figures {
    let (_endpoint, url) = start_endpoint(after_ms);
    relay_at(nats, &url, size, messages, log, environment).await
}

async fn relay_at(
    nats: nats::NatsServer,
    url: &str,
    size: usize,
    messages: usize,
    log: &str,
    environment: &[(&str, String)],
) -> Figures {
    let relay = Relay::start(&nats.url(), url, log, environment);
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    send(&client, &mut relayed, size, IN_FLIGHT * 10).await;
    let (start, cpu) = (Instant::now(), cpu_us(&relay.pid()));
    let mut latencies = send(&client, &mut relayed, size, messages).await;
    let (elapsed, cpu) = (start.elapsed(), cpu_us(&relay.pid()) - cpu);
    Figures {
        rate: messages as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu / messages as f64,
        latency: Some(percentiles(&mut latencies)),
        peak_mib: memory_mib(&relay.pid(), "VmHWM"),
    }
}

/// Publishes `messages`, [`SUBJECTS`] under way at once, and returns how long each took to come
/// back as a relayed message.
async fn send(
    client: &Client,
    relayed: &mut async_nats::Subscriber,
    size: usize,
    messages: usize,
) -> Vec<Duration> {
    let mut published = HashMap::with_capacity(SUBJECTS);
    let mut latencies = Vec::with_capacity(messages);
    let mut next = 0;
    while latencies.len() < messages {
        while next < messages && published.len() < SUBJECTS {
            published.insert(next, Instant::now());
            client
                .publish(format!("cms.cache.article.{}", next % SUBJECTS), body(size, next))
                .await
                .unwrap();
            next += 1;
        }
        let message = within("a relayed message", relayed.next()).await.unwrap();
        let number: usize = number(&message.payload);
        latencies.push(published.remove(&number).expect("relayed once").elapsed());
    }
    latencies
}

async fn one_at_a_time(messages: usize) {
    let nats = nats::NatsServer::start();
    let (_endpoint, url) = start_endpoint(0);
    let client = nats.client().await;
    provide_tls();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let (mut from, mut to) =
        (client.subscribe("hand.from").await.unwrap(), client.subscribe("hand.to").await.unwrap());
    let relay = Relay::start(&nats.url(), &url, "warn", &[]);
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    let (mut by_hand, mut by_relay) = (Vec::new(), Vec::new());
    for number in 0..messages + 100 {
        let start = Instant::now();
        client.publish("hand.from", body(300, number)).await.unwrap();
        let message = from.next().await.unwrap();
        http.post(&url)
            .header("content-type", "application/json")
            .body(message.payload.clone())
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        client.publish("hand.to", message.payload).await.unwrap();
        to.next().await.unwrap();
        by_hand.push(start.elapsed());

        let start = Instant::now();
        client.publish("cms.cache.article.1", body(300, number)).await.unwrap();
        relayed.next().await.unwrap();
        by_relay.push(start.elapsed());
    }
    drop(relay);
    let ((hand, hand99), (relay, relay99)) =
        (percentiles(&mut by_hand[100..]), percentiles(&mut by_relay[100..]));
    println!(
        "\none message at a time, 300 B: publish + POST + publish by hand p50 {hand:.3} ms (p99 {hand99:.3}), relay p50 {relay:.3} ms (p99 {relay99:.3}): x {:.2}",
        relay / hand
    );
}

async fn start_and_idle() {
    let nats = nats::NatsServer::start();
    let mut ready: Vec<_> = (0..9)
        .map(|_| Relay::start(&nats.url(), "http://127.0.0.1:9/", "info", &[]).ready_after)
        .collect();
    let (p50, worst) = percentiles(&mut ready);
    let relay = Relay::start(&nats.url(), "http://127.0.0.1:9/", "info", &[]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!(
        "ready (subscription active) {p50:.1} ms after start, of 9 starts at most {worst:.1} ms; idle memory {:.1} MiB",
        memory_mib(&relay.pid(), "VmRSS")
    );
}

async fn flood(messages: usize) {
    let nats = nats::NatsServer::start();
    let (_endpoint, url) = start_endpoint(3_600_000);
    let relay = Relay::start(&nats.url(), &url, "warn", &[]);
    let client = nats.client().await;
    for number in 0..messages {
        client.publish(format!("cms.cache.article.{number}"), body(100_000, number)).await.unwrap();
    }
    client.flush().await.unwrap();
    relay.wait_for("messages dropped");
    println!(
        "{messages} messages of 100 kB against an endpoint that hangs, NATS_PENDING_BYTES=64MiB: peak memory {:.1} MiB, afterwards {:.1} MiB",
        memory_mib(&relay.pid(), "VmHWM"),
        memory_mib(&relay.pid(), "VmRSS")
    );
}

// --- processes -------------------------------------------------------------------------------

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Relay {
    process: Process,
    ready_after: Duration,
    log: mpsc::Receiver<String>,
    _folder: TempDir,
}

impl Relay {
    fn start(nats: &str, destination: &str, log: &str, environment: &[(&str, String)]) -> Self {
        let own = [
            ("NATS_HOST", nats),
            ("WEBHOOK_DESTINATION", destination),
            ("NATS_SUBJECT_PREFIX", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ];
        let environment = environment.iter().map(|(name, value)| (*name, value.as_str()));
        let environment: Vec<_> = own.into_iter().chain(environment).collect();
        let log = format!("{log},nats_webhook_relay::command=info");
        Self::spawn(&[], &environment, &log).0
    }

    /// `gateway` or `serve`, with the line that says that it is ready.
    fn subcommand(name: &str, nats: &str, environment: &[(&str, &str)]) -> (Self, String) {
        // Not the lines of single requests.
        let log = "info,nats_webhook_relay::request=warn";
        Self::spawn(&[name], &[&[("NATS_HOST", nats)], environment].concat(), log)
    }

    fn spawn(arguments: &[&str], environment: &[(&str, &str)], log: &str) -> (Self, String) {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nats-webhook-relay"));
        command.args(arguments).env_clear().envs(environment.iter().copied()).env("RUST_LOG", log);
        command.current_dir(folder.path()).stderr(Stdio::piped()).stdin(Stdio::null());
        let start = Instant::now();
        let mut process = command.spawn().unwrap();
        let log = lines(process.stderr.take().unwrap());
        let mut relay =
            Self { process: Process(process), ready_after: Duration::ZERO, log, _folder: folder };
        let ready = relay.wait_for("ready");
        relay.ready_after = start.elapsed();
        (relay, ready)
    }

    fn pid(&self) -> String {
        self.process.0.id().to_string()
    }

    fn wait_for(&self, text: &str) -> String {
        let line = self.log.iter().find(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("the relay has ended before it logged '{text}'"))
    }
}

/// The lines of a log; only those of more than a message's life are kept.
fn lines(log: ChildStderr) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut log = BufReader::new(log);
        let mut line = String::new();
        while log.read_line(&mut line).is_ok_and(|read| read > 0) {
            if ["ready", "dropped"].iter().any(|text| line.contains(text)) {
                let _ = sender.send(line.clone());
            }
            line.clear();
        }
    });
    receiver
}

fn start_endpoint(after_ms: u64) -> (Process, String) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["endpoint", &after_ms.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
    (Process(process), url.trim().to_owned())
}

async fn endpoint(after_ms: u64) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}/hook", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(move |_: axum::body::Bytes| async move {
        if after_ms > 0 {
            // tokio's timer rounds up to the next millisecond: half of one less is right on average.
            tokio::time::sleep(Duration::from_millis(after_ms) - Duration::from_micros(500)).await;
        }
    });
    let router = router.layer(axum::extract::DefaultBodyLimit::disable());
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| stream.set_nodelay(true).unwrap()),
        router,
    )
    .await
    .unwrap();
}

fn provide_tls() {
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
}

/// An event of a CMS, with its number as its id.
fn body(size: usize, number: usize) -> tokio_util::bytes::Bytes {
    let mut body = format!(
        r#"{{"id":"{number:010}","entity":"article","tenant":"acme","path":"/blog/hello","text":""#
    )
    .into_bytes();
    body.resize(size - 2, b'x');
    body.extend(b"\"}");
    body.into()
}

/// The number of a payload, also where a plugin has written it anew.
fn number(payload: &[u8]) -> usize {
    let digits = payload.windows(10).find(|window| window.iter().all(u8::is_ascii_digit)).unwrap();
    std::str::from_utf8(digits).unwrap().parse().unwrap()
}

/// p50 and p99 in milliseconds.
fn percentiles(values: &mut [Duration]) -> (f64, f64) {
    values.sort();
    let at = |part: f64| values[((values.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    (at(0.5), at(0.99))
}

/// The time that a process has run, in microseconds. The scheduler's account, to the nanosecond:
/// user and system time are sampled at the clock's ticks, with which timers are in step.
fn cpu_us(pid: &str) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let run = |thread: std::fs::DirEntry| {
        let schedstat = std::fs::read_to_string(thread.path().join("schedstat")).unwrap();
        schedstat.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1000.0
    };
    threads.map(|thread| run(thread.unwrap())).sum()
}

fn memory_mib(pid: &str, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
