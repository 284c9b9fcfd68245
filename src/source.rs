//! Intake: where messages come from.

use crate::config::Config;
use crate::jetstream::held::Held;
use crate::jetstream::pull::Pull;
use crate::link::Link;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::publisher::Publisher;
use crate::subscription::Subscription;

/// One of the two ways in.
pub enum Source {
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
    pub async fn open(config: &Config, link: &Link, publisher: &Publisher, metrics: &Metrics) -> anyhow::Result<Self> {
        Ok(match &config.nats.stream {
            None => Self::Subscription(Box::new(Subscription::open(&config.nats, &config.listen, link, publisher).await?)),
            Some(stream) => Self::Stream(Box::new(Pull::open(config, stream, link, publisher, metrics).await?)),
        })
    }

    /// The next message; `None` when there will be none, because of [`Self::stop`] or because
    /// the server has ended it.
    pub async fn next(&mut self) -> Option<Message> {
        match self {
            Self::Subscription(subscription) => subscription.next().await,
            Self::Stream(pull) => pull.next().await,
        }
    }

    /// Asks for no more; what is on its way is still returned by [`Self::next`].
    pub async fn stop(&mut self) {
        match self {
            Self::Subscription(subscription) => subscription.stop().await,
            Self::Stream(pull) => pull.stop(),
        }
    }

    /// Keeps what is here this process's own after the last message has come. Does not return.
    pub async fn hold(&mut self) {
        match self {
            Self::Subscription(_) => std::future::pending().await,
            Self::Stream(pull) => pull.hold().await,
        }
    }

    /// Gives back what is not settled, and returns when the server knows all that was said.
    pub async fn close(self) {
        if let Self::Stream(pull) = self {
            pull.close().await;
        }
    }

    /// What is to be settled at a stream.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        match self {
            Self::Subscription(_) => None,
            Self::Stream(pull) => Some(pull.held()),
        }
    }

    /// Whether the server has ended the subscription because the user may not have it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Subscription(subscription) => subscription.is_denied(),
            Self::Stream(_) => false,
        }
    }
}
