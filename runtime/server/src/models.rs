//! The port through which sandboxes find models: names come from the catalog, loaded graphs from the inference plane.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use dashmap::DashMap;
use sandpiper_control::{Catalog, ModelVersion};
use sandpiper_domain::{
    BoxFuture, Digest, InferenceError, InferenceOutput, InferenceRequest, Model, ModelKey,
    ModelName, ModelOptions, ModelRef, ModelScope, ModelSignature, ModelSource, TenantName,
};
use sandpiper_inference::{InferencePlane, LoadError, LoadedModel, ModelSpec};

use crate::{app::App, samples};

const NODE_CANNOT_READ: &str =
    "the node could not read the model from its store; the operator finds the cause in the log";

/// Joins the catalog and the inference plane.
pub(crate) struct CatalogModels {
    catalog: Arc<Catalog>,
    inference: Arc<InferencePlane>,
    /// Models that their owners have taken out of service until they load them again or deploy a new version. The mark
    /// does not outlive the process. Each has a number of its own.
    withdrawn: DashMap<(TenantName, ModelName), u64>,
    withdrawals: AtomicU64,
}

/// A model version that a caller may use.
pub(crate) struct ResolvedModel {
    pub(crate) key: ModelKey,
    pub(crate) version: Arc<ModelVersion>,
    /// Who uses it, and waits for its load in turn with others. Not its owner, where it was granted.
    pub(crate) asker: TenantName,
}

impl CatalogModels {
    pub(crate) fn new(catalog: Arc<Catalog>, inference: Arc<InferencePlane>) -> Self {
        CatalogModels {
            catalog,
            inference,
            withdrawn: DashMap::new(),
            withdrawals: AtomicU64::new(0),
        }
    }

    /// The version that is meant; nothing is loaded. Missing, foreign and not granted are one `None`.
    pub(crate) fn resolve(&self, scope: &ModelScope, name: ModelRef) -> Option<ResolvedModel> {
        let (key, version) = self.catalog.snapshot().find_model(scope, name, rand::random())?;
        Some(ResolvedModel { key, version, asker: scope.tenant.clone() })
    }

    /// The model in memory, loaded if it is not there yet. Those who come meanwhile share the load. A model that its
    /// owner unloads meanwhile does not stay.
    pub(crate) async fn open_resolved(
        &self,
        found: ResolvedModel,
    ) -> Result<Arc<LoadedModel>, InferenceError> {
        self.check_in_service(&found.key)?;
        let model = self.load(&found).await?;
        if let Err(withdrawn) = self.check_in_service(&found.key) {
            self.inference.unload(&found.key);
            return Err(withdrawn);
        }
        Ok(model)
    }

    /// Brings a version into memory whether its owner has withdrawn it or not.
    async fn load(&self, found: &ResolvedModel) -> Result<Arc<LoadedModel>, InferenceError> {
        let ResolvedModel { key, version, asker } = found;
        if let Some(model) = self.inference.loaded(key) {
            return Ok(model);
        }
        let source = source_of(self.catalog.clone(), version.clone());
        self.inference.load_for(asker, key, version.size, source).await.map_err(|error| {
            // A version that once was loaded and now is not is for the operator to see.
            tracing::warn!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model could not be loaded");
            refusal(&error)
        })
    }

    /// Brings a version into memory anew if it is in quarantine, which ends that, and otherwise if it is not there.
    pub(crate) async fn load_afresh(&self, found: &ResolvedModel) -> Result<(), InferenceError> {
        let key = &found.key;
        if self.inference.peek(key).is_some_and(|model| model.quarantine().is_some()) {
            self.inference.unload(key);
        }
        self.load(found).await.map(drop)
    }

    /// Takes all versions of a model out of service, and out of memory.
    pub(crate) fn withdraw(&self, tenant: &TenantName, model: &ModelName) {
        let number = self.withdrawals.fetch_add(1, Relaxed);
        self.withdrawn.insert((tenant.clone(), model.clone()), number);
        self.forget(tenant, model);
    }

