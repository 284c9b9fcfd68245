//! What of a message arrives where: headers, payload and subject, at the webhook and on the
//! relayed message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use futures_util::StreamExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::endpoint::{Call, Endpoint, Reply};
use support::nats::NatsServer;
use support::setup::{Setup, header, hpub, values};
use support::{LIMIT, within};

/// A server whose largest message is small enough to try its limits.
const MAX_PAYLOAD: usize = 64 * 1024;

fn small_server() -> NatsServer {
    NatsServer::with_config(&format!(
        "max_payload: {MAX_PAYLOAD}\nmax_pending: {}",
        MAX_PAYLOAD * 16
    ))
}

/// All values of a call's header.
fn all<'a>(call: &'a Call, name: &str) -> Vec<&'a str> {
    call.headers
        .get_all(name)
        .iter()
        .map(|value| std::str::from_utf8(value.as_bytes()).unwrap())
        .collect()
}

// ---- Headers at the webhook --------------------------------------------------------------

#[tokio::test]
async fn a_messages_headers_arrive_at_the_webhook() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let headers = [
        ("X-Twice", "b"),
        ("X-Twice", "a"),
        ("x-lower", "1"),
        ("X_UNDER", "2"),
        ("X-Text", "größe"),
        ("X-Empty", ""),
        ("traceparent", "00-1"),
    ];
    setup.publish_with("cms.cache.a", &headers, "x").await;
    setup.relayed().await;
    setup.publish_with("cms.cache.a", &[("content-TYPE", "text/plain; charset=utf-8")], "x").await;
    setup.relayed().await;
    setup.end().await;
    let [first, second] = &endpoint.calls()[..] else { panic!("called more or less than twice") };
    assert_eq!(all(first, "x-twice"), ["b", "a"]);
    for (name, expected) in [
        ("x-lower", "1"),
        ("x_under", "2"),
        ("x-text", "größe"),
        ("x-empty", ""),
        ("traceparent", "00-1"),
        ("content-type", "application/json"),
        ("user-agent", concat!("nats-webhook-relay/", env!("CARGO_PKG_VERSION"))),
        ("nats-subject", "cms.cache.a"),
        ("content-length", "1"),
        ("host", &format!("127.0.0.1:{}", endpoint.port)),
    ] {
        assert_eq!(all(first, name), [expected], "{name}");
    }
    assert_eq!(all(second, "content-type"), ["text/plain; charset=utf-8"]);
}

#[tokio::test]
async fn a_message_keeps_its_id_over_all_attempts_and_on_the_relayed_copy_and_shares_it_with_no_other()
 {
    let attempts = std::sync::atomic::AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |_| {
        match attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Reply::status(503).header("retry-after", "2"),
            1 => Reply::status(500),
            _ => Reply::ok(),
        }
    })
    .await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for _ in 0..2 {
        setup.publish_with("cms.cache.same", &[("Nats-Msg-Id", "the publisher's")], "same").await;
    }
    let relayed = [setup.relayed().await, setup.relayed().await];
    setup.end().await;
    let calls = endpoint.calls();
    let ids: Vec<_> = calls.iter().flat_map(|call| all(call, "webhook-id")).collect();
    let [a, b, c, d] = ids[..] else { panic!("{ids:?}") };
    assert!(a == b && b == c && c != d && !a.is_empty() && !a.contains("publisher"), "{ids:?}");
    assert_eq!(relayed.each_ref().map(|message| header(message, "Nats-Msg-Id")), [c, d]);

    let times: Vec<u64> =
        calls.iter().map(|call| call.header("webhook-timestamp").parse().unwrap()).collect();
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(
        times[0] >= before && times[1] > times[0] && times.is_sorted() && times[3] <= after,
        "{before} {times:?} {after}"
    );
}

