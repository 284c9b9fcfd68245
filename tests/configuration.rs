//! What the environment may say, what is said about it when it is wrong, and that the documents
//! say the same as the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use nats_webhook_relay::config::{self, VARIABLES, Variable};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitStatus;
use support::nats::NatsServer;
use support::relay::{Relay, command, finish};
use tempfile::TempDir;

/// Stands for every secret; no output may have it.
const SECRET: &str = "hunter2";

/// A configuration without mistakes, for a server that is not there.
const GOOD: [(&str, &str); 4] = [
    ("WEBHOOK_DESTINATION", "http://127.0.0.1:1/hook"),
    ("NATS_HOST", "nats://127.0.0.1:1"),
    ("NATS_SUBJECT_PREFIX", "cms.cache"),
    ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
];

/// [`GOOD`] with more variables, which win.
fn good<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&GOOD[..], more].concat()
}

/// Starts the relay in `folder`, where it must find mistakes, and returns one line for each.
fn mistakes_in(folder: &TempDir, variables: &[(&str, &str)]) -> Vec<String> {
    let (status, stdout, stderr) = finish(command(folder, variables));
    assert_eq!(status.code(), Some(64), "{stderr}");
    assert_eq!(stdout, "");
    assert!(!stderr.contains(SECRET), "a secret is shown:\n{stderr}");
    stderr.lines().filter_map(|line| line.strip_prefix("  - ")).map(str::to_owned).collect()
}

/// Runs `check` in `folder`: status, standard output, standard error.
fn check_in(folder: &TempDir, variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    let mut check = command(folder, variables);
    check.arg("check");
    finish(check)
}

fn check(variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    check_in(&TempDir::new().unwrap(), variables)
}

fn mistakes(variables: &[(&str, &str)]) -> Vec<String> {
    mistakes_in(&TempDir::new().unwrap(), variables)
}

/// The mistakes of [`GOOD`] with `more`.
fn mistakes_with(more: &[(&str, &str)]) -> Vec<String> {
    mistakes(&good(more))
}

