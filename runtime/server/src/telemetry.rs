//! Logs and metrics. Handles are made once for each function, so that an invocation only adds to counters.

use std::{io::IsTerminal, time::Duration};

use anyhow::Context;
use metrics::{Counter, Histogram, SharedString, counter, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sandpiper_domain::Usage;
use sandpiper_sandbox::Outcome;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Up to as many commands as one commit takes.
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// From 100 µs, as fast functions end below a millisecond.
const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

const TRACT_TARGETS: [&str; 7] = [
    "tract_core",
    "tract_data",
    "tract_hir",
    "tract_linalg",
    "tract_nnef",
    "tract_onnx",
    "tract_onnx_opl",
];

/// Starts logging and the metrics' recorder. Call it once.
pub(crate) fn init(format: LogFormat, filter: &str) -> anyhow::Result<PrometheusHandle> {
    // tract's own lines hold tensors; they stay out of the log whatever the operator turns on.
    let filter =
        format!("{filter},{}", TRACT_TARGETS.map(|target| format!("{target}=off")).join(","));
    let filter = EnvFilter::try_new(filter).context("SANDPIPER_LOG holds no log filter")?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    let commit_size = Matcher::Full("sandpiper_job_commit_size".to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets(SECONDS_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(commit_size, COUNT_BUCKETS))
        .context("the metrics' buckets")?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).context("install the metrics' recorder")?;
    Ok(handle)
}

/// Code came into memory for a request.
pub(crate) fn code_loaded(was_cached: bool) {
    let from = if was_cached { "cache" } else { "compile" };
    counter!("sandpiper_code_loads_total", "from" => from).increment(1);
}

/// The metrics of one function.
pub(crate) struct FunctionMetrics {
    completed: Counter,
    faulted: [Counter; 6],
    cancelled: Counter,
    seconds: Histogram,
    cpu_us: Counter,
    start_cpu_us: Counter,
    inference_us: Counter,
    inference_queued_us: Counter,
}

const FAULTS: [&str; 6] =
    ["cpu_exceeded", "wall_exceeded", "memory_exceeded", "trap", "no_response", "node_saturated"];

impl FunctionMetrics {
    pub(crate) fn new(tenant: impl Into<SharedString>, function: impl Into<SharedString>) -> Self {
        let labels = [("tenant", tenant.into()), ("function", function.into())];
        let ended = |outcome: &'static str| {
            let [tenant, function] = labels.clone();
            counter!("sandpiper_invocations_total", "tenant" => tenant.1, "function" => function.1, "outcome" => outcome)
        };
        FunctionMetrics {
            completed: ended("completed"),
            faulted: FAULTS.map(ended),
            cancelled: ended("cancelled"),
            seconds: histogram!("sandpiper_invocation_seconds", &labels),
            cpu_us: counter!("sandpiper_guest_cpu_microseconds_total", &labels),
            start_cpu_us: counter!("sandpiper_start_cpu_microseconds_total", &labels),
            inference_us: counter!("sandpiper_inference_microseconds_total", &labels),
            inference_queued_us: counter!("sandpiper_inference_queued_microseconds_total", &labels),
        }
    }

    /// A sandbox was made ready, or failed to be; what its start took is no request's.
    pub(crate) fn started(&self, usage: &Usage) {
        self.start_cpu_us.increment(usage.cpu.as_micros() as u64);
    }

    pub(crate) fn record(&self, outcome: Outcome, usage: &Usage, took: Duration) {
        match outcome {
            Outcome::Completed => self.completed.increment(1),
            Outcome::Cancelled => self.cancelled.increment(1),
            Outcome::Faulted(fault) => {
                for (code, counter) in FAULTS.iter().zip(&self.faulted) {
                    if *code == fault.code() {
                        counter.increment(1);
                    }
                }
            }
        }
        self.seconds.record(took.as_secs_f64());
        self.cpu_us.increment(usage.cpu.as_micros() as u64);
        if !usage.inference.is_zero() {
            self.inference_us.increment(usage.inference.as_micros() as u64);
            self.inference_queued_us.increment(usage.inference_queued.as_micros() as u64);
        }
    }
}
