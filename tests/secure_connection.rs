//! Connections to NATS that are encrypted, and logins that are more than a password: with the
//! servers that people run, and with everything that is commonly wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use nkeys::KeyPair;
use serde_json::json;
use std::time::Duration;
use support::authority::Authority;
use support::cluster::Cluster;
use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::operator::{Operator, User};
use support::relay::{Relay, command, finish};
use support::{subscribe, within};
use tempfile::TempDir;

/// Marks what no output may have.
const SECRET: &str = "hunter2";

type Variables<'a> = &'a [(&'a str, &'a str)];

/// Runs `check`: exit code and all output, in which none of `secrets` may be.
fn check(host: &str, variables: Variables, secrets: &[&str]) -> (i32, String) {
    let mut all = vec![
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:9/"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("RUST_LOG", "trace,async_nats=trace"),
    ];
    all.extend((!host.is_empty()).then_some(("NATS_HOST", host)));
    all.extend_from_slice(variables);
    let folder = TempDir::new().unwrap();
    let mut check = command(&folder, &all);
    check.arg("check");
    let (status, stdout, stderr) = finish(check);
    let output = stdout + &stderr;
    for secret in secrets.iter().chain(&[SECRET]) {
        assert!(!output.contains(secret), "a secret is shown: {output}");
    }
    (status.code().unwrap(), output)
}

/// That the relay can log in and do its work.
fn assert_connects(host: &str, variables: Variables, secrets: &[&str]) -> String {
    let (code, output) = check(host, variables, secrets);
    assert_eq!(code, 0, "{variables:?}: {output}");
    assert!(output.contains("connected to  nats-server"), "{output}");
    output
}

/// That the relay ends with `code`, and with one line that has all of `parts`.
fn assert_refuses(host: &str, variables: Variables, secrets: &[&str], code: i32, parts: &[&str]) {
    let (found, output) = check(host, variables, secrets);
    assert_eq!(found, code, "{variables:?}: {output}");
    let lines = output.lines().filter(|line| {
        line.starts_with("  - ") || line.starts_with("nats-webhook-relay: ") && code == 1
    });
    let lines: Vec<_> = lines.collect();
    assert!(
        lines.len() == 1 && parts.iter().all(|part| lines[0].contains(part)),
        "{variables:?}: {parts:?}\n{output}"
    );
}

fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn client(options: ConnectOptions, url: &str) -> Client {
    within("test client connects", options.retry_on_initial_connect().connect(url)).await.unwrap()
}

async fn client_of(user: &User, nats: &NatsServer) -> Client {
    client(ConnectOptions::with_credentials(&user.credentials()).unwrap(), &nats.url()).await
}

/// That a message passes through a relay with these settings; returns its log.
async fn assert_relays(client: &Client, host: &str, variables: Variables<'_>) -> String {
    let endpoint = Endpoint::ok().await;
    let mut relayed = subscribe(client, "relayed.cache.>").await;
    let mut relay = Relay::start(host, &endpoint.url(), variables).await;
    client.publish("cms.cache.a", "1".into()).await.unwrap();
    let message = within("the relayed message", relayed.next()).await.unwrap();
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("relayed.cache.a", &b"1"[..]));
    assert!(relay.stop().await.success());
    assert!(relay.lines("WARN").is_empty(), "{:?}", relay.lines("WARN"));
    relay.log().join("\n")
}

// TLS

#[tokio::test]
async fn a_server_with_tls_is_reached_with_the_authority_of_a_file_or_of_the_system() {
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"]);
    let nats = NatsServer::with_config(&server.tls(""));
    let ca = authority.path();
    let plain_url = nats.url();
    let url = plain_url.replace("nats://", "tls://");
    let observer =
        client(ConnectOptions::new().add_root_certificates(ca.clone().into()), &url).await;
    assert_relays(&observer, &url, &[("NATS_CA", &ca)]).await;
    // The server asks for TLS by itself.
    assert_connects(&plain_url, &[("NATS_CA", &ca)], &[]);
    assert_connects(&plain_url, &[("NATS_CA", &format!("file://{ca}"))], &[]);
    // What the system trusts is said by this variable where it is not in the usual place.
    assert_connects(&url, &[("SSL_CERT_FILE", &ca)], &[]);
    assert_connects(&plain_url, &[("SSL_CERT_FILE", &ca)], &[]);
}

#[tokio::test]
async fn with_mutual_tls_the_certificate_is_the_login() {
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"]);
    let relay = authority.issue("relay", &[]);
    let ca = authority.path();
    let more = format!("ca_file: \"{ca}\", verify_and_map: true");
    let nats = NatsServer::with_config(&format!(
        "{}\nauthorization {{ users: [ {{ user: \"CN=relay\" }} ] }}",
        server.tls(&more)
    ));
    let (certificate, key) = (relay.certificate.as_str(), relay.key.as_str());
    let all = [("NATS_CA", ca.as_str()), ("NATS_CERT", certificate), ("NATS_KEY", key)];
    let options = ConnectOptions::new().add_root_certificates(ca.clone().into());
    let observer =
        client(options.add_client_certificate(certificate.into(), key.into()), &nats.url()).await;
    assert_relays(&observer, &nats.url(), &all).await;

    let other = authority.issue("other", &[]);
    let elsewhere = Authority::new();
    let unknown = elsewhere.issue("relay", &[]);
    let host = nats.url();
    let with = |certificate, key| {
        [("NATS_CA", ca.as_str()), ("NATS_CERT", certificate), ("NATS_KEY", key)]
    };
    assert_refuses(&host, &all[..1], &[], 1, &["set NATS_CERT and NATS_KEY"]);
    assert_refuses(
        &host,
        &with(&other.certificate, &other.key),
        &[],
        1,
        &["refused the login", "NATS_CERT"],
    );
    assert_refuses(
        &host,
        &with(&unknown.certificate, &unknown.key),
        &[],
        1,
        &["refused the certificate", &unknown.certificate],
    );
    assert_refuses(
        &host,
        &with(certificate, &other.key),
        &[],
        64,
        &["NATS_KEY: the private key is not that of the first certificate (NATS_CERT)"],
    );
    assert_refuses(&host, &[all[0], all[1]], &[], 64, &["NATS_CERT: set without NATS_KEY"]);
    assert_refuses(&host, &[all[0], all[2]], &[], 64, &["NATS_KEY: set without NATS_CERT"]);
}

