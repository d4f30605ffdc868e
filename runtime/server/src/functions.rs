//! What the node keeps in memory of each function that has been asked for: linked code, gate, log and metrics.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use dashmap::{DashMap, DashSet};
use sandpiper_control::{Catalog, FunctionVersion, Snapshot};
use sandpiper_domain::{Digest, FunctionName, TenantName};
use sandpiper_sandbox::{CodeError, FunctionCode, FunctionLog, Purpose, Sandboxes};
use tokio::sync::Mutex;

use crate::{
    admission::{Gate, Habits, Meter, TenantAdmission},
    fleet::{Events, Fleet},
    models::blob_of,
    scaling::Scaling,
    telemetry::{self, FunctionMetrics},
};

/// One function version at work on this node.
pub(crate) struct FunctionRuntime {
    tenant_name: TenantName,
    function: FunctionName,
    version: u32,
    digest: Digest,
    code: CodeSlot,
    pub(crate) fleet: Fleet,
    pub(crate) scaling: Arc<Scaling>,
    pub(crate) tenant: Arc<TenantAdmission>,
    pub(crate) gate: Gate,
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) metrics: Arc<FunctionMetrics>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) habits: Habits,
}

/// Linked code, while it is in memory.
#[derive(Default)]
struct CodeSlot {
    code: ArcSwapOption<FunctionCode>,
    /// Held by the one who loads it.
    loading: Mutex<()>,
}

impl FunctionRuntime {
    /// The linked code, made ready where it is not in memory. Those who come meanwhile wait for the same work.
    pub(crate) async fn code(
        self: &Arc<Self>,
        version: &FunctionVersion,
        sandboxes: &Arc<Sandboxes>,
        catalog: &Arc<Catalog>,
    ) -> Result<Arc<FunctionCode>, CodeError> {
        if let Some(code) = self.loaded() {
            return Ok(code);
        }
        let _loading = self.code.loading.lock().await;
        if let Some(code) = self.loaded() {
            return Ok(code);
        }
        let digest = version.digest;
        let code = match self.scaling.codes.find(&digest) {
            Some(code) => code,
            None => {
                let component = blob_of(catalog.clone(), digest);
                let code = sandboxes.load(Purpose::Request, digest, component).await?;
                telemetry::code_loaded(code.was_cached());
                self.scaling.codes.share(digest, code)
            }
        };
        self.code.code.store(Some(code.clone()));
        self.watch();
        Ok(code)
    }

    /// The linked code, if it is in memory.
    pub(crate) fn loaded(&self) -> Option<Arc<FunctionCode>> {
        self.code.code.load_full()
    }

    /// Keeps code that a deployment has just linked, so that the first request need not load it again.
    pub(crate) fn seed(self: &Arc<Self>, code: FunctionCode) {
        self.code.code.store(Some(self.scaling.codes.share(self.digest, code)));
        self.watch();
    }

    /// Lets go of the code; requests that run hold it as long as they need it.
    pub(crate) fn drop_code(&self) -> Option<(Digest, Arc<FunctionCode>)> {
        self.code.code.swap(None).map(|code| (self.digest, code))
    }

    pub(crate) fn has_code(&self) -> bool {
        self.code.code.load().is_some()
    }

    /// Has the scale loop look at it.
    pub(crate) fn watch(self: &Arc<Self>) {
        if self.fleet.watch() {
            self.scaling.add(self.clone());
        }
    }

    pub(crate) fn tenant_name(&self) -> &TenantName {
        &self.tenant_name
    }

    /// The version it runs, unless the catalog has it no more.
    pub(crate) fn version_in<'a>(
        &self,
        snapshot: &'a Snapshot,
    ) -> Option<&'a Arc<FunctionVersion>> {
        let function = snapshot.function(&self.tenant_name, &self.function)?;
        function.versions.get(self.version).filter(|version| version.digest == self.digest)
    }

    /// Whether an alias points at it.
    pub(crate) fn is_live(&self, snapshot: &Snapshot) -> bool {
        let function = snapshot.function(&self.tenant_name, &self.function);
        function.is_some_and(|function| function.versions.is_aliased(self.version))
    }
}

/// Functions whose metrics carry their names; the rest share one name, or a tenant could grow the metrics without
/// bound.
const NAMED_FUNCTIONS_MAX: usize = 5_000;
/// The same for one tenant, so that none takes the names of all others.
const NAMED_FUNCTIONS_OF_TENANT_MAX: usize = 250;

type Name = (TenantName, FunctionName);

