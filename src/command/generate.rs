//! `generate`: shell completions and the man page, made from the command line's definition. For
//! those who make packages, and hidden from everybody else.

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use std::io::{self, Write};
use std::process::ExitCode;

pub(super) fn command_line() -> Command {
    let shell = Arg::new("shell").required(true).value_parser(value_parser!(Shell));
    Command::new("generate")
        .about("Prints what packages install beside the program")
        .hide(true)
        .subcommand_required(true)
        .subcommand(Command::new("completions").about("For a shell").arg(shell))
        .subcommand(Command::new("man").about("The man page, section 1"))
}

/// Prints what the command line asks for about `program`.
pub(super) fn main(program: Command, matches: &ArgMatches) -> ExitCode {
    let mut text = Vec::new();
    let written = match matches.subcommand() {
        Some(("completions", matches)) => {
            let (mut program, shell) = (program, matches.get_one::<Shell>("shell").copied());
            let name = program.get_name().to_owned();
            shell.map(|shell| clap_complete::generate(shell, &mut program, name, &mut text));
            Ok(())
        }
        _ => clap_mangen::Man::new(program).render(&mut text),
    };
    match written.and_then(|()| io::stdout().write_all(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
