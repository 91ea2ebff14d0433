//! Why the kernel's verifier refused a program, in the lines of its log that matter.

use std::{
    fmt::{self, Display},
    fs, io,
};

/// The environment variable that names a file to write the whole log of a refusal to.
pub const LOG_VARIABLE: &str = "LUMENLINK_VERIFIER_LOG";

/// Most lines that are taken for the verifier's message; of a log that is not understood, that many are shown.
const MESSAGE_LINES: usize = 12;

/// Lines that are bookkeeping, by how they start.
const NOISE: [&str; 8] = [
    "mark_precise",
    "verification time",
    "stack depth",
    "processed ",
    "func#",
    "propagating r",
    "Validating ",
    "Func#",
];

/// What the verifier found fault with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Its words, one line or a few.
    pub message: String,
    /// The instruction that it had come to, with its number.
    pub instruction: Option<String>,
    /// The line of source code that the instruction comes from, if the object says so.
    pub source: Option<String>,
    /// Lines of the log.
    pub lines: usize,
}

impl Refusal {
    /// Finds them in a log; `None` if there is nothing in it.
    #[must_use]
    pub fn read(log: &str) -> Option<Self> {
        let all: Vec<&str> = log.lines().map(str::trim_end).collect();
        let said: Vec<&str> = all
            .iter()
            .copied()
            .filter(|line| !line.is_empty() && !NOISE.iter().any(|start| line.starts_with(start)))
            .collect();
        let (walk, message) = said.split_at(said.iter().rposition(|line| is_walk(line)).map_or(0, |last| last + 1));
        // A log that ends with an instruction was cut: that one is all there is to say.
        let message = if message.is_empty() { walk } else { message };
        if message.is_empty() {
            return None;
        }
        let instruction = walk.iter().rposition(|line| is_instruction(line));
        Some(Self {
            message: message[message.len().saturating_sub(MESSAGE_LINES)..].join("\n"),
            instruction: instruction.map(|at| walk[at].split(';').next().unwrap_or_default().trim_end().to_owned()),
            source: instruction
                .and_then(|at| walk[..at].iter().rev().find_map(|line| line.strip_prefix("; ")))
                .map(str::to_owned),
            lines: all.len(),
        })
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(instruction) = &self.instruction {
            write!(f, "\n  instruction {instruction}")?;
        }
        if let Some(source) = &self.source {
            write!(f, "\n  source code {source}")?;
        }
        Ok(())
    }
}

/// What to tell of a load that failed with this error and log; writes the log to the file that [`LOG_VARIABLE`] names.
#[must_use]
pub fn explain(error: &io::Error, log: &str) -> String {
    let Some(refusal) = Refusal::read(log) else {
        return error.to_string();
    };
    let lines = refusal.lines;
    let kept = match std::env::var_os(LOG_VARIABLE) {
        None => format!("{LOG_VARIABLE}=FILE keeps all {lines} lines of the verifier's log"),
        Some(file) => {
            let shown = file.display();
            match fs::write(&file, log) {
                Ok(()) => format!("all {lines} lines of the verifier's log are in {shown}"),
                Err(error) => format!("the verifier's log could not be written to {shown}: {error}"),
            }
        }
    };
    format!("{error}\n{refusal}\n  ({kept})")
}

/// Whether a line tells of the verifier's way through the program: an instruction, the state of registers, a line of
/// source code or a jump from one place to another.
fn is_walk(line: &str) -> bool {
    number(line).is_some() || line.starts_with("; ") || (line.starts_with("from ") && line.contains(" to "))
}

/// `12: (71) r0 = *(u8 *)(r1 +13)`
fn is_instruction(line: &str) -> bool {
    number(line).is_some_and(|rest| rest.starts_with(" ("))
}

/// What follows an instruction's number.
fn number(line: &str) -> Option<&str> {
    let (number, rest) = line.split_once(':')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(lines: usize) -> String {
        (0..lines).map(|line| format!("{line}: (bf) r1 = r2\n")).collect()
    }

    #[test]
    fn of_a_long_log_the_message_the_instruction_and_its_source_are_shown() {
        let log = walk(4_000)
            + "; return *(__u8 *)(data + 13); @ refused.c:9\n\
               4000: (71) r0 = *(u8 *)(r1 +13)        ; R1=pkt(off=0,r=0)\n\
               mark_precise: frame0: regs=r1\n\
               invalid access to packet, off=13 size=1, R1(id=0,off=13,r=0)\n\
               R1 offset is outside of the packet\n\
               processed 87 insns (limit 1000000)\n";
        let refusal = Refusal::read(&log).expect("there is a log");
        assert_eq!(
            refusal.to_string(),
            "invalid access to packet, off=13 size=1, R1(id=0,off=13,r=0)\n\
             R1 offset is outside of the packet\n  \
             instruction 4000: (71) r0 = *(u8 *)(r1 +13)\n  \
             source code return *(__u8 *)(data + 13); @ refused.c:9"
        );
        assert_eq!(refusal.lines, 4_006);
    }

    #[test]
    fn a_message_without_a_walk_is_shown() {
        let refusal = Refusal::read("unreachable insn 5\nprocessed 0 insns\n").expect("there is a log");
        assert_eq!(refusal.to_string(), "unreachable insn 5");
    }

    #[test]
    fn of_a_log_that_is_all_walk_the_end_is_shown() {
        let refusal = Refusal::read(&walk(4_000)).expect("there is a log");
        assert_eq!(refusal.message.lines().count(), MESSAGE_LINES);
        assert!(refusal.message.ends_with("3999: (bf) r1 = r2"), "{refusal}");
    }

    #[test]
    fn of_a_long_message_the_end_is_shown() {
        let log: String = (0..100).map(|line| format!("line {line}\n")).collect();
        let refusal = Refusal::read(&log).expect("there is a log");
        assert_eq!(refusal.message.lines().count(), MESSAGE_LINES);
        assert!(refusal.message.ends_with("line 99"), "{refusal}");
    }

    #[test]
    fn an_empty_log_says_nothing() {
        assert_eq!(Refusal::read(" \n\nprocessed 1 insns\n"), None);
        assert_eq!(explain(&io::Error::other("no"), ""), "no");
    }
}
