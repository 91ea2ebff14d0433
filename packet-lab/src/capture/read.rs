//! Reading pcap and pcapng.
//!
//! The file is taken apart into records and blocks here, so that each length is checked before anything is read or
//! allocated for it and every error knows its offset; what is inside them is read by pcap-parser.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    iter::FusedIterator,
    path::{Path, PathBuf},
};

use pcap_parser::{
    InterfaceDescriptionBlock, OptionCode, PcapNGOption,
    pcap::{PcapHeader, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_header},
    pcapng::{
        parse_enhancedpacketblock_be, parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be,
        parse_interfacedescriptionblock_le, parse_option_be, parse_option_le, parse_sectionheaderblock,
    },
};

use super::{CaptureError, LinkType, Packet};

/// The largest packet that tcpdump and Wireshark read.
const MOST_PACKET_BYTES: u32 = 262_144;
/// The largest block that Wireshark reads.
const MOST_BLOCK_BYTES: u32 = 16 << 20;
/// More interfaces than this in a section are no capture.
const MOST_INTERFACES: usize = 65_536;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// A capture that is being read.
pub struct Capture {
    source: Source,
    format: Format,
    size: Option<u64>,
    last_ns: u64,
    ended: bool,
}

/// The bytes, and how far they were read.
struct Source {
    path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    /// Where `record` starts, in the file.
    start: u64,
    /// The record or block that is being read.
    record: Vec<u8>,
    /// Packets given so far.
    packets: u64,
}

enum Format {
    Pcap(PcapFile),
    Pcapng(Section),
}

struct PcapFile {
    big_endian: bool,
    units_per_second: u32,
    link: Link,
}

struct Section {
    big_endian: bool,
    /// Interfaces of the sections before.
    interfaces_before: u32,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy)]
struct Interface {
    link: Link,
    resolution: u8,
    offset_s: i64,
    snaplen: u32,
}

/// A link type, perhaps none that is read, and the length of the frame check sequence behind each frame.
#[derive(Clone, Copy)]
struct Link {
    number: u16,
    fcs_bytes: usize,
}

/// A packet as its record has it.
struct Recorded<'a> {
    interface: u32,
    link: Link,
    at_ns: u64,
    data: &'a [u8],
    original_length: u32,
    comment: Option<String>,
}

impl Capture {
    /// Opens a capture; `-` is standard input.
    ///
    /// # Errors
    /// If it cannot be opened, or is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CaptureError> {
        let path = path.as_ref();
        if path == Path::new("-") {
            return Self::read("standard input", Box::new(io::stdin()));
        }
        let failed = |error| CaptureError::Open {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(CaptureError::Directory(path.to_owned()));
        }
        let mut capture = Self::read(path, Box::new(file))?;
        capture.size = metadata.is_file().then_some(metadata.len());
        Ok(capture)
    }

    /// Reads a capture from something that is no file, called `path` in errors.
    ///
    /// # Errors
    /// If it is no capture.
    pub fn read(path: impl AsRef<Path>, reader: Box<dyn Read + Send>) -> Result<Self, CaptureError> {
        let mut source = Source {
            path: path.as_ref().to_owned(),
            reader: BufReader::with_capacity(1 << 18, reader),
            start: 0,
            record: Vec::new(),
            packets: 0,
        };
        let format = Format::recognize(&mut source)?;
        Ok(Self {
            source,
            format,
            size: None,
            last_ns: 0,
            ended: false,
        })
    }

    /// How many bytes of the file have been read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.source.end()
    }

    /// How many bytes the file has, where that is known.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    fn next_packet(&mut self) -> Result<Option<Packet>, CaptureError> {
        let Self { source, format, .. } = self;
        let there_is_one = match format {
            Format::Pcap(file) => file.advance(source)?,
            Format::Pcapng(section) => section.advance(source)?,
        };
        if !there_is_one {
            return Ok(None);
        }
        let recorded = match format {
            Format::Pcap(file) => file.recorded(source)?,
            Format::Pcapng(section) => section.recorded(source, self.last_ns)?,
        };
        self.last_ns = recorded.at_ns;
        let packet = source.packet(recorded)?;
        source.packets += 1;
        Ok(Some(packet))
    }
}

