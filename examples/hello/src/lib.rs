//! The smallest function: no model, no state.

use sandpiper_guest::prelude::*;

/// Greets the caller: `hello`, or by name with `?name=`.
#[handler]
pub fn hello(request: Request) -> Response {
    match request.param("name") {
        Some(name) if !name.is_empty() => Response::text(format!("hello, {name}\n")),
        _ => Response::text("hello\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greets_by_name_where_there_is_one() {
        assert_eq!(hello(testing::get("/")).body(), b"hello\n");
        assert_eq!(hello(testing::get("/?name=")).body(), b"hello\n");
        assert_eq!(hello(testing::get("/?name=Ada+L.")).body(), b"hello, Ada L.\n");
    }
}
