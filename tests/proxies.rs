//! Calls through a proxy, as the environment says, and never to this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use axum::http::Version;
use axum::serve::Listener;
use std::sync::{Arc, Mutex};
use support::authority::{Authority, TlsListener};
use support::endpoint::{Endpoint, Reply};
use support::relay::run;
use support::setup::{Setup, header};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::ServerConfig;

/// A name that only the proxy knows.
const NAME: &str = "frontend.example";
/// `us3r:pa55 word`, as it stands in a URL and in a header.
const LOGIN: &str = "us3r:pa55%20word";
const BASIC: &str = "Basic dXMzcjpwYTU1IHdvcmQ=";
const SECRETS: [&str; 4] = ["us3r", "pa55", "dXMzcjpw", "s3cret"];

/// A proxy for tunnels: every CONNECT leads to one port of this machine.
struct Tunnels {
    port: u16,
    /// The heads of all requests.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    /// To `port`, where there is one, for those who log in.
    async fn to(port: Option<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener.local_addr().unwrap().port(), listener, port)
    }

    /// As [`Self::to`], of a proxy that is itself called over TLS.
    async fn secure(config: ServerConfig, port: u16) -> Self {
        let listener = TlsListener::bind(config).await;
        Self::on(listener.port, listener, Some(port))
    }

    fn on(own: u16, mut listener: impl Listener, port: Option<u16>) -> Self {
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        tokio::spawn(async move {
            loop {
                let ((client, _), seen) = (listener.accept().await, seen.clone());
                tokio::spawn(async move { tunnel(client, port, &seen).await });
            }
        });
        Self { port: own, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    port: Option<u16>,
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    heads.lock().unwrap().push(head.clone());
    let answer = match port {
        _ if !head
            .to_lowercase()
            .contains(&format!("proxy-authorization: {}\r\n", BASIC.to_lowercase())) =>
        {
            "407 Proxy Authentication Required"
        }
        None => "502 Bad Gateway",
        Some(_) => "200 OK",
    };
    client.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await?;
    if let Some(port) = port.filter(|_| answer.starts_with("200")) {
        let mut endpoint = TcpStream::connect(("127.0.0.1", port)).await?;
        tokio::io::copy_bidirectional(&mut client, &mut endpoint).await?;
    }
    Ok(())
}

fn assert_no_secret(setup: &Setup, message: Option<&async_nats::Message>) {
    for secret in SECRETS {
        assert!(
            setup.relay.lines(secret).is_empty(),
            "{secret} in {:#?}",
            setup.relay.lines(secret)
        );
        assert!(
            message.is_none_or(|message| !format!("{message:?}").contains(secret)),
            "{secret} in {message:?}"
        );
    }
}

#[tokio::test]
async fn a_plain_call_goes_to_the_proxy_as_a_whole() {
    // As a proxy sees it, the request is one with a whole URL, to be answered by itself.
    let proxy = Endpoint::ok().await;
    let url = format!("http://{LOGIN}@127.0.0.1:{}", proxy.port);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let destination = format!("http://{NAME}/hook?secret=s3cret");
        let mut setup = Setup::start(&destination, &[(name, &url), ("RUST_LOG", "trace")]).await;
        setup.publish_with("cms.cache.a", &[("Proxy-Authorization", "forged")], "x").await;
        setup.relayed().await;
        setup.end().await;
        let call = proxy.calls().pop().unwrap();
        assert_eq!(
            (call.header("host"), call.header("proxy-authorization")),
            (NAME, BASIC),
            "{name}"
        );
        assert_eq!((call.path.as_str(), &call.body[..]), ("/hook?secret=s3cret", &b"x"[..]));
        assert_no_secret(&setup, None);
    }
    assert_eq!(proxy.count(), 4);
}

