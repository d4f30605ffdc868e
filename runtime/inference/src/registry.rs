//! The models in memory, within a budget, and those on their way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use dashmap::DashMap;
use futures::future::Shared;
use sandpiper_domain::{BoxFuture, ModelKey};

use crate::{LoadError, LoadedModel};

pub(crate) type Loaded = Result<Arc<LoadedModel>, LoadError>;

/// A load on its way, which others may wait for.
pub(crate) struct Pending {
    pub(crate) id: u64,
    pub(crate) outcome: Shared<BoxFuture<'static, Loaded>>,
}

pub(crate) struct Registry {
    models: DashMap<ModelKey, Entry>,
    pending: Mutex<HashMap<ModelKey, Pending>>,
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
}

impl Registry {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Registry {
            models: DashMap::new(),
            pending: Mutex::default(),
            clock: AtomicU64::new(0),
            bytes_max,
            making_room: Mutex::new(()),
        }
    }

    /// Taken before any other lock of the registry.
    pub(crate) fn pending(&self) -> MutexGuard<'_, HashMap<ModelKey, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model of this key, which is thereby the one used last.
    pub(crate) fn get(&self, key: &ModelKey) -> Option<Arc<LoadedModel>> {
        let entry = self.models.get(key)?;
        entry.used.store(self.now(), Relaxed);
        Some(entry.model.clone())
    }

    /// Adds a model, and forgets those used longest ago until the rest is within the budget. The new one stays
    /// even where it is larger than the budget.
    pub(crate) fn add(&self, key: ModelKey, model: Arc<LoadedModel>) {
        let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let used = AtomicU64::new(self.now());
        self.models.insert(key.clone(), Entry { model, used });
        let mut others = Vec::new();
        let mut bytes = 0u64;
        for entry in &self.models {
            bytes = bytes.saturating_add(entry.model.profile().memory_bytes);
            if *entry.key() != key {
                let used = entry.used.load(Relaxed);
                others.push((used, entry.model.profile().memory_bytes, entry.key().clone()));
            }
        }
        if bytes <= self.bytes_max {
            return;
        }
        others.sort_unstable_by_key(|(used, ..)| *used);
        for (_, size, key) in others {
            if bytes <= self.bytes_max {
                break;
            }
            if let Some((_, entry)) = self.models.remove(&key) {
                entry.model.stats().evictions.fetch_add(1, Relaxed);
            }
            bytes = bytes.saturating_sub(size);
            tracing::debug!(tenant = %key.tenant, model = %key.model, version = key.version, "a model made room for another");
        }
    }

    pub(crate) fn remove(&self, key: &ModelKey) {
        self.pending().remove(key);
        self.models.remove(key);
    }

    pub(crate) fn retain(&self, keep: impl Fn(&ModelKey) -> bool) {
        self.pending().retain(|key, _| keep(key));
        self.models.retain(|key, _| keep(key));
    }

    /// What each model in memory takes, in bytes. Asking is no use.
    pub(crate) fn sizes(&self) -> Vec<(ModelKey, u64)> {
        let sizes = self.models.iter();
        sizes.map(|entry| (entry.key().clone(), entry.model.profile().memory_bytes)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.models.len()
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }
}
