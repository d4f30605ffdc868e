//! The port through which sandboxes find models: names come from the catalog, loaded graphs from the inference plane.

use std::sync::Arc;

use bytes::Bytes;
use sandpiper_control::Catalog;
use sandpiper_domain::{
    BoxFuture, Digest, InferenceError, Model, ModelKey, ModelScope, ModelSource,
};
use sandpiper_inference::{InferencePlane, LoadError};

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
            let source = blob_of(self.catalog.clone(), version.digest);
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

fn refusal(key: &ModelKey, error: LoadError) -> InferenceError {
    if matches!(error, LoadError::Saturated) {
        return InferenceError::Saturated;
    }
    // It loaded when it was uploaded, so this is the node's fault and for the operator to see.
    tracing::error!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model could not be loaded");
    InferenceError::Runtime("the model could not be loaded on this node".to_owned())
}