impl Iterator for Capture {
    type Item = Result<Packet, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_packet();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

impl FusedIterator for Capture {}

impl Source {
    fn end(&self) -> u64 {
        self.start + self.record.len() as u64
    }

    /// Starts the next record with its first `bytes` bytes; `false` at the end of the file.
    fn begin(&mut self, bytes: usize, inside: &str) -> Result<bool, CaptureError> {
        self.start = self.end();
        self.record.clear();
        if self.fill(bytes)? == 0 {
            return Ok(false);
        }
        self.demand(bytes, inside)?;
        Ok(true)
    }

    /// Reads on until the record has `bytes` bytes.
    fn extend(&mut self, bytes: usize, inside: &str) -> Result<(), CaptureError> {
        self.fill(bytes)?;
        self.demand(bytes, inside)
    }

    /// Reads until the record has `bytes` bytes or the file ends; how many it has. Memory grows with what is there, not
    /// with what is asked for.
    fn fill(&mut self, bytes: usize) -> Result<usize, CaptureError> {
        let wanted = bytes.saturating_sub(self.record.len()) as u64;
        let read = self.reader.by_ref().take(wanted).read_to_end(&mut self.record);
        match read {
            Ok(_) => Ok(self.record.len()),
            Err(error) => Err(CaptureError::Read {
                path: self.path.clone(),
                offset: self.end(),
                error,
            }),
        }
    }

    fn demand(&self, bytes: usize, inside: &str) -> Result<(), CaptureError> {
        if self.record.len() >= bytes {
            return Ok(());
        }
        let inside = match inside {
            "packet" => format!("packet {}", self.packets + 1),
            other => other.to_owned(),
        };
        Err(CaptureError::Truncated {
            path: self.path.clone(),
            packets: self.packets,
            offset: self.start,
            missing: (bytes - self.record.len()) as u64,
            inside,
        })
    }

    fn u32_at(&self, offset: usize, big_endian: bool) -> u32 {
        u32_at(&self.record, offset, big_endian)
    }

    fn not_a_capture(&self, what: impl Into<String>) -> CaptureError {
        CaptureError::NotACapture {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn corrupt(&self, what: impl Into<String>) -> CaptureError {
        CaptureError::Corrupt {
            path: self.path.clone(),
            packets: self.packets,
            offset: self.start,
            what: what.into(),
        }
    }

    /// A recorded packet as an Ethernet frame.
    fn packet(&self, recorded: Recorded<'_>) -> Result<Packet, CaptureError> {
        let number = recorded.link.number;
        let link = LinkType::from_number(number).map_err(|link| CaptureError::LinkType {
            path: self.path.clone(),
            packet: self.packets + 1,
            link,
            number,
        })?;
        // Some programs write an original length of less than there is, or none.
        let original = recorded.original_length.max(recorded.data.len() as u32);
        let fcs = recorded.link.fcs_bytes;
        let without_fcs = (original as usize).saturating_sub(fcs);
        let captured = &recorded.data[..recorded.data.len().min(without_fcs)];
        let data = link.to_ethernet(captured).ok_or_else(|| {
            self.corrupt(format!(
                "packet {} has {} bytes, fewer than the header of link type {}",
                self.packets + 1,
                captured.len(),
                link.name()
            ))
        })?;
        Ok(Packet {
            at_ns: recorded.at_ns,
            interface: recorded.interface,
            original_length: link.ethernet_length(without_fcs as u32),
            data,
            comment: recorded.comment,
            link,
        })
    }
}

impl Format {
    /// Reads the beginning of the file and says what it is.
    fn recognize(source: &mut Source) -> Result<Self, CaptureError> {
        if source.fill(4)? == 0 {
            return Err(CaptureError::Empty(source.path.clone()));
        }
        // Enough to tell what else it may be.
        match *source.record {
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0x4d, 0x3c, 0xb2, 0xa1] => PcapFile::begin(source).map(Self::Pcap),
            [0x0a, 0x0d, 0x0d, 0x0a] => {
                source.extend(28, "the first section's header")?;
                let mut section = Section::none();
                section.begin(source)?;
                Ok(Self::Pcapng(section))
            }
            _ => {
                source.fill(512)?;
                Err(source.not_a_capture(resembles(&source.record)))
            }
        }
    }
}

impl PcapFile {
    fn begin(source: &mut Source) -> Result<Self, CaptureError> {
        source.extend(24, "the file's header")?;
        let (_, header) =
            parse_pcap_header(&source.record).map_err(|_| source.not_a_capture("its header cannot be read"))?;
        if header.version_major != 2 {
            let PcapHeader {
                version_major,
                version_minor,
                ..
            } = header;
            let what = format!("it says pcap version {version_major}.{version_minor}; there is only version 2");
            return Err(source.not_a_capture(what));
        }
        // The upper bits say how long the frame check sequence is, in units of 2 bytes, if it is known.
        let network = header.network.0.cast_unsigned();
        let fcs_bytes = if network & 0x0400_0000 == 0 {
            0
        } else {
            2 * (network >> 28) as usize
        };
        Ok(Self {
            big_endian: header.is_bigendian(),
            units_per_second: if header.is_nanosecond_precision() {
                1_000_000_000
            } else {
                1_000_000
            },
            link: Link {
                number: network as u16,
                fcs_bytes,
            },
        })
    }

