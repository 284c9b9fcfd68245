//! Every environment variable: its name, default and meaning in one table, and its way into
//! a typed [`Config`].
//!
//! All mistakes are found in one pass and reported together, each naming its variable and what
//! is expected. The value of a variable marked secret is never part of a report.

mod connection;

use crate::certificates::{self, Certificates};
use crate::context::{self, Context};
use crate::destination::Destination;
use crate::environment::Environment;
use crate::headers;
use crate::nats::login::Login;
use crate::nats::tls::Tls;
use crate::plugin;
use crate::proxy::Proxy;
use crate::secret::Secret;
use crate::signature::Keys;
use crate::subject::{self, Prefix};
use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// The exit code for a wrong configuration or command line (`EX_USAGE` of sysexits.h).
pub const EX_USAGE: u8 = 64;

/// One environment variable that the relay reads.
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Other names for the same setting, looked at when `name` is unset.
    pub aliases: &'static [&'static str],
    /// What an unset variable means; `None` where it has no value then.
    pub default: Option<&'static str>,
    /// Whether the value may hold a secret: it is never printed and may be given as `NAME_FILE`.
    pub secret: bool,
    /// One or two sentences for `--help`.
    pub help: &'static str,
}

const fn variable(name: &'static str, default: Option<&'static str>, help: &'static str) -> Variable {
    Variable { name, aliases: &[], default, secret: false, help }
}

const fn secret(name: &'static str, aliases: &'static [&'static str], help: &'static str) -> Variable {
    Variable { name, aliases, default: None, secret: true, help }
}

/// Every variable that the relay reads, in the order of its documentation.
pub const VARIABLES: &[Variable] = &[
    secret(
        "WEBHOOK_DESTINATION",
        &[],
        "Required. URL that each message is POSTed to, or several separated by white space: all must accept a message before it is republished.",
    ),
    secret(
        "NATS_HOST",
        &["NATS_URL", "NATS_ADDRESS"],
        "Required. Server URL, or several separated by commas: nats://, tls://, ws:// or wss://. A context may say it instead.",
    ),
    secret("NATS_USER", &[], "User name, where the server wants one."),
    secret("NATS_PASS", &["NATS_PASSWORD"], "Password of NATS_USER."),
    secret("NATS_TOKEN", &[], "Token, where the server wants one."),
    secret(
        "NATS_CREDS",
        &[],
        "Credentials (a JWT with its seed): the path of the file, read again for each connection, or its content, -----BEGIN NATS...",
    ),
    secret("NATS_NKEY", &[], "Seed of an nkey: the path of the file, read again for each connection, or the seed itself, SU..."),
    secret("NATS_JWT", &[], "JWT of a user, where it is not in one file with its seed."),
    secret("NATS_SEED", &[], "Seed of NATS_JWT."),
    variable("NATS_CA", None, "Path of a PEM file with the authorities to trust. Default: those of the system."),
    variable("NATS_CERT", None, "Path of a PEM file with the relay's certificate, for mutual TLS."),
    variable("NATS_KEY", None, "Path of a PEM file with the key of NATS_CERT."),
    variable("NATS_TLS_FIRST", Some("false"), "true: the TLS handshake comes before the server's greeting (handshake_first)."),
    variable(
        "NATS_CONTEXT",
        None,
        "Name or path of a context of the nats command line; variables win over what it says. Default: without NATS_HOST, the selected one.",
    ),
    variable("NATS_INBOX_PREFIX", None, "What the subjects for confirmations begin with. Default: _INBOX."),
    variable("NATS_SUBJECT_PREFIX", None, "Required. The relay listens on everything below it: cms.cache means cms.cache.>"),
    variable("NATS_RELAYED_SUBJECT_PREFIX", None, "Required. Accepted messages are republished below it."),
    variable("NATS_FAILED_SUBJECT_PREFIX", None, "Messages that could not be relayed are published below it, with headers that say why."),
    variable(
        "NATS_QUEUE_GROUP",
        None,
        "Replicas with the same queue group share the work. Order per subject then holds within each replica only.",
    ),
    variable(
        "NATS_PENDING_MESSAGES",
        None,
        "The most messages that may wait; what arrives beyond is dropped, counted and reported. Default: 65536. With NATS_STREAM: the most that are taken from the stream and not settled, by default 1000; the rest stays there.",
    ),
    variable("NATS_PENDING_BYTES", None, "The most bytes of messages that may wait. Default: 64MiB, with NATS_STREAM 16MiB."),
    variable(
        "NATS_STREAM",
        None,
        "JetStream mode: the stream that captures the listened subjects. Messages are acknowledged once they are relayed.",
    ),
    variable(
        "NATS_CONSUMER",
        Some("nats-webhook-relay"),
        "Name of the durable consumer on NATS_STREAM. Each frontend needs its own, the replicas of one share it.",
    ),
    variable(
        "NATS_DELIVER",
        Some("new"),
        "Where a new consumer starts: new, all, last-per-subject, or an age such as 6h. An existing one goes on where it was.",
    ),
    variable("NATS_STREAM_CREATE", Some("false"), "true: create NATS_STREAM when it is missing (for development)."),
    variable(
        "NATS_REPLICAS_SHARE",
        Some("false"),
        "true: replicas work side by side, and order per subject holds within each only. By default one works and the others stand by.",
    ),
    variable("NATS_JETSTREAM_DOMAIN", None, "JetStream domain of NATS_STREAM."),
    variable(
        "NATS_JETSTREAM_API_PREFIX",
        None,
        "Subject prefix of the JetStream API, where it is imported from another account. Default: $JS.API.",
    ),
    variable("WEBHOOK_TIMEOUT", Some("30s"), "Time for one attempt, from connecting to the end of the answer."),
    variable("WEBHOOK_CONNECT_TIMEOUT", Some("5s"), "Time for connecting within one attempt."),
    variable(
        "WEBHOOK_MAX_ATTEMPTS",
        Some("10"),
        "Attempts per message and destination, or unlimited. Between them: 100ms doubling to 30s, with full jitter; Retry-After is honoured up to 5min.",
    ),
    variable(
        "WEBHOOK_RETRY_STATUS",
        None,
        "More statuses to retry, separated by commas (404 during deploys), beside connection errors, time-outs, 408, 425, 429 and 5xx.",
    ),
    secret(
        "WEBHOOK_SECRET",
        &[],
        "Signs every call as Standard Webhooks: whsec_ and the base64 of 24 to 64 bytes. Several, separated by white space, while it is being rotated.",
    ),
    secret(
        "WEBHOOK_HEADERS",
        &[],
        "Headers of every call: name=value,name=value with percent-encoded values. They win over the message's.",
    ),
    variable("WEBHOOK_CA", None, "PEM file with authorities to trust for https destinations, beside the system's."),
    variable(
        "WEBHOOK_CERT",
        None,
        "PEM file with a client certificate, for destinations that ask for one, and what leads to its authority.",
    ),
    variable("WEBHOOK_KEY", None, "PEM file with the private key of WEBHOOK_CERT, not encrypted."),
    variable(
        "MAX_IN_FLIGHT",
        Some("128"),
        "Messages being worked on at once, each of another subject. One that waits for a retry does not count.",
    ),
    variable("SHUTDOWN_GRACE", Some("25s"), "Time to finish what has arrived, on SIGTERM or SIGINT."),
    variable(
        "PLUGINS",
        None,
        "WebAssembly components that shape what is relayed: .wasm files or folders of them, separated by colons. They run in that order, those of a folder by name.",
    ),
    variable("PLUGIN_TIMEOUT", Some("1s"), "Time for one call of a plugin's hook."),
    variable("PLUGIN_MEMORY", Some("128MiB"), "Memory for one instance of a plugin; of each plugin, up to 16 can be at work."),
    variable(
        "PLUGIN_WATCH",
        Some("false"),
        "true: load plugins again when their files change (for development). SIGHUP does it at any time.",
    ),
    variable(
        "PLUGIN_CACHE",
        None,
        "Folder for compiled plugins, which must be the user's own; off compiles at each start. Default: nats-webhook-relay in the user's cache folder.",
    ),
    variable("HTTP_LISTEN", None, "Address for /healthz, /readyz and /metrics, such as 127.0.0.1:9090."),
    variable("LOG_FORMAT", None, "pretty, compact or json. Default: pretty on a terminal, else compact."),
    variable("RUST_LOG", Some("info"), "What is logged: a level, or target=level,... as in tracing-subscriber's EnvFilter."),
];

/// How the relay is set up. Built once at start, never changed.
#[derive(Debug)]
pub struct Config {
    /// The NATS connection.
    pub nats: Nats,
    /// Messages below this prefix are relayed.
    pub listen: Prefix,
    /// Accepted messages are republished below this prefix.
    pub relayed: Prefix,
    /// Messages that could not be relayed are published below this prefix.
    pub failed: Option<Prefix>,
    /// Limits on what waits in the process.
    pub pending: Pending,
    /// The calls to the destinations.
    pub webhook: Webhook,
    /// What shapes messages.
    pub plugins: Plugins,
    /// Messages being worked on at once.
    pub max_in_flight: usize,
    /// Time to finish what has arrived when told to stop.
    pub shutdown_grace: Duration,
    /// Where health and metrics are served.
    pub http_listen: Option<SocketAddr>,
    /// What is logged and how.
    pub log: Log,
}

/// The NATS connection.
#[derive(Debug, Clone)]
pub struct Nats {
    /// Servers to try, without user info.
    pub servers: Vec<ServerAddr>,
    /// How to log in.
    pub login: Login,
    /// What says so, for errors.
    pub login_from: String,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// What inboxes begin with.
    pub inbox_prefix: String,
    /// The context that says some of it.
    pub context: Option<String>,
    /// Core mode: replicas of this name share the work.
    pub queue_group: Option<String>,
    /// JetStream mode.
    pub stream: Option<Stream>,
}

/// The stream to read from, and how.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// The durable consumer's name.
    pub consumer: String,
    /// Where a new consumer starts.
    pub deliver: Deliver,
    /// Whether to create the stream when it is missing.
    pub create: bool,
    /// Whether replicas work side by side.
    pub share: bool,
    /// What the subjects of the JetStream API begin with.
    pub api_prefix: String,
}

