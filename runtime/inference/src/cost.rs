//! What the runs of a model are expected to cost, learnt from those that were.
//!
//! A run has a number of rows, and each row a width: the elements of the inputs where shapes differ from call to call,
//! and 1 where they do not. An estimate says nothing of a caller but what it sent, so that it is never larger than what
//! runs have been seen to take.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Runs of up to 1, 2, 4, 8, 16 and 32 rows are told apart.
const CLASSES: usize = 6;
/// A new measurement moves the mean by one part in so many.
const MEMORY: u64 = 8;
/// Each run lowers the largest cost seen by one part in so many.
const MAX_MEMORY: u64 = 32;
/// Means have so many binary places: an element of a wide row takes less than a nanosecond.
const PLACES: u32 = 8;

/// The mean CPU time of runs by their rows; 0 where there was none.
#[derive(Debug)]
pub(crate) struct Costs {
    mean: [AtomicU64; CLASSES],
    /// The least that a run took.
    floor_ns: AtomicU64,
    /// The most that one of the last runs took.
    max_ns: AtomicU64,
}

impl Costs {
    /// From what was measured when the model was loaded: rows, all of width 1, and nanoseconds.
    pub(crate) fn new(curve: impl Iterator<Item = (u32, u64)>) -> Self {
        let (floor_ns, max_ns) = (AtomicU64::new(u64::MAX), AtomicU64::default());
        let costs = Costs { mean: Default::default(), floor_ns, max_ns };
        curve.for_each(|(rows, ns)| costs.observe(rows as usize, 1, ns));
        costs
    }

    /// What a run of `rows` rows is expected to take; 0 where nothing is known yet.
    pub(crate) fn estimate_ns(&self, rows: usize, width: usize) -> u64 {
        let (rows, width) = (rows.max(1), width.max(1));
        let own = class(rows);
        let nearest = (0..=own).rev().chain(own..CLASSES).find_map(|class| {
            let mean = self.mean[class].load(Relaxed);
            (mean > 0).then_some((class, mean))
        });
        let Some((class, mean)) = nearest else { return 0 };
        let scaled = u128::from(mean).saturating_mul(rows as u128).saturating_mul(width as u128);
        let ns = u64::try_from(scaled >> (class as u32 + PLACES)).unwrap_or(u64::MAX);
        ns.clamp(1, self.max_ns.load(Relaxed).max(1))
    }

    /// The least that a run has taken so far; 0 where there was none.
    pub(crate) fn floor_ns(&self) -> u64 {
        match self.floor_ns.load(Relaxed) {
            u64::MAX => 0,
            ns => ns,
        }
    }

    /// Learns from a run. Two threads that learn at once may lose one of two measurements, which does no harm.
    pub(crate) fn observe(&self, rows: usize, width: usize, ns: u64) {
        let (rows, width, ns) = (rows.max(1), width.max(1), ns.max(1));
        self.floor_ns.fetch_min(ns, Relaxed);
        let max_ns = self.max_ns.load(Relaxed);
        self.max_ns.store(ns.max(max_ns - max_ns.div_ceil(MAX_MEMORY)), Relaxed);
        let class = class(rows);
        let of_class = (u128::from(ns) << (class as u32 + PLACES))
            / (rows as u128).saturating_mul(width as u128);
        let of_class = u64::try_from(of_class).unwrap_or(u64::MAX).max(1);
        let mean = self.mean[class].load(Relaxed);
        let next = match mean {
            0 => of_class,
            _ => mean - mean / MEMORY + of_class / MEMORY,
        };
        self.mean[class].store(next.max(1), Relaxed);
    }
}

/// The class of the largest power of two that is no larger than `rows`.
fn class(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_taken_from_the_nearest_size() {
        let costs = Costs::new([(1, 1000), (4, 2000)].into_iter());
        assert_eq!([1, 2, 4].map(|rows| costs.estimate_ns(rows, 1)), [1000, 2000, 2000]);
        costs.observe(32, 1, 16_000);
        assert_eq!([6, 16, 32].map(|rows| costs.estimate_ns(rows, 1)), [3000, 8000, 16_000]);
        assert_eq!(Costs::new([(4, 2000)].into_iter()).estimate_ns(1, 1), 500);
        assert_eq!(Costs::new([].into_iter()).estimate_ns(1, 1), 0);
    }

    #[test]
    fn wide_rows_cost_more_and_nothing_more_than_was_seen() {
        let costs = Costs::new([].into_iter());
        costs.observe(32, 1000, 3_200_000);
        assert_eq!(
            [(32, 1000), (32, 500), (1, 1000)].map(|(r, w)| costs.estimate_ns(r, w)),
            [3_200_000, 1_600_000, 100_000]
        );
        // A million rows of one element are thirty-two times what was seen, and are thought to take just that.
        for (rows, width) in [(1 << 20, 1), (usize::MAX, usize::MAX), (1 << 62, 0)] {
            assert_eq!(costs.estimate_ns(rows, width), 3_200_000);
        }
        // A run that took long is forgotten.
        (0..300).for_each(|_| costs.observe(32, 1, 3_200));
        assert!(costs.estimate_ns(usize::MAX, 1) < 10_000, "{costs:?}");
    }

    #[test]
    fn the_mean_follows_and_the_floor_stays() {
        let costs = Costs::new([(1, 1000)].into_iter());
        (0..100).for_each(|_| costs.observe(1, 1, 9000));
        assert!((8900..=9000).contains(&costs.estimate_ns(1, 1)), "{}", costs.estimate_ns(1, 1));
        assert_eq!(costs.floor_ns(), 1000);
        costs.observe(usize::MAX, usize::MAX, u64::MAX);
        assert!(costs.estimate_ns(usize::MAX, 1) > 0);
    }
}
