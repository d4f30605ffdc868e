//! Bringing models into service, and new versions of them with a load.
//!
//! A load that brings a file deploys it as an upload through the control plane does: with its limits, its places and
//! its trial in a child process. The version's number is the next one, whatever the file's path says: numbers are the
//! platform's, and none is given twice. A load that brings a configuration alone deploys the file of the version that
//! `live` points at anew, with other options. Either moves `live` to the version, and then all loads are alike: they
//! answer when the versions that are meant are in memory.
//!
//! A file without a configuration has the options of the version that `live` points at. A configuration is the whole of
//! what Triton has words for; `batch_tolerance` and `pinned` stay as they are in that version.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use sandpiper_control::{ModelEntry, ModelVersion};
use sandpiper_domain::{
    AliasName, InferenceError, ModelKey, ModelName, ModelOptions, ModelRef, Scope, Selector,
};

use super::{LoadParameters, config::Config, own_model};
use crate::{
    app::App,
    models::{ResolvedModel, blob_of},
    oip::{Caller, OipError},
    respond::Problem,
    samples,
    uploads::{self, ModelUpload, UploadPlaces},
};

/// How long a load is waited for. It goes on beyond.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(120);

/// Whether the caller may load a model of this name, before it is asked what else it has to say.
pub(crate) fn may_load(app: &App, caller: &Caller, name: &str) -> Result<(), OipError> {
    caller.must_have(&[Scope::Models])?;
    own_model(app, caller, name).map(drop)
}

/// Brings a model into service, and answers when its versions are in memory: the one that is named, or those that
/// `live` points at. A model in quarantine leaves it. `places` are there where the request was too long to be read
/// without them.
pub(crate) async fn load(
    app: &Arc<App>,
    caller: &Caller,
    name: &str,
    parameters: LoadParameters,
    places: Option<UploadPlaces>,
) -> Result<(), OipError> {
    caller.must_have(&[Scope::Models])?;
    let (reference, model) = own_model(app, caller, name)?;
    if model.is_none() && parameters.file.is_none() {
        return Err(OipError::unknown_model(name, None));
    }
    if parameters.file.is_some() || parameters.config.is_some() {
        deploy(app, caller, &reference, model, parameters, places).await?;
    }
    // What was deployed is there now.
    let (_, model) = own_model(app, caller, name)?;
    let model = model.ok_or_else(|| OipError::unknown_model(name, None))?;
    let withdrawal = app.models.withdrawal(&caller.tenant.name, &model.name);
    let versions = versions_to_load(&model, reference.selector);
    if versions.is_empty() {
        return Err(OipError::unknown_model(name, None));
    }
    for number in versions {
        let version = model.versions.get(number).cloned();
        let version = version.ok_or_else(|| OipError::unknown_model(name, None))?;
        bring_into_memory(app, caller, &model.name, number, version).await?;
    }
    if !app.models.restore_from(&caller.tenant.name, &model.name, withdrawal) {
        return Err(OipError::unavailable("the model was unloaded while it was being loaded"));
    }
    Ok(())
}

async fn bring_into_memory(
    app: &App,
    caller: &Caller,
    model: &ModelName,
    number: u32,
    version: Arc<ModelVersion>,
) -> Result<(), OipError> {
    let (tenant, model) = (caller.tenant.name.clone(), model.clone());
    let key = ModelKey { tenant, model, version: number };
    let found = ResolvedModel { key, version, asker: caller.tenant.name.clone() };
    let loaded = tokio::time::timeout(LOAD_WAIT_MAX, app.models.load_afresh(&found)).await;
    let loaded = loaded.map_err(|_| {
        OipError::unavailable("the model is still being loaded; ask again whether it is ready")
    })?;
    // It is the owner who asks, and may know more than callers do.
    loaded.map_err(|error| match app.models.load_failure(&found.key) {
        Some(failure) if matches!(error, InferenceError::Unavailable(_)) => {
            OipError::unavailable(failure)
        }
        _ => error.into(),
    })
}

