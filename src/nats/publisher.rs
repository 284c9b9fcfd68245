//! Publishing with proof: a message counts as published when the server has taken it.
//!
//! A publish is only queued by the client. NATS handles one connection's commands in order, so
//! when a message to an inbox of our own comes back over the same connection, everything that
//! was published before it has arrived. One such round trip proves all that waited for it.
//! Where a stream captures what is published, it is the stream's own answer that counts.

use crate::message::Outbound;
use crate::nats::answers::{Answer, Answers};
use crate::nats::capture::Capture;
use crate::nats::jetstream::ApiError;
use crate::nats::link::{Link, REMIND};
use crate::observe::metrics::Metrics;
use crate::relay::dead_letter::DeadLetter;
use crate::subject::MAX_SUBJECT_BYTES;
use crate::webhook::Accepted;
use anyhow::bail;
use async_nats::{Client, HeaderMap, PublishError, PublishErrorKind, Subject, Subscriber};
use futures_util::StreamExt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::bytes::Bytes;
use tracing::{debug, warn};

/// How long the start waits for the first round trip before it goes on without any.
const FIRST_ROUND_TRIP: Duration = Duration::from_secs(10);
/// How often a message is published whose confirmation is lost with the connection. A server
/// that goes takes one or two of these; more is a message that the server closes connections over.
const MOST_TRIES: u32 = 10;
/// How long a stream's answer may take.
const UNANSWERED: Duration = Duration::from_secs(5);
/// How soon after no answer, or a refusal, a message is published again.
const UNANSWERED_AGAIN: Duration = Duration::from_millis(500);
/// How many publishes may wait for their proof at once. When the server denies them, each is
/// one event, and the client's event channel drops what is beyond 128.
const MOST_UNPROVEN: usize = 100;

/// Proof that the server has taken a message.
#[must_use = "what is confirmed is to be settled"]
pub(crate) struct Confirmed(Subject);

impl Confirmed {
    /// The subject that the message was published on.
    pub(crate) fn subject(&self) -> &Subject {
        &self.0
    }
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishFailure {
    /// The user may not publish on this subject.
    #[error("the NATS user may not publish on {0}: grant it to the user")]
    NotPermitted(Subject),
    /// The message is larger than the server takes.
    #[error("the message is larger than the server's max_payload")]
    TooLarge,
    /// Its subject is too long to be sent: the server would close the connection.
    #[error("the subject would have {0} bytes, at most {MAX_SUBJECT_BYTES} can be published")]
    SubjectTooLong(usize),
    /// The connection broke each time that it was published.
    #[error(
        "the connection to NATS broke {MOST_TRIES} times while the message was being published; whether it has arrived is unknown"
    )]
    Unconfirmed,
    /// The client refused it.
    #[error("cannot publish: {0}")]
    Refused(#[source] PublishError),
    /// The stream that captures its subject will not have it.
    #[error("the stream on {0} refuses it: {1}")]
    NotStored(Subject, String),
}

/// Publishes messages, each confirmed.
#[derive(Clone)]
pub(crate) struct Publisher {
    link: Link,
    /// `None` where the user may not use an inbox: then nothing can be proven.
    round_trips: Option<mpsc::UnboundedSender<Waiting>>,
    unproven: Arc<Semaphore>,
    /// JetStream mode: what streams capture.
    capture: Option<Capture>,
    /// What streams answer.
    answers: Arc<AsyncMutex<Option<Numbered>>>,
    unanswered_said: Arc<Mutex<Option<Instant>>>,
    metrics: Metrics,
}

/// The answers that come through a client, and its number.
type Numbered = (u64, Arc<Answers>);

/// Somebody who has published and waits for the proof.
struct Waiting {
    subject: Subject,
    /// The connection that was there before the publish.
    generation: u64,
    answer: oneshot::Sender<Proof>,
}

/// What became of one try to publish.
enum Outcome {
    Proof(Proof),
    Failed(PublishFailure),
    /// A stream said no, and why.
    NotStored(String),
    /// A stream said nothing.
    Unanswered,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    Arrived,
    Denied,
    /// The connection broke in between: it may have arrived or not.
    Unknown,
}

