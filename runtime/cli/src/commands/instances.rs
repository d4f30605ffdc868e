//! `sandpiper instances`: the sandboxes of a function, once or as they change.

use sandpiper_domain::FunctionName;
use serde_json::{Value, json};

use super::{Context, logs::follow_events, number, rows, text};
use crate::{
    error::Result,
    output::{clean, stdout, table},
    sse::Event,
};

pub(super) fn run(context: &Context, function: &FunctionName, follow: bool) -> Result<()> {
    let path = format!("/api/v1/functions/{function}/instances");
    if follow {
        return follow_events(context, &format!("{path}?follow=true"), |event| {
            show(context, event)
        });
    }
    let answer = context.client()?.get(&path)?;
    context.ui.result(&answer, tables)
}

fn tables(answer: &Value) -> String {
    let versions = [
        ("VERSION", "/version"),
        ("MODE", "/mode"),
        ("CODE", "/code"),
        ("WANTED", "/wanted"),
        ("READY", "/ready"),
        ("RUNNING", "/running"),
        ("SUSPENDED", "/suspended"),
        ("WAITING", "/waiting"),
    ];
    let instances = [
        ("ID", "/id"),
        ("VERSION", "/version"),
        ("STATE", "/state"),
        ("AGE MS", "/age_ms"),
        ("SERVED", "/served"),
        ("MEMORY", "/memory_bytes"),
    ];
    let all = table(rows(answer, "versions"), &versions);
    match rows(answer, "instances") {
        [] => all,
        some => format!("{all}\n\n{}", table(some, &instances)),
    }
}

fn show(context: &Context, event: &Event) -> Result<()> {
    let Ok(value) = serde_json::from_str::<Value>(&event.data) else { return Ok(()) };
    if context.ui.json {
        // One JSON value per line, so that `--json | jq` works while it runs.
        return stdout(format!("{}\n", json!({ &event.name: value })).as_bytes());
    }
    match event.name.as_str() {
        "dropped" => {
            context.ui.note(&format!("({} changes were dropped)", number(&value, "events")));
            Ok(())
        }
        name => stdout(format!("{}\n", line(name, &value)).as_bytes()),
    }
}

/// One change for people.
fn line(name: &str, value: &Value) -> String {
    let version = number(value, "version");
    if name == "scale" {
        let panic = if value["panicking"] == true { ", demand grows suddenly" } else { "" };
        let (wanted, ready) = (number(value, "wanted"), number(value, "ready"));
        return format!("version {version}: {wanted} wanted, {ready} ready{panic}");
    }
    if name == "start_failed" {
        return format!("version {version}: a start failed: {}", clean(text(value, "message")));
    }
    let reason = text(value, "reason");
    let reason = if reason.is_empty() { String::new() } else { format!(" ({})", clean(reason)) };
    let (id, change) = (clean(text(value, "id")), clean(text(value, "change")));
    format!("version {version}: {id} {change}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows_what_and_why() {
        let value = json!({"id": "7", "version": 3, "change": "ended", "reason": "idle"});
        assert_eq!(line("instance", &value), "version 3: 7 ended (idle)");
        let value = json!({"version": 3, "code": "trap", "message": "the function trapped"});
        let shown = "version 3: a start failed: the function trapped";
        assert_eq!(line("start_failed", &value), shown);
        let value = json!({"version": 3, "wanted": 9, "ready": 2, "panicking": true});
        assert_eq!(line("scale", &value), "version 3: 9 wanted, 2 ready, demand grows suddenly");
    }
}
