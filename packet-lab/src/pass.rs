//! The least XDP program: it passes every packet, in however many buffers. A veth link accepts frames from the XDP program at one end only if
//! the other end has a program too.

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{ProgramError, Xdp, xdp::XdpMode},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, StandardSegment, Symbol, SymbolSection},
};

/// `r0 = XDP_PASS; exit`
const INSTRUCTIONS: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
const NAME: &str = "pass";

/// Why the program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Its object could not be written.
    #[error("writing the object of the passing program: {0}")]
    Object(#[from] object::write::Error),
    /// The kernel did not take it.
    #[error("loading the passing program (as root?): {0}")]
    Load(#[from] EbpfError),
    /// The kernel did not take it, or not there.
    #[error("attaching the passing program to {interface} in native mode: {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: ProgramError,
    },
}

/// The program, attached to one interface of the current network namespace until this is dropped.
#[derive(Debug)]
pub struct PassProgram {
    /// Owns the link: the program is detached with it.
    _ebpf: Ebpf,
}

impl PassProgram {
    /// Attaches the program to `interface`, in native mode.
    ///
    /// # Errors
    /// If the kernel refuses it there; nothing stays attached.
    pub fn attach(interface: &str) -> Result<Self, PassError> {
        let mut ebpf = EbpfLoader::new().btf(None).load(&elf()?)?;
        attach(&mut ebpf, interface).map_err(|source| PassError::Attach {
            interface: interface.to_owned(),
            source,
        })?;
        Ok(Self { _ebpf: ebpf })
    }
}

fn attach(ebpf: &mut Ebpf, interface: &str) -> Result<(), ProgramError> {
    let program: &mut Xdp = ebpf
        .program_mut(NAME)
        .ok_or(ProgramError::UnexpectedProgramType)?
        .try_into()?;
    program.load()?;
    program.attach(interface, XdpMode::Driver)?;
    Ok(())
}

/// The program as an object file, which is what aya loads.
fn elf() -> Result<Vec<u8>, object::write::Error> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = object.add_section(Vec::new(), b"xdp.frags".to_vec(), SectionKind::Text);
    let value = object.append_section_data(text, &INSTRUCTIONS, 8);
    object.add_symbol(Symbol {
        name: NAME.into(),
        value,
        size: INSTRUCTIONS.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    let license = object.add_section(
        object.segment_name(StandardSegment::Data).to_vec(),
        b"license".to_vec(),
        SectionKind::Data,
    );
    object.append_section_data(license, b"Dual MIT/GPL\0", 1);
    object.write()
}
