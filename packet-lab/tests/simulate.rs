//! The simulation: the same run everywhere, and every invariant caught when it does not hold.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use ipnet::IpNet;
use packet_lab::Verdict;
use packet_lab::{
    Backend, World,
    backend::{
        BackendError, Counters, Processed, Traffic, UserState, counter, host::HostBackend,
        kernel::missing_capabilities, oracle::OracleBackend,
    },
    craft::UdpFrame,
    inspect::UdpFrameView,
    simulate::{Class, Invariant, Profile, Report, Subject, run},
    world::{NextHop, User},
};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

/// Some seconds of a few hundred users, all classes among them, and all attacks.
fn profile() -> Profile {
    let mut profile = Profile {
        users: 120,
        seconds: 2.0,
        ..Profile::default()
    };
    // So many that some packets arrive at the very edge of the replay window, on either side of it.
    profile.mix.insert(Class::Jittery, 40);
    profile.attack.values_mut().for_each(|pps| *pps /= 10);
    profile
}

type Made = Result<Subject, BackendError>;

fn host(world: &World) -> Made {
    Subject::new(Box::new(HostBackend::new(world)?))
}

fn report(profile: &Profile, make: &mut dyn FnMut(&World) -> Made) -> Report {
    run(profile, make, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// The run of most tests, through the host.
static USUAL: LazyLock<Report> = LazyLock::new(|| report(&profile(), &mut host));

fn assert_passed(report: &Report) {
    let violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(report.passed(), "{}", violations.join("\n"));
}

/// Whether this process may load programs; if not, says that the test is skipped, and why.
fn may_load_programs() -> bool {
    let missing = missing_capabilities().join(" and ");
    if !missing.is_empty() {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: a simulation through the kernel needs {missing}; run as root"
        );
    }
    missing.is_empty()
}

fn assert_snapshot(report: &Report) {
    assert_passed(report);
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("simulate", report.table());
    });
}

#[test]
fn the_host_gives_the_table_of_the_snapshot() {
    assert_snapshot(&USUAL);
}

#[test]
fn the_oracle_gives_the_table_of_the_snapshot() {
    let mut oracle = |world: &World| Subject::new(Box::new(OracleBackend::new(world)?));
    assert_snapshot(&report(&profile(), &mut oracle));
}

#[test]
fn the_kernel_gives_the_table_of_the_snapshot() {
    if may_load_programs() {
        assert_snapshot(&report(&profile(), &mut Subject::kernel));
    }
}

#[test]
fn a_seed_gives_the_same_run_and_another_seed_another() {
    let mut short = profile();
    short.seconds = 0.5;
    let json = |profile: &Profile| serde_json::to_value(report(profile, &mut host)).unwrap();
    assert_eq!(json(&short), json(&short));
    let other = Profile {
        seed: 2,
        ..short.clone()
    };
    assert_ne!(json(&short)["rows"], json(&other)["rows"]);
}

#[test]
fn what_was_offered_is_lost_or_treated() {
    let report = &*USUAL;
    assert_passed(report);
    assert_eq!(report.rows.len(), Class::ALL.len(), "every class is there");
    for row in &report.rows {
        let (up, down) = (row.uplink, row.downlink);
        assert_eq!(up.offered + up.duplicated, up.lost + up.relay.all(), "{row:?}");
        assert_eq!(down.offered, down.relay.all(), "{row:?}");
        assert_eq!(
            down.relay.of(Reason::Relayed),
            down.lost + row.reached + row.missed,
            "{row:?}"
        );
    }
    let slices = report.timeline.iter();
    let over_time: u64 = slices
        .map(|slice| slice.uplink.all() + slice.downlink.all() + slice.attack.all())
        .sum();
    assert_eq!(over_time, report.packets);
    let of_users = report.rows.iter().filter(|row| !row.attack);
    let treated: u64 = of_users
        .map(|row| row.uplink.relay.all() + row.downlink.relay.all())
        .sum();
    assert_eq!(report.compared, treated, "every packet of every user is compared");
}