/// That there is exactly one mistake for each entry, in any order: how it begins, what it has.
fn assert_exactly(found: &[String], expected: &[(&str, &str)]) {
    for (start, part) in expected {
        let lines: Vec<_> = found.iter().filter(|line| line.starts_with(start)).collect();
        assert!(lines.len() == 1 && lines[0].contains(part), "{start} {part}: {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn with_nothing_set_all_required_variables_are_named_at_once() {
    let folder = TempDir::new().unwrap();
    let (status, stdout, stderr) = finish(command(&folder, &[]));
    assert_eq!((status.code(), stdout.as_str()), (Some(64), ""));
    assert!(stderr.contains("4 mistakes") && stderr.contains("--help"), "{stderr}");
    assert_exactly(
        &mistakes_in(&folder, &[]),
        &[
            ("WEBHOOK_DESTINATION: required", "http:// or https://"),
            ("NATS_HOST: required", "nats://"),
            ("NATS_SUBJECT_PREFIX: required", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX: required", "cms.cache"),
        ],
    );
}

#[test]
fn every_bad_value_is_reported_in_one_go_with_its_name_and_what_is_expected() {
    let bad = [
        ("WEBHOOK_DESTINATION", "ftp://hunter2@h/?x=hunter2", "http:// or https:// URLs"),
        ("NATS_HOST", "http://relay:hunter2@h", "nats:// tls:// ws:// wss://"),
        ("NATS_PASS", "hunter2", "NATS_USER"),
        ("NATS_CREDS", "/none/hunter2.creds", "cannot read the file that it names: No such file"),
        ("NATS_NKEY", "/none/hunter2.nk", "cannot read the file that it names: No such file"),
        ("NATS_JWT", "hunter2", "no JWT"),
        ("NATS_SEED", "hunter2", "no valid seed"),
        ("NATS_CA", "/none/ca.pem", "cannot read /none/ca.pem: No such file"),
        ("NATS_CERT", "/none/cert.pem", "cannot read /none/cert.pem: No such file"),
        ("NATS_KEY", "/none/hunter2.pem", "cannot read the file that it names: No such file"),
        ("NATS_TLS_FIRST", "yes", "true or false, not \"yes\""),
        ("NATS_CONTEXT", "/none/context.json", "cannot read /none/context.json: No such file"),
        ("NATS_ENV", "yes", "true or false, not \"yes\""),
        ("NATS_INBOX_PREFIX", "a.*", "such as _INBOX_relay, not \"a.*\""),
        ("NATS_SUBJECT_PREFIX", "cms.>", "a subject prefix such as cms.cache, not \"cms.>\""),
        ("NATS_RELAYED_SUBJECT_PREFIX", "a..b", "empty token"),
        ("NATS_FAILED_SUBJECT_PREFIX", "a b", "white space"),
        ("NATS_RESYNC_SUBJECT", "a.*", "a subject such as relayed.resync, not \"a.*\""),
        ("WEBHOOK_RESYNC_DESTINATION", "ftp://hunter2@h", "http:// or https:// URLs"),
        ("RESYNC_ON", "never", "some of start, reconnect"),
        ("RESYNC_INTERVAL", "5", "30s"),
        ("NATS_QUEUE_GROUP", "two words", "a name without white space, not \"two words\""),
        ("NATS_PENDING_MESSAGES", "0", "from 1 to 10000000"),
        ("NATS_PENDING_BYTES", "many", "64MiB"),
        ("NATS_STREAM", "a.b", "a name without white space, dots"),
        ("NATS_CONSUMER", "two words", "a name without white space, dots"),
        (
            "NATS_DELIVER",
            "yesterday",
            "new, all, last-per-subject, or an age such as 6h, not \"yesterday\"",
        ),
        ("NATS_STREAM_CREATE", "yes", "true or false, not \"yes\""),
        ("NATS_REPLICAS_SHARE", "maybe", "true or false, not \"maybe\""),
        ("NATS_JETSTREAM_DOMAIN", "a/b", "a name without white space, dots"),
        ("NATS_JETSTREAM_API_PREFIX", "a.>", "a subject prefix such as JS.hub.API"),
        ("WEBHOOK_TIMEOUT", "30", "30s"),
        ("WEBHOOK_CONNECT_TIMEOUT", "0s", "30s"),
        ("WEBHOOK_MAX_ATTEMPTS", "ten", "from 1 to 1000000"),
        ("WEBHOOK_RETRY_STATUS", "404,200", "from 300 to 599"),
        ("WEBHOOK_RATE_LIMIT", "50", "such as 50/s, 600/min or 1000/h, not \"50\""),
        ("WEBHOOK_RESOLVE", "every", "all, not \"every\""),
        ("WEBHOOK_RESOLVE_INTERVAL", "0s", "30s"),
        ("WEBHOOK_RESOLVE_SERVER", "consul", "such as 127.0.0.1:8600, not \"consul\""),
        ("WEBHOOK_SECRET", "whsec_aHVudGVyMg==hunter2", "24 to 64 bytes"),
        ("WEBHOOK_HEADERS", "x-ok=1,hunter2", "entry 2"),
        ("WEBHOOK_CA", "/none/ca.pem", "cannot read /none/ca.pem: No such file"),
        ("WEBHOOK_CERT", "/none/cert.pem", "cannot read /none/cert.pem: No such file"),
        ("WEBHOOK_KEY", "/none/key.pem", "cannot read the file that it names: No such file"),
        ("MAX_IN_FLIGHT", "-1", "from 1 to 65536"),
        ("COALESCE", "all", "true, subject or false, not \"all\""),
        ("COALESCE_WINDOW", "1min", "up to 10s"),
        ("SHUTDOWN_GRACE", "soon", "30s"),
        ("PLUGINS", "/none/here.wasm", "/none/here.wasm: No such file"),
        ("PLUGIN_TIMEOUT", "1", "30s"),
        ("PLUGIN_MEMORY", "lots", "64MiB"),
        ("PLUGIN_WATCH", "yes", "true or false, not \"yes\""),
        ("HTTP_LISTEN", "9090", "127.0.0.1:9090"),
        ("READY_MAX_LAG", "long", "30s"),
        ("LOG_FORMAT", "xml", "pretty, compact or json, not \"xml\""),
        ("RUST_LOG", "relay=loud", "error, warn, info, debug, trace"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "hunter2:4318", "such as http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "hunter2:4318", "such as http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "hunter2", "entry 1"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "otlp or none, not \"jaeger\""),
        ("OTEL_SDK_DISABLED", "yes", "true or false, not \"yes\""),
    ];
    let is_elsewhere = |name: &&str| {
        // They count only with a good endpoint, or without what is in this table: tests/traces.rs,
        // and what is below on exact subjects.
        let others = ["NATS_USER", "NATS_TOKEN", "PLUGIN_CACHE"];
        let exact = ["NATS_SUBJECT", "NATS_RELAYED_SUBJECT"];
        others.contains(name) || exact.contains(name) || name.starts_with("OTEL_")
    };
    let elsewhere = VARIABLES.iter().map(|variable| variable.name).filter(is_elsewhere);
    let covered: BTreeSet<_> = bad.iter().map(|(name, ..)| *name).chain(elsewhere).collect();
    assert_eq!(
        covered,
        VARIABLES.iter().map(|variable| variable.name).collect(),
        "a variable that this table does not cover"
    );

    let variables: Vec<_> = bad.iter().map(|(name, value, _)| (*name, *value)).collect();
    let expected: Vec<_> =
        bad.iter().map(|(name, _, expected)| (format!("{name}: "), *expected)).collect();
    let expected: Vec<_> =
        expected.iter().map(|(name, expected)| (name.as_str(), *expected)).collect();
    assert_exactly(&mistakes(&variables), &expected);
}

#[test]
fn no_secret_is_shown_whatever_is_wrong_with_it() {
    for more in [
        ("WEBHOOK_DESTINATION", "hunter2"),
        ("WEBHOOK_DESTINATION", "http://ok/ http://[hunter2"),
        ("NATS_HOST", "nats://relay:hunter2@"),
        ("NATS_HOST", "nats://relay:hunter2@h:notaport"),
        ("NATS_HOST", "amqp://hunter2@h"),
        ("NATS_PASS", "hunter2"),
        ("NATS_PASSWORD", "hunter2"),
        ("WEBHOOK_HEADERS", "authorization hunter2"),
        ("WEBHOOK_HEADERS", "authorization=hunter2%00"),
        ("WEBHOOK_HEADERS", "hunter2 hunter2=x"),
        ("WEBHOOK_HEADERS", "host=hunter2"),
        ("WEBHOOK_SECRET", "hunter2"),
        ("WEBHOOK_SECRET", "whsec_hunter2"),
        ("WEBHOOK_SECRET", "whsec_hunter2hunter2hunter2hunter2!"),
    ] {
        // `mistakes` looks for the secret.
        assert_eq!(mistakes_with(&[more]).len(), 1, "{more:?}");
    }
}

#[test]
fn a_secret_that_is_right_is_not_shown_either_when_nats_cannot_be_reached() {
    let variables = good(&[
        ("WEBHOOK_DESTINATION", "http://u:hunter2@127.0.0.1:1/?secret=hunter2"),
        ("NATS_HOST", "nats://relay:hunter2@127.0.0.1:1,ws://hunter2@127.0.0.1:1"),
        ("WEBHOOK_HEADERS", "authorization=hunter2"),
        ("WEBHOOK_SECRET", "whsec_hunter2hunter2hunter2hunter2hunter2hunter2hunter2hunter2"),
        ("RUST_LOG", "trace"),
    ]);
    let (status, stdout, stderr) = check(&variables);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("127.0.0.1:1"), "{stderr}");
    assert!(!stdout.contains(SECRET) && !stderr.contains(SECRET), "{stdout}\n{stderr}");
}

#[test]
fn secrets_from_files_that_are_missing_empty_or_in_doubt() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("empty"), " \n").unwrap();
    std::fs::write(folder.path().join("full"), "hunter2\n").unwrap();
    let (missing, empty, full) =
        (folder.path().join("missing"), folder.path().join("empty"), folder.path().join("full"));
    let names: Vec<_> = VARIABLES
        .iter()
        .filter(|variable| variable.secret)
        .flat_map(|variable| {
            std::iter::once(&variable.name)
                .chain(variable.aliases)
                .map(move |name| (variable, *name))
        })
        .collect();
    for expected in [
        "WEBHOOK_DESTINATION",
        "NATS_HOST",
        "NATS_URL",
        "NATS_ADDRESS",
        "NATS_USER",
        "NATS_PASS",
        "NATS_PASSWORD",
        "WEBHOOK_SECRET",
        "WEBHOOK_HEADERS",
    ] {
        assert!(names.iter().any(|(_, name)| *name == expected), "{expected} may hold a secret");
    }
    for (variable, name) in names {
        let file = format!("{name}_FILE");
        // Without the variable's other names, which would decide first.
        let rest = || {
            GOOD.iter()
                .filter(|(other, _)| *other != variable.name)
                .chain([&("NATS_USER", "relay")])
                .filter(|(other, _)| *other != name)
        };
        for (path, expected) in [
            (&missing, "cannot read the file that it names"),
            (&empty, "the file that it names is empty"),
        ] {
            let path = path.to_str().unwrap();
            let variables: Vec<_> = rest().copied().chain([(file.as_str(), path)]).collect();
            let found = mistakes(&variables);
            let start = format!("{file}: ");
            assert!(
                found.iter().any(|line| line.starts_with(&start) && line.contains(expected)),
                "{file}: {found:#?}"
            );
            // It may be the secret itself that was put there.
            assert!(found.iter().all(|line| !line.contains(path)), "{file}: {found:#?}");
        }
        let variables: Vec<_> = rest()
            .copied()
            .chain([(name, SECRET), (file.as_str(), full.to_str().unwrap())])
            .collect();
        let found = mistakes(&variables);
        assert!(
            found
                .iter()
                .any(|line| line.starts_with(&format!("{name}: both {name} and {file} are set"))),
            "{found:#?}"
        );
    }
}

