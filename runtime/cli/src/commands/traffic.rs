//! `sandpiper versions`, `rollback` and `diff`, and the rollout that `deploy --canary` begins and follows.

use std::{
    thread,
    time::{Duration, Instant},
};

use sandpiper_domain::{AliasName, FunctionName};
use serde_json::{Value, json};

use super::{Context, catalog, number, rows, text};
use crate::{
    args::{Canary, Diff, Rollback, Sticky},
    client::Client,
    error::Result,
    output::{Ui, table},
};

/// Between two looks at a rollout.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a server may be away while its rollout is followed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

pub(super) fn versions(context: &Context, function: &FunctionName) -> Result<()> {
    catalog::versions(context, catalog::Collection::Functions, function.as_str())
}

pub(super) fn rollback(context: &Context, arguments: &Rollback) -> Result<()> {
    let Rollback { function, alias, to } = arguments;
    let path = format!("/api/v1/functions/{function}/aliases/{alias}/rollback");
    let body = match to {
        Some(version) => json!({ "to": version }),
        None => json!({}),
    };
    let answer = context.client()?.post(&path, &body)?;
    context.ui.result(&answer, |answer| {
        let mut line = format!("{function}@{alias} {}", catalog::place(answer));
        for (model, version) in answer["models"].as_object().into_iter().flatten() {
            line.push_str(&format!("\n  with version {version} of {model}"));
        }
        line
    })
}

pub(super) fn diff(context: &Context, arguments: &Diff) -> Result<()> {
    let Diff { function, from, to } = arguments;
    let client = context.client()?;
    let to = match to {
        Some(to) => u64::from(*to),
        None => number(&client.get(&format!("/api/v1/functions/{function}"))?, "latest_version"),
    };
    let path = format!("/api/v1/functions/{function}/versions/{from}/diff/{to}");
    let answer = client.get(&path)?;
    context.ui.result(&answer, differences)
}

/// A diff for a person, a line for each difference.
fn differences(diff: &Value) -> String {
    let mut lines = Vec::new();
    let [before, after] = [0, 1].map(|place| diff["size_bytes"][place].as_u64().unwrap_or(0));
    if diff["digest_changed"] == true {
        lines.push(format!("component: {before} -> {after} bytes"));
    }
    for (sign, key) in [('+', "added"), ('-', "removed")] {
        let imports = rows(&diff["imports"], key).iter().filter_map(Value::as_str);
        lines.extend(imports.map(|import| format!("{sign} import {import}")));
    }
    for change in rows(diff, "manifest") {
        let value = |key: &str| match &change[key] {
            Value::Null => "(none)".to_owned(),
            value => value.to_string(),
        };
        lines.push(format!("{}: {} -> {}", text(change, "key"), value("from"), value("to")));
    }
    if lines.is_empty() {
        let (from, to) = (number(diff, "from"), number(diff, "to"));
        lines.push(format!("versions {from} and {to} are the same"));
    }
    lines.join("\n")
}

/// Says which versions of a function are kept.
pub(super) fn retain(
    context: &Context,
    function: &FunctionName,
    latest: Option<u32>,
    versions: Option<Vec<u32>>,
) -> Result<()> {
    let body = match (latest, versions) {
        (Some(latest), _) => json!({ "latest": latest }),
        (None, Some(versions)) => json!({ "versions": versions }),
        (None, None) => json!({}),
    };
    let path = format!("/api/v1/functions/{function}/retention");
    let answer = context.client()?.put(&path, &body)?;
    context.ui.result(&answer, |answer| {
        let removed = rows(answer, "removed").iter().map(Value::to_string).collect::<Vec<_>>();
        match removed.is_empty() {
            true => format!("no version of {function} had to go"),
            false => format!("removed of {function}: {}", removed.join(", ")),
        }
    })
}

pub(super) fn sticky_json(sticky: &Sticky) -> Value {
    match sticky {
        Sticky::Header(name) => json!({ "header": name }),
        Sticky::Cookie(name) => json!({ "cookie": name }),
        Sticky::None => Value::Null,
    }
}

