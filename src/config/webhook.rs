//! What the variables say about the calls to the destinations.

use crate::certificates::{self, Certificates};
use crate::config::reader::{DURATION, Reader, duration, number};
use crate::config::variables::{
    Variable, WEBHOOK_CA, WEBHOOK_CERT, WEBHOOK_CONNECT_TIMEOUT, WEBHOOK_DESTINATION,
    WEBHOOK_HEADERS, WEBHOOK_KEY, WEBHOOK_MAX_ATTEMPTS, WEBHOOK_RATE_LIMIT, WEBHOOK_RESOLVE,
    WEBHOOK_RESOLVE_INTERVAL, WEBHOOK_RESOLVE_SERVER, WEBHOOK_RETRY_STATUS, WEBHOOK_SECRET,
    WEBHOOK_TIMEOUT,
};
use crate::headers;
use crate::webhook::client::CONNECT_TIMEOUT;
use crate::webhook::destination::Destination;
use crate::webhook::proxy::Proxy;
use crate::webhook::rate::Rate;
use crate::webhook::resolve::{self, INTERVAL};
use crate::webhook::signature::Keys;
use crate::webhook::{self, MAX_ATTEMPTS, MOST_ATTEMPTS, TIMEOUT};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

const DESTINATIONS: &str = "http:// or https:// URLs separated by white space";

