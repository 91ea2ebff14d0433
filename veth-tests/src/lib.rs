//! Tests of the real binary in network namespaces, and what they are built from.

pub mod pass;
