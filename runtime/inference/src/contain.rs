//! Contains panics of the backend, and what it allocates. A contained panic prints nothing, since its text may hold
//! a tenant's values.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use crate::alloc;

/// The code panicked, and the panic went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Wraps the process's panic hook once, so that panics inside [`contained`] are not printed. Every other panic
/// still reaches the hook that was there before.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if CONTAINED.get() {
                let line = info.location().map_or(0, |location| location.line());
                let file = info.location().map_or("", |location| location.file());
                tracing::debug!(file, line, "a panic of the inference backend was contained");
            } else {
                previous(info);
            }
        }));
    });
}

/// Runs `work` and turns a panic into an error. What `work` touched must be of no use after a panic, or sound.
pub(crate) fn contained<R>(work: impl FnOnce() -> R) -> Result<R, Panicked> {
    contained_within(alloc::WORK_BYTES_MAX, work)
}

/// The same with room for `bytes` of memory, unless it runs inside contained work.
pub(crate) fn contained_within<R>(bytes: usize, work: impl FnOnce() -> R) -> Result<R, Panicked> {
    measured_within(bytes, work).map(|(result, _)| result)
}

/// The same, and gives what `work` has left behind in memory, in bytes.
pub(crate) fn measured_within<R>(
    bytes: usize,
    work: impl FnOnce() -> R,
) -> Result<(R, u64), Panicked> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(|| alloc::within(bytes, work)));
    CONTAINED.set(outer);
    result.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_thread_goes_on() {
        install_hook();
        assert_eq!(contained(|| 1), Ok(1));
        assert_eq!(contained(|| panic!("secret")), Err::<(), _>(Panicked));
        assert!(!CONTAINED.get());
        assert_eq!(contained(|| 2), Ok(2));
    }
}
