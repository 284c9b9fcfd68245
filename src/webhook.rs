//! Delivery: POST a message to every destination until all have accepted it.
//!
//! Owns the verdict on an answer, the retries, and the one way to an [`Accepted`]: nothing
//! else can make that value, and nothing is republished without it. How a call is made is
//! `endpoint`'s matter, and what is said about a destination that is down is `outage`'s.

pub(crate) mod client;
pub mod delivery;
pub(crate) mod destination;
pub(crate) mod endpoint;
mod instances;
mod outage;
pub(crate) mod proxy;
pub(crate) mod rate;
pub(crate) mod resolve;
pub(crate) mod signature;
mod span;
mod target;

pub use delivery::Delivery;

use crate::certificates::Certificates;
use crate::headers::WEBHOOK_SIGNATURE;
use crate::message::{Message, Outbound};
use crate::observe::Observer;
use crate::observe::event::{self, AcceptedCall, Event};
use crate::origin::Fate;
use crate::slot::{Slot, Working};
use crate::webhook::destination::Destination;
use crate::webhook::endpoint::{Answer, Call, Endpoint, Unanswered};
use crate::webhook::instances::{Instance, Instances};
use crate::webhook::outage::Shortage;
use crate::webhook::proxy::Proxy;
use crate::webhook::rate::Rate;
use crate::webhook::signature::Keys;
use crate::webhook::target::Target;
use futures_util::future::join_all;
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, StatusCode};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The first wait between attempts; it doubles with each, up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// The longest that `Retry-After` is obeyed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Time for one attempt, and attempts for one message and destination, unless something else
/// is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const MAX_ATTEMPTS: u32 = 10;
pub(crate) const MOST_ATTEMPTS: u32 = 1_000_000;

#[derive(Debug)]
pub(crate) struct Settings {
    /// All of these must accept a message; each with the proxy on the way to it.
    pub(crate) destinations: Vec<(Destination, Option<Proxy>)>,
    /// Time for one attempt.
    pub(crate) timeout: Duration,
    /// Time for connecting.
    pub(crate) connect_timeout: Duration,
    /// Attempts for each message and destination; `None` is without end.
    pub(crate) max_attempts: Option<u32>,
    /// Statuses to retry beside the usual ones.
    pub(crate) retry_status: Vec<StatusCode>,
    /// How all addresses of a host are found, where each is called.
    pub(crate) resolve: Option<resolve::Settings>,
    /// How often each destination is called at most.
    pub(crate) rate_limit: Option<Rate>,
    /// Headers of every call; their values are marked sensitive.
    pub(crate) headers: HeaderMap,
    /// What every call is signed with.
    pub(crate) keys: Keys,
    /// Whom to trust, and what to identify with.
    pub(crate) certificates: Certificates,
}

/// The configured destinations.
pub(crate) struct Webhook {
    receivers: Vec<Receiver>,
    timeout: Duration,
    max_attempts: Option<u32>,
    retry_status: Vec<StatusCode>,
    keys: Keys,
    shortage: Shortage,
    observer: Observer,
}

enum Receiver {
    /// A destination that is called wherever its host is.
    One(Box<Target>),
    /// One of which every instance is called.
    Every(Instances),
}

/// Proof that every destination answered 2xx for the message inside, or for one that stood for
/// it.
#[must_use = "an accepted message is to be republished"]
pub(crate) struct Accepted {
    message: Arc<Message>,
    relayed: Outbound,
    call: AcceptedCall,
}

impl Accepted {
    pub(crate) fn message(&self) -> &Arc<Message> {
        &self.message
    }

    pub(crate) fn call(&self) -> AcceptedCall {
        self.call
    }

    /// The message that was accepted, and its copy that may now be republished.
    pub(crate) fn into_relayed(self) -> (Arc<Message>, Outbound) {
        (self.message, self.relayed)
    }
}

/// The destinations that did not accept a message.
#[derive(Debug)]
pub(crate) struct Undelivered(pub(crate) Vec<Refusal>);

