//! `show`: a capture packet by packet, or a scenario, as people read it.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use console::style;
use jiff::Timestamp;
use packet_lab::{
    capture::{Capture, LinkType, Packet},
    craft::{Keyring, TOKEN_BYTES},
    inspect::{Dissection, Layer},
    replay::cast::{DEFAULT_PORT, lab_grants},
    scenario::{FILE_NAME, Scenario},
};

use super::{Ended, Exit, line, relay::KeyArgs};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Of each packet: its time, the layers with every field, each checksum next to what it should be, the \
                  token where it goes to a listener, and all bytes with their offsets. With --brief one line: number, \
                  seconds since the first packet, sender, receiver, protocol, bytes of payload, and the comment. Of a scenario: its world, its steps, its snapshot.\n\n\
                  Examples:\n  \
                  packet-lab show incident.pcap --brief | less\n  \
                  packet-lab show incident.pcap --packet 17 --grants grants.ndjson\n  \
                  packet-lab show out.pcapng --limit 3\n  \
                  packet-lab show scenarios/captures/dns\n  \
                  tcpdump -i eth0 -w - udp | packet-lab show --brief -"
)]
pub struct Args {
    /// A pcap or pcapng file, `-` for standard input; or a scenario's folder
    file: PathBuf,
    /// One line each
    #[arg(long, short)]
    brief: bool,
    /// Only this packet, from 1
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    packet: Option<u64>,
    /// Stop after so many packets
    #[arg(long, value_name = "N", conflicts_with = "packet", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    keys: KeyArgs,
}

pub fn execute(args: &Args) -> Ended {
    if is_scenario(&args.file) {
        return show_scenario(&args.file);
    }
    let tokens = Tokens {
        keyring: lab_grants(&args.keys.grants()?).into_iter().collect(),
        listeners: args.keys.listen.clone(),
    };
    let capture = Capture::open(&args.file).map_err(|error| (Exit::Usage, error.into()))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let shown = show(args, capture, &tokens, &mut out);
    match shown.and_then(|()| out.flush().map_err(Stopped::Output)) {
        Ok(()) => Ok(Exit::Pass),
        Err(Stopped::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Pass),
        Err(Stopped::Output(error)) => Err((Exit::Environment, anyhow::Error::from(error).context("writing"))),
        Err(Stopped::Input(error)) => {
            // What was read so far comes before the reason why there is no more.
            let _ = out.flush();
            Err((Exit::Usage, error))
        }
    }
}

/// Whether a path is a scenario's rather than a capture's.
fn is_scenario(path: &Path) -> bool {
    path.join(FILE_NAME).is_file() || path.extension().is_some_and(|extension| extension == "toml")
}

fn show_scenario(path: &Path) -> Ended {
    let scenario = Scenario::load(path).map_err(|error| (Exit::Usage, error.into()))?;
    let text = scenario.describe().map_err(|error| {
        let error = anyhow::Error::from(error).context(format!("reading the snapshot of {}", path.display()));
        (Exit::Usage, error)
    })?;
    line(text.trim_end());
    Ok(Exit::Pass)
}

