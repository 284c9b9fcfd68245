//! HTTP to NATS: each request becomes a message, and the reply, the server's confirmation or a
//! stream's acknowledgement its answer.
//!
//! Nothing is retried: the client that asked is there to do that, and a client that goes away
//! cancels its request. What an answer of 202 says has been confirmed.

pub mod auth;
mod host;
mod patience;
mod refusal;
pub(crate) mod server;

use crate::exchange::{
    self, Format, Malformed, Parcel, Request, Response, fields, path, roundtripper,
};
use crate::gateway::auth::{Token, Verifier};
use crate::gateway::refusal::Refusal;
use crate::headers;
use crate::message::Outbound;
use crate::nats::link::Link;
use crate::nats::publisher::{OnceFailure, Publisher};
use crate::nats::replies::Replies;
use crate::observe::Observer;
use crate::observe::event::{Answer, Event};
use crate::subject::{MAX_SUBJECT_BYTES, Prefix};
use async_nats::HeaderMap;
use http_body_util::{BodyExt, Limited};
use hyper::Version;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::bytes::Bytes;

pub(crate) const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
/// Time for an answer, and requests at once, unless something else is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const MAX_IN_FLIGHT: usize = 1024;
/// How long the body of a request that was refused is read and forgotten.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) to: To,
    pub(crate) answer: AnswerWith,
    pub(crate) format: Format,
    pub(crate) timeout: Duration,
    /// Bytes of a body; by default what the server takes in one message.
    pub(crate) max_body: Option<usize>,
    pub(crate) max_in_flight: usize,
    /// How bodies must be signed.
    pub(crate) verifier: Option<Verifier>,
    /// One of these must come with each request, where there are some.
    pub(crate) tokens: Vec<Token>,
    /// Added to each message.
    pub(crate) headers: HeaderMap,
}

/// Where messages go.
#[derive(Debug, Clone)]
pub(crate) enum To {
    /// Below a prefix, by the path.
    Prefix(Prefix),
    /// To one subject, whatever the path.
    Subject(String),
    /// By the host, in the format of nats-roundtripper, below this token; or always to one host.
    Host { prefix: String, fixed: Option<String> },
}

/// What answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerWith {
    /// The reply to the message.
    Reply,
    /// 202, once the server has the message.
    Sent,
    /// 202, once a stream has stored it.
    Stored,
}

pub(crate) struct Gateway {
    settings: Settings,
    link: Link,
    publisher: Publisher,
    replies: Replies,
    limit: Arc<Semaphore>,
    observer: Observer,
}

impl Gateway {
    pub(crate) fn new(
        settings: Settings,
        link: &Link,
        publisher: Publisher,
        observer: &Observer,
    ) -> Self {
        let limit = Arc::new(Semaphore::new(settings.max_in_flight));
        let (link, replies, observer) = (link.clone(), Replies::default(), observer.clone());
        Self { settings, link, publisher, replies, limit, observer }
    }

    /// The response to a request from `peer`, and the place that it has until it is taken.
    async fn respond(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
    ) -> (Response, Option<OwnedSemaphorePermit>) {
        let (method, began) = (request.method().clone(), Instant::now());
        let (parts, mut body) = request.into_parts();
        let is_sending = parts.version < Version::HTTP_2 && !parts.headers.contains_key(EXPECT);
        let mut place = None;
        let exchange = async {
            place = Some(self.admit(&parts.headers)?);
            self.exchange(parts, &mut body, peer).await
        };
        let mut response = match exchange.await {
            Ok(response) => response,
            Err(refusal) => {
                if is_sending {
                    tokio::spawn(linger(body));
                }
                refusal.response(self.settings.format)
            }
        };
        without_content(&method, &mut response);
        let (status, bytes) = (response.status.as_u16(), response.body.len());
        let answer = Answer { status, bytes, elapsed: began.elapsed() };
        let (peer, method): (&dyn Display, _) = (&peer, method.as_str());
        // A client may fill all that headers may have with it.
        let method = method.get(..roundtripper::MOST_METHOD).unwrap_or(method);
        self.observer.note(&Event::RequestAnswered { peer, method, answer });
        (response, place)
    }

    /// Whether a request is worked on, or its answer not taken yet.
    fn is_working(&self) -> bool {
        self.limit.available_permits() < self.settings.max_in_flight
    }

