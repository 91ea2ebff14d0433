//! Writing pcapng.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, Linktype, OptionCode, PcapNGOption, SectionHeaderBlock, ToVec,
};

use super::{CaptureError, Packet};

/// 10^-9 seconds.
const NANOSECONDS: u8 = 9;
/// What an option of pcapng can hold.
const MOST_OPTION_BYTES: usize = 65_532;

/// A pcapng file that is being written: one section, an Ethernet interface for each that packets name, stamps in
/// nanoseconds.
pub struct Writer {
    path: PathBuf,
    out: BufWriter<Box<dyn Write + Send>>,
    interfaces: BTreeMap<u32, u32>,
}

impl Writer {
    /// Makes a file, or empties the one that is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, CaptureError> {
        let path = path.as_ref();
        match File::create(path) {
            Ok(file) => Self::new(path, Box::new(file)),
            Err(error) => Err(CaptureError::Write {
                path: path.to_owned(),
                error,
            }),
        }
    }

    /// Writes to something that is no file, called `path` in errors.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(path: impl AsRef<Path>, out: Box<dyn Write + Send>) -> Result<Self, CaptureError> {
        let mut writer = Self {
            path: path.as_ref().to_owned(),
            out: BufWriter::with_capacity(1 << 18, out),
            interfaces: BTreeMap::new(),
        };
        let mut section = SectionHeaderBlock {
            block_type: 0,
            block_len1: 0,
            bom: 0,
            major_version: 1,
            minor_version: 0,
            section_len: -1,
            options: vec![option(OptionCode::ShbUserAppl, b"packet-lab")],
            block_len2: 0,
        };
        writer.put(&section.to_vec())?;
        Ok(writer)
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, packet: &Packet) -> Result<(), CaptureError> {
        let if_id = self.interface(packet.interface)?;
        let comment = packet.comment.as_deref().map(fitting);
        let mut block = EnhancedPacketBlock {
            block_type: 0,
            block_len1: 0,
            if_id,
            ts_high: (packet.at_ns >> 32) as u32,
            ts_low: packet.at_ns as u32,
            caplen: packet.data.len() as u32,
            origlen: packet.original_length,
            data: &packet.data,
            options: comment
                .map(|comment| option(OptionCode::Comment, comment.as_bytes()))
                .into_iter()
                .collect(),
            block_len2: 0,
        };
        let bytes = block.to_vec();
        self.put(&bytes)
    }

    /// Writes what is buffered. Without it, what goes wrong last goes unnoticed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<(), CaptureError> {
        self.out.flush().map_err(|error| self.failed(error))
    }

    /// The number in the file of the interface that packets call `interface`, described there first if it is new.
    fn interface(&mut self, interface: u32) -> Result<u32, CaptureError> {
        if let Some(number) = self.interfaces.get(&interface) {
            return Ok(*number);
        }
        let number = self.interfaces.len() as u32;
        let name = format!("lab{interface}");
        let offset_s = 0_i64.to_le_bytes();
        let mut description = InterfaceDescriptionBlock {
            block_type: 0,
            block_len1: 0,
            linktype: Linktype::ETHERNET,
            reserved: 0,
            snaplen: 0,
            options: vec![
                option(OptionCode::IfName, name.as_bytes()),
                option(OptionCode::IfTsresol, &[NANOSECONDS]),
                option(OptionCode::IfTsoffset, &offset_s),
            ],
            block_len2: 0,
            if_tsresol: NANOSECONDS,
            if_tsoffset: 0,
        };
        let bytes = description.to_vec();
        self.put(&bytes)?;
        self.interfaces.insert(interface, number);
        Ok(number)
    }

    fn put<E: std::fmt::Debug>(&mut self, block: &Result<Vec<u8>, E>) -> Result<(), CaptureError> {
        let written = match block {
            Ok(bytes) => self.out.write_all(bytes),
            Err(error) => Err(io::Error::other(format!("{error:?}"))),
        };
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> CaptureError {
        CaptureError::Write {
            path: self.path.clone(),
            error,
        }
    }
}

/// An option whose length does not count the padding.
fn option(code: OptionCode, value: &[u8]) -> PcapNGOption<'_> {
    PcapNGOption {
        code,
        len: value.len() as u16,
        value: Cow::Borrowed(value),
    }
}

/// As much of a comment as fits.
fn fitting(comment: &str) -> &str {
    &comment[..comment.floor_char_boundary(MOST_OPTION_BYTES)]
}
