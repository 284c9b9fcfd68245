//! What the standard variables of OpenTelemetry say about the export of traces.

use crate::certificates::{self, Certificates};
use crate::config::reader::{Reader, number};
use crate::config::variables::{
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE, OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_SCHEDULE_DELAY,
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE,
    OTEL_EXPORTER_OTLP_TRACES_COMPRESSION, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_HEADERS, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, OTEL_RESOURCE_ATTRIBUTES, OTEL_SDK_DISABLED,
    OTEL_SERVICE_NAME, OTEL_TRACES_EXPORTER, OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG,
    Variable,
};
use crate::otlp::{Batch, Settings, TIMEOUT};
use crate::webhook::destination::Destination;
use opentelemetry_sdk::trace::Sampler;
use reqwest::header::{HeaderName, HeaderValue};
use std::time::Duration;

impl Reader<'_> {
    /// `None` where no traces are to be exported.
    pub(super) fn traces(&mut self) -> Option<Settings> {
        let expected = "a URL such as http://localhost:4318";
        let base = self.optional(&OTEL_EXPORTER_OTLP_ENDPOINT, expected, |text| {
            Destination::parse(&format!("{}/v1/traces", text.trim_end_matches('/')))
        });
        let whole = &OTEL_EXPORTER_OTLP_TRACES_ENDPOINT;
        let whole = self.optional(whole, expected, Destination::parse);
        let is_off = self.flag(&OTEL_SDK_DISABLED);
        let exporter = |text: &str| ["otlp", "none"].contains(&text).then(|| text == "none");
        let is_none = self.or(&OTEL_TRACES_EXPORTER, "otlp or none", exporter, false);
        let headers = self.pairs(&OTEL_EXPORTER_OTLP_TRACES_HEADERS, |name, value| {
            let pair = text_pair(name, value)?;
            let is_header = HeaderName::from_bytes(name.as_bytes()).is_ok()
                && HeaderValue::from_str(&pair.1).is_ok();
            is_header.then_some(pair)
        });
        // Platforms set the rest for all programs: it may be meant for others.
        let endpoint = whole.or(base).filter(|_| !is_off && !is_none)?;
        let protocol = |text: &str| (text == "http/protobuf").then_some(());
        self.optional(&OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, "http/protobuf", protocol);
        let is_gzip = |text: &str| ["gzip", "none"].contains(&text).then(|| text == "gzip");
        let compression = &OTEL_EXPORTER_OTLP_TRACES_COMPRESSION;
        let is_compressed = self.or(compression, "gzip or none", is_gzip, false);
        let ca = &OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE;
        let authorities = self.read_path(ca, certificates::authorities).unwrap_or_default();
        Some(Settings {
            endpoint,
            headers: headers.into_iter().collect(),
            timeout: self.milliseconds(&OTEL_EXPORTER_OTLP_TRACES_TIMEOUT).unwrap_or(TIMEOUT),
            is_compressed,
            certificates: Certificates { authorities, identity: None },
            service: self.text(&OTEL_SERVICE_NAME),
            resource: self.pairs(&OTEL_RESOURCE_ATTRIBUTES, text_pair),
            sampler: self.sampler(),
            batch: Batch {
                delay: self.milliseconds(&OTEL_BSP_SCHEDULE_DELAY),
                queue: self.count(&OTEL_BSP_MAX_QUEUE_SIZE),
                size: self.count(&OTEL_BSP_MAX_EXPORT_BATCH_SIZE),
            },
        })
    }

    fn sampler(&mut self) -> Sampler {
        let ratio = |text: &str| text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        let ratio = self.or(&OTEL_TRACES_SAMPLER_ARG, "a number from 0 to 1", ratio, 1.0);
        let parent_based = |root| Sampler::ParentBased(Box::new(root));
        let sampler = |text: &str| match text {
            "always_on" => Some(Sampler::AlwaysOn),
            "always_off" => Some(Sampler::AlwaysOff),
            "traceidratio" => Some(Sampler::TraceIdRatioBased(ratio)),
            "parentbased_always_on" => Some(parent_based(Sampler::AlwaysOn)),
            "parentbased_always_off" => Some(parent_based(Sampler::AlwaysOff)),
            "parentbased_traceidratio" => Some(parent_based(Sampler::TraceIdRatioBased(ratio))),
            _ => None,
        };
        let expected = "always_on, always_off, traceidratio, or one of them after parentbased_";
        self.or(&OTEL_TRACES_SAMPLER, expected, sampler, parent_based(Sampler::AlwaysOn))
    }

    fn milliseconds(&mut self, variable: &Variable) -> Option<Duration> {
        let milliseconds = self.optional(variable, "milliseconds", number(1..=86_400_000_u64));
        milliseconds.map(Duration::from_millis)
    }

    fn count(&mut self, variable: &Variable) -> Option<usize> {
        self.optional(variable, "a number from 1 to 1000000", number(1..=1_000_000))
    }
}

fn text_pair(name: &str, value: Vec<u8>) -> Option<(String, String)> {
    let pair = (name.to_owned(), String::from_utf8(value).ok()?);
    (!name.is_empty()).then_some(pair)
}
