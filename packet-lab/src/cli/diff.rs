//! `diff`: what two captures, or two runs' outputs, do not have in common.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher as _},
    io::{self, BufWriter, Read as _, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use console::style;
use packet_lab::{
    capture::{Capture, CaptureError, Packet},
    inspect::{Difference, Dissection, Outline, compare},
    simulate::number,
};
use similar::{Algorithm, DiffOp, TextDiff, capture_diff_slices_deadline};

use super::{Ended, Exit};

/// How long the best alignment is looked for; then a good one does.
const ALIGNING: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Packets are aligned as lines are by diff: by their bytes. What stands in the same place is compared \
                  field by field, with its comment, which has verdict and reason in what `packet-lab replay --write` \
                  wrote. Times are compared with --times, interfaces never. Two files that are both text, such as \
                  snapshots or the output of --json, are compared by line.\n\nExit codes: 0 the same, 1 different, 2 \
                  trouble.\n\nExamples:\n  \
                  packet-lab diff before.pcapng after.pcapng\n  \
                  packet-lab replay incident.pcap --resign --backend host --write host.pcapng\n  \
                  packet-lab replay incident.pcap --resign --backend kernel --write kernel.pcapng\n  \
                  packet-lab diff host.pcapng kernel.pcapng && echo the same\n  \
                  packet-lab diff out/expected.pcapng out/actual.pcapng --brief"
)]
pub struct Args {
    /// A capture, or a text file
    #[arg(value_name = "A")]
    first: PathBuf,
    /// Another of the same kind
    #[arg(value_name = "B")]
    second: PathBuf,
    /// Compare times too
    #[arg(long)]
    times: bool,
    /// Only count
    #[arg(long, short)]
    brief: bool,
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

impl From<CaptureError> for Stopped {
    fn from(error: CaptureError) -> Self {
        Self::Input(error.into())
    }
}

pub fn execute(args: &Args) -> Ended {
    let mut out = BufWriter::new(io::stdout().lock());
    let same = match (text_of(&args.first), text_of(&args.second)) {
        (Some(first), Some(second)) => by_line(args, &first, &second, &mut out).map_err(Stopped::Output),
        _ => by_packet(args, &mut out),
    };
    let same = same.and_then(|same| {
        out.flush()?;
        Ok(same)
    });
    match same {
        Ok(true) => Ok(Exit::Pass),
        Ok(false) => Ok(Exit::Failure),
        // Whoever stopped reading has seen a difference.
        Err(Stopped::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Failure),
        Err(Stopped::Output(error)) => Err((Exit::Environment, anyhow::Error::from(error).context("writing"))),
        Err(Stopped::Input(error)) => Err((Exit::Usage, error)),
    }
}

/// The text of a file that is none of the binary formats.
fn text_of(path: &Path) -> Option<String> {
    let mut start = [0; 4];
    let mut file = File::open(path).ok()?;
    file.read_exact(&mut start).ok()?;
    let control = |byte: &u8| *byte < 0x20 && !byte.is_ascii_whitespace();
    if start.iter().any(|byte| control(byte) || !byte.is_ascii()) || start == *b"\n\r\r\n" {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

fn by_line(args: &Args, first: &str, second: &str, out: &mut impl Write) -> io::Result<bool> {
    if first == second {
        return Ok(true);
    }
    let diff = TextDiff::configure().timeout(ALIGNING).diff_lines(first, second);
    let (names, mut unified) = (names(args), diff.unified_diff());
    if args.brief {
        writeln!(out, "{} and {} differ", names.0, names.1)?;
        return Ok(false);
    }
    let text = unified.context_radius(3).header(&names.0, &names.1).to_string();
    for line in text.lines() {
        let line = match line.as_bytes().first() {
            Some(b'-') => style(line).red(),
            Some(b'+') => style(line).green(),
            Some(b'@') => style(line).cyan(),
            _ => style(line),
        };
        writeln!(out, "{line}")?;
    }
    Ok(false)
}

fn names(args: &Args) -> (String, String) {
    (args.first.display().to_string(), args.second.display().to_string())
}

/// What packets are aligned by.
#[derive(Default)]
struct Hashes {
    /// Of all bytes.
    exact: Vec<u64>,
    /// Of who sends how much to whom: for those that changed.
    shape: Vec<u64>,
}

fn hashes(path: &Path) -> Result<Hashes, Stopped> {
    if path == Path::new("-") {
        return Err(Stopped::Input(anyhow::anyhow!(
            "a capture is read twice, which standard input cannot be: write it to a file"
        )));
    }
    let mut hashes = Hashes::default();
    for packet in Capture::open(path)? {
        let packet = packet?;
        let outline = Outline::of(&packet.data);
        hashes.exact.push(hash(&(&packet.data, packet.original_length)));
        hashes.shape.push(hash(&(
            outline.addresses,
            outline.protocol,
            outline.ports,
            packet.original_length,
        )));
    }
    Ok(hashes)
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// How many packets are what.
#[derive(Default)]
struct Counts {
    same: u64,
    changed: u64,
    only_first: u64,
    only_second: u64,
}

/// One side of a comparison: a capture and how far it was read.
struct Side {
    capture: Capture,
    number: u64,
    first_ns: Option<u64>,
}

impl Side {
    fn new(path: &Path) -> Result<Self, Stopped> {
        Ok(Self {
            capture: Capture::open(path)?,
            number: 0,
            first_ns: None,
        })
    }

    /// The next packet and its number. It was there when the hashes were taken.
    fn next(&mut self) -> Result<(u64, Packet), Stopped> {
        let changed = || Stopped::Input(anyhow::anyhow!("a capture changed while it was read"));
        let packet = self.capture.next().ok_or_else(changed)??;
        self.first_ns.get_or_insert(packet.at_ns);
        self.number += 1;
        Ok((self.number, packet))
    }

    fn since_ns(&self, packet: &Packet) -> i128 {
        i128::from(packet.at_ns) - i128::from(self.first_ns.unwrap_or(packet.at_ns))
    }
}

fn by_packet(args: &Args, out: &mut impl Write) -> Result<bool, Stopped> {
    let (first, second) = (hashes(&args.first)?, hashes(&args.second)?);
    let deadline = Instant::now() + ALIGNING;
    let align = |a: &[u64], b: &[u64]| capture_diff_slices_deadline(Algorithm::Myers, a, b, Some(deadline));
    let mut comparison = Comparison {
        args,
        sides: [Side::new(&args.first)?, Side::new(&args.second)?],
        counts: Counts::default(),
        headed: false,
    };
    for operation in align(&first.exact, &second.exact) {
        let DiffOp::Replace { .. } = operation else {
            comparison.follow(&operation, out)?;
            continue;
        };
        for operation in align(
            &first.shape[operation.old_range()],
            &second.shape[operation.new_range()],
        ) {
            comparison.follow(&operation, out)?;
        }
    }
    comparison.conclude(out)
}

struct Comparison<'a> {
    args: &'a Args,
    sides: [Side; 2],
    counts: Counts,
    headed: bool,
}

impl Comparison<'_> {
    fn follow(&mut self, operation: &DiffOp, out: &mut impl Write) -> Result<(), Stopped> {
        let (first, second) = (operation.old_range().len(), operation.new_range().len());
        // What stands in the same place is most likely the same packet, changed.
        let both = first.min(second);
        self.pairs(both, out)?;
        self.only(0, first - both, out)?;
        self.only(1, second - both, out)
    }

    fn pairs(&mut self, count: usize, out: &mut impl Write) -> Result<(), Stopped> {
        for _ in 0..count {
            let (first_number, first) = self.sides[0].next()?;
            let (second_number, second) = self.sides[1].next()?;
            let differences = self.differences(&first, &second);
            if differences.is_empty() {
                self.counts.same += 1;
                continue;
            }
            if !are_alike(&first, &second) {
                self.line(0, first_number, &first, out)?;
                self.line(1, second_number, &second, out)?;
                continue;
            }
            self.counts.changed += 1;
            if self.args.brief {
                continue;
            }
            self.head(out)?;
            let place = format!("@@ packet {first_number}, {second_number} @@");
            writeln!(out, "{} {}", style(place).cyan(), Dissection::of(&first.data))?;
            for difference in &differences {
                write_difference(difference, out)?;
            }
        }
        Ok(())
    }

    fn differences(&self, first: &Packet, second: &Packet) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut add = |what: &str, one: Option<String>, other: Option<String>| {
            if one != other {
                differences.push(Difference {
                    what: what.to_owned(),
                    first: one,
                    second: other,
                });
            }
        };
        add("comment", first.comment.clone(), second.comment.clone());
        if self.args.times {
            let time = |side: usize, packet| Some(format!("{} ns", self.sides[side].since_ns(packet)));
            add("time since the first", time(0, first), time(1, second));
        }
        let length = |packet: &Packet| Some(packet.original_length.to_string());
        add("original length", length(first), length(second));
        differences.extend(compare(&first.data, &second.data));
        differences
    }

    fn only(&mut self, side: usize, count: usize, out: &mut impl Write) -> Result<(), Stopped> {
        for _ in 0..count {
            let (number, packet) = self.sides[side].next()?;
            self.line(side, number, &packet, out)?;
        }
        Ok(())
    }

    /// A packet that only one side has.
    fn line(&mut self, side: usize, number: u64, packet: &Packet, out: &mut impl Write) -> Result<(), Stopped> {
        if side == 0 {
            self.counts.only_first += 1;
        } else {
            self.counts.only_second += 1;
        }
        if self.args.brief {
            return Ok(());
        }
        self.head(out)?;
        let comment = packet
            .comment
            .as_ref()
            .map_or(String::new(), |comment| format!("  # {comment}"));
        let text = format!("packet {number}  {}{comment}", Dissection::of(&packet.data));
        let text = if side == 0 {
            style(format!("- {text}")).red()
        } else {
            style(format!("+ {text}")).green()
        };
        writeln!(out, "{text}")?;
        Ok(())
    }

    fn head(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.headed {
            self.headed = true;
            let (first, second) = names(self.args);
            writeln!(
                out,
                "{}\n{}",
                style(format!("--- {first}")).bold(),
                style(format!("+++ {second}")).bold()
            )?;
        }
        Ok(())
    }

    /// Says how many are what, unless all are the same; whether they are.
    fn conclude(&self, out: &mut impl Write) -> Result<bool, Stopped> {
        let Counts {
            same,
            changed,
            only_first,
            only_second,
        } = self.counts;
        if changed + only_first + only_second == 0 {
            return Ok(true);
        }
        let (first, second) = names(self.args);
        let [changed, only_first, only_second, same] = [changed, only_first, only_second, same].map(number);
        writeln!(
            out,
            "{changed} changed, {only_first} only in {first}, {only_second} only in {second}, {same} the same"
        )?;
        Ok(false)
    }
}

/// Whether two packets are worth comparing by field: they are of one protocol and have an address in common, or are
/// none of IP's.
fn are_alike(first: &Packet, second: &Packet) -> bool {
    let (a, b) = (Outline::of(&first.data), Outline::of(&second.data));
    match (a.addresses, b.addresses) {
        (Some(one), Some(other)) => a.protocol == b.protocol && (one.0 == other.0 || one.1 == other.1),
        (None, None) => true,
        _ => false,
    }
}

fn write_difference(difference: &Difference, out: &mut impl Write) -> io::Result<()> {
    let side = |text: &Option<String>| text.as_deref().unwrap_or("(none)").replace('\n', "; ");
    let (first, second) = (side(&difference.first), side(&difference.second));
    if first.len() + second.len() <= 60 {
        return writeln!(
            out,
            "    {:<24} {} -> {}",
            difference.what,
            style(first).red(),
            style(second).green()
        );
    }
    writeln!(out, "    {}", difference.what)?;
    writeln!(out, "      {}", style(format!("- {first}")).red())?;
    writeln!(out, "      {}", style(format!("+ {second}")).green())
}
