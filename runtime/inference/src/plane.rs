//! The plane: which models are in memory, the threads that load them and the threads that run them.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    thread,
};

use bytes::Bytes;
use dashmap::DashMap;
use futures::{FutureExt, future::Shared};
use sandpiper_domain::{BoxFuture, ModelKey, ModelOptions, TenantName};
use tokio::sync::oneshot;

use crate::{
    LoadError, LoadedModel, ModelStats,
    backend::{Program, tract},
    contain,
    pool::{Owned, Pool},
    registry::{Loaded, Pending, Registry},
    scheduler::Scheduler,
};

/// Loads that may wait for a loader thread.
const LOADS_WAITING_MAX: usize = 64;
/// Optimising a large graph takes several times its size in memory, so that few are worked on at once.
const LOADERS_MAX: usize = 2;
/// Uploads have a thread of their own, so that they never hold up a model that a request waits for.
const INSPECTORS: usize = 1;
/// Uploads that may wait for it, with their bytes.
const INSPECTIONS_WAITING_MAX: usize = 16;
/// No tenant has more than this part of a queue to itself, so that none can keep the others out.
const SHARE: usize = 2;

/// The size of the plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Compute threads; each runs one call at a time.
    pub threads: usize,
    /// Calls that may wait for a compute thread before further ones are refused.
    pub queue_capacity: usize,
    /// The budget for models in memory, in bytes. A model counts with the length of its file, which stands in for
    /// what it really takes.
    pub models_bytes_max: u64,
}

impl Default for Config {
    /// One thread for each core, 1024 calls waiting, and 4 GiB of models.
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Config { threads, queue_capacity: 1024, models_bytes_max: 4 << 30 }
    }
}

/// Loads models once and runs them on its own threads.
pub struct InferencePlane {
    registry: Arc<Registry>,
    compute: Arc<Scheduler>,
    loaders: Pool<Load>,
    inspectors: Pool<Load>,
    stats: DashMap<ModelKey, Arc<ModelStats>>,
}

type Source = Box<dyn FnOnce() -> Result<Bytes, String> + Send>;

/// A load on its way to a loader thread. However it ends, its entry among the pending ones goes with it.
struct Load {
    place: Option<Place>,
    source: Source,
    options: ModelOptions,
    compute: Arc<Scheduler>,
    stats: Arc<ModelStats>,
    reply: oneshot::Sender<Loaded>,
}

struct Place {
    key: ModelKey,
    id: u64,
    registry: Weak<Registry>,
}

impl InferencePlane {
    /// Starts the threads.
    pub fn start(config: Config) -> io::Result<Arc<Self>> {
        contain::install_hook();
        let start = |name, threads, capacity: usize| {
            Pool::start(name, threads, capacity, capacity / SHARE, Load::work)
        };
        let loaders = LOADERS_MAX.min(config.threads);
        let loaders = start("sandpiper-load", loaders, LOADS_WAITING_MAX)?;
        let inspectors = start("sandpiper-inspect", INSPECTORS, INSPECTIONS_WAITING_MAX)?;
        let compute = Scheduler::start(config.threads, config.queue_capacity)?;
        let registry = Arc::new(Registry::new(config.models_bytes_max));
        let compute = Arc::new(compute);
        let stats = DashMap::new();
        Ok(Arc::new(InferencePlane { registry, compute, loaders, inspectors, stats }))
    }

    /// The model of this key, from memory or else from `bytes`, which is called on a loader thread and only when
    /// no other caller is loading the same key. A caller that goes away does not stop the load.
    pub async fn load(
        &self,
        key: &ModelKey,
        bytes: impl FnOnce() -> Result<Bytes, String> + Send + 'static,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        self.load_with(key, ModelOptions::default(), bytes).await
    }

