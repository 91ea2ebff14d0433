//! Captures: pcap and pcapng files, read as Ethernet frames with the time of each, and written.
//!
//! [`Capture`] reads both formats in either byte order, with micro- and nanosecond stamps, several sections and several
//! interfaces; packet by packet, so that memory does not grow with the file. Frames of other link types that carry IP
//! are given an Ethernet header with [stated addresses](link). [`Writer`] writes pcapng with nanosecond stamps and a
//! comment for each packet that has one, as Wireshark shows it.
//!
//! ```no_run
//! use packet_lab::capture::{Capture, Writer};
//!
//! let mut copy = Writer::create("copy.pcapng")?;
//! for packet in Capture::open("incident.pcap")? {
//!     copy.write(&packet?)?;
//! }
//! copy.finish()?;
//! # Ok::<(), packet_lab::capture::CaptureError>(())
//! ```

pub mod link;
mod read;
mod write;

use std::{io, path::PathBuf};

pub use link::LinkType;
pub use read::Capture;
pub use write::Writer;

/// One captured frame.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Packet {
    /// When it was captured, in nanoseconds since 1970. A packet that came without a stamp (pcapng's Simple Packet
    /// Block) has the stamp of the one before it.
    pub at_ns: u64,
    /// Which interface it was captured on: the interfaces of all sections in the order they are described, from 0.
    pub interface: u32,
    /// An Ethernet frame, without the frame check sequence; as much of it as was captured.
    pub data: Vec<u8>,
    /// How long the frame was, in bytes: more than `data` where the capture cut it.
    pub original_length: u32,
    /// What somebody noted about it, the lines of several comments joined.
    pub comment: Option<String>,
    /// What the capture held; for anything but Ethernet the Ethernet header in `data` is made up.
    pub link: LinkType,
}

impl Packet {
    /// A whole Ethernet frame.
    #[must_use]
    pub fn new(at_ns: u64, data: Vec<u8>) -> Self {
        Self {
            at_ns,
            original_length: data.len() as u32,
            data,
            ..Self::default()
        }
    }

    /// With this comment.
    #[must_use]
    pub fn commented(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Whether the capture holds only the beginning of the frame.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        (self.data.len() as u64) < u64::from(self.original_length)
    }
}

/// Why a capture cannot be read or written. Each says which file, and where in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// It cannot be opened.
    #[error("opening {}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is a directory.
    #[error("{} is a directory; name a pcap or pcapng file", .0.display())]
    Directory(PathBuf),
    /// It has no bytes.
    #[error("{} is empty (0 bytes): not even a capture without packets is", .0.display())]
    Empty(PathBuf),
    /// Something else, or a form of pcap that is not read.
    #[error("{} is not a pcap or pcapng capture: {what}", path.display())]
    NotACapture {
        /// The file.
        path: PathBuf,
        /// What it looks like, and what to do.
        what: String,
    },
    /// It ends in the middle of something. Everything before has been given.
    #[error(
        "{} is truncated: {inside} starts at byte {offset} and lacks its last {missing} bytes; the {packets} before it \
         are whole", path.display(), packets = counted(*.packets)
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How many packets were read before.
        packets: u64,
        /// Where what is cut starts, in bytes from the beginning.
        offset: u64,
        /// How many bytes are missing at least.
        missing: u64,
        /// What is cut.
        inside: String,
    },
    /// It says something that cannot be.
    #[error("{} is corrupt at byte {offset}, after {packets}: {what}", path.display(), packets = counted(*.packets))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// How many packets were read before.
        packets: u64,
        /// Where, in bytes from the beginning.
        offset: u64,
        /// What cannot be.
        what: String,
    },
    /// Its packets are not Ethernet nor anything that carries IP in a way known here.
    #[error(
        "{}: packet {packet} has link type {link} ({number}), which does not become Ethernet: {}", path.display(),
        link::READABLE
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// The packet, from 1.
        packet: u64,
        /// The link type's name.
        link: &'static str,
        /// The link type's number.
        number: u16,
    },
    /// Reading failed.
    #[error("reading {} at byte {offset}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// How far reading came.
        offset: u64,
        /// Why.
        error: io::Error,
    },
    /// It cannot be written.
    #[error("writing {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn counted(count: u64) -> String {
    match count {
        1 => "1 packet".to_owned(),
        count => format!("{count} packets"),
    }
}
