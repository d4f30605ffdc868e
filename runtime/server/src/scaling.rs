//! Keeps as many sandboxes ready as the demand wants, and code in memory as long as it is used.
//!
//! 1. A version that is asked for is watched until it has neither code nor sandboxes here: what nobody asks for costs
//!    nothing, however many functions there are.
//! 2. The loop lets the autoscaler decide for each watched version, drops what is not wanted, and queues the versions
//!    that need more sandboxes.
//! 3. They are made for one tenant after the other, in tasks of their own, on all cores but one. A start that waits
//!    holds no core, and up only its own tenant. Each has a place among those that are ready, which bounds them.
//! 4. A request that finds the pool full takes the slot of a sandbox that nobody uses.

use std::{
    future::poll_fn,
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use sandpiper_control::{Autoscaler, FunctionVersion, Snapshot, Windows};
use sandpiper_domain::{Digest, Fault, Mode, TenantName};
use sandpiper_sandbox::{FunctionCode, ReadySandbox, Sandboxes, Started};
use tokio::sync::{Notify, Semaphore};

mod turns;

use turns::Turns;

use crate::{
    admission::TenantAdmission, app::App, config::FileSettings, edge::Phase,
    functions::FunctionRuntime,
};

/// How often the loop looks while something moves, and otherwise.
const TICK: Duration = Duration::from_millis(100);
const TICK_IDLE: Duration = Duration::from_secs(1);
/// Starts of one tenant at once, if there are the cores.
const STARTS_OF_TENANT_MAX: usize = 2;
/// How many times the usual demand is a sudden one.
const PANIC_RATIO: f64 = 2.0;

/// What all versions on this node share.
pub(crate) struct Scaling {
    windows: Windows,
    began: Instant,
    ready: AtomicUsize,
    ready_max: usize,
    watched: Mutex<Vec<Arc<FunctionRuntime>>>,
    news: Notify,
    turns: Mutex<Turns<Arc<FunctionRuntime>>>,
    queued: Notify,
    /// The cores that starts may use.
    cores: Semaphore,
    sandboxes: Arc<Sandboxes>,
    pub(crate) codes: Codes,
}

impl Scaling {
    pub(crate) fn new(settings: &FileSettings, sandboxes: Arc<Sandboxes>) -> Arc<Self> {
        let ready_max = match settings.ready_max {
            0 => settings.sandboxes_max / 2,
            max => max,
        };
        let windows = Windows {
            slow: Duration::from_millis(settings.scale_window_ms),
            fast: Duration::from_millis(settings.scale_panic_window_ms),
            panic_ratio: PANIC_RATIO,
            code_idle: Duration::from_millis(settings.code_idle_ms),
        };
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let cores = cores.saturating_sub(1).max(1);
        let scaling = Arc::new(Scaling {
            windows,
            began: Instant::now(),
            ready: AtomicUsize::new(0),
            ready_max: ready_max as usize,
            watched: Mutex::default(),
            news: Notify::new(),
            turns: Mutex::new(Turns::new(cores.min(STARTS_OF_TENANT_MAX))),
            queued: Notify::new(),
            cores: Semaphore::new(cores),
            sandboxes: sandboxes.clone(),
            codes: Codes::default(),
        });
        let weak = Arc::downgrade(&scaling);
        sandboxes.set_reclaimer(move || weak.upgrade().is_some_and(|scaling| scaling.reclaim()));
        scaling
    }

    /// Starts the loop, and what makes sandboxes.
    pub(crate) fn spawn(app: &Arc<App>) {
        tokio::spawn(scale(Arc::downgrade(app)));
        tokio::spawn(fill(Arc::downgrade(app), app.scaling.clone()));
    }

    fn watched(&self) -> MutexGuard<'_, Vec<Arc<FunctionRuntime>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, Turns<Arc<FunctionRuntime>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a version that was not watched before.
    pub(crate) fn add(&self, runtime: Arc<FunctionRuntime>) {
        self.watched().push(runtime);
        self.news.notify_one();
    }

    /// Sandboxes that are ready, or about to be.
    pub(crate) fn ready(&self) -> usize {
        self.ready.load(Relaxed)
    }

    /// A place for one more of a tenant that is ready, unless it or the node has as many as may be or somebody waits
    /// for a slot.
    pub(crate) fn reserve(&self, tenant: &TenantAdmission) -> bool {
        let take = |ready: &AtomicUsize, max| {
            let next = |ready| (ready < max).then_some(ready + 1);
            ready.fetch_update(Relaxed, Relaxed, next).is_ok()
        };
        if self.sandboxes.is_wanted() || !take(&tenant.ready, tenant.ready_max(self.ready_max)) {
            return false;
        }
        let has_place = take(&self.ready, self.ready_max);
        if !has_place {
            tenant.ready.fetch_sub(1, Relaxed);
        }
        has_place
    }

    /// So many of a tenant are no longer ready.
    pub(crate) fn released(&self, tenant: &TenantAdmission, count: usize) {
        if count > 0 {
            self.ready.fetch_sub(count, Relaxed);
            tenant.ready.fetch_sub(count, Relaxed);
        }
    }

    /// Has a version's missing sandboxes made.
    pub(crate) fn refill(&self, runtime: &Arc<FunctionRuntime>) {
        if runtime.fleet.queue() > 0 {
            self.turns().push(runtime.tenant_name(), runtime.clone());
            self.queued.notify_one();
        }
    }

    /// Drops one sandbox that nobody uses; those of the versions that keep no more than they must, last.
    fn reclaim(&self) -> bool {
        let find = |even_kept| {
            let watched = self.watched();
            watched.iter().find_map(|runtime| {
                let sandbox = runtime.fleet.reclaim(even_kept)?;
                Some((runtime.tenant.clone(), sandbox))
            })
        };
        let Some((tenant, sandbox)) = find(false).or_else(|| find(true)) else { return false };
        drop(sandbox);
        self.released(&tenant, 1);
        metrics::counter!("sandpiper_sandboxes_reclaimed_total").increment(1);
        true
    }

    /// Looks at every version once; `true` when something moves.
    fn tick(&self, snapshot: &Snapshot) -> bool {
        let mut has_moved = false;
        let mut idle = Idle::default();
        let watched = self.watched().clone();
        for runtime in &watched {
            let version = runtime.version_in(snapshot);
            runtime.fleet.retire(version.is_none());
            // Who has used up a budget keeps what it is asked for alone, which is nothing before long.
            let has_budget = runtime.tenant.has_budget();
            let min = match version {
                // What the tier allows may have changed since the version was uploaded.
                Some(version) if has_budget && runtime.is_live(snapshot) => {
                    runtime.fleet.scale.min.min(version.grant.tenant.sandboxes)
                }
                _ => 0,
            };
            let at = self.began.elapsed();
            let glance = runtime.fleet.decide(at, || Autoscaler::new(self.windows), min);
            has_moved |= glance.has_moved;
            if glance.drop_code || version.is_none() {
                idle.codes.extend(runtime.drop_code());
            }
            if runtime.fleet.mode != Mode::Fresh {
                self.take_idle(runtime, &mut idle);
                if has_budget {
                    self.refill(runtime);
                }
            }
        }
        self.drop_idle(idle);
        self.watched().retain(|runtime| {
            // Nobody tells when there is a new budget.
            let is_owed = runtime.fleet.scale.min > 0
                && !runtime.tenant.has_budget()
                && runtime.is_live(snapshot);
            is_owed || !runtime.fleet.unwatch(|| runtime.has_code())
        });
        has_moved
    }

    /// Takes what a version does not want any more; `false` where that is nothing.
    fn take_idle(&self, runtime: &FunctionRuntime, idle: &mut Idle) -> bool {
        let sandboxes = runtime.fleet.take_idle();
        self.released(&runtime.tenant, sandboxes.len());
        let is_some = !sandboxes.is_empty();
        idle.sandboxes.extend(sandboxes);
        is_some
    }

    /// Dropping takes the kernel's time, so that it is done where nobody waits for it.
    fn drop_idle(&self, idle: Idle) {
        let Idle { sandboxes, codes } = idle;
        if sandboxes.is_empty() && codes.is_empty() {
            return;
        }
        let all = self.codes.clone();
        tokio::task::spawn_blocking(move || {
            drop(sandboxes);
            for (digest, code) in codes {
                drop(code);
                all.forget(&digest);
            }
        });
    }

    /// Watches the versions that keep sandboxes ready although nobody may have asked for them yet.
    fn watch_kept(&self, app: &App, snapshot: &Snapshot) {
        for tenant in snapshot.tenants() {
            for (name, function) in &tenant.functions {
                let kept = |version: &FunctionVersion| version.manifest.scale.min > 0;
                for (number, version) in function.versions.iter() {
                    if kept(version) && function.versions.is_aliased(number) {
                        let admission = || app.admission(tenant);
                        app.functions.get(&tenant.name, name, version, admission).watch();
                    }
                }
            }
        }
    }

    /// Lets go of all that is ready, and bills it. Nothing is made ready any more.
    pub(crate) fn retire(&self) {
        let mut idle = Idle::default();
        for runtime in &*self.watched() {
            runtime.fleet.retire(true);
            while self.take_idle(runtime, &mut idle) {}
            runtime.fleet.bill();
        }
        self.drop_idle(idle);
    }
}

/// What is not wanted any more.
#[derive(Default)]
struct Idle {
    #[allow(clippy::vec_box, reason = "they come and go in boxes")]
    sandboxes: Vec<Box<ReadySandbox>>,
    codes: Vec<(Digest, Arc<FunctionCode>)>,
}

/// The code in memory: versions of the same component share it.
#[derive(Clone, Default)]
pub(crate) struct Codes(Arc<DashMap<Digest, Weak<FunctionCode>>>);

impl Codes {
    pub(crate) fn find(&self, digest: &Digest) -> Option<Arc<FunctionCode>> {
        self.0.get(digest)?.upgrade()
    }

    /// Shares code that was loaded; where another was there before, that one counts.
    pub(crate) fn share(&self, digest: Digest, code: FunctionCode) -> Arc<FunctionCode> {
        let mut entry = self.0.entry(digest).or_default();
        if let Some(code) = entry.upgrade() {
            return code;
        }
        let code = Arc::new(code);
        *entry = Arc::downgrade(&code);
        code
    }

    fn forget(&self, digest: &Digest) {
        self.0.remove_if(digest, |_, code| code.strong_count() == 0);
    }

    /// Components whose code is in memory.
    pub(crate) fn resident(&self) -> usize {
        self.0.iter().filter(|entry| entry.value().strong_count() > 0).count()
    }

    /// Forgets what is gone; requests may have held it longest.
    pub(crate) fn sweep(&self) {
        self.0.retain(|_, code| code.strong_count() > 0);
    }
}

async fn scale(app: Weak<App>) {
    let Some((scaling, drain)) =
        app.upgrade().map(|app| (app.scaling.clone(), app.reaches(Phase::Draining)))
    else {
        return;
    };
    let mut drain = std::pin::pin!(drain);
    let mut seen: Option<Arc<Snapshot>> = None;
    let mut pause = TICK;
    loop {
        tokio::select! {
            () = &mut drain => return scaling.retire(),
            () = tokio::time::sleep(pause) => {}
            // What is new is looked at soon, but never more often than all else.
            () = scaling.news.notified(), if pause > TICK => tokio::time::sleep(TICK).await,
        }
        let Some(app) = app.upgrade() else { return };
        let snapshot = app.catalog.snapshot().clone();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &snapshot)) {
            scaling.watch_kept(&app, &snapshot);
            seen = Some(snapshot.clone());
        }
        pause = if scaling.tick(&snapshot) { TICK } else { TICK_IDLE };
    }
}

