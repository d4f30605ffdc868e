//! What an invocation does with the processor, told to whoever lets invocations in.

use crate::{BoxFuture, InferenceCost, Payer};

/// Which traffic an invocation belongs to; the first are served first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// A job.
    Job,
    /// A shard of a batch: whatever the tenant has to spare.
    Batch,
}

/// Hears when a guest stops and starts using the processor. A guest that waits for a model holds no place among those
/// that run.
pub trait Activity: Send + Sync {
    /// The guest waits from now on.
    fn suspend(&self);
    /// It would run again; `false` where it must wait for that.
    fn try_resume(&self) -> bool;
    /// Resolves when it may run again.
    fn resume(&self) -> BoxFuture<'_, ()>;
}

/// Counts nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unmetered;

impl Activity for Unmetered {
    fn suspend(&self) {}

    fn try_resume(&self) -> bool {
        true
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Payer for Unmetered {
    fn pay_late(&self, _cost: InferenceCost) {}
}
