//! The trial of an upload: parsed, optimised and run once in a child process that has limits and can be killed. A graph
//! that eats memory or time without end, or that brings its process down, takes nothing of the server with it.
//!
//! The parent's side is here, the child's in `child.rs`. The child is this program itself, started with an argument.
//! It gets a line of JSON, the model and the samples' bytes on its stdin, and answers with one value of JSON on its
//! stdout.

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use sandpiper_domain::DataType;
use serde::{Deserialize, Serialize};

use crate::{LoadError, ModelSpec};

mod child;

pub use child::try_model;

/// The exit code of a child that would hold more memory than it may.
const MEMORY_EXIT: i32 = 86;
/// An answer is one small value; a longer one is none.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// How often the weights may be in memory while a plan is made of them, and as many seconds of processor time for each
/// of these many bytes of a file: optimising walks through all weights several times.
const WEIGHTS_HELD: u64 = 8;
const BYTES_PER_CPU_SECOND: u64 = 4 << 20;
/// The wall clock gets this many times the processor time, and no less than so much: the machine has other work. The
/// thread that waits for a trial serves nobody else meanwhile.
const WALL_PER_CPU: u64 = 3;
const WALL_S_MIN: u64 = 30;

/// How uploads are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The program to start, which calls [`try_model`].
    pub program: PathBuf,
    /// What tells it to.
    pub arguments: Vec<OsString>,
    /// Memory that the child may hold, in bytes, beside eight times the size of the file.
    pub memory_bytes: u64,
    /// Processor time that it may take, in seconds, beside one for each 4 MiB of the file.
    pub cpu_s: u64,
    /// How many times as long it may take by the wall clock.
    pub wall_per_cpu: u64,
    /// And how long it may take by the wall clock at least, in seconds.
    pub wall_s_min: u64,
}

impl Trial {
    /// With the usual limits: values inside a graph may take 1 GiB each, and half as much is left for the rest; half a
    /// minute is several times what optimising a small graph takes on a slow machine.
    pub fn new(program: PathBuf, arguments: Vec<OsString>) -> Self {
        let (memory_bytes, cpu_s, wall_per_cpu) = (1536 << 20, 30, WALL_PER_CPU);
        let wall_s_min = WALL_S_MIN;
        Trial { program, arguments, memory_bytes, cpu_s, wall_per_cpu, wall_s_min }
    }

