//! The wiring: every part of a node, made and joined here.

use std::{
    cell::OnceCell,
    collections::HashSet,
    num::NonZeroUsize,
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::Context;
use dashmap::DashMap;
use metrics_exporter_prometheus::PrometheusHandle;
use sandpiper_control::{
    Catalog, DataFolder, Ledgers, OperatorKey, Owner, Policies, Snapshot, Tenant,
};
use sandpiper_domain::{Digest, ModelKey, TenantName};
use sandpiper_inference::{InferencePlane, MemoryTerms};
use sandpiper_sandbox::{CacheKey, Sandboxes};
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    admission::{Account, Crowd, Pressure, TenantAdmission},
    api::Deployments,
    budget::ByteBudget,
    config::{FileSettings, Settings},
    edge::Phase,
    functions::FunctionRuntimes,
    jobs::{self, Jobs},
    model_metrics::ModelMetrics,
    models::{self, CatalogModels},
    rollouts::{self, Rollouts},
    scaling::Scaling,
};

/// How often what the catalog has forgotten is swept from memory and disk.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// Between sweeps at least, however many deletions ask for one.
const SWEEP_PAUSE: Duration = Duration::from_millis(500);
const USAGE_INTERVAL: Duration = Duration::from_secs(1);
const METRICS_INTERVAL: Duration = Duration::from_secs(5);

/// One node.
pub(crate) struct App {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) inference: Arc<InferencePlane>,
    pub(crate) models: Arc<CatalogModels>,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) functions: FunctionRuntimes,
    pub(crate) rollouts: Rollouts,
    pub(crate) jobs: Jobs,
    pub(crate) scaling: Arc<Scaling>,
    pub(crate) deployments: Deployments,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) model_metrics: ModelMetrics,
    pub(crate) settings: FileSettings,
    pub(crate) usage: Arc<Ledgers>,
    /// The bytes of requests and answers of the inference protocol.
    bytes: Arc<ByteBudget>,
    /// The threads that read and write long ones.
    pub(crate) parsers: Arc<Semaphore>,
    parsers_max: usize,
    /// What runs on the whole node.
    pressure: Arc<Pressure>,
    phase: watch::Sender<Phase>,
    sweep_wanted: Arc<Notify>,
    tenants: DashMap<TenantName, Arc<TenantAdmission>>,
}

impl App {
    /// Opens the data folder and starts every plane. Needs a tokio runtime.
    pub(crate) fn open(settings: Settings, metrics: PrometheusHandle) -> anyhow::Result<Arc<Self>> {
        let policies = settings.policies.as_deref();
        let policies = policies.map_or_else(Policies::shipped, Policies::load)?;
        let folder = DataFolder::open(&settings.data)
            .with_context(|| format!("the data folder {}", settings.data.display()))?;
        let operator_key = operator_key(&settings, &folder)?;
        let jobs = Jobs::open(&folder, &settings.file).context("open the queue of jobs")?;
        let cache_key = CacheKey(folder.cache_key()?);
        let usage = Ledgers::open(&folder.database("usage.db")?, OffsetDateTime::now_utc())?;
        let granted = policies.tiers().filter_map(|tier| policies.limits(tier).ok());
        let memory_mib_max = granted.map(|limits| limits.sandbox.memory_mib).max().unwrap_or(1);
        let catalog = Arc::new(Catalog::open(folder, policies, &operator_key)?);

        let file = settings.file;
        let mut inference = sandpiper_inference::Config {
            queue_capacity: file.inference_queue,
            models_bytes_max: file.models_mib << 20,
            responses_bytes_max: file.response_cache_mib << 20,
            trial: Some(file.trial()),
            ..Default::default()
        };
        if file.inference_threads > 0 {
            inference.threads = file.inference_threads;
        }
        let (terms, pins) = (memory_terms(catalog.clone()), pins(catalog.clone()));
        let inference = InferencePlane::start_with(inference, Box::new(terms), Box::new(pins));
        let inference = inference.context("start the inference plane")?;
        let models = Arc::new(CatalogModels::new(catalog.clone(), inference.clone()));
        let sandboxes = sandpiper_sandbox::Config {
            cache: settings.data.join("cache"),
            cache_key,
            sandboxes_max: file.sandboxes_max,
            memory_mib_max,
        };
        let sandboxes = Sandboxes::start(sandboxes, models.clone())?;
        let scaling = Scaling::new(&file, sandboxes.clone());
        let parsers_max = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let app = Arc::new(App {
            catalog,
            inference,
            models,
            sandboxes,
            jobs,
            functions: FunctionRuntimes::new(scaling.clone()),
            scaling,
            rollouts: Rollouts::default(),
            deployments: Deployments::default(),
            uploads: Arc::new(Semaphore::new(file.uploads_max)),
            metrics,
            model_metrics: ModelMetrics::default(),
            bytes: ByteBudget::new(file.protocol_mib << 20),
            parsers: Arc::new(Semaphore::new(parsers_max)),
            parsers_max,
            settings: file,
            usage: Arc::new(usage),
            pressure: Arc::new(Pressure::new(parsers_max)),
            phase: watch::Sender::new(Phase::Serving),
            sweep_wanted: Arc::default(),
            tenants: DashMap::new(),
        });
        tokio::spawn(models::load_pinned(Arc::downgrade(&app)));
        tokio::spawn(rollouts::watch(Arc::downgrade(&app)));
        jobs::start(&app, settings.follows);
        Scaling::spawn(&app);
        tokio::spawn(fold_metrics(Arc::downgrade(&app)));
        tokio::spawn(flush_usage(Arc::downgrade(&app)));
        tokio::spawn(sweep(Arc::downgrade(&app), app.sweep_wanted.clone()));
        Ok(app)
    }

