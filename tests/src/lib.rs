//! What the end-to-end tests stand on: the real server on a free port with a data folder of its own, clients for it,
//! and the artefacts that `tests/run` builds. Something missing is a failure that says what to run, never a skip.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this crate is for tests alone: what goes wrong here is a failing test"
)]

mod artefacts;
mod client;
mod connection;
mod grpc;
mod metrics;
pub mod onnx;
mod server;
mod tenant;
mod wait;

pub use artefacts::{
    binary, example, expectations, expected, guest, guest_for, model, read, repository,
};
pub use client::{Answer, Call, Client, multipart};
pub use connection::Connection;
pub use grpc::{GrpcCall, GrpcClient, GrpcStatus, frame};
pub use metrics::Metrics;
pub use server::{OPERATOR_KEY, Server, Start, memory_mib};
pub use tenant::Tenant;
pub use wait::until;