/// Has sandboxes made, for one tenant after the other.
async fn fill(app: Weak<App>, scaling: Arc<Scaling>) {
    loop {
        let next = scaling.turns().next();
        let Some((tenant, runtime)) = next else {
            scaling.queued.notified().await;
            continue;
        };
        let turn = Turn { scaling: scaling.clone(), tenant };
        let Some(app) = app.upgrade() else { return };
        tokio::spawn(async move {
            start(&app, &runtime).await;
            drop(turn);
        });
    }
}

/// A tenant's start that is under way, until it is dropped.
struct Turn {
    scaling: Arc<Scaling>,
    tenant: TenantName,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.scaling.turns().done(&self.tenant);
        self.scaling.queued.notify_one();
    }
}

/// Makes one sandbox of a version that is queued, and queues it again where it needs more.
async fn start(app: &Arc<App>, runtime: &Arc<FunctionRuntime>) {
    let scaling = &app.scaling;
    if !runtime.tenant.has_budget() {
        return runtime.fleet.unqueue();
    }
    if !runtime.fleet.begin_start() {
        return;
    }
    let has_place = scaling.reserve(&runtime.tenant);
    let made = if has_place { prepare(app, runtime).await } else { None };
    let has_made = made.is_some();
    if has_place && !has_made {
        scaling.released(&runtime.tenant, 1);
    }
    // What could not be made now is asked for again by the loop.
    if let Some(unwanted) = runtime.fleet.end_start(made) {
        drop(unwanted);
        scaling.released(&runtime.tenant, 1);
    }
    runtime.fleet.unqueue();
    if has_made {
        scaling.refill(runtime);
    }
}