/// One destination's last word.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Without secrets.
    pub(crate) destination: Arc<str>,
    /// The last answer's status; `None` when there was none.
    pub(crate) status: Option<StatusCode>,
    /// What went wrong, for a person.
    pub(crate) error: String,
    pub(crate) attempts: u32,
}

impl Refusal {
    /// Nothing has been said yet.
    fn of(destination: &Arc<str>) -> Self {
        let destination = destination.clone();
        Self { destination, status: None, error: String::new(), attempts: 0 }
    }

    /// The same, and why it is the last word.
    fn because(mut self, why: &str) -> Self {
        let separator = if self.error.is_empty() { "" } else { "; " };
        self.error = [&self.error, separator, why].concat();
        self
    }
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            let Refusal { destination, error, attempts, .. } = refusal;
            let separator = if index > 0 { "; " } else { "" };
            let s = if *attempts == 1 { "" } else { "s" };
            write!(f, "{separator}{destination}: {error} ({attempts} attempt{s})")?;
        }
        Ok(())
    }
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The destination has the message.
    Accepted,
    /// It may take it later.
    Retry,
    /// It will not take it.
    Refused,
}

/// The verdict on a call: its status, or `None` when there was no answer.
fn verdict(status: Option<StatusCode>, retry_status: &[StatusCode]) -> Verdict {
    match status.map(|status| status.as_u16()) {
        Some(200..=299) => Verdict::Accepted,
        None | Some(408 | 425 | 429 | 500..=599) => Verdict::Retry,
        _ if status.is_some_and(|status| retry_status.contains(&status)) => Verdict::Retry,
        Some(_) => Verdict::Refused,
    }
}

