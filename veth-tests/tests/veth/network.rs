//! The network that the other tests use, without a relay.

use veth_tests::{
    client::{PATIENCE, receive},
    namespace::can_run,
    net::{Family, Trio},
};

#[test]
fn hosts_reach_one_another_in_both_families() {
    if !can_run("a network of namespaces") {
        return;
    }
    let net = Trio::new();
    for family in Family::ALL {
        let client = net.client.udp(family, 0);
        let server = net.server.udp(family, 9);
        client.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let (packet, from) = receive(&server, PATIENCE).expect("the packet arrives");
        assert_eq!((packet.as_slice(), from), (&b"hello"[..], client.local_addr().unwrap()));
    }
}
