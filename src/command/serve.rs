//! `serve`: NATS requests become calls of an HTTP backend.

use crate::certificates::Certificates;
use crate::command::process::{raise_file_limit, stop_signal, unless};
use crate::config::{Backend, Shared};
use crate::nats::link::Link;
use crate::observe::Observer;
use crate::observe::log::{self, say};
use crate::observe::monitor::{self, Readiness};
use crate::observe::supervisor::{self, Phase};
use crate::serve::{self, From, Settings};
use crate::webhook::client::CONNECT_TIMEOUT;
use crate::webhook::endpoint::Endpoint;
use anyhow::bail;
use reqwest::header::HeaderMap;
use tracing::info;

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(shared: &Shared, backend: Backend) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    tokio::spawn(log::tell_dropped());
    raise_file_limit();
    let (observer, readiness) = (Observer::default(), Readiness::default());
    if let Some(address) = shared.http_listen {
        monitor::start(address, observer.clone(), readiness.clone()).await?;
    }
    let (settings, destination, proxy) = backend;
    let (certificates, headers) = (Certificates::default(), HeaderMap::new());
    let endpoint =
        Endpoint::new(&destination, proxy.as_ref(), CONNECT_TIMEOUT, &certificates, &headers)?;
    let opening = Link::open(&shared.nats, &observer);
    let Some(link) = unless(stop.as_mut(), opening).await.transpose()? else {
        info!("stopped before NATS could be reached");
        return Ok(());
    };
    let connected = link.clone();
    let _ = readiness.set(Box::new(move || connected.can_publish()));
    info!(from = described(&settings), to = %destination, "starting");
    let finished = serve::run(settings, endpoint, &link, &observer, stop, shared.grace).await?;
    supervisor::tell(Phase::Stopping);
    info!("stopped");
    if !finished {
        bail!("requests could not be finished within SHUTDOWN_GRACE");
    }
    Ok(())
}

/// Tries everything that can be tried without a request.
pub(super) async fn check(shared: &Shared, backend: &Backend) -> anyhow::Result<()> {
    let link = Link::try_open(&shared.nats, &Observer::default()).await?;
    let version = link.client().await.1.server_info().version;
    say(format_args!("connected to  nats-server {version}"))?;
    say(format_args!(
        "listens on    {} (queue group {})",
        described(&backend.0),
        backend.0.queue_group
    ))?;
    say(format_args!("calls         {}", backend.1))?;
    Ok(())
}

fn described(settings: &Settings) -> String {
    match &settings.from {
        From::Prefix(prefix) => format!("{prefix} {}", prefix.wildcard()),
        From::Host { prefix, host } => format!("{prefix}.requests.{host}.*"),
    }
}