impl Reader<'_> {
    pub(super) fn webhook(&mut self) -> Option<webhook::Settings> {
        let destinations = self.destinations();
        let resolve = self.resolve();
        let timeout = self.or(&WEBHOOK_TIMEOUT, DURATION, duration(1), TIMEOUT);
        let connect_timeout =
            self.or(&WEBHOOK_CONNECT_TIMEOUT, DURATION, duration(1), CONNECT_TIMEOUT);
        let expected = format!("a number from 1 to {MOST_ATTEMPTS}, or unlimited");
        let max_attempts = |text: &str| match text {
            "unlimited" => Some(None),
            _ => number(1..=MOST_ATTEMPTS)(text).map(Some),
        };
        let max_attempts =
            self.or(&WEBHOOK_MAX_ATTEMPTS, &expected, max_attempts, Some(MAX_ATTEMPTS));
        let retry_status = self.retry_status();
        let expected = "calls in a time, such as 50/s, 600/min or 1000/h";
        let rate_limit = self.optional(&WEBHOOK_RATE_LIMIT, expected, Rate::parse);
        let keys = self.keys();
        let headers = self.webhook_headers();
        let certificates = self.certificates(&WEBHOOK_CA, &WEBHOOK_CERT, &WEBHOOK_KEY);
        Some(webhook::Settings {
            destinations: destinations?,
            timeout,
            connect_timeout,
            max_attempts,
            retry_status,
            resolve,
            rate_limit,
            headers,
            keys,
            certificates,
        })
    }

    fn destinations(&mut self) -> Option<Vec<(Destination, Option<Proxy>)>> {
        let any = |text: &str| Some(text.to_owned());
        let text = self.required(&WEBHOOK_DESTINATION, DESTINATIONS, any)?;
        Some(self.destinations_in(&WEBHOOK_DESTINATION, &text))
    }

    /// The destinations that a variable's text has.
    pub(super) fn destinations_in(
        &mut self,
        variable: &Variable,
        text: &str,
    ) -> Vec<(Destination, Option<Proxy>)> {
        let mut destinations = Vec::new();
        for (index, url) in text.split_whitespace().enumerate() {
            match Destination::parse(url) {
                // A comma between two would make one URL of them.
                Some(destination) if !url.contains(",http:") && !url.contains(",https:") => {
                    let proxy = self.proxy(&destination);
                    if proxy.is_some()
                        && destination.is_looked_up()
                        && self.is_set(&WEBHOOK_RESOLVE)
                    {
                        self.mistake(format!(
                            "{}: number {} is called through a proxy, which looks its host up by \
                             itself; add the host to NO_PROXY, or unset WEBHOOK_RESOLVE",
                            variable.name,
                            index + 1
                        ));
                    }
                    destinations.push((destination, proxy));
                }
                _ => self.mistake(format!(
                    "{}: expected {DESTINATIONS}; number {} is not one",
                    variable.name,
                    index + 1
                )),
            }
        }
        destinations
    }

    fn resolve(&mut self) -> Option<resolve::Settings> {
        let all = |text: &str| (text == "all").then_some(());
        let resolve = self.optional(&WEBHOOK_RESOLVE, "all", all);
        let interval = self.or(&WEBHOOK_RESOLVE_INTERVAL, DURATION, duration(1), INTERVAL);
        let expected = "the address of a name server, such as 127.0.0.1:8600";
        let server = self.optional(&WEBHOOK_RESOLVE_SERVER, expected, resolve::server);
        self.needs(&WEBHOOK_RESOLVE, &[&WEBHOOK_RESOLVE_INTERVAL, &WEBHOOK_RESOLVE_SERVER]);
        resolve.map(|()| resolve::Settings { interval, server })
    }

    pub(super) fn proxy(&mut self, destination: &Destination) -> Option<Proxy> {
        let environment = self.environment;
        match Proxy::of(destination, |name| environment.get(name)) {
            Ok(proxy) => proxy,
            Err(mistake) => {
                // Several destinations make the same mistake.
                if !self.mistakes.contains(&mistake) {
                    self.mistake(mistake);
                }
                None
            }
        }
    }

    fn retry_status(&mut self) -> Vec<StatusCode> {
        const EXPECTED: &str = "statuses from 300 to 599 separated by commas, such as 404,409";
        let status = |text: &str| {
            let number = text.parse::<u16>().ok().filter(|number| (300..600).contains(number))?;
            StatusCode::from_u16(number).ok()
        };
        let statuses = |text: &str| {
            text.split([',', ' ']).filter(|part| !part.is_empty()).map(status).collect()
        };
        self.or(&WEBHOOK_RETRY_STATUS, EXPECTED, statuses, Vec::new())
    }

    fn keys(&mut self) -> Keys {
        const EXPECTED: &str =
            "whsec_ and the base64 of 24 to 64 bytes, or several separated by white space";
        let Some(text) = self.text(&WEBHOOK_SECRET) else { return Keys::default() };
        Keys::parse(&text).unwrap_or_else(|mistakes| {
            for mistake in mistakes {
                self.mistake(format!("WEBHOOK_SECRET: expected {EXPECTED}; {mistake}"));
            }
            Keys::default()
        })
    }

    /// The certificates and the key of the files that these variables name.
    fn certificates(&mut self, ca: &Variable, cert: &Variable, key: &Variable) -> Certificates {
        let authorities = self.read_path(ca, certificates::authorities).unwrap_or_default();
        let chain = self.read_path(cert, certificates::certificates);
        let private = self.read_path(key, certificates::key);
        for (one, other) in [(cert, key), (key, cert)] {
            if self.is_set(one) && !self.is_set(other) {
                let (name, other) = (one.name, other.name);
                self.mistake(format!("{name}: set without {other}; set both or neither"));
            }
        }
        let identity = chain.zip(private).and_then(|(chain, private)| {
            let identity = certificates::identity(chain, private);
            self.good(identity.map_err(|error| format!("{} and {}: {error}", cert.name, key.name)))
        });
        Certificates { authorities, identity }
    }

    fn webhook_headers(&mut self) -> HeaderMap {
        let pairs = self.pairs(&WEBHOOK_HEADERS, |name, value| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(&value).ok()?))
        });
        let mut map = HeaderMap::new();
        for (name, mut value) in pairs {
            if headers::is_framing(&name) || headers::is_ours(&name) {
                self.mistake(format!("WEBHOOK_HEADERS: {name} is set by the relay itself"));
            } else {
                value.set_sensitive(true);
                map.append(name, value);
            }
        }
        map
    }
}
