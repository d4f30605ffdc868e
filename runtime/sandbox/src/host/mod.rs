//! What a guest can reach that is ours, one file for each interface. The rest of WASI comes from its own crates.

pub(crate) mod http;
pub(crate) mod log;
pub(crate) mod nn;
mod nn_types;
