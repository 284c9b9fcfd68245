//! Every environment variable that the program reads: its name, default and meaning.
//!
//! One list makes the items that the readers pass by reference and the table that `--help` and
//! the documents show, so that a variable cannot be in one and not in the other.

use crate::config::environment::Environment;

/// One environment variable.
#[derive(Clone, Copy)]
pub struct Variable {
    pub name: &'static str,
    /// Other names for the same setting, which count when `name` is unset.
    pub aliases: &'static [&'static str],
    /// What an unset variable means; `None` where it has no value then.
    pub default: Option<&'static str>,
    /// Whether the value may hold a secret: it is never printed and may be given as `NAME_FILE`.
    pub secret: bool,
    /// One or two sentences for `--help`.
    pub help: &'static str,
}

impl Variable {
    /// The name and the aliases, in the order in which they count.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn also(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }
}

const fn plain(help: &'static str) -> Variable {
    Variable { name: "", aliases: &[], default: None, secret: false, help }
}

const fn secret(help: &'static str) -> Variable {
    Variable { secret: true, ..plain(help) }
}

macro_rules! variables {
    ($(#[$doc:meta])* $all:ident: $($name:ident: $variable:expr,)*) => {
        $(pub(crate) const $name: Variable = Variable { name: stringify!($name), ..$variable };)*

        $(#[$doc])*
        pub const $all: &[Variable] = &[$($name),*];
    };
}

variables! {
    /// Every variable of the relay, in the order of the documents.
    VARIABLES:
    WEBHOOK_DESTINATION: secret(
        "Required. URL that each message is POSTed to, or several separated by white space: \
         all must accept a message before it is republished.",
    ),
    NATS_HOST: secret(
        "Required. Server URL, or several separated by commas: nats://, tls://, ws:// or \
         wss://. A context can name it instead.",
    ).also(&["NATS_URL", "NATS_ADDRESS"]),
    NATS_USER: secret(
        "User name, if the server requires one.",
    ),
    NATS_PASS: secret(
        "Password of NATS_USER.",
    ).also(&["NATS_PASSWORD"]),
    NATS_TOKEN: secret(
        "Token, if the server requires one.",
    ),
    NATS_CREDS: secret(
        "Credentials (a JWT with its seed): the path of the file, read again for each \
         connection, or its content, -----BEGIN NATS...",
    ),
    NATS_NKEY: secret(
        "Seed of an nkey: the path of the file, read again for each connection, or the seed \
         itself, SU...",
    ),
    NATS_JWT: secret(
        "JWT of a user, if it is not in one file with its seed.",
    ),
    NATS_SEED: secret(
        "Seed of NATS_JWT.",
    ),
    NATS_CA: plain(
        "Path of a PEM file with the certificate authorities to trust. Default: those of the \
         system.",
    ),
    NATS_CERT: plain(
        "Path of a PEM file with the relay's certificate, for mutual TLS.",
    ),
    NATS_KEY: plain(
        "Path of a PEM file with the key of NATS_CERT.",
    ),
    NATS_TLS_FIRST: plain(
        "true: the TLS handshake comes before the server's greeting (handshake_first).",
    ).or("false"),
    NATS_CONTEXT: plain(
        "Name or path of a context of the nats command line; variables take precedence over \
         it. Default: the selected context, if NATS_HOST is not set.",
    ),
    NATS_ENV: plain(
        "true: no context is read, not even the selected one; NATS_HOST is by default \
         nats://127.0.0.1:4222, and NATS_USER without NATS_PASS is a token. As in \
         nats-roundtripper.",
    ).or("false"),
    NATS_INBOX_PREFIX: plain(
        "Prefix of the subjects for confirmations. Default: _INBOX.",
    ),
    NATS_SUBJECT_PREFIX: plain(
        "Required. The relay listens on everything below it: cms.cache means cms.cache.>. \
         NATS_SUBJECT can be set instead.",
    ),
    NATS_RELAYED_SUBJECT_PREFIX: plain(
        "Required. Accepted messages are republished below it. NATS_RELAYED_SUBJECT can be set \
         instead.",
    ),
    NATS_SUBJECT: plain(
        "One exact subject to listen on, such as feathers-sync, instead of \
         NATS_SUBJECT_PREFIX.",
    ),
    NATS_RELAYED_SUBJECT: plain(
        "The exact subject that accepted messages are republished on. Set it together with \
         NATS_SUBJECT, and neither prefix.",
    ),
    NATS_FAILED_SUBJECT_PREFIX: plain(
        "Messages that could not be relayed are published below it, with headers that say \
         why.",
    ),
    NATS_RESYNC_SUBJECT: plain(
        "After a gap, the webhook is called and then a message is published on this subject, so \
         that nobody stays stale.",
    ),
    NATS_QUEUE_GROUP: plain(
        "Replicas with the same queue group share the work. Order per subject then holds \
         within each replica only.",
    ),
    NATS_PENDING_MESSAGES: plain(
        "Maximum number of messages that wait; messages beyond it are dropped, counted and \
         reported. Default: 65536. With NATS_STREAM: maximum number taken from the stream \
         and not settled, by default 1000; the rest stays in the stream.",
    ),
    NATS_PENDING_BYTES: plain(
        "Maximum size of the messages that wait. Default: 64MiB, with NATS_STREAM 16MiB.",
    ),
    NATS_STREAM: plain(
        "JetStream mode: the stream that captures the listened subjects. Messages are \
         acknowledged once they are relayed.",
    ),
    NATS_CONSUMER: plain(
        "Name of the durable consumer on NATS_STREAM. Each frontend needs its own; the \
         replicas of a frontend share it.",
    ).or("nats-webhook-relay"),
    NATS_DELIVER: plain(
        "Where a new consumer starts: new, all, last-per-subject, or an age such as 6h. An \
         existing one resumes where it was.",
    ).or("new"),
    NATS_STREAM_CREATE: plain(
        "true: create NATS_STREAM when it is missing (for development).",
    ).or("false"),
    NATS_REPLICAS_SHARE: plain(
        "true: replicas work side by side, and order per subject holds within each only. By \
         default, one works and the others stand by.",
    ).or("false"),
    NATS_JETSTREAM_DOMAIN: plain(
        "JetStream domain of NATS_STREAM.",
    ),
    NATS_JETSTREAM_API_PREFIX: plain(
        "Subject prefix of the JetStream API, if it is imported from another account. \
         Default: $JS.API.",
    ),
    WEBHOOK_RESYNC_DESTINATION: secret(
        "URL that resyncs are POSTed to, or several separated by white space. Default: \
         WEBHOOK_DESTINATION.",
    ),
    RESYNC_ON: plain(
        "What resyncs follow, separated by commas: start, reconnect, slow-consumer, limits, \
         failed. Default: all; with NATS_STREAM, failed.",
    ),
    RESYNC_INTERVAL: plain(
        "Time between two resyncs; what is noticed meanwhile is merged.",
    ).or("5s"),
    WEBHOOK_TIMEOUT: plain(
        "Time for one attempt, from connecting to the end of the answer.",
    ).or("30s"),
    WEBHOOK_CONNECT_TIMEOUT: plain(
        "Time for connecting within one attempt.",
    ).or("5s"),
    WEBHOOK_MAX_ATTEMPTS: plain(
        "Attempts per message and destination, or unlimited. Between them: 100ms doubling to \
         30s, with full jitter; Retry-After is honoured up to 5min.",
    ).or("10"),
    WEBHOOK_RETRY_STATUS: plain(
        "Further statuses to retry, separated by commas (404 during deployments), in addition \
         to connection errors, time-outs, 408, 425, 429 and 5xx.",
    ),
    WEBHOOK_RATE_LIMIT: plain(
        "Maximum rate of calls for each destination, retries included: 50/s, 600/min or 1000/h. \
         Up to a tenth of a second's calls may be made at once.",
    ),
    WEBHOOK_SECRET: secret(
        "Signs every call according to Standard Webhooks: whsec_ and the base64 of 24 to 64 \
         bytes. Several, separated by white space, while you rotate it.",
    ),
    WEBHOOK_HEADERS: secret(
        "Headers of every call: name=value,name=value with percent-encoded values. They \
         replace headers of the message.",
    ),
    WEBHOOK_CA: plain(
        "PEM file with certificate authorities to trust for https destinations, in addition to \
         those of the system.",
    ),
    WEBHOOK_CERT: plain(
        "PEM file with a client certificate and its chain, for destinations that require one.",
    ),
    WEBHOOK_KEY: plain(
        "PEM file with the unencrypted private key of WEBHOOK_CERT.",
    ),
    MAX_IN_FLIGHT: plain(
        "Messages worked on at once, each on a different subject. A message that waits for a \
         retry or for WEBHOOK_RATE_LIMIT does not count.",
    ).or("128"),
    COALESCE: plain(
        "true: messages that wait on one subject with equal payload, headers and plugin results \
         share one call. subject: all that wait on one subject share the call of the newest. Each \
         is relayed after that call was accepted.",
    ).or("false"),
    COALESCE_WINDOW: plain(
        "With COALESCE: time to wait for more messages before a call.",
    ).or("0s"),
    SHUTDOWN_GRACE: plain(
        "Time to finish what has arrived, on SIGTERM or SIGINT.",
    ).or("25s"),
    PLUGINS: plain(
        "WebAssembly components that shape what is relayed: .wasm files or folders of them, \
         separated by colons. They run in that order; those in a folder run by name.",
    ),
    PLUGIN_TIMEOUT: plain(
        "Time for one call of a plugin's hook.",
    ).or("1s"),
    PLUGIN_MEMORY: plain(
        "Memory for one instance of a plugin; each plugin has up to 16 instances at work.",
    ).or("128MiB"),
    PLUGIN_WATCH: plain(
        "true: reload plugins when their files change (for development). SIGHUP reloads them \
         at any time.",
    ).or("false"),
    PLUGIN_CACHE: plain(
        "Folder for compiled plugins, which must belong to the user; off compiles them at each \
         start. Default: nats-webhook-relay in the user's cache folder.",
    ),
    HTTP_LISTEN: plain(
        "Address for /healthz, /readyz and /metrics, such as 127.0.0.1:9090.",
    ),
    READY_MAX_LAG: plain(
        "/readyz answers 503 while the oldest message that waits is older. Default: off.",
    ),
    LOG_FORMAT: plain(
        "pretty, compact or json. Default: pretty on a terminal, else compact. Off a terminal, \
         compact and json have one line for each message at info, when it is done.",
    ),
    RUST_LOG: plain(
        "What is logged: a level, or target=level,... as in tracing-subscriber's EnvFilter.",
    ).or("info"),
}

variables! {
    /// Those of `gateway`, beside the ones that it shares with the relay.
    GATEWAY_VARIABLES:
    GATEWAY_LISTEN: plain(
        "Address to listen on, for HTTP/1.1 and HTTP/2 without TLS; a reverse proxy ends TLS.",
    ).or("127.0.0.1:8080"),
    GATEWAY_SUBJECT_PREFIX: plain(
        "Required, unless GATEWAY_SUBJECT is set. With api, POST /a/b/c is sent to api.a.b.c, \
         and / to api.",
    ),
    GATEWAY_SUBJECT: plain(
        "One fixed subject for all requests, instead of the prefix.",
    ),
    GATEWAY_ANSWER: plain(
        "reply: the reply to the message is the answer. sent: 202 once the server has \
         confirmed the message. stored: 202 once a stream has stored it.",
    ).or("reply"),
    GATEWAY_FORMAT: plain(
        "plain, roundtripper or nats-proxy.",
    ).or("plain"),
    GATEWAY_HOST: plain(
        "roundtripper: the host that all requests are for. Default: the Host header of each.",
    ),
    GATEWAY_TIMEOUT: plain(
        "Time for the answer.",
    ).or("30s"),
    GATEWAY_MAX_BODY: plain(
        "Maximum size of a body. Default: max_payload of the server.",
    ),
    GATEWAY_MAX_IN_FLIGHT: plain(
        "Requests worked on at once; further ones are answered with 503.",
    ).or("1024"),
    GATEWAY_SECRET: secret(
        "Bodies must be signed with this secret; several, separated by white space, while you \
         rotate it.",
    ),
    GATEWAY_SIGNATURE: plain(
        "How they are signed: standard (Standard Webhooks), github or stripe.",
    ).or("standard"),
    GATEWAY_TOKEN: secret(
        "Requests must carry this bearer token, or one of several, separated by white space.",
    ),
    GATEWAY_HEADERS: secret(
        "Headers added to each message: name=value,name=value with percent-encoded values.",
    ),
}

variables! {
    /// Those of `serve`, beside the ones that it shares with the relay.
    SERVE_VARIABLES:
    SERVE_DESTINATION: secret(
        "Required. URL of the backend; path and query of a request are appended.",
    ),
    SERVE_SUBJECT_PREFIX: plain(
        "Required for plain and nats-proxy. With api, it listens on api and api.>",
    ),
    SERVE_HOST: plain(
        "Required for roundtripper. With weather.nats, it listens on \
         nrt.requests.weather.nats.*",
    ),
    SERVE_FORMAT: plain(
        "plain, roundtripper or nats-proxy.",
    ).or("plain"),
    SERVE_TIMEOUT: plain(
        "Time for one call of the backend.",
    ).or("30s"),
    SERVE_MAX_IN_FLIGHT: plain(
        "Requests worked on at once.",
    ).or("1024"),
    NATS_PREFIX: plain(
        "roundtripper: first token of the subjects, for gateway and serve.",
    ).or("nrt"),
}

/// A warning for each variable that is set, looks like one of the relay's and is none, with the
/// nearest name.
#[must_use]
pub fn unknown(environment: &Environment) -> Vec<String> {
    // With plugins, what begins with PLUGIN_ may be theirs; they check it when they are loaded.
    let has_plugins = environment.get(PLUGINS.name).is_some();
    unknown_of(environment, VARIABLES, |name| {
        name.starts_with("WEBHOOK_")
            || name.starts_with("PLUGIN") && !(has_plugins && name.starts_with("PLUGIN_"))
    })
}

/// The same of some variables, which are told by their names.
pub(crate) fn unknown_of(
    environment: &Environment,
    variables: &[Variable],
    is_ours: impl Fn(&str) -> bool,
) -> Vec<String> {
    let known = || {
        variables.iter().flat_map(|variable| {
            variable.names().flat_map(|name| {
                let file = variable.secret.then(|| format!("{name}_FILE"));
                std::iter::once(name.to_owned()).chain(file)
            })
        })
    };
    let strange = environment
        .names()
        .filter(|name| is_ours(name))
        .filter(|name| known().all(|known| known != **name));
    let likeness = |known: &str, name: &str| strsim::jaro_winkler(known, name);
    strange
        .map(|name| {
            let nearest = known().max_by(|a, b| likeness(a, name).total_cmp(&likeness(b, name)));
            format!(
                "{name} is not a variable of this program; the nearest is {}",
                nearest.unwrap_or_default()
            )
        })
        .collect()
}

/// The part of `--help` that explains the variables.
#[must_use]
pub fn help() -> String {
    help_of(VARIABLES)
}

/// The same of some variables.
pub(crate) fn help_of(variables: &[Variable]) -> String {
    let mut text = String::from("Environment variables (also read from .env.local and .env):\n");
    for Variable { name, aliases, default, secret, help } in variables {
        text += &format!("\n  {name}");
        if let Some(default) = default {
            text += &format!(" [default: {default}]");
        }
        if !aliases.is_empty() {
            text += &format!(" [aliases: {}]", aliases.join(", "));
        }
        if *secret {
            text += &format!(" [or {name}_FILE: a path]");
        }
        text += &format!("\n      {help}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn unknown_names_are_told_from_known_and_others() {
        let names = [
            ("WEBHOOK_TIMEOUTS", Some("WEBHOOK_TIMEOUT")),
            ("WEBHOOK_MAX_ATTEMPT", Some("WEBHOOK_MAX_ATTEMPTS")),
            ("WEBHOOK_DESTINATION_FIL", Some("WEBHOOK_DESTINATION_FILE")),
            ("WEBHOOK_", Some("WEBHOOK_")),
            ("WEBHOOK_TIMEOUT_FILE", Some("WEBHOOK_TIMEOUT")),
            ("PLUGINSS", Some("")),
            ("WEBHOOK_TIMEOUT", None),
            ("WEBHOOK_DESTINATION_FILE", None),
            ("WEBHOOK_SECRET", None),
            ("PLUGINS", None),
            ("WEBHOOK", None),
            ("NATS_PORT", None),
            ("HOME", None),
        ];
        let environment: Environment =
            names.iter().map(|(name, _)| (*name, "x")).chain([("WEBHOOK_EMPTY", " ")]).collect();
        let warnings = unknown(&environment);
        for (name, nearest) in names {
            let found: Vec<_> = warnings
                .iter()
                .filter(|warning| warning.starts_with(&format!("{name} ")))
                .collect();
            match nearest {
                None => assert!(found.is_empty(), "{found:?}"),
                Some(nearest) => assert!(
                    found.len() == 1 && found[0].contains(&format!("nearest is {nearest}")),
                    "{name}: {warnings:?}"
                ),
            }
        }
        assert_eq!(warnings.len(), 6, "{warnings:?}");
    }

    #[test]
    fn no_name_means_two_things() {
        let mut names = BTreeSet::new();
        for variable in VARIABLES.iter().chain(GATEWAY_VARIABLES).chain(SERVE_VARIABLES) {
            for name in std::iter::once(&variable.name).chain(variable.aliases) {
                assert!(names.insert(*name), "{name} is in the table twice");
            }
        }
    }
}
