//! What functions and models have in common: versions, aliases, and how they look in JSON.

use std::collections::{BTreeMap, BTreeSet};

use sandpiper_control::{Alias, AliasChange, Retention, Sticky, Target, Versions};
use sandpiper_domain::AliasName;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{respond::Problem, sticky};

/// `?activate=false` leaves `live` where it is; `?wait=false` answers before the version is ready.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PutQuery {
    #[serde(default = "yes")]
    pub(super) activate: bool,
    #[serde(default = "yes")]
    pub(super) wait: bool,
}

fn yes() -> bool {
    true
}

/// `{"version": 3}` or `{"weights": {"3": 90, "4": 10}}`; for a function also `"sticky": {"header": "x-user"}`,
/// `{"cookie": "group"}` or null, and `"force": true`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AliasBody {
    version: Option<u32>,
    weights: Option<BTreeMap<u32, u32>>,
    #[serde(default, deserialize_with = "present")]
    sticky: Option<Option<Sticky>>,
    #[serde(default)]
    force: bool,
}

/// Null is something else than nothing.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl AliasBody {
    pub(super) fn change(self) -> Result<AliasChange, Problem> {
        let target = match (self.version, self.weights) {
            (Some(version), None) => Target::Version(version),
            (None, Some(weights)) => Target::Weights(weights),
            _ => return Err(Problem::bad_request("give either `version` or `weights`")),
        };
        if let Some(Some(sticky)) = &self.sticky {
            sticky::check(sticky)?;
        }
        Ok(AliasChange { target, sticky: self.sticky, force: self.force })
    }
}

/// Back to where it was, or to where it last was `to`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackBody {
    pub(super) to: Option<u32>,
}

/// `{"latest": 3}` or `{"versions": [1, 4]}`; neither is what the tier allows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionBody {
    latest: Option<u32>,
    versions: Option<BTreeSet<u32>>,
}

impl RetentionBody {
    pub(super) fn retention(self) -> Result<Retention, Problem> {
        match (self.latest, self.versions) {
            (None, None) => Ok(Retention::Tier),
            (Some(count), None) => Ok(Retention::Latest(count)),
            (None, Some(numbers)) => Ok(Retention::Versions(numbers)),
            _ => Err(Problem::bad_request("give either `latest` or `versions`")),
        }
    }
}

pub(super) fn retention_json(retention: &Retention) -> Value {
    match retention {
        Retention::Tier => json!({}),
        Retention::Latest(count) => json!({ "latest": count }),
        Retention::Versions(numbers) => json!({ "versions": numbers }),
    }
}

pub(super) fn alias_name(text: &str) -> Result<AliasName, Problem> {
    text.parse().map_err(Problem::invalid_name)
}

pub(super) fn version_number(text: &str) -> Result<u32, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

pub(super) fn target_json(target: &Target) -> Value {
    match target {
        Target::Version(version) => json!({ "version": version }),
        Target::Weights(weights) => json!({ "weights": weights }),
    }
}

pub(super) fn aliases_json<V>(versions: &Versions<V>) -> Value {
    let to_json = |alias: &Alias| {
        let mut json = target_json(alias.target());
        if let Some(sticky) = &alias.sticky {
            json["sticky"] = json!(sticky);
        }
        json
    };
    versions.aliases().map(|(name, alias)| (name.to_string(), to_json(alias))).collect()
}

/// The aliases that point at one version, wholly or in part.
pub(super) fn aliases_of<V>(versions: &Versions<V>, version: u32) -> Vec<String> {
    versions
        .aliases()
        .filter(|(_, alias)| alias.target().versions().contains(&version))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// The version that `live` points at; the first of them when it splits.
pub(super) fn live_version<V>(versions: &Versions<V>) -> Option<u32> {
    versions.alias(&AliasName::live())?.target().versions().first().copied()
}

pub(super) fn timestamp(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
