//! A guest at work: its store, how it ends, and what its end is called.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use sandpiper_domain::{Fault, Usage};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{PoolConcurrencyLimitError, Store, StoreContextMut, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::{
    Error as HttpError, WasiHttpView,
    p2::{
        bindings::{Proxy, http::types::Scheme},
        types::HostResponseOutparam,
    },
};

use crate::{
    code::FunctionCode,
    engine::Sandboxes,
    invoke::{Head, Keeper, Observer, Outcome, Shared},
    limits::{HOSTCALL_BYTES_MAX, RESOURCES_MAX},
    ready::ReadySandbox,
    state::State,
};

/// Tells the observer, exactly once: how it ended, or when it is dropped because the caller went away.
pub(crate) struct Report {
    observer: Option<Box<dyn Observer>>,
    usage: Usage,
    shared: Arc<Shared>,
}

impl Report {
    pub(crate) fn new(observer: Box<dyn Observer>, shared: Arc<Shared>) -> Self {
        Report { observer: Some(observer), usage: Usage::default(), shared }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    pub(crate) fn end(mut self, outcome: Outcome) {
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

/// From what a request's sandbox starts.
pub(crate) enum Start {
    /// From code that has to be instantiated.
    Code(Arc<FunctionCode>),
    /// From an instance that is there.
    Proxy(Proxy),
}

/// A store that reports its end, on whatever path it goes.
pub(crate) struct Sandbox<'a> {
    /// Gone once it has ended.
    store: Option<Store<State>>,
    /// There once the guest has come back.
    proxy: Option<Proxy>,
    plane: &'a Sandboxes,
    report: Option<Report>,
    shared: Arc<Shared>,
    keeper: Option<Keeper>,
    began: Instant,
    /// Requests served before this one.
    served: u32,
    /// Behind the store, which must be gone when another takes its place.
    slot: Option<OwnedSemaphorePermit>,
}

impl Drop for Sandbox<'_> {
    /// Reached with a store only when the future was dropped: at the wall limit, or because the caller went away.
    fn drop(&mut self) {
        drop(self.close());
    }
}

impl<'a> Sandbox<'a> {
    pub(crate) fn new(
        plane: &'a Sandboxes,
        state: State,
        slot: Option<OwnedSemaphorePermit>,
        report: Report,
    ) -> Self {
        Sandbox::of(plane, new_store(plane, state), slot, 0, report)
    }

    /// Goes on with a store that was made before and has served so many requests.
    pub(crate) fn of(
        plane: &'a Sandboxes,
        store: Store<State>,
        slot: Option<OwnedSemaphorePermit>,
        served: u32,
        report: Report,
    ) -> Self {
        plane.running.fetch_add(1, Relaxed);
        let shared = report.shared.clone();
        Sandbox {
            store: Some(store),
            proxy: None,
            plane,
            report: Some(report),
            shared,
            keeper: None,
            began: Instant::now(),
            served,
            slot,
        }
    }

    /// Has it handed back when it may serve again.
    pub(crate) fn kept_by(mut self, keeper: Option<Keeper>) -> Self {
        self.keeper = keeper;
        self
    }

    #[doc(hidden)]
    pub(crate) fn store(&mut self) -> Option<&mut Store<State>> {
        self.store.as_mut()
    }

    /// Takes what it has cost, then drops the store, unless it may serve again.
    fn close(&mut self) -> Option<Report> {
        let (mut store, mut report) = (self.store.take()?, self.report.take()?);
        report.usage = Usage { cpu: self.shared.cpu.used(), ..store.data_mut().settle() };
        let kept = match (self.keeper.take(), self.proxy.take(), self.slot.take()) {
            (Some(keeper), Some(proxy), Some(slot)) if store.data_mut().rest() => {
                Some((keeper, Box::new(ReadySandbox::new(store, proxy, slot, self.served + 1))))
            }
            (_, _, slot) => {
                drop(store);
                self.slot = slot;
                None
            }
        };
        report.usage.lifetime = self.began.elapsed();
        self.plane.running.fetch_sub(1, Relaxed);
        // Before the end is told: whoever comes in then finds it.
        if let Some((keeper, sandbox)) = kept {
            keeper(sandbox);
        }
        Some(report)
    }

    pub(crate) async fn run<B>(
        mut self,
        start: Start,
        request: Request<B>,
        head: Head,
    ) -> Result<(), Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let ended = self.handle(start, request, head).await;
        self.finish(ended)
    }

    async fn handle<B>(
        &mut self,
        start: Start,
        request: Request<B>,
        head: Head,
    ) -> wasmtime::Result<()>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let Some(store) = &mut self.store else { return Ok(()) };
        let proxy = match start {
            Start::Code(code) => code.pre.instantiate_async(&mut *store).await?,
            Start::Proxy(proxy) => proxy,
        };
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
        proxy.wasi_http_incoming_handler().call_handle(store, request, response).await?;
        // Only one that came back by itself may be entered again: an exit or a trap leaves it in no known state.
        self.proxy = Some(proxy);
        Ok(())
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
            self.keeper = None;
        }
        if let Some(report) = self.close() {
            report.end(fault.map_or(Outcome::Completed, Outcome::Faulted));
        }
        fault.map_or(Ok(()), Err)
    }
}

/// A store under the limits of its grant.
pub(crate) fn new_store(plane: &Sandboxes, state: State) -> Store<State> {
    let hostcall_bytes = (state.grant.sandbox.tensor_mib << 20) as usize + HOSTCALL_BYTES_MAX;
    let mut store = Store::new(&plane.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(on_tick);
    store.set_hostcall_fuel(hostcall_bytes);
    store.set_max_component_handles(RESOURCES_MAX);
    store
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

pub(crate) fn fault_of(
    error: &wasmtime::Error,
    state: &mut State,
    shared: &Shared,
) -> Option<Fault> {
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
