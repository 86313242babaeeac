//! Places that many want, and that nobody can take all of.
//!
//! Whoever holds some of them may take one more only while more than that are free. So one alone gets half, two get a third
//! each, and whoever comes next finds one: nobody has to be known in advance, and what nobody else wants is not kept from one who
//! does for the sake of a fixed number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// How many places are free, and who holds how many of the others. Holders go by number.
#[derive(Clone, Debug)]
pub struct Shares {
    free: usize,
    held: HashMap<i64, usize>,
}

impl Shares {
    /// So many places, all free.
    pub fn new(places: usize) -> Self {
        Self { free: places, held: HashMap::new() }
    }

    /// Places that never run out.
    pub fn endless() -> Self {
        Self::new(usize::MAX)
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free
    }

    /// May `holder` take one more?
    pub fn may_take(&self, holder: i64) -> bool {
        self.held.get(&holder).copied().unwrap_or_default() < self.free
    }

    /// Takes one, if `holder` may.
    pub fn take(&mut self, holder: i64) -> bool {
        let may = self.may_take(holder);
        if may {
            *self.held.entry(holder).or_default() += 1;
            self.free -= 1;
        }
        may
    }

    /// Gives one back that `holder` took.
    pub fn give_back(&mut self, holder: i64) {
        if let Some(held) = self.held.get_mut(&holder) {
            *held -= 1;
            self.free += 1;
            if *held == 0 {
                self.held.remove(&holder);
            }
        }
    }
}

/// The same for tasks that wait for a place.
pub(super) struct Places {
    shares: Mutex<Shares>,
    freed: Notify,
}

/// A place of one holder; it is given back when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    holder: i64,
}

impl Places {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { shares: Mutex::new(Shares::new(places)), freed: Notify::new() })
    }

    /// Who holds what now.
    pub(super) fn shares(&self) -> Shares {
        self.lock().clone()
    }

    /// A place, if `holder` may take one now.
    pub(super) fn try_take(self: &Arc<Self>, holder: i64) -> Option<Place> {
        self.lock().take(holder).then(|| Place { places: Arc::clone(self), holder })
    }

    /// A place, as soon as `holder` may take one.
    pub(super) async fn take(self: &Arc<Self>, holder: i64) -> Place {
        loop {
            // Before the look: what is freed after it is heard.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(place) = self.try_take(holder) {
                return place;
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().expect("nothing panics while holding it")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().give_back(self.holder);
        self.places.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_next_finds_a_place() {
        let mut shares = Shares::new(64);
        let all = |shares: &mut Shares, holder| {
            std::iter::repeat_with(|| shares.take(holder)).take_while(|took| *took).count()
        };
        let taken: Vec<_> = (1..=7).map(|holder| all(&mut shares, holder)).collect();
        assert_eq!(taken, [32, 16, 8, 4, 2, 1, 1]);
        let mut shares = Shares::new(9);
        while [1, 2].map(|holder| shares.take(holder)) != [false; 2] {}
        assert_eq!(shares.free(), 3, "two that take turns have a third each");
        assert!(shares.take(3));
        shares.give_back(1);
        shares.give_back(1);
        assert!(shares.take(1));
    }

    #[test]
    fn one_place_can_be_taken_and_given_back() {
        let mut shares = Shares::new(1);
        assert!(shares.take(1) && !shares.take(1) && !shares.take(2));
        shares.give_back(2);
        assert_eq!(shares.free(), 0, "who has none gives none back");
        shares.give_back(1);
        assert!(shares.take(2));
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_is_given_back() {
        let places = Places::new(1);
        let place = places.try_take(1).expect("free");
        let (waited, ()) = tokio::join!(places.take(2), async { drop(place) });
        assert!(places.try_take(1).is_none());
        drop(waited);
        assert!(places.try_take(1).is_some());
    }
}
