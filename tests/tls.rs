//! Calls over TLS: whom the relay trusts, how it identifies itself, what it says when either
//! fails, and HTTP/2.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use axum::http::Version;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::authority::{Authority, TlsListener};
use support::endpoint::{Endpoint, Reply};
use support::proxy::Proxy;
use support::relay::run;
use support::setup::{Setup, header};
use support::stream::let_pass;
use support::{eventually, within};
use tokio_rustls::rustls::ServerConfig;

/// What an endpoint on this machine is called.
const HERE: [&str; 2] = ["127.0.0.1", "localhost"];
const BOTH: [&str; 2] = ["h2", "http/1.1"];

async fn endpoint(config: ServerConfig) -> Endpoint {
    Endpoint::tls(TlsListener::bind(config).await, |_| Reply::ok())
}

/// That a message is relayed which these endpoints have got.
async fn assert_relays(urls: &str, variables: &[(&str, &str)]) {
    let mut setup = Setup::start(urls, variables).await;
    setup.publish("cms.cache.a", "x").await;
    setup.relayed().await;
    setup.end().await;
}

/// What is said about a message that these endpoints do not get.
async fn error_of(url: &str, variables: &[(&str, &str)]) -> String {
    let mut setup =
        Setup::start(url, &[&[("WEBHOOK_MAX_ATTEMPTS", "1")], variables].concat()).await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    setup.end().await;
    let error = header(&message, "Relay-Destination-Error").to_owned();
    let said = &setup.relay.lines("\"message\":\"not relayed\"")[0];
    assert!(said.contains(&error) && said.len() < 1000, "{said}");
    error
}

// ---- Trust -------------------------------------------------------------------------------

#[tokio::test]
async fn authorities_of_the_system_and_private_ones_are_trusted_side_by_side() {
    let (system, private) = (Authority::new(), Authority::new());
    let endpoints =
        [endpoint(system.server(&HERE, &BOTH)).await, endpoint(private.server(&HERE, &BOTH)).await];
    let urls = endpoints.each_ref().map(Endpoint::url).join(" ");
    // Where rustls looks for the system's.
    let variables = [("SSL_CERT_FILE", &*system.path()), ("WEBHOOK_CA", &private.path())];
    assert_relays(&urls, &variables).await;
    assert_eq!(endpoints.each_ref().map(Endpoint::count), [1, 1]);
}

