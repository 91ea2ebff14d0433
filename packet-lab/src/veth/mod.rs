//! A wire: a veth pair in a network namespace without a name, an XDP program on one end, packet sockets on both; or
//! several of them, for a program that sends from one to another.
//!
//! Nothing on it says anything by itself: there are no addresses, IPv6 is off and ARP too. Nothing of it can be left
//! behind: the namespace lives as long as the sockets in it, and these go with the process, however that ends.
//!
//! What became of a frame is *seen*: it came back to the end that it was sent from (TX) or that of another pair
//! (REDIRECT), or came out at the program's end (PASS), or, once both ends are known to have done all their work, neither (DROP). Two things tell when that is:
//! the program's end counts a frame as received once it is through with it; and a marker that is sent after it, from
//! the program's end to the other, arrives behind whatever the program sent the same way.

mod host;
mod link;
mod socket;

use std::{
    io::{self, Read as _, Seek as _},
    ops::RangeInclusive,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aya::programs::{ProgramError, Xdp, xdp::XdpLink};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

pub use self::{host::Host, link::Ends, socket::PacketSocket};
use crate::{inspect, observe::Verdict, pass::PassError};

/// Frames that go through: at least an Ethernet header, at most what a veth interface takes with a native XDP program,
/// which must fit one page with its head and tail room.
pub const FRAME_BYTES: RangeInclusive<usize> = 14..=3_500;

const HEADER_BYTES: usize = 14;
/// A tag, and the type of what follows.
const TAG_BYTES: usize = 4 + 2;
/// Types of VLAN tags that the kernel takes out of a frame that it receives: IEEE 802.1Q and 802.1ad.
const TAG_TYPES: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
/// Far longer than any frame takes on a machine that is not overloaded.
const PATIENCE: Duration = Duration::from_secs(5);
/// An Ethernet frame of the first type for local experiments (IEEE 802), and a name.
const MARKER: &[u8] = b"\x02lab-m\x02lab-m\x88\xb5packet-lab: all before this have arrived";

/// Why a wire could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VethError {
    /// No network namespace.
    #[error("making a network namespace: {0}; the veth backend needs root (CAP_SYS_ADMIN)")]
    Namespace(#[source] Errno),
    /// The links could not be made.
    #[error("{action}: {source}; the veth backend needs a kernel with CONFIG_VETH")]
    Link {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: Box<rtnetlink::Error>,
    },
    /// The program could not be attached.
    #[error("attaching the program to a veth interface in native mode: {0}")]
    Attach(#[source] ProgramError),
    /// The other end's program could not be attached.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A socket failed.
    #[error("{action}: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// A file of the kernel's could not be read or written.
    #[error("{action} {file}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A frame appeared that nobody sent.
    #[error("a frame on the {end} end of the veth pair that none of those sent explains:\n{frame}")]
    Stray {
        /// Where.
        end: &'static str,
        /// The frame, for people.
        frame: String,
    },
    /// A frame came back, but not to be seen.
    #[error(
        "a frame came back to the sending end of the veth pair, but the kernel threw it away before it could be seen: it \
         has a VLAN tag and less than two bytes behind it"
    )]
    Unseen,
    /// The kernel did not get to a frame.
    #[error("waited {} s for {what}, in vain; is the machine overloaded?", PATIENCE.as_secs())]
    Patience {
        /// What for.
        what: &'static str,
    },
}

/// What became of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Passage {
    /// TX, REDIRECT, PASS or DROP. What a program aborted or redirected into nothing looks like DROP from outside.
    pub verdict: Verdict,
    /// The number of the pair that it came out of, sent by the program.
    pub egress: Option<u8>,
    /// The frame as it came out; as it went in where none did.
    pub frame: Vec<u8>,
}

