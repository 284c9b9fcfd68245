//! `gateway`: HTTP requests become NATS messages, through the real program and a real server.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, HeaderMap};
use axum::body::Bytes;
use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use support::nats::NatsServer;
use support::relay::{Relay, run};
use support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A client that does nothing by itself.
fn http() -> reqwest::ClientBuilder {
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

struct Gateway {
    relay: Relay,
    url: String,
    http: reqwest::Client,
}

impl Gateway {
    async fn start(nats: &NatsServer, variables: &[(&str, &str)]) -> Self {
        let mut all = vec![("GATEWAY_LISTEN", "127.0.0.1:0")];
        if !variables.iter().any(|(name, _)| ["GATEWAY_SUBJECT", "GATEWAY_FORMAT"].contains(name)) {
            all.push(("GATEWAY_SUBJECT_PREFIX", "api"));
        }
        all.extend_from_slice(variables);
        let relay = Relay::subcommand("gateway", &nats.url(), &all).await;
        let ready: Value =
            serde_json::from_str(&relay.logged("\"message\":\"ready\"").await).unwrap();
        let url = format!("http://{}", ready["address"].as_str().unwrap());
        let http = http().build().unwrap();
        Self { relay, url, http }
    }

    fn post(&self, target: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{target}", self.url))
    }

    fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// The head of the answer to these bytes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = within("an answer", stream.read_buf(&mut answer)).await.unwrap();
            assert!(read > 0, "the connection ended: {answer:?}");
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Answers each request below `api` with what it was, as JSON, and a status in `X-Status`.
async fn echo(client: &Client) {
    let mut requests = client.subscribe("api.>").await.unwrap();
    let mut root = client.subscribe("api").await.unwrap();
    let client = client.clone();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                Some(message) = requests.next() => message,
                Some(message) = root.next() => message,
                else => return,
            };
            let headers = message.headers.unwrap_or_default();
            let named = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
            let seen = json!({
                "subject": message.subject.as_str(), "method": named("Http-Method"),
                "target": named("Http-Target"), "accept": named("accept"),
                "forwarded": named("x-forwarded-for"), "host": named("x-forwarded-host"),
                "fixed": named("x-fixed"), "body": String::from_utf8_lossy(&message.payload),
                "hop": named("x-hop"), "authorization": named("authorization"),
            });
            let mut answer = HeaderMap::new();
            answer.append("Set-Cookie", "a=1");
            answer.append("Set-Cookie", "b=2");
            if let Some(status) = named("x-status") {
                answer.insert("Http-Status", status);
            }
            let reply = message.reply.unwrap();
            client.publish_with_headers(reply, answer, seen.to_string().into()).await.unwrap();
        }
    });
}

#[tokio::test]
async fn a_request_is_a_message_and_its_reply_the_answer() {
    let nats = NatsServer::start();
    echo(&nats.client().await).await;
    let mut gateway = Gateway::start(&nats, &[("GATEWAY_HEADERS", "x-fixed=a%20b")]).await;
    for (target, subject) in [
        ("/a/b/c?q=%20x", "api.a.b.c"),
        ("/", "api"),
        ("/files/a.tar.gz", "api.files.a%2Etar%2Egz"),
        ("/a/b/", "api.a.b"),
        ("/%3E/%2A", "api.%3E.%2A"),
        ("/$SYS/x", "api.$SYS.x"),
    ] {
        let request = gateway.post(target).header("accept", "x/y").header("X-Fixed", "forged");
        let request = request.body("hello");
        let answer =
            request.header("connection", "x-hop").header("x-hop", "1").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{target}");
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        let seen: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(seen["subject"], subject, "{target}");
        assert_eq!((&seen["method"], &seen["target"]), (&json!("POST"), &json!(target)));
        assert_eq!((&seen["accept"], &seen["body"]), (&json!("x/y"), &json!("hello")));
        assert_eq!((&seen["fixed"], &seen["hop"]), (&json!("a b"), &Value::Null));
        assert_eq!(
            (&seen["forwarded"], &seen["host"]),
            (&json!("127.0.0.1"), &json!(gateway.address()))
        );
    }
    let answer = gateway.post("/a").header("x-status", "418").send().await.unwrap();
    assert_eq!(answer.status(), 418);
    let head = gateway.http.head(format!("{}/a", gateway.url)).send().await.unwrap();
    assert_eq!((head.status(), head.bytes().await.unwrap()), (StatusCode::OK, Bytes::new()));
    assert!(gateway.relay.stop().await.success());
}

