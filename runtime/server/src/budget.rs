//! The bytes that requests and answers of the inference protocol take in memory, bounded for the node and each tenant.
//!
//! A charge is a few atomic operations: no lock, no wait, no allocation. It is taken with what decoding may grow to,
//! and given back when the answer is gone.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What a request is charged when it comes in. Small ones and their answers take no more in all.
pub(crate) const FLOOR_BYTES: u64 = 64 << 10;

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// More than a tenant may have on this node, however long it waits.
    Ever,
    /// The tenant's own requests and answers take its part.
    Tenant,
    /// Those of all tenants take the whole.
    Node,
}

/// The whole of a node.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    used: AtomicU64,
    bytes_max: u64,
}

/// The part of one tenant: half of the whole at most.
#[derive(Debug)]
pub(crate) struct TenantBytes {
    node: Arc<ByteBudget>,
    used: AtomicU64,
}

/// Bytes that are taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    tenant: Arc<TenantBytes>,
    bytes: u64,
}

fn take(used: &AtomicU64, bytes: u64, bytes_max: u64) -> bool {
    let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= bytes_max);
    used.fetch_update(Relaxed, Relaxed, more).is_ok()
}

impl ByteBudget {
    pub(crate) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(ByteBudget { used: AtomicU64::new(0), bytes_max })
    }

    pub(crate) fn tenant(self: &Arc<Self>) -> Arc<TenantBytes> {
        Arc::new(TenantBytes { node: self.clone(), used: AtomicU64::new(0) })
    }
}

impl TenantBytes {
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, NoRoom> {
        let mut charge = Charge { tenant: self.clone(), bytes: 0 };
        charge.cover(bytes)?;
        Ok(charge)
    }
}

impl Charge {
    /// Takes what is missing to `bytes` in all. On failure the charge stays as it was.
    pub(crate) fn cover(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        let node = &self.tenant.node;
        let part = node.bytes_max / 2;
        if bytes > part {
            return Err(NoRoom::Ever);
        }
        if !take(&self.tenant.used, more, part) {
            return Err(NoRoom::Tenant);
        }
        if !take(&node.used, more, node.bytes_max) {
            self.tenant.used.fetch_sub(more, Relaxed);
            return Err(NoRoom::Node);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Takes so many bytes beside what is taken already. Few are in the floor.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), NoRoom> {
        if bytes <= FLOOR_BYTES / 4 {
            return Ok(());
        }
        self.cover(self.bytes.saturating_add(bytes))
    }

    /// Gives back what is above `bytes` and above the floor.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes.max(FLOOR_BYTES));
        self.tenant.used.fetch_sub(less, Relaxed);
        self.tenant.node.used.fetch_sub(less, Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.tenant.used.fetch_sub(self.bytes, Relaxed);
        self.tenant.node.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_half_and_all_tenants_have_the_whole() {
        let node = ByteBudget::new(1000);
        let (one, two, three) = (node.tenant(), node.tenant(), node.tenant());
        let mut first = one.charge(300).unwrap();
        assert_eq!(one.charge(501).err(), Some(NoRoom::Ever));
        assert_eq!(one.charge(201).err(), Some(NoRoom::Tenant));
        let second = two.charge(500).unwrap();
        assert_eq!(first.cover(501), Err(NoRoom::Ever));
        first.cover(500).unwrap();
        assert_eq!(three.charge(1).err(), Some(NoRoom::Node));
        assert_eq!(three.used.load(Relaxed), 0);
        drop(second);
        let mut third = three.charge(499).unwrap();
        third.add(1).unwrap();
        assert_eq!(third.add(FLOOR_BYTES), Err(NoRoom::Ever));
        drop((first, third));
        assert_eq!((node.used.load(Relaxed), one.used.load(Relaxed)), (0, 0));
    }

    #[test]
    fn what_is_given_back_is_free_and_the_floor_stays() {
        let node = ByteBudget::new(1 << 20);
        let tenant = node.tenant();
        let mut charge = tenant.charge(1 << 19).unwrap();
        charge.cover(10).unwrap();
        assert_eq!(node.used.load(Relaxed), 1 << 19);
        charge.shrink(0);
        assert_eq!((node.used.load(Relaxed), charge.bytes), (FLOOR_BYTES, FLOOR_BYTES));
    }
}
