//! Delivery: POST a message to every destination until all have accepted it.
//!
//! Owns the verdict on an answer, the retries, and the one way to an [`Accepted`]: nothing
//! else can make that value, and nothing is republished without it. What is said about a
//! destination that is down is in `outage.rs`.

pub(crate) mod client;
pub(crate) mod destination;
mod outage;
pub(crate) mod proxy;
pub(crate) mod signature;

use crate::certificates::Certificates;
use crate::headers;
use crate::message::{Fate, Message, Outbound};
use crate::observe::metrics::Metrics;
use crate::relay::lane::{Slot, Working};
use crate::webhook::destination::Destination;
use crate::webhook::outage::{Outage, Shortage};
use crate::webhook::proxy::Proxy;
use crate::webhook::signature::Keys;
use anyhow::Context;
use futures_util::future::join_all;
use prometheus_client::metrics::gauge::Gauge;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Request, Response, StatusCode};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use tokio_util::bytes::Bytes;
use tracing::{debug, info};

/// The first wait between attempts; it doubles with each, up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// The longest that `Retry-After` is obeyed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
/// How much of an answer's body is read, for the sake of the connection's reuse.
const BODY_CAP: usize = 64 * 1024;

/// Time for one attempt, attempts for one message and destination unless something else is said.
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
    /// Headers of every call; their values are marked sensitive.
    pub(crate) headers: HeaderMap,
    /// What every call is signed with.
    pub(crate) keys: Keys,
    /// Whom to trust, and what to identify with.
    pub(crate) certificates: Certificates,
}

/// The configured destinations.
pub(crate) struct Webhook {
    endpoints: Vec<Endpoint>,
    timeout: Duration,
    max_attempts: Option<u32>,
    retry_status: Vec<StatusCode>,
    keys: Keys,
    shortage: Shortage,
    metrics: Metrics,
}

struct Endpoint {
    destination: Destination,
    proxy: Option<Proxy>,
    maker: client::Maker,
    /// For new calls, with its number.
    client: Mutex<(u64, Client)>,
    /// A request with URL, fixed headers and, from the URL's user info, basic auth.
    template: Request,
    outage: Outage,
}

/// One message as the webhook gets it, together with what is republished once it is accepted.
pub struct Delivery {
    message: Arc<Message>,
    body: Bytes,
    /// Take the place of the message's of the same name.
    set: HeaderMap,
    relayed: Outbound,
    _extra: Extra,
}

impl Delivery {
    /// `relayed` stays locked up until every destination has accepted; `body` and the headers
    /// `set` are what the destinations get.
    #[must_use]
    pub fn new(
        message: &Arc<Message>,
        body: Bytes,
        set: HeaderMap,
        relayed: Outbound,
        metrics: &Metrics,
    ) -> Self {
        let (_, illegal) = headers::to_http(&message.headers);
        if illegal > 0 {
            metrics.headers_dropped.inc_by(illegal);
            debug!(subject = %message.subject, id = %message.id, headers = illegal, "dropped headers that HTTP does not allow");
        }
        let made = [&body, &relayed.payload]
            .into_iter()
            .filter(|bytes| bytes.as_ptr() != message.payload.as_ptr());
        let extra = Extra::new(made.map(Bytes::len).sum(), metrics);
        Self { message: message.clone(), body, set, relayed, _extra: extra }
    }

    /// The headers of a call, without those that the operator fixed, and unsigned.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let (mut headers, _) = headers::to_http(&self.message.headers);
        headers.reserve(7 + self.set.len());
        replace(&mut headers, &self.set);
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        if self.body.is_empty() {
            // hyper leaves it out, and some servers then answer 411 Length Required.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        headers.insert(headers::NATS_SUBJECT, headers::value(&self.message.subject));
        headers.insert(headers::WEBHOOK_ID, headers::value(self.message.id.as_str()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        headers.insert(headers::WEBHOOK_TIMESTAMP, HeaderValue::from(now));
        headers
    }
}

/// Bytes that wait beside a message, because a plugin made them: they count as pending.
struct Extra {
    bytes: i64,
    pending: Gauge,
}

impl Extra {
    fn new(bytes: usize, metrics: &Metrics) -> Self {
        let bytes = bytes as i64;
        metrics.pending_bytes.inc_by(bytes);
        Self { bytes, pending: metrics.pending_bytes.clone() }
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.pending.dec_by(self.bytes);
    }
}

/// Puts all of `winners` into `headers`, in the place of those of the same name.
fn replace(headers: &mut HeaderMap, winners: &HeaderMap) {
    for name in winners.keys() {
        headers.remove(name);
    }
    for (name, value) in winners {
        headers.append(name, value.clone());
    }
}

/// Proof that every destination answered 2xx for the message inside.
#[must_use = "an accepted message is to be republished"]
pub(crate) struct Accepted(Outbound);

impl Accepted {
    /// The message that may now be republished.
    pub(crate) fn into_relayed(self) -> Outbound {
        self.0
    }
}

/// What became of a message at the destinations that did not accept it.
#[derive(Debug)]
pub struct Undelivered(pub(crate) Vec<Refusal>);

/// One destination's last word.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The destination, without secrets.
    pub(crate) destination: String,
    /// The last answer's status; `None` when there was none.
    pub(crate) status: Option<StatusCode>,
    /// What went wrong, for a person.
    pub(crate) error: String,
    /// How often it was called.
    pub(crate) attempts: u32,
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            let attempts = if refusal.attempts == 1 {
                "1 attempt".to_owned()
            } else {
                format!("{} attempts", refusal.attempts)
            };
            write!(f, "{separator}{}: {} ({attempts})", refusal.destination, refusal.error)?;
        }
        Ok(())
    }
}