enum Stopped {
    Input(anyhow::Error),
    Output(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn show(args: &Args, capture: Capture, tokens: &Tokens, out: &mut impl Write) -> Result<(), Stopped> {
    let mut first_ns = None;
    let mut shown = 0_u64;
    for (packet, number) in capture.zip(1_u64..) {
        let packet = packet.map_err(|error| Stopped::Input(error.into()))?;
        let since_ns = i128::from(packet.at_ns) - i128::from(*first_ns.get_or_insert(packet.at_ns));
        if args.packet.is_some_and(|wanted| wanted != number) {
            continue;
        }
        if args.brief {
            writeln!(out, "{}", brief(number, since_ns, &packet, tokens))?;
        } else {
            let gap = if shown == 0 { "" } else { "\n" };
            write!(out, "{gap}{}", block(number, since_ns, &packet, tokens))?;
        }
        shown += 1;
        if args.packet.is_some() || args.limit == Some(shown) {
            break;
        }
    }
    if let Some(wanted) = args.packet.filter(|_| shown == 0) {
        let all = format!("{} has no packet {wanted}", args.file.display());
        return Err(Stopped::Input(anyhow::anyhow!(all)));
    }
    if shown == 0 {
        eprintln!("note: {} has no packets", args.file.display());
    }
    Ok(())
}

/// What is known of tokens.
pub struct Tokens {
    pub keyring: Keyring,
    /// If empty, whatever has the default port.
    pub listeners: Vec<SocketAddr>,
}

impl Tokens {
    /// The token of a packet, if that is sent to a listener.
    pub fn layer(&self, dissection: &Dissection) -> Option<Layer> {
        let (ip, udp) = (
            dissection.layer("ipv4").or_else(|| dissection.layer("ipv6"))?,
            dissection.layer("udp")?,
        );
        let to = SocketAddr::new(ip.get("to")?.parse().ok()?, udp.get("to")?.parse().ok()?);
        let is_listener = if self.listeners.is_empty() {
            to.port() == DEFAULT_PORT
        } else {
            self.listeners.contains(&to)
        };
        if !is_listener {
            return None;
        }
        let sealed = &dissection.payload;
        if sealed.len() < TOKEN_BYTES {
            return Some(Layer::new("token").with("", format_args!("cut short: {} of 24 bytes", sealed.len())));
        }
        if self.keyring.is_empty() {
            return None;
        }
        let Some((grant, handle)) = self.keyring.recognize(sealed) else {
            return Some(Layer::new("token").with("", "of none of the grants"));
        };
        let tag = if grant.open(sealed).is_some() { "right" } else { "WRONG" };
        let payload = sealed.len() - TOKEN_BYTES;
        Some(
            Layer::new("token")
                .with("slot", handle.slot)
                .with("salt", format_args!("{:#010x}", handle.salt))
                .with("pn", handle.pn)
                .with("tag", tag)
                .with(
                    "",
                    if payload == 0 {
                        "ping".to_owned()
                    } else {
                        format!("{payload} bytes of payload")
                    },
                ),
        )
    }
}

/// One line about a packet.
pub fn brief(number: u64, since_ns: i128, packet: &Packet, tokens: &Tokens) -> String {
    let dissection = Dissection::of(&packet.data);
    let mut line = format!(
        "{number:>6} {:>14}  {}",
        seconds(since_ns),
        alarming(&dissection.to_string())
    );
    if let Some(token) = tokens.layer(&dissection) {
        let _ = write!(line, "  {}", alarming(&token.to_string()));
    }
    if packet.is_cut() {
        let _ = write!(
            line,
            "  cut to {} of {} bytes",
            packet.data.len(),
            packet.original_length
        );
    }
    if let Some(comment) = &packet.comment {
        let _ = write!(line, "  {}", style(format!("# {}", comment.replace('\n', "; "))).cyan());
    }
    line
}

/// Everything about a packet.
fn block(number: u64, since_ns: i128, packet: &Packet, tokens: &Tokens) -> String {
    let dissection = Dissection::of(&packet.data);
    let mut text = format!(
        "{}  {}  {} bytes",
        style(format!("packet {number}")).bold(),
        time(packet.at_ns, since_ns),
        packet.data.len()
    );
    if packet.is_cut() {
        let _ = write!(text, " of {} (cut)", packet.original_length);
    }
    if packet.interface != 0 {
        let _ = write!(text, ", interface {}", packet.interface);
    }
    if packet.link != LinkType::Ethernet {
        let _ = write!(text, ", was {}: the MAC addresses are made up", packet.link.name());
    }
    text.push('\n');
    for comment in packet.comment.iter().flat_map(|comment| comment.lines()) {
        let _ = writeln!(text, "  {}", style(format!("# {comment}")).cyan());
    }
    for layer in dissection.layers.iter().chain(tokens.layer(&dissection).as_ref()) {
        let _ = writeln!(text, "  {}", alarming(&layer.to_string()));
    }
    if dissection.trailing > 0 {
        let _ = writeln!(text, "  {} bytes behind the packet", dissection.trailing);
    }
    text + &hex_dump(&packet.data, dissection.payload_at)
}

/// All bytes with their offsets; the headers dimmed, the payload not.
fn hex_dump(frame: &[u8], payload_at: usize) -> String {
    let mut text = String::new();
    for (row, chunk) in frame.chunks(16).enumerate() {
        let at = 16 * row;
        let _ = write!(text, "  {}", style(format!("{at:04x}:")).dim());
        let (mut headers, mut payload) = (String::new(), String::new());
        for (i, byte) in chunk.iter().enumerate() {
            let part = if at + i < payload_at {
                &mut headers
            } else {
                &mut payload
            };
            let _ = write!(part, "{}{byte:02x}", if i % 2 == 0 { " " } else { "" });
        }
        let _ = write!(text, "{}{payload}", style(headers).dim());
        let width = 2 * chunk.len() + chunk.len().div_ceil(2);
        let printable = chunk.iter().map(|byte| match byte {
            0x20..=0x7e => char::from(*byte),
            _ => '.',
        });
        let _ = writeln!(text, "{:1$}  {2}", "", 40 - width, printable.collect::<String>());
    }
    text
}

/// With what is wrong in red.
fn alarming(text: &str) -> String {
    text.replace("WRONG", &style("WRONG").red().bold().to_string())
}

fn seconds(ns: i128) -> String {
    let (sign, ns) = (if ns < 0 { "-" } else { "" }, ns.unsigned_abs());
    format!("{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn time(at_ns: u64, since_ns: i128) -> String {
    let absolute =
        Timestamp::from_nanosecond(at_ns.into()).map_or_else(|_| format!("{at_ns} ns"), |at| format!("{at:.9}"));
    format!("{absolute}  +{} s", seconds(since_ns))
}