#[tokio::test]
async fn a_message_can_neither_frame_a_call_nor_speak_for_the_relay_or_its_operator() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url().replace("//", "//us%20er:p%40ss@"), &[]).await;
    let smuggled = "POST /smuggled HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let denied = [
        ("Host", "forged.example"),
        ("Authorization", "forged"),
        ("Proxy-Authorization", "forged"),
        ("Cookie", "forged=1"),
        ("Connection", "x-fine, close"),
        ("Keep-Alive", "forged"),
        ("Proxy-Connection", "forged"),
        ("Transfer-Encoding", "chunked"),
        ("content-LENGTH", "0"),
        ("TE", "forged"),
        ("Trailer", "forged"),
        ("Upgrade", "forged"),
        ("Expect", "100-continue"),
        ("User-Agent", "forged"),
        ("Webhook-Id", "forged"),
        ("webhook-timestamp", "1"),
        ("webhook-signature", "forged"),
        ("Nats-Subject", "forged"),
        ("Nats-Msg-Id", "forged"),
        ("nats-anything", "forged"),
        ("Forwarded", "for=forged"),
        ("X-Forwarded-For", "forged"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("x-middleware-subrequest", "forged"),
    ];
    setup.publish_with("cms.cache.a", &[&denied[..], &[("X-Fine", "1")]].concat(), smuggled).await;
    let message = setup.relayed().await;
    setup.end().await;

    let [call] = &endpoint.calls()[..] else {
        panic!("called more or less than once: {:#?}", endpoint.calls())
    };
    assert_eq!((call.body.as_ref(), call.header("x-fine")), (smuggled.as_bytes(), "1"));
    assert_eq!(
        all(call, "authorization"),
        ["Basic dXMgZXI6cEBzcw=="],
        "user info of the destination"
    );
    let expected = [
        "authorization",
        "host",
        "content-length",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "nats-subject",
    ];
    for (name, value) in denied {
        let found = all(call, name);
        assert!(!found.contains(&value), "{name} has travelled");
        assert_eq!(found.len(), usize::from(expected.contains(&&*name.to_lowercase())), "{name}");
    }
    // A NATS header of the same name means nothing to anybody on the way.
    for (name, value) in denied.iter().filter(|(name, _)| !name.to_lowercase().starts_with("nats-"))
    {
        assert_eq!(values(&message, name), [*value]);
    }
}

#[tokio::test]
async fn what_a_server_could_take_for_the_relays_own_header_does_not_travel() {
    const SECRET: &str = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk";
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(
        &endpoint.url(),
        &[("WEBHOOK_SECRET", SECRET), ("HTTP_LISTEN", "127.0.0.1:0")],
    )
    .await;
    let ours = ["webhook-id", "webhook-signature", "webhook-timestamp", "nats-subject"];
    let others = [
        "relay-reason",
        "relay-destination",
        "authorization",
        "transfer-encoding",
        "content-length",
        "proxy-authorization",
    ];
    let mut lines = Vec::new();
    for name in ours.iter().chain(&others) {
        let capitals: String = name
            .split('-')
            .map(|part| format!("-{}{}", part[..1].to_uppercase(), &part[1..]))
            .collect();
        for name in [
            *name,
            &name.to_uppercase(),
            &capitals[1..],
            &name.replace('-', "_"),
            &capitals[1..].replace('-', "_"),
            &name.replace('-', "."),
        ] {
            lines.push(format!("{name}: forged"));
        }
        // Not legal in HTTP, and counted. Other dashes and letters the NATS client does not take.
        lines.push(format!("{name}[]: forged"));
    }
    lines.push("x-webhook-id: fine".to_owned());
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    setup.publish_by_hand(&hpub("cms.cache.a", &lines, b"x")).await;
    let message = setup.relayed().await;
    setup.relay.counted("headers_dropped_total", 10).await;
    setup.end().await;
    let [call] = &endpoint.calls()[..] else { panic!("called more or less than once") };
    assert!(!format!("{:?}", call.headers).contains("forged"), "{:?}", call.headers);
    let mut names: Vec<_> = call.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let expected =
        ["accept", "content-length", "content-type", "host", "nats-subject", "user-agent"];
    assert_eq!(
        names,
        [&expected[..], &["webhook-id", "webhook-signature", "webhook-timestamp", "x-webhook-id"]]
            .concat()
    );
    assert!(ours.iter().all(|name| all(call, name).len() == 1));
    assert_eq!(header(&message, "Nats-Msg-Id"), call.header("webhook-id"));
}

#[tokio::test]
async fn a_failed_message_cannot_forge_the_reasons_of_its_failure() {
    let endpoint = Endpoint::start(|_| Reply::status(400)).await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let forged = [
        "Relay-Reason",
        "relay-reason",
        "RELAY-ERROR",
        "Relay-destination",
        "relay-status",
        "Relay-Plugin",
    ]
    .map(|name| (name, "forged"));
    setup.publish_with("cms.cache.a", &forged, "x").await;
    let message = setup.failed().await;
    setup.end().await;
    assert!(!format!("{message:?}").contains("forged"), "{message:?}");
    assert_eq!(
        (header(&message, "Relay-Reason"), header(&message, "Relay-Status")),
        ("webhook", "400")
    );
}

