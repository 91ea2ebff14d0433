//! The fuzzer: the backends that there are agree, and one that is wrong is found, and its fault made small.

use std::net::SocketAddr;

use ipnet::IpNet;
use packet_lab::{
    Backend, Verdict, World,
    backend::{BackendError, Counters, Processed, UserState, host::HostBackend, kernel::KernelBackend},
    craft::Grant,
    fuzz::{Action, Corpus, Failure, Options, Outcome, run},
    inspect::UdpFrameView,
    observe::differences,
    scenario::{self, BackendKind, Scenario},
    world::{Limit, NextHop, User},
};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::has_capabilities;

fn options(seed: u64, packets: u64) -> Options {
    Options {
        seed,
        packets,
        corpus: Corpus::default(),
    }
}

fn host(world: &World) -> Result<Box<dyn Backend>, BackendError> {
    Ok(Box::new(HostBackend::new(world)?))
}

fn kernel(world: &World) -> Result<Box<dyn Backend>, BackendError> {
    Ok(Box::new(KernelBackend::new(world)?))
}

fn assert_alike(outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        panic!("{failure}");
    }
    assert_eq!(
        outcome.missed(),
        [],
        "a run that does not reach a reason says nothing of it"
    );
}

#[test]
fn the_host_does_what_the_oracle_says_for_every_reason() {
    assert_alike(&run(&options(4, 60_000), &mut host, &mut |_| {}).unwrap());
}

#[test]
fn the_kernel_does_what_the_oracle_says_for_every_reason() {
    if has_capabilities() {
        assert_alike(&run(&options(2, 60_000), &mut kernel, &mut |_| {}).unwrap());
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let reached = |seed| run(&options(seed, 2_000), &mut host, &mut |_| {}).unwrap().reached;
    assert_eq!(reached(3), reached(3));
    assert_ne!(reached(3), reached(4));
}

/// What is wrong with a backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// The TTL of an IPv4 packet is sent on as it came, checksum and all.
    KeepsTtl,
    /// The checksum of an IPv4 header is adjusted without the last carry.
    ForgetsACarry,
    /// The replay window is one number too short.
    ShortWindow,
    /// One packet more than the burst passes.
    LargeBurst,
    /// One answer more than the downlink's burst passes.
    LargeDownBurst,
    /// One packet more than the burst of a destination passes.
    LargeDestinationBurst,
    /// A grant ends a nanosecond late.
    LateExpiry,
    /// An IPv6 payload length is believed.
    BelievesIpv6Length,
    /// The bytes that a user got are not kept.
    ForgetsAUser,
}

/// A host backend with a fault.
struct Faulty {
    host: HostBackend,
    fault: Fault,
    world: World,
    users: Vec<User>,
    /// Bytes that were counted and did not come.
    believed: Counters,
}

impl Faulty {
    fn new(world: &World, fault: Fault) -> Result<Self, BackendError> {
        let mut nobody = World {
            users: Vec::new(),
            ..world.clone()
        };
        if let (Fault::LargeDestinationBurst, Some(limit)) = (fault, &mut nobody.destination_limit) {
            limit.burst += 1;
        }
        let mut faulty = Self {
            host: HostBackend::new(&nobody)?,
            fault,
            world: world.clone(),
            users: Vec::new(),
            believed: Counters::new(),
        };
        world.users.iter().try_for_each(|user| faulty.publish(user))?;
        Ok(faulty)
    }