    fn forget(&self, tenant: &TenantName, model: &ModelName) {
        let snapshot = self.catalog.snapshot();
        let versions = snapshot.model(tenant, model).into_iter().flat_map(|m| m.versions.iter());
        for (version, _) in versions {
            let (tenant, model) = (tenant.clone(), model.clone());
            self.inference.unload(&ModelKey { tenant, model, version });
        }
    }

    /// Brings a model back into service.
    pub(crate) fn restore(&self, tenant: &TenantName, model: &ModelName) {
        self.withdrawn.remove(&(tenant.clone(), model.clone()));
    }

    /// Which of its withdrawals keeps the model out of service, if one does.
    pub(crate) fn withdrawal(&self, tenant: &TenantName, model: &ModelName) -> Option<u64> {
        self.withdrawn.get(&(tenant.clone(), model.clone())).map(|number| *number)
    }

    /// Brings a model back into service, unless its owner has withdrawn it since it was seen so. Says whether it is in
    /// service.
    pub(crate) fn restore_from(
        &self,
        tenant: &TenantName,
        model: &ModelName,
        seen: Option<u64>,
    ) -> bool {
        let key = (tenant.clone(), model.clone());
        self.withdrawn.remove_if(&key, |_, number| Some(*number) == seen);
        let is_withdrawn = self.withdrawn.contains_key(&key);
        if is_withdrawn {
            // What was loaded since then.
            self.forget(tenant, model);
        }
        !is_withdrawn
    }

    /// Whether the owner has taken the model out of service.
    pub(crate) fn is_withdrawn(&self, tenant: &TenantName, model: &ModelName) -> bool {
        self.withdrawn.contains_key(&(tenant.clone(), model.clone()))
    }

    /// Why a call of this version would not be answered, if it would not: what its owner has done, what it has done,
    /// and that it could not be loaded the last time. The next call tries that again all the same.
    pub(crate) fn check_ready(&self, key: &ModelKey) -> Result<(), InferenceError> {
        self.check_in_service(key)?;
        match self.inference.peek(key) {
            Some(model) => match model.quarantine() {
                Some(reason) => Err(InferenceError::Unavailable(format!(
                    "the model is not ready: it is in quarantine, since {reason}"
                ))),
                None => Ok(()),
            },
            None => match self.inference.failure(key) {
                Some(failure) => Err(refusal(&failure)),
                None => Ok(()),
            },
        }
    }

    /// Why this version could not be loaded the last time, in words for its owner.
    pub(crate) fn load_failure(&self, key: &ModelKey) -> Option<String> {
        if self.inference.peek(key).is_some() {
            return None;
        }
        let failure = self.inference.failure(key)?;
        Some(match failure {
            LoadError::Bytes(_) => NODE_CANNOT_READ.to_owned(),
            failure => format!("the model could not be loaded: {failure}"),
        })
    }

    /// Whether the owner lets the model take calls. A model in quarantine refuses them itself.
    pub(crate) fn check_in_service(&self, key: &ModelKey) -> Result<(), InferenceError> {
        if self.is_withdrawn(&key.tenant, &key.model) {
            let text = "the model is not ready: its owner has unloaded it";
            return Err(InferenceError::Unavailable(text.to_owned()));
        }
        Ok(())
    }

    /// Forgets the marks of models that are gone.
    pub(crate) fn sweep(&self) {
        self.withdrawn
            .retain(|(tenant, model), _| self.catalog.snapshot().model(tenant, model).is_some());
    }
}

impl ModelSource for CatalogModels {
    fn open<'a>(
        &'a self,
        scope: &'a ModelScope,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Model>, InferenceError>> {
        Box::pin(async move {
            let (resolved, with_others) = {
                let snapshot = self.catalog.snapshot();
                let (key, version) = snapshot.resolve_model(scope, name, rand::random())?;
                let with_others = snapshot.batches_with_others(&key, &scope.tenant);
                (ResolvedModel { key, version, asker: scope.tenant.clone() }, with_others)
            };
            let model = self.open_resolved(resolved).await?;
            Ok(match with_others {
                true => model as Arc<dyn Model>,
                false => Arc::new(Apart(model)),
            })
        })
    }
}

/// A model whose calls share no batch with those of other tenants.
struct Apart(Arc<LoadedModel>);

