//! What a person or a log collector sees: arguments, `check`, exit codes and log lines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::relay::{Relay, command, finish};
use support::{eventually, within};
use tempfile::TempDir;

/// Stands for every secret; no output may have it.
const SECRET: &str = "hunter2";
/// `relay:hunter2` in base64, as basic auth sends it.
const SECRET_BASE64: &str = "cmVsYXk6aHVudGVyMg";

fn assert_no_secret(text: &str) {
    for secret in [SECRET, SECRET_BASE64] {
        assert!(!text.contains(secret), "{secret} is shown:\n{text}");
    }
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    let folder = TempDir::new().unwrap();
    let mut command = command(&folder, variables);
    command.args(arguments);
    finish(command)
}

/// Runs `check` from `cms.cache` to `relayed.cache`; `variables` are added and win.
fn check(nats: &str, variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    let base = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:1/hook"),
        ("NATS_HOST", nats),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
    ];
    run(&["check"], &[&base, variables].concat())
}

/// A port of this machine on which nothing listens.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Publishes as any client could, with bytes in the subject that client libraries refuse.
fn publish_raw(nats: &NatsServer, subject: &str, payload: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", nats.port)).unwrap();
    stream.set_read_timeout(Some(support::LIMIT)).unwrap();
    let publish = format!(
        "CONNECT {{\"verbose\":false}}\r\nPUB {subject} {}\r\n{payload}\r\nPING\r\n",
        payload.len()
    );
    stream.write_all(publish.as_bytes()).unwrap();
    let taken = BufReader::new(stream).lines().map_while(Result::ok).any(|line| line == "PONG");
    assert!(taken, "nats-server does not take {subject:?}");
}

// Arguments.

#[test]
fn help_and_version_need_no_configuration() {
    for arguments in [&["--help"][..], &["-h"], &["help"], &["check", "--help"]] {
        let (status, stdout, stderr) = run(arguments, &[]);
        assert!(status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
        assert!(stdout.contains("Usage: nats-webhook-relay"), "{arguments:?}: {stdout}");
    }
    let (_, stdout, _) = run(&["--help"], &[]);
    assert!(stdout.contains("check") && stdout.contains("NATS_SUBJECT_PREFIX"), "{stdout}");
    let (status, stdout, stderr) = run(&["--version"], &[]);
    assert!(status.success() && stderr.is_empty());
    assert_eq!(stdout, concat!("nats-webhook-relay ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn unknown_arguments_are_exit_64_and_named() {
    for arguments in [&["--prot"][..], &["chekc"], &["check", "now"], &["--version=1"]] {
        let (status, stdout, stderr) = run(arguments, &[]);
        assert_eq!((status.code(), stdout.as_str()), (Some(64), ""), "{arguments:?}");
        let named = arguments.last().unwrap().trim_end_matches("=1");
        assert!(
            stderr.contains(named) && !stderr.contains("WEBHOOK_DESTINATION: required"),
            "{arguments:?}: {stderr}"
        );
    }
}

// `check`.

#[tokio::test]
async fn check_prints_what_would_be_relayed_where() {
    let nats = NatsServer::start();
    let (status, stdout, stderr) = check(&nats.url(), &[]);
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    for expected in [
        "connected to",
        "cms.cache.>",
        "http://127.0.0.1:1/hook",
        "relayed.cache.>",
        "cms.cache.article.42",
        "relayed.cache.article.42",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    assert!(stdout.contains("NATS_FAILED_SUBJECT_PREFIX is not set"), "{stdout}");

    let (status, stdout, stderr) = check(
        &nats.url(),
        &[
            (
                "WEBHOOK_DESTINATION",
                "http://relay:hunter2@one:3000/hook?secret=hunter2 https://two/hook",
            ),
            ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache"),
            ("NATS_QUEUE_GROUP", "frontend"),
            ("WEBHOOK_HEADERS", "authorization=hunter2"),
            ("RUST_LOG", "trace"),
        ],
    );
    assert!(status.success(), "{stderr}");
    for expected in
        ["http://one:3000/hook?secret=***", "https://two/hook", "failed.cache.>", "frontend"]
    {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    assert_no_secret(&stdout);
    assert_no_secret(&stderr);
}

#[test]
fn check_says_what_is_wrong_and_does_not_wait_for_ever() {
    let nothing = closed_port();
    let (status, stdout, stderr) = check(&format!("nats://127.0.0.1:{nothing}"), &[]);
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""));
    let expected =
        format!("nothing listens on 127.0.0.1:{nothing} (NATS_HOST): is nats-server running?");
    assert!(stderr.lines().count() == 1 && stderr.contains(&expected), "{stderr}");

    // Takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (status, _, stderr) =
        check(&format!("nats://127.0.0.1:{}", silent.local_addr().unwrap().port()), &[]);
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("did not answer in time (NATS_HOST)"), "{stderr}");

    let (status, _, stderr) = check("nats://no-such-host.invalid", &[]);
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("no-such-host.invalid") && stderr.contains("NATS_HOST"), "{stderr}");

    let (status, _, stderr) =
        check("nats://127.0.0.1:1", &[("MAX_IN_FLIGHT", "0"), ("NATS_SUBJECT_PREFIX", "")]);
    assert_eq!(status.code(), Some(64));
    assert!(
        stderr.contains("MAX_IN_FLIGHT: ") && stderr.contains("NATS_SUBJECT_PREFIX: "),
        "{stderr}"
    );
}

#[test]
fn a_refused_login_ends_the_start_and_the_check_with_a_hint() {
    let nats = NatsServer::with_config("authorization: { user: relay, password: hunter2 }");
    for login in [&[][..], &[("NATS_USER", "relay"), ("NATS_PASS", "hunter2-wrong")]] {
        let (status, _, stderr) = check(&nats.url(), login);
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains("refused the login: check NATS_USER and NATS_PASS"), "{stderr}");
        assert_no_secret(&stderr);
    }
    let (status, ..) = check(&nats.url(), &[("NATS_USER", "relay"), ("NATS_PASS", "hunter2")]);
    assert!(status.success());
}

