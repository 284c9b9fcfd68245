//! What the variables say about where messages come from.

use crate::config::context::Context;
use crate::config::reader::{Reader, SIZE, duration, is_subject, number, size};
use crate::config::variables::{
    NATS_CONSUMER, NATS_DELIVER, NATS_JETSTREAM_API_PREFIX, NATS_JETSTREAM_DOMAIN,
    NATS_PENDING_BYTES, NATS_PENDING_MESSAGES, NATS_QUEUE_GROUP, NATS_REPLICAS_SHARE, NATS_STREAM,
    NATS_STREAM_CREATE,
};
use crate::nats::jetstream;
use crate::pending::{Limits, MOST_MESSAGES};
use crate::source::stream::consumer::{self, CONSUMER, Deliver};
use crate::source::{Intake, stream, subscription};

const NAME: &str = "a name without white space, dots, wildcards and slashes";

impl Reader<'_> {
    pub(super) fn intake(&mut self, context: Option<&Context>) -> Intake {
        let queue_group = self.optional(&NATS_QUEUE_GROUP, "a name without white space", |text| {
            let illegal = |c: char| c.is_whitespace() || c.is_control();
            (!text.contains(illegal)).then(|| text.to_owned())
        });
        match self.stream(context) {
            None => Intake::Subscription { queue_group },
            Some(stream) => {
                if queue_group.is_some() {
                    self.mistake(
                        "NATS_QUEUE_GROUP: has no effect with NATS_STREAM; unset it (see \
                         NATS_REPLICAS_SHARE)",
                    );
                }
                Intake::Stream(stream)
            }
        }
    }

    /// How much may wait, by where messages come from.
    pub(super) fn limits(&mut self, intake: &Intake) -> Limits {
        let default = match intake {
            Intake::Subscription { .. } => subscription::LIMITS,
            Intake::Stream(_) => stream::LIMITS,
        };
        let expected = format!("a number of messages from 1 to {MOST_MESSAGES}");
        let most = number(1..=MOST_MESSAGES);
        Limits {
            messages: self.or(&NATS_PENDING_MESSAGES, &expected, most, default.messages),
            bytes: self.or(&NATS_PENDING_BYTES, SIZE, size, default.bytes),
        }
    }

    fn stream(&mut self, context: Option<&Context>) -> Option<consumer::Settings> {
        let name = self.optional(&NATS_STREAM, NAME, is_name);
        let consumer = self.or(&NATS_CONSUMER, NAME, is_name, CONSUMER.to_owned());
        let expected = "new, all, last-per-subject, or an age such as 6h";
        let deliver = self.or(&NATS_DELIVER, expected, deliver, Deliver::New);
        let create = self.flag(&NATS_STREAM_CREATE);
        let share = self.flag(&NATS_REPLICAS_SHARE);
        let api_prefix = self.api_prefix(context);
        if !self.is_set(&NATS_STREAM) {
            self.without_stream();
        }
        Some(consumer::Settings { name: name?, consumer, deliver, create, share, api_prefix })
    }

    fn without_stream(&mut self) {
        let others = [
            &NATS_CONSUMER,
            &NATS_DELIVER,
            &NATS_STREAM_CREATE,
            &NATS_REPLICAS_SHARE,
            &NATS_JETSTREAM_DOMAIN,
            &NATS_JETSTREAM_API_PREFIX,
        ];
        for variable in others {
            let name = variable.name;
            if self.environment.get(name).is_some_and(|text| variable.default != Some(text)) {
                self.mistake(format!(
                    "{name}: has no effect without NATS_STREAM; set it, or unset this"
                ));
            }
        }
    }

    fn api_prefix(&mut self, context: Option<&Context>) -> String {
        let domain = self.optional(&NATS_JETSTREAM_DOMAIN, NAME, is_name);
        let expected = "a subject prefix such as JS.hub.API";
        let prefix = self.optional(&NATS_JETSTREAM_API_PREFIX, expected, is_subject);
        if domain.is_some() && prefix.is_some() {
            self.mistake("NATS_JETSTREAM_DOMAIN: NATS_JETSTREAM_API_PREFIX is set too; unset one");
        }
        let of_domain = |domain: String| format!("$JS.{domain}.API");
        prefix
            .or(domain.map(of_domain))
            // The command line prefers the domain where a context has both.
            .or_else(|| self.field(context, "jetstream_domain", is_name).map(of_domain))
            .or_else(|| self.field(context, "jetstream_api_prefix", is_subject))
            .unwrap_or_else(|| jetstream::OWN.to_owned())
    }
}

fn is_name(text: &str) -> Option<String> {
    let illegal = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    (!text.contains(illegal) && text.len() <= 255).then(|| text.to_owned())
}

fn deliver(text: &str) -> Option<Deliver> {
    match text {
        "new" => Some(Deliver::New),
        "all" => Some(Deliver::All),
        "last-per-subject" => Some(Deliver::LastPerSubject),
        age => duration(1)(age).map(Deliver::Within),
    }
}
