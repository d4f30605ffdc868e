//! A guest that does whatever the path says, most of it badly. The tests watch the host.
//!
//! | module | paths |
//! |---|---|
//! | `exhaust` | `/spin` `/spin-alloc` `/grow` `/recurse` `/handles` `/hang` `/keep` `/burn` `/sleep` |
//! | `end` | `/trap` `/exit` `/no-response` `/trap-after-head` `/status` `/bad-header` |
//! | `io` | `/echo` `/body-size` `/stream` `/big` `/log` `/log-empty` `/env` `/random` `/clock` |
//! | `reach` | `/egress` `/sockets` `/fs` |
//! | `nn` | `/tensor` `/slow-infer` |
//! | `flow` | `/pipe` `/drain` `/sse` `/trailers` `/late` `/slow-read` `/work-on` |
//! | `job` | `/job` |
//! | here | `/ok` `/counter` |

mod end;
mod exhaust;
mod flow;
mod http;
mod io;
mod job;
mod nn;
mod reach;

use std::sync::atomic::{AtomicU32, Ordering};

use http::{Exchange, Query};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

/// How many requests this instance has seen. In a fresh sandbox: this one.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

struct Misbehave;

wasip2::http::proxy::export!(Misbehave);

impl wasip2::exports::http::incoming_handler::Guest for Misbehave {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let count = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = Query::parse(query);
        let exchange = Exchange { request, out };
        match path {
            "/ok" => exchange.text("ok"),
            "/counter" => exchange.text(&count.to_string()),

            "/spin" => exhaust::spin(),
            "/spin-alloc" => exhaust::spin_alloc(),
            "/grow" => exhaust::grow(),
            "/recurse" => exchange.text(&exhaust::recurse(1).to_string()),
            "/handles" => exhaust::handles(&query),
            "/hang" => exhaust::hang(exchange),
            "/keep" => exhaust::keep(exchange, &query, count),
            "/burn" => exhaust::burn(exchange, &query, count),
            "/sleep" => exhaust::sleep(exchange, &query, count),

            "/trap" => end::trap(),
            "/exit" => end::exit(&query),
            "/no-response" => end::no_response(exchange),
            "/trap-after-head" => end::trap_after_head(exchange, &query),
            "/status" => end::status(exchange, &query),
            "/bad-header" => end::bad_header(exchange, &query),

            "/echo" => io::echo(exchange),
            "/body-size" => io::body_size(exchange),
            "/stream" => io::stream(exchange, &query),
            "/big" => io::big(exchange, &query),
            "/log" => io::log(exchange, &query),
            "/log-empty" => io::log_empty(exchange, &query),
            "/env" => io::env(exchange),
            "/random" => io::random(exchange),
            "/clock" => io::clock(exchange),

            "/pipe" => flow::pipe(exchange),
            "/drain" => flow::drain(exchange),
            "/sse" => flow::events(exchange, &query),
            "/trailers" => flow::trailers(exchange, &query),
            "/late" => flow::late(exchange),
            "/slow-read" => flow::slow_read(exchange, &query),
            "/work-on" => flow::work_on(exchange, &query),

            "/egress" => reach::egress(exchange, &query),
            "/sockets" => reach::sockets(exchange, &query),
            "/fs" => reach::fs(exchange, &query),

            "/tensor" => nn::tensor(exchange, &query),
            "/slow-infer" => nn::slow_infer(exchange, &query),

            "/job" => job::job(exchange, &query),

            _ => exchange.respond(404, "text/plain", b"no such misdeed"),
        }
    }
}
