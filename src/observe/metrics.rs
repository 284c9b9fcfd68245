//! What the relay counts, in the OpenMetrics text format.
//!
//! Every message that is received ends in exactly one of `relayed`, `rejected`, `failed`,
//! `given_back` and `pending`; what never became a message of ours is in `lost` and `gaps`.

use crate::observe::event::{Answer, Called, Event, Gap};
use crate::observe::lines;
use crate::pending::Pending;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    plugin: String,
    hook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallFailedLabels {
    plugin: String,
    hook: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    destination: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabels {
    destination: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    destination: String,
    address: String,
    status: &'static str,
}

const LOADED: ReloadLabels = ReloadLabels { result: "loaded" };
const REFUSED: ReloadLabels = ReloadLabels { result: "refused" };

/// The classes of statuses, and calls without an answer.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

fn class(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(..200) => "1xx",
        Some(200..300) => "2xx",
        Some(300..400) => "3xx",
        Some(400..500) => "4xx",
        Some(500..) => "5xx",
    }
}

/// What can be read off a relay at any time.
#[derive(Default)]
pub(crate) struct Reading {
    /// The age of the oldest message that waits or is worked on.
    pub(crate) oldest: Duration,
    /// Messages that are worked on.
    pub(crate) in_flight: usize,
}

/// Reads them off.
pub(crate) type Gauges = Box<dyn Fn() -> Reading + Send + Sync>;

/// All counters of one process.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Whether it is a relay, and not `gateway` or `serve`.
    is_relay: bool,
    received: Counter,
    relayed: Counter,
    merged: Counter,
    rejected: Counter,
    given_back: Counter,
    failed: Family<FailedLabels, Counter>,
    failed_unpublished: Counter,
    pending: Pending,
    lost: Counter,
    gaps: Counter,
    reconnects: Counter,
    resyncs: Counter,
    resyncs_failed: Counter,
    retries: Counter,
    held_back: Counter,
    instances: Family<DestinationLabels, Gauge>,
    instance_calls: Family<InstanceLabels, Counter>,
    headers_dropped: Counter,
    republished_again: Counter,
    redelivered: Counter,
    stream_pending: Gauge,
    active: Gauge,
    gauges: OnceLock<Gauges>,
    calls: Family<AnswerLabels, Counter>,
    call_seconds: CallSeconds,
    hook_seconds: HookSeconds,
    hooks_failed: Family<CallFailedLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
    request_seconds: RequestSeconds,
}

/// From 1 ms to 60 s.
const CALL_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

#[derive(Debug)]
struct CallSeconds(Histogram);

impl Default for CallSeconds {
    fn default() -> Self {
        Self(Histogram::new(CALL_BUCKETS))
    }
}

#[derive(Debug)]
struct RequestSeconds(Family<RequestLabels, Histogram, fn() -> Histogram>);

impl Default for RequestSeconds {
    fn default() -> Self {
        let family =
            Family::<RequestLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
                Histogram::new(CALL_BUCKETS)
            });
        for status in CLASSES.into_iter().filter(|class| *class != "none") {
            drop(family.get_or_create(&RequestLabels { status }));
        }
        Self(family)
    }
}

/// Buckets from 5 us to 5 s.
#[derive(Debug)]
struct HookSeconds(Family<CallLabels, Histogram, fn() -> Histogram>);

impl Default for HookSeconds {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| {
            Histogram::new([
                0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.01, 0.1, 1.0,
                5.0,
            ])
        }))
    }
}

impl Metrics {
    /// The counters of a relay at zero, and gauges that mirror `pending`.
    pub(crate) fn new(pending: &Pending) -> Self {
        Self { is_relay: true, pending: pending.clone(), ..Self::default() }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    pub(crate) fn relayed(&self) -> u64 {
        self.relayed.get()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Shows what `gauges` reads.
    pub(crate) fn show(&self, gauges: Gauges) {
        let _ = self.gauges.set(gauges);
    }

    /// What can be read off the relay now.
    pub(crate) fn reading(&self) -> Reading {
        self.gauges.get().map(|gauges| gauges()).unwrap_or_default()
    }

    /// Shows the calls of a destination from zero on.
    pub(crate) fn expect_calls(&self, destination: &str) {
        for status in CLASSES {
            let destination = destination.to_owned();
            drop(self.calls.get_or_create(&AnswerLabels { destination, status }));
        }
    }

    /// Shows the failures of these `reasons` from zero on.
    pub(crate) fn expect_failures(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            drop(self.failed.get_or_create(&FailedLabels { reason }));
        }
    }

    /// Shows the calls of a plugin's hook, and their failures of these `kinds`, from zero on.
    pub(crate) fn expect_hook(&self, plugin: &str, hook: &'static str, kinds: &[&'static str]) {
        for result in [LOADED, REFUSED] {
            drop(self.reloads.get_or_create(&result));
        }
        drop(self.hook_seconds.0.get_or_create(&CallLabels { plugin: plugin.to_owned(), hook }));
        for kind in kinds.iter().copied() {
            let labels = CallFailedLabels { plugin: plugin.to_owned(), hook, kind };
            drop(self.hooks_failed.get_or_create(&labels));
        }
    }

