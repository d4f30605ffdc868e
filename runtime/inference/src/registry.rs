//! The models in memory, within a budget, and those on their way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use futures::future::Shared;
use sandpiper_domain::{BoxFuture, ModelKey, TenantName};

use crate::{
    LoadError, LoadedModel, alloc,
    eviction::{self, Held},
    footprint::{Ledger, Reservation},
    loader::needed_for,
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

/// Pinned models take no more than this part of the budget, whoever has pinned them: the rest is for models that come
/// and go.
const PINNED_PART: u64 = 2;

/// What a tenant is due of the memory for models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryTerms {
    /// Its part of the budget, beside those of the others that have models in memory.
    pub weight: u32,
    /// What its pinned models may take together, in bytes. A model beyond is kept as one that makes room.
    pub pinned_bytes_max: u64,
}

/// Tells the terms of each tenant, as they are now.
pub type MemoryTermsOf = dyn Fn(&TenantName) -> MemoryTerms + Send + Sync;

/// Tells whether a version is in use, so that its pin counts: an old one that is asked for once holds none.
pub type PinsOf = dyn Fn(&ModelKey) -> bool + Send + Sync;

/// A load that is taken to need more than this part of the budget on its way is made while no other such is: together,
/// what they need for a moment would be well beyond it.
const LARGE_PART: u64 = 16;

/// Another large load is under way.
#[derive(Debug)]
pub(crate) struct Busy;

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
    /// Where times are counted from.
    began: Instant,
    terms: Box<MemoryTermsOf>,
    pins: Box<PinsOf>,
    /// Frees what callers have no time to free.
    freed: Sender<Forgotten>,
    bytes_max: u64,
    /// Held while a large load is made.
    large_load: Mutex<()>,
    /// Held while room is made, so that two that add do not evict for each other's bytes.
    making_room: Mutex<()>,
}

struct Entry {
    model: Arc<LoadedModel>,
    /// The time of the last use, in nanoseconds since the registry began.
    used: AtomicU64,
    pinned: AtomicBool,
}

