//! One connection's pull requests and deliveries.

use crate::nats::link::Link;
use async_nats::Subscriber;
use std::time::Duration;
use tokio::time::Instant;

/// How long a pull request waits at the server. The next one is a sign of life.
pub(super) const EXPIRES: Duration = Duration::from_secs(1);
/// How much later than that the server's answer may be before it counts as lost.
pub(super) const LATE: Duration = Duration::from_secs(4);
/// The same while stopping: what comes later is delivered to another client.
pub(super) const LATE_STOPPING: Duration = Duration::from_secs(1);

/// One connection's requests and deliveries.
pub(super) struct Session {
    pub(super) generation: u64,
    /// The number of the client that it is with.
    pub(super) client: u64,
    pub(super) inbox: String,
    pub(super) subscriber: Subscriber,
    pub(super) began: Instant,
    pub(super) request: u64,
    pub(super) asked_at: Option<Instant>,
    /// When the server was last told that this replica lives, by a request of any kind.
    pub(super) alive_at: Option<Instant>,
    pub(super) ask_after: Instant,
    /// Messages that were asked for and have not arrived.
    pub(super) outstanding: usize,
    /// Messages that have arrived for the request, and when the last one did.
    pub(super) arrived: usize,
    pub(super) arrived_at: Option<Instant>,
    /// Whether what arrives is for this request: not after one whose answer is late.
    pub(super) is_current: bool,
    /// Whether the next message alone is larger than what was asked for.
    pub(super) oversize: bool,
    /// The consumer's count at the next delivery.
    pub(super) next_delivery: Option<u64>,
    pub(super) inspected: bool,
    /// Whether the last delivery was not the first of its message: there may be more of them.
    pub(super) again: bool,
}

impl Session {
    pub(super) async fn begin(link: &Link) -> anyhow::Result<Self> {
        let generation = link.connected().await;
        let (number, client) = link.client().await;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*")).await?;
        let now = Instant::now();
        Ok(Self {
            generation,
            client: number,
            inbox,
            subscriber,
            began: now,
            request: 0,
            asked_at: None,
            alive_at: None,
            ask_after: now,
            outstanding: 0,
            arrived: 0,
            arrived_at: None,
            is_current: true,
            oversize: false,
            next_delivery: None,
            inspected: false,
            again: false,
        })
    }

    /// When the answer to the last request is late by this much. It is not while messages arrive.
    pub(super) fn late_at(&self, by: Duration) -> Instant {
        let asked_at = self.asked_at.unwrap_or(self.began);
        self.arrived_at.map_or(asked_at + EXPIRES, |at| at.max(asked_at + EXPIRES)) + by
    }

    /// Whether nothing more will arrive for what was asked.
    pub(super) fn is_answered(&self) -> bool {
        self.outstanding == 0 || self.late_at(LATE_STOPPING) < Instant::now()
    }

    /// When the turn begins that a message proves which arrives now.
    pub(super) fn proves_since(&self) -> Instant {
        self.asked_at.filter(|_| self.is_current).unwrap_or(self.began)
    }

    /// Takes note of a message that has arrived.
    pub(super) fn arrived_one(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.arrived += 1;
        self.arrived_at = Some(Instant::now());
        self.oversize = false;
    }
}
