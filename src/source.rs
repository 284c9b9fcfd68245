//! Intake: where messages come from.
//!
//! Core NATS: one subscription to everything below the prefix, at most once. What is in the
//! subscription's buffer is moved on at every turn, so that it is the relay's own limits that
//! decide what may wait.

use crate::config::Config;
use crate::message::{Id, Message};
use crate::nats::Link;
use crate::publisher::Publisher;
use anyhow::{Context, bail};
use async_nats::Subscriber;
use futures_util::StreamExt;
use tokio_util::bytes::Bytes;

/// A subscription.
pub struct Source {
    subscriber: Subscriber,
    link: Link,
    wildcard: String,
}

impl Source {
    /// Subscribes, and returns when the server has the subscription.
    ///
    /// # Errors
    /// When the user may not subscribe.
    pub async fn open(config: &Config, link: &Link, publisher: &Publisher) -> anyhow::Result<Self> {
        let wildcard = config.listen.wildcard();
        let subscriber = match &config.nats.queue_group {
            Some(group) => link.client.queue_subscribe(wildcard.clone(), group.clone()).await,
            None => link.client.subscribe(wildcard.clone()).await,
        };
        let subscriber = subscriber.with_context(|| format!("cannot subscribe to {wildcard}"))?;
        publisher.handled().await;
        if link.is_subscription_denied(&wildcard) {
            bail!("the NATS user may not subscribe to {wildcard}: grant it to the user");
        }
        Ok(Self { subscriber, link: link.clone(), wildcard })
    }

    /// The next message; `None` when there will be none, because of [`Self::stop`] or because
    /// the server or the client has ended the subscription.
    pub async fn next(&mut self) -> Option<Message> {
        let message = tokio::select! {
            biased;
            message = self.subscriber.next() => message?,
            () = self.link.subscription_denied(&self.wildcard) => return None,
        };
        Some(Message {
            subject: message.subject.as_str().into(),
            headers: message.headers.unwrap_or_default(),
            // Copied out of the connection's read buffer: a slice would keep all of the buffer
            // alive, and what waits would occupy several times its size.
            payload: Bytes::copy_from_slice(&message.payload),
            id: Id::unique(),
        })
    }

    /// Whether messages can arrive now.
    #[must_use]
    pub fn is_active(link: &Link, wildcard: &str) -> bool {
        link.is_connected() && !link.is_subscription_denied(wildcard)
    }

    /// Ends the subscription; what the server has sent before is still returned by [`Self::next`].
    pub async fn stop(&mut self) {
        // Fails only when the client has ended, and then `next` says so.
        let _ = self.subscriber.drain().await;
    }
}
