//! `lumenlink-relay`.

fn main() {}
