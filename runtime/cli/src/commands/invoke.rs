//! `sandpiper invoke`: one request to a function, as curl would send it.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use ureq::{Body, http::Response};

use super::{Context, jobs};
use crate::{
    args::{FunctionRef, Invoke},
    client::{Client, Invocation, interrupted},
    error::{CliError, Kind, Result},
    output::{human, stdout, stdout_error},
};

pub(super) fn run(context: &Context, arguments: &Invoke) -> Result<ExitCode> {
    let body = arguments.data.as_deref().map(read_data).transpose()?;
    let client = context.client()?;
    let target = target(&client, &arguments.function)?;
    let mut headers = arguments.headers.clone();
    if arguments.later {
        headers.push("prefer: respond-async".to_owned());
    }
    let invocation = Invocation {
        path: &arguments.path,
        method: arguments.method.as_deref(),
        headers: &headers,
        body,
    };
    let started = Instant::now();
    let mut response = client.invoke(&target, invocation).map_err(|error| {
        let logs = format!("see what it printed: sandpiper logs {}", arguments.function.name);
        if error.kind == Kind::Function { error.next(logs) } else { error }
    })?;
    if arguments.later {
        let mut bytes = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut bytes).map_err(interrupted)?;
        let job = serde_json::from_slice(&bytes).unwrap_or_default();
        return jobs::accepted(context, &client, &job, arguments.wait);
    }
    let status = response.status().as_u16();
    if context.ui.json {
        let result = as_json(&mut response, started)?;
        context.ui.result(&result, |_| String::new())?;
    } else {
        if arguments.include {
            stdout(head(&response).as_bytes())?;
        }
        // Where the body ends within a line, the note begins the next one.
        let gap = if stream(&mut response)? { "" } else { "\n" };
        context.ui.note(&format!("{gap}{status} in {}", human(started.elapsed())));
    }
    Ok(ExitCode::from(exit_code(status)))
}

/// The exit code of an answer that is the function's own.
pub(super) fn exit_code(status: u16) -> u8 {
    match status {
        500.. => Kind::Function as u8,
        400..=499 => Kind::Rejected as u8,
        _ => 0,
    }
}

/// `tenant/name[@selector]`; the tenant is the one named, or the key's.
pub(super) fn target(client: &Client, function: &FunctionRef) -> Result<String> {
    let tenant = match &function.tenant {
        Some(tenant) => tenant.clone(),
        None => {
            client.tenant().map_err(|error| error.or_next("name the function as TENANT/NAME"))?
        }
    };
    let selector = function.selector.clone().map(|selector| format!("@{selector}"));
    Ok(format!("{tenant}/{}{}", function.name, selector.unwrap_or_default()))
}

fn read_data(data: &str) -> Result<Vec<u8>> {
    let failed = |name: &str, error: io::Error| {
        CliError::usage(format!("{name} cannot be read"))
            .why(error)
            .next("-d @FILE sends a file, -d @- sends stdin, -d TEXT sends the text")
    };
    match data.strip_prefix('@') {
        None => Ok(data.as_bytes().to_vec()),
        Some("-") => {
            let mut bytes = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut bytes);
            read.map(|_| bytes).map_err(|error| failed("stdin", error))
        }
        Some(file) => std::fs::read(file).map_err(|error| failed(file, error)),
    }
}

fn head(response: &Response<Body>) -> String {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head = format!("{:?} {} {reason}\n", response.version(), status.as_u16());
    for (name, value) in response.headers() {
        head.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    head.push('\n');
    head
}

/// Copies the body to stdout as it comes, so that a function may stream. Tells whether it ended with a line.
fn stream(response: &mut Response<Body>) -> Result<bool> {
    let mut reader = response.body_mut().as_reader();
    let mut buffer = vec![0; 64 * 1024];
    let mut last = b'\n';
    loop {
        let count = reader.read(&mut buffer).map_err(interrupted)?;
        if count == 0 {
            return io::stdout().flush().map(|()| last == b'\n').map_err(stdout_error);
        }
        stdout(&buffer[..count])?;
        last = buffer[count - 1];
    }
}

fn as_json(response: &mut Response<Body>, started: Instant) -> Result<Value> {
    let mut headers = Map::new();
    for (name, value) in response.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        match headers.get_mut(name.as_str()) {
            Some(Value::String(first)) => *first = format!("{first}, {value}"),
            _ => {
                headers.insert(name.to_string(), value.into());
            }
        }
    }
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    response.body_mut().as_reader().read_to_end(&mut bytes).map_err(interrupted)?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    let mut result = json!({ "status": status, "headers": headers, "ms": ms });
    // JSON is given as JSON, text as text, and bytes in base64.
    if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
        result["body"] = value;
    } else {
        match String::from_utf8(bytes) {
            Ok(text) => result["body"] = text.into(),
            Err(error) => result["body_base64"] = STANDARD.encode(error.as_bytes()).into(),
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_own_status_decides_the_exit_code() {
        for (status, code) in [(200, 0), (302, 0), (404, 6), (422, 6), (500, 8), (502, 8)] {
            assert_eq!(exit_code(status), code, "{status}");
        }
    }

    #[test]
    fn the_target_names_tenant_and_selector() {
        let tenant = Some("acme".parse().unwrap());
        let client = Client::with("http://127.0.0.1:1", None, tenant).unwrap();
        for (text, expected) in
            [("f", "acme/f"), ("f@2", "acme/f@2"), ("beta/f@canary", "beta/f@canary")]
        {
            assert_eq!(target(&client, &text.parse().unwrap()).unwrap(), expected);
        }
    }

    #[test]
    fn data_is_text_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, b"\xff\0").unwrap();
        assert_eq!(read_data("{}").unwrap(), b"{}");
        assert_eq!(read_data(&format!("@{}", file.display())).unwrap(), b"\xff\0");
        assert_eq!(read_data("@/nowhere/x").unwrap_err().exit_code(), 2);
    }
}
