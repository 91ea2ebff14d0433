//! `reload`: has the running relay read its configuration again.

use std::process::ExitCode;

use super::{CliError, options::Remote, output};
use crate::admin::api::Reloaded;

#[derive(Debug, clap::Args)]
#[command(after_help = "All of it is read and checked first; with a fault anywhere, the relay goes on as it was.")]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
}

pub async fn execute(args: Args) -> Result<ExitCode, CliError> {
    let reloaded: Reloaded = args.remote.client()?.post("/v1/reload", &()).await?;
    if args.remote.json {
        output::json(&reloaded)?;
        return Ok(ExitCode::SUCCESS);
    }
    for warning in &reloaded.warnings {
        eprintln!("warning: {warning}");
    }
    eprintln!(
        "{}",
        if reloaded.changed {
            "the new configuration is in force"
        } else {
            "the configuration has not changed"
        }
    );
    Ok(ExitCode::SUCCESS)
}
