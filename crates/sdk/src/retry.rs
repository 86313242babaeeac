//! How long to wait before something is tried again.

use std::time::Duration;

/// The first pause, where nothing else was said.
pub(crate) const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(20);

/// Pauses that double, each shortened by a random part, so that clients that failed together do not come back together.
#[derive(Debug)]
pub(crate) struct Pauses {
    left: u32,
    next: Duration,
}

/// At most `count` pauses, the first of at most this length.
pub(crate) fn pauses(count: u32, first: Duration) -> Pauses {
    Pauses { left: count, next: first }
}

impl Pauses {
    /// The next pause, not shorter than what the server wants; `None` if it was tried often enough, or if the server wants
    /// more patience than anybody has.
    pub(crate) fn next(&mut self, wanted: Option<Duration>) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = self.next.mul_f64(1.0 - 0.5 * fraction());
        self.next = (self.next * 2).min(LONGEST);
        match wanted {
            Some(wanted) if wanted > LONGEST => None,
            Some(wanted) => Some(pause.max(wanted)),
            None => Some(pause),
        }
    }
}

/// A random number from 0 to 1. Without random numbers there is no jitter.
fn fraction() -> f64 {
    getrandom::u32().map_or(0.0, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let mut pauses = pauses(3, FIRST);
        let taken: Vec<_> = std::iter::from_fn(|| pauses.next(None)).collect();
        assert_eq!(taken.len(), 3);
        for (pause, full) in taken.iter().zip([200, 400, 800].map(Duration::from_millis)) {
            assert!((full / 2..=full).contains(pause), "{pause:?}");
        }
    }

    #[test]
    fn the_server_may_ask_for_patience_within_limits() {
        assert_eq!(pauses(1, FIRST).next(Some(Duration::from_secs(2))), Some(Duration::from_secs(2)));
        assert_eq!(pauses(1, FIRST).next(Some(Duration::from_secs(3600))), None);
    }
}
