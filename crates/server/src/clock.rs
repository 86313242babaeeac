//! Time, waiting and chance. Nothing else in the server may ask for them, so a test that owns the clock owns the run.
//!
//! A virtual clock follows tokio's paused time: in a `start_paused` runtime waiting costs nothing, and the same seed
//! gives the same ids.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

tokio::task_local! {
    /// When the request that this task answers has to be answered.
    static DEADLINE: tokio::time::Instant;
}

/// Where time, ids and randomness come from. Cheap to clone; clones share one source.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    virtual_start: Option<(Timestamp, tokio::time::Instant)>,
    rng: Mutex<StdRng>,
}

impl Clock {
    /// The machine's own clock and the operating system's randomness.
    pub fn system() -> Self {
        let mut seed = [0; 32];
        rand::rngs::SysRng.fill_or_abort(&mut seed);
        Self(Arc::new(Inner { virtual_start: None, rng: Mutex::new(StdRng::from_seed(seed)) }))
    }

    /// Starts at 2026-01-01 and moves with tokio's clock; ids and randomness follow from `seed`.
    pub fn manual(seed: u64) -> Self {
        let epoch = Timestamp::from_second(1_767_225_600).expect("a valid second");
        let start = tokio::time::Instant::now();
        Self(Arc::new(Inner {
            virtual_start: Some((epoch, start)),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        }))
    }

    /// Now, to the millisecond: that is what the store keeps.
    #[expect(clippy::disallowed_methods, reason = "this is the place that may ask")]
    pub fn now(&self) -> Timestamp {
        let exact = match &self.0.virtual_start {
            None => Timestamp::now(),
            Some((epoch, start)) => *epoch + start.elapsed(),
        };
        Timestamp::from_millisecond(exact.as_millisecond()).unwrap_or(exact)
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// What `work` gives, if it takes no longer than `limit`.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(limit, work).await.ok()
    }

    /// Gives `work` one deadline for everything that it waits for with [`Clock::in_time`]. The work itself is not cut off: it
    /// hears what took too long, and can say so.
    pub async fn with_deadline<T>(&self, limit: Duration, work: impl Future<Output = T>) -> T {
        DEADLINE.scope(tokio::time::Instant::now() + limit, work).await
    }

    /// What `work` gives, if it takes no longer than `limit`, and no longer than is left until the deadline where there is one.
    pub async fn in_time<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let left = DEADLINE.try_with(|end| end.saturating_duration_since(tokio::time::Instant::now()));
        self.within(left.map_or(limit, |left| left.min(limit)), work).await
    }

    /// A fresh, time-ordered id (UUIDv7): neighbours in time are neighbours in an index.
    pub fn new_id(&self) -> Uuid {
        let millis = u64::try_from(self.now().as_millisecond()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &self.random()).into_uuid()
    }

    /// A fresh random UUIDv4, where a client insists on that version.
    pub fn new_uuid_v4(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.random()).into_uuid()
    }

    /// Fresh random bytes, fit for secrets when the clock is the system's.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.rng.lock().expect("no panic while drawing").fill_bytes(&mut bytes);
        bytes
    }

    /// `length` letters and digits, fit for ids and secrets that people copy.
    pub fn random_text(&self, length: usize) -> String {
        const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut rng = self.0.rng.lock().expect("no panic while drawing");
        let mut text = String::with_capacity(length);
        while text.len() < length {
            // 62 does not divide 64, so the two values too many are drawn again.
            let draw = (rng.next_u32() & 63) as usize;
            if let Some(letter) = ALPHABET.get(draw) {
                text.push(char::from(*letter));
            }
        }
        text
    }
}

trait FillOrAbort {
    fn fill_or_abort(&mut self, bytes: &mut [u8]);
}

impl FillOrAbort for rand::rngs::SysRng {
    fn fill_or_abort(&mut self, bytes: &mut [u8]) {
        use rand::TryRng;
        self.try_fill_bytes(bytes).expect("the operating system gives randomness");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn virtual_time_moves_only_when_somebody_waits() {
        let clock = Clock::manual(7);
        let before = clock.now();
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().as_second() - before.as_second(), 3600);
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_bounds_the_sum_of_what_is_waited_for() {
        let clock = Clock::manual(7);
        let begun = clock.now();
        let second = Duration::from_secs(1);
        let wait = async || clock.in_time(9 * second, clock.sleep(8 * second)).await;
        let waits = async { (wait().await, wait().await, wait().await, wait().await) };
        let waited = clock.with_deadline(20 * second, waits).await;
        assert_eq!(waited, (Some(()), Some(()), None, None));
        assert_eq!(clock.now().as_second() - begun.as_second(), 20);
        assert_eq!(wait().await, Some(()), "outside of it there is none");
    }

    #[tokio::test(start_paused = true)]
    async fn ids_are_ordered_by_time_and_repeat_with_the_seed() {
        let (a, b) = (Clock::manual(1), Clock::manual(1));
        assert_eq!(a.new_id(), b.new_id());
        let first = a.new_id();
        a.sleep(Duration::from_millis(1)).await;
        assert!(first < a.new_id());
    }
}
