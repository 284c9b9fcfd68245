//! Requests and their replies, through one inbox for each client.
//!
//! async-nats keeps what waits for a reply until one comes, also when nobody waits any more. Here
//! nothing is kept of a request that has ended, and a reply that comes late is passed over.

use crate::message::Outbound;
use async_nats::{Client, Message, Subject, Subscriber};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

/// Makes requests.
#[derive(Default)]
pub(crate) struct Replies {
    /// The inbox of the client in use, and the client's number.
    inbox: AsyncMutex<Option<(u64, Arc<Inbox>)>>,
}

impl Replies {
    /// The reply to a message; `None` when the client `number` has ended.
    pub(crate) async fn request(
        &self,
        (number, client): (u64, &Client),
        message: Outbound,
    ) -> Option<Message> {
        let inbox = self.inbox(number, client).await?;
        let mut expected = inbox.expect();
        let Outbound { subject, headers, payload } = message;
        let reply = expected.subject.clone();
        client.publish_with_reply_and_headers(subject, reply, headers, payload).await.ok()?;
        (&mut expected.reply).await.ok()
    }

    async fn inbox(&self, number: u64, client: &Client) -> Option<Arc<Inbox>> {
        let mut current = self.inbox.lock().await;
        if let Some((of, inbox)) = &*current
            && *of == number
        {
            return Some(Arc::clone(inbox));
        }
        let inbox = Arc::new(Inbox { prefix: client.new_inbox() + ".", waiting: Mutex::default() });
        let replies = client.subscribe(format!("{}*", inbox.prefix)).await.ok()?;
        tokio::spawn(hand_out(Arc::clone(&inbox), replies));
        *current = Some((number, Arc::clone(&inbox)));
        Some(inbox)
    }
}

struct Inbox {
    /// What the subjects for replies begin with; the number of the request follows.
    prefix: String,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Numbers are not used again, so that a late reply is that of no other request.
    last: u64,
    requests: HashMap<u64, oneshot::Sender<Message>>,
}

/// A request that waits for its reply for as long as this is there.
struct Expected<'a> {
    /// Where to send the reply.
    subject: Subject,
    /// Fails when the client has ended.
    reply: oneshot::Receiver<Message>,
    number: u64,
    inbox: &'a Inbox,
}

impl Inbox {
    fn expect(&self) -> Expected<'_> {
        let (sender, reply) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.last += 1;
        let number = waiting.last;
        waiting.requests.insert(number, sender);
        let subject = Subject::from(format!("{}{number}", self.prefix));
        Expected { subject, reply, number, inbox: self }
    }

    fn take(&self, message: Message) {
        let number = message.subject.strip_prefix(self.prefix.as_str());
        let Some(number) = number.and_then(|number| number.parse().ok()) else { return };
        let sender = self.waiting().requests.remove(&number);
        if let Some(sender) = sender {
            // Whoever waited may have gone in this moment.
            let _ = sender.send(message);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.inbox.waiting().requests.remove(&self.number);
    }
}

/// Hands replies to those who wait, until the client ends.
async fn hand_out(inbox: Arc<Inbox>, mut replies: Subscriber) {
    while let Some(message) = replies.next().await {
        inbox.take(message);
    }
    inbox.waiting().requests.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(subject: &Subject) -> Message {
        Message {
            subject: subject.clone(),
            reply: None,
            payload: Default::default(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn nothing_is_kept_of_a_request_that_has_ended_and_its_late_reply_is_nobodys() {
        let inbox = Inbox { prefix: "_INBOX.x.".to_owned(), waiting: Mutex::default() };
        let (first, mut second) = (inbox.expect(), inbox.expect());
        let late = reply(&first.subject);
        drop(first);
        assert_eq!(inbox.waiting().requests.len(), 1);
        inbox.take(late);
        assert!(second.reply.try_recv().is_err());
        inbox.take(reply(&second.subject));
        inbox.take(reply(&second.subject));
        assert!(second.reply.try_recv().is_ok());
        assert!(inbox.waiting().requests.is_empty());
    }
}
