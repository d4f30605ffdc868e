//! One request in one fresh sandbox.
//!
//! 1. A slot of the pool is taken, or the call waits a little for one; the clocks start when it is there.
//! 2. The guest is polled on the caller's task. Most guests have answered and ended when that is done, and the whole
//!    invocation has cost no task of its own.
//! 3. A guest that goes on after its response head, because it streams its body, moves to a task that ends with it.
//! 4. However it ends, the observer hears of it exactly once, when the sandbox is gone.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use sandpiper_domain::{Activity, Deferred, Fault, Grant, Share, Usage};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime::{PoolConcurrencyLimitError, Store, StoreContextMut, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::{
    Error as HttpError, WasiHttpView,
    p2::{bindings::http::types::Scheme, body::HyperOutgoingBody, types::HostResponseOutparam},
};

mod probe;

use crate::{
    body::GuestBody,
    code::FunctionCode,
    cpu::CpuMeter,
    engine::Sandboxes,
    limits::{HOSTCALL_BYTES_MAX, RESOURCES_MAX},
    log::{FunctionLog, InvocationLog},
    state::{State, Terms},
};

/// How long a request waits for a slot of a full pool.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How an invocation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ran to its end and had given a response.
    Completed,
    /// It gave none, or stopped in the middle of one.
    Faulted(Fault),
    /// The caller went away and the sandbox was dropped.
    Cancelled,
}

/// Hears how an invocation ended and what it cost.
pub trait Observer: Send + 'static {
    /// Called once, after the sandbox is gone.
    fn ended(self: Box<Self>, outcome: Outcome, usage: Usage);
}

/// What belongs to one invocation besides its request.
pub struct Invocation {
    /// Limits, models and environment.
    pub grant: Arc<Grant>,
    /// Where the guest's output goes.
    pub log: Arc<FunctionLog>,
    /// Marks the lines of the log.
    pub request_id: Arc<str>,
    /// What the tenant is due of the compute threads, in the lane of this invocation.
    pub share: Share,
    /// Hears when the guest waits for a model.
    pub activity: Arc<dyn Activity>,
    /// Hears of the end.
    pub observer: Box<dyn Observer>,
}

/// What the guest's side of an invocation and its caller's share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) cpu: CpuMeter,
    /// Why the guest ended badly. It is set before the store is dropped: dropping it ends the response's body, and
    /// whoever reads that end must be able to tell whether it was meant.
    pub(crate) fault: OnceLock<Fault>,
    has_answered: AtomicBool,
    /// Inferences that are too brief for another thread.
    pub(crate) brief: Arc<Deferred>,
}

type Head = oneshot::Sender<Response<HyperOutgoingBody>>;
/// A guest that runs, until it has ended.
pub(crate) type GuestFuture = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

impl Sandboxes {
    /// Runs one request. Dropping the future or the body drops the sandbox.
    ///
    /// The request needs an authority: in its URI or as a `host` header.
    pub async fn invoke<B>(
        self: &Arc<Self>,
        code: &FunctionCode,
        request: Request<B>,
        invocation: Invocation,
    ) -> Result<Response<GuestBody>, Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let Invocation { grant, log, request_id, share, activity, observer } = invocation;
        let is_head = request.method() == Method::HEAD;
        let shared = Arc::new(Shared::default());
        let report = Report { observer: Some(observer), usage: Usage::default(), shared };
        let shared = report.shared.clone();
        let slot = match self.take_slot().await {
            Ok(slot) => slot,
            Err(fault) => {
                report.end(Outcome::Faulted(fault));
                return Err(fault);
            }
        };
        let limits = grant.sandbox;
        let deadline = Instant::now() + Duration::from_millis(limits.wall_ms);
        let log = Arc::new(InvocationLog::new(log, request_id, limits.log_kib as usize * 1024));
        let (head_sender, head) = oneshot::channel();
        let (plane, code, shared_of_guest) = (self.clone(), code.clone(), shared.clone());
        let guest: GuestFuture = Box::pin(async move {
            let _slot = slot;
            let shared = shared_of_guest;
            let terms = Terms { grant, share, activity, deadline };
            let state = State::new(terms, plane.models.clone(), shared.clone(), log);
            let sandbox = Sandbox::new(&plane, state, report);
            let run = pin!(sandbox.run(&code, request, head_sender));
            let run = pin!(shared.cpu.charge(run));
            let run = with_brief_runs(&shared.brief, run);
            let ended = tokio::time::timeout_at(deadline.into(), run).await;
            ended.unwrap_or_else(|_| {
                let fault = Fault::WallExceeded { limit_ms: limits.wall_ms };
                let _ = shared.fault.set(fault);
                Err(fault)
            })
        });
        respond(guest, head, shared, is_head).await
    }

    /// A slot of the pool, or `Saturated` after a short wait. Those who wait are bounded by their tenants' concurrency.
    async fn take_slot(&self) -> Result<OwnedSemaphorePermit, Fault> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        match tokio::time::timeout(SLOT_WAIT_MAX, self.slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(Fault::Saturated),
        }
    }
}