#[tokio::test]
async fn a_server_that_shakes_hands_first_is_reached_so() {
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"]);
    let nats = NatsServer::with_config(&server.tls("handshake_first: true"));
    let ca = authority.path();
    let first = [("NATS_CA", ca.as_str()), ("NATS_TLS_FIRST", "true")];
    assert_connects(&nats.url(), &first, &[]);
    assert_refuses(
        &nats.url(),
        &first[..1],
        &[],
        1,
        &["without a greeting", "NATS_TLS_FIRST=true"],
    );

    let later = NatsServer::with_config(&server.tls(""));
    assert_refuses(&later.url(), &first, &[], 1, &["without TLS at first", "NATS_TLS_FIRST"]);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_trusted_is_told_by_what_is_wrong_with_it() {
    let (authority, other, namesake) =
        (Authority::called("Twin"), Authority::new(), Authority::called("Twin"));
    let (ca, other_ca) = (authority.path(), other.path());
    let known = [("NATS_CA", ca.as_str())];
    let server = |issued: support::authority::Issued| NatsServer::with_config(&issued.tls(""));
    let url = |nats: &NatsServer| nats.url().replace("nats://", "tls://");

    let nats = server(authority.issue("server", &["127.0.0.1"]));
    assert_refuses(
        &url(&nats),
        &[("NATS_CA", &other_ca)],
        &[],
        1,
        &["authority that is not in", &other_ca, "NATS_CA"],
    );
    let namesake = namesake.path();
    assert_refuses(
        &url(&nats),
        &[("NATS_CA", &namesake)],
        &[],
        1,
        &["authority that is not in", &namesake],
    );
    let trust_nobody = [("SSL_CERT_FILE", other_ca.as_str())];
    assert_refuses(&url(&nats), &trust_nobody, &[], 1, &["does not know", "set NATS_CA"]);
    // The same where only the server asks for TLS.
    assert_refuses(&nats.url(), &trust_nobody, &[], 1, &["does not know", "set NATS_CA"]);

    let nats = server(authority.issue("elsewhere", &["nats.example", "10.0.0.1"]));
    assert_refuses(
        &url(&nats),
        &known,
        &[],
        1,
        &["certificate for another host", "nats.example", "10.0.0.1"],
    );
    let nats = server(authority.expired());
    assert_refuses(&url(&nats), &known, &[], 1, &["has expired", "renew"]);
}

#[tokio::test]
async fn tls_is_never_left_out_where_it_was_asked_for() {
    let authority = Authority::new();
    let ca = authority.path();
    let relay = authority.issue("relay", &[]);
    let nats = NatsServer::with_config("websocket { host: 127.0.0.1, port: -1, no_tls: true }");
    let tls = nats.url().replace("nats://", "tls://");
    let wss = nats.websocket_url().replace("ws://", "wss://");
    for (host, variables) in [
        (&tls, &[][..]),
        (&nats.url(), &[("NATS_CA", ca.as_str())]),
        (&nats.url(), &[("NATS_CERT", relay.certificate.as_str()), ("NATS_KEY", &relay.key)]),
        (&wss, &[]),
    ] {
        assert_refuses(host, variables, &[], 1, &["does not speak TLS", "127.0.0.1:"]);
    }
    assert_refuses(
        &nats.websocket_url(),
        &[("NATS_CA", &ca)],
        &[],
        64,
        &["NATS_CA: is about TLS, and ws:// is a connection without"],
    );
    // In the relay itself as in the check: it ends instead of waiting for ever.
    let mut relay = Relay::spawn(&tls, "http://127.0.0.1:9/", &[]);
    assert_eq!(relay.exit().await.code(), Some(1));
    assert_eq!(relay.lines("does not speak TLS").len(), 1, "{:?}", relay.log());
}

#[tokio::test]
async fn a_tls_file_that_is_none_is_told_at_once_with_its_variable() {
    let authority = Authority::new();
    let issued = authority.issue("relay", &[]);
    let folder = TempDir::new().unwrap();
    let text = write(&folder, "text.pem", "hunter2");
    let broken = write(
        &folder,
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n",
    );
    let no_authority = write(
        &folder,
        "no.pem",
        "-----BEGIN CERTIFICATE-----\naHVudGVy\n-----END CERTIFICATE-----\n",
    );
    let locked = write(
        &folder,
        "locked.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\naHVudGVy\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let pasted = std::fs::read_to_string(&issued.key).unwrap();
    let none = "/none/here.pem";
    let host = "nats://127.0.0.1:1";
    let body = pasted.lines().nth(1).unwrap();
    for (variables, parts) in [
        (&[("NATS_CA", none)][..], &["NATS_CA: cannot read /none/here.pem: No such file"][..]),
        (&[("NATS_CA", &text)], &["NATS_CA: ", &text, "has no certificate"]),
        (&[("NATS_CA", &broken)], &["NATS_CA: ", &broken, "certificate"]),
        (&[("NATS_CA", &no_authority)], &["NATS_CA: ", "certificate 1 in "]),
        (&[("NATS_CA", &issued.key)], &["NATS_CA: ", "has no certificate"]),
        (&[("NATS_CA", &pasted)], &["NATS_CA: expected the path of a PEM file, not its content"]),
        (
            &[("NATS_CERT", none), ("NATS_KEY", &issued.key)],
            &["NATS_CERT: cannot read /none/here.pem"],
        ),
        (
            &[("NATS_CERT", &issued.certificate), ("NATS_KEY", none)],
            &["NATS_KEY: cannot read the file"],
        ),
        (
            &[("NATS_CERT", &issued.certificate), ("NATS_KEY", &locked)],
            &["NATS_KEY: ", "is encrypted", "password"],
        ),
        (
            &[("NATS_CERT", &issued.certificate), ("NATS_KEY", &pasted)],
            &["NATS_KEY: expected the path"],
        ),
        (
            &[("NATS_CERT", &issued.key), ("NATS_KEY", &issued.key)],
            &["NATS_CERT: ", "has no certificate"],
        ),
        (&[("NATS_TLS_FIRST", "yes")], &["NATS_TLS_FIRST: expected true or false, not \"yes\""]),
    ] {
        assert_refuses(host, variables, &[body], 64, parts);
    }
}

#[tokio::test]
async fn a_renewed_authority_is_read_at_the_next_connection() {
    let (old, new) = (Authority::new(), Authority::new());
    let issued = old.issue("server", &["127.0.0.1"]);
    let mut nats = NatsServer::with_config(&issued.tls(""));
    let folder = TempDir::new().unwrap();
    let ca = write(&folder, "ca.pem", &std::fs::read_to_string(old.path()).unwrap());
    let relay = Relay::start(
        &nats.url(),
        "http://127.0.0.1:9/",
        &[("NATS_CA", &ca), ("HTTP_LISTEN", "127.0.0.1:0")],
    )
    .await;
    nats.kill();
    let renewed = new.issue("server", &["127.0.0.1"]);
    std::fs::copy(&renewed.certificate, &issued.certificate).unwrap();
    std::fs::copy(&renewed.key, &issued.key).unwrap();
    nats.restart();
    let line = relay.logged("cannot reconnect to NATS yet").await;
    assert!(line.contains(&format!("127.0.0.1:{}: ", nats.port)), "{line}");
    std::fs::copy(new.path(), &ca).unwrap();
    relay.logged("reconnected to NATS").await;
    relay.readyz(200).await;
}

#[tokio::test]
async fn a_server_that_a_cluster_tells_of_takes_over_with_tls() {
    let authority = Authority::new();
    let config = authority.issue("server", &["localhost", "127.0.0.1"]).tls("");
    let mut cluster = Cluster::telling(&[config.clone(), config.clone(), config]).await;
    let (ports, ca) = (cluster.ports(), authority.path());
    let options = ConnectOptions::new().add_root_certificates(ca.clone().into());
    let observer = client(options, &format!("tls://127.0.0.1:{}", ports[2])).await;
    let mut relayed = subscribe(&observer, "relayed.cache.>").await;
    let endpoint = Endpoint::ok().await;
    let mut relay = Relay::start(
        &format!("tls://localhost:{}", ports[0]),
        &endpoint.url(),
        &[("NATS_CA", &ca)],
    )
    .await;
    cluster.nodes()[0].kill();
    relay.logged("reconnected to NATS").await;
    // The others have to hear of the subscription.
    let passes = async {
        loop {
            observer.publish("cms.cache.a", "1".into()).await.unwrap();
            if let Ok(message) =
                tokio::time::timeout(Duration::from_millis(200), relayed.next()).await
            {
                return message.unwrap();
            }
        }
    };
    assert_eq!(within("the relayed message", passes).await.subject.as_str(), "relayed.cache.a");
    assert!(relay.stop().await.success());
}

#[tokio::test]
async fn a_server_that_a_cluster_tells_of_is_refused_without_tls_or_the_right_certificate() {
    let authority = Authority::new();
    let config = authority.issue("server", &["localhost"]).tls("");
    let ca = authority.path();
    for (other, expected) in [
        (config.clone(), "invalid peer certificate: certificate not valid for name"),
        (String::new(), "does not speak TLS"),
    ] {
        let mut cluster = Cluster::telling(&[config.clone(), other]).await;
        let [known, told] = cluster.ports()[..] else { panic!("two nodes") };
        let host = format!("tls://localhost:{known}");
        let mut relay = Relay::start(&host, "http://127.0.0.1:9/", &[("NATS_CA", &ca)]).await;
        cluster.nodes()[0].kill();
        let line = relay.logged("cannot reconnect to NATS yet").await;
        assert!(line.contains(&format!("127.0.0.1:{told}: {expected}")), "{line}");
        cluster.nodes()[0].restart().await;
        relay.logged("reconnected to NATS").await;
        assert!(relay.stop().await.success());
    }
}

// Web sockets

#[tokio::test]
async fn web_sockets_work_with_and_without_tls_and_login() {
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"]);
    let ca = authority.path();
    for (config, variables) in [
        ("no_tls: true".to_owned(), &[][..]),
        (server.tls(""), &[("NATS_CA", ca.as_str())]),
        (server.tls(""), &[("SSL_CERT_FILE", ca.as_str())]),
    ] {
        let open = NatsServer::with_config(&format!(
            "websocket {{ host: 127.0.0.1, port: -1, {config} }}"
        ));
        assert_relays(&open.client().await, &open.websocket_url(), variables).await;

        let users = "authorization { user: relay, password: \"hunter2/x\" }";
        let closed = NatsServer::with_config(&format!(
            "websocket {{ host: 127.0.0.1, port: -1, {config} }}\n{users}"
        ));
        let url = closed.websocket_url();
        let with_login = url.replace("://", "://relay:hunter2%2Fx@");
        assert_connects(&with_login, variables, &[]);
        assert_connects(
            &url,
            &[variables, &[("NATS_USER", "relay"), ("NATS_PASS", "hunter2/x")]].concat(),
            &[],
        );
        assert_refuses(&url, variables, &[], 1, &["refused the login"]);
    }
    let wss = NatsServer::with_config(&format!(
        "websocket {{ host: 127.0.0.1, port: -1, {} }}",
        server.tls("")
    ));
    let url = wss.websocket_url();
    let other = Authority::new();
    assert_refuses(&url, &[("NATS_CA", &other.path())], &[], 1, &["authority that is not in"]);
    assert_refuses(&url.replace("wss://", "ws://"), &[], &[], 1, &["wss://"]);
}

// Logging in

#[tokio::test]
async fn a_token_opens_the_server() {
    let nats = NatsServer::with_config("authorization { token: \"hunter2/x\" }");
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "token", "hunter2/x\n");
    assert_connects(&nats.url(), &[("NATS_TOKEN", "hunter2/x")], &[]);
    assert_connects(&nats.url(), &[("NATS_TOKEN_FILE", &file)], &[]);
    assert_refuses(
        &nats.url(),
        &[("NATS_TOKEN", "hunter2-wrong")],
        &[],
        1,
        &["refused the login", "NATS_TOKEN"],
    );
}

#[tokio::test]
async fn an_nkey_opens_the_server_from_a_file_or_as_the_seed_itself() {
    let user = KeyPair::new_user();
    let seed = user.seed().unwrap();
    let nats = NatsServer::with_config(&format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        user.public_key()
    ));
    let folder = TempDir::new().unwrap();
    let plain = write(&folder, "user.nk", &format!("{seed}\n"));
    let decorated = write(
        &folder,
        "user.pem",
        &format!("-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"),
    );
    let host = nats.url();
    for variable in [
        ("NATS_NKEY", plain.as_str()),
        ("NATS_NKEY", &decorated),
        ("NATS_NKEY", &seed),
        ("NATS_NKEY_FILE", &plain),
    ] {
        assert_connects(&host, &[variable], &[&seed]);
    }
    let observer = client(ConnectOptions::with_nkey(seed.clone()), &host).await;
    let log = assert_relays(&observer, &host, &[("NATS_NKEY", &plain)]).await;
    assert!(!log.contains(&seed));

    let other = KeyPair::new_user().seed().unwrap();
    let account = KeyPair::new_account().seed().unwrap();
    let truncated = &seed[..57];
    for (value, code, part) in [
        (other.as_str(), 1, "refused the login: check NATS_NKEY"),
        (&account, 64, "NATS_NKEY: holds the seed of something else than a user"),
        (truncated, 64, "NATS_NKEY: holds no valid seed"),
        (&seed[1..], 64, "NATS_NKEY: cannot read the file"),
        (&write(&folder, "text", SECRET), 64, "NATS_NKEY: holds no valid seed"),
        ("/none/hunter2", 64, "NATS_NKEY: cannot read the file that it names: No such file"),
    ] {
        assert_refuses(
            &host,
            &[("NATS_NKEY", value)],
            &[&seed[1..57], &other, &account],
            code,
            &[part],
        );
    }
}

