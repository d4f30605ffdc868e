//! What is to be loaded: the bytes of a model version, and how it is to be kept.

use bytes::Bytes;
use sandpiper_domain::{Digest, ModelOptions, NamedTensor};
use sha2::{Digest as _, Sha256};

use crate::Measurement;

/// One model version on its way into memory.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// The file.
    pub bytes: Bytes,
    /// The sha256 of the file.
    pub digest: Digest,
    /// How the version is loaded and run.
    pub options: ModelOptions,
    /// Inputs to warm up and to measure with, each set those of one call.
    pub samples: Vec<Vec<NamedTensor>>,
    /// What measuring it gave before, with these options and samples.
    pub measurement: Option<Measurement>,
}

impl From<Bytes> for ModelSpec {
    /// With every option at its default, and no samples.
    fn from(bytes: Bytes) -> Self {
        let digest = Digest(Sha256::digest(&bytes).into());
        let (options, samples) = (ModelOptions::default(), Vec::new());
        ModelSpec { bytes, digest, options, samples, measurement: None }
    }
}