    /// The gate of a tenant.
    pub(crate) fn admission(&self, tenant: &Tenant) -> Arc<TenantAdmission> {
        let owner = Owner::new(tenant.name.clone(), tenant.created_at);
        let make = |bytes, ready| {
            let ledger = self.usage.of(&owner, OffsetDateTime::now_utc());
            let account = Account { owner: owner.clone(), ledger };
            let parsers = self.parsers_max.div_ceil(2);
            let pressure = self.pressure.clone();
            Arc::new(TenantAdmission::new(
                tenant.limits,
                (bytes, ready),
                parsers,
                pressure,
                account,
            ))
        };
        let entry = self.tenants.entry(tenant.name.clone());
        let mut admission = entry.or_insert_with(|| make(self.bytes.tenant(), Arc::default()));
        if !admission.is_for(&owner, &tenant.limits) {
            *admission = make(admission.bytes.clone(), admission.ready.clone());
        }
        admission.clone()
    }

    /// How many invocations run, wait for a model and wait for a place, over all tenants.
    pub(crate) fn crowd(&self) -> Crowd {
        self.tenants.iter().fold(Crowd::default(), |crowd, tenant| crowd + tenant.crowd())
    }

    /// Has what the catalog no longer needs swept soon. Sweeps that are asked for together are one.
    pub(crate) fn sweep_soon(&self) {
        self.sweep_wanted.notify_one();
    }

