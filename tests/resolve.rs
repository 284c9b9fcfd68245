//! `WEBHOOK_RESOLVE=all`: every address of a destination's host is called, with a real DNS server
//! and instances on loopback addresses that come, go, hang and answer 500.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use support::authority::{Authority, TlsListener};
use support::dns::{Dns, HOST};
use support::endpoint::{Call, Endpoint, Reply};
use support::eventually;
use support::relay::{self, Relay, field};
use support::setup::{Setup, header};
use tokio::net::TcpListener;

const HOUR: Duration = Duration::from_secs(3600);
const CHANGED: &str = "\"message\":\"the instances of a destination have changed\"";

/// A frontend's host, and room for its instances: one port of several loopback addresses.
struct Frontend {
    dns: Dns,
    port: u16,
    addresses: Vec<IpAddr>,
    listeners: Vec<Option<TcpListener>>,
}

impl Frontend {
    async fn new(count: usize) -> Self {
        let dns = Dns::start().await;
        loop {
            let address = |_| IpAddr::from([127, byte(), byte(), byte()]);
            let addresses: Vec<_> = (0..count).map(address).collect();
            let (mut port, mut listeners) = (0, Vec::new());
            for address in &addresses {
                // Somebody else may have the port of one of the addresses.
                let Ok(listener) = TcpListener::bind((*address, port)).await else { break };
                port = listener.local_addr().unwrap().port();
                listeners.push(Some(listener));
            }
            if listeners.len() == count {
                return Self { dns, port, addresses, listeners };
            }
        }
    }

    fn url(&self) -> String {
        format!("http://{HOST}:{}/hook", self.port)
    }

    /// The destination as it is called at one address.
    fn at(&self, index: usize) -> String {
        format!("{} at {}", self.url(), self.addresses[index])
    }

