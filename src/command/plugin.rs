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
#[must_use]
pub(crate) fn command_line() -> Command {
    let files = Arg::new("file")
        .required(true)
        .num_args(1..)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf));
    Command::new("plugin")
        .about("For authors of plugins: check, run or begin one")
        .subcommand_required(true)
        .subcommand(
            Command::new("check")
                .about("Compiles plugins and prints their hooks, imports, size and limits; exits with 1 when one can not be used")
                .arg(files.clone().help("Components (.wasm), or folders of them")),
        )
        .subcommand(
            Command::new("run")
                .about("Sends the payload on stdin through plugins as one message, and prints what would be sent and republished")
                .after_help(RUN_HELP)
                .arg(files.help("Components (.wasm), or folders of them, in the order in which they run"))
                .arg(
                    Arg::new("subject")
                        .long("subject")
                        .value_name("SUBJECT")
                        .help("The message's subject [default: article.42 below the prefix]"),
                )
                .arg(
                    Arg::new("header")
                        .long("header")
                        .value_name("NAME:VALUE")
                        .action(ArgAction::Append)
                        .help("A NATS header of the message; may be given several times"),
                )
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Prints one JSON object")),
        )
        .subcommand(
            Command::new("new")
                .about("Writes a project for a plugin into a new folder")
                .arg(Arg::new("lang").long("lang").required(true).value_name("LANGUAGE").value_parser(new::LANGUAGES).help("Its language"))
                .arg(Arg::new("name").required(true).value_name("NAME").help("Its name, such as article-tags")),
        )
}

const RUN_HELP: &str = "\
Reads PLUGIN_TIMEOUT, PLUGIN_MEMORY, PLUGIN_CACHE and PLUGIN_<NAME>_<KEY> as the relay does, and
NATS_SUBJECT_PREFIX and NATS_RELAYED_SUBJECT_PREFIX where they are set (cms.cache and relayed.cache otherwise).
Exits with 0 when the message would be relayed, with 1 when a plugin failed, and with 2 when one rejected it.";

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
