//! `WEBHOOK_RESOLVE=all`: every address of a destination's host is called, with a real DNS server
//! and instances on loopback addresses that come, go, hang and answer 500.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
const NOT_LOOKED_UP: &str = "cannot look up the instances of a destination";
const ANSWERED: &str = "\"message\":\"answered\"";

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
        if line.contains(ANSWERED) {
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
    setup.relay.logged_times(ANSWERED, 2).await;
    b.received(3).await;
    status.store(200, Ordering::SeqCst);
    setup.relayed().await;
    setup.relay.logged("\"message\":\"relayed\"").await;
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
        setup.relay.logged(ANSWERED).await;
        assert!(setup.relay.lines("\"message\":\"relayed\"").is_empty());
        frontend.has(&[0]);
        setup.relayed().await;
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
        let left = other.count();
        setup.publish("cms.cache.a", "").await;
        setup.relayed().await;
        setup.end().await;
        assert_eq!(other.count(), left, "what has left is called no more");
    }
    assert_eq!((a.count(), c.count()), (6, 1));
}

#[tokio::test]
async fn an_instance_that_comes_back_is_a_new_one() {
    let mut frontend = Frontend::new(2).await;
    let (status, reply) = told(500);
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, reply));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "first").await;
    b.received(1).await;
    frontend.has(&[0]);
    setup.relayed().await;
    status.store(200, Ordering::SeqCst);
    frontend.has(&[0, 1]);
    setup.relay.logged_times(CHANGED, 3).await;
    setup.publish("cms.cache.a", "second").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((a.count(), &*b.calls().last().unwrap().body), (2, &b"second"[..]));
}

#[tokio::test]
async fn each_instance_gets_the_messages_of_a_subject_in_order() {
    let mut frontend = Frontend::new(2).await;
    let (status, reply) = told(503);
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, reply));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    for payload in ["1", "2", "3"] {
        setup.publish("cms.cache.a", payload).await;
    }
    b.received(3).await;
    assert_eq!(a.count(), 1, "the next message waits for the retries of the first");
    status.store(200, Ordering::SeqCst);
    for payload in ["1", "2", "3"] {
        assert_eq!(&*setup.relayed().await.payload, payload.as_bytes());
    }
    setup.end().await;
    for instance in [a, b] {
        let mut bodies: Vec<_> = instance.calls().into_iter().map(|call| call.body).collect();
        bodies.dedup();
        assert_eq!(bodies, ["1", "2", "3"]);
    }
}

#[tokio::test]
async fn a_resync_reaches_every_instance_before_it_is_published() {
    let mut frontend = Frontend::new(2).await;
    let (status, reply) = told(500);
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, reply));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[("NATS_RESYNC_SUBJECT", "relayed.resync")]).await;
    b.received(3).await;
    assert_eq!(setup.relay.metric("resyncs_total").await, 0);
    status.store(200, Ordering::SeqCst);
    assert_eq!(setup.relayed().await.subject.as_str(), "relayed.resync");
    setup.end().await;
    assert_eq!(a.count(), 1);
    for call in a.calls().iter().chain(&b.calls()) {
        assert_eq!(call.header("nats-resync"), "start");
    }
}

#[tokio::test]
async fn the_limit_for_the_rate_of_calls_is_that_of_each_instance() {
    let mut frontend = Frontend::new(2).await;
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, ok));
    frontend.has(&[0, 1]);
    // Of both together, the second call would have to wait for an hour.
    let mut setup = frontend.relay(&[("WEBHOOK_RATE_LIMIT", "1/h")]).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!((a.count(), b.count()), (1, 1));
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

