//! What streams answer to publishes (PubAck, ADR-1).
//!
//! Whoever subscribes to a subject sees where a publisher wants its answer, and may answer in the
//! stream's place. async-nats's own requests end with the first answer. Here only a stream that is
//! known to capture the subject is believed, and what others say is passed over.

use crate::nats::capture::Capture;
use async_nats::{Client, Message, StatusCode, Subject, SubscribeError, Subscriber};
use futures_util::StreamExt;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tracing::debug;

/// The answers that come through one client.
pub(super) struct Answers {
    capture: Capture,
    /// What the subjects for answers begin with; the number of the publish follows.
    inbox: String,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Numbers are not used again, so that a late answer is that of no other publish.
    last: u64,
    publishes: HashMap<u64, (Subject, oneshot::Sender<StreamAnswer>)>,
}

/// What became of a publish.
pub(super) enum StreamAnswer {
    /// The stream has it, perhaps already before.
    Stored(Stored),
    /// The stream will not have it, and why.
    Refused(String),
    /// Nobody listens to its subject.
    NoResponders,
}

/// Where a stream keeps a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    /// Whether it had a message with the same id already.
    pub(crate) is_duplicate: bool,
}

/// A publish that waits for its answer for as long as this is there.
pub(super) struct Expected<'a> {
    /// Where to send the answer.
    pub(super) reply: Subject,
    /// Fails when the client has ended.
    pub(super) answer: oneshot::Receiver<StreamAnswer>,
    number: u64,
    answers: &'a Answers,
}

impl Answers {
    /// Subscribes to answers for as long as `client` lives.
    ///
    /// # Errors
    /// When the client has ended.
    pub(super) async fn open(
        client: &Client,
        capture: &Capture,
    ) -> Result<Arc<Self>, SubscribeError> {
        let inbox = client.new_inbox() + ".";
        let messages = client.subscribe(format!("{inbox}*")).await?;
        let answers = Arc::new(Self { capture: capture.clone(), inbox, waiting: Mutex::default() });
        tokio::spawn(hand_out(Arc::clone(&answers), messages));
        Ok(answers)
    }

    /// Expects the answer to a publish on `subject`.
    pub(super) fn expect(&self, subject: Subject) -> Expected<'_> {
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.last += 1;
        let number = waiting.last;
        waiting.publishes.insert(number, (subject, sender));
        Expected {
            reply: Subject::from(format!("{}{number}", self.inbox)),
            answer,
            number,
            answers: self,
        }
    }

    fn take(&self, message: &Message) {
        let Some(number) = message
            .subject
            .strip_prefix(self.inbox.as_str())
            .and_then(|number| number.parse().ok())
        else {
            return;
        };
        let mut waiting = self.waiting();
        let Some((subject, _)) = waiting.publishes.get(&number) else { return };
        match read(message, |stream| self.capture.is_by(stream, subject)) {
            Some(answer) => {
                if let Some((_, sender)) = waiting.publishes.remove(&number) {
                    let _ = sender.send(answer);
                }
            }
            None => debug!(%subject, "somebody else has answered in the stream's place"),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.answers.waiting().publishes.remove(&self.number);
    }
}

/// Hands answers to those who wait, until the client ends.
async fn hand_out(answers: Arc<Answers>, mut messages: Subscriber) {
    while let Some(message) = messages.next().await {
        answers.take(&message);
    }
    answers.waiting().publishes.clear();
}

/// What a stream says, where `captures` knows it; it names itself when it refuses a message too.
fn read(message: &Message, captures: impl FnOnce(&str) -> bool) -> Option<StreamAnswer> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Some(StreamAnswer::NoResponders);
    }
    let answer: Value = serde_json::from_slice(&message.payload).ok()?;
    let stream = answer.get("stream")?.as_str()?;
    if !captures(stream) {
        return None;
    }
    Some(match answer.get("error") {
        Some(error) => {
            let reason = error.get("description").and_then(Value::as_str);
            StreamAnswer::Refused(reason.unwrap_or("no reason was given").to_owned())
        }
        None => StreamAnswer::Stored(Stored {
            stream: stream.to_owned(),
            sequence: answer.get("seq").and_then(Value::as_u64).unwrap_or(0),
            is_duplicate: answer.get("duplicate").and_then(Value::as_bool).unwrap_or(false),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::jetstream::{Api, OWN};
    use crate::nats::link::Link;
    use crate::nats::settings::Settings;
    use crate::observe::Observer;

    fn answers() -> Answers {
        let link = Link::new(&Settings::default(), &Observer::default());
        let capture = Capture::new(Api::new(OWN, &link), Vec::new());
        Answers { capture, inbox: "_INBOX.x.".to_owned(), waiting: Mutex::default() }
    }

    fn nobody(reply: &Subject) -> Message {
        Message {
            subject: reply.clone(),
            reply: None,
            payload: Default::default(),
            headers: None,
            status: Some(StatusCode::NO_RESPONDERS),
            description: None,
            length: 0,
        }
    }

    #[test]
    fn an_answer_that_comes_late_is_that_of_no_other_publish() {
        let answers = answers();
        let first = answers.expect("a".into());
        let reply = first.reply.clone();
        drop(first);
        let mut second = answers.expect("a".into());
        answers.take(&nobody(&reply));
        assert!(second.answer.try_recv().is_err());
        answers.take(&nobody(&second.reply));
        assert!(matches!(second.answer.try_recv(), Ok(StreamAnswer::NoResponders)));
    }

    #[test]
    fn nothing_is_kept_of_a_publish_that_has_ended() {
        let answers = answers();
        let (first, second) = (answers.expect("a".into()), answers.expect("b".into()));
        answers.take(&nobody(&first.reply));
        drop(second);
        drop(first);
        assert!(answers.waiting().publishes.is_empty());
    }
}