/// Every class does what its name says: a run in which nothing happened would show nothing.
#[rstest]
#[case(Class::Jittery, Reason::Replayed)]
#[case(Class::Greedy, Reason::RateLimited)]
#[case(Class::Expiring, Reason::Expired)]
#[case(Class::Renewed, Reason::UnknownSession)]
#[case(Class::Removed, Reason::UnknownSession)]
#[case(Class::Blocked, Reason::BlockedSource)]
#[case(Class::Stranded, Reason::DestinationUnresolved)]
#[case(Class::RandomTokens, Reason::UnknownSession)]
#[case(Class::ForgedTags, Reason::BadToken)]
#[case(Class::ReplayedPackets, Reason::Replayed)]
#[case(Class::BlocklistedSources, Reason::Replayed)]
#[case(Class::Malformed, Reason::Truncated)]
fn a_class_meets_what_it_is_for(#[case] class: Class, #[case] reason: Reason) {
    let row = USUAL.rows.iter().find(|row| row.class == class).unwrap();
    let (packets, duplicated) = (row.uplink.relay.of(reason), row.uplink.duplicated);
    assert!(packets > duplicated, "{packets} {}: {row:?}", reason.name());
}

#[test]
fn without_header_protection_all_holds_too() {
    let mut plain = profile();
    plain.header_protection = false;
    assert_passed(&report(&plain, &mut host));
}

/// A fault of a relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    ForgetsTheWindow,
    IgnoresBurst,
    HalvesBurst,
    ForgetsExpiry,
    KeepsRemovedUsers,
    IgnoresTheBlocklist,
    SendsToTheFirstPort,
    DropsUnderAttack,
    Miscounts,
    BreaksChecksums,
    ForgetsUsers,
}

/// A relay with a fault.
struct Faulty {
    inner: HostBackend,
    fault: Fault,
    /// What was sent on, by what came.
    sent_on: HashMap<Vec<u8>, Processed>,
    /// The first port of each address that something was sent to.
    ports: HashMap<IpAddr, u16>,
    packets: u64,
    /// Counted besides what the relay within counts.
    besides: BTreeMap<(u8, Reason), Traffic>,
}

impl Faulty {
    fn subject(world: &World, fault: Fault) -> Made {
        let mut world = world.clone();
        for user in &mut world.users {
            Self::spoil(fault, user);
        }
        Subject::new(Box::new(Self {
            inner: HostBackend::new(&world)?,
            fault,
            sent_on: HashMap::new(),
            ports: HashMap::new(),
            packets: 0,
            besides: BTreeMap::new(),
        }))
    }

    fn spoil(fault: Fault, user: &mut User) {
        match fault {
            Fault::IgnoresBurst => user.burst *= 2,
            Fault::HalvesBurst => user.burst /= 2,
            Fault::ForgetsExpiry => user.expires_ns = None,
            _ => {}
        }
    }

    fn count(&mut self, reason: Reason, frame: &[u8]) {
        let traffic = self.besides.entry(counter(Direction::Uplink, reason)).or_default();
        traffic.packets += 1;
        traffic.bytes += frame.len() as u64;
    }

    fn bad_tokens(&self) -> u64 {
        let key = counter(Direction::Uplink, Reason::BadToken);
        let counters = self.inner.counters().unwrap();
        counters.get(&key).map_or(0, |traffic| traffic.packets)
    }

