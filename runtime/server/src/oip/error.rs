//! Why a request of the protocol failed, before any transport gives it a status.

use sandpiper_domain::{InferenceError, Scope};

/// An error on its way to a client. Its text never holds a path, a pointer, another tenant's name or tensor values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OipError {
    /// The request is malformed, or does not fit the model.
    #[error("{0}")]
    InvalidArgument(String),
    /// Missing, foreign and not granted look alike.
    #[error("{0}")]
    NotFound(String),
    /// Not now: the model is not ready, or the node has too much to do.
    #[error("{message}")]
    Unavailable {
        message: String,
        /// When it makes sense to ask again.
        retry_after_s: u32,
    },
    /// A limit of the tenant itself.
    #[error("{message}")]
    TooManyRequests {
        message: String,
        /// When there may be room again.
        retry_after_s: u32,
    },
    /// No key, or one that is none.
    #[error("{0}")]
    Unauthenticated(String),
    /// The key is good for other things.
    #[error("{0}")]
    PermissionDenied(String),
    /// The protocol knows it and this server does not do it.
    #[error("{0}")]
    Unsupported(String),
    /// Beyond a limit of size.
    #[error("{0}")]
    TooLarge(String),
    /// The time that the request or the tenant's tier gave is over.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The cause is in the log.
    #[error("{0}")]
    Internal(String),
}

/// Names from a request are cut here in messages.
const NAME_SHOWN: usize = 80;

/// A name as messages show it: short, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    let clean = |c: char| if c.is_control() || c == '`' { '\u{fffd}' } else { c };
    let mut text: String = name.chars().take(NAME_SHOWN).map(clean).collect();
    if name.chars().nth(NAME_SHOWN).is_some() {
        text.push('…');
    }
    text
}

impl OipError {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        OipError::InvalidArgument(message.into())
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        OipError::Unsupported(message.into())
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        OipError::Unavailable { message: message.into(), retry_after_s: 1 }
    }

    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        OipError::TooManyRequests { message: message.into(), retry_after_s: 1 }
    }

    pub(crate) fn unknown_model(name: &str, version: Option<&str>) -> Self {
        let name = shown(name);
        OipError::NotFound(match version {
            None => format!("unknown model: there is no `{name}` for this key"),
            Some(version) => {
                format!(
                    "unknown model: there is no version {} of `{name}` for this key",
                    shown(version)
                )
            }
        })
    }

    pub(crate) fn no_key() -> Self {
        let text = "a key is needed: send `Authorization: Bearer <key>`";
        OipError::Unauthenticated(text.to_owned())
    }

    pub(crate) fn missing_scope(scope: Scope) -> Self {
        OipError::PermissionDenied(format!("this key does not have the scope `{scope}`"))
    }

    /// For failures whose cause is in the log and none of the client's business.
    pub(crate) fn internal(error: impl std::fmt::Debug) -> Self {
        tracing::error!(?error, "a request of the inference protocol failed");
        let text = "the server failed on this request; the operator finds the cause in the log";
        OipError::Internal(text.to_owned())
    }

    /// A short name of the kind, for logs and headers.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            OipError::InvalidArgument(_) => "invalid_argument",
            OipError::NotFound(_) => "not_found",
            OipError::Unavailable { .. } => "unavailable",
            OipError::TooManyRequests { .. } => "too_many_requests",
            OipError::Unauthenticated(_) => "unauthenticated",
            OipError::PermissionDenied(_) => "missing_scope",
            OipError::Unsupported(_) => "unsupported",
            OipError::TooLarge(_) => "too_large",
            OipError::DeadlineExceeded(_) => "deadline_exceeded",
            OipError::Internal(_) => "internal",
        }
    }
}

impl From<InferenceError> for OipError {
    fn from(error: InferenceError) -> Self {
        let text = error.to_string();
        match error {
            // What the backend cannot hold does not fit the model either.
            InferenceError::InvalidArgument(_) | InferenceError::Unsupported(_) => {
                OipError::InvalidArgument(text)
            }
            InferenceError::NotFound => {
                OipError::NotFound("unknown model: there is none of that name for this key".into())
            }
            InferenceError::TooLarge(_) => OipError::TooLarge(text),
            InferenceError::Timeout => OipError::DeadlineExceeded(text),
            InferenceError::Saturated | InferenceError::Unavailable(_) => {
                OipError::unavailable(text)
            }
            InferenceError::TenantSaturated => OipError::too_many(text),
            InferenceError::Unmeetable { retry_after } => {
                let retry_after_s = retry_after.as_secs_f64().ceil().clamp(1.0, 3600.0) as u32;
                OipError::Unavailable { message: text, retry_after_s }
            }
            InferenceError::Runtime(_) => OipError::Internal(text),
        }
    }
}
