//! From a handler to a response, on every target.

use std::cell::Cell;

use crate::{Error, IntoResponse, Request, Response};

thread_local! {
    /// Why the body of the request being served could not be read, see [`Request::body`].
    static UNREAD: Cell<Option<Error>> = const { Cell::new(None) };
}

/// Remembers that the handler was given an empty body in place of one that could not be read.
pub(crate) fn remember_unread(error: Error) {
    UNREAD.set(Some(error));
}

/// Calls the handler and makes a response of whatever comes out.
#[doc(hidden)]
pub fn answer<R: IntoResponse>(handler: fn(Request) -> R, request: Request) -> Response {
    UNREAD.set(None);
    let response = handler(request).into_response();
    // What the handler made of a body that was not there must not pass for an answer.
    if let Some(error) = UNREAD.take() {
        return error.into_response();
    }
    if !(200..=599).contains(&response.status()) {
        eprintln!("error: {} is no status of a response", response.status());
        let message = "the function made a response with a status that is none";
        return Error::internal(message).into_response();
    }
    response
}

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use crate::{Request, Response, testing};

    #[test]
    fn what_is_made_of_an_unreadable_body_is_not_sent() {
        let count = |request: Request| Response::text(request.body().len().to_string());
        let broken = testing::request("POST", "/").broken_body().build();
        assert_eq!(testing::call(count, broken).status(), 400);
        assert_eq!(testing::call(count, testing::post("/", "abc")).body(), b"3");
        let ignore = |_: Request| Response::text("fine");
        let broken = testing::request("POST", "/").broken_body().build();
        assert_eq!(testing::call(ignore, broken).status(), 200);
    }

    #[test]
    fn an_impossible_status_is_an_internal_error() {
        let handlers: [fn(Request) -> Response; 4] = [
            |_| Response::empty(0),
            |_| Response::empty(101),
            |_| Response::empty(600),
            |_| Response::text("x").with_status(u16::MAX),
        ];
        for handler in handlers {
            assert_eq!(testing::call(handler, testing::get("/")).status(), 500);
        }
    }
}
