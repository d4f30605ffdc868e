//! Quarantine: a model that keeps panicking is run no more.
//!
//! Three calls of its owner in a row that panic, each run alone, put the model in quarantine until it is loaded again.
//! Tenants that were only granted the model cannot take it away from its owner, alone or together: three calls of one
//! of them in a row close the model to that tenant, however well those of others end meanwhile.

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use sandpiper_domain::{InferenceError, TenantName};

/// Panics in a row that are too many.
const PANICS_MAX: usize = 3;
/// Guests that are remembered, of those that the model is closed to and of those whose calls panicked of late. Beyond,
/// the one that came first is forgotten.
const GUESTS_MAX: usize = 64;

/// Whether a loaded model may run.
#[derive(Debug, Default)]
pub(crate) struct Health {
    owner: OnceLock<TenantName>,
    /// Something in `record` matters to those who call. Most models never panic, and their calls look here only.
    is_troubled: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// Whose calls panicked since one of theirs ended well, or in the owner's case anybody's, and how many.
    panics: Vec<(TenantName, usize)>,
    /// Why the model is in quarantine.
    reason: Option<String>,
    closed_to: Vec<TenantName>,
}

impl Health {
    /// Says whose model it is. Where nobody did, every tenant counts as the owner.
    pub(crate) fn belongs_to(&self, owner: &TenantName) {
        self.owner.get_or_init(|| owner.clone());
    }

    /// Why the model is in quarantine, if it is.
    pub(crate) fn reason(&self) -> Option<String> {
        match self.is_troubled.load(Relaxed) {
            true => self.record().reason.clone(),
            false => None,
        }
    }

    /// Why a call of this tenant is not run, if it is not.
    pub(crate) fn refusal(&self, tenant: &TenantName) -> Option<InferenceError> {
        if !self.is_troubled.load(Relaxed) {
            return None;
        }
        let record = self.record();
        let text = if record.reason.is_some() {
            "unavailable: the model is in quarantine, since it panicked in three calls in a row; \
             its owner can upload a version that does not"
        } else if record.closed_to.contains(tenant) {
            "unavailable: the model is closed to this tenant, since three of its calls in a row made it panic"
        } else {
            return None;
        };
        Some(InferenceError::Unavailable(text.to_owned()))
    }

    /// Whether the model's state goes by the calls of this tenant.
    pub(crate) fn is_owner(&self, tenant: &TenantName) -> bool {
        self.owner.get().is_none_or(|owner| owner == tenant)
    }

    /// A call of this tenant ended well, so that the model is not what panics.
    pub(crate) fn succeeded(&self, tenant: &TenantName) {
        if self.is_troubled.load(Relaxed) {
            let mut record = self.record();
            record.panics.retain(|(other, _)| other != tenant && !self.is_owner(other));
            let is_troubled = record.reason.is_some()
                || !record.closed_to.is_empty()
                || !record.panics.is_empty();
            self.is_troubled.store(is_troubled, Relaxed);
        }
    }

    /// A call that ran alone panicked; `text` says how, without any value.
    pub(crate) fn panicked(&self, tenant: &TenantName, text: &str) {
        let mut record = self.record();
        self.is_troubled.store(true, Relaxed);
        let is_owner = self.is_owner(tenant);
        if record.reason.is_some() || record.count(tenant, is_owner) < PANICS_MAX {
            return;
        }
        record.panics.retain(|(other, _)| other != tenant);
        if is_owner {
            record.reason = Some(format!("three calls in a row panicked; the last one: {text}"));
            return;
        }
        if !record.closed_to.contains(tenant) {
            if record.closed_to.len() >= GUESTS_MAX {
                record.closed_to.remove(0);
            }
            record.closed_to.push(tenant.clone());
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// Counts a panic of this tenant, and gives how many it has in a row. The owner's count is never forgotten.
    fn count(&mut self, tenant: &TenantName, is_owner: bool) -> usize {
        if let Some((_, count)) = self.panics.iter_mut().find(|(other, _)| other == tenant) {
            *count += 1;
            return *count;
        }
        if self.panics.len() > GUESTS_MAX {
            self.panics.pop();
        }
        let place = if is_owner { 0 } else { self.panics.len() };
        self.panics.insert(place, (tenant.clone(), 1));
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TenantName {
        text.parse().unwrap()
    }

    fn after(owner: Option<&str>, calls: &[&str]) -> Health {
        let health = Health::default();
        if let Some(owner) = owner {
            health.belongs_to(&name(owner));
        }
        for call in calls {
            match call.strip_suffix(" ok") {
                Some(tenant) => health.succeeded(&name(tenant)),
                None => health.panicked(&name(call), "how"),
            }
        }
        health
    }

    #[test]
    fn three_panics_in_a_row_close_the_model() {
        for owner in [Some("acme"), None] {
            let health = after(owner, &["acme", "acme"]);
            assert!(health.reason().is_none() && health.refusal(&name("acme")).is_none());
            health.panicked(&name("acme"), "how");
            assert!(health.reason().unwrap().ends_with("how"));
            assert!(health.refusal(&name("beta")).is_some());
            health.succeeded(&name("acme"));
            assert!(health.reason().is_some());
        }
        // Whoever's call ends well, the model is not what panics.
        for well in ["acme ok", "beta ok"] {
            let health = after(Some("acme"), &["acme", "acme", well, "acme", "acme"]);
            assert!(health.reason().is_none(), "{well}");
        }
    }

    #[test]
    fn guests_cannot_take_a_model_from_its_owner_together() {
        let calls = ["beta", "gamma", "beta", "gamma", "acme", "acme"];
        let health = after(Some("acme"), &calls);
        for tenant in ["acme", "beta", "gamma"] {
            assert!(health.refusal(&name(tenant)).is_none(), "{tenant}");
        }
        health.panicked(&name("beta"), "how");
        assert!(health.refusal(&name("beta")).is_some() && health.reason().is_none());
        assert!(health.refusal(&name("gamma")).is_none());
        // Nor can they make the owner's calls be forgotten.
        for guest in 0..2 * GUESTS_MAX {
            health.panicked(&name(&format!("guest-{guest}")), "how");
        }
        assert!(health.record().panics.len() <= GUESTS_MAX + 1);
        health.panicked(&name("acme"), "how");
        assert!(health.reason().is_some());
    }

    #[test]
    fn calls_of_others_that_end_well_do_not_hide_those_of_a_guest() {
        let calls = ["beta", "acme ok", "beta", "gamma ok", "beta"];
        assert!(after(Some("acme"), &calls).refusal(&name("beta")).is_some());
        let calls = ["beta", "beta", "beta ok", "beta", "beta"];
        let health = after(Some("acme"), &calls);
        assert!(health.refusal(&name("beta")).is_none());
        health.succeeded(&name("beta"));
        assert!(!health.is_troubled.load(Relaxed), "nothing is left to be looked up");
    }

    #[test]
    fn one_guest_closes_the_model_to_itself_alone() {
        let health = after(Some("acme"), &["beta", "beta", "beta"]);
        assert!(health.reason().is_none());
        assert!(health.refusal(&name("beta")).is_some());
        assert!(health.refusal(&name("acme")).is_none());
        for tenant in ["acme", "beta"] {
            health.succeeded(&name(tenant));
            assert!(health.refusal(&name("beta")).is_some());
        }
        for guest in 0..GUESTS_MAX {
            (0..3).for_each(|_| health.panicked(&name(&format!("guest-{guest}")), "how"));
        }
        assert!(health.refusal(&name("beta")).is_none());
        assert_eq!(health.record().closed_to.len(), GUESTS_MAX);
    }
}
