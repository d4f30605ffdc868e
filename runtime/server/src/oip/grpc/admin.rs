//! Everything but inference: what the server and its models are, and how they do.

use std::sync::Arc;

use sandpiper_domain::TensorSpec;
use sandpiper_inference::{BatchTimes, Timing};
use tracing::level_filters::LevelFilter;

use super::message::{
    DataType, InferBatchStatistics, InferStatistics, LogSettingsRequest, LogSettingsResponse,
    MemoryUsage, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelDynamicBatching,
    ModelInput, ModelMetadataRequest, ModelMetadataResponse, ModelOutput, ModelReadyRequest,
    ModelReadyResponse, ModelResponseCache, ModelStatistics, ModelStatisticsRequest,
    ModelStatisticsResponse, ModelTransactionPolicy, RepositoryIndexRequest,
    RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerMetadataResponse,
    StatisticDuration, TraceSettingRequest, TraceSettingResponse, log_settings_response,
    model_config::SchedulingChoice, model_metadata_response::TensorMetadata,
    model_repository_parameter, repository_index_response::ModelIndex, trace_setting_response,
};
use crate::{
    app::App,
    oip::{
        Caller, OipError,
        describe::{self, VersionStatistics},
        repository::{self, Given, LoadParameters},
        service::{self, SERVER_INFO},
    },
    uploads::UploadPlaces,
};

