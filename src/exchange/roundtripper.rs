//! The format of nats-roundtripper: HTTP/1.1 messages as payloads.
//!
//! A request goes to `<prefix>.requests.<host>.<method>`, with NATS headers that its readers may
//! ignore; a reply has no NATS headers. Its server writes status lines of `HTTP/0.0`, the status
//! 000, and bodies with a length, chunked or without either: all of that is read here.

use crate::exchange::{Malformed, Parcel, Request, Response, fields};
use async_nats::HeaderMap;
use reqwest::header::{self, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use std::fmt::Write;
use tokio_util::bytes::{Bytes, BytesMut};

/// The most headers that are read.
const MOST_HEADERS: usize = 2000;

/// The longest method, in bytes.
pub const MOST_METHOD: usize = 31;

/// What a subject begins with before its host.
#[must_use]
pub fn subjects(prefix: &str, host: &str) -> String {
    format!("{prefix}.requests.{host}")
}

/// The host of a URL or `Host` header as subjects have it: lower case, without port.
///
/// # Errors
/// When it is not one.
pub fn host(text: &str) -> Result<String, Malformed> {
    let host = text.rsplit_once(':').map_or(text, |(host, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { text }
    });
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match crate::subject::check(&host) {
        Ok(()) => Ok(host),
        Err(error) => Err(Malformed::new(format!("the host is not a subject: {error}"))),
    }
}

/// A request as a message for `host`, and the last token of its subject.
///
/// # Errors
/// When a header cannot travel.
pub fn request(request: &Request, host: &str) -> Result<(String, Parcel), Malformed> {
    let Request { method, target, headers, body } = request;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
    let has_body = !body.is_empty() || [Method::POST, Method::PUT, Method::PATCH].contains(method);
    if has_body {
        let _ = write!(head, "Content-Length: {}\r\n", body.len());
    }
    let mut bytes = BytesMut::from(head.as_bytes());
    push_headers(&mut bytes, &fields::end_to_end(headers));
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    let path = target.split('?').next().unwrap_or_default();
    let mut nats = HeaderMap::new();
    nats.insert("NRT-Method", method.as_str());
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    nats.insert("NRT-Path", path.replace(|c: char| c.is_control(), ""));
    nats.insert("NRT-HostName", host);
    let method = method.as_str().to_ascii_lowercase();
    // A dot would lead to another host.
    if method.len() > MOST_METHOD || method.contains('.') || crate::subject::check(&method).is_err()
    {
        return Err(Malformed::new("the method is not a subject token"));
    }
    Ok((method, Parcel { headers: nats, payload: bytes.freeze() }))
}

/// The request in a message.
///
/// # Errors
/// When the payload is not an HTTP request.
pub fn read_request(payload: &[u8]) -> Result<Request, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let end = match parsed.parse(payload) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Err(Malformed::new("the request is incomplete")),
        Err(error) => return Err(Malformed::new(format!("the request is not HTTP: {error}"))),
    };
    let method = parsed.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let method = method.ok_or_else(|| Malformed::new("the request has no method"))?;
    let target = origin_form(parsed.path.unwrap_or_default());
    let headers = headers_of(parsed.headers);
    let (body, is_whole) = body_of(&headers, payload.get(end..).unwrap_or_default(), Bytes::new())?;
    if !is_whole {
        return Err(Malformed::new("the body of the request is cut off"));
    }
    let headers = fields::end_to_end(&headers);
    Ok(Request { method, target, headers, body })
}

/// Path and query of a request target, which may be in absolute form (RFC 9112, section 3.2).
fn origin_form(target: &str) -> String {
    let after_scheme = target.split_once("://").filter(|_| !target.starts_with('/'));
    let Some((_, rest)) = after_scheme else { return target.to_owned() };
    let start = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest.get(start..).unwrap_or_default() {
        path if path.starts_with('/') => path.to_owned(),
        query => format!("/{query}"),
    }
}

/// A response as a message.
#[must_use]
pub fn response(response: &Response) -> Parcel {
    let Response { status, headers, body } = response;
    let reason = status.canonical_reason();
    let reason = reason.map_or_else(|| format!("status code {}", status.as_u16()), str::to_owned);
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16());
    let has_length = !matches!(status.as_u16(), 204 | 304);
    if has_length {
        let _ = write!(head, "Content-Length: {}\r\n", body.len());
    }
    let mut bytes = BytesMut::from(head.as_bytes());
    push_headers(&mut bytes, &fields::end_to_end(headers));
    bytes.extend_from_slice(b"\r\n");
    if has_length {
        bytes.extend_from_slice(body);
    }
    Parcel { headers: HeaderMap::new(), payload: bytes.freeze() }
}