    /// Whether this frame has the oldest number that its user's replay window still takes, for the first time.
    fn is_oldest(&self, frame: &[u8]) -> bool {
        let Ok(view) = UdpFrameView::read(frame) else {
            return false;
        };
        self.users.iter().any(|user| {
            let grant = Grant {
                slot: user.slot,
                salt: user.salt,
                key: user.key,
                header_key: self.world.header_key,
                relay_id: self.world.relay_id,
            };
            let state = self.host.user(user.slot);
            let is_new = |pn: u64| !state.accepted.iter().any(|range| range.contains(&pn));
            grant
                .open(&view.payload)
                .is_some_and(|pn| pn.checked_add(511) == Some(state.newest) && is_new(pn))
        })
    }
}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn takes(&self, frame: &[u8]) -> bool {
        self.host.takes(frame)
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        // And UDP: what is relayed and stays in its family, not ICMP.
        let is_ipv4 = |frame: &[u8]| frame.get(12..15) == Some(&[0x08, 0x00, 0x45]) && frame.get(23) == Some(&17);
        let is_ipv6 = frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.len() >= 54;
        if self.fault == Fault::ShortWindow && self.is_oldest(frame) {
            return Ok(Processed {
                verdict: Verdict::Drop,
                egress: None,
                frame: frame.to_vec(),
            });
        }
        if self.fault == Fault::BelievesIpv6Length && is_ipv6 {
            let claimed = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            let mut believed = frame.to_vec();
            believed.resize(claimed.clamp(frame.len(), 2_000), 0);
            let before = self.host.counters()?;
            let mut processed = self.host.process_on(now_ns, interface, &believed)?;
            for (key, traffic) in self.host.counters()? {
                if before.get(&key) != Some(&traffic) {
                    self.believed.entry(key).or_default().bytes += (believed.len() - frame.len()) as u64;
                }
            }
            if processed.verdict != Verdict::Tx {
                processed.frame = frame.to_vec();
            }
            return Ok(processed);
        }
        let mut processed = self.host.process_on(now_ns, interface, frame)?;
        // Uplink, where one packet shows it: a token is taken off.
        let is_shorter = processed.frame.len() < frame.len();
        if processed.verdict == Verdict::Tx && is_shorter && is_ipv4(frame) && is_ipv4(&processed.frame) {
            let after = &mut processed.frame;
            match self.fault {
                Fault::KeepsTtl => after[22] = frame[22],
                Fault::ForgetsACarry => {
                    let checksum = u16::from_be_bytes([after[24], after[25]]).wrapping_add(1);
                    after[24..26].copy_from_slice(&checksum.to_be_bytes());
                }
                _ => {}
            }
        }
        Ok(processed)
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        let mut counters = self.host.counters()?;
        for (key, traffic) in &mut counters {
            traffic.bytes -= self.believed.get(key).map_or(0, |believed| believed.bytes);
        }
        Ok(counters)
    }

    fn answers(&self) -> Result<u64, BackendError> {
        self.host.answers()
    }

    fn user(&self, slot: u32) -> UserState {
        let mut state = self.host.user(slot);
        if self.fault == Fault::ForgetsAUser {
            state.downlink.bytes = 0;
        }
        state
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        self.host.destination_tat(to)
    }

    fn forget_shared_limits(&mut self) {
        self.host.forget_shared_limits();
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        let mut user = *user;
        match self.fault {
            Fault::LargeBurst => user.burst = user.burst.saturating_add(1),
            Fault::LargeDownBurst => {
                let larger = |limit: Limit| Limit {
                    burst: limit.burst.saturating_add(1),
                    ..limit
                };
                user.down_limit = user.down_limit.map(larger);
            }
            Fault::LateExpiry => user.expires_ns = user.expires_ns.map(|at_ns| at_ns + 1),
            _ => {}
        }
        self.users.retain(|other| other.slot != user.slot);
        self.users.push(user);
        self.host.publish(&user)
    }

    fn remove(&mut self, slot: u32) {
        self.users.retain(|other| other.slot != slot);
        self.host.remove(slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        self.host.set_next_hop(to, next_hop)
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        self.host.set_blocklist(prefixes)
    }
}

fn find(fault: Fault) -> Box<Failure> {
    let mut make =
        |world: &World| -> Result<Box<dyn Backend>, BackendError> { Ok(Box::new(Faulty::new(world, fault)?)) };
    let outcome = run(&options(4, 200_000), &mut make, &mut |_| {}).unwrap();
    outcome.failure.unwrap_or_else(|| panic!("{fault:?} was not found"))
}

