//! What relays: the relay in its modes, the lab's reference, and what people would run instead.

use std::{
    fs,
    net::SocketAddrV4,
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use packet_lab::{
    craft::UdpFrame,
    live::{Expected, Flow, Frames, Instruments, NAT_EGRESS_PORT, NAT_LISTENER_PORT},
    throughput::{BARE_NAT, RELAY, Way},
};

use super::{
    line::{CLIENT, Line, RELAY_IP, RELAY_MAC, RELAYS, SERVER, WIRE_MAC},
    turn::{self, Allocation},
};
use crate::{
    client::Grant,
    relay::{self, Counters, Relay},
};

const LISTENER: SocketAddrV4 = SocketAddrV4::new(RELAY_IP, 4_500);
const EGRESS: SocketAddrV4 = SocketAddrV4::new(RELAY_IP, 10_000);
/// Of frames: Ethernet, IPv4, UDP.
const HEADER_BYTES: usize = 14 + 20 + 8;

/// Packets that a system is to relay, and what is to come of them.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// What is sent.
    pub frames: Frames,
    /// What is to arrive.
    pub expected: Expected,
}

/// What relays packets between a client and a server.
pub trait System {
    /// In one word.
    fn name(&self) -> &'static str;

    /// For people.
    fn description(&self) -> &'static str;

    /// The ways that are measured.
    fn ways(&self) -> &'static [Way] {
        &[Way::Uplink]
    }

    /// Whether it may lose packets of a batch that is too large for it.
    fn may_lose(&self) -> bool {
        false
    }

    /// Its process, if packets go through one.
    fn process(&self) -> Option<u32> {
        None
    }

    /// Packets that have not been sent before, where that matters.
    ///
    /// # Errors
    /// If the system cannot be prepared for them.
    fn traffic(&mut self, way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic>;

    /// Whether the system's own counters say that it relayed exactly these packets, and nothing else, since the last
    /// [`Self::traffic`].
    ///
    /// # Errors
    /// If they say anything else, with what they say.
    fn check(&mut self, _instruments: &Instruments, _way: Way, _packets: u32, _frame_bytes: usize) -> Result<()> {
        Ok(())
    }
}

/// A frame between the ends of a link.
fn frame(from: SocketAddrV4, to: SocketAddrV4, payload: Vec<u8>) -> UdpFrame {
    let mut frame = UdpFrame::new(from.into(), to.into(), payload).from_mac(WIRE_MAC);
    frame.to_mac = RELAY_MAC;
    frame
}

/// What the same frame again and again is to become.
fn same(packets: u32, sent: &UdpFrame, from: SocketAddrV4, to: SocketAddrV4, payload_bytes: usize) -> Traffic {
    Traffic {
        frames: Frames::new((0..packets).map(|_| sent.clone())),
        expected: Expected {
            from,
            to,
            frame_bytes: HEADER_BYTES + payload_bytes,
        },
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    vec![0x5a; bytes]
}

// ── The lab's own ────────────────────────────────────────────────────────────────────────────────────────────────────

/// Nothing but the way there and back.
pub struct Reflector;

impl Reflector {
    /// Attaches it.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn start(line: &Line, instruments: &mut Instruments) -> Result<Self> {
        line.far.run(|| instruments.reflect_at(RELAYS))?;
        Ok(Self)
    }
}

impl System for Reflector {
    fn name(&self) -> &'static str {
        "reflector"
    }

    fn description(&self) -> &'static str {
        "sent back by XDP, as it is"
    }

    fn traffic(&mut self, _way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic> {
        let sent = frame(CLIENT, LISTENER, payload(payload_bytes));
        Ok(same(packets, &sent, CLIENT, LISTENER, payload_bytes))
    }
}

/// The reference: a NAT in XDP that authenticates nobody.
pub struct BareNat {
    counted: [[u64; 2]; 2],
}

impl BareNat {
    /// Attaches it.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn start(line: &Line, instruments: &mut Instruments) -> Result<Self> {
        line.far.run(|| instruments.translate_at(RELAYS))?;
        let flow = Flow {
            relay: RELAY_IP,
            client: CLIENT,
            client_mac: WIRE_MAC,
            server: SERVER,
            server_mac: WIRE_MAC,
        };
        instruments.set_flow(0, &flow)?;
        Ok(Self {
            counted: instruments.flow_counters(0)?,
        })
    }
}

impl System for BareNat {
    fn name(&self) -> &'static str {
        BARE_NAT
    }

    fn description(&self) -> &'static str {
        "bare XDP NAT"
    }

    fn ways(&self) -> &'static [Way] {
        &[Way::Uplink, Way::Downlink]
    }

    fn traffic(&mut self, way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic> {
        let [listener, egress] = [NAT_LISTENER_PORT, NAT_EGRESS_PORT].map(|port| SocketAddrV4::new(RELAY_IP, port));
        let (from, to, out_from, out_to) = match way {
            Way::Uplink => (CLIENT, listener, egress, SERVER),
            Way::Downlink => (SERVER, egress, listener, CLIENT),
        };
        let sent = frame(from, to, payload(payload_bytes));
        Ok(same(packets, &sent, out_from, out_to, payload_bytes))
    }

    fn check(&mut self, instruments: &Instruments, way: Way, packets: u32, frame_bytes: usize) -> Result<()> {
        let before = std::mem::replace(&mut self.counted, instruments.flow_counters(0)?);
        let mut expected = before;
        let [counted_packets, counted_bytes] = &mut expected[way as usize];
        *counted_packets += u64::from(packets);
        *counted_bytes += u64::from(packets) * frame_bytes as u64;
        ensure!(
            self.counted == expected,
            "the bare NAT counted {:?}, and not {expected:?}",
            self.counted
        );
        Ok(())
    }
}

