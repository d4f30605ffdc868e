//! What the node keeps in memory of each function that has been asked for: linked code, gate, log and metrics.

use std::sync::Arc;

use dashmap::DashMap;
use sandpiper_control::{Catalog, FunctionVersion};
use sandpiper_domain::{FunctionName, TenantName};
use sandpiper_sandbox::{CodeError, FunctionCode, FunctionLog, Sandboxes};
use tokio::sync::OnceCell;

use crate::{admission::Gate, telemetry::FunctionMetrics};

/// One function version at work on this node.
pub(crate) struct FunctionRuntime {
    code: OnceCell<FunctionCode>,
    pub(crate) gate: Gate,
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) metrics: FunctionMetrics,
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
        let (digest, catalog) = (version.digest, catalog.clone());
        let component = move || match catalog.blob(&digest) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err("the component is missing from the store".to_owned()),
            Err(error) => Err(format!("{error:?}")),
        };
        self.code.get_or_try_init(|| sandboxes.load(digest, component)).await
    }
}

type Key = (TenantName, FunctionName, u32);

/// All of them.
#[derive(Default)]
pub(crate) struct FunctionRuntimes {
    versions: DashMap<Key, Arc<FunctionRuntime>>,
    logs: DashMap<(TenantName, FunctionName), Arc<FunctionLog>>,
}

impl FunctionRuntimes {
    pub(crate) fn get(
        &self,
        tenant: &TenantName,
        function: &FunctionName,
        version: &FunctionVersion,
    ) -> Arc<FunctionRuntime> {
        let key = (tenant.clone(), function.clone(), version.version);
        if let Some(runtime) = self.versions.get(&key) {
            return runtime.clone();
        }
        let log = self.log(tenant, function);
        let runtime = self.versions.entry(key).or_insert_with(|| {
            Arc::new(FunctionRuntime {
                code: OnceCell::new(),
                gate: Gate::new(version.manifest.scale.max, version.grant.tenant.queue),
                log,
                metrics: FunctionMetrics::new(tenant, function),
            })
        });
        runtime.clone()
    }

    /// The log that all versions of a function share.
    pub(crate) fn log(&self, tenant: &TenantName, function: &FunctionName) -> Arc<FunctionLog> {
        self.logs.entry((tenant.clone(), function.clone())).or_default().clone()
    }

    /// Keeps what the catalog still has, and drops the rest; running invocations hold what they need.
    pub(crate) fn sweep(&self, catalog: &Catalog) {
        let snapshot = catalog.snapshot();
        self.versions.retain(|(tenant, function, version), _| {
            snapshot.function(tenant, function).is_some_and(|f| f.versions.get(*version).is_some())
        });
        self.logs.retain(|(tenant, function), _| snapshot.function(tenant, function).is_some());
    }
}