/// Makes a version of what came, and moves `live` to it. What is as the newest version is makes none.
async fn deploy(
    app: &Arc<App>,
    caller: &Caller,
    reference: &ModelRef,
    model: Option<Arc<ModelEntry>>,
    parameters: LoadParameters,
    places: Option<UploadPlaces>,
) -> Result<(), OipError> {
    if reference.selector.is_some() {
        let text = "a load with a file or a configuration makes a new version: name the model without a version or alias";
        return Err(OipError::invalid(text));
    }
    let (tenant, name) = (&caller.tenant, &reference.name);
    let LoadParameters { config, file } = parameters;
    let config = config.map(|text| Config::read(&text, name)).transpose()?;
    let live = model.as_deref().map(live_version);
    let kept = live.as_ref().and_then(|live| live.as_ref().ok()).map(|version| options_of(version));
    let kept = kept.unwrap_or_default();
    let options = config.as_ref().map_or_else(|| kept.clone(), |config| config.options(&kept));
    let agrees = |signature: &_| config.as_ref().map_or(Ok(()), |config| config.check(signature));

    let upload = if let Some(file) = file {
        if let Some(config) = &config {
            config.check_file_name(&file.name)?;
        }
        let limit_mib = tenant.limits.model_mib;
        if file.content.len() as u64 > limit_mib << 20 {
            return Err(Problem::too_large("model", limit_mib).into());
        }
        Upload::Sent(ModelUpload { bytes: file.content, options, samples: None })
    } else {
        let live = live.ok_or_else(|| OipError::unknown_model(name.as_str(), None))??;
        if options == kept {
            return agrees(&live.signature).map_err(OipError::invalid);
        }
        Upload::Stored(live, options)
    };
    let _places = match places {
        Some(places) => places,
        None => uploads::enter(app, tenant)?,
    };
    let upload = match upload {
        Upload::Sent(upload) => upload,
        Upload::Stored(version, options) => stored(app, version, options).await?,
    };
    app.deployments.forget_model(&tenant.name, name);
    let agrees = |signature: &_| agrees(signature).map_err(Problem::bad_request);
    uploads::deploy_model(app, tenant, name, upload, true, agrees).await?;
    Ok(())
}

/// Where the bytes of a version are.
enum Upload {
    Sent(ModelUpload),
    Stored(Arc<ModelVersion>, ModelOptions),
}

/// A version's own file and samples, with other options.
async fn stored(
    app: &Arc<App>,
    version: Arc<ModelVersion>,
    options: ModelOptions,
) -> Result<ModelUpload, OipError> {
    let read = move |app: &App| -> Result<ModelUpload, String> {
        let blob = |digest| blob_of(app.catalog.clone(), digest)();
        let samples = match version.samples {
            None => None,
            Some(digest) => {
                let json = blob(digest)?;
                let samples = samples::parse(&json)?;
                Some((json, samples))
            }
        };
        Ok(ModelUpload { bytes: blob(version.digest)?, options, samples })
    };
    let read = app.blocking(read).await.map_err(OipError::internal)?;
    read.map_err(OipError::internal)
}

fn options_of(version: &ModelVersion) -> ModelOptions {
    ModelOptions::from_texts(&version.options).unwrap_or_default()
}

/// The version that `live` points at, where it is one.
fn live_version(model: &ModelEntry) -> Result<Arc<ModelVersion>, OipError> {
    let versions = versions_to_load(model, None);
    let unknown = || OipError::unknown_model(model.name.as_str(), None);
    match versions[..] {
        [number] => model.versions.get(number).cloned().ok_or_else(unknown),
        [] => Err(unknown()),
        _ => {
            let text = "`live` is split between versions of the model, and the configuration would be that of one: point \
                        `live` at one version first";
            Err(OipError::invalid(text))
        }
    }
}

fn versions_to_load(model: &ModelEntry, selector: Option<Selector>) -> Vec<u32> {
    let alias = match selector {
        Some(Selector::Version(number)) => return vec![number],
        Some(Selector::Alias(alias)) => alias,
        None => AliasName::live(),
    };
    model.versions.alias(&alias).map(|alias| alias.target().versions()).unwrap_or_default()
}

/// What the control plane refuses, where the protocol asked for the same thing.
impl From<Problem> for OipError {
    fn from(problem: Problem) -> Self {
        let message = match &problem.hint {
            Some(hint) => format!("{}; {hint}", problem.message),
            None => problem.message,
        };
        let retry_after_s = problem.retry_after_s.unwrap_or(1);
        match problem.status {
            StatusCode::UNAUTHORIZED => OipError::Unauthenticated(message),
            StatusCode::FORBIDDEN => OipError::PermissionDenied(message),
            StatusCode::NOT_FOUND => OipError::NotFound(message),
            StatusCode::PAYLOAD_TOO_LARGE => OipError::TooLarge(message),
            StatusCode::TOO_MANY_REQUESTS => OipError::TooManyRequests { message, retry_after_s },
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => {
                OipError::DeadlineExceeded(message)
            }
            StatusCode::CONFLICT
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::INSUFFICIENT_STORAGE => OipError::Unavailable { message, retry_after_s },
            status if status.is_client_error() => OipError::InvalidArgument(message),
            _ => OipError::Internal(message),
        }
    }
}