// ── The relay ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// How the relay relays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// By the driver.
    Native,
    /// By the network stack.
    Generic,
    /// By sockets.
    Userspace,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Userspace => "userspace",
        }
    }
}

/// The relay itself: the real binary, configured as it is by default, with one user whom no rate holds back.
pub struct LumenLink<'a> {
    relay: Relay<'a>,
    mode: Mode,
    grant: Grant,
    next_pn: u64,
    counted: Counters,
}

impl<'a> LumenLink<'a> {
    /// Starts it, what relays in a process with `prefix` before its command line.
    ///
    /// # Errors
    /// If it cannot be prepared.
    pub fn start(line: &'a Line, mode: Mode, prefix: &[&str]) -> Result<Self> {
        let in_process = mode == Mode::Userspace;
        let mut relay = if in_process {
            Relay::in_mode(&line.far, relay::Mode::Userspace)
        } else {
            Relay::new(&line.far)
        };
        relay.set("listen", vec![LISTENER.to_string()]);
        relay.set("xdp.mode", mode.word());
        if mode != Mode::Native {
            line.take_frames_without_xdp();
        }
        relay.spawn(if in_process { prefix } else { &[] });
        relay.wait_until_ready();
        let unlimited = ["--rate", "10000000", "--burst", "1000000"];
        let grant = relay.add_user(1, SERVER.into(), &unlimited);
        let microseconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        Ok(Self {
            counted: relay.counters(),
            relay,
            mode,
            grant,
            next_pn: u64::try_from(microseconds)?,
        })
    }

    fn egress(&self) -> SocketAddrV4 {
        let slot = u16::try_from(self.grant.slot).expect("one of few users");
        SocketAddrV4::new(RELAY_IP, EGRESS.port() + slot)
    }

    fn sealed(&mut self, payload: &[u8]) -> UdpFrame {
        self.next_pn += 1;
        frame(CLIENT, LISTENER, self.grant.seal(self.next_pn, payload))
    }
}

impl System for LumenLink<'_> {
    fn name(&self) -> &'static str {
        match self.mode {
            Mode::Native => RELAY,
            Mode::Generic => "relay_generic",
            Mode::Userspace => "relay_userspace",
        }
    }

    fn description(&self) -> &'static str {
        match self.mode {
            Mode::Native => "LumenLink relay",
            Mode::Generic => "the relay, generic mode",
            Mode::Userspace => "the relay, userspace mode",
        }
    }

    fn may_lose(&self) -> bool {
        self.mode == Mode::Userspace
    }

    fn process(&self) -> Option<u32> {
        (self.mode == Mode::Userspace).then(|| self.relay.process_id())
    }

    fn ways(&self) -> &'static [Way] {
        match self.mode {
            Mode::Native => &[Way::Uplink, Way::Downlink],
            Mode::Generic | Mode::Userspace => &[Way::Uplink],
        }
    }

    fn traffic(&mut self, way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic> {
        let payload = payload(payload_bytes);
        self.counted = self.relay.counters();
        Ok(match way {
            Way::Uplink => Traffic {
                frames: Frames::new((0..packets).map(|_| self.sealed(&payload))),
                expected: Expected {
                    from: self.egress(),
                    to: SERVER,
                    frame_bytes: HEADER_BYTES + payload_bytes,
                },
            },
            Way::Downlink => same(
                packets,
                &frame(SERVER, self.egress(), payload),
                LISTENER,
                CLIENT,
                payload_bytes,
            ),
        })
    }

    fn check(&mut self, _instruments: &Instruments, way: Way, packets: u32, _frame_bytes: usize) -> Result<()> {
        self.relay
            .expect_moved(&self.counted, &[(way.name(), "relayed", packets.into())]);
        Ok(())
    }
}

// ── What people would run instead ────────────────────────────────────────────────────────────────────────────────────

/// The kernel's forwarding, with addresses translated by nftables.
pub struct Nftables;

impl Nftables {
    /// Sets it up.
    #[must_use]
    pub fn start(line: &Line) -> Self {
        line.take_frames_without_xdp();
        line.far.command("sysctl -qw net.ipv4.ip_forward=1");
        for rule in [
            "add table ip relay".to_owned(),
            "add chain ip relay prerouting { type nat hook prerouting priority dstnat; }".to_owned(),
            "add chain ip relay postrouting { type nat hook postrouting priority srcnat; }".to_owned(),
            format!(
                "add rule ip relay prerouting ip daddr {RELAY_IP} udp dport {} dnat to {SERVER}",
                LISTENER.port()
            ),
            format!(
                "add rule ip relay postrouting ip daddr {} udp dport {} snat to {EGRESS}",
                SERVER.ip(),
                SERVER.port()
            ),
        ] {
            let words: Vec<&str> = ["nft"].into_iter().chain(rule.split(' ')).collect();
            let output = line.far.try_command(&words);
            assert!(output.status.success(), "nft {rule}: {output:?}");
        }
        Self
    }
}