#[tokio::test]
async fn the_jwt_of_an_operators_user_opens_the_server() {
    let operator = Operator::new();
    let nats = operator.server();
    let user = operator.user();
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "relay.creds", &user.credentials());
    let jwt = write(&folder, "jwt", &format!("{}\n", user.jwt));
    write(&folder, "seed", &format!("{}\n", user.seed));
    let content = user.credentials();
    let host = nats.url();
    let secrets = [user.jwt.as_str(), user.seed.as_str()];
    let home = folder.path().to_str().unwrap();
    for variables in [
        &[("NATS_CREDS", file.as_str())][..],
        &[("NATS_CREDS", "~/relay.creds"), ("HOME", home)],
        &[("NATS_CREDS_FILE", &file)],
        &[("NATS_CREDS_FILE", "~/relay.creds"), ("HOME", home)],
        &[("NATS_CREDS_FILE", "file://$HOME/relay.creds"), ("HOME", home)],
        &[("NATS_CREDS", &content)],
        // As some files with variables have it.
        &[("NATS_CREDS", &content.replace('\n', " "))],
        &[("NATS_JWT", &user.jwt), ("NATS_SEED", &user.seed)],
        &[("NATS_JWT_FILE", &jwt), ("NATS_SEED_FILE", "~/seed"), ("HOME", home)],
    ] {
        assert_connects(&host, variables, &secrets);
    }
    let log = assert_relays(&client_of(&user, &nats).await, &host, &[("NATS_CREDS", &file)]).await;
    assert!(secrets.iter().all(|secret| !log.contains(secret)));

    let bearer = operator.user_with(json!({}), json!({"bearer_token": true}));
    assert_connects(&host, &[("NATS_JWT", &bearer.jwt)], &[&bearer.jwt]);
}

