//! `check`: everything that can be tried without relaying anything.

use crate::command::setup::{self, Publishing};
use crate::config::Config;
use crate::nats::jetstream::Api;
use crate::nats::link::Link;
use crate::nats::round_trip::RoundTrips;
use crate::observe::Observer;
use crate::observe::log::say;
use crate::plugin::Plugins;
use crate::source::Intake;
use crate::source::stream::consumer::Consumer;
use crate::source::subscription::Subscription;
use crate::subject::Subjects;
use crate::webhook::destination::Destination;
use crate::webhook::resolve;

/// Prints what would be relayed where.
pub(super) async fn check(config: &Config) -> anyhow::Result<()> {
    let observer = Observer::default();
    setup::webhooks(config, &observer)?;
    let plugins = Plugins::load(&config.plugins, &observer).await?;
    for plugin in plugins.iter().flat_map(Plugins::describe) {
        say(format_args!("runs          plugin {plugin}"))?;
    }
    let link = Link::try_open(&config.nats, &observer).await?;
    if let Some(context) = &config.nats.context {
        say(format_args!("uses          {context}"))?;
    }
    let version = link.client().await.1.server_info().version;
    say(format_args!("connected to  nats-server {version}"))?;
    let publishing = Publishing::open(config, plugins.as_ref(), &link, &observer).await?;
    source(config, &link, &publishing.round_trips).await?;
    for (destination, _) in &config.webhook.destinations {
        let instances = instances(config, destination).await;
        say(format_args!("calls         {destination}{instances}"))?;
    }
    let (listen, relayed) = (&config.relay.listen, &config.relay.relayed);
    say(format_args!("republishes   {}", relayed.pattern()))?;
    match &config.relay.failed {
        Some(failed) => say(format_args!("on failure    {}", failed.wildcard()))?,
        None => say(format_args!(
            "on failure    logs an error (NATS_FAILED_SUBJECT_PREFIX is not set)"
        ))?,
    }
    if let Some(resync) = &config.relay.resync {
        say(format_args!("after a gap   {}", resync.subject))?;
        for (destination, _) in resync.destinations.iter().flatten() {
            let instances = instances(config, destination).await;
            say(format_args!("  calling     {destination}{instances}"))?;
        }
    }
    if let Some(traces) = &config.traces {
        say(format_args!("traces to     {}", traces.endpoint))?;
    }
    let tail = if let Subjects::Below(_) = listen { "article.42" } else { "" };
    let (from, to) = (listen.subject(tail), relayed.subject(tail));
    say(format_args!("\nfor example   {from}\n          ->  {to}"))?;
    Ok(())
}

/// The addresses that are called, where every one of the host's is.
async fn instances(config: &Config, destination: &Destination) -> String {
    match config.webhook.resolve {
        Some(resolve) if destination.is_looked_up() => {
            match resolve::addresses(destination.host(), resolve.server).await {
                Ok(found) => {
                    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                    format!(" at {}", found.join(", "))
                }
                Err(error) => format!(" (at present, {error})"),
            }
        }
        _ => String::new(),
    }
}

async fn source(config: &Config, link: &Link, round_trips: &RoundTrips) -> anyhow::Result<()> {
    let listen = &config.source.listen;
    match &config.source.intake {
        Intake::Stream(stream) => {
            let api = Api::new(&stream.api_prefix, link);
            let consumer = Consumer::new(api, stream, listen, config.source.limits.messages);
            let found = consumer.check().await?;
            consumer.may_be_used(round_trips).await?;
            let (name, consumer) = (&stream.name, &stream.consumer);
            say(format_args!(
                "reads from    {} (stream {name}, consumer {consumer} {found})",
                listen.pattern()
            ))?;
        }
        Intake::Subscription { queue_group } => {
            // Outside the queue group: a message given to this process would be lost.
            Subscription::open(None, listen, link, round_trips).await?;
            let group = queue_group.as_ref().map(|group| format!(" (queue group {group})"));
            let group = group.unwrap_or_default();
            say(format_args!("listens on    {}{group}", listen.pattern()))?;
        }
    }
    Ok(())
}
