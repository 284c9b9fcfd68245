//! No secret is ever printed: every secret is set, every failure provoked, at every level of the
//! log, and nothing that the relay writes or publishes has any of them in any form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, Message, Subscriber};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use nkeys::KeyPair;
use serde_json::json;
use std::time::Duration;
use support::authority::{Authority, TlsListener};
use support::component::{BODY, Component, Folder, SAY_OUT, TRAP, on, quoted, unchanged};
use support::endpoint::{Endpoint, Reply, raw, refusing, request};
use support::nats::NatsServer;
use support::operator::Operator;
use support::relay::{Relay, command, finish};
use support::setup::values;
use support::{LIMIT, eventually, signal, subscribe, within};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// Is in every secret that is a text of the operator's choice.
const MARK: &str = "hunter2-Hunter3-hunter4";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace,async_nats=trace"];
const FORMATS: [&str; 3] = ["pretty", "compact", "json"];

type Variables<'a> = Vec<(&'a str, &'a str)>;

/// The forms in which a text could be shown.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let hex = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    // In the middle of something longer, its first and last characters depend on what is around it.
    let encoded = ["", "x", "xx"].map(|before| {
        let text = BASE64.encode(format!("{before}{secret}"));
        text[(before.len() * 8).div_ceil(6)..text.len() - 4].to_owned()
    });
    [
        vec![secret.to_owned(), secret.to_uppercase(), secret.to_lowercase(), bytes, hex],
        encoded.to_vec(),
    ]
    .concat()
}

/// That neither [`MARK`] nor any of `more` is in `text`.
fn assert_hidden(what: &str, text: &str, more: &[&str]) {
    for form in forms(MARK).into_iter().chain(more.iter().flat_map(|secret| forms(secret))) {
        if let Some(line) = text.lines().find(|line| line.contains(&form)) {
            panic!("{what}: {form} is shown: {line}");
        }
    }
}

/// The lines of a PEM file that are its content.
fn content(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.starts_with("-----")).map(ToOwned::to_owned).collect()
}

/// Says its secret, and fails with it.
fn telling() -> Component {
    let secret = format!("(call $put_config {})", quoted("SECRET"));
    let fail = on("fail", &format!("{secret} (call $err (i32.const 1) (call $out))"));
    let reject = on("reject", &format!("{secret} (call $err (i32.const 0) (call $out))"));
    Component::with(
        BODY,
        &format!("{secret} {SAY_OUT} {fail} {reject} {} {}", on("trap", TRAP), unchanged(BODY)),
    )
}

/// What is published on the failed subject about a message. The first one is published until the relay has it: at some
/// levels nothing says that it is ready.
async fn failure(
    client: &Client,
    failed: &mut Subscriber,
    payload: &'static str,
    is_first: bool,
) -> Message {
    let subject = format!("cms.cache.{payload}");
    let again = if is_first { Duration::from_millis(200) } else { LIMIT };
    let published = async {
        loop {
            client.publish(subject.clone(), payload.into()).await.unwrap();
            while let Ok(message) = tokio::time::timeout(again, failed.next()).await {
                let message = message.unwrap();
                if message.payload == payload {
                    return message;
                }
            }
        }
    };
    within(&format!("a failure of {payload}"), published).await
}

/// A server that answers a request with what `answer` makes of its text, in one line.
async fn echo(answer: fn(&str) -> String) -> u16 {
    let converse = move |_, mut stream| {
        let answered = async move {
            let text = request(&mut stream).await.unwrap_or_default().replace(['\r', '\n'], " ");
            let _ = stream.write_all(answer(&text).as_bytes()).await;
        };
        answered.boxed()
    };
    raw(converse).await
}

/// Destinations with user info and a secret query, each of which fails in a way of its own and
/// tells in its answer what it was told.
struct Destinations {
    urls: String,
    /// What is said of each.
    errors: Vec<&'static str>,
    refuses: Endpoint,
    /// The port of a proxy for those that are not on this machine, which does not let anybody through.
    proxy: u16,
    authority: Authority,
    /// The path of a client certificate that nobody trusts, and of its key.
    identity: (String, String),
    _kept: (Vec<Endpoint>, tokio::net::TcpSocket, Authority),
}