#[tokio::test]
async fn credentials_that_cannot_work_are_told_by_what_is_wrong_with_them() {
    let (operator, other) = (Operator::new(), Operator::new());
    let nats = operator.server();
    let (user, stranger) = (operator.user(), other.user());
    let expired = operator.user_with(json!({"exp": 1_700_000_000}), json!({}));
    let folder = TempDir::new().unwrap();
    let host = nats.url();
    let secrets =
        [&user, &stranger, &expired].map(|user| [user.jwt.as_str(), user.seed.as_str()]).concat();
    let creds = |name: &str, text: &str| write(&folder, name, text);
    let foreign = User { jwt: user.jwt.clone(), seed: stranger.seed.clone() };
    let without_seed = user.credentials().replace(&user.seed, "");
    let without_jwt = user.credentials().replace(&user.jwt, "");
    for (variables, code, parts) in [
        (
            &[("NATS_CREDS", creds("expired", &expired.credentials()).as_str())][..],
            1,
            &["refused the login", "expired at 2023-11-14T22:13:20Z", "renew NATS_CREDS"][..],
        ),
        (
            &[("NATS_JWT", &expired.jwt), ("NATS_SEED", &expired.seed)],
            1,
            &["expired at 2023-11-14T22:13:20Z", "NATS_JWT"],
        ),
        (
            &[("NATS_CREDS", &creds("stranger", &stranger.credentials()))],
            1,
            &["refused the login: check NATS_CREDS"],
        ),
        (
            &[("NATS_CREDS", "/none/hunter2")],
            64,
            &["NATS_CREDS: cannot read the file that it names: No such file"],
        ),
        (
            &[("NATS_CREDS_FILE", "/none/here")],
            64,
            &["NATS_CREDS_FILE: cannot read the file that it names: No such file"],
        ),
        (&[("NATS_CREDS", &creds("text", SECRET))], 64, &["NATS_CREDS: holds no"]),
        (
            &[("NATS_CREDS", &creds("seedless", &without_seed))],
            64,
            &["NATS_CREDS: holds no valid seed"],
        ),
        (&[("NATS_CREDS", &creds("jwtless", &without_jwt))], 64, &["NATS_CREDS: holds no JWT"]),
        (
            &[("NATS_CREDS", &creds("foreign", &foreign.credentials()))],
            64,
            &["NATS_CREDS: the seed is not that of the user"],
        ),
        (&[("NATS_CREDS", &without_jwt)], 64, &["NATS_CREDS: holds no JWT"]),
        (&[("NATS_JWT", &user.jwt)], 64, &["NATS_SEED: the JWT needs its seed"]),
        (
            &[("NATS_JWT", &user.jwt), ("NATS_SEED", &stranger.seed)],
            64,
            &["NATS_SEED: the seed is not that of the user"],
        ),
        (
            &[("NATS_JWT", &user.jwt), ("NATS_SEED", "SUhunter2")],
            64,
            &["NATS_SEED: holds no valid seed"],
        ),
        (
            &[("NATS_JWT", "eyJ.hunter2.x"), ("NATS_SEED", &user.seed)],
            64,
            &["NATS_JWT: holds a JWT that cannot be read"],
        ),
        (&[("NATS_SEED", &user.seed)], 64, &["NATS_SEED: set without NATS_JWT"]),
    ] {
        assert_refuses(&host, variables, &secrets, code, parts);
    }
}

