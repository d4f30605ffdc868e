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
mod uploads;
mod window;

pub use config::{INHERIT_ARGUMENT, Inherited, LogFormat, ServeOptions, TRIAL_ARGUMENT};
pub use edge::Ended;
/// The whole work of a process that was started with [`TRIAL_ARGUMENT`]; gives its exit code.
pub use sandpiper_inference::try_model;

/// Runs the server until it is told to stop (SIGTERM or ctrl-c) and has drained, or a new process has taken over
/// (SIGUSR2).
pub fn serve(options: ServeOptions) -> anyhow::Result<Ended> {
    let settings = config::Settings::load(&options)?;
    let metrics = telemetry::init(options.log_format, &settings.log_filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(priority::ask_for_a_short_slice)
        .thread_name("serve")
        // Brief inferences run there, and running a graph recurses. The memory is reserved, not used.
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()?;
    let served = runtime.block_on(edge::serve(settings, metrics, options));
    match served {
        Ok(Ended::AtOnce) => runtime.shutdown_background(),
        // What still runs on blocking threads is given a moment; it holds nothing that a kill would damage.
        _ => runtime.shutdown_timeout(std::time::Duration::from_secs(2)),
    }
    served
}