#[tokio::test]
async fn http_2_without_tls_is_spoken_too() {
    let nats = NatsServer::start();
    echo(&nats.client().await).await;
    let gateway = Gateway::start(&nats, &[]).await;
    let http = http().http2_prior_knowledge().build().unwrap();
    let calls = (0..200).map(|number| {
        let (http, url) = (http.clone(), format!("{}/n/{number}", gateway.url));
        async move {
            let answer = http.post(url).body(number.to_string()).send().await.unwrap();
            assert_eq!(answer.version(), reqwest::Version::HTTP_2);
            let seen: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            assert_eq!(seen["subject"], format!("api.n.{number}"));
            assert_eq!(seen["body"], number.to_string());
        }
    });
    within("all answers", futures_util::future::join_all(calls)).await;
}

#[tokio::test]
async fn each_refusal_has_its_status_and_a_sentence() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut silent = client.subscribe("api.silent").await.unwrap();
    let mut odd = client.subscribe("api.odd").await.unwrap();
    client.flush().await.unwrap();
    let answering = client.clone();
    tokio::spawn(async move {
        while let Some(message) = odd.next().await {
            let mut headers = HeaderMap::new();
            headers.insert("Http-Status", "100");
            let reply = message.reply.unwrap();
            answering.publish_with_headers(reply, headers, "".into()).await.unwrap();
        }
    });
    let variables = [("GATEWAY_TIMEOUT", "500ms"), ("GATEWAY_MAX_BODY", "1KiB")];
    let gateway = Gateway::start(&nats, &variables).await;
    for (target, body, status, text) in [
        ("/nobody", "", 503, "no responders"),
        ("/silent", "", 504, "no reply in time"),
        ("/odd", "", 502, "not legal"),
        ("/a//b", "", 400, "empty segment"),
        ("/silent", &*"x".repeat(1025), 413, "at most 1024"),
    ] {
        let answer = gateway.post(target).body(body.to_owned()).send().await.unwrap();
        assert_eq!(answer.status(), status, "{target}");
        assert_eq!(answer.headers().contains_key("retry-after"), status == 503, "{target}");
        let said = answer.text().await.unwrap();
        assert!(said.contains(text), "{target}: {said}");
    }
    // A client library would take these away.
    for target in ["/a/%2e%2e/b", "/a/../b", "//"] {
        let get = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = gateway.raw(get.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }
    let long = format!("/{}", "x".repeat(5000));
    assert_eq!(gateway.post(&long).send().await.unwrap().status(), 400);
    // One that does not say how long it is.
    let endless = "POST /silent HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let answer = gateway.raw(format!("{endless}{chunk}{chunk}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX-A: {}\r\n\r\n", "x".repeat(100_000));
    let answer = gateway.raw(large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    within("the silent one was asked", silent.next()).await.unwrap();
}

#[tokio::test]
async fn beyond_the_limit_a_request_is_refused_at_once_and_what_is_under_way_is_finished() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut asked = client.subscribe("api.slow").await.unwrap();
    client.flush().await.unwrap();
    let mut gateway = Gateway::start(&nats, &[("GATEWAY_MAX_IN_FLIGHT", "1")]).await;
    let first = tokio::spawn(gateway.post("/slow").send());
    let message = within("the first request", asked.next()).await.unwrap();
    let second = gateway.post("/slow").send().await.unwrap();
    assert_eq!(
        (second.status().as_u16(), &second.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    // A drain waits for the one that is under way.
    support::signal(gateway.relay.pid(), "TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.publish(message.reply.unwrap(), "done".into()).await.unwrap();
    let answer = within("the first answer", first).await.unwrap().unwrap();
    assert_eq!(answer.text().await.unwrap(), "done");
    assert!(gateway.relay.stop().await.success());
}

#[tokio::test]
async fn a_client_needs_a_token_or_a_signature_where_that_is_set() {
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let nats = NatsServer::start();
    echo(&nats.client().await).await;
    let gateway = Gateway::start(&nats, &[("GATEWAY_TOKEN", "hunter1 hunter2")]).await;
    for (value, status) in [("Bearer hunter2", 200), ("Bearer x", 401), ("", 401)] {
        let answer = gateway.post("/a").header("authorization", value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{value}");
        let said = answer.text().await.unwrap();
        assert!(!said.contains("hunter"), "the token does not travel: {said}");
    }
    let gateway = Gateway::start(&nats, &[("GATEWAY_SECRET", SECRET)]).await;
    let unsigned = gateway.post("/a").body("{}").send().await.unwrap();
    assert_eq!(unsigned.status(), 401);
    // What the relay signs, the gateway accepts.
    let variables = [
        ("WEBHOOK_SECRET", SECRET),
        ("WEBHOOK_DESTINATION", &*format!("{}/hooks/cms", gateway.url)),
    ];
    let relay = Relay::start(&nats.url(), "", &variables).await;
    let client = nats.client().await;
    client.publish("cms.cache.a", "{}".into()).await.unwrap();
    relay.logged("\"message\":\"relayed\"").await;
    assert!(relay.log().iter().chain(&gateway.relay.log()).all(|line| !line.contains("MfKQ")));
}

#[tokio::test]
async fn sent_and_stored_mean_confirmed() {
    let (nats, _) = support::stream::server().await;
    let client = nats.client().await;
    let context = async_nats::jetstream::new(client.clone());
    let stream = async_nats::jetstream::stream::Config {
        name: "HOOKS".to_owned(),
        subjects: vec!["hooks.>".to_owned()],
        ..Default::default()
    };
    let mut stream = context.create_stream(stream).await.unwrap();
    let sent = Gateway::start(&nats, &[("GATEWAY_ANSWER", "sent")]).await;
    let mut heard = client.subscribe("api.a").await.unwrap();
    client.flush().await.unwrap();
    let answer = sent.post("/a").body("x").send().await.unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(within("the message", heard.next()).await.unwrap().payload, "x");

    let variables = [("GATEWAY_ANSWER", "stored"), ("GATEWAY_SUBJECT_PREFIX", "hooks")];
    let stored = Gateway::start(&nats, &variables).await;
    for (id, sequence, is_duplicate) in [("1", "1", false), ("2", "2", false), ("1", "1", true)] {
        let answer =
            stored.post("/stripe").header("idempotency-key", id).body("x").send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((answer.status().as_u16(), header("nats-stream")), (202, Some("HOOKS")));
        assert_eq!(header("nats-sequence"), Some(sequence));
        assert_eq!(header("nats-duplicate").is_some(), is_duplicate);
    }
    assert_eq!(stream.info().await.unwrap().state.messages, 2);
    let variables = [("GATEWAY_ANSWER", "stored")];
    let nowhere = Gateway::start(&nats, &variables).await;
    let answer = nowhere.post("/a").send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.unwrap().contains("no stream captures"));
}

#[tokio::test]
async fn without_a_connection_it_answers_503_and_afterwards_it_goes_on() {
    let mut nats = NatsServer::start();
    let gateway = Gateway::start(&nats, &[]).await;
    nats.kill();
    gateway.relay.logged("lost the connection to NATS").await;
    let answer = within("an answer", gateway.post("/a").send()).await.unwrap();
    assert_eq!(answer.status(), 503);
    nats.restart();
    echo(&nats.client().await).await;
    let mut status = 0;
    for _ in 0..600 {
        status = gateway.post("/a").send().await.unwrap().status().as_u16();
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_client_that_sends_slowly_or_goes_away_keeps_nothing() {
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut asked = client.subscribe("api.slow").await.unwrap();
    client.flush().await.unwrap();
    let variables = [("GATEWAY_TIMEOUT", "1s"), ("GATEWAY_MAX_IN_FLIGHT", "1")];
    let gateway = Gateway::start(&nats, &variables).await;
    let mut slow = TcpStream::connect(gateway.address()).await.unwrap();
    let head = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc";
    slow.write_all(head).await.unwrap();
    let mut answer = vec![0; 12];
    within("the end of its time", slow.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
    drop(slow);
    // The place of one that goes away is free again.
    let mut gone = TcpStream::connect(gateway.address()).await.unwrap();
    gone.write_all(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").await.unwrap();
    within("its message", asked.next()).await.unwrap();
    drop(gone);
    let replies = client.clone();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            replies.publish(message.reply.unwrap(), "here".into()).await.unwrap();
        }
    });
    let mut status = 0;
    for _ in 0..100 {
        status = gateway.post("/slow").body("y").send().await.unwrap().status().as_u16();
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status, 200);
}

#[test]
fn mistakes_are_told_at_once_and_check_says_what_would_be() {
    let (status, _, stderr) = run(
        &["gateway"],
        &[("NATS_HOST", "nats://h"), ("GATEWAY_ANSWER", "maybe"), ("GATEWAY_SECRET", "hunter2")],
    );
    assert_eq!(status.code(), Some(64));
    for text in
        ["GATEWAY_ANSWER: expected", "GATEWAY_SECRET: number 1", "GATEWAY_SUBJECT_PREFIX: required"]
    {
        assert!(stderr.contains(text), "{text}: {stderr}");
    }
    assert!(!stderr.contains("hunter2"), "{stderr}");
    for prefix in ["$SYS.x", "_INBOX", "$JS.API"] {
        let variables = [("NATS_HOST", "nats://h"), ("GATEWAY_SUBJECT_PREFIX", prefix)];
        let (status, _, stderr) = run(&["gateway"], &variables);
        assert!(status.code() == Some(64) && stderr.contains("NATS's own"), "{stderr}");
    }
    let nats = NatsServer::start();
    let variables = [("NATS_HOST", &*nats.url()), ("GATEWAY_SUBJECT_PREFIX", "api")];
    let (status, stdout, _) = run(&["check", "gateway"], &variables);
    assert!(status.success() && stdout.contains("sends to      api.>"), "{stdout}");
}

#[test]
fn the_documents_list_every_variable_with_its_default() {
    use nats_webhook_relay::config::{GATEWAY_VARIABLES, SERVE_VARIABLES};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for (document, variables) in [("gateway.md", GATEWAY_VARIABLES), ("serve.md", SERVE_VARIABLES)]
    {
        let text = std::fs::read_to_string(folder.join(document)).unwrap();
        let (_, help, _) = run(&[document.trim_end_matches(".md"), "--help"], &[]);
        for variable in variables {
            let row =
                text.lines().find(|line| line.starts_with(&format!("| `{}` |", variable.name)));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/{document}", variable.name));
            if let Some(default) = variable.default {
                assert!(row.contains(&format!("| `{default}` |")), "{row}");
            }
            assert!(help.contains(variable.help), "{}", variable.name);
        }
    }
}

/// Kills the gateway a hundred times while clients send, and the server with it every tenth time.
#[tokio::test]
async fn no_message_that_was_answered_with_202_is_missing_whatever_is_killed() {
    let (mut nats, stream) = support::stream::server().await;
    stream.add("HOOKS", "hooks.>", json!({})).await;
    let (mut accepted, mut number) = (Vec::new(), 0);
    let variables = [("GATEWAY_ANSWER", "stored"), ("GATEWAY_SUBJECT_PREFIX", "hooks")];
    for round in 0..100 {
        let gateway = Gateway::start(&nats, &variables).await;
        let calls = (0..8).map(|_| {
            number += 1000;
            let (http, url, first) = (gateway.http.clone(), format!("{}/a", gateway.url), number);
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for id in first..first + 500 {
                    let call = http.post(&url).header("idempotency-key", id.to_string());
                    match call.body(id.to_string()).send().await {
                        Ok(answer) if answer.status() == 202 => accepted.push(id.to_string()),
                        Ok(answer) => assert_eq!(answer.status(), 503),
                        Err(_) => return accepted,
                    }
                }
                accepted
            })
        });
        let calls: Vec<_> = calls.collect();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..60))).await;
        if round % 10 == 9 {
            nats.kill();
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..10))).await;
        }
        support::signal(gateway.relay.pid(), "KILL");
        for call in calls {
            accepted.extend(within("the end of a client", call).await.unwrap());
        }
        if round % 10 == 9 {
            nats.restart();
        }
    }
    assert!(accepted.len() > 100, "{}", accepted.len());
    let client = nats.client().await;
    let stored = support::stream::JetStream::new(&client).messages("HOOKS").await;
    let stored: std::collections::HashSet<_> =
        stored.into_iter().map(|(_, payload)| payload).collect();
    let missing: Vec<_> = accepted.iter().filter(|id| !stored.contains(*id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing", missing.len(), accepted.len());
}
