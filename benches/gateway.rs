//! `--gateway`: requests through `gateway` and `serve`, beside NATS and HTTP alone.
//!
//! In each round, with 1 and 32 requests at once of 100 B and 10 kB, which come back as they are:
//! a NATS request (async-nats) and its responder, a bare axum server, an HTTP client with the
//! gateway before that responder, a NATS client with `serve` before that axum server, and both in
//! a row. The first is 1.0. The HTTP client is hyper alone, with a connection for each request at
//! once: a load generator that needs more would be what is measured. Then the memory of both with
//! a thousand slow requests of 100 kB.

use crate::{Process, ROUNDS, Relay, body, cpu_us, memory_mib, nats, percentiles, within};
use async_nats::Client;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_util::bytes::Bytes;

/// Requests of the memory case, and how long each is worked on.
const SLOW: usize = 1000;
const SLOW_MS: u64 = 3000;

/// What is measured, from the client to what answers.
const CASES: [&str; 5] = [
    "NATS request, responder",
    "HTTP, axum",
    "HTTP, gateway, responder",
    "NATS request, serve, axum",
    "HTTP, gateway, serve, axum",
];

struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
    /// CPU time of each request in `gateway`, in `serve` and in what answers.
    cpu_us: [Option<f64>; 3],
}

pub(crate) async fn compare(quick: bool) {
    println!(
        "{:30} {:>9} {:>6} {:>8} {:>8} {:>8} {:>10} {:>9} {:>10}",
        "", "req/s", "x", "p50 ms", "p99 ms", "p99/p50", "gateway us", "serve us", "answers us"
    );
    for (at_once, size, requests) in
        [(1, 100, 4000), (1, 10_000, 4000), (32, 100, 30_000), (32, 10_000, 20_000)]
    {
        println!("{at_once} at once, {size} B");
        let requests = if quick { requests / 10 } else { requests };
        let mut rounds: [Vec<Figures>; CASES.len()] = Default::default();
        for _ in 0..ROUNDS {
            for (case, figures) in rounds.iter_mut().enumerate() {
                figures.push(run(case, at_once, size, requests).await);
            }
        }
        let medians = rounds.map(median);
        for (name, figures) in CASES.iter().zip(&medians) {
            let Figures { rate, p50, p99, cpu_us } = figures;
            let [gateway, serve, answers] =
                cpu_us.map(|us| us.map_or("-".to_owned(), |us| format!("{us:.1}")));
            println!(
                "  {name:28} {rate:9.0} {:6.2} {p50:8.3} {p99:8.3} {:8.1} {gateway:>10} {serve:>9} {answers:>10}",
                rate / medians[0].rate,
                p99 / p50
            );
        }
    }
    memory().await;
}

fn median(runs: Vec<Figures>) -> Figures {
    let of = |figure: &dyn Fn(&Figures) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let cpu_us = [0, 1, 2].map(|index| {
        runs[0].cpu_us[index].map(|_| of(&|run| run.cpu_us[index].unwrap_or_default()))
    });
    Figures { rate: of(&|run| run.rate), p50: of(&|run| run.p50), p99: of(&|run| run.p99), cpu_us }
}

/// Everything that one case needs, each a process of its own.
struct Chain {
    client: Client,
    /// Where HTTP requests go; `None` where the client asks on NATS.
    address: Option<String>,
    gateway: Option<Relay>,
    serve: Option<Relay>,
    answers: Process,
    _nats: nats::NatsServer,
}

impl Chain {
    async fn start(case: usize, after_ms: u64, environment: &[(&str, &str)]) -> Self {
        let nats = nats::NatsServer::start();
        let client = nats.client().await;
        let (has_gateway, has_serve) = ([2, 4].contains(&case), [3, 4].contains(&case));
        let (answers, address) = match case {
            0 | 2 => answering("responder", after_ms, &nats.url()),
            _ => answering("echo", after_ms, ""),
        };
        let start = |name: &str, own: &[(&str, &str)]| {
            Relay::subcommand(name, &nats.url(), &[own, environment].concat())
        };
        let serve = has_serve.then(|| {
            let destination = format!("http://{address}");
            start("serve", &[("SERVE_DESTINATION", &destination), ("SERVE_SUBJECT_PREFIX", "api")])
        });
        let gateway = has_gateway.then(|| {
            start(
                "gateway",
                &[("GATEWAY_LISTEN", "127.0.0.1:0"), ("GATEWAY_SUBJECT_PREFIX", "api")],
            )
        });
        let (gateway, address) = match gateway {
            Some((gateway, ready)) => {
                let address = ready.split("address=").nth(1).unwrap();
                let address = address.split_whitespace().next().unwrap().to_owned();
                (Some(gateway), address)
            }
            None => (None, address),
        };
        let address = [1, 2, 4].contains(&case).then_some(address);
        Self { client, address, gateway, serve: serve.map(|it| it.0), answers, _nats: nats }
    }

