//! The configuration: every variable, read into the settings that each room owns.
//!
//! All mistakes are found in one pass and reported together, each naming its variable and what
//! is expected. No room below knows where its settings come from.

pub mod context;
pub mod environment;
mod exchange;
mod nats;
mod plugin;
mod reader;
mod resync;
mod source;
mod variables;
mod webhook;

pub use crate::config::variables::{
    GATEWAY_VARIABLES, SERVE_VARIABLES, VARIABLES, Variable, help, unknown,
};
pub(crate) use crate::config::variables::{help_of, unknown_of};

use crate::config::environment::Environment;
use crate::config::reader::{DURATION, Reader, duration, number};
use crate::config::variables::{
    COALESCE, COALESCE_WINDOW, HTTP_LISTEN, LOG_FORMAT, MAX_IN_FLIGHT, NATS_FAILED_SUBJECT_PREFIX,
    NATS_RELAYED_SUBJECT, NATS_RELAYED_SUBJECT_PREFIX, NATS_SUBJECT, NATS_SUBJECT_PREFIX,
    READY_MAX_LAG, RUST_LOG, SHUTDOWN_GRACE,
};
use crate::observe::log::{self, Format};
use crate::relay::merge::{self, LONGEST_WINDOW, Which};
use crate::relay::{self, MOST_IN_FLIGHT};
use crate::source::Intake;
use crate::subject::{Prefix, Subjects};
use crate::webhook::destination::Destination;
use crate::webhook::proxy::Proxy;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// The exit code for a wrong configuration or command line (`EX_USAGE` of sysexits.h).
pub(crate) const EX_USAGE: u8 = 64;

/// How the relay is set up. Built once at start, never changed.
#[derive(Debug)]
pub struct Config {
    pub(crate) nats: crate::nats::settings::Settings,
    pub(crate) source: crate::source::Settings,
    pub(crate) webhook: crate::webhook::Settings,
    pub(crate) plugins: crate::plugin::settings::Settings,
    pub(crate) relay: relay::Settings,
    /// Where health and metrics are served.
    pub(crate) http_listen: Option<SocketAddr>,
    /// How old a message may be while the relay counts as ready.
    pub(crate) ready_max_lag: Option<Duration>,
    pub(crate) log: log::Settings,
}

/// Everything that is wrong with the configuration.
#[derive(Debug)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has a mistake:")?,
            n => writeln!(f, "the configuration has {n} mistakes:")?,
        }
        self.0.iter().try_for_each(|mistake| writeln!(f, "  - {mistake}"))?;
        f.write_str("Run with --help for every variable and its default.")
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    /// These mistakes with more lines after them.
    pub(crate) fn and(mut self, more: Vec<String>) -> Self {
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
    /// Reads every variable.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn from_environment(environment: &Environment) -> Result<Self, Mistakes> {
        let mut read = Reader::new(environment);
        let webhook = read.webhook();
        let connection = read.connection();
        let nats = read.nats(&connection);
        let intake = read.intake(connection.context.as_ref());
        let relay = read.relay(&intake);
        let limits = read.limits(&intake);
        let plugins = read.plugins();
        let expected = "an address and port such as 127.0.0.1:9090 or [::]:9090";
        let http_listen = read.optional(&HTTP_LISTEN, expected, |text| text.parse().ok());
        let ready_max_lag = read.optional(&READY_MAX_LAG, DURATION, duration(1));
        let log = read.log();
        // Every part that is `None` has left a mistake behind.
        match (webhook, nats, relay) {
            (Some(webhook), Some(nats), Some(relay)) if read.mistakes.is_empty() => {
                let listen = relay.listen.clone();
                let source = crate::source::Settings { listen, intake, limits };
                Ok(Self { nats, source, webhook, plugins, relay, http_listen, ready_max_lag, log })
            }
            _ => Err(Mistakes(read.mistakes)),
        }
    }
}

