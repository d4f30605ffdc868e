//! The child's side of a trial.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    thread,
};

use bytes::Bytes;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit,
};
use sandpiper_domain::{ModelOptions, NamedTensor, Tensor};

use super::{Limits, MEMORY_EXIT, Order, Verdict};
use crate::{Batching, LoadError, alloc, backend::tract, contain, loader::warm_up};

/// The order's line: names and shapes of samples, whose number is bounded where they are received.
const ORDER_BYTES_MAX: u64 = 8 << 20;
/// Optimising deep graphs recurses.
const STACK_BYTES: usize = 64 << 20;
/// mimalloc reserves address space in steps of 1 GiB, and the program has its own data.
const DATA_SLACK_BYTES: u64 = 2 << 30;
/// An exit code for what the parent cannot make sense of.
const FAILED_EXIT: u8 = 1;

/// Tries the model on stdin within the limits that come with it, and writes the verdict to stdout: the whole work of a
/// trial process, to be called first thing in it. Gives the exit code.
pub fn try_model() -> u8 {
    match work() {
        Ok(()) => 0,
        Err(_) => FAILED_EXIT,
    }
}

fn work() -> io::Result<()> {
    // Before a byte of a tenant's is read.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    close_what_was_inherited();
    let mut stdin = BufReader::new(io::stdin());
    let mut line = Vec::new();
    (&mut stdin).take(ORDER_BYTES_MAX).read_until(b'\n', &mut line)?;
    let order: Order = serde_json::from_slice(&line)?;
    // A parent that was gone before the signal was asked for sends none.
    let parent = getppid().map(Pid::as_raw_pid);
    if parent.is_none() || parent != i32::try_from(order.parent).ok() {
        return Err(io::Error::other("the parent is gone"));
    }
    confine(order.limits)?;
    let mut model = vec![0; order.model_bytes];
    stdin.read_exact(&mut model)?;
    let samples = samples(&order, &mut stdin)?;
    contain::install_hook();
    let memory = usize::try_from(order.limits.memory_bytes).unwrap_or(usize::MAX);
    let tried = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        alloc::within_or_exit(memory, MEMORY_EXIT, || {
            // What batches bring is measured where the model will run.
            let unmeasured = Batching::default();
            let options = ModelOptions::default();
            let program = tract::load(&model, &options, &samples, Some(&unmeasured))?;
            warm_up(&*program, &samples)
        })
    })?;
    let verdict: Verdict = tried.join().unwrap_or(Err(LoadError::Panicked));
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &verdict)?;
    stdout.flush()
}

/// Descriptors close by themselves at the start of a program unless somebody forgot to say so.
fn close_what_was_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: this process has opened nothing yet, so that no descriptor from 3 on belongs to anybody in it.
    #[allow(unsafe_code)]
    unsafe {
        libc::close_range(FIRST, libc::c_uint::MAX, 0);
    }
}

fn confine(limits: Limits) -> io::Result<()> {
    let set = |resource, current: u64, maximum: u64| {
        setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })
    };
    set(Resource::Core, 0, 0)?;
    set(Resource::Fsize, 0, 0)?;
    // The signal for the first ends the process and says why; the second is for whoever ignores it.
    set(Resource::Cpu, limits.cpu_s, limits.cpu_s.saturating_add(1))?;
    // The allocator keeps the limit by itself, to the byte; this is for what does not go through it.
    let data = limits.memory_bytes.saturating_add(DATA_SLACK_BYTES);
    set(Resource::Data, data, data)?;
    Ok(())
}

fn samples(order: &Order, stdin: &mut impl Read) -> io::Result<Vec<Vec<NamedTensor>>> {
    let mut read = |spec: &super::SampleTensor| {
        let mut data = vec![0; spec.bytes];
        stdin.read_exact(&mut data)?;
        let tensor = Tensor::new(spec.datatype, &spec.shape, Bytes::from(data));
        let tensor = tensor.map_err(io::Error::other)?;
        Ok(NamedTensor { name: spec.name.clone(), tensor })
    };
    order.samples.iter().map(|sample| sample.iter().map(&mut read).collect()).collect()
}
