//! What a hostile HTTP client, a hostile NATS responder or a server that hangs can do to `gateway`:
//! a corpus of raw requests, each with the only reading of it that is safe.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use support::nats::NatsServer;
use support::relay::{Relay, field};
use support::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const PREFIX: (&str, &str) = ("GATEWAY_SUBJECT_PREFIX", "api");

/// `gateway`, and its address.
async fn gateway(nats: &NatsServer, variables: &[(&str, &str)]) -> (Relay, String) {
    let own = [("GATEWAY_LISTEN", "127.0.0.1:0")];
    let relay = Relay::subcommand("gateway", &nats.url(), &[&own, variables].concat()).await;
    let address = field(&relay.logged("\"message\":\"ready\"").await, "address").to_owned();
    (relay, address)
}

/// Replies to each message below `subject`.
async fn responder(
    client: &Client,
    subject: &str,
    reply: impl Fn(&Message) -> (HeaderMap, Vec<u8>) + Send + 'static,
) {
    let mut requests = support::subscribe(client, subject).await;
    let client = client.clone();
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            let (headers, body) = reply(&message);
            let to = message.reply.unwrap();
            client.publish_with_headers(to, headers, body.into()).await.unwrap();
        }
    });
}

/// Says what a message was.
fn seen(message: &Message) -> (HeaderMap, Vec<u8>) {
    let headers = message.headers.clone().unwrap_or_default();
    let named: serde_json::Map<_, _> = headers
        .iter()
        .map(|(name, values)| {
            let values: Vec<_> = values.iter().map(|value| value.as_str()).collect();
            (name.to_string().to_ascii_lowercase(), json!(values.join("|")))
        })
        .collect();
    let body = String::from_utf8_lossy(&message.payload);
    let seen = json!({ "subject": message.subject.as_str(), "headers": named, "body": body });
    (HeaderMap::new(), seen.to_string().into_bytes())
}

/// Sends bytes and ends the sending side only when the answer is there; all that comes back.
async fn exchange(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    answer(&mut stream).await
}

