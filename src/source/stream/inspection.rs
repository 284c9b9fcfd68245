//! Inspecting the consumer: asking the server about it, making it where it is missing, and
//! finding what cannot be delivered.

use crate::nats::ack;
use crate::nats::capture::Capture;
use crate::nats::jetstream::{ApiError, number};
use crate::origin::Settled;
use crate::source::stream::consumer::{Consumer, ConsumerState, Made, SetUpError, Start};
use crate::source::stream::held::Held;
use crate::source::stream::unreadable::{self, Unreadable};
use std::time::Duration;
use tracing::error;

/// How long a message may be here before it is made sure that the stream still has it.
const OLD: Duration = Duration::from_secs(30);
/// How many messages this is made sure of at once.
const MOST_CONFIRMED: usize = 100;

/// What an inspection is made with.
pub(crate) struct Inspection {
    pub(crate) consumer: Consumer,
    pub(crate) held: Held,
    /// Which streams capture what is relayed, where that counts.
    pub(crate) capture: Option<Capture>,
    /// Whether it is the first one in a connection.
    pub(crate) is_first: bool,
    /// Whether the consumer seems to have been changed.
    pub(crate) is_changed: bool,
    /// When the consumer that is known here was made.
    pub(crate) created: String,
    /// Whether the connection before may have broken over a message that cannot be read: what was
    /// delivered after this sequence is searched.
    pub(crate) searched: Option<u64>,
    /// Messages found before that cannot be read and may be settled already.
    pub(crate) suspects: Vec<u64>,
    /// Where another message is answered.
    pub(crate) reply: String,
    /// Whether replicas share the work.
    pub(crate) is_shared: bool,
    /// Where to begin if the consumer has gone.
    pub(crate) resume: Start,
    /// How long to leave it to another replica to make the consumer again.
    pub(crate) after_you: Duration,
}

/// What an inspection found.
pub(crate) struct Inspected {
    pub(crate) state: ConsumerState,
    /// Messages that cannot be delivered, and up to which sequence they were searched for; `None`
    /// where they were not.
    pub(crate) unreadable: Option<(Vec<Unreadable>, u64)>,
    /// What the consumer is now, where it was missing or changed.
    pub(crate) made: Option<Made>,
}

impl Inspection {
    /// Asks about the consumer, and makes it where it is missing.
    ///
    /// # Errors
    /// When the server does not say, or there can be no consumer.
    pub(crate) async fn run(self) -> Result<Inspected, SetUpError> {
        if let (true, Some(capture)) = (self.is_first, &self.capture) {
            let doing = "find out which streams capture what is published".to_owned();
            capture.find().await.map_err(|error| SetUpError::Api { doing, error })?;
        }
        let mut made = None;
        let state = match self.consumer.state().await {
            Err(error) if Consumer::is_missing(&error) => {
                tokio::time::sleep(self.after_you).await;
                made = Some(self.consumer.set_up(self.resume.clone()).await?);
                self.consumer.state().await.map_err(failed)?
            }
            state => state.map_err(failed)?,
        };
        if (self.is_changed || state.created != self.created) && made.is_none() {
            made = Some(self.consumer.adopt().await?);
        }
        let here = || self.held.count_to(state.delivered) as u64;
        // What was delivered last has not come: it is not among those that are here.
        let lost = u64::from(self.is_first && state.delivered > self.held.last());
        if state.unsettled < here() + lost {
            forget_removed(&self.consumer, &self.held, Duration::ZERO).await;
        } else if self.is_shared {
            // The others' messages are among the unsettled ones.
            forget_removed(&self.consumer, &self.held, OLD).await;
        }
        let unreadable = match self.searched.filter(|_| state.unsettled > here()) {
            Some(searched) => self.search(&state, searched).await?,
            None => None,
        };
        Ok(Inspected { state, unreadable, made })
    }

    /// Finds what broke the connection, and has the server put off its next delivery.
    async fn search(
        &self,
        state: &ConsumerState,
        searched: u64,
    ) -> Result<Option<(Vec<Unreadable>, u64)>, SetUpError> {
        let after = state.floor.max(searched);
        let found = unreadable::find(&self.consumer, &self.held, after, state.delivered).await;
        let found = match found {
            Err(error) if !error.is_passing() => {
                error!(
                    %error,
                    "cannot find out whether a message broke the connection; if one did, it will \
                     do so again"
                );
                None
            }
            found => Some(found.map_err(failed)?),
        };
        // A new consumer may deliver once more what is settled, and cannot be read any better.
        for sequence in self.held.failed_above(state.floor) {
            let reply = ack::of_other(&self.reply, sequence, state.deliveries);
            self.held.acknowledge(reply, Settled::Failed).await;
        }
        let sequences = found.iter().flat_map(|(found, _)| found).map(|found| found.sequence);
        for sequence in sequences.chain(self.suspects.iter().copied()) {
            let reply = ack::of_other(&self.reply, sequence, state.deliveries);
            unreadable::put_off(&self.consumer, reply).await;
        }
        Ok(found)
    }
}

fn failed(error: ApiError) -> SetUpError {
    SetUpError::Api { doing: "look at the consumer".to_owned(), error }
}

/// Finds messages that are worked on for long and are no longer in the stream: with attempts
/// without end, nothing else would end them.
async fn forget_removed(consumer: &Consumer, held: &Held, age: Duration) {
    for sequence in held.unconfirmed(age, MOST_CONFIRMED) {
        if let Ok(stored) = consumer.stored(sequence).await
            && stored.is_none_or(|stored| number(&stored, "/seq") != sequence)
        {
            held.is_gone(sequence);
        }
    }
}
