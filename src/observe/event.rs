//! What happens to messages, destinations, the connection and plugins, as values.

use crate::message::Message;
use crate::pending::Limits;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

/// Something that is counted, logged, or both.
pub(crate) enum Event<'a> {
    Received(&'a Message),
    /// Headers of a message that HTTP does not allow do not travel.
    HeadersDropped {
        message: &'a Message,
        headers: u64,
    },
    /// A destination accepted a message.
    Answered {
        call: Called<'a>,
        status: u16,
    },
    /// A destination did not accept a message, and is not called again for it.
    Refused {
        call: Called<'a>,
    },
    /// A destination did not accept a message, and is called again after `wait`. Without a
    /// time there was no call, because this machine is out of something that calls need.
    Retried {
        call: Called<'a>,
        error: &'a str,
        wait: Duration,
    },
    /// A call that stood for so many other messages was accepted by all destinations.
    Merged(usize),
    /// A call has to wait, because its destination is called often enough.
    HeldBack,
    Relayed {
        message: &'a Message,
        relayed: &'a str,
        steps: &'a Steps,
    },
    Rejected {
        message: &'a Message,
        plugin: &'a str,
        hook: &'a str,
        reason: &'a str,
    },
    GivenBack(&'a Message),
    Failed {
        message: &'a Message,
        reason: &'static str,
        error: &'a dyn Display,
    },
    /// A failed message could not be published on the failed subject either.
    FailedUnpublished {
        message: &'a Message,
        error: &'a dyn Display,
    },
    /// A message is published once more, because its confirmation was lost.
    PublishedAgain {
        subject: &'a str,
    },

    /// `gateway` has answered an HTTP request.
    RequestAnswered {
        peer: &'a dyn Display,
        method: &'a str,
        answer: Answer,
    },
    /// `serve` has answered a NATS request.
    RequestServed {
        subject: &'a str,
        answer: Answer,
    },

    /// A destination has begun, or continues, not to accept messages.
    DestinationFailing {
        destination: &'a str,
        error: &'a str,
        failures: u64,
    },
    DestinationRecovered {
        destination: &'a str,
        outage: Duration,
    },
    /// The host of a destination has other addresses than before, or has been looked up for the
    /// first time.
    InstancesChanged {
        destination: &'a str,
        count: usize,
        joined: &'a [IpAddr],
        left: &'a [IpAddr],
    },
    /// The addresses of a destination's host cannot be looked up, so that the known ones stay, or
    /// they can again.
    LookUps {
        destination: &'a str,
        error: Option<&'a str>,
    },
    /// This machine is out of something that calls need.
    OutOfResources {
        what: &'static str,
    },

    /// Messages may have been missed.
    Gap(Gap<'a>),
    /// A message was dropped; the gap is reported for many at once.
    Dropped,
    /// Destinations and browsers were told that they may have missed something.
    Resynced {
        reason: &'a str,
    },
    /// That was not accepted or not published, and is tried again.
    ResyncFailed {
        reason: &'a str,
        error: &'a str,
    },
    Disconnected,
    /// There is a connection again, and nothing was missed.
    Reconnected {
        gap: Duration,
    },

    /// A message is delivered that was delivered before.
    Redelivered,
    /// So many messages wait in the stream.
    StreamPending(u64),
    /// Whether this replica is the one that works.
    Active(bool),

    HookCalled {
        message: &'a Message,
        plugin: &'a str,
        hook: &'static str,
        elapsed: Duration,
    },
    HookFailed {
        plugin: &'a str,
        hook: &'static str,
        kind: &'static str,
    },
    /// A line that a plugin wrote to standard output, or to standard error.
    PluginSaid {
        plugin: &'a str,
        line: &'a str,
        is_error: bool,
    },
    PluginsReloaded {
        plugins: &'a str,
    },
    PluginsKept {
        error: &'a dyn Display,
    },
}

/// A call of a destination for a message.
#[derive(Clone, Copy)]
pub(crate) struct Called<'a> {
    pub(crate) message: &'a Message,
    /// How many other messages the call stands for.
    pub(crate) merged: usize,
    pub(crate) destination: &'a dyn Display,
    /// The destination and the address, where every address of its host is called.
    pub(crate) instance: Option<(&'a str, IpAddr)>,
    /// Of the answer; `None` where there was none.
    pub(crate) status: Option<u16>,
    pub(crate) attempt: u32,
    /// From the call to the end of its answer; `None` where there was no call.
    pub(crate) elapsed: Option<Duration>,
}

/// What a request was answered with.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of the body.
    pub(crate) bytes: usize,
    /// From the request to the answer.
    pub(crate) elapsed: Duration,
}

/// How a message came to be relayed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// The call that stood for it.
    pub(crate) call: AcceptedCall,
    /// From its arrival until it was worked on.
    pub(crate) waited: Duration,
    /// From then until every destination had accepted it; next to nothing where the call of
    /// another message had been accepted for it before.
    pub(crate) called: Duration,
    /// From then until its copy was confirmed.
    pub(crate) published: Duration,
}

/// A call that every destination has accepted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AcceptedCall {
    /// Of the last destination.
    pub(crate) status: u16,
    /// Of the destination that needed the most.
    pub(crate) attempts: u32,
    /// How many other messages it stood for.
    pub(crate) merged: usize,
}

/// Why messages may have been missed.
pub(crate) enum Gap<'a> {
    /// There was no connection, and nothing kept what was published in the meantime.
    Reconnected { gap: Duration },
    /// The client library had no room for them.
    SlowConsumer,
    /// More would have waited than the limits allow.
    Limits { messages: u64, first_subject: &'a str, limits: Limits, within: Duration },
}
