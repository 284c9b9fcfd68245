//! Many requests at once through `gateway` and `serve`: each client gets its own answer.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::Client;
use serde_json::Value;
use std::time::Duration;
use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::Relay;
use support::within;

/// Requests at once of one HTTP/2 connection, as many as a gateway takes.
const STREAMS: usize = 250;

/// `gateway` for `api`, with its URL.
async fn gateway(nats: &NatsServer, variables: &[(&str, &str)]) -> (Relay, String) {
    let own = [("GATEWAY_LISTEN", "127.0.0.1:0"), ("GATEWAY_SUBJECT_PREFIX", "api")];
    let relay = Relay::subcommand("gateway", &nats.url(), &[&own, variables].concat()).await;
    let ready: Value = serde_json::from_str(&relay.logged("\"message\":\"ready\"").await).unwrap();
    let url = format!("http://{}", ready["address"].as_str().unwrap());
    (relay, url)
}

/// Clients that keep one HTTP/2 connection each.
fn connections(count: usize) -> Vec<Client> {
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
    let client = || Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    (0..count).map(|_| client()).collect()
}

/// The status and the body of the answer to a body sent to a path.
async fn post(client: Client, url: String, body: String) -> (u16, String) {
    let answer = client.post(url).body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn ten_thousand_requests_at_once_each_get_their_own_answer() {
    const COUNT: usize = 10_000;
    let nats = NatsServer::start();
    let client = nats.client().await;
    let mut requests = support::subscribe(&client, "api.>").await;
    let most = [("GATEWAY_MAX_IN_FLIGHT", "10000"), ("GATEWAY_TIMEOUT", "5min")];
    let (mut gateway, url) = gateway(&nats, &most).await;
    let connections = connections(COUNT / STREAMS);
    let asked: Vec<_> = (0..COUNT)
        .map(|number| {
            let connection = connections[number / STREAMS].clone();
            tokio::spawn(post(connection, format!("{url}/{number}"), number.to_string()))
        })
        .collect();
    // Nobody is answered before all have asked, and the last first.
    let mut held = Vec::new();
    while held.len() < COUNT {
        held.push(within("a request", requests.next()).await.unwrap());
    }
    for request in held.into_iter().rev() {
        let answer = format!("{} {}", request.subject, str::from_utf8(&request.payload).unwrap());
        client.publish(request.reply.unwrap(), answer.into()).await.unwrap();
    }
    for (number, asked) in asked.into_iter().enumerate() {
        let answer = within("an answer", asked).await.unwrap();
        assert_eq!(answer, (200, format!("api.{number} {number}")));
    }
    assert!(gateway.stop().await.success());
}

#[tokio::test]
async fn with_both_in_a_row_each_client_gets_its_own_answer() {
    const COUNT: usize = 5000;
    let nats = NatsServer::start();
    let backend = Endpoint::start(|call| {
        let mut reply = Reply::ok();
        reply.body = format!("{} {}", call.path, String::from_utf8_lossy(&call.body)).into_bytes();
        // Answers overtake each other.
        reply.after(Duration::from_millis(call.path.len() as u64 * 7 % 20))
    })
    .await;
    let destination = backend.url().replace("/hook", "");
    let own = [
        ("SERVE_DESTINATION", destination.as_str()),
        ("SERVE_SUBJECT_PREFIX", "api"),
        ("SERVE_MAX_IN_FLIGHT", "100"),
        ("SERVE_TIMEOUT", "5min"),
        ("HTTP_LISTEN", "127.0.0.1:0"),
    ];
    let mut serve = Relay::subcommand("serve", &nats.url(), &own).await;
    let own = [("GATEWAY_TIMEOUT", "5min"), ("HTTP_LISTEN", "127.0.0.1:0")];
    let (mut gateway, url) = gateway(&nats, &own).await;
    let connections = connections(1);
    // No more at once than `serve` takes, at work and waiting.
    let mut answers = futures_util::stream::iter(0..COUNT)
        .map(|number| {
            let (client, url) = (connections[0].clone(), format!("{url}/a/{number}?q={number}"));
            async move { (number, post(client, url, number.to_string()).await) }
        })
        .buffer_unordered(200);
    let mut answered = 0;
    while let Some((number, answer)) = within("an answer", answers.next()).await {
        assert_eq!(answer, (200, format!("/a/{number}?q={number} {number}")));
        answered += 1;
    }
    assert_eq!(answered, COUNT);
    for process in [&gateway, &serve] {
        let (_, metrics) = process.get("/metrics").await;
        let counted = |status, count| {
            let name = format!("nats_webhook_relay_request_seconds_count{{status=\"{status}\"}}");
            metrics.contains(&format!("{name} {count}\n"))
        };
        assert!(counted("2xx", COUNT) && counted("5xx", 0), "{metrics}");
        assert!(!metrics.contains("messages_received"), "those of a relay: {metrics}");
    }
    assert!(gateway.stop().await.success() && serve.stop().await.success());
}

#[tokio::test]
async fn when_the_server_restarts_no_client_gets_the_answer_of_another() {
    let mut nats = NatsServer::start();
    let (_gateway, url) = gateway(&nats, &[("GATEWAY_TIMEOUT", "3s")]).await;
    let connections = connections(1);
    let ask = |number: usize| {
        let (client, url) = (connections[0].clone(), format!("{url}/{number}"));
        async move { post(client, url, number.to_string()).await }
    };
    // Until the gateway is connected again, it says so.
    let answered = async |number: usize| {
        let mut answer = ask(number).await;
        while answer.0 != 200 {
            assert!([503, 504].contains(&answer.0), "{answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer = ask(number).await;
        }
        assert_eq!(answer.1, number.to_string());
    };
    for round in 0..5 {
        let client = nats.client().await;
        let mut requests = support::subscribe(&client, "api.>").await;
        let others = (round * 200)..(round * 200 + 100);
        let asked: Vec<_> = others.clone().map(|number| tokio::spawn(ask(number))).collect();
        let mut held = Vec::new();
        while held.len() < asked.len() {
            held.push(within("a request", requests.next()).await.unwrap());
        }
        nats.kill();
        nats.restart();
        let client = nats.client().await;
        let mut requests = support::subscribe(&client, "api.>").await;
        // Late answers to those that may have given up, while others ask.
        for request in held {
            client.publish(request.reply.unwrap(), request.payload).await.unwrap();
        }
        let answering = tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                client.publish(request.reply.unwrap(), request.payload).await.unwrap();
            }
        });
        let later = (round * 200 + 100)..(round * 200 + 200);
        within("later answers", join_all(later.map(answered))).await;
        for (number, answer) in others.zip(join_all(asked).await) {
            let answer = answer.unwrap();
            let is_own = answer == (200, number.to_string());
            assert!(is_own || [503, 504].contains(&answer.0), "{number}: {answer:?}");
        }
        answering.abort();
        let _ = answering.await;
    }
}