impl Publisher {
    /// Sets up the round trips, or says once that there can be none.
    ///
    /// # Errors
    /// When the client has ended, or JetStream can not be used without an inbox.
    pub(crate) async fn open(
        link: Link,
        capture: Option<Capture>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let (number, client) = link.client().await;
        let inbox = Subject::from(client.new_inbox());
        let mut returns = client.subscribe(inbox.clone()).await?;
        let generation = link.connected().await;
        client.publish(inbox.clone(), number_to_bytes(0)).await?;
        let round_trip =
            tokio::time::timeout(FIRST_ROUND_TRIP, came_back(&mut returns, 0, generation, &link));
        let allowed = tokio::select! {
            round_trip = round_trip => round_trip.is_ok(),
            () = link.subscription_denied(&inbox) => match &capture {
                // JetStream's answers and messages come to an inbox.
                Some(_) => bail!("the NATS user may not subscribe to _INBOX.>: grant it to the user"),
                None => false,
            },
            () = link.publish_denied(&inbox) => false,
        };
        let round_trips = if allowed {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(prove(receiver, link.clone(), inbox, number, returns));
            Some(sender)
        } else {
            let inboxes = inbox.rsplit_once('.').map_or("_INBOX", |(prefix, _)| prefix);
            warn!(
                "the NATS user may not publish and subscribe on {inboxes}.>: relayed messages are sent but not confirmed"
            );
            None
        };
        let unproven = Arc::new(Semaphore::new(MOST_UNPROVEN));
        let (answers, unanswered_said) = (Arc::default(), Arc::default());
        Ok(Self {
            link,
            round_trips,
            unproven,
            capture,
            answers,
            unanswered_said,
            metrics: metrics.clone(),
        })
    }

    /// Publishes a message that every destination has accepted, until it is confirmed.
    ///
    /// # Errors
    /// When the server or the client will not have it.
    pub(crate) async fn republish(&self, accepted: Accepted) -> Result<Confirmed, PublishFailure> {
        // Boxed, so that a message that waits is small.
        Box::pin(self.publish(accepted.into_relayed())).await
    }

    /// Publishes a message on the failed subject, until it is confirmed.
    ///
    /// # Errors
    /// When the server or the client will not have it.
    pub(crate) async fn publish_failed(
        &self,
        letter: DeadLetter,
    ) -> Result<Confirmed, PublishFailure> {
        Box::pin(self.publish(letter.into_outbound())).await
    }

    async fn publish(&self, message: Outbound) -> Result<Confirmed, PublishFailure> {
        if message.subject.len() > MAX_SUBJECT_BYTES {
            return Err(PublishFailure::SubjectTooLong(message.subject.len()));
        }
        let (mut lost, mut refused) = (0, 0);
        loop {
            let generation = self.link.connected().await;
            let (number, client) = self.link.client().await;
            let outcome =
                match self.capture.as_ref().filter(|capture| capture.has(&message.subject)) {
                    // Boxed, so that it takes no room where there is no stream.
                    Some(capture) => {
                        Box::pin(self.store(capture, number, &client, &message, generation)).await
                    }
                    None => self.send(&client, &message, generation).await,
                };
            match outcome {
                Outcome::Proof(Proof::Arrived) => return Ok(Confirmed(message.subject)),
                Outcome::Proof(Proof::Denied) => {
                    return Err(PublishFailure::NotPermitted(message.subject));
                }
                Outcome::Failed(failure) => return Err(failure),
                Outcome::Proof(Proof::Unknown) => {
                    lost += 1;
                    if lost == MOST_TRIES {
                        return Err(PublishFailure::Unconfirmed);
                    }
                    self.metrics.republished_again.inc();
                    debug!(subject = %message.subject, "connection lost before the confirmation, publishing again");
                }
                Outcome::NotStored(reason) => {
                    refused += 1;
                    if refused == MOST_TRIES {
                        return Err(PublishFailure::NotStored(message.subject, reason));
                    }
                    tokio::time::sleep(UNANSWERED_AGAIN * refused).await;
                }
                Outcome::Unanswered => {
                    self.say_unanswered(&message.subject);
                    self.metrics.republished_again.inc();
                    tokio::time::sleep(UNANSWERED_AGAIN).await;
                    // Perhaps there is no such stream any more.
                    let _ = self.find_streams().await;
                }
            }
        }
    }

    /// Publishes, and proves it by a round trip.
    async fn send(&self, client: &Client, message: &Outbound, generation: u64) -> Outcome {
        let _unproven = self.unproven.acquire().await;
        let Outbound { subject, headers, payload } = message.clone();
        match client.publish_with_headers(subject.clone(), headers, payload).await {
            Ok(()) => Outcome::Proof(self.round_trip(subject, generation).await),
            Err(error) => self.unsent(error, generation).await,
        }
    }

