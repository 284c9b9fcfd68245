//! What the variables say about resyncs.

use crate::config::reader::{DURATION, Reader, duration, is_subject};
use crate::config::variables::{
    NATS_RESYNC_SUBJECT, RESYNC_INTERVAL, RESYNC_ON, WEBHOOK_RESYNC_DESTINATION,
};
use crate::relay::resync::{INTERVAL, Reason, Settings};
use crate::source::Intake;
use crate::subject::Subjects;
use std::collections::BTreeSet;

impl Reader<'_> {
    /// `listen` tells which messages are received, and `intake` how.
    pub(super) fn resync(
        &mut self,
        listen: Option<&Subjects>,
        intake: &Intake,
    ) -> Option<Settings> {
        let expected = "a subject such as relayed.resync";
        let subject = self.optional(&NATS_RESYNC_SUBJECT, expected, is_subject);
        let destinations = self.text(&WEBHOOK_RESYNC_DESTINATION);
        let destinations =
            destinations.map(|text| self.destinations_in(&WEBHOOK_RESYNC_DESTINATION, &text));
        let expected = "some of start, reconnect, slow-consumer, limits and failed, separated by \
                        commas";
        let on = self.optional(&RESYNC_ON, expected, reasons);
        let interval = self.optional(&RESYNC_INTERVAL, DURATION, duration(1));
        if let (Some(subject), Some(listen)) = (&subject, listen)
            && listen.tail(subject).is_some()
        {
            let listened = match listen {
                Subjects::Below(_) => "below NATS_SUBJECT_PREFIX",
                Subjects::Exact(_) => "NATS_SUBJECT",
            };
            self.mistake(format!(
                "NATS_RESYNC_SUBJECT: {subject} is {listened} ({listen}): the relay would receive \
                 what it publishes, a loop"
            ));
        }
        if !self.is_set(&NATS_RESYNC_SUBJECT) {
            for variable in [&WEBHOOK_RESYNC_DESTINATION, &RESYNC_ON, &RESYNC_INTERVAL] {
                let text = self.environment.get(variable.name);
                if text.is_some_and(|text| variable.default != Some(text)) {
                    self.mistake(format!(
                        "{}: has no effect without NATS_RESYNC_SUBJECT; set it, or unset this",
                        variable.name
                    ));
                }
            }
        }
        let on = on.unwrap_or_else(|| match intake {
            Intake::Subscription { .. } => Reason::ALL.into(),
            // The stream keeps what is published in a gap.
            Intake::Stream(_) => BTreeSet::from([Reason::Failed]),
        });
        let interval = interval.unwrap_or(INTERVAL);
        Some(Settings { subject: subject?, destinations, on, interval })
    }
}

fn reasons(text: &str) -> Option<BTreeSet<Reason>> {
    let reason = |part: &str| Reason::ALL.into_iter().find(|reason| reason.name() == part.trim());
    text.split(',').map(reason).collect()
}