impl Stream {
    /// Whether the stream is in another domain or account, which can be out of reach for a while.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.api_prefix != "$JS.API"
    }
}

/// Where a new consumer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deliver {
    /// With what is published from now on.
    New,
    /// With the oldest message of the stream.
    All,
    /// With the newest message of each subject.
    LastPerSubject,
    /// With what was published within this time.
    Within(Duration),
}

/// The most that may wait in the process.
#[derive(Debug, Clone, Copy)]
pub struct Pending {
    /// Messages.
    pub messages: usize,
    /// Bytes of subject, headers and payload.
    pub bytes: usize,
}

/// The calls to the destinations.
#[derive(Debug)]
pub struct Webhook {
    /// All of these must accept a message.
    pub destinations: Vec<Destination>,
    /// The proxy on the way to each of them.
    pub proxies: Vec<Option<Proxy>>,
    /// Time for one attempt.
    pub timeout: Duration,
    /// Time for connecting.
    pub connect_timeout: Duration,
    /// Attempts for each message and destination; `None` is without end.
    pub max_attempts: Option<u32>,
    /// Statuses to retry beside the usual ones.
    pub retry_status: Vec<StatusCode>,
    /// Headers of every call; their values are marked sensitive.
    pub headers: HeaderMap,
    /// What every call is signed with.
    pub keys: Keys,
    /// Whom to trust, and what to identify with.
    pub certificates: Certificates,
}