async fn prepare(app: &Arc<App>, runtime: &Arc<FunctionRuntime>) -> Option<Box<ReadySandbox>> {
    let snapshot = app.catalog.snapshot().clone();
    let version = runtime.version_in(&snapshot)?;
    let code = runtime.code(version, &app.sandboxes, &app.catalog).await;
    let code = code.inspect_err(|error| tracing::error!(%error, "no code")).ok()?;
    let start = app.sandboxes.prepare(&code, &version.grant, &runtime.log);
    let Started { sandbox, usage } = on_cores(&app.scaling.cores, start).await;
    runtime.metrics.started(&usage);
    runtime.meter.started(&usage);
    match sandbox {
        Ok(sandbox) => Some(sandbox),
        Err(Fault::Saturated) => None,
        Err(fault) => {
            if runtime.fleet.start_failed(fault) {
                let tenant = &version.grant.models.tenant;
                tracing::warn!(%tenant, function = %version.manifest.name, version = version.version, %fault,
                    "sandboxes fail as they start and are no longer made ahead");
            }
            None
        }
    }
}

/// Polls a future only with one of the cores in hand, and holds none while it waits.
async fn on_cores<F: Future>(cores: &Semaphore, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        let core = cores.acquire().await;
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        drop(core);
        if let Poll::Ready(output) = polled {
            return output;
        }
        // Whatever wakes the future wakes this task.
        let mut has_waited = false;
        poll_fn(|_| match std::mem::replace(&mut has_waited, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_holds_no_core() {
        let cores = Semaphore::new(1);
        let (told, heard) = tokio::sync::oneshot::channel();
        let waits = on_cores(&cores, heard);
        let tells = on_cores(&cores, async {
            tokio::task::yield_now().await;
            assert_eq!(cores.available_permits(), 0);
            told.send(7)
        });
        let (heard, sent) = tokio::join!(waits, tells);
        assert_eq!((heard, sent), (Ok(7), Ok(())));
        assert_eq!(cores.available_permits(), 1);
    }
}
