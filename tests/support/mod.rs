//! Real parts for whole-program tests: a nats-server, HTTP endpoints, and the relay's binary.
//!
//! Everything listens on a port of the system's choice and is killed when dropped. Waiting is
//! for conditions, with limits that a slow machine does not reach.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub
)]

pub mod authority;
pub mod cluster;
pub mod component;
pub mod dns;
pub mod endpoint;
pub mod held;
pub mod judge;
pub mod nats;
pub mod operator;
pub mod proxy;
pub mod relay;
pub mod setup;
pub mod stream;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use std::future::Future;
use std::time::Duration;

/// Far beyond what any wait takes on a working machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Polls until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, waited).await;
}

/// Awaits with a limit.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// Sends `signal` (TERM, INT, KILL, STOP, CONT) to a process that a test has started.
pub fn signal(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// A subscription that the server has.
pub async fn subscribe(client: &Client, subject: &str) -> Subscriber {
    let subscriber = client.subscribe(subject.to_owned()).await.unwrap();
    round_trip(client).await;
    subscriber
}

/// Returns when the server has handled all that `client` has sent.
pub async fn round_trip(client: &Client) {
    let inbox = client.new_inbox();
    let mut returns = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    within("a round trip", returns.next()).await.unwrap();
}
