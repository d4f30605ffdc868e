//! The real server, asked over HTTP. Every test starts a server of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what goes wrong here is a failing test"
)]

mod batch_limits;
mod batches;
mod cancel;
mod cli;
mod cli_bench;
mod cli_traffic;
mod edge;
mod examples;
mod functions;
mod grpc;
mod inference_bills;
mod invocation;
mod job_crashes;
mod job_limits;
mod jobs;
mod keys;
mod limits;
mod logs;
mod model_metrics;
mod models;
mod names;
mod oip;
mod oip_bad_input;
mod oip_load;
mod oip_reading;
mod oip_repository;
mod persistence;
mod quotas;
mod registry;
mod sandboxes;
mod scheduler;
mod sharing;
mod shutdown;
mod streaming;
mod strings;
mod takeover;
mod tensors;
mod traffic;
mod uploads;
