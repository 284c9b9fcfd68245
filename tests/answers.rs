//! What an endpoint's answer cannot do to the relay: take its memory, or its time beyond
//! `WEBHOOK_TIMEOUT`. A message is accepted or not by the status, whatever comes after it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::authority::{Authority, TlsListener};
use support::endpoint::{Endpoint, Reply, raw, request};
use support::setup::{Setup, header};
use support::within;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

/// Calls at once.
const CALLS: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much memory all of them may take together, in KiB. One answer could send far more. Over HTTP/2
/// a flood of interim answers has taken up to 62 MiB on a busy machine, where the relay reads it in large parts.
const MOST_KIB: u64 = 80 * 1024;

/// What is to become of a message.
enum Fate {
    Relayed,
    /// With this error.
    Failed(&'static str),
}
use Fate::{Failed, Relayed};

/// Has the endpoint answer `calls` at once in the way `deed`, after a good one and before a good
/// one; `announce` tells it which.
async fn suffer(
    url: &str,
    variables: &[(&str, &str)],
    calls: usize,
    deed: &str,
    fate: &Fate,
    announce: impl Fn(bool),
) {
    let timeout = humantime::format_duration(TIMEOUT).to_string();
    let own = [("WEBHOOK_MAX_ATTEMPTS", "1"), ("WEBHOOK_TIMEOUT", &*timeout)];
    let mut setup = Setup::start(url, &[&own[..], variables].concat()).await;
    // What the first call needs is not the answer's fault.
    announce(false);
    setup.publish("cms.cache.good", "").await;
    setup.relayed().await;
    let (before, start) = (setup.relay.memory("VmHWM"), Instant::now());
    announce(true);
    for number in 0..calls {
        setup.publish(&format!("cms.cache.{deed}.{number}"), "").await;
    }
    match fate {
        Relayed => drop(setup.relayed_by_subject(calls).await),
        Failed(expected) => {
            for message in setup.failed_by_subject(calls).await {
                let error = header(&message, "Relay-Destination-Error");
                assert!(error.contains(expected) && error.len() < 300, "{deed}: {error}");
            }
        }
    }
    let (grown, took) = (setup.relay.memory("VmHWM") - before, start.elapsed());
    assert!(grown < MOST_KIB, "{deed} took {grown} KiB");
    // With room for a slow machine, where a flood also keeps the endpoint and this test from running.
    assert!(took < TIMEOUT + Duration::from_secs(45), "{deed} took {took:?}");
    announce(false);
    let recovers = async {
        loop {
            setup.publish("cms.cache.good", "").await;
            // The connection that all calls share may be on its last leg.
            tokio::select! {
                Some(_) = setup.relayed.next() => return,
                Some(_) = setup.failed.next() => {}
            }
        }
    };
    within("a good answer", recovers).await;
    setup.end().await;
}

/// What inflates to a thousand times its size.
fn bomb() -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .arg("-9")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let zeros = std::thread::spawn(move || {
        std::io::Write::write_all(&mut input, &vec![0; 50_000_000]).unwrap()
    });
    let gzip = gzip.wait_with_output().unwrap();
    zeros.join().unwrap();
    assert!(gzip.status.success() && gzip.stdout.len() < 60_000, "{}", gzip.stdout.len());
    gzip.stdout
}