    async fn exchange(
        &self,
        parts: Parts,
        body: &mut Incoming,
        peer: SocketAddr,
    ) -> Result<Response, Refusal> {
        let deadline = Instant::now() + self.settings.timeout;
        if parts.method == Method::CONNECT {
            return Err(Malformed::new("CONNECT is for proxies").into());
        }
        let target = parts.uri.path_and_query().map(|target| target.as_str().to_owned());
        let target = target.ok_or_else(|| Malformed::new("the request target is not a path"))?;
        let host = host::of(&parts)?;
        if !fields::has_known_framing(&parts.headers) {
            return Err(Refusal::unknown_framing());
        }
        // What is refused by its path is refused before its body is read.
        let subject = self.subject(&target, &host)?;
        let limit = self.body_limit()?;
        let body = tokio::time::timeout_at(deadline, read(body, &parts.headers, limit));
        let body = body.await.map_err(|_| Refusal::late_body())??;
        if let Some(verifier) = &self.settings.verifier
            && !verifier.accepts(&parts.headers, &body, SystemTime::now())
        {
            return Err(Refusal::unsigned());
        }
        let mut headers = parts.headers;
        fields::remove_listed(&mut headers);
        self.withhold(&mut headers);
        forwarded(&mut headers, peer, &host);
        let id = message_id(&headers, &body);
        let request = Request { method: parts.method, target, headers, body };
        let message = self.message(request, subject, &host, id)?;
        // A connection to NATS that takes nothing holds up what is sent, too.
        match tokio::time::timeout_at(deadline, self.answer(message, deadline)).await {
            Ok(answer) => answer,
            Err(_) if self.settings.answer == AnswerWith::Reply => Err(Refusal::no_reply()),
            Err(_) => Err(OnceFailure::NoAnswer.into()),
        }
    }

    /// A place among the requests at once, for a client that may have one.
    fn admit(&self, headers: &reqwest::header::HeaderMap) -> Result<OwnedSemaphorePermit, Refusal> {
        let tokens = &self.settings.tokens;
        if !tokens.is_empty() && !Token::is_in(tokens, headers) {
            return Err(Refusal::no_token());
        }
        self.limit.clone().try_acquire_owned().map_err(|_| Refusal::busy())
    }

    /// Takes away what the gateway keeps to itself, and what the operator sets.
    fn withhold(&self, headers: &mut reqwest::header::HeaderMap) {
        if !self.settings.tokens.is_empty() {
            headers.remove(AUTHORIZATION);
        }
        let operators = self.settings.headers.iter().map(|(name, _)| {
            let name: &str = name.as_ref();
            name.to_ascii_lowercase()
        });
        let operators: Vec<_> = operators.collect();
        for name in &operators {
            headers.remove(name);
        }
        // What servers take for one of those, or for what the gateway says of the request.
        let is_alias = |name: &HeaderName| {
            let folded = headers::folded(name);
            let is_said = || {
                folded.starts_with("x-forwarded-") || operators.iter().any(|name| *name == *folded)
            };
            folded != name.as_str() && is_said()
        };
        let aliases: Vec<_> = headers.keys().filter(|name| is_alias(name)).cloned().collect();
        for name in aliases {
            headers.remove(name);
        }
    }

    /// Where the message for a request goes; without its method, which some formats add.
    fn subject(&self, target: &str, host: &str) -> Result<String, Refusal> {
        let subject = match &self.settings.to {
            To::Subject(subject) => subject.clone(),
            To::Host { prefix, fixed } => {
                let host = fixed.as_deref().unwrap_or(host);
                roundtripper::subjects(prefix, &roundtripper::host(host)?)
            }
            To::Prefix(prefix) => {
                let tokens = match self.settings.format {
                    Format::NatsProxy => path::to_literal_tokens(target)?,
                    _ => path::to_tokens(target)?,
                };
                match tokens.is_empty() {
                    true => prefix.to_string(),
                    false => prefix.subject(&tokens),
                }
            }
        };
        // Room for a dot and a method.
        if subject.len() + 1 + roundtripper::MOST_METHOD > MAX_SUBJECT_BYTES {
            return Err(Malformed::new("the path is too long for a subject").into());
        }
        Ok(subject)
    }

    fn body_limit(&self) -> Result<usize, Refusal> {
        let server = self.link.connected_client().ok_or_else(Refusal::not_connected)?;
        let server = server.1.max_payload();
        Ok(self.settings.max_body.map_or(server, |limit| limit.min(server)))
    }