    /// Whether new work may come here.
    pub(crate) fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    /// Whether what has no end of its own is to end.
    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() == Phase::Draining
    }

    /// Resolves when the node is in this phase or beyond it.
    pub(crate) fn reaches(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        let mut phases = self.phase.subscribe();
        async move {
            // The sender goes with the node, and then all is over too.
            let _ = phases.wait_for(|now| *now >= phase).await;
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Lets go of the pins of versions that no alias points at any more, nor any function means, and pins those that
    /// one points at again.
    pub(crate) fn settle_pins(&self) {
        // Looked at once the pins are held, so that no older state comes after a newer one.
        let now = OnceCell::new();
        let look = || {
            let snapshot = self.catalog.snapshot().clone();
            let placed = snapshot.placed_models();
            (snapshot, placed)
        };
        self.inference.settle_pins(|key| {
            let (snapshot, placed) = now.get_or_init(look);
            placed.contains(key) || is_aliased(snapshot, key)
        });
    }

    /// Work of the catalog, which waits for the disk, on a thread that may wait.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let app = self.clone();
        Ok(tokio::task::spawn_blocking(move || work(&app)).await?)
    }

    /// Drops from memory and disk what the catalog no longer has. Blocks.
    fn sweep(&self) {
        if self.catalog.is_closed() {
            // What this process does not know of may be new.
            return;
        }
        self.functions.sweep(&self.catalog);
        self.scaling.codes.sweep();
        // Asked anew for each entry: a tenant made since the sweep began must not lose its gate to a second one.
        let has_tenant = |name: &TenantName| self.catalog.snapshot().tenant(name).is_some();
        self.tenants.retain(|tenant, _| has_tenant(tenant));
        self.deployments.retain(has_tenant);
        self.usage.retain(|owner| {
            let snapshot = self.catalog.snapshot();
            snapshot
                .tenant(&owner.tenant)
                .is_some_and(|tenant| Owner::new(tenant.name.clone(), tenant.created_at) == *owner)
        });
        self.inference.retain(|key| {
            let snapshot = self.catalog.snapshot();
            let model = snapshot.model(&key.tenant, &key.model);
            model.is_some_and(|model| model.versions.get(key.version).is_some())
        });
        self.models.sweep();
        self.settle_pins();
        let snapshot = self.catalog.snapshot().clone();
        let models = snapshot.tenants().flat_map(|tenant| tenant.models.values());
        let digests: HashSet<Digest> = models
            .flat_map(|model| model.versions.iter().map(|(_, version)| version.digest))
            .collect();
        self.inference.retain_responses(|digest| digests.contains(digest));
        let functions = snapshot.tenants().flat_map(|tenant| tenant.functions.values());
        let components: Vec<Digest> = functions
            .flat_map(|function| function.versions.iter().map(|(_, version)| version.digest))
            .collect();
        self.sandboxes.retain_cached(&components);
        match self.catalog.collect_garbage() {
            Ok(0) => {}
            Ok(blobs) => tracing::info!(blobs, "blobs that nothing needs any more were deleted"),
            Err(error) => tracing::error!(?error, "the sweep of blobs failed"),
        }
    }
}

/// Whether an alias points at a version, or a function means it.
fn pins(catalog: Arc<Catalog>) -> impl Fn(&ModelKey) -> bool + Send + Sync {
    move |key| {
        let snapshot = catalog.snapshot();
        is_aliased(&snapshot, key) || snapshot.placed_models().contains(key)
    }
}

fn is_aliased(snapshot: &Snapshot, key: &ModelKey) -> bool {
    let model = snapshot.model(&key.tenant, &key.model);
    model.is_some_and(|model| model.versions.is_aliased(key.version))
}

/// What the catalog says that a tenant is due of the memory for models. One that is gone is due nothing.
fn memory_terms(catalog: Arc<Catalog>) -> impl Fn(&TenantName) -> MemoryTerms + Send + Sync {
    move |tenant| {
        let snapshot = catalog.snapshot();
        let limits = snapshot.tenant(tenant).map(|tenant| tenant.limits);
        MemoryTerms {
            weight: limits.map_or(1, |limits| limits.weight),
            pinned_bytes_max: limits.map_or(0, |limits| limits.pinned_mib << 20),
        }
    }
}

fn operator_key(settings: &Settings, folder: &DataFolder) -> anyhow::Result<OperatorKey> {
    match &settings.operator_key {
        Some(text) => text.parse().context("SANDPIPER_OPERATOR_KEY"),
        None => {
            let key = folder.operator_key()?;
            let path = folder.path().join("operator.key");
            tracing::info!(file = %path.display(), "the operator key is in this file");
            Ok(key)
        }
    }
}

/// Histograms keep every sample until they are folded into their buckets.
async fn fold_metrics(app: Weak<App>) {
    loop {
        tokio::time::sleep(METRICS_INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        app.metrics.run_upkeep();
    }
}

/// Usage goes to the disk each second; what a crash takes is not billed.
async fn flush_usage(app: Weak<App>) {
    loop {
        tokio::time::sleep(USAGE_INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        let flushed = app.blocking(|app| app.usage.flush(OffsetDateTime::now_utc())).await;
        if let Err(error) = flushed.and_then(|flushed| Ok(flushed?)) {
            tracing::error!(?error, "usage could not be written; it is kept in memory");
        }
    }
}

async fn sweep(app: Weak<App>, wanted: Arc<Notify>) {
    loop {
        let _ = tokio::time::timeout(SWEEP_INTERVAL, wanted.notified()).await;
        tokio::time::sleep(SWEEP_PAUSE).await;
        let Some(app) = app.upgrade() else { return };
        let _ = app.blocking(App::sweep).await;
    }
}
