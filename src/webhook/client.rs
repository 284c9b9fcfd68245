//! The HTTP client of a destination: TLS, proxy and connections, and why a call got no answer.
//!
//! HTTP/2 is spoken where an endpoint offers it over TLS. Answers are not decompressed: nobody
//! reads them. What an endpoint can make the relay keep is bounded here.

use crate::certificates::Certificates;
use crate::webhook::destination::Destination;
use crate::webhook::proxy::Proxy;
use anyhow::Context;
use async_nats::rustls::crypto::ring;
use async_nats::rustls::sign::SingleCertAndKey;
use async_nats::rustls::{self, CertificateError, ClientConfig, InvalidMessage};
use reqwest::{Client, ClientBuilder};
use rustix::io::Errno;
use rustls_platform_verifier::Verifier;
use std::error::Error;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Shorter than the 5 s after which Node closes an idle connection, so that we rarely write
/// into one that is being closed.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// What an endpoint may send ahead of us over HTTP/2: for one answer, and for all of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Time for connecting unless something else is said.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the clients of one destination, or of one address of its host.
#[derive(Clone)]
pub(crate) struct Maker {
    /// `None` where nothing is called over TLS.
    tls: Option<ClientConfig>,
    proxy: Option<reqwest::Proxy>,
    connect_timeout: Duration,
    /// The destination's host, where it is this machine by name.
    localhost: Option<String>,
    /// The only address to call, and the host that it is one of.
    address: Option<(String, IpAddr)>,
}

impl Maker {
    /// Reads what a client for `destination` needs.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn new(
        destination: &Destination,
        proxy: Option<&Proxy>,
        connect_timeout: Duration,
        certificates: &Certificates,
    ) -> anyhow::Result<Self> {
        let is_tls = destination.url().scheme() == "https" || proxy.is_some_and(Proxy::is_secure);
        Ok(Self {
            tls: is_tls.then(|| tls(certificates)).transpose()?,
            proxy: proxy.map(Proxy::for_client).transpose()?,
            connect_timeout,
            localhost: destination.is_localhost().then(|| destination.host().to_owned()),
            address: None,
        })
    }

    /// The same for one address of `destination`'s host.
    pub(crate) fn at(&self, destination: &Destination, address: IpAddr) -> Self {
        Self { address: Some((destination.host().to_owned(), address)), ..self.clone() }
    }

    /// A client with connections of its own.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn make(&self) -> anyhow::Result<Client> {
        let mut builder = Client::builder()
            .user_agent(concat!("nats-webhook-relay/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_nodelay(true)
            .no_proxy();
        #[cfg(target_os = "linux")]
        {
            // An endpoint that reads slowly is ended by the call's own time limit, not by 30 s of a
            // full buffer.
            builder = builder.tcp_user_timeout(None);
        }
        builder = match &self.tls {
            Some(tls) => builder.tls_backend_preconfigured(tls.clone()),
            // A machine without authorities can call without TLS.
            None => builder.tls_certs_only([]),
        };
        if let Some(proxy) = &self.proxy {
            builder = builder.proxy(proxy.clone());
        }
        if let Some(host) = &self.localhost {
            builder = both_families(builder, host);
        }
        if let Some((host, address)) = &self.address {
            builder = builder.resolve(host, SocketAddr::new(*address, 0));
        }
        Ok(builder.build()?)
    }

    /// Whether calls may share a connection (HTTP/2, which TLS may lead to). One that has gone
    /// silent
    /// would then take every later call with it: after a call without an answer the next ones need
    /// connections of their own.
    pub(crate) fn shares_connections(&self) -> bool {
        self.tls.is_some()
    }
}

/// Whichever of the two families the frontend listens on, and whatever /etc/hosts says.
fn both_families(builder: ClientBuilder, host: &str) -> ClientBuilder {
    let both =
        [SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    builder.resolve_to_addrs(host, &both)
}

/// The system's authorities and ours; our identity where there is one.
fn tls(certificates: &Certificates) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        Verifier::new_with_extra_roots(certificates.authorities.iter().cloned(), provider.clone())
            .context(
                "there are no authorities to trust: install the system's (ca-certificates), or \
         set WEBHOOK_CA",
            )?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut tls = match &certificates.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.clone())))
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// What this machine is short of, where that is why there was no call. It is not the endpoint's
/// failure.
pub(crate) fn shortage(error: &reqwest::Error, destination: &Destination) -> Option<&'static str> {
    if !error.is_connect() {
        return None;
    }
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let code = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()).next();
    // A look-up may hide that it could not open a file or a socket.
    let code = code.or_else(|| File::open("/dev/null").err()?.raw_os_error())?;
    match Errno::from_raw_os_error(code) {
        Errno::MFILE => Some("open files: raise the limit of the process (ulimit -n, LimitNOFILE)"),
        Errno::NFILE => Some("open files of the whole system: raise fs.file-max"),
        Errno::NOBUFS | Errno::NOMEM => Some("memory"),
        // Where there is no IPv6, an address of that family fails alike.
        Errno::ADDRNOTAVAIL if destination.host().parse::<Ipv4Addr>().is_ok() || has_ipv6() => {
            Some("local ports: widen net.ipv4.ip_local_port_range, or lower MAX_IN_FLIGHT")
        }
        _ => None,
    }
}

