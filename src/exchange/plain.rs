//! The plain format: the body as payload, HTTP headers as NATS headers.
//!
//! A message written by hand is a request too: without `Http-Method` it is a `GET` when it has no
//! payload and a `POST` when it has one, and without `Http-Target` its subject is the path. A
//! reply written by hand is a response: without `Http-Status` its status is 200.

use crate::exchange::fields::{self, METHOD, STATUS, TARGET};
use crate::exchange::{Malformed, Parcel, Request, Response, path};
use async_nats::HeaderMap;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio_util::bytes::Bytes;

/// The status and the text of an error of a NATS service (ADR-32).
const SERVICE_CODE: &str = "Nats-Service-Error-Code";
const SERVICE_ERROR: &str = "Nats-Service-Error";

/// A request as a message.
///
/// # Errors
/// When a header cannot travel.
pub fn request(request: Request) -> Result<Parcel, Malformed> {
    let mut headers = fields::to_nats(&request.headers)?;
    headers.insert(METHOD, request.method.as_str());
    headers.insert(TARGET, request.target);
    Ok(Parcel { headers, payload: request.body })
}

/// The request in a message whose subject has `tokens` after the prefix.
///
/// # Errors
/// When the method or the target is not one.
pub fn read_request(
    tokens: &str,
    headers: Option<&HeaderMap>,
    payload: Bytes,
) -> Result<Request, Malformed> {
    let empty = HeaderMap::new();
    let headers = headers.unwrap_or(&empty);
    let method = match fields::get(headers, METHOD) {
        Some(method) => Method::from_bytes(method.as_bytes())
            .map_err(|_| Malformed::new(format!("{METHOD} is not a method")))?,
        None if payload.is_empty() => Method::GET,
        None => Method::POST,
    };
    let target = match fields::get(headers, TARGET) {
        Some(target) => {
            check_target(target, tokens)?;
            target.to_owned()
        }
        None => path::from_tokens(tokens)?,
    };
    Ok(Request { method, target, headers: fields::to_http(headers)?, body: payload })
}

/// The path of a target is the one that its subject stands for, or permissions on subjects would
/// mean nothing.
fn check_target(target: &str, tokens: &str) -> Result<(), Malformed> {
    let legal = target.bytes().all(|byte| byte.is_ascii_graphic());
    if !legal || path::to_tokens(target)? != tokens {
        return Err(Malformed::new(format!("{TARGET} does not belong to the subject")));
    }
    Ok(())
}

/// A response as a message.
///
/// # Errors
/// When a header cannot travel.
pub fn response(response: Response) -> Result<Parcel, Malformed> {
    let mut headers = fields::to_nats(&response.headers)?;
    headers.insert(STATUS, response.status.as_str());
    Ok(Parcel { headers, payload: response.body })
}

/// The response in a reply.
///
/// # Errors
/// When its status is none that ends an exchange.
pub fn read_response(headers: Option<&HeaderMap>, payload: Bytes) -> Result<Response, Malformed> {
    let empty = HeaderMap::new();
    let headers = headers.unwrap_or(&empty);
    let service_code = fields::get(headers, SERVICE_CODE);
    let Some(status) = fields::get(headers, STATUS).or(service_code) else {
        let (status, headers) = (StatusCode::OK, fields::to_http(headers)?);
        return Ok(Response { status, headers, body: payload });
    };
    let status = status.trim().parse::<u16>().ok().filter(|status| (200..1000).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| Malformed::new("the status of the reply is not legal"))?;
    let mut response = Response { status, headers: fields::to_http(headers)?, body: payload };
    if let (true, Some(_), Some(text)) =
        (response.body.is_empty(), service_code, fields::get(headers, SERVICE_ERROR))
    {
        response.body = Bytes::copy_from_slice(text.as_bytes());
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers.insert(CONTENT_TYPE, text);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nats(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        fields.iter().for_each(|(name, value)| map.append(*name, *value));
        map
    }

    #[test]
    fn a_request_travels_byte_for_byte() {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("*/*"));
        let target = "/a%2Eb/?q=%20x".to_owned();
        let body = Bytes::from_static(b"\0\xff");
        let sent = Request { method: Method::PATCH, target, headers, body };
        let parcel = request(sent.clone()).unwrap();
        let read = read_request("a%2Eb", Some(&parcel.headers), parcel.payload).unwrap();
        assert_eq!(read, sent);
    }

    #[test]
    fn a_message_by_hand_is_a_request() {
        for (payload, method) in [("", Method::GET), ("x", Method::POST)] {
            let read = read_request("weather.Dresden", None, payload.into()).unwrap();
            assert_eq!((read.method, read.target.as_str()), (method, "/weather/Dresden"));
        }
    }

    #[test]
    fn a_target_that_is_not_that_of_the_subject_is_refused() {
        for target in ["/b", "/a/../b", "//a", "a", "/a b", "/a\u{e4}"] {
            let headers = nats(&[(TARGET, target)]);
            assert!(read_request("a", Some(&headers), Bytes::new()).is_err(), "{target}");
        }
        let headers = nats(&[(METHOD, "G ET")]);
        assert!(read_request("a", Some(&headers), Bytes::new()).is_err());
    }

    #[test]
    fn a_reply_has_a_status_a_service_error_or_is_200() {
        for (fields, status, body) in [
            (&[][..], Ok(200), "x"),
            (&[(STATUS, "404")], Ok(404), "x"),
            (&[(STATUS, "999")], Ok(999), "x"),
            (&[(SERVICE_CODE, "429"), (SERVICE_ERROR, "slow down")], Ok(429), "x"),
            (&[(STATUS, "100")], Err(()), ""),
            (&[(STATUS, "2000")], Err(()), ""),
            (&[(STATUS, "ok")], Err(()), ""),
        ] {
            let read = read_response(Some(&nats(fields)), "x".into());
            let read = read.map(|read| (read.status.as_u16(), read.body)).map_err(drop);
            assert_eq!(read, status.map(|status| (status, body.into())), "{fields:?}");
        }
        let error = nats(&[(SERVICE_CODE, "429"), (SERVICE_ERROR, "slow down")]);
        let read = read_response(Some(&error), Bytes::new()).unwrap();
        assert_eq!((read.body, read.headers.len()), ("slow down".into(), 1));
    }
}
