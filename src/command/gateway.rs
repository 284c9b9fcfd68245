//! `gateway`: HTTP requests become NATS messages.

use crate::command::process::{raise_file_limit, stop_signal, unless};
use crate::config::Shared;
use crate::gateway::{AnswerWith, Gateway, Settings, To, server};
use crate::nats::capture::Capture;
use crate::nats::jetstream::{Api, OWN};
use crate::nats::link::Link;
use crate::nats::publisher::Publisher;
use crate::nats::round_trip::RoundTrips;
use crate::observe::Observer;
use crate::observe::log::{self, say};
use crate::observe::monitor::{self, Readiness};
use crate::observe::supervisor::{self, Phase};
use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tracing::info;

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(shared: &Shared, settings: Settings) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    tokio::spawn(log::tell_dropped());
    raise_file_limit();
    let (observer, readiness) = (Observer::default(), Readiness::default());
    if let Some(address) = shared.http_listen {
        monitor::start(address, observer.clone(), readiness.clone()).await?;
    }
    let opening = open(shared, &settings, &observer, false);
    let Some((link, publisher)) = unless(stop.as_mut(), opening).await.transpose()? else {
        info!("stopped before NATS could be reached");
        return Ok(());
    };
    let address = settings.listen;
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("cannot listen on {address} (GATEWAY_LISTEN)"))?;
    let address = listener.local_addr()?;
    let connected = link.clone();
    let _ = readiness.set(Box::new(move || connected.can_publish()));
    info!(%address, to = described(&settings.to), "ready");
    supervisor::tell(Phase::Ready);
    let gateway = Gateway::new(settings, &link, publisher, &observer);
    let finished = server::serve(listener, gateway, stop, shared.grace).await;
    supervisor::tell(Phase::Stopping);
    info!("stopped");
    if !finished {
        bail!("requests could not be finished within SHUTDOWN_GRACE");
    }
    Ok(())
}

/// Tries everything that can be tried without a request.
pub(super) async fn check(shared: &Shared, settings: &Settings) -> anyhow::Result<()> {
    let (link, _) = open(shared, settings, &Observer::default(), true).await?;
    let version = link.client().await.1.server_info().version;
    say(format_args!("connected to  nats-server {version}"))?;
    say(format_args!("listens on    http://{}", settings.listen))?;
    say(format_args!("sends to      {}", described(&settings.to)))?;
    Ok(())
}

async fn open(
    shared: &Shared,
    settings: &Settings,
    observer: &Observer,
    once: bool,
) -> anyhow::Result<(Link, Publisher)> {
    let link = match once {
        true => Link::try_open(&shared.nats, observer).await?,
        false => Link::open(&shared.nats, observer).await?,
    };
    let subjects = described(&settings.to);
    let capture = match settings.answer {
        AnswerWith::Stored => {
            let capture = Capture::new(Api::new(OWN, &link), vec![subjects.clone()]);
            capture.find().await.context("cannot find out which stream captures the subjects")?;
            Some(capture)
        }
        AnswerWith::Reply | AnswerWith::Sent => None,
    };
    let round_trips = RoundTrips::open(&link, true).await?;
    let probe = match &settings.to {
        To::Subject(_) => None,
        To::Prefix(prefix) => Some(prefix.subject("nats-webhook-relay-permission-check")),
        To::Host { prefix, .. } => Some(format!("{prefix}.requests.permission-check.get")),
    };
    if let Some(probe) = probe
        && !round_trips.may_publish(probe).await
    {
        bail!("the NATS user may not publish on {subjects}: grant it to the user");
    }
    let publisher = Publisher::new(&link, &round_trips, capture, observer);
    Ok((link, publisher))
}

/// The subjects that messages go to.
fn described(to: &To) -> String {
    match to {
        To::Subject(subject) => subject.clone(),
        To::Prefix(prefix) => prefix.wildcard(),
        To::Host { prefix, fixed: None } => format!("{prefix}.requests.>"),
        To::Host { prefix, fixed: Some(host) } => format!("{prefix}.requests.{host}.*"),
    }
}
