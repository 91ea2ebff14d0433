//! `ping`: whether the relay answers a grant, and how fast.

use std::{
    collections::HashMap,
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use relay_ebpf::token::TOKEN_BYTES;
use serde_json::json;
use tokio::{
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{CliError, connect::read_grant, exit::Exit, output};
use crate::client::{Sealer, relay_socket};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A ping is a token without payload, which the relay reflects: it proves key, clock, address and \
                        path, and does not reach the destination. Ends with 1 if nothing was answered; then the \
                        relay's counters say why it dropped the pings, if they have arrived."
)]
pub struct Args {
    /// The grant: its line, its JSON, a file with either, or `-` for standard input
    #[arg(long, value_name = "GRANT", env = "RELAY_GRANT", hide_env_values = true)]
    grant: String,
    /// Pings to send; 0 for no end
    #[arg(short, long, value_name = "N", default_value_t = 4)]
    count: u64,
    /// Time from one ping to the next, like 1s or 200ms
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// Time to wait for the last answers
    #[arg(short = 'W', long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    timeout: Duration,
    /// Send from this address of the host [default: what the routes say]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| *duration >= Duration::from_millis(1))
        .ok_or_else(|| "write a duration like 1s or 200ms, at least 1ms".to_owned())
}

#[derive(Default)]
struct Pings {
    sealed: HashMap<[u8; TOKEN_BYTES], (u64, Instant)>,
    sent: u64,
    times: Vec<Duration>,
}

pub async fn execute(args: Args) -> Result<ExitCode, CliError> {
    let grant = read_grant(&args.grant)?;
    let relay = grant.relay;
    let socket = relay_socket(relay, args.bind).await.map_err(CliError::other)?;
    socket.connect(relay).await.map_err(CliError::other)?;
    let mut sealer = Sealer::new(grant);
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::other)?;
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pings = Pings::default();
    let mut buffer = [0; 2048];
    let mut deadline = None;
    loop {
        let all_sent = args.count > 0 && pings.sent == args.count;
        if all_sent && pings.sealed.is_empty() {
            break;
        }
        let give_up = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ticks.tick(), if !all_sent => {
                pings.send(&socket, &mut sealer).await;
                deadline = (pings.sent == args.count).then(|| tokio::time::Instant::now() + args.timeout);
            }
            received = socket.recv(&mut buffer) => match received {
                Ok(len) => pings.answered(&buffer[..len], &args, relay)?,
                // What the network said of an earlier ping, such as that nobody listens there.
                Err(error) => eprintln!("{relay}: {error}"),
            },
            () = give_up => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    pings.report(&args, relay)?;
    let code = if pings.times.is_empty() {
        Exit::Failure
    } else {
        Exit::Success
    };
    Ok(code.into())
}

impl Pings {
    async fn send(&mut self, socket: &UdpSocket, sealer: &mut Sealer) {
        let now = Instant::now();
        let (pn, token) = sealer.seal(0, now);
        self.sealed.insert(token, (pn, now));
        self.sent += 1;
        if let Err(error) = socket.send(&token).await {
            eprintln!("pn={pn} not sent: {error}");
        }
    }

    fn answered(&mut self, bytes: &[u8], args: &Args, relay: std::net::SocketAddr) -> Result<(), CliError> {
        // What was not sent from here, or is answered twice, is no answer.
        let Some((pn, sent)) = bytes
            .try_into()
            .ok()
            .and_then(|token: [u8; TOKEN_BYTES]| self.sealed.remove(&token))
        else {
            return Ok(());
        };
        let time = sent.elapsed();
        self.times.push(time);
        let ms = time.as_secs_f64() * 1e3;
        if args.json {
            return output::json_lines(&[json!({ "event": "answer", "pn": pn, "time_ms": ms })]);
        }
        output::line(&format!("{} bytes from {relay}: pn={pn} time={ms:.3} ms", bytes.len()))
    }

    fn report(&self, args: &Args, relay: std::net::SocketAddr) -> Result<(), CliError> {
        let received = self.times.len() as u64;
        let loss = match self.sent {
            0 => 0.0,
            sent => (sent - received) as f64 / sent as f64 * 100.0,
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let min = self.times.iter().min().copied().map(ms);
        let max = self.times.iter().max().copied().map(ms);
        let average = self
            .times
            .iter()
            .sum::<Duration>()
            .checked_div(self.times.len() as u32)
            .map(ms);
        if args.json {
            return output::json_lines(&[json!({
                "event": "ended", "relay": relay, "sent": self.sent, "received": received, "loss_percent": loss,
                "min_ms": min, "average_ms": average, "max_ms": max,
            })]);
        }
        let mut text = format!(
            "{} pings sent to {relay}, {received} answered, {loss:.0} % lost",
            self.sent
        );
        if let (Some(min), Some(average), Some(max)) = (min, average, max) {
            text += &format!("; min/average/max {min:.3}/{average:.3}/{max:.3} ms");
        }
        output::line(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_people_do() {
        assert_eq!(duration("200ms").unwrap(), Duration::from_millis(200));
        assert_eq!(duration("1s").unwrap(), Duration::from_secs(1));
        assert!(duration("0s").is_err() && duration("-1s").is_err() && duration("soon").is_err());
    }
}