impl Webhook {
    /// Prepares a client for each destination.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn new(
        settings: &Settings,
        destinations: &[(Destination, Option<Proxy>)],
        observer: &Observer,
    ) -> anyhow::Result<Self> {
        let receivers = destinations.iter().map(|(destination, proxy)| {
            let Settings { connect_timeout, certificates, headers, rate_limit, .. } = settings;
            let proxy = proxy.as_ref();
            let endpoint =
                Endpoint::new(destination, proxy, *connect_timeout, certificates, headers)?;
            observer.metrics().expect_calls(&destination.to_string());
            Ok(match settings.resolve.filter(|_| destination.is_looked_up()) {
                None => Receiver::One(Target::new(endpoint, *rate_limit, observer).into()),
                Some(resolve) => {
                    Receiver::Every(Instances::new(endpoint, resolve, *rate_limit, observer))
                }
            })
        });
        Ok(Self {
            receivers: receivers.collect::<anyhow::Result<_>>()?,
            timeout: settings.timeout,
            max_attempts: settings.max_attempts,
            retry_status: settings.retry_status.clone(),
            keys: settings.keys.clone(),
            shortage: Shortage::new(observer),
            observer: observer.clone(),
        })
    }

    /// Calls all destinations side by side, each until it has accepted or will not. Returns the
    /// proof for the message, and one for each that the call stood for.
    ///
    /// # Errors
    /// The destinations that did not accept, when all have come to an end.
    pub(crate) async fn deliver(
        &self,
        delivery: Delivery,
        slot: &Slot<'_>,
        working: Working,
    ) -> Result<(Accepted, Vec<Accepted>), Undelivered> {
        let deliver_to = |receiver| self.deliver_to(receiver, &delivery, slot, working.clone());
        let calls: Vec<_> = self.receivers.iter().map(deliver_to).collect();
        drop(working);
        let mut call = AcceptedCall { merged: delivery.merged.len(), ..AcceptedCall::default() };
        let mut refusals = Vec::new();
        for ended in join_all(calls).await {
            match ended {
                Ok((status, attempts)) => {
                    call.status = status.as_u16();
                    call.attempts = call.attempts.max(attempts);
                }
                Err(refused) => refusals.extend(refused),
            }
        }
        if !refusals.is_empty() {
            return Err(Undelivered(refusals));
        }
        let accepted = |Delivery { message, relayed, .. }| Accepted { message, relayed, call };
        let mut delivery = delivery;
        let merged = std::mem::take(&mut delivery.merged);
        Ok((accepted(delivery), merged.into_iter().map(accepted).collect()))
    }

    async fn deliver_to(
        &self,
        receiver: &Receiver,
        delivery: &Delivery,
        slot: &Slot<'_>,
        working: Working,
    ) -> Result<(StatusCode, u32), Vec<Refusal>> {
        match receiver {
            Receiver::One(target) => {
                let called = self.call_until_accepted(target, delivery, slot, working).await;
                called.map_err(|refusal| vec![refusal])
            }
            // Boxed, so that a message costs no more without it.
            Receiver::Every(instances) => {
                Box::pin(self.deliver_to_every(instances, delivery, slot, working)).await
            }
        }
    }

    /// Calls every instance until all that there are have accepted, those that come meanwhile
    /// included.
    async fn deliver_to_every(
        &self,
        instances: &Instances,
        delivery: &Delivery,
        slot: &Slot<'_>,
        mut working: Working,
    ) -> Result<(StatusCode, u32), Vec<Refusal>> {
        let mut called: Vec<Arc<Instance>> = Vec::new();
        let mut accepted = (StatusCode::OK, 0);
        loop {
            let present = self.present(instances, delivery, slot, &mut working).await;
            let present = present.map_err(|refusal| vec![refusal])?;
            let is_new = |one: &&Arc<Instance>| !called.iter().any(|other| Arc::ptr_eq(one, other));
            let new: Vec<_> = present.iter().filter(is_new).cloned().collect();
            if new.is_empty() {
                return Ok(accepted);
            }
            if working.is_none() {
                let entered = ours(slot.message(), slot.enter()).await;
                working = entered.map_err(|why| vec![Refusal::of(&instances.name).because(why)])?;
            }
            let calls = new.iter().map(|instance| {
                let Instance { target, .. } = &**instance;
                let call = self.call_until_accepted(target, delivery, slot, working.clone());
                instance.unless_left(call)
            });
            let calls: Vec<_> = calls.collect();
            working = None;
            let mut refusals = Vec::new();
            for (ended, instance) in join_all(calls).await.into_iter().zip(&new) {
                match ended {
                    Some(Ok((status, attempts))) => accepted = (status, accepted.1.max(attempts)),
                    Some(Err(refusal)) if !instance.has_left() => refusals.push(refusal),
                    // It has left meanwhile.
                    _ => {}
                }
            }
            if !refusals.is_empty() {
                return Err(refusals);
            }
            called.extend(new);
        }
    }

    /// All instances that there are. That there is none is tried again like a failed connection.
    async fn present(
        &self,
        instances: &Instances,
        delivery: &Delivery,
        slot: &Slot<'_>,
        working: &mut Working,
    ) -> Result<Arc<[Arc<Instance>]>, Refusal> {
        let mut refusal = Refusal::of(&instances.name);
        loop {
            let known = match instances.known() {
                Some(known) => known,
                None => {
                    *working = None;
                    let found = ours(slot.message(), instances.first_look_up()).await;
                    match found {
                        Ok(()) => continue,
                        Err(why) => return Err(refusal.because(why)),
                    }
                }
            };
            let error = match known {
                Ok(present) => {
                    instances.outage.ended();
                    return Ok(present);
                }
                Err(error) => error,
            };
            *working = None;
            instances.look_up_again();
            refusal.attempts += 1;
            refusal.error = error.to_string();
            let (attempt, error) = (refusal.attempts, refusal.error.as_str());
            let call = event::Called { attempt, ..called(delivery, &instances.name, None) };
            if self.max_attempts.is_some_and(|n| attempt >= n) {
                self.observer.note(&Event::Refused { call });
                return Err(refusal);
            }
            instances.outage.failed(error);
            let (call, wait) = (event::Called { attempt: attempt + 1, ..call }, backoff(attempt));
            self.observer.note(&Event::Retried { call, error, wait });
            let waited = tokio::time::timeout(wait, instances.any());
            if let Err(why) = ours(slot.message(), waited).await {
                return Err(refusal.because(why));
            }
        }
    }

    /// Calls a target until it has accepted or will not.
    async fn call_until_accepted(
        &self,
        target: &Target,
        delivery: &Delivery,
        slot: &Slot<'_>,
        mut working: Working,
    ) -> Result<(StatusCode, u32), Refusal> {
        let (mut refusal, mut short) = (Refusal::of(&target.name), 0);
        loop {
            if let Some(limit) = &target.limit {
                let admitted = Box::pin(limit.admit(slot, working, &self.observer));
                working = match ours(slot.message(), admitted).await {
                    Ok(working) => working,
                    Err(why) => return Err(refusal.because(why)),
                };
            }
            let (began, attempt) = (Instant::now(), refusal.attempts + 1);
            // Boxed, so that a message that waits for a retry is small.
            let answer = Box::pin(self.call(target, delivery, attempt)).await;
            drop(working);
            let elapsed = Some(began.elapsed());
            refusal.status = answer.as_ref().ok().map(|answer| answer.status);
            let status = refusal.status.map(|status| status.as_u16());
            let uncalled = called(delivery, &target.name, target.instance());
            let call = event::Called { status, attempt, elapsed, ..uncalled };
            let verdict = verdict(refusal.status, &self.retry_status);
            if let (Verdict::Accepted, Some(status)) = (verdict, refusal.status) {
                self.observer.note(&Event::Answered { call, status: status.as_u16() });
                target.outage.ended();
                return Ok((status, attempt));
            }
            refusal.error = describe(&answer, &target.endpoint.destination);
            let error = refusal.error.as_str();
            let wait = if let Err(Unanswered { shortage: Some(what), .. }) = answer {
                // The endpoint was not called, so this is no attempt.
                self.shortage.noticed(what);
                short += 1;
                let (call, wait) = (event::Called { elapsed: None, ..call }, backoff(short));
                self.observer.note(&Event::Retried { call, error, wait });
                wait
            } else {
                refusal.attempts = attempt;
                target.look_up_unless(answer.is_ok());
                if verdict == Verdict::Refused || self.max_attempts.is_some_and(|n| attempt >= n) {
                    self.observer.note(&Event::Refused { call });
                    return Err(refusal);
                }
                target.outage.failed(error);
                let wait = backoff(attempt).max(retry_after_of(&answer));
                let call = event::Called { attempt: attempt + 1, ..call };
                self.observer.note(&Event::Retried { call, error, wait });
                wait
            };
            working = match again(wait, slot).await {
                Ok(working) => working,
                Err(why) => return Err(refusal.because(why)),
            };
        }
    }

    async fn call(
        &self,
        target: &Target,
        delivery: &Delivery,
        attempt: u32,
    ) -> Result<Answer, Unanswered> {
        let (mut headers, body) = (delivery.headers(), delivery.body.clone());
        let span = span::begin(&delivery.message, target, attempt);
        span.mark_call(&mut headers);
        if let Some(signatures) = self.keys.sign(&headers, &body) {
            headers.insert(WEBHOOK_SIGNATURE, signatures);
        }
        let (method, timeout) = (Method::POST, self.timeout);
        let call = Call { method, target: None, headers, body, timeout, keep: 0 };
        let answer = target.endpoint.send(call).await;
        span::end(&span, &answer);
        answer
    }
}

