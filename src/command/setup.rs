//! What relaying and checking have to set up alike.

use crate::config::Config;
use crate::nats::capture::Capture;
use crate::nats::jetstream::Api;
use crate::nats::link::Link;
use crate::nats::publisher::Publisher;
use crate::observe::metrics::Metrics;
use crate::source::Intake;
use crate::subject::Prefix;
use anyhow::bail;

/// A publisher whose user may do what relaying needs.
pub(super) async fn publisher(
    config: &Config,
    link: &Link,
    metrics: &Metrics,
) -> anyhow::Result<Publisher> {
    let prefixes =
        [Some(&config.relay.relayed), config.relay.failed.as_ref()].into_iter().flatten();
    let capture = match &config.source.intake {
        Intake::Subscription { .. } => None,
        Intake::Stream(stream) => {
            let published = prefixes.clone().map(Prefix::wildcard).collect();
            Some(Capture::new(Api::of_account(&stream.api_prefix, link), published))
        }
    };
    let publisher = Publisher::open(link.clone(), capture, metrics).await?;
    for prefix in prefixes {
        if !publisher.may_publish(prefix.subject("nats-webhook-relay-permission-check")).await {
            bail!("the NATS user may not publish on {}: grant it to the user", prefix.wildcard());
        }
    }
    Ok(publisher)
}
