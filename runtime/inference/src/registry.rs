//! The models in memory, within a budget, and those on their way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use futures::future::Shared;
use sandpiper_domain::{BoxFuture, ModelKey};

use crate::{
    LoadError, LoadedModel, alloc,
    footprint::{Ledger, Reservation},
};

pub(crate) type Loaded = Result<Arc<LoadedModel>, LoadError>;

/// How long a load waits for models that were forgotten to end their last runs.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
const ROOM_PAUSE: Duration = Duration::from_millis(2);
/// After that wait a load goes on as long as all models alive take less than this many halves of the budget: what
/// still runs will end, and a refusal would be a failure that the next moment does not need.
const OVERSHOOT_HALVES: u64 = 3;

/// No load reserves more than this part of the budget: a large model need not drive all others out before it is there.
const RESERVED_PART: u64 = 3;

/// A load on its way, which others may wait for.
pub(crate) struct Pending {
    pub(crate) id: u64,
    pub(crate) outcome: Shared<BoxFuture<'static, Loaded>>,
}

pub(crate) struct Registry {
    models: DashMap<ModelKey, Entry>,
    pending: Mutex<HashMap<ModelKey, Pending>>,
    /// Loads that failed, until they are tried again.
    failures: DashMap<ModelKey, LoadError>,
    ledger: Arc<Ledger>,
    /// Goes up with every use.
    clock: AtomicU64,
    bytes_max: u64,
    /// Held while room is made, so that two that add do not evict for each other's bytes.
    making_room: Mutex<()>,
}

struct Entry {
    model: Arc<LoadedModel>,
    /// The time of the last use, on the registry's clock.
    used: AtomicU64,
    pinned: AtomicBool,
}

/// One model as a candidate for being forgotten; the smallest goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    is_in_use: bool,
    used: u64,
    bytes: u64,
}

impl Registry {
    pub(crate) fn new(bytes_max: u64, ledger: Arc<Ledger>) -> Self {
        Registry {
            models: DashMap::new(),
            pending: Mutex::default(),
            failures: DashMap::new(),
            ledger,
            clock: AtomicU64::new(0),
            bytes_max,
            making_room: Mutex::new(()),
        }
    }

    /// Taken before any other lock of the registry.
    pub(crate) fn pending(&self) -> MutexGuard<'_, HashMap<ModelKey, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The model of this key, which is thereby the one used last.
    pub(crate) fn get(&self, key: &ModelKey) -> Option<Arc<LoadedModel>> {
        let entry = self.models.get(key)?;
        entry.used.store(self.now(), Relaxed);
        Some(entry.model.clone())
    }

    /// The model of this key, for who looks without using it.
    pub(crate) fn peek(&self, key: &ModelKey) -> Option<Arc<LoadedModel>> {
        self.models.get(key).map(|entry| entry.model.clone())
    }

    /// Adds a model, and forgets others, those used longest ago first, until all are within the budget. The result is
    /// to be dropped where freeing them holds up nobody.
    pub(crate) fn add(
        &self,
        key: ModelKey,
        model: Arc<LoadedModel>,
    ) -> Result<Forgotten, LoadError> {
        let _making_room = self.lock_room();
        self.fits_beside_pinned(&model, |other| *other == key)?;
        let used = AtomicU64::new(self.now());
        let pinned = AtomicBool::new(model.options().pinned);
        self.models.insert(key.clone(), Entry { model, used, pinned });
        Ok(self.forget_down_to(self.unreserved(), Some(&key)))
    }

    /// Whether the model could be added: it is not larger than what pinned models leave of the budget, those that
    /// `ignored` names apart.
    pub(crate) fn fits_beside_pinned(
        &self,
        model: &LoadedModel,
        ignored: impl Fn(&ModelKey) -> bool,
    ) -> Result<(), LoadError> {
        let needed = model.memory_bytes();
        let budget = self.bytes_max;
        if needed > budget {
            return Err(LoadError::OverBudget { needed, budget });
        }
        let pinned =
            self.models.iter().filter(|entry| entry.pinned.load(Relaxed) && !ignored(entry.key()));
        let pinned = pinned.map(|entry| entry.model.memory_bytes()).sum::<u64>();
        match needed.saturating_add(pinned) > budget {
            true => Err(LoadError::NoRoom { needed, pinned, budget }),
            false => Ok(()),
        }
    }

