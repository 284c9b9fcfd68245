//! What the stream delivers: each message is held, and goes on or waits behind the gate.

use crate::message::{Id, Message};
use crate::nats::ack;
use crate::observe::event::Event;
use crate::origin::Origin;
use crate::source::stream::gate::Gate;
use crate::source::stream::held::{Arrival, Place, Stored};
use crate::source::stream::turn::Turn;
use crate::source::stream::unreadable::Unreadable;
use crate::source::stream::{INSPECT_CLOSED, Pull};
use async_nats::header::NATS_PIN_ID;
use async_nats::{HeaderMap, Subject};
use tokio::time::Instant;
use tracing::error;

/// What a delivery says about itself.
struct Info {
    place: Place,
    /// The consumer's own count of deliveries.
    consumer_sequence: u64,
    /// How often this message has been delivered.
    deliveries: i64,
    /// How many messages wait in the stream after it.
    waiting: u64,
}

impl Pull {
    pub(super) async fn delivered(&mut self, message: async_nats::Message) {
        if !message.reply.as_deref().is_some_and(ack::is_of_stream) {
            let description = message.description.as_deref().unwrap_or_default();
            return self.told(&message.subject, message.status, description);
        }
        self.session.arrived_one();
        self.said.unanswered = false;
        self.reader.message = message;
        let Some(info) = self.info() else { return };
        self.observer.note(&Event::StreamPending(info.waiting));
        let is_again = info.deliveries > 1;
        self.session.again = is_again && self.gate.may_be_missing(info.place.sequence);
        if is_again {
            self.observer.note(&Event::Redelivered);
        }
        if self.made.group.is_some() {
            self.take_turn(info.consumer_sequence);
        }
        let id = self.id(info.place);
        let message = &mut self.reader.message;
        let (Some(reply), payload) = (message.reply.take(), std::mem::take(&mut message.payload))
        else {
            return;
        };
        let headers = message.headers.take().unwrap_or_default();
        // White space of other alphabets ends a subject for the client library.
        let is_misread = message.subject.split('.').any(str::is_empty);
        let unreadable = is_misread.then_some("its subject has white space");
        let message = Message::new(&message.subject, headers, payload, id);
        self.reply.clear();
        self.reply.push_str(&reply);
        let stored = Stored::new(info.place, unreadable, &self.held);
        match self.held.receive(&stored, reply.clone()) {
            Arrival::New => {
                let message = message.of(Origin::Kept(Box::new(stored)));
                match is_misread {
                    // It fails, so nothing has to wait for it.
                    true => self.ready.push_back(message),
                    false => self.arrived(info.place.sequence, message),
                }
            }
            Arrival::Known => {}
            Arrival::Settled(settled) => self.held.acknowledge(reply, settled).await,
        }
    }

    fn info(&self) -> Option<Info> {
        match self.reader.info() {
            Ok(info) => Some(Info {
                place: Place {
                    sequence: info.stream_sequence,
                    time_ns: info.published.unix_timestamp_nanos(),
                },
                consumer_sequence: info.consumer_sequence,
                deliveries: info.delivered,
                waiting: info.pending,
            }),
            Err(error) => {
                error!(%error, "the stream delivered a message whose origin cannot be read");
                None
            }
        }
    }

    /// A message proves whose turn it is, and that none before it was lost, or that one was.
    fn take_turn(&mut self, consumer_sequence: u64) {
        let headers = self.reader.message.headers.as_ref();
        let pin = headers.and_then(|headers| headers.get_last(NATS_PIN_ID));
        let new = pin.map(|pin| pin.as_str()).filter(|pin| self.turn.pin() != Some(pin));
        let new = new.map(Turn::begun);
        let is_new = new.is_some();
        if let Some(turn) = new {
            self.end_turn();
            self.turn = turn;
            self.gate = Gate::closed();
        }
        if is_new || self.session.next_delivery.is_some_and(|next| next != consumer_sequence) {
            self.close_gate();
        }
        self.session.next_delivery = Some(consumer_sequence + 1);
        if is_new || self.session.arrived == 1 {
            self.is_ours_since(self.session.proves_since());
        }
    }

    /// A message is here: it goes on, or waits behind the gate.
    fn arrived(&mut self, sequence: u64, message: Message) {
        match self.gate.arrived(sequence, message) {
            Some(message) => self.ready.push_back(message),
            // It may have been the last one that was missing.
            None if self.gate.missing().is_none() => {
                self.inspect_at = self.inspect_at.min(Instant::now() + INSPECT_CLOSED / 10);
            }
            None => {}
        }
    }

    /// A message that cannot arrive goes on at once, to fail.
    pub(super) fn take_unreadable(&mut self, found: Unreadable, deliveries: u64) {
        let Unreadable { sequence, subject, payload, why, stored_ns } = found;
        let place = Place { sequence, time_ns: stored_ns };
        let stored = Stored::new(place, Some(why), &self.held);
        let reply: Subject = ack::of_other(&self.reply, sequence, deliveries);
        if self.held.receive(&stored, reply) != Arrival::New {
            return;
        }
        let message = Message::new(&subject, HeaderMap::new(), payload, self.id(place));
        self.ready.push_back(message.of(Origin::Kept(Box::new(stored))));
    }

    fn id(&self, place: Place) -> Id {
        let stream = &self.consumer.settings.name;
        Id::stored(stream, place.sequence, place.time_ns, &self.relay)
    }
}
