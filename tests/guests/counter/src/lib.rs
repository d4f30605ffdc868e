//! The guest of the benchmarks: it does as little as a function can, and tells whether the sandbox
//! was fresh. In a fresh one the count is 1.

use std::sync::atomic::{AtomicU32, Ordering};

use sandpiper_guest::prelude::*;

static REQUESTS: AtomicU32 = AtomicU32::new(0);

#[handler]
fn counter(_request: Request) -> Response {
    match REQUESTS.fetch_add(1, Ordering::Relaxed) + 1 {
        1 => Response::text("1"),
        more => Response::text(more.to_string()),
    }
}
