//! What jobs may take of the node beside their workers: who has to wait though workers are free, and the memory of
//! their bodies.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use sandpiper_domain::{Lane, TenantLimits, TenantName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{BODY_UNIT_BYTES, BODY_UNITS, now_ms};

/// All that is kept of a tenant's jobs, batches and blobs together may take so many times the size of one batch.
const BATCHES: u64 = 4;
/// A lane is asked again after so long at the latest: a budget may have been raised meanwhile.
const PAUSE_MS_MAX: u64 = 60_000;

/// The bytes that may be kept of a tenant.
pub(crate) fn bytes_max(limits: &TenantLimits) -> u64 {
    BATCHES * (limits.batch_mib << 20)
}

/// Lanes of tenants whose rate or budget is used up: their jobs stay in the queue until there is more of it.
#[derive(Default)]
pub(crate) struct Pauses(Mutex<HashMap<(TenantName, Lane), u64>>);

impl Pauses {
    /// Leases nothing of this lane for so long.
    pub(crate) fn begin(&self, tenant: &TenantName, lane: Lane, pause_ms: u64) {
        let now = now_ms();
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.retain(|_, until| *until > now);
        pauses.insert((tenant.clone(), lane), now + pause_ms.min(PAUSE_MS_MAX));
    }

    pub(super) fn has(&self, tenant: &TenantName, lane: Lane) -> bool {
        let pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.get(&(tenant.clone(), lane)).is_some_and(|until| *until > now_ms())
    }
}

/// The memory that the large bodies of running jobs may take together.
pub(crate) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Bodies(Arc::new(Semaphore::new(BODY_UNITS as usize)))
    }
}

impl Bodies {
    /// Room for a body of this length, once there is some.
    pub(crate) async fn room(&self, size: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(size.div_ceil(BODY_UNIT_BYTES)).unwrap_or(BODY_UNITS);
        self.0.clone().acquire_many_owned(units.min(BODY_UNITS)).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_paused_lane_waits_and_the_others_do_not() {
        let (acme, beta) = ("acme".parse().unwrap(), "beta".parse().unwrap());
        let pauses = Pauses::default();
        pauses.begin(&acme, Lane::Batch, 3_600_000);
        let paused = [(&acme, Lane::Batch), (&acme, Lane::Job), (&beta, Lane::Batch)];
        assert_eq!(paused.map(|(tenant, lane)| pauses.has(tenant, lane)), [true, false, false]);
        pauses.begin(&acme, Lane::Batch, 0);
        assert!(!pauses.has(&acme, Lane::Batch));
    }

    #[tokio::test]
    async fn large_bodies_wait_for_one_another() {
        let bodies = Bodies::default();
        let most = u64::from(BODY_UNITS) * BODY_UNIT_BYTES;
        let first = bodies.room(most - 1).await;
        assert!(bodies.room(1).now_or_never().is_none());
        drop(first);
        // One that is larger than all the room there is has it for itself.
        assert!(bodies.room(10 * most).await.is_some());
    }
}
