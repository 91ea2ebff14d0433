//! A network: hosts on one switch, each in a namespace of its own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Deref,
    time::Duration,
};

use packet_lab::pass::PassProgram;

use crate::{namespace::Namespace, wait};

/// A switch, and links to it.
#[derive(Debug)]
pub struct Net {
    // Before the namespace of its interfaces: dropped first.
    programs: Vec<PassProgram>,
    switch: Namespace,
}

/// The three parties of the protocol on one network.
#[derive(Debug)]
pub struct Trio {
    /// Where clients are: 192.0.2.2 and 2001:db8::2.
    pub client: Host,
    /// Where the relay is: 192.0.2.1 and 2001:db8::1.
    pub relay: Host,
    /// Where destinations are: 192.0.2.3 and 2001:db8::3.
    pub server: Host,
    /// The network that they are on.
    pub net: Net,
}

impl Trio {
    /// Makes them, on links that take IP packets of so many bytes.
    #[must_use]
    #[track_caller]
    pub fn with_mtu(bytes: usize) -> Self {
        let trio = Self::new();
        for (host, port) in [
            (&trio.client, "client"),
            (&trio.relay, "relay"),
            (&trio.server, "server"),
        ] {
            host.ip(&format!("link set eth0 mtu {bytes}"));
            trio.net.switch.ip(&format!("link set {port} mtu {bytes}"));
        }
        trio
    }

    /// Makes them; their links are up.
    #[must_use]
    pub fn new() -> Self {
        let mut net = Net::new();
        let [client, relay, server] = [("client", 2), ("relay", 1), ("server", 3)].map(|(name, n)| net.host(name, n));
        for host in [&client, &relay, &server] {
            host.wait_until_up();
        }
        Self {
            client,
            relay,
            server,
            net,
        }
    }
}

impl Default for Trio {
    fn default() -> Self {
        Self::new()
    }
}

impl Net {
    /// A switch without links.
    #[must_use]
    pub fn new() -> Self {
        let switch = Namespace::new("switch");
        // Without snooping, so that it floods neighbour discovery like every multicast.
        switch.ip("link add bridge type bridge mcast_snooping 0");
        switch.ip("link set bridge up");
        Self {
            switch,
            programs: Vec::new(),
        }
    }

    /// A host with one interface `eth0`, whose addresses are 192.0.2.`number`, 2001:db8::`number` and, for its MAC,
    /// 02:00:00:00:00:`number`.
    pub fn host(&mut self, name: &str, number: u8) -> Host {
        self.host_with_queues(name, number, 1)
    }

    /// A host whose interface has this many queues in each direction.
    pub fn host_with_queues(&mut self, name: &str, number: u8, queues: u32) -> Host {
        let host = Host {
            namespace: Namespace::new(name),
            number,
        };
        let of_queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.link(&host, "eth0", name, number, &of_queues);
        if queues > 1 {
            // A veth interface starts with one queue in use. It counts its peer's too: a queue that sends has one that
            // receives at the other end.
            host.command(&format!("ethtool -L eth0 rx {queues} tx {queues}"));
            self.switch
                .command(&format!("ethtool -L {name} rx {queues} tx {queues}"));
        }
        host.ip(&format!("address add 192.0.2.{number}/24 dev eth0"));
        host.ip(&format!("address add 2001:db8::{number:x}/64 dev eth0 nodad"));
        host
    }

    /// Connects `interface` of a host's namespace with the switch, where the other end is called `port`.
    pub fn link(&mut self, host: &Namespace, interface: &str, port: &str, number: u8, options: &str) {
        host.ip(&format!(
            "link add {interface} address 02:00:00:00:00:{number:02x} {options} \
             type veth peer name {port} netns {} {options}",
            self.switch.name
        ));
        // A checksum that is left to hardware which is not there would reach the relay unfinished.
        host.command(&format!("ethtool -K {interface} tx off"));
        // A tag that is left to hardware comes beside the frame, where no program sees it.
        self.switch
            .command(&format!("ethtool -K {port} txvlan off tx-vlan-stag-hw-insert off"));
        self.switch.ip(&format!("link set {port} master bridge"));
        self.switch.ip(&format!("link set {port} up"));
        host.ip(&format!("link set {interface} up"));
        // A veth link takes frames from an XDP program only if its other end has one too.
        let program = self.switch.run(|| PassProgram::attach(port));
        self.programs.push(program.unwrap_or_else(|error| panic!("{error}")));
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

/// A host on the network: its namespace, and the addresses of its `eth0`.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    number: u8,
}

impl Host {
    /// Its address of the family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        let number = u16::from(self.number);
        match family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, self.number).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into(),
        }
    }

    /// The MAC address of its `eth0`.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.number]
    }

    /// A UDP socket inside it, bound to its address of the family and this port, 0 for any.
    #[must_use]
    #[track_caller]
    pub fn udp(&self, family: Family, port: u16) -> UdpSocket {
        self.udp_at(SocketAddr::new(self.address(family), port))
    }

    /// A UDP socket inside it, bound to this address.
    #[must_use]
    #[track_caller]
    pub fn udp_at(&self, address: SocketAddr) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(address));
        socket.unwrap_or_else(|error| panic!("a UDP socket on {address} in {}: {error}", self.name))
    }

    /// Waits until the kernel says that its link works.
    #[track_caller]
    pub fn wait_until_up(&self) {
        wait::until(&format!("the link of {}", self.name), Duration::from_secs(10), || {
            self.ip("-br link show eth0").contains(" UP ").then_some(())
        });
    }
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// An IP family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Bytes of its header, without options, and of UDP's.
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::V4 => 28,
            Self::V6 => 48,
        }
    }
}
