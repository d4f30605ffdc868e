//! Where an alias points, has pointed and why, and how it comes to point elsewhere.

use std::{collections::BTreeMap, sync::Arc};

use sandpiper_domain::Grant;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::versions::Target;
use crate::{EndedRollout, Rollout, RolloutEnd};

/// Earlier placements an alias remembers.
pub(super) const HISTORY_MAX: usize = 100;
/// Models that all of them together may name, so that an alias stays a small record.
const HISTORY_MODELS_MAX: usize = 1_000;
/// Places of one target that moves of its models may leave one after the other: whoever owns a model may move it as
/// often as he likes, and must not push other versions of the function out of the history.
const MOVES_MAX: usize = 8;

/// Where an alias points, with the models that its bindings mean there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The version, or several.
    pub target: Target,
    /// The versions of the models, by `[owner/]name`, with `@alias` where that is not `live`.
    pub models: Arc<BTreeMap<String, u32>>,
    /// Since when, as far as that is known.
    pub at: Option<OffsetDateTime>,
    /// Why.
    pub cause: Cause,
}

impl Placement {
    fn is_where(&self, other: &Placement) -> bool {
        self.target == other.target && self.models == other.models
    }

    /// Whether a model's alias has brought it there.
    fn is_by_model(&self) -> bool {
        matches!(self.cause, Cause::ModelMoved { .. })
    }
}

impl From<Target> for Placement {
    fn from(target: Target) -> Self {
        Placement { target, models: Arc::default(), at: None, cause: Cause::Set }
    }
}

/// What has moved an alias.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A deployment.
    Deployed,
    /// A request to point it there.
    #[default]
    Set,
    /// A request to go back.
    RolledBack,
    /// A model's alias has moved.
    ModelMoved {
        /// As the function names it.
        model: String,
    },
    /// A rollout began.
    Canary,
    /// A rollout ended well.
    Promoted,
    /// A rollout ended since the new version failed.
    Failed {
        /// What was seen.
        reason: String,
    },
}

/// What keeps a caller on one version of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// The value of this header of the request.
    Header(String),
    /// The value of this cookie, which is given to those who have none.
    Cookie(String),
}

/// How an alias is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasChange {
    /// Where it shall point.
    pub target: Target,
    /// What shall keep callers on their version; `None` leaves that as it is.
    pub sticky: Option<Option<Sticky>>,
    /// Whether it may point at a version that has failed.
    pub force: bool,
}

impl From<Target> for AliasChange {
    fn from(target: Target) -> Self {
        AliasChange { target, sticky: None, force: false }
    }
}

/// A movable name.
#[derive(Debug, Clone)]
pub struct Alias {
    /// Where it points.
    pub now: Placement,
    /// Where it pointed before, latest last.
    pub history: Vec<Placement>,
    /// What keeps callers on one version where it splits.
    pub sticky: Option<Sticky>,
    /// The rollout under way.
    pub rollout: Option<Rollout>,
    /// The rollout before.
    pub last_rollout: Option<EndedRollout>,
    /// What each of its versions may do when it is called by this name. From policy, never stored.
    pub grants: BTreeMap<u32, Arc<Grant>>,
}

impl Alias {
    /// An alias that points here and never pointed elsewhere.
    pub(super) fn new(now: Placement) -> Self {
        let (history, grants) = (Vec::new(), BTreeMap::new());
        Alias { now, history, sticky: None, rollout: None, last_rollout: None, grants }
    }

    /// What it points at.
    pub fn target(&self) -> &Target {
        &self.now.target
    }

    /// Moves it, and remembers where it was.
    pub(super) fn go(&mut self, to: Placement) {
        if !self.now.is_where(&to) {
            let before = std::mem::replace(&mut self.now, to);
            self.history.push(before);
            self.trim();
        }
    }

    /// Forgets what is too much: first where only a model was another, then what is oldest.
    fn trim(&mut self) {
        if self.now.is_by_model() {
            let same = self.history.iter().rev().take_while(|p| p.target == self.now.target);
            let (same, all) = (same.count(), self.history.len());
            self.history.drain(all - same..all - same.min(MOVES_MAX));
        }
        while !self.fits() {
            let place = self.first_repeated().unwrap_or(0);
            self.history.remove(place);
        }
    }

    /// The oldest place that was left since a model moved: its target has the next place, too.
    fn first_repeated(&self) -> Option<usize> {
        let next = self.history.iter().skip(1).chain([&self.now]);
        let mut pairs = self.history.iter().zip(next);
        pairs.position(|(place, next)| next.is_by_model() && next.target == place.target)
    }

    fn fits(&self) -> bool {
        let models: usize = self.history.iter().map(|placement| placement.models.len()).sum();
        self.history.len() <= HISTORY_MAX && models <= HISTORY_MODELS_MAX
    }

    /// Goes back to the latest place that is another and that `allows` lets it have.
    pub(super) fn go_back(
        &mut self,
        at: Option<OffsetDateTime>,
        allows: impl Fn(&Target) -> bool,
    ) -> bool {
        while let Some(placement) = self.history.pop() {
            // Removed versions leave gaps in the history, and what lies around a gap may be the same.
            if !placement.is_where(&self.now) && allows(&placement.target) {
                self.now = Placement { at, cause: Cause::RolledBack, ..placement };
                return true;
            }
        }
        false
    }

    /// Puts what the names of these models mean now in the place of the versions that are gone.
    pub(super) fn mend(&mut self, gone: &BTreeMap<(String, u32), Option<u32>>) {
        if gone.is_empty() {
            return;
        }
        let mended = |(key, version): (&String, &u32)| {
            let (key, version) = (key.clone(), *version);
            match gone.get(&(key.clone(), version)) {
                None => Some((key, version)),
                Some(now) => now.map(|now| (key, now)),
            }
        };
        for earlier in &mut self.history {
            earlier.models = Arc::new(earlier.models.iter().filter_map(mended).collect());
        }
    }