/// What one call came to.
struct Attempt {
    /// The answer's status, or why there was none.
    answer: Result<StatusCode, String>,
    retry_after: Option<Duration>,
    location: Option<String>,
    /// What this machine was short of, so that there was no call.
    shortage: Option<&'static str>,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The destination has the message.
    Accepted,
    /// It may take it later.
    Retry,
    /// It will not take it.
    Refused,
}

/// The verdict on a call: its status, or `None` when there was no answer.
#[must_use]
pub(crate) fn verdict(status: Option<StatusCode>, retry_status: &[StatusCode]) -> Verdict {
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
    /// When TLS can not be set up on this machine.
    pub(crate) fn new(config: &Settings, metrics: &Metrics) -> anyhow::Result<Self> {
        let endpoints = config.destinations.iter().map(|(destination, proxy)| {
            let doing = || format!("cannot set up a client for {destination}");
            let maker = client::Maker::new(
                destination,
                proxy.as_ref(),
                config.connect_timeout,
                &config.certificates,
            )
            .with_context(doing)?;
            let client = maker.make().with_context(doing)?;
            let mut template = client
                .post(destination.url().clone())
                .build()
                .map_err(reqwest::Error::without_url)
                .with_context(|| format!("cannot make a request for {destination}"))?;
            replace(template.headers_mut(), &config.headers);
            Ok(Endpoint {
                outage: Outage::new(destination),
                destination: destination.clone(),
                proxy: proxy.clone(),
                maker,
                client: Mutex::new((0, client)),
                template,
            })
        });
        Ok(Self {
            endpoints: endpoints.collect::<anyhow::Result<_>>()?,
            timeout: config.timeout,
            max_attempts: config.max_attempts,
            retry_status: config.retry_status.clone(),
            keys: config.keys.clone(),
            shortage: Shortage::default(),
            metrics: metrics.clone(),
        })
    }

    /// Calls all destinations side by side, each until it has accepted or will not.
    ///
    /// # Errors
    /// The destinations that did not accept, when all have come to an end.
    pub(crate) async fn deliver(
        &self,
        delivery: Delivery,
        slot: &Slot,
        working: Working,
    ) -> Result<Accepted, Undelivered> {
        let calls: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| self.deliver_to(endpoint, &delivery, slot, working.clone()))
            .collect();
        drop(working);
        let refusals: Vec<_> = join_all(calls).await.into_iter().filter_map(Result::err).collect();
        if refusals.is_empty() {
            Ok(Accepted(delivery.relayed))
        } else {
            Err(Undelivered(refusals))
        }
    }

    async fn deliver_to(
        &self,
        endpoint: &Endpoint,
        delivery: &Delivery,
        slot: &Slot,
        mut working: Working,
    ) -> Result<(), Refusal> {
        let message = &delivery.message;
        let (mut attempt, mut short) = (1, 0);
        loop {
            let called = Instant::now();
            // Boxed, so that a message that waits for a retry is small.
            let outcome = Box::pin(endpoint.call(delivery, &self.keys, self.timeout)).await;
            drop(working);
            let elapsed = called.elapsed();

            let status = outcome.answer.as_ref().ok().copied();
            let verdict = verdict(status, &self.retry_status);
            if verdict == Verdict::Accepted {
                self.metrics.webhook_seconds.0.observe(elapsed.as_secs_f64());
                info!(
                    subject = %message.subject, id = %message.id, destination = %endpoint.destination,
                    status = status.map(|status| status.as_u16()), elapsed_ms = elapsed.as_millis() as u64, attempt, "answered"
                );
                endpoint.outage.ended();
                return Ok(());
            }
            let error = outcome.describe();
            let wait = if let Some(what) = outcome.shortage {
                // The endpoint was not called, so that this is no attempt.
                self.shortage.noticed(what);
                short += 1;
                backoff(short)
            } else {
                self.metrics.webhook_seconds.0.observe(elapsed.as_secs_f64());
                if verdict == Verdict::Refused
                    || self.max_attempts.is_some_and(|most| attempt >= most)
                {
                    return Err(Refusal {
                        destination: endpoint.destination.to_string(),
                        status,
                        error,
                        attempts: attempt,
                    });
                }
                self.metrics.retries.inc();
                endpoint.outage.failed(&error);
                attempt += 1;
                backoff(attempt - 1).max(outcome.retry_after.unwrap_or_default())
            };
            debug!(
                subject = %message.subject, id = %message.id, destination = %endpoint.destination, attempt, %error,
                wait_ms = wait.as_millis() as u64, "not accepted, trying again"
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = message.not_ours() => {
                    let error = format!("{error}; the stream no longer keeps the message");
                    return Err(Refusal { destination: endpoint.destination.to_string(), status, error, attempts: attempt - 1 });
                }
            }
            working = slot.enter().await;
            if message.fate() == Fate::GivenUp {
                let error = format!("{error}; another replica relays the message");
                return Err(Refusal {
                    destination: endpoint.destination.to_string(),
                    status,
                    error,
                    attempts: attempt - 1,
                });
            }
        }
    }
}

