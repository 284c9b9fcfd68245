//! Publishing with proof: a message counts as published when the server has taken it.
//!
//! A publish is only queued by the client; a round trip proves that it has arrived. Where a
//! stream captures what is published, it is the stream's own answer that counts.

use crate::message::Outbound;
use crate::nats::answers::{Answers, Stored, StreamAnswer};
use crate::nats::capture::Capture;
use crate::nats::jetstream::ApiError;
use crate::nats::link::Link;
use crate::nats::round_trip::{Proof, RoundTrips};
use crate::nats::settings::REMIND;
use crate::observe::Observer;
use crate::observe::event::Event;
use crate::subject::MAX_SUBJECT_BYTES;
use async_nats::{Client, PublishError, PublishErrorKind, Subject};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::Instant;
use tracing::warn;

/// How often a message is published whose confirmation is lost with the connection. A server
/// that goes takes one or two of these; more is a message that the server closes connections over.
const MOST_TRIES: u32 = 10;
/// How long a stream's answer may take.
const UNANSWERED: Duration = Duration::from_secs(5);
/// How often a message that no stream seems to capture has the streams found again.
const FIND_AGAIN: Duration = Duration::from_secs(1);
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
pub(crate) enum PublishFailure {
    #[error("the NATS user may not publish on {0}: grant it to the user")]
    NotPermitted(Subject),
    #[error("the message is larger than the server's max_payload")]
    TooLarge,
    /// Its subject is too long to be sent: the server would close the connection.
    #[error("the subject would have {0} bytes, at most {MAX_SUBJECT_BYTES} can be published")]
    SubjectTooLong(usize),
    /// The connection broke each time that it was published.
    #[error(
        "the connection to NATS broke {MOST_TRIES} times while the message was being published; \
         whether it has arrived is unknown"
    )]
    Unconfirmed,
    #[error("cannot publish: {0}")]
    Refused(#[source] PublishError),
    /// The stream that captures its subject refuses it.
    #[error("the stream on {0} refuses it: {1}")]
    NotStored(Subject, String),
}

/// Why a message that is published once was not confirmed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnceFailure {
    #[error("there is no connection to NATS, or it broke")]
    NotConnected,
    #[error("the NATS user may not publish on the subject")]
    Denied,
    #[error("the message is larger than the server takes (max_payload)")]
    TooLarge,
    #[error("no stream captures the subject")]
    NoStream,
    #[error("the stream refuses the message: {0}")]
    Refused(String),
    #[error("there was no answer in time")]
    NoAnswer,
}

impl OnceFailure {
    fn of(error: PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Self::TooLarge,
            PublishErrorKind::InvalidSubject | PublishErrorKind::Send => Self::NotConnected,
        }
    }
}

/// Publishes messages, each confirmed. Clones share everything.
#[derive(Clone)]
pub(crate) struct Publisher {
    link: Link,
    round_trips: RoundTrips,
    unproven: Arc<Semaphore>,
    /// JetStream mode: what streams capture.
    capture: Option<Capture>,
    /// What streams answer.
    answers: Arc<AsyncMutex<Option<Numbered>>>,
    unanswered_said: Arc<Mutex<Option<Instant>>>,
    /// When streams were found again.
    found: Arc<AsyncMutex<Option<Instant>>>,
    observer: Observer,
}

/// The answers that come through a client, and its number.
type Numbered = (u64, Arc<Answers>);

/// What became of one try to publish.
enum Try {
    Proof(Proof),
    Failed(PublishFailure),
    /// A stream said no, and why.
    NotStored(String),
    /// A stream said nothing.
    Unanswered,
}

impl Publisher {
    pub(crate) fn new(
        link: &Link,
        round_trips: &RoundTrips,
        capture: Option<Capture>,
        observer: &Observer,
    ) -> Self {
        Self {
            link: link.clone(),
            round_trips: round_trips.clone(),
            unproven: Arc::new(Semaphore::new(MOST_UNPROVEN)),
            capture,
            answers: Arc::default(),
            unanswered_said: Arc::default(),
            found: Arc::default(),
            observer: observer.clone(),
        }
    }