/// Shows a rollout, or ends it.
pub(super) fn rollout(
    context: &Context,
    function: &FunctionName,
    alias: &AliasName,
    abort: bool,
) -> Result<()> {
    let path = format!("/api/v1/functions/{function}/aliases/{alias}/rollouts");
    let client = context.client()?;
    if abort {
        let answer = client.delete(&path)?;
        let text = |answer: &Value| format!("{function}@{alias} {}", catalog::place(answer));
        return context.ui.result(&answer, text);
    }
    context.ui.result(&client.get(&path)?, told)
}

/// Shows where an alias has pointed, latest first.
pub(super) fn history(context: &Context, function: &FunctionName, alias: &AliasName) -> Result<()> {
    let path = format!("/api/v1/functions/{function}/aliases/{alias}/history");
    let columns = [
        ("SINCE", "/at"),
        ("VERSION", "/version"),
        ("WEIGHTS", "/weights"),
        ("MODELS", "/models"),
        ("CAUSE", "/cause"),
        ("REASON", "/reason"),
    ];
    let answer = context.client()?.get(&path)?;
    context.ui.result(&answer, |answer| table(rows(answer, "history"), &columns))
}

/// Begins a rollout on `live`.
pub(super) fn begin(
    client: &Client,
    function: &FunctionName,
    version: u64,
    percent: u32,
    canary: &Canary,
) -> Result<Value> {
    let mut body =
        json!({ "version": version, "percent": percent, "bake_s": canary.bake.as_secs().max(1) });
    if let Some(rate) = canary.max_error_rate {
        body["error_rate_max"] = json!(rate);
    }
    if let Some(p99) = canary.max_p99 {
        body["p99_ms_max"] = json!(p99.as_millis() as u64);
    }
    client.post(&format!("/api/v1/functions/{function}/aliases/live/rollouts"), &body)
}

/// Follows a rollout to its end.
pub(super) fn follow(ui: Ui, client: &Client, function: &FunctionName) -> Result<Value> {
    let path = format!("/api/v1/functions/{function}/aliases/live/rollouts");
    let task = ui.spinner(&format!("watching {function}"));
    let mut answered = Instant::now();
    loop {
        let rollout = match client.get(&path) {
            // A server that is started again goes on with the rollout.
            Err(error) if error.is_unreachable() && answered.elapsed() < SILENCE_MAX => {
                thread::sleep(LOOK_INTERVAL);
                continue;
            }
            rollout => rollout?,
        };
        answered = Instant::now();
        if text(&rollout, "state") != "baking" {
            return Ok(rollout);
        }
        let (requests, errors) = (number(&rollout, "requests"), number(&rollout, "errors"));
        task.detail(&format!("{requests} requests, {errors} failed"));
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Where a rollout stands, in words.
pub(super) fn told(rollout: &Value) -> String {
    let version = number(rollout, "version");
    match text(rollout, "state") {
        "baking" => format!(
            "version {version} takes {} % of the traffic until {}",
            number(rollout, "percent"),
            text(rollout, "bake_until")
        ),
        "promoted" => format!("version {version} has done well and takes all the traffic"),
        "rolled_back" => {
            format!("version {version} was rolled back: {}", text(rollout, "reason"))
        }
        _ => format!("the rollout of version {version} was ended by somebody"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_line_by_line() {
        let diff = json!({
            "from": 1, "to": 2, "digest_changed": true, "size_bytes": [10, 12],
            "imports": {"added": ["wasi:nn/graph"], "removed": []},
            "manifest": [{"key": "limits.cpu_ms", "from": null, "to": 80}],
        });
        assert_eq!(
            differences(&diff),
            "component: 10 -> 12 bytes\n+ import wasi:nn/graph\nlimits.cpu_ms: (none) -> 80"
        );
        let same = json!({"from": 1, "to": 2, "digest_changed": false});
        assert_eq!(differences(&same), "versions 1 and 2 are the same");
    }

    #[test]
    fn a_rollout_is_put_in_words() {
        let state = |state: &str| told(&json!({"state": state, "version": 2, "reason": "slow"}));
        assert_eq!(state("promoted"), "version 2 has done well and takes all the traffic");
        assert_eq!(state("rolled_back"), "version 2 was rolled back: slow");
        assert_eq!(state("aborted"), "the rollout of version 2 was ended by somebody");
    }
}