/// The settings of the plugins of `paths`, for commands that need nothing else.
///
/// # Errors
/// All mistakes at once.
pub(crate) fn plugins(
    environment: &Environment,
    paths: Vec<PathBuf>,
) -> Result<crate::plugin::settings::Settings, Mistakes> {
    let mut read = Reader::new(environment);
    let plugins = read.plugins_of(paths);
    if read.mistakes.is_empty() { Ok(plugins) } else { Err(Mistakes(read.mistakes)) }
}

/// What `gateway` and `serve` need beside their own settings.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) nats: crate::nats::settings::Settings,
    /// Time to finish what is under way when told to stop.
    pub(crate) grace: Duration,
    pub(crate) http_listen: Option<SocketAddr>,
    pub(crate) log: log::Settings,
}

/// Reads the settings of a subcommand with `own`, and what it shares with the relay.
///
/// # Errors
/// All mistakes at once.
fn subcommand<T>(
    environment: &Environment,
    own: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Result<(Shared, T), Mistakes> {
    let mut read = Reader::new(environment);
    let own = own(&mut read);
    let connection = read.connection();
    let nats = read.nats(&connection);
    let grace = read.or(&SHUTDOWN_GRACE, DURATION, duration(0), relay::GRACE);
    let expected = "an address and port such as 127.0.0.1:9090 or [::]:9090";
    let http_listen = read.optional(&HTTP_LISTEN, expected, |text| text.parse().ok());
    let log = read.log();
    match (own, nats) {
        (Some(own), Some(nats)) if read.mistakes.is_empty() => {
            Ok((Shared { nats, grace, http_listen, log }, own))
        }
        _ => Err(Mistakes(read.mistakes)),
    }
}

pub(crate) fn gateway(
    environment: &Environment,
) -> Result<(Shared, crate::gateway::Settings), Mistakes> {
    subcommand(environment, |read| read.gateway())
}

/// Of a backend: its settings, and how it is reached.
pub(crate) type Backend = (crate::serve::Settings, Destination, Option<Proxy>);

pub(crate) fn serve(environment: &Environment) -> Result<(Shared, Backend), Mistakes> {
    subcommand(environment, |read| read.serve())
}

impl Reader<'_> {
    fn relay(&mut self, intake: &Intake) -> Option<relay::Settings> {
        let (listen, relayed) = self.subjects();
        let failed = self.prefix(&NATS_FAILED_SUBJECT_PREFIX);
        self.loops(listen.as_ref(), relayed.as_ref(), failed.as_ref());
        let expected = format!("a number from 1 to {MOST_IN_FLIGHT}");
        let most = number(1..=MOST_IN_FLIGHT);
        let max_in_flight = self.or(&MAX_IN_FLIGHT, &expected, most, relay::MAX_IN_FLIGHT);
        let grace = self.or(&SHUTDOWN_GRACE, DURATION, duration(0), relay::GRACE);
        let merge = self.merge();
        let resync = self.resync(listen.as_ref(), intake);
        let (listen, relayed) = (listen?, relayed?);
        Some(relay::Settings { listen, relayed, failed, max_in_flight, merge, resync, grace })
    }

    fn merge(&mut self) -> Option<merge::Settings> {
        let which = |text: &str| match text {
            "true" => Some(Some(Which::Equal)),
            "subject" => Some(Some(Which::Subject)),
            "false" => Some(None),
            _ => None,
        };
        let which = self.or(&COALESCE, "true, subject or false", which, None);
        let expected = "a duration up to 10s, such as 100ms";
        let window = |text: &str| duration(0)(text).filter(|window| *window <= LONGEST_WINDOW);
        let window = self.optional(&COALESCE_WINDOW, expected, window);
        if which.is_none() && window.is_some_and(|window| !window.is_zero()) {
            self.mistake("COALESCE_WINDOW: has no effect without COALESCE; set it, or unset this");
        }
        Some(merge::Settings { which: which?, window: window.unwrap_or_default() })
    }

    /// What to listen on and what to republish on: prefixes, or one exact subject each.
    fn subjects(&mut self) -> (Option<Subjects>, Option<Subjects>) {
        let exact = [&NATS_SUBJECT, &NATS_RELAYED_SUBJECT];
        let prefixes = [&NATS_SUBJECT_PREFIX, &NATS_RELAYED_SUBJECT_PREFIX];
        let Some(given) = exact.into_iter().find(|variable| self.is_set(variable)) else {
            let [listen, relayed] = prefixes.map(|variable| self.required_prefix(variable));
            return (listen.map(Subjects::Below), relayed.map(Subjects::Below));
        };
        for prefix in prefixes {
            if self.is_set(prefix) {
                self.mistake(format!("{}: {} is set too; unset one", given.name, prefix.name));
            }
        }
        let expected = "a subject such as feathers-sync";
        let [listen, relayed] = exact.map(|variable| self.required_tokens(variable, expected));
        (listen.map(Subjects::Exact), relayed.map(Subjects::Exact))
    }

    /// Refuses subjects under which a message that the relay publishes would come back to it,
    /// or a failed message would look like a relayed one.
    fn loops(
        &mut self,
        listen: Option<&Subjects>,
        relayed: Option<&Subjects>,
        failed: Option<&Prefix>,
    ) {
        const LOOP: &str = "the relay would receive what it publishes, a loop";
        const MIXED: &str = "failed messages would arrive where accepted ones are expected";
        let failed = failed.cloned().map(Subjects::Below);
        let failed = (NATS_FAILED_SUBJECT_PREFIX.name, failed.as_ref());
        let name = |below: &Variable, exact: &Variable| match listen.or(relayed) {
            Some(Subjects::Exact(_)) => exact.name,
            _ => below.name,
        };
        let listened = (name(&NATS_SUBJECT_PREFIX, &NATS_SUBJECT), listen);
        let relayed = (name(&NATS_RELAYED_SUBJECT_PREFIX, &NATS_RELAYED_SUBJECT), relayed);
        let may_reach = |one: Option<&Subjects>, other: Option<&Subjects>| {
            one.zip(other).is_some_and(|(one, other)| one.may_reach(&other.pattern()))
        };
        let pairs = [
            (relayed, listened, may_reach(relayed.1, listened.1), LOOP),
            (failed, listened, may_reach(failed.1, listened.1), LOOP),
            (failed, relayed, may_reach(relayed.1, failed.1), MIXED),
        ];
        for ((name, subjects), (other, others), is_wrong, why) in pairs {
            if let (Some(subjects), Some(others)) = (subjects, others)
                && is_wrong
            {
                self.mistake(format!(
                    "{name}: {subjects} is equal to, below or above {other} ({others}): {why}"
                ));
            }
        }
    }

    fn log(&mut self) -> log::Settings {
        let format = self.optional(&LOG_FORMAT, "pretty, compact or json", |text| match text {
            "pretty" => Some(Format::Pretty),
            "compact" => Some(Format::Compact),
            "json" => Some(Format::Json),
            _ => None,
        });
        let expected = "a level (error, warn, info, debug, trace) or target=level,...";
        let filter = |text: &str| {
            let is_good = EnvFilter::try_new(text).is_ok() && text.split(',').all(is_directive);
            is_good.then(|| text.to_owned())
        };
        let filter = self.or(&RUST_LOG, expected, filter, log::FILTER.to_owned());
        log::Settings { format, filter }
    }
}

/// Whether a part of `RUST_LOG` says what somebody could mean. A bare word is a target, so that
/// `RUST_LOG=verbose` would silence everything.
fn is_directive(part: &str) -> bool {
    let part = part.trim();
    let levels = ["", "off", "error", "warn", "info", "debug", "trace"];
    part.contains(['=', '[', ':', '_'])
        || levels.iter().any(|level| part.eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests;
