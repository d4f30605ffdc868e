//! Errors that know how to be a response.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use crate::{IntoResponse, Response};

/// What a handler returns. The second parameter is there so that `Ok::<_, Other>` still reads well.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// fn half(n: u32) -> Result<u32> {
///     if n % 2 == 0 { Ok(n / 2) } else { Err(Error::unprocessable("the number is odd")) }
/// }
///
/// assert_eq!(half(8)?, 4);
/// # Ok::<(), Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure with a status, a code for programs and a message for people.
///
/// Leaving the handler it becomes that status and `{"error": {"code": …, "message": …}}`. `?` on an
/// error of any other kind makes a 500 `internal`: its text goes to the function's log and not to
/// the caller, who has no business with it. Where the caller is at fault, say so with
/// [`ResultExt`] or one of the constructors.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let response = Error::not_found("no such digit").into_response();
/// assert_eq!(response.status(), 404);
/// assert_eq!(response.body(), br#"{"error":{"code":"not_found","message":"no such digit"}}"#);
///
/// fn parse(text: &str) -> Result<i32> {
///     Ok(text.parse()?)
/// }
/// assert_eq!(parse("x").unwrap_err().status(), 500);
/// ```
pub struct Error {
    status: u16,
    code: Cow<'static, str>,
    message: Cow<'static, str>,
    failure: Option<ModelFailure>,
}

impl Error {
    /// An error of one's own. A status outside 400 to 599 is taken as 500.
    ///
    /// ```
    /// use sandpiper_guest::Error;
    ///
    /// let error = Error::new(409, "taken", "someone else has this seat");
    /// assert_eq!((error.status(), error.code()), (409, "taken"));
    /// ```
    pub fn new(
        status: u16,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        let status = if (400..=599).contains(&status) { status } else { 500 };
        Self { status, code: code.into(), message: message.into(), failure: None }
    }

    /// 400 `bad_request`: the request is malformed.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::bad_request("no body").status(), 400);
    /// ```
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "bad_request", message)
    }

    /// 404 `not_found`.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::not_found("no such page").status(), 404);
    /// ```
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(404, "not_found", message)
    }

    /// 405 `method_not_allowed`.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::method_not_allowed("POST an image").status(), 405);
    /// ```
    pub fn method_not_allowed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(405, "method_not_allowed", message)
    }

    /// 422 `unprocessable`: well-formed, but there is nothing to be done with it.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::unprocessable("an empty image").code(), "unprocessable");
    /// ```
    pub fn unprocessable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(422, "unprocessable", message)
    }

    /// 500 `internal`. The message is shown to the caller; `?` shows less, see [`Error`].
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::internal("the table is empty").status(), 500);
    /// ```
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(500, "internal", message)
    }

    /// A failure of a model, as `wasi:nn` reports it. Tests use it to make a fake model fail.
    ///
    /// | failure | status | code |
    /// |---|---|---|
    /// | `Timeout` | 504 | `model_timeout` |
    /// | `NotFound` | 503 | `model_not_found` |
    /// | any whose message begins with `busy` or `unavailable` | 503 | `model_unavailable` |
    /// | the others | 502 | `model_invalid_argument`, `model_failed`, … |
    ///
    /// ```
    /// use sandpiper_guest::{Error, ModelFailure};
    ///
    /// let error = Error::model(ModelFailure::Timeout, "100 ms have passed");
    /// assert_eq!((error.status(), error.code()), (504, "model_timeout"));
    /// ```
    pub fn model(failure: ModelFailure, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        // The host's words for a full queue and for a model that is not ready, for which `wasi:nn` has no codes.
        let is_unavailable = ["busy", "unavailable"].iter().any(|word| message.starts_with(word));
        let (status, code) = match is_unavailable {
            true => (503, "model_unavailable"),
            false => failure.status_and_code(),
        };
        Self { failure: Some(failure), ..Self::new(status, code, message) }
    }

    /// The status of the response.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::unprocessable("no digit").status(), 422);
    /// ```
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The code, in snake case.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::bad_request("no body").code(), "bad_request");
    /// ```
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The message for people.
    ///
    /// ```
    /// # use sandpiper_guest::Error;
    /// assert_eq!(Error::bad_request("no body").message(), "no body");
    /// ```
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What `wasi:nn` said, where a model was the cause.
    ///
    /// ```
    /// use sandpiper_guest::prelude::*;
    /// use sandpiper_guest::ModelFailure;
    ///
    /// let error = Model::named("nobody").unwrap_err();
    /// assert_eq!(error.model_failure(), Some(ModelFailure::NotFound));
    /// ```
    pub fn model_failure(&self) -> Option<ModelFailure> {
        self.failure
    }
}

