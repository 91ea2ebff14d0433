//! The bench measures the paths that its rows are named for; it fails by itself where a counter says otherwise.

use packet_lab::bench::{Options, run};
use relay_ebpf::verdict::Reason;
use rstest::rstest;

use crate::scene::has_capabilities;

#[rstest]
fn every_path_is_the_one_that_its_row_is_named_for(#[values(false, true)] ipv6: bool) {
    if !has_capabilities() {
        return;
    }
    let options = Options {
        users: 1_000,
        payload_bytes: 64,
        ipv6,
        packets: 2_048,
        rounds: 1,
    };
    let mut steps = Vec::new();
    let report = run(options, &mut |done, all| steps.push((done, all))).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(steps.last(), Some(&(9, 9)));
    let rejections = [
        Reason::Unrelated,
        Reason::UnknownSession,
        Reason::BadToken,
        Reason::Expired,
        Reason::Replayed,
        Reason::RateLimited,
    ];
    let relayed = ["floor", "relayed_hot", "relayed_uplink", "relayed_downlink"];
    let expected: Vec<&str> = relayed.into_iter().chain(rejections.map(Reason::name)).collect();
    let paths: Vec<&str> = report.rows.iter().map(|row| row.path.as_str()).collect();
    assert_eq!(paths, expected);
    for row in &report.rows {
        assert!(row.ns.is_finite() && row.ratio.is_finite(), "{row:?}");
    }
    let slots = 64 + 384;
    assert!(report.size.verified_instructions > 0 && report.size.jited_bytes > 0);
    assert!(
        report.size.map_bytes > slots * u64::from(options.users),
        "maps of {} bytes have no room for {} users",
        report.size.map_bytes,
        options.users
    );
}
