//! The wiring: every part of a node, made and joined here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use dashmap::DashMap;
use metrics_exporter_prometheus::PrometheusHandle;
use sandpiper_control::{Catalog, DataFolder, OperatorKey, Policies, Tenant};
use sandpiper_domain::{Digest, TenantName};
use sandpiper_inference::InferencePlane;
use sandpiper_sandbox::{CacheKey, Sandboxes};
use tokio::sync::Semaphore;

use crate::{
    admission::TenantAdmission,
    api::Deployments,
    config::{FileSettings, Settings},
    functions::FunctionRuntimes,
    models::CatalogModels,
};

/// How often what the catalog has forgotten is swept from memory and disk.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// One node.
pub(crate) struct App {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) inference: Arc<InferencePlane>,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) functions: FunctionRuntimes,
    pub(crate) deployments: Deployments,
    pub(crate) uploads: Semaphore,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) settings: FileSettings,
    draining: AtomicBool,
    tenants: DashMap<TenantName, Arc<TenantAdmission>>,
}

impl App {
    /// Opens the data folder and starts every plane. Needs a tokio runtime.
    pub(crate) fn open(settings: Settings, metrics: PrometheusHandle) -> anyhow::Result<Arc<Self>> {
        let policies = match &settings.policies {
            Some(folder) => Policies::load(folder)?,
            None => Policies::shipped()?,
        };
        let folder = DataFolder::open(&settings.data)
            .with_context(|| format!("the data folder {}", settings.data.display()))?;
        let operator_key = operator_key(&settings, &folder)?;
        let cache_key = CacheKey(folder.cache_key()?);
        let granted = policies.tiers().filter_map(|tier| policies.limits(tier).ok());
        let memory_mib_max = granted.map(|limits| limits.sandbox.memory_mib).max().unwrap_or(1);
        let catalog = Arc::new(Catalog::open(folder, policies, &operator_key)?);

        let file = settings.file;
        let mut inference = sandpiper_inference::Config::default();
        inference.queue_capacity = file.inference_queue;
        if file.inference_threads > 0 {
            inference.threads = file.inference_threads;
        }
        let inference = InferencePlane::start(inference).context("start the inference plane")?;
        let models =
            Arc::new(CatalogModels { catalog: catalog.clone(), inference: inference.clone() });
        let sandboxes = sandpiper_sandbox::Config {
            cache: settings.data.join("cache"),
            cache_key,
            sandboxes_max: file.sandboxes_max,
            memory_mib_max,
        };
        let sandboxes = Sandboxes::start(sandboxes, models)?;
        let app = Arc::new(App {
            catalog,
            inference,
            sandboxes,
            functions: FunctionRuntimes::default(),
            deployments: Deployments::default(),
            uploads: Semaphore::new(file.uploads_max),
            metrics,
            settings: file,
            draining: AtomicBool::new(false),
            tenants: DashMap::new(),
        });
        tokio::spawn(upkeep(Arc::downgrade(&app)));
        Ok(app)
    }

    /// The gate of a tenant.
    pub(crate) fn admission(&self, tenant: &Tenant) -> Arc<TenantAdmission> {
        if let Some(admission) = self.tenants.get(&tenant.name)
            && admission.is_for(&tenant.limits)
        {
            return admission.clone();
        }
        let admission = Arc::new(TenantAdmission::new(tenant.limits));
        self.tenants.insert(tenant.name.clone(), admission.clone());
        admission
    }

    /// Whether new work should go elsewhere.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Relaxed);
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
    pub(crate) fn sweep(&self) {
        self.functions.sweep(&self.catalog);
        let snapshot = self.catalog.snapshot().clone();
        self.tenants.retain(|tenant, _| snapshot.tenant(tenant).is_some());
        self.inference.retain(|key| {
            let model = snapshot.model(&key.tenant, &key.model);
            model.is_some_and(|model| model.versions.get(key.version).is_some())
        });
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

async fn upkeep(app: std::sync::Weak<App>) {
    const METRICS_INTERVAL: Duration = Duration::from_secs(5);
    let mut ticks = 0u64;
    loop {
        tokio::time::sleep(METRICS_INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        // Histograms keep every sample until they are folded into their buckets.
        app.metrics.run_upkeep();
        ticks += 1;
        if ticks.is_multiple_of(SWEEP_INTERVAL.as_secs() / METRICS_INTERVAL.as_secs()) {
            let _ = app.blocking(App::sweep).await;
        }
    }
}
