//! The command line: a table of contents of what the program does from start to exit.

mod check;
mod gateway;
mod generate;
mod healthcheck;
mod plugin;
mod process;
mod serve;
mod setup;

use crate::command::process::{raise_file_limit, stop_signal, unless};
use crate::command::setup::Publishing;
use crate::config::environment::Environment;
use crate::config::{self, Backend, Config, EX_USAGE, Mistakes, Shared};
use crate::nats::link::Link;
use crate::observe::monitor::{self, Readiness};
use crate::observe::process as process_metrics;
use crate::observe::supervisor::{self, Phase};
use crate::observe::{Observer, log};
use crate::otlp::Traces;
use crate::pending::Pending;
use crate::plugin::Plugins;
use crate::relay::resync::{Reason, Resync};
use crate::relay::{Relay, intake};
use crate::source::stream::Parts;
use crate::source::{Intake, Source};
use clap::{ArgMatches, Command};
use rustix::process::{getpid, kill_process};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Runs the program with the arguments of a command line.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let code = execute(arguments);
    log::end();
    code
}

fn execute(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    process_metrics::started();
    let everything = command_line().subcommand(generate::command_line());
    let matches = match everything.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::complain(format_args!("nats-webhook-relay: cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // For all clients; a second call would find it installed, which is as good.
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
    match matches.subcommand() {
        Some(("plugin", matches)) => return runtime.block_on(plugin::main(matches)),
        Some(("healthcheck", _)) => return runtime.block_on(healthcheck::main()),
        Some(("generate", matches)) => return generate::main(command_line(), matches),
        _ => {}
    }
    let is_check = matches.subcommand_name() == Some("check");
    let (task, unknown) = match Task::read(&matches) {
        Ok(task) => task,
        Err(mistakes) => {
            log::complain(format_args!("nats-webhook-relay: {mistakes}"));
            return ExitCode::from(EX_USAGE);
        }
    };
    log::start(task.log());
    unknown.iter().for_each(|variable| warn!(variable, "unknown variable"));
    let result = runtime.block_on(task.run(is_check));
    // Name look-ups may still block threads; nothing is owed to them.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_check => {
            let error = log::shown(&format!("{error:#}"));
            log::complain(format_args!("nats-webhook-relay: {error}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            error!(error = format!("{error:#}"), "ended with an error");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for, with its settings.
enum Task {
    Relay(Box<Config>),
    Gateway(Box<(Shared, crate::gateway::Settings)>),
    Serve(Box<(Shared, Backend)>),
}

impl Task {
    /// The task, and warnings about variables that are unknown.
    fn read(matches: &ArgMatches) -> Result<(Self, Vec<String>), Mistakes> {
        let environment = Environment::load(Path::new("."))?;
        let name = match matches.subcommand() {
            Some(("check", matches)) => matches.subcommand_name(),
            Some((name, _)) => Some(name),
            None => None,
        };
        let of = |variables: &[_], prefix: &str| {
            config::unknown_of(&environment, variables, |name| name.starts_with(prefix))
        };
        let (task, unknown) = match name {
            Some("gateway") => (
                config::gateway(&environment).map(|gateway| Self::Gateway(Box::new(gateway))),
                of(config::GATEWAY_VARIABLES, "GATEWAY_"),
            ),
            Some("serve") => (
                config::serve(&environment).map(|serve| Self::Serve(Box::new(serve))),
                of(config::SERVE_VARIABLES, "SERVE_"),
            ),
            _ => (
                Config::from_environment(&environment).map(|config| Self::Relay(Box::new(config))),
                config::unknown(&environment),
            ),
        };
        match task {
            Ok(task) => Ok((task, unknown)),
            Err(mistakes) => Err(mistakes.and(unknown)),
        }
    }

    fn log(&self) -> &log::Settings {
        match self {
            Self::Relay(config) => &config.log,
            Self::Gateway(gateway) => &gateway.0.log,
            Self::Serve(serve) => &serve.0.log,
        }
    }

    async fn run(self, is_check: bool) -> anyhow::Result<()> {
        match self {
            Self::Relay(config) if is_check => check::check(&config).await,
            Self::Relay(config) => run(&config).await,
            Self::Gateway(gateway) => {
                let (shared, settings) = *gateway;
                match is_check {
                    true => gateway::check(&shared, &settings).await,
                    false => gateway::run(&shared, settings).await,
                }
            }
            Self::Serve(serve) => {
                let (shared, backend) = *serve;
                match is_check {
                    true => serve::check(&shared, &backend).await,
                    false => serve::run(&shared, backend).await,
                }
            }
        }
    }
}

/// One thread: what it does per message is short, waking other threads would cost more than
/// they would gain, and the order of events from NATS is kept (see `nats::round_trip`).
/// Under load it looks for network events less often than by default, and finds more at once.
fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().event_interval(256).enable_all().build()
}

fn command_line() -> Command {
    Command::new("nats-webhook-relay")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "POSTs NATS messages to a webhook and republishes each one only after the webhook has \
             accepted it.",
        )
        .after_help(config::help())
        .subcommand(
            Command::new("check")
                .about(
                    "Validates the configuration, connects to NATS, prints what would be relayed \
                     where, and exits",
                )
                .subcommand(Command::new("gateway").about("The same for gateway"))
                .subcommand(Command::new("serve").about("The same for serve")),
        )
        .subcommand(
            Command::new("gateway")
                .about("Sends HTTP requests to NATS, and answers with the reply or a confirmation")
                .after_help(config::help_of(config::GATEWAY_VARIABLES) + SHARED),
        )
        .subcommand(
            Command::new("serve")
                .about("Answers NATS requests by calling an HTTP backend")
                .after_help(config::help_of(config::SERVE_VARIABLES) + SHARED),
        )
        .subcommand(
            Command::new("healthcheck")
                .about("Asks the relay on HTTP_LISTEN whether it is alive; exits with 1 when not"),
        )
        .subcommand(plugin::command_line())
}

/// What `gateway` and `serve` share with the relay.
const SHARED: &str = "
The variables of the connection (NATS_HOST, NATS_CREDS, NATS_CONTEXT ...), SHUTDOWN_GRACE,
HTTP_LISTEN, LOG_FORMAT and RUST_LOG mean what they mean for the relay:
see nats-webhook-relay --help.
";

/// Relays until SIGTERM or SIGINT.
async fn run(config: &Config) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    tokio::spawn(log::tell_dropped());
    raise_file_limit();
    let pending = Pending::default();
    let resync = config.relay.resync.as_ref().map(Resync::new);
    let listeners = resync.iter().map(Resync::listener).collect();
    let traces = config.traces.as_ref().map(Traces::start).transpose()?;
    let observer = Observer::new(&pending, traces.as_ref().map(Traces::tracer), listeners);
    let readiness = Readiness::default();
    announce(config);
    if let Some(address) = config.http_listen {
        monitor::start(address, observer.clone(), readiness.clone()).await?;
    }
    let (webhook, resync_webhook) = setup::webhooks(config, &observer)?;
    let loaded = load_plugins(config, &observer);
    let Some(plugins) = unless(stop.as_mut(), loaded).await.transpose()? else {
        info!("stopped before the plugins were loaded");
        return Ok(());
    };
    let connected = async {
        let link = Link::open(&config.nats, &observer).await?;
        let publishing = Publishing::open(config, plugins.as_deref(), &link, &observer).await?;
        let Publishing { round_trips, publisher, capture } = publishing;
        let (observer, pending) = (&observer, &pending);
        let parts = Parts { link: &link, round_trips: &round_trips, capture, observer, pending };
        let source = Source::open(&config.source, &config.relay.relayed, parts).await?;
        anyhow::Ok((link, publisher, source))
    };
    let connected = unless(stop.as_mut(), connected).await.transpose()?;
    let Some((link, publisher, source)) = connected else {
        info!("stopped before NATS could be reached");
        return Ok(());
    };
    ready(config, &link, &observer, &readiness).await;

    let (settings, closing) = (&config.relay, plugins.clone());
    let relay = Relay::new(settings, plugins, webhook, publisher, &link, &observer, &pending);
    let relay = Arc::new(relay);
    observer.metrics().show(relay.gauges());
    if let Some(resync) = &resync {
        // What was published before this is a gap.
        resync.notice(Reason::Start, None);
        tokio::spawn(resync.clone().run(relay.clone(), resync_webhook));
    }
    // A stream is asked for no more than there is room for.
    let is_kept = matches!(config.source.intake, Intake::Stream(_));
    let limits = (!is_kept).then_some(config.source.limits);
    let result = intake::run(settings, limits, source, &relay, &observer, &pending, stop).await;
    close(resync, closing, traces).await;
    result
}

/// Ends what goes on beside relaying.
async fn close(resync: Option<Arc<Resync>>, plugins: Option<Arc<Plugins>>, traces: Option<Traces>) {
    if let Some(resync) = resync {
        resync.finish().await;
    }
    if let Some(plugins) = plugins {
        plugins.close().await;
    }
    if let Some(traces) = traces {
        traces.finish().await;
    }
}

/// Says that messages can arrive, and has `/readyz` answer from then on.
async fn ready(config: &Config, link: &Link, observer: &Observer, readiness: &Readiness) {
    let (subscribed, reading, most) = (link.clone(), observer.clone(), config.ready_max_lag);
    let _ = readiness.set(Box::new(move || {
        subscribed.can_receive()?;
        monitor::lag(reading.metrics().reading().oldest, most)
    }));
    let server = link.client().await.1.server_info().version;
    info!(from = config.relay.listen.pattern(), server, "ready");
    supervisor::tell(Phase::Ready);
}

/// Says what is going to be relayed.
fn announce(config: &Config) {
    let destinations = config.webhook.destinations.iter();
    let destinations: Vec<_> =
        destinations.map(|(destination, _)| destination.to_string()).collect();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        from = config.relay.listen.pattern(),
        to = destinations.join(" "),
        relayed = config.relay.relayed.pattern(),
        "starting"
    );
    if let Some(context) = &config.nats.context {
        info!(context, "the connection settings come from a context of the nats command line");
    }
}

/// Loads the plugins, which from then on are loaded again on SIGHUP and where they are watched.
async fn load_plugins(
    config: &Config,
    observer: &Observer,
) -> anyhow::Result<Option<Arc<Plugins>>> {
    // From the start on, or a reload that comes early would end the relay.
    let has_plugins = !config.plugins.paths.is_empty();
    let hangup = has_plugins.then(|| signal(SignalKind::hangup())).transpose()?;
    let plugins = Plugins::load(&config.plugins, observer).await?.map(Arc::new);
    if let (Some(plugins), Some(hangup)) = (&plugins, hangup) {
        info!(plugins = plugins.describe().join(", "), "plugins loaded");
        tokio::spawn(reload(plugins.clone(), hangup));
    }
    Ok(plugins)
}

/// Loads plugins again on SIGHUP and, with `PLUGIN_WATCH`, when their files have changed.
async fn reload(plugins: Arc<Plugins>, mut hangup: Signal) {
    let at_terminal = std::io::stderr().is_terminal();
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // What the signal meant first: the terminal was closed.
                if at_terminal && !std::io::stderr().is_terminal() {
                    let _ = kill_process(getpid(), rustix::process::Signal::TERM);
                    return;
                }
            }
            () = plugins.changed() => {}
        }
        supervisor::tell(Phase::Reloading);
        plugins.reload().await;
        supervisor::tell(Phase::Ready);
    }
}
