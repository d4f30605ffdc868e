//! Beginning and ending rollouts.

use std::sync::Arc;

use sandpiper_domain::{AliasName, FunctionName, TenantName};
use time::{Duration, OffsetDateTime};

use super::{
    Catalog, Cause, Function, FunctionVersion, Placement, Target,
    bindings::only_of,
    record::{self, FunctionVersionRecord},
};
use crate::{BAKE_MAX, CatalogError, NewRollout, Rollout, RolloutEnd};

impl Catalog {
    /// Gives a new version a part of the traffic that an alias sends to one version alone.
    pub fn begin_rollout(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        new: NewRollout,
        now: OffsetDateTime,
    ) -> Result<Rollout, CatalogError> {
        check(&new)?;
        self.mutate(|draft| {
            let function = draft.next.function(tenant, name);
            let function = function.ok_or(CatalogError::NotFound { what: "function" })?;
            let rollout = plan(function, alias, &new, now)?;
            let stable = (rollout.stable, 100 - new.percent);
            let target = Target::Weights([stable, (new.candidate, new.percent)].into());
            let models = draft.settle(tenant, name, &target);
            let split = Placement { target, models, at: Some(now), cause: Cause::Canary };
            draft.edit_function(tenant, name, |function| {
                let there = function.versions.alias_mut(alias);
                let there = there.ok_or(CatalogError::NotFound { what: "alias" })?;
                there.begin(rollout.clone(), split);
                Ok(rollout)
            })
        })
    }

    /// Ends the rollout that began at that moment, and says where the alias points then. Another one, or none, is not
    /// found.
    pub fn end_rollout(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        began_at: Option<OffsetDateTime>,
        end: RolloutEnd,
        now: OffsetDateTime,
    ) -> Result<Placement, CatalogError> {
        self.mutate(|draft| {
            let owner = draft.next.tenant(tenant).cloned();
            let owner = owner.ok_or(CatalogError::NotFound { what: "tenant" })?;
            let missing = || CatalogError::NotFound { what: "rollout" };
            let (placement, failed) = draft.edit_function(tenant, name, |function| {
                let versions = &mut function.versions;
                let there = versions.alias_mut(alias).ok_or_else(missing)?;
                let is_meant = |rollout: &Rollout| began_at.is_none_or(|at| rollout.began_at == at);
                if !there.rollout.as_ref().is_some_and(is_meant) {
                    return Err(missing());
                }
                let (rollout, models) = there.end(end.clone(), now).ok_or_else(missing)?;
                let candidate = versions.get(rollout.candidate).cloned().ok_or_else(missing)?;
                let there = versions.alias_mut(alias).ok_or_else(missing)?;
                let failed = match end {
                    RolloutEnd::Promoted => {
                        let models = only_of(&models, &owner, &candidate.manifest);
                        there.go(Placement {
                            target: Target::Version(rollout.candidate),
                            models: Arc::new(models),
                            at: Some(now),
                            cause: Cause::Promoted,
                        });
                        None
                    }
                    RolloutEnd::RolledBack { reason } => {
                        let cause = Cause::Failed { reason: reason.clone() };
                        there.now = Placement { at: Some(now), cause, ..there.now.clone() };
                        Some(reason)
                    }
                    RolloutEnd::Aborted => {
                        let cause = Cause::RolledBack;
                        there.now = Placement { at: Some(now), cause, ..there.now.clone() };
                        None
                    }
                };
                let placement = there.now.clone();
                let failed = failed.map(|reason| {
                    let failed = Some(reason);
                    Arc::new(FunctionVersion { failed, ..FunctionVersion::clone(&candidate) })
                });
                if let Some(version) = &failed {
                    versions.replace(version.version, version.clone());
                }
                Ok((placement, failed))
            })?;
            if let Some(version) = failed {
                let key = record::function_version_key(tenant, name, version.version);
                draft.put(key, &FunctionVersionRecord::from(&*version))?;
            }
            Ok(placement)
        })
    }
}

fn check(new: &NewRollout) -> Result<(), CatalogError> {
    let rule = if !(1..=99).contains(&new.percent) {
        "`percent` is a part of the traffic from 1 to 99"
    } else if new.bake < Duration::SECOND || new.bake > BAKE_MAX {
        "`bake_s` is from 1 second to 7 days"
    } else if !(0.0..=1.0).contains(&new.health.error_rate_max) {
        "`error_rate_max` is from 0 to 1"
    } else {
        return Ok(());
    };
    Err(CatalogError::Invalid(rule.to_owned()))
}

fn plan(
    function: &Function,
    alias: &AliasName,
    new: &NewRollout,
    now: OffsetDateTime,
) -> Result<Rollout, CatalogError> {
    let there = function.versions.alias(alias).ok_or(CatalogError::NotFound { what: "alias" })?;
    if let Some(rollout) = &there.rollout {
        return Err(CatalogError::RolloutRunning { candidate: rollout.candidate });
    }
    let Target::Version(stable) = *there.target() else {
        let text = "the alias splits its traffic already: point it at one version first";
        return Err(CatalogError::Invalid(text.to_owned()));
    };
    let version = function.versions.get(new.candidate);
    let version = version.ok_or(CatalogError::NotFound { what: "version" })?;
    if stable == new.candidate {
        let text = "the alias points at this version already";
        return Err(CatalogError::Invalid(text.to_owned()));
    }
    if version.failed.is_some() {
        return Err(CatalogError::Failed { version: new.candidate });
    }
    let NewRollout { candidate, percent, bake, health } = *new;
    Ok(Rollout { stable, candidate, percent, began_at: now, bake_until: now + bake, health })
}
