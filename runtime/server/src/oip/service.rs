//! What the protocol offers, apart from how it travels: REST and gRPC both call these functions.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sandpiper_domain::{
    Band, BriefRuns, InferenceRequest, Model, ModelRef, NamedTensor, Scope, Selector, TensorSpec,
};

use super::{Caller, OipError, error::shown};
use crate::{admission::Inference, app::App, models::ResolvedModel};

/// What is known of this server. Open to everybody.
pub(crate) struct ServerInfo {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) extensions: &'static [&'static str],
}

/// Only what is there: no sequences, no shared memory, no classification, no changing of traces and logs.
pub(crate) const SERVER_INFO: ServerInfo = ServerInfo {
    name: "sandpiper",
    version: env!("CARGO_PKG_VERSION"),
    extensions: &[
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
    ],
};

/// `<backend>_<format>`, as Triton writes it.
pub(crate) const PLATFORM: &str = "tract_onnx";

/// A model as clients are told of it.
pub(crate) struct ModelMetadata {
    /// `name`, or `owner/name` where it was asked for so.
    pub(crate) name: String,
    /// The versions that can be asked for, oldest first; the one that is meant alone where a version was named, and for
    /// who is not the owner.
    pub(crate) versions: Vec<u32>,
    pub(crate) platform: &'static str,
    pub(crate) inputs: Vec<TensorSpec>,
    pub(crate) outputs: Vec<TensorSpec>,
}

/// One inference as any transport brings it.
pub(crate) struct InferCall {
    /// For the access log.
    pub(crate) request_id: Arc<str>,
    /// When the request came; its timeout counts from here.
    pub(crate) began: Instant,
    pub(crate) inputs: Vec<NamedTensor>,
    /// The outputs that are wanted, in this order; empty is all, in the model's order.
    pub(crate) outputs: Vec<String>,
    /// How long the answer is of use. The tenant's own limit counts too.
    pub(crate) timeout: Option<Duration>,
    /// Triton's: 0 is the default and 1 the highest. A call can lower its priority and never raise it: above 1 it runs
    /// in the low band.
    pub(crate) priority: u64,
}

/// The answer to one inference.
pub(crate) struct InferAnswer {
    /// `name`, or `owner/name` where it was asked for so.
    pub(crate) model_name: String,
    pub(crate) model_version: u32,
    pub(crate) outputs: Vec<NamedTensor>,
}

impl InferAnswer {
    /// The bytes of the outputs.
    pub(crate) fn bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.tensor.data().len()).sum()
    }
}

/// A model version, and the name that answers call it by.
pub(crate) struct NamedModel {
    /// `name`, or `owner/name` where it was asked for so.
    pub(crate) name: String,
    pub(crate) model: ResolvedModel,
}

/// How a caller names a model: `[owner/]name[@alias|@version]`, and the version beside it.
pub(super) fn reference(name: &str, version: Option<&str>) -> Result<ModelRef, OipError> {
    let mut reference: ModelRef =
        name.parse().map_err(|error| OipError::invalid(format!("the model's name: {error}")))?;
    let Some(version) = version else { return Ok(reference) };
    if reference.selector.is_some() {
        let text = "the version is named twice: after `@` and beside the name";
        return Err(OipError::invalid(text));
    }
    match version.parse() {
        Ok(Selector::Version(number)) => reference.selector = Some(Selector::Version(number)),
        _ => return Err(OipError::invalid("a model's version is a number from 1 on")),
    }
    Ok(reference)
}

/// The name of a model without what selects its version.
pub(super) fn plain_name(reference: &ModelRef) -> String {
    match &reference.owner {
        Some(owner) => format!("{owner}/{}", reference.name),
        None => reference.name.to_string(),
    }
}

/// Finds the version that is meant. Reads memory alone.
pub(crate) fn resolve(
    app: &App,
    caller: &Caller,
    name: &str,
    version: Option<&str>,
) -> Result<NamedModel, OipError> {
    let reference = reference(name, version)?;
    let plain = plain_name(&reference);
    let found = app.models.resolve(&caller.scope(), reference);
    let model = found.ok_or_else(|| OipError::unknown_model(name, version))?;
    Ok(NamedModel { name: plain, model })
}

/// The names of the tenant's own models.
pub(crate) fn model_names(app: &App, caller: &Caller) -> Result<Vec<String>, OipError> {
    caller.must_have(&[Scope::Invoke, Scope::Models])?;
    let snapshot = app.catalog.snapshot();
    let tenant = snapshot.tenant(&caller.tenant.name);
    let models = tenant.into_iter().flat_map(|tenant| tenant.models.keys());
    let mut names: Vec<String> = models.map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}

/// Tells of a model. `version` is digits.
pub(crate) fn model_metadata(
    app: &App,
    caller: &Caller,
    name: &str,
    version: Option<&str>,
) -> Result<ModelMetadata, OipError> {
    caller.must_have(&[Scope::Invoke, Scope::Models])?;
    let NamedModel { name: plain, model: found } = resolve(app, caller, name, version)?;
    let snapshot = app.catalog.snapshot();
    let versions = match (version, snapshot.model(&found.key.tenant, &found.key.model)) {
        (None, Some(model)) if found.key.tenant == caller.tenant.name => {
            model.versions.iter().map(|(number, _)| number).collect()
        }
        _ => vec![found.key.version],
    };
    let signature = &found.version.signature;
    Ok(ModelMetadata {
        name: plain,
        versions,
        platform: PLATFORM,
        inputs: signature.inputs.clone(),
        outputs: signature.outputs.clone(),
    })
}

