//! Where messages come from: a subscription of core NATS, or a stream.

pub(crate) mod stream;
pub(crate) mod subscription;

use crate::message::{Message, relay_of};
use crate::nats::jetstream::Api;
use crate::pending::Limits;
use crate::source::stream::consumer::{self, Consumer};
use crate::source::stream::{Parts, Pull};
use crate::source::subscription::Subscription;
use crate::subject::Subjects;

#[derive(Debug)]
pub(crate) struct Settings {
    /// Messages on these are taken in.
    pub(crate) listen: Subjects,
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
    Subscription(Box<Subscription>),
    Stream(Box<Pull>),
}

impl Source {
    /// Returns when messages can arrive, which are relayed to `relayed`.
    ///
    /// # Errors
    /// When the user may not have them, or there is no stream or consumer to have them from.
    pub(crate) async fn open(
        settings: &Settings,
        relayed: &Subjects,
        parts: Parts<'_>,
    ) -> anyhow::Result<Self> {
        let Settings { listen, limits, .. } = settings;
        Ok(match &settings.intake {
            Intake::Subscription { queue_group } => {
                let (group, Parts { link, round_trips, .. }) = (queue_group.as_deref(), parts);
                let subscription = Subscription::open(group, listen, link, round_trips).await?;
                Self::Subscription(Box::new(subscription))
            }
            Intake::Stream(stream) => {
                let api = Api::new(&stream.api_prefix, parts.link);
                let consumer = Consumer::new(api, stream, listen, limits.messages);
                let relay = relay_of(&stream.consumer, &relayed.to_string());
                Self::Stream(Box::new(Pull::open(consumer, relay, *limits, parts).await?))
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

    /// Whether the server has ended the subscription because the user may not have it.
    pub(crate) fn is_denied(&self) -> bool {
        match self {
            Self::Subscription(subscription) => subscription.is_denied(),
            Self::Stream(_) => false,
        }
    }
}
