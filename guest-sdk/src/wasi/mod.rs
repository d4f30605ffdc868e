//! The host, by way of WASI.

mod http;
mod nn;

pub use http::serve;
pub(crate) use {
    http::RawRequest,
    nn::{RawModel, RawTensor},
};

#[allow(clippy::disallowed_methods, reason = "in a sandbox the environment is the manifest's")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