fn calls(frontend: &Frontend, index: usize, status: &str) -> String {
    let (url, address) = (frontend.url(), frontend.addresses[index]);
    let labels = format!("destination=\"{url}\",address=\"{address}\",status=\"{status}\"");
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
    assert_eq!(relay.metric(&calls(&frontend, 0, "2xx")).await, 1);
    let failed = relay.metric(&calls(&frontend, 1, "5xx")).await;
    assert!(failed >= 2);
    assert_eq!(relay.metric(&calls(&frontend, 1, "4xx")).await, 1);
    // Those of the destination are those of all its instances.
    for (status, expected) in [("2xx", 1), ("5xx", failed), ("4xx", 1)] {
        let labels = format!("destination=\"{}\",status=\"{status}\"", frontend.url());
        let all = relay.metric(&format!("webhook_calls_total{{{labels}}}")).await;
        assert_eq!(all, expected, "{status}");
    }
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
    setup.end().await;
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn a_message_whose_instances_have_all_left_is_not_relayed_without_the_new_ones() {
    let mut frontend = Frontend::new(3).await;
    let hanging = |_: &Call| Reply::ok().after(HOUR);
    let (status, reply) = told(500);
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, hanging));
    let c = frontend.starts(2, reply);
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    b.received(1).await;
    setup.relay.logged(ANSWERED).await;
    frontend.has(&[2]);
    c.received(2).await;
    assert!(setup.relay.lines("\"message\":\"relayed\"").is_empty());
    status.store(200, Ordering::SeqCst);
    setup.relayed().await;
    setup.end().await;
    assert_eq!((a.count(), b.count()), (1, 1));
}

#[tokio::test]
async fn without_addresses_a_message_fails_after_as_many_attempts_as_are_allowed() {
    for (fails, expected) in [(false, "has no address"), (true, "cannot look up the addresses of")]
    {
        let frontend = Frontend::new(1).await;
        if fails {
            frontend.dns.fails();
        }
        let mut setup = frontend.relay(&[("WEBHOOK_MAX_ATTEMPTS", "2")]).await;
        setup.publish("cms.cache.a", "").await;
        let message = setup.failed().await;
        assert_eq!(header(&message, "Relay-Destination"), frontend.url());
        assert_eq!(header(&message, "Relay-Status"), "none");
        assert_eq!(header(&message, "Relay-Attempts"), "2");
        let error = header(&message, "Relay-Destination-Error");
        assert!(error.contains(expected) && error.contains(HOST), "{error}");
        setup.end().await;
    }
}

#[tokio::test]
async fn while_no_address_can_be_looked_up_those_that_are_known_are_called() {
    for is_empty in [false, true] {
        let mut frontend = Frontend::new(2).await;
        let (status, reply) = told(500);
        let (a, b) = (frontend.starts(0, ok), frontend.starts(1, reply));
        frontend.has(&[0, 1]);
        let mut setup = frontend.relay(&[]).await;
        setup.relay.logged(CHANGED).await;
        match is_empty {
            true => frontend.dns.has_no_host(),
            false => frontend.dns.fails(),
        }
        let line = setup.relay.logged(NOT_LOOKED_UP).await;
        assert_eq!(field(&line, "level"), "WARN");
        setup.publish("cms.cache.a", "").await;
        b.received(2).await;
        let queries = frontend.dns.queries();
        eventually("more look-ups", || frontend.dns.queries() > queries + 4).await;
        let relayed = setup.relay.lines("\"message\":\"relayed\"");
        assert!(relayed.is_empty(), "one that is known is waited for");
        assert_eq!(setup.relay.lines(NOT_LOOKED_UP).len(), 1, "said once");
        status.store(200, Ordering::SeqCst);
        setup.relayed().await;
        frontend.has(&[0]);
        setup.relay.logged("the instances of a destination can be looked up again").await;
        setup.end().await;
        assert_eq!(a.count(), 1);
    }
}

#[tokio::test]
async fn the_failed_subject_names_the_address_and_redirects_are_not_followed() {
    let mut frontend = Frontend::new(2).await;
    let redirects = |_: &Call| Reply::status(308).header("location", "/elsewhere");
    let (a, b) = (frontend.starts(0, ok), frontend.starts(1, redirects));
    frontend.has(&[0, 1]);
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    assert_eq!(header(&message, "Relay-Destination"), frontend.at(1));
    assert_eq!(header(&message, "Relay-Status"), "308");
    let error = header(&message, "Relay-Destination-Error");
    assert!(error.contains(&format!("http://{HOST}:{}/elsewhere", frontend.port)), "{error}");
    setup.end().await;
    assert_eq!((a.count(), b.count()), (1, 1));
}

