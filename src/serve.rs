//! NATS to HTTP: a NATS service (ADR-32) in front of an HTTP backend.
//!
//! Each request is one call of the backend, many at once. Redirects and compressed bodies are
//! passed on as they are, and nothing is retried: whoever asked is there to do that.

use crate::exchange::{
    Format, Malformed, Parcel, Request, Response, fields, nats_proxy, path, plain, roundtripper,
};
use crate::headers;
use crate::nats::link::Link;
use crate::nats::round_trip::RoundTrips;
use crate::observe::Observer;
use crate::observe::event::{self, Event};
use crate::observe::supervisor::{self, Phase};
use crate::subject::Prefix;
use crate::webhook::endpoint::{Answer, Call, End, Endpoint};
use anyhow::anyhow;
use async_nats::service::{self, ServiceExt};
use async_nats::{Client, ServerInfo};
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::bytes::Bytes;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

/// Time for an answer of the backend, and requests at once, unless something else is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const MAX_IN_FLIGHT: usize = 1024;
/// So many requests are held for each that may be worked on.
const WAITING: usize = 2;
/// How long to wait for the last requests after the service has stopped.
const LAST: Duration = Duration::from_millis(100);
/// What one reply may need beside its headers and payload.
const OVERHEAD: usize = 1024;

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) from: From,
    pub(crate) format: Format,
    pub(crate) queue_group: String,
    pub(crate) timeout: Duration,
    pub(crate) max_in_flight: usize,
}

/// Where requests come from.
#[derive(Debug, Clone)]
pub(crate) enum From {
    /// The prefix itself and everything below it.
    Prefix(Prefix),
    /// A host of the format of nats-roundtripper, below this token.
    Host { prefix: String, host: String },
}

/// The backend, and what calling it needs.
struct Backend {
    settings: Settings,
    endpoint: Endpoint,
    /// Of those that are worked on.
    limit: Semaphore,
    /// Of those that are worked on or wait.
    waiting: Arc<Semaphore>,
    observer: Observer,
}

/// Serves until `stop` resolves, then finishes what is under way within `grace`. Returns whether
/// all of it was finished.
///
/// # Errors
/// When the user may not subscribe, or there is no connection any more.
pub(crate) async fn run(
    settings: Settings,
    endpoint: Endpoint,
    link: &Link,
    observer: &Observer,
    stop: impl Future<Output = ()>,
    grace: Duration,
) -> anyhow::Result<bool> {
    let most = settings.max_in_flight;
    let backend = Arc::new(Backend {
        endpoint,
        limit: Semaphore::new(most),
        waiting: Arc::new(Semaphore::new(most.saturating_mul(WAITING))),
        observer: observer.clone(),
        settings,
    });
    let (tasks, round_trips, subjects) =
        (TaskTracker::new(), RoundTrips::none(link), backend.subjects());
    let (mut stop, mut denied) = (pin!(stop), pin!(denied(&subjects, link)));
    let (mut number, mut client) = link.client().await;
    let mut is_ready = false;
    loop {
        let (service, mut requests) = backend.listen(&client).await?;
        if !std::mem::replace(&mut is_ready, true) {
            tokio::select! {
                biased;
                () = &mut stop => return Ok(true),
                error = &mut denied => return Err(error),
                () = round_trips.handled() => {}
            }
            info!("ready");
            supervisor::tell(Phase::Ready);
        }
        loop {
            tokio::select! {
                biased;
                () = &mut stop => {
                    let _ = service.stop().await;
                    backend.take_rest(&mut requests, &client, &tasks).await;
                    tasks.close();
                    let finished = async {
                        tasks.wait().await;
                        // The last replies are only queued.
                        round_trips.handled().await;
                    };
                    return Ok(tokio::time::timeout(grace, finished).await.is_ok());
                }
                error = &mut denied => return Err(error),
                request = requests.next() => match request {
                    Some(request) => backend.take(request, &client, &tasks),
                    None => break,
                },
            }
        }
        let next = link.client_after(number).await;
        (number, client) = next.ok_or_else(|| anyhow!("there is no connection to NATS"))?;
    }
}

