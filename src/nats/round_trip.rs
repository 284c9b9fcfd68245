//! Round trips: proof that the server has handled everything that was sent before.
//!
//! NATS handles one connection's commands in order, so when a message to an inbox of our own
//! comes back over the same connection, everything that was published before it has arrived. One
//! round trip proves all that waited for it. A denial comes back in the same order: it is noted
//! by another task, which was woken before the one that waits for the round trip. On a runtime
//! of one thread, whose tasks run in the order in which they were woken, a task that receives a
//! reply and then yields once has seen every denial sent before it. That is relied on here and
//! nowhere else, and another kind of runtime is refused.

use crate::nats::link::Link;
use anyhow::ensure;
use async_nats::{HeaderMap, Subject, Subscriber};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio_util::bytes::Bytes;
use tracing::warn;

/// How long the start waits for the first round trip before it goes on without any.
const FIRST: Duration = Duration::from_secs(10);

/// Makes round trips. Clones share them.
#[derive(Clone)]
pub(crate) struct RoundTrips {
    link: Link,
    /// `None` where the user may not use an inbox: then nothing can be proven.
    waiting: Option<mpsc::UnboundedSender<Waiting>>,
}

/// A publish that waits for its proof.
struct Waiting {
    subject: Subject,
    /// The connection that was there before the publish.
    generation: u64,
    answer: oneshot::Sender<Proof>,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    Arrived,
    Denied,
    /// The connection broke in between: it may have arrived or not.
    Unknown,
}

