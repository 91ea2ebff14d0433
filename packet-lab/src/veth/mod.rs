//! A wire: a veth pair in a network namespace without a name, an XDP program on one end, packet sockets on both.
//!
//! Nothing on it says anything by itself: there are no addresses, IPv6 is off and ARP too. Nothing of it can be left
//! behind: the namespace lives as long as the sockets in it, and these go with the process, however that ends.
//!
//! What became of a frame is *seen*: it came back to the end that it was sent from (TX), or came out at the program's
//! end (PASS), or, once both ends are known to have done all their work, neither (DROP). Two things tell when that is:
//! the program's end counts a frame as received once it is through with it; and a marker that is sent after it, from
//! the program's end to the other, arrives behind whatever the program sent the same way.

mod link;
mod socket;

use std::{
    fs::File,
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

use self::link::Ends;
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
    /// TX, PASS or DROP. What a program aborted or redirected into nothing looks like DROP from outside.
    pub verdict: Verdict,
    /// The frame as it came out; as it went in where none did.
    pub frame: Vec<u8>,
}

/// A veth pair with a program on one end.
#[derive(Debug)]
pub struct Wire {
    /// Taken when this is dropped, as is the next.
    ends: Option<Ends>,
    link: Option<XdpLink>,
    /// What the program's end will have counted as received when all that was sent has arrived.
    sent: u64,
    /// What the sending end will have counted, if all that came back was seen.
    seen: u64,
    /// Set by an error: whatever may still be under way is nobody else's.
    is_spoiled: bool,
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
        drop(self.link.take());
        let mut idle = idle();
        if let Some(ends) = self.ends.take().filter(|_| !self.is_spoiled && idle.len() < MOST_IDLE) {
            idle.push(ends);
        }
    }
}

impl Wire {
    /// Makes a wire, with this loaded program on one end, in native mode.
    ///
    /// # Errors
    /// If the process may not, or the kernel cannot; nothing is left behind.
    pub fn new(program: &mut Xdp) -> Result<Self, VethError> {
        let waiting = idle().pop();
        let mut ends = waiting.map_or_else(Ends::make, Ok)?;
        let link = ends.attach(program)?;
        let (seen, sent) = received(&mut ends.statistics)?;
        Ok(Self {
            ends: Some(ends),
            link: Some(link),
            sent,
            seen,
            is_spoiled: false,
        })
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

    /// Sends a frame, and says what became of it.
    ///
    /// # Errors
    /// If the frame cannot be sent, if nothing can be said about it in time, or if there are frames that nobody sent.
    pub fn exchange(&mut self, frame: &[u8]) -> Result<Passage, VethError> {
        let Some(mut ends) = self.ends.take() else {
            unreachable!("a wire has its ends until it is dropped")
        };
        let passage = Pinned::new()
            .map_err(socket_error("staying on one CPU"))
            .and_then(|_pinned| self.pass(&mut ends, frame));
        self.is_spoiled |= passage.is_err();
        self.ends = Some(ends);
        passage
    }

    fn pass(&mut self, ends: &mut Ends, frame: &[u8]) -> Result<Passage, VethError> {
        expect_silence(ends)?;
        ends.near
            .send(frame)
            .map_err(socket_error("sending a frame into a veth interface"))?;
        self.sent += 1;
        // Mostly it has all happened by now: the kernel does it before it returns from sending.
        if let Some(frame) = ends.near.receive().map_err(socket_error(RECEIVING))? {
            self.seen += 1;
            return Ok(passage(Verdict::Tx, frame));
        }
        if let Some(frame) = ends.far.receive().map_err(socket_error(RECEIVING))? {
            return Ok(passage(Verdict::Pass, frame));
        }
        self.wait_until_received(ends)?;
        if let Some(frame) = self.before_marker(ends)? {
            return Ok(passage(Verdict::Tx, frame));
        }
        if let Some(frame) = ends.far.receive().map_err(socket_error(RECEIVING))? {
            return Ok(passage(Verdict::Pass, frame));
        }
        if received(&mut ends.statistics)?.0 != self.seen {
            return Err(VethError::Unseen);
        }
        Ok(passage(Verdict::Drop, frame.to_vec()))
    }

    /// Waits until the program's end has received all that was sent. The program, and what its verdict leads to, runs
    /// on the CPU of the sending thread, which stays there: seen from there, all of it has happened, or none.
    fn wait_until_received(&self, ends: &mut Ends) -> Result<(), VethError> {
        let deadline = Instant::now() + PATIENCE;
        while received(&mut ends.statistics)?.1 != self.sent {
            if Instant::now() >= deadline {
                let what = "the program's end of the veth pair to receive a frame";
                return Err(VethError::Patience { what });
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Sends the marker from the program's end, and returns the frame that arrives before it, if there is one.
    fn before_marker(&mut self, ends: &mut Ends) -> Result<Option<Vec<u8>>, VethError> {
        ends.far
            .send(MARKER)
            .map_err(socket_error("sending a marker into a veth interface"))?;
        let deadline = Instant::now() + PATIENCE;
        let mut before = None;
        loop {
            let received = ends.near.receive().map_err(socket_error(RECEIVING))?;
            self.seen += u64::from(received.is_some());
            match received {
                Some(frame) if frame == MARKER => return Ok(before),
                Some(frame) if before.is_none() => before = Some(frame),
                Some(frame) => {
                    let (end, frame) = ("sending", inspect::describe(&frame));
                    return Err(VethError::Stray { end, frame });
                }
                None => wait_for_frame(ends.near.as_fd(), deadline)?,
            }
        }
    }
}

/// Fails if a frame has arrived that nobody waited for.
fn expect_silence(ends: &mut Ends) -> Result<(), VethError> {
    for (end, socket) in [("sending", &mut ends.near), ("program's", &mut ends.far)] {
        if let Some(frame) = socket.receive().map_err(socket_error(RECEIVING))? {
            let frame = inspect::describe(&frame);
            return Err(VethError::Stray { end, frame });
        }
    }
    Ok(())
}

/// How many frames the sending end and the program's have received.
fn received(statistics: &mut File) -> Result<(u64, u64), VethError> {
    let mut text = String::new();
    let read = statistics.rewind().and_then(|()| statistics.read_to_string(&mut text));
    let failed = |source| VethError::File {
        action: "reading",
        file: link::STATISTICS,
        source,
    };
    read.map_err(failed)?;
    received_packets(&text, link::SENDING_END)
        .zip(received_packets(&text, link::PROGRAM_END))
        .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

const RECEIVING: &str = "receiving from a veth interface";

fn passage(verdict: Verdict, frame: Vec<u8>) -> Passage {
    Passage { verdict, frame }
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
        wire.ends
            .as_ref()
            .expect("it has ends")
            .far
            .send(&stray)
            .expect("it can send");
        let error = wire.exchange(FRAME).expect_err("there was a frame").to_string();
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
            let passage = wire.exchange(FRAME).unwrap_or_else(|error| panic!("{error}"));
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
                let passage = wire.exchange(FRAME).unwrap_or_else(|error| panic!("{error}"));
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