/// Returns when the user may not subscribe to one of `subjects`.
async fn denied(subjects: &[String], link: &Link) -> anyhow::Error {
    let each = subjects.iter().map(|subject| {
        Box::pin(async move {
            link.subscription_denied(subject).await;
            anyhow!("the NATS user may not subscribe to {subject}: grant it to the user")
        })
    });
    futures_util::future::select_all(each).await.0
}

impl Backend {
    fn subjects(&self) -> Vec<String> {
        match &self.settings.from {
            From::Prefix(prefix) => vec![prefix.to_string(), prefix.wildcard()],
            From::Host { prefix, host } => {
                vec![format!("{}.*", roundtripper::subjects(prefix, host))]
            }
        }
    }

    /// Subscribes, so that `nats micro ls` shows the service.
    async fn listen(
        &self,
        client: &Client,
    ) -> anyhow::Result<(service::Service, SelectAll<service::endpoint::Endpoint>)> {
        let queue_group = &self.settings.queue_group;
        let service = client
            .service_builder()
            .description("an HTTP backend behind nats-webhook-relay serve")
            .queue_group(queue_group)
            .start("nats-webhook-relay-serve", env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|error| anyhow!("cannot start the service: {error}"))?;
        let mut requests = SelectAll::new();
        for (index, subject) in self.subjects().iter().enumerate() {
            let endpoint = service.endpoint_builder().name(format!("http-{index}"));
            let endpoint = endpoint.add(subject).await;
            requests
                .push(endpoint.map_err(|error| anyhow!("cannot listen on {subject}: {error}"))?);
        }
        Ok((service, requests))
    }

    /// Takes what has arrived before the service stopped.
    async fn take_rest(
        self: &Arc<Self>,
        requests: &mut SelectAll<service::endpoint::Endpoint>,
        client: &Client,
        tasks: &TaskTracker,
    ) {
        while let Ok(Some(request)) = tokio::time::timeout(LAST, requests.next()).await {
            self.take(request, client, tasks);
        }
    }

    /// Works on a request beside others.
    fn take(self: &Arc<Self>, request: service::Request, client: &Client, tasks: &TaskTracker) {
        let (backend, client) = (self.clone(), client.clone());
        let (place, began) = (self.waiting.clone().try_acquire_owned(), Instant::now());
        tasks.spawn(async move {
            let response = match &place {
                Ok(_) => {
                    let _working = backend.limit.acquire().await;
                    backend.respond(&request, client.max_payload()).await
                }
                Err(_) => busy(),
            };
            // With its place, as it is in memory until the client takes it.
            backend.reply(&request, response, &client, began).await;
            drop(place);
        });
    }

    async fn respond(&self, request: &service::Request, limit: usize) -> Response {
        let message = &request.message;
        let read = match &self.settings.format {
            Format::Roundtripper => roundtripper::read_request(&message.payload),
            Format::Plain => plain::read_request(
                self.tokens(&message.subject),
                message.headers.as_ref(),
                message.payload.clone(),
            ),
            Format::NatsProxy => {
                nats_proxy::read_request(self.tokens(&message.subject), &message.payload)
            }
        };
        let read = read.and_then(checked);
        match read {
            Ok(request) => self.call(request, limit).await,
            Err(malformed) => said(StatusCode::BAD_REQUEST, &malformed.0),
        }
    }

