//! What a fleet shows of itself.

use std::time::Duration;

use sandpiper_domain::Fault;

/// One sandbox, for whoever asks.
pub(crate) struct Instance {
    pub(crate) id: u64,
    pub(crate) state: &'static str,
    pub(crate) age: Duration,
    pub(crate) served: u32,
    /// Known of those that are ready.
    pub(crate) memory_bytes: Option<u64>,
}

/// A version's numbers, for whoever asks.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) wanted: u32,
    pub(crate) ready: u32,
    pub(crate) running: u32,
    pub(crate) suspended: u32,
    pub(crate) waiting: u32,
    /// Why the last start failed, if it did.
    pub(crate) start_fault: Option<Fault>,
}

/// What the scale loop learns from a look.
pub(crate) struct Glance {
    pub(crate) has_moved: bool,
    pub(crate) drop_code: bool,
}
