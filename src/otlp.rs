//! Export of spans to a collector, over OTLP/HTTP with Protobuf.
//!
//! What cannot be exported is lost, said once for each outage, and never holds a message up.

use crate::certificates::Certificates;
use crate::trace::Tracer;
use crate::webhook::client::{CONNECT_TIMEOUT, Maker};
use crate::webhook::destination::Destination;
use anyhow::Context;
use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Compression, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfig, BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData,
    SpanExporter,
};
use reqwest::Client;
use reqwest::header::AUTHORIZATION;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tracing::{info, warn};

/// Time for one export unless something else is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the last export.
const LAST: Duration = Duration::from_secs(5);
/// The name of the service unless something else is said.
const SERVICE: &str = "nats-webhook-relay";

pub(crate) struct Settings {
    /// Where spans are POSTed to.
    pub(crate) endpoint: Destination,
    /// Of each export; they may hold keys.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) timeout: Duration,
    pub(crate) is_compressed: bool,
    pub(crate) certificates: Certificates,
    /// What the spans come from: its name, and other attributes.
    pub(crate) service: Option<String>,
    pub(crate) resource: Vec<(String, String)>,
    pub(crate) sampler: Sampler,
    pub(crate) batch: Batch,
}

/// How spans wait to be exported; `None` is the SDK's default.
pub(crate) struct Batch {
    /// The longest time.
    pub(crate) delay: Option<Duration>,
    /// The most that wait, beyond which spans are lost.
    pub(crate) queue: Option<usize>,
    /// The most that are exported at once.
    pub(crate) size: Option<usize>,
}

impl Batch {
    fn config(&self) -> BatchConfig {
        let mut config = BatchConfigBuilder::default();
        if let Some(delay) = self.delay {
            config = config.with_scheduled_delay(delay);
        }
        if let Some(queue) = self.queue {
            config = config.with_max_queue_size(queue);
        }
        if let Some(size) = self.size {
            config = config.with_max_export_batch_size(size);
        }
        config.build()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Exports what its tracer makes.
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to export, on a thread of its own.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn start(settings: &Settings) -> anyhow::Result<Self> {
        let doing = || format!("cannot export traces to {}", settings.endpoint);
        let maker = Maker::new(&settings.endpoint, None, CONNECT_TIMEOUT, &settings.certificates);
        let client = maker.and_then(|maker| maker.make()).with_context(doing)?;
        // A login in the URL becomes a header: what calls the URL may log it.
        let template = client.post(settings.endpoint.url().clone()).build();
        let template = template.map_err(reqwest::Error::without_url).with_context(doing)?;
        let login = template.headers().get(AUTHORIZATION).and_then(|login| login.to_str().ok());
        let mut headers = settings.headers.clone();
        if let Some(login) = login {
            headers.entry(AUTHORIZATION.to_string()).or_insert_with(|| login.to_owned());
        }
        let client = Calls { client, timeout: settings.timeout, runtime: Handle::current() };
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(template.url().as_str())
            .with_timeout(settings.timeout)
            .with_headers(headers);
        if settings.is_compressed {
            exporter = exporter.with_compression(Compression::Gzip);
        }
        let exporter = exporter.build().with_context(doing)?;
        let endpoint = settings.endpoint.to_string();
        let exporter = Exporter { exporter, endpoint, is_failing: AtomicBool::new(false) };
        let processor = BatchSpanProcessor::builder(exporter);
        let processor = processor.with_batch_config(settings.batch.config()).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(settings.sampler.clone())
            .with_resource(resource(settings))
            .build();
        Ok(Self(provider))
    }

    pub(crate) fn tracer(&self) -> Tracer {
        Tracer(self.0.tracer(SERVICE))
    }

    /// Exports what is left.
    pub(crate) async fn finish(self) {
        let last = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST));
        if let Ok(Err(error)) = last.await {
            warn!(%error, "ended before all traces were exported");
        }
    }
}

fn resource(settings: &Settings) -> Resource {
    let attributes = settings.resource.iter().cloned();
    let attributes = attributes.map(|(key, value)| KeyValue::new(key, value));
    let mut resource = Resource::builder()
        .with_service_name(SERVICE)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes);
    if let Some(service) = &settings.service {
        resource = resource.with_service_name(service.clone());
    }
    resource.build()
}

/// Says once that spans cannot be exported, and that they can be again.
#[derive(Debug)]
struct Exporter {
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    is_failing: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let endpoint = &self.endpoint;
        match (&result, self.is_failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => warn!(%error, endpoint, "cannot export traces; they are lost"),
            (Ok(()), true) => info!(endpoint, "traces are exported again"),
            _ => {}
        }
        // It is said, and nobody can do anything else about it.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Calls the collector from the exporter's thread, which has no runtime.
#[derive(Debug)]
struct Calls {
    client: Client,
    timeout: Duration,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Calls {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request: reqwest::Request = request.try_into()?;
        *request.timeout_mut() = Some(self.timeout);
        let client = self.client.clone();
        let call = self.runtime.spawn(async move {
            let answer = client.execute(request).await?;
            let status = answer.status();
            anyhow::Ok((status, answer.bytes().await?))
        });
        let (status, body) = call.await?.map_err(|error| format!("{error:#}"))?;
        Ok(Response::builder().status(status).body(body)?)
    }
}
