//! The format of nats-proxy: protocol buffers, on subjects whose tokens are the path's segments.
//!
//! Its messages have all scalars present, also zero ones, and its router crashes over a cookie
//! without a body. The query is carried in a field that its own programs ignore.

use crate::exchange::{Malformed, Parcel, Request, Response, fields, path};
use prost::Message as _;
use reqwest::header::{self, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use tokio_util::bytes::Bytes;

/// A request or a response.
#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(int32, optional, tag = "1")]
    status: Option<i32>,
    #[prost(string, optional, tag = "2")]
    method: Option<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    header: BTreeMap<String, String>,
    #[prost(btree_map = "string, message", tag = "4")]
    cookies: BTreeMap<String, Cookie>,
    #[prost(bytes = "bytes", optional, tag = "5")]
    body: Option<Bytes>,
    /// The query, which nats-proxy drops. A number far from those that it may come to use.
    #[prost(string, optional, tag = "1001")]
    query: Option<String>,
    /// All values of headers that have several: name, value, name, value.
    #[prost(string, repeated, tag = "1002")]
    more: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Cookie {
    #[prost(string, optional, tag = "1")]
    value: Option<String>,
    #[prost(string, optional, tag = "2")]
    path: Option<String>,
}

impl Message {
    fn new(headers: &header::HeaderMap) -> Result<Self, Malformed> {
        let mut message = Self::default();
        for (name, value) in &fields::end_to_end(headers) {
            let value = std::str::from_utf8(value.as_bytes());
            let value =
                value.map_err(|_| Malformed::new(format!("the header {name} is not UTF-8")))?;
            let name = canonical(name.as_str());
            match message.header.entry(name) {
                Entry::Vacant(first) => {
                    first.insert(value.to_owned());
                }
                Entry::Occupied(first) => {
                    message.more.extend([first.key().clone(), value.to_owned()]);
                }
            }
        }
        Ok(message)
    }

    fn headers(&self) -> Result<header::HeaderMap, Malformed> {
        let more = self.more.chunks_exact(2).filter_map(|pair| match pair {
            [name, value] => Some((name, value)),
            _ => None,
        });
        let mut headers = header::HeaderMap::new();
        for (name, value) in self.header.iter().chain(more) {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
                fields::append(&mut headers, name, value)?;
            }
        }
        Ok(fields::end_to_end(&headers))
    }

    fn parcel(&self) -> Parcel {
        Parcel { payload: self.encode_to_vec().into(), ..Parcel::default() }
    }
}

/// A request as a message.
///
/// # Errors
/// When a header cannot travel.
pub fn request(request: &Request) -> Result<Parcel, Malformed> {
    let mut message = Message::new(&request.headers)?;
    message.status = Some(0);
    message.method = Some(request.method.to_string());
    message.body = Some(request.body.clone()).filter(|body| !body.is_empty());
    message.query = request.target.split_once('?').map(|(_, query)| query.to_owned());
    for cookie in request.headers.get_all(header::COOKIE) {
        let cookie = cookie.to_str().unwrap_or_default();
        for (name, value) in cookie.split(';').filter_map(|part| part.trim().split_once('=')) {
            let (value, path) = (Some(value.to_owned()), Some(String::new()));
            message.cookies.insert(name.to_owned(), Cookie { value, path });
        }
    }
    Ok(message.parcel())
}

/// The request in a message whose subject has `tokens` after the prefix.
///
/// # Errors
/// When the payload or the method is not one.
pub fn read_request(tokens: &str, payload: &[u8]) -> Result<Request, Malformed> {
    let message = decode(payload)?;
    let method = message.method.as_deref().filter(|method| !method.is_empty()).unwrap_or("GET");
    let method = Method::from_bytes(method.as_bytes());
    let method = method.map_err(|_| Malformed::new("the method is not one"))?;
    let mut target = path::from_literal_tokens(tokens)?;
    if let Some(query) = &message.query {
        target.push('?');
        target.push_str(query);
    }
    let mut headers = message.headers()?;
    if !message.cookies.is_empty() && !headers.contains_key(header::COOKIE) {
        let cookies = message.cookies.iter().map(|(name, cookie)| {
            format!("{name}={}", cookie.value.as_deref().unwrap_or_default())
        });
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        if let Ok(cookies) = HeaderValue::from_str(&cookies) {
            headers.insert(header::COOKIE, cookies);
        }
    }
    Ok(Request { method, target, headers, body: message.body.unwrap_or_default() })
}