impl RoundTrips {
    /// Sets them up, or says once that there can be none; JetStream `needs_inbox` in any case, for
    /// its answers and messages.
    ///
    /// # Errors
    /// When the client has ended, when there is no inbox and one is needed, or when the runtime
    /// has more than one thread.
    pub(crate) async fn open(link: &Link, needs_inbox: bool) -> anyhow::Result<Self> {
        ensure!(
            Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread,
            "round trips prove nothing on a runtime of several threads"
        );
        let (number, client) = link.client().await;
        let inbox = Subject::from(client.new_inbox());
        let mut returns = client.subscribe(inbox.clone()).await?;
        let generation = link.connected().await;
        client.publish(inbox.clone(), number_to_bytes(0)).await?;
        let first = tokio::time::timeout(FIRST, came_back(&mut returns, 0, generation, link));
        let allowed = tokio::select! {
            first = first => first.is_ok(),
            () = link.subscription_denied(&inbox) => {
                ensure!(
                    !needs_inbox,
                    "the NATS user may not subscribe to _INBOX.>: grant it to the user"
                );
                false
            }
            () = link.publish_denied(&inbox) => false,
        };
        if !allowed {
            let inboxes = inbox.rsplit_once('.').map_or("_INBOX", |(prefix, _)| prefix);
            warn!(
                "the NATS user may not publish and subscribe on {inboxes}.>: relayed messages are \
                 sent but not confirmed"
            );
            return Ok(Self { link: link.clone(), waiting: None });
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(prove(receiver, link.clone(), inbox, number, returns));
        Ok(Self { link: link.clone(), waiting: Some(sender) })
    }

    /// None, for those who only have to know when the server has handled what was sent.
    pub(crate) fn none(link: &Link) -> Self {
        Self { link: link.clone(), waiting: None }
    }

    /// Whether anything can be proven.
    pub(crate) fn are_possible(&self) -> bool {
        self.waiting.is_some()
    }

    /// Proves a publish on `subject` that was made while `generation` was the connection.
    pub(crate) async fn prove(&self, subject: Subject, generation: u64) -> Proof {
        let Some(waiting) = &self.waiting else {
            // The socket's flush is all there is.
            let flushed = self.link.client().await.1.flush().await.is_ok();
            let is_same = flushed && self.link.generation() == generation;
            return match (self.link.take_denied_publish(&subject), is_same) {
                (true, _) => Proof::Denied,
                (false, true) => Proof::Arrived,
                (false, false) => Proof::Unknown,
            };
        };
        let (answer, proof) = oneshot::channel();
        let _ = waiting.send(Waiting { subject, generation, answer });
        proof.await.unwrap_or(Proof::Unknown)
    }

    /// Returns when the server has handled everything that was sent before.
    pub(crate) async fn handled(&self) {
        let generation = self.link.connected().await;
        if self.are_possible() {
            self.prove(Subject::from_static(""), generation).await;
            return;
        }
        // A denial comes back in the server's order too, where it is an inbox that is denied.
        let (_, client) = self.link.client().await;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(inbox.clone()).await;
        let published = client.publish(inbox.clone(), Bytes::new()).await;
        if let (Ok(mut subscriber), Ok(())) = (subscriber, published) {
            tokio::select! {
                // What was denied before is noted first.
                _ = subscriber.next() => tokio::task::yield_now().await,
                () = self.link.subscription_denied(&inbox) => {}
                () = self.link.publish_denied(&inbox) => {}
                () = self.link.replaced(generation) => {}
                () = tokio::time::sleep(FIRST) => {}
            }
        }
    }

    /// Whether the user may publish on `subject`, without sending anything to subscribers.
    ///
    /// nats-server 2.11 and later check the permission of a message that is only traced
    /// (`Nats-Trace-Only`, ADR-41) and do not deliver it. Older servers are not asked.
    pub(crate) async fn may_publish(&self, subject: String) -> bool {
        let (_, client) = self.link.client().await;
        if !self.are_possible() || !client.is_server_compatible(2, 11, 0) {
            return true;
        }
        let subject = Subject::from(subject);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Trace-Dest", client.new_inbox());
        headers.insert("Nats-Trace-Only", "true");
        let generation = self.link.connected().await;
        let sent = client.publish_with_headers(subject.clone(), headers, Bytes::new()).await;
        sent.is_err() || self.prove(subject, generation).await != Proof::Denied
    }
}

/// Makes round trips for as long as anything waits: while one is under way, what comes gathers
/// for the next.
async fn prove(
    mut waiting: mpsc::UnboundedReceiver<Waiting>,
    link: Link,
    inbox: Subject,
    mut subscribed_with: u64,
    mut returns: Subscriber,
) {
    let mut batch = Vec::new();
    let mut number = 0;
    while waiting.recv_many(&mut batch, 4096).await > 0 {
        number += 1;
        let (client_number, client) = link.client().await;
        if client_number != subscribed_with
            && let Ok(subscriber) = client.subscribe(inbox.clone()).await
        {
            (subscribed_with, returns) = (client_number, subscriber);
        }
        let generation = link.generation();
        let sent = client.publish(inbox.clone(), number_to_bytes(number)).await.is_ok();
        let came_back = sent && came_back(&mut returns, number, generation, &link).await;
        // Denials that arrived before it may still wait to be noted, if something else had woken
        // this task before them. Whatever is ready to run now does so first.
        tokio::task::yield_now().await;
        for waiting in batch.drain(..) {
            let proof = if link.take_denied_publish(&waiting.subject) {
                Proof::Denied
            } else if came_back && waiting.generation == generation {
                Proof::Arrived
            } else {
                Proof::Unknown
            };
            let _ = waiting.answer.send(proof);
        }
        if waiting.is_empty() {
            link.forget_denied_publishes();
        }
    }
}

/// Waits for message `number` of the inbox; false when the connection was replaced before.
async fn came_back(returns: &mut Subscriber, number: u64, generation: u64, link: &Link) -> bool {
    loop {
        tokio::select! {
            biased;
            message = returns.next() => match message {
                Some(message) if message.payload == number_to_bytes(number) => {
                    return link.generation() == generation;
                }
                Some(_) => {}
                // The client has ended; there will be another connection.
                None => {
                    link.replaced(generation).await;
                    return false;
                }
            },
            () = link.replaced(generation) => return false,
        }
    }
}

fn number_to_bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}
