//! Contains panics of the backend, and what it allocates. A contained panic prints nothing, since its text may hold
//! a tenant's values.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use crate::alloc;

/// The code panicked, and the panic went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Why code that works on a caller's values panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Panic {
    /// The values are such that there is no result: what they hold.
    Values(&'static str),
    /// Nobody knows.
    Unknown,
}

/// What Rust says where values have no result, and what the caller is told. The operator may be anywhere, also inside
/// the body of another, so that its inputs are not always seen before it runs.
const NO_RESULT: [(&str, &str); 3] = [
    ("attempt to divide by zero", "a division of integers by zero"),
    ("attempt to calculate the remainder with a divisor of zero", "a division of integers by zero"),
    (
        "user-provided comparison function does not correctly implement a total order",
        "a NaN where numbers are put in order",
    ),
];

impl Panic {
    fn of(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let known = text.and_then(|text| NO_RESULT.iter().find(|(said, _)| *said == text));
        known.map_or(Panic::Unknown, |(_, told)| Panic::Values(told))
    }
}

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

/// The same for work on the values of a caller, who may be the cause.
pub(crate) fn contained_run<R>(work: impl FnOnce() -> R) -> Result<R, Panic> {
    let caught = caught_within(alloc::WORK_BYTES_MAX, work);
    caught.map(|(result, _)| result).map_err(|payload| Panic::of(&*payload))
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
    caught_within(bytes, work).map_err(|_| Panicked)
}

fn caught_within<R>(
    bytes: usize,
    work: impl FnOnce() -> R,
) -> Result<(R, u64), Box<dyn Any + Send>> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(|| alloc::within(bytes, work)));
    CONTAINED.set(outer);
    result
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

    #[test]
    fn values_without_a_result_are_told_from_other_panics() {
        install_hook();
        let zero = std::hint::black_box(0_i64);
        let by_zero = Err(Panic::Values("a division of integers by zero"));
        assert_eq!(contained_run(|| 1 / zero), by_zero);
        assert_eq!(contained_run(|| 1 % zero), by_zero);
        assert_eq!(contained_run(|| 1_i32.wrapping_div(zero as i32)).map(i64::from), by_zero);
        assert_eq!(contained_run(|| panic!("{zero}")), Err::<(), _>(Panic::Unknown));
    }
}