#[tokio::test]
async fn a_call_over_tls_goes_through_a_tunnel_of_the_proxy() {
    let authority = Authority::new();
    let listener = TlsListener::bind(authority.server(&[NAME], &["h2", "http/1.1"])).await;
    let endpoint = Endpoint::tls(listener, |_| Reply::ok());
    let proxy = Tunnels::to(Some(endpoint.port)).await;
    let url = format!("http://{LOGIN}@127.0.0.1:{}", proxy.port);
    let destination = format!("https://{NAME}:8443/hook?secret=s3cret");
    let mut setup = Setup::start(
        &destination,
        &[("HTTPS_PROXY", &url), ("WEBHOOK_CA", &authority.path()), ("RUST_LOG", "trace")],
    )
    .await;
    setup.publish("cms.cache.a", "x").await;
    setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!(
        (call.version, call.headers.get("proxy-authorization")),
        (Version::HTTP_2, None),
        "the proxy's password is the proxy's"
    );
    let [head] = &proxy.heads()[..] else { panic!("{:?}", proxy.heads()) };
    assert!(
        head.starts_with(&format!("CONNECT {NAME}:8443 HTTP/1.1\r\n")) && !head.contains("s3cret"),
        "{head}"
    );
    assert_no_secret(&setup, None);
}

#[tokio::test]
async fn no_proxy_and_this_machine_are_called_directly() {
    let proxy = Endpoint::ok().await;
    let endpoint = Endpoint::ok().await;
    let url = format!("http://127.0.0.1:{}", proxy.port);
    let all = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        .map(|name| (name, &*url));
    let urls = ["127.0.0.1", "localhost", "app.localhost"]
        .map(|host| format!("http://{host}:{}/hook", endpoint.port))
        .join(" ");
    let mut setup = Setup::start(&urls, &all).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((endpoint.count(), proxy.count()), (3, 0));

    // A name that nobody knows, as it is looked for without the proxy.
    let variables =
        [&all[..], &[("NO_PROXY", "other.example,.invalid"), ("WEBHOOK_MAX_ATTEMPTS", "1")]]
            .concat();
    let mut setup = Setup::start("http://frontend.invalid/", &variables).await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    assert!(
        header(&message, "Relay-Destination-Error")
            .starts_with("cannot find the host frontend.invalid: "),
        "{message:?}"
    );
    setup.end().await;
    assert_eq!(proxy.count(), 0);
}

#[tokio::test]
async fn a_proxy_that_is_not_there_or_does_not_connect_is_named_without_its_password() {
    let (_bound, absent) = support::endpoint::refusing();
    let (unknown, closed) = (Tunnels::to(None).await, Tunnels::to(None).await);
    for (login, port, expected) in [
        (
            LOGIN,
            absent,
            format!("nothing listens on 127.0.0.1:{absent}, the proxy on the way to {NAME}:443"),
        ),
        (
            LOGIN,
            unknown.port,
            format!("cannot connect to {NAME}:443 through the proxy 127.0.0.1:{}: ", unknown.port),
        ),
        (
            "us3r:wrong-pa55",
            closed.port,
            format!(
                "cannot connect to {NAME}:443 through the proxy 127.0.0.1:{}: tunnel error: proxy authorization required",
                closed.port
            ),
        ),
    ] {
        let url = format!("http://{login}@127.0.0.1:{port}");
        let variables =
            [("HTTPS_PROXY", &*url), ("WEBHOOK_MAX_ATTEMPTS", "1"), ("RUST_LOG", "trace")];
        let mut setup = Setup::start(&format!("https://{NAME}/?secret=s3cret"), &variables).await;
        setup.publish("cms.cache.a", "").await;
        let message = setup.failed().await;
        let error = header(&message, "Relay-Destination-Error");
        assert!(error.starts_with(&expected), "{error}");
        setup.end().await;
        assert_no_secret(&setup, Some(&message));
    }
}

/// What a proxy on this machine is called.
const HERE: [&str; 1] = ["127.0.0.1"];