    pub(crate) fn count(&self, event: &Event<'_>) {
        match *event {
            Event::Received(_) => inc(&self.received),
            Event::HeadersDropped { headers, .. } => {
                self.headers_dropped.inc_by(headers);
            }
            Event::Answered { call, .. } => self.called(call),
            Event::Refused { call } => self.called(call),
            Event::Retried { call, .. } => {
                self.called(call);
                if call.elapsed.is_some() {
                    self.retries.inc();
                }
            }
            Event::HeldBack => inc(&self.held_back),
            Event::Relayed { .. } => inc(&self.relayed),
            Event::Rejected { .. } => inc(&self.rejected),
            Event::GivenBack(_) => inc(&self.given_back),
            Event::Failed { reason, .. } => {
                self.failed.get_or_create(&FailedLabels { reason }).inc();
            }
            Event::FailedUnpublished { .. } => inc(&self.failed_unpublished),
            Event::PublishedAgain { .. } => inc(&self.republished_again),
            Event::Gap(ref gap) => {
                self.gaps.inc();
                if let Gap::Reconnected { .. } = gap {
                    self.reconnects.inc();
                }
            }
            Event::Merged(messages) => {
                self.merged.inc_by(messages as u64);
            }
            Event::Resynced { .. } => inc(&self.resyncs),
            Event::ResyncFailed { .. } => inc(&self.resyncs_failed),
            Event::Dropped => inc(&self.lost),
            Event::Reconnected { .. } => inc(&self.reconnects),
            Event::Redelivered => inc(&self.redelivered),
            Event::StreamPending(messages) => {
                self.stream_pending.set(messages as i64);
            }
            Event::Active(active) => {
                self.active.set(i64::from(active));
            }
            Event::HookCalled { .. } | Event::HookFailed { .. } => self.count_hook(event),
            Event::PluginsReloaded { .. } => inc(&self.reloads.get_or_create(&LOADED)),
            Event::PluginsKept { .. } => inc(&self.reloads.get_or_create(&REFUSED)),
            Event::InstancesChanged { destination, count, joined, left } => {
                self.instances_changed(destination, count, joined, left);
            }
            Event::RequestAnswered { answer, .. } | Event::RequestServed { answer, .. } => {
                self.answered(answer);
            }
            Event::DestinationFailing { .. }
            | Event::LookUps { .. }
            | Event::DestinationRecovered { .. }
            | Event::OutOfResources { .. }
            | Event::PluginSaid { .. }
            | Event::Disconnected => {}
        }
    }

    fn called(&self, call: Called<'_>) {
        let Some(elapsed) = call.elapsed else { return };
        self.call_seconds.0.observe(elapsed.as_secs_f64());
        let status = class(call.status);
        let destination = match call.instance {
            None => call.destination.to_string(),
            Some((destination, address)) => {
                // One that has left the host meanwhile is not shown any more.
                let labels = instance_labels(destination, address, status);
                self.instance_calls.get(&labels).as_deref().map(Counter::inc);
                destination.to_owned()
            }
        };
        self.calls.get_or_create(&AnswerLabels { destination, status }).inc();
    }

    /// Shows the calls of those that have joined from zero on, and those of others no more.
    fn instances_changed(
        &self,
        destination: &str,
        count: usize,
        joined: &[IpAddr],
        left: &[IpAddr],
    ) {
        let labels = DestinationLabels { destination: destination.to_owned() };
        self.instances.get_or_create(&labels).set(count as i64);
        for status in CLASSES {
            for address in joined {
                let labels = instance_labels(destination, *address, status);
                drop(self.instance_calls.get_or_create(&labels));
            }
            for address in left {
                self.instance_calls.remove(&instance_labels(destination, *address, status));
            }
        }
    }

    fn count_hook(&self, event: &Event<'_>) {
        match *event {
            Event::HookCalled { plugin, hook, elapsed, .. } => {
                let labels = CallLabels { plugin: plugin.to_owned(), hook };
                self.hook_seconds.0.get_or_create(&labels).observe(elapsed.as_secs_f64());
            }
            Event::HookFailed { plugin, hook, kind } => {
                let labels = CallFailedLabels { plugin: plugin.to_owned(), hook, kind };
                self.hooks_failed.get_or_create(&labels).inc();
            }
            _ => {}
        }
    }

    fn answered(&self, answer: Answer) {
        let status = class(Some(answer.status));
        let histogram = self.request_seconds.0.get_or_create(&RequestLabels { status });
        histogram.observe(answer.elapsed.as_secs_f64());
    }

