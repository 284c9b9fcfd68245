//! What relaying and checking have to set up alike: publishing, and that it is permitted.

use crate::config::Config;
use crate::nats::capture::Capture;
use crate::nats::jetstream::Api;
use crate::nats::link::Link;
use crate::nats::publisher::Publisher;
use crate::nats::round_trip::RoundTrips;
use crate::observe::Observer;
use crate::source::Intake;
use crate::subject::Prefix;
use anyhow::bail;

/// What publishes and what proves it, for a user who may do what relaying needs.
pub(super) struct Publishing {
    pub(super) round_trips: RoundTrips,
    pub(super) publisher: Publisher,
    /// JetStream mode: which streams capture what is published.
    pub(super) capture: Option<Capture>,
}

impl Publishing {
    pub(super) async fn open(
        config: &Config,
        link: &Link,
        observer: &Observer,
    ) -> anyhow::Result<Self> {
        let relay = &config.relay;
        let prefixes = [Some(&relay.relayed), relay.failed.as_ref()].into_iter().flatten();
        let capture = match &config.source.intake {
            Intake::Subscription { .. } => None,
            Intake::Stream(stream) => {
                let published = prefixes.clone().map(Prefix::wildcard).collect();
                Some(Capture::new(Api::of_account(&stream.api_prefix, link), published))
            }
        };
        let round_trips = RoundTrips::open(link, capture.is_some()).await?;
        for prefix in prefixes {
            let probe = prefix.subject("nats-webhook-relay-permission-check");
            if !round_trips.may_publish(probe).await {
                let subjects = prefix.wildcard();
                bail!("the NATS user may not publish on {subjects}: grant it to the user");
            }
        }
        let publisher = Publisher::new(link, &round_trips, capture.clone(), observer);
        Ok(Self { round_trips, publisher, capture })
    }
}
