//! Watches rollouts and ends them. Their deadlines are stored; what has been counted is not, so that after a restart
//! the counts begin anew and the deadlines stay.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use sandpiper_control::{
    CatalogError, FunctionVersion, Observed, Rollout, RolloutEnd, Snapshot, Tenant, Verdict, judge,
};
use sandpiper_domain::{AliasName, FunctionName, TenantName};
use time::OffsetDateTime;

use crate::{app::App, functions::FunctionRuntime};

const INTERVAL: Duration = Duration::from_millis(250);

type Name = (TenantName, FunctionName, AliasName);

/// A rollout under way, and what counts its new version's requests.
struct Watched {
    rollout: Rollout,
    runtime: Arc<FunctionRuntime>,
}

/// Watches for as long as the node lives.
pub(crate) async fn watch(app: Weak<App>) {
    let mut seen: Option<Arc<Snapshot>> = None;
    let mut watched: HashMap<Name, Watched> = HashMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        if app.catalog.is_closed() {
            // The process that takes over watches them.
            continue;
        }
        let snapshot = app.catalog.snapshot().clone();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &snapshot)) {
            refresh(&app, &snapshot, &mut watched);
            seen = Some(snapshot);
        }
        let now = OffsetDateTime::now_utc();
        for (name, Watched { rollout, runtime }) in &watched {
            let end = match judge(&runtime.window.observed(), rollout, now) {
                Verdict::Wait => continue,
                Verdict::Promote => RolloutEnd::Promoted,
                Verdict::RollBack(reason) => RolloutEnd::RolledBack { reason },
            };
            conclude(&app, name.clone(), rollout.began_at, end).await;
        }
    }
}

/// Begins to count for the rollouts that are new, and ends it for those that are over.
fn refresh(app: &App, snapshot: &Snapshot, watched: &mut HashMap<Name, Watched>) {
    let mut present = HashMap::new();
    for tenant in snapshot.tenants() {
        for function in tenant.functions.values() {
            for (alias, there) in function.versions.aliases() {
                let Some(rollout) = &there.rollout else { continue };
                let Some(version) = function.versions.get(rollout.candidate) else { continue };
                let name = (tenant.name.clone(), function.name.clone(), alias.clone());
                let known = watched.remove(&name);
                let known = known.filter(|known| known.rollout.began_at == rollout.began_at);
                let known = known.unwrap_or_else(|| begin(app, tenant, version, rollout));
                present.insert(name, known);
            }
        }
    }
    for (name, over) in std::mem::replace(watched, present) {
        count(snapshot, &name);
        if !watched.values().any(|other| Arc::ptr_eq(&other.runtime, &over.runtime)) {
            over.runtime.window.end();
        }
    }
}

/// Counts a rollout that has ended, by whatever hand.
fn count(snapshot: &Snapshot, (tenant, function, alias): &Name) {
    let function = snapshot.function(tenant, function);
    let alias = function.and_then(|function| function.versions.alias(alias));
    let ended = alias.and_then(|alias| alias.last_rollout.as_ref());
    let end = match ended.map(|ended| &ended.end) {
        Some(RolloutEnd::Promoted) => "promoted",
        Some(RolloutEnd::RolledBack { .. }) => "rolled_back",
        // One whose alias is gone has been ended by that.
        Some(RolloutEnd::Aborted) | None => "aborted",
    };
    metrics::counter!("sandpiper_rollouts_total", "end" => end).increment(1);
}

fn begin(app: &App, tenant: &Tenant, version: &FunctionVersion, rollout: &Rollout) -> Watched {
    let name = &version.manifest.name;
    let runtime = app.functions.get(&tenant.name, name, version, || app.admission(tenant));
    runtime.window.begin();
    Watched { rollout: rollout.clone(), runtime }
}

/// What the new version of a rollout has done so far.
pub(crate) fn observed(app: &App, tenant: &Tenant, version: &FunctionVersion) -> Observed {
    let name = &version.manifest.name;
    let runtime = app.functions.get(&tenant.name, name, version, || app.admission(tenant));
    runtime.window.observed()
}

async fn conclude(app: &Arc<App>, name: Name, began_at: OffsetDateTime, end: RolloutEnd) {
    let ended = app.blocking(move |app| {
        let (tenant, function, alias) = &name;
        let now = OffsetDateTime::now_utc();
        let began_at = Some(began_at);
        match app.catalog.end_rollout(tenant, function, alias, began_at, end.clone(), now) {
            Ok(_) => {
                tracing::info!(%tenant, %function, %alias, ?end, "a rollout has ended");
            }
            // Somebody else has ended it.
            Err(CatalogError::NotFound { .. }) => {}
            // It is tried again at the next look.
            Err(error) => {
                tracing::error!(%tenant, %function, %alias, %error, "a rollout cannot be ended");
            }
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "a rollout cannot be ended");
    }
}