/// Writes `begin`, and then `again` until nobody reads any more.
async fn flood(
    stream: &mut (impl AsyncWrite + Unpin),
    begin: &[u8],
    again: &[u8],
    pause: Duration,
) {
    let mut sent = stream.write_all(begin).await;
    while sent.is_ok() {
        sent = stream.write_all(again).await;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_over_http_1_takes_much_memory_or_time() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\n";
    let deeds: [(&str, String, Vec<u8>, u64, Fate); 11] = [
        ("header_lines", HEAD.to_owned(), b"x-many: 1\r\n".repeat(1000), 0, Failed("too large")),
        ("header_line", format!("{HEAD}x-long: "), vec![b'x'; 1 << 16], 0, Failed("too large")),
        (
            "interim",
            String::new(),
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(1000),
            0,
            Failed("no answer within 2s"),
        ),
        ("head_drips", HEAD.to_owned(), b"x".to_vec(), 20, Failed("no answer within 2s")),
        (
            "body_drips",
            format!("{HEAD}content-length: 1000000\r\n\r\n"),
            b"x".to_vec(),
            20,
            Relayed,
        ),
        (
            "body_gushes",
            format!("{HEAD}content-length: 1000000000000\r\n\r\n"),
            vec![b'x'; 1 << 16],
            0,
            Relayed,
        ),
        ("body_without_end", format!("{HEAD}\r\n"), vec![b'x'; 1 << 16], 0, Relayed),
        (
            "chunks",
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n"),
            b"1\r\nx\r\n".repeat(1000),
            0,
            Relayed,
        ),
        (
            "chunk_extension",
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n1;x="),
            vec![b'x'; 1 << 16],
            0,
            Relayed,
        ),
        (
            "chunk_size",
            format!("{HEAD}transfer-encoding: chunked\r\n\r\nffffffffffffff\r\n"),
            vec![b'x'; 1 << 16],
            0,
            Relayed,
        ),
        (
            "trailers",
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n0\r\n"),
            b"x-many: 1\r\n".repeat(1000),
            0,
            Relayed,
        ),
    ];
    let deeds = Arc::new(deeds);
    let shared = deeds.clone();
    let port = raw(move |_, mut stream| {
        let deeds = shared.clone();
        Box::pin(async move {
            while let Some(request) = request(&mut stream).await {
                match deeds
                    .iter()
                    .find(|(deed, ..)| request.contains(&format!("cms.cache.{deed}.")))
                {
                    Some((_, begin, again, pause, _)) => {
                        return flood(
                            &mut stream,
                            begin.as_bytes(),
                            again,
                            Duration::from_millis(*pause),
                        )
                        .await;
                    }
                    None => stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .await
                        .unwrap(),
                }
            }
        })
    })
    .await;
    for (deed, .., fate) in &*deeds {
        suffer(&format!("http://127.0.0.1:{port}/"), &[], CALLS, deed, fate, |_| {}).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_compressed_though_nobody_asked_is_not_inflated() {
    let bomb = bomb();
    let authority = Authority::new();
    let listener = TlsListener::bind(authority.server(&["127.0.0.1"], &["h2"])).await;
    let copy = bomb.clone();
    let reply = move |bomb: &Vec<u8>| Reply {
        body: bomb.clone(),
        ..Reply::ok().header("content-encoding", "gzip")
    };
    let endpoints = [
        Endpoint::start(move |_| reply(&bomb)).await,
        Endpoint::tls(listener, move |_| reply(&copy)),
    ];
    for endpoint in &endpoints {
        suffer(
            &endpoint.url(),
            &[("WEBHOOK_CA", &authority.path())],
            CALLS,
            "bomb",
            &Relayed,
            |_| {},
        )
        .await;
        assert!(endpoint.calls().iter().all(|call| call.headers.get("accept-encoding").is_none()));
    }
    // Nor is one that calls itself so and is not.
    let lying = Endpoint::start(|_| Reply {
        body: vec![0xff; 1000],
        ..Reply::ok().header("content-encoding", "gzip, br, nonsense")
    })
    .await;
    suffer(&lying.url(), &[], CALLS, "lie", &Relayed, |_| {}).await;
}

// ---- HTTP/2 ------------------------------------------------------------------------------

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
/// `:status: 200` of HPACK's static table.
const STATUS_200: &[u8] = &[0x88];

/// What is sent on the stream of a call.
type Frames = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;
/// Its name, what is sent once, what again and again, the pause between in ms, and what becomes of the message.
type Deed = (&'static str, Frames, Frames, u64, Fate);

/// Accepts calls, until one is for a deed.
async fn converse(
    stream: TlsStream<TcpStream>,
    deeds: &[Deed],
    mut current: watch::Receiver<usize>,
) -> std::io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    read.read_exact(&mut [0; 24]).await?;
    write.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        read.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match (head[3], head[4]) {
            (SETTINGS, 0) => write.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            (PING, 0) => write.write_all(&frame(PING, 1, 0, &payload)).await?,
            (HEADERS, _) => {
                let deed = *current.borrow_and_update();
                let Some((_, begin, again, pause, _)) = deeds.get(deed) else {
                    write
                        .write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_200))
                        .await?;
                    continue;
                };
                let (begin, again, mut sink) = (begin(stream), again(stream), tokio::io::sink());
                tokio::select! {
                    () = flood(&mut write, &begin, &again, Duration::from_millis(*pause)) => {}
                    // What the relay has to say is read, as a well-meaning endpoint would.
                    _ = tokio::io::copy(&mut read, &mut sink) => {}
                    // Enough of it.
                    _ = current.changed() => {}
                }
                return Ok(());
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_over_http_2_takes_much_memory_or_time() {
    // `:status: 103` and `x: 1`, literally and not to be kept.
    let interim = [&[0x08, 3], &b"103"[..], &[0x00, 1, b'x', 1, b'1']].concat();
    let many = [0x00, 1, b'x', 1, b'1'].repeat(1000);
    let kept = [0x40, 1, b'x', 100].into_iter().chain([b'x'; 100]).collect::<Vec<_>>().repeat(100);
    let none = || -> Frames { Box::new(|_| Vec::new()) };
    let again = |kind: u8, flags: u8, payload: Vec<u8>, times: usize| -> Frames {
        Box::new(move |stream| frame(kind, flags, stream, &payload).repeat(times))
    };
    let status =
        || -> Frames { Box::new(|stream| frame(HEADERS, END_HEADERS, stream, STATUS_200)) };
    let deeds: Vec<Deed> = vec![
        (
            "headers",
            again(HEADERS, 0, STATUS_200.to_vec(), 1),
            again(CONTINUATION, 0, many.clone(), 1),
            0,
            Failed("no usable answer"),
        ),
        (
            "kept_headers",
            again(HEADERS, 0, STATUS_200.to_vec(), 1),
            again(CONTINUATION, 0, kept, 1),
            0,
            Failed("no usable answer"),
        ),
        (
            "empty_continuations",
            again(HEADERS, 0, STATUS_200.to_vec(), 1),
            again(CONTINUATION, 0, Vec::new(), 1000),
            0,
            Failed("no usable answer"),
        ),
        ("interim", none(), again(HEADERS, END_HEADERS, interim, 1000), 0, Failed("no ")),
        ("body_drips", status(), again(DATA, 0, b"x".to_vec(), 1), 20, Relayed),
        ("body_gushes", status(), again(DATA, 0, vec![b'x'; 16_384], 1), 0, Relayed),
        ("empty_data", status(), again(DATA, 0, Vec::new(), 1000), 0, Relayed),
        ("padding", status(), again(DATA, 8, [vec![255], vec![0; 255]].concat(), 100), 0, Relayed),
        ("trailers", status(), again(HEADERS, END_HEADERS | END_STREAM, many, 1), 0, Relayed),
        ("pings", none(), Box::new(|_| frame(PING, 0, 0, &[7; 8]).repeat(1000)), 0, Failed("no ")),
        (
            "settings",
            none(),
            Box::new(|_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 1, 0]).repeat(1000)),
            0,
            Failed("no "),
        ),
        (
            "unknown",
            none(),
            Box::new(|_| frame(0xaa, 0, 0, &[0; 16_384])),
            0,
            Failed("no answer within 2s"),
        ),
        (
            "push",
            again(PUSH_PROMISE, END_HEADERS, [&[0, 0, 0, 2], STATUS_200].concat(), 1),
            again(DATA, 0, vec![0; 100], 1),
            0,
            Failed("no usable answer"),
        ),
    ];
    let deeds = Arc::new(deeds);
    let authority = Authority::new();
    let mut listener = TlsListener::bind(authority.server(&["127.0.0.1"], &["h2"])).await;
    let url = format!("https://127.0.0.1:{}/", listener.port);
    let shared = deeds.clone();
    // Which deed is next; none for a good answer.
    let (round, current) = watch::channel(usize::MAX);
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = axum::serve::Listener::accept(&mut listener).await;
            let (deeds, current) = (shared.clone(), current.clone());
            tokio::spawn(async move { converse(stream, &deeds, current).await });
        }
    });
    for (index, (deed, .., fate)) in deeds.iter().enumerate() {
        let announce = |deeds| round.send(if deeds { index } else { usize::MAX }).unwrap();
        suffer(&url, &[("WEBHOOK_CA", &authority.path())], 1, deed, fate, announce).await;
    }
    server.abort();
}
