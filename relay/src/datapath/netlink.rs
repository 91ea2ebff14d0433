//! One question to the kernel over netlink, and its one answer, without a runtime.

use std::{fmt::Debug, io};

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable},
    sys::{Socket, SocketAddr},
};

/// Asks the kernel, in the network namespace of this thread. `protocol` is one of `rtnetlink::sys::protocols`.
///
/// # Errors
/// The error that the kernel answers with, or `InvalidData` for an answer that is none.
pub(super) fn ask<M>(protocol: isize, question: impl Into<NetlinkMessage<M>>) -> io::Result<M>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut question = question.into();
    question.header.flags = NLM_F_REQUEST;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<M>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(answer),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not an answer: {other:?}"),
        )),
    }
}
