//! The engine all sandboxes share: its settings, its clock, its compiler threads and its linker.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use sandpiper_domain::{ModelSource, Unmetered};
use tokio::sync::Semaphore;
use wasmtime::{
    Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig,
    component::Linker,
};

use crate::{
    cache::{CacheKey, CodeCache},
    host::nn::{Ml, Nn},
    limits::{INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX},
    state::State,
};

/// How often running guests are interrupted to check their CPU time and let others run.
const TICK: Duration = Duration::from_millis(1);
/// The same while nothing runs: a guest that starts then is first interrupted this much later.
const TICK_IDLE: Duration = Duration::from_millis(5);
/// Components compiled at once for deployments, and as many again for requests that find no cached code, so that
/// neither waits for the other. Each uses the compiler's own threads.
const COMPILES_MAX: usize = 1;
/// Host stack that the pool keeps in memory for each slot, and the like for memories and tables (design §7).
const MEMORY_RESIDENT_BYTES: usize = 2 << 20;
const TABLE_RESIDENT_BYTES: usize = 64 << 10;
const STACK_RESIDENT_BYTES: usize = 64 << 10;

/// Settings of the sandbox plane.
pub struct Config {
    /// Where machine code is cached.
    pub cache: PathBuf,
    /// The secret that marks the cache's entries as ours.
    pub cache_key: CacheKey,
    /// Sandboxes alive at once on this node.
    pub sandboxes_max: u32,
    /// Linear memory that one sandbox may be granted, in MiB.
    pub memory_mib_max: u64,
}

/// Why the sandbox plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine refused its settings; usually the address space is limited (`ulimit -v`).
    #[error("the WebAssembly engine could not be made: {0:#}")]
    Engine(wasmtime::Error),
    /// A folder or a thread could not be made.
    #[error("the sandbox plane could not start: {0}")]
    Io(#[from] std::io::Error),
}

impl From<wasmtime::Error> for StartError {
    fn from(error: wasmtime::Error) -> Self {
        StartError::Engine(error)
    }
}

/// The sandbox plane.
pub struct Sandboxes {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<State>,
    pub(crate) cache: CodeCache,
    pub(crate) models: Arc<dyn ModelSource>,
    /// One permit for each slot of the pool: the allocator itself answers a full pool with an error.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) compiles: [Arc<Semaphore>; 2],
    pub(crate) running: Arc<AtomicUsize>,
    /// Requests that wait for a slot.
    pub(crate) waiting: AtomicUsize,
    pub(crate) unmetered: Arc<Unmetered>,
    reclaimer: OnceLock<Reclaimer>,
    slots_max: usize,
}

/// Drops one sandbox that is ready and not used; `false` where there is none.
type Reclaimer = Box<dyn Fn() -> bool + Send + Sync>;

impl Sandboxes {
    /// Makes the engine, reserves the pool and starts the ticker.
    pub fn start(config: Config, models: Arc<dyn ModelSource>) -> Result<Arc<Self>, StartError> {
        let engine = Engine::new(&engine_config(&config))?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        Ml::add_to_linker::<_, Nn>(&mut linker, State::nn)?;
        let cache = CodeCache::open(&config.cache, config.cache_key, &engine)?;
        lower_the_compiler_s_priority();
        let running = Arc::new(AtomicUsize::new(0));
        start_ticker(engine.weak(), running.clone())?;
        Ok(Arc::new(Sandboxes {
            engine,
            linker,
            cache,
            models,
            slots: Arc::new(Semaphore::new(config.sandboxes_max as usize)),
            compiles: std::array::from_fn(|_| Arc::new(Semaphore::new(COMPILES_MAX))),
            running,
            waiting: AtomicUsize::new(0),
            unmetered: Arc::new(Unmetered),
            reclaimer: OnceLock::new(),
            slots_max: config.sandboxes_max as usize,
        }))
    }

    /// Sandboxes alive now.
    pub fn alive(&self) -> usize {
        self.slots_max - self.slots.available_permits()
    }

    /// Whom a full pool asks for room. Only the first one counts.
    pub fn set_reclaimer(&self, reclaimer: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.reclaimer.set(Box::new(reclaimer));
    }

    /// Whether a request waits for a slot: no time to keep one that nobody uses.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    pub(crate) fn reclaim(&self) -> bool {
        self.reclaimer.get().is_some_and(|reclaim| reclaim())
    }

    pub(crate) fn slots_max(&self) -> usize {
        self.slots_max
    }
}

fn engine_config(config: &Config) -> wasmtime::Config {
    let slots = config.sandboxes_max;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(slots)
        // Whatever one sandbox may have, all may have at once: a slot is never short of a memory or a table. It is
        // address space that this takes, not memory.
        .total_core_instances(slots.saturating_mul(INSTANCES_MAX as u32))
        .total_memories(slots.saturating_mul(MEMORIES_MAX as u32))
        .total_tables(slots.saturating_mul(TABLES_MAX as u32))
        .total_stacks(slots)
        .max_core_instances_per_component(INSTANCES_MAX as u32)
        .max_memories_per_component(MEMORIES_MAX as u32)
        .max_tables_per_component(TABLES_MAX as u32)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size((config.memory_mib_max << 20) as usize)
        .linear_memory_keep_resident(MEMORY_RESIDENT_BYTES)
        .table_keep_resident(TABLE_RESIDENT_BYTES)
        .async_stack_keep_resident(STACK_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    let mut engine = wasmtime::Config::new();
    engine
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        // WASI 0.3 needs it and costs a third of the throughput of 0.2 (design §7).
        .concurrency_support(false)
        .wasm_threads(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_memory64(false)
        // A back-trace of a guest is of no use to its caller, and taking one is slow.
        .wasm_backtrace_max_frames(None);
    engine
}

/// Compiling must not slow down requests: its threads give way to all others.
fn lower_the_compiler_s_priority() {
    let pool = rayon::ThreadPoolBuilder::new()
        .thread_name(|n| format!("compile-{n}"))
        .start_handler(|_| give_way());
    if let Err(error) = pool.build_global() {
        tracing::debug!(%error, "the compiler's threads keep their priority");
    }
}

/// Lowers the calling thread's priority; on Linux `nice` is a thread's own.
pub(crate) fn give_way() {
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

/// The ticker holds no engine: it ends when the last real user of the engine is gone.
fn start_ticker(engine: EngineWeak, running: Arc<AtomicUsize>) -> std::io::Result<()> {
    std::thread::Builder::new().name("epoch".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(if running.load(Relaxed) > 0 { TICK } else { TICK_IDLE });
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => return,
            }
        }
    })?;
    Ok(())
}
