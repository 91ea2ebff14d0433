//! `detach`: takes off a program that was left forwarding.

use std::process::ExitCode;

use serde_json::json;

use super::{CliError, options::Options, output};
use crate::{config::Config, datapath};

#[derive(Debug, clap::Args)]
#[command(after_help = "Replay windows, rates, client addresses and counters go with it; users stay in the store.")]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn execute(args: &Args) -> Result<ExitCode, CliError> {
    let dir = Config::pin_dir(&args.options.sources())?;
    let detached = datapath::detach_pins(&dir)?;
    if args.json {
        output::json(&json!({ "pin_dir": dir, "detached": detached }))?;
    } else if detached {
        eprintln!("detached; the pins in {} are removed", dir.display());
    } else {
        eprintln!(
            "nothing is pinned in {}: a relay without xdp.persist is taken off by ending its process",
            dir.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
