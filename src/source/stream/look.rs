//! A look at the consumer: what the server says, and what follows from it.

use crate::nats::jetstream::{ApiError, number};
use crate::nats::publisher::Publisher;
use crate::source::stream::consumer::{Consumer, Look, Made, SetUpError, Start};
use crate::source::stream::held::{Ack, Held};
use crate::source::stream::unreadable::{self, Unreadable};
use std::time::Duration;
use tracing::error;

/// How long a message may be here before it is made sure that the stream still has it.
const OLD: Duration = Duration::from_secs(30);
/// How many messages this is made sure of at one look.
const MOST_CONFIRMED: usize = 100;

/// What a look is taken with.
pub(crate) struct Looker {
    /// The consumer.
    pub(crate) consumer: Consumer,
    /// What is here of it.
    pub(crate) held: Held,
    /// Who publishes what is relayed.
    pub(crate) publisher: Publisher,
    /// Whether it is the first look in a connection.
    pub(crate) is_first: bool,
    /// Whether somebody seems to have changed the consumer.
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
    /// How long to leave it to somebody else to make it anew.
    pub(crate) after_you: Duration,
}

/// What a look has found.
pub(crate) struct Looked {
    /// What the server says.
    pub(crate) look: Look,
    /// Messages that cannot be delivered, and up to which sequence they were searched for; `None`
    /// where they were not.
    pub(crate) unreadable: Option<(Vec<Unreadable>, u64)>,
    /// What the consumer is now, where it was missing or changed.
    pub(crate) made: Option<Made>,
}

impl Looker {
    /// Looks at the consumer, and makes it where it is missing.
    ///
    /// # Errors
    /// When the server does not say, or there can be no consumer.
    pub(crate) async fn look(self) -> Result<Looked, SetUpError> {
        if self.is_first {
            let doing = "find out which streams capture what is published".to_owned();
            self.publisher
                .find_streams()
                .await
                .map_err(|error| SetUpError::Api { doing, error })?;
        }
        let failed =
            |error: ApiError| SetUpError::Api { doing: "look at the consumer".to_owned(), error };
        let mut made = None;
        let look = match self.consumer.look().await {
            Err(error) if Consumer::is_missing(&error) => {
                tokio::time::sleep(self.after_you).await;
                made = Some(self.consumer.set_up(self.resume).await?);
                self.consumer.look().await.map_err(failed)?
            }
            look => look.map_err(failed)?,
        };
        if (self.is_changed || look.created != self.created) && made.is_none() {
            made = Some(self.consumer.adopt().await?);
        }
        let here = || self.held.count_to(look.delivered) as u64;
        // What was delivered last has not come: it is not among those that are here.
        let lost = u64::from(self.is_first && look.delivered > self.held.last());
        if look.unsettled < here() + lost {
            forget_removed(&self.consumer, &self.held, Duration::ZERO).await;
        } else if self.is_shared {
            // The others' messages are among the unsettled ones.
            forget_removed(&self.consumer, &self.held, OLD).await;
        }
        let mut unreadable = None;
        if let Some(searched) = self.searched.filter(|_| look.unsettled > here()) {
            unreadable = match unreadable::find(
                &self.consumer,
                &self.held,
                look.floor.max(searched),
                look.delivered,
            )
            .await
            {
                Err(error) if !error.is_passing() => {
                    error!(%error, "cannot find out whether a message broke the connection; if one did, it will again");
                    None
                }
                found => Some(found.map_err(failed)?),
            };
            // A new consumer may deliver once more what is settled, and cannot be read any better.
            for sequence in self.held.failed_above(look.floor) {
                self.held
                    .acknowledge(
                        unreadable::reply(&self.reply, sequence, look.deliveries),
                        Ack::Terminated,
                    )
                    .await;
            }
            let found = unreadable.iter().flat_map(|(found, _)| found).map(|found| found.sequence);
            for sequence in found.chain(self.suspects) {
                unreadable::put_off(
                    &self.consumer,
                    unreadable::reply(&self.reply, sequence, look.deliveries),
                )
                .await;
            }
        }
        Ok(Looked { look, unreadable, made })
    }
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
