//! What the runs of a model are expected to cost, learnt from those that were.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Runs of up to 1, 2, 4, 8, 16 and 32 rows are told apart.
const CLASSES: usize = 6;
/// A new measurement moves the mean by one part in so many.
const MEMORY: u64 = 8;

/// The mean CPU time of runs by their rows; 0 where there was none.
#[derive(Debug)]
pub(crate) struct Costs {
    mean_ns: [AtomicU64; CLASSES],
    /// The least that a run took.
    floor_ns: AtomicU64,
}

impl Costs {
    /// From what was measured when the model was loaded: rows and nanoseconds.
    pub(crate) fn new(curve: impl Iterator<Item = (u32, u64)>) -> Self {
        let costs = Costs { mean_ns: Default::default(), floor_ns: AtomicU64::new(u64::MAX) };
        curve.for_each(|(rows, ns)| costs.observe(rows as usize, ns));
        costs
    }

    /// What a run of `rows` rows is expected to take; 0 where nothing is known yet.
    pub(crate) fn estimate_ns(&self, rows: usize) -> u64 {
        let rows = rows.max(1);
        let own = class(rows);
        let nearest = (0..=own).rev().chain(own..CLASSES).find_map(|class| {
            let mean = self.mean_ns[class].load(Relaxed);
            (mean > 0).then_some((class, mean))
        });
        let Some((class, mean)) = nearest else { return 0 };
        let scaled = u128::from(mean) * rows as u128 / (1u128 << class);
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// The least that a run has taken so far; 0 where there was none.
    pub(crate) fn floor_ns(&self) -> u64 {
        match self.floor_ns.load(Relaxed) {
            u64::MAX => 0,
            ns => ns,
        }
    }

    /// Learns from a run. Two threads that learn at once may lose one of two measurements, which does no harm.
    pub(crate) fn observe(&self, rows: usize, ns: u64) {
        let (rows, ns) = (rows.max(1), ns.max(1));
        self.floor_ns.fetch_min(ns, Relaxed);
        let class = class(rows);
        let of_class = (u128::from(ns) << class) / rows as u128;
        let of_class = u64::try_from(of_class).unwrap_or(u64::MAX).max(1);
        let mean = self.mean_ns[class].load(Relaxed);
        let next = match mean {
            0 => of_class,
            _ => mean - mean / MEMORY + of_class / MEMORY,
        };
        self.mean_ns[class].store(next.max(1), Relaxed);
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
        assert_eq!(
            [1, 2, 4, 6, 64].map(|rows| costs.estimate_ns(rows)),
            [1000, 2000, 2000, 3000, 32_000]
        );
        assert_eq!(Costs::new([(4, 2000)].into_iter()).estimate_ns(1), 500);
        assert_eq!(Costs::new([].into_iter()).estimate_ns(1), 0);
    }

    #[test]
    fn the_mean_follows_and_the_floor_stays() {
        let costs = Costs::new([(1, 1000)].into_iter());
        (0..100).for_each(|_| costs.observe(1, 9000));
        assert!((8900..=9000).contains(&costs.estimate_ns(1)), "{}", costs.estimate_ns(1));
        assert_eq!(costs.floor_ns(), 1000);
        costs.observe(usize::MAX, u64::MAX);
        assert!(costs.estimate_ns(usize::MAX) > 0);
    }
}
