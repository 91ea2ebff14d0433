//! Frames on a real link, sent as fast as one CPU can make them and counted one by one at the end.
//!
//! The generator is a live `BPF_PROG_TEST_RUN`: its frames leave by an interface like any driver's. The receiver is an XDP
//! program on the same interface, for what comes back. On one CPU everything between the two happens in turn, so that
//! the time from the first frame to the last is CPU time: see [`Passage::span_ns`].

use std::net::SocketAddrV4;

use aya::{
    Ebpf, EbpfError, TestRunOptions,
    maps::{Array, MapData, MapError, PerCpuArray, ProgramArray},
    programs::{ProgramError, TestRun as _, TestRunAttrs, Xdp, xdp::XdpMode},
};
use lab_ebpf::{
    FLOOR_PROGRAM, FLOW_COUNTERS, FLOWS, FRAMES, GENERATOR, GENERATOR_PROGRAM, HEAD_BYTES, NAT_PROGRAM, RECEIVER,
    RECEIVER_PROGRAM, TARGETS, flow, generator, receiver,
};

use crate::{bench::OBJECT, craft::UdpFrame};

/// Most frames of one passage: what the generator's ring holds.
pub const MOST_FRAMES: u32 = lab_ebpf::RING;

/// Egress port of the reference NAT's flow 0.
pub const NAT_EGRESS_PORT: u16 = lab_ebpf::EGRESS_PORT;
/// Listener port of the reference NAT's flow 0.
pub const NAT_LISTENER_PORT: u16 = lab_ebpf::LISTENER_PORT;

const XDP_DROP: u64 = 1;
const XDP_TX: u64 = 3;

/// Why nothing could be sent or counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The lab's programs cannot be loaded.
    #[error("loading the lab's programs (as root?): {0}")]
    Load(#[from] EbpfError),
    /// A program cannot be used.
    #[error("running the lab's programs: {0}")]
    Program(#[from] ProgramError),
    /// A map cannot be used.
    #[error("the lab's maps: {0}")]
    Map(#[from] MapError),
    /// The object lacks something.
    #[error("the lab's object has no `{0}`: it was not built from this version's sources")]
    Missing(&'static str),
}

/// The start of a frame, which is written anew each time: all headers, and what tells one packet from the next.
pub type Head = [u8; HEAD_BYTES];

/// Frames of one length that differ in their heads alone.
#[derive(Clone, Debug)]
pub struct Frames {
    /// One of them, whole.
    pub frame: Vec<u8>,
    /// What each begins with, at most [`MOST_FRAMES`].
    pub heads: Vec<Head>,
}

impl Frames {
    /// From whole frames, at least one; what is behind the head is taken from the first.
    ///
    /// # Panics
    /// If there is none, or one is shorter than a head.
    #[must_use]
    pub fn new(frames: impl IntoIterator<Item = UdpFrame>) -> Self {
        let mut first = None;
        let head = |frame: UdpFrame| {
            let bytes = frame.build();
            let head = *bytes.first_chunk().expect("a frame is as long as its head");
            first.get_or_insert(bytes);
            head
        };
        let heads = frames.into_iter().map(head).collect();
        Self {
            frame: first.expect("there is a frame"),
            heads,
        }
    }
}

/// What the receiver waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Expected {
    /// Who sends it.
    pub from: SocketAddrV4,
    /// Where it goes.
    pub to: SocketAddrV4,
    /// Length of the frame.
    pub frame_bytes: usize,
}

/// What became of the frames that were sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Passage {
    /// Frames that the generator made.
    pub sent: u64,
    /// Frames that came, as they were expected.
    pub delivered: u64,
    /// Other UDP packets that came meanwhile.
    pub others: u64,
    /// From making the first frame to receiving the last, if all came.
    pub span_ns: Option<u64>,
}

/// A flow of the reference NAT.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The relay's address, for listeners and egress.
    pub relay: std::net::Ipv4Addr,
    /// The client.
    pub client: SocketAddrV4,
    /// The next hop towards the client.
    pub client_mac: [u8; 6],
    /// The server.
    pub server: SocketAddrV4,
    /// The next hop towards the server.
    pub server_mac: [u8; 6],
}

/// The lab's programs for a link, loaded.
pub struct Instruments {
    ring: Array<MapData, Head>,
    generator: Array<MapData, [u64; 3]>,
    receiver: Array<MapData, [u64; 7]>,
    flows: Array<MapData, [u32; 8]>,
    flow_counters: PerCpuArray<MapData, [u64; 2]>,
    /// Owns the programs and where they are attached.
    programs: Ebpf,
    /// The verifier knows the programs of this map as its owner's.
    _targets: ProgramArray<MapData>,
}