/// What shapes messages.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Files, and folders of files; none means no plugins.
    pub paths: Vec<PathBuf>,
    /// Time for one call.
    pub timeout: Duration,
    /// Bytes for one instance.
    pub memory: usize,
    /// Whether to load plugins again when their files change.
    pub watch: bool,
    /// Where compiled plugins are kept.
    pub cache: Cache,
    /// The settings of all plugins.
    pub settings: Vec<Setting>,
}

/// Where compiled plugins are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// Nowhere.
    Off,
    /// In the user's cache folder.
    User,
    /// In this folder.
    At(PathBuf),
}

/// One `PLUGIN_<NAME>_<KEY>`.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The variable's name without `PLUGIN_`, and without `_FILE` where it was given as a file.
    pub name: String,
    /// Its value.
    pub value: Secret,
    /// Whether it was given as a file, as secrets are.
    pub from_file: bool,
}

/// What is logged and how.
#[derive(Debug)]
pub struct Log {
    /// The shape of a line.
    pub format: Option<Format>,
    /// `RUST_LOG`.
    pub filter: String,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a person at a terminal.
    Pretty,
    /// One line of text with all fields.
    Compact,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong with the configuration.
#[derive(Debug)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "the configuration has {}:",
            match self.0.len() {
                1 => "a mistake".to_owned(),
                n => format!("{n} mistakes"),
            }
        )?;
        self.0.iter().try_for_each(|mistake| writeln!(f, "  - {mistake}"))?;
        f.write_str("Run with --help for every variable and its default.")
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    /// These mistakes with more lines after them.
    #[must_use]
    pub fn and(mut self, more: Vec<String>) -> Self {
        self.0.extend(more);
        self
    }
}

impl From<Vec<String>> for Mistakes {
    fn from(mistakes: Vec<String>) -> Self {
        Self(mistakes)
    }
}

impl Config {
    /// Reads every variable of [`VARIABLES`].
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn from_environment(environment: &Environment) -> Result<Self, Mistakes> {
        let mut read = Reader { environment, mistakes: Vec::new() };
        let destinations = read.destinations();
        let proxies = read.proxies(destinations.as_deref().unwrap_or_default());
        let nats = read.nats();
        let listen = read.prefix("NATS_SUBJECT_PREFIX", true);
        let relayed = read.prefix("NATS_RELAYED_SUBJECT_PREFIX", true);
        let failed = read.prefix("NATS_FAILED_SUBJECT_PREFIX", false);
        read.loops(listen.as_ref(), relayed.as_ref(), failed.as_ref());
        let pending_messages = read.optional("NATS_PENDING_MESSAGES", "a number of messages from 1 to 10000000", number(1..=10_000_000));
        let pending_bytes = read.optional("NATS_PENDING_BYTES", SIZE, size);
        let timeout = read.required("WEBHOOK_TIMEOUT", DURATION, duration(1));
        let connect_timeout = read.required("WEBHOOK_CONNECT_TIMEOUT", DURATION, duration(1));
        let max_attempts = read.required("WEBHOOK_MAX_ATTEMPTS", "a number from 1 to 1000000, or unlimited", |text| match text {
            "unlimited" => Some(None),
            _ => number(1..=1_000_000)(text).map(Some),
        });
        let retry_status = read.optional("WEBHOOK_RETRY_STATUS", "statuses from 300 to 599 separated by commas, such as 404,409", |text| {
            let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
            parts
                .map(|part| part.parse().ok().filter(|n| (300..600).contains(n)).and_then(|n: u16| StatusCode::from_u16(n).ok()))
                .collect::<Option<Vec<_>>>()
        });
        let keys = read.keys();
        let webhook_headers = read.webhook_headers();
        let certificates = read.certificates("WEBHOOK_CA", "WEBHOOK_CERT", "WEBHOOK_KEY");
        let plugins = read.optional("PLUGINS", "paths separated by colons", |text| {
            Some(std::env::split_paths(text).filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>())
        });
        let plugins = plugins.unwrap_or_default();
        let plugins: Vec<_> = plugins.iter().filter_map(|path| read.path_in("PLUGINS", &path.to_string_lossy())).collect();
        read.mistakes.extend(plugin::files::find(&plugins).err().into_iter().flatten());
        let plugins = read.plugins(plugins);
        let max_in_flight = read.required("MAX_IN_FLIGHT", "a number from 1 to 65536", number(1..=65_536));
        let shutdown_grace = read.required("SHUTDOWN_GRACE", DURATION, duration(0));
        let http_listen = read.optional("HTTP_LISTEN", "an address and port such as 127.0.0.1:9090 or [::]:9090", |text| text.parse().ok());
        let format = read.optional("LOG_FORMAT", "pretty, compact or json", |text| match text {
            "pretty" => Some(Format::Pretty),
            "compact" => Some(Format::Compact),
            "json" => Some(Format::Json),
            _ => None,
        });
        let filter = read.required("RUST_LOG", "a level (error, warn, info, debug, trace) or target=level,...", |text| {
            (EnvFilter::try_new(text).is_ok() && text.split(',').all(is_directive)).then(|| text.to_owned())
        });

        let (most_messages, most_bytes) = match nats.as_ref().is_some_and(|nats| nats.stream.is_some()) {
            true => (1000, 16 << 20),
            false => (65_536, 64 << 20),
        };
        // Every `required` that is None has left a mistake behind.
        let config = || {
            Some(Self {
                nats: nats?,
                listen: listen?,
                relayed: relayed?,
                failed,
                pending: Pending { messages: pending_messages.unwrap_or(most_messages), bytes: pending_bytes.unwrap_or(most_bytes) },
                webhook: Webhook {
                    destinations: destinations?,
                    proxies,
                    timeout: timeout?,
                    connect_timeout: connect_timeout?,
                    max_attempts: max_attempts?,
                    retry_status: retry_status.unwrap_or_default(),
                    headers: webhook_headers,
                    keys,
                    certificates,
                },
                plugins: plugins?,
                max_in_flight: max_in_flight?,
                shutdown_grace: shutdown_grace?,
                http_listen,
                log: Log { format, filter: filter? },
            })
        };
        match config() {
            Some(config) if read.mistakes.is_empty() => Ok(config),
            _ => Err(Mistakes(read.mistakes)),
        }
    }
}