/// A call that has not been made yet.
fn called<'a>(
    delivery: &'a Delivery,
    destination: &'a Arc<str>,
    instance: Option<(&'a str, IpAddr)>,
) -> event::Called<'a> {
    let (message, merged) = (&delivery.message, delivery.merged.len());
    let (status, attempt, elapsed) = (None, 0, None);
    event::Called { message, merged, destination, instance, status, attempt, elapsed }
}

/// What `waiting` comes to, while the message is this process's to work on.
async fn ours<T>(message: &Message, waiting: impl Future<Output = T>) -> Result<T, &'static str> {
    let done = tokio::select! {
        done = waiting => done,
        () = message.origin.not_ours() => return Err("the stream no longer keeps the message"),
    };
    match message.origin.fate() {
        Fate::GivenUp => Err("another replica relays the message"),
        Fate::Ours | Fate::Gone => Ok(done),
    }
}

/// The message's claim once more, after `wait`.
async fn again(wait: Duration, slot: &Slot<'_>) -> Result<Working, &'static str> {
    ours(slot.message(), tokio::time::sleep(wait)).await?;
    ours(slot.message(), slot.enter()).await
}

/// What was not acceptance, for a person.
fn describe(answer: &Result<Answer, Unanswered>, destination: &Destination) -> String {
    match answer {
        Err(unanswered) => unanswered.error.clone(),
        Ok(Answer { status, headers, .. }) => match redirection(headers, destination) {
            Some(location) if status.is_redirection() => format!(
                "answered {status} to {location}; redirects are not followed, so set \
                 WEBHOOK_DESTINATION to the final URL"
            ),
            _ => format!("answered {status}"),
        },
    }
}

/// Where a redirect points, without secrets.
fn redirection(headers: &HeaderMap, destination: &Destination) -> Option<String> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let url = destination.url().join(location).ok()?;
    Some(Destination::parse(url.as_str())?.to_string())
}