#[tokio::test]
async fn a_password_file_with_a_trailing_newline_opens_the_server() {
    let nats = NatsServer::with_config("authorization: { user: relay, password: hunter2 }");
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("password"), "hunter2\n").unwrap();
    for (user, password) in [("NATS_USER", "NATS_PASS_FILE"), ("NATS_USER", "NATS_PASSWORD_FILE")] {
        let url = nats.url();
        let (status, _, stderr) = check_in(
            &folder,
            &good(&[("NATS_HOST", &url), (user, "relay"), (password, "password")]),
        );
        assert!(status.success(), "{password}: {stderr}");
    }
}

#[tokio::test]
async fn aliases_mean_the_same() {
    let nats = NatsServer::with_config("authorization: { user: relay, password: hunter2 }");
    let url = nats.url();
    for host in ["NATS_HOST", "NATS_URL", "NATS_ADDRESS"] {
        for password in ["NATS_PASS", "NATS_PASSWORD"] {
            // The empty ones are unset, so the aliases are looked at.
            let variables = good(&[
                ("NATS_HOST", ""),
                (host, &url),
                ("NATS_USER", "relay"),
                ("NATS_PASS", ""),
                (password, SECRET),
            ]);
            let (status, _, stderr) = check(&variables);
            assert!(status.success(), "{host} {password}: {stderr}");
        }
    }
}