/// A response as a message.
///
/// # Errors
/// When a header cannot travel.
pub fn response(response: &Response) -> Result<Parcel, Malformed> {
    let mut message = Message::new(&response.headers)?;
    message.status = Some(i32::from(response.status.as_u16()));
    message.method = Some(String::new());
    message.body = Some(response.body.clone()).filter(|body| !body.is_empty());
    Ok(message.parcel())
}

/// The response in a reply.
///
/// # Errors
/// When the payload is not one, or its status ends no exchange.
pub fn read_response(payload: &[u8]) -> Result<Response, Malformed> {
    let message = decode(payload)?;
    let status = match message.status.unwrap_or(0) {
        0 => 200,
        status => status,
    };
    let status = u16::try_from(status).ok().filter(|status| *status >= 200);
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| Malformed::new("the status of the reply is not legal"))?;
    let headers = message.headers()?;
    Ok(Response { status, headers, body: message.body.unwrap_or_default() })
}

fn decode(payload: &[u8]) -> Result<Message, Malformed> {
    Message::decode(payload).map_err(|error| {
        Malformed::new(format!("the payload is not a nats-proxy message: {error}"))
    })
}

/// `content-type` as `Content-Type`, which its readers look for.
fn canonical(name: &str) -> String {
    let mut start = true;
    let letter = |letter: char| {
        let upper = std::mem::replace(&mut start, letter == '-');
        if upper { letter.to_ascii_uppercase() } else { letter }
    };
    name.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_byte_for_byte_those_of_nats_proxy() {
        let (method, headers) = (Method::GET, header::HeaderMap::new());
        let get =
            Request { method, target: "/".into(), headers: headers.clone(), body: Bytes::new() };
        assert_eq!(&request(&get).unwrap().payload[..], b"\x08\x00\x12\x03GET");
        let not_found = Response { status: StatusCode::NOT_FOUND, headers, body: Bytes::new() };
        assert_eq!(&response(&not_found).unwrap().payload[..], b"\x08\x94\x03\x12\x00");
    }

    #[test]
    fn a_cookie_is_sent_with_both_fields() {
        let mut headers = header::HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("a=; b=2"));
        let (method, body) = (Method::GET, Bytes::new());
        let sent = Request { method, target: "/x?y=1".into(), headers, body };
        let parcel = request(&sent).unwrap();
        let message = decode(&parcel.payload).unwrap();
        assert!(
            message.cookies.values().all(|cookie| cookie.value.is_some() && cookie.path.is_some())
        );
        assert_eq!(read_request("x", &parcel.payload).unwrap(), sent);
    }

    #[test]
    fn what_its_programs_write_is_read() {
        let response = read_response(b"").unwrap();
        assert_eq!((response.status, response.body), (StatusCode::OK, Bytes::new()));
        let request = read_request("file.tar.gz", b"").unwrap();
        assert_eq!((request.method, request.target.as_str()), (Method::GET, "/file/tar/gz"));
        for (tokens, target) in
            [("%41", "/%2541"), ("a?b", "/a%3Fb"), ("größe", "/gr%C3%B6%C3%9Fe")]
        {
            assert_eq!(read_request(tokens, b"").unwrap().target, target, "{tokens}");
        }
        assert!(read_request("..", b"").is_err());
        assert!(read_response(b"\x08\x01").is_err() && read_response(b"\xff").is_err());
        let without_cookie = b"\x22\x03\x0a\x01a";
        assert_eq!(read_request("", without_cookie).unwrap().headers["cookie"], "a=");
    }

    #[test]
    fn several_values_survive_between_our_two_ends() {
        let mut headers = header::HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        let sent = Response { status: StatusCode::CREATED, headers, body: "x".into() };
        assert_eq!(read_response(&response(&sent).unwrap().payload).unwrap(), sent);
    }
}
