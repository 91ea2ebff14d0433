//! The world that most cases play in: one user with a client, a listener and a destination, in either family, with or
//! without header protection; in this process and, with the capabilities for it, in the kernel too.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
};

use packet_lab::Verdict;
use packet_lab::{
    Backend, Lab, Observation, World,
    backend::{
        host::HostBackend,
        kernel::{self, KernelBackend, missing_capabilities},
        oracle::OracleBackend,
        veth::{self, VethBackend},
    },
    craft::{Grant, UdpFrame},
    inspect::UdpFrameView,
    world::{Destination, NextHop, User, address},
};
use relay_ebpf::verdict::{Direction, Reason};

/// When cases begin, on the lab's clock.
pub const START_NS: u64 = 1_000_000_000;
/// The user of most cases: in the second egress address's range.
pub const SLOT: u32 = 9;
/// MAC address of the user's next hop.
pub const NEXT_HOP: NextHop = NextHop {
    mac: [0x02, 0, 0, 0, 0, 0xd1],
    mtu: 1500,
    interface: 0,
    tags: packet_lab::world::Tags::NONE,
};
pub const HEADER_KEY: [u8; 16] = [
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tokens {
    Plain,
    Protected,
}

/// A lab with a user, and what its packets need.
pub struct Scene {
    pub lab: Lab,
    pub family: Family,
    pub grant: Grant,
    pub client: SocketAddr,
    pub listener: SocketAddr,
    pub destination: SocketAddr,
    pub egress: SocketAddr,
}

impl Scene {
    pub fn new(family: Family, tokens: Tokens) -> Self {
        Self::with(family, tokens, |_| {})
    }

    /// A scene whose world was changed before the backends got it.
    pub fn with(family: Family, tokens: Tokens, change: impl FnOnce(&mut World)) -> Self {
        let mut world = world(family, tokens);
        change(&mut world);
        let is_v4 = family == Family::V4;
        Self {
            family,
            grant: world.grant(SLOT).expect("the world has this user"),
            client: client(family, 9, 40_000),
            listener: listener(family),
            destination: destination(family),
            egress: world.egress_endpoint(SLOT, is_v4).expect("the slot has an egress port"),
            lab: lab(world),
        }
    }

    /// A packet from the client.
    pub fn uplink(&self, pn: u64, payload: &[u8]) -> UdpFrame {
        UdpFrame::new(self.client, self.listener, self.grant.seal(pn, payload))
    }

    /// A packet from the destination.
    pub fn downlink(&self, payload: &[u8]) -> UdpFrame {
        UdpFrame::new(self.destination, self.egress, payload).from_mac(NEXT_HOP.mac)
    }

    /// Gives every backend the frame; fails if they disagree.
    pub fn send_at(&mut self, now_ns: u64, frame: &[u8]) -> Observation {
        self.lab.step(now_ns, frame).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn send(&mut self, frame: &UdpFrame) -> Observation {
        self.send_at(START_NS, &frame.build())
    }

    /// Sends packet number `pn` from the client.
    pub fn send_pn(&mut self, pn: u64) -> Observation {
        let frame = self.uplink(pn, b"payload");
        self.send(&frame)
    }

    /// Lets the relay know the client, by packet number 1.
    pub fn introduce(&mut self) {
        let relayed = self.send_pn(1).expect_relayed();
        assert_eq!(relayed.users.len(), 1);
    }

    /// Fails unless `sent`, with `payload` in it, came out as it must uplink.
    pub fn check_uplink(&self, sent: &UdpFrame, payload: &[u8], observed: &Observation) {
        let view = UdpFrameView::read(&observed.output).unwrap_or_else(|error| panic!("{error}:\n{observed}"));
        assert_eq!((view.from, view.to), (self.egress, self.destination), "{view}");
        assert_eq!((view.from_mac, view.to_mac), (sent.to_mac, NEXT_HOP.mac), "{view}");
        assert_eq!(view.payload, payload, "{view}");
        assert_kept(sent, &view);
    }

    /// Fails unless `sent` came out as it must downlink.
    pub fn check_downlink(&self, sent: &UdpFrame, observed: &Observation) {
        let view = UdpFrameView::read(&observed.output).unwrap_or_else(|error| panic!("{error}:\n{observed}"));
        let client_mac = self.uplink(0, b"").from_mac;
        assert_eq!((view.from, view.to), (self.listener, self.client), "{view}");
        assert_eq!((view.from_mac, view.to_mac), (sent.to_mac, client_mac), "{view}");
        assert_eq!(view.payload, sent.payload, "{view}");
        assert_kept(sent, &view);
    }

    /// Compares with the snapshot of this name and family. Header protection must change nothing of it.
    pub fn snapshot(&self, name: &str, observed: &Observation) {
        let family = if self.family == Family::V4 { "v4" } else { "v6" };
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(format!("{name}.{family}"), observed.to_string());
        });
    }
}