/// The response in a reply.
///
/// # Errors
/// When the payload is not an HTTP response, or its status ends no exchange.
pub fn read_response(payload: &Bytes) -> Result<Response, Malformed> {
    // httparse knows no other versions than 1.0 and 1.1.
    let line_end = payload.iter().position(|byte| *byte == b'\n').unwrap_or(payload.len());
    let (line, rest) = payload.split_at(line_end);
    let line = String::from_utf8_lossy(line);
    let mut parts = line.trim_end().splitn(3, ' ');
    let version = parts.next().unwrap_or_default().strip_prefix("HTTP/").unwrap_or_default();
    let is_version = matches!(version.as_bytes(), [b'0'..=b'9', b'.', b'0'..=b'9']);
    let code = parts.next().filter(|code| code.len() == 3).and_then(|code| code.parse().ok());
    let (true, Some(code)) = (is_version, code) else {
        return Err(Malformed::new("the reply does not begin with an HTTP status line"));
    };
    // A handler that writes nothing leaves 000, which means what writing nothing means in HTTP.
    let code: u16 = if code == 0 { 200 } else { code };
    let status = StatusCode::from_u16(code).ok().filter(|_| code >= 200);
    let status =
        status.ok_or_else(|| Malformed::new(format!("the reply has the status {code}")))?;
    let rest = rest.get(1..).unwrap_or_default();
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let (end, parsed) = match httparse::parse_headers(rest, &mut headers) {
        Ok(httparse::Status::Complete(found)) => found,
        Ok(httparse::Status::Partial) => return Err(Malformed::new("the reply is incomplete")),
        Err(error) => return Err(Malformed::new(format!("the reply is not HTTP: {error}"))),
    };
    let headers = headers_of(parsed);
    let rest = rest.get(end..).unwrap_or_default();
    let (body, is_whole) = body_of(&headers, rest, Bytes::copy_from_slice(rest))?;
    if !is_whole {
        return Err(Malformed::new("the body of the reply is cut off"));
    }
    Ok(Response { status, headers: fields::end_to_end(&headers), body })
}

fn headers_of(parsed: &[httparse::Header<'_>]) -> header::HeaderMap {
    let mut headers = header::HeaderMap::new();
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// The body, and whether all of it is there. Chunks win over a length; without either it is
/// `otherwise`.
fn body_of(
    headers: &header::HeaderMap,
    rest: &[u8],
    otherwise: Bytes,
) -> Result<(Bytes, bool), Malformed> {
    if !fields::has_known_framing(headers) {
        return Err(Malformed::new("its transfer encoding is not only chunked"));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return unchunk(rest).map(|body| (body, true));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok((otherwise, true)) };
    if lengths.any(|other| other != length) {
        return Err(Malformed::new("it has two lengths"));
    }
    let length = length.to_str().ok().map(str::trim);
    let length = length.filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()));
    let length = length.and_then(|length| length.parse::<usize>().ok());
    let length = length.ok_or_else(|| Malformed::new("its length is not a number"))?;
    let body = rest.get(..length).unwrap_or(rest);
    Ok((Bytes::copy_from_slice(body), body.len() == length))
}

fn unchunk(mut rest: &[u8]) -> Result<Bytes, Malformed> {
    let broken = || Malformed::new("its chunks are malformed");
    let mut body = BytesMut::new();
    loop {
        let httparse::Status::Complete((start, size)) =
            httparse::parse_chunk_size(rest).map_err(|_| broken())?
        else {
            return Err(broken());
        };
        if size == 0 {
            return Ok(body.freeze());
        }
        let size = usize::try_from(size).map_err(|_| broken())?;
        let end = start.checked_add(size).ok_or_else(broken)?;
        body.extend_from_slice(rest.get(start..end).ok_or_else(broken)?);
        rest = rest.get(end..).unwrap_or_default();
        rest = rest.strip_prefix(b"\r\n").or(rest.strip_prefix(b"\n")).ok_or_else(broken)?;
    }
}

