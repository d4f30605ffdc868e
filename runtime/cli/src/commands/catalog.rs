//! `sandpiper functions`, and what functions and models have in common: lists, versions, aliases.

use sandpiper_domain::AliasName;
use serde_json::{Value, json};

use super::{Context, rows, traffic};
use crate::{
    args::{AliasTarget, Functions},
    error::Result,
    output::{fields, table},
};

/// One of the two collections of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collection {
    Functions,
    Models,
}

impl Collection {
    fn name(self) -> &'static str {
        match self {
            Collection::Functions => "functions",
            Collection::Models => "models",
        }
    }

    /// The headings of its list, each with the JSON pointer of its value.
    fn columns(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Collection::Functions => &[
                ("NAME", "/name"),
                ("LIVE", "/aliases/live"),
                ("LATEST", "/latest_version"),
                ("AUTH", "/auth"),
                ("DIGEST", "/digest"),
                ("CREATED", "/created_at"),
                ("URL", "/url"),
            ],
            Collection::Models => &[
                ("NAME", "/name"),
                ("LIVE", "/aliases/live"),
                ("LATEST", "/latest_version"),
                ("STATE", "/state"),
                ("BYTES", "/size_bytes"),
                ("DIGEST", "/digest"),
                ("CREATED", "/created_at"),
            ],
        }
    }
}

pub(super) fn functions(context: &Context, command: Functions) -> Result<()> {
    let collection = Collection::Functions;
    match command {
        Functions::List => list(context, collection),
        Functions::Show { name } => show(context, collection, name.as_str()),
        Functions::Delete { name } => delete(context, collection, name.as_str()),
        Functions::Versions { name } => versions(context, collection, name.as_str()),
        Functions::Rollback { name, alias } => rollback(context, collection, name.as_str(), &alias),
        Functions::Alias { name, alias, target, sticky, force } => {
            let mut body = alias_body(&target);
            if let Some(sticky) = &sticky {
                body["sticky"] = traffic::sticky_json(sticky);
            }
            if force {
                body["force"] = json!(true);
            }
            point(context, collection, name.as_str(), &alias, &body)
        }
        Functions::Rollout { name, alias, abort } => {
            traffic::rollout(context, &name, &alias, abort)
        }
        Functions::History { name, alias } => traffic::history(context, &name, &alias),
        Functions::Retain { name, latest, versions } => {
            traffic::retain(context, &name, latest, versions)
        }
    }
}

pub(super) fn list(context: &Context, collection: Collection) -> Result<()> {
    let answer = context.client()?.get(&format!("/api/v1/{}", collection.name()))?;
    context
        .ui
        .result(&answer, |answer| table(rows(answer, collection.name()), collection.columns()))
}

pub(super) fn show(context: &Context, collection: Collection, name: &str) -> Result<()> {
    let answer = context.client()?.get(&format!("/api/v1/{}/{name}", collection.name()))?;
    context.ui.result(&answer, fields)
}

pub(super) fn delete(context: &Context, collection: Collection, name: &str) -> Result<()> {
    context.client()?.delete(&format!("/api/v1/{}/{name}", collection.name()))?;
    deleted(context, name)
}

/// Says that `name` is gone.
pub(super) fn deleted(context: &Context, name: &str) -> Result<()> {
    context.ui.result(&json!({ "deleted": name }), |_| format!("deleted {name}"))
}

pub(super) fn versions(context: &Context, collection: Collection, name: &str) -> Result<()> {
    let path = format!("/api/v1/{}/{name}/versions", collection.name());
    let answer = context.client()?.get(&path)?;
    let columns = [
        ("VERSION", "/version"),
        ("STATE", "/state"),
        ("ALIASES", "/aliases"),
        ("BYTES", "/size_bytes"),
        ("DIGEST", "/digest"),
        ("CREATED", "/created_at"),
        ("FAILED", "/failed"),
    ];
    let columns = match collection {
        Collection::Functions => &columns[..],
        Collection::Models => &columns[..columns.len() - 1],
    };
    context.ui.result(&answer, |answer| table(rows(answer, "versions"), columns))
}

pub(super) fn rollback(
    context: &Context,
    collection: Collection,
    name: &str,
    alias: &AliasName,
) -> Result<()> {
    let path = format!("/api/v1/{}/{name}/aliases/{alias}/rollback", collection.name());
    let answer = context.client()?.post(&path, &json!({}))?;
    context.ui.result(&answer, |answer| format!("{name}@{alias} {}", place(answer)))
}

pub(super) fn point(
    context: &Context,
    collection: Collection,
    name: &str,
    alias: &AliasName,
    body: &Value,
) -> Result<()> {
    let path = format!("/api/v1/{}/{name}/aliases/{alias}", collection.name());
    let answer = context.client()?.put(&path, body)?;
    context.ui.result(&answer, |answer| format!("{name}@{alias} {}", place(answer)))
}

/// The body that points an alias, as the contract has it.
pub(super) fn alias_body(target: &AliasTarget) -> Value {
    match target {
        AliasTarget::Version(version) => json!({ "version": version }),
        AliasTarget::Weights(weights) => {
            let weights: serde_json::Map<_, _> = weights
                .iter()
                .map(|(version, weight)| (version.to_string(), json!(weight)))
                .collect();
            json!({ "weights": weights })
        }
    }
}

/// Where an alias points now, as far as the answer says.
pub(super) fn place(answer: &Value) -> String {
    if let Some(version) = answer.get("version").and_then(Value::as_u64) {
        return format!("is version {version}");
    }
    match answer.get("weights") {
        Some(weights) => format!("splits its traffic: {weights}"),
        None => "has moved".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_pointed_in_the_contracts_words() {
        assert_eq!(alias_body(&AliasTarget::Version(3)), json!({"version": 3}));
        let split = AliasTarget::Weights(vec![(3, 90), (4, 10)]);
        assert_eq!(alias_body(&split), json!({"weights": {"3": 90, "4": 10}}));
    }

    #[test]
    fn the_answer_is_put_in_words() {
        assert_eq!(place(&json!({"version": 2})), "is version 2");
        assert_eq!(place(&json!({"weights": {"3": 1}})), "splits its traffic: {\"3\":1}");
        assert_eq!(place(&Value::Null), "has moved");
    }
}
