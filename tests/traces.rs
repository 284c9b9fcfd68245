//! Traces: what a message says of its trace is passed on, and with a collector each message is a
//! trace of its hooks, its calls and its republishing.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::component::{BODY, Component, Folder, SUBJECT, text};
use support::endpoint::{Endpoint, Reply, refusing};
use support::relay::run;
use support::setup::{Setup, header, values};
use support::{LIMIT, eventually};
use tempfile::TempDir;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A real collector, which hands on what it gets to an endpoint that keeps it.
struct Collector {
    port: u16,
    process: Child,
    kept: Endpoint,
    _folder: TempDir,
}

impl Collector {
    async fn start() -> Self {
        static PROGRAM: OnceLock<String> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/otlp-receiver");
            let installed = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
            assert!(installed.status.success(), "scripts/otlp-receiver has failed");
            String::from_utf8(installed.stdout).unwrap()
        });
        let kept = Endpoint::ok().await;
        let folder = TempDir::new().unwrap();
        let (port, grpc) = (free_port(), free_port());
        let process = Command::new(program.trim())
            .arg("start")
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{port}")])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-exporter-endpoint", &format!("http://127.0.0.1:{}", kept.port)])
            .args(["--otlp-exporter-protocol", "http"])
            .arg("--log-file")
            .arg(folder.path().join("log"))
            .arg("--pid-file")
            .arg(folder.path().join("pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let collector = Self { port, process, kept, _folder: folder };
        eventually("the collector listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        collector
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What has come in: the attributes of the services, and their spans.
    fn exported(&self) -> Vec<(Vec<KeyValue>, Span)> {
        let calls = self.kept.calls().into_iter();
        // It compresses what it sends, whatever it is told.
        let requests = calls.map(|call| {
            let mut body = Vec::new();
            GzDecoder::new(&call.body[..]).read_to_end(&mut body).unwrap();
            ExportTraceServiceRequest::decode(&body[..]).unwrap()
        });
        requests
            .flat_map(|request| request.resource_spans)
            .flat_map(|of| {
                let resource = of.resource.unwrap().attributes;
                let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.map(move |span| (resource.clone(), span)).collect::<Vec<_>>()
            })
            .collect()
    }

    async fn spans(&self, count: usize) -> Vec<(Vec<KeyValue>, Span)> {
        eventually(&format!("{count} spans"), || self.exported().len() >= count).await;
        self.exported()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port for a program that cannot say which one it was given: below those that systems give to
/// whoever asks for any, or it could be gone before the program listens.
fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An attribute as text; empty where it is missing.
fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        None => String::new(),
        other => panic!("{key}: {other:?}"),
    }
}

/// The trace and the span that a `traceparent` names.
fn named(traceparent: &str) -> (String, String) {
    let [version, trace, span, flags] = traceparent.split('-').collect::<Vec<_>>()[..] else {
        panic!("{traceparent}")
    };
    assert_eq!((version, flags), ("00", "01"), "{traceparent}");
    (trace.to_owned(), span.to_owned())
}

#[tokio::test]
async fn without_a_collector_the_trace_of_a_message_passes_on_unchanged() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[("OTEL_SERVICE_NAME", "cms")]).await;
    let headers = [("traceparent", PARENT), ("tracestate", "a=1,b=2"), ("baggage", "c=3")];
    setup.publish_with("cms.cache.a", &headers, "1").await;
    let relayed = setup.relayed().await;
    for (name, value) in headers {
        assert_eq!(endpoint.calls()[0].header(name), value);
        assert_eq!(header(&relayed, name), value);
    }
    setup.publish("cms.cache.b", "1").await;
    assert!(values(&setup.relayed().await, "traceparent").is_empty(), "no trace is invented");
    assert_eq!(endpoint.calls()[1].header("traceparent"), "");
    setup.end().await;
}

