//! The real server, asked over HTTP. Every test starts a server of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what goes wrong here is a failing test"
)]

mod examples;
mod models;
mod names;
mod tensors;
mod uploads;