/// A server with a user `relay` that has only these permissions.
fn with_permissions(subscribe: &str, publish: &str) -> NatsServer {
    NatsServer::with_config(&format!(
        "authorization: {{ users: [ {{ user: relay, password: hunter2, permissions: {{ subscribe: [{subscribe}], publish: [{publish}] }} }} ] }}"
    ))
}

#[test]
fn the_documented_permissions_suffice_and_each_of_them_is_needed() {
    const ALL: (&str, &str) =
        ("\"cms.cache.>\", \"_INBOX.>\"", "\"relayed.cache.>\", \"failed.cache.>\", \"_INBOX.>\"");
    let login = [
        ("NATS_USER", "relay"),
        ("NATS_PASS", SECRET),
        ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache"),
    ];
    let nats = with_permissions(ALL.0, ALL.1);
    let (status, _, stderr) = check(&nats.url(), &login);
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));

    for (denied, code, expected) in [
        ("\"cms.cache.>\", ", 1, "may not subscribe to cms.cache.>"),
        ("\"relayed.cache.>\", ", 1, "may not publish on relayed.cache.>"),
        ("\"failed.cache.>\", ", 1, "may not publish on failed.cache.>"),
        (", \"_INBOX.>\"", 0, "not confirmed"),
    ] {
        let nats = with_permissions(&ALL.0.replace(denied, ""), &ALL.1.replace(denied, ""));
        let (status, _, stderr) = check(&nats.url(), &login);
        assert_eq!(status.code(), Some(code), "{denied}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(expected), "{denied}: {stderr}");
    }
}