#[tokio::test]
async fn two_ways_to_log_in_are_one_too_many() {
    let user = Operator::new().user();
    let seed = KeyPair::new_user().seed().unwrap();
    let credentials = user.credentials();
    let ways = [
        ("NATS_USER", "relay"),
        ("NATS_TOKEN", SECRET),
        ("NATS_CREDS", credentials.as_str()),
        ("NATS_NKEY", &seed),
        ("NATS_JWT", &user.jwt),
    ];
    for (index, first) in ways.iter().enumerate() {
        for second in ways.iter().skip(index + 1) {
            let mut variables = vec![*first, *second];
            variables.extend((second.0 == "NATS_JWT").then_some(("NATS_SEED", user.seed.as_str())));
            let expected = format!("{}: {} is set too", second.0, first.0);
            assert_refuses(
                "nats://127.0.0.1:1",
                &variables,
                &[&user.seed, &seed],
                64,
                &[&expected, "unset one"],
            );
        }
        if first.0 != "NATS_USER" && first.0 != "NATS_JWT" {
            let expected = format!("{}: the URL in NATS_HOST has a login too", first.0);
            assert_refuses(
                "nats://me:hunter2@127.0.0.1:1",
                &[*first],
                &[&user.seed, &seed],
                64,
                &[&expected],
            );
        }
    }
}

#[tokio::test]
async fn renewed_credentials_are_used_at_the_next_connection() {
    let operator = Operator::new();
    let nats = operator.server();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let short = operator.user_with(json!({"exp": now + 15}), json!({}));
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "relay.creds", &short.credentials());
    let variables = [("NATS_CREDS", file.as_str()), ("HTTP_LISTEN", "127.0.0.1:0")];
    let mut relay = Relay::start(&nats.url(), "http://127.0.0.1:9/", &variables).await;
    // The server ends the connection when the JWT does.
    let line = relay.logged("the login expired").await;
    assert!(line.contains("ERROR"), "{line}");
    let line = relay.logged("cannot reconnect to NATS yet").await;
    assert!(line.contains("the JWT has expired at") && line.contains("renew NATS_CREDS"), "{line}");
    relay.readyz(503).await;
    std::fs::write(&file, operator.user().credentials()).unwrap();
    relay.logged("reconnected to NATS").await;
    relay.readyz(200).await;
    assert!(relay.stop().await.success());
    assert!(!relay.log().concat().contains(&short.seed));
}

