//! The plane: which models are in memory, the threads that load them and the threads that run them.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use dashmap::DashMap;
use futures::{FutureExt, future::Shared};
use sandpiper_domain::{Band, BoxFuture, Digest, ModelKey, ModelName, TenantName};
use tokio::sync::oneshot;

use crate::{
    LoadError, LoadedModel, ModelSpec, ModelStats, Trial,
    builders::Builders,
    contain,
    footprint::Ledger,
    loader::Loader,
    pool::{Owned, Pool},
    registry::{Forgotten, Loaded, MemoryTerms, MemoryTermsOf, Pending, PinsOf, Registry},
    response_cache::ResponseCache,
    scheduler::Scheduler,
};

/// Loads that may wait for a loader thread.
const LOADS_WAITING_MAX: usize = 64;
/// Optimising a large graph takes several times its size in memory, so that few are worked on at once.
const LOADERS_MAX: usize = 2;
/// Uploads have threads of their own, so that they never hold up a model that a request waits for.
const INSPECTORS: usize = 2;
/// Uploads that may wait for them, with their bytes.
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
    /// The budget for models in memory, in bytes. A model counts with what it was measured to take.
    pub models_bytes_max: u64,
    /// The budget for answers of models that are cached, in bytes.
    pub responses_bytes_max: u64,
    /// How uploads are tried before they are loaded; `None` loads them at once.
    pub trial: Option<Trial>,
}

impl Default for Config {
    /// One thread for each core, 1024 calls waiting, 4 GiB of models and 64 MiB of answers, and no trials.
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let (models_bytes_max, responses_bytes_max) = (4 << 30, 64 << 20);
        Config { threads, queue_capacity: 1024, models_bytes_max, responses_bytes_max, trial: None }
    }
}

/// Loads models once and runs them on its own threads.
pub struct InferencePlane {
    loader: Arc<Loader>,
    loaders: Pool<Load>,
    inspectors: Pool<Load>,
    stats: DashMap<ModelKey, Arc<ModelStats>>,
}

type Source = Box<dyn FnOnce() -> Result<ModelSpec, String> + Send>;

/// A load on its way to a loader thread. However it ends, its entry among the pending ones goes with it.
struct Load {
    place: Option<Place>,
    /// Who asked for it, for whose turn it waits.
    asker: Option<TenantName>,
    /// Of the file, as far as is known before it is read.
    bytes: u64,
    source: Source,
    loader: Arc<Loader>,
    stats: Arc<ModelStats>,
    reply: oneshot::Sender<Loaded>,
}

struct Place {
    key: ModelKey,
    id: u64,
    registry: Weak<Registry>,
}

impl InferencePlane {
    /// Starts the threads of a plane whose tenants are all alike, and pin what they like.
    pub fn start(config: Config) -> io::Result<Arc<Self>> {
        let terms = MemoryTerms { weight: 1, pinned_bytes_max: u64::MAX };
        InferencePlane::start_with(config, Box::new(move |_| terms), Box::new(|_| true))
    }

    /// Starts the threads. `terms` is asked for a tenant's part of the memory whenever it matters, and `pins` whether a
    /// version that comes into memory is in use.
    pub fn start_with(
        config: Config,
        terms: Box<MemoryTermsOf>,
        pins: Box<PinsOf>,
    ) -> io::Result<Arc<Self>> {
        contain::install_hook();
        let start = |name, threads, capacity: usize| {
            Pool::start(name, threads, capacity, capacity / SHARE, Load::work)
        };
        let loaders = LOADERS_MAX.min(config.threads);
        let loaders = start("sandpiper-load", loaders, LOADS_WAITING_MAX)?;
        let inspectors = start("sandpiper-inspect", INSPECTORS, INSPECTIONS_WAITING_MAX)?;
        let compute = Arc::new(Scheduler::start(config.threads, config.queue_capacity)?);
        let (ledger, grew) = Ledger::new();
        let freed = start_freeing()?;
        let registry = Registry::new(config.models_bytes_max, (terms, pins), ledger, freed);
        let registry = Arc::new(registry);
        let watched = Arc::downgrade(&registry);
        thread::Builder::new().name("sandpiper-budget".to_owned()).spawn(move || {
            // Ends with the registry, whose ledger holds the sender.
            for () in grew {
                let Some(registry) = watched.upgrade() else { return };
                registry.hold_budget();
            }
        })?;
        let responses = Arc::new(ResponseCache::new(config.responses_bytes_max));
        let trial = config.trial;
        let builders = Arc::new(Builders::start(LOADERS_MAX.min(config.threads))?);
        let loader = Arc::new(Loader { compute, builders, registry, responses, trial });
        Ok(Arc::new(InferencePlane { loader, loaders, inspectors, stats: DashMap::new() }))
    }

