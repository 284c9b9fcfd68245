//! What packages, containers and charts rely on: the program's own health check, what it prints
//! for packages, and that every variable has a place in the chart.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use nats_webhook_relay::config::{GATEWAY_VARIABLES, SERVE_VARIABLES, VARIABLES};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use support::nats::NatsServer;
use support::relay::{Relay, field, run};

#[tokio::test]
async fn healthcheck_ends_with_0_while_the_relay_is_alive_and_otherwise_with_1() {
    let nats = NatsServer::start();
    let listen = [("HTTP_LISTEN", "127.0.0.1:0")];
    let mut relay = Relay::start(&nats.url(), "http://127.0.0.1:9/", &listen).await;
    let line = relay.logged("serving /healthz").await;
    let address = field(&line, "address").to_owned();
    // Nobody's proxy is asked for the way to this machine.
    let variables = [("HTTP_LISTEN", &*address), ("http_proxy", "http://127.0.0.1:9")];

    let (status, stdout, stderr) = run(&["healthcheck"], &variables);
    assert_eq!((status.code(), &*stdout, &*stderr), (Some(0), "", ""));
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    assert_eq!(run(&["healthcheck"], &[("HTTP_LISTEN", &everywhere)]).0.code(), Some(0));

    relay.stop().await;
    let (status, _, stderr) = run(&["healthcheck"], &variables);
    assert!(status.code() == Some(1) && stderr.contains(&address), "{status} {stderr}");
}

#[test]
fn healthcheck_says_what_is_wrong_with_the_address() {
    for (value, said) in [("", "HTTP_LISTEN is not set"), ("9090", "HTTP_LISTEN: expected")] {
        let (status, _, stderr) = run(&["healthcheck"], &[("HTTP_LISTEN", value)]);
        assert!(status.code() == Some(1) && stderr.contains(said), "{status} {stderr}");
    }
}

#[test]
fn completions_and_man_pages_have_every_subcommand() {
    const SUBCOMMANDS: [&str; 5] = ["check", "gateway", "serve", "healthcheck", "plugin"];
    for shell in ["bash", "fish", "zsh"] {
        let (status, stdout, stderr) = run(&["generate", "completions", shell], &[]);
        assert!(status.success() && !stdout.contains("generate"), "{shell}: {stderr}\n{stdout}");
        for name in SUBCOMMANDS {
            assert!(stdout.contains(name), "{shell} does not have {name}:\n{stdout}");
        }
    }
    let folder = tempfile::TempDir::new().unwrap();
    let (status, _, stderr) = run(&["generate", "man", folder.path().to_str().unwrap()], &[]);
    assert!(status.success(), "{stderr}");
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let main = page("nats-webhook-relay.1");
    assert!(main.contains("WEBHOOK_DESTINATION") && !main.contains("generate"), "{main}");
    for name in SUBCOMMANDS {
        assert!(page(&format!("nats-webhook-relay-{name}.1")).contains(".TH"), "{name}");
    }
}

/// The names in `part` of the chart's schema.
fn names(schema: &Value, part: &str) -> BTreeSet<String> {
    let properties = schema["properties"][part]["properties"].as_object().unwrap();
    properties.keys().cloned().collect()
}

#[test]
fn the_chart_has_every_variable_by_name_and_takes_secrets_from_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/nats-webhook-relay");
    let schema = std::fs::read_to_string(folder.join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let variables = [VARIABLES, GATEWAY_VARIABLES, SERVE_VARIABLES].concat();
    let named = |is_wanted: &dyn Fn(&str, bool) -> bool| {
        let wanted = variables.iter().flat_map(|variable| {
            let names = std::iter::once(&variable.name).chain(variable.aliases);
            names.filter(|name| is_wanted(name, variable.secret)).map(|name| (*name).to_owned())
        });
        wanted.collect::<BTreeSet<String>>()
    };
    assert_eq!(names(&schema, "config"), named(&|_, _| true));
    // The template gives these the path of a mounted file, and to all others a name that ends in _FILE.
    let is_path = |help: &str| help.contains("PEM file") || help.contains("the path of the file");
    let paths = variables.iter().filter(|it| is_path(it.help)).map(|it| it.name);
    let paths: BTreeSet<_> = paths.collect();
    let template = std::fs::read_to_string(folder.join("templates/_helpers.tpl")).unwrap();
    let list = template.split("$isPath := has $name (list ").nth(1).unwrap();
    let list = list.split(')').next().unwrap().replace('"', "");
    assert_eq!(list.split(' ').collect::<BTreeSet<_>>(), paths);
    assert_eq!(
        names(&schema, "secretFiles"),
        named(&|name, is_secret| is_secret || paths.contains(name))
    );
}
