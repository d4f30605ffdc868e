//! `sandpiper batch`: a file's lines through a function. The batch is the server's: it goes on without us, and
//! `attach` follows it again.

use std::{
    fs::File,
    io::{BufRead, Read, Write},
    path::Path,
    thread,
    time::Duration,
};

use sandpiper_domain::JobId;
use serde_json::{Value, json};

use super::{Context, jobs::copy, number, rows, text};
use crate::{
    args::{Batch, BatchRun},
    client::{Client, interrupted},
    error::{CliError, Kind, Result},
    output::{Task, fields, stdout, table},
    sse::Parser,
    upload::Upload,
};

/// The pause before a stream that broke off is opened again, and how often that is done in a row.
const RECONNECT: Duration = Duration::from_secs(1);
const RECONNECTS_MAX: u32 = 60;
const LINE_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn run(context: &Context, command: Batch) -> Result<()> {
    let client = context.client()?;
    match command {
        Batch::Run(arguments) => start(context, &client, &arguments),
        Batch::Attach { id, output } => attach(context, &client, id, output.as_deref()),
        Batch::List => {
            let answer = client.get("/api/v1/batches")?;
            let columns = [
                ("ID", "/id"),
                ("FUNCTION", "/function"),
                ("STATE", "/state"),
                ("LINES", "/lines"),
                ("DONE", "/done_lines"),
                ("FAILED", "/failed_lines"),
                ("CREATED", "/created_at"),
            ];
            context.ui.result(&answer, |answer| table(rows(answer, "batches"), &columns))
        }
        Batch::Show { id } => {
            context.ui.result(&client.get(&format!("/api/v1/batches/{id}"))?, fields)
        }
        Batch::Output { id, partial } => {
            let path = format!("/api/v1/batches/{id}/output?partial={partial}");
            copy(&client, &path, &mut |bytes| stdout(bytes))
        }
        Batch::Cancel { id } => {
            client.delete(&format!("/api/v1/batches/{id}"))?;
            context.ui.result(&json!({ "cancelled": id }), |_| format!("cancelled {id}"))
        }
    }
}

fn start(context: &Context, client: &Client, arguments: &BatchRun) -> Result<()> {
    let BatchRun { function, input, output, path, selector, shard_lines, detach } = arguments;
    let mut upload = Upload::file(input)?;
    upload.content_type = "application/x-ndjson".to_owned();
    let shards = shard_lines.map(|lines| format!("&shard_lines={lines}")).unwrap_or_default();
    let path = encoded(path);
    let url =
        format!("/api/v1/functions/{function}/batches?path={path}&selector={selector}{shards}");
    let task = context.ui.upload(&format!("uploading {}", input.display()), upload.length);
    let batch = client.post_file(&url, upload, &task)?;
    drop(task);
    let id: JobId = text(&batch, "id")
        .parse()
        .map_err(|error| CliError::unexpected("the server's answer names no batch").why(error))?;
    if *detach {
        return context.ui.result(&batch, |_| id.to_string());
    }
    context.ui.note(&format!("batch {id}: follow it again with `sandpiper batch attach {id}`"));
    attach(context, client, id, output.as_deref())
}

/// Percent-encodes what would end a query's value.
fn encoded(value: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    value.bytes().map(encode).collect()
}

fn attach(context: &Context, client: &Client, id: JobId, output: Option<&Path>) -> Result<()> {
    let task = context.ui.spinner("running");
    let batch = follow(client, id, &task)?;
    drop(task);
    let path = format!("/api/v1/batches/{id}/output");
    match output {
        Some(file) => {
            let failed = |error: std::io::Error| {
                CliError::usage(format!("{} cannot be written", file.display())).why(error)
            };
            let mut out = File::create(file).map_err(failed)?;
            copy(client, &path, &mut |bytes| out.write_all(bytes).map_err(failed))?;
            out.sync_all().map_err(failed)?;
            context.ui.result(&batch, |batch| summary(batch))?;
        }
        None => {
            copy(client, &path, &mut |bytes| stdout(bytes))?;
            context.ui.note(&summary(&batch));
        }
    }
    match text(&batch, "state") {
        "done" => Ok(()),
        state => Err(CliError::new(Kind::Rejected, format!("the batch is {state}"))),
    }
}

fn summary(batch: &Value) -> String {
    let (done, failed) = (number(batch, "done_lines"), number(batch, "failed_lines"));
    format!("{done} of {} lines done, {failed} of them failed", number(batch, "lines"))
}

/// Follows a batch to its end, over however many connections.
fn follow(client: &Client, id: JobId, task: &Task) -> Result<Value> {
    let mut failures = 0;
    loop {
        match follow_once(client, id, task, &mut failures) {
            Ok(Some(batch)) => return Ok(batch),
            // The stream ended before the batch did: the server restarts.
            Ok(None) => {}
            Err(error) if !matches!(error.kind, Kind::Unreachable | Kind::Busy) => {
                return Err(error);
            }
            Err(error) if failures >= RECONNECTS_MAX => return Err(error),
            Err(_) => {}
        }
        failures += 1;
        task.detail("the connection is lost; trying again");
        thread::sleep(RECONNECT);
    }
}

fn follow_once(
    client: &Client,
    id: JobId,
    task: &Task,
    failures: &mut u32,
) -> Result<Option<Value>> {
    let mut stream = client.stream(&format!("/api/v1/batches/{id}/events"))?;
    let (mut parser, mut buffer) = (Parser::default(), Vec::new());
    loop {
        buffer.clear();
        let read = stream.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut buffer);
        if read.map_err(interrupted)? == 0 {
            return Ok(None);
        }
        let Some(event) = parser.line(&String::from_utf8_lossy(&buffer)) else { continue };
        let Ok(batch) = serde_json::from_str::<Value>(&event.data) else { continue };
        *failures = 0;
        if event.name == "done" {
            return Ok(Some(batch));
        }
        let eta = batch.get("eta_s").and_then(Value::as_f64);
        let eta = eta.map(|eta| format!(", {eta} s left")).unwrap_or_default();
        let (done, lines) = (number(&batch, "done_lines"), number(&batch, "lines"));
        task.detail(&format!("{done} of {lines} lines, {} per s{eta}", batch["lines_per_s"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_query_stays_one_value() {
        assert_eq!(encoded("/predict?x=1&y=ä"), "/predict%3Fx%3D1%26y%3D%C3%A4");
    }
}