/// One answer from a connection, with its body.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && !head.starts_with("HTTP/1.1 100 ")
            {
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
                });
                if body.len() >= length.unwrap_or(0) {
                    return text;
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return text;
            }
        }
    };
    within("an answer", read).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn body(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

#[tokio::test]
async fn what_two_programs_could_read_differently_is_refused_and_smuggles_nothing() {
    const CHUNKED: &str = "Host: x\r\nTransfer-Encoding: chunked\r\n";
    let nats = NatsServer::start();
    let client = nats.client().await;
    responder(&client, "api.>", seen).await;
    let mut smuggled = support::subscribe(&client, "api.smuggled").await;
    let (_gateway, address) = gateway(&nats, &[PREFIX]).await;
    let huge = "x".repeat(70_000);
    for (line, fields, content) in [
        // Two lengths, or none that can be read.
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n", "ab"),
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: 2, 2\r\n", "ab"),
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: +2\r\n", "ab"),
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: -2\r\n", "ab"),
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: 0x2\r\n", "ab"),
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: \r\n", "ab"),
        ("POST /a HTTP/1.1", "Host: x\r\nContent-Length: 99999999999999999999999\r\n", "ab"),
        // Transfer encodings that others overlook or take for something else.
        ("POST /a HTTP/1.1", "Host: x\r\nTransfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("POST /a HTTP/1.1", "Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        ("POST /a HTTP/1.1", "Host: x\r\nTransfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        (
            "POST /a HTTP/1.1",
            "Host: x\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n",
            "ab",
        ),
        ("POST /a HTTP/1.1", "Host: x\r\nTransfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        ("POST /a HTTP/1.1", "Host: x\r\nTransfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("POST /a HTTP/1.1", &[CHUNKED, "Transfer-Encoding: chunked\r\n"].concat(), "0\r\n\r\n"),
        ("POST /a HTTP/1.1", &[CHUNKED, "Transfer-Encoding: identity\r\n"].concat(), "0\r\n\r\n"),
        ("POST /a HTTP/1.0", CHUNKED, "0\r\n\r\n"),
        // Chunks.
        ("POST /a HTTP/1.1", CHUNKED, "zz\r\nabc"),
        ("POST /a HTTP/1.1", CHUNKED, "-1\r\nabc"),
        ("POST /a HTTP/1.1", CHUNKED, "0x3\r\nabc\r\n0\r\n\r\n"),
        ("POST /a HTTP/1.1", CHUNKED, "1ffffffffffffffff\r\nabc"),
        ("POST /a HTTP/1.1", CHUNKED, "3\r\nabcXX0\r\n\r\n"),
        ("POST /a HTTP/1.1", CHUNKED, "3\nabc\n0\n\n"),
        ("POST /a HTTP/1.1", CHUNKED, "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("POST /a HTTP/1.1", CHUNKED, &format!("3;{huge}\r\nabc\r\n0\r\n\r\n")),
        ("POST /a HTTP/1.1", CHUNKED, &format!("3\r\nabc\r\n0\r\nX: {huge}\r\n\r\n")),
        // Lines.
        ("GET /a HTTP/1.1", "Host: x\r\nX-A: a\r\n b\r\n", ""),
        ("GET /a HTTP/1.1", "Host: x\r\nX-A: a\rb\r\n", ""),
        ("GET /a HTTP/1.1", "Host: x\r\nX-A: a\0b\r\n", ""),
        ("GET /a HTTP/1.1", "Host: x\r\nX-A : a\r\n", ""),
        ("GET /a HTTP/1.1", " Host: x\r\n", ""),
        ("GET /a HTTP/1.1", "Host: x\r\ngarbage\r\n", ""),
        ("GET /a HTTP/1.1", "Host: x\r\n: x\r\n", ""),
        ("GET  /a HTTP/1.1", "Host: x\r\n", ""),
        ("GET\t/a HTTP/1.1", "Host: x\r\n", ""),
        ("G(T /a HTTP/1.1", "Host: x\r\n", ""),
        ("GET /a HTTP/1.2", "Host: x\r\n", ""),
        ("GET /a HTTP/2.0", "Host: x\r\n", ""),
        ("GET /a http/1.1", "Host: x\r\n", ""),
        ("GET /a", "", ""),
        // Hosts.
        ("GET /a HTTP/1.1", "", ""),
        ("GET /a HTTP/1.1", "Host: a\r\nHost: b\r\n", ""),
        ("GET /a HTTP/1.1", "Host: u@a\r\n", ""),
        ("GET /a HTTP/1.1", "Host: a b\r\n", ""),
        ("GET /a HTTP/1.1", "Host: a/b\r\n", ""),
        ("GET /a HTTP/1.1", "Host: \u{e4}\r\n", ""),
        ("GET http://u:p@b/a HTTP/1.1", "Host: a\r\n", ""),
        // Targets.
        ("CONNECT a:443 HTTP/1.1", "Host: a\r\n", ""),
        ("OPTIONS * HTTP/1.1", "Host: a\r\n", ""),
        ("GET a HTTP/1.1", "Host: a\r\n", ""),
    ] {
        let request = format!("{line}\r\n{fields}\r\n{content}");
        let mut stream = TcpStream::connect(&address).await.unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = answer(&mut stream).await;
        assert_eq!(status(&answer), "400", "{line} {fields:.200} {content:.20}: {answer}");
        // Whatever the connection is now, what follows is not a request that a body has hidden.
        let next = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
        if !content.is_empty() {
            let _ = stream.write_all(next).await;
            let mut rest = String::new();
            let _ = within(fields, stream.read_to_string(&mut rest)).await;
            assert_eq!(rest, "", "{line} {fields} {content:.20}");
        }
    }
    // Where a length and chunks contradict each other, the chunks count, and it is the last request.
    for fields in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
    ] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
        let request = format!("POST /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n0\r\n\r\n{smuggled}");
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = String::new();
        let _ = within("the end", stream.read_to_string(&mut all)).await;
        assert!(all.starts_with("HTTP/1.1 200") && all.matches("HTTP/1.1").count() == 1, "{all}");
    }
    // A body that is refused is not read as a request.
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for (target, length) in [("/a", 5_000_000), ("/a//b", hidden.len())] {
        let request = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n");
        let refused = exchange(&address, format!("{request}\r\n{hidden}").as_bytes()).await;
        assert!(["400", "413"].contains(&status(&refused)), "{refused}");
    }
    exchange(&address, b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(tokio::time::timeout(Duration::ZERO, smuggled.next()).await.is_err());
}

#[tokio::test]
async fn a_path_is_one_subject_below_the_prefix_or_refused() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    responder(&client, "api.>", seen).await;
    let (_gateway, address) = gateway(&nats, &[PREFIX]).await;
    let deep = "/x".repeat(2500);
    for (target, subject) in [
        (&b"/a%00b"[..], Some("api.a%00b")),
        (b"/a%2Fb", Some("api.a/b")),
        (b"/%ff", Some("api.%FF")),
        ("/gr\u{f6}".as_bytes(), Some("api.gr\u{f6}")),
        (b"/$SYS/x", Some("api.$SYS.x")),
        (b"/_INBOX.x", Some("api._INBOX%2Ex")),
        (b"/*", Some("api.%2A")),
        (b"/%3E", Some("api.%3E")),
        (b"/a%0d%0aPUB%20x", Some("api.a%0D%0APUB%20x")),
        (b"/a%C2%85%E2%80%A8", Some("api.a%C2%85%E2%80%A8")),
        (b"/a#b", Some("api.a")),
        (b"http://other/a", Some("api.a")),
        (b"/../a", None),
        (b"/%2e%2E/a", None),
        (b"/a/x%2F..%2F..%2Fb", None),
        (b"/a/..%5cb", None),
        (b"/a//b", None),
        (b"//", None),
        (b"/>", None),
        (b"/a\0b", None),
        (b"/a\x7fb", None),
        (b"/gr\xf6", None),
        (deep.as_bytes(), None),
    ] {
        let request = [b"GET ", target, b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
        let answer = exchange(&address, &request).await;
        let target = String::from_utf8_lossy(target);
        match subject {
            Some(subject) => assert_eq!(body(&answer)["subject"], subject, "{target}"),
            None => assert_eq!(status(&answer), "400", "{target:.50}: {answer}"),
        }
    }
}

#[tokio::test]
async fn a_client_cannot_change_what_the_gateway_or_its_operator_says() {
    let nats = NatsServer::start();
    responder(&nats.client().await, "api.>", seen).await;
    let variables = [PREFIX, ("GATEWAY_HEADERS", "x-tenant=a"), ("GATEWAY_TOKEN", "hunter2")];
    let (gateway, address) = gateway(&nats, &variables).await;
    let fields = "Host: x\r\nauthorization: Bearer hunter2\r\n\
        Connection: x-forwarded-for, x-forwarded-host, x-forwarded-proto, x-tenant, x-hop\r\n\
        X-Hop: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\
        X-Tenant: b\r\nX_Tenant: b\r\nX.Tenant: b\r\nX_Forwarded_For: 6.6.6.6\r\n\
        X_Forwarded_Proto: https\r\nHttp-Method: DELETE\r\nHttp_Target: /x\r\n\
        Nats-Msg-Id: 1\r\nnats_rollup: all\r\nX-A: 1\r\nX-A: 2\r\n";
    let request = format!("GET /a HTTP/1.1\r\n{fields}\r\n");
    let seen = body(&exchange(&address, request.as_bytes()).await);
    let expected = json!({
        "http-method": "GET", "http-target": "/a", "x-a": "1|2", "x-tenant": "a",
        "x-forwarded-for": "127.0.0.1", "x-forwarded-host": "x", "x-forwarded-proto": "http",
    });
    assert_eq!(seen["headers"], expected);
    // The host of the target counts, not that of the header.
    let fields = "Host: x\r\nAuthorization: Bearer hunter2\r\nX-Forwarded-For: 1.2.3.4\r\n";
    let request = format!("GET http://other:1/a HTTP/1.1\r\n{fields}\r\n");
    let seen = body(&exchange(&address, request.as_bytes()).await);
    assert_eq!(seen["headers"]["x-forwarded-host"], "other:1");
    assert_eq!(seen["headers"]["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
    assert!(gateway.log().iter().all(|line| !line.contains("hunter2")));
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_the_refusal() {
    let nats = NatsServer::start();
    let (_gateway, address) = gateway(&nats, &[PREFIX]).await;
    // More than the sockets hold.
    const LENGTH: usize = 32 << 20;
    for (target, expected) in [("/a", "413"), ("/a//b", "400")] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let sent = within("the body", stream.write_all(&vec![b'x'; LENGTH])).await;
        assert!(sent.is_ok(), "{target}: {sent:?}");
        assert_eq!(status(&answer(&mut stream).await), expected);
        // What was sent is used up: the connection goes on.
        stream.write_all(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert_eq!(status(&answer(&mut stream).await), "503", "{target}");
    }
    // Nobody waits for one that does not want to send it.
    let expecting = "POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n";
    let answer =
        exchange(&address, format!("{expecting}Content-Length: {LENGTH}\r\n\r\n").as_bytes()).await;
    assert_eq!(status(&answer), "413", "{answer}");
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_and_one_without_work_ends_no_drain() {
    let nats = NatsServer::start();
    let (mut gateway, address) = gateway(&nats, &[PREFIX, ("SHUTDOWN_GRACE", "5min")]).await;
    let mut silent = Vec::new();
    for sent in ["", "P", "PRI * HTTP/2.0\r\n", "GET /a HTTP/1.1\r\nHo"] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        silent.push((sent, stream));
    }
    for (sent, mut stream) in silent {
        let ended = within(&format!("the end of {sent:?}"), stream.read(&mut [0; 99])).await;
        assert_eq!(ended.unwrap_or(0), 0, "{sent:?}");
    }
    let mut begun = TcpStream::connect(&address).await.unwrap();
    begun.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHo").await.unwrap();
    assert_eq!(status(&answer(&mut begun).await), "503");
    assert!(gateway.stop().await.success());
}

#[tokio::test]
async fn answers_that_are_not_read_are_bounded_and_given_up() {
    const SIZE: usize = 8 << 20;
    let nats = NatsServer::with_config("max_payload: 8MB");
    let client = nats.client().await;
    responder(&client, "api.large", |_| (HeaderMap::new(), vec![b'x'; SIZE])).await;
    responder(&client, "api.small", seen).await;
    let variables = [PREFIX, ("GATEWAY_MAX_IN_FLIGHT", "2"), ("GATEWAY_TIMEOUT", "5s")];
    let (_gateway, address) = gateway(&nats, &variables).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
        stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        within("the start of an answer", stream.readable()).await.unwrap();
        held.push(stream);
    }
    // Both are answered and still have their places.
    let small = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(status(&exchange(&address, small).await), "503");
    // Until their time is over.
    let served = async {
        while status(&exchange(&address, small).await) != "200" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("a place", served).await;
    drop(held);
}

#[tokio::test]
async fn a_reply_can_break_neither_the_connection_nor_the_gateway() {
    let nats = NatsServer::with_config("max_payload: 8MB");
    let client = nats.client().await;
    responder(&client, "api.many", |_| {
        let mut headers = HeaderMap::new();
        (0..40_000).for_each(|number| headers.append(format!("h{number}"), "1"));
        (headers, Vec::new())
    })
    .await;
    responder(&client, "api.hop", |_| {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("Connection", "close, x-hop"),
            ("X-Hop", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "99"),
            ("Keep-Alive", "x"),
            ("Upgrade", "h2c"),
            ("Trailer", "x"),
            ("a/b", "1"),
            ("X-Control", "a\u{1}b"),
            ("X-A", "1"),
        ] {
            headers.append(name, value);
        }
        (headers, b"abc".to_vec())
    })
    .await;
    for status in ["0", "99", "100", "101", "1000", "abc", "-1", "2e2", "204", "205", "304", "999"]
    {
        responder(&client, &format!("api.status.{status}"), move |_| {
            let mut headers = HeaderMap::new();
            headers.insert("Http-Status", status);
            (headers, b"abc".to_vec())
        })
        .await;
    }
    let (gateway, address) = gateway(&nats, &[PREFIX]).await;
    // All over one connection.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    for (target, expected, length) in [
        ("/many", "502", None),
        ("/hop", "200", Some(3)),
        ("/status/0", "502", None),
        ("/status/99", "502", None),
        ("/status/100", "502", None),
        ("/status/101", "502", None),
        ("/status/1000", "502", None),
        ("/status/abc", "502", None),
        ("/status/-1", "502", None),
        ("/status/2e2", "502", None),
        ("/status/204", "204", Some(0)),
        ("/status/205", "205", Some(0)),
        ("/status/304", "304", Some(0)),
        ("/status/999", "999", Some(3)),
    ] {
        stream
            .write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let answer = answer(&mut stream).await;
        assert_eq!(status(&answer), expected, "{target}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(length.is_none_or(|length| body.len() == length), "{answer}");
        for name in ["connection", "x-hop", "transfer-encoding", "keep-alive", "upgrade", "trailer"]
        {
            assert!(!head.contains(&format!("\r\n{name}:")), "{answer}");
        }
    }
    assert!(gateway.lines("panic").is_empty());
}

#[tokio::test]
async fn a_method_leads_to_no_other_host_and_breaks_no_connection() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut heard = support::subscribe(&client, "nrt.requests.>").await;
    let variables = [("GATEWAY_FORMAT", "roundtripper"), ("GATEWAY_HOST", "weather.nats")];
    let (gateway, address) = gateway(&nats, &variables).await;
    for method in ["ADMIN.GET", "*", &"A".repeat(6000)] {
        let request = format!("{method} /a HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = exchange(&address, request.as_bytes()).await;
        assert_eq!(status(&answer), "400", "{method:.20}: {answer}");
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), heard.next()).await.is_err());
    assert!(gateway.lines("lost the connection").is_empty());
    assert!(gateway.log().iter().all(|line| line.len() < 1000));
}

#[tokio::test]
async fn a_server_that_takes_nothing_holds_up_no_request() {
    let nats = NatsServer::start();
    for answer in ["reply", "sent"] {
        let variables = [
            PREFIX,
            ("GATEWAY_ANSWER", answer),
            ("GATEWAY_TIMEOUT", "1s"),
            ("GATEWAY_MAX_IN_FLIGHT", "10000"),
        ];
        let (gateway, address) = gateway(&nats, &variables).await;
        support::signal(nats.pid(), "STOP");
        // More than the socket and the client's queue hold.
        let large = format!(
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n{}",
            "x".repeat(500_000)
        );
        for _ in 0..40 {
            exchange_later(&address, large.clone());
        }
        eventually("the first are answered", || gateway.lines("answered a request").len() >= 40)
            .await;
        for round in 1..=6 {
            for _ in 0..500 {
                exchange_later(&address, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n".to_owned());
            }
            let all = 40 + round * 500;
            eventually("all are answered", || gateway.lines("answered a request").len() >= all)
                .await;
        }
        support::signal(nats.pid(), "CONT");
    }
}

fn exchange_later(address: &str, request: String) {
    let address = address.to_owned();
    tokio::spawn(async move { exchange(&address, request.as_bytes()).await });
}

#[tokio::test]
async fn a_stream_that_is_made_or_replaced_later_is_found() {
    let (nats, stream) = support::stream::server().await;
    let variables = [
        ("GATEWAY_SUBJECT_PREFIX", "hooks"),
        ("GATEWAY_ANSWER", "stored"),
        ("GATEWAY_TIMEOUT", "2s"),
    ];
    let (_gateway, address) = gateway(&nats, &variables).await;
    let post = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(status(&exchange(&address, post).await), "503");
    for name in ["FIRST", "SECOND"] {
        stream.add(name, "hooks.>", json!({})).await;
        let stored = async {
            loop {
                let answer = exchange(&address, post).await;
                if status(&answer) == "202" {
                    return answer;
                }
                assert_eq!(status(&answer), "503", "{answer}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let answer = within("it is stored", stored).await;
        assert!(answer.contains(&format!("nats-stream: {name}")), "{answer}");
        stream.call(&format!("STREAM.DELETE.{name}"), json!({})).await;
    }
}