    fn limits(&self, file: u64) -> Limits {
        let memory_bytes = self.memory_bytes.saturating_add(file.saturating_mul(WEIGHTS_HELD));
        let cpu_s = self.cpu_s.saturating_add(file / BYTES_PER_CPU_SECOND);
        let wall_s = cpu_s.saturating_mul(self.wall_per_cpu).max(self.wall_s_min);
        Limits { memory_bytes, cpu_s, wall_s }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Limits {
    memory_bytes: u64,
    cpu_s: u64,
    wall_s: u64,
}

impl Limits {
    fn memory_mib(&self) -> u64 {
        self.memory_bytes >> 20
    }
}

/// The first line that the child reads. What follows are the bytes of the model and of the samples' tensors, in order.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    parent: u32,
    limits: Limits,
    model_bytes: usize,
    samples: Vec<Vec<SampleTensor>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SampleTensor {
    name: String,
    datatype: DataType,
    shape: Vec<u64>,
    bytes: usize,
}

type Verdict = Result<(), LoadError>;

impl Trial {
    /// Tries a model in a child process, and waits for its verdict.
    pub(crate) fn run(&self, spec: &ModelSpec) -> Verdict {
        let limits = self.limits(spec.bytes.len() as u64);
        let mut command = Command::new(&self.program);
        // Everything else that this process has open closes by itself when another program takes over.
        command.args(&self.arguments).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(not_tried)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let child = Running(Mutex::new(child));
        let Some((stdin, stdout)) = pipes else { return Err(not_tried("it has no pipes")) };
        let is_late = AtomicBool::new(false);
        let outcome = thread::scope(|scope| {
            let (over, is_over) = channel::<()>();
            let watch = || {
                if is_over.recv_timeout(Duration::from_secs(limits.wall_s))
                    == Err(RecvTimeoutError::Timeout)
                {
                    is_late.store(true, Relaxed);
                    child.kill();
                }
                // Received, or the other end is gone: the watch is over either way.
                drop(is_over);
            };
            // A machine out of threads is an error, and no panic.
            thread::Builder::new().spawn_scoped(scope, watch)?;
            thread::Builder::new().spawn_scoped(scope, || give(stdin, limits, spec))?;
            let mut answer = Vec::new();
            let read = stdout.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer);
            let verdict = read.ok().and_then(|_| serde_json::from_slice::<Verdict>(&answer).ok());
            let is_flood = answer.len() as u64 > ANSWER_BYTES_MAX;
            if verdict.is_some() || is_flood {
                child.kill();
            }
            let status = child.wait();
            drop(over);
            Ok((if is_flood { Some(Err(LoadError::TrialCrashed)) } else { verdict }, status))
        });
        match outcome.map_err(|error: std::io::Error| not_tried(error))? {
            (Some(verdict), _) => verdict,
            (None, Err(error)) => Err(not_tried(error)),
            (None, Ok(status)) => Err(ended(status, is_late.load(Relaxed), limits)),
        }
    }
}

/// The child may end before it has read everything; its verdict or its end says why.
fn give(mut stdin: ChildStdin, limits: Limits, spec: &ModelSpec) {
    let tensor = |input: &sandpiper_domain::NamedTensor| SampleTensor {
        name: input.name.clone(),
        datatype: input.tensor.datatype(),
        shape: input.tensor.shape().iter().map(|size| *size as u64).collect(),
        bytes: input.tensor.data().len(),
    };
    let order = Order {
        parent: std::process::id(),
        limits,
        model_bytes: spec.bytes.len(),
        samples: spec.samples.iter().map(|sample| sample.iter().map(tensor).collect()).collect(),
    };
    let Ok(mut line) = serde_json::to_vec(&order) else { return };
    line.push(b'\n');
    let tensors = spec.samples.iter().flatten().map(|input| &input.tensor.data()[..]);
    for bytes in [&line[..], &spec.bytes].into_iter().chain(tensors) {
        if stdin.write_all(bytes).is_err() {
            return;
        }
    }
}

/// A child that does not outlive this, however its trial ends.
struct Running(Mutex<Child>);

impl Running {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) {
        let _ = self.child().kill();
    }

    /// Waits without holding the lock, so that the watch can kill meanwhile.
    fn wait(&self) -> std::io::Result<ExitStatus> {
        const PAUSE: Duration = Duration::from_millis(1);
        loop {
            let ended = self.child().try_wait()?;
            match ended {
                Some(status) => return Ok(status),
                None => thread::sleep(PAUSE),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing to one that has been waited for.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn not_tried(error: impl std::fmt::Display) -> LoadError {
    LoadError::Bytes(format!("the trial process of a model could not be run: {error}"))
}

/// What it means that a child ended without a verdict.
fn ended(status: ExitStatus, is_late: bool, limits: Limits) -> LoadError {
    let cpu = LoadError::TrialCpu { limit_s: limits.cpu_s };
    let memory = LoadError::TrialMemory { limit_mib: limits.memory_mib() };
    match (status.code(), status.signal()) {
        _ if is_late => LoadError::TrialWall { limit_s: limits.wall_s },
        (Some(MEMORY_EXIT), _) => memory,
        (_, Some(libc::SIGXCPU)) => cpu,
        // Nobody here has killed it, so the machine has: for want of memory.
        (_, Some(libc::SIGKILL)) => memory,
        _ => LoadError::TrialCrashed,
    }
}

#[cfg(test)]
mod tests;