    /// Sends a packet to the first port that its address had.
    fn send_to_the_first_port(&mut self, processed: &mut Processed) {
        let Ok(view) = UdpFrameView::read(&processed.frame) else {
            return;
        };
        let port = *self.ports.entry(view.to.ip()).or_insert(view.to.port());
        let frame = UdpFrame::new(view.from, SocketAddr::new(view.to.ip(), port), view.payload);
        let mut frame = frame.from_mac(view.from_mac).hop_limit(view.hop_limit);
        frame.to_mac = view.to_mac;
        processed.frame = frame.build();
    }
}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn takes(&self, frame: &[u8]) -> bool {
        self.inner.takes(frame)
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        self.packets += 1;
        if let (Fault::ForgetsTheWindow, Some(before)) = (self.fault, self.sent_on.get(frame).cloned()) {
            self.count(Reason::Relayed, frame);
            return Ok(before);
        }
        // Tired by so many bad tokens, it takes a good one for a bad one.
        if self.fault == Fault::DropsUnderAttack && self.bad_tokens() > 500 && self.packets.is_multiple_of(100) {
            self.count(Reason::BadToken, frame);
            return Ok(Processed {
                verdict: Verdict::Drop,
                egress: None,
                frame: frame.to_vec(),
            });
        }
        let mut processed = self.inner.process_on(now_ns, interface, frame)?;
        if processed.verdict == Verdict::Tx {
            match self.fault {
                Fault::ForgetsTheWindow => _ = self.sent_on.insert(frame.to_vec(), processed.clone()),
                Fault::SendsToTheFirstPort => self.send_to_the_first_port(&mut processed),
                Fault::BreaksChecksums if self.packets.is_multiple_of(100) => *processed.frame.last_mut().unwrap() ^= 1,
                _ => {}
            }
        }
        if self.fault == Fault::Miscounts && self.packets.is_multiple_of(1_000) {
            self.count(Reason::Ping, frame);
        }
        Ok(processed)
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        let mut counters = self.inner.counters()?;
        for (key, besides) in &self.besides {
            let traffic = counters.entry(*key).or_default();
            traffic.packets += besides.packets;
            traffic.bytes += besides.bytes;
        }
        Ok(counters)
    }

    fn answers(&self) -> Result<u64, BackendError> {
        self.inner.answers()
    }

    fn user(&self, slot: u32) -> UserState {
        if self.fault == Fault::ForgetsUsers {
            return UserState::default();
        }
        self.inner.user(slot)
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        self.inner.destination_tat(to)
    }

    fn forget_shared_limits(&mut self) {
        self.inner.forget_shared_limits();
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        let mut user = *user;
        Self::spoil(self.fault, &mut user);
        self.inner.publish(&user)
    }

    fn remove(&mut self, slot: u32) {
        if self.fault != Fault::KeepsRemovedUsers {
            self.inner.remove(slot);
        }
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        self.inner.set_next_hop(to, next_hop)
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        if self.fault == Fault::IgnoresTheBlocklist {
            return Ok(());
        }
        self.inner.set_blocklist(prefixes)
    }
}

#[rstest]
#[case(Fault::ForgetsTheWindow, Invariant::RelayedTwice)]
#[case(Fault::IgnoresBurst, Invariant::OverRate)]
#[case(Fault::HalvesBurst, Invariant::WithinRate)]
#[case(Fault::ForgetsExpiry, Invariant::GoneUser)]
#[case(Fault::KeepsRemovedUsers, Invariant::GoneUser)]
#[case(Fault::IgnoresTheBlocklist, Invariant::Treatment)]
#[case(Fault::SendsToTheFirstPort, Invariant::WrongClient)]
#[case(Fault::DropsUnderAttack, Invariant::Harmed)]
#[case(Fault::Miscounts, Invariant::Counters)]
#[case(Fault::BreaksChecksums, Invariant::Output)]
#[case(Fault::ForgetsUsers, Invariant::State)]
fn a_fault_of_the_relay_is_caught(#[case] fault: Fault, #[case] invariant: Invariant) {
    let report = report(&profile(), &mut |world| Faulty::subject(world, fault));
    let found = report
        .violations
        .iter()
        .find(|violation| violation.invariant == invariant);
    let others: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    let Some(violation) = found else {
        panic!(
            "{fault:?} is no violation of {}: {}",
            invariant.name(),
            others.join("\n")
        );
    };
    let about_a_packet = invariant != Invariant::State;
    assert_eq!(!violation.input.is_empty(), about_a_packet, "{violation}");
    assert!(report.table().contains("of invariants"), "{}", report.table());
}