#[tokio::test]
async fn exactly_the_documented_permissions_are_enough_for_an_operators_user_with_an_inbox_of_its_own()
 {
    let operator = Operator::new();
    let nats = operator.server();
    let permissions = json!({
        "sub": {"allow": ["cms.cache.>", "_INBOX_relay.>"]},
        "pub": {"allow": ["relayed.cache.>", "failed.cache.>", "_INBOX_relay.>"]},
    });
    let user = operator.user_with(json!({}), permissions);
    let endpoint = Endpoint::start(|call| {
        Reply::status(if call.subject() == "cms.cache.b" { 400 } else { 200 })
    })
    .await;
    let observer = client_of(&operator.user(), &nats).await;
    let mut messages = subscribe(&observer, "*.cache.>").await;
    let credentials = user.credentials();
    let variables = [
        ("NATS_CREDS", credentials.as_str()),
        ("NATS_FAILED_SUBJECT_PREFIX", "failed.cache"),
        ("NATS_INBOX_PREFIX", "_INBOX_relay"),
    ];
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables).await;
    for (subject, outcome) in
        [("cms.cache.a", "relayed.cache.a"), ("cms.cache.b", "failed.cache.b")]
    {
        observer.publish(subject, "1".into()).await.unwrap();
        for expected in [subject, outcome] {
            assert_eq!(
                within("a message", messages.next()).await.unwrap().subject.as_str(),
                expected
            );
        }
    }
    assert!(relay.stop().await.success());
    assert!(relay.lines("WARN").is_empty(), "{:?}", relay.lines("WARN"));

    // The usual inbox is not allowed to it, and the relay names the one that it uses.
    let mut relay = Relay::start(&nats.url(), &endpoint.url(), &variables[..2]).await;
    assert!(relay.stop().await.success());
    assert_eq!(
        relay.lines("may not publish and subscribe on _INBOX.>").len(),
        1,
        "{:?}",
        relay.log()
    );
}

// Contexts

/// A folder for `XDG_CONFIG_HOME` with this context, which is selected if `is_selected`.
fn context(name: &str, text: &serde_json::Value, is_selected: bool) -> TempDir {
    let folder = TempDir::new().unwrap();
    write(&folder, &format!("nats/context/{name}.json"), &text.to_string());
    if is_selected {
        write(&folder, "nats/context.txt", name);
    }
    folder
}

#[tokio::test]
async fn a_context_says_where_to_connect_and_how_to_log_in() {
    let operator = Operator::new();
    let with_operator = operator.server();
    let user = operator.user();
    let key = KeyPair::new_user();
    let (seed, public) = (key.seed().unwrap(), key.public_key());
    let with_password =
        NatsServer::with_config("authorization { user: relay, password: \"hunter2/x\" }");
    let with_token = NatsServer::with_config("authorization { token: hunter2 }");
    let with_nkey =
        NatsServer::with_config(&format!("authorization {{ users: [ {{ nkey: {public} }} ] }}"));
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"]);
    let relay = authority.issue("relay", &[]);
    let ca = authority.path();
    let with_tls = NatsServer::with_config(
        &server.tls(&format!("handshake_first: true, verify: true, ca_file: \"{ca}\"")),
    );
    let files = TempDir::new().unwrap();
    let creds = write(&files, "user.creds", &user.credentials());
    write(&files, "user.nk", &seed);
    write(&files, "token", "hunter2\n");
    let home = files.path().to_str().unwrap();
    let encoded = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(user.credentials())
    };
    let in_url = with_password.url().replace("://", "://relay:hunter2%2Fx@");
    for (nats, fields) in [
        (&with_password, json!({"user": "relay", "password": "hunter2/x"})),
        (&with_password, json!({"url": in_url})),
        (
            &with_password,
            json!({"user": "relay", "password": "env://PASSWORD", "description": "x", "color_scheme": ""}),
        ),
        (&with_token, json!({"token": "hunter2"})),
        (&with_token, json!({"token": format!("file://{home}/token")})),
        (&with_operator, json!({"creds": creds})),
        (&with_operator, json!({"creds": "~/user.creds", "nkey": "", "user": ""})),
        (&with_operator, json!({"creds": "$HOME/user.creds"})),
        (&with_operator, json!({"creds": "${FOLDER}/user.creds"})),
        (&with_operator, json!({"creds": format!("file://{creds}")})),
        (&with_operator, json!({"creds": "env://CREDS"})),
        (&with_operator, json!({"creds": format!("data:;base64,{encoded}")})),
        (&with_operator, json!({"user_jwt": user.jwt, "user_seed": user.seed})),
        (&with_operator, json!({"user_jwt": "env://JWT", "user_seed": "env://SEED"})),
        (&with_nkey, json!({"nkey": "~/user.nk"})),
        (
            &with_tls,
            json!({"ca": ca, "cert": relay.certificate, "key": relay.key, "tls_first": true}),
        ),
    ] {
        let mut all = json!({"url": nats.url()});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let credentials = user.credentials();
        let environment = [
            ("HOME", home),
            ("FOLDER", home),
            ("PASSWORD", "hunter2/x"),
            ("CREDS", &credentials),
            ("JWT", &user.jwt),
            ("SEED", &user.seed),
        ];
        let secrets = [user.seed.as_str(), &user.jwt, &seed, &encoded];
        let folder = context("ngs.prod", &all, true);
        let xdg = ("XDG_CONFIG_HOME", folder.path().to_str().unwrap());
        let file = folder.path().join("nats/context/ngs.prod.json");
        let file = file.to_str().unwrap();
        for context in [&[][..], &[("NATS_CONTEXT", "ngs.prod")], &[("NATS_CONTEXT", file)]] {
            let output =
                assert_connects("", &[&environment[..], &[xdg], context].concat(), &secrets);
            assert!(output.contains("uses          context") && output.contains(file), "{output}");
        }
    }
}

