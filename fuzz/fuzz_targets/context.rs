//! Contexts of the nats command line: whatever a file holds, it is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::config::context::Context;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let Ok(context) = Context::parse("fuzz", Path::new("/none/fuzz.json"), &text) else { return };
    for field in
        ["url", "user", "password", "token", "jetstream_domain", "inbox_prefix", "tls_first"]
    {
        let _ = context.text(field);
    }
});