#[test]
fn empty_means_unset() {
    for empty in ["", " ", "\t\n"] {
        // A required one is missing, and one that has a default has it again.
        let found = mistakes_with(&[
            ("NATS_SUBJECT_PREFIX", empty),
            ("MAX_IN_FLIGHT", empty),
            ("NATS_STREAM", empty),
            ("WEBHOOK_NONSENSE", empty),
        ]);
        assert_exactly(&found, &[("NATS_SUBJECT_PREFIX: required", "")]);
    }
}

#[test]
fn the_process_wins_over_env_local_over_env() {
    let folder = TempDir::new().unwrap();
    // What is reported tells which value was read.
    std::fs::write(
        folder.path().join(".env"),
        "MAX_IN_FLIGHT=env\nSHUTDOWN_GRACE=env\nLOG_FORMAT=env\nNATS_PENDING_BYTES=env\nWEBHOOK_TIMEOUT=env\n",
    )
    .unwrap();
    std::fs::write(
        folder.path().join(".env.local"),
        "MAX_IN_FLIGHT=local\nSHUTDOWN_GRACE=local\nNATS_PENDING_BYTES=\n",
    )
    .unwrap();
    let found =
        mistakes_in(&folder, &good(&[("MAX_IN_FLIGHT", "process"), ("WEBHOOK_TIMEOUT", "")]));
    // Set to nothing, NATS_PENDING_BYTES in .env.local and WEBHOOK_TIMEOUT in the process are unset.
    assert_exactly(
        &found,
        &[
            ("MAX_IN_FLIGHT: ", "not \"process\""),
            ("SHUTDOWN_GRACE: ", "not \"local\""),
            ("LOG_FORMAT: ", "not \"env\""),
        ],
    );
}

