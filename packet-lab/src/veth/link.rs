//! Making the namespace, the pair in it, and what is on its ends.

use std::{fs, fs::File, io, panic, thread};

use aya::programs::{
    Xdp,
    xdp::{XdpLink, XdpMode},
};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{FRAME_BYTES, HEADER_BYTES, VethError, socket::PacketSocket, socket_error};
use crate::pass::PassProgram;

/// Numbers of the namespace's interfaces.
pub(super) const STATISTICS: &str = "/proc/thread-self/net/dev";
/// Whether interfaces that are made from now on have IPv6.
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// This thread's network namespace.
pub(super) const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The name of the end that frames are sent from.
pub(super) fn sending_end(number: usize) -> String {
    format!("sender{number}")
}

/// The name of the end with the program.
pub(super) fn program_end(number: usize) -> String {
    format!("program{number}")
}

/// Both ends of veth pairs, and what holds their namespace.
#[derive(Debug)]
pub struct Ends {
    pub(super) pairs: Vec<Pair>,
    pub(super) statistics: File,
    namespace: File,
}

/// Both ends of one pair.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) near: PacketSocket,
    pub(super) far: PacketSocket,
    program_index: u32,
    _pass: PassProgram,
}

impl Pair {
    fn make(number: usize) -> Result<Self, VethError> {
        let (sending_end, program_end) = (sending_end(number), program_end(number));
        let indices = links(&sending_end, &program_end)?;
        // A veth interface takes frames from the XDP program at its other end only if it has a program too.
        let pass = PassProgram::attach(&sending_end)?;
        set(indices, "setting a veth interface up", LinkMessageBuilder::up)?;
        let socket = |interface: &str| PacketSocket::new(interface).map_err(socket_error("making a packet socket"));
        Ok(Self {
            near: socket(&sending_end)?,
            far: socket(&program_end)?,
            program_index: indices[1],
            _pass: pass,
        })
    }
}

impl Ends {
    /// Makes the namespace and all in it.
    pub(super) fn make(count: usize) -> Result<Self, VethError> {
        in_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            without_ipv6()?;
            Ok(Self {
                pairs: (0..count).map(Pair::make).collect::<Result<_, _>>()?,
                statistics: open(STATISTICS)?,
                namespace: open(NAMESPACE)?,
            })
        })
    }

    /// Attaches a program to its end of each pair, for as long as the links are kept.
    pub(super) fn attach(&self, program: &mut Xdp) -> Result<Vec<XdpLink>, VethError> {
        in_a_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            let mut attach = |pair: &Pair| {
                let attached = program.attach_to_if_index(pair.program_index, XdpMode::Driver);
                attached
                    .and_then(|link| program.take_link(link))
                    .map_err(VethError::Attach)
            };
            self.pairs.iter().map(&mut attach).collect()
        })
    }

    /// The kernel's indices of the program's ends, in their namespace.
    #[must_use]
    pub fn indices(&self) -> Vec<u32> {
        self.pairs.iter().map(|pair| pair.program_index).collect()
    }

    /// Does something in this thread as if it was in the namespace.
    ///
    /// # Errors
    /// If it cannot be entered, or not be left again.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, VethError> {
        let home = open(NAMESPACE)?;
        let enter = |namespace: &File| setns(namespace, CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace);
        enter(&self.namespace)?;
        let done = panic::catch_unwind(panic::AssertUnwindSafe(work));
        enter(&home)?;
        done.map_or_else(|panicked| panic::resume_unwind(panicked), Ok)
    }
}

/// A namespace is entered by a thread, which is not to be used for anything else afterwards.
pub(super) fn in_a_thread<T: Send>(work: impl FnOnce() -> Result<T, VethError> + Send) -> Result<T, VethError> {
    thread::scope(|scope| {
        let inside = scope.spawn(work);
        inside.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

pub(super) fn open(file: &'static str) -> Result<File, VethError> {
    File::open(file).map_err(|source| VethError::File {
        action: "opening",
        file,
        source,
    })
}

/// Index of the sending end and of the program's.
type Indices = [u32; 2];

fn without_ipv6() -> Result<(), VethError> {
    match fs::write(NO_IPV6, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VethError::File {
            action: "turning IPv6 off by",
            file: NO_IPV6,
            source: error,
        }),
        _ => Ok(()),
    }
}

fn links(sending_end: &str, program_end: &str) -> Result<Indices, VethError> {
    netlink(async |handle| {
        let pair = LinkVeth::new(sending_end, program_end).build();
        let made = handle.link().add(pair).execute().await;
        made.map_err(link_error("making a veth pair"))
    })?;
    let index = |name| nix::net::if_::if_nametoindex(name).map_err(socket_error("looking for a veth interface"));
    let indices = [index(sending_end)?, index(program_end)?];
    set(indices, "setting up a veth interface", |link| {
        link.mtu((FRAME_BYTES.end() - HEADER_BYTES) as u32).arp(false)
    })?;
    Ok(indices)
}

fn set(
    indices: Indices,
    action: &'static str,
    change: impl Fn(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> Result<(), VethError> {
    netlink(async |handle| {
        for index in indices {
            let message = change(LinkUnspec::new_with_index(index)).build();
            let done = handle.link().set(message).execute().await;
            done.map_err(link_error(action))?;
        }
        Ok(())
    })
}

/// Speaks with the kernel about the links of this thread's namespace.
pub(super) fn netlink<T>(work: impl AsyncFnOnce(Handle) -> Result<T, VethError>) -> Result<T, VethError> {
    let failed = |source| VethError::File {
        action: "opening",
        file: "a netlink socket",
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.map_err(failed)?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        let speaking = tokio::spawn(connection);
        let result = work(handle).await;
        speaking.abort();
        result
    })
}

pub(super) fn link_error(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> VethError {
    move |source| VethError::Link {
        action,
        source: Box::new(source),
    }
}
