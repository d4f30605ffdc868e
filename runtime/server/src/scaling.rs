//! Keeps as many sandboxes ready as the demand wants, and code in memory as long as it is used.
//!
//! 1. A version that is asked for is watched until it has neither code nor sandboxes here: what nobody asks for costs
//!    nothing, however many functions there are.
//! 2. The loop lets the autoscaler decide for each watched version, drops what is not wanted, and queues the versions
//!    that need more sandboxes.
//! 3. Fillers make them, one for each version in turn, on all cores but one.
//! 4. A request that finds the pool full takes the slot of a sandbox that nobody uses.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use sandpiper_control::{Autoscaler, FunctionVersion, Snapshot, Windows};
use sandpiper_domain::{Digest, Fault, Mode};
use sandpiper_sandbox::{FunctionCode, ReadySandbox, Sandboxes};
use tokio::sync::Notify;

use crate::{app::App, config::FileSettings, edge::Phase, functions::FunctionRuntime};

/// How often the loop looks while something moves, and otherwise.
const TICK: Duration = Duration::from_millis(100);
const TICK_IDLE: Duration = Duration::from_secs(1);
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
    queue: Mutex<VecDeque<Arc<FunctionRuntime>>>,
    queued: Notify,
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
        let scaling = Arc::new(Scaling {
            windows,
            began: Instant::now(),
            ready: AtomicUsize::new(0),
            ready_max: ready_max as usize,
            watched: Mutex::default(),
            news: Notify::new(),
            queue: Mutex::default(),
            queued: Notify::new(),
            sandboxes: sandboxes.clone(),
            codes: Codes::default(),
        });
        let weak = Arc::downgrade(&scaling);
        sandboxes.set_reclaimer(move || weak.upgrade().is_some_and(|scaling| scaling.reclaim()));
        scaling
    }

    /// Starts the loop and the fillers.
    pub(crate) fn spawn(app: &Arc<App>) {
        tokio::spawn(scale(Arc::downgrade(app)));
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for _ in 0..cores.saturating_sub(1).max(1) {
            tokio::spawn(fill(Arc::downgrade(app), app.scaling.clone()));
        }
    }

    fn watched(&self) -> MutexGuard<'_, Vec<Arc<FunctionRuntime>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arc<FunctionRuntime>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A place for one more that is ready, unless there are as many as may be or somebody waits for a slot.
    pub(crate) fn reserve(&self) -> bool {
        let next = |ready| (ready < self.ready_max).then_some(ready + 1);
        !self.sandboxes.is_wanted() && self.ready.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// So many are no longer ready.
    pub(crate) fn released(&self, count: usize) {
        if count > 0 {
            self.ready.fetch_sub(count, Relaxed);
        }
    }

    /// Has a version's missing sandboxes made.
    pub(crate) fn refill(&self, runtime: &Arc<FunctionRuntime>) {
        if runtime.fleet.queue() > 0 {
            self.queue().push_back(runtime.clone());
            self.queued.notify_one();
        }
    }

    /// Drops one sandbox that nobody uses; those of the versions that keep no more than they must, last.
    fn reclaim(&self) -> bool {
        let find = |even_kept| {
            let watched = self.watched();
            watched.iter().find_map(|runtime| runtime.fleet.reclaim(even_kept))
        };
        let Some(sandbox) = find(false).or_else(|| find(true)) else { return false };
        drop(sandbox);
        self.released(1);
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
            let is_live = version.is_some_and(|_| runtime.is_live(snapshot));
            let min = if is_live { runtime.fleet.scale.min } else { 0 };
            let at = self.began.elapsed();
            let glance = runtime.fleet.decide(at, || Autoscaler::new(self.windows), min);
            has_moved |= glance.has_moved;
            if glance.drop_code || version.is_none() {
                idle.codes.extend(runtime.drop_code());
            }
            if runtime.fleet.mode != Mode::Fresh {
                idle.sandboxes.extend(runtime.fleet.take_idle());
                self.refill(runtime);
            }
        }
        self.drop_idle(idle);
        self.watched().retain(|runtime| !runtime.fleet.unwatch(|| runtime.has_code()));
        has_moved
    }

    /// Dropping takes the kernel's time, so that it is done where nobody waits for it.
    fn drop_idle(&self, idle: Idle) {
        let Idle { sandboxes, codes } = idle;
        self.released(sandboxes.len());
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

    /// Lets go of all that is ready.
    fn retire(&self) {
        let mut idle = Idle::default();
        for runtime in &*self.watched() {
            runtime.fleet.retire(true);
            loop {
                let some = runtime.fleet.take_idle();
                if some.is_empty() {
                    break;
                }
                idle.sandboxes.extend(some);
            }
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

/// Makes sandboxes, one for each version in turn.
async fn fill(app: Weak<App>, scaling: Arc<Scaling>) {
    loop {
        let next = scaling.queue().pop_front();
        let Some(runtime) = next else {
            scaling.queued.notified().await;
            continue;
        };
        let Some(app) = app.upgrade() else { return };
        if !runtime.fleet.begin_start() {
            continue;
        }
        let has_place = scaling.reserve();
        let made = if has_place { prepare(&app, &runtime).await } else { None };
        let has_made = made.is_some();
        if has_place && !has_made {
            scaling.released(1);
        }
        // What could not be made now is asked for again by the loop.
        if let Some(unwanted) = runtime.fleet.end_start(made) {
            drop(unwanted);
            scaling.released(1);
        }
        runtime.fleet.unqueue();
        if has_made {
            scaling.refill(&runtime);
        }
    }
}

async fn prepare(app: &Arc<App>, runtime: &Arc<FunctionRuntime>) -> Option<Box<ReadySandbox>> {
    let snapshot = app.catalog.snapshot().clone();
    let version = runtime.version_in(&snapshot)?;
    let code = runtime.code(version, &app.sandboxes, &app.catalog).await;
    let code = code.inspect_err(|error| tracing::error!(%error, "no code")).ok()?;
    match app.sandboxes.prepare(&code, &version.grant, &runtime.log).await {
        Ok(sandbox) => {
            runtime.metrics.started(&sandbox);
            Some(sandbox)
        }
        Err(Fault::Saturated) => None,
        Err(fault) => {
            if runtime.fleet.start_failed() {
                let tenant = &version.grant.models.tenant;
                tracing::warn!(%tenant, function = %version.manifest.name, version = version.version, %fault,
                    "sandboxes fail as they start and are no longer made ahead");
            }
            None
        }
    }
}