impl Instruments {
    /// Loads them; they are attached nowhere yet.
    ///
    /// # Errors
    /// If the kernel does not take them.
    pub fn load() -> Result<Self, LiveError> {
        let mut programs = aya::EbpfLoader::new().load(OBJECT)?;
        let mut take = |name| programs.take_map(name).ok_or(LiveError::Missing(name));
        let (ring, generator, receiver) = (take(FRAMES)?, take(GENERATOR)?, take(RECEIVER)?);
        let (flows, flow_counters, targets) = (take(FLOWS)?, take(FLOW_COUNTERS)?, take(TARGETS)?);
        for name in [GENERATOR_PROGRAM, RECEIVER_PROGRAM, FLOOR_PROGRAM, NAT_PROGRAM] {
            program(&mut programs, name)?.load()?;
        }
        Ok(Self {
            ring: Array::try_from(ring)?,
            generator: Array::try_from(generator)?,
            receiver: Array::try_from(receiver)?,
            flows: Array::try_from(flows)?,
            flow_counters: PerCpuArray::try_from(flow_counters)?,
            _targets: ProgramArray::try_from(targets)?,
            programs,
        })
    }

    /// Has the receiver at an interface of this thread's network namespace, until this is dropped.
    ///
    /// # Errors
    /// If the kernel refuses it there.
    pub fn receive_at(&mut self, interface: &str) -> Result<(), LiveError> {
        self.attach(RECEIVER_PROGRAM, interface)
    }

    /// Has the floor there: every packet goes back to where it came from.
    ///
    /// # Errors
    /// If the kernel refuses it there.
    pub fn reflect_at(&mut self, interface: &str) -> Result<(), LiveError> {
        self.attach(FLOOR_PROGRAM, interface)
    }

    /// Has the reference NAT there.
    ///
    /// # Errors
    /// If the kernel refuses it there.
    pub fn translate_at(&mut self, interface: &str) -> Result<(), LiveError> {
        self.attach(NAT_PROGRAM, interface)
    }

    fn attach(&mut self, name: &'static str, interface: &str) -> Result<(), LiveError> {
        program(&mut self.programs, name)?.attach(interface, XdpMode::Driver)?;
        Ok(())
    }