    /// Reads the next packet's record, if there is one.
    fn advance(&self, source: &mut Source) -> Result<bool, CaptureError> {
        if !source.begin(16, "packet")? {
            return Ok(false);
        }
        let captured = source.u32_at(8, self.big_endian);
        check_packet_length(source, captured)?;
        source.extend(16 + captured as usize, "packet")?;
        Ok(true)
    }

    fn recorded<'a>(&self, source: &'a Source) -> Result<Recorded<'a>, CaptureError> {
        let parse = if self.big_endian {
            parse_pcap_frame_be
        } else {
            parse_pcap_frame
        };
        let (_, frame) = parse(&source.record).map_err(|_| source.corrupt("a packet that cannot be read"))?;
        let ns_per_unit = u64::from(1_000_000_000 / self.units_per_second);
        Ok(Recorded {
            interface: 0,
            link: self.link,
            at_ns: u64::from(frame.ts_sec) * 1_000_000_000 + u64::from(frame.ts_usec) * ns_per_unit,
            data: frame.data,
            original_length: frame.origlen,
            comment: None,
        })
    }
}

impl Section {
    const fn none() -> Self {
        Self {
            big_endian: false,
            interfaces_before: 0,
            interfaces: Vec::new(),
        }
    }

    /// Starts a section whose header's first 28 bytes have been read.
    fn begin(&mut self, source: &mut Source) -> Result<(), CaptureError> {
        let big_endian = match source.u32_at(8, true) {
            BYTE_ORDER => true,
            order if order.swap_bytes() == BYTE_ORDER => false,
            order => {
                let what = format!("a section whose byte-order magic is {order:#010x}, not {BYTE_ORDER:#010x}");
                return Err(source.corrupt(what));
            }
        };
        self.big_endian = big_endian;
        self.complete_block(source)?;
        let (_, header) = parse_sectionheaderblock(&source.record)
            .map_err(|_| source.corrupt("a section header that cannot be read"))?;
        if header.major_version != 1 {
            let (major, minor) = (header.major_version, header.minor_version);
            return Err(source.corrupt(format!(
                "a section of pcapng version {major}.{minor}; there is only version 1"
            )));
        }
        self.interfaces_before += self.interfaces.len() as u32;
        self.interfaces.clear();
        Ok(())
    }

