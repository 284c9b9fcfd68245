//! What relaying and checking have to set up alike: publishing, and that it is permitted.

use crate::config::Config;
use crate::nats::capture::Capture;
use crate::nats::jetstream::Api;
use crate::nats::link::Link;
use crate::nats::publisher::Publisher;
use crate::nats::round_trip::RoundTrips;
use crate::observe::Observer;
use crate::plugin::{Hook, Plugins};
use crate::relay::resync;
use crate::source::Intake;
use crate::subject::Prefix;
use crate::webhook::Webhook;
use anyhow::bail;

/// What publishes and what proves it, for a user who may do what relaying needs.
pub(super) struct Publishing {
    pub(super) round_trips: RoundTrips,
    pub(super) publisher: Publisher,
    /// JetStream mode: which streams capture what is published.
    pub(super) capture: Option<Capture>,
}

/// The webhook for messages, and the one for resyncs where that is another one.
pub(super) fn webhooks(
    config: &Config,
    observer: &Observer,
) -> anyhow::Result<(Webhook, Option<Webhook>)> {
    let calls = &config.webhook;
    let webhook = Webhook::new(calls, &calls.destinations, observer)?;
    let resync = config.relay.resync.as_ref();
    let resync = resync.map(|resync| resync::webhook(resync, calls, observer)).transpose()?;
    Ok((webhook, resync.flatten()))
}

impl Publishing {
    pub(super) async fn open(
        config: &Config,
        plugins: Option<&Plugins>,
        link: &Link,
        observer: &Observer,
    ) -> anyhow::Result<Self> {
        let relay = &config.relay;
        let resync = relay.resync.as_ref().map(|resync| resync.subject.as_str());
        let failed = relay.failed.as_ref().map(Prefix::wildcard);
        let capture = match &config.source.intake {
            Intake::Subscription { .. } => None,
            Intake::Stream(stream) => {
                let published = relay.relayed.published().into_iter().chain(failed.clone());
                let published = published.chain(resync.map(str::to_owned)).collect();
                Some(Capture::new(Api::of_account(&stream.api_prefix, link), published))
            }
        };
        let round_trips = RoundTrips::open(link, capture.is_some()).await?;
        // Plugins may decide which subjects messages are republished on.
        let remaps = plugins.is_some_and(|plugins| plugins.have(Hook::RelayedSubject));
        let relayed =
            if remaps { relay.relayed.published() } else { vec![relay.relayed.pattern()] };
        for subjects in relayed.into_iter().chain(failed) {
            let probe = subjects.replace('>', "nats-webhook-relay-permission-check");
            if !round_trips.may_publish(probe).await {
                bail!("the NATS user may not publish on {subjects}: grant it to the user");
            }
        }
        let publisher = Publisher::new(link, &round_trips, capture.clone(), observer);
        Ok(Self { round_trips, publisher, capture })
    }
}
