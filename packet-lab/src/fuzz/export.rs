//! A failure as a scenario: a folder to run, to look at, and to keep.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use relay_ebpf::verdict::Direction;

use super::{Action, Failure, Sequence};
use crate::{
    Observation, Verdict,
    capture::CaptureError,
    scenario::{
        BackendKind, Bytes, Destination, DirectionName, Expect, FILE_NAME, File, Key, Mac, NextHop, Out, Ports,
        ReasonName, Relay, SCHEMA, Send, Step, Time, Unmatched, User, VerdictName, Vlan, to_toml,
    },
    world::{self, World},
};

/// The longest and shortest frames that every backend takes.
const EVERYWHERE: std::ops::RangeInclusive<usize> = 14..=3_500;

/// Why a scenario was not left behind.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// It has no form as TOML.
    #[error("the failure has no form as a scenario: {0}")]
    Toml(#[from] toml::ser::Error),
    /// The folder or a file cannot be written.
    #[error("writing {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A capture cannot be written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

impl Failure {
    /// The sequence as a scenario that expects, after its last step, what the oracle says.
    #[must_use]
    pub fn scenario(&self, seed: u64) -> File {
        let (world, sequence) = self.found;
        let other = self.sides.as_ref().map_or("the program", |sides| sides.second);
        let mut file = scenario(&self.sequence);
        file.name = format!(
            "the oracle and {other} agree about what fuzzing with seed {seed} found in sequence {sequence} of world \
             {world}"
        );
        if let (Some(sides), Some(last)) = (&self.sides, file.steps.last_mut()) {
            last.expect = Some(expect(&sides.expected));
        }
        file
    }

    /// Writes the scenario into a folder of its own in `out`, with captures of both sides, and gives the folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn leave(&self, seed: u64, out: &Path) -> Result<PathBuf, LeaveError> {
        let (world, sequence) = self.found;
        let folder = out.join(format!("fuzz_{seed}_{world}_{sequence}"));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LeaveError::Write { path, source }
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = folder.join(FILE_NAME);
        fs::write(&path, to_toml(&self.scenario(seed))?).map_err(failed(&path))?;
        if let Some(sides) = &self.sides {
            let at_ns = self.sequence.steps.last().map_or(0, |step| step.at_ns);
            sides.leave_captures(&folder, at_ns)?;
        }
        Ok(folder)
    }
}

/// What the oracle says of a frame.
fn expect(observed: &Observation) -> Expect {
    let unchanged = observed.output == observed.input;
    let reason = observed.reason();
    Expect {
        verdict: Some(VerdictName(observed.verdict)),
        reason: reason.map(|(_, reason)| ReasonName(reason)),
        direction: reason.map(|(direction, _): (Direction, _)| DirectionName(direction)),
        unchanged: (unchanged && observed.verdict != Verdict::Tx).then_some(true),
        out: (!unchanged).then(|| Out {
            frame: Some(Bytes::Hex(observed.output.clone())),
            ..Out::default()
        }),
        ..Expect::default()
    }
}

/// Any sequence as a scenario.
fn scenario(sequence: &Sequence) -> File {
    let World {
        destinations, users, ..
    } = &sequence.world;
    let mut names = Names::default();
    let users = users.iter().map(|user| names.user(user)).collect();
    let mut steps = Vec::new();
    for step in &sequence.steps {
        let at = Some(Time(step.at_ns));
        steps.extend(names.steps(&step.action).into_iter().map(|step| Step { at, ..step }));
    }
    let everywhere = |step: &super::Step| match &step.action {
        Action::Send(frame) => EVERYWHERE.contains(&frame.len()),
        _ => true,
    };
    let short = !sequence.steps.iter().all(everywhere);
    File {
        schema: SCHEMA,
        tags: vec!["fuzz".to_owned()],
        backends: short.then(|| vec![BackendKind::Host, BackendKind::Oracle]),
        relay: Some(relay(&sequence.world)),
        destinations: destinations.iter().map(destination).collect(),
        users,
        steps,
        ..File::default()
    }
}

