//! NATS headers on their way to the webhook and to the relayed message.
#![no_main]

use async_nats::HeaderMap;
use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::headers::{self, is_framing, is_ours, to_http, to_relayed, wire_size};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut map = HeaderMap::new();
    for line in text.split(['\r', '\n']) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        if let (Ok(name), Ok(value)) =
            (name.parse::<async_nats::HeaderName>(), value.parse::<async_nats::HeaderValue>())
        {
            map.append(name, value);
        }
    }
    let (http, illegal) = to_http(&map);
    let values: usize = map.iter().map(|(_, values)| values.len()).sum();
    assert!(http.len() as u64 + illegal <= values as u64);
    for (name, value) in &http {
        assert!(
            !is_framing(name) && !is_ours(name) && !name.as_str().starts_with("nats-"),
            "{name}"
        );
        assert!(
            !["authorization", "cookie", "host", "user-agent"].contains(&name.as_str()),
            "{name}"
        );
        assert!(
            value.as_bytes().iter().all(|byte| *byte == b'\t' || (*byte >= 32 && *byte != 127))
        );
    }
    let relayed = to_relayed(&map);
    assert!(wire_size(&relayed) <= wire_size(&map));
    for (name, _) in relayed.iter() {
        let name: &str = name.as_ref();
        assert!(!name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")), "{name}");
    }
    let _ = headers::value(&text);
});
