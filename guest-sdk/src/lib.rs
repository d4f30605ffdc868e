//! Write Sandpiper functions in Rust.
//!
//! A function is a handler: it takes a [`Request`], may run a [`Model`], and gives a [`Response`].
//! Built for `wasm32-wasip2` it is a component that exports `wasi:http/incoming-handler` and, where
//! it uses models, imports `wasi:nn`: standard WASI and nothing else.
//!
//! ```
//! use sandpiper_guest::prelude::*;
//!
//! #[handler]
//! fn classify(request: Request) -> Result<Response> {
//!     let pixels: Vec<f32> = request.json()?;
//!     let outputs = Model::named("digits")?.run([("image", Tensor::f32([1, 1, 8, 8], &pixels))])?;
//!     let probs = outputs.get("probs")?.to_f32()?;
//!     Response::json(&probs)
//! }
//!
//! // The same function, called on the developer's machine with a stand-in for the model.
//! let _model = testing::model("digits", |_inputs| Ok([("probs", Tensor::f32([1, 2], &[0.9, 0.1]))]));
//! let response = classify(testing::post("/", serde_json::to_vec(&vec![0.0; 64])?))?;
//! assert_eq!(response.body(), b"[0.9,0.1]");
//! # Ok::<(), Error>(())
//! ```
//!
//! - Nothing is fetched before it is asked for: a handler that ignores the headers or the body does
//!   not pay for them.
//! - An error that leaves the handler becomes `{"error": {"code", "message"}}` with its status, see
//!   [`Error`].
//! - `print!` and `eprint!` go to the function's log.

mod env;
mod error;
mod model;
mod request;
mod response;
mod serve;
mod tensor;

#[cfg(not(target_family = "wasm"))]
pub mod testing;
#[cfg(target_family = "wasm")]
mod wasi;

// What stands behind the SDK: the host's interfaces, or the stand-ins of a test.
#[cfg(not(target_family = "wasm"))]
use testing::host;
#[cfg(target_family = "wasm")]
use wasi as host;

pub use env::{env, env_or};
pub use error::{Error, ModelFailure, Result, ResultExt};
pub use model::{Model, Outputs};
pub use request::Request;
pub use response::{IntoResponse, Response};
pub use sandpiper_guest_macros::handler;
pub use tensor::{DataType, Tensor};

/// What a function usually needs, in one line.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// #[handler]
/// fn ok(_request: Request) -> Response {
///     Response::text("ok")
/// }
///
/// assert_eq!(ok(testing::get("/")).status(), 200);
/// ```
pub mod prelude {
    #[cfg(not(target_family = "wasm"))]
    pub use crate::testing;
    pub use crate::{
        DataType, Error, IntoResponse, Model, Outputs, Request, Response, Result, ResultExt,
        Tensor, env, env_or, handler,
    };
}

/// For the expansion of `#[handler]` alone; not part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::serve::answer;
    #[cfg(target_family = "wasm")]
    pub use crate::wasi::serve;
    #[cfg(target_family = "wasm")]
    pub use wasip2::{
        exports::http::incoming_handler::Guest,
        http::proxy::export,
        http::types::{IncomingRequest, ResponseOutparam},
    };
}