    /// Starts the instance at an address.
    fn starts(
        &mut self,
        index: usize,
        reply: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Endpoint {
        Endpoint::on(self.listeners[index].take().unwrap(), reply)
    }

    /// The host has exactly these addresses from now on.
    fn has(&self, indices: &[usize]) {
        let addresses: Vec<_> = indices.iter().map(|index| self.addresses[*index]).collect();
        self.dns.has(&addresses);
    }

    async fn relay(&self, more: &[(&str, &str)]) -> Setup {
        self.relay_to(&self.url(), more).await
    }

    async fn relay_to(&self, url: &str, more: &[(&str, &str)]) -> Setup {
        let mut variables = vec![
            ("WEBHOOK_RESOLVE", "all"),
            ("WEBHOOK_RESOLVE_SERVER", &self.dns.address),
            ("WEBHOOK_RESOLVE_INTERVAL", "100ms"),
            ("WEBHOOK_MAX_ATTEMPTS", "unlimited"),
            ("WEBHOOK_TIMEOUT", "1h"),
            ("HTTP_LISTEN", "127.0.0.1:0"),
        ];
        variables.extend_from_slice(more);
        Setup::start(url, &variables).await
    }
}

/// Neither the first nor the last of a network.
fn byte() -> u8 {
    fastrand::u8(1..255)
}

/// An instance that answers what it is told.
fn told(status: u16) -> (Arc<AtomicU16>, impl Fn(&Call) -> Reply + Send + Sync + 'static) {
    let status = Arc::new(AtomicU16::new(status));
    let told = status.clone();
    (status, move |_: &Call| Reply::status(told.load(Ordering::SeqCst)))
}

fn ok(_: &Call) -> Reply {
    Reply::ok()
}

/// Where the log names what was done, in its order: `answered` with the destination, `relayed`.
fn steps(relay: &Relay) -> Vec<String> {
    let step = |line: &String| {
        if line.contains("\"message\":\"answered\"") {
            return Some(field_to_quote(line, "destination"));
        }
        line.contains("\"message\":\"relayed\"").then(|| "relayed".to_owned())
    };
    relay.log().iter().filter_map(step).collect()
}

/// A field that may have commas.
fn field_to_quote(line: &str, name: &str) -> String {
    line.split(&format!("\"{name}\":\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_message_is_relayed_when_every_address_has_accepted_it_and_not_before() {
    let mut frontend = Frontend::new(3).await;
    let (status, reply) = told(503);
    let (a, b, c) = (frontend.starts(0, ok), frontend.starts(1, reply), frontend.starts(2, ok));
    frontend.has(&[0, 1, 2]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "x").await;
    setup.relay.logged_times("\"message\":\"answered\"", 2).await;
    b.received(3).await;
    status.store(200, Ordering::SeqCst);
    setup.relayed().await;
    let steps = steps(&setup.relay);
    let mut first: Vec<_> = steps[..2].to_vec();
    first.sort();
    let mut expected = vec![frontend.at(0), frontend.at(2)];
    expected.sort();
    assert_eq!(first, expected, "the console names the addresses");
    assert_eq!(steps[2..], [frontend.at(1), "relayed".to_owned()]);
    setup.end().await;
    assert_eq!((a.count(), c.count()), (1, 1), "only what has not accepted is called again");
    let authority = format!("{HOST}:{}", frontend.port);
    for call in a.calls().iter().chain(&b.calls()) {
        assert_eq!((call.header("host"), call.path.as_str()), (&*authority, "/hook"));
    }
}

#[tokio::test]
async fn an_instance_that_answers_500_or_hangs_is_not_waited_for_once_it_has_left() {
    let (_, failing) = told(500);
    let hanging = |_: &Call| Reply::ok().after(HOUR);
    let mut frontend = Frontend::new(3).await;
    let a = frontend.starts(0, ok);
    let (b, c) = (frontend.starts(1, failing), frontend.starts(2, hanging));
    for (index, other) in [(1, &b), (2, &c)] {
        frontend.has(&[0, index]);
        let mut setup = frontend.relay(&[]).await;
        setup.publish("cms.cache.a", "").await;
        // Until it waits for a retry, or for the answer.
        other.received(if index == 1 { 3 } else { 1 }).await;
        setup.relay.logged("\"message\":\"answered\"").await;
        assert!(setup.relay.lines("\"message\":\"relayed\"").is_empty());
        frontend.has(&[0]);
        setup.relayed().await;
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
        setup.end().await;
    }
    assert_eq!((a.count(), c.count()), (4, 1));
}

#[tokio::test]
async fn an_instance_that_comes_is_called_with_what_is_not_accepted_yet_and_from_then_on() {
    let mut frontend = Frontend::new(3).await;
    let (status, reply) = told(500);
    let (a, b, c) = (frontend.starts(0, ok), frontend.starts(1, reply), frontend.starts(2, ok));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "first").await;
    b.received(2).await;
    setup.relay.logged_times(CHANGED, 1).await;
    frontend.has(&[0, 1, 2]);
    setup.relay.logged_times(CHANGED, 2).await;
    assert_eq!(setup.relay.metric(&gauge(&frontend)).await, 3);
    status.store(200, Ordering::SeqCst);
    setup.relayed().await;
    assert_eq!((a.count(), c.count()), (1, 1));
    setup.publish("cms.cache.a", "second").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((a.count(), c.count()), (2, 2));
}

fn gauge(frontend: &Frontend) -> String {
    format!("webhook_instances{{destination=\"{}\"}}", frontend.url())
}

fn calls(frontend: &Frontend, index: usize, result: &str) -> String {
    let (url, address) = (frontend.url(), frontend.addresses[index]);
    let labels = format!("destination=\"{url}\",address=\"{address}\",result=\"{result}\"");
    format!("webhook_instance_calls_total{{{labels}}}")
}

#[tokio::test]
async fn the_metrics_name_the_addresses_that_the_host_has() {
    let mut frontend = Frontend::new(2).await;
    let (status, reply) = told(500);
    let (_a, b) = (frontend.starts(0, ok), frontend.starts(1, reply));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    b.received(2).await;
    status.store(404, Ordering::SeqCst);
    setup.failed().await;
    let relay = &setup.relay;
    assert_eq!(relay.metric(&calls(&frontend, 0, "accepted")).await, 1);
    assert!(relay.metric(&calls(&frontend, 1, "retried")).await >= 1);
    assert_eq!(relay.metric(&calls(&frontend, 1, "refused")).await, 1);
    frontend.has(&[0]);
    relay.counted(&gauge(&frontend), 1).await;
    let (_, text) = relay.get("/metrics").await;
    let (kept, left) = (frontend.addresses[0], frontend.addresses[1]);
    assert!(text.contains(&format!("\"{kept}\"")) && !text.contains(&format!("\"{left}\"")));
    setup.end().await;
}

#[tokio::test]
async fn an_instance_that_cannot_be_reached_is_looked_up_again_at_once() {
    let mut frontend = Frontend::new(2).await;
    let a = frontend.starts(0, ok);
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[("WEBHOOK_RESOLVE_INTERVAL", "1h")]).await;
    setup.relay.logged(CHANGED).await;
    frontend.has(&[0]);
    // Nobody listens there any more.
    frontend.listeners[1] = None;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn a_host_without_addresses_is_retried_until_it_has_one() {
    let mut frontend = Frontend::new(1).await;
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    let line = setup.relay.logged("webhook delivery failing, retrying").await;
    assert!(line.contains(&format!("the host {HOST} has no address")), "{line}");
    let a = frontend.starts(0, ok);
    frontend.has(&[0]);
    setup.relayed().await;
    setup.relay.logged("webhook delivery recovered").await;
    // And again, with an instance that has accepted a message and left before it was relayed.
    frontend.dns.has_no_host();
    setup.relay.counted(&gauge(&frontend), 0).await;
    setup.publish("cms.cache.b", "").await;
    frontend.has(&[0]);
    setup.relayed().await;
    setup.end().await;
    assert_eq!(a.count(), 2);
}

#[tokio::test]
async fn a_message_whose_instances_have_all_left_is_not_relayed_without_a_new_one() {
    let mut frontend = Frontend::new(3).await;
    let hanging = |_: &Call| Reply::ok().after(HOUR);
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, hanging));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    b.received(1).await;
    setup.relay.logged("\"message\":\"answered\"").await;
    frontend.dns.has_no_host();
    setup.relay.logged("has no address").await;
    let c = frontend.starts(2, ok);
    frontend.has(&[2]);
    setup.relayed().await;
    setup.end().await;
    assert_eq!((a.count(), b.count(), c.count()), (1, 1, 1));
}