/// Whether this machine can use IPv6 at all. Nothing is sent.
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((Ipv6Addr::LOCALHOST, 9)))
        .is_ok()
}

/// Why there was no answer, in words that help. reqwest's own text shows the URL with its query.
pub(crate) fn explain(
    error: &reqwest::Error,
    destination: &Destination,
    proxy: Option<&Proxy>,
) -> String {
    let authority = destination.authority();
    let causes: Vec<&(dyn Error + 'static)> =
        std::iter::successors(error.source(), |cause| (*cause).source()).collect();
    let texts: Vec<_> = causes.iter().map(ToString::to_string).collect();
    let detail = texts
        .last()
        .map_or_else(|| "unknown error".to_owned(), |text| text.escape_debug().to_string());
    // TLS to the proxy, which is all there is of it for a plain call, or what a tunnel goes
    // through.
    let of_proxy = destination.url().scheme() == "http"
        || texts.iter().any(|text| text.starts_with("tunnel error"));
    let peer = proxy
        .filter(|_| of_proxy)
        .map_or_else(|| authority.clone(), |proxy| format!("the proxy {proxy}"));
    // Over HTTP/2 only the text of an alert is left.
    if let Some(alert) = texts.iter().find_map(|text| text.strip_prefix("received fatal alert: ")) {
        return explain_alert(alert, &peer);
    }
    if let Some(error) = causes.iter().find_map(|cause| tls_error(*cause)) {
        return explain_tls(error, &peer);
    }
    if !error.is_connect() {
        return format!("no usable answer from {authority}: {detail}");
    }
    let refused = causes
        .iter()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|io| io.kind() == io::ErrorKind::ConnectionRefused);
    match proxy {
        Some(proxy) if refused => {
            format!("nothing listens on {proxy}, the proxy on the way to {authority}")
        }
        Some(proxy) => format!("cannot connect to {authority} through the proxy {proxy}: {detail}"),
        None if refused => format!("nothing listens on {authority}: is the frontend running?"),
        None if error.is_timeout() => {
            format!("no connection to {authority} within the connect time-out")
        }
        None if error.is_dns() => format!("cannot find the host {}: {detail}", destination.host()),
        None => format!("cannot connect to {authority}: {detail}"),
    }
}

fn tls_error<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    // An I/O error does not count what it wraps among its causes.
    cause.downcast_ref().or_else(|| tls_error(cause.downcast_ref::<io::Error>()?.get_ref()?))
}

fn explain_tls(error: &rustls::Error, peer: &str) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // The latter where an authority that is trusted has the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!(
                    "the certificate of {peer} is of an authority that is not trusted; if it \
                     should be, set WEBHOOK_CA"
                )
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the certificate of {peer} is for another host")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the certificate of {peer} has expired")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the certificate of {peer} is not valid yet; is the clock right?")
            }
            other => format!(
                "the certificate of {peer} cannot be accepted: {}",
                other.to_string().escape_debug()
            ),
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!("{peer} does not speak TLS: is it http:// rather than https://?")
        }
        other => format!("no TLS connection to {peer}: {}", other.to_string().escape_debug()),
    }
}

/// What an endpoint says when it ends a connection (RFC 8446, section 6.2).
fn explain_alert(alert: &str, peer: &str) -> String {
    match alert {
        "CertificateRequired" => {
            format!("{peer} asks for a client certificate: set WEBHOOK_CERT and WEBHOOK_KEY")
        }
        "BadCertificate"
        | "UnsupportedCertificate"
        | "CertificateRevoked"
        | "CertificateExpired"
        | "CertificateUnknown"
        | "UnknownCA"
        | "AccessDenied"
        | "DecryptError" => {
            format!("{peer} does not accept the client certificate (WEBHOOK_CERT): {alert}")
        }
        other => format!("{peer} has ended the TLS connection: {}", other.escape_debug()),
    }
}
