//! What userspace mode does not have, and how many users it has room for.

use super::{Carrier, Config, read::Reader};
pub(super) use crate::datapath::userspace::room;

/// Faults of a configuration whose mode it is.
pub(super) fn check(config: &Config, reader: &mut Reader<'_>) {
    if config.xdp_persist {
        let message = "xdp.persist needs XDP: in userspace mode nothing relays without the process";
        reader.fault("xdp.persist", message.to_owned());
    }
    if config.carriers.contains(&Carrier::IpOption) {
        let message = "\"ip-option\" needs XDP: in userspace mode sockets carry no IP options, so write [\"udp\"]";
        reader.fault("carrier", message.to_owned());
    }
    if config.vlan {
        let message = "vlan needs XDP: in userspace mode the kernel's VLAN devices take tags off and put them on";
        reader.fault("vlan", message.to_owned());
    }
    if !config.next_hops.is_empty() {
        reader.fault(
            "next_hop",
            "next_hop needs XDP: in userspace mode the kernel routes".to_owned(),
        );
    }
}
