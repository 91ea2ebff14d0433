//! `connect`: a local UDP port in front of the user's destination.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, options::duration, output};
use crate::{
    client::{Proxy, ProxyError, Totals},
    grant::Grant,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  lumenlink-relay connect --grant lumen1:… --listen 127.0.0.1:5353\n  \
                        dig @127.0.0.1 -p 5353 example.org\n\nAnswers go to the local program that has sent last. Ends \
                        on INT or TERM, and says then what it has moved."
)]
pub struct Args {
    /// The grant: its line, its JSON, a file with either, or `-` for standard input
    #[arg(long, value_name = "GRANT", env = "RELAY_GRANT", hide_env_values = true)]
    grant: String,
    /// Where local programs send to
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Send to this listener of the relay instead of the grant's, such as one of the other address family
    #[arg(long, value_name = "ADDRESS:PORT")]
    relay: Option<SocketAddr>,
    /// Send to the relay from this address of the host [default: what the routes say]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Ping the relay when so long nothing was sent, so that NATs on the way keep answers coming; 0s for never
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = keepalive)]
    keepalive: Duration,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// The time of day is looked at so often: it may be set, or go on while this host sleeps.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

fn keepalive(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        other => duration(other),
    }
}

/// The grant that an argument names, if it has not expired; with another listener if one is named.
pub fn read_grant(argument: &str, relay: Option<SocketAddr>) -> Result<Grant, CliError> {
    let mut grant = Grant::read(argument)?;
    grant.relay = relay.unwrap_or(grant.relay);
    match grant.expires_at {
        Some(at) if grant.is_expired(Timestamp::now()) => Err(CliError::Refused(format!(
            "the grant of user {} expired at {at}: ask the relay's operator for a new one",
            grant.user
        ))),
        _ => Ok(grant),
    }
}

pub async fn execute(args: Args) -> Result<ExitCode, CliError> {
    super::run::init_tracing();
    let grant = read_grant(&args.grant, args.relay)?;
    let (user, relay, expires_at) = (grant.user, grant.relay, grant.expires_at);
    let mut proxy = Proxy::bind(args.listen, args.bind, grant).await?;
    if !args.keepalive.is_zero() {
        proxy = proxy.with_keepalive(args.keepalive);
    }
    let listen = proxy.local_address().map_err(CliError::other)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::other)?;
    if args.json {
        let ready = json!({ "event": "ready", "listen": listen, "relay": relay, "user": user });
        output::json_lines(&[ready])?;
    } else {
        output::line(&format!("listening on {listen}, for {relay} as user {user}"))?;
    }
    tokio::select! {
        never = proxy.run() => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = warn_of_expiry(expires_at) => {}
    }
    report(&proxy.stats().totals(), args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Says so when the grant expires; never returns, since the clock may be wrong here and right at the relay.
async fn warn_of_expiry(expires_at: Option<Timestamp>) {
    if let Some(at) = expires_at {
        loop {
            let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(LOOK_AT_CLOCK)).await;
        }
        tracing::warn!("the grant expired at {at}: the relay drops its packets from now on");
    }
    std::future::pending::<()>().await;
}

fn report(totals: &Totals, json: bool) -> Result<(), CliError> {
    if json {
        return output::json_lines(&[json!({ "event": "ended", "totals": totals })]);
    }
    output::line(&format!(
        "uplink {} packets, {} bytes; downlink {} packets, {} bytes; not sent: {} too long, {} empty, {} refused by \
         the system; not handed on: {} before a program spoke, {} from elsewhere",
        totals.uplink_packets,
        totals.uplink_bytes,
        totals.downlink_packets,
        totals.downlink_bytes,
        totals.too_long,
        totals.empty,
        totals.unsent,
        totals.unclaimed,
        totals.foreign
    ))
}

impl From<ProxyError> for CliError {
    fn from(error: ProxyError) -> Self {
        match error {
            ProxyError::Listen { .. } => Self::Listen(error),
            other => Self::other(other),
        }
    }
}
