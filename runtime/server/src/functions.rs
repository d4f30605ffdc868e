//! What the node keeps in memory of each function that has been asked for: linked code, gate, log and metrics.

use std::sync::Arc;

use dashmap::{DashMap, DashSet};
use sandpiper_control::{Catalog, FunctionVersion};
use sandpiper_domain::{FunctionName, TenantName};
use sandpiper_sandbox::{CodeError, FunctionCode, FunctionLog, Purpose, Sandboxes};
use tokio::sync::OnceCell;

use crate::{
    admission::{Gate, TenantAdmission},
    models::blob_of,
    telemetry::FunctionMetrics,
    window::VersionWindow,
};

/// One function version at work on this node.
pub(crate) struct FunctionRuntime {
    code: OnceCell<FunctionCode>,
    pub(crate) tenant: Arc<TenantAdmission>,
    pub(crate) gate: Gate,
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) metrics: Arc<FunctionMetrics>,
    pub(crate) window: VersionWindow,
}

impl FunctionRuntime {
    /// The linked code, made ready at the first call. Those who come meanwhile wait for the same work.
    pub(crate) async fn code(
        &self,
        version: &FunctionVersion,
        sandboxes: &Arc<Sandboxes>,
        catalog: &Arc<Catalog>,
    ) -> Result<&FunctionCode, CodeError> {
        if let Some(code) = self.code.get() {
            return Ok(code);
        }
        let digest = version.digest;
        let component = blob_of(catalog.clone(), digest);
        self.code.get_or_try_init(|| sandboxes.load(Purpose::Request, digest, component)).await
    }

    /// Keeps code that a deployment has just linked, so that the first request need not load it again.
    pub(crate) fn seed(&self, code: FunctionCode) {
        let _ = self.code.set(code);
    }
}

/// Functions whose metrics carry their names; the rest share one name, or a tenant could grow the metrics without
/// bound.
const NAMED_FUNCTIONS_MAX: usize = 5_000;
/// The same for one tenant, so that none takes the names of all others.
const NAMED_FUNCTIONS_OF_TENANT_MAX: usize = 250;

type Name = (TenantName, FunctionName);

/// All of them.
#[derive(Default)]
pub(crate) struct FunctionRuntimes {
    versions: DashMap<(TenantName, FunctionName, u32), Arc<FunctionRuntime>>,
    /// What all versions of a function share.
    shared: DashMap<Name, (Arc<FunctionLog>, Arc<FunctionMetrics>)>,
    /// Names that metrics have shown. They stay when a function goes: the exporter forgets none either.
    named: DashSet<Name>,
}

impl FunctionRuntimes {
    pub(crate) fn get(
        &self,
        tenant: &TenantName,
        function: &FunctionName,
        version: &FunctionVersion,
        admission: impl FnOnce() -> Arc<TenantAdmission>,
    ) -> Arc<FunctionRuntime> {
        let key = (tenant.clone(), function.clone(), version.version);
        if let Some(runtime) = self.versions.get(&key) {
            return runtime.clone();
        }
        let (log, metrics) = self.shared(tenant, function);
        let tenant = admission();
        let gate = tenant.function_gate(version.manifest.scale.max);
        let runtime = self.versions.entry(key).or_insert_with(|| {
            let (code, window) = (OnceCell::new(), VersionWindow::default());
            Arc::new(FunctionRuntime { code, tenant, gate, log, metrics, window })
        });
        runtime.clone()
    }

    /// The log that all versions of a function share.
    pub(crate) fn log(&self, tenant: &TenantName, function: &FunctionName) -> Arc<FunctionLog> {
        self.shared(tenant, function).0
    }

    fn shared(
        &self,
        tenant: &TenantName,
        function: &FunctionName,
    ) -> (Arc<FunctionLog>, Arc<FunctionMetrics>) {
        let name = (tenant.clone(), function.clone());
        let shared = self.shared.entry(name.clone()).or_insert_with(|| {
            let is_named = self.named.contains(&name)
                || (self.has_room_to_name(tenant) && self.named.insert(name));
            let metrics = match is_named {
                true => FunctionMetrics::new(tenant.to_string(), function.to_string()),
                false => FunctionMetrics::new("other", "other"),
            };
            (Arc::default(), Arc::new(metrics))
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