    /// Reads the rest of a block of which the first 8 bytes have been read, and checks its lengths.
    fn complete_block(&self, source: &mut Source) -> Result<(), CaptureError> {
        let (kind, length) = (source.u32_at(0, self.big_endian), source.u32_at(4, self.big_endian));
        let least = match kind {
            SECTION_HEADER => 28,
            INTERFACE_DESCRIPTION => 20,
            SIMPLE_PACKET => 16,
            OBSOLETE_PACKET | ENHANCED_PACKET => 32,
            _ => 12,
        };
        if length < least || !length.is_multiple_of(4) || length > MOST_BLOCK_BYTES {
            return Err(source.corrupt(format!(
                "a block of type {kind:#x} that claims {length} bytes, which should be a multiple of 4 from {least} \
                 to {MOST_BLOCK_BYTES}"
            )));
        }
        let inside = match kind {
            OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET => "packet",
            _ => "a block",
        };
        source.extend(length as usize, inside)?;
        let again = source.u32_at(length as usize - 4, self.big_endian);
        if again != length {
            return Err(source.corrupt(format!(
                "a block of type {kind:#x} that claims {length} bytes at its beginning and {again} at its end"
            )));
        }
        Ok(())
    }

    /// Reads blocks up to the next packet's, if there is one.
    fn advance(&mut self, source: &mut Source) -> Result<bool, CaptureError> {
        while source.begin(8, "a block")? {
            let kind = source.u32_at(0, self.big_endian);
            if kind == SECTION_HEADER {
                source.extend(28, "a section's header")?;
                self.begin(source)?;
                continue;
            }
            self.complete_block(source)?;
            match kind {
                INTERFACE_DESCRIPTION => self.describe(source)?,
                ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }

    fn recorded<'a>(&self, source: &'a Source, last_ns: u64) -> Result<Recorded<'a>, CaptureError> {
        match source.u32_at(0, self.big_endian) {
            ENHANCED_PACKET => self.enhanced(source),
            SIMPLE_PACKET => self.simple(source, last_ns),
            _ => self.obsolete(source),
        }
    }

    fn describe(&mut self, source: &Source) -> Result<(), CaptureError> {
        if self.interfaces.len() == MOST_INTERFACES {
            return Err(source.corrupt(format!("a section of more than {MOST_INTERFACES} interfaces")));
        }
        let parse = if self.big_endian {
            parse_interfacedescriptionblock_be
        } else {
            parse_interfacedescriptionblock_le
        };
        let (_, block) =
            parse(&source.record).map_err(|_| source.corrupt("an interface description that cannot be read"))?;
        self.interfaces.push(Interface::new(&block, self.big_endian));
        Ok(())
    }