#[test]
fn dotenv_files_have_quotes_comments_and_export() {
    let folder = TempDir::new().unwrap();
    let text = "# a comment\n\nexport MAX_IN_FLIGHT = 'a # b $HOME'\nLOG_FORMAT=x#y # a comment\nSHUTDOWN_GRACE=\"a b\"\n";
    std::fs::write(folder.path().join(".env"), text).unwrap();
    let found = mistakes_in(&folder, &GOOD);
    assert_exactly(
        &found,
        &[
            ("MAX_IN_FLIGHT: ", "not \"a # b $HOME\""),
            ("LOG_FORMAT: ", "not \"x#y\""),
            ("SHUTDOWN_GRACE: ", "not \"a b\""),
        ],
    );
}

#[test]
fn a_malformed_dotenv_file_is_named_and_its_line_is_not_quoted() {
    for line in [
        "NATS_PASS=hunter2 with spaces",
        "NATS_PASS hunter2",
        "hunter2",
        "NATS_PASS='hunter2",
        "NATS_PASS=\"hunter2\"hunter2\\x",
        "=hunter2",
    ] {
        for name in [".env", ".env.local"] {
            let folder = TempDir::new().unwrap();
            std::fs::write(folder.path().join(name), format!("MAX_IN_FLIGHT=1\n{line}\n")).unwrap();
            let found = mistakes_in(&folder, &GOOD);
            assert_exactly(&found, &[(&format!("{name}: entry 2: "), "expected NAME=value")]);
        }
    }
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join(".env"), "hunter2").unwrap();
    std::fs::write(folder.path().join(".env.local"), [b'A', b'=', 0xff]).unwrap();
    assert_exactly(&mistakes_in(&folder, &GOOD), &[(".env: ", ""), (".env.local: ", "")]);
}

