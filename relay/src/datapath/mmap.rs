//! Arrays of map entries as memory: reading and writing one is no system call.

use std::{io, num::NonZeroUsize, ops::Deref, os::fd::AsFd, ptr::NonNull, sync::atomic::AtomicU64};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use relay_ebpf::layout::{Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, SaltEntry, SlotEntry};

mod sealed {
    pub trait Sealed {}
}

/// A map entry that is made of atomic words only: any bytes are one, and it may change under a reader.
pub trait Entry: sealed::Sealed {}

macro_rules! entries {
    ($($entry:ty),+) => {
        $(impl sealed::Sealed for $entry {}
        impl Entry for $entry {})+
    };
}

entries!(
    SlotEntry,
    SaltEntry,
    AtomicU64,
    DestinationEntry,
    DownLimitEntry,
    DestinationLimitEntry,
    Control
);

/// All entries of an ARRAY map created with BPF_F_MMAPABLE.
#[derive(Debug)]
pub struct Mapped<E: Entry> {
    start: NonNull<E>,
    entries: usize,
    bytes: usize,
}

// SAFETY: entries are atomic words; sharing or sending them between threads is what they are for.
unsafe impl<E: Entry> Send for Mapped<E> {}
// SAFETY: as for `Send`.
unsafe impl<E: Entry> Sync for Mapped<E> {}

impl<E: Entry> Mapped<E> {
    /// Maps the first `entries` entries, which must be all of the map's.
    ///
    /// # Errors
    /// What `mmap` says: EPERM for a map without BPF_F_MMAPABLE, EINVAL for more entries than it has.
    pub fn new(map: impl AsFd, entries: u32) -> io::Result<Self> {
        let entries = entries as usize;
        let bytes = entries * size_of::<E>();
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, map, 0)? };
        Ok(Self {
            start: start.cast(),
            entries,
            bytes,
        })
    }
}

impl<E: Entry> Deref for Mapped<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: the mapping holds this many entries, page-aligned and so aligned for them, until it is dropped; they
        // only change through atomic words.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.entries) }
    }
}

impl<E: Entry> Drop for Mapped<E> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and nothing borrows it any more.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.bytes) } {
            tracing::warn!(%error, "a map's memory could not be unmapped");
        }
    }
}
