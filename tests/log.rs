//! A log that cannot be written, or that nobody reads, holds up nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use support::endpoint::Endpoint;
use support::nats::{Absent, NatsServer};
use support::relay::{command, field};
use support::{LIMIT, eventually, signal, subscribe, within};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A relay whose log the test deals with itself, and everything around it.
struct Silent {
    process: Child,
    http: u16,
    nats: NatsServer,
    endpoint: Endpoint,
    _folder: TempDir,
}

impl Silent {
    async fn start(stderr: impl Into<Stdio>, variables: &[(&str, &str)]) -> Self {
        let (nats, endpoint) = (NatsServer::start(), Endpoint::ok().await);
        let absent = Absent::reserve();
        let (http, url, hook) = (absent.port, nats.url(), endpoint.url());
        let listen = format!("127.0.0.1:{http}");
        let base = [
            ("WEBHOOK_DESTINATION", hook.as_str()),
            ("NATS_HOST", &url),
            ("NATS_SUBJECT_PREFIX", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
            ("HTTP_LISTEN", &listen),
            ("LOG_FORMAT", "json"),
            ("RUST_LOG", "info,nats_webhook_relay::relay=debug,nats_webhook_relay::webhook=debug"),
        ];
        let folder = TempDir::new().unwrap();
        let mut command = command(&folder, &[&base, variables].concat());
        drop(absent);
        let process = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let relay = Self { process, http, nats, endpoint, _folder: folder };
        let ready = async {
            while relay
                .get("/readyz")
                .await
                .is_none_or(|answer| !answer.starts_with("HTTP/1.1 200"))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the relay is ready", ready).await;
        relay
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await.ok()?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn dropped(&self) -> usize {
        let metrics = within("metrics", self.get("/metrics")).await.unwrap();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("nats_webhook_relay_log_lines_dropped_total "));
        value.unwrap().parse().unwrap()
    }

    /// Publishes messages and waits until all are relayed.
    async fn relays(&self, messages: usize) {
        let client = self.nats.client().await;
        let mut relayed = subscribe(&client, "relayed.cache.>").await;
        for number in 0..messages {
            client
                .publish(format!("cms.cache.s{}", number % 50), number.to_string().into())
                .await
                .unwrap();
        }
        for _ in 0..messages {
            within("a relayed message", relayed.next()).await.unwrap();
        }
    }

    /// Sends SIGTERM. The process ends at once, as it has nothing left to do.
    async fn stop(&mut self) -> ExitStatus {
        signal(self.process.id(), "TERM");
        let since = Instant::now();
        eventually("the relay exits", || self.process.try_wait().unwrap().is_some()).await;
        assert!(since.elapsed() < LIMIT / 3, "the exit took {:?}", since.elapsed());
        self.process.wait().unwrap()
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_log_without_a_reader_or_on_a_full_disk_stops_nothing() {
    let (reader, broken) = std::io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(broken), full.into()] {
        let mut relay = Silent::start(stderr, &[]).await;
        relay.relays(100).await;
        let counted = async {
            // Received, answered and relayed.
            while relay.dropped().await < 300 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the lines are counted", counted).await;
        assert_eq!(relay.endpoint.count(), 100);
        assert!(relay.stop().await.success());
    }
}

/// Reads lines until one contains `text`, on a thread of its own.
async fn read_until(
    reader: PipeReader,
    text: &'static str,
) -> (Vec<String>, BufReader<PipeReader>) {
    let read = tokio::task::spawn_blocking(move || {
        let mut reader = BufReader::new(reader);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the log ends without {text}");
            assert!(line.starts_with('{') && line.ends_with("}\n"), "not a whole line: {line}");
            lines.push(line);
            if lines.last().unwrap().contains(text) {
                return (lines, reader);
            }
        }
    });
    within(text, read).await.unwrap()
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing_and_says_what_was_dropped_when_it_is_read_again() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut relay = Silent::start(writer, &[]).await;
    // Three lines each: more than the pipe and the memory for lines hold.
    relay.relays(15_000).await;
    let dropped = relay.dropped().await;
    assert!(dropped > 0);
    assert!(within("health", relay.get("/healthz")).await.unwrap().starts_with("HTTP/1.1 200"));
    let (lines, _reader) = read_until(reader, "log lines were dropped").await;
    let told: usize = field(lines.last().unwrap(), "lines").parse().unwrap();
    assert!(told >= dropped, "{told} of {dropped}");
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_the_process_from_ending() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut relay = Silent::start(writer, &[]).await;
    relay.relays(1_000).await;
    assert!(relay.stop().await.success());
}

#[test]
fn what_is_logged_before_the_end_is_written() {
    let folder = TempDir::new().unwrap();
    let variables = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:1/hook"),
        ("NATS_HOST", "nats://127.0.0.1:1"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("HTTP_LISTEN", "192.0.2.1:1"),
    ];
    let (status, _, log) = support::relay::finish(command(&folder, &variables));
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("ended with an error") && log.contains("HTTP_LISTEN"), "{log}");
}

/// Runs a command whose standard output is `stdout`: its status and standard error.
fn output_to(
    stdout: impl Into<Stdio>,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (ExitStatus, String) {
    let folder = TempDir::new().unwrap();
    let output = command(&folder, variables)
        .args(arguments)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output.wait_with_output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_reader_that_has_seen_enough_of_a_command_is_no_failure_and_a_full_disk_is() {
    let nats = NatsServer::start();
    let url = nats.url();
    let variables = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:1/hook"),
        ("NATS_HOST", url.as_str()),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
    ];
    for arguments in
        [&["--help"][..], &["check"], &["plugin", "new", "--lang", "rust", "article-tags"]]
    {
        let (reader, broken) = std::io::pipe().unwrap();
        drop(reader);
        let (status, errors) = output_to(broken, arguments, &variables);
        assert!(status.success() && errors.is_empty(), "{arguments:?}: {status} {errors}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (status, errors) = output_to(full, &["check"], &variables);
    assert_eq!(status.code(), Some(1));
    assert!(
        errors.contains("cannot write to standard output") && !errors.contains("panic"),
        "{errors}"
    );
}