    /// Makes room for about `bytes`, and waits a while for what was forgotten and still runs. The room stays reserved
    /// until the result is dropped. On a loader thread.
    pub(crate) fn wait_for_room(&self, bytes: u64) -> Result<Reservation, LoadError> {
        let reservation = self.ledger.reserve(bytes.min(self.bytes_max / RESERVED_PART));
        let begun = Instant::now();
        loop {
            let target = self.unreserved();
            let registered = self.make_room(target);
            let resident = self.ledger.resident();
            // What only pinned models fill does not get emptier.
            if resident <= target || registered >= resident {
                return Ok(reservation);
            }
            if begun.elapsed() >= ROOM_PATIENCE {
                let limit = (self.bytes_max / 2).saturating_mul(OVERSHOOT_HALVES);
                return if resident <= limit { Ok(reservation) } else { Err(LoadError::Saturated) };
            }
            thread::sleep(ROOM_PAUSE);
        }
    }

    /// Forgets models until those in the registry take no more than `target`; gives what they take then.
    fn make_room(&self, target: u64) -> u64 {
        let forgotten = {
            let _making_room = self.lock_room();
            self.forget_down_to(target, None)
        };
        drop(forgotten);
        self.models.iter().map(|entry| entry.model.memory_bytes()).sum()
    }

    /// Forgets models until the budget holds again, after one has grown.
    pub(crate) fn hold_budget(&self) {
        self.make_room(self.unreserved());
    }

    /// What loads under way leave of the budget.
    fn unreserved(&self) -> u64 {
        self.bytes_max.saturating_sub(self.ledger.reserved())
    }

    fn lock_room(&self) -> MutexGuard<'_, ()> {
        self.making_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_down_to(&self, target: u64, spared: Option<&ModelKey>) -> Forgotten {
        let mut candidates = Vec::new();
        let mut bytes = 0u64;
        for entry in &self.models {
            let size = entry.model.memory_bytes();
            bytes = bytes.saturating_add(size);
            if Some(entry.key()) != spared && !entry.pinned.load(Relaxed) {
                let (used, is_in_use) = (entry.used.load(Relaxed), entry.model.is_in_use());
                candidates.push((Candidate { is_in_use, used, bytes: size }, entry.key().clone()));
            }
        }
        let mut forgotten = Forgotten(Vec::new());
        if bytes <= target {
            return forgotten;
        }
        candidates.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (candidate, key) in candidates {
            if bytes <= target {
                break;
            }
            if let Some((key, entry)) = self.models.remove(&key) {
                entry.model.stats().evictions.fetch_add(1, Relaxed);
                forgotten.0.push(entry.model);
                bytes = bytes.saturating_sub(candidate.bytes);
                tracing::debug!(tenant = %key.tenant, model = %key.model, version = key.version, "a model made room for another");
            }
        }
        forgotten
    }

    /// Lets go of the pin of every model that `keep` refuses.
    pub(crate) fn unpin(&self, keep: impl Fn(&ModelKey) -> bool) {
        for entry in &self.models {
            if entry.pinned.load(Relaxed) && !keep(entry.key()) {
                entry.pinned.store(false, Relaxed);
            }
        }
    }

    /// Notes how a load ended, so that it can be told.
    pub(crate) fn note(&self, key: &ModelKey, outcome: &Loaded) {
        match outcome {
            Ok(_) | Err(LoadError::Saturated) => drop(self.failures.remove(key)),
            Err(error) => drop(self.failures.insert(key.clone(), error.clone())),
        }
    }

    /// Why the model could not be loaded the last time, if so.
    pub(crate) fn failure(&self, key: &ModelKey) -> Option<LoadError> {
        self.failures.get(key).map(|error| error.clone())
    }

    pub(crate) fn remove(&self, key: &ModelKey) {
        self.failures.remove(key);
        self.pending().remove(key);
        self.models.remove(key);
    }

    pub(crate) fn retain(&self, keep: impl Fn(&ModelKey) -> bool) {
        self.failures.retain(|key, _| keep(key));
        self.pending().retain(|key, _| keep(key));
        self.models.retain(|key, _| keep(key));
    }

    /// What each model in memory takes, in bytes. Asking is no use.
    pub(crate) fn sizes(&self) -> Vec<(ModelKey, u64)> {
        let sizes = self.models.iter();
        sizes.map(|entry| (entry.key().clone(), entry.model.memory_bytes())).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.models.len()
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }
}

/// Models that made room, in memory until this is dropped; their pages go back to the machine then.
#[must_use]
pub(crate) struct Forgotten(Vec<Arc<LoadedModel>>);

impl Drop for Forgotten {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.0.clear();
            alloc::give_back_pages();
        }
    }
}
