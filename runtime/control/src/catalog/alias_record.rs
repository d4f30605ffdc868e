//! An alias as it is stored. Records of old have its targets alone, and a program of then still reads those.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Alias, Cause, Placement, Sticky, Target};
use crate::{EndedRollout, Rollout};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TargetRecord {
    Version(u32),
    Weights(BTreeMap<u32, u32>),
}

/// What there is to a placement beside its target.
#[derive(Default, Serialize, Deserialize)]
struct PlaceRecord {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    models: BTreeMap<String, u32>,
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    at: Option<OffsetDateTime>,
    #[serde(default)]
    cause: Cause,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AliasRecord {
    target: TargetRecord,
    history: Vec<TargetRecord>,
    #[serde(default)]
    place: PlaceRecord,
    /// Runs parallel to the latest of `history`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<PlaceRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sticky: Option<Sticky>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollout: Option<Rollout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_rollout: Option<EndedRollout>,
}

impl From<&Target> for TargetRecord {
    fn from(target: &Target) -> Self {
        match target {
            Target::Version(version) => TargetRecord::Version(*version),
            Target::Weights(weights) => TargetRecord::Weights(weights.clone()),
        }
    }
}

impl From<TargetRecord> for Target {
    fn from(record: TargetRecord) -> Self {
        match record {
            TargetRecord::Version(version) => Target::Version(version),
            TargetRecord::Weights(weights) => Target::Weights(weights),
        }
    }
}

impl From<&Placement> for PlaceRecord {
    fn from(placement: &Placement) -> Self {
        PlaceRecord {
            models: BTreeMap::clone(&placement.models),
            at: placement.at,
            cause: placement.cause.clone(),
        }
    }
}

fn placement(target: TargetRecord, place: PlaceRecord) -> Placement {
    let PlaceRecord { models, at, cause } = place;
    Placement { target: target.into(), models: Arc::new(models), at, cause }
}

impl From<&Alias> for AliasRecord {
    fn from(alias: &Alias) -> Self {
        AliasRecord {
            target: alias.target().into(),
            history: alias.history.iter().map(|earlier| (&earlier.target).into()).collect(),
            place: (&alias.now).into(),
            earlier: alias.history.iter().map(PlaceRecord::from).collect(),
            sticky: alias.sticky.clone(),
            rollout: alias.rollout.clone(),
            last_rollout: alias.last_rollout.clone(),
        }
    }
}

impl From<AliasRecord> for Alias {
    fn from(record: AliasRecord) -> Self {
        let AliasRecord { history, mut earlier, .. } = record;
        // A program of old may have added targets, or taken some away, and knew nothing of the rest.
        earlier.drain(..earlier.len().saturating_sub(history.len()));
        let unknown = history.len() - earlier.len();
        let places = (0..unknown).map(|_| PlaceRecord::default()).chain(earlier);
        let history =
            history.into_iter().zip(places).map(|(target, place)| placement(target, place));
        Alias {
            history: history.collect(),
            sticky: record.sticky,
            rollout: record.rollout,
            last_rollout: record.last_rollout,
            ..Alias::new(placement(record.target, record.place))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_old_is_read() {
        let text =
            r#"{"target":{"weights":{"2":90,"3":10}},"history":[{"version":1},{"version":2}]}"#;
        let alias: Alias = serde_json::from_str::<AliasRecord>(text).unwrap().into();
        assert_eq!(*alias.target(), Target::Weights([(2, 90), (3, 10)].into()));
        let history: Vec<_> = alias.history.iter().map(|earlier| &earlier.target).collect();
        assert_eq!(history, [&Target::Version(1), &Target::Version(2)]);
        assert!(alias.now.models.is_empty() && alias.rollout.is_none() && alias.sticky.is_none());
    }

    #[test]
    fn what_is_written_is_read_back_and_a_program_of_old_reads_its_part() {
        let at = Some(OffsetDateTime::UNIX_EPOCH);
        let models = Arc::new(BTreeMap::from([("digits".to_owned(), 2)]));
        let cause = Cause::ModelMoved { model: "digits".to_owned() };
        let mut alias = Alias::new(Target::Version(1).into());
        alias.go(Placement { target: Target::Version(1), models, at, cause });
        alias.sticky = Some(Sticky::Cookie("c".to_owned()));
        let text = serde_json::to_string(&AliasRecord::from(&alias)).unwrap();
        assert!(
            text.starts_with(r#"{"target":{"version":1},"history":[{"version":1}],"#),
            "{text}"
        );
        let again: Alias = serde_json::from_str::<AliasRecord>(&text).unwrap().into();
        assert_eq!((again.now, again.history), (alias.now, alias.history));
        assert_eq!(again.sticky, alias.sticky);
    }
}