/// The protocol's empty string is no version.
fn version(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

pub(super) fn server_metadata() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: SERVER_INFO.name.to_owned(),
        version: SERVER_INFO.version.to_owned(),
        extensions: SERVER_INFO.extensions.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// A model that is not there is not ready either, as Triton has it.
pub(super) fn model_ready(
    app: &App,
    caller: &Caller,
    request: &ModelReadyRequest,
) -> Result<ModelReadyResponse, OipError> {
    let ready = service::model_ready(app, caller, &request.name, version(&request.version));
    match ready {
        Ok(()) => Ok(ModelReadyResponse { ready: true }),
        Err(OipError::Unavailable { .. } | OipError::NotFound(_)) => {
            Ok(ModelReadyResponse { ready: false })
        }
        Err(error) => Err(error),
    }
}

pub(super) fn model_metadata(
    app: &App,
    caller: &Caller,
    request: &ModelMetadataRequest,
) -> Result<ModelMetadataResponse, OipError> {
    let found = service::model_metadata(app, caller, &request.name, version(&request.version))?;
    let tensors = |specs: Vec<TensorSpec>| {
        let tensor = |spec: TensorSpec| TensorMetadata {
            name: spec.name,
            datatype: spec.datatype.name().to_owned(),
            shape: spec.shape,
        };
        specs.into_iter().map(tensor).collect()
    };
    Ok(ModelMetadataResponse {
        name: found.name,
        versions: found.versions.iter().map(u32::to_string).collect(),
        platform: found.platform.to_owned(),
        inputs: tensors(found.inputs),
        outputs: tensors(found.outputs),
    })
}

pub(super) async fn model_config(
    app: &App,
    caller: &Caller,
    request: ModelConfigRequest,
) -> Result<ModelConfigResponse, OipError> {
    let version = version(&request.version);
    let found = describe::model_config(app, caller, &request.name, version).await?;
    let inputs = found.inputs.into_iter().map(|input| ModelInput {
        data_type: data_type(input.data_type) as i32,
        name: input.name,
        dims: input.dims,
    });
    let outputs = found.outputs.into_iter().map(|output| ModelOutput {
        data_type: data_type(output.data_type) as i32,
        name: output.name,
        dims: output.dims,
    });
    let scheduling_choice = found.dynamic_batching.map(|batching| {
        let sizes = batching.preferred_batch_size.iter();
        SchedulingChoice::DynamicBatching(ModelDynamicBatching {
            preferred_batch_size: sizes.map(|&size| size as i32).collect(),
            max_queue_delay_microseconds: batching.max_queue_delay_us,
        })
    });
    let config = ModelConfig {
        name: found.name,
        platform: found.platform.to_owned(),
        max_batch_size: found.max_batch_size as i32,
        input: inputs.collect(),
        output: outputs.collect(),
        backend: found.backend.to_owned(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
        response_cache: Some(ModelResponseCache { enable: found.response_cache }),
        scheduling_choice,
    };
    Ok(ModelConfigResponse { config: Some(config) })
}

fn data_type(name: &str) -> DataType {
    match name {
        "TYPE_BOOL" => DataType::TypeBool,
        "TYPE_UINT8" => DataType::TypeUint8,
        "TYPE_UINT16" => DataType::TypeUint16,
        "TYPE_UINT32" => DataType::TypeUint32,
        "TYPE_UINT64" => DataType::TypeUint64,
        "TYPE_INT8" => DataType::TypeInt8,
        "TYPE_INT16" => DataType::TypeInt16,
        "TYPE_INT32" => DataType::TypeInt32,
        "TYPE_INT64" => DataType::TypeInt64,
        "TYPE_FP16" => DataType::TypeFp16,
        "TYPE_BF16" => DataType::TypeBf16,
        "TYPE_FP32" => DataType::TypeFp32,
        "TYPE_FP64" => DataType::TypeFp64,
        "TYPE_STRING" => DataType::TypeString,
        _ => DataType::TypeInvalid,
    }
}

pub(super) fn model_statistics(
    app: &App,
    caller: &Caller,
    request: &ModelStatisticsRequest,
) -> Result<ModelStatisticsResponse, OipError> {
    let name = Some(request.name.as_str()).filter(|name| !name.is_empty());
    let all = describe::statistics(app, caller, name, version(&request.version))?;
    Ok(ModelStatisticsResponse { model_stats: all.into_iter().map(statistics).collect() })
}

fn statistics(found: VersionStatistics) -> ModelStatistics {
    let stats = found.stats;
    let of = |timing: &Timing| {
        let (count, ns) = timing.get();
        Some(StatisticDuration { count, ns })
    };
    let batches = stats.batches().into_iter().map(|(size, times): (usize, BatchTimes)| {
        let of = |ns| Some(StatisticDuration { count: times.count, ns });
        InferBatchStatistics {
            batch_size: size as u64,
            compute_input: of(times.input_ns),
            compute_infer: of(times.infer_ns),
            compute_output: of(times.output_ns),
        }
    });
    let load =
        |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    ModelStatistics {
        name: found.name,
        version: found.version.to_string(),
        last_inference: stats.last_inference_ms(),
        inference_count: load(&stats.inference_count),
        execution_count: load(&stats.execution_count),
        inference_stats: Some(InferStatistics {
            success: of(&stats.success),
            fail: of(&stats.fail),
            queue: of(&stats.queue),
            compute_input: of(&stats.compute_input),
            compute_infer: of(&stats.compute_infer),
            compute_output: of(&stats.compute_output),
            cache_hit: of(&stats.cache_hit),
            cache_miss: of(&stats.cache_miss),
        }),
        batch_stats: batches.collect(),
        memory_usage: Vec::<MemoryUsage>::new(),
    }
}

pub(super) fn index(
    app: &App,
    caller: &Caller,
    request: &RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse, OipError> {
    let entries = repository::repository_index(app, caller, request.ready)?;
    let models = entries.into_iter().map(|entry| ModelIndex {
        state: entry.state.name().to_owned(),
        name: entry.name,
        version: entry.version.to_string(),
        reason: entry.reason,
    });
    Ok(RepositoryIndexResponse { models: models.collect() })
}

/// Triton's clients fill in `model_name`; KServe's have that name where Triton's have `repository_name`.
fn meant(model_name: String, repository_name: String) -> String {
    if model_name.is_empty() { repository_name } else { model_name }
}

pub(super) async fn load(
    app: &Arc<App>,
    caller: &Caller,
    request: RepositoryModelLoadRequest,
    places: Option<UploadPlaces>,
) -> Result<RepositoryModelLoadResponse, OipError> {
    use model_repository_parameter::ParameterChoice;
    let model_name = meant(request.model_name, request.repository_name);
    let mut parameters = LoadParameters::default();
    for (name, value) in request.parameters {
        let given = match value.parameter_choice {
            Some(ParameterChoice::StringParam(text)) => Given::Text(text),
            Some(ParameterChoice::BytesParam(bytes)) => Given::Bytes(bytes),
            _ => Given::Other,
        };
        parameters.note(&name, given)?;
    }
    repository::load(app, caller, &model_name, parameters, places).await?;
    Ok(RepositoryModelLoadResponse { model_name, is_loaded: true })
}

pub(super) fn unload(
    app: &App,
    caller: &Caller,
    request: RepositoryModelUnloadRequest,
) -> Result<RepositoryModelUnloadResponse, OipError> {
    let model_name = meant(request.model_name, request.repository_name);
    repository::unload(app, caller, &model_name)?;
    Ok(RepositoryModelUnloadResponse { model_name, is_unloaded: true })
}

/// There is no tracing that could be set: every setting says so.
pub(super) fn trace_setting(
    request: &TraceSettingRequest,
) -> Result<TraceSettingResponse, OipError> {
    if !request.settings.is_empty() {
        return Err(OipError::unsupported("this server has no settings of traces to change"));
    }
    let off = trace_setting_response::SettingValue { value: vec!["OFF".to_owned()] };
    Ok(TraceSettingResponse { settings: [("trace_level".to_owned(), off)].into() })
}

/// What the node logs; the operator sets it when the node starts.
pub(super) fn log_settings(request: &LogSettingsRequest) -> Result<LogSettingsResponse, OipError> {
    use log_settings_response::{SettingValue, setting_value::ParameterChoice};
    if !request.settings.is_empty() {
        return Err(OipError::unsupported("what the node logs is set by its operator"));
    }
    let level = LevelFilter::current();
    let verbose = match level {
        LevelFilter::TRACE => 2,
        LevelFilter::DEBUG => 1,
        _ => 0,
    };
    let settings = [
        ("log_error", ParameterChoice::BoolParam(level >= LevelFilter::ERROR)),
        ("log_warning", ParameterChoice::BoolParam(level >= LevelFilter::WARN)),
        ("log_info", ParameterChoice::BoolParam(level >= LevelFilter::INFO)),
        ("log_verbose_level", ParameterChoice::Uint32Param(verbose)),
    ];
    let settings = settings
        .into_iter()
        .map(|(name, choice)| (name.to_owned(), SettingValue { parameter_choice: Some(choice) }));
    Ok(LogSettingsResponse { settings: settings.collect() })
}