/// Each fault is shown by as many packets as it takes, and no more, and in a field that tells of it.
#[rstest]
#[case::a_ttl_that_is_kept(Fault::KeepsTtl, 1, "output ipv4 ttl")]
#[case::a_carry_that_is_forgotten(Fault::ForgetsACarry, 1, "output ipv4 checksum")]
#[case::a_window_that_is_one_too_short(Fault::ShortWindow, 2, "accepted")]
#[case::a_grant_that_ends_a_nanosecond_late(Fault::LateExpiry, 1, "expired")]
#[case::an_ipv6_length_that_is_believed(Fault::BelievesIpv6Length, 1, "truncated")]
#[case::a_state_that_is_not_kept(Fault::ForgetsAUser, 2, "downlink")]
fn a_planted_fault_is_found_and_made_small(#[case] fault: Fault, #[case] steps: usize, #[case] field: &str) {
    let failure = find(fault);
    let sent = failure
        .sequence
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::Send(_)));
    assert_eq!(sent.count(), steps, "{failure}");
    let sides = failure.sides.as_ref().expect("backends that are made anew show it too");
    let fields = differences(&sides.expected, &sides.actual);
    assert!(
        fields
            .iter()
            .any(|(name, expected, actual)| [name, expected, actual].iter().any(|text| text.contains(field))),
        "{failure}"
    );
    assert!(failure.to_string().contains("oracle and faulty disagree"), "{failure}");
}

#[rstest]
#[case::of_a_user(Fault::LargeBurst, Direction::Uplink, Reason::RateLimited)]
#[case::of_a_downlink(Fault::LargeDownBurst, Direction::Downlink, Reason::RateLimited)]
#[case::of_a_destination(Fault::LargeDestinationBurst, Direction::Uplink, Reason::DestinationLimited)]
fn a_burst_that_is_one_too_large_is_found_and_made_small(
    #[case] fault: Fault,
    #[case] direction: Direction,
    #[case] reason: Reason,
) {
    let failure = find(fault);
    let sides = failure.sides.as_ref().expect("backends that are made anew show it too");
    let limited = Some((direction, reason));
    assert_eq!(sides.expected.reason(), limited, "{failure}");
    assert_ne!(sides.actual.reason(), limited, "{failure}");
    assert!(failure.sequence.steps.len() <= 11, "{failure}");
}

#[rstest]
#[case::in_a_single_packet(Fault::KeepsTtl)]
#[case::in_a_sequence(Fault::ShortWindow)]
fn a_failure_is_left_as_a_scenario_that_the_right_backends_pass(#[case] fault: Fault) {
    let out = tempfile::tempdir().unwrap();
    let folder = find(fault).leave(7, out.path()).unwrap();
    for name in ["input.pcapng", "expected.pcapng", "actual.pcapng"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    let scenario = Scenario::load(&folder).unwrap_or_else(|error| panic!("{error}"));
    let outcome = scenario::run(
        &scenario,
        &[BackendKind::Host, BackendKind::Oracle],
        scenario::Options::default(),
    );
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    assert_eq!(outcome.steps.len(), scenario.file.steps.len());
}

#[test]
fn scenarios_and_captures_are_varied_and_a_corpus_without_any_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let mut corpus = Corpus::default();
    let error = corpus.add(out.path()).unwrap_err();
    assert!(error.to_string().contains("neither scenarios nor captures"), "{error}");

    find(Fault::ShortWindow).leave(7, out.path()).unwrap();
    corpus.add(out.path()).unwrap();
    assert_eq!((corpus.sequences.len(), corpus.frames.len()), (1, 3));
    let options = Options {
        corpus,
        ..options(4, 130_000)
    };
    let outcome = run(&options, &mut host, &mut |_| {}).unwrap();
    assert_alike(&outcome);
    assert!(outcome.worlds >= 2, "the second world is the scenario's");
}
