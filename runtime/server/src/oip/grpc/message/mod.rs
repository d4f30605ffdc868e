//! The protocol's messages, as `proto/` declares them: prost's derive, field by field. A test compares the two.

// The names are the protocol's, and the docs are in the proto files.
#![allow(missing_docs, unreachable_pub, clippy::enum_variant_names)]

mod admin;
pub(crate) mod health;
mod infer;

pub(crate) use admin::*;
pub(crate) use infer::*;
