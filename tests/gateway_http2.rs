//! What a hostile HTTP/2 client can do to `gateway`, frame by frame.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use std::time::Duration;
use support::nats::NatsServer;
use support::relay::{Relay, field};
use support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A connection on which each frame is written by hand.
struct Connection(TcpStream);

impl Connection {
    async fn open(address: &str, settings: &[u8]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut connection = Self(stream);
        connection.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        connection.send(&frame(SETTINGS, 0, 0, settings)).await;
        connection
    }

    /// The server may have closed the connection already.
    async fn send(&mut self, frames: &[u8]) {
        let _ = self.0.write_all(frames).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        within("a frame", read).await
    }

    /// Whether the server ends the connection with an error.
    async fn ends(mut self) -> bool {
        let mut was_told = false;
        while let Some(frame) = self.next().await {
            was_told |= frame.kind == GOAWAY;
        }
        was_told
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields as literals, without any compression (RFC 7541, section 6.2.2).
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn request(method: &str, path: &str) -> Vec<u8> {
    fields(&[(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")])
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET", path))
}

/// `gateway`, and its address.
async fn gateway(nats: &NatsServer, variables: &[(&str, &str)]) -> (Relay, String) {
    let own = [("GATEWAY_LISTEN", "127.0.0.1:0"), ("GATEWAY_SUBJECT_PREFIX", "api")];
    let relay = Relay::subcommand("gateway", &nats.url(), &[&own, variables].concat()).await;
    let address = field(&relay.logged("\"message\":\"ready\"").await, "address").to_owned();
    (relay, address)
}

/// Replies with this body to each message.
async fn responder(client: &Client, subject: &str, body: Vec<u8>) {
    let mut requests = support::subscribe(client, subject).await;
    let client = client.clone();
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            let (reply, body) = (message.reply.unwrap(), body.clone());
            client.publish_with_headers(reply, HeaderMap::new(), body.into()).await.unwrap();
        }
    });
}

/// The kinds of frames and the bytes of data of one stream, to its end.
async fn answered(connection: &mut Connection, stream: u32) -> (Vec<u8>, usize) {
    let (mut kinds, mut data) = (Vec::new(), 0);
    while let Some(frame) = connection.next().await {
        if frame.stream == stream {
            kinds.push(frame.kind);
            data += if frame.kind == DATA { frame.payload.len() } else { 0 };
            if frame.kind == RST_STREAM || frame.flags & END_STREAM != 0 {
                break;
            }
        }
    }
    (kinds, data)
}

async fn is_served(address: &str) -> bool {
    let mut connection = Connection::open(address, &[]).await;
    connection.send(&get(1, "/ok")).await;
    answered(&mut connection, 1).await == (vec![HEADERS, DATA], 2)
}

#[tokio::test]
async fn floods_end_their_connection_and_disturb_no_other() {
    let nats = NatsServer::start();
    responder(&nats.client().await, "api.ok", b"ok".to_vec()).await;
    let (gateway, address) = gateway(&nats, &[]).await;
    let mut resets = Vec::new();
    for number in 0..20_000 {
        resets.extend(get(1 + 2 * number, "/a"));
        resets.extend(frame(RST_STREAM, 0, 1 + 2 * number, &CANCEL));
    }
    let begun = frame(HEADERS, END_STREAM, 1, &request("GET", "/a"));
    let large = [("x", "y".repeat(120))];
    let large = fields(&[(large[0].0, large[0].1.as_str())].repeat(100));
    let continuation = frame(CONTINUATION, 0, 1, &large).repeat(2000);
    let empty = frame(CONTINUATION, 0, 1, &[]).repeat(100_000);
    let post = frame(HEADERS, END_HEADERS, 1, &request("POST", "/a"));
    let nothing = frame(DATA, 0, 1, &[]).repeat(100_000);
    for (name, frames) in [
        ("resets", resets),
        ("continuations", [begun.clone(), continuation].concat()),
        ("empty continuations", [begun, empty].concat()),
        ("empty data", [post, nothing].concat()),
    ] {
        let mut connection = Connection::open(&address, &[]).await;
        connection.send(&frames).await;
        assert!(connection.ends().await, "{name}");
        assert!(is_served(&address).await, "{name}");
    }
    assert!(gateway.memory("VmHWM") < 300 * 1024, "{} KiB", gateway.memory("VmHWM"));
}

#[tokio::test]
async fn what_is_no_request_becomes_no_message() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut heard = support::subscribe(&client, "api.a.>").await;
    responder(&client, "api.ok", b"ok".to_vec()).await;
    let (_gateway, address) = gateway(&nats, &[]).await;
    let base = [(":method", "GET"), (":path", "/a/b"), (":scheme", "http"), (":authority", "x")];
    for more in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("X-A", "1"),
        ("x-a", "1\r\nb: c"),
        ("x-a: 1\r\nb", "c"),
        (":path", "/a/c"),
    ] {
        let mut connection = Connection::open(&address, &[]).await;
        let block = fields(&[&base[..], &[more]].concat());
        connection.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
        loop {
            let frame = connection.next().await.unwrap();
            assert_ne!(frame.kind, HEADERS, "{more:?}");
            if matches!(frame.kind, RST_STREAM | GOAWAY) {
                break;
            }
        }
    }
    assert!(is_served(&address).await);
    assert!(tokio::time::timeout(Duration::ZERO, heard.next()).await.is_err());
}

