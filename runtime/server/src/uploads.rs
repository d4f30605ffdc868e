//! Uploads, whichever protocol brings them: the places that bound how many are worked on, and how a model's file
//! becomes a version.

use std::sync::Arc;

use bytes::Bytes;
use sandpiper_control::{ModelVersion, NewModel, PutOutcome, Tenant};
use sandpiper_domain::{Model, ModelKey, ModelName, ModelOptions, ModelSignature, NamedTensor};
use sandpiper_inference::ModelSpec;
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

use crate::{app::App, respond::Problem};

/// A place among the tenant's uploads and one among the node's. They are held until the upload's bytes are gone.
pub(crate) type UploadPlaces = [OwnedSemaphorePermit; 2];

/// Lets one upload in, or says whose limit is reached.
pub(crate) fn enter(app: &App, tenant: &Tenant) -> Result<UploadPlaces, Problem> {
    let of_tenant = app.admission(tenant).uploads.clone().try_acquire_owned().map_err(|_| {
        Problem::too_many(
            "upload_limit",
            "as many uploads of this tenant are being worked on as may be",
        )
    })?;
    let of_node = app.uploads.clone().try_acquire_owned().map_err(|_| {
        Problem::busy("node_saturated", "the node is busy with other uploads; try again shortly")
    })?;
    Ok([of_tenant, of_node])
}

/// A model version to be, as it came.
pub(crate) struct ModelUpload {
    pub(crate) bytes: Bytes,
    pub(crate) options: ModelOptions,
    /// The samples as JSON, to be stored, and what they say.
    pub(crate) samples: Option<(Bytes, Vec<Vec<NamedTensor>>)>,
}

/// Tries the model, stores it and publishes the version; only then does anybody hear of it. `agrees` sees what the
/// model takes and gives before it is stored.
pub(crate) async fn deploy_model(
    app: &Arc<App>,
    tenant: &Tenant,
    name: &ModelName,
    upload: ModelUpload,
    activate: bool,
    agrees: impl FnOnce(&ModelSignature) -> Result<(), Problem>,
) -> Result<PutOutcome<ModelVersion>, Problem> {
    let ModelUpload { bytes, options, samples } = upload;
    let (samples_json, samples) = samples.unzip();
    // Hashing a large file takes a while.
    let spec = app.blocking({
        let bytes = bytes.clone();
        let (options, samples) = (options.clone(), samples.unwrap_or_default());
        move |_| ModelSpec { options, samples, ..bytes.into() }
    });
    let loaded = app.inference.inspect_for(&tenant.name, spec.await?).await?;
    agrees(loaded.signature())?;
    if options.pinned {
        // What has been deleted meanwhile, or is pointed at no more, holds no pin.
        app.settle_pins();
        app.inference.may_pin(&loaded, &tenant.name, name)?;
    }
    let (owner, model, now) = (tenant.name.clone(), name.clone(), OffsetDateTime::now_utc());
    let signature = loaded.signature().clone();
    let measurement = serde_json::to_value(loaded.measurement()).unwrap_or_default();
    let outcome = app.blocking(move |app| {
        let blob = app.catalog.put_blob(&bytes)?;
        let samples = samples_json.map(|json| app.catalog.put_blob(&json)).transpose()?;
        let options = options.to_texts();
        let new = NewModel { blob, signature, options, samples, measurement };
        app.catalog.put_model(&owner, &model, &new, activate, now).map_err(Problem::from)
    });
    let outcome = outcome.await??;
    if activate {
        app.models.restore(&tenant.name, name);
    }
    let version = outcome.version().version;
    let key = ModelKey { tenant: tenant.name.clone(), model: name.clone(), version };
    // What `live` has moved away from makes room first. A version that nothing points to yet takes the place of none
    // that is in use.
    app.settle_pins();
    if activate
        && app.inference.peek(&key).is_none()
        && let Err(error) = app.inference.register(key, loaded)
    {
        tracing::warn!(tenant = %tenant.name, model = %name, %error, "a model is not in memory yet");
    }
    app.sweep_soon();
    Ok(outcome)
}
