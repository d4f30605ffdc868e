//! What models hold in memory: each knows its own bytes, and the ledger knows those of all that are alive, the ones
//! that have been forgotten and still run among them.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
    mpsc::{SyncSender, sync_channel},
};

/// The bytes of all models alive.
pub(crate) struct Ledger {
    resident: AtomicU64,
    /// Bytes that loads under way are taken to need.
    reserved: AtomicU64,
    /// Wakes whoever makes room when a model has grown.
    grew: SyncSender<()>,
}

impl Ledger {
    /// The receiver hears when a model has grown; several growths may be one message.
    pub(crate) fn new() -> (Arc<Self>, std::sync::mpsc::Receiver<()>) {
        let (grew, hears) = sync_channel(1);
        (Arc::new(Ledger { resident: AtomicU64::new(0), reserved: AtomicU64::new(0), grew }), hears)
    }

    /// Bytes of all models alive, in the registry or not.
    pub(crate) fn resident(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    /// Bytes that loads under way are taken to need.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Relaxed)
    }

    /// Sets bytes aside until the result is dropped.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.reserved.fetch_add(bytes, Relaxed);
        Reservation { ledger: self.clone(), bytes }
    }
}

/// Bytes set aside for a load.
pub(crate) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.reserved.fetch_sub(self.bytes, Relaxed);
    }
}

/// The bytes of one model: what loading it left behind, and what was added since.
#[derive(Default)]
pub(crate) struct Footprint {
    bytes: AtomicU64,
    ledger: OnceLock<Arc<Ledger>>,
}

impl Footprint {
    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Notes bytes that the model keeps for good.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        if let Some(ledger) = self.ledger.get() {
            ledger.resident.fetch_add(bytes, Relaxed);
            let _ = ledger.grew.try_send(());
        }
    }

    /// Notes bytes until the result is dropped.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Charge {
        self.add(bytes);
        Charge { footprint: self.clone(), bytes }
    }

    /// From now on the ledger counts this model too. Once, before others see the model.
    pub(crate) fn enter(&self, ledger: &Arc<Ledger>) {
        if self.ledger.set(ledger.clone()).is_ok() {
            ledger.resident.fetch_add(self.bytes(), Relaxed);
        }
    }

    fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
        if let Some(ledger) = self.ledger.get() {
            ledger.resident.fetch_sub(bytes, Relaxed);
        }
    }
}

impl Drop for Footprint {
    fn drop(&mut self) {
        self.remove(self.bytes());
    }
}

/// Bytes that a part of a model holds while it is there.
pub(crate) struct Charge {
    footprint: Arc<Footprint>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.footprint.remove(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_what_is_alive() {
        let (ledger, grew) = Ledger::new();
        let model = Arc::new(Footprint::default());
        model.add(100);
        assert_eq!(ledger.resident(), 0);
        model.enter(&ledger);
        model.enter(&ledger);
        assert!(grew.try_recv().is_err());
        let plan = model.charge(10);
        model.add(1);
        assert_eq!((ledger.resident(), model.bytes()), (111, 111));
        assert!(grew.try_recv().is_ok());
        drop(plan);
        assert_eq!((ledger.resident(), model.bytes()), (101, 101));
        drop(model);
        assert_eq!(ledger.resident(), 0);
    }
}