impl Registry {
    /// `freed` takes models to a thread that drops them.
    pub(crate) fn new(
        bytes_max: u64,
        (terms, pins): (Box<MemoryTermsOf>, Box<PinsOf>),
        ledger: Arc<Ledger>,
        freed: Sender<Forgotten>,
    ) -> Self {
        Registry {
            models: DashMap::new(),
            pending: Mutex::default(),
            failures: DashMap::new(),
            ledger,
            began: Instant::now(),
            terms,
            pins,
            freed,
            bytes_max,
            large_load: Mutex::new(()),
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

    /// Adds a model, and forgets others until all are within the budget. The result is to be dropped where freeing them
    /// holds up nobody. A model that would be pinned beyond what its tenant may pin is added without its pin, and so is
    /// a version that is not in use.
    pub(crate) fn add(
        &self,
        key: ModelKey,
        model: Arc<LoadedModel>,
    ) -> Result<Forgotten, LoadError> {
        let _making_room = self.lock_room();
        self.fits_beside_pinned(&model, |other| *other == key)?;
        let used = AtomicU64::new(self.now());
        let pinned = model.options().pinned && (self.pins)(&key) && self.may_pin(&key, &model);
        let pinned = AtomicBool::new(pinned);
        let replaced = self.models.insert(key.clone(), Entry { model, used, pinned });
        let mut forgotten = self.forget_down_to(self.unreserved(), Some(&key), None);
        forgotten.0.extend(replaced.map(|entry| entry.model));
        Ok(forgotten)
    }

    fn may_pin(&self, key: &ModelKey, model: &LoadedModel) -> bool {
        let fits = self.fits_pins_of(&key.tenant, model, |other| other == key);
        if let Err(error) = &fits {
            tracing::warn!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model is kept without its pin");
        }
        fits.is_ok()
    }

    /// Whether the tenant may pin the model beside those that it and all others have pinned already, those that
    /// `ignored` names apart.
    pub(crate) fn fits_pins_of(
        &self,
        tenant: &TenantName,
        model: &LoadedModel,
        ignored: impl Fn(&ModelKey) -> bool,
    ) -> Result<(), LoadError> {
        let limit = (self.terms)(tenant).pinned_bytes_max;
        let needed = model.memory_bytes();
        let held = self.pinned(|key| key.tenant == *tenant && !ignored(key));
        if needed.saturating_add(held) > limit {
            return Err(LoadError::PinLimit { needed, held, limit });
        }
        let (limit, held) = (self.pins_bytes_max(), self.pinned(|key| !ignored(key)));
        if needed.saturating_add(held) > limit {
            // For the operator; what others have pinned is no tenant's business.
            tracing::warn!(needed, held, limit, "pinned models leave no room for another pin");
            return Err(LoadError::PinsFull { needed, limit });
        }
        Ok(())
    }

    fn pins_bytes_max(&self) -> u64 {
        self.bytes_max / PINNED_PART
    }

    /// Bytes of the pinned models that are meant.
    fn pinned(&self, meant: impl Fn(&ModelKey) -> bool) -> u64 {
        let pinned =
            self.models.iter().filter(|entry| entry.pinned.load(Relaxed) && meant(entry.key()));
        pinned.map(|entry| entry.model.memory_bytes()).fold(0, u64::saturating_add)
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
        let pinned = self.pinned(|key| !ignored(key));
        if needed.saturating_add(pinned) > budget {
            // For the operator; what others have pinned is no tenant's business.
            tracing::warn!(needed, pinned, budget, "pinned models leave no room for a model");
            return Err(LoadError::NoRoom { needed });
        }
        Ok(())
    }

    /// Keeps other large loads off where one of a file of so many bytes is large. Fails while another is under way.
    pub(crate) fn alone_if_large(&self, file: u64) -> Result<Option<MutexGuard<'_, ()>>, Busy> {
        if needed_for(file) <= self.bytes_max / LARGE_PART {
            return Ok(None);
        }
        match self.large_load.try_lock() {
            Ok(alone) => Ok(Some(alone)),
            Err(TryLockError::Poisoned(alone)) => Ok(Some(alone.into_inner())),
            Err(TryLockError::WouldBlock) => Err(Busy),
        }
    }

    /// Makes room for about `bytes`, and waits a while for what was forgotten and still runs. The room stays reserved
    /// until the result is dropped. `owner` is the tenant that the model will count for. On a loader thread.
    pub(crate) fn wait_for_room(
        &self,
        bytes: u64,
        owner: Option<&TenantName>,
    ) -> Result<Reservation, LoadError> {
        let bytes = bytes.min(self.bytes_max / RESERVED_PART);
        let reservation = self.ledger.reserve(bytes);
        let begun = Instant::now();
        loop {
            let target = self.unreserved();
            let registered = self.make_room(target, owner.map(|owner| (owner, bytes)));
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
    fn make_room(&self, target: u64, incoming: Option<(&TenantName, u64)>) -> u64 {
        let forgotten = {
            let _making_room = self.lock_room();
            self.forget_down_to(target, None, incoming)
        };
        drop(forgotten);
        self.models.iter().map(|entry| entry.model.memory_bytes()).sum()
    }

    /// Forgets models until the budget holds again, after one has grown.
    pub(crate) fn hold_budget(&self) {
        self.hold_pins();
        self.make_room(self.unreserved(), None);
    }

    /// Lets go of pins where pinned models have grown beyond the limit of their tenant or, together, of the node. For
    /// the node's it is the tenant with most that lets go.
    fn hold_pins(&self) {
        let _making_room = self.lock_room();
        let pinned = self.models.iter().filter(|entry| entry.pinned.load(Relaxed));
        let mut held: HashMap<TenantName, u64> = HashMap::new();
        for entry in pinned {
            *held.entry(entry.key().tenant.clone()).or_default() += entry.model.memory_bytes();
        }
        for (tenant, bytes) in &mut held {
            let limit = (self.terms)(tenant).pinned_bytes_max;
            while *bytes > limit {
                let Some(freed) = self.unpin_oldest(tenant) else { break };
                *bytes = bytes.saturating_sub(freed);
            }
        }
        while held.values().copied().fold(0, u64::saturating_add) > self.pins_bytes_max() {
            let Some((tenant, bytes)) = held.iter_mut().max_by_key(|(_, bytes)| **bytes) else {
                break;
            };
            // Where it has none any more, what was counted has gone in the meantime.
            let freed = self.unpin_oldest(tenant).unwrap_or(u64::MAX);
            *bytes = bytes.saturating_sub(freed);
        }
    }

    /// Lets go of the pin of the tenant's that was used longest ago, and gives the bytes of that model.
    fn unpin_oldest(&self, tenant: &TenantName) -> Option<u64> {
        let own = self
            .models
            .iter()
            .filter(|entry| entry.key().tenant == *tenant && entry.pinned.load(Relaxed));
        let oldest = own.min_by_key(|entry| entry.used.load(Relaxed))?;
        oldest.pinned.store(false, Relaxed);
        Some(oldest.model.memory_bytes())
    }

    /// What loads under way leave of the budget.
    fn unreserved(&self) -> u64 {
        self.bytes_max.saturating_sub(self.ledger.reserved())
    }

    fn lock_room(&self) -> MutexGuard<'_, ()> {
        self.making_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_down_to(
        &self,
        target: u64,
        spared: Option<&ModelKey>,
        incoming: Option<(&TenantName, u64)>,
    ) -> Forgotten {
        let now = self.now();
        let held = self.models.iter().map(|entry| Held {
            key: entry.key().clone(),
            bytes: entry.model.memory_bytes(),
            idle: Duration::from_nanos(now.saturating_sub(entry.used.load(Relaxed))),
            is_in_use: entry.model.is_in_use(),
            stays: Some(entry.key()) == spared || entry.pinned.load(Relaxed),
        });
        let weight = |tenant: &TenantName| (self.terms)(tenant).weight;
        let chosen = eviction::choose(held.collect(), incoming, target, weight);
        let mut forgotten = Forgotten(Vec::new());
        for (key, entry) in chosen.iter().filter_map(|key| self.models.remove(key)) {
            entry.model.stats().evictions.fetch_add(1, Relaxed);
            forgotten.0.push(entry.model);
            tracing::debug!(tenant = %key.tenant, model = %key.model, version = key.version, "a model made room for another");
        }
        forgotten
    }

    /// Lets go of the pins of versions that are not in use, and then pins those that are and ask for it, as far as
    /// their tenants may.
    pub(crate) fn settle_pins(&self, is_used: impl Fn(&ModelKey) -> bool) {
        let _making_room = self.lock_room();
        let mut missing = Vec::new();
        for entry in self.models.iter().filter(|entry| entry.model.options().pinned) {
            match (entry.pinned.load(Relaxed), is_used(entry.key())) {
                (true, false) => entry.pinned.store(false, Relaxed),
                (false, true) => missing.push((entry.key().clone(), entry.model.clone())),
                _ => {}
            }
        }
        for (key, model) in missing {
            let may_be = self.fits_pins_of(&key.tenant, &model, |other| *other == key).is_ok();
            // Another may have taken its place meanwhile.
            if let Some(entry) = self.models.get(&key).filter(|_| may_be)
                && Arc::ptr_eq(&entry.model, &model)
            {
                entry.pinned.store(true, Relaxed);
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
        self.free(Forgotten(
            self.models.remove(key).map(|(_, entry)| entry.model).into_iter().collect(),
        ));
    }

    pub(crate) fn retain(&self, keep: impl Fn(&ModelKey) -> bool) {
        self.failures.retain(|key, _| keep(key));
        self.pending().retain(|key, _| keep(key));
        let mut forgotten = Forgotten(Vec::new());
        self.models.retain(|key, entry| {
            let kept = keep(key);
            if !kept {
                forgotten.0.push(entry.model.clone());
            }
            kept
        });
        self.free(forgotten);
    }

    /// Drops models on a thread that nobody waits for.
    pub(crate) fn free(&self, forgotten: Forgotten) {
        if !forgotten.0.is_empty() {
            // Where that thread is gone, they are dropped here.
            let _ = self.freed.send(forgotten);
        }
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
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Models that are no longer registered, in memory until this is dropped; their pages go back to the machine then.
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