impl Plugins {
    /// The configuration for the plugins of `paths`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn from_environment(environment: &Environment, paths: Vec<PathBuf>) -> Result<Self, Mistakes> {
        let mut read = Reader { environment, mistakes: Vec::new() };
        match read.plugins(paths) {
            Some(plugins) if read.mistakes.is_empty() => Ok(plugins),
            _ => Err(Mistakes(read.mistakes)),
        }
    }
}

const SIZE: &str = "a size such as 512KiB or 64MiB";

fn size(text: &str) -> Option<usize> {
    text.parse::<bytesize::ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok()).filter(|bytes| *bytes > 0)
}

const DURATION: &str = "a duration such as 250ms, 30s or 2min";

fn duration(at_least_ms: u128) -> impl Fn(&str) -> Option<Duration> {
    move |text| humantime::parse_duration(text).ok().filter(|value| value.as_millis() >= at_least_ms && value.as_secs() <= 86_400 * 365)
}

fn number<T: std::str::FromStr + PartialOrd>(range: std::ops::RangeInclusive<T>) -> impl Fn(&str) -> Option<T> {
    move |text| text.parse().ok().filter(|value| range.contains(value))
}

fn is_subject(text: &str) -> Option<String> {
    subject::check(text).is_ok().then(|| text.to_owned())
}

fn domain_api(domain: &str) -> String {
    format!("$JS.{domain}.API")
}

/// Whether a part of `RUST_LOG` says what somebody could mean. A bare word is a target, so that
/// `RUST_LOG=verbose` would silence everything.
fn is_directive(part: &str) -> bool {
    let part = part.trim();
    let levels = ["", "off", "error", "warn", "info", "debug", "trace"];
    part.contains(['=', '[', ':', '_']) || levels.iter().any(|level| part.eq_ignore_ascii_case(level))
}

