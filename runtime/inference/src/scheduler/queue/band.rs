//! Which of a tenant's calls are of which band, and which ring the tenant stands in for it.
//!
//! The band is a call's own. A tenant has one account and stands in one ring: the normal one while a normal call of it
//! may run, or a low one that has waited long enough.

use std::time::{Duration, Instant};

use sandpiper_domain::Band;

use super::{Queue, TenantId, Waiting};

/// How long a call of the low band stands back behind normal ones. After that its tenant competes with them by its
/// weight, until what is left of its calls is younger. It is long against a batch of most models, so that
/// normal calls keep their precedence in bursts, and short against the walls of requests, the shortest of which are
/// seconds, so that the low band is served within its deadlines even where normal work never ends.
pub(crate) const LOW_BAND_WAIT: Duration = Duration::from_millis(200);

impl<J: Waiting> Queue<J> {
    /// The call may run from now on.
    pub(super) fn release(&mut self, ticket: u64) {
        let Some(entry) = self.entries.get_mut(&ticket) else { return };
        entry.is_held = false;
        let (tenant, band, lane) = (entry.tenant, entry.band, entry.lane);
        self.by_tenant.insert((tenant, is_low(band), ticket));
        if let Some(lane) = lane {
            self.by_lane.insert((lane, tenant, is_low(band), ticket));
        }
        if band == Band::Low {
            self.ages_with(Some(ticket));
        }
        if self.fair.band(tenant).is_none() || band == Band::Normal {
            self.fair.enter(tenant, band);
        }
    }

    /// Whose turn it is, and the call of it that runs first.
    pub(super) fn first(&mut self, now: Instant) -> Option<(TenantId, u64)> {
        while let Some(tenant) = self.fair.next(Band::Normal) {
            let normal = self.head(tenant, Band::Normal);
            let aged = self.head(tenant, Band::Low).filter(|ticket| self.is_aged(*ticket, now));
            // Tickets grow, so that the smaller one is the older.
            let first = match (normal, aged) {
                (Some(normal), Some(aged)) => Some(normal.min(aged)),
                (normal, aged) => normal.or(aged),
            };
            if let Some(first) = first {
                return Some((tenant, first));
            }
            // What is left of its calls is low and young.
            self.fair.enter(tenant, Band::Low);
            self.ages_with(self.head(tenant, Band::Low));
        }
        let tenant = self.fair.next(Band::Low)?;
        Some((tenant, self.head(tenant, Band::Low)?))
    }

    /// Low tenants that have waited long enough go to the normal ring.
    pub(super) fn age(&mut self, now: Instant) {
        if self.ages_at.is_none_or(|at| at > now) {
            return;
        }
        self.ages_at = None;
        let low: Vec<TenantId> = self.fair.members(Band::Low).collect();
        for tenant in low {
            match self.head(tenant, Band::Low) {
                Some(ticket) if self.is_aged(ticket, now) => self.fair.enter(tenant, Band::Normal),
                young => self.ages_with(young),
            }
        }
    }

    /// Looks at the ring of the low band again when this call has waited long enough.
    fn ages_with(&mut self, ticket: Option<u64>) {
        let Some(entry) = ticket.and_then(|ticket| self.entries.get(&ticket)) else { return };
        let at = entry.queued_at + LOW_BAND_WAIT;
        self.ages_at = Some(self.ages_at.map_or(at, |known| known.min(at)));
    }

    fn is_aged(&self, ticket: u64, now: Instant) -> bool {
        self.entries.get(&ticket).is_some_and(|entry| entry.queued_at + LOW_BAND_WAIT <= now)
    }

    /// The oldest call of this band that may run.
    fn head(&self, tenant: TenantId, band: Band) -> Option<u64> {
        if self.of_band[usize::from(is_low(band))] == 0 {
            return None;
        }
        let low = is_low(band);
        let (.., ticket) =
            *self.by_tenant.range((tenant, low, 0)..=(tenant, low, u64::MAX)).next()?;
        Some(ticket)
    }
}

pub(super) fn is_low(band: Band) -> bool {
    band == Band::Low
}
