//! What the relay counts. Every message that is received ends in exactly one of `relayed`,
//! `rejected`, `failed`, `given_back` and `pending`; what never became a message of ours is in `lost` and `gaps`.

use crate::observe::log;
use crate::plugin::hook::Hook;
use crate::plugin::stopped::Kind;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Why a message was not relayed, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FailedLabels {
    /// The kind of failure.
    pub(crate) reason: Reason,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are label values")]
pub(crate) enum Reason {
    /// Its headers can not be read.
    unreadable,
    /// A plugin failed.
    plugin,
    /// A destination did not accept it.
    webhook,
    /// The relayed message would be larger than the server takes, or its subject longer.
    too_large,
    /// It was accepted, and the server or the client would not have the relayed message.
    publish,
    /// The relay was told to stop before it was done.
    shutdown,
    /// A bug of the relay.
    bug,
}

impl Reason {
    /// Every kind, so that each is counted from zero.
    const ALL: [Self; 7] = [
        Self::unreadable,
        Self::plugin,
        Self::webhook,
        Self::too_large,
        Self::publish,
        Self::shutdown,
        Self::bug,
    ];

    /// The label's value, also used in logs and in headers of the failed subject.
    #[must_use]
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::unreadable => "unreadable",
            Self::plugin => "plugin",
            Self::webhook => "webhook",
            Self::too_large => "too_large",
            Self::publish => "publish",
            Self::shutdown => "shutdown",
            Self::bug => "bug",
        }
    }
}

/// One hook of one plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    /// The plugin's name.
    pub(crate) plugin: String,
    /// The hook.
    pub(crate) hook: Hook,
}

/// One kind of failure of one hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallFailedLabels {
    /// The plugin's name.
    pub(crate) plugin: String,
    /// The hook.
    pub(crate) hook: Hook,
    /// What happened.
    pub(crate) kind: Kind,
}

/// What became of an attempt to load plugins again, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReloadLabels {
    /// Which of the two.
    pub(crate) result: Reload,
}

/// What became of an attempt to load plugins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are label values")]
pub(crate) enum Reload {
    /// The new ones are in use.
    loaded,
    /// One was bad, the old ones stay.
    refused,
}

/// All counters of one relay; a clone counts into the same ones.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Messages received.
    pub(crate) received: Counter,
    /// Messages republished and confirmed.
    pub(crate) relayed: Counter,
    /// Messages that a plugin decided not to relay.
    pub(crate) rejected: Counter,
    /// Messages given back to the stream, which delivers them again.
    pub(crate) given_back: Counter,
    /// Messages not relayed, by reason.
    pub(crate) failed: Family<FailedLabels, Counter>,
    /// Failed messages that also could not be published on the failed subject.
    pub(crate) failed_unpublished: Counter,
    /// Messages waiting or being worked on.
    pub(crate) pending: Gauge,
    /// Their bytes.
    pub(crate) pending_bytes: Gauge,
    /// Messages dropped because more would have waited than the pending limits allow.
    pub(crate) lost: Counter,
    /// Times in which messages may have been missed: reconnects and slow-consumer drops.
    pub(crate) gaps: Counter,
    /// Connections made after the first.
    pub(crate) reconnects: Counter,
    /// Webhook calls that were not accepted and are tried again.
    pub(crate) retries: Counter,
    /// Message headers that HTTP does not allow.
    pub(crate) headers_dropped: Counter,
    /// Messages republished once more because the connection broke before the confirmation.
    pub(crate) republished_again: Counter,
    /// Messages that the stream delivered again.
    pub(crate) redelivered: Counter,
    /// Messages that wait in the stream.
    pub(crate) stream_pending: Gauge,
    /// 1 while this replica is the one that works, where one does at a time.
    pub(crate) active: Gauge,
    /// Seconds from a webhook call to its answer.
    pub(crate) webhook_seconds: WebhookSeconds,
    /// Seconds that calls of plugins take, instantiation included.
    pub(crate) call_seconds: CallSeconds,
    /// Calls of plugins that failed.
    pub(crate) calls_failed: Family<CallFailedLabels, Counter>,
    /// Attempts to load plugins again.
    pub(crate) reloads: Family<ReloadLabels, Counter>,
}

