//! The command `plugin`: what authors of plugins need, in the program that will run them.

pub(crate) mod check;
pub(crate) mod new;
pub(crate) mod run;

use crate::config::environment::Environment;
use crate::config::{self, Mistakes};
use crate::observe::log;
use crate::plugin::settings::Settings;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The subcommand `plugin` with its own.
pub(crate) fn command_line() -> Command {
    let files = Arg::new("file").required(true).num_args(1..).value_name("FILE");
    let files = files.value_parser(value_parser!(PathBuf));
    let check = Command::new("check")
        .about(
            "Compiles plugins and prints their hooks, imports, size and limits; exits with 1 when \
             one cannot be used",
        )
        .arg(files.clone().help("Components (.wasm), or folders of them"));
    let run = Command::new("run")
        .about(
            "Sends the payload on stdin through plugins as one message, and prints what would be \
             sent and republished",
        )
        .after_help(RUN_HELP)
        .arg(files.help("Components (.wasm), or folders of them, in the order in which they run"))
        .args(message());
    let lang = Arg::new("lang").long("lang").required(true).value_name("LANGUAGE");
    let name = Arg::new("name").required(true).value_name("NAME");
    let new = Command::new("new")
        .about("Writes a project for a plugin into a new folder")
        .arg(lang.value_parser(new::LANGUAGES).help("The language of the plugin"))
        .arg(name.help("The name of the plugin, such as article-tags"));
    Command::new("plugin")
        .about("For authors of plugins: check, run or create one")
        .subcommand_required(true)
        .subcommands([check, run, new])
}

/// The arguments that describe a message, and how its way is printed.
fn message() -> [Arg; 3] {
    let subject = Arg::new("subject").long("subject").value_name("SUBJECT");
    let header = Arg::new("header").long("header").value_name("NAME:VALUE");
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue);
    [
        subject
            .help("Subject of the message [default: article.42 below the prefix, or NATS_SUBJECT]"),
        header
            .action(ArgAction::Append)
            .help("NATS header of the message; can be given several times"),
        json.help("Prints one JSON object"),
    ]
}

const RUN_HELP: &str = "\
Reads PLUGIN_TIMEOUT, PLUGIN_MEMORY, PLUGIN_CACHE and PLUGIN_<NAME>_<KEY> as the relay does, and
NATS_SUBJECT_PREFIX and NATS_RELAYED_SUBJECT_PREFIX where they are set (otherwise cms.cache and
relayed.cache). Exits with 0 when the message would be relayed, with 1 when a plugin failed, and
with 2 when a plugin rejected it.";

/// Runs the subcommand that was named.
pub(crate) async fn main(matches: &ArgMatches) -> ExitCode {
    match execute(matches).await {
        Ok(code) => code,
        Err(error) => {
            log::complain(format_args!(
                "nats-webhook-relay: {}",
                log::shown(&format!("{error:#}"))
            ));
            ExitCode::from(if error.is::<Mistakes>() { config::EX_USAGE } else { 1 })
        }
    }
}

async fn execute(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    log::start(&log::Settings { format: None, filter: log::FILTER.to_owned() });
    match matches.subcommand() {
        Some(("check", matches)) => check::check(configuration(matches)?.0).await,
        Some(("run", matches)) => {
            let (plugins, environment) = configuration(matches)?;
            run::run(plugins, &environment, matches).await
        }
        Some(("new", matches)) => {
            let argument =
                |name| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
            new::new(argument("lang"), argument("name"), Path::new("."))
        }
        _ => Ok(ExitCode::FAILURE),
    }
}

/// The configuration of the environment for the plugins of the command line.
fn configuration(matches: &ArgMatches) -> anyhow::Result<(Settings, Environment)> {
    let environment = Environment::load(Path::new(".")).map_err(Mistakes::from)?;
    let paths = matches.get_many::<PathBuf>("file").into_iter().flatten().cloned().collect();
    let plugins = config::plugins(&environment, paths)?;
    Ok((plugins, environment))
}
