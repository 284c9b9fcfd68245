//! Which headers travel between HTTP and NATS, and which belong to one hop.

use crate::exchange::Malformed;
use crate::headers::{self, MAX_HEADERS};
use async_nats::header as nats;
use reqwest::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use std::str::FromStr;

/// The method of a request.
pub const METHOD: &str = "Http-Method";
/// Path and query of a request, byte for byte as they came.
pub const TARGET: &str = "Http-Target";
/// The status of a response.
pub const STATUS: &str = "Http-Status";

/// Whether `name`, or what a server may take for it, describes the exchange itself, in one of the
/// two protocols.
fn is_ours(name: &HeaderName) -> bool {
    let folded = headers::folded(name);
    let ours = [METHOD, TARGET, STATUS].iter().any(|ours| ours.eq_ignore_ascii_case(&folded));
    ours || folded.starts_with("nats-")
}

/// The names that a `Connection` header lists: they belong to one hop (RFC 9110, section 7.6.1).
fn listed(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    names.map(|name| name.trim().to_ascii_lowercase()).collect()
}

/// Takes away what a `Connection` header lists, and the header itself. What is added afterwards
/// is then not for a client to take away.
pub fn remove_listed(headers: &mut HeaderMap) {
    for name in listed(headers) {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
}

/// Whether a body has no transfer encoding, or is chunked once and nothing else. Where programs
/// understand anything else differently, one could be told what the other does not see.
#[must_use]
pub fn has_known_framing(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    encodings.next().is_none_or(is_chunked) && encodings.next().is_none()
}

/// HTTP headers without those of one hop.
#[must_use]
pub fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let listed = listed(headers);
    let stays = |name: &HeaderName| {
        headers::is_framing(name) || listed.iter().any(|other| other == name.as_str())
    };
    let travel = headers.iter().filter(|(name, _)| !stays(name));
    travel.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// HTTP headers as NATS headers, with all their values.
///
/// # Errors
/// Names a header whose value is not UTF-8.
pub fn to_nats(http: &HeaderMap) -> Result<nats::HeaderMap, Malformed> {
    let mut map = nats::HeaderMap::new();
    for (name, value) in &end_to_end(http) {
        if is_ours(name) {
            continue;
        }
        let value = std::str::from_utf8(value.as_bytes()).ok();
        let value = value.and_then(|value| nats::HeaderValue::from_str(value).ok());
        match value {
            Some(value) => map.append(name.as_str(), value),
            None => return Err(Malformed::new(format!("the header {name} is not UTF-8"))),
        }
    }
    Ok(map)
}

/// NATS headers as HTTP headers; those that HTTP does not allow are left out.
///
/// # Errors
/// When there are more than HTTP programs take.
pub fn to_http(map: &nats::HeaderMap) -> Result<HeaderMap, Malformed> {
    let mut http = HeaderMap::new();
    for (name, values) in map.iter() {
        let name: &str = name.as_ref();
        let Some(name) = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_ours(name))
        else {
            continue;
        };
        for value in values {
            if let Ok(value) = HeaderValue::from_bytes(value.as_str().as_bytes()) {
                append(&mut http, name.clone(), value)?;
            }
        }
    }
    Ok(end_to_end(&http))
}

/// Adds a header. A header map that is full panics, so a limit comes before.
///
/// # Errors
/// When there are as many as HTTP programs take.
pub fn append(
    headers: &mut HeaderMap,
    name: HeaderName,
    value: HeaderValue,
) -> Result<(), Malformed> {
    if headers.len() >= MAX_HEADERS {
        return Err(Malformed::new(format!("it has more than {MAX_HEADERS} headers")));
    }
    headers.append(name, value);
    Ok(())
}

/// The last value of a NATS header, whatever the case of its name.
#[must_use]
pub fn get<'a>(map: &'a nats::HeaderMap, name: &str) -> Option<&'a str> {
    let mut named = map.iter().filter(|(other, _)| {
        let other: &str = other.as_ref();
        other.eq_ignore_ascii_case(name)
    });
    named.find_map(|(_, values)| values.last()).map(nats::HeaderValue::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn what_belongs_to_one_hop_or_to_nats_does_not_travel() {
        let all = http(&[
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("host", "h"),
            ("nats-msg-id", "1"),
            ("http-method", "forged"),
            ("http-status", "forged"),
            ("http_method", "forged"),
            ("nats_msg_id", "1"),
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
        ]);
        let map = to_nats(&all).unwrap();
        let mut names: Vec<_> = map.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["authorization", "cookie"]);
    }

    #[test]
    fn several_values_stay_several() {
        let mut all = http(&[("set-cookie", "a=1")]);
        all.append("set-cookie", HeaderValue::from_static("b=2"));
        let back = to_http(&to_nats(&all).unwrap()).unwrap();
        assert_eq!(back.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    }

    #[test]
    fn too_many_headers_are_refused_not_a_panic() {
        let mut map = nats::HeaderMap::new();
        (0..MAX_HEADERS).for_each(|number| map.append(format!("h{number}"), ""));
        assert_eq!(to_http(&map).unwrap().len(), MAX_HEADERS);
        (0..40_000).for_each(|number| map.append(format!("h{number}"), ""));
        assert!(to_http(&map).is_err());
    }

    #[test]
    fn a_name_is_found_in_any_case() {
        let mut map = nats::HeaderMap::new();
        map.insert("http-STATUS", "204");
        assert_eq!(get(&map, STATUS), Some("204"));
    }
}