#[tokio::test]
async fn the_selected_context_is_named_at_the_start_and_counts_only_without_a_server() {
    let nats = NatsServer::start();
    let folder = context("prod", &json!({"url": nats.url()}), true);
    let xdg = ("XDG_CONFIG_HOME", folder.path().to_str().unwrap());
    let mut relay = Relay::start("", "http://127.0.0.1:9/", &[xdg]).await;
    assert!(relay.stop().await.success());
    let line = relay.lines("context of the nats command line");
    assert!(
        line.len() == 1 && line[0].contains("INFO") && line[0].contains("context prod ("),
        "{line:?}"
    );

    let elsewhere = context(
        "prod",
        &json!({"url": "nats://127.0.0.1:1", "user": "x", "socks_proxy": "socks5://h"}),
        true,
    );
    let xdg = ("XDG_CONFIG_HOME", elsewhere.path().to_str().unwrap());
    for host in ["NATS_HOST", "NATS_URL", "NATS_ADDRESS"] {
        let output = assert_connects("", &[xdg, (host, &nats.url())], &[]);
        assert!(!output.contains("context"), "{output}");
    }
}

#[tokio::test]
async fn with_nats_env_no_context_counts_and_a_user_alone_is_a_token() {
    let nats = NatsServer::with_config("authorization { token: hunter2 }");
    let url = nats.url();
    let folder = context("prod", &json!({"url": "nats://127.0.0.1:1", "token": "other"}), true);
    let xdg = ("XDG_CONFIG_HOME", folder.path().to_str().unwrap());
    let user = ("NATS_USER", SECRET);
    for context in [&[][..], &[("NATS_CONTEXT", "prod")], &[("NATS_CONTEXT", "gone")]] {
        let variables = [&[xdg, user, ("NATS_ENV", "true"), ("NATS_URL", &url)], context].concat();
        let output = assert_connects("", &variables, &[SECRET]);
        assert!(!output.contains("context"), "{output}");
    }
    assert_refuses(&url, &[user], &[SECRET], 1, &["refused the login"]);
    // Nothing says where the server is: the usual place, not the selected context's.
    let (_, output) = check("", &[xdg, user, ("NATS_ENV", "true")], &[SECRET]);
    assert!(!output.contains("mistake") && !output.contains("127.0.0.1:1:"), "{output}");
}

#[tokio::test]
async fn what_is_set_wins_over_the_context_field_by_field() {
    let operator = Operator::new();
    let with_operator = operator.server();
    let user = operator.user();
    let credentials = user.credentials();
    let with_password = NatsServer::with_config("authorization { user: relay, password: hunter2 }");
    let authority = Authority::new();
    let with_tls = NatsServer::with_config(&authority.issue("server", &["127.0.0.1"]).tls(""));
    let ca = authority.path();
    let wrong = Authority::new();
    for (fields, variables) in [
        (
            json!({"url": "nats://127.0.0.1:1", "user": "relay", "password": SECRET}),
            &[("NATS_HOST", with_password.url())][..],
        ),
        (
            json!({"url": with_password.url(), "user": "relay", "password": "other"}),
            &[("NATS_PASS", SECRET.to_owned())],
        ),
        (
            json!({"url": with_password.url(), "user": "other", "password": SECRET}),
            &[("NATS_USER", "relay".to_owned())],
        ),
        (
            json!({"url": with_operator.url(), "user": "other", "token": "x"}),
            &[("NATS_CREDS", credentials.clone())],
        ),
        (
            json!({"url": with_operator.url(), "nsc": "nsc://o/a/u"}),
            &[("NATS_CREDS", credentials.clone())],
        ),
        (
            json!({"url": with_operator.url(), "creds": "/none"}),
            &[("NATS_JWT", user.jwt.clone()), ("NATS_SEED", user.seed.clone())],
        ),
        (
            json!({"url": with_operator.url(), "user_jwt": user.jwt}),
            &[("NATS_SEED", user.seed.clone())],
        ),
        (
            json!({"url": "nats://127.0.0.1:1", "creds": "/none"}),
            &[("NATS_HOST", with_password.url().replace("://", "://relay:hunter2@"))],
        ),
        (
            json!({"url": with_tls.url(), "ca": wrong.path(), "tls_first": true}),
            &[("NATS_CA", ca), ("NATS_TLS_FIRST", "false".to_owned())],
        ),
    ] {
        let folder = context("prod", &fields, false);
        let mut all =
            vec![("XDG_CONFIG_HOME", folder.path().to_str().unwrap()), ("NATS_CONTEXT", "prod")];
        all.extend(variables.iter().map(|(name, value)| (*name, value.as_str())));
        assert_connects("", &all, &[&user.seed]);
    }
}