    fn message(
        &self,
        request: Request,
        mut subject: String,
        host: &str,
        id: Option<String>,
    ) -> Result<Outbound, Refusal> {
        let parcel = match self.settings.format {
            Format::Plain => exchange::plain::request(request)?,
            Format::NatsProxy => exchange::nats_proxy::request(&request)?,
            Format::Roundtripper => {
                let host = match &self.settings.to {
                    To::Host { fixed: Some(host), .. } => host,
                    _ => host,
                };
                let host = roundtripper::host(host)?;
                let (method, parcel) = roundtripper::request(&request, &host)?;
                subject = format!("{subject}.{method}");
                parcel
            }
        };
        let Parcel { mut headers, payload } = parcel;
        for (name, values) in self.settings.headers.iter() {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        if self.settings.answer == AnswerWith::Stored
            && let Some(id) = id
        {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        }
        let message = Outbound { subject: subject.into(), headers, payload };
        let limit = self.link.max_payload();
        if message.size() > limit {
            return Err(Refusal::too_large(message.payload.len(), limit));
        }
        Ok(message)
    }

    async fn answer(&self, message: Outbound, deadline: Instant) -> Result<Response, Refusal> {
        let within = deadline.saturating_duration_since(Instant::now());
        match self.settings.answer {
            AnswerWith::Reply => self.reply(message).await,
            AnswerWith::Sent => {
                self.publisher.send_once(message, within).await?;
                Ok(refusal::accepted(None))
            }
            AnswerWith::Stored => {
                let stored = self.publisher.store_once(message, within).await?;
                Ok(refusal::accepted(Some(stored)))
            }
        }
    }

    async fn reply(&self, message: Outbound) -> Result<Response, Refusal> {
        let connected = self.link.connected_client().ok_or_else(Refusal::not_connected)?;
        let (number, client, _) = &connected;
        let subject = message.subject.clone();
        let reply = tokio::select! {
            reply = self.replies.request((*number, client), message) => reply,
            () = self.link.publish_denied(&subject) => return Err(Refusal::denied()),
        };
        let reply = reply.ok_or_else(Refusal::not_connected)?;
        if reply.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            return Err(Refusal::no_responders());
        }
        let headers = reply.headers.as_ref();
        let read = match self.settings.format {
            Format::Plain => exchange::plain::read_response(headers, reply.payload),
            Format::NatsProxy => exchange::nats_proxy::read_response(&reply.payload),
            Format::Roundtripper => roundtripper::read_response(&reply.payload),
        };
        read.map_err(Refusal::bad_reply)
    }
}

/// A body of at most `limit` bytes; a larger one is refused before it is read to its end.
async fn read(
    body: &mut Incoming,
    headers: &reqwest::header::HeaderMap,
    limit: usize,
) -> Result<Bytes, Refusal> {
    let announced =
        headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let announced: u64 = announced.unwrap_or(0).max(body.size_hint().lower());
    if announced > limit as u64 {
        return Err(Refusal::too_large(announced as usize, limit));
    }
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::too_large(limit + 1, limit))
        }
        Err(_) => Err(Refusal::broken_body()),
    }
}

/// Reads on for a while after a refusal: most clients look for an answer only when they have sent
/// all, and closing the connection before would take it from them.
async fn linger(mut body: Incoming) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

/// Takes away a body where HTTP allows none.
fn without_content(method: &Method, response: &mut Response) {
    let has_none = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
    if has_none.contains(&response.status) {
        response.body = Bytes::new();
    } else if *method == Method::HEAD && !response.body.is_empty() {
        response.headers.insert(CONTENT_LENGTH, HeaderValue::from(response.body.len()));
        response.body = Bytes::new();
    }
}

/// Says where the request came from, after what proxies before us have said.
fn forwarded(headers: &mut reqwest::header::HeaderMap, peer: SocketAddr, host: &str) {
    let before = headers.get_all("x-forwarded-for").iter();
    let mut hops: Vec<_> = before.filter_map(|hop| hop.to_str().ok()).map(str::to_owned).collect();
    hops.push(peer.ip().to_canonical().to_string());
    if let Ok(hops) = HeaderValue::from_str(&hops.join(", ")) {
        headers.insert("x-forwarded-for", hops);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.entry("x-forwarded-host").or_insert(host);
    }
    headers.entry("x-forwarded-proto").or_insert(HeaderValue::from_static("http"));
}

/// The sender's own id of what it delivers, the same when it delivers it again.
fn message_id(headers: &reqwest::header::HeaderMap, body: &[u8]) -> Option<String> {
    let named = ["webhook-id", "idempotency-key", "x-github-delivery"];
    let named = named.iter().find_map(|name| headers.get(*name)?.to_str().ok());
    if let Some(id) = named {
        return Some(id.to_owned());
    }
    // Stripe has its id in the body.
    headers.get("stripe-signature")?;
    let event: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(event.get("id")?.as_str()?.to_owned())
}
