//! How each [`Event`] reads in the log. The console knows them by their names.

use crate::observe::event::{AcceptedCall, Answer, Called, Event, Gap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{debug, error, info, warn};

/// The names of the entries that the console draws in its own way.
pub(crate) mod name {
    pub(crate) const RECEIVED: &str = "received";
    pub(crate) const ANSWERED: &str = "answered";
    pub(crate) const RELAYED: &str = "relayed";
    pub(crate) const REJECTED: &str = "rejected";
    pub(crate) const PLUGIN_SAYS: &str = "plugin says";
    /// The target of the span around the work on a message.
    pub(crate) const MESSAGE: &str = "nats_webhook_relay::message";
}

/// The modules that log filters (`RUST_LOG`) know these entries by.
const RELAY: &str = "nats_webhook_relay::relay";
const WEBHOOK: &str = "nats_webhook_relay::webhook";
const NATS: &str = "nats_webhook_relay::nats";
const RELOAD: &str = "nats_webhook_relay::plugin::reload";
const OUTPUT: &str = "nats_webhook_relay::plugin::output";
const REQUEST: &str = "nats_webhook_relay::request";

/// Whether a message is one line at `info`, when it is done, and its steps are at `debug`.
static IS_BRIEF: AtomicBool = AtomicBool::new(false);

/// Makes each message one line at `info`, which says how it came to be relayed.
pub(crate) fn be_brief() {
    IS_BRIEF.store(true, Ordering::Relaxed);
}

fn is_brief() -> bool {
    IS_BRIEF.load(Ordering::Relaxed)
}

/// A line about one step of a message: at `debug` where a message is one line, else at `info`.
macro_rules! step {
    ($($line:tt)*) => {
        if is_brief() { debug!($($line)*) } else { info!($($line)*) }
    };
}

/// Writes an event to the log, where it has something to say there.
pub(crate) fn write(event: &Event<'_>) {
    match event {
        Event::Received(_)
        | Event::HeadersDropped { .. }
        | Event::Relayed { .. }
        | Event::Rejected { .. }
        | Event::GivenBack(_)
        | Event::Failed { .. }
        | Event::FailedUnpublished { .. }
        | Event::PublishedAgain { .. } => message(event),
        Event::Answered { .. }
        | Event::Retried { .. }
        | Event::DestinationFailing { .. }
        | Event::DestinationRecovered { .. }
        | Event::OutOfResources { .. } => calls(event),
        Event::InstancesChanged { .. } | Event::LookUps { .. } => instances(event),
        Event::RequestAnswered { .. } | Event::RequestServed { .. } => request(event),
        Event::Gap(gap) => missed(gap),
        Event::Resynced { reason } => info!(target: RELAY, reason, "resync accepted and published"),
        Event::ResyncFailed { reason, error } => {
            error!(target: RELAY, reason, error, "resync failed, retrying");
        }
        Event::Disconnected => {
            warn!(target: NATS, "lost the connection to NATS, reconnecting");
        }
        Event::Reconnected { gap } => warn!(
            target: NATS, gap_ms = milliseconds(*gap),
            "reconnected to NATS; the stream kept the messages published in the meantime"
        ),
        Event::PluginSaid { .. } | Event::PluginsReloaded { .. } | Event::PluginsKept { .. } => {
            plugins(event);
        }
        Event::Refused { .. }
        | Event::Merged(_)
        | Event::HeldBack
        | Event::Dropped
        | Event::Redelivered
        | Event::StreamPending(_)
        | Event::Active(_)
        | Event::HookCalled { .. }
        | Event::HookFailed { .. } => {}
    }
}

fn message(event: &Event<'_>) {
    match *event {
        Event::Received(message) => step!(
            name: name::RECEIVED, target: RELAY, subject = %message.subject, id = %message.id,
            bytes = message.payload.len(), "received"
        ),
        Event::HeadersDropped { message, headers } => debug!(
            target: RELAY, subject = %message.subject, id = %message.id, headers,
            "dropped headers that HTTP does not allow"
        ),
        Event::Relayed { message, relayed, steps } if is_brief() => {
            let AcceptedCall { status, attempts, merged } = steps.call;
            let merged = (merged > 0).then_some(merged);
            info!(
                name: name::RELAYED, target: RELAY, subject = %message.subject, id = %message.id,
                %relayed, status, attempts, merged, waited_ms = milliseconds(steps.waited),
                called_ms = milliseconds(steps.called),
                published_ms = milliseconds(steps.published), "relayed"
            );
        }
        Event::Relayed { message, relayed, .. } => info!(
            name: name::RELAYED, target: RELAY, subject = %message.subject, id = %message.id,
            %relayed, "relayed"
        ),
        Event::Rejected { message, plugin, hook, reason } => info!(
            name: name::REJECTED, target: RELAY, subject = %message.subject, id = %message.id,
            %plugin, %hook, reason, "rejected"
        ),
        Event::GivenBack(message) => debug!(
            target: RELAY, subject = %message.subject, id = %message.id, "given back to the stream"
        ),
        Event::Failed { message, reason, error } => error!(
            target: RELAY, subject = %message.subject, id = %message.id, reason, %error,
            "not relayed"
        ),
        Event::FailedUnpublished { message, error } => error!(
            target: RELAY, subject = %message.subject, id = %message.id, %error,
            "failed message not published on the failed subject"
        ),
        Event::PublishedAgain { subject } => debug!(
            target: NATS, %subject, "lost the confirmation of a message, publishing it again"
        ),
        _ => {}
    }
}

fn calls(event: &Event<'_>) {
    match *event {
        Event::Answered { call, status } => {
            let Called { message, merged, destination, attempt, elapsed, .. } = call;
            let elapsed_ms = milliseconds(elapsed.unwrap_or_default());
            let merged = (merged > 0).then_some(merged);
            step!(
                name: name::ANSWERED, target: WEBHOOK, subject = %message.subject,
                id = %message.id, %destination, status, elapsed_ms, attempt, merged, "answered"
            );
        }
        Event::Retried { call: Called { message, destination, attempt, .. }, error, wait } => {
            debug!(
                target: WEBHOOK, subject = %message.subject, id = %message.id, %destination,
                attempt, %error, wait_ms = milliseconds(wait), "not accepted, retrying"
            )
        }
        // Of the destination, whatever message was the first to notice.
        Event::DestinationFailing { destination, error, failures } => warn!(
            target: WEBHOOK, parent: None, %destination, error, failures, "webhook delivery \
             failing, retrying"
        ),
        Event::DestinationRecovered { destination, outage } => info!(
            target: WEBHOOK, parent: None, %destination, outage_ms = milliseconds(outage),
            "webhook delivery recovered"
        ),
        Event::OutOfResources { what } => warn!(
            target: WEBHOOK, parent: None, what,
            "cannot call webhooks because this machine is out of resources, retrying; this does \
             not count as an attempt"
        ),
        _ => {}
    }
}

fn instances(event: &Event<'_>) {
    let list = |addresses: &[IpAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    match *event {
        Event::InstancesChanged { destination, count, joined, left } => info!(
            target: WEBHOOK, %destination, count, joined = list(joined), left = list(left),
            "the instances of a destination have changed"
        ),
        Event::LookUps { destination, error: Some(error) } => warn!(
            target: WEBHOOK, %destination, error,
            "cannot look up the instances of a destination, calling those that are known"
        ),
        Event::LookUps { destination, error: None } => info!(
            target: WEBHOOK, %destination, "the instances of a destination can be looked up again"
        ),
        _ => {}
    }
}

fn request(event: &Event<'_>) {
    match *event {
        Event::RequestAnswered { peer, method, answer: Answer { status, bytes, elapsed } } => {
            let elapsed_ms = milliseconds(elapsed);
            info!(target: REQUEST, %peer, method, status, bytes, elapsed_ms, "answered a request");
        }
        Event::RequestServed { subject, answer: Answer { status, bytes, elapsed } } => {
            let elapsed_ms = milliseconds(elapsed);
            info!(target: REQUEST, %subject, status, bytes, elapsed_ms, "served");
        }
        _ => {}
    }
}

fn plugins(event: &Event<'_>) {
    match *event {
        Event::PluginSaid { plugin, line, is_error: false } => {
            info!(name: name::PLUGIN_SAYS, target: OUTPUT, %plugin, line, "plugin says");
        }
        Event::PluginSaid { plugin, line, is_error: true } => {
            warn!(name: name::PLUGIN_SAYS, target: OUTPUT, %plugin, line, "plugin says");
        }
        Event::PluginsReloaded { plugins } => {
            info!(target: RELOAD, plugins, "plugins reloaded");
        }
        Event::PluginsKept { error } => {
            error!(target: RELOAD, %error, "plugins not reloaded, the previous ones stay in use");
        }
        _ => {}
    }
}

fn missed(gap: &Gap<'_>) {
    match *gap {
        Gap::Reconnected { gap } => error!(
            target: NATS, gap_ms = milliseconds(gap),
            "reconnected to NATS; messages published in the meantime did not reach the relay"
        ),
        Gap::SlowConsumer => error!(
            target: NATS, "the NATS client dropped messages before the relay could take them"
        ),
        Gap::Limits { messages, first_subject, limits, .. } => error!(
            target: RELAY, messages, first_subject, pending_messages = limits.messages,
            pending_bytes = limits.bytes,
            "messages dropped: NATS_PENDING_MESSAGES or NATS_PENDING_BYTES reached"
        ),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
