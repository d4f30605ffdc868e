//! The Open Inference Protocol v2, under `/v2` on the node's one port.
//!
//! [`service`], [`describe`] and [`repository`] are what it offers, apart from how it travels.

mod caller;
pub(crate) mod describe;
pub(crate) mod error;
pub(crate) mod grpc;
pub(crate) mod repository;
pub(crate) mod service;

pub(crate) use caller::Caller;
pub(crate) use error::OipError;
