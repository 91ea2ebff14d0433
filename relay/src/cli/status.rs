//! `status`: what the running relay does.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use super::{CliError, options::Remote, output};
use crate::admin::api::Status;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
}

pub async fn execute(args: Args) -> Result<ExitCode, CliError> {
    let status: Status = args.remote.client()?.get("/v1/status").await?;
    if args.remote.json {
        output::json(&status)?;
    } else {
        output::line(&describe(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(status: &Status) -> String {
    let listen: Vec<_> = status.listen.iter().map(SocketAddr::to_string).collect();
    let egress: Vec<_> = status.egress.iter().map(IpAddr::to_string).collect();
    let state = match &status.reason {
        None => "ready".to_owned(),
        Some(reason) => format!("not ready: {reason}"),
    };
    let persist = if status.persist { ", persistent" } else { "" };
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| {
            let mode = interface.mode.as_deref().unwrap_or("not attached");
            format!("{}, {mode}", interface.name)
        })
        .collect();
    let uptime = Duration::from_secs(status.uptime_seconds);
    let lines = [
        (
            "relay",
            format!("{}, version {}, {state}", status.relay_id, status.version),
        ),
        ("interface", format!("{}{persist}", interfaces.join("; "))),
        ("listen", listen.join(", ")),
        (
            "egress",
            format!("{}, ports {}", egress.join(", "), status.egress_ports),
        ),
        ("users", format!("{} of at most {}", status.users, status.max_users)),
        (
            "next hops",
            format!(
                "{} unresolved of {}",
                status.unresolved_destinations, status.destinations
            ),
        ),
        ("blocked", format!("{} prefixes", status.blocked)),
        ("uptime", format!("{uptime:?}")),
    ];
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{name:<10} {value}\n"))
        .collect();
    let counted: Vec<_> = status.counters.iter().filter(|counter| counter.packets > 0).collect();
    if counted.is_empty() {
        return text + "\nno packets yet";
    }
    let rows = counted.iter().map(|counter| {
        vec![
            counter.direction.clone(),
            counter.reason.clone(),
            counter.packets.to_string(),
            counter.bytes.to_string(),
        ]
    });
    text.push('\n');
    text + &output::table(&["DIRECTION", "REASON", "PACKETS", "BYTES"], rows)
}
