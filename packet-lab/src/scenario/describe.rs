//! A scenario for people: who is there, what happens, what is expected.

use std::fmt::Write as _;

use super::{
    file::{Expect, Step},
    load::Scenario,
    relay::{BURST, RATE},
    snapshot, words,
};
use crate::{
    inspect,
    world::{Limit, World},
};

impl Scenario {
    /// The scenario in words: its world, its steps and its last snapshot.
    ///
    /// # Errors
    /// If there is a snapshot that cannot be read.
    pub fn describe(&self) -> std::io::Result<String> {
        let mut text = format!("{}: {}\n", self.id(), self.file.name);
        if !self.file.tags.is_empty() {
            let _ = writeln!(text, "tags: {}", self.file.tags.join(", "));
        }
        let backends: Vec<&str> = self.backends().iter().map(|kind| kind.name()).collect();
        let _ = writeln!(text, "backends: {}\n", backends.join(", "));
        match (&self.file.program, self.world()) {
            (Some(program), _) => {
                let _ = writeln!(text, "program {} of {}", program.name, program.object.display());
            }
            (None, Some(world)) => self.describe_world(&world, &mut text),
            (None, None) => {}
        }
        text.push_str("\nsteps\n");
        for (number, step) in self.file.steps.iter().enumerate() {
            describe_step(number, step, &mut text);
        }
        match snapshot::read(&self.folder)? {
            Some(kept) => {
                let _ = write!(text, "\n{}\n{}", snapshot::FILE_NAME, indented(&kept));
            }
            None => {
                let _ = writeln!(
                    text,
                    "\nno snapshot yet: `packet-lab run {} --update` takes it",
                    self.folder.display()
                );
            }
        }
        Ok(text)
    }

    fn describe_world(&self, world: &World, text: &mut String) {
        let list = |addresses: Vec<String>| addresses.join(", ");
        let masked = if world.header_key.is_some() { "masked" } else { "bare" };
        let end = u32::from(world.first_egress_port) + u32::from(world.egress_ports) - 1;
        let _ = writeln!(
            text,
            "relay {} at {}, tokens {masked}\n  listens on {}\n  sends from {}, ports {}-{end}, {} slots",
            world.relay_id,
            inspect::mac(world.mac),
            list(world.listeners.iter().map(ToString::to_string).collect()),
            list(world.egress.iter().map(ToString::to_string).collect()),
            world.first_egress_port,
            world.max_users,
        );
        if let Some(Limit { rate, burst }) = world.destination_limit {
            let _ = writeln!(text, "  to a destination {rate} packets/s, {burst} at once");
        }
        for user in &self.file.users {
            let (rate, burst) = (user.rate.unwrap_or(RATE), user.burst.unwrap_or(BURST));
            let _ = write!(
                text,
                "user {} for {}: {rate} packets/s, {burst} at once",
                user.id, user.to
            );
            if let Some(rate) = user.down_rate {
                let burst = user.down_burst.unwrap_or(BURST);
                let _ = write!(text, ", {rate} and {burst} downlink");
            }
            if let Some(expires_at) = user.expires_at {
                let _ = write!(text, ", until {expires_at}");
            }
            text.push('\n');
        }
        for destination in &world.destinations {
            let _ = match destination.next_hop {
                Some(hop) => {
                    let mac = inspect::mac(hop.mac);
                    writeln!(text, "destination {} by {mac}, MTU {}", destination.to, hop.mtu)
                }
                None => writeln!(text, "destination {}, unresolved", destination.to),
            };
        }
    }
}

fn describe_step(number: usize, step: &Step, text: &mut String) {
    let at = step.at.map(|at| format!("at {at}: ")).unwrap_or_default();
    let action = match (step.repeat_step, step.count) {
        (Some(earlier), _) => format!("step {earlier} again"),
        (None, Some(count)) => format!("{count} times {}", words::action(step)),
        (None, None) => words::action(step),
    };
    let _ = writeln!(text, "  {number:>3}  {at}{action}");
    if let Some(note) = &step.note {
        let _ = writeln!(text, "       # {note}");
    }
    let expected = step.expect.as_ref().map(expectation).unwrap_or_default();
    if !expected.is_empty() {
        let _ = writeln!(text, "       expect {expected}");
    }
}

fn expectation(expect: &Expect) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(expect.verdict.map(|verdict| verdict.to_string()));
    parts.extend(expect.direction.map(|direction| direction.to_string()));
    parts.extend(expect.reason.map(|reason| reason.to_string()));
    for (reason, packets) in expect.reasons.iter().flatten() {
        parts.push(format!("{packets} {reason}"));
    }
    if let Some(out) = &expect.out {
        parts.extend(out.from.map(|from| format!("out from {from}")));
        parts.extend(out.to.map(|to| format!("out to {to}")));
    }
    if expect.unchanged == Some(true) {
        parts.push("the frame unchanged".to_owned());
    }
    parts.extend(expect.client.map(|client| format!("the client at {client}")));
    if expect.state.is_some() {
        parts.push("no user's state changed".to_owned());
    }
    parts.join(", ")
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("  {line}").trim_end().to_owned() + "\n")
        .collect()
}