#[tokio::test]
async fn check_relays_nothing_and_publishes_nothing_that_anybody_would_receive() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let client = nats.client().await;
    let mut everything = client.subscribe(">").await.unwrap();
    client.publish("test.begin", "".into()).await.unwrap();
    assert_eq!(
        within("the subscription", everything.next()).await.unwrap().subject.as_str(),
        "test.begin"
    );
    let publisher = client.clone();
    let traffic = tokio::spawn(async move {
        loop {
            publisher.publish("cms.cache.article", "{}".into()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    assert_eq!(
        within("traffic", everything.next()).await.unwrap().subject.as_str(),
        "cms.cache.article"
    );
    let (nats_url, endpoint_url) = (nats.url(), endpoint.url());
    let checked = tokio::task::spawn_blocking(move || {
        check(
            &nats_url,
            &[
                ("WEBHOOK_DESTINATION", &endpoint_url),
                ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache"),
            ],
        )
    });
    let (status, _, stderr) = checked.await.unwrap();
    assert!(status.success(), "{stderr}");
    traffic.abort();
    let _ = traffic.await;
    client.publish("test.end", "".into()).await.unwrap();
    let mut subjects = BTreeSet::new();
    while let Some(message) = within("all that was published", everything.next()).await {
        if message.subject.as_str() == "test.end" {
            break;
        }
        subjects.insert(message.subject.split('.').next().unwrap().to_owned());
    }
    assert_eq!(subjects, BTreeSet::from(["_INBOX".to_owned(), "cms".to_owned()]));
    assert_eq!(endpoint.count(), 0);
}

#[test]
fn check_takes_no_message_from_running_relays_of_the_same_queue_group() {
    // The server's trace shows every subscription. One in the queue group would be given
    // messages that then reach nobody.
    let nats = NatsServer::with_config("trace: true");
    let (status, _, stderr) = check(&nats.url(), &[("NATS_QUEUE_GROUP", "frontend")]);
    assert!(status.success(), "{stderr}");
    let log = nats.log();
    assert!(log.contains("[SUB "), "no trace: {log}");
    let joined: Vec<_> =
        log.lines().filter(|line| line.contains("[SUB cms.cache.> frontend ")).collect();
    assert!(joined.is_empty(), "{joined:?}");
}

// Metrics.

/// The lines of `/metrics` of a relay that listens on a free port.
async fn metrics(relay: &Relay) -> Vec<String> {
    let serving = json(&relay.logged("serving /healthz").await);
    let mut stream = TcpStream::connect(serving["address"].as_str().unwrap()).unwrap();
    stream.set_read_timeout(Some(support::LIMIT)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").unwrap();
    let lines: Vec<_> = BufReader::new(stream).lines().map_while(Result::ok).collect();
    assert!(lines[0].contains(" 200 ") && lines.iter().any(|line| line == "# EOF"), "{lines:#?}");
    lines
}

#[tokio::test]
async fn the_documents_list_the_metrics_that_there_are() {
    let nats = NatsServer::start();
    // A kind of failure is there at the latest when it has happened.
    let variables = [("HTTP_LISTEN", "127.0.0.1:0"), ("WEBHOOK_MAX_ATTEMPTS", "1")];
    let relay =
        Relay::start(&nats.url(), &format!("http://127.0.0.1:{}/", closed_port()), &variables)
            .await;
    let client = nats.client().await;
    client.publish("cms.cache.a", "".into()).await.unwrap();
    relay.logged("not relayed").await;
    let lines = metrics(&relay).await;
    let served: BTreeSet<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("# TYPE nats_webhook_relay_")?.split(' ').next())
        .collect();

    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"))
            .unwrap();
    let table = document
        .split("with the prefix `nats_webhook_relay_` |")
        .nth(1)
        .expect("the table of metrics");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(','));
    let listed = names
        .map(|name| {
            let name = name.trim().trim_matches('`').split('{').next().unwrap();
            name.trim_end_matches("_total").trim_end_matches("_info")
        })
        .collect();
    assert_eq!(served, listed);
}

#[tokio::test]
async fn every_kind_of_failure_is_counted_from_zero() {
    // A counter that appears with its first failure has no increase that an alert could see.
    let nats = NatsServer::start();
    let relay =
        Relay::start(&nats.url(), "http://127.0.0.1:1/", &[("HTTP_LISTEN", "127.0.0.1:0")]).await;
    let lines = metrics(&relay).await;
    for reason in ["webhook", "too_large", "publish", "shutdown", "bug"] {
        let line = format!("nats_webhook_relay_messages_failed_total{{reason=\"{reason}\"}} 0");
        assert!(lines.contains(&line), "{line}: {lines:#?}");
    }
}

// Log lines.

fn json(line: &str) -> Value {
    let value: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
    for field in ["timestamp", "level", "message"] {
        assert!(value[field].is_string(), "{field}: {line}");
    }
    value
}

fn is_id(text: &str) -> bool {
    text.strip_prefix("msg_")
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric()))
}