/// The wait before the attempt after `attempt`: exponential, with full jitter.
fn backoff(attempt: u32) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_BACKOFF);
    doubled.mul_f64(fastrand::f64())
}

fn retry_after_of(answer: &Result<Answer, Unanswered>) -> Duration {
    let answer = answer.as_ref().ok();
    answer.and_then(|answer| retry_after(&answer.headers, SystemTime::now())).unwrap_or_default()
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds or a date, at most [`LONGEST_RETRY_AFTER`].
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;
    use std::time::UNIX_EPOCH;

    #[test]
    fn verdicts() {
        let retry_status = [StatusCode::NOT_FOUND];
        for (status, expected) in [
            (200, Verdict::Accepted),
            (201, Verdict::Accepted),
            (204, Verdict::Accepted),
            (299, Verdict::Accepted),
            (301, Verdict::Refused),
            (304, Verdict::Refused),
            (308, Verdict::Refused),
            (400, Verdict::Refused),
            (401, Verdict::Refused),
            (404, Verdict::Retry),
            (408, Verdict::Retry),
            (410, Verdict::Refused),
            (413, Verdict::Refused),
            (425, Verdict::Retry),
            (429, Verdict::Retry),
            (431, Verdict::Refused),
            (500, Verdict::Retry),
            (501, Verdict::Retry),
            (503, Verdict::Retry),
            (599, Verdict::Retry),
            (600, Verdict::Refused),
            (999, Verdict::Refused),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(verdict(Some(status), &retry_status), expected, "{status}");
        }
        assert_eq!(verdict(Some(StatusCode::NOT_FOUND), &[]), Verdict::Refused);
        assert_eq!(verdict(None, &[]), Verdict::Retry);
    }

    #[test]
    fn backoff_doubles_up_to_its_limit_with_full_jitter() {
        for (attempt, limit) in
            [(1, 100), (2, 200), (5, 1600), (9, 25_600), (10, 30_000), (1_000_000, 30_000)]
        {
            let limit = Duration::from_millis(limit);
            let waits: Vec<_> = std::iter::repeat_with(|| backoff(attempt)).take(400).collect();
            assert!(waits.iter().all(|wait| *wait <= limit), "{attempt}");
            assert!(
                waits.iter().any(|wait| *wait > limit / 2)
                    && waits.iter().any(|wait| *wait < limit / 4),
                "{attempt}"
            );
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_clamped() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("3600", Some(300)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("Mon, 06 Nov 2090 08:49:37 GMT", Some(300)),
            ("-1", None),
            ("soon", None),
            ("99999999999999999999999", None),
        ] {
            let headers =
                HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
