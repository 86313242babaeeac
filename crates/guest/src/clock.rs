//! Time in a guest: the one place that reads it or waits for it to pass.

use std::time::{Duration, Instant};

use jiff::Timestamp;

#[expect(clippy::disallowed_methods, reason = "this is the guest's clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// For measuring how long something takes.
#[expect(clippy::disallowed_methods, reason = "this is the guest's clock")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the guest's clock")]
pub(crate) fn pause(how_long: Duration) {
    std::thread::sleep(how_long);
}

/// Looks again and again, with `every` in between, until there is something or `at_most` has passed.
pub(crate) fn wait_for<T>(
    every: Duration,
    at_most: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let began = instant();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if began.elapsed() >= at_most {
            return None;
        }
        pause(every);
    }
}