#[tokio::test]
async fn three_json_lines_a_message_with_all_fields_and_few_others() {
    const MESSAGES: usize = 20;
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    for number in 0..MESSAGES {
        client.publish(format!("cms.cache.a{number}"), "12345".into()).await.unwrap();
    }
    relay.logged_times("\"message\":\"relayed\"", MESSAGES).await;
    assert!(relay.stop().await.success());
    let lines: Vec<Value> = relay.log().iter().map(|line| json(line)).collect();

    let (of_messages, others): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line["id"].is_string());
    assert_eq!(of_messages.len(), 3 * MESSAGES);
    for number in 0..MESSAGES {
        let subject = format!("cms.cache.a{number}");
        let own: Vec<_> = of_messages.iter().filter(|line| line["subject"] == *subject).collect();
        let [received, answered, relayed] = own[..] else { panic!("{own:?}") };
        assert_eq!(
            [&received["message"], &answered["message"], &relayed["message"]],
            ["received", "answered", "relayed"]
        );
        assert!(is_id(received["id"].as_str().unwrap()), "{received}");
        assert!(own.iter().all(|line| line["id"] == received["id"]), "{own:?}");
        // Only the last is said unless more is asked for.
        assert_eq!(
            [&received["level"], &answered["level"], &relayed["level"]],
            ["DEBUG", "DEBUG", "INFO"]
        );
        assert_eq!((&relayed["status"], &relayed["attempts"]), (&200.into(), &1.into()));
        for step in ["waited_ms", "called_ms", "published_ms"] {
            assert!(relayed[step].is_u64(), "{relayed}");
        }
        assert_eq!(received["bytes"], 5);
        assert_eq!(answered["destination"], *endpoint.url());
        assert_eq!(
            (&answered["status"], &answered["attempt"]),
            (&Value::from(200), &Value::from(1))
        );
        assert!(answered["elapsed_ms"].is_u64(), "{answered}");
        assert_eq!(relayed["relayed"], *format!("relayed.cache.a{number}"));
        assert_eq!(
            received["id"],
            *endpoint
                .calls()
                .iter()
                .find(|call| call.subject() == subject)
                .unwrap()
                .header("webhook-id")
        );
    }

    let others: Vec<_> = others.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(others, ["starting", "ready", "stopping: finishing what has arrived", "stopped"]);
    assert_eq!(
        (&lines[0]["from"], &lines[0]["to"], &lines[0]["relayed"]),
        (&"cms.cache.>".into(), &endpoint.url().into(), &"relayed.cache.>".into())
    );
    let stopped = lines.last().unwrap();
    assert_eq!(
        (&stopped["received"], &stopped["relayed"], &stopped["lost"], &stopped["unfinished"]),
        (&20.into(), &20.into(), &0.into(), &0.into())
    );
}

/// Relays one message, the second attempt succeeds, and returns the log.
async fn log_of_one_message(variables: &[(&str, &str)], ready: &str) -> (Endpoint, Vec<String>) {
    let nats = NatsServer::start();
    let attempts = AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |_| {
        Reply::status(if attempts.fetch_add(1, Ordering::SeqCst) == 0 { 503 } else { 202 })
    })
    .await;
    let variables = [&[("RUST_LOG", "info")], variables].concat();
    let mut relay = Relay::spawn(&nats.url(), &endpoint.url(), &variables);
    relay.logged(ready).await;
    let client = nats.client().await;
    client.publish("cms.cache.article.42", "12345".into()).await.unwrap();
    relay.logged("relayed.cache.article.42").await;
    assert!(relay.stop().await.success());
    (endpoint, relay.log())
}