/// A histogram with buckets from 1 ms to 60 s.
#[derive(Clone, Debug)]
pub(crate) struct WebhookSeconds(pub(crate) Histogram);

impl Default for WebhookSeconds {
    fn default() -> Self {
        Self(Histogram::new([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            60.0,
        ]))
    }
}

/// Histograms with buckets from 5 us to 5 s.
#[derive(Clone, Debug)]
pub(crate) struct CallSeconds(pub(crate) Family<CallLabels, Histogram, fn() -> Histogram>);

impl Default for CallSeconds {
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
    /// The counters in the OpenMetrics text format.
    #[must_use]
    pub(crate) fn encode(&self) -> String {
        for reason in Reason::ALL {
            drop(self.failed.get_or_create(&FailedLabels { reason }));
        }
        let mut registry = Registry::with_prefix("nats_webhook_relay");
        registry.register("messages_received", "Messages received", self.received.clone());
        registry.register(
            "messages_relayed",
            "Messages republished and confirmed",
            self.relayed.clone(),
        );
        registry.register(
            "messages_rejected",
            "Messages that a plugin decided not to relay",
            self.rejected.clone(),
        );
        registry.register(
            "messages_given_back",
            "Messages that were received and given back to the stream",
            self.given_back.clone(),
        );
        registry.register(
            "messages_failed",
            "Messages not relayed, by reason",
            self.failed.clone(),
        );
        registry.register(
            "messages_failed_unpublished",
            "Failed messages that could not be published on the failed subject",
            self.failed_unpublished.clone(),
        );
        registry.register(
            "messages_pending",
            "Messages waiting or being worked on",
            self.pending.clone(),
        );
        registry.register_with_unit(
            "messages_pending",
            "Size of the messages waiting or being worked on",
            Unit::Bytes,
            self.pending_bytes.clone(),
        );
        registry.register(
            "messages_lost",
            "Messages dropped at the pending limits",
            self.lost.clone(),
        );
        registry.register(
            "gaps",
            "Times in which messages may have been missed",
            self.gaps.clone(),
        );
        registry.register(
            "reconnects",
            "Connections to NATS made after the first",
            self.reconnects.clone(),
        );
        registry.register(
            "webhook_retries",
            "Webhook calls that were not accepted and are tried again",
            self.retries.clone(),
        );
        registry.register(
            "headers_dropped",
            "Message headers that HTTP does not allow",
            self.headers_dropped.clone(),
        );
        registry.register(
            "messages_republished_again",
            "Messages republished once more because their confirmation was lost",
            self.republished_again.clone(),
        );
        registry.register(
            "messages_redelivered",
            "Messages that the stream delivered again",
            self.redelivered.clone(),
        );
        registry.register(
            "stream_messages_pending",
            "Messages that wait in the stream",
            self.stream_pending.clone(),
        );
        let dropped = Counter::<u64>::default();
        dropped.inc_by(log::dropped() as u64);
        registry.register(
            "log_lines_dropped",
            "Log lines that standard error did not take",
            dropped,
        );
        registry.register(
            "active",
            "1 while this replica is the one that works",
            self.active.clone(),
        );
        registry.register_with_unit(
            "webhook_call",
            "Time from a webhook call to its answer",
            Unit::Seconds,
            self.webhook_seconds.0.clone(),
        );
        registry.register_with_unit(
            "plugin_call",
            "Time that calls of plugins take",
            Unit::Seconds,
            self.call_seconds.0.clone(),
        );
        registry.register(
            "plugin_calls_failed",
            "Calls of plugins that failed, by kind",
            self.calls_failed.clone(),
        );
        registry.register("plugin_reloads", "Attempts to load plugins again", self.reloads.clone());
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