fn relay(world: &World) -> Relay {
    Relay {
        listen: Some(world.listeners.clone()),
        egress: Some(world.egress.clone()),
        egress_ports: Some(Ports {
            first: world.first_egress_port,
            last: world.first_egress_port + (world.egress_ports - 1),
        }),
        relay_id: Some(world.relay_id),
        max_users: Some(world.max_users),
        header_protection: Some(world.header_key.is_some()),
        header_key: world.header_key.map(Key),
        carrier: Some(world.carriers.clone()),
        unmatched: world.drop_unmatched.then_some(Unmatched::Drop),
        mtu: Some(world.mtu),
        first_buffer: world.first_buffer,
        icmp_per_second: Some(world.icmp_per_second),
        destination_packets_per_second: world.destination_limit.map(|limit| limit.rate),
        destination_burst: world.destination_limit.map(|limit| limit.burst),
        mac: Some(Mac(world.mac)),
        interfaces: None,
        vlan: world.vlan.then_some(true),
        blocklist: Vec::new(),
    }
}

fn vlan(tags: world::Tags) -> Vec<Vlan> {
    let vlan = |tag: world::Tag| Vlan {
        id: tag.control & 0xfff,
        priority: (tag.control >> 13) as u8,
        kind: Some(tag.kind),
    };
    tags.iter().map(vlan).collect()
}

fn destination(known: &world::Destination) -> Destination {
    Destination {
        to: known.to,
        mac: known.next_hop.map(|hop| Mac(hop.mac)),
        mtu: known.next_hop.map(|hop| hop.mtu),
        vlan: known.next_hop.map_or_else(Vec::new, |hop| vlan(hop.tags)),
        interface: known.next_hop.map(|hop| hop.interface).filter(|number| *number != 0),
        resolved: known.next_hop.is_none().then_some(false),
    }
}

/// The users that there are: each gets a number when it comes.
#[derive(Default)]
struct Names {
    last: u64,
    by_slot: BTreeMap<u32, u64>,
}

impl Names {
    fn user(&mut self, user: &world::User) -> User {
        self.last += 1;
        self.by_slot.insert(user.slot, self.last);
        User {
            id: self.last,
            to: user.to,
            rate: Some(user.rate),
            burst: Some(user.burst),
            down_rate: user.down_limit.map(|limit| limit.rate),
            down_burst: user.down_limit.map(|limit| limit.burst),
            expires_at: user.expires_ns.map(Time),
            slot: Some(user.slot),
            salt: Some(user.salt),
            key: Some(Key(user.key)),
        }
    }

    /// The steps that do the same; whoever has a slot is removed before it is given to another.
    fn steps(&mut self, action: &Action) -> Vec<Step> {
        match action {
            Action::Send(frame) => vec![send(frame)],
            Action::Publish(user) => {
                let mut steps = self.steps(&Action::Remove(user.slot));
                steps.push(Step {
                    add_user: Some(self.user(user)),
                    ..Step::default()
                });
                steps
            }
            Action::Remove(slot) => {
                let remove = |id| Step {
                    remove_user: Some(id),
                    ..Step::default()
                };
                self.by_slot.remove(slot).map(remove).into_iter().collect()
            }
            Action::NextHop(to, hop) => vec![next_hop(*to, *hop)],
            Action::Blocklist(prefixes) => vec![Step {
                blocklist: Some(prefixes.clone()),
                ..Step::default()
            }],
        }
    }
}

fn send(frame: &[u8]) -> Step {
    Step {
        send: Some(Send {
            frame: Some(Bytes::Hex(frame.to_vec())),
            ..Send::default()
        }),
        ..Step::default()
    }
}

fn next_hop(to: SocketAddr, hop: Option<world::NextHop>) -> Step {
    Step {
        next_hop: Some(NextHop {
            to,
            lost: hop.is_none(),
            mac: hop.map(|hop| Mac(hop.mac)),
            mtu: hop.map(|hop| hop.mtu),
            vlan: hop.map_or_else(Vec::new, |hop| vlan(hop.tags)),
            interface: hop.map(|hop| hop.interface).filter(|number| *number != 0),
        }),
        ..Step::default()
    }
}
