//! `sandpiper logs`: what a function printed, once or as it comes.

use std::io::{BufRead, Read};

use sandpiper_domain::FunctionName;
use serde_json::{Value, json};

use super::{Context, number, rows, text};
use crate::{
    client::interrupted,
    error::{CliError, Kind, Result},
    output::{clean, stdout},
    sse::{Event, Parser},
};

/// A longer line is cut into several; no line of a server's is.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn run(context: &Context, function: &FunctionName, follow: bool) -> Result<()> {
    let path = format!("/api/v1/functions/{function}/logs");
    if follow {
        return follow_events(context, &format!("{path}?follow=true"), |event| {
            show(context, event)
        });
    }
    let answer = context.client()?.get(&path)?;
    let (lines, bytes) = (number(&answer, "dropped_lines"), number(&answer, "dropped_bytes"));
    if lines + bytes > 0 {
        context.ui.note(&format!("({lines} older lines and {bytes} bytes were dropped)"));
    }
    if rows(&answer, "lines").is_empty() && !context.ui.json {
        context.ui.note("(no lines yet)");
        return Ok(());
    }
    context.ui.result(&answer, |answer| {
        rows(answer, "lines").iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// Shows the events of a stream until it ends, which is an error: a server does not end one by itself.
pub(super) fn follow_events(
    context: &Context,
    path: &str,
    show: impl Fn(&Event) -> Result<()>,
) -> Result<()> {
    let mut stream = context.client()?.stream(path)?;
    let mut parser = Parser::default();
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let read = stream.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut buffer);
        if read.map_err(interrupted)? == 0 {
            return Err(CliError::new(Kind::Unreachable, "the server ended the stream")
                .next("run the command again; the function may have been deleted"));
        }
        if let Some(event) = parser.line(&String::from_utf8_lossy(&buffer)) {
            show(&event)?;
        }
    }
}

fn show(context: &Context, event: &Event) -> Result<()> {
    let Ok(value) = serde_json::from_str::<Value>(&event.data) else { return Ok(()) };
    match event.name.as_str() {
        // One JSON value per line, so that `--json | jq` works while it runs.
        "log" if context.ui.json => stdout(format!("{value}\n").as_bytes()),
        "log" => stdout(format!("{}\n", line(&value)).as_bytes()),
        "dropped" if context.ui.json => {
            stdout(format!("{}\n", json!({ "dropped": value })).as_bytes())
        }
        "dropped" => {
            context.ui.note(&format!("({} lines were dropped)", number(&value, "lines")));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// One line of the log for people.
fn line(value: &Value) -> String {
    let stream = if text(value, "stream") == "stderr" { "err" } else { "out" };
    let (time, request, said) =
        (text(value, "time"), text(value, "request_id"), text(value, "text"));
    format!("{} {stream} {} {}", clean(time), clean(request), clean(said.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_its_time_stream_and_request() {
        let value =
            json!({"time": "T", "stream": "stderr", "request_id": "r1", "text": "a\u{1b}b\n"});
        assert_eq!(line(&value), "T err r1 a\\u{1b}b");
    }
}