/// Reads variables one by one and keeps every mistake.
struct Reader<'a> {
    environment: &'a Environment,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    /// The variable's text: by its name, its aliases, their `_FILE` forms, or its default.
    fn text(&mut self, name: &'static str) -> Option<String> {
        let Some(variable) = VARIABLES.iter().find(|variable| variable.name == name) else {
            self.mistakes.push(format!("{name}: read, but missing from the table of variables"));
            return None;
        };
        for name in std::iter::once(&variable.name).chain(variable.aliases) {
            let direct = self.environment.get(name);
            let file = variable.secret.then(|| format!("{name}_FILE")).filter(|file| self.environment.get(file).is_some());
            match (direct, file) {
                (Some(_), Some(file)) => {
                    self.mistakes.push(format!("{name}: both {name} and {file} are set; unset one"));
                    return None;
                }
                (Some(text), None) => return Some(text.to_owned()),
                (None, Some(file)) => return self.file(&file),
                (None, None) => {}
            }
        }
        variable.default.map(str::to_owned)
    }

    fn file(&mut self, name: &str) -> Option<String> {
        let path = self.path_in(name, self.environment.get(name)?)?;
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => self.mistakes.push(format!("{name}: the file that it names is empty")),
            Ok(text) => return Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            // The secret itself may have been put there by mistake.
            Err(error) => self.mistakes.push(format!(
                "{name}: cannot read the file that it names: {error}; it takes a path, and {} takes the value itself",
                name.trim_end_matches("_FILE")
            )),
        }
        None
    }

    /// The path that a variable's text means.
    fn path_in(&mut self, name: &str, text: &str) -> Option<PathBuf> {
        context::path(self.environment, text).map_err(|error| self.mistakes.push(format!("{name}: {error}"))).ok()
    }

    /// The parsed value; a mistake where the text does not parse, None without one where it is unset.
    fn optional<T>(&mut self, name: &'static str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            let secret = VARIABLES.iter().any(|variable| variable.name == name && variable.secret);
            let got = if secret { String::new() } else { format!(", not {text:?}") };
            self.mistakes.push(format!("{name}: expected {expected}{got}"));
        }
        value
    }

    /// As [`Self::optional`], but an unset variable is a mistake too.
    fn required<T>(&mut self, name: &'static str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let before = self.mistakes.len();
        let value = self.optional(name, expected, parse);
        if value.is_none() && self.mistakes.len() == before {
            self.mistakes.push(format!("{name}: required; expected {expected}"));
        }
        value
    }

    fn prefix(&mut self, name: &'static str, required: bool) -> Option<Prefix> {
        const EXPECTED: &str = "a subject prefix such as cms.cache";
        let Some(text) = self.text(name) else {
            if required {
                self.mistakes.push(format!("{name}: required; expected {EXPECTED}"));
            }
            return None;
        };
        Prefix::parse(&text).map_err(|error| self.mistakes.push(format!("{name}: expected {EXPECTED}, not {text:?}: {error}"))).ok()
    }

    /// Refuses prefixes under which a message that the relay publishes would come back to it,
    /// or a failed message would look like a relayed one.
    fn loops(&mut self, listen: Option<&Prefix>, relayed: Option<&Prefix>, failed: Option<&Prefix>) {
        let pairs = [
            ("NATS_RELAYED_SUBJECT_PREFIX", relayed, "NATS_SUBJECT_PREFIX", listen, "the relay would receive what it publishes, a loop"),
            ("NATS_FAILED_SUBJECT_PREFIX", failed, "NATS_SUBJECT_PREFIX", listen, "the relay would receive what it publishes, a loop"),
            (
                "NATS_FAILED_SUBJECT_PREFIX",
                failed,
                "NATS_RELAYED_SUBJECT_PREFIX",
                relayed,
                "failed messages would arrive where accepted ones are expected",
            ),
        ];
        for (name, prefix, other_name, other, why) in pairs {
            if let (Some(prefix), Some(other)) = (prefix, other)
                && prefix.overlaps(other)
            {
                self.mistakes.push(format!("{name}: {prefix} is equal to, below or above {other_name} ({other}): {why}"));
            }
        }
    }

    fn destinations(&mut self) -> Option<Vec<Destination>> {
        const NAME: &str = "WEBHOOK_DESTINATION";
        const EXPECTED: &str = "http:// or https:// URLs separated by white space";
        let text = self.required(NAME, EXPECTED, |text| Some(text.to_owned()))?;
        let mut destinations = Vec::new();
        for (index, url) in text.split_whitespace().enumerate() {
            match Destination::parse(url) {
                // A comma between two would make one URL of them.
                Some(destination) if !url.contains(",http:") && !url.contains(",https:") => destinations.push(destination),
                _ => self.mistakes.push(format!("{NAME}: expected {EXPECTED}; number {} is not one", index + 1)),
            }
        }
        Some(destinations)
    }

    fn proxies(&mut self, destinations: &[Destination]) -> Vec<Option<Proxy>> {
        let mut proxies = Vec::new();
        for destination in destinations {
            match Proxy::of(destination, self.environment) {
                Ok(proxy) => proxies.push(proxy),
                // Several destinations make the same mistake.
                Err(mistake) if self.mistakes.contains(&mistake) => {}
                Err(mistake) => self.mistakes.push(mistake),
            }
        }
        proxies
    }

    fn stream(&mut self, context: Option<&Context>) -> Option<Stream> {
        const NAME: &str = "a name without white space, dots, wildcards and slashes";
        const OTHERS: [&str; 6] = [
            "NATS_CONSUMER",
            "NATS_DELIVER",
            "NATS_STREAM_CREATE",
            "NATS_REPLICAS_SHARE",
            "NATS_JETSTREAM_DOMAIN",
            "NATS_JETSTREAM_API_PREFIX",
        ];
        let is_name = |text: &str| {
            let illegal = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
            (!text.contains(illegal) && text.len() <= 255).then(|| text.to_owned())
        };
        let name = self.optional("NATS_STREAM", NAME, is_name);
        let consumer = self.required("NATS_CONSUMER", NAME, is_name);
        let deliver = self.required("NATS_DELIVER", "new, all, last-per-subject, or an age such as 6h", |text| match text {
            "new" => Some(Deliver::New),
            "all" => Some(Deliver::All),
            "last-per-subject" => Some(Deliver::LastPerSubject),
            age => duration(1)(age).map(Deliver::Within),
        });
        let create = self.required("NATS_STREAM_CREATE", "true or false", |text| text.parse().ok());
        let share = self.required("NATS_REPLICAS_SHARE", "true or false", |text| text.parse().ok());
        let domain = self.optional("NATS_JETSTREAM_DOMAIN", NAME, is_name);
        let prefix = self.optional("NATS_JETSTREAM_API_PREFIX", "a subject prefix such as JS.hub.API", is_subject);
        if domain.is_some() && prefix.is_some() {
            self.mistakes.push("NATS_JETSTREAM_DOMAIN: NATS_JETSTREAM_API_PREFIX is set too; unset one".to_owned());
        }
        if self.environment.get("NATS_STREAM").is_none() {
            let is_default = |name: &str, text| VARIABLES.iter().any(|variable| variable.name == name && variable.default == Some(text));
            for name in OTHERS.iter().filter(|name| self.environment.get(name).is_some_and(|text| !is_default(name, text))) {
                self.mistakes.push(format!("{name}: has no effect without NATS_STREAM; set it, or unset this"));
            }
        }
        let api_prefix = match (prefix, domain) {
            (Some(prefix), _) => prefix,
            (None, Some(domain)) => domain_api(&domain),
            (None, None) => {
                // The command line prefers the domain where a context has both.
                let domain = self.field(context, "jetstream_domain", is_name).map(|domain| domain_api(&domain));
                let prefix = domain.or_else(|| self.field(context, "jetstream_api_prefix", is_subject));
                prefix.unwrap_or_else(|| "$JS.API".to_owned())
            }
        };
        Some(Stream { name: name?, consumer: consumer?, deliver: deliver?, create: create?, share: share?, api_prefix })
    }

    fn plugins(&mut self, paths: Vec<PathBuf>) -> Option<Plugins> {
        let timeout = self.required("PLUGIN_TIMEOUT", DURATION, duration(1));
        let memory = self.required("PLUGIN_MEMORY", SIZE, size);
        let watch = self.required("PLUGIN_WATCH", "true or false", |text| text.parse().ok());
        let cache = match self.text("PLUGIN_CACHE") {
            Some(text) if text == "off" => Some(Cache::Off),
            Some(text) => self.path_in("PLUGIN_CACHE", &text).map(Cache::At),
            None => None,
        };
        let settings = self.plugin_settings();
        Some(Plugins { paths, timeout: timeout?, memory: memory?, watch: watch?, cache: cache.unwrap_or(Cache::User), settings })
    }

    fn plugin_settings(&mut self) -> Vec<Setting> {
        let fixed = |name: &str| VARIABLES.iter().any(|variable| variable.name == name);
        let environment = self.environment;
        let mut settings = Vec::new();
        for variable in environment.names().filter(|name| !fixed(name)) {
            let Some(name) = variable.strip_prefix("PLUGIN_") else { continue };
            let setting = match name.strip_suffix("_FILE") {
                None => environment.get(variable).map(|text| (name, text.to_owned())),
                Some(name) if environment.get(&format!("PLUGIN_{name}")).is_some() => {
                    self.mistakes.push(format!("PLUGIN_{name}: both PLUGIN_{name} and {variable} are set; unset one"));
                    None
                }
                Some(name) => self.file(variable).map(|text| (name, text)),
            };
            if let Some((short, value)) = setting {
                settings.push(Setting { name: short.to_owned(), value: Secret::new(value), from_file: short != name });
            }
        }
        settings
    }

    fn keys(&mut self) -> Keys {
        const NAME: &str = "WEBHOOK_SECRET";
        let read = self.text(NAME).map_or_else(|| Ok(Keys::default()), |text| Keys::parse(&text));
        read.unwrap_or_else(|mistakes| {
            const EXPECTED: &str = "whsec_ and the base64 of 24 to 64 bytes, or several separated by white space";
            self.mistakes.extend(mistakes.iter().map(|mistake| format!("{NAME}: expected {EXPECTED}; {mistake}")));
            Keys::default()
        })
    }

    /// The certificates and the key of the files that these variables name.
    fn certificates(&mut self, ca: &'static str, cert: &'static str, key: &'static str) -> Certificates {
        let authorities = self.pem_file(ca, certificates::authorities).unwrap_or_default();
        let chain = self.pem_file(cert, certificates::certificates);
        let private = self.pem_file(key, certificates::key);
        for (name, other) in [(cert, key), (key, cert)] {
            if self.environment.get(name).is_some() && self.environment.get(other).is_none() {
                self.mistakes.push(format!("{name}: set without {other}; set both or neither"));
            }
        }
        let identity = chain.zip(private).and_then(|(chain, private)| {
            certificates::identity(chain, private).map_err(|error| self.mistakes.push(format!("{cert} and {key}: {error}"))).ok()
        });
        Certificates { authorities, identity }
    }

    /// What `read` finds in the file that a variable names.
    fn pem_file<T>(&mut self, name: &'static str, read: impl Fn(&Path) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        let path = self.path_in(name, &text)?;
        read(&path).map_err(|error| self.mistakes.push(format!("{name}: {error}"))).ok()
    }

    fn webhook_headers(&mut self) -> HeaderMap {
        const EXPECTED: &str = "name=value,name=value with percent-encoded values";
        let mut map = HeaderMap::new();
        let Some(text) = self.text("WEBHOOK_HEADERS") else { return map };
        for (index, entry) in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).enumerate() {
            let parsed = entry.split_once('=').and_then(|(name, value)| {
                let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
                let value = percent_decode_str(value.trim()).collect::<Vec<_>>();
                Some((name, HeaderValue::from_bytes(&value).ok()?))
            });
            match parsed {
                None => self.mistakes.push(format!("WEBHOOK_HEADERS: expected {EXPECTED}; entry {} is not", index + 1)),
                Some((name, _)) if headers::is_framing(&name) || headers::is_ours(&name) => {
                    self.mistakes.push(format!("WEBHOOK_HEADERS: {name} is set by the relay itself"));
                }
                Some((name, mut value)) => {
                    value.set_sensitive(true);
                    map.append(name, value);
                }
            }
        }
        map
    }
}