#[tokio::test]
async fn there_are_256_requests_at_once_of_one_connection() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut asked = support::subscribe(&client, "api.slow").await;
    let (_gateway, address) = gateway(&nats, &[]).await;
    let mut connection = Connection::open(&address, &[]).await;
    let frames: Vec<_> = (0..300).flat_map(|number| get(1 + 2 * number, "/slow")).collect();
    connection.send(&frames).await;
    let mut held = Vec::new();
    while held.len() < 256 {
        held.push(within("a request", asked.next()).await.unwrap());
    }
    let (mut refused, mut answers) = (0, 0);
    while refused < 44 {
        let frame = connection.next().await.unwrap();
        if frame.kind == RST_STREAM {
            assert_eq!(frame.payload, REFUSED_STREAM);
            refused += 1;
        }
    }
    for message in held {
        client.publish(message.reply.unwrap(), "".into()).await.unwrap();
    }
    while answers < 256 {
        answers += usize::from(connection.next().await.unwrap().kind == HEADERS);
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let nats = NatsServer::start();
    responder(&nats.client().await, "api.ok", b"ok".to_vec()).await;
    let (_gateway, address) = gateway(&nats, &[]).await;
    let mut connection = Connection::open(&address, &[]).await;
    let head = request("HEAD", "/ok");
    connection.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head)).await;
    assert_eq!(answered(&mut connection, 1).await, (vec![HEADERS], 0));
}

#[tokio::test]
async fn answers_that_are_not_taken_are_bounded_and_given_up() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    responder(&client, "api.large", vec![b'x'; 500_000]).await;
    responder(&client, "api.ok", b"ok".to_vec()).await;
    let variables = [("GATEWAY_MAX_IN_FLIGHT", "2"), ("GATEWAY_TIMEOUT", "5s")];
    let (_gateway, address) = gateway(&nats, &variables).await;
    // A window of zero for each stream (SETTINGS_INITIAL_WINDOW_SIZE).
    let mut connection = Connection::open(&address, &[0, 4, 0, 0, 0, 0]).await;
    connection.send(&[get(1, "/large"), get(3, "/large")].concat()).await;
    let mut begun = 0;
    while begun < 2 {
        begun += usize::from(connection.next().await.unwrap().kind == HEADERS);
    }
    assert!(!is_served(&address).await, "both have their places");
    let given_up = async {
        while connection.next().await.is_some() {}
        while !is_served(&address).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the end of their time", given_up).await;
}

#[tokio::test]
async fn headers_that_never_end_do_and_a_silent_client_ends_no_drain() {
    let nats = NatsServer::start();
    responder(&nats.client().await, "api.ok", b"ok".to_vec()).await;
    let (mut gateway, address) = gateway(&nats, &[("SHUTDOWN_GRACE", "5min")]).await;
    let mut connection = Connection::open(&address, &[]).await;
    connection.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/ok"))).await;
    while connection.next().await.is_some() {}
    // It answers neither pings nor the announcement of the end.
    let mut silent = Connection::open(&address, &[]).await;
    silent.send(&get(1, "/ok")).await;
    assert_eq!(answered(&mut silent, 1).await.1, 2);
    assert!(gateway.stop().await.success());
}