#[test]
fn prefixes_that_would_make_a_loop_are_refused() {
    let (listen, relayed, failed) =
        ("NATS_SUBJECT_PREFIX", "NATS_RELAYED_SUBJECT_PREFIX", "NATS_FAILED_SUBJECT_PREFIX");
    for (name, value) in [
        (relayed, "cms.cache"),
        (relayed, "cms.cache.done"),
        (relayed, "cms"),
        (failed, "cms.cache"),
        (failed, "cms.cache.no"),
        (failed, "cms"),
    ] {
        assert_exactly(
            &mistakes_with(&[(name, value)]),
            &[(
                &format!("{name}: {value} is equal to, below or above {listen} (cms.cache)"),
                "loop",
            )],
        );
    }
    for value in ["relayed.cache", "relayed.cache.failed", "relayed"] {
        assert_exactly(
            &mistakes_with(&[(failed, value)]),
            &[(&format!("{failed}: {value} is equal to, below or above {relayed}"), "")],
        );
    }
    // Both at once, and the destinations' mistake with them.
    let found = mistakes_with(&[(relayed, "cms"), (failed, "cms"), ("WEBHOOK_DESTINATION", "x")]);
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn exact_subjects_come_in_pairs_without_prefixes_and_without_loops() {
    let (subject, relayed) = ("NATS_SUBJECT", "NATS_RELAYED_SUBJECT");
    let (failed, resync) = ("NATS_FAILED_SUBJECT_PREFIX", "NATS_RESYNC_SUBJECT");
    let exact = |more: &[(&'static str, &'static str)]| {
        let pair = [(subject, "feathers-sync"), (relayed, "relayed.feathers")];
        mistakes(&[&GOOD[..2], &pair, more].concat())
    };
    for (variables, expected) in [
        (&[(relayed, "")][..], &[("NATS_RELAYED_SUBJECT: required", "feathers-sync")][..]),
        (&[(subject, "")], &[("NATS_SUBJECT: required", "feathers-sync")]),
        (
            &[(subject, "a.*"), (relayed, "b.>")],
            &[("NATS_SUBJECT: ", "wildcard"), ("NATS_RELAYED_SUBJECT: ", "wildcard")],
        ),
        (&[(subject, "a b")], &[("NATS_SUBJECT: expected a subject", "white space")]),
        (&[(relayed, "a..b")], &[("NATS_RELAYED_SUBJECT: expected a subject", "empty token")]),
        (&[GOOD[2]], &[("NATS_SUBJECT: NATS_SUBJECT_PREFIX is set too", "unset one")]),
        (
            &[(subject, ""), GOOD[2], GOOD[3]],
            &[
                ("NATS_RELAYED_SUBJECT: NATS_SUBJECT_PREFIX is set too", ""),
                ("NATS_RELAYED_SUBJECT: NATS_RELAYED_SUBJECT_PREFIX is set too", ""),
                ("NATS_SUBJECT: required", ""),
            ],
        ),
        // Loops.
        (&[(relayed, "feathers-sync")], &[("NATS_RELAYED_SUBJECT: feathers-sync is", "a loop")]),
        // A plugin may republish there.
        (
            &[(subject, "relayed.feathers.a")],
            &[(
                "NATS_RELAYED_SUBJECT: relayed.feathers is equal to, below or above NATS_SUBJECT \
                 (relayed.feathers.a)",
                "a loop",
            )],
        ),
        (
            &[(subject, "failed.a"), (failed, "failed")],
            &[("NATS_FAILED_SUBJECT_PREFIX: failed is", "NATS_SUBJECT (failed.a): the relay")],
        ),
        (
            &[(failed, "relayed")],
            &[(
                "NATS_FAILED_SUBJECT_PREFIX: relayed is",
                "NATS_RELAYED_SUBJECT (relayed.feathers)",
            )],
        ),
        (&[(failed, "relayed.feathers.a")], &[("NATS_FAILED_SUBJECT_PREFIX: ", "accepted ones")]),
        (
            &[(resync, "feathers-sync")],
            &[("NATS_RESYNC_SUBJECT: feathers-sync is NATS_SUBJECT (feathers-sync)", "a loop")],
        ),
    ] {
        assert_exactly(&exact(variables), expected);
    }
    // Nothing is received below an exact subject: only the server that is not there is left.
    let below =
        [(relayed, "a.relayed"), (resync, "a.resync"), (subject, "a"), (failed, "a.failed")];
    let (status, stdout, stderr) = check(&[&GOOD[..2], &below].concat());
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
}

#[tokio::test]
async fn an_unknown_variable_is_warned_about_with_the_nearest_name_and_does_not_stop_the_start() {
    let nats = NatsServer::start();
    let url = nats.url();
    let unknown = [
        ("WEBHOOK_TIMEOU", "WEBHOOK_TIMEOUT"),
        ("WEBHOOK_DESTINATIONS", "WEBHOOK_DESTINATION"),
        ("WEBHOOK_HEADER", "WEBHOOK_HEADERS"),
        ("PLUGIN_NOSUCH", ""),
    ];
    let variables: Vec<_> = unknown.iter().map(|(name, _)| (*name, SECRET)).collect();
    let mut relay = Relay::start(&url, "http://127.0.0.1:1/", &variables).await;
    for (name, nearest) in unknown {
        let lines = relay.lines(&format!("{name} is not a variable"));
        assert_eq!(lines.len(), 1, "{:?}", relay.log());
        assert!(
            lines[0].contains("\"WARN\"") && lines[0].contains(&format!("nearest is {nearest}")),
            "{lines:?}"
        );
        assert!(!lines[0].contains(SECRET), "{lines:?}");
    }
    assert!(relay.stop().await.success());

    // The subcommands know their own.
    for (subcommand, variables, nearest) in [
        (
            "gateway",
            [
                ("GATEWAY_SUBJECT", "hooks"),
                ("GATEWAY_LISTEN", "127.0.0.1:0"),
                ("GATEWAY_TOKENS", SECRET),
            ],
            "GATEWAY_TOKENS is not a variable of this program; the nearest is GATEWAY_TOKEN",
        ),
        (
            "serve",
            [
                ("SERVE_SUBJECT_PREFIX", "api"),
                ("SERVE_DESTINATION", "http://127.0.0.1:1/"),
                ("SERVE_TIMEOUTS", SECRET),
            ],
            "SERVE_TIMEOUTS is not a variable of this program; the nearest is SERVE_TIMEOUT",
        ),
    ] {
        let mut relay = Relay::subcommand(subcommand, &url, &variables).await;
        let lines = relay.lines("unknown variable");
        assert!(lines.len() == 1 && lines[0].contains(nearest), "{lines:?}");
        assert!(!lines[0].contains(SECRET), "{lines:?}");
        assert!(relay.stop().await.success());
    }

    // Beside mistakes, where a misspelt name is often the reason.
    let found = mistakes_with(&[
        ("WEBHOOK_DESTINATION", ""),
        ("WEBHOOK_DESTINATON", "http://h/?s=hunter2"),
    ]);
    assert_exactly(
        &found,
        &[
            ("WEBHOOK_DESTINATION: required", ""),
            ("WEBHOOK_DESTINATON ", "nearest is WEBHOOK_DESTINATION"),
        ],
    );
}

#[tokio::test]
async fn what_kubernetes_sets_for_a_service_named_nats_is_ignored() {
    let nats = NatsServer::start();
    let url = nats.url();
    let injected = [
        ("NATS_PORT", "tcp://10.0.0.1:4222"),
        ("NATS_PORT_4222_TCP", "tcp://10.0.0.1:4222"),
        ("NATS_PORT_4222_TCP_ADDR", "10.0.0.1"),
        ("NATS_SERVICE_HOST", "10.0.0.1"),
        ("NATS_SERVICE_PORT", "4222"),
    ];
    let mut variables = good(&[("NATS_HOST", &url)]);
    variables.extend(injected);
    let (status, stdout, stderr) = check(&variables);
    assert!(status.success(), "{stderr}");
    assert!(
        !format!("{stdout}{stderr}").contains("NATS_PORT") && stderr.is_empty(),
        "{stdout}{stderr}"
    );
}

#[test]
fn other_peoples_variables_are_none_of_our_business() {
    use std::os::unix::ffi::OsStringExt;
    let folder = TempDir::new().unwrap();
    let mut start = command(&folder, &good(&[("LOG_FORMAT", "xml")]));
    let strange = std::ffi::OsString::from_vec(vec![b'x', 0xff]);
    start
        .env("OTHER", &strange)
        .env(&strange, "y")
        .env("WEBHOOK", "x")
        .env("MAX_IN_FLIGHT", &strange);
    let (status, _, stderr) = finish(start);
    assert_eq!(status.code(), Some(64));
    // One of ours that is not UTF-8 is a mistake like any other.
    let found: Vec<_> =
        stderr.lines().filter_map(|line| line.strip_prefix("  - ")).map(str::to_owned).collect();
    assert_exactly(&found, &[("LOG_FORMAT: ", ""), ("MAX_IN_FLIGHT: ", "from 1 to 65536")]);
}

// The documents.

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn is_required(variable: &Variable) -> bool {
    variable.help.starts_with("Required.")
}

#[test]
fn the_documents_list_every_variable_with_its_default_and_no_other() {
    let document = read("docs/configuration.md");
    let table = document.split("| Variable | Default |").nth(1).expect("the table of variables");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').splitn(3, '|').map(str::trim).collect())
        .collect();
    let cell = |name: &str| {
        rows.iter()
            .find(|row| row[0] == format!("`{name}`"))
            .unwrap_or_else(|| panic!("{name} is not in docs/configuration.md"))
    };
    for variable in VARIABLES {
        let row = cell(variable.name);
        match variable.default {
            Some(default) => assert_eq!(row[1], format!("`{default}`"), "{}", variable.name),
            None if is_required(variable) => assert_eq!(row[1], "required", "{}", variable.name),
            None => assert!(
                row[1] != "required" && !row[1].starts_with('`'),
                "{} has no default",
                variable.name
            ),
        }
        for alias in variable.aliases {
            assert!(
                row[2].contains(&format!("`{alias}`")),
                "docs/configuration.md does not name {alias}"
            );
        }
        assert!(row[2].len() > 10, "{} is not explained", variable.name);
    }
    assert_eq!(
        rows.len(),
        VARIABLES.len(),
        "docs/configuration.md lists what is no variable: {rows:?}"
    );
}

/// The lines of `.env.example` that set a variable: whether commented out, the name, the value.
fn example() -> Vec<(bool, String, String)> {
    let settings = read(".env.example");
    let settings = settings.lines().filter_map(|line| {
        // Prose has a space after its #.
        let commented = line.starts_with('#');
        let (name, value) = line.trim_start_matches('#').split_once('=')?;
        let is_name =
            name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        is_name.then(|| (commented, name.to_owned(), value.to_owned()))
    });
    settings.collect()
}

#[test]
fn the_example_has_every_variable_with_its_default_and_no_other() {
    let example = example();
    for variable in VARIABLES {
        let (commented, _, value) = example
            .iter()
            .find(|(_, name, _)| name == variable.name)
            .unwrap_or_else(|| panic!("{} is not in .env.example", variable.name));
        assert_eq!(
            *commented,
            !is_required(variable),
            "only what is required is set: {}",
            variable.name
        );
        if let Some(default) = variable.default {
            assert_eq!(value, default, "{}", variable.name);
        }
    }
    assert_eq!(example.len(), VARIABLES.len(), ".env.example has what is no variable: {example:?}");
}

#[tokio::test]
async fn the_example_is_a_configuration_as_it_is_and_with_everything_uncommented() {
    let nats = NatsServer::start();
    let url = nats.url();
    let text = read(".env.example");
    let mut uncommented = text.clone();
    for (_, name, value) in example() {
        uncommented =
            uncommented.replace(&format!("\n#{name}={value}\n"), &format!("\n{name}={value}\n"));
    }
    assert_ne!(uncommented, text);
    for text in [text, uncommented] {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join(".env"), text).unwrap();
        let (status, stdout, stderr) = check_in(&folder, &[("NATS_HOST", &url)]);
        assert!(status.success(), "{stderr}");
        assert!(stdout.contains("cms.cache.>") && stdout.contains("relayed.cache.>"), "{stdout}");
    }
}

