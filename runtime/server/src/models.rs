//! The port through which sandboxes find models: names come from the catalog, loaded graphs from the inference plane.

use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashSet;
use sandpiper_control::{Catalog, ModelVersion};
use sandpiper_domain::{
    BoxFuture, Digest, InferenceError, Model, ModelKey, ModelName, ModelRef, ModelScope,
    ModelSource, TenantName,
};
use sandpiper_inference::{InferencePlane, LoadError, LoadedModel};

/// Joins the catalog and the inference plane.
pub(crate) struct CatalogModels {
    catalog: Arc<Catalog>,
    inference: Arc<InferencePlane>,
    /// Models that their owners have taken out of service until they load them again or deploy a new version. The mark
    /// does not outlive the process.
    withdrawn: DashSet<(TenantName, ModelName)>,
}

/// A model version that a caller may use.
pub(crate) struct ResolvedModel {
    pub(crate) key: ModelKey,
    pub(crate) version: Arc<ModelVersion>,
}

/// The same, in memory.
pub(crate) struct OpenModel {
    pub(crate) version: Arc<ModelVersion>,
    pub(crate) model: Arc<LoadedModel>,
}

impl CatalogModels {
    pub(crate) fn new(catalog: Arc<Catalog>, inference: Arc<InferencePlane>) -> Self {
        CatalogModels { catalog, inference, withdrawn: DashSet::new() }
    }

    /// The version that is meant; nothing is loaded. Missing, foreign and not granted are one `None`.
    pub(crate) fn resolve(&self, scope: &ModelScope, name: ModelRef) -> Option<ResolvedModel> {
        let (key, version) = self.catalog.snapshot().find_model(scope, name, rand::random())?;
        Some(ResolvedModel { key, version })
    }

    /// The model in memory, loaded if it is not there yet. Those who come meanwhile share the load.
    pub(crate) async fn open_resolved(
        &self,
        found: ResolvedModel,
    ) -> Result<OpenModel, InferenceError> {
        self.check_in_service(&found.key)?;
        let model = self.load(&found).await?;
        Ok(OpenModel { version: found.version, model })
    }

    /// Brings a version into memory whether its owner has withdrawn it or not.
    pub(crate) async fn load(
        &self,
        found: &ResolvedModel,
    ) -> Result<Arc<LoadedModel>, InferenceError> {
        let ResolvedModel { key, version } = found;
        if let Some(model) = self.inference.loaded(key) {
            return Ok(model);
        }
        let source = blob_of(self.catalog.clone(), version.digest);
        self.inference.load(key, source).await.map_err(|error| refusal(key, error))
    }

    /// Takes all versions of a model out of service, and out of memory.
    pub(crate) fn withdraw(&self, tenant: &TenantName, model: &ModelName) {
        self.withdrawn.insert((tenant.clone(), model.clone()));
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

    /// Whether the owner has taken the model out of service.
    pub(crate) fn is_withdrawn(&self, tenant: &TenantName, model: &ModelName) -> bool {
        self.withdrawn.contains(&(tenant.clone(), model.clone()))
    }

    /// Why a call of this version would not be taken, if it would not.
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
            .retain(|(tenant, model)| self.catalog.snapshot().model(tenant, model).is_some());
    }
}

impl ModelSource for CatalogModels {
    fn open<'a>(
        &'a self,
        scope: &'a ModelScope,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Model>, InferenceError>> {
        Box::pin(async move {
            let (key, version) =
                self.catalog.snapshot().resolve_model(scope, name, rand::random())?;
            let open = self.open_resolved(ResolvedModel { key, version }).await?;
            Ok(open.model as Arc<dyn Model>)
        })
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

fn refusal(key: &ModelKey, error: LoadError) -> InferenceError {
    if matches!(error, LoadError::Saturated) {
        return InferenceError::Saturated;
    }
    // It loaded when it was uploaded, so this is the node's fault and for the operator to see.
    tracing::error!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model could not be loaded");
    InferenceError::Runtime("the model could not be loaded on this node".to_owned())
}