/// A warning for each set variable that looks like one of ours and is not, with the nearest name.
#[must_use]
pub fn unknown(environment: &Environment) -> Vec<String> {
    let known = || {
        VARIABLES.iter().flat_map(|variable| {
            std::iter::once(&variable.name).chain(variable.aliases).flat_map(|name| {
                let file = variable.secret.then(|| format!("{name}_FILE"));
                std::iter::once((*name).to_owned()).chain(file)
            })
        })
    };
    // With plugins, what begins with PLUGIN_ may be theirs; they look at it when they are loaded.
    let theirs = |name: &str| name.starts_with("PLUGIN_") && environment.get("PLUGINS").is_some();
    let ours = |name: &&str| (name.starts_with("WEBHOOK_") || name.starts_with("PLUGIN")) && !theirs(name);
    let strange = environment.names().filter(ours).filter(|name| known().all(|known| known != **name));
    strange
        .map(|name| {
            let nearest = known().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            format!("{name} is not a variable of this program; the nearest is {}", nearest.unwrap_or_default())
        })
        .collect()
}

/// The part of `--help` that explains the variables.
#[must_use]
pub fn help() -> String {
    let mut text = String::from("Environment variables (also read from .env.local and .env):\n");
    for Variable { name, aliases, default, secret, help } in VARIABLES {
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

    const SECRET: &str = "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==";
    const REQUIRED: [(&str, &str); 4] = [
        ("WEBHOOK_DESTINATION", "http://localhost:3000/hook"),
        ("NATS_HOST", "nats://localhost"),
        ("NATS_SUBJECT_PREFIX", "cms.cache"),
        ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
    ];

    /// What is required, with `more` over it.
    fn read(more: &[(&str, &str)]) -> Result<Config, String> {
        let environment = REQUIRED.iter().chain(more).copied().collect();
        Config::from_environment(&environment).map_err(|mistakes| mistakes.to_string())
    }

    /// What `get` finds in the configuration that has `value` for `name`; `None` where it is refused.
    fn value<T>(name: &str, value: &str, get: impl Fn(Config) -> T) -> Option<T> {
        match read(&[(name, value)]) {
            Ok(config) => Some(get(config)),
            Err(mistakes) => {
                assert!(mistakes.contains(&format!("{name}: expected ")), "{mistakes}");
                None
            }
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let config = read(&[]).unwrap();
        assert_eq!(config.nats.login, Login::Anonymous);
        assert_eq!((config.nats.tls, config.nats.inbox_prefix.as_str(), config.nats.context), (Tls::default(), "_INBOX", None));
        assert_eq!((config.nats.queue_group, config.failed, config.http_listen), (None, None, None));
        assert_eq!((config.pending.messages, config.pending.bytes), (65_536, 64 << 20));
        assert_eq!((config.webhook.timeout, config.webhook.connect_timeout), (Duration::from_secs(30), Duration::from_secs(5)));
        assert_eq!((config.webhook.max_attempts, config.webhook.retry_status.len(), config.webhook.headers.len()), (Some(10), 0, 0));
        assert_eq!((config.max_in_flight, config.shutdown_grace), (128, Duration::from_secs(25)));
        assert_eq!((config.log.format, config.log.filter.as_str()), (None, "info"));
    }

    #[test]
    fn durations_have_units() {
        for (text, expected) in [
            ("250ms", Some(250)),
            ("30s", Some(30_000)),
            ("2min", Some(120_000)),
            ("1h 30m", Some(5_400_000)),
            (" 5s ", Some(5_000)),
            ("1ms", Some(1)),
            ("0s", None),
            ("10us", None),
            ("30", None),
            ("-1s", None),
            ("1.5.5s", None),
            ("2years", None),
            ("99999999999999999999s", None),
            ("soon", None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(value("WEBHOOK_TIMEOUT", text, |config| config.webhook.timeout), expected, "{text}");
            assert_eq!(value("WEBHOOK_CONNECT_TIMEOUT", text, |config| config.webhook.connect_timeout), expected, "{text}");
        }
        assert_eq!(value("SHUTDOWN_GRACE", "0s", |config| config.shutdown_grace), Some(Duration::ZERO), "may be none at all");
        assert_eq!(value("SHUTDOWN_GRACE", "10", |config| config.shutdown_grace), None);
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("512 KiB", Some(512 << 10)),
            ("1MB", Some(1_000_000)),
            ("1000", Some(1_000)),
            ("0", None),
            ("-1MiB", None),
            ("64 pages", None),
            ("MiB", None),
        ] {
            assert_eq!(value("NATS_PENDING_BYTES", text, |config| config.pending.bytes), expected, "{text}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        for (text, expected) in
            [("1", Some(1)), ("65536", Some(65_536)), ("65537", None), ("0", None), ("1.5", None), ("1e3", None), ("x", None)]
        {
            assert_eq!(value("MAX_IN_FLIGHT", text, |config| config.max_in_flight), expected, "{text}");
        }
        for (text, expected) in [
            ("1", Some(Some(1))),
            ("1000000", Some(Some(1_000_000))),
            ("unlimited", Some(None)),
            ("1000001", None),
            ("0", None),
            ("4294967296", None),
        ] {
            assert_eq!(value("WEBHOOK_MAX_ATTEMPTS", text, |config| config.webhook.max_attempts), expected, "{text}");
        }
        for (text, expected) in [("1", Some(1)), ("10000000", Some(10_000_000)), ("10000001", None), ("0", None)] {
            assert_eq!(value("NATS_PENDING_MESSAGES", text, |config| config.pending.messages), expected, "{text}");
        }
    }

    #[test]
    fn statuses_to_retry_are_none_that_mean_success() {
        let statuses = |config: Config| config.webhook.retry_status.iter().map(|status| status.as_u16()).collect::<Vec<_>>();
        for (text, expected) in [
            ("404", Some(vec![404])),
            ("404,409, 410", Some(vec![404, 409, 410])),
            ("301", Some(vec![301])),
            ("200", None),
            ("404,x", None),
            ("600", None),
            ("4xx", None),
        ] {
            assert_eq!(value("WEBHOOK_RETRY_STATUS", text, statuses), expected, "{text}");
        }
    }

    #[test]
    fn destinations_are_one_or_several() {
        let count = |config: Config| config.webhook.destinations.len();
        for (text, expected) in [
            ("http://a/", Some(1)),
            ("http://a/ https://b/x?y=z", Some(2)),
            ("http://a/\n\thttp://b/", Some(2)),
            ("http://a/ ftp://b/", None),
            ("a/hook", None),
        ] {
            assert_eq!(value("WEBHOOK_DESTINATION", text, count), expected, "{text}");
        }
    }

    #[test]
    fn servers_are_one_or_several_without_user_info() {
        let servers = |config: Config| config.nats.servers.iter().map(|server| server.clone().into_inner().to_string()).collect::<Vec<_>>();
        for (text, expected) in [
            ("nats://h", Some(vec!["nats://h"])),
            ("h:4223", Some(vec!["nats://h:4223"])),
            ("nats://a, tls://u:p@b:1,ws://c/path,wss://t@d", Some(vec!["nats://a", "tls://b:1", "ws://c/path", "wss://d/"])),
            ("nats://[::1]:4222", Some(vec!["nats://[::1]:4222"])),
            ("http://h", None),
            ("nats://a,ftp://b", None),
            (",", None),
            ("nats://", None),
        ] {
            let found = value("NATS_HOST", text, servers);
            let expected = expected.map(|servers| servers.into_iter().map(str::to_owned).collect());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn the_login_is_that_of_the_variables_or_else_of_the_url() {
        let password = |user: &str, password: &str| Login::Password { user: user.to_owned(), password: Secret::new(password) };
        for (url, variables, expected) in [
            ("nats://h", &[][..], Login::Anonymous),
            ("nats://h", &[("NATS_USER", "u"), ("NATS_PASS", "p")], password("u", "p")),
            ("nats://h", &[("NATS_USER", "u"), ("NATS_PASSWORD", "p")], password("u", "p")),
            ("nats://h", &[("NATS_USER", "u")], password("u", "")),
            ("nats://a:b@h", &[("NATS_USER", "u"), ("NATS_PASS", "p")], password("u", "p")),
            ("nats://a:b%40%2f@h", &[], password("a", "b@/")),
            ("nats://t%20t@h", &[], Login::Token(Secret::new("t t"))),
            ("nats://g,nats://a:b@h", &[], password("a", "b")),
        ] {
            let config = read(&[&[("NATS_HOST", url)], variables].concat()).unwrap();
            assert_eq!(config.nats.login, expected, "{url} {variables:?}");
        }
        let mistakes = read(&[("NATS_PASS", "p")]).unwrap_err();
        assert!(mistakes.contains("NATS_PASS: set without NATS_USER"), "{mistakes}");
    }

    #[test]
    fn the_first_name_that_is_set_decides_and_files_stand_for_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (newline, plain) = (file("newline", "filed\r\n"), file("plain", "filed"));
        for (variables, expected) in [
            (&[("NATS_PASS", "a"), ("NATS_PASSWORD", "b")][..], "a"),
            (&[("NATS_PASS", ""), ("NATS_PASSWORD", "b")], "b"),
            (&[("NATS_PASS_FILE", &newline)], "filed"),
            (&[("NATS_PASSWORD_FILE", &plain)], "filed"),
            (&[("NATS_PASS_FILE", &plain), ("NATS_PASSWORD", "b")], "filed"),
            (&[("NATS_PASS_FILE", ""), ("NATS_PASSWORD", "b")], "b"),
        ] {
            let config = read(&[&[("NATS_USER", "u")], variables].concat()).unwrap();
            let expected = Login::Password { user: "u".to_owned(), password: Secret::new(expected) };
            assert_eq!(config.nats.login, expected, "{variables:?}");
        }
        // Every secret can come from a file.
        let cases = [
            ("WEBHOOK_DESTINATION", "http://filed/"),
            ("NATS_HOST", "nats://filed"),
            ("NATS_USER", "filed"),
            ("NATS_PASS", "filed"),
            ("WEBHOOK_SECRET", SECRET),
            ("WEBHOOK_HEADERS", "x=filed"),
        ];
        let secrets: BTreeSet<_> = VARIABLES.iter().filter(|variable| variable.secret).map(|variable| variable.name).collect();
        // One way to log in at a time: the others are tried with real servers.
        let others = ["NATS_TOKEN", "NATS_CREDS", "NATS_NKEY", "NATS_JWT", "NATS_SEED"];
        assert_eq!(secrets, cases.iter().map(|(name, _)| *name).chain(others).collect());
        let paths = cases.map(|(name, text)| (format!("{name}_FILE"), file(name, &format!("{text}\n"))));
        let environment = REQUIRED.iter().skip(2).map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).chain(paths).collect();
        let config = Config::from_environment(&environment).map_err(|mistakes| mistakes.to_string()).unwrap();
        assert_eq!(config.webhook.destinations[0].host(), "filed");
        assert_eq!(config.nats.servers[0].host(), "filed");
        assert_eq!(config.nats.login, Login::Password { user: "filed".to_owned(), password: Secret::new("filed") });
        assert_eq!(config.webhook.headers["x"], "filed");
        let call = HeaderMap::from_iter(
            [(headers::WEBHOOK_ID, "a"), (headers::WEBHOOK_TIMESTAMP, "1")].map(|(name, value)| (name, HeaderValue::from_static(value))),
        );
        assert!(config.webhook.keys.sign(&call, b"").is_some());
    }

    #[test]
    fn a_file_is_for_secrets_only() {
        let config = read(&[("MAX_IN_FLIGHT_FILE", "/no/such/file")]).unwrap();
        assert_eq!(config.max_in_flight, 128);
    }

    #[test]
    fn fixed_headers_are_percent_decoded_and_sensitive() {
        let config = read(&[("WEBHOOK_HEADERS", "authorization=Bearer%20a%2Cb, x-two=1,X-Two=2,,empty=, x-eq=a=b,x-utf8=%C3%B6")]).unwrap();
        let headers = config.webhook.headers;
        assert_eq!(headers["authorization"], "Bearer a,b");
        assert_eq!(headers.get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(
            (headers["empty"].as_bytes(), headers["x-eq"].as_bytes(), headers["x-utf8"].as_bytes()),
            (&b""[..], &b"a=b"[..], "ö".as_bytes())
        );
        assert!(headers.values().all(HeaderValue::is_sensitive));
        for (text, expected) in [
            ("x", "entry 1"),
            ("x=1,no value", "entry 2"),
            ("a b=1", "entry 1"),
            ("x=%0a", "entry 1"),
            ("=1", "entry 1"),
            ("Host=h", "host is set by the relay itself"),
            ("content-length=1", "content-length is set by the relay itself"),
            ("webhook-id=1", "webhook-id is set by the relay itself"),
            ("Nats-Subject=1", "nats-subject is set by the relay itself"),
        ] {
            let mistakes = read(&[("WEBHOOK_HEADERS", text)]).unwrap_err();
            assert!(mistakes.contains("WEBHOOK_HEADERS: ") && mistakes.contains(expected), "{text}: {mistakes}");
        }
    }

    #[test]
    fn what_is_read_shows_no_secret_when_it_is_printed() {
        let config = read(&[
            ("WEBHOOK_DESTINATION", "http://u:hunter2@h/?s=hunter2"),
            ("NATS_HOST", "nats://u:hunter2@h"),
            ("WEBHOOK_HEADERS", "authorization=hunter2"),
            ("WEBHOOK_SECRET", SECRET),
            ("HTTP_PROXY", "http://u:hunter2@proxy"),
        ]);
        let shown = format!("{:?}", config.unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"), "{shown}");
    }

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
        let environment: Environment = names.iter().map(|(name, _)| (*name, "x")).chain([("WEBHOOK_EMPTY", " ")]).collect();
        let warnings = unknown(&environment);
        for (name, nearest) in names {
            let found: Vec<_> = warnings.iter().filter(|warning| warning.starts_with(&format!("{name} "))).collect();
            match nearest {
                None => assert!(found.is_empty(), "{found:?}"),
                Some(nearest) => assert!(found.len() == 1 && found[0].contains(&format!("nearest is {nearest}")), "{name}: {warnings:?}"),
            }
        }
        assert_eq!(warnings.len(), 6, "{warnings:?}");
    }

    #[test]
    fn no_name_means_two_things() {
        let mut names = BTreeSet::new();
        for variable in VARIABLES {
            for name in std::iter::once(&variable.name).chain(variable.aliases) {
                assert!(names.insert(*name), "{name} is in the table twice");
            }
        }
    }
}
