//! What a stream costs: core mode and JetStream mode side by side, and the memory that a large
//! backlog takes. Run it with `scripts/bench --jetstream`.

use super::nats::NatsServer;
use super::{
    Figures, ROUNDS, Relay, body, cpu_us, median, memory_mib, relay_on, start_endpoint, within,
};
use async_nats::Client;
use futures_util::StreamExt;
use std::time::{Duration, Instant};

const STREAM: [(&str, &str); 2] = [("NATS_STREAM", "CMS"), ("NATS_DELIVER", "all")];

pub(crate) async fn compare(quick: bool) {
    let scale = if quick { 10 } else { 1 };
    println!(
        "{:46} {:>9} {:>12} {:>9} {:>9} {:>10}",
        "", "msg/s", "CPU us/msg", "p50 ms", "p99 ms", "peak MiB"
    );
    for (after, messages) in [(0, 60_000), (20, 25_000)] {
        let messages = messages / scale;
        let mut figures = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            figures[0].push(relay_on(NatsServer::start(), after, 300, messages, "warn", &[]).await);
            for (index, subjects) in [(1, vec!["cms.>"]), (2, vec!["cms.>", "relayed.>"])] {
                let nats = server(&subjects).await;
                figures[index]
                    .push(relay_on(nats, after, 300, messages, "warn", &environment()).await);
            }
            figures[3].push(backlog(after, messages).await);
        }
        let [core, stream, both, backlog] = figures.map(median);
        for (name, figures) in [
            ("core", &core),
            ("from a stream", &stream),
            ("from a stream into another", &both),
            ("from a backlog", &backlog),
        ] {
            figures.print(&format!("300 B, endpoint after {after} ms: {name}"));
            println!(
                "{:46} throughput x {:.2}, CPU x {:.2}",
                "",
                figures.rate / core.rate,
                figures.cpu_us / core.cpu_us
            );
        }
        println!();
    }
    large_backlog(100_000 / scale).await;
}

fn environment() -> Vec<(&'static str, String)> {
    STREAM.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// A server with a stream for each of `subjects`, the first of them called CMS.
async fn server(subjects: &[&str]) -> NatsServer {
    let nats = NatsServer::with_config("jetstream: enabled");
    let client = nats.client().await;
    for (name, subjects) in ["CMS", "RELAYED"].iter().zip(subjects) {
        let config = format!(
            r#"{{"name":"{name}","subjects":["{subjects}"],"storage":"file","retention":"limits","num_replicas":1}}"#
        );
        let answer =
            client.request(format!("$JS.API.STREAM.CREATE.{name}"), config.into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("\"error\""), "{answer:?}");
    }
    nats
}

/// Everything is in the stream before the relay starts.
async fn backlog(after_ms: u64, messages: usize) -> Figures {
    let nats = server(&["cms.>"]).await;
    let (_endpoint, url) = start_endpoint(after_ms);
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    fill(&client, messages, 300).await;
    let start = Instant::now();
    let relay = Relay::start(&nats.url(), &url, "warn", &environment());
    let cpu = cpu_us(&relay.pid());
    for _ in 0..messages {
        within("a relayed message", relayed.next()).await.unwrap();
    }
    Figures {
        rate: messages as f64 / start.elapsed().as_secs_f64(),
        cpu_us: (cpu_us(&relay.pid()) - cpu) / messages as f64,
        latency: None,
        peak_mib: memory_mib(&relay.pid(), "VmHWM"),
    }
}

/// Publishes, some at a time, until the stream has it all.
async fn fill(client: &Client, messages: usize, size: usize) {
    for number in 0..messages {
        let (subject, body) =
            (format!("cms.cache.article.{}", number % super::SUBJECTS), body(size, number));
        if number % 500 == 499 || number + 1 == messages {
            within("an acknowledged publish", client.request(subject, body)).await.unwrap();
        } else {
            client.publish(subject, body).await.unwrap();
        }
    }
}

/// Memory while an endpoint hangs and while one answers, with many large messages in the stream.
async fn large_backlog(messages: usize) {
    let nats = server(&["cms.>"]).await;
    fill(&nats.client().await, messages, 100_000).await;
    for (name, after_ms) in [("hangs", 3_600_000), ("answers after 20 ms", 20)] {
        let (_endpoint, url) = start_endpoint(after_ms);
        let mut environment = environment();
        environment.push(("NATS_CONSUMER", format!("after-{after_ms}")));
        let relay = Relay::start(&nats.url(), &url, "warn", &environment);
        tokio::time::sleep(Duration::from_secs(20)).await;
        println!(
            "{messages} messages of 100 kB in the stream, the endpoint {name}: peak memory in 20 s {:.1} MiB",
            memory_mib(&relay.pid(), "VmHWM")
        );
    }
}
