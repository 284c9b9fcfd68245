//! How often a destination may be called, retries included.
//!
//! Calls are made in the order in which they asked. One that has to wait gives its place among
//! the messages that are worked on back, and takes it again before the call counts: what waits
//! for a place afterwards could come to the destination in one burst.

use crate::observe::Observer;
use crate::observe::event::Event;
use crate::slot::{Slot, Working};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use std::num::NonZeroU32;
use tokio::sync::Mutex;

/// So much of a second's calls may be made at once.
const BURST: f64 = 0.1;
const MOST: u32 = 1_000_000;

/// A number of calls in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate(Quota);

impl Rate {
    /// Reads `50/s`, `600/min` or `100/h`; `None` where `text` is something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, unit) = text.split_once('/')?;
        let number = number.trim().parse::<NonZeroU32>().ok().filter(|n| n.get() <= MOST)?;
        let quota = match unit.trim() {
            "s" => Quota::per_second(number),
            "min" => Quota::per_minute(number),
            "h" => Quota::per_hour(number),
            _ => return None,
        };
        let burst = BURST / quota.replenish_interval().as_secs_f64();
        Some(Self(
            quota.allow_burst(NonZeroU32::new(burst.round() as u32).unwrap_or(NonZeroU32::MIN)),
        ))
    }
}

/// The limit of one destination.
pub(super) struct RateLimit {
    limiter: DefaultDirectRateLimiter,
    /// Held by the call that is made next.
    turn: Mutex<()>,
}

impl RateLimit {
    pub(super) fn new(Rate(quota): Rate) -> Self {
        Self { limiter: RateLimiter::direct(quota), turn: Mutex::default() }
    }

    /// Returns when one more call may be made, with the claim of its message.
    pub(super) async fn admit(
        &self,
        slot: &Slot<'_>,
        mut working: Working,
        observer: &Observer,
    ) -> Working {
        // Nobody overtakes: the lock is not free while others wait for it.
        if self.turn.try_lock().is_ok_and(|_turn| self.limiter.check().is_ok()) {
            return working;
        }
        observer.note(&Event::HeldBack);
        drop(working);
        let _turn = self.turn.lock().await;
        loop {
            working = slot.enter().await;
            let Err(not_until) = self.limiter.check() else { return working };
            drop(working);
            tokio::time::sleep(not_until.wait_time_from(DefaultClock::default().now())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_rate_is_a_number_of_calls_in_a_time() {
        for (text, expected) in [
            ("50/s", Some((20_000, 5))),
            (" 1000 / s ", Some((1_000, 100))),
            ("4/s", Some((250_000, 1))),
            ("600/min", Some((100_000, 1))),
            ("3600/h", Some((1_000_000, 1))),
            ("1000000/s", Some((1, 100_000))),
            ("1000001/s", None),
            ("0/s", None),
            ("-1/s", None),
            ("1.5/s", None),
            ("50", None),
            ("50/", None),
            ("50/day", None),
            ("/s", None),
        ] {
            let expected = expected.map(|(micros, burst)| (Duration::from_micros(micros), burst));
            let rate = Rate::parse(text)
                .map(|Rate(quota)| (quota.replenish_interval(), quota.burst_size().get()));
            assert_eq!(rate, expected, "{text}");
        }
    }
}