#[tokio::test]
async fn without_addresses_a_message_fails_after_as_many_attempts_as_are_allowed() {
    let frontend = Frontend::new(1).await;
    let mut setup = frontend.relay(&[("WEBHOOK_MAX_ATTEMPTS", "2")]).await;
    for (expected, fails) in [("has no address", false), ("cannot look up the addresses of", true)]
    {
        if fails {
            frontend.dns.fails();
            setup.relay.logged("cannot look up the instances of a destination").await;
        }
        setup.publish("cms.cache.a", "").await;
        let message = setup.failed().await;
        assert_eq!(header(&message, "Relay-Destination"), frontend.url());
        assert_eq!(header(&message, "Relay-Status"), "none");
        assert_eq!(header(&message, "Relay-Attempts"), "2");
        let error = header(&message, "Relay-Destination-Error");
        assert!(error.contains(expected) && error.contains(HOST), "{error}");
    }
    setup.end().await;
}

#[tokio::test]
async fn while_the_name_server_fails_the_known_addresses_are_called() {
    let mut frontend = Frontend::new(2).await;
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, ok));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.relay.logged(CHANGED).await;
    frontend.dns.fails();
    let line = setup.relay.logged("cannot look up the instances of a destination").await;
    assert_eq!(field(&line, "level"), "WARN");
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    let queries = frontend.dns.queries();
    eventually("more look-ups", || frontend.dns.queries() > queries + 4).await;
    assert_eq!(setup.relay.lines("cannot look up the instances").len(), 1, "said once");
    setup.end().await;
    assert_eq!((a.count(), b.count()), (1, 1));
}

