//! Calling HTTP: one call of one URL, and its answer or why there was none.
//!
//! Nothing here knows what an answer means. What an endpoint can make the program keep is
//! bounded: up to `keep` bytes of a body are kept, and the rest is read, within limits, only so
//! that the connection can be used again.

use crate::certificates::Certificates;
use crate::webhook::client::{self, Maker};
use crate::webhook::destination::Destination;
use crate::webhook::proxy::Proxy;
use anyhow::Context;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Request, Response, StatusCode, Url};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::bytes::{Bytes, BytesMut};

/// How much of a body is read that is not kept, for the sake of the connection's reuse.
const BODY_CAP: usize = 64 * 1024;

/// Something that is called.
pub(crate) struct Endpoint {
    pub(crate) destination: Destination,
    proxy: Option<Proxy>,
    maker: Maker,
    /// For new calls, with its number.
    client: Mutex<(u64, Client)>,
    /// A request with URL, fixed headers and, from the URL's user info, basic auth.
    template: Request,
}

/// What is sent.
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path and query after those of the destination; `None` for the destination itself.
    pub(crate) target: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// From connecting to the end of the answer.
    pub(crate) timeout: Duration,
    /// How many bytes of the answer's body are kept.
    pub(crate) keep: usize,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The start of the body, where it was to be kept.
    pub(crate) body: Bytes,
    pub(crate) end: End,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it is there, or was not to be kept.
    Whole,
    /// It has more bytes than were to be kept.
    TooLarge,
    /// The connection broke.
    Broken,
    /// Its time was over.
    Late,
}

/// Why nothing came back.
pub(crate) struct Unanswered {
    /// For a person.
    pub(crate) error: String,
    /// What this machine was out of, so that there was no call at all.
    pub(crate) shortage: Option<&'static str>,
    pub(crate) is_timeout: bool,
}

impl Endpoint {
    /// Prepares calls with the headers `fixed`.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn new(
        destination: &Destination,
        proxy: Option<&Proxy>,
        connect_timeout: Duration,
        certificates: &Certificates,
        fixed: &HeaderMap,
    ) -> anyhow::Result<Self> {
        let doing = || format!("cannot set up a client for {destination}");
        let maker = Maker::new(destination, proxy, connect_timeout, certificates);
        let maker = maker.with_context(doing)?;
        let client = maker.make().with_context(doing)?;
        let mut template = client
            .post(destination.url().clone())
            .build()
            .map_err(reqwest::Error::without_url)
            .with_context(|| format!("cannot make a request for {destination}"))?;
        replace(template.headers_mut(), fixed);
        let (destination, proxy) = (destination.clone(), proxy.cloned());
        Ok(Self { destination, proxy, maker, client: Mutex::new((0, client)), template })
    }

    /// The same at one address of the host, with connections of its own.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn at(&self, address: IpAddr) -> anyhow::Result<Self> {
        let (destination, proxy) = (self.destination.clone(), self.proxy.clone());
        let maker = self.maker.at(&destination, address);
        let client = maker
            .make()
            .with_context(|| format!("cannot set up a client for {destination} at {address}"))?;
        let template = self.template.try_clone().context("cannot make a request")?;
        Ok(Self { destination, proxy, maker, client: Mutex::new((0, client)), template })
    }

    /// Makes one call. The answer is its status: what happens to the body after that changes
    /// nothing, not even the end of the time.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, Unanswered> {
        let Call { method, target, mut headers, body, timeout, keep } = call;
        let url = target.map_or_else(|| self.template.url().clone(), |target| self.url(&target));
        let mut request = Request::new(method, url);
        // What the operator fixed wins.
        replace(&mut headers, self.template.headers());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        let (number, client) = self.client().clone();
        let mut result = None;
        let sent = async {
            match client.execute(request).await {
                Err(error) => {
                    let shortage = client::shortage(&error, &self.destination);
                    let error = client::explain(&error, &self.destination, self.proxy.as_ref());
                    let is_timeout = false;
                    result = Some(Err(Unanswered { error, shortage, is_timeout }));
                }
                Ok(mut response) => {
                    let headers = std::mem::take(response.headers_mut());
                    let status = response.status();
                    let (body, end) = (Bytes::new(), End::Late);
                    result = Some(Ok(Answer { status, headers, body, end }));
                    let (body, end) = read(&mut response, keep).await;
                    result = result
                        .take()
                        .map(|result| result.map(|answer| Answer { body, end, ..answer }));
                }
            }
        };
        let _ = tokio::time::timeout(timeout, sent).await;
        result.unwrap_or_else(|| {
            self.distrust(number);
            let limit = humantime::format_duration(timeout);
            let error = format!("no answer within {limit}");
            Err(Unanswered { error, shortage: None, is_timeout: true })
        })
    }

    /// The URL of a path below that of the destination, and of a query after its own.
    fn url(&self, target: &str) -> Url {
        let mut url = self.template.url().clone();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        url.set_path(&[url.path().trim_end_matches('/'), path].concat());
        let query = match (url.query(), query) {
            (Some(own), Some(query)) => Some([own, "&", query].concat()),
            (own, query) => own.or(query).map(str::to_owned),
        };
        url.set_query(query.as_deref());
        url
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
}

/// Reads a body to its end, or until it is larger than what may be read; returns its start.
async fn read(response: &mut Response, keep: usize) -> (Bytes, End) {
    let (mut kept, mut read) = (BytesMut::new(), 0);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = keep - kept.len();
                kept.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
                read += chunk.len();
                if read > keep.max(BODY_CAP) {
                    return (kept.freeze(), End::TooLarge);
                }
            }
            Ok(None) if read > keep => return (kept.freeze(), End::TooLarge),
            Ok(None) => return (kept.freeze(), End::Whole),
            Err(_) => return (kept.freeze(), End::Broken),
        }
    }
}

/// Puts all of `winners` into `headers`, in the place of those of the same name.
pub(super) fn replace(headers: &mut HeaderMap, winners: &HeaderMap) {
    for name in winners.keys() {
        headers.remove(name);
    }
    for (name, value) in winners {
        headers.append(name, value.clone());
    }
}