#[tokio::test]
async fn a_message_is_a_trace_of_its_hooks_its_calls_and_its_republishing() {
    let collector = Collector::start().await;
    let count = AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(503),
        _ => Reply::ok(),
    })
    .await;
    let plugin = Component::with(BODY, &text("made")).hook(SUBJECT, &text("made.7"));
    let folder = Folder::with(&[("maker", &plugin)]);
    let url = collector.url();
    let destination = endpoint.url().replace("//", "//hunter2:hunter2@") + "?key=hunter2";
    let mut setup = Setup::with_plugins(
        &destination,
        &folder.all(),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_SERVICE_NAME", "cache relay"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=pre%2Cview,service.name=x"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ],
    )
    .await;
    let headers = [("Traceparent", PARENT), ("tracestate", "a=1,b=2")];
    setup.publish_with("cms.cache.a", &headers, "payload").await;
    let relayed = setup.relayed().await;
    let spans = collector.spans(6).await;
    setup.end().await;
    assert_eq!(collector.exported().len(), 6, "{spans:#?}");

    for (resource, span) in &spans {
        assert_eq!(attribute(resource, "service.name"), "cache relay");
        assert_eq!(attribute(resource, "deployment.environment.name"), "pre,view");
        assert_eq!(hex(&span.trace_id), TRACE);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
        assert!(!format!("{span:?}").contains("hunter2"), "no secret is exported: {span:?}");
    }
    let spans: Vec<Span> = spans.into_iter().map(|(_, span)| span).collect();
    let all = |name: &str| {
        let mut found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
        found.sort_by_key(|span| span.start_time_unix_nano);
        found
    };
    let [process] = all("process")[..] else { panic!("{spans:#?}") };
    assert_eq!(hex(&process.parent_span_id), "00f067aa0ba902b7", "the publisher's span");
    for (key, value) in [
        ("messaging.system", "nats"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", "cms.cache.a"),
        ("messaging.message.body.size", "7"),
        ("messaging.message.id", endpoint.calls()[0].header("webhook-id")),
        ("nats_webhook_relay.outcome", "relayed"),
        ("nats_webhook_relay.relayed_subject", "relayed.cache.made.7"),
    ] {
        assert_eq!(attribute(&process.attributes, key), value, "{key}");
    }
    let inside = spans.iter().filter(|span| span.name != "process");
    for span in inside {
        assert_eq!(span.parent_span_id, process.span_id, "{span:?}");
    }
    for hook in [BODY, SUBJECT] {
        let [span] = all(hook)[..] else { panic!("{hook}: {spans:#?}") };
        assert_eq!(attribute(&span.attributes, "nats_webhook_relay.plugin"), "maker");
    }
    let [first, second] = all("POST")[..] else { panic!("{spans:#?}") };
    for (span, call, status, again, error) in
        [(first, 0, "503", "", "503"), (second, 1, "200", "1", "")]
    {
        let of = |key| attribute(&span.attributes, key);
        assert_eq!(span.kind, 3, "a client");
        assert_eq!(of("http.response.status_code"), status);
        assert_eq!(
            (of("http.request.resend_count"), of("error.type")),
            (again.into(), error.into())
        );
        assert_eq!(of("server.port"), endpoint.port.to_string());
        let call = &endpoint.calls()[call];
        let named = named(call.header("traceparent"));
        assert_eq!(named, (TRACE.to_owned(), hex(&span.span_id)), "the call is this span's");
        assert_eq!(call.header("tracestate"), "a=1,b=2");
    }
    let [publish] = all("publish")[..] else { panic!("{spans:#?}") };
    assert_eq!(publish.kind, 4, "a producer");
    let [traceparent] = values(&relayed, "Traceparent")[..] else { panic!("{relayed:?}") };
    assert_eq!(named(traceparent), (TRACE.to_owned(), hex(&publish.span_id)));
    assert_eq!(header(&relayed, "tracestate"), "a=1,b=2");
    assert!(values(&relayed, "traceparent").is_empty(), "in one spelling only");
}