#[tokio::test]
async fn the_failed_subject_names_the_address() {
    let mut frontend = Frontend::new(2).await;
    let (_, reply) = told(400);
    let (a, _b) = (frontend.starts(0, ok), frontend.starts(1, reply));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    assert_eq!(header(&message, "Relay-Destination"), frontend.at(1));
    assert_eq!(header(&message, "Relay-Status"), "400");
    setup.end().await;
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn over_tls_the_certificate_is_for_the_host_and_not_for_the_address() {
    let authority = Authority::new();
    let mut frontend = Frontend::new(2).await;
    let mut instance = |index: usize| {
        let listener = frontend.listeners[index].take().unwrap();
        let config = authority.server(&[HOST], &["h2", "http/1.1"]);
        Endpoint::tls(TlsListener::on(listener, config), ok)
    };
    let (a, b) = (instance(0), instance(1));
    frontend.has(&[0, 1]);
    let url = frontend.url().replace("http:", "https:");
    let variables = [("WEBHOOK_CA", &*authority.path()), ("WEBHOOK_MAX_ATTEMPTS", "1")];
    let mut setup = frontend.relay_to(&url, &variables).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((a.count(), b.count()), (1, 1));
}

#[tokio::test]
async fn a_host_that_is_an_address_or_this_machine_is_called_as_without() {
    let endpoint = Endpoint::ok().await;
    let frontend = Frontend::new(0).await;
    let both = format!("{} http://localhost:{}/x", endpoint.url(), endpoint.port);
    let mut setup = frontend.relay_to(&both, &[]).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((endpoint.count(), frontend.dns.queries()), (2, 0));
}

#[tokio::test]
async fn check_shows_the_addresses_of_both_families() {
    let (nats, frontend) = (support::nats::NatsServer::start(), Frontend::new(0).await);
    let addresses = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap(), [127, 0, 0, 9].into()];
    let variables = [
        ("WEBHOOK_DESTINATION", "http://frontend.test/hook"),
        ("NATS_HOST", &nats.url()),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("WEBHOOK_RESOLVE", "all"),
        ("WEBHOOK_RESOLVE_SERVER", &frontend.dns.address),
    ];
    let checked = || async {
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let run = move || {
            let variables = variables.each_ref().map(|(name, value)| (&**name, &**value));
            relay::run(&["check"], &variables)
        };
        let (status, stdout, stderr) = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(status.success(), "{stderr}");
        stdout
    };
    assert_eq!(IpAddr::from(Ipv4Addr::LOCALHOST), addresses[0]);
    let stdout = checked().await;
    assert!(stdout.contains("http://frontend.test/hook (no address at present)"), "{stdout}");
    frontend.dns.has(&addresses);
    let stdout = checked().await;
    let expected = "http://frontend.test/hook at 127.0.0.1, 127.0.0.9, ::1";
    assert!(stdout.contains(expected), "{stdout}");
}

#[tokio::test]
async fn through_a_proxy_the_addresses_cannot_be_told_apart() {
    let variables = [
        ("WEBHOOK_DESTINATION", "http://user:pa55@frontend.test/hook http://127.0.0.1/"),
        ("NATS_HOST", "nats://127.0.0.1:1"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("WEBHOOK_RESOLVE", "all"),
        ("HTTP_PROXY", "http://user:pa55@127.0.0.1:1"),
    ];
    let (status, _, stderr) = relay::run(&[], &variables);
    assert_eq!(status.code(), Some(64), "{stderr}");
    let expected = "WEBHOOK_RESOLVE: number 1 of WEBHOOK_DESTINATION is called through a proxy";
    assert_eq!(stderr.matches("WEBHOOK_RESOLVE: ").count(), 1, "{stderr}");
    assert!(stderr.contains(expected) && stderr.contains("NO_PROXY"), "{stderr}");
    assert!(!stderr.contains("pa55"), "{stderr}");
}