    /// Publishes a message until it is confirmed.
    ///
    /// # Errors
    /// When the server or the client refuses it.
    pub(crate) async fn publish(&self, message: Outbound) -> Result<Confirmed, PublishFailure> {
        if message.subject.len() > MAX_SUBJECT_BYTES {
            return Err(PublishFailure::SubjectTooLong(message.subject.len()));
        }
        let (mut lost, mut refused) = (0, 0);
        loop {
            let generation = self.link.connected().await;
            let (number, client) = self.link.client().await;
            let tried = match self.capture.as_ref().filter(|capture| capture.has(&message.subject))
            {
                // Boxed, so that it takes no room where there is no stream.
                Some(capture) => {
                    Box::pin(self.store(capture, number, &client, &message, generation)).await
                }
                None => self.send(&client, &message, generation).await,
            };
            match tried {
                Try::Proof(Proof::Arrived) => return Ok(Confirmed(message.subject)),
                Try::Proof(Proof::Denied) => {
                    return Err(PublishFailure::NotPermitted(message.subject));
                }
                Try::Failed(failure) => return Err(failure),
                Try::Proof(Proof::Unknown) => {
                    lost += 1;
                    if lost == MOST_TRIES {
                        return Err(PublishFailure::Unconfirmed);
                    }
                    self.published_again(&message.subject);
                }
                Try::NotStored(reason) => {
                    refused += 1;
                    if refused == MOST_TRIES {
                        return Err(PublishFailure::NotStored(message.subject, reason));
                    }
                    tokio::time::sleep(UNANSWERED_AGAIN * refused).await;
                }
                Try::Unanswered => {
                    self.say_unanswered(&message.subject);
                    self.published_again(&message.subject);
                    tokio::time::sleep(UNANSWERED_AGAIN).await;
                    // Perhaps there is no such stream any more.
                    let _ = self.find_streams().await;
                }
            }
        }
    }

    /// Publishes, and proves it by a round trip.
    async fn send(&self, client: &Client, message: &Outbound, generation: u64) -> Try {
        let _unproven = self.unproven.acquire().await;
        let Outbound { subject, headers, payload } = message.clone();
        match client.publish_with_headers(subject.clone(), headers, payload).await {
            Ok(()) => Try::Proof(self.round_trips.prove(subject, generation).await),
            Err(error) => self.unsent(error, generation).await,
        }
    }

    /// Publishes to a stream, which says when it has the message. The round trip tells beside
    /// that if the user may not publish: then there is no answer at all.
    async fn store(
        &self,
        capture: &Capture,
        number: u64,
        client: &Client,
        message: &Outbound,
        generation: u64,
    ) -> Try {
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
        let mut round_trip = pin!(self.round_trips.prove(subject, generation));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(Ok(StreamAnswer::Stored(_))) => Try::Proof(Proof::Arrived),
                    Ok(Ok(StreamAnswer::Refused(reason))) => Try::NotStored(reason),
                    Ok(Ok(StreamAnswer::NoResponders)) | Err(_) => Try::Unanswered,
                    Ok(Err(_)) => self.client_ended(generation).await,
                },
                proof = &mut round_trip, if unproven.is_some() => match proof {
                    Proof::Arrived => unproven = None,
                    proof => return Try::Proof(proof),
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
    async fn unsent(&self, error: PublishError, generation: u64) -> Try {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Try::Failed(PublishFailure::TooLarge),
            PublishErrorKind::InvalidSubject => Try::Failed(PublishFailure::Refused(error)),
            PublishErrorKind::Send => self.client_ended(generation).await,
        }
    }

    /// The client has ended; the link replaces it.
    async fn client_ended(&self, generation: u64) -> Try {
        self.link.replaced(generation).await;
        Try::Proof(Proof::Unknown)
    }