/// Veth pairs with a program on one end of each.
#[derive(Debug)]
pub struct Wire {
    /// Taken when this is dropped, as are the next.
    ends: Option<Ends>,
    links: Vec<XdpLink>,
    /// What each pair's ends have received, as far as that is known.
    received: Vec<Received>,
    /// Set by an error: whatever may still be under way is nobody else's.
    is_spoiled: bool,
}

/// Frames that the two ends of a pair have received.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Received {
    /// The sending end: will have counted, if all that came back was seen.
    near: u64,
    /// The program's end: will have counted when all that was sent has arrived.
    far: u64,
}

/// Pairs without a program, for the next wires: making one takes the kernel far longer than attaching a program.
static IDLE: Mutex<Vec<Ends>> = Mutex::new(Vec::new());
/// As many are kept.
const MOST_IDLE: usize = 8;

fn idle() -> MutexGuard<'static, Vec<Ends>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The next program needs the place.
        self.links.clear();
        let mut idle = idle();
        if let Some(ends) = self.ends.take().filter(|_| !self.is_spoiled && idle.len() < MOST_IDLE) {
            idle.push(ends);
        }
    }
}

impl Ends {
    /// So many pairs that nobody uses.
    ///
    /// # Errors
    /// If the process may not make any, or the kernel cannot; nothing is left behind.
    pub fn take(count: usize) -> Result<Self, VethError> {
        let waiting = {
            let mut idle = idle();
            let fitting = idle.iter().position(|ends| ends.pairs.len() == count);
            fitting.map(|place| idle.swap_remove(place))
        };
        waiting.map_or_else(|| Self::make(count), Ok)
    }
}

impl Wire {
    /// Makes a wire of one pair, with this loaded program on one end, in native mode.
    ///
    /// # Errors
    /// If the process may not, or the kernel cannot; nothing is left behind.
    pub fn new(program: &mut Xdp) -> Result<Self, VethError> {
        Self::with(Ends::take(1)?, program)
    }

    /// Makes a wire of these pairs, with this loaded program on one end of each, in native mode.
    ///
    /// # Errors
    /// If the kernel cannot; nothing is left behind.
    pub fn with(mut ends: Ends, program: &mut Xdp) -> Result<Self, VethError> {
        let links = ends.attach(program)?;
        let received = received(&mut ends)?;
        Ok(Self {
            ends: Some(ends),
            links,
            received,
            is_spoiled: false,
        })
    }

    /// The pairs.
    #[must_use]
    pub fn ends(&self) -> &Ends {
        match &self.ends {
            Some(ends) => ends,
            None => unreachable!("a wire has its ends until it is dropped"),
        }
    }

    /// Whether a frame can be sent at all. The kernel throws one away that has a VLAN tag and less than two bytes behind
    /// it, before any socket sees it.
    #[must_use]
    pub fn takes(frame: &[u8]) -> bool {
        let is_tagged = frame
            .get(12..14)
            .is_some_and(|kind| TAG_TYPES.iter().any(|tag| tag == kind));
        FRAME_BYTES.contains(&frame.len()) && !(is_tagged && frame.len() < HEADER_BYTES + TAG_BYTES)
    }

    /// Sends a frame into the pair with this number, which exists, and says what became of it.
    ///
    /// # Errors
    /// If the frame cannot be sent, if nothing can be said about it in time, or if there are frames that nobody sent.
    pub fn exchange(&mut self, pair: u8, frame: &[u8]) -> Result<Passage, VethError> {
        let Some(mut ends) = self.ends.take() else {
            unreachable!("a wire has its ends until it is dropped")
        };
        let passage = Pinned::new()
            .map_err(socket_error("staying on one CPU"))
            .and_then(|_pinned| self.pass(&mut ends, usize::from(pair), frame));
        self.is_spoiled |= passage.is_err();
        self.ends = Some(ends);
        passage
    }