    fn enhanced<'a>(&self, source: &'a Source) -> Result<Recorded<'a>, CaptureError> {
        check_packet_length(source, source.u32_at(20, self.big_endian))?;
        let parse = if self.big_endian {
            parse_enhancedpacketblock_be
        } else {
            parse_enhancedpacketblock_le
        };
        let unreadable = || source.corrupt("a packet that claims more bytes than its block has");
        let (_, block) = parse(&source.record).map_err(|_| unreadable())?;
        let interface = self.interface(source, block.if_id)?;
        Ok(Recorded {
            interface: self.interfaces_before + block.if_id,
            link: interface.link,
            at_ns: interface.time(source, block.ts_high, block.ts_low)?,
            data: block.data.get(..block.caplen as usize).ok_or_else(unreadable)?,
            original_length: block.origlen,
            comment: comments(&block.options),
        })
    }

    fn simple<'a>(&self, source: &'a Source, last_ns: u64) -> Result<Recorded<'a>, CaptureError> {
        let interface = self.interface(source, 0)?;
        let original_length = source.u32_at(8, self.big_endian);
        let room = &source.record[12..source.record.len() - 4];
        let captured = match interface.snaplen {
            0 => original_length,
            snaplen => original_length.min(snaplen),
        };
        check_packet_length(source, captured)?;
        let data = room
            .get(..captured as usize)
            .ok_or_else(|| source.corrupt("a packet that claims more bytes than its block has"))?;
        Ok(Recorded {
            interface: self.interfaces_before,
            link: interface.link,
            at_ns: last_ns,
            data,
            original_length,
            comment: None,
        })
    }

    /// The Packet Block of before 2009, which pcap-parser does not know.
    fn obsolete<'a>(&self, source: &'a Source) -> Result<Recorded<'a>, CaptureError> {
        let number = |offset| source.u32_at(offset, self.big_endian);
        let half = [source.record[8], source.record[9]];
        let interface_id = if self.big_endian {
            u16::from_be_bytes(half)
        } else {
            u16::from_le_bytes(half)
        };
        let interface = self.interface(source, interface_id.into())?;
        let captured = number(20);
        check_packet_length(source, captured)?;
        let body = &source.record[28..source.record.len() - 4];
        let data = body
            .get(..captured as usize)
            .ok_or_else(|| source.corrupt("a packet that claims more bytes than its block has"))?;
        let options = body.get(captured.next_multiple_of(4) as usize..).unwrap_or_default();
        Ok(Recorded {
            interface: self.interfaces_before + u32::from(interface_id),
            link: interface.link,
            at_ns: interface.time(source, number(12), number(16))?,
            data,
            original_length: number(24),
            comment: comments(&parse_options(options, self.big_endian)),
        })
    }

    fn interface(&self, source: &Source, number: u32) -> Result<Interface, CaptureError> {
        self.interfaces.get(number as usize).copied().ok_or_else(|| {
            let known = self.interfaces.len();
            source.corrupt(format!(
                "packet {} names interface {number}; the section describes {known}",
                source.packets + 1
            ))
        })
    }
}

impl Interface {
    fn new(block: &InterfaceDescriptionBlock<'_>, big_endian: bool) -> Self {
        let option = |code| {
            let option = block.options.iter().find(|option| option.code.0 == code)?;
            option.as_bytes().ok()
        };
        let offset = option(OptionCode::IfTsoffset.0).and_then(|value| value.first_chunk::<8>());
        let offset_s = offset.map_or(0, |bytes| {
            if big_endian {
                i64::from_be_bytes(*bytes)
            } else {
                i64::from_le_bytes(*bytes)
            }
        });
        let byte = |code| option(code).and_then(|value| value.first().copied());
        Self {
            link: Link {
                number: block.linktype.0.cast_unsigned() as u16,
                // if_fcslen
                fcs_bytes: byte(13).unwrap_or(0).into(),
            },
            resolution: byte(OptionCode::IfTsresol.0).unwrap_or(6),
            offset_s,
            snaplen: block.snaplen,
        }
    }

    /// Nanoseconds since 1970 of a stamp.
    fn time(&self, source: &Source, high: u32, low: u32) -> Result<u64, CaptureError> {
        let units = u128::from(high) << 32 | u128::from(low);
        let exponent = u32::from(self.resolution & 0x7f);
        let ns = if self.resolution & 0x80 != 0 {
            // Below 64 bits for the shift; finer than 2^-127 s there is nothing.
            (units * 1_000_000_000) >> exponent
        } else if exponent <= 9 {
            units * 10_u128.pow(9 - exponent)
        } else {
            10_u128.checked_pow(exponent - 9).map_or(0, |divisor| units / divisor)
        };
        let ns = i128::try_from(ns).ok();
        let ns = ns.and_then(|ns| ns.checked_add(i128::from(self.offset_s) * 1_000_000_000));
        ns.and_then(|ns| u64::try_from(ns).ok()).ok_or_else(|| {
            source.corrupt(format!(
                "packet {} has a time stamp outside the years 1970 to 2554",
                source.packets + 1
            ))
        })
    }
}

fn u32_at(bytes: &[u8], offset: usize, big_endian: bool) -> u32 {
    let bytes = bytes[offset..]
        .first_chunk()
        .copied()
        .expect("the record was read so far");
    if big_endian {
        u32::from_be_bytes(bytes)
    } else {
        u32::from_le_bytes(bytes)
    }
}

