//! The real binary between real sockets in network namespaces, driven by its command line and HTTP alone. Needs root;
//! without, each test says that it is skipped.

mod access;
mod defaults;
mod errors;
mod exchange;
mod faults;
mod hostile;
mod interfaces;
mod jumbo;
mod limits;
mod network;
mod operation;
mod path_errors;
mod persistence;
mod proxy;
mod queues;
mod rates;
mod surroundings;
mod throughput;
mod userspace;
mod vlan;