    fn pass(&mut self, ends: &mut Ends, into: usize, frame: &[u8]) -> Result<Passage, VethError> {
        expect_silence(ends)?;
        ends.pairs[into]
            .near
            .send(frame)
            .map_err(socket_error("sending a frame into a veth interface"))?;
        self.received[into].far += 1;
        // Mostly it has all happened by now: the kernel does it before it returns from sending.
        for (number, pair) in ends.pairs.iter_mut().enumerate() {
            if let Some(frame) = pair.near.receive().map_err(socket_error(RECEIVING))? {
                self.received[number].near += 1;
                return Ok(Passage::sent(into, number, frame));
            }
        }
        if let Some(frame) = ends.pairs[into].far.receive().map_err(socket_error(RECEIVING))? {
            return Ok(Passage::not_sent(Verdict::Pass, frame));
        }
        self.wait_until_received(ends, into)?;
        for number in 0..ends.pairs.len() {
            if let Some(frame) = self.before_marker(ends, number)? {
                return Ok(Passage::sent(into, number, frame));
            }
        }
        if let Some(frame) = ends.pairs[into].far.receive().map_err(socket_error(RECEIVING))? {
            return Ok(Passage::not_sent(Verdict::Pass, frame));
        }
        let received = received(ends)?;
        if received
            .iter()
            .zip(&self.received)
            .any(|(now, known)| now.near != known.near)
        {
            return Err(VethError::Unseen);
        }
        Ok(Passage::not_sent(Verdict::Drop, frame.to_vec()))
    }

