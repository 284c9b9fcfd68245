//! Calls to the webhook: which answers accept a message, which are tried again, what an endpoint
//! can do to the relay, and what is said about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::{FutureExt, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use support::endpoint::{Call, Endpoint, Reply, answer, raw, refusing, request};
use support::held::Held;
use support::nats::NatsServer;
use support::relay::{Relay, field};
use support::setup::{Setup, header, values};
use support::{subscribe, within};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const HOUR: Duration = Duration::from_secs(3600);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// The last token of a call's subject as the status to answer with.
fn status_of(call: &Call) -> u16 {
    call.subject().rsplit('.').next().unwrap().parse().unwrap()
}

/// Whether an endpoint has seen no call like this one before.
fn is_first(
    calls: &std::sync::Mutex<std::collections::HashMap<String, usize>>,
    call: &Call,
) -> bool {
    let mut calls = calls.lock().unwrap();
    let count = calls.entry(call.subject().to_owned()).or_default();
    *count += 1;
    *count == 1
}

// ---- Answers -----------------------------------------------------------------------------

#[tokio::test]
async fn every_2xx_accepts_a_message() {
    let endpoint = Endpoint::start(|call| Reply::status(status_of(call))).await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    for status in [200, 201, 202, 204, 206, 299] {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    setup.relayed_by_subject(6).await;
    setup.end().await;
    assert_eq!(endpoint.count(), 6);
}

#[tokio::test]
async fn unusual_but_legal_answers_accept_a_message() {
    const ANSWERS: &[(&str, &str)] = &[
        ("a.http10", "HTTP/1.0 200 OK\r\n\r\n"),
        ("b.until_closed", "HTTP/1.1 200 OK\r\n\r\nsome text"),
        ("c.no_reason", "HTTP/1.1 204\r\n\r\n"),
        (
            "d.interim",
            "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ),
        ("e.body_cut_off", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it"),
        (
            "f.chunk_cut_off",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhalf of it",
        ),
        ("g.broken_chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno length\r\n"),
        ("h.latin_1", "HTTP/1.1 200 OK\r\nx-text: \u{e9}\r\ncontent-length: 0\r\n\r\n"),
    ];
    let port = raw(|_, mut stream| {
        Box::pin(async move {
            let request = request(&mut stream).await.unwrap();
            let (_, bytes) = ANSWERS
                .iter()
                .find(|(name, _)| request.contains(&format!("cms.cache.{name}\r\n")))
                .unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
        })
    })
    .await;
    let mut setup =
        Setup::start(&format!("http://127.0.0.1:{port}/"), &[("WEBHOOK_MAX_ATTEMPTS", "1")]).await;
    for (name, _) in ANSWERS {
        setup.publish(&format!("cms.cache.{name}"), "").await;
    }
    let relayed = setup.relayed_by_subject(ANSWERS.len()).await;
    let names: Vec<_> = relayed
        .iter()
        .map(|message| message.subject.trim_start_matches("relayed.cache."))
        .collect();
    assert_eq!(names, ANSWERS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    setup.end().await;
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_fails_the_message_with_its_location() {
    let target = Endpoint::ok().await;
    let location = format!("http://user:pa55@127.0.0.1:{}/final?token=s3cret", target.port);
    let endpoint = Endpoint::start(move |call| match status_of(call) {
        303 => Reply::status(303).header("location", "/slash/?token=s3cret"),
        status => Reply::status(status).header("location", &location),
    })
    .await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    for status in [301, 302, 303, 307, 308] {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    for (message, status) in setup.failed_by_subject(5).await.iter().zip([301, 302, 303, 307, 308])
    {
        let expected = match status {
            303 => format!("http://127.0.0.1:{}/slash/?token=***", endpoint.port),
            _ => format!("http://127.0.0.1:{}/final?token=***", target.port),
        };
        assert_eq!(message.subject, format!("failed.cache.{status}").into());
        assert_eq!(header(message, "Relay-Status"), status.to_string());
        assert_eq!(header(message, "Relay-Attempts"), "1");
        let error = header(message, "Relay-Error");
        assert!(
            error.contains(&format!("to {expected};"))
                && error.contains("redirects are not followed"),
            "{error}"
        );
    }
    setup.end().await;
    assert_eq!((endpoint.count(), target.count()), (5, 0));
    assert_eq!(setup.relay.lines("s3cret").len() + setup.relay.lines("pa55").len(), 0);
}

#[tokio::test]
async fn a_status_that_may_pass_is_tried_again() {
    let seen = std::sync::Mutex::default();
    let endpoint = Endpoint::start(move |call| {
        if is_first(&seen, call) { Reply::status(status_of(call)) } else { Reply::ok() }
    })
    .await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let statuses = [408, 425, 429, 500, 501, 502, 503, 504, 599];
    for status in statuses {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    setup.relayed_by_subject(statuses.len()).await;
    setup.end().await;
    for status in statuses {
        assert_eq!(
            endpoint.calls().iter().filter(|call| status_of(call) == status).count(),
            2,
            "{status}"
        );
    }
}

#[tokio::test]
async fn an_endpoint_that_asks_for_no_wait_is_not_called_in_a_loop() {
    let past = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH);
    for wait in ["0".to_owned(), past] {
        let endpoint =
            Endpoint::start(move |_| Reply::status(503).header("retry-after", wait.clone())).await;
        let mut setup = Setup::start(&endpoint.url(), &[("WEBHOOK_MAX_ATTEMPTS", "8")]).await;
        setup.publish("cms.cache.a", "").await;
        assert_eq!(header(&setup.failed().await, "Relay-Attempts"), "8");
        // With the backoff it is 6 s on average.
        let calls = endpoint.calls();
        let took = calls[7].at - calls[0].at;
        assert!(took > Duration::from_millis(250), "{took:?}");
        setup.end().await;
    }
}

#[tokio::test]
async fn what_this_machine_is_short_of_fails_no_message() {
    const SUBJECTS: usize = 100;
    const SHORT: &str = "cannot call webhooks because this machine is out of resources";
    // With a soft limit only, nothing runs short.
    for (setting, is_short) in [("ulimit -n 40", true), ("ulimit -Sn 40", false)] {
        let (nats, endpoint) = (NatsServer::start(), Held::start().await);
        let client = nats.client().await;
        let mut relayed = subscribe(&client, "relayed.>").await;
        let variables = [("WEBHOOK_MAX_ATTEMPTS", "2"), ("WEBHOOK_TIMEOUT", "1h")];
        let relay = Relay::spawn_under(setting, &nats.url(), &endpoint.url(), &variables);
        relay.logged("\"message\":\"ready\"").await;
        for subject in 0..SUBJECTS {
            client.publish(format!("cms.cache.s{subject}"), "".into()).await.unwrap();
        }
        match is_short {
            true => drop(relay.logged(SHORT).await),
            false => endpoint.called(SUBJECTS).await,
        }
        endpoint.release();
        for _ in 0..SUBJECTS {
            within("a relayed message", relayed.next()).await.unwrap();
        }
        assert_eq!(relay.lines(SHORT).len(), usize::from(is_short), "{:?}", relay.lines(SHORT));
        assert!(relay.lines("not relayed").is_empty(), "{:?}", relay.lines("not relayed"));
    }
}

#[tokio::test]
async fn a_status_that_will_not_pass_fails_the_message_at_once() {
    let endpoint =
        Endpoint::start(|call| Reply::status(status_of(call)).header("retry-after", "0")).await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let statuses = [304, 400, 401, 403, 404, 405, 410, 413, 422];
    for status in statuses {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    for (message, status) in setup.failed_by_subject(statuses.len()).await.iter().zip(statuses) {
        assert_eq!(header(message, "Relay-Status"), status.to_string());
        assert_eq!(header(message, "Relay-Attempts"), "1");
        assert!(
            header(message, "Relay-Error").contains(&format!("answered {status}")),
            "{message:?}"
        );
    }
    setup.end().await;
    assert_eq!(endpoint.count(), statuses.len());
    let said = setup.relay.lines("\"message\":\"not relayed\"");
    assert_eq!(said.len(), statuses.len());
    assert!(
        said.iter()
            .all(|line| line.contains("\"level\":\"ERROR\"")
                && line.contains("\"reason\":\"webhook\"")),
        "{said:?}"
    );
}

#[tokio::test]
async fn the_operator_may_name_more_statuses_to_try_again() {
    let seen = std::sync::Mutex::default();
    let endpoint = Endpoint::start(move |call| {
        if is_first(&seen, call) { Reply::status(status_of(call)) } else { Reply::ok() }
    })
    .await;
    let mut setup = Setup::start(&endpoint.url(), &[("WEBHOOK_RETRY_STATUS", "404, 409")]).await;
    for status in [404, 409, 410] {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    let relayed = setup.relayed_by_subject(2).await;
    assert_eq!(
        [&relayed[0].subject, &relayed[1].subject].map(|subject| subject.as_str()),
        ["relayed.cache.404", "relayed.cache.409"]
    );
    assert_eq!(setup.failed().await.subject.as_str(), "failed.cache.410");
    setup.end().await;
    assert_eq!(endpoint.count(), 5);
}

#[tokio::test]
async fn a_message_is_tried_exactly_as_often_as_configured() {
    let endpoint = Endpoint::start(|_| Reply::status(500)).await;
    for attempts in [1, 3] {
        let before = endpoint.count();
        let mut setup =
            Setup::start(&endpoint.url(), &[("WEBHOOK_MAX_ATTEMPTS", &attempts.to_string())]).await;
        setup.publish("cms.cache.a", "").await;
        let message = setup.failed().await;
        assert_eq!(
            (header(&message, "Relay-Attempts"), header(&message, "Relay-Status")),
            (&*attempts.to_string(), "500")
        );
        setup.end().await;
        assert_eq!(endpoint.count() - before, attempts);
    }
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let seen = std::sync::Mutex::default();
    let endpoint = Endpoint::start(move |call| {
        if !is_first(&seen, call) {
            return Reply::ok();
        }
        let wait = match status_of(call) {
            // Cut to whole seconds, so at least three from now.
            500 => httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4)),
            _ => "2".to_owned(),
        };
        Reply::status(status_of(call)).header("retry-after", wait)
    })
    .await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    for status in [429, 500, 503] {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    setup.relayed_by_subject(3).await;
    setup.end().await;
    for status in [429, 500, 503] {
        let calls: Vec<_> =
            endpoint.calls().into_iter().filter(|call| status_of(call) == status).collect();
        let waited = calls[1].at - calls[0].at;
        assert!(calls.len() == 2 && waited >= Duration::from_secs(2), "{status}: {waited:?}");
    }
}

// ---- No answer, and worse ----------------------------------------------------------------

#[tokio::test]
async fn an_endpoint_that_does_not_answer_in_time_is_called_again_and_then_the_message_fails() {
    let endpoint = Endpoint::start(|_| Reply::ok().after(HOUR)).await;
    // Its connections are accepted by the system, and by nobody else.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf_url = format!("http://{}/", deaf.local_addr().unwrap());
    for destination in [&endpoint.url(), &deaf_url] {
        let mut setup = Setup::start(
            destination,
            &[("WEBHOOK_TIMEOUT", "300ms"), ("WEBHOOK_MAX_ATTEMPTS", "2")],
        )
        .await;
        let start = Instant::now();
        setup.publish("cms.cache.a", "x").await;
        let message = setup.failed().await;
        assert!(start.elapsed() >= Duration::from_millis(600));
        assert_eq!(
            (header(&message, "Relay-Status"), header(&message, "Relay-Attempts")),
            ("none", "2")
        );
        assert!(header(&message, "Relay-Error").contains("no answer within 300ms"), "{message:?}");
        assert_eq!(message.payload, "x");
        setup.end().await;
    }
    assert_eq!(endpoint.count(), 2);
}

#[tokio::test]
async fn a_host_that_lets_nobody_connect_fails_the_message_after_the_connect_timeout() {
    // With a full queue of connections the system answers no more of them.
    let (socket, port) = refusing();
    let full = socket.listen(1).unwrap();
    let _queued = [
        TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
        TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
    ];
    let variables = [
        ("WEBHOOK_CONNECT_TIMEOUT", "300ms"),
        ("WEBHOOK_TIMEOUT", "1h"),
        ("WEBHOOK_MAX_ATTEMPTS", "2"),
    ];
    let mut setup = Setup::start(&format!("http://127.0.0.1:{port}/"), &variables).await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    let error = header(&message, "Relay-Error");
    assert!(
        error.contains(&format!("no connection to 127.0.0.1:{port} within the connect time-out")),
        "{error}"
    );
    setup.end().await;
    drop(full);
}

#[tokio::test]
async fn whatever_an_endpoint_does_instead_of_answering_fails_that_message_with_a_reason_and_no_other()
 {
    const DEEDS: &[(&str, &str)] = &[
        ("a_closes", "closed"),
        ("b_resets", "reset"),
        ("c_speaks_something_else", "invalid HTTP version"),
        ("d_stops_in_the_head", "closed"),
        ("e_never_ends_its_head", "too large"),
        ("f_sends_too_many_headers", "too large"),
        ("g_has_no_status", "status"),
        ("h_names_two_lengths", "content-length"),
    ];
    let port =
        raw(|_, mut stream| Box::pin(async move { while misbehave(&mut stream).await {} })).await;
    async fn misbehave(stream: &mut TcpStream) -> bool {
        let Some(request) = request(stream).await else { return false };
        let deed = request.split("cms.cache.").nth(1).unwrap().split("\r\n").next().unwrap();
        let answer: &[u8] = match deed {
            _ if request.ends_with("good") => return stream.write_all(OK).await.is_ok(),
            "a_closes" => return false,
            "b_resets" => {
                stream.set_zero_linger().unwrap();
                return false;
            }
            "c_speaks_something_else" => b"220 mail.example.com ESMTP ready\r\n",
            "d_stops_in_the_head" => b"HTTP/1.1 200 OK\r\ncontent-le",
            "e_never_ends_its_head" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-long: ").await;
                while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                return false;
            }
            "f_sends_too_many_headers" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
                while stream.write_all(b"x-many: 1\r\n").await.is_ok() {}
                return false;
            }
            "g_has_no_status" => b"HTTP/1.1 fine\r\n\r\n",
            "h_names_two_lengths" => {
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\n"
            }
            other => panic!("{other}"),
        };
        let _ = stream.write_all(answer).await;
        false
    }

    let mut setup =
        Setup::start(&format!("http://127.0.0.1:{port}/"), &[("WEBHOOK_MAX_ATTEMPTS", "2")]).await;
    for (deed, _) in DEEDS {
        setup.publish(&format!("cms.cache.{deed}"), "bad").await;
        setup.publish(&format!("cms.cache.{deed}"), "good").await;
    }
    for (message, (deed, reason)) in setup.failed_by_subject(DEEDS.len()).await.iter().zip(DEEDS) {
        assert_eq!(message.subject.as_str(), format!("failed.cache.{deed}"));
        assert_eq!(
            (header(message, "Relay-Status"), header(message, "Relay-Attempts")),
            ("none", "2")
        );
        let error = header(message, "Relay-Error");
        assert!(
            error.contains(&format!("no usable answer from 127.0.0.1:{port}: "))
                && error.contains(reason),
            "{deed}: {error}"
        );
    }
    for message in setup.relayed_by_subject(DEEDS.len()).await {
        assert_eq!(message.payload, "good");
    }
    setup.end().await;
}

#[tokio::test]
async fn https_to_an_endpoint_that_speaks_http_fails_with_a_reason() {
    let endpoint = Endpoint::ok().await;
    let mut setup =
        Setup::start(&endpoint.url().replace("http:", "https:"), &[("WEBHOOK_MAX_ATTEMPTS", "1")])
            .await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    let error = header(&message, "Relay-Error");
    assert!(
        error.contains("TLS") || error.contains("https") || error.contains("InvalidContentType"),
        "{error}"
    );
    setup.end().await;
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn a_body_that_drips_or_never_ends_does_not_hold_back_an_accepted_message() {
    let port = raw(|_, mut stream| {
        Box::pin(async move {
            let request = request(&mut stream).await.unwrap();
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await;
            let (chunk, pause) = match request.contains("cms.cache.drips") {
                true => (vec![b'x'; 1], Duration::from_millis(10)),
                false => (vec![b'x'; 1 << 20], Duration::ZERO),
            };
            while stream.write_all(&chunk).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        })
    })
    .await;
    let url = format!("http://127.0.0.1:{port}/");
    // What drips is given up at the time-out, what gushes at once.
    for (subject, timeout) in [("drips", "2s"), ("gushes", "1h")] {
        let mut setup = Setup::start(&url, &[("WEBHOOK_TIMEOUT", timeout)]).await;
        let before = setup.relay.memory("VmHWM");
        setup.publish(&format!("cms.cache.{subject}"), "").await;
        assert_eq!(setup.relayed().await.subject.as_str(), format!("relayed.cache.{subject}"));
        let grown = setup.relay.memory("VmHWM") - before;
        assert!(grown < 32 * 1024, "{subject} took {grown} KiB");
        setup.end().await;
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_until_somebody_listens_and_said_once() {
    let (socket, port) = refusing();
    let variables =
        [("WEBHOOK_MAX_ATTEMPTS", "1000"), ("RUST_LOG", "info,nats_webhook_relay::webhook=debug")];
    let mut setup = Setup::start(&format!("http://127.0.0.1:{port}/hook"), &variables).await;
    for subject in ["cms.cache.a", "cms.cache.b", "cms.cache.c"] {
        setup.publish(subject, "").await;
    }
    setup.relay.logged_times("not accepted, retrying", 9).await;
    let endpoint = Endpoint::on(socket.listen(64).unwrap(), |_| Reply::ok());
    setup.relayed_by_subject(3).await;
    setup.end().await;
    assert_eq!(endpoint.count(), 3);

    let [said] = &setup.relay.lines("webhook delivery failing")[..] else {
        panic!("said more or less than once")
    };
    assert!(
        said.contains("\"level\":\"WARN\"")
            && said.contains(&format!("nothing listens on 127.0.0.1:{port}")),
        "{said}"
    );
    let [over] = &setup.relay.lines("webhook delivery recovered")[..] else {
        panic!("its end said more or less than once")
    };
    assert!(over.contains("\"level\":\"INFO\"") && over.contains("outage_ms"), "{over}");
    assert!(setup.relay.lines("\"level\":\"ERROR\"").is_empty());
}

#[tokio::test]
async fn a_connection_that_closes_as_it_is_used_again_costs_a_retry_only() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let port = raw(move |_, mut stream| {
        let count = count.clone();
        Box::pin(async move {
            answer(&mut stream, OK).await;
            if request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
    })
    .await;
    let mut setup =
        Setup::start(&format!("http://127.0.0.1:{port}/"), &[("WEBHOOK_MAX_ATTEMPTS", "2")]).await;
    let start = Instant::now();
    while closed.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < support::LIMIT, "no connection is ever used again");
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
    }
    setup.end().await;
}

#[tokio::test]
async fn a_connection_is_not_used_again_when_node_may_be_closing_it() {
    let connections = Arc::new(AtomicUsize::new(0));
    let opened = connections.clone();
    let port = raw(move |_, mut stream| {
        opened.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            while request(&mut stream).await.is_some() && stream.write_all(OK).await.is_ok() {}
        })
    })
    .await;
    let mut setup = Setup::start(&format!("http://127.0.0.1:{port}/"), &[]).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    // Node closes after 5 s. The connection has been idle for longer than this when it is over.
    tokio::time::sleep(Duration::from_millis(4900)).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    setup.end().await;
}

// ---- This machine ------------------------------------------------------------------------

#[tokio::test]
async fn localhost_is_found_on_either_address_family() {
    async fn relays(endpoint: &Endpoint) {
        let hosts = ["localhost", "LOCALHOST", "localhost.", "my-app.localhost"];
        let urls = hosts.map(|host| format!("http://{host}:{}/hook", endpoint.port)).join(" ");
        let mut setup = Setup::start(&urls, &[("WEBHOOK_MAX_ATTEMPTS", "1")]).await;
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
        setup.end().await;
        assert_eq!(endpoint.count(), hosts.len());
    }
    // Nobody else may listen on the other family's port meanwhile.
    let v6 = TcpSocket::new_v6()
        .and_then(|socket| socket.bind("[::1]:0".parse().unwrap()).map(|()| socket));
    match v6 {
        Ok(v6) => {
            let port = v6.local_addr().unwrap().port();
            relays(&Endpoint::on(TcpListener::bind(("127.0.0.1", port)).await.unwrap(), |_| {
                Reply::ok()
            }))
            .await;
        }
        Err(error) => {
            // A machine without IPv6: what it says is that there is no such address.
            use std::io::ErrorKind::{AddrNotAvailable, Unsupported};
            assert!(
                matches!(error.kind(), AddrNotAvailable | Unsupported)
                    || error.raw_os_error() == Some(97),
                "{error}"
            );
            relays(&Endpoint::ok().await).await;
            return;
        }
    }
    let (v4, port) = refusing();
    relays(&Endpoint::on(TcpListener::bind(("::1", port)).await.unwrap(), |_| Reply::ok())).await;
    drop(v4);
}

// ---- Several destinations ----------------------------------------------------------------

#[tokio::test]
async fn a_message_is_republished_once_when_the_last_of_several_destinations_has_accepted_it() {
    let slow = Endpoint::start(|_| Reply::ok().after(Duration::from_millis(300))).await;
    let failures = AtomicUsize::new(2);
    let failing = Endpoint::start(move |_| {
        let fails = failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        Reply::status(if fails { 503 } else { 200 })
    })
    .await;
    let (socket, port) = refusing();
    let urls = format!("{}\n{}\thttp://127.0.0.1:{port}/hook", slow.url(), failing.url());
    let mut setup = Setup::start(&urls, &[("WEBHOOK_MAX_ATTEMPTS", "1000")]).await;
    setup.publish("cms.cache.a", "x").await;
    slow.answered(1).await;
    failing.answered(3).await;
    setup.relay.logged_times("\"message\":\"answered\"", 2).await;
    assert!(
        setup.relayed.next().now_or_never().is_none(),
        "relayed before the last destination has accepted"
    );
    let late =
        Endpoint::on(socket.listen(64).unwrap(), |_| Reply::ok().after(Duration::from_millis(100)));

    assert_eq!(setup.relayed().await.payload, "x");
    let seen_at = Instant::now();
    let last = late.calls().pop().expect("relayed before the last destination was called");
    assert!(
        last.answered_at.is_some_and(|at| at <= seen_at),
        "relayed before the last destination has answered"
    );
    setup.end().await;
    assert_eq!(
        [&slow, &failing, &late].map(Endpoint::count),
        [1, 3, 1],
        "each is called until it has accepted, not more often"
    );
    // What each of them answered is in the log, and what it did before.
    for (endpoint, attempt) in [(&slow, Some("1")), (&failing, Some("3")), (&late, None)] {
        let destination = format!("\"destination\":\"{}\"", endpoint.url());
        let lines = setup.relay.lines(&destination);
        let said = |message: &str| {
            lines
                .iter()
                .filter(|line| line.contains(&format!("\"message\":\"{message}\"")))
                .collect::<Vec<_>>()
        };
        let [answered] = said("answered")[..] else { panic!("{lines:#?}") };
        assert!(
            answered.contains("\"status\":200")
                && attempt.is_none_or(|attempt| field(answered, "attempt") == attempt),
            "{answered}"
        );
        let outages = usize::from(!std::ptr::eq(endpoint, &slow));
        assert_eq!(
            (
                said("webhook delivery failing, retrying").len(),
                said("webhook delivery recovered").len()
            ),
            (outages, outages)
        );
    }
    let refused = setup.relay.lines("nothing listens on");
    assert!(
        !refused.is_empty() && refused.iter().all(|line| line.contains(&late.url())),
        "{refused:#?}"
    );
    assert_eq!(
        setup
            .relay
            .lines("answered 503")
            .iter()
            .filter(|line| line.contains("\"WARN\"") && line.contains(&failing.url()))
            .count(),
        1
    );
    for endpoint in [&slow, &failing, &late] {
        assert!(
            endpoint
                .calls()
                .iter()
                .all(|call| call.body == "x"
                    && call.header("webhook-id") == last.header("webhook-id"))
        );
    }
}

#[tokio::test]
async fn a_message_that_one_of_several_destinations_refuses_fails_and_says_which() {
    let accepting = Endpoint::ok().await;
    let refusing = Endpoint::start(|_| Reply::status(400)).await;
    let failing = Endpoint::start(|_| Reply::status(503)).await;
    let urls = [&accepting, &refusing, &failing].map(Endpoint::url).join(" ");
    let mut setup = Setup::start(&urls, &[("WEBHOOK_MAX_ATTEMPTS", "2")]).await;
    setup
        .publish_with("cms.cache.a", &[("Relay-Status", "forged"), ("Relay-Status", "twice")], "x")
        .await;
    let message = setup.failed().await;
    assert_eq!(message.payload, "x");
    assert_eq!(header(&message, "Relay-Reason"), "webhook");
    assert_eq!(values(&message, "Relay-Destination"), [refusing.url(), failing.url()]);
    assert_eq!(values(&message, "Relay-Status"), ["400", "503"]);
    assert_eq!(values(&message, "Relay-Attempts"), ["1", "2"]);
    let errors = values(&message, "Relay-Destination-Error");
    assert!(
        errors.len() == 2 && errors[0].contains("400") && errors[1].contains("503"),
        "{errors:?}"
    );
    let error = header(&message, "Relay-Error");
    assert!(
        error.contains(&refusing.url())
            && error.contains(&failing.url())
            && !error.contains(&accepting.url()),
        "{error}"
    );
    setup.end().await;
    assert_eq!([&accepting, &refusing, &failing].map(Endpoint::count), [1, 1, 2]);
}

// ---- Failed messages ---------------------------------------------------------------------

#[tokio::test]
async fn a_failed_message_is_published_whole_with_all_that_is_known_about_its_failure() {
    let endpoint = Endpoint::start(|_| Reply::status(422)).await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let payload: Vec<u8> = (0..=255).collect();
    let headers = [
        ("X-Kept", "1"),
        ("X-Kept", "2"),
        ("x-kept", "3"),
        ("Nats-Rollup", "all"),
        ("Relay-Reason", "forged"),
    ];
    let before = SystemTime::now();
    setup.publish_with("cms.cache.article.42", &headers, payload.clone()).await;
    let message = setup.failed().await;
    assert_eq!(message.subject.as_str(), "failed.cache.article.42");
    assert_eq!(message.payload, payload);
    assert!(message.reply.is_none());
    assert_eq!(
        (values(&message, "X-Kept"), values(&message, "x-kept")),
        (vec!["1", "2"], vec!["3"])
    );
    assert!(
        values(&message, "Nats-Rollup").is_empty(),
        "a stream of failed messages would be emptied"
    );
    for (name, expected) in [
        ("Relay-Subject", "cms.cache.article.42"),
        ("Relay-Id", endpoint.calls()[0].header("webhook-id")),
        ("Relay-Reason", "webhook"),
        ("Relay-Destination", &endpoint.url()),
        ("Relay-Status", "422"),
        ("Relay-Attempts", "1"),
        ("Relay-Destination-Error", "answered 422 Unprocessable Entity"),
    ] {
        assert_eq!(header(&message, name), expected, "{name}");
    }
    assert!(
        header(&message, "Relay-Error").starts_with(&format!("{}: answered 422", endpoint.url())),
        "{message:?}"
    );
    let time = humantime::parse_rfc3339(header(&message, "Relay-Time")).unwrap();
    assert!(time + Duration::from_millis(1) >= before && time <= SystemTime::now());
    setup.end().await;
}

#[tokio::test]
async fn secrets_of_a_destination_are_neither_logged_nor_published() {
    const SECRETS: [&str; 5] = ["us3r", "pa55word", "s3cret", "t0ken", "czNjcmV0"];
    let endpoint = Endpoint::start(|call| match status_of(call) {
        0 => Reply::ok().after(HOUR),
        status => Reply::status(status).header("location", "/?again=s3cret"),
    })
    .await;
    let (_socket, refusing) = refusing();
    let closing =
        raw(|_, mut stream| Box::pin(async move { drop(request(&mut stream).await) })).await;
    let urls = [endpoint.port, refusing, closing]
        .map(|port| format!("http://us3r:pa55word@127.0.0.1:{port}/hook?secret=s3cret&t0ken"));
    let variables = [
        ("WEBHOOK_HEADERS", "x-api-key=s3cret"),
        ("RUST_LOG", "trace"),
        ("WEBHOOK_MAX_ATTEMPTS", "2"),
        ("WEBHOOK_TIMEOUT", "500ms"),
    ];
    let mut setup = Setup::start(&urls.join(" "), &variables).await;
    for status in [0, 200, 302, 400, 503] {
        setup.publish(&format!("cms.cache.{status}"), "").await;
    }
    let failed = setup.failed_by_subject(5).await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!(
        (call.path.as_str(), call.header("x-api-key")),
        ("/hook?secret=s3cret&t0ken", "s3cret")
    );
    for secret in SECRETS {
        for message in &failed {
            assert!(!format!("{message:?}").contains(secret), "{secret} in {message:?}");
        }
        let lines = setup.relay.lines(secret);
        assert!(lines.is_empty(), "{secret} in {lines:#?}");
    }
    assert!(header(&failed[3], "Relay-Error").contains("/hook?secret=***&***"), "{:?}", failed[3]);
}

#[tokio::test]
async fn without_a_failed_subject_a_failed_message_is_an_error_in_the_log_and_nothing_else() {
    let nats = support::nats::NatsServer::start();
    let endpoint =
        Endpoint::start(|call| Reply::status(if call.body == "bad" { 400 } else { 200 })).await;
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &[]).await;
    let client = nats.client().await;
    let mut all = client.subscribe(">").await.unwrap();
    for payload in ["bad", "good"] {
        client.publish("cms.cache.a", payload.into()).await.unwrap();
    }
    let mut subjects = Vec::new();
    while !subjects.contains(&"relayed.cache.a".to_owned()) {
        subjects.push(within("messages", all.next()).await.unwrap().subject.to_string());
    }
    subjects.retain(|subject| !subject.starts_with("_INBOX."));
    assert_eq!(subjects, ["cms.cache.a", "cms.cache.a", "relayed.cache.a"]);
    assert!(relay.stop().await.success());
    let said = relay.lines("\"message\":\"not relayed\"");
    assert!(
        said.len() == 1
            && said[0].contains("\"subject\":\"cms.cache.a\"")
            && said[0].contains("answered 400"),
        "{said:?}"
    );
}