    /// Tells the reference NAT of a flow.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn set_flow(&mut self, index: u32, new: &Flow) -> Result<(), LiveError> {
        let mut words = [0; 8];
        words[flow::RELAY] = u32::from_ne_bytes(new.relay.octets());
        words[flow::CLIENT] = u32::from_ne_bytes(new.client.ip().octets());
        words[flow::SERVER] = u32::from_ne_bytes(new.server.ip().octets());
        words[flow::PORTS] = ports(new.client.port(), new.server.port());
        let [client, server] = [new.client_mac, new.server_mac];
        words[flow::CLIENT_MAC] = u32::from_ne_bytes([client[0], client[1], client[2], client[3]]);
        words[flow::SERVER_MAC] = u32::from_ne_bytes([server[0], server[1], server[2], server[3]]);
        words[flow::MAC_ENDS] = u32::from_ne_bytes([client[4], client[5], server[4], server[5]]);
        Ok(self.flows.set(index, words, 0)?)
    }

    /// Packets and bytes that the reference NAT sent on of a flow, uplink and downlink.
    ///
    /// # Errors
    /// If there is no such flow.
    pub fn flow_counters(&self, index: u32) -> Result<[[u64; 2]; 2], LiveError> {
        let of = |index| -> Result<[u64; 2], LiveError> {
            let per_cpu = self.flow_counters.get(&index, 0)?;
            let sum = |nth: usize| per_cpu.iter().map(|counters| counters[nth]).sum();
            Ok([sum(0), sum(1)])
        };
        Ok([of(2 * index)?, of(2 * index + 1)?])
    }

    /// Runs the reference NAT on one frame, with nothing attached: what it ends with, and the frame as it is then.
    ///
    /// # Errors
    /// If the kernel does not run it.
    pub fn translate(&mut self, frame: &[u8]) -> Result<(u32, Vec<u8>), LiveError> {
        let mut out = vec![0; frame.len()];
        let result = program(&mut self.programs, NAT_PROGRAM)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        Ok((result.return_value, out))
    }

    /// Gives the generator frames to send.
    ///
    /// # Errors
    /// If they are more than [`MOST_FRAMES`].
    pub fn fill(&mut self, frames: &Frames) -> Result<(), LiveError> {
        for (index, head) in (0..).zip(&frames.heads) {
            self.ring.set(index, head, 0)?;
        }
        Ok(())
    }

    /// Nanoseconds that the generator takes for a frame that it throws away: making it, and the page that it is in.
    ///
    /// # Errors
    /// If the kernel does not run it.
    pub fn generate(&mut self, interface_index: u32, frames: &Frames, batch: u32) -> Result<f64, LiveError> {
        self.generator.set(0, [0, XDP_DROP, 0], 0)?;
        self.run(interface_index, frames, batch)
    }

    /// Sends the frames that the generator was given out of an interface of this thread's network namespace, in batches
    /// of so many. Returns when the last has been sent, with the mean nanoseconds that took for each;
    /// [`Self::passage`] says what has come.
    ///
    /// # Errors
    /// If the kernel does not run the generator.
    pub fn send(
        &mut self,
        interface_index: u32,
        frames: &Frames,
        batch: u32,
        expected: &Expected,
    ) -> Result<f64, LiveError> {
        let mut waiting = [0; 7];
        let [from, to] = [expected.from, expected.to].map(|end| end.ip().octets());
        let (from, to): ([u8; 4], [u8; 4]) = (from, to);
        waiting[receiver::ADDRESSES] =
            u64::from_ne_bytes([from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3]]);
        waiting[receiver::PORTS] = ports(expected.from.port(), expected.to.port()).into();
        waiting[receiver::FRAME_BYTES] = expected.frame_bytes as u64;
        waiting[receiver::WANTED] = frames.heads.len() as u64;
        self.receiver.set(0, waiting, 0)?;
        self.generator.set(0, [0, XDP_TX, 0], 0)?;
        self.run(interface_index, frames, batch)
    }

    /// What has become of the frames sent last, so far.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn passage(&self) -> Result<Passage, LiveError> {
        let sent = self.generator.get(&0, 0)?;
        let seen = self.receiver.get(&0, 0)?;
        let ended = seen[receiver::ENDED_NS];
        Ok(Passage {
            sent: sent[generator::NEXT],
            delivered: seen[receiver::DELIVERED],
            others: seen[receiver::OTHERS],
            span_ns: (ended != 0).then(|| ended - sent[generator::STARTED_NS]),
        })
    }

    /// Mean nanoseconds of a frame.
    fn run(&mut self, interface_index: u32, frames: &Frames, batch: u32) -> Result<f64, LiveError> {
        let context = context(frames.frame.len() as u32, interface_index);
        let result = program(&mut self.programs, GENERATOR_PROGRAM)?.test_run(TestRunOptions {
            data_in: Some(&frames.frame),
            ctx_in: Some(&context),
            repeat: frames.heads.len() as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        })?;
        // The kernel cuts the mean to whole nanoseconds: half of one is missing on average.
        Ok(result.duration.as_secs_f64() * 1e9 + 0.5)
    }
}

