//! What calls of models cost whoever asked, also where the answer came too late.

use std::{
    fmt,
    ops::AddAssign,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What calls of models have cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InferenceCost {
    /// Time spent waiting for a compute thread.
    pub queued: Duration,
    /// Time spent on a compute thread.
    pub computed: Duration,
}

impl AddAssign for InferenceCost {
    fn add_assign(&mut self, other: Self) {
        self.queued = self.queued.saturating_add(other.queued);
        self.computed = self.computed.saturating_add(other.computed);
    }
}

/// Pays for what is done on somebody's behalf.
pub trait Payer: Send + Sync {
    /// Pays for a call that ended when its bill was closed: its caller had gone, and a step of the graph cannot be
    /// stopped.
    fn pay_late(&self, cost: InferenceCost);
}

/// The sum of what calls have cost until it is closed. What comes later goes to the payer at once, so that everything
/// is paid for once.
pub struct InferenceBill {
    /// `None` once it is closed.
    sum: Mutex<Option<InferenceCost>>,
    payer: Arc<dyn Payer>,
}

impl InferenceBill {
    /// A bill with nothing on it.
    pub fn new(payer: Arc<dyn Payer>) -> Self {
        InferenceBill { sum: Mutex::new(Some(InferenceCost::default())), payer }
    }

    /// Adds what one call has cost.
    pub fn add(&self, cost: InferenceCost) {
        let mut sum = self.sum();
        match &mut *sum {
            Some(sum) => *sum += cost,
            None => {
                drop(sum);
                if cost != InferenceCost::default() {
                    self.payer.pay_late(cost);
                }
            }
        }
    }

    /// Gives what has come together; a second time, nothing.
    pub fn close(&self) -> InferenceCost {
        self.sum().take().unwrap_or_default()
    }

    fn sum(&self) -> MutexGuard<'_, Option<InferenceCost>> {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for InferenceBill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InferenceBill").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Purse(Mutex<Vec<InferenceCost>>);

    impl Payer for Purse {
        fn pay_late(&self, cost: InferenceCost) {
            self.0.lock().unwrap().push(cost);
        }
    }

    #[test]
    fn everything_is_paid_for_once() {
        let cost = |ms| InferenceCost {
            queued: Duration::from_millis(ms),
            computed: Duration::from_millis(10 * ms),
        };
        let purse = Arc::new(Purse::default());
        let bill = InferenceBill::new(purse.clone());
        bill.add(cost(1));
        bill.add(cost(2));
        assert_eq!(bill.close(), cost(3));
        assert!(purse.0.lock().unwrap().is_empty());
        bill.add(cost(4));
        bill.add(InferenceCost::default());
        assert_eq!(bill.close(), InferenceCost::default());
        assert_eq!(*purse.0.lock().unwrap(), [cost(4)]);
    }
}