#[tokio::test]
async fn a_context_brings_its_inbox_and_its_jetstream() {
    let users = r#"authorization { users: [ { user: admin, password: pw }, { user: relay, password: pw, permissions: {
        subscribe: ["cms.cache.>", "mine.in.>"], publish: ["relayed.cache.>", "mine.in.>"] } } ] }"#;
    let nats = NatsServer::with_config(users);
    let fields =
        json!({"url": nats.url(), "user": "relay", "password": "pw", "inbox_prefix": "mine.in"});
    let folder = context("prod", &fields, false);
    let variables =
        [("XDG_CONFIG_HOME", folder.path().to_str().unwrap()), ("NATS_CONTEXT", "prod")];
    assert_relays(&nats.client_as("admin", "pw").await, "", &variables).await;

    let hub = NatsServer::with_config("jetstream { domain: hub }");
    let stream = async_nats::jetstream::stream::Config {
        name: "CMS".to_owned(),
        subjects: vec!["cms.cache.>".to_owned()],
        ..Default::default()
    };
    async_nats::jetstream::with_domain(hub.client().await, "hub")
        .create_stream(stream)
        .await
        .unwrap();
    for (fields, more, code) in [
        (json!({"jetstream_domain": "hub"}), &[][..], 0),
        (json!({"jetstream_api_prefix": "$JS.hub.API"}), &[], 0),
        (json!({"jetstream_api_prefix": "$JS.none.API", "jetstream_domain": "hub"}), &[], 0),
        (json!({"jetstream_domain": "none"}), &[("NATS_JETSTREAM_DOMAIN", "hub")], 0),
        (
            json!({"jetstream_api_prefix": "$JS.none.API"}),
            &[("NATS_JETSTREAM_API_PREFIX", "$JS.hub.API")],
            0,
        ),
        (json!({"jetstream_domain": "none"}), &[], 1),
        (json!({"jetstream_domain": "a.b"}), &[], 64),
        (json!({"inbox_prefix": "a.*"}), &[], 64),
    ] {
        let mut all = json!({"url": hub.url()});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let folder = context("hub", &all, true);
        let xdg = [("XDG_CONFIG_HOME", folder.path().to_str().unwrap())];
        let mode = [("NATS_STREAM", "CMS")];
        let (found, output) = check("", &[&xdg[..], &mode, more].concat(), &[]);
        assert_eq!(found, code, "{fields}: {output}");
    }
}

#[tokio::test]
async fn a_context_that_cannot_be_used_is_one_mistake_that_names_it() {
    let url = "nats://127.0.0.1:1";
    for (fields, parts) in [
        (json!({"url": "http://hunter2@h"}), &["url: expected server URLs"][..]),
        (json!({"url": 1}), &["url: expected a text"]),
        (
            json!({"url": url, "socks_proxy": "socks5://u:hunter2@h"}),
            &["socks_proxy: a proxy is not supported"],
        ),
        (json!({"url": url, "nsc": "nsc://o/a/hunter2"}), &["nsc: is not supported", "NATS_CREDS"]),
        (json!({"url": url, "creds": "nsc://o/a/hunter2"}), &["creds: nsc:// is not supported"]),
        (json!({"url": url, "token": "op://hunter2/x/y"}), &["token: op:// is not supported"]),
        (
            json!({"url": url, "windows_cert_store": "user"}),
            &["windows_cert_store: is not supported", "NATS_CERT"],
        ),
        (json!({"url": url, "creds": "/none/hunter2"}), &["creds of context prod", "No such file"]),
        (
            json!({"url": url, "creds": "$NONE/x"}),
            &["creds: a variable that the path names is not set"],
        ),
        (
            json!({"url": url, "user": "relay", "password": "env://NONE"}),
            &["password: the variable that env:// names is not set"],
        ),
        (
            json!({"url": url, "nkey": "/etc/hostname"}),
            &["nkey of context prod", "holds no valid seed"],
        ),
        (json!({"url": url, "user_jwt": "hunter2"}), &["user_jwt of context prod", "holds no JWT"]),
        (
            json!({"url": url, "ca": "/none/ca.pem"}),
            &["ca of context prod", "cannot read /none/ca.pem"],
        ),
        (
            json!({"url": url, "key": "/none/hunter2"}),
            &["key of context prod", "cannot read the file"],
        ),
        (json!({"url": url, "tls_first": "yes"}), &["tls_first: expected true or false"]),
        (
            json!({"url": "ws://127.0.0.1:1", "tls_first": true}),
            &["tls_first of context prod", "ws://"],
        ),
        (json!("hunter2"), &["is not a JSON object"]),
    ] {
        let folder = context("prod", &fields, true);
        let xdg = ("XDG_CONFIG_HOME", folder.path().to_str().unwrap());
        let file = folder.path().join("nats/context/prod.json");
        let parts = [&["NATS_CONTEXT: ", file.to_str().unwrap()], parts].concat();
        assert_refuses("", &[xdg], &[], 64, &parts);
    }
    let empty = TempDir::new().unwrap();
    let xdg = ("XDG_CONFIG_HOME", empty.path().to_str().unwrap());
    assert_refuses("", &[xdg], &[], 64, &["NATS_HOST: required"]);
    // One mistake, however much would follow from it.
    let half = context(
        "prod",
        &json!({"url": url, "cert": "/etc/hostname", "key": "/none", "user_jwt": "env://NONE"}),
        true,
    );
    let (_, output) = check("", &[("XDG_CONFIG_HOME", half.path().to_str().unwrap())], &[]);
    assert!(output.contains("3 mistakes") && !output.contains("set without"), "{output}");
    assert_refuses(
        "",
        &[xdg, ("NATS_CONTEXT", "gone")],
        &[],
        64,
        &["NATS_CONTEXT: cannot read", "nats/context/gone.json"],
    );
    assert_refuses(
        "",
        &[("NATS_CONTEXT", "gone")],
        &[],
        64,
        &["neither XDG_CONFIG_HOME nor HOME is set"],
    );
    write(&empty, "nats/context.txt", "gone");
    assert_refuses("", &[xdg], &[], 64, &["NATS_CONTEXT: selected in", "context.txt", "gone.json"]);
}