    /// What of a subject is below the prefix.
    fn tokens<'a>(&self, subject: &'a str) -> &'a str {
        match &self.settings.from {
            From::Prefix(prefix) => prefix.tail(subject).unwrap_or_default(),
            From::Host { .. } => "",
        }
    }

    async fn call(&self, request: Request, keep: usize) -> Response {
        let Request { method, target, mut headers, body } = request;
        if body.is_empty() && [Method::POST, Method::PUT, Method::PATCH].contains(&method) {
            // hyper leaves it out, and some servers then answer 411 Length Required.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let timeout = self.settings.timeout;
        let call = Call { method, target: Some(target), headers, body, timeout, keep };
        match self.endpoint.send(call).await {
            Ok(Answer { end: End::TooLarge, .. }) => said(
                StatusCode::BAD_GATEWAY,
                &format!("the answer of the backend is larger than NATS takes ({keep} bytes)"),
            ),
            Ok(Answer { end: End::Broken, .. }) => {
                said(StatusCode::BAD_GATEWAY, "the answer of the backend broke off")
            }
            Ok(Answer { end: End::Late, .. }) => {
                said(StatusCode::GATEWAY_TIMEOUT, "the answer of the backend did not end in time")
            }
            // There is nobody to go on with.
            Ok(Answer { status, .. }) if status.is_informational() => said(
                StatusCode::BAD_GATEWAY,
                &format!("the backend ended with the status {status}"),
            ),
            Ok(Answer { status, headers, body, .. }) => {
                // Without what belongs to the hop between us and the backend.
                let headers = fields::end_to_end(&headers);
                Response { status, headers, body }
            }
            Err(unanswered) if unanswered.is_timeout => {
                said(StatusCode::GATEWAY_TIMEOUT, &unanswered.error)
            }
            Err(unanswered) => said(StatusCode::BAD_GATEWAY, &unanswered.error),
        }
    }

    async fn reply(
        &self,
        request: &service::Request,
        response: Response,
        client: &Client,
        began: Instant,
    ) {
        let server = client.server_info();
        let limit = server.max_payload.saturating_sub(OVERHEAD);
        let (bytes, mut status) = (response.body.len(), response.status);
        let parcel = self.parcel(response, &server).and_then(|parcel| {
            match headers::wire_size(&parcel.headers) + parcel.payload.len() <= limit {
                true => Ok(parcel),
                false => Err(Malformed::new(format!("it is larger than NATS takes ({limit})"))),
            }
        });
        let Parcel { headers, payload } = parcel.unwrap_or_else(|Malformed(reason)| {
            let text = format!("the answer of {bytes} bytes cannot be sent: {reason}");
            status = StatusCode::BAD_GATEWAY;
            self.parcel(said(status, &text), &server).unwrap_or_default()
        });
        let subject = request.message.subject.as_str();
        let answer = event::Answer { status: status.as_u16(), bytes, elapsed: began.elapsed() };
        self.observer.note(&Event::RequestServed { subject, answer });
        // It fails only when the client has ended, or nobody waits.
        if let Err(error) = request.respond_with_headers(Ok(payload), headers).await {
            debug!(%subject, %error, "a reply was not sent");
        }
    }

    fn parcel(&self, mut response: Response, server: &ServerInfo) -> Result<Parcel, Malformed> {
        match self.settings.format {
            Format::Plain => plain::response(response),
            Format::NatsProxy => nats_proxy::response(&response),
            Format::Roundtripper => {
                let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(22).collect();
                let client = server.client_id.to_string();
                let cluster = server.cluster.clone();
                for (name, value) in [
                    ("nrt-id", Some(id)),
                    ("nrt-connected-server", Some(server.server_name.clone())),
                    ("nrt-client", Some(client)),
                    ("nrt-connected-cluster", cluster),
                ] {
                    if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok())
                    {
                        response.headers.insert(name, value);
                    }
                }
                Ok(roundtripper::response(&response))
            }
        }
    }
}

/// A request whose target means to the backend what it says: neither a fragment nor a backslash,
/// which URLs take for a slash, nor a way up.
fn checked(request: Request) -> Result<Request, Malformed> {
    path::to_tokens(&request.target)?;
    match request.target.contains(['#', '\\']) {
        true => Err(Malformed::new("the target has a # or a backslash")),
        false => Ok(request),
    }
}

/// An answer that this program gives in the place of the backend.
fn said(status: StatusCode, text: &str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Response { status, headers, body: Bytes::from(format!("{text}\n")) }
}

fn busy() -> Response {
    let mut response = said(StatusCode::SERVICE_UNAVAILABLE, "too many requests are under way");
    response.headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
