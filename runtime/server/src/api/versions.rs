//! What functions and models have in common: versions, aliases, and how they look in JSON.

use std::collections::BTreeMap;

use sandpiper_control::{Target, Versions};
use sandpiper_domain::AliasName;
use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::respond::Problem;

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

/// `{"version": 3}` or `{"weights": {"3": 90, "4": 10}}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetBody {
    version: Option<u32>,
    weights: Option<BTreeMap<u32, u32>>,
}

impl TargetBody {
    pub(super) fn target(self) -> Result<Target, Problem> {
        match (self.version, self.weights) {
            (Some(version), None) => Ok(Target::Version(version)),
            (None, Some(weights)) => Ok(Target::Weights(weights)),
            _ => Err(Problem::bad_request("give either `version` or `weights`")),
        }
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
    let aliases = versions.aliases();
    aliases.map(|(name, alias)| (name.to_string(), target_json(&alias.target))).collect()
}

/// The aliases that point at one version, wholly or in part.
pub(super) fn aliases_of<V>(versions: &Versions<V>, version: u32) -> Vec<String> {
    versions
        .aliases()
        .filter(|(_, alias)| alias.target.versions().contains(&version))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// The version that `live` points at; the first of them when it splits.
pub(super) fn live_version<V>(versions: &Versions<V>) -> Option<u32> {
    versions.alias(&AliasName::live())?.target.versions().first().copied()
}

pub(super) fn timestamp(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
