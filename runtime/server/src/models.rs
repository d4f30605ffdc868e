//! The port through which sandboxes find models: names come from the catalog, loaded graphs from the inference plane.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use sandpiper_control::{Catalog, ModelVersion};
use sandpiper_domain::{
    BoxFuture, Digest, InferenceError, Model, ModelKey, ModelOptions, ModelScope, ModelSource,
};
use sandpiper_inference::{InferencePlane, LoadError, ModelSpec};

use crate::{app::App, samples};

/// Joins the catalog and the inference plane.
pub(crate) struct CatalogModels {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) inference: Arc<InferencePlane>,
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
            if let Some(model) = self.inference.loaded(&key) {
                return Ok(model as Arc<dyn Model>);
            }
            let source = source_of(self.catalog.clone(), version);
            match self.inference.load(&key, source).await {
                Ok(model) => Ok(model as Arc<dyn Model>),
                Err(error) => Err(refusal(&key, error)),
            }
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
        Ok(ModelSpec { bytes: blob(version.digest)?, digest: version.digest, options, samples })
    }
}

/// Brings the pinned models into memory after a start. Nobody waits for it: the node is ready before, and a request
/// that comes first loads its model itself.
pub(crate) async fn load_pinned(app: Weak<App>) {
    let Some(app) = app.upgrade() else { return };
    let snapshot = app.catalog.snapshot().clone();
    for tenant in snapshot.tenants() {
        for model in tenant.models.values() {
            for (number, version) in model.versions.iter() {
                let is_pinned = version.options.get("pinned").is_some_and(|text| text == "true");
                if !is_pinned || !model.versions.is_aliased(number) {
                    continue;
                }
                let (tenant, model) = (tenant.name.clone(), model.name.clone());
                let key = ModelKey { tenant, model, version: number };
                let source = source_of(app.catalog.clone(), version.clone());
                if let Err(error) = app.inference.load(&key, source).await {
                    tracing::error!(tenant = %key.tenant, model = %key.model, version = number, %error, "a pinned model could not be loaded");
                }
            }
        }
    }
}

fn refusal(key: &ModelKey, error: LoadError) -> InferenceError {
    if matches!(error, LoadError::Saturated) {
        return InferenceError::Saturated;
    }
    if matches!(error, LoadError::OverBudget { .. } | LoadError::NoRoom { .. }) {
        tracing::warn!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model finds no room");
        return InferenceError::Unavailable(error.to_string());
    }
    // It loaded when it was uploaded, so this is the node's fault and for the operator to see.
    tracing::error!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model could not be loaded");
    InferenceError::Runtime("the model could not be loaded on this node".to_owned())
}
