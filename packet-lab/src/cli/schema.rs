//! `schema`: the JSON schema of scenarios.

use packet_lab::scenario::schema;

use super::{Ended, Exit, json};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Editors complete and check a scenario.toml by it (taplo, Even Better TOML) where the first line is\n  \
                  #:schema ../../schema.json\n\n\
                  Examples:\n  \
                  packet-lab schema > scenarios/schema.json"
)]
pub struct Args {}

#[expect(clippy::unnecessary_wraps, reason = "as every command")]
pub fn execute() -> Ended {
    json(&schema());
    Ok(Exit::Pass)
}
