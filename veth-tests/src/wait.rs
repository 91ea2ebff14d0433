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
pub fn until<T>(what: &str, deadline: Duration, attempt: impl FnMut() -> Option<T>) -> T {
    within(deadline, attempt).unwrap_or_else(|| panic!("waited {deadline:?} for {what}, in vain"))
}

/// The same, and `None` after the deadline.
pub fn within<T>(deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        let found = attempt();
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        thread::sleep(PAUSE);
    }
}
