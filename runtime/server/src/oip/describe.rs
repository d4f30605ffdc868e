//! A model's configuration and statistics in Triton's terms, before any transport writes them down.

use std::sync::Arc;

use sandpiper_domain::{DataType, ModelKey, ModelOptions, Scope, TensorSpec};
use sandpiper_inference::{Batching, Measurement, ModelStats};
use serde::Deserialize;

use super::{
    Caller, OipError,
    service::{self, NamedModel, PLATFORM},
};
use crate::{app::App, models::ResolvedModel};

/// Triton's `ModelConfig`, as far as this server has something to say.
pub(crate) struct ModelConfig {
    pub(crate) name: String,
    pub(crate) platform: &'static str,
    pub(crate) backend: &'static str,
    /// Rows that run together at most; 0 where calls are not batched. As Triton has it, `dims` lack the first dimension
    /// where this is not 0.
    pub(crate) max_batch_size: u32,
    pub(crate) inputs: Vec<ConfigTensor>,
    pub(crate) outputs: Vec<ConfigTensor>,
    pub(crate) dynamic_batching: Option<DynamicBatching>,
    /// Whether answers are kept and given again.
    pub(crate) response_cache: bool,
}

/// An input or output of a [`ModelConfig`].
pub(crate) struct ConfigTensor {
    pub(crate) name: String,
    /// Such as `TYPE_FP32`.
    pub(crate) data_type: &'static str,
    /// -1 is any size.
    pub(crate) dims: Vec<i64>,
}

/// How calls are batched.
pub(crate) struct DynamicBatching {
    /// The sizes that have plans of their own and pay, ascending.
    pub(crate) preferred_batch_size: Vec<u32>,
    pub(crate) max_queue_delay_us: u64,
}

/// Statistics of one version.
pub(crate) struct VersionStatistics {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) stats: Arc<ModelStats>,
}

/// The configuration of a version. The caller has been let in: see [`Caller::enter_reading`].
pub(crate) async fn model_config(
    app: &App,
    caller: &Caller,
    name: &str,
    version: Option<&str>,
) -> Result<ModelConfig, OipError> {
    caller.must_have(&[Scope::Invoke, Scope::Models])?;
    let NamedModel { name, model: found } = service::resolve(app, caller, name, version)?;
    app.models.check_in_service(&found.key)?;
    let version = found.version.clone();
    let options = ModelOptions::from_texts(&version.options).unwrap_or_default();
    let signature = &version.signature;
    let may_batch = options.batching
        && signature.inputs.iter().chain(&signature.outputs).all(first_size_is_free);
    let batching = match may_batch {
        true => batching(app, found).await?,
        false => Batching::default(),
    };
    let rows = batching.sizes.iter().copied().max().filter(|rows| *rows > 1).unwrap_or(0);
    let tensors = |specs: &[TensorSpec]| {
        let skipped = usize::from(rows > 0);
        let tensor = |spec: &TensorSpec| ConfigTensor {
            name: spec.name.clone(),
            data_type: config_type(spec.datatype),
            dims: spec.shape.iter().skip(skipped).copied().collect(),
        };
        specs.iter().map(tensor).collect()
    };
    let dynamic_batching = (rows > 0).then(|| DynamicBatching {
        preferred_batch_size: batching.sizes.iter().copied().filter(|size| *size > 1).collect(),
        max_queue_delay_us: options.max_delay_us,
    });
    Ok(ModelConfig {
        name,
        platform: PLATFORM,
        backend: "tract",
        max_batch_size: rows,
        inputs: tensors(&signature.inputs),
        outputs: tensors(&signature.outputs),
        dynamic_batching,
        response_cache: options.cache,
    })
}

fn first_size_is_free(tensor: &TensorSpec) -> bool {
    tensor.shape.first().is_some_and(|size| *size < 0)
}

/// How calls of a version are batched, as it was measured when it was uploaded. Only where that was on another machine,
/// or by an earlier release, is the model loaded.
async fn batching(app: &App, found: ResolvedModel) -> Result<Batching, OipError> {
    if let Some(model) = app.inference.peek(&found.key) {
        return Ok(model.profile().batching.clone());
    }
    let measurement = Measurement::deserialize(&found.version.measurement).ok();
    if let Some(batching) = measurement.as_ref().and_then(Measurement::here) {
        return Ok(batching.clone());
    }
    Ok(app.models.open_resolved(found).await?.profile().batching.clone())
}

/// Triton's name of a data type.
pub(super) fn config_type(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "TYPE_BOOL",
        DataType::U8 => "TYPE_UINT8",
        DataType::U16 => "TYPE_UINT16",
        DataType::U32 => "TYPE_UINT32",
        DataType::U64 => "TYPE_UINT64",
        DataType::I8 => "TYPE_INT8",
        DataType::I16 => "TYPE_INT16",
        DataType::I32 => "TYPE_INT32",
        DataType::I64 => "TYPE_INT64",
        DataType::F16 => "TYPE_FP16",
        DataType::BF16 => "TYPE_BF16",
        DataType::F32 => "TYPE_FP32",
        DataType::F64 => "TYPE_FP64",
        DataType::Bytes => "TYPE_STRING",
    }
}

/// What calls have come to since the node started: of one version where one is named, of all versions of a model, or of
/// all models of the tenant. They are the owner's alone: they count the calls of every tenant that has a grant. It may
/// be long, and is not for a thread that others wait for; see [`Caller::enter_reading`].
pub(crate) fn statistics(
    app: &App,
    caller: &Caller,
    name: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<VersionStatistics>, OipError> {
    caller.must_have(&[Scope::Invoke, Scope::Models])?;
    let none = Arc::new(ModelStats::default());
    let of_version = |name: &str, key: &ModelKey| VersionStatistics {
        name: name.to_owned(),
        version: key.version,
        stats: app.inference.peek_stats(key).unwrap_or_else(|| none.clone()),
    };
    let snapshot = app.catalog.snapshot().clone();
    let tenant = &caller.tenant.name;
    let Some(name) = name else {
        let models = snapshot.tenant(tenant).into_iter().flat_map(|tenant| tenant.models.values());
        let versions = models.flat_map(|model| {
            model.versions.iter().map(|(version, _)| {
                let model = model.name.clone();
                ModelKey { tenant: tenant.clone(), model, version }
            })
        });
        let mut all: Vec<_> = versions.map(|key| of_version(key.model.as_str(), &key)).collect();
        all.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        return Ok(all);
    };
    let is_pinned = service::reference(name, version)?.selector.is_some();
    let NamedModel { name: plain, model: found } = service::resolve(app, caller, name, version)?;
    if found.key.tenant != *tenant {
        let text = "only its owner may see the statistics of this model";
        return Err(OipError::PermissionDenied(text.to_owned()));
    }
    match snapshot.model(tenant, &found.key.model) {
        Some(model) if !is_pinned => {
            let key = |version| ModelKey { version, ..found.key.clone() };
            let versions = model.versions.iter();
            Ok(versions.map(|(version, _)| of_version(&plain, &key(version))).collect())
        }
        _ => Ok(vec![of_version(&plain, &found.key)]),
    }
}
