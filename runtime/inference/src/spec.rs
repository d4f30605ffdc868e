//! What is to be loaded: the bytes of a model version, and how it is to be kept.

use bytes::Bytes;
use sandpiper_domain::{Digest, ModelOptions, NamedTensor};
use sha2::{Digest as _, Sha256};

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
}

impl From<Bytes> for ModelSpec {
    /// With every option at its default, and no samples.
    fn from(bytes: Bytes) -> Self {
        let digest = Digest(Sha256::digest(&bytes).into());
        ModelSpec { bytes, digest, options: ModelOptions::default(), samples: Vec::new() }
    }
}
