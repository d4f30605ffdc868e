//! What can go wrong. Texts of [`CatalogError`] are fit for users; those of [`OpenError`] are for the operator.

use std::io;

use sandpiper_domain::StoreError;

use crate::PolicyError;

/// Why a request to the catalog was refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// There is none, or none that this tenant may see.
    #[error("there is no such {what}")]
    NotFound {
        /// The noun: `tenant`, `function`, `model`, `version`, `alias` or `key`.
        what: &'static str,
    },
    /// A name is taken.
    #[error("a {what} of that name exists already")]
    AlreadyExists {
        /// The noun.
        what: &'static str,
    },
    /// A version that an alias points at cannot go.
    #[error("version {version} is in use: the alias `{alias}` points at it")]
    InUse {
        /// The version.
        version: u32,
        /// One alias that points at it.
        alias: String,
    },
    /// A version of a model that a function has settled on cannot go.
    #[error("version {version} is in use: a function's alias has settled on it")]
    Placed {
        /// The version.
        version: u32,
    },
    /// A version that was rolled back because it failed takes no alias again.
    #[error("version {version} has failed and was rolled back")]
    Failed {
        /// The version.
        version: u32,
    },
    /// The alias has a rollout under way already.
    #[error("a rollout of version {candidate} is under way on this alias")]
    RolloutRunning {
        /// The version on trial.
        candidate: u32,
    },
    /// The tenant has as many of something as it may have.
    #[error("the limit of {limit} {what} is reached")]
    LimitReached {
        /// The noun, in the plural.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// An upload is larger than the tenant may upload.
    #[error("the {what} is larger than the limit of {limit_mib} MiB")]
    TooLarge {
        /// The noun.
        what: &'static str,
        /// The size allowed.
        limit_mib: u64,
    },
    /// The request makes no sense. The text says why.
    #[error("{0}")]
    Invalid(String),
    /// Another request was faster; the same request may succeed when it is sent again.
    #[error("another request changed this at the same time; try again")]
    Conflict,
    /// Another process has the data by now, or soon will.
    #[error("the server is being replaced or ends, and takes no changes; try again")]
    Closed,
    /// The store failed. Its text is the source, for the operator's log alone.
    #[error("the server could not store or read this")]
    Store(#[source] StoreError),
}

impl CatalogError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            CatalogError::InUse { .. } => Some("point the alias at another version first"),
            CatalogError::Placed { .. } => {
                Some("move the function's alias or the model's first: that settles it anew")
            }
            CatalogError::Failed { .. } => Some(
                "deploy a new version, or send `\"force\": true` to point at this one all the same",
            ),
            CatalogError::RolloutRunning { .. } => {
                Some("wait until it has ended, or end it with `DELETE` of its address")
            }
            CatalogError::LimitReached { .. } => {
                Some("delete what is no longer needed, or ask for a higher tier")
            }
            _ => None,
        }
    }
}

impl From<StoreError> for CatalogError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } => CatalogError::Conflict,
            StoreError::Failed(_) => CatalogError::Store(error),
        }
    }
}

/// Why a key was refused. A revoked key is as unknown as one that never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Its form or its checksum is wrong.
    #[error("the key is malformed: perhaps a character is missing or mistyped")]
    Malformed,
    /// Nobody has this key.
    #[error("the key is not known")]
    Unknown,
    /// It was valid once.
    #[error("the key has expired")]
    Expired,
}

/// Why the data folder cannot be used. The server does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of the folder cannot be used.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, in words.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The folder is locked.
    #[error("another sandpiper uses this data folder")]
    Locked,
    /// The data was written by a later version of Sandpiper.
    #[error(
        "the data folder was written by a newer sandpiper (schema {found}; this one knows {known})"
    )]
    Newer {
        /// The schema found.
        found: u32,
        /// The newest schema that this build reads.
        known: u32,
    },
    /// A secret could be read by others.
    #[error("`{path}` can be read by other users; run `chmod 600` on it")]
    Exposed {
        /// The file.
        path: String,
    },
    /// The pepper is not the one that the keys were stored with.
    #[error(
        "the file `pepper` does not belong to this data folder: no key would work; restore it from a backup"
    )]
    Pepper,
    /// A secret file or a record holds something that cannot be.
    #[error("the data folder is damaged: {0}")]
    Damaged(String),
    /// A tenant's tier is in no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    /// For `map_err`: an I/O error and what was tried.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| OpenError::Io { action, source }
    }
}