impl Destinations {
    async fn start() -> Self {
        let (authority, strange) = (Authority::new(), Authority::new());
        let here = ["127.0.0.1"];
        let refuses = Endpoint::start(|call| {
            let mut reply = Reply::status(500).header("x-echo", call.path.clone());
            reply.body = format!("{} {:?}", call.path, call.headers).into_bytes();
            reply
        })
        .await;
        let redirects = Endpoint::start(|call| {
            Reply::status(308).header("location", format!("http://{MARK}@h{}", call.path))
        })
        .await;
        let untrusted =
            Endpoint::tls(TlsListener::bind(strange.server(&here, &[])).await, |_| Reply::ok());
        let distrusts = Endpoint::tls(
            TlsListener::bind(authority.server_for_clients(&here, &[])).await,
            |_| Reply::ok(),
        );
        let garbage = echo(|text| format!("{text} {text}\r\n\r\n")).await;
        let phrase = echo(|text| format!("HTTP/1.1 400 {text}\r\ncontent-length: 0\r\n\r\n")).await;
        let proxy = echo(|text| format!("HTTP/1.1 407 {text}\r\ncontent-length: 0\r\n\r\n")).await;
        let silent = raw(|_, mut stream| {
            async move { while request(&mut stream).await.is_some() {} }.boxed()
        })
        .await;
        let (bound, refused) = refusing();
        let all = [
            ("http", refused, "nothing listens on"),
            ("http", refuses.port, "answered 500"),
            ("http", redirects.port, "answered 308"),
            ("https", untrusted.port, "is of an authority that is not trusted"),
            ("https", refuses.port, "does not speak TLS"),
            ("https", distrusts.port, "does not accept the client certificate"),
            ("http", garbage, "no usable answer from"),
            ("http", phrase, "answered 400"),
            ("http", silent, "no answer within"),
        ];
        let all = all
            .map(|(scheme, port, error)| (scheme, format!("127.0.0.1:{port}"), error))
            .into_iter()
            .chain([
                ("http", "frontend.invalid".to_owned(), "cannot find the host"),
                ("https", "frontend.example".to_owned(), "through the proxy"),
            ]);
        let all = all.map(|(scheme, host, error)| {
            (format!("{scheme}://{MARK}:{MARK}@{host}/hook?secret={MARK}&{MARK}"), error)
        });
        let (urls, errors): (Vec<_>, _) = all.unzip();
        let identity = strange.client("relay");
        let kept = (vec![redirects, untrusted, distrusts], bound, strange);
        Self { urls: urls.join(" "), errors, refuses, proxy, authority, identity, _kept: kept }
    }
}