#[tokio::test]
async fn pretty_is_three_lines_a_message_to_follow_by_eye() {
    let (endpoint, log) = log_of_one_message(&[("LOG_FORMAT", "pretty")], "ready").await;
    assert!(log.iter().all(|line| !line.contains('\x1b')), "colors are for terminals: {log:#?}");
    let own: Vec<_> = log.iter().filter(|line| line.contains("msg_")).collect();
    let [received, answered, relayed] = own[..] else { panic!("{log:#?}") };
    let id = received.split_whitespace().last().unwrap();
    assert!(is_id(id), "{received}");
    // After the time of day in UTC: 12:34:56.789Z
    let text = |line: &str| {
        let (time, text) = line.split_once(' ').unwrap();
        assert!(
            time.len() == 13 && time.chars().all(|c| c.is_ascii_digit() || ":.Z".contains(c)),
            "{line}"
        );
        text.to_owned()
    };
    assert_eq!(text(received), format!("  --> cms.cache.article.42 5 bytes, {id}"));
    assert_eq!(text(relayed), format!("  ==> relayed.cache.article.42 {id}"));
    let answered = text(answered);
    let rest = answered
        .strip_prefix(&format!(" <--  [202] POST {} ", endpoint.url()))
        .unwrap_or_else(|| panic!("{answered}"));
    let (elapsed, rest) = rest.split_once(" ms, ").unwrap_or_else(|| panic!("{answered}"));
    assert!(elapsed.parse::<u32>().is_ok(), "{answered}");
    assert_eq!(rest, format!("{id}, attempt 2"));
    // The outage in between, once when it begins and once when it ends.
    let others: Vec<_> =
        log.iter().filter(|line| !line.contains("msg_")).map(|line| text(line)).collect();
    assert!(
        others.iter().filter(|line| line.starts_with("WARN  webhook delivery failing")).count()
            == 1,
        "{others:#?}"
    );
    assert!(
        others.iter().any(|line| line.starts_with("      webhook delivery recovered")),
        "{others:#?}"
    );
    assert_eq!(others.len(), 6, "{others:#?}");
}

#[tokio::test]
async fn compact_is_one_line_a_message_with_all_fields_and_its_steps_are_at_debug() {
    let relayed = [
        " INFO relayed",
        "subject=cms.cache.article.42",
        "relayed=relayed.cache.article.42",
        "status=202 attempts=2 waited_ms=",
        "called_ms=",
        "published_ms=",
    ];
    // Without a terminal it is the default.
    for format in ["compact", ""] {
        let (_, log) = log_of_one_message(&[("LOG_FORMAT", format)], "INFO ready").await;
        let own: Vec<_> = log.iter().filter(|line| line.contains("msg_")).collect();
        let [line] = own[..] else { panic!("{log:#?}") };
        assert!(relayed.iter().all(|part| line.contains(part)), "{line}");
        assert_eq!(log.len(), 1 + 6, "{log:#?}");
    }

    let debug = ("RUST_LOG", "debug");
    let (endpoint, log) = log_of_one_message(&[("LOG_FORMAT", "compact"), debug], "ready").await;
    let own: Vec<_> = log.iter().filter(|line| line.contains("msg_")).collect();
    let id = own[0].split("id=").nth(1).unwrap().split(' ').next().unwrap();
    assert!(is_id(id) && own.iter().all(|line| line.contains(id)), "{own:?}");
    for parts in [
        &["DEBUG received", "subject=cms.cache.article.42", "bytes=5"][..],
        &["DEBUG answered", "status=202", "elapsed_ms=", "attempt=2", &endpoint.url()],
        &relayed,
    ] {
        let found = own.iter().filter(|line| parts.iter().all(|part| line.contains(part)));
        assert_eq!(found.count(), 1, "{parts:?}: {own:#?}");
    }
}

