//! Reaching for what was not granted.

use serde_json::{Value, json};
use wasip2::{
    filesystem::{
        preopens,
        types::{DescriptorFlags, OpenFlags, PathFlags},
    },
    http::{
        outgoing_handler,
        types::{Fields, OutgoingBody, OutgoingRequest, Scheme},
    },
    sockets::{
        instance_network, ip_name_lookup,
        network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress},
        tcp_create_socket, udp_create_socket,
    },
};

use crate::http::{Exchange, Query};

/// Requests `?url=` and tells what became of it.
pub(crate) fn egress(exchange: Exchange, query: &Query) {
    let answer = match fetch(query.get("url").unwrap_or("http://127.0.0.1:1/")) {
        Ok(status) => json!({ "status": status }),
        Err(error) => json!({ "error": error }),
    };
    exchange.json(&answer);
}

fn fetch(url: &str) -> Result<u16, String> {
    let (scheme, rest) = url.split_once("://").ok_or("not a URL")?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&scheme)).map_err(|()| "the host refuses the scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "the host refuses the authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "the host refuses the path")?;
    let body = request.body().map_err(|()| "the host gives no body")?;
    let response = outgoing_handler::handle(request, None).map_err(|error| error_name(&error))?;
    OutgoingBody::finish(body, None).map_err(|error| error_name(&error))?;
    response.subscribe().block();
    match response.get() {
        Some(Ok(Ok(response))) => Ok(response.status()),
        Some(Ok(Err(error))) => Err(error_name(&error)),
        Some(Err(())) | None => Err("the response is gone".to_owned()),
    }
}

fn error_name(error: &impl std::fmt::Debug) -> String {
    let name = format!("{error:?}");
    name.trim_start_matches("ErrorCode::").to_owned()
}

/// Tries TCP to `?port=` of the machine itself, UDP, and a name.
pub(crate) fn sockets(exchange: Exchange, query: &Query) {
    let port = query.number("port", 80) as u16;
    exchange.json(&json!({
        "tcp": outcome(connect(port)),
        "udp": outcome(udp_create_socket::create_udp_socket(IpAddressFamily::Ipv4)
            .map(|_| ())
            .map_err(|error| error.name().to_owned())),
        "lookup": outcome(look_up(query.get("name").unwrap_or("localhost"))),
        "std": outcome(std::net::TcpStream::connect(("127.0.0.1", port))
            .map(|_| ())
            .map_err(|error| error.to_string())),
    }));
}

fn outcome(result: Result<(), String>) -> Value {
    match result {
        Ok(()) => Value::from("allowed"),
        Err(error) => Value::from(error),
    }
}

fn connect(port: u16) -> Result<(), String> {
    let socket = tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)
        .map_err(|error| format!("create: {}", error.name()))?;
    let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (127, 0, 0, 1) });
    socket
        .start_connect(&instance_network::instance_network(), address)
        .map_err(|error| format!("start: {}", error.name()))?;
    socket.subscribe().block();
    socket.finish_connect().map(|_| ()).map_err(|error| format!("finish: {}", error.name()))
}

fn look_up(name: &str) -> Result<(), String> {
    let addresses = ip_name_lookup::resolve_addresses(&instance_network::instance_network(), name)
        .map_err(|error| format!("start: {}", error.name()))?;
    addresses.subscribe().block();
    addresses.resolve_next_address().map(|_| ()).map_err(|error| format!("next: {}", error.name()))
}

/// Lists what is mounted, and tries `?path=`, by the standard library and under every mount.
pub(crate) fn fs(exchange: Exchange, query: &Query) {
    let path = query.get("path").unwrap_or("/etc/passwd");
    let preopens = preopens::get_directories();
    let under: Vec<Value> = preopens
        .iter()
        .map(|(directory, _)| {
            let opened = directory.open_at(
                PathFlags::empty(),
                path.trim_start_matches('/'),
                OpenFlags::empty(),
                DescriptorFlags::READ,
            );
            outcome(opened.map(|_| ()).map_err(|error| error.name().to_owned()))
        })
        .collect();
    let names: Vec<&String> = preopens.iter().map(|(_, name)| name).collect();
    exchange.json(&json!({
        "preopens": names,
        "read": outcome(std::fs::read(path).map(|_| ()).map_err(|error| error.to_string())),
        "write": outcome(std::fs::write("/tmp/misdeed", "x").map_err(|error| error.to_string())),
        "open_at": under,
    }));
}
