//! The proxy that the environment names for a destination: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`
//! and `NO_PROXY`, or the same in lower case. Never one for this machine.
//!
//! They are other programs' variables too, so only one that a destination would use can be a
//! mistake. Ignoring it would call past the proxy. A [`Proxy`] prints no user info.

use crate::webhook::destination::Destination;
use axum::http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::HeaderValue;
use std::fmt;

/// An HTTP proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    /// Without user info.
    url: Uri,
    /// Basic auth, from the user info.
    authorization: Option<HeaderValue>,
}

impl Proxy {
    /// The proxy on the way to `destination`, if there is one.
    ///
    /// # Errors
    /// The variable that names something else than an HTTP proxy.
    pub(crate) fn of<'a>(
        destination: &Destination,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<Self>, String> {
        let Ok(target) =
            format!("{}://{}/", destination.url().scheme(), destination.authority()).parse::<Uri>()
        else {
            return Ok(None);
        };
        let first =
            |names: &[&'static str]| names.iter().find_map(|name| Some((*name, get(name)?)));
        let named = match destination.url().scheme() {
            "https" => first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            _ => first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
        };
        let excluded = first(&["NO_PROXY", "no_proxy"]).map_or("", |(_, hosts)| hosts);
        let through = |proxy: &str| {
            Matcher::builder()
                .all(proxy.to_owned())
                .no(excluded.to_owned())
                .build()
                .intercept(&target)
        };
        match named {
            Some((name, url)) if !destination.is_loopback() && through("http://any").is_some() => {
                match through(url) {
                    Some(proxy) if matches!(proxy.uri().scheme_str(), Some("http" | "https")) => {
                        Ok(Some(Self {
                            url: proxy.uri().clone(),
                            authorization: proxy.basic_auth().cloned(),
                        }))
                    }
                    _ => Err(format!(
                        "{name}: expected the http:// URL of an HTTP proxy; unset it, or name the \
                         destination's host in NO_PROXY"
                    )),
                }
            }
            _ => Ok(None),
        }
    }

    /// Whether TLS is spoken to the proxy itself.
    pub(crate) fn is_secure(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }

    /// The same for the HTTP client.
    ///
    /// # Errors
    /// When the client does not take it.
    pub(crate) fn for_client(&self) -> reqwest::Result<reqwest::Proxy> {
        let proxy = reqwest::Proxy::all(self.url.to_string())?;
        Ok(match &self.authorization {
            None => proxy,
            Some(authorization) => proxy.custom_http_auth(authorization.clone()),
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.authority().map_or("", |authority| authority.as_str()))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(destination: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, String> {
        let get = |name: &str| {
            let mut named =
                variables.iter().filter(|(other, text)| *other == name && !text.is_empty());
            named.next().map(|(_, text)| *text)
        };
        Proxy::of(&Destination::parse(destination).unwrap(), get)
    }

    #[test]
    fn the_environment_decides_by_scheme_and_host() {
        let (http, https) = ("http://frontend.example/x", "https://u:p@frontend.example:8443/x");
        for (destination, variables, expected) in [
            (http, &[][..], None),
            (http, &[("HTTP_PROXY", "http://a:1")], Some("a:1")),
            (http, &[("http_proxy", "a:1")], Some("a:1")),
            (http, &[("HTTP_PROXY", ""), ("http_proxy", "http://b:1")], Some("b:1")),
            (http, &[("HTTPS_PROXY", "http://a:1")], None),
            (http, &[("ALL_PROXY", "http://a:1")], Some("a:1")),
            (http, &[("all_proxy", "http://a:1"), ("HTTP_PROXY", "http://b:1")], Some("b:1")),
            (https, &[("HTTP_PROXY", "http://a:1")], None),
            (https, &[("https_proxy", "https://us3r:pa55@a")], Some("a")),
            (
                https,
                &[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "other.example, frontend.example")],
                None,
            ),
            (https, &[("HTTPS_PROXY", "http://a:1"), ("no_proxy", ".example")], None),
            (https, &[("HTTPS_PROXY", "http://a:1"), ("no_proxy", "tend.example")], Some("a:1")),
            ("http://10.1.2.3/", &[("HTTP_PROXY", "http://a:1"), ("NO_PROXY", "10.0.0.0/8")], None),
            ("http://[fd00::1]/", &[("HTTP_PROXY", "http://a:1")], Some("a:1")),
            ("http://frontend/", &[("HTTP_PROXY", "http://a:1"), ("NO_PROXY", "*")], None),
        ] {
            let found = proxy(destination, variables).unwrap();
            assert_eq!(
                found.as_ref().map(ToString::to_string).as_deref(),
                expected,
                "{destination} {variables:?}"
            );
            assert!(!format!("{found:?}").contains("pa55"), "{found:?}");
        }
    }

    #[test]
    fn this_machine_is_called_directly() {
        for destination in
            ["http://localhost:3000/", "http://a.localhost/", "https://127.0.0.1/", "http://[::1]/"]
        {
            let all = [
                ("HTTP_PROXY", "http://a:1"),
                ("HTTPS_PROXY", "http://a:1"),
                ("ALL_PROXY", "nonsense://"),
            ];
            assert!(proxy(destination, &all).unwrap().is_none(), "{destination}");
        }
    }

    #[test]
    fn what_is_no_http_proxy_is_a_mistake_where_it_would_be_used() {
        for url in ["socks5://us3r:pa55@a:1", "ftp://a", "http://", "us3r:pa55@a b"] {
            let mistake = proxy("http://frontend/", &[("http_proxy", url)]).unwrap_err();
            assert!(
                mistake.starts_with("http_proxy: expected ") && !mistake.contains("pa55"),
                "{mistake}"
            );
            assert!(proxy("https://frontend/", &[("http_proxy", url)]).unwrap().is_none());
            assert!(
                proxy("http://frontend/", &[("http_proxy", url), ("NO_PROXY", "frontend")])
                    .unwrap()
                    .is_none()
            );
        }
    }
}
