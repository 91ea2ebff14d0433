//! What the relay does with each packet: every reason of the protocol, in both families, with and without header
//! protection, in this process and in the kernel.

mod reasons;
mod scene;