#[tokio::test]
async fn headers_that_http_does_not_allow_are_left_out_and_the_rest_is_delivered() {
    const NAMES: [&str; 11] =
        ["a/b", "a(b)", "a=b", "a@b", "{x}", "a,b", "a;b", "a\"b", "a[b]", "a\\b", "<a>"];
    const VALUES: [&str; 5] = ["nul\0", "\u{1}one", "del\u{7f}x", "esc\u{1b}[31m", "bell\u{7}x"];
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let mut lines: Vec<_> = NAMES.iter().map(|name| format!("{name}: illegal")).collect();
    lines.extend(VALUES.iter().enumerate().map(|(n, value)| format!("X-Value-{n}: {value}")));
    lines.extend(VALUES.iter().map(|value| format!("X-Mixed: {value}")));
    lines.push("X-Mixed: good".to_owned());
    lines.push("X-Folded: one\r\n two".to_owned());
    lines.push("X-Good:no space".to_owned());
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    setup.publish_by_hand(&hpub("cms.cache.a", &lines, b"x")).await;
    let message = setup.relayed().await;
    setup.end().await;

    let [call] = &endpoint.calls()[..] else { panic!("called more or less than once") };
    assert_eq!(
        (call.body.as_ref(), call.header("x-good"), call.header("x-folded")),
        (&b"x"[..], "no space", "one two")
    );
    assert_eq!(all(call, "x-mixed"), ["good"], "only the illegal values of a name are left out");
    assert!(
        !format!("{:?}", call.headers).contains("illegal")
            && !call.headers.keys().any(|name| name.as_str().contains("x-value"))
    );
    // NATS allows them all.
    for name in NAMES {
        assert_eq!(header(&message, name), "illegal");
    }
    for (n, value) in VALUES.iter().enumerate() {
        assert_eq!(header(&message, &format!("X-Value-{n}")), *value);
    }
}

#[tokio::test]
async fn the_operators_headers_can_come_from_a_file() {
    let endpoint = Endpoint::ok().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    std::fs::write(&file, "authorization=Bearer%20t0ken,x-key=k3y\n").unwrap();
    let variables = [("WEBHOOK_HEADERS_FILE", file.to_str().unwrap()), ("RUST_LOG", "trace")];
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    setup.publish("cms.cache.a", "x").await;
    setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    assert_eq!((call.header("authorization"), call.header("x-key")), ("Bearer t0ken", "k3y"));
    assert_eq!(setup.relay.lines("t0ken").len() + setup.relay.lines("k3y").len(), 0);
}

#[tokio::test]
async fn user_info_of_a_destination_is_percent_decoded_into_basic_auth() {
    let endpoint = Endpoint::ok().await;
    for (user_info, expected) in [
        ("user:pass", "dXNlcjpwYXNz"),
        ("user", "dXNlcjo="),
        (":pass", "OnBhc3M="),
        ("us%3aer:p%3Aa:ss", "dXM6ZXI6cDphOnNz"),
        ("gr%C3%B6%C3%9Fe:%E6%97%A5%25", "Z3LDtsOfZTrml6Ul"),
    ] {
        let before = endpoint.count();
        let mut setup =
            Setup::start(&endpoint.url().replace("//", &format!("//{user_info}@")), &[]).await;
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
        setup.end().await;
        assert_eq!(
            all(&endpoint.calls()[before], "authorization"),
            [format!("Basic {expected}")],
            "{user_info}"
        );
    }
}

