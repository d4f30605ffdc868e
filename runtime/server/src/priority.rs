//! How soon the threads that answer get a core that others compute on.

use std::mem::size_of;

/// The slice that a serving thread asks the kernel's scheduler for, in ns: the shortest that Linux grants.
const SLICE_NS: u64 = 100_000;

/// Asks for a short slice for the calling thread. It works for microseconds at a time, and from Linux 6.12 on a thread
/// with a shorter slice takes a core from one with a longer one when it wakes, instead of waiting for up to 3 ms; its
/// share of the core stays the same (`PREEMPT_SHORT` of the kernel's EEVDF scheduler, sched(7)). Older kernels take
/// the call without an effect, and others have no such call.
pub(crate) fn ask_for_a_short_slice() {
    #[cfg(target_os = "linux")]
    if let Err(error) = set_slice(SLICE_NS) {
        tracing::debug!(%error, "a serving thread keeps the default slice");
    }
}

#[cfg(target_os = "linux")]
fn set_slice(slice_ns: u64) -> std::io::Result<()> {
    // SAFETY: `sched_attr` is plain integers, for which zeroes are a valid value.
    #[allow(unsafe_code)]
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // The niceness that the process was started with stays as it is.
    // SAFETY: the kernel writes at most `size` bytes to a live value of that size; 0 is the calling thread.
    #[allow(unsafe_code)]
    let outcome =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    succeeded(outcome)?;
    attributes.size = size;
    attributes.sched_runtime = slice_ns;
    // SAFETY: the kernel reads `size` bytes of a live value of that size; 0 is the calling thread.
    #[allow(unsafe_code)]
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    succeeded(outcome)
}

#[cfg(target_os = "linux")]
fn succeeded(outcome: libc::c_long) -> std::io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_slice() {
        std::thread::spawn(|| set_slice(SLICE_NS)).join().unwrap().unwrap();
    }
}