/// What all versions of a function share.
type Shared = (Arc<FunctionLog>, Arc<FunctionMetrics>, Arc<Events>);

/// All of them.
pub(crate) struct FunctionRuntimes {
    scaling: Arc<Scaling>,
    versions: DashMap<(TenantName, FunctionName, u32), Arc<FunctionRuntime>>,
    shared: DashMap<Name, Shared>,
    /// Names that metrics have shown. They stay when a function goes: the exporter forgets none either.
    named: DashSet<Name>,
}

impl FunctionRuntimes {
    pub(crate) fn new(scaling: Arc<Scaling>) -> Self {
        FunctionRuntimes {
            scaling,
            versions: DashMap::new(),
            shared: DashMap::new(),
            named: DashSet::new(),
        }
    }

    pub(crate) fn get(
        &self,
        tenant: &TenantName,
        function: &FunctionName,
        version: &FunctionVersion,
        admission: impl FnOnce() -> Arc<TenantAdmission>,
    ) -> Arc<FunctionRuntime> {
        let key = (tenant.clone(), function.clone(), version.version);
        // A function that was deleted and made anew may have the same number.
        let is_same = |runtime: &FunctionRuntime| runtime.digest == version.digest;
        if let Some(runtime) = self.versions.get(&key).filter(|runtime| is_same(runtime)) {
            return runtime.clone();
        }
        let (log, metrics, events) = self.shared(tenant, function);
        let admission = admission();
        let gate = admission.function_gate(version.manifest.scale.max);
        let meter = Arc::new(Meter::new(&admission.account, function));
        let runtime = Arc::new(FunctionRuntime {
            tenant_name: tenant.clone(),
            function: function.clone(),
            version: version.version,
            digest: version.digest,
            code: CodeSlot::default(),
            fleet: Fleet::new(version.version, version.manifest.scale, events, meter.clone()),
            scaling: self.scaling.clone(),
            tenant: admission,
            gate,
            log,
            metrics,
            meter,
            habits: Habits::default(),
        });
        let mut entry = self.versions.entry(key).or_insert_with(|| runtime.clone());
        if !is_same(&entry) {
            entry.fleet.retire(true);
            *entry = runtime;
        }
        entry.clone()
    }

    /// The version's runtime, if it has been needed since the start.
    pub(crate) fn find(
        &self,
        tenant: &TenantName,
        function: &FunctionName,
        version: u32,
    ) -> Option<Arc<FunctionRuntime>> {
        let key = (tenant.clone(), function.clone(), version);
        self.versions.get(&key).map(|runtime| runtime.clone())
    }

    /// What followers of a function hear, of all its versions.
    pub(crate) fn events(&self, tenant: &TenantName, function: &FunctionName) -> Arc<Events> {
        self.shared(tenant, function).2
    }

    /// The log that all versions of a function share.
    pub(crate) fn log(&self, tenant: &TenantName, function: &FunctionName) -> Arc<FunctionLog> {
        self.shared(tenant, function).0
    }

    fn shared(&self, tenant: &TenantName, function: &FunctionName) -> Shared {
        let name = (tenant.clone(), function.clone());
        let shared = self.shared.entry(name.clone()).or_insert_with(|| {
            let is_named = self.named.contains(&name)
                || (self.has_room_to_name(tenant) && self.named.insert(name));
            let metrics = match is_named {
                true => FunctionMetrics::new(tenant.to_string(), function.to_string()),
                false => FunctionMetrics::new("other", "other"),
            };
            (Arc::default(), Arc::new(metrics), Arc::default())
        });
        shared.clone()
    }

    fn has_room_to_name(&self, tenant: &TenantName) -> bool {
        let of_tenant = || self.named.iter().filter(|name| name.0 == *tenant).count();
        self.named.len() < NAMED_FUNCTIONS_MAX && of_tenant() < NAMED_FUNCTIONS_OF_TENANT_MAX
    }

    /// Keeps what the catalog still has, and drops the rest; running invocations hold what they need. The catalog is
    /// asked anew for each entry: what was deployed since the sweep began is in it, and must not lose its log.
    pub(crate) fn sweep(&self, catalog: &Catalog) {
        self.versions.retain(|(tenant, function, version), _| {
            let snapshot = catalog.snapshot();
            snapshot.function(tenant, function).is_some_and(|f| f.versions.get(*version).is_some())
        });
        self.shared.retain(|(tenant, function), _| {
            catalog.snapshot().function(tenant, function).is_some()
        });
    }
}
