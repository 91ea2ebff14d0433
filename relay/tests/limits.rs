//! What publishing does to limits and to what is spent of them, in the entries of a data plane that does not run.

use std::net::SocketAddr;

use lumenlink_relay::datapath::{
    PublishedUser, RateLimit,
    clock::Clock,
    plane::Tables as _,
    publish::{Numbering, Publisher},
    userspace::UserspacePlane,
};
use relay_ebpf::{host::HostMemory, layout::Settings, platform::Memory as _};

const SLOT: u32 = 3;
const NUMBERING: Numbering = Numbering {
    first_port: 10_000,
    ports: 8,
    v4_addresses: 1,
    v6_addresses: 0,
    tick_ns: 4_000_000,
};
const SPENT_NS: u64 = 123_456_789;

fn plane() -> UserspacePlane {
    let settings = Settings {
        max_users: 8,
        max_destinations: 2,
        ..Settings::default()
    };
    UserspacePlane::new(settings, 1).unwrap()
}

fn user(down_limit: Option<(u32, u32)>) -> PublishedUser {
    PublishedUser {
        slot: SLOT,
        salt: 1,
        key: [7; 16],
        to: destination(1),
        rate: 10_000,
        burst: 1_000,
        down_limit: down_limit.map(|(rate, burst)| RateLimit { rate, burst }),
        expires_at: None,
    }
}

fn destination(host: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, host], 5000))
}

/// The limit in force of the user's downlink, and what is spent of it.
fn downlink(plane: &UserspacePlane) -> (Option<(u32, u32)>, u64) {
    let published = plane.slots()[SLOT as usize].user.get(&HostMemory).unwrap();
    let entry = &plane.down_limits()[SLOT as usize];
    let limit = published.has_down_limit.then(|| entry.limit(&HostMemory));
    (limit, HostMemory.load(&entry.tat_ns))
}

#[test]
fn a_downlinks_limit_changes_under_way_and_what_is_spent_stays_spent_until_the_grant_is_renewed() {
    let plane = plane();
    let mut publisher = Publisher::adopt(&plane, NUMBERING, Clock::monotonic());
    let mut publish = |user: &PublishedUser| publisher.publish(&plane, std::slice::from_ref(user)).unwrap();

    assert_eq!(publish(&user(None)), (1, 0));
    assert_eq!(downlink(&plane), (None, 0));
    assert_eq!(publish(&user(Some((1_000, 50)))), (0, 1));
    assert_eq!(downlink(&plane), (Some((1_000_000, 50)), 0));

    HostMemory.store(&plane.down_limits()[SLOT as usize].tat_ns, SPENT_NS);
    publish(&user(Some((2_000, 60))));
    assert_eq!(downlink(&plane), (Some((500_000, 60)), SPENT_NS));
    publish(&user(None));
    assert_eq!(downlink(&plane), (None, SPENT_NS));
    // One packet a tick fits, so as many as come in a tick may come at once.
    publish(&user(Some((1_000_000, 1))));
    assert_eq!(downlink(&plane), (Some((1_000, 4_000)), SPENT_NS));

    let renewed = PublishedUser {
        salt: 2,
        ..user(Some((2_000, 60)))
    };
    assert_eq!(publish(&renewed), (1, 0));
    assert_eq!(downlink(&plane), (Some((500_000, 60)), 0));
    HostMemory.store(&plane.down_limits()[SLOT as usize].tat_ns, SPENT_NS);
    publish(&user(None));
    assert_eq!(
        downlink(&plane),
        (None, 0),
        "the next user of a slot starts with nothing spent"
    );
}

#[test]
fn the_destination_of_a_user_keeps_its_index_whether_the_downlink_has_a_limit_or_not() {
    let plane = plane();
    let mut publisher = Publisher::adopt(&plane, NUMBERING, Clock::monotonic());
    for limit in [None, Some((5, 5)), None] {
        publisher.publish(&plane, &[user(limit)]).unwrap();
        let published = plane.slots()[SLOT as usize].user.get(&HostMemory).unwrap();
        assert_eq!(Some(published.destination), publisher.destination(destination(1)));
    }
}

#[test]
fn an_entry_that_gets_another_destination_has_nothing_spent() {
    let plane = plane();
    let mut publisher = Publisher::adopt(&plane, NUMBERING, Clock::monotonic());
    let spent = |to: u8, publisher: &Publisher| {
        let index = publisher.destination(destination(to)).unwrap();
        &plane.destination_limits()[index as usize].tat_ns
    };
    for host in 1..=2 {
        let there = PublishedUser {
            slot: host.into(),
            to: destination(host),
            ..user(None)
        };
        publisher.publish(&plane, &[there]).unwrap();
        HostMemory.store(spent(host, &publisher), SPENT_NS);
    }
    // There are two entries, and the user of one of them goes elsewhere.
    let elsewhere = PublishedUser {
        slot: 1,
        to: destination(9),
        ..user(None)
    };
    publisher.remove(&plane, 1).unwrap();
    publisher.publish(&plane, &[elsewhere]).unwrap();
    assert_eq!(HostMemory.load(spent(9, &publisher)), 0);
    assert_eq!(HostMemory.load(spent(2, &publisher)), SPENT_NS);
}
