//! The request, fetched piece by piece as the handler asks for it.

use std::{borrow::Cow, cell::OnceCell};

use serde::Deserialize;

use crate::{Error, Result, host, serve};

/// The most of a body that the SDK reads: the ceiling of the largest tier. What a function may be
/// sent at all is the tenant's limit, and the server has enforced it before.
const BODY_BYTES_MAX: usize = 64 << 20;

/// One HTTP request.
///
/// Every part is fetched from the host on first use and then kept.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let request =
///     testing::request("POST", "/digits?top=3").header("x-trace", "on").body("[1, 2]").build();
/// assert_eq!(request.method(), "POST");
/// assert_eq!(request.path(), "/digits");
/// assert_eq!(request.param("top").as_deref(), Some("3"));
/// assert_eq!(request.header("X-Trace"), Some("on"));
/// assert_eq!(request.json::<Vec<i32>>()?, [1, 2]);
/// # Ok::<(), Error>(())
/// ```
pub struct Request {
    source: host::RawRequest,
    method: OnceCell<Cow<'static, str>>,
    target: OnceCell<String>,
    headers: OnceCell<Vec<(String, Vec<u8>)>>,
    body: OnceCell<Result<Vec<u8>, Unreadable>>,
}

/// A body that could not be read, in a form that can be told more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    TooLarge,
    Interrupted,
}

impl From<Unreadable> for Error {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::TooLarge => Error::new(413, "body_too_large", "the body is too large"),
            Unreadable::Interrupted => Error::bad_request("the body ended too early"),
        }
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.method(), self.path())
    }
}

impl Request {
    pub(crate) fn new(source: host::RawRequest) -> Self {
        Self {
            source,
            method: OnceCell::new(),
            target: OnceCell::new(),
            headers: OnceCell::new(),
            body: OnceCell::new(),
        }
    }

    /// The method, in capitals: `GET`, `POST`, …
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::get("/").method(), "GET");
    /// ```
    pub fn method(&self) -> &str {
        self.method.get_or_init(|| self.source.method())
    }

    /// The path after the function's name, still percent-encoded; at least `/`.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::get("/a%20b?c=d").path(), "/a%20b");
    /// ```
    pub fn path(&self) -> &str {
        self.split_target().0
    }

    /// What follows the `?`, undecoded; empty where there is none.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::get("/a?b=c&d").query(), "b=c&d");
    /// assert_eq!(testing::get("/a").query(), "");
    /// ```
    pub fn query(&self) -> &str {
        self.split_target().1
    }

    fn split_target(&self) -> (&str, &str) {
        let target = self.target.get_or_init(|| self.source.path_with_query());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        (if path.is_empty() { "/" } else { path }, query)
    }

    /// The names and values of the query, decoded, in order. Bytes that are not UTF-8 are replaced.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::get("/?name=J%C3%BCrgen+K.&loud");
    /// let pairs: Vec<_> = request.query_pairs().collect();
    /// assert_eq!(pairs, [("name".into(), "Jürgen K.".into()), ("loud".into(), "".into())]);
    /// ```
    pub fn query_pairs(&self) -> impl Iterator<Item = (String, String)> {
        self.query().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name).into_owned(), decode(value).into_owned())
        })
    }

    /// The first value of the query under this name, decoded.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::get("/?top=3&top=4");
    /// assert_eq!(request.param("top").as_deref(), Some("3"));
    /// assert_eq!(request.param("bottom"), None);
    /// ```
    pub fn param(&self, name: &str) -> Option<String> {
        self.query().split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!pair.is_empty() && decode(key) == name).then(|| decode(value).into_owned())
        })
    }

    /// The first header of this name, whatever its case; `None` also where it is not UTF-8.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::request("GET", "/").header("Accept", "text/plain").build();
    /// assert_eq!(request.header("accept"), Some("text/plain"));
    /// assert_eq!(request.header("cookie"), None);
    /// ```
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers().iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Every header, in the order in which the host gives them.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::request("GET", "/").header("accept", "text/plain").build();
    /// assert_eq!(request.headers(), [("accept".into(), b"text/plain".to_vec())]);
    /// ```
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        self.headers.get_or_init(|| self.source.headers())
    }

    /// The body. The first call reads all of it.
    ///
    /// A body that cannot be read (the caller hung up) reads as empty, and then the response is a
    /// 400 whatever the handler returns. [`Request::try_body`] tells the handler instead.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::post("/", "hello").body(), b"hello");
    /// ```
    pub fn body(&self) -> &[u8] {
        match self.read() {
            Ok(body) => body,
            Err(unreadable) => {
                serve::remember_unread(unreadable.into());
                &[]
            }
        }
    }

    /// The body, or why it could not be read.
    ///
    /// # Errors
    ///
    /// 413 where it is larger than the SDK reads (64 MiB), 400 where it was cut short.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::post("/", "hello").try_body()?, b"hello");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn try_body(&self) -> Result<&[u8]> {
        Ok(self.read()?)
    }

    /// The body, to keep.
    ///
    /// # Errors
    ///
    /// As [`Request::try_body`].
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let body: Vec<u8> = testing::post("/", "hello").into_body()?;
    /// assert_eq!(body, b"hello");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn into_body(self) -> Result<Vec<u8>> {
        let body = self.body.into_inner();
        Ok(body.unwrap_or_else(|| self.source.read_body(BODY_BYTES_MAX))?)
    }

    /// The body as text.
    ///
    /// # Errors
    ///
    /// 400 where it is not UTF-8, and as [`Request::try_body`].
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::post("/", "hello").text()?, "hello");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(self.read()?).map_err(|_| Error::bad_request("the body is not UTF-8"))
    }

    /// The body parsed as JSON, whatever its `content-type`. It may borrow from the request.
    ///
    /// # Errors
    ///
    /// 400 that says where the body stops making sense, and as [`Request::try_body`].
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::post("/", r#"["a", "b"]"#);
    /// assert_eq!(request.json::<Vec<&str>>()?, ["a", "b"]);
    /// assert_eq!(request.json::<u8>().unwrap_err().status(), 400);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        let body = self.read()?;
        serde_json::from_slice(body).map_err(|error| {
            Error::bad_request(format!("the body is not the JSON wanted: {error}"))
        })
    }

    fn read(&self) -> Result<&[u8], Unreadable> {
        match self.body.get_or_init(|| self.source.read_body(BODY_BYTES_MAX)) {
            Ok(body) => Ok(body),
            Err(unreadable) => Err(*unreadable),
        }
    }
}

/// Undoes percent-encoding and `+` for space, the rules of forms. A stray `%` stands for itself.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match after {
                [high, low, after @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                    rest = after;
                    hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0)
                }
                _ => b'%',
            },
            other => other,
        });
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn decoding_keeps_what_is_not_an_escape() {
        for (text, plain) in [
            ("", ""),
            ("a+b", "a b"),
            ("%41%zz", "A%zz"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(decode(text), plain, "{text}");
        }
    }
}
