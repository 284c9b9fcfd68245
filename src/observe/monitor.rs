//! `/healthz`, `/readyz` and `/metrics` over HTTP, for supervisors and Prometheus.

use crate::observe::Observer;
use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::info;

/// The name that log filters know this by.
const TARGET: &str = "nats_webhook_relay::serve";

/// Answers whether messages can be relayed now, and why not. Unset until the subscription is
/// active.
pub(crate) type Readiness = Arc<OnceLock<Box<dyn Fn() -> Result<(), String> + Send + Sync>>>;

/// Whether the oldest message is no older than `most` allows.
///
/// # Errors
/// Says how old it is.
pub(crate) fn lag(oldest: Duration, most: Option<Duration>) -> Result<(), String> {
    match most.filter(|most| oldest > *most) {
        None => Ok(()),
        Some(most) => Err(format!(
            "the oldest message has waited for {} s, longer than READY_MAX_LAG ({} s)",
            oldest.as_secs(),
            most.as_secs_f64()
        )),
    }
}

/// Starts serving on `address` and returns the address in use.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn start(
    address: SocketAddr,
    observer: Observer,
    readiness: Readiness,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (HTTP_LISTEN)"))?;
    let address = listener.local_addr()?;
    let ready = move || async move {
        let ready = readiness.get().map_or_else(|| Err("it is starting".to_owned()), |it| it());
        match ready {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        }
    };
    let encode = move || async move {
        (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            observer.metrics().encode(),
        )
    };
    let router = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(encode));
    tokio::spawn(async move { axum::serve(listener, router).await });
    info!(target: TARGET, %address, "serving /healthz, /readyz and /metrics");
    Ok(address)
}
