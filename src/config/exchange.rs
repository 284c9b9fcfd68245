//! What the variables say about `gateway` and `serve`.

use crate::config::reader::{DURATION, Reader, SIZE, duration, number, size};
use crate::config::variables::{
    GATEWAY_ANSWER, GATEWAY_FORMAT, GATEWAY_HEADERS, GATEWAY_HOST, GATEWAY_LISTEN,
    GATEWAY_MAX_BODY, GATEWAY_MAX_IN_FLIGHT, GATEWAY_SECRET, GATEWAY_SIGNATURE, GATEWAY_SUBJECT,
    GATEWAY_SUBJECT_PREFIX, GATEWAY_TIMEOUT, GATEWAY_TOKEN, NATS_PREFIX, NATS_QUEUE_GROUP,
    SERVE_DESTINATION, SERVE_FORMAT, SERVE_HOST, SERVE_MAX_IN_FLIGHT, SERVE_SUBJECT_PREFIX,
    SERVE_TIMEOUT, Variable,
};
use crate::exchange::{Format, roundtripper};
use crate::gateway::auth::{Scheme, Token, Verifier};
use crate::gateway::{self, AnswerWith, To};
use crate::secret::Secret;
use crate::serve::{self, From};
use crate::subject::{self, Prefix};
use crate::webhook::destination::Destination;
use crate::webhook::proxy::Proxy;

/// The most requests that anybody can have worked on at once.
const MOST_IN_FLIGHT: usize = 65_536;

