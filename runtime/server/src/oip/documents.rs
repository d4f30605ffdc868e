//! The JSON documents of the protocol, under Triton's names.

use sandpiper_domain::TensorSpec;
use sandpiper_inference::{ModelStats, Timing};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    describe::{ConfigTensor, ModelConfig, VersionStatistics},
    repository::IndexEntry,
    service::{ModelMetadata, SERVER_INFO},
};

pub(super) fn server() -> Value {
    json!({
        "name": SERVER_INFO.name,
        "version": SERVER_INFO.version,
        "extensions": SERVER_INFO.extensions,
    })
}

pub(super) fn models(names: &[String]) -> Value {
    json!({ "models": names })
}

pub(super) fn metadata(model: &ModelMetadata) -> Value {
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        let tensor = |spec: &TensorSpec| json!({ "name": spec.name, "datatype": spec.datatype, "shape": spec.shape });
        specs.iter().map(tensor).collect()
    };
    let versions: Vec<String> = model.versions.iter().map(u32::to_string).collect();
    json!({
        "name": model.name,
        "versions": versions,
        "platform": model.platform,
        "inputs": tensors(&model.inputs),
        "outputs": tensors(&model.outputs),
    })
}

pub(super) fn config(config: &ModelConfig) -> Value {
    let tensors = |tensors: &[ConfigTensor]| -> Vec<Value> {
        let tensor = |tensor: &ConfigTensor| json!({ "name": tensor.name, "data_type": tensor.data_type, "dims": tensor.dims });
        tensors.iter().map(tensor).collect()
    };
    let mut json = json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "version_policy": { "all": {} },
        "max_batch_size": config.max_batch_size,
        "input": tensors(&config.inputs),
        "output": tensors(&config.outputs),
        "response_cache": { "enable": config.response_cache },
    });
    if let Some(batching) = &config.dynamic_batching {
        json["dynamic_batching"] = json!({
            "preferred_batch_size": batching.preferred_batch_size,
            "max_queue_delay_microseconds": batching.max_queue_delay_us,
        });
    }
    json
}

pub(super) fn statistics(versions: &[VersionStatistics]) -> Value {
    let versions: Vec<Value> = versions.iter().map(version_statistics).collect();
    json!({ "model_stats": versions })
}

fn version_statistics(version: &VersionStatistics) -> Value {
    use std::sync::atomic::Ordering::Relaxed;
    let stats: &ModelStats = &version.stats;
    let duration = |(count, ns): (u64, u64)| json!({ "count": count, "ns": ns });
    let timing = |timing: &Timing| duration(timing.get());
    let batches = stats.batches();
    let batches = batches.iter().map(|(size, times)| {
        json!({
            "batch_size": size,
            "compute_input": duration((times.count, times.input_ns)),
            "compute_infer": duration((times.count, times.infer_ns)),
            "compute_output": duration((times.count, times.output_ns)),
        })
    });
    json!({
        "name": version.name,
        "version": version.version.to_string(),
        "last_inference": stats.last_inference_ms(),
        "inference_count": stats.inference_count.load(Relaxed),
        "execution_count": stats.execution_count.load(Relaxed),
        "inference_stats": {
            "success": timing(&stats.success),
            "fail": timing(&stats.fail),
            "queue": timing(&stats.queue),
            "compute_input": timing(&stats.compute_input),
            "compute_infer": timing(&stats.compute_infer),
            "compute_output": timing(&stats.compute_output),
            "cache_hit": timing(&stats.cache_hit),
            "cache_miss": timing(&stats.cache_miss),
        },
        "response_stats": {},
        "batch_stats": batches.collect::<Vec<_>>(),
        "memory_usage": [],
    })
}

pub(super) fn index(entries: &[IndexEntry]) -> Value {
    let entry = |entry: &IndexEntry| {
        let mut json = json!({
            "name": entry.name,
            "version": entry.version.to_string(),
            "state": entry.state.name(),
        });
        if !entry.reason.is_empty() {
            json["reason"] = entry.reason.as_str().into();
        }
        json
    };
    entries.iter().map(entry).collect()
}

/// Nothing is traced in Triton's way.
pub(super) fn trace_settings() -> Value {
    json!({
        "trace_level": ["OFF"],
        "trace_rate": "0",
        "trace_count": "0",
        "log_frequency": "0",
        "trace_file": "",
    })
}

/// What the node logs, by the filter that it was started with.
pub(super) fn log_settings() -> Value {
    use tracing::level_filters::LevelFilter;
    let level = LevelFilter::current();
    json!({
        "log_file": "",
        "log_info": level >= LevelFilter::INFO,
        "log_warning": level >= LevelFilter::WARN,
        "log_error": level >= LevelFilter::ERROR,
        "log_verbose_level": u8::from(level >= LevelFilter::DEBUG),
        "log_format": "ISO8601",
    })
}

/// The body of an unload. No model depends on another, so that either value asks for the same.
#[derive(Default, Deserialize)]
pub(super) struct Unload {
    #[serde(default)]
    #[allow(dead_code, reason = "it is read to be checked")]
    parameters: Option<UnloadParameters>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UnloadParameters {
    #[allow(dead_code, reason = "it is read to be checked")]
    unload_dependents: bool,
}