impl Endpoint {
    async fn call(&self, delivery: &Delivery, keys: &Keys, timeout: Duration) -> Attempt {
        let mut request = Request::new(Method::POST, self.template.url().clone());
        let mut headers = delivery.headers();
        // What the operator fixed wins.
        replace(&mut headers, self.template.headers());
        if let Some(signatures) = keys.sign(&headers, &delivery.body) {
            headers.insert(headers::WEBHOOK_SIGNATURE, signatures);
        }
        *request.headers_mut() = headers;
        *request.body_mut() = Some(delivery.body.clone().into());
        let mut attempt = None;
        let (number, client) = self.client().clone();
        let call = async {
            match client.execute(request).await {
                Err(error) => {
                    let text = client::explain(&error, &self.destination, self.proxy.as_ref());
                    attempt = Some(Attempt {
                        shortage: client::shortage(&error, &self.destination),
                        ..Attempt::unanswered(text)
                    });
                }
                Ok(mut response) => {
                    attempt = Some(self.answered(&response));
                    // The status is the answer. The rest is read so that the connection can be
                    // used again and the endpoint has finished; what happens to it changes nothing.
                    drain(&mut response).await;
                }
            }
        };
        let _ = tokio::time::timeout(timeout, call).await;
        attempt.unwrap_or_else(|| {
            self.distrust(number);
            Attempt::unanswered(format!("no answer within {}", humantime::format_duration(timeout)))
        })
    }

    /// The connection of client `number` may have gone silent: later calls use others. Those that
    /// are under way on it go on, as the endpoint may be slow.
    fn distrust(&self, number: u64) {
        let mut current = self.client();
        if self.maker.shares_connections()
            && current.0 == number
            && let Ok(client) = self.maker.make()
        {
            *current = (number + 1, client);
        }
    }

    fn client(&self) -> MutexGuard<'_, (u64, Client)> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, response: &Response) -> Attempt {
        Attempt {
            answer: Ok(response.status()),
            retry_after: retry_after(response.headers(), SystemTime::now()),
            location: response
                .headers()
                .get(header::LOCATION)
                .and_then(|location| self.redirection(location)),
            shortage: None,
        }
    }

    /// Where a redirect points, without secrets.
    fn redirection(&self, location: &HeaderValue) -> Option<String> {
        let url = self.destination.url().join(location.to_str().ok()?).ok()?;
        Some(Destination::parse(url.as_str())?.to_string())
    }
}

impl Attempt {
    fn unanswered(error: String) -> Self {
        Self { answer: Err(error), retry_after: None, location: None, shortage: None }
    }

    fn describe(&self) -> String {
        match (&self.answer, &self.location) {
            (Err(error), _) => error.clone(),
            (Ok(status), Some(location)) if status.is_redirection() => {
                format!(
                    "answered {status} to {location}; redirects are not followed, so set WEBHOOK_DESTINATION to the final URL"
                )
            }
            (Ok(status), _) => format!("answered {status}"),
        }
    }
}

/// Reads up to [`BODY_CAP`] bytes of an answer and forgets them.
async fn drain(response: &mut Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > BODY_CAP {
            return;
        }
    }
}

/// The wait before the attempt after `attempt`: exponential, with full jitter.
fn backoff(attempt: u32) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_BACKOFF);
    doubled.mul_f64(fastrand::f64())
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
