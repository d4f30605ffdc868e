//! One invocation, from the gates to the sandbox's end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use sandpiper_control::{Counted, FunctionVersion};
use sandpiper_domain::{Activity, Band, Fault, Grant, Lane, Mode, Share, TenantName, Usage};
use sandpiper_sandbox::{FunctionCode, Invocation, Keeper, Observer, Outcome, Source};

use crate::{
    admission::{Cause, Entry, Refusal, Transferred, told},
    app::App,
    edge::EdgeBody,
    fleet::Running,
    functions::FunctionRuntime,
    respond::{ERROR_HEADER, Problem},
    window::Trial,
};

/// How long a request waits for code that has to be loaded or compiled first.
const CODE_WAIT_MAX: Duration = Duration::from_secs(30);

/// When to come again where the queue of inferences is full, and the most that is told where it is slow.
const INFERENCE_RETRY: Duration = Duration::from_secs(1);
const INFERENCE_RETRY_MAX: Duration = Duration::from_secs(60);

/// One invocation, whoever asked for it: a client, a job or a shard.
pub(crate) struct Work {
    pub(crate) version: Arc<FunctionVersion>,
    pub(crate) grant: Arc<Grant>,
    pub(crate) runtime: Arc<FunctionRuntime>,
    pub(crate) lane: Lane,
    pub(crate) request_id: Arc<str>,
    /// There where a rollout has sent it.
    pub(crate) trial: Option<Trial>,
}

/// Gates, code, sandbox. The response's body keeps the places.
pub(crate) async fn run<B>(
    app: &Arc<App>,
    work: Work,
    request: Request<B>,
) -> Result<Response<EdgeBody>, Problem>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error,
{
    let began = Instant::now();
    let Work { version, grant, runtime, lane, request_id, trial } = work;
    let share = match lane {
        Lane::Batch => Share { band: Band::Low, ..grant.tenant.share() },
        Lane::Interactive | Lane::Job => grant.tenant.share(),
    };
    check_inference(app, &runtime, &grant, share)?;
    let waiting = runtime.fleet.wait();
    let entry = runtime.tenant.enter(&runtime.gate, lane, began).await?;
    drop(waiting);
    // Both began when the place was there.
    let trial = trial.map(|trial| (Arc::new(trial), entry.began()));
    let (running, ready) = Running::begin(&runtime, &grant, entry.clone(), entry.began());
    let source = match ready {
        Some(sandbox) => Source::Ready(sandbox),
        None => Source::Fresh(match runtime.loaded() {
            Some(code) => code,
            None => code(app, &runtime, &version).await?,
        }),
    };
    let keeper = (runtime.fleet.mode == Mode::Reused).then(|| {
        let running = running.clone();
        Box::new(move |sandbox| running.keep(sandbox)) as Keeper
    });
    let access = app.settings.access_log.then(|| Access::of(&grant, &version, &request_id));
    let observer = Box::new(End {
        running: running.clone(),
        lane,
        began,
        trial: trial.clone(),
        access,
        entry: entry.clone(),
    });
    let invocation = Invocation {
        grant,
        log: runtime.log.clone(),
        request_id,
        share,
        activity: running,
        payer: runtime.meter.clone(),
        observer,
        keeper,
    };
    let mut response = app.sandboxes.invoke(source, request, invocation).await?;
    if let Some((trial, _)) = &trial {
        trial.answered(response.status());
    }
    if response.status().is_informational() {
        // Not the last word of any exchange, and no function may switch protocols.
        return Err(Fault::NoResponse.into());
    }
    // This header is ours to set.
    response.headers_mut().remove(ERROR_HEADER);
    // The place among those alive is kept until the client has the whole response, which is in memory until then.
    let sent = Transferred::new(runtime.meter.clone(), Counted::BytesOut);
    Ok(response.map(|body| EdgeBody::guest(body, sent, entry)))
}

/// Turns away what would only wait in a sandbox for a model, and in vain.
fn check_inference(
    app: &App,
    runtime: &FunctionRuntime,
    grant: &Grant,
    share: Share,
) -> Result<(), Refusal> {
    if !runtime.habits.asks_models() {
        return Ok(());
    }
    let wait = app.inference.expected_wait(&grant.models.tenant, share);
    if wait.is_some_and(|wait| wait < Duration::from_millis(grant.sandbox.wall_ms)) {
        return Ok(());
    }
    let retry_after = wait.unwrap_or(INFERENCE_RETRY).min(INFERENCE_RETRY_MAX);
    Err(told(Refusal { cause: Cause::Inference, retry_after }))
}

/// The function's code, where it is not in memory; it compiled when it was deployed, so that a failure is the node's.
async fn code(
    app: &Arc<App>,
    runtime: &Arc<FunctionRuntime>,
    version: &FunctionVersion,
) -> Result<Arc<FunctionCode>, Problem> {
    let ready = runtime.code(version, &app.sandboxes, &app.catalog);
    let unavailable = |cause: &dyn std::fmt::Display| {
        tracing::error!(tenant = %version.grant.models.tenant, function = %version.manifest.name, %cause, "no code");
        Problem::busy("function_unavailable", "the function's code could not be made ready")
    };
    match tokio::time::timeout(CODE_WAIT_MAX, ready).await {
        Ok(code) => code.map_err(|error| unavailable(&error)),
        Err(late) => Err(unavailable(&late)),
    }
}

/// What is left to do when the sandbox is gone: measure, and let the next request in.
struct End {
    running: Arc<Running>,
    lane: Lane,
    began: Instant,
    /// With the moment it was let in: what it waited for before that was others.
    trial: Option<(Arc<Trial>, Instant)>,
    access: Option<Access>,
    entry: Arc<Entry>,
}

/// What an access line tells besides the outcome.
struct Access {
    tenant: TenantName,
    version: Arc<FunctionVersion>,
    request_id: Arc<str>,
}

impl Access {
    fn of(grant: &Grant, version: &Arc<FunctionVersion>, request_id: &Arc<str>) -> Self {
        Access {
            tenant: grant.models.tenant.clone(),
            version: version.clone(),
            request_id: request_id.clone(),
        }
    }
}

impl Observer for End {
    fn ended(self: Box<Self>, outcome: Outcome, usage: Usage) {
        // It runs no longer, however long its client takes to read what it has said.
        self.entry.suspend();
        let now = Instant::now();
        let took = now - self.began;
        let runtime = self.running.runtime();
        runtime.metrics.record(outcome, &usage, took);
        if let Some((trial, entered)) = &self.trial {
            trial.ended(outcome, now - *entered);
        }
        runtime.meter.invoked(outcome, &usage, self.lane);
        if outcome == Outcome::Completed {
            runtime.habits.learn(&usage);
        }
        let reason = match outcome {
            Outcome::Completed => "served_out",
            Outcome::Cancelled => "cancelled",
            Outcome::Faulted(_) => "fault",
        };
        self.running.end(reason, now);
        let Some(access) = &self.access else { return };
        let outcome = match outcome {
            Outcome::Completed => "completed",
            Outcome::Cancelled => "cancelled",
            Outcome::Faulted(fault) => fault.code(),
        };
        tracing::info!(
            tenant = %access.tenant,
            function = %access.version.manifest.name,
            version = access.version.version,
            request_id = %access.request_id,
            outcome,
            took_us = took.as_micros() as u64,
            cpu_us = usage.cpu.as_micros() as u64,
            memory_bytes_max = usage.memory_bytes_max,
            inference_queued_us = usage.inference_queued.as_micros() as u64,
            inference_us = usage.inference.as_micros() as u64,
            "invocation"
        );
    }
}
