//! `--coalesce`: a bulk save with and without COALESCE.
//!
//! 10,000 messages on 100 subjects, the same 100 times on each, are published at once to an
//! endpoint that answers after 50 ms: the time until all are relayed, and the CPU time of each.

use crate::{Relay, body, cpu_us, nats, start_endpoint, within};
use futures_util::StreamExt;
use std::time::Instant;

const MESSAGES: usize = 10_000;
const SUBJECTS: usize = 100;
const AFTER_MS: u64 = 50;

pub(crate) async fn compare(quick: bool) {
    let messages = if quick { MESSAGES / 10 } else { MESSAGES };
    println!("{messages} messages on {SUBJECTS} subjects, endpoint after {AFTER_MS} ms");
    println!("{:24} {:>9} {:>12}", "COALESCE", "s", "CPU us/msg");
    for coalesce in ["false", "true", "subject"] {
        let nats = nats::NatsServer::start();
        let (_endpoint, url) = start_endpoint(AFTER_MS);
        let variables = [("COALESCE", coalesce.to_owned())];
        let relay = Relay::start(&nats.url(), &url, "warn", &variables);
        let client = nats.client().await;
        let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
        client.flush().await.unwrap();
        let (start, before) = (Instant::now(), cpu_us(&relay.pid()));
        for number in 0..messages {
            let subject = number % SUBJECTS;
            client.publish(format!("cms.cache.a{subject}"), body(300, subject)).await.unwrap();
        }
        for _ in 0..messages {
            within("a relayed message", relayed.next()).await.unwrap();
        }
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_us(&relay.pid()) - before);
        println!("{coalesce:24} {elapsed:9.2} {:12.1}", cpu / messages as f64);
    }
}