    /// The model of this key, from memory or else from `source`, which is called on a loader thread and only when
    /// no other caller is loading the same key. A caller that goes away does not stop the load. It waits for the turn
    /// of the model's owner. Nothing is known of its size before.
    pub async fn load(
        &self,
        key: &ModelKey,
        source: impl FnOnce() -> Result<ModelSpec, String> + Send + 'static,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        self.load_for(&key.tenant, key, 0, source).await
    }

    /// The same for `asker`, who need not be the model's owner: the load waits for its turn, and takes its time. The
    /// file has so many bytes.
    pub async fn load_for(
        &self,
        asker: &TenantName,
        key: &ModelKey,
        bytes: u64,
        source: impl FnOnce() -> Result<ModelSpec, String> + Send + 'static,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        match self.loaded(key) {
            Some(model) => Ok(model),
            None => self.join_load(asker, key, bytes, Box::new(source)).await,
        }
    }

    /// Tries a model apart and loads it on a thread of uploads without registering it: for uploads, whose version
    /// does not exist yet. See [`InferencePlane::register`].
    pub async fn inspect(&self, spec: impl Into<ModelSpec>) -> Result<Arc<LoadedModel>, LoadError> {
        self.inspect_of(None, spec.into()).await
    }

    /// The same for an upload of `tenant`, which waits for its turn among those of others.
    pub async fn inspect_for(
        &self,
        tenant: &TenantName,
        spec: impl Into<ModelSpec>,
    ) -> Result<Arc<LoadedModel>, LoadError> {
        self.inspect_of(Some(tenant.clone()), spec.into()).await
    }

    async fn inspect_of(&self, asker: Option<TenantName>, spec: ModelSpec) -> Loaded {
        let (reply, outcome) = oneshot::channel();
        let bytes = spec.bytes.len() as u64;
        let (loader, source) = (self.loader.clone(), Box::new(|| Ok(spec)));
        let load = Load { place: None, asker, bytes, source, loader, stats: Arc::default(), reply };
        self.inspectors.push(load).map_err(|_| LoadError::Saturated)?;
        outcome.await.unwrap_or(Err(LoadError::Panicked))
    }

    /// Makes an inspected model the one of `key`, so that its first use need not load it again.
    pub fn register(&self, key: ModelKey, model: Arc<LoadedModel>) -> Result<(), LoadError> {
        model.belongs_to(&key.tenant);
        self.stats.insert(key.clone(), model.stats().clone());
        let forgotten = self.registry().add(key, model)?;
        self.registry().free(forgotten);
        Ok(())
    }

    /// Whether an inspected model may be pinned and finds room beside the pinned ones, when it takes the place of those
    /// of its own name.
    pub fn may_pin(
        &self,
        model: &LoadedModel,
        tenant: &TenantName,
        name: &ModelName,
    ) -> Result<(), LoadError> {
        let own = |key: &ModelKey| key.tenant == *tenant && key.model == *name;
        self.registry().fits_pins_of(tenant, model, own)
    }

    /// The model of this key if it is in memory.
    pub fn loaded(&self, key: &ModelKey) -> Option<Arc<LoadedModel>> {
        self.registry().get(key)
    }

    /// The same for who looks without using it: it does not count as a use.
    pub fn peek(&self, key: &ModelKey) -> Option<Arc<LoadedModel>> {
        self.registry().peek(key)
    }

    /// Whether the model is on its way into memory.
    pub fn is_loading(&self, key: &ModelKey) -> bool {
        self.registry().pending().contains_key(key)
    }

    /// Why the model could not be loaded the last time, if it could not.
    pub fn failure(&self, key: &ModelKey) -> Option<LoadError> {
        self.registry().failure(key)
    }

    /// Lets every version that is not in use make room for others, and pins those that are and ask for it.
    pub fn settle_pins(&self, is_used: impl Fn(&ModelKey) -> bool) {
        self.registry().settle_pins(is_used);
    }

    /// Forgets the cached answers of all models whose digest `keep` refuses.
    pub fn retain_responses(&self, keep: impl Fn(&Digest) -> bool) {
        self.loader.responses.retain(keep);
    }

    /// Forgets a model. Calls that hold it still end well; a load under way is not kept.
    pub fn unload(&self, key: &ModelKey) {
        self.registry().remove(key);
    }

    /// Forgets every model whose key `keep` refuses, and its statistics.
    pub fn retain(&self, keep: impl Fn(&ModelKey) -> bool) {
        self.registry().retain(&keep);
        self.stats.retain(|key, _| keep(key));
    }

    /// The statistics of a model version since this node started, whether it is in memory or not.
    pub fn stats(&self, key: &ModelKey) -> Arc<ModelStats> {
        if let Some(stats) = self.stats.get(key) {
            return stats.clone();
        }
        self.stats.entry(key.clone()).or_default().clone()
    }

    /// The same for who only reads: none where the version has not been in memory since this node started.
    pub fn peek_stats(&self, key: &ModelKey) -> Option<Arc<ModelStats>> {
        self.stats.get(key).map(|stats| stats.clone())
    }

    /// The statistics of every model version that has been in memory since this node started.
    pub fn all_stats(&self) -> Vec<(ModelKey, Arc<ModelStats>)> {
        let all = self.stats.iter();
        all.map(|entry| (entry.key().clone(), entry.value().clone())).collect()
    }

    /// How long a call of this tenant would wait for a compute thread if it came now; `None` where it would get no
    /// place.
    pub fn expected_wait(
        &self,
        tenant: &TenantName,
        share: sandpiper_domain::Share,
    ) -> Option<std::time::Duration> {
        self.loader.compute.expected_wait(tenant, share)
    }

    /// Calls that wait for a compute thread.
    pub fn queue_depth(&self) -> usize {
        self.loader.compute.depth()
    }

    /// Calls of tenants of this band that wait.
    pub fn queue_depth_of(&self, band: Band) -> usize {
        self.loader.compute.depth_of(band)
    }

    /// What each model in memory takes, in bytes. It counts as no use of the models.
    pub fn models_memory(&self) -> Vec<(ModelKey, u64)> {
        self.registry().sizes()
    }

    /// Models in memory.
    pub fn model_count(&self) -> usize {
        self.registry().len()
    }

    /// Bytes of memory that models take, those that are forgotten and still run among them.
    pub fn models_bytes(&self) -> u64 {
        self.registry().ledger().resident()
    }

    /// Bytes of cached answers.
    pub fn responses_bytes(&self) -> u64 {
        self.loader.responses.bytes()
    }

    fn registry(&self) -> &Arc<Registry> {
        &self.loader.registry
    }

    fn join_load(
        &self,
        asker: &TenantName,
        key: &ModelKey,
        bytes: u64,
        source: Source,
    ) -> Shared<BoxFuture<'static, Loaded>> {
        let mut pending = self.registry().pending();
        if let Some(model) = self.loaded(key) {
            return ready(Ok(model));
        }
        if let Some(load) = pending.get(key) {
            return load.outcome.clone();
        }
        let (reply, outcome) = oneshot::channel();
        let id = next_id();
        let place = Place { key: key.clone(), id, registry: Arc::downgrade(self.registry()) };
        let (loader, stats) = (self.loader.clone(), self.stats(key));
        let (place, asker) = (Some(place), Some(asker.clone()));
        let load = Load { place, asker, bytes, source, loader, stats, reply };
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