/// Whether a call of the model would be taken. One that is not in memory is ready too: its first call loads it.
pub(crate) fn model_ready(
    app: &App,
    caller: &Caller,
    name: &str,
    version: Option<&str>,
) -> Result<(), OipError> {
    caller.must_have(&[Scope::Invoke, Scope::Models])?;
    let found = resolve(app, caller, name, version)?.model;
    Ok(app.models.check_ready(&found.key)?)
}

/// Runs one inference of a model that was looked up. The caller has been let in: see [`Caller::enter`]. Dropping the
/// future cancels the call.
pub(crate) async fn infer(
    app: &App,
    caller: &Caller,
    found: NamedModel,
    call: InferCall,
) -> Result<InferAnswer, OipError> {
    let mut access = Access::begin(app, caller, &found.model, &call);
    let answer = run(app, caller, found, call, &mut access).await;
    if let Some(access) = &mut access {
        access.outcome = answer.as_ref().map_or_else(OipError::code, |_| "completed");
    }
    answer
}

async fn run(
    app: &App,
    caller: &Caller,
    found: NamedModel,
    call: InferCall,
    access: &mut Option<Access>,
) -> Result<InferAnswer, OipError> {
    let InferCall { began, inputs, outputs: wanted, timeout, priority, .. } = call;
    let NamedModel { name: model_name, model: found } = found;
    check_wanted(&wanted, &found)?;
    let deadline = caller.deadline(began, timeout);
    let model_version = found.key.version;
    let batch_with_others =
        app.catalog.snapshot().batches_with_others(&found.key, &caller.tenant.name);
    let model = app.models.open_resolved(found);
    // A model that is in memory is there at the first poll, before the clock is asked.
    let model = tokio::time::timeout_at(deadline.into(), model).await.map_err(|_| {
        let text = "the deadline passed while the model was being loaded; try again shortly";
        OipError::DeadlineExceeded(text.to_owned())
    })??;
    let mut share = caller.tenant.limits.share();
    if priority > 1 {
        share.band = Band::Low;
    }
    let inference = Inference::begin(app.admission(&caller.tenant));
    let request = InferenceRequest {
        tenant: caller.tenant.name.clone(),
        share,
        deadline: Some(deadline),
        inputs,
        batch_with_others,
        brief: BriefRuns::Here,
        bill: Some(inference.bill()),
    };
    let answer = model.infer(request).await;
    let cost = inference.end(&answer);
    if let Some(access) = access {
        (access.queued, access.computed) = (cost.queued, cost.computed);
    }
    let outputs = select(answer?.outputs, &wanted);
    let answer = InferAnswer { model_name, model_version, outputs };
    let (bytes, bytes_max) = (answer.bytes(), caller.tensor_bytes_max());
    if bytes > bytes_max {
        let text = format!(
            "the outputs take {bytes} bytes, more than the {} MiB of tensors that the tenant's tier allows",
            bytes_max >> 20
        );
        return Err(OipError::TooLarge(text));
    }
    Ok(answer)
}

/// Says what is wrong with the list of outputs before anything runs.
fn check_wanted(wanted: &[String], found: &ResolvedModel) -> Result<(), OipError> {
    let outputs = &found.version.signature.outputs;
    // No list without doubles is longer than the model's own, so that this stays small whatever was sent.
    if wanted.len() > outputs.len() {
        let text =
            format!("{} outputs are asked for; the model has {}", wanted.len(), outputs.len());
        return Err(OipError::invalid(text));
    }
    for (index, name) in wanted.iter().enumerate() {
        if !outputs.iter().any(|output| output.name == *name) {
            let text = format!("the model has no output `{}`", shown(name));
            return Err(OipError::invalid(text));
        }
        if wanted[..index].contains(name) {
            let text = format!("the output `{}` is asked for twice", shown(name));
            return Err(OipError::invalid(text));
        }
    }
    Ok(())
}

fn select(mut outputs: Vec<NamedTensor>, wanted: &[String]) -> Vec<NamedTensor> {
    if wanted.is_empty() {
        return outputs;
    }
    let take = |name: &String| {
        let at = outputs.iter().position(|output| output.name == *name)?;
        Some(outputs.swap_remove(at))
    };
    wanted.iter().filter_map(take).collect()
}

/// Writes the access line when the inference is over, however it ends.
struct Access {
    tenant: sandpiper_domain::TenantName,
    model: sandpiper_domain::ModelKey,
    request_id: Arc<str>,
    began: Instant,
    outcome: &'static str,
    queued: Duration,
    computed: Duration,
}

impl Access {
    fn begin(app: &App, caller: &Caller, found: &ResolvedModel, call: &InferCall) -> Option<Self> {
        app.settings.access_log.then(|| Access {
            tenant: caller.tenant.name.clone(),
            model: found.key.clone(),
            request_id: call.request_id.clone(),
            began: call.began,
            outcome: "cancelled",
            queued: Duration::ZERO,
            computed: Duration::ZERO,
        })
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        tracing::info!(
            tenant = %self.tenant,
            owner = %self.model.tenant,
            model = %self.model.model,
            version = self.model.version,
            request_id = %self.request_id,
            outcome = self.outcome,
            took_us = self.began.elapsed().as_micros() as u64,
            inference_queued_us = self.queued.as_micros() as u64,
            inference_us = self.computed.as_micros() as u64,
            "inference"
        );
    }
}
