//! A webhook's URL, and how it may be shown.
//!
//! URLs carry secrets (Drupal puts one into the query, basic auth into the user info), so a
//! [`Destination`] prints scheme, host, port, path and the names of query parameters only.

use reqwest::Url;
use std::fmt;
use std::net::IpAddr;

/// Where messages are delivered: an `http` or `https` URL.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Destination(Url);

impl Destination {
    /// Reads an absolute http(s) URL with a host; `None` where `text` is something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut url = Url::parse(text).ok()?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return None;
        }
        url.set_fragment(None);
        Some(Self(url))
    }

    /// The whole URL, secrets included.
    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// The host name, without brackets around an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// `host:port`, for messages about a connection.
    pub(crate) fn authority(&self) -> String {
        let port = self.0.port_or_known_default().unwrap_or_default();
        format!("{}:{port}", self.0.host_str().unwrap_or_default())
    }

    /// Whether the host is a name below `localhost` (RFC 6761, section 6.3).
    pub(crate) fn is_localhost(&self) -> bool {
        let host = self.host().trim_end_matches('.');
        host == "localhost" || host.ends_with(".localhost")
    }

    /// Whether the host has to be looked up, and may have several addresses.
    pub(crate) fn is_looked_up(&self) -> bool {
        self.0.domain().is_some() && !self.is_localhost()
    }

    /// Whether the host is this machine by name or by address.
    pub(crate) fn is_loopback(&self) -> bool {
        self.is_localhost()
            || self.host().parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        // Neither can fail: the URL has a host.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        if self.0.query().is_some() {
            shown.set_query(None);
            let names = self.0.query_pairs().map(|(name, value)| match value.is_empty() {
                // Without a value the name itself may be the secret, as in `?s3cret`.
                true => "***".to_owned(),
                false => format!("{}=***", name.escape_default()),
            });
            return write!(f, "{shown}?{}", names.collect::<Vec<_>>().join("&"));
        }
        shown.fmt(f)
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Destination({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_with_a_host_are_destinations() {
        for text in [
            "",
            "localhost:3000",
            "/api",
            "ftp://host/x",
            "http://",
            "data:text/plain,x",
            "nats://h",
        ] {
            assert!(Destination::parse(text).is_none(), "{text}");
        }
        for text in ["http://localhost:3000/api/cache", "https://[::1]/", "HTTP://Example.com"] {
            assert!(Destination::parse(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_has_no_user_info_and_no_query_values() {
        for (url, shown) in [
            ("http://u:p@host/a?secret=s3&x=1#f", "http://host/a?secret=***&x=***"),
            ("http://host/?s3cret", "http://host/?***"),
            ("https://host:8443/a%20b", "https://host:8443/a%20b"),
        ] {
            let destination = Destination::parse(url).unwrap();
            assert_eq!(destination.to_string(), shown);
            assert_eq!(format!("{destination:?}"), format!("Destination({shown})"));
        }
    }

    #[test]
    fn addresses_and_this_machine_are_not_looked_up() {
        for (url, expected) in [
            ("http://frontend/", true),
            ("https://frontend.example.com:8443/", true),
            ("http://localhost:3000/", false),
            ("http://a.localhost./", false),
            ("http://127.1/", false),
            ("http://[fd00::1]/", false),
        ] {
            assert_eq!(Destination::parse(url).unwrap().is_looked_up(), expected, "{url}");
        }
    }

    #[test]
    fn loopback_is_known_by_name_and_by_address() {
        for (url, expected) in [
            ("http://localhost:3000", true),
            ("http://LOCALHOST", true),
            ("http://app.localhost/", true),
            ("http://127.8.9.1/", true),
            ("http://[::1]:1/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("http://localhost.example.com/", false),
            ("http://10.0.0.1/", false),
            ("http://notlocalhost/", false),
        ] {
            assert_eq!(Destination::parse(url).unwrap().is_loopback(), expected, "{url}");
        }
    }
}
