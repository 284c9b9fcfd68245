//! A stream on a real server, looked at and changed as an operator would do it, and a relay
//! that reads from it.

use super::endpoint::Call;
use super::nats::NatsServer;
use super::setup::Setup;
use super::{LIMIT, within};
use async_nats::{Client, HeaderMap, Request};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

pub const JETSTREAM: &str = "jetstream: enabled";
pub const CONSUMER: &str = "nats-webhook-relay";
pub const STREAM: (&str, &str) = ("NATS_STREAM", "CMS");
pub const HTTP: (&str, &str) = ("HTTP_LISTEN", "127.0.0.1:0");
pub const FAILED: (&str, &str) = ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache");
/// For endpoints that hold a call: it is not tried again meanwhile.
pub const PATIENT: (&str, &str) = ("WEBHOOK_TIMEOUT", "1h");

/// A server with the stream CMS on `cms.cache.>`.
pub async fn server() -> (NatsServer, JetStream) {
    let nats = NatsServer::with_config(JETSTREAM);
    let stream = JetStream::new(&nats.client().await);
    stream.add("CMS", "cms.cache.>", json!({})).await;
    (nats, stream)
}

/// A relay from the stream CMS to `relayed.cache`, on failure to `failed.cache`.
pub async fn setup(destination: &str, variables: &[(&str, &str)]) -> (Setup, JetStream) {
    let (nats, stream) = server().await;
    let setup = Setup::on(nats, destination, &[&[STREAM, HTTP], variables].concat()).await;
    (setup, stream)
}

/// The JetStream API, with the stream CMS and its consumer in view.
#[derive(Clone)]
pub struct JetStream {
    client: Client,
    prefix: String,
}

impl JetStream {
    pub fn new(client: &Client) -> Self {
        Self::with_prefix(client, "$JS.API")
    }

    pub fn with_prefix(client: &Client, prefix: &str) -> Self {
        Self { client: client.clone(), prefix: prefix.to_owned() }
    }

    /// Asks until there is an answer, as a server that has just started gives none.
    pub async fn ask(&self, request: &str, body: &Value) -> Value {
        self.answer(
            &format!("{}.{request}", self.prefix),
            &HeaderMap::new(),
            body.to_string().into(),
        )
        .await
    }

    /// Asks for what must succeed.
    pub async fn call(&self, request: &str, body: Value) -> Value {
        let answer = self.ask(request, &body).await;
        assert!(answer.get("error").is_none(), "{request} {body}: {answer}");
        answer
    }