    /// The counters in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> String {
        let mut registry = Registry::with_prefix("nats_webhook_relay");
        match self.is_relay {
            true => {
                self.register_messages(&mut registry);
                self.register_calls(&mut registry);
            }
            false => {
                let help = "Time from a request to its answer, by class of status";
                let seconds = self.request_seconds.0.clone();
                registry.register_with_unit("request", help, Unit::Seconds, seconds);
            }
        }
        self.register_process(&mut registry);
        let mut process = Registry::default();
        super::process::register(&mut process);
        let mut text = String::new();
        // Writing into a String does not fail.
        for registry in [&registry, &process] {
            let _ = encode_registry(&mut text, registry);
        }
        let _ = encode_eof(&mut text);
        text
    }

    fn register_messages(&self, registry: &mut Registry) {
        let mut counter = |name, help, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("messages_received", "Messages received", &self.received);
        counter("messages_relayed", "Messages republished and confirmed", &self.relayed);
        let help = "Messages that were accepted by the call of another one (COALESCE)";
        counter("messages_merged", help, &self.merged);
        let help = "Messages that a plugin decided not to relay";
        counter("messages_rejected", help, &self.rejected);
        let help = "Messages that were received and given back to the stream";
        counter("messages_given_back", help, &self.given_back);
        let help = "Failed messages that could not be published on the failed subject";
        counter("messages_failed_unpublished", help, &self.failed_unpublished);
        counter("messages_lost", "Messages dropped at the pending limits", &self.lost);
        let help = "Messages republished once more because their confirmation was lost";
        counter("messages_republished_again", help, &self.republished_again);
        let help = "Messages that the stream delivered again";
        counter("messages_redelivered", help, &self.redelivered);
        let help = "Message headers that HTTP does not allow";
        counter("headers_dropped", help, &self.headers_dropped);
        let failed = self.failed.clone();
        registry.register("messages_failed", "Messages not relayed, by reason", failed);
        let help = "Messages waiting or being worked on";
        registry.register("messages_pending", help, gauge(self.pending.messages()));
        let help = "Size of the messages waiting or being worked on";
        let bytes = gauge(self.pending.bytes());
        registry.register_with_unit("messages_pending", help, Unit::Bytes, bytes);
        let Reading { oldest, in_flight } = self.reading();
        let age = Gauge::<f64, AtomicU64>::default();
        age.set(oldest.as_secs_f64());
        let help = "Age of the oldest message that waits or is worked on";
        registry.register_with_unit("oldest_message", help, Unit::Seconds, age);
        registry.register("messages_in_flight", "Messages worked on", gauge(in_flight));
        let help = "Times in which messages may have been missed";
        registry.register("gaps", help, self.gaps.clone());
        let help = "Resyncs that were accepted and published";
        registry.register("resyncs", help, self.resyncs.clone());
        let help = "Resyncs that failed and are tried again";
        registry.register("resyncs_failed", help, self.resyncs_failed.clone());
        let help = "Messages that wait in the stream";
        registry.register("stream_messages_pending", help, self.stream_pending.clone());
        let help = "1 while this replica is the one that works";
        registry.register("active", help, self.active.clone());
    }

    /// What each process has.
    fn register_process(&self, registry: &mut Registry) {
        let help = "Connections to NATS made after the first";
        registry.register("reconnects", help, self.reconnects.clone());
        let dropped = Counter::<u64>::default();
        dropped.inc_by(lines::dropped() as u64);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version of the program", Info::new(version));
        let help = "Log lines that standard error did not take";
        registry.register("log_lines_dropped", help, dropped);
    }

    fn register_calls(&self, registry: &mut Registry) {
        let help = "Webhook calls that were not accepted and are tried again";
        registry.register("webhook_retries", help, self.retries.clone());
        let help = "Webhook calls by destination and class of status";
        registry.register("webhook_calls", help, self.calls.clone());
        let help = "Webhook calls that had to wait for WEBHOOK_RATE_LIMIT";
        registry.register("webhook_rate_limit_waits", help, self.held_back.clone());
        let help = "Addresses of a destination's host";
        registry.register("webhook_instances", help, self.instances.clone());
        let help = "Calls of each address of a destination's host, by class of status";
        registry.register("webhook_instance_calls", help, self.instance_calls.clone());
        let (help, calls) = ("Time from a webhook call to its answer", self.call_seconds.0.clone());
        registry.register_with_unit("webhook_call", help, Unit::Seconds, calls);
        let (help, calls) = ("Time that calls of plugins take", self.hook_seconds.0.clone());
        registry.register_with_unit("plugin_call", help, Unit::Seconds, calls);
        let help = "Calls of plugins that failed, by kind";
        registry.register("plugin_calls_failed", help, self.hooks_failed.clone());
        registry.register("plugin_reloads", "Attempts to load plugins again", self.reloads.clone());
    }
}

fn instance_labels(destination: &str, address: IpAddr, status: &'static str) -> InstanceLabels {
    let (destination, address) = (destination.to_owned(), address.to_string());
    InstanceLabels { destination, address, status }
}

fn inc(counter: &Counter) {
    counter.inc();
}

fn gauge(value: usize) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value as i64);
    gauge
}
