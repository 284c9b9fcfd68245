//! Intake from core NATS: one subscription to everything below the prefix, at most once.
//!
//! What is in the subscription's buffer is moved on at every turn, so that it is the relay's
//! own limits that decide what may wait.

use crate::message::{Id, Message};
use crate::nats;
use crate::nats::link::{Link, Missed};
use crate::nats::publisher::Publisher;
use crate::pending::Limits;
use crate::subject::Prefix;
use anyhow::{Context, bail};
use async_nats::{Client, SubscribeError, Subscriber};
use futures_util::StreamExt;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::timeout;

/// How long the client may take to take note that a subscription ends.
const UNSUBSCRIBE: Duration = Duration::from_secs(1);

/// How much may wait unless something else is said.
pub(crate) const LIMITS: Limits = Limits { messages: 65_536, bytes: 64 << 20 };

/// A subscription.
pub(crate) struct Subscription {
    queue_group: Option<String>,
    subject: String,
    link: Link,
    publisher: Publisher,
    subscriber: Subscriber,
    stopped: bool,
    /// Resolves, once stopped, when no message can arrive any more.
    last: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Subscription {
    /// Subscribes, and returns when the server has the subscription.
    ///
    /// # Errors
    /// When the user may not subscribe.
    pub(crate) async fn open(
        queue_group: Option<&str>,
        listen: &Prefix,
        link: &Link,
        publisher: &Publisher,
    ) -> anyhow::Result<Self> {
        let subject = listen.wildcard();
        let generation = link.connected().await;
        let (_, client) = link.client().await;
        let subscriber = subscribe(&client, &subject, queue_group)
            .await
            .with_context(|| format!("cannot subscribe to {subject}"))?;
        publisher.handled().await;
        if link.is_subscription_denied(&subject) {
            bail!("the NATS user may not subscribe to {subject}: grant it to the user");
        }
        link.subscribed(generation, Missed::Perhaps);
        tokio::spawn(watch(link.clone(), publisher.clone(), generation));
        Ok(Self {
            queue_group: queue_group.map(str::to_owned),
            subject,
            link: link.clone(),
            publisher: publisher.clone(),
            subscriber,
            stopped: false,
            last: Box::pin(std::future::pending()),
        })
    }

    /// The next message; `None` when there will be none, because of [`Self::stop`] or because
    /// the server has ended the subscription.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.subscriber.next() => message,
                () = self.link.subscription_denied(&self.subject) => return None,
                () = &mut self.last => return None,
            };
            match message {
                Some(message) => {
                    let headers = message.headers.unwrap_or_default();
                    let subject = message.subject.as_str();
                    return Some(Message::new(subject, headers, message.payload, Id::unique()));
                }
                None if self.stopped => return None,
                None => self.subscribe_anew().await.ok()?,
            }
        }
    }

    /// Another client takes the place of the one that has ended.
    async fn subscribe_anew(&mut self) -> anyhow::Result<()> {
        let client = nats::new_client(&self.link).await?;
        self.subscriber = subscribe(&client, &self.subject, self.queue_group.as_deref()).await?;
        self.link.replace(client);
        Ok(())
    }

    /// Ends the subscription; what the server has sent before is still returned by [`Self::next`].
    pub(crate) async fn stop(&mut self) {
        self.stopped = true;
        self.last = Box::pin(nothing_more(self.link.clone(), self.publisher.clone()));
        // The client's own `drain` and `unsubscribe` forget the subscription at once, and with it
        // the messages that are on their way. A maximum leaves it in place at the client, and
        // this one nats-server takes for none at all, so that it ends the subscription.
        // It fails only when the client has ended, and then `next` says so; it waits only where
        // there is no connection, and then nothing more arrives.
        let _ = timeout(UNSUBSCRIBE, self.subscriber.unsubscribe_after(u64::MAX)).await;
    }

    /// Whether the server has ended the subscription because the user may not have it.
    #[must_use]
    pub(crate) fn is_denied(&self) -> bool {
        self.link.is_subscription_denied(&self.subject)
    }
}

async fn subscribe(
    client: &Client,
    subject: &str,
    queue_group: Option<&str>,
) -> Result<Subscriber, SubscribeError> {
    match queue_group {
        Some(group) => client.queue_subscribe(subject.to_owned(), group.to_owned()).await,
        None => client.subscribe(subject.to_owned()).await,
    }
}

/// Returns when all that the server sent before has arrived, or can not arrive any more.
async fn nothing_more(link: Link, publisher: Publisher) {
    tokio::select! {
        biased;
        () = link.disconnected() => {}
        () = publisher.handled() => {}
    }
}

/// Finds out after each reconnect when the subscription is active again: the client sends it
/// before anything else, so a round trip proves it.
async fn watch(link: Link, publisher: Publisher, mut generation: u64) {
    loop {
        link.replaced(generation).await;
        generation = link.connected().await;
        publisher.handled().await;
        if link.generation() == generation {
            link.subscribed(generation, Missed::Perhaps);
        }
    }
}
