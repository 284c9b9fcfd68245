//! `serve`: NATS requests become calls of an HTTP backend; and both ends in each format.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{HeaderMap, Message};
use serde_json::{Value, json};
use std::time::Duration;
use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::{Relay, run};
use support::within;

/// A client that does nothing by itself.
fn http() -> reqwest::ClientBuilder {
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

/// A backend that answers with what it was asked, and the status that the path ends with.
async fn backend() -> Endpoint {
    Endpoint::start(|call| {
        let path = call.path.split('?').next().unwrap_or_default();
        let status = path
            .rsplit('/')
            .next()
            .and_then(|status| status.parse().ok())
            .filter(|status| (200..600).contains(status));
        let seen = json!({
            "method": call.method, "path": call.path, "accept": call.header("accept"),
            "cookie": call.header("cookie"), "body": String::from_utf8_lossy(&call.body),
        });
        let mut reply = Reply::status(status.unwrap_or(200)).header("x-backend", "1");
        if !matches!(status, Some(204 | 304)) {
            reply.body = seen.to_string().into_bytes();
        }
        if call.path.contains("/slow") {
            reply = reply.after(Duration::from_millis(300));
        }
        if call.path.contains("/hangs") {
            reply = reply.after(Duration::from_secs(3600));
        }
        if call.path.contains("/large") {
            reply.body = vec![b'x'; 2 << 20];
        }
        reply
    })
    .await
}

async fn serve(nats: &NatsServer, backend: &Endpoint, variables: &[(&str, &str)]) -> Relay {
    let url = backend.url().replace("/hook", "");
    let mut all = vec![("SERVE_DESTINATION", url.as_str()), ("SERVE_SUBJECT_PREFIX", "api")];
    all.extend_from_slice(variables);
    Relay::subcommand("serve", &nats.url(), &all).await
}

/// A port on which nothing listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

#[tokio::test]
async fn a_message_by_hand_is_a_call_and_the_answer_its_reply() {
    let (nats, backend) = (NatsServer::start(), backend().await);
    let mut relay = serve(&nats, &backend, &[]).await;
    let client = nats.client().await;
    for (subject, payload, method, path) in [
        ("api.weather.Dresden", "", "GET", "/weather/Dresden"),
        ("api.weather.Dresden", "x", "POST", "/weather/Dresden"),
        ("api", "", "GET", "/"),
        ("api.files.a%2Etar%2Egz", "", "GET", "/files/a.tar.gz"),
    ] {
        let reply = within("a reply", client.request(subject, payload.into())).await.unwrap();
        assert_eq!(
            (header(&reply, "Http-Status"), header(&reply, "x-backend")),
            (Some("200"), Some("1"))
        );
        let seen: Value = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(
            (&seen["method"], &seen["path"], &seen["body"]),
            (&json!(method), &json!(path), &json!(payload))
        );
    }
    let mut headers = HeaderMap::new();
    headers.insert("Http-Method", "PUT");
    headers.insert("Http-Target", "/a/404?q=%20x");
    headers.insert("accept", "x/y");
    headers.insert("Nats-Anything", "x");
    let reply = client.request_with_headers("api.a.404", headers, "b".into()).await.unwrap();
    assert_eq!(header(&reply, "Http-Status"), Some("404"));
    let call = backend.calls().pop().unwrap();
    assert_eq!((call.method.as_str(), call.header("accept")), ("PUT", "x/y"));
    assert!(call.path.starts_with("/a/404") && !call.headers.contains_key("nats-anything"));
    // Another target than that of the subject, which permissions are about.
    let calls = backend.count();
    for (subject, target) in [
        ("api.a", "/admin"),
        ("api.a", "/a/../admin"),
        ("api.a", "/a/%2e%2e/admin"),
        ("api.a", "/a#/../admin"),
        (r"api.a\%2E%2E\admin", r"/a\..\admin"),
        ("api.a", "//a"),
        ("api.a", "http://other/a"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Http-Target", target);
        let reply = client.request_with_headers(subject, headers, "".into()).await.unwrap();
        assert_eq!(header(&reply, "Http-Status"), Some("400"), "{target}");
    }
    assert_eq!(backend.count(), calls);
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn what_the_backend_does_wrong_is_said() {
    let (nats, backend) = (NatsServer::start(), backend().await);
    let _relay = serve(&nats, &backend, &[("SERVE_TIMEOUT", "500ms")]).await;
    let client = nats.client().await;
    for (subject, status, text) in [
        ("api.hangs", "504", "no answer within 500ms"),
        ("api.large", "502", "larger than NATS takes"),
    ] {
        let reply = within("a reply", client.request(subject, "".into())).await.unwrap();
        let said = String::from_utf8_lossy(&reply.payload).into_owned();
        assert_eq!(header(&reply, "Http-Status"), Some(status), "{subject}: {said}");
        assert!(said.contains(text), "{said}");
    }
    let closed = format!("http://127.0.0.1:{}/", closed_port());
    let variables = [("SERVE_DESTINATION", closed.as_str()), ("SERVE_SUBJECT_PREFIX", "down")];
    let _down = Relay::subcommand("serve", &nats.url(), &variables).await;
    let reply = within("a reply", client.request("down", "".into())).await.unwrap();
    assert_eq!(header(&reply, "Http-Status"), Some("502"));
}

#[tokio::test]
async fn many_requests_are_worked_on_at_once_and_finished_at_the_end() {
    let (nats, backend) = (NatsServer::start(), backend().await);
    let mut relay = serve(&nats, &backend, &[]).await;
    let client = nats.client().await;
    let began = std::time::Instant::now();
    let requests = (0..100).map(|number| {
        let client = client.clone();
        async move { client.request(format!("api.slow.{number}"), "".into()).await }
    });
    let all = tokio::spawn(futures_util::future::join_all(requests.collect::<Vec<_>>()));
    backend.received(100).await;
    assert!(relay.stop().await.success());
    let replies = within("all replies", all).await.unwrap();
    for (number, reply) in replies.into_iter().enumerate() {
        let reply = reply.unwrap();
        let seen: Value = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(seen["path"], format!("/slow/{number}"));
    }
    assert!(began.elapsed() < Duration::from_secs(20), "one after another it would be 30 s");
}

#[tokio::test]
async fn both_ends_speak_each_format() {
    let (nats, backend) = (NatsServer::start(), backend().await);
    let url = backend.url().replace("/hook", "");
    for (format, serving, gating) in [
        ("plain", vec![("SERVE_SUBJECT_PREFIX", "api")], vec![("GATEWAY_SUBJECT_PREFIX", "api")]),
        (
            "nats-proxy",
            vec![("SERVE_SUBJECT_PREFIX", "px")],
            vec![("GATEWAY_SUBJECT_PREFIX", "px")],
        ),
        ("roundtripper", vec![("SERVE_HOST", "Weather.nats")], vec![]),
    ] {
        let mut all = vec![("SERVE_DESTINATION", url.as_str()), ("SERVE_FORMAT", format)];
        all.extend(serving);
        let mut serve = Relay::subcommand("serve", &nats.url(), &all).await;
        let mut all = vec![("GATEWAY_LISTEN", "127.0.0.1:0"), ("GATEWAY_FORMAT", format)];
        all.extend(gating);
        let mut gateway = Relay::subcommand("gateway", &nats.url(), &all).await;
        let ready: Value =
            serde_json::from_str(&gateway.logged("\"message\":\"ready\"").await).unwrap();
        let url = format!("http://{}", ready["address"].as_str().unwrap());
        let http = http().build().unwrap();
        for (method, target, body, status) in [
            ("GET", "/weather/200?q=1", "", 200),
            ("POST", "/a/b/404", "hello", 404),
            ("PUT", "/x/204", "y", 204),
            ("DELETE", "/x/503", "", 503),
            ("HEAD", "/x/200", "", 200),
        ] {
            let call = http.request(method.parse().unwrap(), format!("{url}{target}"));
            let call = call.header("host", "WEATHER.nats:8080").header("cookie", "a=1; b=2");
            let answer = within(target, call.body(body.to_owned()).send()).await.unwrap();
            assert_eq!(answer.status(), status, "{format} {method} {target}");
            assert_eq!(answer.headers()["x-backend"], "1", "{format} {target}");
            assert_eq!(answer.headers().contains_key("nrt-id"), format == "roundtripper");
            let seen = backend.calls().pop().unwrap();
            assert_eq!(
                (seen.method.as_str(), seen.body.as_ref()),
                (method, body.as_bytes()),
                "{format}"
            );
            assert_eq!(seen.header("cookie"), "a=1; b=2", "{format}");
            assert!(target.starts_with(&seen.path), "{format}: {} for {target}", seen.path);
            let text = answer.text().await.unwrap();
            assert_eq!(text.is_empty(), method == "HEAD" || status == 204, "{format} {text}");
        }
        let answer =
            http.get(format!("{url}/x")).header("host", "nobody.nats").send().await.unwrap();
        if format == "roundtripper" {
            assert_eq!(answer.status(), 503);
        }
        assert!(gateway.stop().await.success() && serve.stop().await.success());
    }
}

#[tokio::test]
async fn it_is_found_by_service_discovery() {
    let (nats, backend) = (NatsServer::start(), backend().await);
    let _relay = serve(&nats, &backend, &[]).await;
    let client = nats.client().await;
    client.request("api.a", "".into()).await.unwrap();
    let reply = within("a reply", client.request("$SRV.STATS", "".into())).await.unwrap();
    let stats: Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!(stats["name"], "nats-webhook-relay-serve");
    let requests: u64 = stats["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["num_requests"].as_u64().unwrap())
        .sum();
    assert_eq!(requests, 1, "{stats}");
    assert_eq!(stats["endpoints"][0]["queue_group"], "serve");
}

#[test]
fn mistakes_are_told_at_once_and_check_says_what_would_be() {
    let (status, _, stderr) = run(&["serve"], &[("NATS_HOST", "nats://h"), ("SERVE_FORMAT", "x")]);
    assert_eq!(status.code(), Some(64));
    for text in
        ["SERVE_FORMAT: expected", "SERVE_DESTINATION: required", "SERVE_SUBJECT_PREFIX: required"]
    {
        assert!(stderr.contains(text), "{text}: {stderr}");
    }
    let nats = NatsServer::start();
    let variables = [
        ("NATS_HOST", &*nats.url()),
        ("SERVE_DESTINATION", "http://u:hunter2@h/"),
        ("SERVE_SUBJECT_PREFIX", "api"),
    ];
    let (status, stdout, _) = run(&["check", "serve"], &variables);
    assert!(status.success() && stdout.contains("api api.> (queue group serve)"), "{stdout}");
    assert!(!stdout.contains("hunter2"), "{stdout}");
}