impl System for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn description(&self) -> &'static str {
        "nftables, DNAT and SNAT"
    }

    fn traffic(&mut self, _way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic> {
        let sent = frame(CLIENT, LISTENER, payload(payload_bytes));
        Ok(same(packets, &sent, EGRESS, SERVER, payload_bytes))
    }
}

/// A process of a system, ended with it.
struct Process(Child);

impl Process {
    fn start(line: &Line, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = line.far.run(|| command.spawn());
        Ok(Self(child.with_context(|| words.join(" "))?))
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// socat, between two UDP sockets.
pub struct Socat {
    process: Process,
}

impl Socat {
    /// Starts it.
    ///
    /// # Errors
    /// If it is not there.
    pub fn start(line: &Line, prefix: &[&str]) -> Result<Self> {
        line.take_frames_without_xdp();
        let listener = format!("UDP4-LISTEN:{},bind={RELAY_IP}", LISTENER.port());
        let egress = format!("UDP4:{SERVER},bind={EGRESS}");
        let process = Process::start(line, &[prefix, &["socat", &listener, &egress]].concat())?;
        wait_for_socket(line, LISTENER.port())?;
        Ok(Self { process })
    }
}

impl System for Socat {
    fn name(&self) -> &'static str {
        "socat"
    }

    fn description(&self) -> &'static str {
        "socat"
    }

    fn may_lose(&self) -> bool {
        true
    }

    fn process(&self) -> Option<u32> {
        Some(self.process.0.id())
    }

    fn traffic(&mut self, _way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic> {
        ensure!(!self.process.has_ended()?, "socat has ended");
        let sent = frame(CLIENT, LISTENER, payload(payload_bytes));
        Ok(same(packets, &sent, EGRESS, SERVER, payload_bytes))
    }
}

/// coturn, with one allocation and one channel of it.
pub struct Coturn<'a> {
    line: &'a Line,
    process: Process,
    allocation: Allocation,
    _folder: tempfile::TempDir,
}

const TURN: SocketAddrV4 = SocketAddrV4::new(RELAY_IP, 3_478);

impl<'a> Coturn<'a> {
    /// Starts it and makes the allocation.
    ///
    /// # Errors
    /// If it is not there, or does not answer.
    pub fn start(line: &'a Line, prefix: &[&str]) -> Result<Self> {
        line.take_frames_without_xdp();
        let folder = tempfile::Builder::new().prefix("lumen-veth-").tempdir()?;
        let config = folder.path().join("turnserver.conf");
        let database = folder.path().join("turndb");
        fs::write(
            &config,
            format!(
                "listening-ip={RELAY_IP}\nrelay-ip={RELAY_IP}\nlistening-port={}\nno-auth\nno-tls\nno-dtls\nno-cli\n\
                 no-stdout-log\nlog-file=/dev/null\npidfile={}\nuserdb={}\nrealm=lab\n",
                TURN.port(),
                folder.path().join("pid").display(),
                database.display()
            ),
        )?;
        let config = config.to_str().context("a temporary folder has a plain name")?;
        let process = Process::start(line, &[prefix, &["turnserver", "-c", config]].concat())?;
        wait_for_socket(line, TURN.port())?;
        let allocation = line.near.run(|| turn::allocate(CLIENT, TURN))?;
        Ok(Self {
            line,
            process,
            allocation,
            _folder: folder,
        })
    }
}

impl System for Coturn<'_> {
    fn name(&self) -> &'static str {
        "coturn"
    }

    fn description(&self) -> &'static str {
        "coturn, ChannelData"
    }

    fn may_lose(&self) -> bool {
        true
    }

    fn process(&self) -> Option<u32> {
        Some(self.process.0.id())
    }

    fn traffic(&mut self, _way: Way, payload_bytes: usize, packets: u32) -> Result<Traffic> {
        ensure!(!self.process.has_ended()?, "coturn has ended");
        // Keeps the channel and its permission, which end after minutes.
        self.line.near.run(|| self.allocation.bind_channel(SERVER))?;
        let sent = frame(CLIENT, TURN, turn::channel_data(&payload(payload_bytes)));
        Ok(same(packets, &sent, self.allocation.relayed, SERVER, payload_bytes))
    }
}

/// Waits until somebody has a UDP socket at this port.
fn wait_for_socket(line: &Line, port: u16) -> Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let wanted = format!("{RELAY_IP}:{port}");
    while std::time::Instant::now() < deadline {
        if line
            .far
            .command("ss --no-header --numeric --udp --all")
            .contains(&wanted)
        {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    bail!("nobody listens at {wanted} after 10 s")
}
