//! `check`: whether this machine can run the relay.

use std::{io::IsTerminal as _, process::ExitCode};

use super::{CliError, exit::Exit, options::Options, output};
use crate::{
    config::Config,
    datapath::preflight::{self, Item, Status},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Loads and attaches nothing. Ends with 0 if a relay would start, else with the code that \
                        `run` would end with."
)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn execute(args: &Args) -> Result<ExitCode, CliError> {
    let checked = Config::load(&args.options.sources())?;
    for warning in &checked.warnings {
        eprintln!("warning: {warning}");
    }
    let items = preflight::check(&checked.config);
    if args.json {
        output::json(&items)?;
    } else {
        let width = items.iter().map(|item| item.name.len()).max().unwrap_or(0);
        for item in &items {
            output::line(&describe(item, width))?;
        }
    }
    Ok(items
        .iter()
        .find(|item| item.status == Status::Failure)
        .map_or(Exit::Success, exit)
        .into())
}

fn describe(item: &Item, width: usize) -> String {
    let (word, colour) = match item.status {
        Status::Ok => ("ok", "32"),
        Status::Warning => ("warning", "33"),
        Status::Failure => ("failure", "31"),
    };
    let word = format!("{word:<7}");
    let word = match std::io::stdout().is_terminal() {
        true => format!("\x1b[{colour}m{word}\x1b[0m"),
        false => word,
    };
    let line = format!("{word}  {:<width$}  {}", item.name, item.found);
    match &item.fix {
        Some(fix) => format!("{line}\n{:9}{:width$}  → {fix}", "", ""),
        None => line,
    }
}

fn exit(item: &Item) -> Exit {
    match item.name {
        "capabilities" => Exit::Permission,
        "interface" | "attached_program" | "addresses" => Exit::Interface,
        "native_xdp" | "mtu" => Exit::NotNative,
        "bpffs" => Exit::Pins,
        "kernel" => Exit::Kernel,
        "sockets" => Exit::Configuration,
        _ => Exit::Failure,
    }
}
