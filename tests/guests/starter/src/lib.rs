//! A guest whose start does something, as `START` in its environment says: `sleep:MS`, `burn:MS` or `model:NAME`, which
//! is kept open. Its handler tells how many requests this instance has seen.

use std::{
    hint::black_box,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use sandpiper_guest::prelude::*;
use wasip2::clocks::monotonic_clock;

static REQUESTS: AtomicU32 = AtomicU32::new(0);
static KEPT: OnceLock<Model> = OnceLock::new();

/// Runs as the component is instantiated.
#[allow(unsafe_code, reason = "the linker looks for this name")]
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    let what = std::env::var("START").unwrap_or_default();
    let (what, of) = what.split_once(':').unwrap_or_default();
    let ns = || of.parse::<u64>().unwrap_or_default() * 1_000_000;
    match what {
        "sleep" => monotonic_clock::subscribe_duration(ns()).block(),
        "burn" => {
            let (began, ns) = (monotonic_clock::now(), ns());
            while monotonic_clock::now() - began < ns {
                (0..1_000u32).for_each(|turn| _ = black_box(turn));
            }
        }
        "model" => {
            if let Ok(model) = Model::named(of) {
                let _ = KEPT.set(model);
            }
        }
        _ => {}
    }
}

#[handler]
fn starter(_request: Request) -> Response {
    Response::text((REQUESTS.fetch_add(1, Ordering::Relaxed) + 1).to_string())
}
