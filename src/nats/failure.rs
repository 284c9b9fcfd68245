//! Why a connection could not be made, in words, and whether waiting could help.

use crate::nats::login::Login;
use crate::nats::settings::Settings;
use async_nats::rustls::{self, AlertDescription, CertificateError};
use async_nats::{ConnectError, ConnectErrorKind};
use std::error::Error;
use std::io;

/// A connection that was not made.
#[derive(Debug)]
pub(crate) struct Unconnected {
    /// What happened and what to do.
    pub(crate) reason: String,
    /// Whether it would happen again and again.
    pub(crate) is_final: bool,
}

impl Unconnected {
    /// Something is wrong with what the relay was given.
    pub(crate) fn of_settings(reason: String) -> Self {
        Self { reason, is_final: true }
    }

    /// What the client's error means for someone who knows the settings.
    pub(crate) fn new(error: &ConnectError, config: &Settings) -> Self {
        let servers = shown(config);
        let causes = causes(error);
        // With several servers the next attempt may meet another one.
        let waits = config.servers.len() > 1;
        if let Some(tls) = causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
            return Self {
                reason: format!("{servers} {} (NATS_HOST)", of_tls(tls, config)),
                is_final: !waits,
            };
        }
        let detail = causes.last().map_or_else(|| error.kind().to_string(), ToString::to_string);
        let refused = |io: &io::Error| io.kind() == io::ErrorKind::ConnectionRefused;
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation => Self::of_settings(of_login(config)),
            ConnectErrorKind::Authentication => {
                let detail = detail.trim_start_matches("AuthError(").trim_end_matches(')');
                Self::of_settings(format!(
                    "cannot log in to {servers}: {}: {detail}",
                    config.login_from
                ))
            }
            ConnectErrorKind::Tls => {
                Self::of_settings(format!("cannot set up TLS for {servers}: {detail}"))
            }
            ConnectErrorKind::ServerParse => {
                Self::of_settings(format!("cannot connect to {servers} (NATS_HOST): {detail}"))
            }
            ConnectErrorKind::Dns => {
                Self::of_network(format!("cannot find the host of {servers} (NATS_HOST)"))
            }
            ConnectErrorKind::TimedOut => {
                Self::of_network(format!("{servers} did not answer in time (NATS_HOST)"))
            }
            _ if causes.iter().filter_map(|cause| cause.downcast_ref()).any(refused) => {
                Self::of_network(format!(
                    "nothing listens on {servers} (NATS_HOST): is nats-server running?"
                ))
            }
            _ if detail.starts_with("expected INFO, got nothing") && !config.tls.first => {
                Self::of_network(format!(
                    "{servers} closed the connection without a greeting (NATS_HOST); a server \
                     that expects TLS at once needs NATS_TLS_FIRST=true"
                ))
            }
            _ if config.servers.iter().any(|server| server.scheme() == "ws") => {
                Self::of_network(format!(
                    "cannot connect to {servers} (NATS_HOST): {detail}; a web socket with TLS is \
                     wss://, and no web socket is nats:// or tls://"
                ))
            }
            _ => Self::of_network(format!("cannot connect to {servers} (NATS_HOST): {detail}")),
        }
    }

    fn of_network(reason: String) -> Self {
        Self { reason, is_final: false }
    }
}

/// The configured servers as `host:port, host:port`.
pub(crate) fn shown(config: &Settings) -> String {
    let servers =
        config.servers.iter().map(|server| format!("{}:{}", server.host(), server.port()));
    servers.collect::<Vec<_>>().join(", ")
}

/// The client's text for why it could not connect again, which is all that it tells of that.
pub(crate) fn in_words(text: &str) -> &str {
    match text.trim_start_matches("IO error: ") {
        corrupt if corrupt.starts_with("received corrupt message of type InvalidContentType") => {
            "does not speak TLS"
        }
        text => text,
    }
}

/// `at`, the end of a login, for people.
pub(crate) fn has_expired(config: &Settings) -> Option<String> {
    let at = config.login.expired()?;
    Some(format!(
        "the JWT has expired at {}: renew {}",
        humantime::format_rfc3339_seconds(at),
        config.login_from
    ))
}

fn of_login(config: &Settings) -> String {
    let servers = shown(config);
    match (&config.login, has_expired(config)) {
        (_, Some(expired)) => format!("{servers} refused the login: {expired}"),
        (Login::Anonymous, None) if config.tls.identity.is_some() => {
            format!("{servers} refused the login: has it a user for the certificate NATS_CERT?")
        }
        (Login::Anonymous, None) => {
            format!(
                "{servers} refused the login: check NATS_USER and NATS_PASS, or set NATS_TOKEN, \
                 NATS_CREDS or NATS_NKEY"
            )
        }
        (_, None) => format!("{servers} refused the login: check {}", config.login_from),
    }
}

/// What went wrong with TLS, after the server's name.
fn of_tls(error: &rustls::Error, config: &Settings) -> String {
    let text = match error {
        rustls::Error::InvalidCertificate(error) => return of_certificate(error, config),
        rustls::Error::InvalidMessage(_) if config.tls.first => {
            "answers without TLS at first although NATS_TLS_FIRST is set: unset it, or set \
             handshake_first on the server"
        }
        rustls::Error::InvalidMessage(_) => {
            "does not speak TLS, which tls:// or wss:// in the URL, NATS_CA or NATS_CERT asks for"
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        ) if config.tls.identity.is_none() => {
            "wants a certificate of the relay: set NATS_CERT and NATS_KEY"
        }
        rustls::Error::AlertReceived(alert) => {
            return match &config.tls.identity {
                Some((path, _)) => {
                    let path = path.display();
                    format!("refused the certificate {path} (NATS_CERT): {alert:?}")
                }
                None => format!("ended the TLS handshake: {alert:?}"),
            };
        }
        other => return format!("cannot be reached with TLS: {other}"),
    };
    text.to_owned()
}

/// What is wrong with the server's certificate, after the server's name.
fn of_certificate(error: &CertificateError, config: &Settings) -> String {
    use CertificateError as Bad;
    let text = match error {
        // The signature is that of another authority of the same name.
        Bad::UnknownIssuer | Bad::BadSignature => match &config.tls.ca {
            Some(ca) => {
                let ca = ca.display();
                return format!("has a certificate of an authority that is not in {ca} (NATS_CA)");
            }
            None => {
                "has a certificate of an authority that this system does not know: set NATS_CA to \
                 the authority's certificate"
            }
        },
        Bad::NotValidForNameContext { presented, .. } => {
            // Each is written as DnsName("host") or IpAddress(address).
            let bare = |name: &String| {
                name.split(['(', ')']).nth(1).unwrap_or(name).trim_matches('"').to_owned()
            };
            let names = presented.iter().map(bare).collect::<Vec<_>>().join(", ");
            return format!(
                "has a certificate for another host ({names}): connect to it by that name"
            );
        }
        Bad::NotValidForName => "has a certificate for another host",
        Bad::Expired | Bad::ExpiredContext { .. } => {
            "has a certificate that has expired: renew the server's"
        }
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            "has a certificate that is not valid yet: are the clocks right?"
        }
        other => return format!("has a certificate that cannot be accepted: {other}"),
    };
    text.to_owned()
}

/// What is behind an error, outermost first. An I/O error hides the one that it was made of.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let within = |error: &'a (dyn Error + 'static)| match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(inner) => Some(inner as &'a (dyn Error + 'static)),
        None => error.source(),
    };
    std::iter::successors(within(error), |cause| within(*cause)).collect()
}