#[tokio::test]
async fn the_operators_headers_are_sent_and_win() {
    let endpoint = Endpoint::ok().await;
    let fixed = "X-Token=a%20b%2Cc%3Dd%25,x-twice=1,X-Twice=2, authorization = Bearer%20t0ken ,Content-Type=text/x,User-Agent=mine/1,Cookie=c";
    let destination = endpoint.url().replace("//", "//user:pass@");
    let mut setup = Setup::start(&destination, &[("WEBHOOK_HEADERS", fixed)]).await;
    let headers = [
        ("X-Token", "forged"),
        ("X-TWICE", "forged"),
        ("Content-Type", "forged"),
        ("User-Agent", "forged"),
        ("X-Other", "kept"),
    ];
    setup.publish_with("cms.cache.a", &headers, "x").await;
    let message = setup.relayed().await;
    setup.end().await;
    let call = endpoint.calls().remove(0);
    for (name, expected) in [
        ("x-token", &["a b,c=d%"][..]),
        ("x-twice", &["1", "2"]),
        ("authorization", &["Bearer t0ken"]),
        ("content-type", &["text/x"]),
        ("user-agent", &["mine/1"]),
        ("cookie", &["c"]),
        ("x-other", &["kept"]),
    ] {
        assert_eq!(all(&call, name), expected, "{name}");
    }
    assert_eq!(
        header(&message, "X-Token"),
        "forged",
        "the operator's headers are for the webhook only"
    );
    assert!(values(&message, "authorization").is_empty());
}

// ---- The relayed message -----------------------------------------------------------------

#[tokio::test]
async fn the_relayed_message_keeps_every_header_but_those_that_a_server_obeys() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let kept = [
        ("X-Case", "b"),
        ("X-Case", "a"),
        ("x-case", "lower"),
        ("Host", "kept"),
        ("Natsy", "kept"),
        ("X-Text", "größe 日本"),
        ("X-Empty", ""),
    ];
    let obeyed = [
        ("Nats-Msg-Id", "publisher's"),
        ("Nats-Rollup", "all"),
        ("Nats-Expected-Stream", "S"),
        ("Nats-Expected-Last-Sequence", "7"),
        ("Nats-TTL", "1s"),
        ("Nats-Schedule", "@at 2040-01-01T00:00:00Z"),
        ("NATS-rollup", "sub"),
    ];
    setup.publish_with("cms.cache.a", &[&kept[..], &obeyed].concat(), "x").await;
    let message = setup.relayed().await;
    setup.end().await;
    assert_eq!(values(&message, "X-Case"), ["b", "a"]);
    for (name, value) in &kept[2..] {
        assert_eq!(header(&message, name), *value);
    }
    assert_eq!(header(&message, "Nats-Msg-Id"), endpoint.calls()[0].header("webhook-id"));
    assert_eq!(message.headers.as_ref().unwrap().len(), 7, "{message:?}");
}

#[tokio::test]
async fn a_request_is_neither_answered_nor_forwarded_as_one() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let mut answers = setup.client.subscribe("answers.>").await.unwrap();
    setup.client.publish_with_reply("cms.cache.a", "answers.here", "x".into()).await.unwrap();
    let message = setup.relayed().await;
    assert_eq!((message.reply.as_ref(), message.payload.as_ref()), (None, &b"x"[..]));
    setup.end().await;
    setup.client.publish("answers.end", "".into()).await.unwrap();
    assert_eq!(within("the end", answers.next()).await.unwrap().subject.as_str(), "answers.end");
    assert!(!format!("{:?}", endpoint.calls()).contains("answers.here"));
}

// ---- Payloads ----------------------------------------------------------------------------

#[tokio::test]
async fn payloads_of_any_bytes_and_any_size_arrive_unchanged() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(small_server(), &endpoint.url(), &[]).await;
    let every_byte = (0..=255).collect::<Vec<u8>>();
    let mut random = fastrand::Rng::with_seed(7);
    let mut full = vec![0; MAX_PAYLOAD];
    random.fill(&mut full);
    let payloads = [
        vec![],
        every_byte,
        b"\r\n".to_vec(),
        b"PUB relayed.cache.x 1\r\nx\r\n".to_vec(),
        vec![0xff; 32 * 1024 + 1],
        full.clone(),
        vec![b'x'],
    ];
    for payload in &payloads {
        setup.publish("cms.cache.a", payload.clone()).await;
    }
    for payload in &payloads {
        let message = setup.relayed().await;
        assert!(
            message.payload == *payload,
            "relayed {} bytes of {}",
            message.payload.len(),
            payload.len()
        );
        // There is no room for an id beside a payload that fills the message.
        assert_eq!(values(&message, "Nats-Msg-Id").len(), usize::from(payload.len() < MAX_PAYLOAD));
    }
    setup.end().await;
    assert!(endpoint.calls().iter().map(|call| &call.body).eq(&payloads));
    for call in endpoint.calls() {
        // Some servers answer 411 to a POST without a length, also to an empty one.
        assert_eq!(all(&call, "content-length"), [call.body.len().to_string()]);
    }
}

