//! The edge and the wiring: HTTP in front, the three planes behind, and what ties them together.
//!
//! [`app`] is the one place where every part is named; [`dispatch`] is the life of one invocation; [`api`] is the
//! control plane's REST; [`edge`] is sockets and connections. Only here does anyone know HTTP status and JSON.

mod admission;
mod api;
mod app;
mod batches;
mod budget;
mod config;
mod dispatch;
mod edge;
mod fleet;
mod functions;
mod jobs;
mod model_metrics;
mod models;
mod oip;
mod priority;
mod respond;
mod rollouts;
mod samples;
mod scaling;
mod shutdown;
mod sticky;
mod telemetry;

pub use config::{LogFormat, ServeOptions, TRIAL_ARGUMENT};
/// The whole work of a process that was started with [`TRIAL_ARGUMENT`]; gives its exit code.
pub use sandpiper_inference::try_model;

/// Runs the server until it is told to stop (SIGTERM or ctrl-c) and has drained.
pub fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let settings = config::Settings::load(&options)?;
    let metrics = telemetry::init(options.log_format, &settings.log_filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(priority::ask_for_a_short_slice)
        .thread_name("serve")
        // Brief inferences run there, and running a graph recurses. The memory is reserved, not used.
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()?;
    let app = runtime.block_on(async { app::App::open(settings, metrics) })?;
    let usage = app.usage.clone();
    let served = runtime.block_on(edge::serve(app, options));
    // What still runs on blocking threads is given a moment; it holds nothing that a kill would damage.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    // After the runtime: what was still running when it ended is billed too.
    if let Err(error) = usage.flush(time::OffsetDateTime::now_utc()) {
        tracing::error!(?error, "the last usage could not be written");
    }
    served
}
