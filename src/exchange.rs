//! HTTP exchanges over NATS: what a request and its response look like in a message.
//!
//! Owns the formats and the mapping between paths and subjects. Nothing here opens a connection;
//! `gateway` and `serve` are the two ends, and other programs may stand in the place of either.

pub mod fields;
pub mod nats_proxy;
pub mod path;
pub mod plain;
pub mod roundtripper;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use tokio_util::bytes::Bytes;

/// A request on its way from an HTTP client to an HTTP backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub method: Method,
    /// Path and query, byte for byte as they came.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The answer on its way back.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A message without its subject.
#[derive(Debug, Default, PartialEq)]
pub struct Parcel {
    pub headers: async_nats::HeaderMap,
    pub payload: Bytes,
}

/// How exchanges are written into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Headers as NATS headers, the body as payload.
    Plain,
    /// That of nats-roundtripper: HTTP/1.1 messages as payloads.
    Roundtripper,
    /// That of nats-proxy: protocol buffers.
    NatsProxy,
}

/// Why something cannot be sent or understood, for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
