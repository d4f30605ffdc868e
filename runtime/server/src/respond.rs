//! Errors as clients see them: one shape, one place where causes become HTTP status.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use sandpiper_control::{CatalogError, KeyError};
use sandpiper_domain::{Fault, InferenceError, Scope};
use sandpiper_inference::LoadError;
use sandpiper_sandbox::{CodeError, UploadError};

use crate::{
    admission::{Cause, Refusal},
    edge::EdgeBody,
};

/// Tells a platform's error from a function's own response with the same status.
pub(crate) const ERROR_HEADER: HeaderName = HeaderName::from_static("x-sandpiper-error");
/// The longest wait that is advised, whatever the queue is thought to take.
const RETRY_AFTER_S_MAX: f64 = 3600.0;
/// Carries the id of a request, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An error on its way to a client. Its text never holds a path, a pointer, another tenant's name or tensor values.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) retry_after_s: Option<u32>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Problem { status, code, message: message.into(), hint: None, retry_after_s: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Problem { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn retry_after(self, seconds: u32) -> Self {
        Problem { retry_after_s: Some(seconds), ..self }
    }

    /// The one answer for what is not there, is somebody else's, or is private.
    pub(crate) fn not_found() -> Self {
        Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here under that name")
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn invalid_name(error: impl std::fmt::Display) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_name", error.to_string())
    }

    pub(crate) fn no_key() -> Self {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", "a key is needed")
            .hint("send the header `Authorization: Bearer <key>`")
    }

    pub(crate) fn missing_scope(scope: Scope) -> Self {
        let message = format!("this key does not have the scope `{scope}`");
        Problem::new(StatusCode::FORBIDDEN, "missing_scope", message)
            .hint(format!("use a key with the scope `{scope}`, or make one"))
    }

    pub(crate) fn too_large(what: &str, limit_mib: u64) -> Self {
        let message = format!("the {what} is larger than the limit of {limit_mib} MiB");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn busy(code: &'static str, message: &str) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(1)
    }

    pub(crate) fn too_many(code: &'static str, message: &str) -> Self {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, code, message).retry_after(1)
    }

    /// For failures whose cause is in the log and none of the client's business.
    pub(crate) fn internal(error: impl std::fmt::Debug) -> Self {
        tracing::error!(?error, "a request failed");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed on this request",
        )
        .hint("the operator finds the cause in the log, under the request's id")
    }

    /// The error's body, without the request's id.
    pub(crate) fn to_json(&self, request_id: Option<&str>) -> serde_json::Value {
        let mut error = serde_json::json!({ "code": self.code, "message": self.message });
        if let Some(hint) = &self.hint {
            error["hint"] = hint.as_str().into();
        }
        if let Some(id) = request_id {
            error["request_id"] = id.into();
        }
        serde_json::json!({ "error": error })
    }

    pub(crate) fn into_response(self, request_id: &str) -> Response<EdgeBody> {
        let body = Bytes::from(self.to_json(Some(request_id)).to_string());
        let mut response = Response::new(EdgeBody::full(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.code));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let (status, hint) = match fault {
            Fault::CpuExceeded { .. } => (
                StatusCode::GATEWAY_TIMEOUT,
                "do less work per request, or raise limits.cpu_ms as far as your tier allows",
            ),
            Fault::WallExceeded { .. } => (
                StatusCode::GATEWAY_TIMEOUT,
                "see the function's log for what it waited for; limits.wall_ms sets the limit",
            ),
            Fault::MemoryExceeded { .. } => (
                StatusCode::BAD_GATEWAY,
                "use less memory, or raise the limits of the manifest as far as your tier allows",
            ),
            Fault::Trap { .. } => (StatusCode::BAD_GATEWAY, "see the function's log"),
            Fault::NoResponse => (
                StatusCode::BAD_GATEWAY,
                "the handler must set a response before it returns; see the function's log",
            ),
            Fault::KeptModel => (StatusCode::BAD_GATEWAY, "open the model in the handler"),
            Fault::Saturated => return Problem::busy("node_saturated", &fault.to_string()),
        };
        Problem::new(status, fault.code(), fault.to_string()).hint(hint)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let Refusal { cause, .. } = refusal;
        let problem = match cause {
            Cause::Inference => Problem::busy(cause.code(), cause.text()),
            Cause::Budget(_) => Problem::too_many(cause.code(), cause.text())
                .hint("`sandpiper usage` shows what was used; the operator can raise the budget"),
            _ => Problem::too_many(cause.code(), cause.text()),
        };
        problem.retry_after(refusal.retry_after_s())
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let code = match error {
            KeyError::Malformed => "key_malformed",
            KeyError::Unknown => "key_unknown",
            KeyError::Expired => "key_expired",
        };
        Problem::new(StatusCode::UNAUTHORIZED, code, error.to_string())
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        let (status, code) = match &error {
            CatalogError::NotFound { .. } => return Problem::not_found(),
            CatalogError::Store(_) => return Problem::internal(error),
            CatalogError::Closed => return Problem::busy("restarting", &error.to_string()),
            CatalogError::AlreadyExists { .. } => (StatusCode::CONFLICT, "already_exists"),
            CatalogError::InUse { .. } | CatalogError::Placed { .. } => {
                (StatusCode::CONFLICT, "in_use")
            }
            CatalogError::Failed { .. } => (StatusCode::CONFLICT, "version_failed"),
            CatalogError::RolloutRunning { .. } => (StatusCode::CONFLICT, "rollout_running"),
            CatalogError::Conflict => (StatusCode::CONFLICT, "conflict"),
            CatalogError::LimitReached { .. } => (StatusCode::TOO_MANY_REQUESTS, "limit_reached"),
            CatalogError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            CatalogError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
        };
        let hint = error.hint();
        let problem = Problem::new(status, code, error.to_string());
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        let code = match &error {
            UploadError::Empty => "empty_upload",
            UploadError::NotWasm => "not_wasm",
            UploadError::Precompiled => "precompiled",
            UploadError::CoreModule | UploadError::Componentise(_) => "core_module",
            UploadError::Malformed(_) => "malformed_component",
            UploadError::NoIncomingHandler => "no_incoming_handler",
            UploadError::Imports(_) => "forbidden_imports",
            UploadError::Compile(_) => "compile_failed",
            UploadError::Memory { .. } => "memory_limit",
        };
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, error.to_string());
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<CodeError> for Problem {
    fn from(error: CodeError) -> Self {
        match error {
            CodeError::Upload(error) => error.into(),
            CodeError::Node(cause) => Problem::internal(cause),
        }
    }
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        let code = match &error {
            LoadError::Saturated => return Problem::busy("node_saturated", &error.to_string()),
            LoadError::Bytes(_) => return Problem::internal(error),
            LoadError::NotOnnx => "not_onnx",
            LoadError::Truncated => "truncated_model",
            LoadError::Malformed(_) => "malformed_model",
            LoadError::ExternalData { .. } => "external_data",
            LoadError::UnsupportedOperator { .. } => "unsupported_operator",
            LoadError::UnsupportedVariant { .. } => "unsupported_variant",
            LoadError::UnsupportedType(_) => "unsupported_type",
            LoadError::Unloadable(_) | LoadError::Panicked => "unloadable_model",
            LoadError::Sample { .. } => "invalid_sample",
            LoadError::TrialMemory { .. } => "model_memory",
            LoadError::TrialCpu { .. } | LoadError::TrialWall { .. } => "model_cpu",
            LoadError::TrialCrashed => "model_crashed",
            LoadError::OverBudget { .. } => "model_over_budget",
            LoadError::PinLimit { .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                return Problem::new(status, "limit_reached", error.to_string()).hint(
                    "deploy the model without pinned=true, let go of another pinned model, or ask the operator for a higher tier",
                );
            }
            LoadError::PinsFull { .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                return Problem::new(status, "limit_reached", error.to_string()).hint(
                    "deploy the model without pinned=true, let go of another pinned model, or have the operator raise --model-memory",
                );
            }
            LoadError::NoRoom { .. } => {
                return Problem::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "no_room_for_model",
                    error.to_string(),
                )
                .hint("let go of a pinned model, or have the operator raise --model-memory");
            }
        };
        let hint = match code {
            "not_onnx" | "truncated_model" => "upload one whole .onnx file; is the path right?",
            "external_data" => "save the model with its weights inside, in one file",
            "unsupported_operator" => {
                "export the model without these operators, or with others in their place"
            }
            "unsupported_variant" => "export the model without this use of the operator",
            "unsupported_type" => {
                "use numbers and booleans, and strings only as categories that go in and labels that come out"
            }
            "invalid_sample" => "send samples that the model can run on; see its inputs",
            "model_memory" | "model_cpu" => {
                "simplify the graph, and look for values that grow with nothing in the inputs"
            }
            "model_over_budget" => {
                "use a smaller or a quantised model, or have the operator raise --model-memory"
            }
            _ => "check the model with onnx.checker, and simplify it if it is valid",
        };
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, error.to_string()).hint(hint)
    }
}

impl From<InferenceError> for Problem {
    fn from(error: InferenceError) -> Self {
        let message = error.to_string();
        let (status, code) = match error {
            InferenceError::NotFound => return Problem::not_found(),
            InferenceError::TenantSaturated => return Problem::too_many("queue_full", &message),
            InferenceError::Saturated => return Problem::busy("node_saturated", &message),
            InferenceError::Unmeetable { retry_after } => {
                let seconds = retry_after.as_secs_f64().ceil().clamp(1.0, RETRY_AFTER_S_MAX);
                return Problem::busy("deadline_unmeetable", &message).retry_after(seconds as u32);
            }
            InferenceError::Unavailable(_) => return Problem::busy("model_unavailable", &message),
            InferenceError::InvalidArgument(_) => (StatusCode::BAD_REQUEST, "invalid_argument"),
            InferenceError::Unsupported(_) => (StatusCode::UNPROCESSABLE_ENTITY, "unsupported"),
            InferenceError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            InferenceError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "model_timeout"),
            InferenceError::Runtime(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
        };
        Problem::new(status, code, message)
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Problem::internal(error)
    }
}
