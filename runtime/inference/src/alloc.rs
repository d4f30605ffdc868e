//! A wall around the memory of the backend: one model must not take the node down.
//!
//! The checks in `backend` refuse values that are too large before they are made, for the operators they know.
//! This is the second wall, for the rest: a thread that does contained work counts what it holds, and a tensor
//! that would take it over its allowance is refused with a null pointer. tract asserts that the pointer of a
//! tensor is not null, so that the refusal is a panic, which [`crate::contain`] contains.
//!
//! Only tensors are refused. The standard collections answer a null pointer by aborting the process, so that they
//! are counted but let through, as though this allocator was not there: a `Vec` that the machine has no memory for
//! aborts with it as without it. The two are told apart by their alignment: tensors are aligned for vectors.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};

use mimalloc::MiMalloc;

/// What contained work may hold beside what the size of its model explains.
pub(crate) const WORK_BYTES_MAX: usize = 2 << 30;
/// Smaller allocations are never refused.
const REFUSED_BYTES_MIN: usize = 1 << 20;
/// Tensors are aligned at least so; collections are not.
const TENSOR_ALIGNMENT_MIN: usize = if cfg!(target_arch = "x86_64") { 32 } else { 16 };
/// A thread that does no contained work.
const FREE: Allowance = Allowance { left: isize::MAX, whole: isize::MAX, fatal: None };

#[derive(Clone, Copy)]
struct Allowance {
    left: isize,
    whole: isize,
    /// The process ends with this exit code at the first byte too many, whatever it is for.
    fatal: Option<i32>,
}

thread_local! {
    static ALLOWANCE: Cell<Allowance> = const { Cell::new(FREE) };
}

/// The allocator of the node, mimalloc, with an allowance for threads that do contained work. Elsewhere it costs the
/// reading of one thread-local variable.
pub struct WalledAllocator;

/// Every binary that links the plane is behind the wall.
#[global_allocator]
static GLOBAL: WalledAllocator = WalledAllocator;

/// Whether this thread may hold so much more.
fn take(layout: Layout) -> bool {
    let allowance = ALLOWANCE.get();
    if allowance.whole == isize::MAX {
        return true;
    }
    let left = allowance.left.saturating_sub_unsigned(layout.size());
    if left < 0
        && let Some(code) = allowance.fatal
    {
        exit_now(code);
    }
    let refusable = layout.size() >= REFUSED_BYTES_MIN && layout.align() >= TENSOR_ALIGNMENT_MIN;
    if left < 0 && refusable {
        return false;
    }
    ALLOWANCE.set(Allowance { left, ..allowance });
    true
}

/// What others allocated and this thread frees gives it no more than it had at the start.
fn give(bytes: usize) {
    let allowance = ALLOWANCE.get();
    if allowance.whole != isize::MAX {
        let left = allowance.left.saturating_add_unsigned(bytes).min(allowance.whole);
        ALLOWANCE.set(Allowance { left, ..allowance });
    }
}

fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` may be called at any moment; nothing of the process runs after it.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}

// SAFETY: every call goes to mimalloc as it came, or gives null, which says that there is no memory.
// Nothing here unwinds or allocates: the thread-local variable is constant at first and has no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for WalledAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`, which is mimalloc's.
        let pointer = unsafe { MiMalloc.alloc(layout) };
        if pointer.is_null() {
            give(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !take(layout) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        let pointer = unsafe { MiMalloc.alloc_zeroed(layout) };
        if pointer.is_null() {
            give(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: the pointer came from mimalloc with this layout.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let growth = size.saturating_sub(layout.size());
        // SAFETY: the caller promises that `size` fits this alignment, and the growth is no larger.
        let grown = unsafe { Layout::from_size_align_unchecked(growth, layout.align()) };
        if !take(grown) {
            return std::ptr::null_mut();
        }
        // SAFETY: the pointer came from mimalloc with this layout.
        let moved = unsafe { MiMalloc.realloc(pointer, layout, size) };
        match moved.is_null() {
            true => give(growth),
            false => give(layout.size().saturating_sub(size)),
        }
        moved
    }
}

/// Puts back what the thread had before.
struct Outer(Allowance);

impl Drop for Outer {
    fn drop(&mut self) {
        ALLOWANCE.set(self.0);
    }
}

/// Runs `work` with an allowance of `bytes` on this thread. Inside work that has one already, that one goes on.
/// Gives with the result what `work` has left behind on this thread, in bytes.
pub(crate) fn within<R>(bytes: usize, work: impl FnOnce() -> R) -> (R, u64) {
    let outer = ALLOWANCE.get();
    if outer.whole != isize::MAX {
        let result = work();
        return (result, held_since(outer.left));
    }
    let whole = isize::try_from(bytes).unwrap_or(isize::MAX - 1).min(isize::MAX - 1);
    ALLOWANCE.set(Allowance { left: whole, whole, fatal: None });
    let _outer = Outer(outer);
    let result = work();
    (result, held_since(whole))
}

/// Runs `work` so that the process ends with the exit code `code` once this thread holds more than `bytes`.
pub(crate) fn within_or_exit<R>(bytes: usize, code: i32, work: impl FnOnce() -> R) -> R {
    let outer = ALLOWANCE.get();
    let whole = isize::try_from(bytes).unwrap_or(isize::MAX - 1).min(isize::MAX - 1);
    ALLOWANCE.set(Allowance { left: whole, whole, fatal: Some(code) });
    let _outer = Outer(outer);
    work()
}

fn held_since(left: isize) -> u64 {
    u64::try_from(left.saturating_sub(ALLOWANCE.get().left)).unwrap_or(0)
}

/// Gives pages back to the machine that this thread has freed, or that others have freed of what it made.
pub(crate) fn give_back_pages() {
    // SAFETY: mimalloc's own call, for which any thread is good at any time.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn held(layout: Layout, times: usize) -> usize {
        // SAFETY: the layouts are not empty, and what was allocated is freed with the layout it came with.
        #[allow(unsafe_code)]
        unsafe {
            let pointers: Vec<_> = (0..times).map(|_| std::alloc::alloc(layout)).collect();
            let held = pointers.iter().filter(|pointer| !pointer.is_null()).count();
            for pointer in pointers.into_iter().filter(|pointer| !pointer.is_null()) {
                std::alloc::dealloc(pointer, layout);
            }
            held
        }
    }

    #[test]
    fn tensors_stop_at_the_allowance_and_collections_do_not() {
        let tensor = Layout::from_size_align(2 * MIB, 64).unwrap();
        let small = Layout::from_size_align(MIB / 2, 64).unwrap();
        let vector = Layout::from_size_align(2 * MIB, 8).unwrap();
        assert_eq!(held(tensor, 20), 20);
        within(11 * MIB, || {
            assert_eq!(held(tensor, 20), 5);
            // What was freed may be held again.
            assert_eq!(held(tensor, 20), 5);
            within(1, || assert_eq!(held(tensor, 20), 5));
            assert_eq!(held(small, 40), 40);
            assert_eq!(held(vector, 20), 20);
        });
        assert_eq!(held(tensor, 20), 20);
    }

    #[test]
    fn what_work_leaves_behind_is_told() {
        let (kept, held) = within(64 * MIB, || {
            drop(vec![1u8; 4 * MIB]);
            vec![1u8; 3 * MIB]
        });
        assert_eq!((kept.len() as u64, held), (3 << 20, 3 << 20));
        let (inner, held) = within(64 * MIB, || {
            let first = vec![1u8; MIB];
            let (second, inner) = within(1, || vec![1u8; 2 * MIB]);
            drop(first);
            drop(second);
            inner
        });
        assert_eq!((inner, held), (2 << 20, 0));
    }

    #[test]
    fn growth_counts_and_the_memory_of_others_does_not() {
        let mut before = vec![0u8; 8 * MIB];
        before.shrink_to_fit();
        let tensor = Layout::from_size_align(2 * MIB, 64).unwrap();
        within(11 * MIB, || {
            drop(before);
            assert_eq!(held(tensor, 20), 5);
            let mut grown = vec![1u8; MIB];
            grown.reserve_exact(5 * MIB);
            assert_eq!(held(tensor, 20), 2);
            drop(grown);
            assert_eq!(held(tensor, 20), 5);
        });
        assert!(std::panic::catch_unwind(|| within(MIB, || panic!("over"))).is_err());
        assert_eq!(held(tensor, 20), 20);
    }
}