/// The kinds of failure that `wasi:nn` knows.
///
/// ```
/// use sandpiper_guest::{Error, ModelFailure};
///
/// assert_eq!(Error::model(ModelFailure::TooLarge, "9 MiB").status(), 502);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFailure {
    /// A tensor or a name that does not fit the model.
    InvalidArgument,
    /// Bytes that are not what their encoding says.
    InvalidEncoding,
    /// The model did not answer in its time.
    Timeout,
    /// The model itself failed.
    RuntimeError,
    /// Something that this host, or this grant, does not offer.
    UnsupportedOperation,
    /// More than the limits allow.
    TooLarge,
    /// No such model for this tenant.
    NotFound,
    /// Forbidden by policy.
    Security,
    /// Anything else.
    Unknown,
}

impl ModelFailure {
    fn status_and_code(self) -> (u16, &'static str) {
        match self {
            Self::Timeout => (504, "model_timeout"),
            Self::NotFound => (503, "model_not_found"),
            Self::InvalidArgument => (502, "model_invalid_argument"),
            Self::InvalidEncoding => (502, "model_invalid_encoding"),
            Self::RuntimeError => (502, "model_failed"),
            Self::UnsupportedOperation => (502, "model_unsupported"),
            Self::TooLarge => (502, "model_too_large"),
            Self::Security => (502, "model_forbidden"),
            Self::Unknown => (502, "model_failed"),
        }
    }
}

// Not `std::error::Error`: that would collide with the conversion from every other error below.
impl<E> From<E> for Error
where
    E: std::error::Error + 'static,
{
    fn from(error: E) -> Self {
        eprintln!("error: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            eprintln!("  because: {error}");
            cause = error.source();
        }
        Self::internal("the function failed; its log says why")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}: {}", self.status, self.code, self.message)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    code: &'a str,
    message: &'a str,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = Body { error: Detail { code: &self.code, message: &self.message } };
        // Two strings always serialise; an empty body is what remains if that ever changes.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let response = Response::bytes("application/json", body).with_status(self.status);
        match self.status {
            503 => response.with_header("retry-after", "1"),
            _ => response,
        }
    }
}

/// Says whose fault a failure is, where `?` alone would say "ours".
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let error = "x".parse::<f32>().or_bad_request().unwrap_err();
/// assert_eq!((error.status(), error.message()), (400, "invalid float literal"));
/// ```
pub trait ResultExt<T> {
    /// 400 `bad_request` with the error's own text.
    ///
    /// # Errors
    ///
    /// Where `self` is one.
    ///
    /// ```
    /// use sandpiper_guest::prelude::*;
    ///
    /// assert!("7".parse::<u8>().or_bad_request().is_ok());
    /// assert_eq!("-7".parse::<u8>().or_bad_request().unwrap_err().status(), 400);
    /// ```
    fn or_bad_request(self) -> Result<T>;

    /// 422 `unprocessable` with the error's own text.
    ///
    /// # Errors
    ///
    /// Where `self` is one.
    ///
    /// ```
    /// use sandpiper_guest::prelude::*;
    ///
    /// assert_eq!("-7".parse::<u8>().or_unprocessable().unwrap_err().status(), 422);
    /// ```
    fn or_unprocessable(self) -> Result<T>;
}

impl<T, E: fmt::Display> ResultExt<T> for std::result::Result<T, E> {
    fn or_bad_request(self) -> Result<T> {
        self.map_err(|error| Error::bad_request(error.to_string()))
    }

    fn or_unprocessable(self) -> Result<T> {
        self.map_err(|error| Error::unprocessable(error.to_string()))
    }
}
