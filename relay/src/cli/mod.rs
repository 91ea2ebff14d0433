//! The command line: one file a subcommand.

mod block;
mod check;
mod config;
mod connect;
mod detach;
mod exit;
mod generate;
mod options;
mod output;
mod ping;
mod reload;
mod run;
mod status;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

pub use self::exit::CliError;
use self::{exit::Exit, options::Options};

/// Forwards authenticated UDP packets from inside the kernel, by XDP.
#[derive(Debug, Parser)]
#[command(name = "lumenlink-relay", version, args_conflicts_with_subcommands = true, after_long_help = Exit::help())]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay; also what happens without a command
    Run(run::Args),
    /// Look whether this machine can run the relay, and say what to do where it cannot
    Check(check::Args),
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Add, list, show, remove and import users of the running relay
    #[command(subcommand)]
    User(user::Command),
    /// Block sources, by address or prefix
    #[command(subcommand)]
    Block(block::Command),
    /// Show what the running relay does
    Status(status::Args),
    /// Have the running relay read its configuration again
    Reload(reload::Args),
    /// Take off a program that `xdp.persist` left forwarding
    Detach(detach::Args),
    /// Be a client: a local UDP port in front of the user's destination
    Connect(connect::Args),
    /// Ask the relay for an answer, with a grant
    Ping(ping::Args),
    /// Print a shell's completions
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write all of them into a folder
    Man(generate::ManArgs),
}

/// Reads this process's arguments, does what they say, and reports errors.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => Exit::Usage.into(),
            };
        }
    };
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit().into()
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode, CliError> {
    let command = cli.command.unwrap_or(Command::Run(run::Args { options: cli.run }));
    match command {
        // These need no runtime.
        Command::Check(args) => check::execute(&args),
        Command::Config(command) => config::execute(&command),
        Command::Detach(args) => detach::execute(&args),
        Command::Completions(args) => generate::completions(&args, &mut Cli::command()),
        Command::Man(args) => generate::man(&args, Cli::command()),
        command => {
            let runtime = tokio::runtime::Runtime::new().map_err(CliError::other)?;
            runtime.block_on(execute_async(command))
        }
    }
}

async fn execute_async(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Run(args) => run::execute(args).await,
        Command::User(command) => user::execute(command).await,
        Command::Block(command) => block::execute(command).await,
        Command::Status(args) => status::execute(args).await,
        Command::Reload(args) => reload::execute(args).await,
        Command::Connect(args) => connect::execute(args).await,
        Command::Ping(args) => ping::execute(args).await,
        Command::Check(_) | Command::Config(_) | Command::Detach(_) | Command::Completions(_) | Command::Man(_) => {
            unreachable!("done without a runtime")
        }
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