impl Reader<'_> {
    pub(super) fn gateway(&mut self) -> Option<gateway::Settings> {
        let expected = "an address and port such as 127.0.0.1:8080 or [::]:8080";
        let address = |text: &str| text.parse().ok();
        let listen = self.or(&GATEWAY_LISTEN, expected, address, gateway::LISTEN);
        let format = self.format(&GATEWAY_FORMAT);
        let to = self.gateway_to(format);
        let answer = |text: &str| match text {
            "reply" => Some(AnswerWith::Reply),
            "sent" => Some(AnswerWith::Sent),
            "stored" => Some(AnswerWith::Stored),
            _ => None,
        };
        let answer = self.or(&GATEWAY_ANSWER, "reply, sent or stored", answer, AnswerWith::Reply);
        let timeout = self.or(&GATEWAY_TIMEOUT, DURATION, duration(1), gateway::TIMEOUT);
        let max_body = self.optional(&GATEWAY_MAX_BODY, SIZE, size);
        let max_in_flight = self.most(&GATEWAY_MAX_IN_FLIGHT, gateway::MAX_IN_FLIGHT);
        let verifier = self.verifier();
        let tokens = self.text(&GATEWAY_TOKEN).unwrap_or_default();
        let tokens = tokens.split_whitespace().map(Token::new).collect();
        let headers = self.gateway_headers();
        Some(gateway::Settings {
            listen,
            to: to?,
            answer,
            format,
            timeout,
            max_body,
            max_in_flight,
            verifier,
            tokens,
            headers,
        })
    }

    fn gateway_to(&mut self, format: Format) -> Option<To> {
        let expected = "a subject such as hooks.stripe";
        let fixed = |text: &str| subject::check(text).is_ok().then(|| text.to_owned());
        let fixed = self.optional(&GATEWAY_SUBJECT, expected, fixed);
        let prefix = self.prefix(&GATEWAY_SUBJECT_PREFIX);
        let host = self.host(&GATEWAY_HOST);
        let token = self.nrt_prefix();
        for (name, subject) in [
            (GATEWAY_SUBJECT.name, fixed.clone()),
            (GATEWAY_SUBJECT_PREFIX.name, prefix.as_ref().map(ToString::to_string)),
        ] {
            if subject.is_some_and(|subject| is_reserved(&subject)) {
                self.mistake(format!(
                    "{name}: subjects that begin with $ or _INBOX are NATS's own"
                ));
            }
        }
        match (fixed, prefix) {
            (Some(_), Some(_)) => {
                self.mistake("GATEWAY_SUBJECT: GATEWAY_SUBJECT_PREFIX is set too; unset one");
                None
            }
            (Some(subject), None) => Some(To::Subject(subject)),
            (None, Some(prefix)) => Some(To::Prefix(prefix)),
            (None, None) if format == Format::Roundtripper => {
                Some(To::Host { prefix: token, fixed: host })
            }
            (None, None) => {
                if !self.is_set(&GATEWAY_SUBJECT) && !self.is_set(&GATEWAY_SUBJECT_PREFIX) {
                    self.mistake(
                        "GATEWAY_SUBJECT_PREFIX: required; expected a subject prefix such as api, \
                         or set GATEWAY_SUBJECT",
                    );
                }
                None
            }
        }
    }

    pub(super) fn serve(&mut self) -> Option<(serve::Settings, Destination, Option<Proxy>)> {
        let format = self.format(&SERVE_FORMAT);
        let expected = "an http:// or https:// URL";
        let destination = self.required(&SERVE_DESTINATION, expected, Destination::parse);
        let proxy = destination.as_ref().and_then(|destination| self.proxy(destination));
        let from = match format {
            Format::Roundtripper => {
                let prefix = self.nrt_prefix();
                let host = self.host(&SERVE_HOST);
                if host.is_none() && !self.is_set(&SERVE_HOST) {
                    self.mistake("SERVE_HOST: required; expected a host such as weather.nats");
                }
                host.map(|host| From::Host { prefix, host })
            }
            Format::Plain | Format::NatsProxy => {
                self.required_prefix(&SERVE_SUBJECT_PREFIX).map(From::Prefix)
            }
        };
        let group = match format {
            Format::Plain => "serve",
            Format::Roundtripper => "nrt",
            Format::NatsProxy => "service",
        };
        let name = |text: &str| {
            let illegal = |c: char| c.is_whitespace() || c.is_control() || ".*>".contains(c);
            (!text.contains(illegal)).then(|| text.to_owned())
        };
        let expected = "a name without white space, dots and wildcards";
        let queue_group = self.or(&NATS_QUEUE_GROUP, expected, name, group.to_owned());
        let timeout = self.or(&SERVE_TIMEOUT, DURATION, duration(1), serve::TIMEOUT);
        let max_in_flight = self.most(&SERVE_MAX_IN_FLIGHT, serve::MAX_IN_FLIGHT);
        let settings = serve::Settings { from: from?, format, queue_group, timeout, max_in_flight };
        Some((settings, destination?, proxy))
    }

    fn format(&mut self, variable: &Variable) -> Format {
        let format = |text: &str| match text {
            "plain" => Some(Format::Plain),
            "roundtripper" => Some(Format::Roundtripper),
            "nats-proxy" => Some(Format::NatsProxy),
            _ => None,
        };
        self.or(variable, "plain, roundtripper or nats-proxy", format, Format::Plain)
    }

    fn most(&mut self, variable: &Variable, default: usize) -> usize {
        let expected = format!("a number from 1 to {MOST_IN_FLIGHT}");
        self.or(variable, &expected, number(1..=MOST_IN_FLIGHT), default)
    }

    fn host(&mut self, variable: &Variable) -> Option<String> {
        let expected = "a host such as weather.nats";
        self.optional(variable, expected, |text| roundtripper::host(text).ok())
    }

    fn nrt_prefix(&mut self) -> String {
        let token = |text: &str| Prefix::parse(text).ok().map(|prefix| prefix.to_string());
        self.or(&NATS_PREFIX, "a subject token such as nrt", token, "nrt".to_owned())
    }

    fn verifier(&mut self) -> Option<Verifier> {
        let scheme = |text: &str| match text {
            "standard" => Some(Scheme::Standard),
            "github" => Some(Scheme::GitHub),
            "stripe" => Some(Scheme::Stripe),
            _ => None,
        };
        let expected = "standard, github or stripe";
        let scheme = self.or(&GATEWAY_SIGNATURE, expected, scheme, Scheme::Standard);
        let secrets = Secret::new(self.text(&GATEWAY_SECRET)?);
        match Verifier::new(scheme, &secrets) {
            Ok(verifier) => Some(verifier),
            Err(mistakes) => {
                for mistake in mistakes {
                    self.mistake(format!("GATEWAY_SECRET: {mistake}"));
                }
                None
            }
        }
    }

    fn gateway_headers(&mut self) -> async_nats::HeaderMap {
        let pairs = self.pairs(&GATEWAY_HEADERS, |name, value| {
            let name = name.parse::<async_nats::HeaderName>().ok()?;
            let value = String::from_utf8(value).ok()?;
            Some((name, value.parse::<async_nats::HeaderValue>().ok()?))
        });
        let mut headers = async_nats::HeaderMap::new();
        pairs.into_iter().for_each(|(name, value)| headers.append(name, value));
        headers
    }
}

/// Whether a subject is one that NATS itself uses.
fn is_reserved(subject: &str) -> bool {
    subject.starts_with('$') || subject == "_INBOX" || subject.starts_with("_INBOX.")
}