/// Starts the thread that drops models for those who have no time to. It ends with the registry.
fn start_freeing() -> io::Result<Sender<Forgotten>> {
    let (freed, comes): (_, Receiver<Forgotten>) = channel();
    thread::Builder::new()
        .name("sandpiper-free".to_owned())
        .spawn(move || comes.iter().for_each(drop))?;
    Ok(freed)
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
    fn owner(&self) -> Option<&TenantName> {
        self.asker.as_ref()
    }
}

impl Load {
    /// Gives back a large one while another is made.
    fn work(self) -> Option<Self> {
        if self.place.is_none() && self.reply.is_closed() {
            return None;
        }
        let registry = self.loader.registry.clone();
        let Ok(alone) = registry.alone_if_large(self.bytes) else { return Some(self) };
        let Load { place, asker, source, loader, stats, reply, .. } = self;
        // A panic of `source` is our own fault: the hook prints it, and the callers are told all the same.
        let prepare = || {
            let spec = source().map_err(LoadError::Bytes)?;
            if place.is_none() {
                loader.try_apart(&spec)?;
            }
            let owner = place.as_ref().map(|place| &place.key.tenant).or(asker.as_ref());
            let model = loader.prepare(spec, stats, owner, place.is_none(), alone)?;
            if let Some(place) = &place {
                model.belongs_to(&place.key.tenant);
                place.keep(&model)?;
            }
            Ok(model)
        };
        let outcome = catch_unwind(AssertUnwindSafe(prepare)).unwrap_or(Err(LoadError::Panicked));
        if let Some(place) = &place
            && let Some(registry) = place.registry.upgrade()
        {
            registry.note(&place.key, &outcome);
        }
        drop(place);
        let _ = reply.send(outcome);
        None
    }
}

impl Place {
    /// Registers the model unless it was unloaded while it was being loaded.
    fn keep(&self, model: &Arc<LoadedModel>) -> Result<(), LoadError> {
        let Some(registry) = self.registry.upgrade() else { return Ok(()) };
        let pending = registry.pending();
        if pending.get(&self.key).is_none_or(|load| load.id != self.id) {
            return Ok(());
        }
        let forgotten = registry.add(self.key.clone(), model.clone());
        // Callers wait for this lock, and need not wait for memory to be freed.
        drop(pending);
        forgotten.map(drop)
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
