//! Numbered versions and the aliases that point at them: the same for functions and models.

use std::{collections::BTreeMap, sync::Arc};

use sandpiper_domain::{AliasName, Selector};
use time::OffsetDateTime;

use super::{Alias, Placement, Retention, Sticky};
use crate::CatalogError;

#[cfg(test)]
mod tests;

/// Aliases of one function or model.
const ALIASES_MAX: usize = 32;
/// Versions an alias may split traffic between.
const WEIGHTS_MAX: usize = 16;
/// Weights are percentages.
const WEIGHTS_SUM: u32 = 100;

/// Versions that may be kept by number; no tier keeps more of one thing.
const RETAINED_MAX: usize = 1_000;

impl Retention {
    /// Refuses what makes no sense whatever there is.
    pub(super) fn check(&self) -> Result<(), CatalogError> {
        match self {
            Retention::Latest(0) => {
                let text = "`latest` keeps at least one version";
                Err(CatalogError::Invalid(text.to_owned()))
            }
            Retention::Versions(numbers) if numbers.len() > RETAINED_MAX => {
                let limit = RETAINED_MAX as u64;
                Err(CatalogError::LimitReached { what: "versions kept by number", limit })
            }
            _ => Ok(()),
        }
    }

    /// Refuses to keep what is not there.
    pub(super) fn check_versions<V>(&self, versions: &Versions<V>) -> Result<(), CatalogError> {
        match self {
            Retention::Versions(numbers)
                if numbers.iter().any(|number| versions.get(*number).is_none()) =>
            {
                Err(CatalogError::NotFound { what: "version" })
            }
            _ => Ok(()),
        }
    }
}

/// What an alias points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One version.
    Version(u32),
    /// Several, each with its percentage; the sum is 100.
    Weights(BTreeMap<u32, u32>),
}

impl Target {
    /// The versions it names.
    pub fn versions(&self) -> Vec<u32> {
        match self {
            Target::Version(version) => vec![*version],
            Target::Weights(weights) => weights.keys().copied().collect(),
        }
    }

    pub(super) fn names(&self, version: u32) -> bool {
        match self {
            Target::Version(own) => *own == version,
            Target::Weights(weights) => weights.contains_key(&version),
        }
    }

    /// The version for one request. The newest has the low end: as its part grows, whoever was in it stays there.
    pub(super) fn pick(&self, pick: u32) -> Option<u32> {
        match self {
            Target::Version(version) => Some(*version),
            Target::Weights(weights) => {
                let mut rest = pick % WEIGHTS_SUM;
                for (version, weight) in weights.iter().rev() {
                    if rest < *weight {
                        return Some(*version);
                    }
                    rest -= weight;
                }
                None
            }
        }
    }

    /// Checks the weights; all of them on one version is that version.
    fn checked(self) -> Result<Self, CatalogError> {
        let Target::Weights(weights) = self else { return Ok(self) };
        let sum: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
        if weights.values().any(|weight| *weight == 0) || sum != u64::from(WEIGHTS_SUM) {
            let text = "weights are percentages of at least 1 that add up to 100";
            return Err(CatalogError::Invalid(text.to_owned()));
        }
        if weights.len() > WEIGHTS_MAX {
            let what = "versions in one alias";
            return Err(CatalogError::LimitReached { what, limit: WEIGHTS_MAX as u64 });
        }
        match weights.first_key_value() {
            Some((version, _)) if weights.len() == 1 => Ok(Target::Version(*version)),
            _ => Ok(Target::Weights(weights)),
        }
    }
}

/// The versions of one function or model, and its aliases.
#[derive(Debug)]
pub struct Versions<V> {
    versions: BTreeMap<u32, Arc<V>>,
    aliases: BTreeMap<AliasName, Alias>,
    next: u32,
}

