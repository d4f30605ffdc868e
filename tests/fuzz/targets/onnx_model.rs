//! The loader of ONNX models: what is checked and rewritten before tract reads a file, and tract itself behind it.
//! Whatever the bytes are, they load or are refused.
#![no_main]

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sandpiper_inference::{Config, InferencePlane};
use tokio::runtime::{Builder, Runtime};

struct Bench {
    runtime: Runtime,
    plane: Arc<InferencePlane>,
}

/// One plane for the whole run; its loader contains panics and bounds memory as the server's does.
fn bench() -> Option<&'static Bench> {
    static BENCH: OnceLock<Option<Bench>> = OnceLock::new();
    let start = || {
        let runtime = Builder::new_current_thread().enable_all().build().ok()?;
        let plane = InferencePlane::start(Config { threads: 1, ..Config::default() }).ok()?;
        Some(Bench { runtime, plane })
    };
    BENCH.get_or_init(start).as_ref()
}

fuzz_target!(|input: &[u8]| {
    if let Some(Bench { runtime, plane }) = bench() {
        let _ = runtime.block_on(plane.inspect(Bytes::copy_from_slice(input)));
    }
});