/// Writes headers in the form that Go's clients look for, sorted.
fn push_headers(bytes: &mut BytesMut, headers: &header::HeaderMap) {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| (canonical(name.as_str()), value)).collect();
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, value) in lines {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
}

/// `content-type` as `Content-Type`.
fn canonical(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_written_as_gos_client_writes_it() {
        let mut headers = header::HeaderMap::new();
        headers.insert("user-agent", HeaderValue::from_static("Go-http-client/1.1"));
        let method = Method::GET;
        let sent = Request { method, target: "/hello".into(), headers, body: Bytes::new() };
        let (token, parcel) = request(&sent, "weather.nats").unwrap();
        let expected =
            "GET /hello HTTP/1.1\r\nHost: weather.nats\r\nUser-Agent: Go-http-client/1.1\r\n\r\n";
        assert_eq!((token.as_str(), parcel.payload.as_ref()), ("get", expected.as_bytes()));
        assert_eq!(subjects("nrt", "weather.nats"), "nrt.requests.weather.nats");
        assert_eq!(read_request(&parcel.payload).unwrap(), sent);
    }

    #[test]
    fn requests_in_absolute_form_are_told_from_those_with_a_url_in_their_query() {
        for (target, expected) in [
            ("/go?to=http://x/y", "/go?to=http://x/y"),
            ("/http://x/y", "/http://x/y"),
            ("http://weather.nats/a?b=c", "/a?b=c"),
            ("http://weather.nats?b=/c", "/?b=/c"),
            ("http://weather.nats", "/"),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: weather.nats\r\n\r\n");
            assert_eq!(read_request(request.as_bytes()).unwrap().target, expected);
        }
    }

    #[test]
    fn a_request_whose_body_is_not_all_there_is_refused() {
        for (framing, body) in [
            ("Content-Length: 4", "abc"),
            ("Content-Length: +3", "abc"),
            ("Transfer-Encoding: chunked", "3\r\nab"),
            ("Transfer-Encoding: gzip, chunked", "3\r\nabc\r\n0\r\n\r\n"),
            ("Transfer-Encoding: gzip", "abc"),
        ] {
            let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}");
            assert!(read_request(request.as_bytes()).is_err(), "{framing}");
        }
    }

    #[test]
    fn a_method_is_one_token_of_a_subject() {
        for method in ["A.B", "*", &"A".repeat(MOST_METHOD + 1)] {
            let (headers, body) = (header::HeaderMap::new(), Bytes::new());
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let sent = Request { method, target: "/".into(), headers, body };
            assert!(request(&sent, "h").is_err(), "{sent:?}");
        }
    }

    #[test]
    fn replies_are_read_as_gos_server_writes_them() {
        for (reply, status, body) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nNrt-Id: x\r\n\r\nhello world\n",
                200,
                "hello world\n",
            ),
            ("HTTP/0.0 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, ""),
            ("HTTP/0.0 000 status code 0\r\nContent-Length: 0\r\n\r\n", 200, ""),
            ("HTTP/0.0 499 status code 499\r\n\r\n", 499, ""),
            ("HTTP/2.0 200 OK\n\ntill the end", 200, "till the end"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\
                 \r\n",
                200,
                "abcde",
            ),
            ("HTTP/1.0 200\r\n\r\n", 200, ""),
        ] {
            let read = read_response(&Bytes::from_static(reply.as_bytes())).unwrap();
            assert_eq!((read.status.as_u16(), read.body), (status, body.into()), "{reply}");
        }
        for reply in [
            "",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
        ] {
            assert!(read_response(&Bytes::from_static(reply.as_bytes())).is_err(), "{reply}");
        }
    }

    #[test]
    fn a_host_has_no_port_and_no_upper_case() {
        for (text, expected) in [
            ("weather.nats", Some("weather.nats")),
            ("WEATHER.nats:8080", Some("weather.nats")),
            ("weather.nats.", Some("weather.nats")),
            ("", None),
            ("a..b", None),
            ("*", None),
            ("a b", None),
        ] {
            assert_eq!(host(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_response_comes_back_as_it_was() {
        let mut headers = header::HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        for (status, body) in [(200, "x"), (204, ""), (304, ""), (499, "y"), (404, "")] {
            let status = StatusCode::from_u16(status).unwrap();
            let sent = Response { status, headers: headers.clone(), body: body.into() };
            assert_eq!(read_response(&response(&sent).payload).unwrap(), sent);
        }
    }
}
