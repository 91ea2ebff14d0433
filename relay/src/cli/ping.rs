//! `ping`: whether the relay answers a grant, and how fast.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::{Duration, Instant},
};

use relay_ebpf::token::TOKEN_BYTES;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{CliError, connect::read_grant, exit::Exit, options::duration, output};
use crate::client::{Sealer, relay_socket};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lumenlink-relay ping --grant grant.json\n  lumenlink-relay ping --grant lumen1:… --count 0 \
                  --interval 200ms\n  lumenlink-relay user add 1 --to 192.0.2.3:53 | lumenlink-relay ping --grant -\n\n\
                  A ping is a token without payload, which the relay reflects: it proves key, clock, address and \
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
    /// Send to this listener of the relay instead of the grant's, such as one of the other address family
    #[arg(long, value_name = "ADDRESS:PORT")]
    relay: Option<SocketAddr>,
    /// Send from this address of the host [default: what the routes say]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// An answer that comes later than this, and later than the timeout, need not be recognised any more.
const LATE: Duration = Duration::from_secs(60);
/// Pings after which those that are that late are forgotten.
const FORGET_EVERY: u64 = 4096;

/// What was sent and what of it came back.
#[derive(Default)]
struct Pings {
    outstanding: HashMap<[u8; TOKEN_BYTES], (u64, Instant)>,
    sent: u64,
    times: Times,
}

/// Round-trip times.
#[derive(Default)]
struct Times {
    count: u64,
    sum: Duration,
    /// The shortest and the longest.
    extremes: Option<(Duration, Duration)>,
}