#[tokio::test]
async fn a_message_that_fills_max_payload_with_its_headers_is_relayed_and_one_that_would_exceed_it_is_refused_before_the_call()
 {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(small_server(), &endpoint.url(), &[]).await;
    // `X:1` is legal for a publisher; a client library writes it with a space.
    for (line, room) in [("X: 1", 0), ("X:1", 0)] {
        let head = "NATS/1.0\r\n\r\n\r\n".len() + line.len();
        setup
            .publish_by_hand(&hpub("cms.cache.a", &[line], &vec![b'x'; MAX_PAYLOAD - head - room]))
            .await;
    }
    let message = setup.relayed().await;
    assert_eq!(message.payload.len(), MAX_PAYLOAD - 18);
    assert_eq!((header(&message, "X"), values(&message, "Nats-Msg-Id").len()), ("1", 0));

    let message = setup.failed().await;
    assert_eq!(
        (message.subject.as_str(), header(&message, "Relay-Reason")),
        ("failed.cache.a", "too_large")
    );
    assert_eq!(
        (header(&message, "X"), header(&message, "Relay-Payload-Omitted")),
        ("1", &*(MAX_PAYLOAD - 17).to_string())
    );
    assert!(message.payload.is_empty());
    assert!(header(&message, "Relay-Error").contains(&MAX_PAYLOAD.to_string()), "{message:?}");
    assert!(values(&message, "Relay-Destination").is_empty(), "no destination was called");
    setup.end().await;
    assert_eq!(endpoint.count(), 1);
    assert_eq!(setup.relay.lines("\"reason\":\"too_large\"").len(), 1);
}

#[tokio::test]
async fn a_failed_message_too_large_to_be_published_with_the_reasons_is_published_without_payload()
{
    let endpoint = Endpoint::start(|_| Reply::status(400)).await;
    let mut setup = Setup::on(small_server(), &endpoint.url(), &[]).await;
    // Payload alone at the limit, and headers that leave no room for more.
    setup.publish("cms.cache.a", vec![b'x'; MAX_PAYLOAD]).await;
    let long = "x".repeat(MAX_PAYLOAD - 40);
    setup.publish_with("cms.cache.b", &[("X-Long", &long)], "x").await;
    let failed = setup.failed_by_subject(2).await;
    for (message, subject) in failed.iter().zip(["failed.cache.a", "failed.cache.b"]) {
        assert_eq!((message.subject.as_str(), header(message, "Relay-Status")), (subject, "400"));
        assert!(message.payload.is_empty());
    }
    assert_eq!(header(&failed[0], "Relay-Payload-Omitted"), MAX_PAYLOAD.to_string());
    assert_eq!(header(&failed[1], "Relay-Payload-Omitted"), "1");
    setup.end().await;
}

// ---- Subjects ----------------------------------------------------------------------------

#[tokio::test]
async fn any_subject_that_the_server_takes_is_relayed() {
    const TAILS: [&str; 16] = [
        "größe.日本.🦀",
        "$SYS.$JS",
        "a\"quoted\"'b'",
        "back\\slash",
        "{curly}.[square].(round)",
        "a/b?c=d&e#f%41%0d",
        "cms.cache.again",
        "relayed.cache.again",
        "a:b@c;d,e",
        "a.*.b",
        "*",
        "a.>",
        ">",
        ">.a",
        "a*b>c",
        "control\u{1}\u{7f}",
    ];
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    let commands: Vec<u8> = TAILS
        .iter()
        .flat_map(|tail| format!("PUB cms.cache.{tail} 1\r\nx\r\n").into_bytes())
        .collect();
    setup.publish_by_hand(&commands).await;
    let mut expected = TAILS.map(|tail| format!("relayed.cache.{tail}"));
    expected.sort();
    let relayed = setup.relayed_by_subject(TAILS.len()).await;
    assert_eq!(
        relayed.iter().map(|message| message.subject.as_str()).collect::<Vec<_>>(),
        expected
    );
    setup.end().await;
    let mut subjects: Vec<_> =
        endpoint.calls().iter().map(|call| call.subject().to_owned()).collect();
    let mut expected = TAILS
        .map(|tail| format!("cms.cache.{}", tail.replace('\u{1}', "%01").replace('\u{7f}', "%7F")));
    subjects.sort();
    expected.sort();
    assert_eq!(subjects, expected);
}

