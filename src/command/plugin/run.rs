//! `plugin run`: one message through plugins, without NATS and without a webhook.

use crate::config::environment::Environment;
use crate::message::{Id, Message, Outbound};
use crate::observe::log::{self, shown};
use crate::plugin::chain::{self, Chain, HookCall, Limits, Shaped};
use crate::plugin::files;
use crate::plugin::host::Host;
use crate::plugin::output::{Channel, Sink};
use crate::plugin::settings::Settings;
use crate::relay::copy::relayed_copy;
use crate::relay::outcome::{Outcome, Oversize};
use crate::subject::{self, Prefix, Subjects};
use crate::webhook::Delivery;
use anyhow::{Context, ensure};
use async_nats::{HeaderMap, HeaderName};
use base64::Engine as _;
use clap::ArgMatches;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::bytes::Bytes;

/// What a nats-server takes in one message unless it is configured otherwise.
const MAX_PAYLOAD: usize = 1024 * 1024;
/// The exit code when a plugin rejected the message.
const REJECTED: u8 = 2;

/// What would be sent and republished.
struct Relayed {
    headers: reqwest::header::HeaderMap,
    body: Bytes,
    copy: Outbound,
}

/// What came of the message.
struct Report {
    result: Result<Relayed, Outcome>,
    /// Plugin, stream, line.
    output: Vec<(String, Channel, String)>,
    /// Plugin, hook, milliseconds.
    calls: Vec<(String, &'static str, f64)>,
}

/// Sends the message that the arguments and stdin make through the plugins of `settings`.
pub(crate) async fn run(
    settings: Settings,
    environment: &Environment,
    matches: &ArgMatches,
) -> anyhow::Result<ExitCode> {
    let (listen, relayed) = subjects(environment)?;
    let subject = matches.get_one::<String>("subject").cloned();
    let subject = subject.unwrap_or_else(|| match &listen {
        Subjects::Below(prefix) => prefix.subject("article.42"),
        Subjects::Exact(subject) => subject.to_string(),
    });
    subject::check(&subject).with_context(|| format!("--subject: {subject:?} is not a subject"))?;
    let tail = listen.tail(&subject).with_context(|| match &listen {
        Subjects::Below(prefix) => {
            format!("{subject:?} is not below {prefix} (NATS_SUBJECT_PREFIX)")
        }
        Subjects::Exact(exact) => format!("{subject:?} is not {exact} (NATS_SUBJECT)"),
    })?;
    let headers = headers(matches)?;
    let message = Arc::new(Message::new(&subject, headers, payload()?, Id::unique()));

    let output = Arc::new(Mutex::new(Vec::new()));
    let host = Arc::new(Host::new(&settings)?);
    let collect = |name: Arc<str>| {
        let output = output.clone();
        let sink: Sink = Arc::new(move |stream, line: &str| {
            let line = (name.to_string(), stream, line.to_owned());
            output.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        });
        sink
    };
    let files = files::found(&settings.paths)?;
    let chain = Chain::load(&files, &settings.settings, &host, collect).await?;
    let mut calls = Vec::new();
    let called = |call: &HookCall<'_>| {
        let milliseconds = call.elapsed.as_secs_f64() * 1e3;
        calls.push((call.guest.name.to_string(), call.hook.name(), milliseconds));
    };
    let limits = Limits::new(MAX_PAYLOAD, &relayed);
    let shaped = chain.shape(&message, tail, limits, called).await;
    let result = shaped
        .map_err(Outcome::from)
        .and_then(|shaped| relayed_of(&message, &relayed, shaped).map_err(Outcome::from));
    let output = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
    let report = Report { result, output, calls };
    let text = match matches.get_flag("json") {
        true => format!("{:#}\n", report.json()),
        false => shown(&report.text()),
    };
    log::say(text.trim_end_matches('\n'))?;
    Ok(match report.result {
        Ok(_) => ExitCode::SUCCESS,
        Err(Outcome::Rejected { .. }) => ExitCode::from(REJECTED),
        Err(_) => ExitCode::FAILURE,
    })
}

/// What the variables say of what is listened on and republished on.
fn subjects(environment: &Environment) -> anyhow::Result<(Subjects, Subjects)> {
    let tokens = |name: &str, default: &str| {
        let text = environment.get(name).unwrap_or(default);
        Prefix::parse(text).with_context(|| format!("{name}: {text:?} is not a subject"))
    };
    Ok(match environment.get("NATS_SUBJECT") {
        Some(_) => (
            Subjects::Exact(tokens("NATS_SUBJECT", "")?),
            Subjects::Exact(tokens("NATS_RELAYED_SUBJECT", "relayed")?),
        ),
        None => (
            Subjects::Below(tokens("NATS_SUBJECT_PREFIX", "cms.cache")?),
            Subjects::Below(tokens("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache")?),
        ),
    })
}

/// The headers on the command line.
fn headers(matches: &ArgMatches) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for header in matches.get_many::<String>("header").into_iter().flatten() {
        let (name, value) = header.split_once(':').context("--header: expected NAME:VALUE")?;
        let parsed = name.trim().parse::<HeaderName>().ok().filter(|_| !name.trim().is_empty());
        let name = parsed.with_context(|| format!("--header: {name:?} is not a name"))?;
        ensure!(!value.contains(['\r', '\n']), "--header: the value of {name} has a line break");
        headers.append(name, value.trim());
    }
    Ok(headers)
}

