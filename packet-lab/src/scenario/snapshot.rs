//! Snapshots of scenarios: stable text, small, in the file format of insta, so that `cargo insta review` shows them.

use std::{fmt::Write as _, fs, io, path::Path};

use super::{
    file::Part,
    load::Scenario,
    outcome::{PacketOutcome, StepOutcome},
    value::Time,
};

/// The file in a scenario's folder.
pub const FILE_NAME: &str = "expected.snap";
/// What insta calls the snapshot in it.
pub const NAME: &str = "expected";

/// The text of a snapshot.
#[must_use]
pub fn text(scenario: &Scenario, steps: &[StepOutcome]) -> String {
    let parts = &scenario.file.snapshot.include;
    let mut text = scenario.file.name.clone();
    text.push('\n');
    for step in steps {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\nstep {} at {}: {}\n",
            step.number,
            Time(step.at_ns),
            step.heading
        );
        describe(&mut text, step, parts);
    }
    text
}

fn describe(text: &mut String, step: &StepOutcome, parts: &[Part]) {
    let has = |part| parts.contains(&part);
    for (nth, packet) in step.packets.iter().enumerate() {
        let nth = (step.packets.len() > 1).then_some(nth);
        describe_packet(text, packet, nth, has(Part::Verdicts), has(Part::Packets));
    }
    if step.packets.is_empty() && has(Part::Verdicts) {
        for total in &step.totals {
            let reason = total.reason.as_deref().unwrap_or("nothing counted");
            let _ = writeln!(text, "  {} {}: {}", total.verdict, reason, packets(total.packets));
        }
    }
    if let Some(digest) = step.digest.as_ref().filter(|_| has(Part::Packets)) {
        let _ = writeln!(text, "  outputs: SHA-256 {digest}");
    }
    for remark in &step.remarks {
        let _ = writeln!(text, "  {remark}");
    }
    for change in step.users.iter().filter(|_| has(Part::Maps)) {
        let whose = match change.user {
            Some(id) => format!("user {id} in slot {}", change.slot),
            None => format!("slot {}", change.slot),
        };
        let _ = writeln!(text, "  {whose}:");
        for (field, before, after) in &change.fields {
            let _ = writeln!(text, "    {field}: {before} -> {after}");
        }
    }
    for change in step.destinations.iter().filter(|_| has(Part::Maps)) {
        let (before, after) = change.tat_ns;
        let _ = writeln!(text, "  destination {}: tat_ns {before} -> {after}", change.to);
    }
    for counted in step.counters.iter().filter(|_| has(Part::Counters)) {
        let (counter, bytes) = (&counted.counter, counted.bytes);
        let _ = writeln!(text, "  counted {counter}: {}, {bytes} bytes", packets(counted.packets));
    }
    if step.answers > 0 && has(Part::Counters) {
        let _ = writeln!(text, "  ICMP messages: {}", step.answers);
    }
}

fn describe_packet(text: &mut String, packet: &PacketOutcome, nth: Option<usize>, verdicts: bool, bytes: bool) {
    let nth = nth.map(|nth| format!("packet {nth}: ")).unwrap_or_default();
    let reason = packet.reason.as_deref().unwrap_or("");
    let unchanged = if packet.output.is_none() { ", unchanged" } else { "" };
    if verdicts {
        let line = format!("  {nth}{} {reason}", packet.verdict);
        let _ = writeln!(text, "{}{unchanged}", line.trim_end());
    }
    let Some(output) = packet.output.as_ref().filter(|_| bytes) else {
        return;
    };
    for line in &output.decoded {
        let _ = writeln!(text, "    {line}");
    }
    for (row, digits) in output.hex.as_bytes().chunks(32).enumerate() {
        let words: Vec<_> = digits.chunks(4).map(String::from_utf8_lossy).collect();
        let _ = writeln!(text, "    {:04x}: {}", 16 * row, words.join(" "));
    }
}

fn packets(count: u64) -> String {
    if count == 1 {
        "1 packet".to_owned()
    } else {
        format!("{count} packets")
    }
}

/// The snapshot that is kept in a folder; `None` if there is none.
///
/// # Errors
/// If it cannot be read.
pub fn read(folder: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(folder.join(FILE_NAME)) {
        Ok(text) => Ok(Some(contents(&text).to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Behind the lines about it, which end with the second `---`.
fn contents(text: &str) -> &str {
    let head = text.strip_prefix("---\n");
    let behind = head.and_then(|head| head.split_once("\n---\n"));
    behind.map_or(text, |(_, contents)| contents)
}

/// Keeps a snapshot, in place of the one before.
///
/// # Errors
/// If it cannot be written.
pub fn write(folder: &Path, text: &str) -> io::Result<()> {
    let head = "---\nsource: scenarios/scenarios.rs\n---\n";
    let text = text.trim_end();
    fs::write(folder.join(FILE_NAME), format!("{head}{text}\n"))?;
    // What a test left for review is about another snapshot now.
    match fs::remove_file(folder.join(format!("{FILE_NAME}.new"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether two are the same, apart from white space at their ends.
#[must_use]
pub fn same(a: &str, b: &str) -> bool {
    a.trim() == b.trim()
}
