//! The port through which sandboxes find models: names come from the catalog, loaded graphs from the inference plane.

use std::sync::Arc;

use bytes::Bytes;
use sandpiper_control::Catalog;
use sandpiper_domain::{
    BoxFuture, Digest, InferenceError, InferenceOutput, InferenceRequest, Model, ModelKey,
    ModelScope, ModelSignature, ModelSource,
};
use sandpiper_inference::{InferencePlane, LoadError, LoadedModel};

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
            let (key, version, with_others) = {
                let snapshot = self.catalog.snapshot();
                let (key, version) = snapshot.resolve_model(scope, name, rand::random())?;
                let with_others = snapshot.batches_with_others(&key, &scope.tenant);
                (key, version, with_others)
            };
            let model = match self.inference.loaded(&key) {
                Some(model) => model,
                None => {
                    let source = blob_of(self.catalog.clone(), version.digest);
                    let loaded = self.inference.load(&key, source).await;
                    loaded.map_err(|error| refusal(&key, error))?
                }
            };
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

fn refusal(key: &ModelKey, error: LoadError) -> InferenceError {
    if matches!(error, LoadError::Saturated) {
        return InferenceError::Saturated;
    }
    // It loaded when it was uploaded, so this is the node's fault and for the operator to see.
    tracing::error!(tenant = %key.tenant, model = %key.model, version = key.version, %error, "a model could not be loaded");
    InferenceError::Runtime("the model could not be loaded on this node".to_owned())
}
