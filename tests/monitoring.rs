//! What monitoring gets: metrics in the OpenMetrics format, readiness with a reason, and the
//! examples that are built on them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::endpoint::{Endpoint, Reply};
use support::held::Held;
use support::nats::NatsServer;
use support::relay::Relay;
use support::setup::Setup;

const HTTP: (&str, &str) = ("HTTP_LISTEN", "127.0.0.1:0");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The names of the samples as Prometheus's parser reads them, and the alert rules' expressions.
fn parsed(metrics: &str) -> (BTreeSet<String>, Vec<String>) {
    let rules = repository().join("examples/monitoring/alerts.yml");
    let mut parser = Command::new(repository().join("scripts/openmetrics"))
        .arg(rules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    parser.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "scripts/openmetrics failed on\n{metrics}");
    let parsed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let texts = |list: &Value| {
        let list = list.as_array().unwrap().iter();
        list.map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    (texts(&parsed["samples"]).into_iter().collect(), texts(&parsed["expressions"]))
}

/// The names of metrics in an expression.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(move |c: char| !is_word(c));
    words.filter(|word| word.starts_with("nats_webhook_relay_") || word.starts_with("process_"))
}

/// All expressions of a dashboard.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr" | "query", Value::String(text)) => found.push(text.clone()),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn prometheus_reads_the_metrics_and_the_examples_name_no_others() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[HTTP]).await;
    setup.publish("cms.cache.a", "1").await;
    setup.relayed().await;
    setup.relay.counted("messages_relayed_total", 1).await;
    let (_, metrics) = setup.relay.get("/metrics").await;
    let (samples, mut used) = parsed(&metrics);
    for name in ["nats_webhook_relay_build_info", "process_cpu_seconds_total"] {
        assert!(samples.contains(name), "{name} is missing:\n{metrics}");
    }
    let dashboard = repository().join("examples/monitoring/dashboard.json");
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(dashboard).unwrap()).unwrap();
    let alerts = used.len();
    expressions(&dashboard, &mut used);
    assert!(alerts >= 5 && used.len() > alerts + 10, "{used:#?}");
    for expression in &used {
        for name in named(expression) {
            assert!(samples.contains(name), "{name} is not a metric of the relay: {expression}");
        }
    }
    setup.end().await;
}

#[tokio::test]
async fn calls_are_counted_by_destination_and_class_of_status() {
    let is_up = Arc::new(AtomicBool::new(false));
    let up = is_up.clone();
    let endpoint = Endpoint::start(move |call| match call.body.as_ref() {
        b"bad" => Reply::status(404),
        _ if up.swap(true, Ordering::SeqCst) => Reply::ok(),
        _ => Reply::status(503),
    })
    .await;
    let url = format!("{}?token=hunter2", endpoint.url());
    let mut setup = Setup::start(&url, &[HTTP]).await;
    setup.publish("cms.cache.a", "1").await;
    setup.relayed().await;
    setup.publish("cms.cache.a", "bad").await;
    setup.failed().await;
    let (_, metrics) = setup.relay.get("/metrics").await;
    for (status, count) in [("2xx", 1), ("3xx", 0), ("4xx", 1), ("5xx", 1), ("none", 0)] {
        let line = metrics
            .lines()
            .find(|line| {
                line.starts_with("nats_webhook_relay_webhook_calls_total{destination=")
                    && line.contains(&format!("status=\"{status}\"}}"))
            })
            .unwrap_or_else(|| panic!("{status}:\n{metrics}"));
        assert!(line.ends_with(&format!("}} {count}")), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    setup.end().await;
}

#[tokio::test]
async fn the_oldest_message_has_an_age_and_readiness_has_a_reason() {
    let endpoint = Held::start().await;
    let lag = ("READY_MAX_LAG", "100ms");
    let mut setup = Setup::start(&endpoint.url(), &[HTTP, lag]).await;
    setup.relay.readyz(200).await;
    let value = async |relay: &Relay, name: &str| {
        let (_, metrics) = relay.get("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split(' ').next_back().unwrap().parse::<f64>().unwrap()
    };
    let oldest = "nats_webhook_relay_oldest_message_seconds ";
    assert!(value(&setup.relay, oldest).await < f64::EPSILON);
    setup.publish("cms.cache.a", "1").await;
    setup.publish("cms.cache.a", "2").await;
    endpoint.called(1).await;
    setup.relay.readyz(503).await;
    let (_, why) = setup.relay.get("/readyz").await;
    assert!(
        why.starts_with("not ready: the oldest message has waited for") && why.contains("0.1 s"),
        "{why}"
    );
    assert!(value(&setup.relay, oldest).await >= 0.1);
    let in_flight = "nats_webhook_relay_messages_in_flight ";
    assert!((value(&setup.relay, in_flight).await - 1.0).abs() < f64::EPSILON);
    endpoint.release();
    setup.relayed().await;
    setup.relayed().await;
    setup.relay.readyz(200).await;
    setup.nats.kill();
    setup.relay.readyz(503).await;
    let (_, why) = setup.relay.get("/readyz").await;
    assert_eq!(why, "not ready: there is no connection to NATS\n");
    setup.nats.restart();
    setup.relay.readyz(200).await;
}

#[tokio::test]
async fn before_the_start_is_done_it_is_not_ready_and_says_so() {
    let mut nats = NatsServer::start();
    let url = nats.url();
    nats.kill();
    let relay = Relay::spawn(&url, "http://127.0.0.1:9/", &[HTTP]);
    let (status, why) = relay.get("/readyz").await;
    assert_eq!((status, why.as_str()), (503, "not ready: it is starting\n"));
    nats.restart();
    relay.readyz(200).await;
}
