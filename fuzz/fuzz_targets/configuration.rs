//! Environment variables: whatever they hold, the answer is a configuration or mistakes that
//! show no secret.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::config::environment::Environment;
use nats_webhook_relay::config::{Config, VARIABLES, unknown};

const SECRET: &str = "hunter2hunter2";

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data).replace('\0', "");
    if text.contains(SECRET) {
        return;
    }
    let mut lines: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        // Paths are not what this is about.
        if name.ends_with("_FILE") || ["PLUGINS", "PLUGIN_CACHE"].contains(&name) {
            continue;
        }
        let is_secret = VARIABLES.iter().any(|variable| {
            variable.secret && (variable.name == name || variable.aliases.contains(&name))
        });
        let value = if is_secret { format!("{value}{SECRET}") } else { value.to_owned() };
        lines.push((name.to_owned(), value));
    }
    let environment: Environment =
        lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let _ = unknown(&environment);
    let said = match Config::from_environment(&environment) {
        Ok(config) => format!("{config:?}"),
        Err(mistakes) => mistakes.to_string(),
    };
    // The path of a destination and the host of a server are shown on purpose.
    let shown = |name: &&(String, String)| {
        ["WEBHOOK_DESTINATION", "NATS_HOST", "NATS_URL", "NATS_ADDRESS", "NATS_USER"]
            .contains(&name.0.as_str())
    };
    if !lines.iter().any(|line| shown(&line)) {
        assert!(!said.contains(SECRET), "{said}");
    }
});
