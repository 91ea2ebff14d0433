//! Waiting for something to become so, never longer than a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_millis(5);

/// Calls `attempt` until it has something, and returns that.
///
/// # Panics
/// After `deadline`, with `what` was waited for.
#[track_caller]
pub fn until<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "waited {deadline:?} for {what}, in vain");
        thread::sleep(PAUSE);
    }
}