fn check_packet_length(source: &Source, captured: u32) -> Result<(), CaptureError> {
    if captured <= MOST_PACKET_BYTES {
        return Ok(());
    }
    Err(source.corrupt(format!(
        "packet {} claims {captured} bytes; no packet has more than {MOST_PACKET_BYTES}",
        source.packets + 1
    )))
}

fn comments(options: &[PcapNGOption<'_>]) -> Option<String> {
    let comments: Vec<_> = options
        .iter()
        .take_while(|option| option.code != OptionCode::EndOfOpt)
        .filter(|option| option.code == OptionCode::Comment)
        .filter_map(|option| option.as_bytes().ok())
        .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        .collect();
    (!comments.is_empty()).then(|| comments.join("\n"))
}

fn parse_options(mut bytes: &[u8], big_endian: bool) -> Vec<PcapNGOption<'_>> {
    let parse = |bytes| {
        if big_endian {
            parse_option_be::<pcap_parser::nom::error::Error<&[u8]>>(bytes)
        } else {
            parse_option_le(bytes)
        }
    };
    let mut options = Vec::new();
    while let Ok((rest, option)) = parse(bytes) {
        bytes = rest;
        options.push(option);
    }
    options
}

/// What a file that is no capture looks like from its beginning, and what to do with it.
fn resembles(start: &[u8]) -> String {
    let compressed =
        |how: &str, command: &str| format!("it is compressed by {how}; unpack it first, for instance with `{command}`");
    let convert = |what: &str| format!("it is {what}; convert it, for instance with `editcap -F pcapng IN OUT.pcapng`");
    match start {
        [0x1f, 0x8b, ..] => compressed("gzip", "gzip -dc FILE > capture.pcap"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => compressed("zstd", "zstd -d FILE"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => compressed("xz", "xz -dk FILE"),
        [b'B', b'Z', b'h', ..] => compressed("bzip2", "bzip2 -dk FILE"),
        [0x04, 0x22, 0x4d, 0x18, ..] => compressed("LZ4", "lz4 -d FILE"),
        [b'P', b'K', 3, 4, ..] => compressed("zip", "unzip FILE"),
        [0xa1, 0xb2, 0xcd, 0x34, ..] | [0x34, 0xcd, 0xb2, 0xa1, ..] => {
            convert("the modified pcap format of Alexey Kuznetzov's patches (magic a1b2cd34)")
        }
        [0x1c, 0x00, 0x01, 0xab | 0xac, ..] | [0xab | 0xac, 0x01, 0x00, 0x1c, ..] => convert("IXIA's variant of pcap"),
        [b's', b'n', b'o', b'o', b'p', 0, 0, 0, ..] => convert("a Solaris snoop capture"),
        [b'G', b'M', b'B', b'U', ..] | [b'R', b'T', b'S', b'S', ..] => convert("a Microsoft Network Monitor capture"),
        [b'X', b'C', b'P', 0, ..] => convert("a Network Associates Sniffer capture"),
        [0x7f, b'E', b'L', b'F', ..] => "it is an ELF object; a capture was expected here".to_owned(),
        _ => resembles_text(start),
    }
}

fn resembles_text(start: &[u8]) -> String {
    // The end may be in the middle of a character.
    let text = match str::from_utf8(start) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => str::from_utf8(&start[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    let printable = |text: &&str| text.chars().all(|c| !c.is_control() || c.is_whitespace());
    if let Some(text) = text.filter(printable) {
        let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        return format!(
            "it is text, beginning {line:?}; write one with `tcpdump -w FILE`, or make one of a hex dump with `text2pcap`"
        );
    }
    let magic: Vec<String> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!(
        "it begins with {}, a pcap file with a1b2c3d4 or a1b23c4d in either byte order, a pcapng file with 0a0d0d0a",
        magic.join("")
    )
}
