//! The bench measures the paths that its rows are named for; it fails by itself where a counter says otherwise.

use std::io::{self, Write as _};

use packet_lab::{
    backend::kernel::missing_capabilities,
    bench::{Options, run},
};

#[test]
fn every_path_is_the_one_that_its_row_is_named_for() {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            io::stderr(),
            "skipped: measuring needs {}; run as root",
            missing.join(" and ")
        );
        return;
    }
    let options = Options {
        users: 100,
        payload_bytes: 64,
        rounds: 1,
    };
    let mut steps = Vec::new();
    let report = run(options, &mut |done, all| steps.push((done, all))).unwrap();
    assert_eq!(report.rows.len(), 10);
    assert_eq!(steps.last(), Some(&(9, 9)));
    for row in &report.rows {
        assert!(row.ns > 0.0 && row.ratio > 0.5, "{row:?}");
    }
    assert!(report.size.verified_instructions > 0 && report.size.jited_bytes > 0);
}
