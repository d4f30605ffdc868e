//! How long a call would wait, for who can still turn away what would make it.

use std::time::Duration;

use sandpiper_domain::{Share, TenantName};

use super::{Queue, Waiting};

impl<J: Waiting> Queue<J> {
    /// How long a small call of this tenant would wait if it came now; `None` where it would get no place. `free` is
    /// how long every thread still works on what it has begun.
    pub(crate) fn expected_wait(
        &self,
        tenant: &TenantName,
        share: Share,
        free: Duration,
    ) -> Option<Duration> {
        let places = self.limits.node.saturating_sub(self.entries.len());
        let tenant = self.fair.find(tenant);
        let own = tenant.and_then(|id| self.of_tenant.get(&id)).copied().unwrap_or_default();
        let is_full = places == 0
            || own.calls >= self.limits.tenant
            || (own.calls > 0 && own.calls >= places);
        // Without a call of its own it stands behind nobody for longer than one turn.
        (!is_full).then(|| match own.calls {
            0 => free,
            _ => free + self.in_time(self.before(tenant, share, own.ns, 0)),
        })
    }
}
