//! What the variables mean, read as tables; and that the documented defaults are the real ones.

use crate::config::{Config, VARIABLES};
use crate::headers;
use crate::nats::login::Login;
use crate::nats::tls::Tls;
use crate::secret::Secret;
use reqwest::header::{HeaderMap, HeaderValue};
use std::collections::BTreeSet;
use std::time::Duration;

const SECRET: &str = "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==";
const REQUIRED: [(&str, &str); 4] = [
    ("WEBHOOK_DESTINATION", "http://localhost:3000/hook"),
    ("NATS_HOST", "nats://localhost"),
    ("NATS_SUBJECT_PREFIX", "cms.cache"),
    ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
];

/// What is required, with `more` over it.
fn read(more: &[(&str, &str)]) -> Result<Config, String> {
    let environment = REQUIRED.iter().chain(more).copied().collect();
    Config::from_environment(&environment).map_err(|mistakes| mistakes.to_string())
}

/// What `get` finds in the configuration that has `value` for `name`; `None` where it is refused.
fn value<T>(name: &str, value: &str, get: impl Fn(Config) -> T) -> Option<T> {
    match read(&[(name, value)]) {
        Ok(config) => Some(get(config)),
        Err(mistakes) => {
            assert!(mistakes.contains(&format!("{name}: expected ")), "{mistakes}");
            None
        }
    }
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let config = read(&[]).unwrap();
    assert_eq!(config.nats.login, Login::Anonymous);
    assert_eq!(
        (config.nats.tls, config.nats.inbox_prefix.as_str(), config.nats.context),
        (Tls::default(), "_INBOX", None)
    );
    assert_eq!((config.relay.failed, config.http_listen), (None, None));
    assert_eq!((config.source.limits.messages, config.source.limits.bytes), (65_536, 64 << 20));
    assert_eq!(
        (config.webhook.timeout, config.webhook.connect_timeout),
        (Duration::from_secs(30), Duration::from_secs(5))
    );
    assert_eq!(
        (
            config.webhook.max_attempts,
            config.webhook.retry_status.len(),
            config.webhook.headers.len()
        ),
        (Some(10), 0, 0)
    );
    assert_eq!((config.relay.max_in_flight, config.relay.grace), (128, Duration::from_secs(25)));
    assert_eq!((config.log.format, config.log.filter.as_str()), (None, "info"));
}

#[test]
fn durations_have_units() {
    for (text, expected) in [
        ("250ms", Some(250)),
        ("30s", Some(30_000)),
        ("2min", Some(120_000)),
        ("1h 30m", Some(5_400_000)),
        (" 5s ", Some(5_000)),
        ("1ms", Some(1)),
        ("0s", None),
        ("10us", None),
        ("30", None),
        ("-1s", None),
        ("1.5.5s", None),
        ("2years", None),
        ("99999999999999999999s", None),
        ("soon", None),
    ] {
        let expected = expected.map(Duration::from_millis);
        assert_eq!(
            value("WEBHOOK_TIMEOUT", text, |config| config.webhook.timeout),
            expected,
            "{text}"
        );
        assert_eq!(
            value("WEBHOOK_CONNECT_TIMEOUT", text, |config| config.webhook.connect_timeout),
            expected,
            "{text}"
        );
    }
    assert_eq!(
        value("SHUTDOWN_GRACE", "0s", |config| config.relay.grace),
        Some(Duration::ZERO),
        "may be none at all"
    );
    assert_eq!(value("SHUTDOWN_GRACE", "10", |config| config.relay.grace), None);
}

#[test]
fn sizes_have_units() {
    for (text, expected) in [
        ("64MiB", Some(64 << 20)),
        ("512 KiB", Some(512 << 10)),
        ("1MB", Some(1_000_000)),
        ("1000", Some(1_000)),
        ("0", None),
        ("-1MiB", None),
        ("64 pages", None),
        ("MiB", None),
    ] {
        assert_eq!(
            value("NATS_PENDING_BYTES", text, |config| config.source.limits.bytes),
            expected,
            "{text}"
        );
    }
}

#[test]
fn numbers_have_bounds() {
    for (text, expected) in [
        ("1", Some(1)),
        ("65536", Some(65_536)),
        ("65537", None),
        ("0", None),
        ("1.5", None),
        ("1e3", None),
        ("x", None),
    ] {
        assert_eq!(
            value("MAX_IN_FLIGHT", text, |config| config.relay.max_in_flight),
            expected,
            "{text}"
        );
    }
    for (text, expected) in [
        ("1", Some(Some(1))),
        ("1000000", Some(Some(1_000_000))),
        ("unlimited", Some(None)),
        ("1000001", None),
        ("0", None),
        ("4294967296", None),
    ] {
        assert_eq!(
            value("WEBHOOK_MAX_ATTEMPTS", text, |config| config.webhook.max_attempts),
            expected,
            "{text}"
        );
    }
    for (text, expected) in
        [("1", Some(1)), ("10000000", Some(10_000_000)), ("10000001", None), ("0", None)]
    {
        assert_eq!(
            value("NATS_PENDING_MESSAGES", text, |config| config.source.limits.messages),
            expected,
            "{text}"
        );
    }
}