    /// The same with options, which count where the model is not in memory yet.
    pub async fn load_with(
        &self,
        key: &ModelKey,
        options: ModelOptions,
        bytes: impl FnOnce() -> Result<Bytes, String> + Send + 'static,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        match self.loaded(key) {
            Some(model) => Ok(model),
            None => self.join_load(key, options, Box::new(bytes)).await,
        }
    }

    /// Parses and optimises `bytes` on the thread of uploads without registering the model: for uploads, whose version
    /// does not exist yet. See [`InferencePlane::register`].
    pub async fn inspect(&self, bytes: Bytes) -> Result<Arc<LoadedModel>, LoadError> {
        self.inspect_with(ModelOptions::default(), bytes).await
    }

    /// The same with options.
    pub async fn inspect_with(
        &self,
        options: ModelOptions,
        bytes: Bytes,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        let (reply, outcome) = oneshot::channel();
        let (source, compute) = (Box::new(|| Ok(bytes)), self.compute.clone());
        let stats = Arc::default();
        let load = Load { place: None, source, options, compute, stats, reply };
        self.inspectors.push(load).map_err(|_| LoadError::Saturated)?;
        outcome.await.unwrap_or(Err(LoadError::Panicked))
    }

    /// Makes an inspected model the one of `key`, so that its first use need not load it again.
    pub fn register(&self, key: ModelKey, model: Arc<LoadedModel>) {
        model.belongs_to(&key.tenant);
        self.stats.insert(key.clone(), model.stats().clone());
        self.registry.add(key, model);
    }

    /// The model of this key if it is in memory.
    pub fn loaded(&self, key: &ModelKey) -> Option<Arc<LoadedModel>> {
        self.registry.get(key)
    }

    /// Forgets a model. Calls that hold it still end well; a load under way is not kept.
    pub fn unload(&self, key: &ModelKey) {
        self.registry.remove(key);
    }

    /// Forgets every model whose key `keep` refuses, and its statistics.
    pub fn retain(&self, keep: impl Fn(&ModelKey) -> bool) {
        self.registry.retain(&keep);
        self.stats.retain(|key, _| keep(key));
    }

    /// The statistics of a model version since this node started, whether it is in memory or not.
    pub fn stats(&self, key: &ModelKey) -> Arc<ModelStats> {
        if let Some(stats) = self.stats.get(key) {
            return stats.clone();
        }
        self.stats.entry(key.clone()).or_default().clone()
    }

    /// Calls that wait for a compute thread.
    pub fn queue_depth(&self) -> usize {
        self.compute.depth()
    }

    /// Models in memory.
    pub fn model_count(&self) -> usize {
        self.registry.len()
    }

    fn join_load(
        &self,
        key: &ModelKey,
        options: ModelOptions,
        source: Source,
    ) -> Shared<BoxFuture<'static, Loaded>> {
        let mut pending = self.registry.pending();
        if let Some(model) = self.loaded(key) {
            return ready(Ok(model));
        }
        if let Some(load) = pending.get(key) {
            return load.outcome.clone();
        }
        let (reply, outcome) = oneshot::channel();
        let id = next_id();
        let place = Place { key: key.clone(), id, registry: Arc::downgrade(&self.registry) };
        let (compute, stats) = (self.compute.clone(), self.stats(key));
        let load = Load { place: Some(place), source, options, compute, stats, reply };
        let outcome = async move { outcome.await.unwrap_or(Err(LoadError::Panicked)) };
        let outcome = outcome.boxed().shared();
        pending.insert(key.clone(), Pending { id, outcome: outcome.clone() });
        // Dropping a refused load takes the same lock, to remove its entry.
        drop(pending);
        if let Err(refused) = self.loaders.push(load) {
            let _ = refused.reply.send(Err(LoadError::Saturated));
        }
        outcome
    }
}

fn ready(outcome: Loaded) -> Shared<BoxFuture<'static, Loaded>> {
    futures::future::ready(outcome).boxed().shared()
}

fn next_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Owned for Load {
    /// Uploads are counted where they are received.
    fn owner(&self) -> Option<&TenantName> {
        self.place.as_ref().map(|place| &place.key.tenant)
    }
}

impl Load {
    fn work(self) {
        let Load { place, source, options, compute, stats, reply } = self;
        if place.is_none() && reply.is_closed() {
            return;
        }
        // A panic of `source` is our own fault: the hook prints it, and the callers are told all the same.
        let outcome = catch_unwind(AssertUnwindSafe(|| prepare(source, &options, compute, stats)))
            .unwrap_or(Err(LoadError::Panicked));
        if let (Some(place), Ok(model)) = (&place, &outcome) {
            model.belongs_to(&place.key.tenant);
            place.keep(model);
        }
        drop(place);
        let _ = reply.send(outcome);
    }
}

fn prepare(
    source: Source,
    options: &ModelOptions,
    compute: Arc<Scheduler>,
    stats: Arc<ModelStats>,
) -> Loaded {
    let bytes = source().map_err(LoadError::Bytes)?;
    let program: Arc<dyn Program> = tract::load(&bytes, options)?;
    Ok(Arc::new(LoadedModel::new(program, compute, bytes.len() as u64, options, stats)))
}

impl Place {
    /// Registers the model unless it was unloaded while it was being loaded.
    fn keep(&self, model: &Arc<LoadedModel>) {
        let Some(registry) = self.registry.upgrade() else { return };
        let pending = registry.pending();
        if pending.get(&self.key).is_some_and(|load| load.id == self.id) {
            registry.add(self.key.clone(), model.clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(registry) = self.registry.upgrade() else { return };
        let mut pending = registry.pending();
        if pending.get(&self.key).is_some_and(|load| load.id == self.id) {
            pending.remove(&self.key);
        }
    }
}
