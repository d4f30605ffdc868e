//! The response.

use std::borrow::Cow;

use serde::Serialize;

use crate::{Error, Result};

/// One HTTP response, complete: `content-length` is set for it.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let response = Response::text("made").with_status(201).with_header("location", "/things/1");
/// assert_eq!(response.status(), 201);
/// assert_eq!(response.header("Location"), Some("/things/1"));
/// ```
#[derive(Clone, Debug)]
pub struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Cow<'static, [u8]>,
}

impl Response {
    /// Text, as `text/plain; charset=utf-8`. A constant text is not copied.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert_eq!(Response::text("hello").header("content-type"), Some("text/plain; charset=utf-8"));
    /// ```
    pub fn text(body: impl Into<Cow<'static, str>>) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self::bytes("text/plain; charset=utf-8", body)
    }

    /// A value as JSON.
    ///
    /// # Errors
    ///
    /// Where the value does not serialise, a map whose keys are not strings for example.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let response = Response::json(&[1, 2])?;
    /// assert_eq!(response.header("content-type"), Some("application/json"));
    /// assert_eq!(response.body(), b"[1,2]");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let body = serde_json::to_vec(value)
            .map_err(|error| Error::internal(format!("the answer is not JSON: {error}")))?;
        Ok(Self::bytes("application/json", body))
    }

    /// Bytes of some type.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// let response = Response::bytes("image/png", vec![0x89, b'P', b'N', b'G']);
    /// assert_eq!(response.header("content-type"), Some("image/png"));
    /// ```
    pub fn bytes(content_type: &str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.as_bytes().to_vec())];
        Self { status: 200, headers, body: body.into() }
    }

    /// No body and no content type.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert!(Response::empty(204).body().is_empty());
    /// ```
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Cow::Borrowed(&[]) }
    }

    /// The same response under another status. One outside 200 to 599 is the function's mistake,
    /// and what is sent is a 500.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert_eq!(Response::text("gone").with_status(410).status(), 410);
    /// ```
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Sets a header, in place of any of that name. The host refuses what is no header, or is not
    /// the function's to set (`connection`, `transfer-encoding`); the response is a 500 then.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// let response = Response::text("{}").with_header("Content-Type", "application/json");
    /// assert_eq!(response.headers().len(), 1);
    /// ```
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.with_added_header(name, value)
    }

    /// Adds a header beside those of the same name, as `set-cookie` wants it.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// let response = Response::empty(204)
    ///     .with_added_header("set-cookie", "a=1")
    ///     .with_added_header("set-cookie", "b=2");
    /// assert_eq!(response.headers().len(), 2);
    /// ```
    #[must_use]
    pub fn with_added_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    /// The status.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert_eq!(Response::text("hello").status(), 200);
    /// ```
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of this name, whatever its case.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert_eq!(Response::empty(204).header("content-type"), None);
    /// ```
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// The headers set so far. `content-length` comes when the response is sent.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert!(Response::empty(204).headers().is_empty());
    /// ```
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The body.
    ///
    /// ```
    /// # use sandpiper_guest::Response;
    /// assert_eq!(Response::text("hello").body(), b"hello");
    /// ```
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// What a handler may return.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let refused: Result<Response> = Err(Error::bad_request("no"));
/// assert_eq!(refused.into_response().status(), 400);
/// ```
pub trait IntoResponse {
    /// Makes a response of it.
    ///
    /// ```
    /// use sandpiper_guest::prelude::*;
    ///
    /// assert_eq!(Error::not_found("no").into_response().status(), 404);
    /// ```
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl<T: IntoResponse, E: Into<Error>> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(response) => response.into_response(),
            Err(error) => error.into().into_response(),
        }
    }
}