    async fn answer(&self, subject: &str, headers: &HeaderMap, payload: Vec<u8>) -> Value {
        let asked = async {
            loop {
                let request = Request::new()
                    .headers(headers.clone())
                    .payload(payload.clone().into())
                    .timeout(Some(Duration::from_secs(5)));
                if let Ok(answer) = self.client.send_request(subject.to_owned(), request).await {
                    return serde_json::from_slice(&answer.payload).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        within(&format!("an answer on {subject}"), asked).await
    }

    pub async fn add(&self, stream: &str, subjects: &str, more: Value) {
        let config =
            with(json!({ "name": stream, "subjects": [subjects], "storage": "file" }), more);
        self.call(&format!("STREAM.CREATE.{stream}"), config).await;
    }

    pub async fn change(&self, stream: &str, more: Value) {
        let config = self.stream(stream).await["config"].clone();
        self.call(&format!("STREAM.UPDATE.{stream}"), with(config, more)).await;
    }

    pub async fn remove(&self, stream: &str) {
        self.call(&format!("STREAM.DELETE.{stream}"), json!({})).await;
    }

    pub async fn stream(&self, stream: &str) -> Value {
        self.call(&format!("STREAM.INFO.{stream}"), json!({})).await
    }

    /// Makes the relay's consumer before the relay does.
    pub async fn add_consumer(&self, more: Value) -> Value {
        let config = with(
            json!({ "durable_name": CONSUMER, "ack_policy": "explicit", "filter_subject": "cms.cache.>" }),
            more,
        );
        self.call(
            &format!("CONSUMER.DURABLE.CREATE.CMS.{CONSUMER}"),
            json!({ "stream_name": "CMS", "config": config }),
        )
        .await
    }

    pub async fn remove_consumer(&self) {
        self.call(&format!("CONSUMER.DELETE.CMS.{CONSUMER}"), json!({})).await;
    }

    /// What the server says about the relay's consumer.
    pub async fn consumer(&self) -> Value {
        self.call(&format!("CONSUMER.INFO.CMS.{CONSUMER}"), json!({})).await
    }

    pub async fn has_consumer(&self) -> bool {
        self.ask(&format!("CONSUMER.INFO.CMS.{CONSUMER}"), &json!({})).await.get("error").is_none()
    }

    /// Waits until the consumer is as `condition` wants it.
    pub async fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let waited = async {
            loop {
                let info = self.consumer().await;
                if condition(&info) {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(what, waited).await
    }

    /// Waits until `messages` are delivered and not settled.
    pub async fn unsettled(&self, messages: u64) {
        self.until(&format!("{messages} are unsettled"), |info| {
            info["num_ack_pending"] == messages
        })
        .await;
    }

    /// Waits until all that is in the stream is settled.
    pub async fn settled(&self) -> Value {
        let waited = async {
            loop {
                let last = self.stream("CMS").await["state"]["last_seq"].as_u64();
                let info = self.consumer().await;
                // What is pending is counted a moment after it is stored.
                let is_over = info["num_ack_pending"] == 0 && info["num_pending"] == 0;
                if is_over && info["ack_floor"]["stream_seq"].as_u64() >= last {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("all is settled", waited).await
    }

    /// Publishes until the stream has it, once. Returns its sequence.
    pub async fn publish(&self, subject: &str, payload: impl Into<Vec<u8>>) -> u64 {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", self.client.new_inbox());
        let payload = payload.into();
        let published = async {
            loop {
                let answer = self.answer(subject, &headers, payload.clone()).await;
                match answer["seq"].as_u64().filter(|sequence| *sequence > 0) {
                    Some(sequence) => return sequence,
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        within(&format!("the stream takes a message on {subject}"), published).await
    }

    /// Publishes the numbers of `range`, by turns on `subjects` subjects (`cms.cache.s0`...), with
    /// `padding` bytes after each. Returns when the stream has them all.
    pub async fn fill(&self, range: std::ops::Range<usize>, subjects: usize, padding: usize) {
        let (last, padding) = (range.end - 1, " ".repeat(padding));
        for number in range.start..last {
            self.client
                .publish(subject(number, subjects), format!("{number}{padding}").into())
                .await
                .unwrap();
        }
        // What one connection publishes is stored in order.
        self.publish(&subject(last, subjects), format!("{last}{padding}")).await;
    }

    /// Publishes numbers as [`Self::fill`] does, one every `pause`, each until the stream has it.
    pub fn load(&self, subjects: usize, pause: Duration) -> Load {
        self.load_from(0, subjects, pause)
    }

    /// As [`Self::load`], beginning with the number `first`.
    pub fn load_from(&self, first: usize, subjects: usize, pause: Duration) -> Load {
        let (stream, ended) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let end = ended.clone();
        let task = tokio::spawn(async move {
            for number in first.. {
                if end.load(Ordering::Relaxed) {
                    return number;
                }
                stream.publish(&subject(number, subjects), number.to_string()).await;
                tokio::time::sleep(pause).await;
            }
            first
        });
        Load { ended, task }
    }

    /// The subjects and payloads of all that `stream` keeps.
    pub async fn messages(&self, stream: &str) -> Vec<(String, String)> {
        let state = self.stream(stream).await["state"].clone();
        let mut messages = Vec::new();
        for sequence in state["first_seq"].as_u64().unwrap()..=state["last_seq"].as_u64().unwrap() {
            let answer =
                self.ask(&format!("STREAM.MSG.GET.{stream}"), &json!({ "seq": sequence })).await;
            let Some(message) = answer.get("message") else { continue };
            let payload = base64::Engine::decode(
                &base64::prelude::BASE64_STANDARD,
                message["data"].as_str().unwrap_or_default(),
            )
            .unwrap();
            messages.push((
                message["subject"].as_str().unwrap().to_owned(),
                String::from_utf8(payload).unwrap(),
            ));
        }
        messages
    }
}

/// Messages that are being published.
pub struct Load {
    ended: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Load {
    /// Stops, and returns the number after the last that the stream has acknowledged.
    pub async fn end(self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        within("the load ends", self.task).await.unwrap()
    }
}

fn subject(number: usize, subjects: usize) -> String {
    format!("cms.cache.s{}", number % subjects)
}

/// What the endpoint was called with, as [`JetStream::fill`] and [`JetStream::load`] number it.
pub fn numbers(calls: &[Call]) -> Vec<usize> {
    calls.iter().map(|call| number(std::str::from_utf8(&call.body).unwrap())).collect()
}

pub fn number(payload: &str) -> usize {
    payload.trim_end().parse().unwrap()
}

/// Checks that all numbers below `messages` are there, and that those of each subject occur for
/// the first time in the order of the stream. Returns how many are repetitions.
pub fn complete_and_in_order(numbers: &[usize], messages: usize, subjects: usize) -> usize {
    let mut seen = HashSet::new();
    let mut next = BTreeMap::new();
    for number in numbers.iter().filter(|number| seen.insert(**number)) {
        let expected = next.entry(number % subjects).or_insert(number % subjects);
        assert_eq!(
            number,
            expected,
            "subject s{} is out of order, or misses one",
            number % subjects
        );
        *expected += subjects;
    }
    let missing: Vec<_> = (0..messages).filter(|number| !seen.contains(number)).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    assert_eq!(seen.len(), messages, "more than was published");
    numbers.len() - seen.len()
}

/// Polls `condition` until it holds.
pub async fn until_true<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waited = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, waited).await;
}

/// `config` with the fields of `more` in the place of its own.
pub fn with(mut config: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (config.as_object_mut(), more) {
        fields.extend(more);
    }
    config
}

/// A time that a test must let pass because nothing tells that it has.
pub async fn let_pass(time: Duration) {
    assert!(time < LIMIT);
    tokio::time::sleep(time).await;
}