/// `struct xdp_md`: the frame from 0 to its end, no metadata, and the interface that it is said to come from.
fn context(frame_bytes: u32, interface_index: u32) -> Vec<u8> {
    let [data, meta, queue, egress] = [0; 4];
    let words: [u32; 6] = [data, frame_bytes, meta, interface_index, queue, egress];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Two ports, as they stand in a packet.
fn ports(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LiveError> {
    let program = programs.program_mut(name).ok_or(LiveError::Missing(name))?;
    Ok(program.try_into()?)
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;
    use crate::{backend::kernel::missing_capabilities, craft::Checksum};

    const FLOW: Flow = Flow {
        relay: std::net::Ipv4Addr::new(192, 0, 2, 1),
        client: SocketAddrV4::new(std::net::Ipv4Addr::new(203, 0, 113, 9), 40_000),
        client_mac: [2, 0, 0, 0, 0, 9],
        server: SocketAddrV4::new(std::net::Ipv4Addr::new(198, 51, 100, 7), 5_000),
        server_mac: [2, 0, 0, 0, 0, 7],
    };
    const INDEX: u32 = 7;

    fn nat() -> Option<Instruments> {
        if !missing_capabilities().is_empty() {
            eprintln!("skipped: running programs in the kernel needs root");
            return None;
        }
        let mut instruments = Instruments::load().unwrap_or_else(|error| panic!("{error}"));
        instruments.set_flow(INDEX, &FLOW).expect("there is room");
        Some(instruments)
    }

    fn at(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(FLOW.relay, port + INDEX as u16)
    }

    /// The frame that this one must become, and what it becomes.
    fn both(nat: &mut Instruments, frame: &UdpFrame, expected: &UdpFrame) -> (Vec<u8>, Vec<u8>) {
        let (action, out) = nat.translate(&frame.build()).expect("it runs");
        assert_eq!(u64::from(action), XDP_TX);
        (out, expected.build())
    }

    #[test]
    fn the_reference_nat_relays_both_ways_with_right_checksums_and_counts() {
        let Some(mut nat) = nat() else { return };
        let (listener, egress) = (at(NAT_LISTENER_PORT), at(NAT_EGRESS_PORT));
        let relay_mac = UdpFrame::new(FLOW.client.into(), listener.into(), []).to_mac;
        for (from, to, out_from, out_to, out_mac) in [
            (FLOW.client, listener, egress, FLOW.server, FLOW.server_mac),
            (FLOW.server, egress, listener, FLOW.client, FLOW.client_mac),
        ] {
            for (nth, payload) in [vec![], vec![0xff; 3], vec![0x5a; 1_400]].into_iter().enumerate() {
                for checksum in [Checksum::Right, Checksum::None] {
                    let frame = UdpFrame::new(from.into(), to.into(), payload.clone())
                        .hop_limit(64 - nth as u8)
                        .checksum(checksum);
                    let mut expected = UdpFrame::new(out_from.into(), out_to.into(), payload.clone())
                        .hop_limit(63 - nth as u8)
                        .checksum(checksum)
                        .from_mac(relay_mac);
                    expected.to_mac = out_mac;
                    let (out, expected) = both(&mut nat, &frame, &expected);
                    assert_eq!(hex::encode(out), hex::encode(expected));
                }
            }
        }
        let frames = 2 * [42, 45, 1_442].iter().sum::<u64>();
        assert_eq!(nat.flow_counters(INDEX).expect("a flow"), [[6, frames]; 2]);
        assert_eq!(nat.flow_counters(0).expect("a flow"), [[0, 0]; 2]);
    }

    #[test]
    fn the_reference_nat_leaves_alone_what_belongs_to_no_flow() {
        let Some(mut nat) = nat() else { return };
        let stranger: SocketAddrV4 = "198.51.100.8:5000".parse().expect("an address");
        let udp = |from: SocketAddrV4, to: SocketAddrV4| UdpFrame::new(from.into(), to.into(), [1, 2]);
        let mut elsewhere = at(NAT_LISTENER_PORT);
        elsewhere.set_ip([192, 0, 2, 2].into());
        for frame in [
            udp(stranger, at(NAT_EGRESS_PORT)),
            udp(FLOW.client, SocketAddrV4::new(FLOW.relay, NAT_LISTENER_PORT)),
            udp(FLOW.client, SocketAddrV4::new(FLOW.relay, 53)),
            udp(FLOW.client, elsewhere),
            udp(FLOW.client, at(NAT_LISTENER_PORT)).fragment(0, true),
            udp(FLOW.client, at(NAT_LISTENER_PORT)).options([1, 1, 1, 0]),
        ] {
            let bytes = frame.build();
            let (action, out) = nat.translate(&bytes).expect("it runs");
            assert_eq!((action, &out), (2, &bytes), "{frame:?}");
        }
        let (action, _) = nat
            .translate(&udp(FLOW.client, at(NAT_LISTENER_PORT)).hop_limit(1).build())
            .expect("it runs");
        assert_eq!(action, 1, "a hop limit at its end");
    }

    /// UDP's sum may come out as 0, which stands for "no checksum" and must be sent as all ones.
    #[test]
    fn the_reference_nat_never_makes_a_checksum_mean_none() {
        let Some(mut nat) = nat() else { return };
        let mut ones = 0;
        for word in 0..=u16::MAX {
            let frame = UdpFrame::new(FLOW.client.into(), at(NAT_LISTENER_PORT).into(), word.to_be_bytes());
            let (_, out) = nat.translate(&frame.build()).expect("it runs");
            let packet = SlicedPacket::from_ethernet(&out).expect("a packet");
            let Some(TransportSlice::Udp(udp)) = packet.transport else {
                panic!("not UDP: {out:?}")
            };
            assert_ne!(udp.checksum(), 0, "{word}");
            ones += u32::from(udp.checksum() == 0xffff);
        }
        assert_eq!(ones, 1, "one of all words makes the sum 0");
    }
}
