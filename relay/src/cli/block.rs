//! `block`: sources that the relay drops.

use std::{net::IpAddr, process::ExitCode};

use ipnet::IpNet;
use serde_json::Value;

use super::{CliError, options::Remote, output};
use crate::admin::api::Block;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Drop packets of clients whose address is in the prefix, even with a valid token
    Add(PrefixArgs),
    /// Take a prefix off the blocklist
    Remove(PrefixArgs),
    /// List the blocked prefixes
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct PrefixArgs {
    /// In CIDR notation, like 203.0.113.0/24, or one address
    #[arg(value_name = "CIDR", value_parser = prefix)]
    prefix: IpNet,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    remote: Remote,
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    parsed.map_err(|_| "write a prefix like 203.0.113.0/24 or 2001:db8::/32, or an address".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_prefix_of_its_whole_length() {
        assert_eq!(prefix("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(prefix("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert!(prefix("192.0.2.1/33").is_err());
    }
}
