//! `lumenlink-relay`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lumenlink_relay::cli::main()
}
