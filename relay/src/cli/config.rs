//! `config validate`: every fault of the configuration at once.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use serde::Serialize;

use super::{CliError, options::Options, output};
use crate::config::{Config, ConfigError, Fault};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read and check flags, environment and relay.toml; list every fault with its place
    Validate(Args),
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Place {
    place: String,
    message: String,
}

impl From<&Fault> for Place {
    fn from(fault: &Fault) -> Self {
        Self {
            place: fault.place.to_string(),
            message: fault.message.clone(),
        }
    }
}

#[derive(Serialize)]
struct Report {
    valid: bool,
    faults: Vec<Place>,
    warnings: Vec<Place>,
}

pub fn execute(command: &Command) -> Result<ExitCode, CliError> {
    let Command::Validate(args) = command;
    let result = Config::load(&args.options.sources());
    if args.json {
        output::json(&report(&result))?;
    }
    let checked = result?;
    if !args.json {
        for warning in &checked.warnings {
            eprintln!("warning: {warning}");
        }
        output::line(&describe(&checked.config))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(result: &Result<crate::config::Checked, ConfigError>) -> Report {
    let (faults, warnings) = match result {
        Ok(checked) => (Vec::new(), checked.warnings.iter().map(Place::from).collect()),
        Err(ConfigError::Faults(faults)) => (faults.iter().map(Place::from).collect(), Vec::new()),
        Err(error) => {
            let fault = Place {
                place: String::new(),
                message: error.to_string(),
            };
            (vec![fault], Vec::new())
        }
    };
    Report {
        valid: faults.is_empty(),
        faults,
        warnings,
    }
}

fn describe(config: &Config) -> String {
    let listen: Vec<_> = config.listen.iter().map(SocketAddr::to_string).collect();
    let egress: Vec<_> = config.egress.iter().map(IpAddr::to_string).collect();
    format!(
        "the configuration is valid: {} listens on {}; egress {}, ports {}-{}; room for {} users",
        config.interfaces.join(", "),
        listen.join(", "),
        egress.join(", "),
        config.first_egress_port,
        config.last_egress_port,
        config.max_users
    )
}