#[tokio::test]
async fn over_tls_the_certificate_is_for_the_host_and_not_for_the_address() {
    let authority = Authority::new();
    let mut frontend = Frontend::new(3).await;
    let mut instance = |index: usize, name: &str| {
        let listener = frontend.listeners[index].take().unwrap();
        let config = authority.server(&[name], &["h2", "http/1.1"]);
        Endpoint::tls(TlsListener::on(listener, config), ok)
    };
    let (a, b) = (instance(0, HOST), instance(1, HOST));
    let of_address = instance(2, &frontend.addresses[2].to_string());
    frontend.has(&[0, 1]);
    let url = frontend.url().replace("http:", "https:");
    let variables = [("WEBHOOK_CA", &*authority.path()), ("WEBHOOK_MAX_ATTEMPTS", "1")];
    let mut setup = frontend.relay_to(&url, &variables).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    frontend.has(&[2]);
    setup.relay.logged_times(CHANGED, 2).await;
    setup.publish("cms.cache.a", "").await;
    let message = setup.failed().await;
    let error = header(&message, "Relay-Destination-Error");
    let expected = format!("the certificate of {HOST}:{} is for another host", frontend.port);
    assert!(error.contains(&expected), "{error}");
    setup.end().await;
    assert_eq!((a.count(), b.count(), of_address.count()), (1, 1, 0));
}

#[tokio::test]
async fn addresses_of_both_families_are_called() {
    let mut frontend = Frontend::new(1).await;
    // A machine without IPv6 has only the other one to call.
    let v6 = TcpListener::bind(("::1", frontend.port)).await.ok();
    let v6 = v6.map(|listener| Endpoint::on(listener, ok));
    let v4 = frontend.starts(0, ok);
    let localhost = v6.iter().map(|_| IpAddr::from(Ipv6Addr::LOCALHOST));
    frontend.dns.has(&localhost.chain([frontend.addresses[0]]).collect::<Vec<_>>());
    let mut setup = frontend.relay(&[]).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    setup.end().await;
    assert_eq!(v4.count(), 1);
    assert!(v6.is_none_or(|v6| v6.count() == 1));
}

#[tokio::test]
async fn a_host_that_is_an_address_or_this_machine_is_called_as_without() {
    let endpoint = Endpoint::ok().await;
    let frontend = Frontend::new(0).await;
    let both = format!("{} http://localhost:{}/x", endpoint.url(), endpoint.port);
    let mut setup = frontend.relay_to(&both, &[]).await;
    setup.publish("cms.cache.a", "").await;
    setup.relayed().await;
    let (_, metrics) = setup.relay.get("/metrics").await;
    assert!(!metrics.contains("webhook_instance"), "{metrics}");
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
    assert!(
        stdout.contains(
            "http://frontend.test/hook (at present, the host frontend.test has no address)"
        ),
        "{stdout}"
    );
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
        ("NATS_RESYNC_SUBJECT", "relayed.resync"),
        ("WEBHOOK_RESYNC_DESTINATION", "http://localhost/ http://frontend.test/resync"),
        ("WEBHOOK_RESOLVE", "all"),
        ("HTTP_PROXY", "http://user:pa55@127.0.0.1:1"),
    ];
    let (status, _, stderr) = relay::run(&[], &variables);
    assert_eq!(status.code(), Some(64), "{stderr}");
    let expected = " is called through a proxy, which looks its host up by itself; add the host to \
                    NO_PROXY, or unset WEBHOOK_RESOLVE";
    for variable in ["WEBHOOK_DESTINATION: number 1", "WEBHOOK_RESYNC_DESTINATION: number 2"] {
        assert!(stderr.contains(&[variable, expected].concat()), "{stderr}");
    }
    assert_eq!(stderr.matches(expected).count(), 2, "{stderr}");
    assert!(!stderr.contains("pa55"), "{stderr}");
}

#[test]
fn what_needs_the_variable_is_a_mistake_without_it() {
    let variables = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1/"),
        ("NATS_HOST", "nats://127.0.0.1:1"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
        ("WEBHOOK_RESOLVE_INTERVAL", "1s"),
        ("WEBHOOK_RESOLVE_SERVER", "127.0.0.1"),
    ];
    let (status, _, stderr) = relay::run(&[], &variables);
    assert_eq!(status.code(), Some(64), "{stderr}");
    for name in ["WEBHOOK_RESOLVE_INTERVAL", "WEBHOOK_RESOLVE_SERVER"] {
        let expected = format!("{name}: has no effect without WEBHOOK_RESOLVE");
        assert!(stderr.contains(&expected), "{stderr}");
    }
}