/// Polls the guest, and between its polls runs the inferences that it has left there: on this thread's stack, and not
/// on the guest's account of CPU time.
async fn with_brief_runs<F: Future>(brief: &Deferred, mut guest: Pin<&mut F>) -> F::Output {
    poll_fn(|context| {
        loop {
            match guest.as_mut().poll(context) {
                Poll::Pending if brief.run() => {}
                outcome => return outcome,
            }
        }
    })
    .await
}

/// Polls the guest until it has ended or its response's head is there.
async fn respond(
    mut guest: GuestFuture,
    mut head: oneshot::Receiver<Response<HyperOutgoingBody>>,
    shared: Arc<Shared>,
    is_head: bool,
) -> Result<Response<GuestBody>, Fault> {
    let ended = poll_fn(|context| match guest.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        // Only the guest sends the head, and only while it is polled, so it is there by now or not yet.
        Poll::Pending if !head.is_empty() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    let rest = match ended {
        Some(ended) => {
            ended?;
            None
        }
        None => Some(guest),
    };
    let response = head.try_recv().map_err(|_| Fault::NoResponse)?;
    let (parts, body) = response.into_parts();
    let body = GuestBody::new(body, &parts, is_head, rest, shared);
    Ok(Response::from_parts(parts, body))
}

/// Tells the observer, exactly once: how it ended, or when it is dropped because the caller went away.
struct Report {
    observer: Option<Box<dyn Observer>>,
    usage: Usage,
    shared: Arc<Shared>,
}

impl Report {
    fn end(mut self, outcome: Outcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        if let Some(observer) = self.observer.take() {
            observer.ended(outcome, self.usage);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let fault = self.shared.fault.get();
        self.tell(fault.map_or(Outcome::Cancelled, |fault| Outcome::Faulted(*fault)));
    }
}

/// A store that reports its end, on whatever path it goes.
struct Sandbox<'a> {
    /// Gone once it has ended.
    store: Option<Store<State>>,
    plane: &'a Sandboxes,
    report: Option<Report>,
    shared: Arc<Shared>,
    made: Instant,
}

impl Drop for Sandbox<'_> {
    /// Reached with a store only when the future was dropped: at the wall limit, or because the caller went away.
    fn drop(&mut self) {
        drop(self.close());
    }
}

impl<'a> Sandbox<'a> {
    fn new(plane: &'a Sandboxes, state: State, report: Report) -> Self {
        let hostcall_bytes = (state.grant.sandbox.tensor_mib << 20) as usize + HOSTCALL_BYTES_MAX;
        let made = Instant::now();
        let mut store = Store::new(&plane.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(on_tick);
        store.set_hostcall_fuel(hostcall_bytes);
        store.set_max_component_handles(RESOURCES_MAX);
        plane.running.fetch_add(1, Relaxed);
        let shared = report.shared.clone();
        Sandbox { store: Some(store), plane, report: Some(report), shared, made }
    }

    /// Takes what it has cost, then drops the store.
    fn close(&mut self) -> Option<Report> {
        let (store, mut report) = (self.store.take()?, self.report.take()?);
        report.usage = Usage { cpu: self.shared.cpu.used(), ..store.data().usage() };
        drop(store);
        report.usage.lifetime = self.made.elapsed();
        self.plane.running.fetch_sub(1, Relaxed);
        Some(report)
    }

    async fn run<B>(
        mut self,
        code: &FunctionCode,
        request: Request<B>,
        head: Head,
    ) -> Result<(), Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let ended = self.handle(code, request, head).await;
        self.finish(ended)
    }