#[tokio::test]
async fn a_machine_without_authorities_can_call_without_tls_and_whom_it_is_told_to_trust() {
    let authority = Authority::new();
    let (plain, secure) = (Endpoint::ok().await, endpoint(authority.server(&HERE, &[])).await);
    let none = [("SSL_CERT_FILE", "/none"), ("SSL_CERT_DIR", "/none")];
    for (urls, ca) in [
        (plain.url(), String::new()),
        (format!("{} {}", plain.url(), secure.url()), authority.path()),
    ] {
        assert_relays(&urls, &[&none[..], &[("WEBHOOK_CA", &ca)]].concat()).await;
    }
    assert_eq!((plain.count(), secure.count()), (2, 1));
    let required = [
        ("NATS_HOST", "127.0.0.1:1"),
        ("NATS_SUBJECT_PREFIX", "a"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "b"),
    ];
    let (status, _, stderr) = run(
        &["check"],
        &[&none[..], &required, &[("WEBHOOK_DESTINATION", &secure.url())]].concat(),
    );
    assert_eq!(status.code(), Some(1));
    assert!(
        stderr.contains("there are no authorities to trust") && stderr.contains("WEBHOOK_CA"),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_certificate_that_cannot_be_trusted_is_an_error_that_says_why() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = [("WEBHOOK_CA", &*authority.path())];
    for (config, expected) in [
        (
            other.server(&HERE, &[]),
            "is of an authority that is not trusted; if it should be, set WEBHOOK_CA",
        ),
        (authority.server(&["other.example"], &[]), "is for another host"),
        (authority.expired_server(&HERE), "has expired"),
    ] {
        let endpoint = endpoint(config).await;
        let error = error_of(&endpoint.url(), &ca).await;
        assert_eq!(error, format!("the certificate of 127.0.0.1:{} {expected}", endpoint.port));
        assert_eq!(endpoint.count(), 0);
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_those_who_ask() {
    let authority = Authority::new();
    let (cert, key) = authority.client("relay");
    let endpoints = [
        endpoint(authority.server_for_clients(&HERE, &BOTH)).await,
        endpoint(authority.server(&HERE, &[])).await,
    ];
    let urls = endpoints.each_ref().map(Endpoint::url).join(" ");
    let variables =
        [("WEBHOOK_CA", &*authority.path()), ("WEBHOOK_CERT", &cert), ("WEBHOOK_KEY", &key)];
    assert_relays(&urls, &variables).await;
    assert_eq!(endpoints.each_ref().map(Endpoint::count), [1, 1]);
}

#[tokio::test]
async fn a_client_certificate_that_is_missing_or_not_accepted_is_an_error_that_says_so() {
    let (authority, other) = (Authority::new(), Authority::new());
    for alpn in [&BOTH[..], &[]] {
        let endpoint = endpoint(authority.server_for_clients(&HERE, alpn)).await;
        let (url, ca) = (endpoint.url(), authority.path());
        let error = error_of(&url, &[("WEBHOOK_CA", &ca)]).await;
        assert!(
            error.ends_with("asks for a client certificate: set WEBHOOK_CERT and WEBHOOK_KEY"),
            "{error}"
        );
        for (cert, key) in [other.client("relay"), authority.expired_client("relay")] {
            let error = error_of(
                &url,
                &[("WEBHOOK_CA", &ca), ("WEBHOOK_CERT", &cert), ("WEBHOOK_KEY", &key)],
            )
            .await;
            assert!(
                error.contains("does not accept the client certificate (WEBHOOK_CERT): "),
                "{error}"
            );
        }
        assert_eq!(endpoint.count(), 0);
    }
}

#[test]
fn files_that_cannot_be_used_are_mistakes_at_the_start() {
    let authority = Authority::new();
    let ((cert, key), (_, other)) = (authority.client("relay"), authority.client("other"));
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "hunter2").unwrap();
    let garbage = garbage.to_str().unwrap();
    let content = std::fs::read_to_string(&key).unwrap().lines().nth(1).unwrap().to_owned();
    for (variables, expected) in [
        (
            &[("WEBHOOK_CA", "/none/ca.pem")][..],
            "WEBHOOK_CA: cannot read /none/ca.pem: No such file or directory (os error 2)",
        ),
        (&[("WEBHOOK_CA", garbage)], "has no certificate; expected PEM"),
        (&[("WEBHOOK_CA", &key)], "has no certificate; expected PEM"),
        (&[("WEBHOOK_CERT", garbage), ("WEBHOOK_KEY", &key)], "WEBHOOK_CERT: "),
        (&[("WEBHOOK_CERT", &cert), ("WEBHOOK_KEY", &cert)], "has no private key; expected PEM"),
        (
            &[("WEBHOOK_CERT", &cert), ("WEBHOOK_KEY", "/none/key.pem")],
            "WEBHOOK_KEY: cannot read the file that it names: No such file",
        ),
        (
            &[("WEBHOOK_CERT", &cert), ("WEBHOOK_KEY", &other)],
            "WEBHOOK_CERT and WEBHOOK_KEY: the private key is not that of the first certificate",
        ),
        (&[("WEBHOOK_CERT", &cert)], "WEBHOOK_CERT: set without WEBHOOK_KEY; set both or neither"),
        (&[("WEBHOOK_KEY", &key)], "WEBHOOK_KEY: set without WEBHOOK_CERT; set both or neither"),
    ] {
        let required = [
            ("WEBHOOK_DESTINATION", "https://h/"),
            ("NATS_HOST", "h"),
            ("NATS_SUBJECT_PREFIX", "a"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "b"),
        ];
        let (status, _, stderr) = run(&["check"], &[&required[..], variables].concat());
        assert_eq!(status.code(), Some(64));
        let said: Vec<_> = stderr.lines().filter(|line| line.starts_with("  - ")).collect();
        assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {stderr}");
        assert!(!stderr.contains("hunter2") && !stderr.contains(&content), "{stderr}");
    }
}

// ---- HTTP/2 ------------------------------------------------------------------------------

#[tokio::test]
async fn http_2_is_spoken_where_it_is_offered_and_http_1_elsewhere() {
    let authority = Authority::new();
    let offers: [(&[&str], _); 4] = [
        (&BOTH, Version::HTTP_2),
        (&["h2"], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ];
    let mut endpoints = Vec::new();
    for (alpn, _) in offers {
        endpoints.push(endpoint(authority.server(&HERE, alpn)).await);
    }
    // Without TLS nothing is offered.
    endpoints.push(Endpoint::ok().await);
    let urls = endpoints
        .iter()
        .map(|endpoint| endpoint.url().replace("://", "://us%20er:p%40ss@"))
        .collect::<Vec<_>>()
        .join(" ");
    let mut setup = Setup::start(
        &urls,
        &[("WEBHOOK_CA", &*authority.path()), ("WEBHOOK_HEADERS", "x-fixed=1")],
    )
    .await;
    setup
        .publish_with(
            "cms.cache.a",
            &[("X-Kept", "1"), ("X-Kept", "2"), ("Connection", "close"), ("TE", "trailers")],
            "x",
        )
        .await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.relayed().await;
    setup.end().await;
    for (endpoint, version) in
        endpoints.iter().zip(offers.iter().map(|(_, version)| *version).chain([Version::HTTP_11]))
    {
        let [call, empty] = &endpoint.calls()[..] else { panic!("called more or less than twice") };
        assert_eq!((call.version, empty.version), (version, version));
        assert_eq!(
            (call.method.as_str(), call.path.as_str(), &call.body[..]),
            ("POST", "/hook", &b"x"[..])
        );
        assert_eq!(call.header("authorization"), "Basic dXMgZXI6cEBzcw==");
        assert_eq!(
            (call.header("x-fixed"), call.headers.get_all("x-kept").iter().count()),
            ("1", 2)
        );
        assert_eq!((call.header("content-length"), empty.header("content-length")), ("1", "0"));
        assert!(call.headers.get("te").is_none() && call.headers.get("connection").is_none());
        assert!(call.headers.get("accept-encoding").is_none());
    }
}

#[tokio::test]
async fn over_http_2_many_calls_share_a_connection_and_each_subject_keeps_its_order() {
    const SUBJECTS: usize = 128;
    const EACH: usize = 5;
    let authority = Authority::new();
    let listener = TlsListener::bind(authority.server(&HERE, &BOTH)).await;
    let endpoint = Endpoint::tls(listener, |_| Reply::ok().after(Duration::from_millis(50)));
    let mut setup = Setup::start(&endpoint.url(), &[("WEBHOOK_CA", &*authority.path())]).await;
    for number in 0..EACH {
        for subject in 0..SUBJECTS {
            setup.publish(&format!("cms.cache.{subject}"), number.to_string()).await;
        }
    }
    setup.relayed_by_subject(SUBJECTS * EACH).await;
    setup.end().await;
    let calls = endpoint.calls();
    assert!(calls.iter().all(|call| call.version == Version::HTTP_2));
    for subject in 0..SUBJECTS {
        let name = format!("cms.cache.{subject}");
        let bodies: Vec<_> = calls
            .iter()
            .filter(|call| call.subject() == name)
            .map(|call| call.body.clone())
            .collect();
        assert_eq!(bodies, (0..EACH).map(|number| number.to_string()).collect::<Vec<_>>());
    }
    // How many were under way at once.
    let under_way = |at: Instant| {
        calls
            .iter()
            .filter(|call| call.at <= at && call.answered_at.is_some_and(|end| end > at))
            .count()
    };
    let most = calls.iter().map(|call| under_way(call.at)).max().unwrap();
    assert!(most > SUBJECTS / 2, "at most {most} at once");
    let connections: BTreeSet<_> = calls.iter().map(|call| call.connection).collect();
    assert!(connections.len() <= 4, "{} connections", connections.len());
}

#[tokio::test]
async fn an_http_2_connection_that_ends_costs_no_message() {
    let authority = Authority::new();
    let listener = TlsListener::bind(authority.server(&HERE, &["h2"])).await;
    let endpoint = Endpoint::tls(listener, |_| Reply::ok().after(Duration::from_millis(200)));
    let proxy = Proxy::to(endpoint.port).await;
    let url = format!("https://127.0.0.1:{}/hook", proxy.port);
    let mut setup = Setup::start(&url, &[("WEBHOOK_CA", &*authority.path())]).await;
    for round in 1..=3 {
        for subject in ["a", "b", "c"] {
            setup.publish(&format!("cms.cache.{subject}"), "").await;
        }
        let before = endpoint.count();
        eventually("calls are under way", || endpoint.count() > before).await;
        proxy.cut();
        setup.relayed_by_subject(3).await;
        assert!(endpoint.count() > before, "{round}");
    }
    setup.end().await;
}

#[tokio::test]
async fn an_endpoint_that_says_goodbye_costs_no_message() {
    let authority = Authority::new();
    let mut listener = TlsListener::bind(authority.server(&HERE, &["h2"])).await;
    let port = listener.port;
    // Each connection takes two calls, answers the first, and lets go of the second by GOAWAY.
    let connections = tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = axum::serve::Listener::accept(&mut listener).await;
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut first = true;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if number > 0 || first {
                        respond.send_response(axum::http::Response::new(()), true).unwrap();
                    } else {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        connection.graceful_shutdown();
                    }
                    first = false;
                }
            });
        }
    });
    let mut setup =
        Setup::start(&format!("https://127.0.0.1:{port}/"), &[("WEBHOOK_CA", &*authority.path())])
            .await;
    for _ in 0..3 {
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
    }
    setup.end().await;
    connections.abort();
}

