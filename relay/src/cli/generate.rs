//! `completions` and `man`, both made from the command line's own definition.

use std::{io, path::PathBuf, process::ExitCode};

use clap::Command;
use clap_complete::Shell;

use super::CliError;

const NAME: &str = "lumenlink-relay";

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lumenlink-relay completions bash > /etc/bash_completion.d/lumenlink-relay")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lumenlink-relay man | man -l -\n  lumenlink-relay man --dir /usr/local/share/man/man1"
)]
pub struct ManArgs {
    /// Write the page of every command into this folder
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs, command: &mut Command) -> Result<ExitCode, CliError> {
    clap_complete::generate(args.shell, command, NAME, &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &ManArgs, command: Command) -> Result<ExitCode, CliError> {
    let written = match &args.dir {
        Some(dir) => std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir)),
        None => clap_mangen::Man::new(command).render(&mut io::stdout()),
    };
    match written {
        Err(source) if args.dir.is_some() || source.kind() != io::ErrorKind::BrokenPipe => Err(CliError::File {
            action: "writing the manual to",
            path: args
                .dir
                .as_ref()
                .map_or("standard output".into(), |dir| dir.display().to_string()),
            source,
        }),
        _ => Ok(ExitCode::SUCCESS),
    }
}