    fn say_unanswered(&self, subject: &Subject) {
        let mut said = self.unanswered_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= REMIND) {
            *said = Some(Instant::now());
            warn!(
                %subject,
                "the stream that captures the relayed messages does not answer, retrying"
            );
        }
    }

    /// Publishes a message once, and returns when a stream that captures it has stored it.
    ///
    /// # Errors
    /// Whether it was stored is unknown unless the failure says that it was not.
    pub(crate) async fn store_once(
        &self,
        message: Outbound,
        within: Duration,
    ) -> Result<Stored, OnceFailure> {
        let capture = self.capture.as_ref().ok_or(OnceFailure::NoStream)?;
        if !capture.has(&message.subject) {
            self.find_streams_again().await;
        }
        if !capture.has(&message.subject) {
            return Err(OnceFailure::NoStream);
        }
        let (number, client, generation) = self.connected()?;
        let answers = self.answers(capture, number, &client).await;
        let answers = answers.ok_or(OnceFailure::NotConnected)?;
        let Outbound { subject, headers, payload } = message;
        let mut expected = answers.expect(subject.clone());
        let reply = expected.reply.clone();
        let sent =
            client.publish_with_reply_and_headers(subject.clone(), reply, headers, payload).await;
        sent.map_err(OnceFailure::of)?;
        let proof = self.round_trips.prove(subject, generation);
        let mut proof = pin!(proof);
        let (mut is_proven, mut has_looked) = (false, false);
        let mut silence = pin!(tokio::time::sleep(UNANSWERED.min(within / 2)));
        let mut deadline = pin!(tokio::time::sleep(within));
        loop {
            tokio::select! {
                biased;
                answer = &mut expected.answer => return match answer {
                    Ok(StreamAnswer::Stored(stored)) => Ok(stored),
                    Ok(StreamAnswer::Refused(reason)) => Err(OnceFailure::Refused(reason)),
                    Ok(StreamAnswer::NoResponders) => {
                        self.find_streams_again().await;
                        Err(OnceFailure::NoStream)
                    }
                    Err(_) => Err(OnceFailure::NotConnected),
                },
                proof = &mut proof, if !is_proven => match proof {
                    Proof::Arrived => is_proven = true,
                    Proof::Denied => return Err(OnceFailure::Denied),
                    Proof::Unknown => return Err(OnceFailure::NotConnected),
                },
                // Perhaps it is another stream by now that captures the subject.
                () = &mut silence, if !has_looked => {
                    has_looked = true;
                    self.find_streams_again().await;
                }
                () = &mut deadline => return Err(OnceFailure::NoAnswer),
            }
        }
    }

    /// Publishes a message once, and returns when the server has confirmed it.
    ///
    /// # Errors
    /// Whether it was published is unknown unless the failure says that it was not.
    pub(crate) async fn send_once(
        &self,
        message: Outbound,
        within: Duration,
    ) -> Result<(), OnceFailure> {
        let (_, client, generation) = self.connected()?;
        let Outbound { subject, headers, payload } = message;
        let sent = client.publish_with_headers(subject.clone(), headers, payload).await;
        sent.map_err(OnceFailure::of)?;
        let proof = self.round_trips.prove(subject, generation);
        match tokio::time::timeout(within, proof).await {
            Ok(Proof::Arrived) => Ok(()),
            Ok(Proof::Denied) => Err(OnceFailure::Denied),
            Ok(Proof::Unknown) => Err(OnceFailure::NotConnected),
            Err(_) => Err(OnceFailure::NoAnswer),
        }
    }

    /// The client and its connection, where there is one: what is published without one would
    /// wait in the client for longer than its sender.
    fn connected(&self) -> Result<(u64, Client, u64), OnceFailure> {
        self.link.connected_client().ok_or(OnceFailure::NotConnected)
    }

    fn published_again(&self, subject: &Subject) {
        self.observer.note(&Event::PublishedAgain { subject });
    }

    /// Finds out again which streams capture what is published, unless that was done just now.
    async fn find_streams_again(&self) {
        let mut found = self.found.lock().await;
        if found.is_none_or(|found| found.elapsed() >= FIND_AGAIN) {
            let _ = self.find_streams().await;
            *found = Some(Instant::now());
        }
    }

    /// Finds out again which streams capture what is published.
    async fn find_streams(&self) -> Result<(), ApiError> {
        match &self.capture {
            Some(capture) => capture.find().await,
            None => Ok(()),
        }
    }
}
