//! Makes an object file fit the loader, which knows fewer names of sections than libbpf does, and refuses an object
//! with any other: programs for other hooks than XDP are taken out of its sight, and a section for XDP in the style of
//! old (`xdp_something`) gets the name that it has today.

use std::{error::Error, mem::offset_of};

use aya_obj::ProgramSection;
use object::{
    LittleEndian as LE, SectionIndex,
    elf::{ELFMAG, EM_BPF, FileHeader64, SHF_EXECINSTR, SHT_SYMTAB, STT_FUNC, SectionHeader64},
    read::elf::{FileHeader as _, SectionHeader as _, Sym as _},
};

const TEXT: &str = ".text";
const BTF: &str = ".BTF";
const BTF_EXT: &str = ".BTF.ext";
const XDP: &str = "xdp";

/// A program that was taken out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Hidden {
    pub(super) program: String,
    pub(super) section: String,
}

/// Changes the file so that the loader takes it, if that is all that keeps it from doing so; returns the programs that
/// are not seen any more.
///
/// # Errors
/// If it is no BPF object file, with what it is instead.
pub(super) fn adapt(bytes: &mut [u8]) -> Result<Vec<Hidden>, String> {
    let Plan {
        hidden,
        not_executable,
        ends,
    } = plan(bytes).map_err(|error| error.to_string())?;
    for header in not_executable {
        bytes[header + offset_of!(SectionHeader64<LE>, sh_flags)] &= !(SHF_EXECINSTR as u8);
    }
    for end in ends {
        bytes[end] = 0;
    }
    Ok(hidden)
}

/// What to change, as offsets in the file.
#[derive(Default)]
struct Plan {
    hidden: Vec<Hidden>,
    /// Headers of sections that are to be executable no more.
    not_executable: Vec<usize>,
    /// Where names are to end.
    ends: Vec<usize>,
}

fn plan(bytes: &[u8]) -> Result<Plan, Box<dyn Error>> {
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    if !bytes.starts_with(&ELFMAG) {
        return Err("it does not begin as an ELF file does".into());
    }
    let header = FileHeader64::<LE>::parse(bytes)?;
    header.endian()?;
    if header.e_machine(LE) != EM_BPF {
        return Err(format!("an ELF file for machine {}, not for BPF", header.e_machine(LE)).into());
    }
    let sections = header.sections(LE, bytes)?;
    let symbols = sections.symbols(LE, bytes, SHT_SYMTAB)?;
    let headers_at = header.e_shoff(LE) as usize;
    let names_at = sections
        .section(SectionIndex(header.shstrndx(LE, bytes)? as usize))?
        .sh_offset(LE) as usize;
    for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined(LE)) {
        // The loader takes it for granted that what a symbol names is there.
        let section = sections.section(SectionIndex(symbol.st_shndx(LE).into()));
        let end = symbol.st_value(LE).checked_add(symbol.st_size(LE));
        if section.is_ok_and(|section| end.is_none_or(|end| end > section.sh_size(LE))) {
            return Err("it is corrupt: a symbol reaches out of its section".into());
        }
    }
    let mut plan = Plan::default();
    let mut for_xdp = 0;
    for (index, section) in sections.enumerate() {
        let name = String::from_utf8_lossy(sections.section_name(LE, section)?).into_owned();
        let is_program = section.sh_flags(LE) & u64::from(SHF_EXECINSTR) != 0 && section.sh_size(LE) > 0;
        for_xdp += usize::from(is_program && name.starts_with(XDP));
        if !is_program || name == TEXT || name.parse::<ProgramSection>().is_ok() {
            continue;
        }
        if name.starts_with(XDP) && !name.contains('/') {
            plan.ends.push(names_at + section.sh_name(LE) as usize + XDP.len());
            if let Some((_, btf)) = sections.section_by_name(LE, BTF.as_bytes()) {
                let (from, strings) = (btf.sh_offset(LE) as usize, btf.data(LE, bytes)?);
                plan.ends.extend(find(strings, &name).map(|at| from + at + XDP.len()));
            }
            continue;
        }
        plan.not_executable
            .push(headers_at + index.0 * size_of::<SectionHeader64<LE>>());
        for symbol in symbols.iter().filter(|symbol| symbol.st_type() == STT_FUNC) {
            if usize::from(symbol.st_shndx(LE)) == index.0 {
                plan.hidden.push(Hidden {
                    program: String::from_utf8_lossy(symbols.symbol_name(LE, symbol)?).into_owned(),
                    section: name.clone(),
                });
            }
        }
    }
    let renamed = !plan.ends.is_empty();
    if let Some((_, extension)) = sections.section_by_name(LE, BTF_EXT.as_bytes())
        && renamed
        && for_xdp > 1
    {
        // What it tells is told by section, and several have one name now: the programs do without source lines.
        plan.ends.push(names_at + extension.sh_name(LE) as usize);
    }
    Ok(plan)
}

/// Where a whole string of BTF is this name.
fn find(strings: &[u8], name: &str) -> Option<usize> {
    let wanted: Vec<u8> = [b"\0", name.as_bytes(), b"\0"].concat();
    let at = strings.windows(wanted.len()).position(|window| window == wanted)?;
    Some(at + 1)
}
