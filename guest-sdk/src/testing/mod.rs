//! Tests without a server: requests made by hand, and closures in place of models.
//!
//! A handler is an ordinary function, so a test calls it. What it would find in its sandbox (the
//! models and the environment) is put in place for the current thread, until the guard is dropped.
//!
//! ```
//! use sandpiper_guest::prelude::*;
//!
//! fn sign(request: Request) -> Result<Response> {
//!     let x: f32 = request.json()?;
//!     let outputs = Model::named("sign")?.run([("x", Tensor::f32([1], &[x]))])?;
//!     Ok(Response::text(if outputs.get("y")?.to_f32()? == [1.0] { "+" } else { "-" }))
//! }
//!
//! let _model = testing::model("sign", |inputs| {
//!     let x = inputs.get("x")?.to_f32()?;
//!     Ok([("y", Tensor::f32([1], &[x[0].signum()]))])
//! });
//! assert_eq!(sign(testing::post("/", "-2.5"))?.body(), b"-");
//!
//! // `call` does what the runtime does: an error becomes a response.
//! let refused = testing::call(sign, testing::post("/", "much"));
//! assert_eq!(refused.status(), 400);
//! # Ok::<(), Error>(())
//! ```

pub(crate) mod host;

use std::rc::Rc;

use crate::{IntoResponse, Outputs, Request, Response, Result, Tensor, model, serve};

/// A `GET` without headers.
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// assert_eq!(testing::get("/hello?name=Ada").param("name").as_deref(), Some("Ada"));
/// ```
pub fn get(target: &str) -> Request {
    request("GET", target).build()
}

/// A `POST` with a body.
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// assert_eq!(testing::post("/", vec![1, 2, 3]).body(), [1, 2, 3]);
/// ```
pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Request {
    request("POST", target).body(body).build()
}

/// Any other request.
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// let request = testing::request("PUT", "/a").header("x-b", "c").body("d").build();
/// assert_eq!((request.method(), request.header("x-b")), ("PUT", Some("c")));
/// ```
pub fn request(method: &str, target: &str) -> RequestBuilder {
    RequestBuilder(host::RawRequest {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        body: Some(Vec::new()),
    })
}

/// A request in the making, see [`request`].
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// assert_eq!(testing::request("DELETE", "/a").build().path(), "/a");
/// ```
#[derive(Clone, Debug)]
pub struct RequestBuilder(host::RawRequest);

impl RequestBuilder {
    /// Adds a header.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::request("GET", "/").header("accept", "*/*").build();
    /// assert_eq!(request.headers().len(), 1);
    /// ```
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.0.headers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    /// Sets the body.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::request("PUT", "/").body("x").build().body(), b"x");
    /// ```
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = Some(body.into());
        self
    }

    /// Makes the body one whose sender hangs up.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let request = testing::request("PUT", "/").broken_body().build();
    /// assert_eq!(request.try_body().unwrap_err().status(), 400);
    /// ```
    #[must_use]
    pub fn broken_body(mut self) -> Self {
        self.0.body = None;
        self
    }

    /// The request.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(testing::request("GET", "/").build().query(), "");
    /// ```
    pub fn build(self) -> Request {
        Request::new(self.0)
    }
}

/// Calls a handler the way the runtime does: whatever comes out becomes a response.
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// fn teapot(_: Request) -> Result<Response> {
///     Err(Error::new(418, "teapot", "short and stout"))
/// }
/// assert_eq!(testing::call(teapot, testing::get("/")).status(), 418);
/// ```
pub fn call<R: IntoResponse>(handler: fn(Request) -> R, request: Request) -> Response {
    serve::answer(handler, request)
}

/// Puts a closure in place of a model, for this thread, until the guard is dropped.
///
/// The closure gets the inputs and gives named tensors. The newest of a name wins.
///
/// # Panics
///
/// When the model is run, where the dimensions of an output do not account for its elements.
///
/// ```
/// use sandpiper_guest::prelude::*;
/// use sandpiper_guest::ModelFailure;
///
/// let _slow = testing::model("slow", |_| -> Result<[(&str, Tensor); 0]> {
///     Err(Error::model(ModelFailure::Timeout, "too slow"))
/// });
/// let error = Model::named("slow")?.run::<&str>([]).err();
/// assert_eq!(error.map(|error| error.status()), Some(504));
/// # Ok::<(), Error>(())
/// ```
#[must_use = "the model is gone when the guard is dropped"]
pub fn model<F, O, N>(name: &str, run: F) -> Guard
where
    F: Fn(Outputs) -> Result<O> + 'static,
    O: IntoIterator<Item = (N, Tensor)>,
    N: Into<String>,
{
    let run: host::FakeModel = Rc::new(move |inputs| {
        let outputs = run(model::named_tensors(inputs))?;
        Ok(outputs.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect())
    });
    host::install(host::Fake::Model(name.to_owned(), run))
}

/// Sets a variable of the function's environment, for this thread, until the guard is dropped.
/// The environment of the test process itself is not seen.
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// let quiet = testing::env("QUIET", "yes");
/// assert_eq!(env("QUIET").as_deref(), Some("yes"));
/// drop(quiet);
/// assert_eq!(env("QUIET"), None);
/// ```
#[must_use = "the variable is gone when the guard is dropped"]
pub fn env(name: &str, value: &str) -> Guard {
    host::install(host::Fake::Env(name.to_owned(), value.to_owned()))
}

/// Keeps a stand-in in place, see [`model()`] and [`env()`].
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// let guard = testing::model("m", |_| Ok([] as [(String, Tensor); 0]));
/// assert!(Model::named("m").is_ok());
/// drop(guard);
/// assert!(Model::named("m").is_err());
/// ```
#[derive(Debug)]
pub struct Guard {
    id: u64,
    // What it guards is the thread's own, so the guard stays on the thread.
    _thread: std::marker::PhantomData<Rc<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        host::remove(self.id);
    }
}