#[test]
fn the_settings_for_drupal_are_a_configuration() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join(".env"), read("examples/drupal/relay.env")).unwrap();
    let absent =
        [("NATS_HOST", GOOD[1].1), ("PLUGINS", ""), ("PLUGIN_DRUPAL_PATH_SECRET_FILE", "")];
    let (status, _, stderr) = check_in(&folder, &absent);
    assert_eq!(status.code(), Some(1), "all but the server is there: {stderr}");
    assert!(stderr.contains("nothing listens on"), "{stderr}");
}

#[test]
fn help_explains_every_variable() {
    let folder = TempDir::new().unwrap();
    let mut help = command(&folder, &[]);
    help.arg("--help");
    let (status, stdout, stderr) = finish(help);
    assert!(status.success() && stderr.is_empty(), "{stderr}");
    assert!(stdout.contains(&config::help()), "{stdout}");
    for Variable { name, aliases, default, secret, help } in VARIABLES {
        // The name is followed by something in brackets, or by the end of the line.
        let start = [' ', '\n'].iter().find_map(|end| stdout.find(&format!("\n  {name}{end}")));
        let start = start.unwrap_or_else(|| panic!("{name} is not in --help"));
        let entry = &stdout[start + "\n  ".len() + name.len()..];
        let (head, text) = entry.split_once('\n').unwrap();
        assert!(text.trim_start().starts_with(help), "{name}");
        assert!(
            default.is_none_or(|default| head.contains(&format!("[default: {default}]"))),
            "{name}{head}"
        );
        assert!(aliases.iter().all(|alias| head.contains(alias)), "{name}{head}");
        assert_eq!(head.contains(&format!("{name}_FILE")), *secret, "{name}{head}");
    }
    assert!(stdout.contains("check") && stdout.contains(".env.local"), "{stdout}");
}
