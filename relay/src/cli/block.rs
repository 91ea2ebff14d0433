//! `block`: sources that the relay drops.

use std::{path::PathBuf, process::ExitCode};

use ipnet::IpNet;
use serde_json::Value;

use super::{CliError, options::Remote, output, user};
use crate::{admin::api::Block, datapath::blocklist};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Drop packets of clients whose address is in the prefix, even with a valid token
    Add(PrefixArgs),
    /// Take a prefix off the blocklist
    Remove(PrefixArgs),
    /// Block the prefixes of a file: all of them, or none
    Import(ImportArgs),
    /// List the blocked prefixes
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct PrefixArgs {
    /// In CIDR notation, like 203.0.113.0/24, or one address
    #[arg(value_name = "CIDR", value_parser = blocklist::parse)]
    prefix: IpNet,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "One prefix or address a line; what follows a # is a comment. Prefixes that are blocked already stay \
                        blocked.\n\nExample:\n  lumenlink-relay block import drop.txt"
)]
pub struct ImportArgs {
    /// The file, or `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    remote: Remote,
}

pub async fn execute(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Add(args) => {
            let block = Block { prefix: args.prefix };
            let new: bool = args.remote.client()?.post("/v1/blocks", &block).await?;
            let state = if new { "is" } else { "was already" };
            eprintln!("{} {state} blocked", args.prefix.trunc());
        }
        Command::Remove(args) => {
            let block = Block { prefix: args.prefix };
            let _: Value = args.remote.client()?.delete("/v1/blocks", &block).await?;
            eprintln!("{} is not blocked any more", args.prefix.trunc());
        }
        Command::Import(args) => {
            let text = user::read(&args.file)?;
            let new: usize = args.remote.client()?.post_text("/v1/blocks/import", text).await?;
            if args.remote.json {
                output::json(&new)?;
            }
            eprintln!("{new} prefixes blocked that were not before");
        }
        Command::List(args) => {
            let blocks: Vec<Block> = args.remote.client()?.get("/v1/blocks").await?;
            if args.remote.json {
                output::json(&blocks)?;
            } else {
                for block in blocks {
                    output::line(&block.prefix.to_string())?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
