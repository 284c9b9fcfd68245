//! What a hostile publisher or a broken backend can do to `serve`, and what must not get lost.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, HeaderMap, Message};
use futures_util::future::join_all;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use support::endpoint::{self, Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::Relay;
use support::within;
use tokio::io::AsyncWriteExt;

async fn serve(nats: &str, destination: &str, variables: &[(&str, &str)]) -> Relay {
    let own = [("SERVE_DESTINATION", destination), ("SERVE_SUBJECT_PREFIX", "api")];
    Relay::subcommand("serve", nats, &[&own, variables].concat()).await
}

/// The status and the text of a reply.
fn read(reply: &Message) -> (&str, String) {
    let status = reply.headers.as_ref().and_then(|headers| headers.get("Http-Status"));
    let text = String::from_utf8_lossy(&reply.payload).into_owned();
    (status.map_or("none", |status| status.as_str()), text)
}

async fn ask(client: &Client, subject: &str) -> Message {
    within(subject, client.request(subject.to_owned(), "".into())).await.unwrap()
}

#[tokio::test]
async fn a_path_is_called_through_one_subject_only() {
    let (nats, backend) = (NatsServer::start(), Endpoint::ok().await);
    let destination = backend.url().replace("/hook", "/base?key=1");
    let _serve = serve(&nats.url(), &destination, &[]).await;
    let client = nats.client().await;
    for subject in
        ["api.%61dmin", "api.a%2etar", "api.a/%2E%2E/admin", "api.a\u{1b}[2J", "api.%2E%2E"]
    {
        let reply = ask(&client, subject).await;
        assert_eq!(read(&reply).0, "400", "{subject:?}");
    }
    assert_eq!(backend.count(), 0);
    // The destination's own path and query stay.
    let mut headers = HeaderMap::new();
    headers.insert("Http-Target", "/a?x=2");
    client.request_with_headers("api.a", headers, "".into()).await.unwrap();
    ask(&client, "api.b").await;
    let paths: Vec<_> = backend.calls().into_iter().map(|call| call.path).collect();
    assert_eq!(paths, ["/base/a?key=1&x=2", "/base/b?key=1"]);
}

#[tokio::test]
async fn a_request_with_too_many_headers_is_answered() {
    let (nats, backend) = (NatsServer::start(), Endpoint::ok().await);
    let serve = serve(&nats.url(), &backend.url(), &[]).await;
    let client = nats.client().await;
    let mut headers = HeaderMap::new();
    (0..40_000).for_each(|number| headers.append(format!("h{number}"), "1"));
    let asked = client.request_with_headers("api.a", headers, "".into());
    let reply = within("a reply", asked).await.unwrap();
    assert_eq!(read(&reply).0, "400");
    assert!(serve.lines("panic").is_empty() && backend.count() == 0);
}

#[tokio::test]
async fn whatever_the_backend_answers_there_is_a_reply_and_the_next_call_is_its_own() {
    let large = "x".repeat(1_048_500);
    let answers: HashMap<&str, Vec<u8>> = [
        ("garbage", "garbage\r\n\r\n"),
        ("nothing", ""),
        ("short", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        ("lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk"),
        ("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
        ("large", &format!("HTTP/1.1 200 OK\r\nContent-Length: 1048500\r\n\r\n{large}")),
        ("switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        ("hints", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("extra", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("moved", "HTTP/1.1 302 Found\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n"),
        ("gzip", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"),
    ]
    .into_iter()
    .map(|(name, answer)| (name, answer.as_bytes().to_vec()))
    .chain([("latin", b"HTTP/1.1 200 OK\r\nX-A: \xf6\r\nContent-Length: 2\r\n\r\nok".to_vec())])
    .collect();
    let answers = Arc::new(answers);
    let port = endpoint::raw(move |_, mut stream| {
        let answers = answers.clone();
        Box::pin(async move {
            while let Some(request) = endpoint::request(&mut stream).await {
                let name = request.split(['/', ' ']).nth(2).unwrap();
                let own = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown".to_vec();
                let Some(answer) = answers.get(name) else {
                    let _ = stream.write_all(&own).await;
                    continue;
                };
                let _ = stream.write_all(answer).await;
                if ["garbage", "nothing", "short", "lengths", "chunks"].contains(&name) {
                    return;
                }
            }
        })
    })
    .await;
    let nats = NatsServer::start();
    let _serve = serve(&nats.url(), &format!("http://127.0.0.1:{port}/"), &[]).await;
    let client = nats.client().await;
    for (name, status, text) in [
        ("garbage", "502", "no usable answer"),
        ("nothing", "502", "no usable answer"),
        ("short", "502", "broke off"),
        ("lengths", "502", "no usable answer"),
        ("chunks", "502", "broke off"),
        ("large", "502", "larger than NATS takes"),
        ("switch", "502", "the status 101"),
        ("latin", "502", "x-a is not UTF-8"),
        ("hints", "200", "ok"),
        ("extra", "200", "ok"),
        ("moved", "302", ""),
        ("gzip", "200", "abc"),
    ] {
        let reply = ask(&client, &format!("api.{name}")).await;
        let (found, said) = read(&reply);
        assert!(found == status && said.contains(text), "{name}: {found} {said}");
        let next = ask(&client, "api.next").await;
        assert_eq!(read(&next), ("200", "own".to_owned()), "after {name}");
    }
}

#[tokio::test]
async fn large_replies_arrive_although_the_program_ends() {
    const SIZE: usize = 900_000;
    let nats = NatsServer::start();
    let backend = Endpoint::start(|_| {
        let mut reply = Reply::ok();
        reply.body = vec![b'x'; SIZE];
        reply.after(Duration::from_millis(300))
    })
    .await;
    let mut serve = serve(&nats.url(), &backend.url(), &[("SHUTDOWN_GRACE", "1min")]).await;
    let client = nats.client().await;
    let asked = (0..40).map(|number| {
        let client = client.clone();
        async move { client.request(format!("api.{number}"), "".into()).await }
    });
    let asked = tokio::spawn(join_all(asked.collect::<Vec<_>>()));
    backend.received(40).await;
    assert!(serve.stop().await.success());
    for reply in within("all replies", asked).await.unwrap() {
        assert_eq!(reply.unwrap().payload.len(), SIZE);
    }
}

#[tokio::test]
async fn a_user_who_may_not_subscribe_is_told_so() {
    let nats = NatsServer::with_config(
        "authorization { users = [ { user: a, password: b, permissions: {\
         publish: \">\", subscribe: [\"_INBOX.>\", \"$SRV.>\", \"api\"] } } ] }",
    );
    let url = nats.url().replace("//", "//a:b@");
    let variables = [
        ("NATS_HOST", url.as_str()),
        ("SERVE_DESTINATION", "http://127.0.0.1:9/"),
        ("SERVE_SUBJECT_PREFIX", "api"),
    ];
    let folder = tempfile::TempDir::new().unwrap();
    let mut command = support::relay::command(&folder, &variables);
    command.arg("serve");
    let (status, _, log) = support::relay::finish(command);
    assert!(!status.success() && log.contains("may not subscribe to api.>"), "{log}");
    assert!(!log.contains("ready"), "{log}");
}