    /// `requests` of them, `at_once`; how long each took.
    async fn ask(&self, at_once: usize, size: usize, requests: usize) -> Vec<Duration> {
        let latencies = Rc::new(RefCell::new(Vec::with_capacity(requests)));
        let workers = (0..at_once).map(async |worker| {
            let body = body(size, worker);
            let mut connection = match &self.address {
                Some(address) => Some(Connection::open(address).await),
                None => None,
            };
            for _ in 0..requests / at_once {
                let start = Instant::now();
                let answer = match &mut connection {
                    Some(connection) => connection.post(body.clone()).await,
                    None => self.client.request("api.a.b", body.clone()).await.unwrap().payload,
                };
                latencies.borrow_mut().push(start.elapsed());
                assert_eq!(answer, body, "it comes back as it was");
            }
        });
        within("all answers", futures_util::future::join_all(workers)).await;
        latencies.take()
    }

    /// CPU time so far of `gateway`, `serve` and what answers.
    fn cpu_us(&self) -> [Option<f64>; 3] {
        let of = |relay: &Option<Relay>| relay.as_ref().map(|relay| cpu_us(&relay.pid()));
        [of(&self.gateway), of(&self.serve), Some(cpu_us(&self.answers.0.id().to_string()))]
    }
}

/// An HTTP/1.1 connection that is kept.
struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn post(&mut self, body: Bytes) -> Bytes {
        let request = hyper::Request::post("/a/b").header("host", "bench").body(Full::new(body));
        self.0.ready().await.unwrap();
        let answer = self.0.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap().to_bytes()
    }
}

async fn run(case: usize, at_once: usize, size: usize, requests: usize) -> Figures {
    let chain = Chain::start(case, 0, &[]).await;
    chain.ask(at_once, size, at_once * 20).await;
    let (start, before) = (Instant::now(), chain.cpu_us());
    let mut latencies = chain.ask(at_once, size, requests).await;
    let (elapsed, after) = (start.elapsed().as_secs_f64(), chain.cpu_us());
    let count = latencies.len() as f64;
    let (p50, p99) = percentiles(&mut latencies);
    let cpu_us =
        [0, 1, 2].map(|index| Some((after[index]? - before[index].unwrap_or_default()) / count));
    Figures { rate: count / elapsed, p50, p99, cpu_us }
}

async fn memory() {
    let most = SLOW.to_string();
    let many = [("GATEWAY_MAX_IN_FLIGHT", most.as_str()), ("SERVE_MAX_IN_FLIGHT", &most)];
    let chain = Chain::start(4, SLOW_MS, &many).await;
    chain.ask(SLOW, 100_000, SLOW).await;
    let peak = |relay: &Option<Relay>| memory_mib(&relay.as_ref().unwrap().pid(), "VmHWM");
    println!(
        "{SLOW} requests of 100 kB at once, each answered after {SLOW_MS} ms: peak memory gateway {:.1} MiB, serve {:.1} MiB",
        peak(&chain.gateway),
        peak(&chain.serve)
    );
}

// --- what answers, each in a process of its own ----------------------------------------------

fn answering(what: &str, after_ms: u64, nats: &str) -> (Process, String) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([what, &after_ms.to_string(), nats])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
    (Process(process), address.trim().to_owned())
}

/// Answers NATS requests with their payload.
pub(crate) async fn responder(after_ms: u64, nats: &str) {
    let client = async_nats::connect(nats).await.unwrap();
    let mut requests = client.subscribe("api.>").await.unwrap();
    client.flush().await.unwrap();
    println!("api");
    while let Some(request) = requests.next().await {
        let (client, reply) = (client.clone(), request.reply.unwrap());
        let answer = async move {
            if after_ms > 0 {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
            }
            client.publish(reply, request.payload).await.unwrap();
        };
        match after_ms {
            0 => answer.await,
            _ => drop(tokio::spawn(answer)),
        }
    }
}

/// Answers HTTP requests with their body.
pub(crate) async fn echo(after_ms: u64) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(move |body: Bytes| async move {
        if after_ms > 0 {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
        }
        body
    });
    let router = router.layer(axum::extract::DefaultBodyLimit::disable());
    let listener =
        axum::serve::ListenerExt::tap_io(listener, |stream| stream.set_nodelay(true).unwrap());
    axum::serve(listener, router).await.unwrap();
}