#[tokio::test]
async fn one_warning_an_outage_not_one_an_attempt() {
    let nats = NatsServer::start();
    let attempts = AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |_| {
        Reply::status(if attempts.fetch_add(1, Ordering::SeqCst) < 9 { 500 } else { 200 })
    })
    .await;
    let relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    for number in 0..3 {
        client.publish(format!("cms.cache.a{number}"), "".into()).await.unwrap();
    }
    relay.logged_times("\"message\":\"relayed\"", 3).await;
    assert_eq!(endpoint.count(), 12);
    let warnings = relay.lines("\"WARN\"");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let warning = json(&warnings[0]);
    assert_eq!(warning["destination"], *endpoint.url());
    assert!(warning["error"].as_str().unwrap().contains("500"), "{warning}");
    assert_eq!(relay.lines("webhook delivery recovered").len(), 1);
    assert!(relay.lines("\"ERROR\"").is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_one_helpful_line() {
    let nats = NatsServer::start();
    let port = closed_port();
    let destination = format!("http://localhost:{port}/hook");
    let relay = Relay::start(&nats.url(), &destination, &[("WEBHOOK_MAX_ATTEMPTS", "3")]).await;
    let client = nats.client().await;
    client.publish("cms.cache.article.42", "".into()).await.unwrap();
    let error = json(&relay.logged("not relayed").await);
    assert_eq!(
        (&error["level"], &error["subject"], &error["reason"]),
        (&"ERROR".into(), &"cms.cache.article.42".into(), &"webhook".into())
    );
    let said = format!("nothing listens on localhost:{port}: is the frontend running?");
    assert!(error["error"].as_str().unwrap().contains(&said), "{error}");
    let warnings = relay.lines("\"WARN\"");
    assert!(warnings.len() == 1 && warnings[0].contains(&said), "{warnings:#?}");
    assert_eq!(relay.lines("\"ERROR\"").len(), 1);
}

#[tokio::test]
async fn a_nats_server_that_is_not_there_is_one_line_over_many_tries() {
    let connections = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, counted) = (listener.local_addr().unwrap().port(), connections.clone());
    std::thread::spawn(move || {
        // Each try is hung up on.
        for stream in listener.incoming() {
            drop(stream);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut relay = Relay::spawn(&format!("nats://127.0.0.1:{port}"), "http://127.0.0.1:1/", &[]);
    eventually("several tries", || connections.load(Ordering::SeqCst) >= 6).await;
    let warnings = relay.lines("\"WARN\"");
    assert!(
        warnings.len() == 1
            && warnings[0].contains("waiting for NATS")
            && warnings[0].contains(&port.to_string()),
        "{warnings:#?}"
    );
    assert!(relay.stop().await.success(), "told to stop before there was a server");
}

#[tokio::test]
async fn warn_silences_what_goes_well() {
    let nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::spawn(&nats.url(), &endpoint.url(), &[("RUST_LOG", "warn")]);
    let client = nats.client().await;
    let mut relayed = client.subscribe("relayed.cache.>").await.unwrap();
    // Nothing says when it is ready, so messages are sent until one has passed.
    within("a relayed message", async {
        loop {
            client.publish("cms.cache.article.42", "".into()).await.unwrap();
            if tokio::time::timeout(std::time::Duration::from_millis(50), relayed.next())
                .await
                .is_ok()
            {
                return;
            }
        }
    })
    .await;
    assert!(relay.stop().await.success());
    assert_eq!(relay.log(), Vec::<String>::new());
}

#[tokio::test]
async fn subjects_cannot_write_to_the_terminal() {
    const SUBJECT: &str = "cms.cache.\x1b[2J\x1b]0;title\x07\u{9b}31m.42";
    for format in ["pretty", "compact", "json"] {
        let nats = NatsServer::start();
        let endpoint = Endpoint::start(|_| Reply::status(400)).await;
        let relay = Relay::spawn(
            &nats.url(),
            &endpoint.url(),
            &[("LOG_FORMAT", format), ("RUST_LOG", "debug")],
        );
        relay.logged("ready").await;
        publish_raw(&nats, SUBJECT, "hi");
        relay.logged("not relayed").await;
        let lines = relay.lines("2J");
        assert!(lines.len() >= 2, "{:#?}", relay.log());
        // For a program that parses JSON the rest is as good as escaped.
        let is_raw =
            if format == "json" { |c: char| c.is_ascii_control() } else { char::is_control };
        for line in relay.log() {
            assert!(!line.chars().any(is_raw), "{format}: {line:?}");
        }
        if format == "json" {
            assert_eq!(json(&lines[0])["subject"], SUBJECT);
        }
    }
}

#[tokio::test]
async fn the_nats_client_has_no_lines_of_its_own() {
    let mut nats = NatsServer::start();
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    nats.kill();
    relay.logged("lost the connection to NATS").await;
    nats.restart();
    relay.logged("reconnected to NATS").await;
    assert!(relay.stop().await.success());
    let ours = [
        "starting",
        "ready",
        "lost the connection to NATS, reconnecting",
        "cannot reconnect to NATS yet, retrying",
        "reconnected to NATS; messages published in the meantime did not reach the relay",
        "stopping: finishing what has arrived",
        "stopped",
    ];
    for line in relay.log() {
        assert!(ours.contains(&json(&line)["message"].as_str().unwrap()), "{line}");
    }
    // The connection's end and its return are each said once.
    assert!(relay.log().len() <= ours.len(), "{:#?}", relay.log());
}