fn payload() -> anyhow::Result<Bytes> {
    if std::io::stdin().is_terminal() {
        log::complain("reading the payload from the terminal; end it with Ctrl-D");
    }
    let mut payload = Vec::new();
    std::io::stdin().read_to_end(&mut payload).context("cannot read the payload from stdin")?;
    Ok(payload.into())
}

/// What would be sent and republished of a message that passed its plugins.
fn relayed_of(
    message: &Arc<Message>,
    relayed: &Subjects,
    shaped: Shaped,
) -> Result<Relayed, Oversize> {
    let Shaped { body, headers, payload, tail } = shaped;
    let id = message.id.to_string();
    let copy = relayed_copy(message, relayed, &tail, payload, id, MAX_PAYLOAD)?;
    let delivery = Delivery::rehearsed(message, body.clone(), headers, copy.clone());
    Ok(Relayed { headers: delivery.headers(), body, copy })
}

/// Why a message was not relayed, for a person.
fn why(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(failure) => failure.to_string(),
        Outcome::Rejected { plugin, hook, reason } => {
            format!("plugin {plugin}, {hook}: rejected: {reason}")
        }
        Outcome::Relayed(..) | Outcome::GivenBack => String::new(),
    }
}

impl Report {
    /// For a person.
    fn text(&self) -> String {
        let mut lines = Vec::new();
        match &self.result {
            Err(outcome) => lines.push(format!("not relayed: {}", why(outcome))),
            Ok(Relayed { headers, body, copy }) => {
                lines.push("webhook".to_owned());
                lines.extend(headers.iter().map(|(name, value)| {
                    format!("  {name}: {}", String::from_utf8_lossy(value.as_bytes()))
                }));
                lines.push(format!("\n{}\n\nrelayed as {}", indented(body), copy.subject));
                lines.extend(
                    chain::pairs(&copy.headers)
                        .iter()
                        .map(|(name, value)| format!("  {name}: {value}")),
                );
                lines.push(format!("\n{}", indented(&copy.payload)));
            }
        }
        if !self.output.is_empty() {
            lines.push("\noutput".to_owned());
        }
        lines.extend(
            self.output
                .iter()
                .map(|(plugin, stream, line)| format!("  {plugin} {}: {line}", stream.name())),
        );
        lines.push("\ncalls".to_owned());
        lines.extend(
            self.calls
                .iter()
                .map(|(plugin, hook, elapsed)| format!("  {plugin} {hook}: {elapsed:.3} ms")),
        );
        lines.join("\n") + "\n"
    }

    /// For a program.
    fn json(&self) -> Value {
        let output = self.output.iter().map(|(plugin, stream, line)| {
            json!({"plugin": plugin, "stream": stream.name(), "line": line})
        });
        let output: Vec<_> = output.collect();
        let calls: Vec<_> = self
            .calls
            .iter()
            .map(|(plugin, hook, elapsed)| json!({"plugin": plugin, "hook": hook, "ms": elapsed}))
            .collect();
        let mut report = match &self.result {
            Ok(Relayed { headers, body, copy }) => {
                let headers = headers.iter().map(|(name, value)| {
                    (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                });
                let mut webhook = json!({"headers": grouped(headers)});
                insert_payload(&mut webhook, "body", body);
                let copied = chain::pairs(&copy.headers);
                let copied = copied.iter().map(|(name, value)| (name.as_str(), value.clone()));
                let subject = copy.subject.as_str();
                let mut relayed = json!({"subject": subject, "headers": grouped(copied)});
                insert_payload(&mut relayed, "payload", &copy.payload);
                json!({"result": "relayed", "webhook": webhook, "relayed": relayed})
            }
            Err(outcome) => {
                let is_rejected = matches!(outcome, Outcome::Rejected { .. });
                let result = if is_rejected { "rejected" } else { "failed" };
                json!({"result": result, "error": why(outcome)})
            }
        };
        if let Some(report) = report.as_object_mut() {
            report.insert("output".to_owned(), output.into());
            report.insert("calls".to_owned(), calls.into());
        }
        report
    }
}

/// Names with a list of values each.
fn grouped<'a>(headers: impl Iterator<Item = (&'a str, String)>) -> Value {
    let mut map = Map::new();
    for (name, value) in headers {
        let values = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(values) = values {
            values.push(Value::String(value));
        }
    }
    Value::Object(map)
}

/// Text as it is, and any other bytes in base64 under `<name>_base64`.
fn insert_payload(object: &mut Value, name: &str, bytes: &[u8]) {
    let Some(object) = object.as_object_mut() else { return };
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(
            format!("{name}_base64"),
            base64::prelude::BASE64_STANDARD.encode(bytes).into(),
        ),
    };
}

/// Bytes for a person.
fn indented(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        _ if bytes.is_empty() => "  (nothing)".to_owned(),
        Ok(text) => text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
        Err(_) => format!("  ({} bytes that are not text)", bytes.len()),
    }
}