#[tokio::test]
async fn what_failed_is_an_error_of_its_trace_and_what_was_not_sampled_is_not_exported() {
    let collector = Collector::start().await;
    let endpoint = Endpoint::start(|_| Reply::status(404)).await;
    let url = format!("{}/v1/traces", collector.url());
    let mut setup = Setup::start(
        &endpoint.url(),
        &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url), ("OTEL_BSP_SCHEDULE_DELAY", "50")],
    )
    .await;
    // Its publisher has decided against a trace, which passes on.
    let unsampled = format!("00-{TRACE}-00f067aa0ba902b7-00");
    setup.publish_with("cms.cache.a", &[("traceparent", &unsampled)], "1").await;
    setup.failed().await;
    setup.publish("cms.cache.b", "2").await;
    setup.failed().await;
    let spans = collector.spans(2).await;
    setup.end().await;
    let calls = endpoint.calls();
    let passed = calls[0].header("traceparent");
    assert!(passed.contains(TRACE) && passed.ends_with("-00"), "{passed}");
    assert_eq!(collector.exported().len(), 2, "{spans:#?}");
    let (_, process) = spans.iter().find(|(_, span)| span.name == "process").unwrap();
    assert!(process.parent_span_id.is_empty(), "a trace of its own");
    assert_eq!(attribute(&process.attributes, "messaging.destination.name"), "cms.cache.b");
    assert_eq!(attribute(&process.attributes, "nats_webhook_relay.outcome"), "failed");
    let status = process.status.as_ref().unwrap();
    assert!(status.code == 2 && status.message.contains("answered 404"), "{status:?}");
    assert_eq!(named(calls[1].header("traceparent")).0, hex(&process.trace_id));
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nothing_up_and_is_said_once() {
    let (_bound, port) = refusing();
    let url = format!("http://hunter2:hunter2@127.0.0.1:{port}");
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(
        &endpoint.url(),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2"),
            ("OTEL_BSP_SCHEDULE_DELAY", "1"),
            ("RUST_LOG", "trace"),
        ],
    )
    .await;
    for number in 0..20 {
        setup.publish(&format!("cms.cache.{number}"), "1").await;
        setup.relayed().await;
    }
    let said = || setup.relay.lines("cannot export traces");
    eventually("it is said", || !said().is_empty()).await;
    assert_eq!(said().len(), 1);
    assert!(said()[0].contains(&format!("127.0.0.1:{port}/v1/traces")), "{:?}", said());
    setup.end().await;
    let log = setup.relay.log();
    let log: Vec<_> = log.iter().filter(|line| line.contains("hunter2")).collect();
    assert!(log.is_empty(), "no secret is shown: {log:#?}");
}

#[tokio::test]
async fn a_collector_that_hangs_ends_nothing_late() {
    let endpoint = Endpoint::ok().await;
    let hangs = Endpoint::start(|_| Reply::ok().after(LIMIT * 10)).await;
    let url = format!("http://127.0.0.1:{}", hangs.port);
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*url), ("OTEL_BSP_SCHEDULE_DELAY", "1")];
    let mut setup = Setup::start(&endpoint.url(), &variables).await;
    setup.publish("cms.cache.a", "1").await;
    setup.relayed().await;
    hangs.received(1).await;
    setup.publish("cms.cache.b", "1").await;
    setup.relayed().await;
    let began = std::time::Instant::now();
    setup.end().await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(setup.relay.lines("ended before all traces were exported").len(), 1);
}

#[test]
fn what_cannot_be_exported_to_is_a_mistake_and_none_is_none() {
    const RELAY: [(&str, &str); 4] = [
        ("WEBHOOK_DESTINATION", "http://127.0.0.1:9/"),
        ("NATS_HOST", "127.0.0.1:1"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
    ];
    const GOOD: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    let check = |variables: &[(&str, &str)]| {
        let (status, _, stderr) = run(&["check"], &[&RELAY[..], variables].concat());
        (status.code(), stderr)
    };
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
    ] {
        let (code, stderr) = check(&[GOOD, (name, value)]);
        let mistakes: Vec<_> = stderr.lines().filter(|line| line.starts_with("  - ")).collect();
        let [mistake] = mistakes[..] else { panic!("{name}: {stderr}") };
        let key = name.trim_start_matches("OTEL_EXPORTER_OTLP_");
        assert!(code == Some(64) && mistake.contains(key), "{stderr}");
        assert!(!mistake.contains("hunter2"), "{mistake}");
    }
    // Without a collector, platforms that set the rest everywhere do no harm.
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        let (code, stderr) = check(&[GOOD, off, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert!(code == Some(1) && stderr.contains("127.0.0.1:1"), "{stderr}");
    }
}
