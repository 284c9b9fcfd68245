//! What the relay counts, in the OpenMetrics text format.
//!
//! Every message that is received ends in exactly one of `relayed`, `rejected`, `failed`,
//! `given_back` and `pending`; what never became a message of ours is in `lost` and `gaps`.

use crate::observe::event::{Called, Event, Gap};
use crate::observe::lines;
use crate::pending::Pending;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::net::IpAddr;

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
    result: &'static str,
}

const LOADED: ReloadLabels = ReloadLabels { result: "loaded" };
const REFUSED: ReloadLabels = ReloadLabels { result: "refused" };

const RESULTS: [&str; 3] = ["accepted", "retried", "refused"];

/// All counters of one relay.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    received: Counter,
    relayed: Counter,
    rejected: Counter,
    given_back: Counter,
    failed: Family<FailedLabels, Counter>,
    failed_unpublished: Counter,
    pending: Pending,
    lost: Counter,
    gaps: Counter,
    reconnects: Counter,
    retries: Counter,
    held_back: Counter,
    instances: Family<DestinationLabels, Gauge>,
    instance_calls: Family<InstanceLabels, Counter>,
    headers_dropped: Counter,
    republished_again: Counter,
    redelivered: Counter,
    stream_pending: Gauge,
    active: Gauge,
    call_seconds: CallSeconds,
    hook_seconds: HookSeconds,
    hooks_failed: Family<CallFailedLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
}

/// Buckets from 1 ms to 60 s.
#[derive(Debug)]
struct CallSeconds(Histogram);

impl Default for CallSeconds {
    fn default() -> Self {
        Self(Histogram::new([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            60.0,
        ]))
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
    /// Counters at zero, and gauges that mirror `pending`.
    pub(crate) fn new(pending: &Pending) -> Self {
        Self { pending: pending.clone(), ..Self::default() }
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
            Event::Answered { call, .. } => self.called(call, "accepted"),
            Event::Refused { call } => self.called(call, "refused"),
            Event::Retried { call, .. } => {
                self.called(call, "retried");
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
            Event::Dropped => inc(&self.lost),
            Event::Reconnected { .. } => inc(&self.reconnects),
            Event::Redelivered => inc(&self.redelivered),
            Event::StreamPending(messages) => {
                self.stream_pending.set(messages as i64);
            }
            Event::Active(active) => {
                self.active.set(i64::from(active));
            }
            Event::HookCalled { plugin, hook, elapsed } => {
                let labels = CallLabels { plugin: plugin.to_owned(), hook };
                self.hook_seconds.0.get_or_create(&labels).observe(elapsed.as_secs_f64());
            }
            Event::HookFailed { plugin, hook, kind } => {
                let labels = CallFailedLabels { plugin: plugin.to_owned(), hook, kind };
                self.hooks_failed.get_or_create(&labels).inc();
            }
            Event::PluginsReloaded { .. } => inc(&self.reloads.get_or_create(&LOADED)),
            Event::PluginsKept { .. } => inc(&self.reloads.get_or_create(&REFUSED)),
            Event::InstancesChanged { destination, count, joined, left } => {
                self.instances_changed(destination, count, joined, left);
            }
            Event::DestinationFailing { .. }
            | Event::NotLookedUp { .. }
            | Event::DestinationRecovered { .. }
            | Event::OutOfResources { .. }
            | Event::PluginSaid { .. }
            | Event::Disconnected => {}
        }
    }

    fn called(&self, call: Called<'_>, result: &'static str) {
        let Some(elapsed) = call.elapsed else { return };
        self.call_seconds.0.observe(elapsed.as_secs_f64());
        if let Some((destination, address)) = call.instance {
            // One that has left the host meanwhile is not counted any more.
            let labels = instance_labels(destination, address, result);
            self.instance_calls.get(&labels).as_deref().map(Counter::inc);
        }
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
        for result in RESULTS {
            for address in joined {
                let labels = instance_labels(destination, *address, result);
                drop(self.instance_calls.get_or_create(&labels));
            }
            for address in left {
                self.instance_calls.remove(&instance_labels(destination, *address, result));
            }
        }
    }

    /// The counters in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> String {
        let mut registry = Registry::with_prefix("nats_webhook_relay");
        self.register_messages(&mut registry);
        self.register_connection(&mut registry);
        self.register_calls(&mut registry);
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    fn register_messages(&self, registry: &mut Registry) {
        let mut counter = |name, help, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("messages_received", "Messages received", &self.received);
        counter("messages_relayed", "Messages republished and confirmed", &self.relayed);
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
    }

    fn register_connection(&self, registry: &mut Registry) {
        let help = "Times in which messages may have been missed";
        registry.register("gaps", help, self.gaps.clone());
        let help = "Connections to NATS made after the first";
        registry.register("reconnects", help, self.reconnects.clone());
        let help = "Messages that wait in the stream";
        registry.register("stream_messages_pending", help, self.stream_pending.clone());
        let help = "1 while this replica is the one that works";
        registry.register("active", help, self.active.clone());
        let dropped = Counter::<u64>::default();
        dropped.inc_by(lines::dropped() as u64);
        let help = "Log lines that standard error did not take";
        registry.register("log_lines_dropped", help, dropped);
    }

    /// Where every address of a host is called. A family that has none is not shown.
    fn register_instances(&self, registry: &mut Registry) {
        if !self.instances.is_empty() {
            let help = "Addresses of a destination's host";
            registry.register("webhook_instances", help, self.instances.clone());
            let help = "Calls of each address of a destination's host, by result";
            registry.register("webhook_instance_calls", help, self.instance_calls.clone());
        }
    }

    fn register_calls(&self, registry: &mut Registry) {
        let help = "Webhook calls that were not accepted and are tried again";
        registry.register("webhook_retries", help, self.retries.clone());
        let help = "Webhook calls that had to wait for WEBHOOK_RATE_LIMIT";
        registry.register("webhook_rate_limit_waits", help, self.held_back.clone());
        self.register_instances(registry);
        let (help, calls) = ("Time from a webhook call to its answer", self.call_seconds.0.clone());
        registry.register_with_unit("webhook_call", help, Unit::Seconds, calls);
        let (help, calls) = ("Time that calls of plugins take", self.hook_seconds.0.clone());
        registry.register_with_unit("plugin_call", help, Unit::Seconds, calls);
        let help = "Calls of plugins that failed, by kind";
        registry.register("plugin_calls_failed", help, self.hooks_failed.clone());
        registry.register("plugin_reloads", "Attempts to load plugins again", self.reloads.clone());
    }
}

fn instance_labels(destination: &str, address: IpAddr, result: &'static str) -> InstanceLabels {
    let (destination, address) = (destination.to_owned(), address.to_string());
    InstanceLabels { destination, address, result }
}

fn inc(counter: &Counter) {
    counter.inc();
}

fn gauge(value: usize) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value as i64);
    gauge
}