    /// Begins a rollout: `split` shares the traffic of the version that it points at.
    pub(super) fn begin(&mut self, rollout: Rollout, split: Placement) {
        self.go(split);
        self.rollout = Some(rollout);
    }

    /// Ends a rollout if there is one, and is where it was before, as if the split had not been: nobody wants to go
    /// back to that. Gives the models of the split.
    pub(super) fn end(
        &mut self,
        end: RolloutEnd,
        at: OffsetDateTime,
    ) -> Option<(Rollout, Arc<BTreeMap<String, u32>>)> {
        let rollout = self.rollout.take()?;
        self.last_rollout = Some(EndedRollout { candidate: rollout.candidate, end, at });
        let models = self.now.models.clone();
        let stable = Target::Version(rollout.stable);
        while let Some(before) = self.history.pop_if(|before| before.target == self.now.target) {
            drop(before);
        }
        self.now = match self.history.pop_if(|before| before.target == stable) {
            Some(before) => before,
            None => Placement { target: stable, models: models.clone(), ..self.now.clone() },
        };
        Some((rollout, models))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use super::*;
    use crate::Health;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    /// One thing that happens to an alias.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Go(u32),
        ModelMoves(u32),
        Back,
        Begin(u32),
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u32..5).prop_map(Step::Go),
            (1u32..5).prop_map(Step::ModelMoves),
            Just(Step::Back),
            (1u32..5).prop_map(Step::Begin),
            Just(Step::End),
        ]
    }

    fn with_model(alias: &Alias, version: u32) -> Placement {
        let models = Arc::new(BTreeMap::from([("m".to_owned(), version)]));
        Placement { models, ..alias.now.clone() }
    }

    fn take(alias: &mut Alias, step: Step) {
        match step {
            Step::Go(version) => {
                alias.end(RolloutEnd::Aborted, AT);
                alias.go(Target::Version(version).into());
            }
            Step::ModelMoves(version) => alias.go(with_model(alias, version)),
            Step::Back => {
                if alias.end(RolloutEnd::Aborted, AT).is_none() {
                    alias.go_back(None, |_| true);
                }
            }
            Step::Begin(candidate) => {
                let Target::Version(stable) = *alias.target() else { return };
                if stable != candidate {
                    let health = Health::default();
                    let bake_until = AT + Duration::MINUTE;
                    let (began_at, percent) = (AT, 10);
                    let rollout =
                        Rollout { stable, candidate, percent, began_at, bake_until, health };
                    let target = Target::Weights([(stable, 90), (candidate, 10)].into());
                    alias.begin(rollout, target.into());
                }
            }
            Step::End => {
                let stable = alias.rollout.as_ref().map(|rollout| rollout.stable);
                alias.end(RolloutEnd::Promoted, AT);
                if let Some(stable) = stable {
                    assert_eq!(*alias.target(), Target::Version(stable));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_split_is_there_while_its_rollout_is(steps in proptest::collection::vec(step(), 0..60)) {
            let mut alias = Alias::new(Target::Version(1).into());
            for step in steps {
                take(&mut alias, step);
                let splits = matches!(alias.target(), Target::Weights(_));
                prop_assert_eq!(splits, alias.rollout.is_some());
                let earlier = alias.history.iter().filter(|p| matches!(p.target, Target::Weights(_)));
                prop_assert!(alias.rollout.is_some() || earlier.count() == 0);
            }
        }
    }

    #[test]
    fn the_history_is_bounded_by_its_places_and_by_the_models_they_name() {
        let mut alias = Alias::new(Target::Version(1).into());
        for version in 0..2 * HISTORY_MAX as u32 {
            alias.go(with_model(&alias, version));
        }
        assert_eq!(alias.history.len(), HISTORY_MAX);
        let many = |version| (0..250).map(move |number| (format!("m{number}"), version)).collect();
        for version in 0..10 {
            alias.go(Placement { models: Arc::new(many(version)), ..alias.now.clone() });
        }
        assert_eq!(alias.history.len(), HISTORY_MODELS_MAX / 250);
    }

    fn moved(alias: &Alias, models: u32, version: u32) -> Placement {
        let models = (0..models).map(|number| (format!("m{number}"), version)).collect();
        let cause = Cause::ModelMoved { model: "m0".to_owned() };
        Placement { models: Arc::new(models), cause, ..alias.now.clone() }
    }

    #[test]
    fn models_that_move_push_no_version_out_of_the_history() {
        // With 250 models, the places of one version alone would name too many.
        for models in [1, 250] {
            let mut alias = Alias::new(Target::Version(1).into());
            alias.now.models = moved(&alias, models, 0).models;
            for version in [2, 3] {
                let (target, cause) = (Target::Version(version), Cause::Deployed);
                alias.go(Placement { target, cause, ..alias.now.clone() });
            }
            for version in 1..=300 {
                alias.go(moved(&alias, models, version));
                assert!(alias.fits());
            }
            let of = |version| {
                let target = Target::Version(version);
                alias.history.iter().filter(|place| place.target == target).count()
            };
            assert_eq!((of(1), of(2)), (1, 1), "{models}");
            // The latest of them stay.
            let last = alias.history.last().unwrap();
            assert_eq!(*last.models, *moved(&alias, models, 299).models);
            assert_eq!(of(3), if models == 1 { MOVES_MAX } else { HISTORY_MODELS_MAX / 250 - 2 });
        }
    }
}
