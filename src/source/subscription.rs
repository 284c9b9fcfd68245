//! Intake from core NATS: one subscription to what is listened on, at most once.
//!
//! What is in the subscription's buffer is moved on at every turn, so that it is the relay's
//! own limits that decide what may wait.

use crate::message::{Id, Message};
use crate::nats::link::{Link, Missed};
use crate::nats::round_trip::RoundTrips;
use crate::pending::Limits;
use crate::subject::Subjects;
use anyhow::{Context, bail};
use async_nats::{Client, SubscribeError, Subscriber};
use futures_util::StreamExt;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How much may wait unless something else is said.
pub(crate) const LIMITS: Limits = Limits { messages: 65_536, bytes: 64 << 20 };
/// How long the client may take to take note that a subscription ends.
const UNSUBSCRIBE: Duration = Duration::from_secs(1);

pub(crate) struct Subscription {
    subject: String,
    queue_group: Option<String>,
    link: Link,
    round_trips: RoundTrips,
    subscriber: Subscriber,
    /// The number of the client that has the subscription.
    client: watch::Sender<u64>,
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
        listen: &Subjects,
        link: &Link,
        round_trips: &RoundTrips,
    ) -> anyhow::Result<Self> {
        let subject = listen.pattern();
        let generation = link.connected().await;
        let (number, client) = link.client().await;
        let subscriber = subscribe(&client, &subject, queue_group).await;
        let subscriber = subscriber.with_context(|| format!("cannot subscribe to {subject}"))?;
        round_trips.handled().await;
        if link.is_subscription_denied(&subject) {
            bail!("the NATS user may not subscribe to {subject}: grant it to the user");
        }
        link.subscribed(generation, Missed::Perhaps);
        let client = watch::Sender::new(number);
        tokio::spawn(watch(link.clone(), round_trips.clone(), client.subscribe(), generation));
        Ok(Self {
            subject,
            queue_group: queue_group.map(str::to_owned),
            link: link.clone(),
            round_trips: round_trips.clone(),
            subscriber,
            client,
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
                None => self.subscribe_again().await?,
            }
        }
    }

    /// Moves to the client that takes the place of the one that has ended; `None` when there is
    /// none.
    async fn subscribe_again(&mut self) -> Option<()> {
        let ended = *self.client.borrow();
        let (number, client) = self.link.client_after(ended).await?;
        // Where that one has ended too, its subscriber says so.
        let group = self.queue_group.as_deref();
        if let Ok(subscriber) = subscribe(&client, &self.subject, group).await {
            self.subscriber = subscriber;
        }
        self.client.send_replace(number);
        Some(())
    }

    /// Ends the subscription; what the server has sent before is still returned by [`Self::next`].
    pub(crate) async fn stop(&mut self) {
        self.stopped = true;
        self.last = Box::pin(nothing_more(self.link.clone(), self.round_trips.clone()));
        // The client's own `drain` and `unsubscribe` forget the subscription at once, and with it
        // the messages that are on their way. A maximum leaves it in place at the client, and
        // this one nats-server takes for none at all, so that it ends the subscription.
        // It fails only when the client has ended, and then `next` says so; it waits only where
        // there is no connection, and then nothing more arrives.
        let _ = timeout(UNSUBSCRIBE, self.subscriber.unsubscribe_after(u64::MAX)).await;
    }

    /// Whether the server has ended the subscription because the user may not have it.
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

/// Returns when all that the server sent before has arrived, or cannot arrive any more.
async fn nothing_more(link: Link, round_trips: RoundTrips) {
    tokio::select! {
        biased;
        () = link.disconnected() => {}
        () = round_trips.handled() => {}
    }
}

/// Finds out after each reconnect when the subscription is active again: a client that
/// reconnects sends it before anything else, and another client has it once it was made there,
/// so that a round trip after that proves it.
async fn watch(
    link: Link,
    round_trips: RoundTrips,
    mut subscribed_with: watch::Receiver<u64>,
    mut generation: u64,
) {
    loop {
        link.replaced(generation).await;
        generation = link.connected().await;
        let (number, _) = link.client().await;
        if subscribed_with.wait_for(|with| *with >= number).await.is_err() {
            return;
        }
        round_trips.handled().await;
        if link.generation() == generation {
            link.subscribed(generation, Missed::Perhaps);
        }
    }
}
