//! The reference that the relay is compared with: all that it takes to relay a UDP packet between two parties, and no
//! authentication. A flow is found by port arithmetic; addresses, ports, MAC addresses and TTL are rewritten, checksums
//! updated by what changed, packets and bytes counted. What belongs to no flow goes to the kernel.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use lab_ebpf::{EGRESS_PORT, LISTENER_PORT, MAX_FLOWS, flow};

#[map(name = "flows")]
static FLOWS: Array<[u32; 8]> = Array::with_max_entries(MAX_FLOWS, 0);
#[map(name = "flow_counters")]
static COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(2 * MAX_FLOWS, 0);

const IPV4: u16 = 0x0800_u16.to_be();
/// Version 4, a header without options.
const PLAIN: u8 = 0x45;
const UDP: u8 = 17;
/// All of the fragment field but "don't fragment".
const FRAGMENT: u16 = 0xbfff_u16.to_be();

/// Ethernet, IPv4 without options, UDP. Every field is as it stands in the packet.
#[repr(C, packed(2))]
pub struct Headers {
    to_mac: u32,
    to_mac_end: u16,
    from_mac: u32,
    from_mac_end: u16,
    kind: u16,
    version: u8,
    service: u8,
    total_bytes: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    pub from: u32,
    pub to: u32,
    from_port: u16,
    to_port: u16,
    udp_bytes: u16,
    udp_checksum: u16,
}

impl Headers {
    /// Where the headers are, if the packet is long enough.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Option<*mut Self> {
        (ctx.data() + size_of::<Self>() <= ctx.data_end()).then_some(ctx.data() as *mut Self)
    }

    /// Whether they are what their fields are named for.
    #[inline(always)]
    pub fn is_plain_udp(&self) -> bool {
        self.kind == IPV4 && self.version == PLAIN && self.protocol == UDP && self.fragment & FRAGMENT == 0
    }

    /// Both ports, source first.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        ports(self.from_port, self.to_port)
    }
}

#[xdp(frags)]
pub fn nat(ctx: XdpContext) -> u32 {
    translate(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn translate(ctx: &XdpContext) -> Option<u32> {
    let headers = Headers::of(ctx)?;
    // SAFETY: `of` checked that the headers are inside the packet, which the program may change.
    let headers = unsafe { &mut *headers };
    if !headers.is_plain_udp() {
        return None;
    }
    let to_port = u16::from_be(headers.to_port);
    let is_downlink = to_port >= EGRESS_PORT;
    let first = if is_downlink { EGRESS_PORT } else { LISTENER_PORT };
    let index = to_port.wrapping_sub(first);
    let flow = FLOWS.get(u32::from(index))?;
    if headers.to != flow[flow::RELAY] {
        return None;
    }
    let (client_port, server_port) = split(flow[flow::PORTS]);
    let (client_mac_end, server_mac_end) = split(flow[flow::MAC_ENDS]);
    let (listener, egress) = (LISTENER_PORT + index, EGRESS_PORT + index);
    if is_downlink {
        if headers.from != flow[flow::SERVER] || headers.from_port != server_port {
            return None;
        }
        if headers.ttl <= 1 {
            return Some(xdp_action::XDP_DROP);
        }
        headers.readdress(flow[flow::CLIENT], ports(listener.to_be(), client_port));
        headers.to_mac = flow[flow::CLIENT_MAC];
        headers.to_mac_end = client_mac_end;
    } else {
        if headers.ttl <= 1 {
            return Some(xdp_action::XDP_DROP);
        }
        headers.readdress(flow[flow::SERVER], ports(egress.to_be(), server_port));
        headers.to_mac = flow[flow::SERVER_MAC];
        headers.to_mac_end = server_mac_end;
    }
    let counters = COUNTERS.get_ptr_mut(2 * u32::from(index) + u32::from(is_downlink))?;
    // SAFETY: the pointer is to this CPU's element, which nothing else writes while the program runs.
    unsafe {
        (*counters)[0] += 1;
        (*counters)[1] += (ctx.data_end() - ctx.data()) as u64;
    }
    Some(xdp_action::XDP_TX)
}

impl Headers {
    /// Sends the packet on: from where it was sent to, and the MAC address it was sent to, to this address; the ports
    /// replaced, one hop less to go.
    #[inline(always)]
    fn readdress(&mut self, to: u32, ports: u32) {
        let addresses = replaced(self.from, self.to) + replaced(self.to, to);
        // With the protocol, which stays, TTL is a word of the checksum.
        let hops = u16::from_ne_bytes([self.ttl, self.protocol]);
        let fewer = u16::from_ne_bytes([self.ttl - 1, self.protocol]);
        self.checksum = updated(self.checksum, addresses + replaced(hops.into(), fewer.into()));
        if self.udp_checksum != 0 {
            let sum = updated(self.udp_checksum, addresses + replaced(self.ports(), ports));
            // 0 would mean that there is none (RFC 768).
            self.udp_checksum = if sum == 0 { 0xffff } else { sum };
        }
        self.from = self.to;
        self.to = to;
        (self.from_port, self.to_port) = split(ports);
        self.ttl -= 1;
        self.from_mac = self.to_mac;
        self.from_mac_end = self.to_mac_end;
    }
}

/// What a checksum changes by where one word takes the place of another (RFC 1624).
#[inline(always)]
fn replaced(old: u32, new: u32) -> u64 {
    u64::from(!old) + u64::from(new)
}

#[inline(always)]
fn updated(checksum: u16, change: u64) -> u16 {
    let mut sum = change + u64::from(!checksum);
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

/// Two 16-bit words, in the order of memory, as one of 32 bits.
#[inline(always)]
fn ports(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        u32::from(second) << 16 | u32::from(first)
    } else {
        u32::from(first) << 16 | u32::from(second)
    }
}

/// The two 16-bit words of [`ports`].
#[inline(always)]
fn split(word: u32) -> (u16, u16) {
    if cfg!(target_endian = "little") {
        (word as u16, (word >> 16) as u16)
    } else {
        ((word >> 16) as u16, word as u16)
    }
}