    /// Waits until the program's end has received all that was sent. The program, and what its verdict leads to, runs
    /// on the CPU of the sending thread, which stays there: seen from there, all of it has happened, or none.
    fn wait_until_received(&self, ends: &mut Ends, pair: usize) -> Result<(), VethError> {
        let deadline = Instant::now() + PATIENCE;
        while received(ends)?[pair].far != self.received[pair].far {
            if Instant::now() >= deadline {
                let what = "the program's end of the veth pair to receive a frame";
                return Err(VethError::Patience { what });
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Sends the marker from the program's end, and returns the frame that arrives before it, if there is one.
    fn before_marker(&mut self, ends: &mut Ends, number: usize) -> Result<Option<Vec<u8>>, VethError> {
        let pair = &mut ends.pairs[number];
        pair.far
            .send(MARKER)
            .map_err(socket_error("sending a marker into a veth interface"))?;
        let deadline = Instant::now() + PATIENCE;
        let mut before = None;
        loop {
            let received = pair.near.receive().map_err(socket_error(RECEIVING))?;
            self.received[number].near += u64::from(received.is_some());
            match received {
                Some(frame) if frame == MARKER => return Ok(before),
                Some(frame) if before.is_none() => before = Some(frame),
                Some(frame) => {
                    let (end, frame) = ("sending", inspect::describe(&frame));
                    return Err(VethError::Stray { end, frame });
                }
                None => wait_for_frame(pair.near.as_fd(), deadline)?,
            }
        }
    }
}

/// Fails if a frame has arrived that nobody waited for.
fn expect_silence(ends: &mut Ends) -> Result<(), VethError> {
    for pair in &mut ends.pairs {
        for (end, socket) in [("sending", &mut pair.near), ("program's", &mut pair.far)] {
            if let Some(frame) = socket.receive().map_err(socket_error(RECEIVING))? {
                let frame = inspect::describe(&frame);
                return Err(VethError::Stray { end, frame });
            }
        }
    }
    Ok(())
}

/// How many frames the ends of each pair have received.
fn received(ends: &mut Ends) -> Result<Vec<Received>, VethError> {
    let mut text = String::new();
    let file = &mut ends.statistics;
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let failed = |source| VethError::File {
        action: "reading",
        file: link::STATISTICS,
        source,
    };
    read.map_err(failed)?;
    let of_pair = |number| {
        Some(Received {
            near: received_packets(&text, &link::sending_end(number))?,
            far: received_packets(&text, &link::program_end(number))?,
        })
    };
    let all: Option<Vec<_>> = (0..ends.pairs.len()).map(of_pair).collect();
    all.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

const RECEIVING: &str = "receiving from a veth interface";

impl Passage {
    fn sent(into: usize, out_of: usize, frame: Vec<u8>) -> Self {
        let verdict = if into == out_of { Verdict::Tx } else { Verdict::Redirect };
        Self {
            verdict,
            egress: Some(out_of as u8),
            frame,
        }
    }

    fn not_sent(verdict: Verdict, frame: Vec<u8>) -> Self {
        Self {
            verdict,
            egress: None,
            frame,
        }
    }
}

fn socket_error(action: &'static str) -> impl FnOnce(Errno) -> VethError {
    move |source| VethError::Socket { action, source }
}

fn wait_for_frame(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(), VethError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(VethError::Patience {
            what: "a frame at the sending end of the veth pair",
        }),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(source) => Err(socket_error(RECEIVING)(source)),
    }
}

/// The packets that an interface received, from the text of `/proc/net/dev`.
fn received_packets(text: &str, interface: &str) -> Option<u64> {
    let numbers = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

/// Keeps this thread on one CPU.
struct Pinned {
    allowed: CpuSet,
}

impl Pinned {
    fn new() -> Result<Self, Errno> {
        let this_thread = Pid::from_raw(0);
        let allowed = sched_getaffinity(this_thread)?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        sched_setaffinity(this_thread, &one)?;
        Ok(Self { allowed })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Set before, so it is one that the kernel takes.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.allowed);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{backend::veth::missing_capabilities, object::Object};

    const FRAME: &[u8] = &[0x5a; 60];

    /// A program of somebody's, on a wire; `None` where there can be none.
    fn wire(program: &str) -> Option<(Object, Wire)> {
        if !missing_capabilities().is_empty() {
            eprintln!("skipped: wires need root");
            return None;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/foreign/old.o");
        let mut object = Object::load(&path, program).expect("the kernel takes the example");
        let wire = Wire::new(object.program().expect("it was loaded")).expect("root has wires");
        Some((object, wire))
    }

    #[test]
    fn a_frame_that_nobody_sent_is_named_and_the_wire_not_used_again() {
        let Some((_object, mut wire)) = wire("passes") else {
            return;
        };
        let stray = [0xee; 40];
        wire.ends.as_ref().expect("it has ends").pairs[0]
            .far
            .send(&stray)
            .expect("it can send");
        let error = wire.exchange(0, FRAME).expect_err("there was a frame").to_string();
        assert!(
            error.contains("on the sending end") && error.contains("eeee eeee"),
            "{error}"
        );
        assert!(wire.is_spoiled);
    }

    #[test]
    fn what_is_neither_sent_back_nor_passed_is_dropped_each_time() {
        let Some((_object, mut wire)) = wire("drops") else {
            return;
        };
        for _ in 0..1_000 {
            let passage = wire.exchange(0, FRAME).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((passage.verdict, passage.frame.as_slice()), (Verdict::Drop, FRAME));
        }
    }

    #[test]
    fn the_next_program_has_the_wire_to_itself() {
        for _ in 0..3 {
            for (program, verdict) in [("passes", Verdict::Pass), ("drops", Verdict::Drop)] {
                let Some((_object, mut wire)) = wire(program) else {
                    return;
                };
                let passage = wire.exchange(0, FRAME).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(passage.verdict, verdict);
            }
        }
    }

    #[test]
    fn the_packets_of_an_interface_are_the_second_number_of_its_line() {
        let text =
            "Inter-|   Receive\n face |bytes    packets errs\n    lo:       0       0    0\nprogram: 5400 54 0 1\n";
        assert_eq!(received_packets(text, "program"), Some(54));
        assert_eq!(received_packets(text, "lo"), Some(0));
        assert_eq!(received_packets(text, "l"), None);
    }
}
