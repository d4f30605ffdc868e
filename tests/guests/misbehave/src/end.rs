//! Ending badly.

use wasip2::{
    cli::exit,
    clocks::monotonic_clock,
    http::types::{Fields, OutgoingBody, OutgoingResponse, ResponseOutparam},
};

use crate::http::{self, Exchange, Query};

pub(crate) fn trap() -> ! {
    core::arch::wasm32::unreachable()
}

/// `?code=0` (default) is success, anything else failure.
pub(crate) fn exit(query: &Query) {
    exit::exit(if query.number("code", 0) == 0 { Ok(()) } else { Err(()) });
}

/// Returns as if all were well. Nothing was ever said.
pub(crate) fn no_response(exchange: Exchange) {
    drop(exchange);
}

/// Promises 1,000 bytes after a head with `?code=`, sends a few, waits until they must be out, traps.
pub(crate) fn trap_after_head(exchange: Exchange, query: &Query) -> ! {
    let headers = [("content-length".to_owned(), b"1000".to_vec())];
    let (body, stream) = http::start(exchange.out, query.number("code", 200) as u16, &headers);
    let _ = http::write_all(&stream, b"the beginning of something");
    monotonic_clock::subscribe_duration(query.number("ms", 50) * 1_000_000).block();
    std::mem::forget((body, stream));
    trap()
}

/// Answers with `?code=`, or says that the host refuses it.
pub(crate) fn status(exchange: Exchange, query: &Query) {
    let code = query.number("code", 200) as u16;
    let response = OutgoingResponse::new(Fields::new());
    if response.set_status_code(code).is_err() {
        return exchange.text("refused");
    }
    if let Ok(body) = response.body() {
        let _ = OutgoingBody::finish(body, None);
    }
    ResponseOutparam::set(exchange.out, Ok(response));
}

/// Tries to set a header: `?name=` and `?value=`, or one that is not the function's to set.
pub(crate) fn bad_header(exchange: Exchange, query: &Query) {
    let name = query.get("name").unwrap_or("transfer-encoding").to_owned();
    let value = query.get("value").unwrap_or("chunked").as_bytes().to_vec();
    match Fields::from_list(&[(name, value)]) {
        Err(error) => exchange.text(&format!("{error:?}")),
        Ok(fields) => {
            let response = OutgoingResponse::new(fields);
            if let Ok(body) = response.body() {
                let _ = OutgoingBody::finish(body, None);
            }
            ResponseOutparam::set(exchange.out, Ok(response));
        }
    }
}
