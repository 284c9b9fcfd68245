//! Where messages come from.

pub(crate) mod stream;
pub(crate) mod subscription;

use crate::message::Message;
use crate::message::relay_of;
use crate::nats::jetstream::Api;
use crate::nats::link::Link;
use crate::nats::publisher::Publisher;
use crate::observe::metrics::Metrics;
use crate::pending::Limits;
use crate::source::stream::Pull;
use crate::source::stream::consumer::{self, Consumer};
use crate::source::stream::held::Held;
use crate::source::subscription::Subscription;
use crate::subject::Prefix;

#[derive(Debug)]
pub(crate) struct Settings {
    /// Messages below this prefix are taken in.
    pub(crate) listen: Prefix,
    pub(crate) intake: Intake,
    /// How much may wait in the process.
    pub(crate) limits: Limits,
}

/// One of the two ways in, as it is set up.
#[derive(Debug, Clone)]
pub(crate) enum Intake {
    /// Core NATS; replicas with the same queue group share the work.
    Subscription {
        queue_group: Option<String>,
    },
    Stream(consumer::Settings),
}

/// One of the two ways in.
pub(crate) enum Source {
    /// Core NATS.
    Subscription(Box<Subscription>),
    /// JetStream.
    Stream(Box<Pull>),
}

impl Source {
    /// Returns when messages can arrive.
    ///
    /// # Errors
    /// When the user may not have them, or there is no stream or consumer to have them from.
    pub(crate) async fn open(
        settings: &Settings,
        relayed: &Prefix,
        link: &Link,
        publisher: &Publisher,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let Settings { listen, limits, .. } = settings;
        Ok(match &settings.intake {
            Intake::Subscription { queue_group } => {
                let subscription =
                    Subscription::open(queue_group.as_deref(), listen, link, publisher);
                Self::Subscription(Box::new(subscription.await?))
            }
            Intake::Stream(stream) => {
                let consumer = Consumer::new(
                    Api::new(&stream.api_prefix, link),
                    stream,
                    listen,
                    limits.messages,
                );
                let relay = relay_of(&stream.consumer, &relayed.to_string());
                let pull = Pull::open(consumer, relay, *limits, link, publisher, metrics);
                Self::Stream(Box::new(pull.await?))
            }
        })
    }

    /// The next message; `None` when there will be none, because of [`Self::stop`] or because
    /// the server has ended it.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        match self {
            Self::Subscription(subscription) => subscription.next().await,
            Self::Stream(pull) => pull.next().await,
        }
    }

    /// Asks for no more; what is on its way is still returned by [`Self::next`].
    pub(crate) async fn stop(&mut self) {
        match self {
            Self::Subscription(subscription) => subscription.stop().await,
            Self::Stream(pull) => pull.stop(),
        }
    }

    /// Keeps what is here this process's own after the last message has come. Does not return.
    pub(crate) async fn hold(&mut self) {
        match self {
            Self::Subscription(_) => std::future::pending().await,
            Self::Stream(pull) => pull.hold().await,
        }
    }

    /// Gives back what is not settled, and returns when the server knows all that was said.
    pub(crate) async fn close(self) {
        if let Self::Stream(pull) = self {
            pull.close().await;
        }
    }

    /// What is to be settled at a stream.
    #[must_use]
    pub(crate) fn held(&self) -> Option<Held> {
        match self {
            Self::Subscription(_) => None,
            Self::Stream(pull) => Some(pull.held()),
        }
    }

    /// Whether the server has ended the subscription because the user may not have it.
    #[must_use]
    pub(crate) fn is_denied(&self) -> bool {
        match self {
            Self::Subscription(subscription) => subscription.is_denied(),
            Self::Stream(_) => false,
        }
    }
}
