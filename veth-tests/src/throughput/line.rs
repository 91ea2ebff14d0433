//! A link of a system's own: whoever sends and receives at one end, what relays at the other.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use packet_lab::live::Instruments;

use crate::{
    namespace::{Namespace, succeed},
    wait,
};

/// The interface that the generator and the receiver are at.
const WIRE: &str = "wire";
/// The interface of what relays.
pub const RELAYS: &str = "eth0";

/// Where clients and servers send to.
pub const RELAY_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The client.
pub const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 40_000);
/// The server.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 3), 5_000);
/// The MAC address of the end that relays.
pub const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The MAC address of the other end, which client and server share.
pub const WIRE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A veth pair between two namespaces.
#[derive(Debug)]
pub struct Line {
    /// Where client and server are.
    pub near: Namespace,
    /// Where the relay is.
    pub far: Namespace,
}

impl Line {
    /// Makes it, with the receiver at its near end; it may take a second until it is [up](Self::wait_until_up).
    ///
    /// # Errors
    /// If the receiver cannot be there.
    pub fn new(instruments: &mut Instruments, name: &str) -> Result<Self> {
        let (near, far) = (Namespace::new(&format!("{name}-ends")), Namespace::new(name));
        for (namespace, interface) in [(&near, WIRE), (&far, RELAYS)] {
            // Nothing but what is measured: no neighbour discovery, no redirects to those who could do without the relay.
            namespace.command(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 \
                 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0",
            );
            if interface == RELAYS {
                namespace.ip(&format!(
                    "link add {RELAYS} address {} type veth peer name {WIRE} address {} netns {}",
                    text(RELAY_MAC),
                    text(WIRE_MAC),
                    near.name
                ));
            }
        }
        near.ip(&format!("address add {}/24 dev {WIRE}", CLIENT.ip()));
        near.ip(&format!("address add {}/24 dev {WIRE}", SERVER.ip()));
        far.ip(&format!("address add {RELAY_IP}/24 dev {RELAYS}"));
        near.run(|| instruments.receive_at(WIRE)).context("the receiver")?;
        near.ip(&format!("link set {WIRE} up"));
        far.ip(&format!("link set {RELAYS} up"));
        near.ip(&format!(
            "neighbour add {RELAY_IP} lladdr {} dev {WIRE}",
            text(RELAY_MAC)
        ));
        for end in [CLIENT, SERVER] {
            far.ip(&format!(
                "neighbour add {} lladdr {} dev {RELAYS}",
                end.ip(),
                text(WIRE_MAC)
            ));
        }
        Ok(Self { near, far })
    }

    /// Waits until the kernel says that the link works.
    pub fn wait_until_up(&self) {
        wait::until("a link to come up", Duration::from_secs(10), || {
            self.far
                .ip(&format!("-br link show {RELAYS}"))
                .contains(" UP ")
                .then_some(())
        });
    }

    /// Has the end that relays take frames by the kernel's own means. A veth interface without an XDP program of its own
    /// takes what an XDP program sends if it has GRO, as the drivers of real ones have.
    pub fn take_frames_without_xdp(&self) {
        self.far.command(&format!("ethtool -K {RELAYS} gro on"));
    }

    /// Has the kernel receive at the far end in a thread, not wherever the sender is; the thread's id.
    ///
    /// # Errors
    /// If there is no such thread afterwards.
    pub fn receive_in_thread(&self) -> Result<u32> {
        let before = receiving_threads()?;
        // `ip netns exec` shows the namespace's own interfaces under /sys.
        let switch = format!("echo 1 > /sys/class/net/{RELAYS}/threaded");
        let arguments = ["netns", "exec", &self.far.name, "sh", "-c", &switch];
        succeed(&switch, Command::new("ip").args(arguments).output());
        let new = receiving_threads()?.into_iter().find(|id| !before.contains(id));
        new.context("the kernel made no thread that receives")
    }

    /// Index of the near end's interface.
    ///
    /// # Errors
    /// If it is gone.
    pub fn near_index(&self) -> Result<u32> {
        self.near
            .run(|| nix::net::if_::if_nametoindex(WIRE))
            .context("the link's near end")
    }
}

/// The kernel's threads that receive at the end that relays, on all links.
fn receiving_threads() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(&format!("napi/{RELAYS}")) {
            found.push(id);
        }
    }
    Ok(found)
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
