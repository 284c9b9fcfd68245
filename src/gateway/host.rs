//! Which host a request is for, so that no two programs on its way understand different ones.

use crate::exchange::Malformed;
use hyper::Version;
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use reqwest::header::HOST;

/// The host, with its port where there is one. What the target names counts more than the header
/// (RFC 9112, section 3.2, and RFC 9113, section 8.3.1).
///
/// # Errors
/// When there is none although it is not HTTP/1.0, when there are several, or when it is not a
/// host.
pub(super) fn of(request: &Parts) -> Result<String, Malformed> {
    let is_optional = match request.version {
        Version::HTTP_2 => request.uri.authority().is_some(),
        version => version < Version::HTTP_11,
    };
    let mut headers = request.headers.get_all(HOST).iter();
    let header = match (headers.next(), headers.next()) {
        (Some(_), Some(_)) => return Err(Malformed::new("there are several Host headers")),
        (None, _) if !is_optional => return Err(Malformed::new("there is no Host header")),
        (None, _) => "",
        (Some(host), None) => {
            host.to_str().map_err(|_| Malformed::new("the Host header is not a host"))?
        }
    };
    let host = request.uri.authority().map_or(header, Authority::as_str);
    let is_host = |host: &str| host.parse::<Authority>().is_ok() && !host.contains('@');
    match [header, host].iter().all(|host| host.is_empty() || is_host(host)) {
        true => Ok(host.to_owned()),
        false => Err(Malformed::new("the Host header or the host of the target is not a host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_one_host() {
        let none: &[&str] = &[];
        for (version, target, hosts, expected) in [
            (Version::HTTP_11, "/", &["a:80"][..], Some("a:80")),
            (Version::HTTP_11, "/", &[""], Some("")),
            (Version::HTTP_11, "/", &["[::1]:80"], Some("[::1]:80")),
            (Version::HTTP_10, "/", none, Some("")),
            (Version::HTTP_11, "http://b:1/", &["a"], Some("b:1")),
            (Version::HTTP_2, "http://b:1/", none, Some("b:1")),
            (Version::HTTP_2, "http://b/", &["a"], Some("b")),
            (Version::HTTP_2, "/", &["a"], Some("a")),
            (Version::HTTP_11, "/", none, None),
            (Version::HTTP_11, "http://b/", none, None),
            (Version::HTTP_2, "/", none, None),
            (Version::HTTP_11, "/", &["a", "a"], None),
            (Version::HTTP_11, "/", &["u@a"], None),
            (Version::HTTP_11, "/", &["a b"], None),
            (Version::HTTP_11, "/", &["a/b"], None),
            (Version::HTTP_11, "/", &["\u{e4}"], None),
            (Version::HTTP_11, "http://u:p@b/", &["a"], None),
        ] {
            let mut request = hyper::Request::builder().version(version).uri(target);
            for host in hosts {
                request = request.header("host", *host);
            }
            let host = of(&request.body(()).unwrap().into_parts().0).ok();
            assert_eq!(host.as_deref(), expected, "{version:?} {target} {hosts:?}");
        }
    }
}