/// A relay that fails in every way, with its log at `level`: all that it shows.
async fn fail_in_every_way(level: &str, format: &str, stream: bool, to: &Destinations) -> String {
    let what = format!("{level} {format} {}", if stream { "stream" } else { "core" });
    let config = |password: &str| {
        format!(
            "jetstream: enabled\nno_auth_user: test\n
             authorization {{ users: [{{ user: \"{MARK}\", password: \"{password}\" }}, {{ user: test, password: test }}] }}"
        )
    };
    let nats = NatsServer::with_config(&config(MARK));
    let client = nats.client().await;
    let mut failed = subscribe(&client, "failed.cache.>").await;
    let folder = Folder::with(&[("telling", &telling())]);
    let key = folder.write("key", format!("-----BEGIN-----\n{MARK}\n-----END-----\n").as_bytes());
    let webhook_secrets =
        ["old", "new"].map(|key| format!("whsec_{}", BASE64.encode(format!("{key} {MARK}"))));
    let proxy = format!("http://{MARK}:{MARK}@127.0.0.1:{}", to.proxy);
    let plugins = folder.all();
    let ca = to.authority.path();
    let mut variables = vec![
        ("RUST_LOG", level),
        ("LOG_FORMAT", format),
        ("HTTP_LISTEN", "127.0.0.1:0"),
        ("NATS_USER", MARK),
        ("NATS_PASS", MARK),
        ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache"),
        ("WEBHOOK_SECRET", webhook_secrets[0].as_str()),
        ("WEBHOOK_CA", &ca),
        ("WEBHOOK_CERT", &to.identity.0),
        ("WEBHOOK_KEY", &to.identity.1),
        ("WEBHOOK_TIMEOUT", "10s"),
        ("WEBHOOK_MAX_ATTEMPTS", "2"),
        ("HTTPS_PROXY", &proxy),
        ("PLUGINS", &plugins),
        ("PLUGIN_CACHE", "off"),
        ("PLUGIN_TELLING_SECRET", MARK),
        ("PLUGIN_TELLING_KEY_FILE", key.to_str().unwrap()),
    ];
    let both = webhook_secrets.join(" ");
    let headers = format!("authorization=Bearer%20{MARK},x-key={MARK}");
    // User info of a URL is a login too, so only one of the two.
    let urls =
        if stream { to.urls.replace(&format!("{MARK}:{MARK}@"), "") } else { to.urls.clone() };
    variables.extend(if stream {
        vec![
            ("NATS_STREAM", "CMS"),
            ("NATS_STREAM_CREATE", "true"),
            ("WEBHOOK_SECRET", &both),
            ("WEBHOOK_HEADERS", &headers),
        ]
    } else {
        vec![("WEBHOOK_HEADERS", headers.split_once(',').unwrap().1)]
    });
    let mut relay = Relay::spawn(&nats.url(), &urls, &variables);
    let mut shown = Vec::new();
    for payload in ["fail", "trap", "calls"] {
        let message = failure(&client, &mut failed, payload, shown.is_empty()).await;
        let errors = values(&message, "Relay-Destination-Error");
        if payload == "calls" {
            assert_eq!(errors.len(), to.errors.len(), "{what}: {errors:#?}");
            for (error, expected) in errors.iter().zip(&to.errors) {
                assert!(error.contains(expected), "{what}: {error}, not {expected}");
            }
        }
        shown.push(format!("{message:?}"));
    }
    client.publish("cms.cache.reject", "reject".into()).await.unwrap();
    if format == "json" && !relay.lines("serving /healthz").is_empty() {
        for path in ["/metrics", "/healthz", "/readyz"] {
            shown.push(relay.get(path).await.1);
        }
    }
    signal(relay.pid(), "HUP");
    // The password is another one now: the connection is lost, and the login refused.
    nats.reload(&config("other"));
    eventually("a refused login", || nats.log().contains("authentication error")).await;
    relay.stop().await;
    let log = relay.log();
    assert_eq!(log.is_empty(), level == "off", "{what}: {log:#?}");
    assert!(
        level == "off" || log.iter().any(|line| line.contains("***")),
        "{what}: the plugin's secret could have been there"
    );
    [shown, log].concat().join("\n")
}

#[tokio::test]
async fn no_failure_shows_a_secret_at_any_level() {
    let to = Destinations::start().await;
    let key = content(&to.identity.1);
    let key: Vec<_> = key.iter().map(String::as_str).collect();
    let all = LEVELS.iter().enumerate().flat_map(|(number, level)| {
        [false, true].map(|stream| {
            let (to, key) = (&to, &key);
            async move {
                let shown = fail_in_every_way(
                    level,
                    FORMATS[(number + usize::from(stream)) % 3],
                    stream,
                    to,
                )
                .await;
                assert_hidden(&format!("{level}, stream: {stream}"), &shown, key);
            }
        })
    });
    join_all(all).await;
    // They had the secrets, so they could have shown them.
    let calls = to.refuses.calls();
    let call = |wanted: &str| {
        calls.iter().any(|call| format!("{} {:?}", call.path, call.headers).contains(wanted))
    };
    for wanted in [
        &format!("secret={MARK}"),
        &format!("Bearer {MARK}"),
        &BASE64.encode(format!("{MARK}:{MARK}")),
        "webhook-signature",
    ] {
        assert!(call(wanted), "{wanted}: {calls:#?}");
    }
}

#[tokio::test]
async fn no_refused_login_shows_a_secret_at_any_level() {
    let (operator, other) = (Operator::new(), Operator::new());
    let expired = operator.user_with(json!({"exp": 1_700_000_000}), json!({}));
    let stranger = other.user();
    let nkey = KeyPair::new_user().seed().unwrap();
    let (authority, strange) = (Authority::new(), Authority::new());
    let issued = authority.issue("server", &["127.0.0.1"]);
    let relay = strange.issue("relay", &[]);
    let passwords = NatsServer::with_config("authorization { user: a, password: b }");
    let tokens = NatsServer::with_config("authorization { token: a }");
    let jwts = operator.server();
    let tls = NatsServer::with_config(
        &issued.tls(&format!("ca_file: \"{}\", verify: true", authority.path())),
    );
    let hang_up =
        raw(|_, mut stream| async move { drop(stream.write_all(b"-ERR\r\n").await) }.boxed()).await;
    let (folder, files) = (TempDir::new().unwrap(), Folder::new());
    let write =
        |name: &str, text: &str| files.write(name, text.as_bytes()).to_str().unwrap().to_owned();
    let stranger_file = write("stranger.creds", &stranger.credentials());
    let context = write(
        "context.json",
        &json!({"url": passwords.url(), "user": MARK, "password": MARK}).to_string(),
    );
    let mistaken = write(
        "mistaken.json",
        &json!({"url": MARK, "user": [MARK], "tls_first": MARK, "nsc": MARK}).to_string(),
    );
    let broken = write("broken.json", &format!("{{\"password\": \"{MARK}\" \"{MARK}"));
    let with_password = |url: String| url.replace("//", &format!("//{MARK}:{MARK}@"));
    let ca = authority.path();
    let cases: Vec<(String, Variables<'_>, &str)> = vec![
        (passwords.url(), vec![("NATS_USER", MARK), ("NATS_PASS", MARK)], "refused the login"),
        (with_password(passwords.url()), vec![], "refused the login"),
        (tokens.url(), vec![("NATS_TOKEN", MARK)], "refused the login"),
        (tokens.url().replace("//", &format!("//{MARK}@")), vec![], "refused the login"),
        (passwords.url(), vec![("NATS_NKEY", &nkey)], "refused the login"),
        (jwts.url(), vec![("NATS_CREDS", &stranger_file)], "refused the login"),
        (jwts.url(), vec![("NATS_JWT", &expired.jwt), ("NATS_SEED", &expired.seed)], "expired at"),
        (String::new(), vec![("NATS_CONTEXT", &context)], "refused the login"),
        (String::new(), vec![("NATS_CONTEXT", &mistaken)], "mistake"),
        (String::new(), vec![("NATS_CONTEXT", &broken)], "mistake"),
        (
            tls.url(),
            vec![
                ("NATS_TOKEN", MARK),
                ("NATS_CA", &ca),
                ("NATS_CERT", &relay.certificate),
                ("NATS_KEY", &relay.key),
            ],
            "certificate",
        ),
        (with_password(passwords.url()).replace("nats:", "tls:"), vec![], "does not speak TLS"),
        (with_password(format!("nats://127.0.0.1:{hang_up}")), vec![], "127.0.0.1"),
        (with_password("nats://127.0.0.1:1".into()), vec![], "127.0.0.1:1"),
        (with_password("ws://nats.invalid:80".into()), vec![], "nats.invalid"),
    ];
    let key = content(&relay.key);
    let mut more = vec![stranger.jwt.as_str(), &stranger.seed, &expired.jwt, &expired.seed, &nkey];
    more.extend(key.iter().map(String::as_str));
    for level in LEVELS {
        for (host, variables, expected) in &cases {
            let mut all = vec![
                ("WEBHOOK_DESTINATION", "http://127.0.0.1:9/"),
                ("NATS_SUBJECT_PREFIX", "cms.cache"),
                ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
                ("RUST_LOG", level),
            ];
            all.extend((!host.is_empty()).then_some(("NATS_HOST", host.as_str())));
            all.extend(variables);
            let mut program = command(&folder, &all);
            program.arg("check");
            let (status, stdout, stderr) = finish(program);
            assert!(
                !status.success() && stderr.contains(expected),
                "{level}: {expected}\n{stdout}{stderr}"
            );
            assert_hidden(&format!("{level}: {expected}"), &(stdout + &stderr), &more);
            // What waits for its server does not end by itself.
            if !["127.0.0.1", "127.0.0.1:1", "nats.invalid"].contains(expected) {
                let (status, stdout, stderr) = finish(command(&folder, &all));
                assert!(!status.success(), "{level}: {expected}\n{stdout}{stderr}");
                assert_hidden(&format!("{level}: {expected}"), &(stdout + &stderr), &more);
            }
        }
    }
}