#[tokio::test]
async fn an_http_2_connection_that_has_gone_silent_is_given_up_for_a_new_one() {
    let authority = Authority::new();
    let endpoint = endpoint(authority.server(&HERE, &["h2"])).await;
    let proxy = Proxy::to(endpoint.port).await;
    let url = format!("https://127.0.0.1:{}/hook", proxy.port);
    let variables = [
        ("WEBHOOK_CA", &*authority.path()),
        ("WEBHOOK_TIMEOUT", "2s"),
        ("WEBHOOK_MAX_ATTEMPTS", "2"),
    ];
    let mut setup = Setup::start(&url, &variables).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    proxy.swallow();
    // One attempt each is lost, and no more.
    for subject in ["a", "b", "c"] {
        setup.publish(&format!("cms.cache.{subject}"), "").await;
    }
    setup.relayed_by_subject(3).await;
    setup.end().await;
    assert_eq!(endpoint.count(), 4);
}

#[tokio::test]
async fn an_endpoint_that_is_slow_is_waited_for_over_http_2_too() {
    let authority = Authority::new();
    let endpoint = endpoint(authority.server(&HERE, &["h2"])).await;
    let proxy = Proxy::to(endpoint.port).await;
    let url = format!("https://127.0.0.1:{}/hook", proxy.port);
    let variables = [
        ("WEBHOOK_CA", &*authority.path()),
        ("WEBHOOK_TIMEOUT", "50s"),
        ("WEBHOOK_MAX_ATTEMPTS", "1"),
    ];
    let mut setup = Setup::start(&url, &variables).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    // As when the event loop of the endpoint is busy: not even pings are answered.
    proxy.stall();
    for subject in ["a", "b"] {
        setup.publish(&format!("cms.cache.{subject}"), "").await;
    }
    endpoint.received(3).await;
    let_pass(Duration::from_secs(12)).await;
    proxy.go_on();
    setup.relayed_by_subject(2).await;
    setup.end().await;
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn an_endpoint_that_is_silent_during_the_handshake_is_given_up_after_the_connect_timeout() {
    let port = support::endpoint::raw(|_, stream| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            drop(stream);
        })
    })
    .await;
    let start = Instant::now();
    let error = within(
        "an error",
        error_of(&format!("https://127.0.0.1:{port}/"), &[("WEBHOOK_CONNECT_TIMEOUT", "300ms")]),
    )
    .await;
    assert!(
        error.contains("within the connect time-out") && start.elapsed() < Duration::from_secs(20),
        "{error}"
    );
}