impl Model for Apart {
    fn signature(&self) -> &ModelSignature {
        self.0.signature()
    }

    fn infer(
        &self,
        request: InferenceRequest,
    ) -> BoxFuture<'static, Result<InferenceOutput, InferenceError>> {
        self.0.infer(InferenceRequest { batch_with_others: false, ..request })
    }
}

/// Reads a blob when somebody asks for it.
pub(crate) fn blob_of(
    catalog: Arc<Catalog>,
    digest: Digest,
) -> impl FnOnce() -> Result<Bytes, String> + Send + 'static {
    move || match catalog.blob(&digest) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("the blob {digest} is missing from the store")),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// Reads a model version from the store when somebody asks for it.
pub(crate) fn source_of(
    catalog: Arc<Catalog>,
    version: Arc<ModelVersion>,
) -> impl FnOnce() -> Result<ModelSpec, String> + Send + 'static {
    move || {
        let blob = |digest: Digest| blob_of(catalog.clone(), digest)();
        let options = ModelOptions::from_texts(&version.options).map_err(|e| e.to_string())?;
        let samples = match version.samples {
            None => Vec::new(),
            // They were read once before they were stored.
            Some(digest) => samples::parse(&blob(digest)?)?,
        };
        let (bytes, digest) = (blob(version.digest)?, version.digest);
        // What an earlier release wrote and this one cannot read is measured anew.
        let measurement = serde_json::from_value(version.measurement.clone()).ok();
        Ok(ModelSpec { bytes, digest, options, samples, measurement })
    }
}

/// Brings the pinned models into memory after a start. Nobody waits for it: the node is ready before, and a request
/// that comes first loads its model itself.
pub(crate) async fn load_pinned(app: Weak<App>) {
    let Some(app) = app.upgrade() else { return };
    let snapshot = app.catalog.snapshot().clone();
    let placed = snapshot.placed_models();
    for tenant in snapshot.tenants() {
        for model in tenant.models.values() {
            for (number, version) in model.versions.iter() {
                let is_pinned = version.options.get("pinned").is_some_and(|text| text == "true");
                let is_aliased = model.versions.is_aliased(number);
                let (tenant, model) = (tenant.name.clone(), model.name.clone());
                let key = ModelKey { tenant, model, version: number };
                if !is_pinned || !(is_aliased || placed.contains(&key)) {
                    continue;
                }
                let source = source_of(app.catalog.clone(), version.clone());
                let load = app.inference.load_for(&key.tenant, &key, version.size, source);
                if let Err(error) = load.await {
                    tracing::error!(tenant = %key.tenant, model = %key.model, version = number, %error, "a pinned model could not be loaded");
                }
            }
        }
    }
}

/// What callers are told. The owner finds the rest in the index of its models.
fn refusal(error: &LoadError) -> InferenceError {
    match error {
        LoadError::Saturated => InferenceError::Saturated,
        LoadError::OverBudget { .. } | LoadError::NoRoom { .. } => {
            InferenceError::Unavailable(error.to_string())
        }
        // No other call and no other model would mend the node's own store.
        LoadError::Bytes(_) => InferenceError::Runtime(NODE_CANNOT_READ.to_owned()),
        _ => InferenceError::Unavailable(
            "the model could not be loaded on this node; its owner finds the reason in the index of its models"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_cannot_be_loaded_is_no_fault_of_the_server() {
        let names = vec!["Unique".to_owned()];
        for error in [
            LoadError::UnsupportedOperator { operators: names },
            LoadError::Unloadable("x".to_owned()),
            LoadError::Panicked,
            LoadError::OverBudget { needed: 2, budget: 1 },
            LoadError::NoRoom { needed: 2 },
        ] {
            let refused = refusal(&error);
            assert!(matches!(refused, InferenceError::Unavailable(_)), "{error}: {refused:?}");
        }
        assert_eq!(refusal(&LoadError::Saturated), InferenceError::Saturated);
        let unread = refusal(&LoadError::Bytes("/var/blobs/1: no such file".to_owned()));
        assert!(matches!(&unread, InferenceError::Runtime(text) if !text.contains("/var")));
    }
}