#[tokio::test]
async fn a_message_that_the_nats_client_cannot_read_is_a_gap_that_the_relay_survives() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    // What the server lets through and async-nats does not: it ends the connection.
    let poison = [
        hpub("cms.cache.a\u{a0}b", &["X: white space beyond ASCII in the subject"], b"x"),
        hpub("cms.cache.a", &["no colon"], b"x"),
    ];
    for (gaps, poison) in poison.iter().enumerate() {
        setup.publish_by_hand(poison).await;
        setup.relay.logged_times("reconnected to NATS", gaps + 1).await;
        relays_again(&mut setup).await;
    }
    assert!(setup.relay.stop().await.success());
}

#[tokio::test]
async fn a_message_over_which_the_nats_client_panics_does_not_end_the_relay() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[]).await;
    // async-nats 0.51 asserts where it should return an error.
    setup.publish_by_hand(&hpub("cms.cache.a", &["X: carriage\rreturn"], b"x")).await;
    relays_again(&mut setup).await;
    assert!(setup.relay.stop().await.success());
    // The panic is a line of the log, without the client's own text.
    assert_eq!(setup.relay.lines("(panic)").len(), 1);
    assert!(setup.relay.log().iter().all(|line| line.starts_with('{')), "{:#?}", setup.relay.log());
}

/// Publishes until something is relayed: what is published before the relay has subscribed again is lost.
async fn relays_again(setup: &mut Setup) {
    let start = Instant::now();
    loop {
        setup.publish("cms.cache.next", "").await;
        if tokio::time::timeout(Duration::from_millis(100), setup.relayed.next()).await.is_ok() {
            return;
        }
        assert!(setup.relay.is_running(), "the relay has ended");
        assert!(start.elapsed() < LIMIT, "nothing is relayed any more");
    }
}

#[tokio::test]
async fn a_subject_too_long_to_be_republished_is_refused_before_the_call() {
    let endpoint = Endpoint::ok().await;
    let prefix = "relayed.".repeat(20) + "cache";
    let mut setup =
        Setup::start(&endpoint.url(), &[("NATS_RELAYED_SUBJECT_PREFIX", &prefix)]).await;
    let longest = "x".repeat(4000 - prefix.len() - 1);
    for tail in [&longest, &format!("{longest}x")] {
        // As after an earlier failure, when somebody publishes the message again.
        setup
            .publish_with(
                &format!("cms.cache.{tail}"),
                &[("Relay-Destination", "earlier"), ("Relay-Status", "503")],
                "x",
            )
            .await;
    }
    assert_eq!(setup.relayed().await.subject.as_str(), format!("{prefix}.{longest}"));
    let message = setup.failed().await;
    assert_eq!(
        (message.subject.as_str(), header(&message, "Relay-Reason")),
        (&*format!("failed.cache.{longest}x"), "too_large")
    );
    assert!(header(&message, "Relay-Error").contains("4001 bytes"), "{message:?}");
    assert!(
        values(&message, "Relay-Destination").is_empty()
            && values(&message, "Relay-Status").is_empty(),
        "{message:?}"
    );
    setup.end().await;
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn a_subject_too_long_for_the_failed_subject_is_cut_and_costs_no_other_message() {
    let endpoint = Endpoint::start(|call| {
        Reply::status(if call.subject().ends_with('x') { 400 } else { 200 })
    })
    .await;
    let prefix = "failed.".repeat(20) + "cache";
    let mut setup = Setup::start(&endpoint.url(), &[("NATS_FAILED_SUBJECT_PREFIX", &prefix)]).await;
    let subject = format!("cms.cache.{}", "x".repeat(3970));
    setup.publish(&subject, "kept").await;
    let message = setup.failed().await;
    assert!(message.subject.starts_with(&format!("{prefix}.xxx")));
    assert_eq!(
        (header(&message, "Relay-Subject"), message.payload.as_ref()),
        (&*subject, &b"kept"[..])
    );
    setup.publish("cms.cache.next", "").await;
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.cache.next");
    setup.end().await;
    assert!(setup.relay.lines("lost the connection").is_empty());
}
