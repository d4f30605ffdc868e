//! One request in one sandbox.
//!
//! 1. A slot of the pool is taken, or the call waits a little for one; the clocks start when it is there. A sandbox
//!    that was made ready before has its slot already.
//! 2. The guest is polled on the caller's task. Most guests have answered and ended when that is done, and the whole
//!    invocation has cost no task of its own.
//! 3. A guest that goes on after its response head, because it streams its body, moves to a task that ends with it.
//! 4. However it ends, the observer hears of it exactly once, when the sandbox is gone or has been handed back.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use sandpiper_domain::{Activity, Deferred, Fault, Grant, Payer, Share, Usage};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

mod probe;

use crate::{
    body::GuestBody,
    code::FunctionCode,
    cpu::CpuMeter,
    engine::Sandboxes,
    guest::{Report, Sandbox, Start},
    log::{FunctionLog, InvocationLog},
    ready::ReadySandbox,
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
    /// Called once, after the sandbox is gone or has been handed back.
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
    /// Pays for inferences that end after the guest.
    pub payer: Arc<dyn Payer>,
    /// Hears of the end.
    pub observer: Box<dyn Observer>,
    /// Is given the sandbox when it may serve again; without it, the sandbox goes with the request.
    pub keeper: Option<Keeper>,
}

/// Takes a sandbox back. It is called once at most, inside the guest's last poll.
pub type Keeper = Box<dyn FnOnce(Box<ReadySandbox>) + Send>;

/// Where the sandbox of a request comes from.
pub enum Source {
    /// It is made for the request.
    Fresh(Arc<FunctionCode>),
    /// It was made before.
    Ready(Box<ReadySandbox>),
}

/// What the guest's side of an invocation and its caller's share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) cpu: CpuMeter,
    /// Why the guest ended badly. It is set before the store is dropped: dropping it ends the response's body, and
    /// whoever reads that end must be able to tell whether it was meant.
    pub(crate) fault: OnceLock<Fault>,
    pub(crate) has_answered: AtomicBool,
    /// Inferences that are too brief for another thread.
    pub(crate) brief: Arc<Deferred>,
}

pub(crate) type Head = oneshot::Sender<Response<HyperOutgoingBody>>;
/// A guest that runs, until it has ended.
pub(crate) type GuestFuture = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

impl Sandboxes {
    /// Runs one request. Dropping the future or the body drops the sandbox.
    ///
    /// The request needs an authority: in its URI or as a `host` header.
    pub async fn invoke<B>(
        self: &Arc<Self>,
        source: Source,
        request: Request<B>,
        invocation: Invocation,
    ) -> Result<Response<GuestBody>, Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error,
    {
        let Invocation { grant, log, request_id, share, activity, payer, observer, keeper } =
            invocation;
        let is_head = request.method() == Method::HEAD;
        let shared = Arc::new(Shared::default());
        let report = Report::new(observer, shared.clone());
        let slot = match &source {
            Source::Ready(_) => None,
            Source::Fresh(_) => match self.take_slot().await {
                Ok(slot) => Some(slot),
                Err(fault) => {
                    report.end(Outcome::Faulted(fault));
                    return Err(fault);
                }
            },
        };
        let limits = grant.sandbox;
        let deadline = Instant::now() + Duration::from_millis(limits.wall_ms);
        let (head_sender, head) = oneshot::channel();
        let (plane, shared_of_guest) = (self.clone(), shared.clone());
        let guest: GuestFuture = Box::pin(async move {
            let shared = shared_of_guest;
            let terms = Terms { grant, share, activity, payer, deadline };
            let (sandbox, start) = match source {
                Source::Fresh(code) => {
                    let budget = limits.log_kib as usize * 1024;
                    let log = Arc::new(InvocationLog::new(log, request_id, budget));
                    let state = State::new(terms, plane.models.clone(), shared.clone(), log);
                    (Sandbox::new(&plane, state, slot, report), Start::Code(code))
                }
                Source::Ready(ready) => {
                    let (sandbox, proxy) = ready.begin(&plane, terms, &request_id, report);
                    (sandbox, Start::Proxy(proxy))
                }
            };
            let run = sandbox.kept_by(keeper).run(start, request, head_sender);
            within(&shared, deadline, limits.wall_ms, pin!(run)).await
        });
        respond(guest, head, shared, is_head).await
    }

    /// A slot of the pool, or `Saturated` after a short wait. Those who wait are bounded by their tenants' concurrency.
    async fn take_slot(&self) -> Result<OwnedSemaphorePermit, Fault> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let _waiting = Waiting::new(&self.waiting);
        // One that nobody uses makes room for one that somebody needs.
        self.reclaim();
        match tokio::time::timeout(SLOT_WAIT_MAX, self.slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(Fault::Saturated),
        }
    }
}

/// Runs what a guest does: charges its CPU time, runs its brief inferences between its polls, and ends it at its
/// deadline.
pub(crate) async fn within<T>(
    shared: &Shared,
    deadline: Instant,
    limit_ms: u64,
    run: Pin<&mut impl Future<Output = Result<T, Fault>>>,
) -> Result<T, Fault> {
    let run = pin!(shared.cpu.charge(run));
    let run = with_brief_runs(&shared.brief, run);
    let ended = tokio::time::timeout_at(deadline.into(), run).await;
    ended.unwrap_or_else(|_| {
        let fault = Fault::WallExceeded { limit_ms };
        let _ = shared.fault.set(fault);
        Err(fault)
    })
}

/// One who waits for a slot, counted for as long as that takes.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
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
