//! One request in one fresh sandbox.
//!
//! 1. A slot of the pool is taken, or the call waits for one.
//! 2. The guest is polled on the caller's task. Most guests have answered and ended when that is done, and the whole
//!    invocation has cost no task of its own.
//! 3. A guest that goes on after its response head, because it streams its body, moves to a task that ends with it.
//! 4. However it ends, the observer hears of it exactly once, when the sandbox is gone.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use sandpiper_domain::{Fault, Grant, Usage};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime::{Store, StoreContextMut, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::{
    Error as HttpError, WasiHttpView,
    p2::{
        bindings::http::types::{ErrorCode, Scheme},
        body::HyperOutgoingBody,
    },
};

mod probe;

use crate::{
    body::GuestBody,
    code::FunctionCode,
    cpu::{CpuMeter, Metered},
    engine::Sandboxes,
    limits::{HOSTCALL_BYTES_MAX, RESOURCES_MAX},
    log::{FunctionLog, InvocationLog},
    state::State,
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
    /// Hears of the end.
    pub observer: Box<dyn Observer>,
}

type Head = Result<Response<HyperOutgoingBody>, ErrorCode>;
type GuestFuture = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

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
        let limits = invocation.grant.sandbox;
        let wall = Duration::from_millis(limits.wall_ms);
        let wall_exceeded = Fault::WallExceeded { limit_ms: limits.wall_ms };
        let deadline = Instant::now() + wall;
        let cpu = Arc::new(CpuMeter::default());
        let fault = Arc::new(OnceLock::new());
        let (head_sender, mut head) = oneshot::channel();
        let guest = Metered::new(
            cpu.clone(),
            self.clone().run(
                code.clone(),
                request,
                invocation,
                head_sender,
                cpu,
                fault.clone(),
                deadline,
            ),
        );
        let fault_of_guest = fault.clone();
        let mut guest: GuestFuture = Box::pin(async move {
            // The guest outlives the wait for it, so that its sandbox, when it is dropped, knows the cause.
            let mut guest = pin!(guest);
            let ended = match tokio::time::timeout_at(deadline.into(), guest.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => Err(wall_exceeded),
            };
            if let Err(fault) = ended {
                let _ = fault_of_guest.set(fault);
            }
            ended
        });
        let first = poll_fn(|context| match guest.as_mut().poll(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            // Only the guest sends the head, and only while it is polled, so it is there by now or not yet.
            Poll::Pending if head_is_there(&mut head) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        let rest = match first {
            Some(ended) => {
                ended?;
                None
            }
            None => Some(guest),
        };
        let response = match head.await {
            Ok(Ok(response)) => response,
            // The guest answered with an error code of its own instead of a response.
            Ok(Err(_)) | Err(_) => return Err(Fault::NoResponse),
        };
        Ok(response.map(|body| GuestBody::new(body, rest, fault)))
    }

    async fn run<B>(
        self: Arc<Self>,
        code: FunctionCode,
        request: Request<B>,
        invocation: Invocation,
        head: oneshot::Sender<Head>,
        cpu: Arc<CpuMeter>,
        fault: Arc<OnceLock<Fault>>,
        deadline: Instant,
    ) -> Result<(), Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let _slot = self.take_slot().await?;
        let Invocation { grant, log, request_id, observer } = invocation;
        let log_bytes = grant.sandbox.log_kib as usize * 1024;
        let log = Arc::new(InvocationLog::new(log, request_id, log_bytes));
        let state = State::new(grant, self.models.clone(), cpu.clone(), log, deadline);
        let mut sandbox = Sandbox::new(&self, state, observer, cpu, fault);
        let ended = sandbox.handle(&code, request, head).await;
        sandbox.finish(ended)
    }
}

impl Sandboxes {
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

fn head_is_there(head: &mut oneshot::Receiver<Head>) -> bool {
    !head.is_empty()
}

/// A store that reports its end, on whatever path it goes.
struct Sandbox<'a> {
    store: Option<Store<State>>,
    observer: Option<Box<dyn Observer>>,
    plane: &'a Sandboxes,
    cpu: Arc<CpuMeter>,
    fault: Arc<OnceLock<Fault>>,
}

impl<'a> Sandbox<'a> {
    fn new(
        plane: &'a Sandboxes,
        state: State,
        observer: Box<dyn Observer>,
        cpu: Arc<CpuMeter>,
        fault: Arc<OnceLock<Fault>>,
    ) -> Self {
        let hostcall_bytes = (state.grant.sandbox.tensor_mib << 20) as usize + HOSTCALL_BYTES_MAX;
        let mut store = Store::new(&plane.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(on_tick);
        store.set_hostcall_fuel(hostcall_bytes);
        store.set_max_component_handles(RESOURCES_MAX);
        plane.running.fetch_add(1, Relaxed);
        Sandbox { store: Some(store), observer: Some(observer), plane, cpu, fault }
    }

    async fn handle<B>(
        &mut self,
        code: &FunctionCode,
        request: Request<B>,
        head: oneshot::Sender<Head>,
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
        let response = store.data_mut().http().new_response_outparam(head)?;
        proxy.wasi_http_incoming_handler().call_handle(store, request, response).await
    }

    /// Names the end. The fault is set before the store is dropped: dropping it ends the response's body, and whoever
    /// reads that end must be able to tell whether it was meant.
    fn finish(&mut self, ended: wasmtime::Result<()>) -> Result<(), Fault> {
        let outcome = match (&ended, &self.store) {
            (Err(error), Some(store)) => self.fault_of(error, store.data()),
            _ => None,
        };
        match outcome {
            Some(fault) => {
                let _ = self.fault.set(fault);
                self.end(Outcome::Faulted(fault));
                Err(fault)
            }
            None => {
                self.end(Outcome::Completed);
                Ok(())
            }
        }
    }

    fn fault_of(&self, error: &wasmtime::Error, state: &State) -> Option<Fault> {
        if error.downcast_ref::<I32Exit>().is_some() {
            // `exit` ends a guest in good order; whether it had answered is seen by the caller.
            return None;
        }
        if let Some(CpuExceeded) = error.downcast_ref() {
            return Some(Fault::CpuExceeded { limit_ms: state.grant.sandbox.cpu_ms });
        }
        if let Some(limit_mib) = state.limiter.refused_limit_mib() {
            return Some(Fault::MemoryExceeded { limit_mib });
        }
        Some(Fault::Trap {
            cause: error.downcast_ref().map_or("it broke a rule of its host", cause),
        })
    }

    fn end(&mut self, outcome: Outcome) {
        let Some(store) = self.store.take() else { return };
        let usage = Usage { cpu: self.cpu.used(), ..store.data().usage() };
        drop(store);
        self.plane.running.fetch_sub(1, Relaxed);
        if let Some(observer) = self.observer.take() {
            observer.ended(outcome, usage);
        }
    }
}

impl Drop for Sandbox<'_> {
    /// Reached with a store only when the future was dropped: at the wall limit, or because the caller went away.
    fn drop(&mut self) {
        let outcome = self.fault.get().map_or(Outcome::Cancelled, |fault| Outcome::Faulted(*fault));
        self.end(outcome);
    }
}

/// Stops a guest that has used up its CPU time.
#[derive(Debug, thiserror::Error)]
#[error("the guest used up its CPU time")]
struct CpuExceeded;

/// Runs inside the guest at every tick of the epoch: charges its CPU time and lets other tasks run.
fn on_tick(store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data();
    if state.cpu.used() > Duration::from_millis(state.grant.sandbox.cpu_ms) {
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