// Derived, it would ask for `V: Clone`.
impl<V> Clone for Versions<V> {
    fn clone(&self) -> Self {
        let Versions { versions, aliases, next } = self;
        Versions { versions: versions.clone(), aliases: aliases.clone(), next: *next }
    }
}

impl<V> Versions<V> {
    /// No versions yet; the first will be number `next`.
    pub(super) fn starting_at(next: u32) -> Self {
        Versions { versions: BTreeMap::new(), aliases: BTreeMap::new(), next }
    }

    /// What was stored.
    pub(super) fn restored(
        versions: BTreeMap<u32, Arc<V>>,
        aliases: BTreeMap<AliasName, Alias>,
        next: u32,
    ) -> Self {
        Versions { versions, aliases, next }
    }

    /// The version of this number.
    pub fn get(&self, version: u32) -> Option<&Arc<V>> {
        self.versions.get(&version)
    }

    /// All versions, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u32, &Arc<V>)> {
        self.versions.iter().map(|(number, version)| (*number, version))
    }

    /// The version with the highest number.
    pub fn newest(&self) -> Option<(u32, &Arc<V>)> {
        self.iter().next_back()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// The number that the next version will get. No number is given twice.
    pub fn next_number(&self) -> u32 {
        self.next
    }

    /// One alias.
    pub fn alias(&self, name: &AliasName) -> Option<&Alias> {
        self.aliases.get(name)
    }

    /// All aliases, by name.
    pub fn aliases(&self) -> impl Iterator<Item = (&AliasName, &Alias)> {
        self.aliases.iter()
    }

    /// The version that `selector` means. `pick` is any random number: it decides where an alias splits.
    pub fn resolve(&self, selector: &Selector, pick: u32) -> Option<&Arc<V>> {
        match selector {
            Selector::Version(version) => self.get(*version),
            Selector::Alias(alias) => self.get(self.aliases.get(alias)?.target().pick(pick)?),
        }
    }

    /// Adds a version under the next number.
    pub(super) fn add(&mut self, make: impl FnOnce(u32) -> V) -> Result<Arc<V>, CatalogError> {
        let number = self.next;
        let limit = CatalogError::LimitReached { what: "versions ever", limit: u32::MAX.into() };
        self.next = number.checked_add(1).ok_or(limit)?;
        let version = Arc::new(make(number));
        self.versions.insert(number, Arc::clone(&version));
        Ok(version)
    }

    /// Removes the oldest versions that no alias points at and nobody else `needs`, until `kept` are left. The newest
    /// stays.
    pub(super) fn prune(
        &mut self,
        kept: u32,
        needs: impl Fn(u32) -> bool,
    ) -> Result<Vec<u32>, CatalogError> {
        let mut pruned = Vec::new();
        while self.len() > kept as usize {
            let newest = self.newest().map(|(number, _)| number);
            let may_go = |number: u32| {
                Some(number) != newest && self.user_of(number).is_none() && !needs(number)
            };
            let oldest = self.versions.keys().copied().find(|number| may_go(*number));
            let Some(oldest) = oldest else {
                return Err(CatalogError::LimitReached { what: "versions", limit: kept.into() });
            };
            self.remove(oldest)?;
            pruned.push(oldest);
        }
        Ok(pruned)
    }

    /// Removes the versions that `retention` does not keep, no alias points at and nobody else `needs`. The newest
    /// stays.
    pub(super) fn retire(
        &mut self,
        retention: &Retention,
        needs: impl Fn(u32) -> bool,
    ) -> Result<Vec<u32>, CatalogError> {
        let newest_first = self.versions.keys().rev().copied().enumerate();
        let is_kept = |place: usize, number: u32| match retention {
            Retention::Tier => true,
            Retention::Latest(count) => place < *count as usize,
            Retention::Versions(numbers) => numbers.contains(&number),
        };
        let retired = newest_first.filter(|(place, number)| {
            let is_needed = self.user_of(*number).is_some() || needs(*number);
            *place > 0 && !is_kept(*place, *number) && !is_needed
        });
        let retired: Vec<u32> = retired.map(|(_, number)| number).collect();
        for number in &retired {
            self.remove(*number)?;
        }
        Ok(retired)
    }

    /// Removes a version that no alias points at.
    pub(super) fn remove(&mut self, version: u32) -> Result<(), CatalogError> {
        if let Some(alias) = self.user_of(version) {
            return Err(CatalogError::InUse { version, alias: alias.to_string() });
        }
        self.versions.remove(&version).ok_or(CatalogError::NotFound { what: "version" })?;
        // A rollback must not lead to a version that is gone.
        for alias in self.aliases.values_mut() {
            alias.history.retain(|placement| !placement.target.names(version));
        }
        Ok(())
    }

    /// Whether any alias points at the version, wholly or in part.
    pub fn is_aliased(&self, version: u32) -> bool {
        self.user_of(version).is_some()
    }

    fn user_of(&self, version: u32) -> Option<&AliasName> {
        self.aliases.iter().find(|(_, alias)| alias.target().names(version)).map(|(name, _)| name)
    }

    /// Whether `alias` points at `version` and at nothing else.
    pub(super) fn points_at(&self, alias: &AliasName, version: u32) -> bool {
        self.aliases.get(alias).is_some_and(|alias| *alias.target() == Target::Version(version))
    }

    /// Makes or moves an alias.
    pub(super) fn point(
        &mut self,
        name: &AliasName,
        to: impl Into<Placement>,
    ) -> Result<(), CatalogError> {
        let to: Placement = to.into();
        let to = Placement { target: to.target.checked()?, ..to };
        if to.target.versions().iter().any(|version| !self.versions.contains_key(version)) {
            return Err(CatalogError::NotFound { what: "version" });
        }
        if let Some(alias) = self.aliases.get_mut(name) {
            alias.go(to);
            return Ok(());
        }
        if self.aliases.len() >= ALIASES_MAX {
            return Err(CatalogError::LimitReached { what: "aliases", limit: ALIASES_MAX as u64 });
        }
        self.aliases.insert(name.clone(), Alias::new(to));
        Ok(())
    }

    /// Moves an alias back to where it pointed before, past what `allows` does not let it have; again, and it goes back
    /// further.
    pub(super) fn roll_back(
        &mut self,
        name: &AliasName,
        at: Option<OffsetDateTime>,
        allows: impl Fn(&Target) -> bool,
    ) -> Result<Placement, CatalogError> {
        let alias = self.alias_mut(name).ok_or(CatalogError::NotFound { what: "alias" })?;
        if alias.go_back(at, allows) {
            return Ok(alias.now.clone());
        }
        let text = "the alias has nothing earlier to go back to";
        Err(CatalogError::Invalid(text.to_owned()))
    }

    pub(super) fn alias_mut(&mut self, name: &AliasName) -> Option<&mut Alias> {
        self.aliases.get_mut(name)
    }

    /// Says what keeps callers on one version where the alias splits.
    pub(super) fn stick(&mut self, name: &AliasName, sticky: Option<Sticky>) {
        if let Some(alias) = self.aliases.get_mut(name) {
            alias.sticky = sticky;
        }
    }

    /// Puts another in the place of a version that is there.
    pub(super) fn replace(&mut self, number: u32, version: Arc<V>) {
        if let Some(place) = self.versions.get_mut(&number) {
            *place = version;
        }
    }

    /// Both of them, to be worked on at once.
    pub(super) fn parts(&mut self) -> (&BTreeMap<u32, Arc<V>>, &mut BTreeMap<AliasName, Alias>) {
        (&self.versions, &mut self.aliases)
    }

    /// Removes an alias; the versions stay.
    pub(super) fn remove_alias(&mut self, name: &AliasName) -> Result<(), CatalogError> {
        self.aliases.remove(name).map(drop).ok_or(CatalogError::NotFound { what: "alias" })
    }
}
