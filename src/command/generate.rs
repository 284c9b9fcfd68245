//! `generate`: shell completions and man pages, made from the command line's definition. For those
//! who make packages, and hidden from everybody else.

use crate::observe::log;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) fn command_line() -> Command {
    let shell = Arg::new("shell").required(true).value_parser(value_parser!(Shell));
    let folder = Arg::new("folder").required(true).value_parser(value_parser!(PathBuf));
    Command::new("generate")
        .about("Makes what packages install beside the program")
        .hide(true)
        .subcommand_required(true)
        .subcommand(Command::new("completions").about("Prints those for a shell").arg(shell))
        .subcommand(Command::new("man").about("Writes man pages into a folder").arg(folder))
}

/// Makes what the command line asks for about `program`.
pub(super) fn main(program: Command, matches: &ArgMatches) -> ExitCode {
    match make(program, matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::complain(format_args!("nats-webhook-relay: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn make(program: Command, matches: &ArgMatches) -> io::Result<()> {
    match matches.subcommand() {
        Some(("completions", matches)) => {
            let (mut program, mut text) = (program, Vec::new());
            let name = program.get_name().to_owned();
            if let Some(shell) = matches.get_one::<Shell>("shell") {
                clap_complete::generate(*shell, &mut program, name, &mut text);
            }
            io::stdout().write_all(&text)?;
        }
        Some((_, matches)) => {
            if let Some(folder) = matches.get_one::<PathBuf>("folder") {
                clap_mangen::generate_to(program, folder)?;
            }
        }
        None => {}
    }
    Ok(())
}