fn assert_kept(sent: &UdpFrame, view: &UdpFrameView) {
    assert!(view.has_right_checksums(), "{view}");
    assert_eq!(view.hop_limit, sent.hop_limit - 1, "{view}");
    assert_eq!(view.tos, sent.tos, "{view}");
}

/// What the downlink expects of an observation.
pub fn expect_downlink(observed: Observation) -> Observation {
    observed.expect(Verdict::Tx, Direction::Downlink, Reason::Relayed)
}

pub fn client(family: Family, host: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => address(&format!("203.0.113.{host}")),
        Family::V6 => address(&format!("2001:db8:c::{host:x}")),
    };
    SocketAddr::new(ip, port)
}

pub fn listener(family: Family) -> SocketAddr {
    match family {
        Family::V4 => address("192.0.2.1:4500"),
        Family::V6 => address("[2001:db8::1]:4500"),
    }
}

pub fn destination(family: Family) -> SocketAddr {
    match family {
        Family::V4 => address("198.51.100.7:5000"),
        Family::V6 => address("[2001:db8:d::7]:5000"),
    }
}

/// The user of most cases.
pub fn user(family: Family) -> User {
    User {
        slot: SLOT,
        salt: 0x1234_5678,
        key: std::array::from_fn(|i| i as u8),
        to: destination(family),
        rate: 10_000,
        burst: 1_000,
        down_limit: None,
        expires_ns: None,
    }
}

/// Two users, one of each family; the one of `family` is in [`SLOT`].
pub fn world(family: Family, tokens: Tokens) -> World {
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    let bystander = User {
        slot: 2,
        salt: 0x0bad_cafe,
        key: [0x5a; 16],
        ..user(other)
    };
    let resolved = |family| Destination {
        to: destination(family),
        next_hop: Some(NEXT_HOP),
    };
    let mut world = World::new()
        .with_destination(resolved(other))
        .with_destination(resolved(family))
        .with_user(bystander)
        .with_user(user(family));
    world.header_key = (tokens == Tokens::Protected).then_some(HEADER_KEY);
    // What is said in ICMP is for scenarios to show.
    world.icmp_per_second = 0;
    world
}

/// A lab of all backends that can run here.
pub fn lab(world: World) -> Lab {
    let host = HostBackend::new(&world).expect("the world fits a relay");
    let oracle = OracleBackend::new(&world).expect("the world fits a relay");
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(oracle), Box::new(host)];
    if kernel::misfit(&world).is_none()
        && let Some(kernel) = kernel(&world)
    {
        backends.push(Box::new(kernel));
    }
    if veth::misfit(&world).is_none()
        && let Some(veth) = veth(&world)
    {
        backends.push(Box::new(veth));
    }
    Lab::new(world, backends)
}

/// The kernel's program, where this process may load it; with the capabilities, a kernel that cannot is a failure.
pub fn kernel(world: &World) -> Option<KernelBackend> {
    has_capabilities()
        .then(|| KernelBackend::new(world).unwrap_or_else(|error| panic!("the kernel should run this: {error}")))
}

/// The kernel's program on a wire, where this process may make one; with the capabilities, a kernel that cannot is a
/// failure.
fn veth(world: &World) -> Option<VethBackend> {
    has_all("on a veth pair", &veth::missing_capabilities())
        .then(|| VethBackend::new(world).unwrap_or_else(|error| panic!("the kernel should run this: {error}")))
}

/// Whether this process may load programs; if not, says that this test is skipped in the kernel, and why.
pub fn has_capabilities() -> bool {
    has_all("in the kernel", &missing_capabilities())
}

fn has_all(place: &str, missing: &[&str]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current();
    let name = test.name().unwrap_or("a test");
    let missing = missing.join(" and ");
    // Past the capture of test output: a skip is to be seen.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: {name} {place}, for want of {missing}; run as root"
    );
    false
}