#[test]
fn statuses_to_retry_are_none_that_mean_success() {
    let statuses = |config: Config| {
        config.webhook.retry_status.iter().map(|status| status.as_u16()).collect::<Vec<_>>()
    };
    for (text, expected) in [
        ("404", Some(vec![404])),
        ("404,409, 410", Some(vec![404, 409, 410])),
        ("301", Some(vec![301])),
        ("200", None),
        ("404,x", None),
        ("600", None),
        ("4xx", None),
    ] {
        assert_eq!(value("WEBHOOK_RETRY_STATUS", text, statuses), expected, "{text}");
    }
}

#[test]
fn destinations_are_one_or_several() {
    let count = |config: Config| config.webhook.destinations.len();
    for (text, expected) in [
        ("http://a/", Some(1)),
        ("http://a/ https://b/x?y=z", Some(2)),
        ("http://a/\n\thttp://b/", Some(2)),
        ("http://a/ ftp://b/", None),
        ("a/hook", None),
    ] {
        assert_eq!(value("WEBHOOK_DESTINATION", text, count), expected, "{text}");
    }
}

#[test]
fn servers_are_one_or_several_without_user_info() {
    let servers = |config: Config| {
        config
            .nats
            .servers
            .iter()
            .map(|server| server.clone().into_inner().to_string())
            .collect::<Vec<_>>()
    };
    for (text, expected) in [
        ("nats://h", Some(vec!["nats://h"])),
        ("h:4223", Some(vec!["nats://h:4223"])),
        (
            "nats://a, tls://u:p@b:1,ws://c/path,wss://t@d",
            Some(vec!["nats://a", "tls://b:1", "ws://c/path", "wss://d/"]),
        ),
        ("nats://[::1]:4222", Some(vec!["nats://[::1]:4222"])),
        ("http://h", None),
        ("nats://a,ftp://b", None),
        (",", None),
        ("nats://", None),
    ] {
        let found = value("NATS_HOST", text, servers);
        let expected = expected.map(|servers| servers.into_iter().map(str::to_owned).collect());
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn the_login_is_that_of_the_variables_or_else_of_the_url() {
    let password = |user: &str, password: &str| Login::Password {
        user: user.to_owned(),
        password: Secret::new(password),
    };
    for (url, variables, expected) in [
        ("nats://h", &[][..], Login::Anonymous),
        ("nats://h", &[("NATS_USER", "u"), ("NATS_PASS", "p")], password("u", "p")),
        ("nats://h", &[("NATS_USER", "u"), ("NATS_PASSWORD", "p")], password("u", "p")),
        ("nats://h", &[("NATS_USER", "u")], password("u", "")),
        ("nats://a:b@h", &[("NATS_USER", "u"), ("NATS_PASS", "p")], password("u", "p")),
        ("nats://a:b%40%2f@h", &[], password("a", "b@/")),
        ("nats://t%20t@h", &[], Login::Token(Secret::new("t t"))),
        ("nats://g,nats://a:b@h", &[], password("a", "b")),
    ] {
        let config = read(&[&[("NATS_HOST", url)], variables].concat()).unwrap();
        assert_eq!(config.nats.login, expected, "{url} {variables:?}");
    }
    let mistakes = read(&[("NATS_PASS", "p")]).unwrap_err();
    assert!(mistakes.contains("NATS_PASS: set without NATS_USER"), "{mistakes}");
}

/// Every secret with a value, except for the other ways to log in.
const SECRETS: [(&str, &str); 10] = [
    ("WEBHOOK_DESTINATION", "http://filed/"),
    ("NATS_HOST", "nats://filed"),
    ("NATS_USER", "filed"),
    ("NATS_PASS", "filed"),
    ("WEBHOOK_SECRET", SECRET),
    ("WEBHOOK_HEADERS", "x=filed"),
    ("WEBHOOK_RESYNC_DESTINATION", "http://filed/resync"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://filed"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x=filed"),
];

#[test]
fn the_first_name_that_is_set_decides_and_files_stand_for_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (newline, plain) = (file("newline", "filed\r\n"), file("plain", "filed"));
    for (variables, expected) in [
        (&[("NATS_PASS", "a"), ("NATS_PASSWORD", "b")][..], "a"),
        (&[("NATS_PASS", ""), ("NATS_PASSWORD", "b")], "b"),
        (&[("NATS_PASS_FILE", &newline)], "filed"),
        (&[("NATS_PASSWORD_FILE", &plain)], "filed"),
        (&[("NATS_PASS_FILE", &plain), ("NATS_PASSWORD", "b")], "filed"),
        (&[("NATS_PASS_FILE", ""), ("NATS_PASSWORD", "b")], "b"),
    ] {
        let config = read(&[&[("NATS_USER", "u")], variables].concat()).unwrap();
        let expected = Login::Password { user: "u".to_owned(), password: Secret::new(expected) };
        assert_eq!(config.nats.login, expected, "{variables:?}");
    }
    // Every secret can come from a file.
    let secrets: BTreeSet<_> =
        VARIABLES.iter().filter(|variable| variable.secret).map(|variable| variable.name).collect();
    // One way to log in at a time: the others are tried with real servers.
    let others = ["NATS_TOKEN", "NATS_CREDS", "NATS_NKEY", "NATS_JWT", "NATS_SEED"];
    assert_eq!(secrets, SECRETS.iter().map(|(name, _)| *name).chain(others).collect());
    let paths =
        SECRETS.map(|(name, text)| (format!("{name}_FILE"), file(name, &format!("{text}\n"))));
    let environment = REQUIRED
        .iter()
        .skip(2)
        .chain([&("NATS_RESYNC_SUBJECT", "relayed.resync")])
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .chain(paths)
        .collect();
    let config =
        Config::from_environment(&environment).map_err(|mistakes| mistakes.to_string()).unwrap();
    assert_eq!(config.webhook.destinations[0].0.host(), "filed");
    assert_eq!(config.relay.resync.unwrap().destinations.unwrap()[0].0.host(), "filed");
    assert_eq!(config.nats.servers[0].host(), "filed");
    let traces = config.traces.unwrap();
    assert_eq!((traces.endpoint.host(), &*traces.headers["x"]), ("filed", "filed"));
    assert_eq!(
        config.nats.login,
        Login::Password { user: "filed".to_owned(), password: Secret::new("filed") }
    );
    assert_eq!(config.webhook.headers["x"], "filed");
    let call = HeaderMap::from_iter(
        [(headers::WEBHOOK_ID, "a"), (headers::WEBHOOK_TIMESTAMP, "1")]
            .map(|(name, value)| (name, HeaderValue::from_static(value))),
    );
    assert!(config.webhook.keys.sign(&call, b"").is_some());
}

#[test]
fn a_file_is_for_secrets_only() {
    let config = read(&[("MAX_IN_FLIGHT_FILE", "/no/such/file")]).unwrap();
    assert_eq!(config.relay.max_in_flight, 128);
}

#[test]
fn fixed_headers_are_percent_decoded_and_sensitive() {
    let config = read(&[(
        "WEBHOOK_HEADERS",
        "authorization=Bearer%20a%2Cb, x-two=1,X-Two=2,,empty=, x-eq=a=b,x-utf8=%C3%B6",
    )])
    .unwrap();
    let headers = config.webhook.headers;
    assert_eq!(headers["authorization"], "Bearer a,b");
    assert_eq!(headers.get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(
        (headers["empty"].as_bytes(), headers["x-eq"].as_bytes(), headers["x-utf8"].as_bytes()),
        (&b""[..], &b"a=b"[..], "ö".as_bytes())
    );
    assert!(headers.values().all(HeaderValue::is_sensitive));
    for (text, expected) in [
        ("x", "entry 1"),
        ("x=1,no value", "entry 2"),
        ("a b=1", "entry 1"),
        ("x=%0a", "entry 1"),
        ("=1", "entry 1"),
        ("Host=h", "host is set by the relay itself"),
        ("content-length=1", "content-length is set by the relay itself"),
        ("webhook-id=1", "webhook-id is set by the relay itself"),
        ("Nats-Subject=1", "nats-subject is set by the relay itself"),
    ] {
        let mistakes = read(&[("WEBHOOK_HEADERS", text)]).unwrap_err();
        assert!(
            mistakes.contains("WEBHOOK_HEADERS: ") && mistakes.contains(expected),
            "{text}: {mistakes}"
        );
    }
}

#[test]
fn what_is_read_shows_no_secret_when_it_is_printed() {
    let config = read(&[
        ("WEBHOOK_DESTINATION", "http://u:hunter2@h/?s=hunter2"),
        ("NATS_HOST", "nats://u:hunter2@h"),
        ("WEBHOOK_HEADERS", "authorization=hunter2"),
        ("WEBHOOK_SECRET", SECRET),
        ("HTTP_PROXY", "http://u:hunter2@proxy"),
    ]);
    let shown = format!("{:?}", config.unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"), "{shown}");
}

#[test]
fn the_documented_default_means_what_leaving_the_variable_out_does() {
    let shown = |more: &[(&str, &str)]| format!("{:?}", read(more).unwrap());
    let without = shown(&[("NATS_STREAM", "CMS")]);
    for variable in VARIABLES {
        if let Some(default) = variable.default {
            let with = shown(&[("NATS_STREAM", "CMS"), (variable.name, default)]);
            assert_eq!(with, without, "{}={default}", variable.name);
        }
    }
}
