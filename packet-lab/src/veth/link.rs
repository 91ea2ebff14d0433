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

/// The end that frames are sent from.
pub(super) const SENDING_END: &str = "sender";
/// The end with the program.
pub(super) const PROGRAM_END: &str = "program";
/// Numbers of the namespace's interfaces.
pub(super) const STATISTICS: &str = "/proc/thread-self/net/dev";
/// Whether interfaces that are made from now on have IPv6.
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// This thread's network namespace.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// What holds the namespace.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) near: PacketSocket,
    pub(super) far: PacketSocket,
    pub(super) statistics: File,
    namespace: File,
    program_index: u32,
    _pass: PassProgram,
}

impl Ends {
    /// Makes the namespace and all in it.
    pub(super) fn make() -> Result<Self, VethError> {
        in_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            let indices = links()?;
            // A veth interface takes frames from the XDP program at its other end only if it has a program too.
            let pass = PassProgram::attach(SENDING_END)?;
            set(indices, "setting a veth interface up", LinkMessageBuilder::up)?;
            let socket = |interface| PacketSocket::new(interface).map_err(socket_error("making a packet socket"));
            Ok(Self {
                near: socket(SENDING_END)?,
                far: socket(PROGRAM_END)?,
                statistics: open(STATISTICS)?,
                namespace: open(NAMESPACE)?,
                program_index: indices[1],
                _pass: pass,
            })
        })
    }

    /// Attaches a program to its end, for as long as the link is kept.
    pub(super) fn attach(&self, program: &mut Xdp) -> Result<XdpLink, VethError> {
        in_a_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            let attached = program.attach_to_if_index(self.program_index, XdpMode::Driver);
            attached
                .and_then(|link| program.take_link(link))
                .map_err(VethError::Attach)
        })
    }
}

/// A namespace is entered by a thread, which is not to be used for anything else afterwards.
fn in_a_thread<T: Send>(work: impl FnOnce() -> Result<T, VethError> + Send) -> Result<T, VethError> {
    thread::scope(|scope| {
        let inside = scope.spawn(work);
        inside.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

fn open(file: &'static str) -> Result<File, VethError> {
    File::open(file).map_err(|source| VethError::File {
        action: "opening",
        file,
        source,
    })
}

/// Index of the sending end and of the program's.
type Indices = [u32; 2];

fn links() -> Result<Indices, VethError> {
    match fs::write(NO_IPV6, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(VethError::File {
                action: "turning IPv6 off by",
                file: NO_IPV6,
                source: error,
            });
        }
        _ => {}
    }
    netlink(async |handle| {
        let pair = LinkVeth::new(SENDING_END, PROGRAM_END).build();
        let made = handle.link().add(pair).execute().await;
        made.map_err(link_error("making a veth pair"))
    })?;
    let index = |name| nix::net::if_::if_nametoindex(name).map_err(socket_error("looking for a veth interface"));
    let indices = [index(SENDING_END)?, index(PROGRAM_END)?];
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
fn netlink<T>(work: impl AsyncFnOnce(Handle) -> Result<T, VethError>) -> Result<T, VethError> {
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

fn link_error(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> VethError {
    move |source| VethError::Link {
        action,
        source: Box::new(source),
    }
}