impl Times {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.sum += time;
        let (min, max) = self.extremes.unwrap_or((time, time));
        self.extremes = Some((min.min(time), max.max(time)));
    }

    /// Shortest, average and longest, in milliseconds.
    fn summary_ms(&self) -> Option<[f64; 3]> {
        let (min, max) = self.extremes?;
        Some([ms(min), ms(self.sum) / self.count as f64, ms(max)])
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub async fn execute(args: Args) -> Result<ExitCode, CliError> {
    let grant = read_grant(&args.grant, args.relay)?;
    let relay = grant.relay;
    let socket = relay_socket(relay, args.bind).await.map_err(CliError::other)?;
    // So that what ICMP says comes back as an error.
    let connected = socket.connect(relay).await;
    connected.map_err(|error| CliError::Other(format!("reaching the relay {relay}: {error}")))?;
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
        if all_sent && pings.outstanding.is_empty() {
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
                if pings.sent.is_multiple_of(FORGET_EVERY) {
                    pings.forget(Instant::now(), args.timeout.max(LATE));
                }
                let (pn, token) = pings.next(&mut sealer, Instant::now());
                if let Err(error) = socket.send(&token).await {
                    eprintln!("pn={pn} not sent to {relay}: {error}");
                }
                deadline = (pings.sent == args.count).then(|| tokio::time::Instant::now() + args.timeout);
            }
            received = socket.recv(&mut buffer) => match received {
                Ok(len) => if let Some((pn, time)) = pings.answered(&buffer[..len], Instant::now()) {
                    print_answer(pn, time, relay, args.json)?;
                },
                // What the network said of an earlier ping, such as that nobody listens there.
                Err(error) => eprintln!("{relay}: {error}"),
            },
            () = give_up => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    if args.json {
        output::json_lines(&[pings.to_json(relay)])?;
    } else {
        output::line(&pings.to_text(relay))?;
    }
    let code = if pings.times.count == 0 {
        Exit::Failure
    } else {
        Exit::Success
    };
    Ok(code.into())
}

fn print_answer(pn: u64, time: Duration, relay: SocketAddr, json: bool) -> Result<(), CliError> {
    let time = ms(time);
    if json {
        return output::json_lines(&[json!({ "event": "answer", "pn": pn, "time_ms": time })]);
    }
    output::line(&format!("{TOKEN_BYTES} bytes from {relay}: pn={pn} time={time:.3} ms"))
}

impl Pings {
    /// The next ping and its packet number.
    fn next(&mut self, sealer: &mut Sealer, now: Instant) -> (u64, [u8; TOKEN_BYTES]) {
        let (pn, token) = sealer.seal(0, now);
        self.outstanding.insert(token, (pn, now));
        self.sent += 1;
        (pn, token)
    }

    /// Packet number and round-trip time, if this is the first answer to a ping.
    fn answered(&mut self, datagram: &[u8], now: Instant) -> Option<(u64, Duration)> {
        let token: &[u8; TOKEN_BYTES] = datagram.try_into().ok()?;
        let (pn, sent) = self.outstanding.remove(token)?;
        let time = now.saturating_duration_since(sent);
        self.times.add(time);
        Some((pn, time))
    }

    /// Forgets pings that have waited for so long.
    fn forget(&mut self, now: Instant, after: Duration) {
        self.outstanding
            .retain(|_, (_, sent)| now.saturating_duration_since(*sent) < after);
    }

    fn loss_percent(&self) -> f64 {
        match self.sent {
            0 => 0.0,
            sent => (sent - self.times.count) as f64 / sent as f64 * 100.0,
        }
    }

    fn to_json(&self, relay: SocketAddr) -> serde_json::Value {
        let [min, average, max] = match self.times.summary_ms() {
            Some(summary) => summary.map(Some),
            None => [None; 3],
        };
        json!({
            "event": "ended", "relay": relay, "sent": self.sent, "received": self.times.count,
            "loss_percent": self.loss_percent(), "min_ms": min, "average_ms": average, "max_ms": max,
        })
    }

    fn to_text(&self, relay: SocketAddr) -> String {
        // However small, a loss is not called none.
        let loss = match (self.loss_percent() * 10.0).round() / 10.0 {
            rounded if self.sent > self.times.count => rounded.max(0.1),
            rounded => rounded,
        };
        let mut text = format!(
            "{relay}: {} sent, {} received, {loss} % loss",
            self.sent, self.times.count
        );
        if let Some([min, average, max]) = self.times.summary_ms() {
            text += &format!(", min/avg/max {min:.3}/{average:.3}/{max:.3} ms");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::{Grant, Secret};

    fn sealer() -> Sealer {
        Sealer::new(Grant {
            user: 42,
            relay: relay(),
            relay_id: 7,
            slot: 3,
            salt: 5,
            key: Secret::new([1; 16]),
            header_key: Some(Secret::new([2; 16])),
            expires_at: None,
        })
    }

    fn relay() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 4500))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_the_first_answer_to_a_ping_counts_and_nothing_else_does() {
        let (mut pings, mut sealer, now) = (Pings::default(), sealer(), Instant::now());
        let (pn, token) = pings.next(&mut sealer, now);
        let mut other = token;
        other[0] ^= 1;
        let longer = [&token[..], &[0]].concat();
        for no_answer in [&other[..], &token[1..], &longer, &[]] {
            assert_eq!(pings.answered(no_answer, now), None);
        }
        assert_eq!(pings.answered(&token, now + SECOND), Some((pn, SECOND)));
        assert_eq!(pings.answered(&token, now + SECOND), None, "answered twice");
        assert_eq!((pings.sent, pings.times.count), (1, 1));
    }

    #[test]
    fn answers_may_come_in_any_order_and_the_statistics_say_what_is_lost() {
        let (mut pings, mut sealer, now) = (Pings::default(), sealer(), Instant::now());
        let tokens: Vec<_> = (0..3).map(|_| pings.next(&mut sealer, now).1).collect();
        pings.answered(&tokens[2], now + SECOND);
        pings.answered(&tokens[0], now + 2 * SECOND);
        assert_eq!(
            pings.to_text(relay()),
            "192.0.2.1:4500: 3 sent, 2 received, 33.3 % loss, min/avg/max 1000.000/1500.000/2000.000 ms"
        );
        let json = pings.to_json(relay());
        assert_eq!((&json["sent"], &json["received"]), (&3.into(), &2.into()));
        assert_eq!((&json["min_ms"], &json["max_ms"]), (&1000.0.into(), &2000.0.into()));
        assert_eq!(json["average_ms"], 1500.0);
    }

    #[test]
    fn without_an_answer_there_are_no_times() {
        let (mut pings, mut sealer) = (Pings::default(), sealer());
        assert_eq!(
            pings.to_json(relay())["loss_percent"],
            0.0,
            "nothing sent, nothing lost"
        );
        pings.next(&mut sealer, Instant::now());
        assert_eq!(pings.to_text(relay()), "192.0.2.1:4500: 1 sent, 0 received, 100 % loss");
        assert_eq!(pings.to_json(relay())["min_ms"], serde_json::Value::Null);
    }

    #[test]
    fn a_small_loss_is_not_called_none() {
        let pings = Pings {
            sent: 10_000,
            times: Times {
                count: 9_999,
                ..Times::default()
            },
            ..Pings::default()
        };
        assert!(pings.to_text(relay()).contains(" 0.1 % loss"));
    }

    #[test]
    fn what_is_late_is_forgotten_and_what_is_not_stays() {
        let (mut pings, mut sealer, now) = (Pings::default(), sealer(), Instant::now());
        let (_, old) = pings.next(&mut sealer, now);
        let (_, new) = pings.next(&mut sealer, now + 5 * SECOND);
        pings.forget(now + 6 * SECOND, 6 * SECOND);
        assert_eq!(pings.answered(&old, now + 6 * SECOND), None);
        assert!(pings.answered(&new, now + 6 * SECOND).is_some());
        assert_eq!(pings.sent, 2, "it was sent nevertheless");
    }
}
