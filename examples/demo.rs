//! The relay at work, told line by line. Run it with `scripts/demo`.
//!
//! This process plays the backend (publishes), the frontend (an HTTP endpoint whose cache takes
//! a while to invalidate) and the browser (listens for relayed messages); nats-server and the
//! relay are the real programs.
#![allow(clippy::print_stdout, clippy::panic, clippy::indexing_slicing, reason = "a demonstration")]

use anyhow::{Context, ensure};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use futures_util::StreamExt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Far beyond what anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Whether the frontend would serve fresh data now.
static FRESH: AtomicBool = AtomicBool::new(false);
/// Calls of the frontend's webhook.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// Kills what was started, however the demonstration ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let folder =
        std::env::temp_dir().join(format!("nats-webhook-relay-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = demonstrate(&folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    result
}

async fn demonstrate(folder: &Path) -> anyhow::Result<()> {
    let (_nats, nats) = start_nats(folder).await?;
    say("nats", &format!("listens on {nats}"));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let webhook = format!("http://localhost:{}/api/cache/webhook", listener.local_addr()?.port());
    let router = Router::new().route("/api/cache/webhook", post(invalidate));
    tokio::spawn(async move { axum::serve(listener, router).await });
    say("frontend", &format!("listens on {webhook}"));

    let client = async_nats::connect(&nats).await?;
    let mut browser = client.subscribe("relayed.cache.>").await?;
    client.flush().await?;
    let (relay, ready) = start_relay(folder, &nats, &webhook)?;
    tokio::time::timeout(LIMIT, ready).await?.context("the relay has ended")?;

    for (subject, event) in [
        ("cms.cache.article.42", r#"{"entity":"article","id":42}"#),
        ("cms.cache.page.home", r#"{"entity":"page","id":"home"}"#),
    ] {
        println!();
        FRESH.store(false, Ordering::SeqCst);
        say("backend", &format!("publishes {subject} {event}"));
        client.publish(subject, event.into()).await?;
        let relayed = tokio::time::timeout(LIMIT, browser.next())
            .await
            .context("nothing was relayed")?
            .context("no subscription")?;
        ensure!(FRESH.load(Ordering::SeqCst), "the browser was told before the frontend was fresh");
        say("browser", &format!("receives {} and refreshes: the data is fresh", relayed.subject));
    }
    println!();
    stop(relay)?;
    println!(
        "\nBoth times, the browser learned of the change only after the frontend was fresh, even after a failed call."
    );
    println!("Next: README.md, or `cargo run -- --help`");
    Ok(())
}

/// The frontend's webhook: invalidating takes a while, and the third call fails.
async fn invalidate(headers: HeaderMap, event: String) -> StatusCode {
    let subject =
        headers.get("nats-subject").and_then(|subject| subject.to_str().ok()).unwrap_or_default();
    say("frontend", &format!("is called for {subject} with {event}"));
    if CALLS.fetch_add(1, Ordering::SeqCst) == 1 {
        say("frontend", "answers 503: it is being deployed");
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    FRESH.store(true, Ordering::SeqCst);
    say("frontend", "has invalidated its cache after 300 ms and answers 200");
    StatusCode::OK
}

async fn start_nats(folder: &Path) -> anyhow::Result<(Process, String)> {
    let executable = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
    let log = folder.join("nats.log");
    let mut command = Command::new(&executable);
    command.args(["-a", "127.0.0.1", "-p", "-1", "-l"]).arg(&log).stdin(Stdio::null());
    let process = Process(command.spawn().with_context(|| format!("cannot start {executable}"))?);
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let address = text
            .split("Listening for client connections on ")
            .nth(1)
            .and_then(|rest| rest.lines().next().map(str::to_owned));
        if let Some(address) = address.filter(|_| text.contains("Server is ready")) {
            return Ok((process, format!("nats://{address}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("nats-server did not start")
}

fn start_relay(
    folder: &Path,
    nats: &str,
    webhook: &str,
) -> anyhow::Result<(Process, oneshot::Receiver<()>)> {
    let executable = std::env::current_exe()?.with_file_name("../nats-webhook-relay");
    let mut command = Command::new(executable);
    command.env_clear().current_dir(folder).stdin(Stdio::null()).stderr(Stdio::piped());
    command
        .env("NATS_HOST", nats)
        .env("WEBHOOK_DESTINATION", webhook)
        .env("LOG_FORMAT", "pretty")
        .env("RUST_LOG", "info");
    command
        .env("NATS_SUBJECT_PREFIX", "cms.cache")
        .env("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache");
    let mut process = Process(command.spawn().context("cannot start the relay")?);
    let log = process.0.stderr.take().context("the relay has no log")?;
    let (sender, ready) = oneshot::channel();
    std::thread::spawn(move || {
        let mut sender = Some(sender);
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if line.contains("ready") {
                let _ = sender.take().map(|sender| sender.send(()));
            }
            say("relay", line.get(14..).unwrap_or(&line));
        }
    });
    Ok((process, ready))
}

/// Tells the relay to stop and waits until it has finished.
fn stop(mut relay: Process) -> anyhow::Result<()> {
    Command::new("kill").args(["-TERM", &relay.0.id().to_string()]).status()?;
    ensure!(relay.0.wait()?.success(), "the relay has ended with an error");
    Ok(())
}

fn say(who: &str, what: &str) {
    println!("{who:>9} | {what}");
}