    async fn handle<B>(
        &mut self,
        code: &FunctionCode,
        request: Request<B>,
        head: Head,
    ) -> wasmtime::Result<()>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let Some(store) = &mut self.store else { return Ok(()) };
        let proxy = code.pre.instantiate_async(&mut *store).await?;
        // The client is gone, or its body broke a limit: either way there is no more to read.
        let request = request.map(|body| body.map_err(|_| HttpError::ConnectionTerminated));
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let shared = self.shared.clone();
        let response = store.data_mut().new_response(HostResponseOutparam {
            // A guest may answer with an error code instead of a response; that is no response.
            send: Box::new(move |answer| {
                if let Ok(response) = answer {
                    shared.has_answered.store(true, Relaxed);
                    let _ = head.send(response);
                }
            }),
        })?;
        proxy.wasi_http_incoming_handler().call_handle(store, request, response).await
    }

    /// Names the end and tells it.
    fn finish(mut self, ended: wasmtime::Result<()>) -> Result<(), Fault> {
        let state = self.store.as_mut().map(Store::data_mut);
        let fault = state.and_then(|state| match ended {
            Err(error) => fault_of(&error, state, &self.shared),
            Ok(()) => fault_of_return(state, &self.shared),
        });
        if let Some(fault) = fault {
            let _ = self.shared.fault.set(fault);
        }
        if let Some(report) = self.close() {
            report.end(fault.map_or(Outcome::Completed, Outcome::Faulted));
        }
        fault.map_or(Ok(()), Err)
    }
}

/// What is wrong with a guest that came back in good order, if anything.
fn fault_of_return(state: &mut State, shared: &Shared) -> Option<Fault> {
    if !shared.has_answered.load(Relaxed) {
        return Some(Fault::NoResponse);
    }
    // Its end would look like the body's end to the client.
    let cause = "it ended before it had finished its response";
    state.has_unfinished_body().then_some(Fault::Trap { cause })
}

fn fault_of(error: &wasmtime::Error, state: &mut State, shared: &Shared) -> Option<Fault> {
    match error.downcast_ref() {
        Some(I32Exit(0)) => return fault_of_return(state, shared),
        Some(I32Exit(_)) => return Some(Fault::Trap { cause: "it exited with a failure" }),
        None => {}
    }
    if error.is::<CpuExceeded>() {
        return Some(Fault::CpuExceeded { limit_ms: state.grant.sandbox.cpu_ms });
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Some(Fault::Saturated);
    }
    if let Some(limit_mib) = state.limiter.refused_limit_mib() {
        return Some(Fault::MemoryExceeded { limit_mib });
    }
    Some(Fault::Trap { cause: error.downcast_ref().map_or("it broke a rule of its host", cause) })
}

/// Stops a guest that has used up its CPU time.
#[derive(Debug, thiserror::Error)]
#[error("the guest used up its CPU time")]
struct CpuExceeded;

/// Runs inside the guest at every tick of the epoch: charges its CPU time and lets other tasks run.
fn on_tick(store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data();
    if state.shared.cpu.used() > Duration::from_millis(state.grant.sandbox.cpu_ms) {
        return Err(CpuExceeded.into());
    }
    // A plain `Yield` would put the task at the front of tokio's queue again.
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
}

fn cause(trap: &Trap) -> &'static str {
    match trap {
        Trap::StackOverflow => "its call stack was exhausted",
        Trap::MemoryOutOfBounds => "it accessed memory out of bounds",
        Trap::TableOutOfBounds | Trap::IndirectCallToNull | Trap::BadSignature => {
            "it called a function that is not there"
        }
        Trap::IntegerOverflow => "an integer operation overflowed",
        Trap::IntegerDivisionByZero => "it divided by zero",
        Trap::BadConversionToInteger => "it converted a float that fits no integer",
        Trap::UnreachableCodeReached => "it panicked or aborted",
        Trap::AllocationTooLarge => "it allocated too much at once",
        Trap::CannotEnterComponent => "it was entered twice",
        _ => "it broke a rule of WebAssembly",
    }
}
