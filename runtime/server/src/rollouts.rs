//! Watches rollouts and ends them. Their deadlines are stored; what has been counted is not, so that after a restart
//! the counts begin anew and the deadlines stay.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use sandpiper_control::{CatalogError, Found, Rollout, RolloutEnd, Seen, Snapshot, Verdict, judge};
use sandpiper_domain::{AliasName, FunctionName, Selector, TenantName};
use time::OffsetDateTime;

use crate::{
    app::App,
    window::{Trial, Window},
};

const INTERVAL: Duration = Duration::from_millis(250);

type Name = (TenantName, FunctionName, AliasName);

/// The rollouts that are watched. The watcher alone adds and removes them.
#[derive(Default)]
pub(crate) struct Rollouts(ArcSwap<HashMap<Name, Arc<Window>>>);

impl Rollouts {
    /// What counts a request, where a rollout sends it.
    pub(crate) fn trial(&self, found: &Found<'_>, selector: &Selector) -> Option<Trial> {
        let (Some(rollout), Selector::Alias(alias)) = (found.rollout, selector) else {
            return None;
        };
        let function = &found.version.manifest.name;
        let window = self.find((found.tenant.name.clone(), function.clone(), alias.clone()));
        let window = window.filter(|window| window.is_of(rollout))?;
        Some(window.trial(found.version.version))
    }

    /// What is known of a rollout; nothing until the watcher has found it.
    pub(crate) fn seen(&self, name: Name, rollout: &Rollout) -> Option<Seen> {
        let window = self.find(name).filter(|window| window.is_of(rollout))?;
        Some(window.seen())
    }

    fn find(&self, name: Name) -> Option<Arc<Window>> {
        self.0.load().get(&name).cloned()
    }

    /// Begins to count for the rollouts that are new, and ends it for those that are over.
    fn refresh(&self, snapshot: &Snapshot) {
        let (before, now) = (self.0.load_full(), OffsetDateTime::now_utc());
        let mut windows = HashMap::new();
        for tenant in snapshot.tenants() {
            for function in tenant.functions.values() {
                for (alias, there) in function.versions.aliases() {
                    let Some(rollout) = &there.rollout else { continue };
                    let name = (tenant.name.clone(), function.name.clone(), alias.clone());
                    let known = before.get(&name).filter(|window| window.is_of(rollout));
                    let new = || Arc::new(Window::new(rollout.clone(), now));
                    let window = known.cloned().unwrap_or_else(new);
                    windows.insert(name, window);
                }
            }
        }
        for (name, window) in &*before {
            if !windows.get(name).is_some_and(|other| Arc::ptr_eq(other, window)) {
                count(snapshot, name);
            }
        }
        self.0.store(Arc::new(windows));
    }
}

/// Watches for as long as the node lives.
pub(crate) async fn watch(app: Weak<App>) {
    let mut seen: Option<Arc<Snapshot>> = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        if app.catalog.is_closed() {
            // The process that takes over watches them.
            continue;
        }
        let snapshot = app.catalog.snapshot().clone();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &snapshot)) {
            app.rollouts.refresh(&snapshot);
            seen = Some(snapshot);
        }
        let now = OffsetDateTime::now_utc();
        for (name, window) in &*app.rollouts.0.load_full() {
            let end = match judge(&window.seen(), &window.rollout, now) {
                Verdict::Wait => continue,
                Verdict::Promote => RolloutEnd::Promoted,
                Verdict::RollBack(reason) => RolloutEnd::RolledBack { reason },
            };
            conclude(&app, name.clone(), window.rollout.began_at, end).await;
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
