//! Taking more than one's share.

use std::hint::black_box;

use wasip2::{clocks::monotonic_clock, http::types::Fields};

use crate::{
    http::{Exchange, Query},
    nn,
};

/// Burns processor time without calling anything.
pub(crate) fn spin() -> ! {
    let mut turns = 0u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// Burns processor time in the allocator.
pub(crate) fn spin_alloc() -> ! {
    loop {
        for size in (4..16).map(|bits| 1usize << bits) {
            drop(black_box(vec![1u8; size]));
        }
    }
}

/// Takes memory, and uses it, until the host refuses more. The allocator then aborts.
pub(crate) fn grow() -> ! {
    loop {
        std::mem::forget(black_box(vec![1u8; 1 << 20]));
    }
}

/// Recurses until there is no stack left. What comes after the call keeps it from being a loop.
#[inline(never)]
pub(crate) fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    if black_box(depth) == 0 {
        return 0;
    }
    let below = recurse(black_box(depth + 1));
    below.wrapping_add(black_box(frame)[7])
}

/// Makes resources and keeps them: `?kind=fields` (default), `pollable`, `tensor`.
pub(crate) fn handles(query: &Query) -> ! {
    loop {
        match query.get("kind") {
            Some("pollable") => std::mem::forget(monotonic_clock::subscribe_duration(1_000_000)),
            Some("tensor") => std::mem::forget(nn::small_tensor()),
            _ => std::mem::forget(Fields::new()),
        }
    }
}

/// Sleeps for ten days: no processor time is used, and none comes back.
pub(crate) fn hang(exchange: Exchange) {
    monotonic_clock::subscribe_duration(10 * 24 * 3_600 * 1_000_000_000).block();
    exchange.text("good morning");
}

/// Answers with the count of requests and leaves something behind: `?kind=fields`, `tensor` or `memory` (`?mib=`), or
/// nothing.
pub(crate) fn keep(exchange: Exchange, query: &Query, count: u32) {
    match query.get("kind") {
        Some("fields") => std::mem::forget(Fields::new()),
        Some("tensor") => std::mem::forget(nn::small_tensor()),
        Some("memory") => {
            std::mem::forget(black_box(vec![1u8; (query.number("mib", 1) as usize) << 20]));
        }
        _ => {}
    }
    exchange.text(&count.to_string());
}

/// Works for `?ms=` by the clock, then answers with the count of requests.
pub(crate) fn burn(exchange: Exchange, query: &Query, count: u32) {
    let began = monotonic_clock::now();
    while monotonic_clock::now() - began < query.number("ms", 10) * 1_000_000 {
        for turn in 0..1_000u32 {
            black_box(turn);
        }
    }
    exchange.text(&count.to_string());
}

/// Sleeps for `?ms=`, then answers with the count of requests.
pub(crate) fn sleep(exchange: Exchange, query: &Query, count: u32) {
    monotonic_clock::subscribe_duration(query.number("ms", 10) * 1_000_000).block();
    exchange.text(&count.to_string());
}
