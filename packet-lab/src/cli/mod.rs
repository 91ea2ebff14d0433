//! The command line: one file a subcommand.

mod bench;
mod diff;
mod doctor;
mod fuzz;
mod progress;
mod record;
mod relay;
mod replay;
mod run;
mod schema;
mod show;
mod simulate;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::OnceLock,
};

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use serde::Serialize;

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Exit {
    Pass = 0,
    Failure = 1,
    Usage = 2,
    Environment = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A laboratory for XDP programs, here for the LumenLink relay's: sends packets through the real program and judges
/// verdict, bytes, state and counters. Nothing is attached to this machine's interfaces.
#[derive(Debug, Parser)]
#[command(
    name = "packet-lab",
    version,
    after_help = "Examples:\n  \
                  packet-lab doctor                                      what runs here\n  \
                  packet-lab run                                         every scenario, in every backend\n  \
                  packet-lab record incident.pcap --name incidents/one   a test of what happened\n  \
                  packet-lab replay incident.pcap --resign               what the relay does with a capture\n  \
                  packet-lab fuzz --packets 1000000                      the program against the model\n\n\
                  Each command's --help has more.\n\n\
                  Exit codes: 0 pass, 1 failures, 2 wrong usage or a faulty file, 3 this environment cannot run it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure how long the program takes for a packet, by path
    Bench(bench::Args),
    /// Compare two captures packet by packet and field by field, or two text outputs line by line
    Diff(diff::Args),
    /// Say what this environment can run, and what to do where it cannot
    Doctor(doctor::Args),
    /// Send any frames in any order through the oracle and the program, and compare all that they do
    Fuzz(fuzz::Args),
    /// Make a scenario from a capture
    Record(record::Args),
    /// Send what a capture has for the relay through it, and say what became of it
    Replay(replay::Args),
    /// Run scenarios, in every backend
    Run(run::Args),
    /// Print the JSON schema of scenario files
    Schema(schema::Args),
    /// Show a capture packet by packet, or a scenario
    Show(show::Args),
    /// Send many users' packets through the relay over virtual time, under attack, and judge every one
    Simulate(simulate::Args),
    /// Print a shell's completions
    #[command(after_help = "Examples:\n  \
                            packet-lab completions bash > /etc/bash_completion.d/packet-lab\n  \
                            packet-lab completions fish > ~/.config/fish/completions/packet-lab.fish\n  \
                            source <(packet-lab completions zsh)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Reads this process's arguments, does what they say, and reports errors.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Pass,
                _ => Exit::Usage,
            }
            .into();
        }
    };
    let result = match cli.command {
        Command::Bench(args) => bench::execute(&args),
        Command::Diff(args) => diff::execute(&args),
        Command::Doctor(args) => doctor::execute(&args),
        Command::Fuzz(args) => fuzz::execute(&args),
        Command::Record(args) => record::execute(&args),
        Command::Replay(args) => replay::execute(&args),
        Command::Run(args) => run::execute(&args),
        Command::Schema(schema::Args {}) => schema::execute(),
        Command::Show(args) => show::execute(&args),
        Command::Simulate(args) => simulate::execute(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "packet-lab", &mut script);
            line(String::from_utf8_lossy(&script).trim_end());
            Ok(Exit::Pass)
        }
    };
    let exit = result.unwrap_or_else(|(exit, error)| {
        eprintln!("error: {error:#}");
        exit
    });
    match NOT_PRINTED.get() {
        Some(error) => {
            eprintln!("error: writing to standard output: {error}");
            Exit::Environment.into()
        }
        None => exit.into(),
    }
}

/// Why something could not be printed: the exit code tells.
static NOT_PRINTED: OnceLock<io::Error> = OnceLock::new();

/// What a command ends with: how, and why if not well.
type Ended = Result<Exit, (Exit, anyhow::Error)>;

/// Prints a line. A reader that has gone away, such as `head`, is no error.
fn line(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{text}")
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // The first error is the one to tell.
        let _ = NOT_PRINTED.set(error);
    }
}

fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => eprintln!("error: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
