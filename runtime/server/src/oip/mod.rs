//! The Open Inference Protocol v2, under `/v2` on the node's one port.
//!
//! [`service`], [`describe`] and [`repository`] are what it offers, apart from how it travels. [`rest`] is one way; its
//! requests are read in [`request`] and its answers written in [`response`].

mod body;
mod caller;
mod compress;
pub(crate) mod describe;
mod documents;
mod error;
pub(crate) mod grpc;
mod json;
mod narrow;
pub(crate) mod repository;
mod request;
mod response;
pub(crate) mod rest;
mod route;
pub(crate) mod service;
pub(crate) mod tensor;
#[cfg(test)]
mod tests;

pub(crate) use caller::Caller;
pub(crate) use error::OipError;
