//! A bounded memory of what is costly to make.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps what was used lately, up to a weight.
///
/// Two generations do it: what is used moves to the young one, and when that is full the old one is dropped and the young one
/// takes its place. So nothing is dropped that was used within the last full generation, and no use has to be timed.
pub struct Cache<K, V> {
    /// Most that one generation may weigh.
    limit: usize,
    generations: Mutex<Generations<K, V>>,
}

struct Generations<K, V> {
    young: HashMap<K, Kept<V>>,
    old: HashMap<K, Kept<V>>,
    /// Of the young ones.
    weight: usize,
}

struct Kept<V> {
    value: Arc<V>,
    weight: usize,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// An empty one. What it keeps weighs up to twice `limit`.
    pub fn new(limit: usize) -> Self {
        let generations = Generations { young: HashMap::new(), old: HashMap::new(), weight: 0 };
        Self { limit, generations: Mutex::new(generations) }
    }

    /// What is kept under `key`.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = generations.young.get(key) {
            return Some(Arc::clone(&kept.value));
        }
        let (key, kept) = generations.old.remove_entry(key)?;
        let value = Arc::clone(&kept.value);
        generations.keep(key, kept, self.limit);
        Some(value)
    }

    /// Keeps `value` under `key`, in place of what was there.
    pub fn put(&self, key: K, value: Arc<V>, weight: usize) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.old.remove(&key);
        generations.keep(key, Kept { value, weight }, self.limit);
    }

    /// Forgets what is kept under `key`.
    pub fn remove<Q: Hash + Eq + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.old.remove(key);
        if let Some(gone) = generations.young.remove(key) {
            generations.weight = generations.weight.saturating_sub(gone.weight);
        }
    }
}

impl<K: Hash + Eq, V> Generations<K, V> {
    fn keep(&mut self, key: K, kept: Kept<V>, limit: usize) {
        if self.weight + kept.weight > limit {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += kept.weight;
        if let Some(before) = self.young.insert(key, kept) {
            self.weight = self.weight.saturating_sub(before.weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes_before_the_limit_is_passed_twice() {
        let cache = Cache::new(10);
        for key in 0..100_u32 {
            cache.put(key, Arc::new(key), 1);
            assert_eq!(cache.get(&0).as_deref(), Some(&0), "it is used all the time");
        }
        let kept = (0..100).filter(|key| cache.get(key).is_some()).count();
        assert!((1..=21).contains(&kept), "{kept}");
        assert_eq!(cache.get(&1), None);
    }

    #[test]
    fn a_value_takes_the_place_of_the_one_before_and_one_that_is_too_heavy_does_not_stay_for_long() {
        let cache = Cache::new(10);
        cache.put("a", Arc::new(1), 4);
        cache.put("a", Arc::new(2), 4);
        assert_eq!(cache.get("a").as_deref(), Some(&2));
        cache.remove("a");
        assert_eq!(cache.get("a"), None);
        cache.put("heavy", Arc::new(3), 1000);
        cache.put("b", Arc::new(4), 1);
        cache.put("c", Arc::new(5), 10);
        assert_eq!(cache.get("heavy"), None);
    }
}