#[tokio::test]
async fn a_proxy_may_itself_be_called_over_tls() {
    let authority = Authority::new();
    let listener = TlsListener::bind(authority.server(&[NAME], &["h2", "http/1.1"])).await;
    let endpoint = Endpoint::tls(listener, |_| Reply::ok());
    let tunnels =
        Tunnels::secure(authority.server(&HERE, &["h2", "http/1.1"]), endpoint.port).await;
    for (alpn, version) in [(&["h2", "http/1.1"][..], Version::HTTP_2), (&[], Version::HTTP_11)] {
        let proxy =
            Endpoint::tls(TlsListener::bind(authority.server(&HERE, alpn)).await, |_| Reply::ok());
        let urls =
            [proxy.port, tunnels.port].map(|port| format!("https://{LOGIN}@127.0.0.1:{port}"));
        let destinations =
            format!("http://{NAME}/hook?secret=s3cret https://{NAME}:8443/hook?secret=s3cret");
        let variables = [
            ("http_proxy", &*urls[0]),
            ("https_proxy", &urls[1]),
            ("WEBHOOK_CA", &authority.path()),
            ("RUST_LOG", "trace"),
        ];
        let mut setup = Setup::start(&destinations, &variables).await;
        setup.publish("cms.cache.a", "x").await;
        setup.relayed().await;
        setup.end().await;
        let [call] = &proxy.calls()[..] else { panic!("called more or less than once") };
        assert_eq!(
            (call.version, call.header("proxy-authorization"), &call.body[..]),
            (version, BASIC, &b"x"[..])
        );
        assert_no_secret(&setup, None);
    }
    assert!(
        endpoint.calls().iter().all(|call| call.version == Version::HTTP_2
            && call.headers.get("proxy-authorization").is_none())
    );
    assert_eq!((endpoint.count(), tunnels.heads().len()), (2, 2));
    assert!(
        tunnels
            .heads()
            .iter()
            .all(|head| head.starts_with(&format!("CONNECT {NAME}:8443 HTTP/1.1\r\n"))
                && !head.contains("s3cret"))
    );
}

#[tokio::test]
async fn whose_tls_it_is_that_fails_is_told_the_proxys_or_the_destinations() {
    const UNTRUSTED: &str =
        "is of an authority that is not trusted; if it should be, set WEBHOOK_CA";
    let (authority, other) = (Authority::new(), Authority::new());
    let unknown =
        Endpoint::tls(TlsListener::bind(other.server(&[NAME], &[])).await, |_| Reply::ok());
    let plain = Endpoint::ok().await;
    let listener = async |config| TlsListener::bind(config).await;
    let untrusted = listener(other.server(&HERE, &[])).await;
    let for_clients = listener(authority.server_for_clients(&HERE, &[])).await;
    let trusted = Tunnels::secure(authority.server(&HERE, &[]), unknown.port).await;
    let both = ["http", "https"];
    for (port, schemes, expected) in [
        (
            untrusted.port,
            &both[..],
            format!("the certificate of the proxy 127.0.0.1:{} {UNTRUSTED}", untrusted.port),
        ),
        (
            plain.port,
            &both,
            format!(
                "the proxy 127.0.0.1:{} does not speak TLS: is it http:// rather than https://?",
                plain.port
            ),
        ),
        (
            for_clients.port,
            &both,
            format!(
                "the proxy 127.0.0.1:{} asks for a client certificate: set WEBHOOK_CERT and WEBHOOK_KEY",
                for_clients.port
            ),
        ),
        (trusted.port, &both[1..], format!("the certificate of {NAME}:8443 {UNTRUSTED}")),
    ] {
        for scheme in schemes {
            let url = format!("https://{LOGIN}@127.0.0.1:{port}");
            let variables = [
                ("ALL_PROXY", &*url),
                ("WEBHOOK_CA", &authority.path()),
                ("WEBHOOK_MAX_ATTEMPTS", "1"),
                ("RUST_LOG", "trace"),
            ];
            let mut setup =
                Setup::start(&format!("{scheme}://{NAME}:8443/?secret=s3cret"), &variables).await;
            setup.publish("cms.cache.a", "").await;
            let message = setup.failed().await;
            assert_eq!(header(&message, "Relay-Destination-Error"), expected, "{scheme}");
            setup.end().await;
            assert_eq!(setup.relay.lines("\"message\":\"not relayed\"").len(), 1);
            assert_no_secret(&setup, Some(&message));
        }
    }
    assert_eq!((plain.count(), unknown.count()), (0, 0));
}

#[test]
fn a_proxy_of_another_kind_is_a_mistake_where_it_would_be_used() {
    let required =
        [("NATS_HOST", "h"), ("NATS_SUBJECT_PREFIX", "a"), ("NATS_RELAYED_SUBJECT_PREFIX", "b")];
    let variables = [
        &required[..],
        &[
            ("WEBHOOK_DESTINATION", "http://a/ http://b/"),
            ("all_proxy", "socks5://us3r:pa55@proxy:1080"),
        ],
    ]
    .concat();
    let (status, _, stderr) = run(&["check"], &variables);
    assert_eq!(status.code(), Some(64));
    assert!(
        stderr.contains("a mistake")
            && stderr.contains("all_proxy: expected the http:// URL of an HTTP proxy"),
        "{stderr}"
    );
    assert!(!stderr.contains("pa55"), "{stderr}");
}
