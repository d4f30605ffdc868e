//! A handler may have any name, also one that the expansion of `#[handler]` uses itself.

use sandpiper_guest::prelude::*;

/// Handlers in modules of their own: natively a crate may have several.
macro_rules! handlers {
    ($($name:ident)*) => {$(
        mod $name {
            use sandpiper_guest::prelude::*;

            #[handler]
            pub(super) fn $name(request: Request) -> Result<Response> {
                Ok(Response::text(format!("{} {}", stringify!($name), request.path())))
            }
        }
    )*};
}

handlers!(request out answer serve handle name);

// Not by way of `macro_rules!`, whose own hygiene might hide a fault.
mod plain {
    use sandpiper_guest::prelude::*;

    #[handler]
    pub(super) fn request(request: Request) -> Response {
        Response::text(request.path().to_owned())
    }
}

mod plain_too {
    use sandpiper_guest::prelude::*;

    #[handler]
    pub(super) fn out(out: Request) -> Response {
        Response::text(out.path().to_owned())
    }
}

#[test]
fn a_handler_may_have_any_name() {
    for (handler, name) in [
        (request::request as fn(Request) -> Result<Response>, "request"),
        (out::out, "out"),
        (answer::answer, "answer"),
        (serve::serve, "serve"),
        (handle::handle, "handle"),
        (name::name, "name"),
    ] {
        let response = testing::call(handler, testing::get("/a"));
        assert_eq!(response.body(), format!("{name} /a").as_bytes());
    }
    assert_eq!(plain::request(testing::get("/b")).body(), b"/b");
    assert_eq!(plain_too::out(testing::get("/c")).body(), b"/c");
}