    /// Publishes to a stream, which says when it has the message. The round trip tells beside
    /// that if the user may not publish: then nobody says anything.
    async fn store(
        &self,
        capture: &Capture,
        number: u64,
        client: &Client,
        message: &Outbound,
        generation: u64,
    ) -> Outcome {
        let mut unproven = self.unproven.acquire().await.ok();
        let Some(answers) = self.answers(capture, number, client).await else {
            return self.client_ended(generation).await;
        };
        let Outbound { subject, headers, payload } = message.clone();
        let mut expected = answers.expect(subject.clone());
        let reply = expected.reply.clone();
        if let Err(error) =
            client.publish_with_reply_and_headers(subject.clone(), reply, headers, payload).await
        {
            return self.unsent(error, generation).await;
        }
        let mut answer = pin!(tokio::time::timeout(UNANSWERED, &mut expected.answer));
        let mut round_trip = pin!(self.round_trip(subject, generation));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(Ok(Answer::Stored)) => Outcome::Proof(Proof::Arrived),
                    Ok(Ok(Answer::Refused(reason))) => Outcome::NotStored(reason),
                    Ok(Ok(Answer::NoResponders)) | Err(_) => Outcome::Unanswered,
                    Ok(Err(_)) => self.client_ended(generation).await,
                },
                proof = &mut round_trip, if unproven.is_some() => match proof {
                    Proof::Arrived => unproven = None,
                    proof => return Outcome::Proof(proof),
                },
            }
        }
    }

    /// The answers that come through `client`; `None` when it has ended.
    async fn answers(
        &self,
        capture: &Capture,
        number: u64,
        client: &Client,
    ) -> Option<Arc<Answers>> {
        let mut current = self.answers.lock().await;
        if let Some((of, answers)) = &*current
            && *of == number
        {
            return Some(Arc::clone(answers));
        }
        let answers = Answers::open(client, capture).await.ok()?;
        *current = Some((number, Arc::clone(&answers)));
        Some(answers)
    }

    /// The client would not take a message.
    async fn unsent(&self, error: PublishError, generation: u64) -> Outcome {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Outcome::Failed(PublishFailure::TooLarge),
            PublishErrorKind::InvalidSubject => Outcome::Failed(PublishFailure::Refused(error)),
            PublishErrorKind::Send => self.client_ended(generation).await,
        }
    }

    /// The client has ended; the source replaces it.
    async fn client_ended(&self, generation: u64) -> Outcome {
        self.link.replaced(generation).await;
        Outcome::Proof(Proof::Unknown)
    }

    fn say_unanswered(&self, subject: &Subject) {
        let mut said = self.unanswered_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= REMIND) {
            *said = Some(Instant::now());
            warn!(%subject, "the stream that captures what is published does not answer, trying again");
        }
    }

    /// Finds out which streams capture what is published, again after a reconnect.
    ///
    /// # Errors
    /// When JetStream does not answer; what was known stays.
    pub(crate) async fn find_streams(&self) -> Result<(), ApiError> {
        match &self.capture {
            Some(capture) => capture.find().await,
            None => Ok(()),
        }
    }

    /// Whether the user may publish on `subject`, without sending anything to subscribers.
    ///
    /// nats-server 2.11 and later check the permission of a message that is only traced
    /// (`Nats-Trace-Only`, ADR-41) and deliver it to nobody. Of older servers nothing is asked.
    pub(crate) async fn may_publish(&self, subject: String) -> bool {
        let (_, client) = self.link.client().await;
        if self.round_trips.is_none() || !client.is_server_compatible(2, 11, 0) {
            return true;
        }
        let subject = Subject::from(subject);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Trace-Dest", client.new_inbox());
        headers.insert("Nats-Trace-Only", "true");
        let generation = self.link.connected().await;
        let sent = client.publish_with_headers(subject.clone(), headers, Bytes::new()).await;
        sent.is_err() || self.round_trip(subject, generation).await != Proof::Denied
    }

    /// Returns when the server has handled all that was sent before.
    pub(crate) async fn handled(&self) {
        let generation = self.link.connected().await;
        if self.round_trips.is_some() {
            self.round_trip(Subject::from_static(""), generation).await;
            return;
        }
        // A denial comes back in the server's order too, and an inbox is what is denied.
        let (_, client) = self.link.client().await;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(inbox.clone()).await;
        let published = client.publish(inbox.clone(), Bytes::new()).await;
        if subscriber.is_ok() && published.is_ok() {
            tokio::select! {
                () = self.link.subscription_denied(&inbox) => {}
                () = self.link.publish_denied(&inbox) => {}
                () = self.link.replaced(generation) => {}
                () = tokio::time::sleep(FIRST_ROUND_TRIP) => {}
            }
        }
    }

    async fn round_trip(&self, subject: Subject, generation: u64) -> Proof {
        let Some(round_trips) = &self.round_trips else {
            // The socket's flush is all there is.
            let flushed = self.link.client().await.1.flush().await.is_ok();
            return match (
                self.link.take_denied_publish(&subject),
                flushed && self.link.generation() == generation,
            ) {
                (true, _) => Proof::Denied,
                (false, true) => Proof::Arrived,
                (false, false) => Proof::Unknown,
            };
        };
        let (answer, proof) = oneshot::channel();
        let _ = round_trips.send(Waiting { subject, generation, answer });
        proof.await.unwrap_or(Proof::Unknown)
    }
}

/// Makes round trips for as long as somebody waits: while one is under way, those who come
/// gather for the next.
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
                Some(message) if message.payload == number_to_bytes(number) => return link.generation() == generation,
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
