//! Making the namespace, the pair in it, and what is on its ends.

use std::{fs, fs::File, io, panic, thread};

use aya::programs::{Xdp, xdp::XdpMode};
use nix::sched::{CloneFlags, unshare};
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

/// What holds the namespace.
pub(super) struct Ends {
    pub(super) near: PacketSocket,
    pub(super) far: PacketSocket,
    pub(super) statistics: File,
    pub(super) pass: PassProgram,
}

/// Makes everything, in a thread of its own: a namespace is entered by a thread.
pub(super) fn make(program: &mut Xdp) -> Result<Ends, VethError> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            let indices = links()?;
            let pass = programs(program, indices)?;
            set(indices, "setting a veth interface up", LinkMessageBuilder::up)?;
            let ends = ends(pass)?;
            Ok(ends)
        });
        inside.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
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

/// Attaches the programs, while nothing can arrive yet.
fn programs(program: &mut Xdp, [_, program_index]: Indices) -> Result<PassProgram, VethError> {
    // A veth interface takes frames from the XDP program at its other end only if it has a program too.
    let pass = PassProgram::attach(SENDING_END)?;
    program
        .attach_to_if_index(program_index, XdpMode::Driver)
        .map_err(VethError::Attach)?;
    Ok(pass)
}

fn ends(pass: PassProgram) -> Result<Ends, VethError> {
    let socket = |interface| PacketSocket::new(interface).map_err(socket_error("making a packet socket"));
    let statistics = File::open(STATISTICS).map_err(|source| VethError::File {
        action: "opening",
        file: STATISTICS,
        source,
    })?;
    Ok(Ends {
        near: socket(SENDING_END)?,
        far: socket(PROGRAM_END)?,
        statistics,
        pass,
    })
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
