//! Which calls run together.

use sandpiper_domain::Band;

use super::{Lane, Queue, TenantId, Waiting};

impl<J: Waiting> Queue<J> {
    /// The calls that run with `first`: of its lane, tenant round robin by weight, as many as make one of the sizes.
    pub(super) fn batch(&self, first: u64) -> Vec<u64> {
        let alone = vec![first];
        let Some(entry) = self.entries.get(&first) else { return alone };
        let (Some(lane), Some(&largest)) = (entry.lane, entry.job.sizes().last()) else {
            return alone;
        };
        let tenants = self.tenants_of(lane, entry.tenant);
        if entry.rows >= largest as usize || tenants.is_empty() {
            return alone;
        }
        let mut waiting: Vec<_> = tenants
            .iter()
            .map(|&tenant| {
                let range = (lane, tenant, false, 0)..=(lane, tenant, true, u64::MAX);
                let calls = self.by_lane.range(range).map(|(.., ticket)| *ticket);
                (self.slots(tenant, &tenants), calls.filter(|ticket| *ticket != first).peekable())
            })
            .collect();
        // The first call has the first slot of its tenant, which is the first one.
        let (mut chosen, mut rows, mut best) = (alone, entry.rows, 1);
        let (mut taken, mut before) = (1, 0);
        'full: loop {
            for (slots, calls) in &mut waiting {
                for _ in std::mem::take(&mut taken)..*slots {
                    let Some(ticket) = calls.peek() else { break };
                    let more = self.entries.get(ticket).map_or(0, |entry| entry.rows);
                    // No call of a lane has more rows than the largest batch, so that the sum does not overflow.
                    if rows.saturating_add(more) > largest as usize {
                        break;
                    }
                    rows += more;
                    chosen.extend(calls.next());
                    if entry.job.sizes().contains(&(rows as u32)) {
                        best = chosen.len();
                    }
                    if rows == largest as usize {
                        break 'full;
                    }
                }
            }
            // In the first round it may have been only the first call's turn.
            if chosen.len() == std::mem::replace(&mut before, chosen.len()) {
                break;
            }
        }
        chosen.truncate(best);
        chosen
    }

    /// The tenants with calls in a lane, from `first` on; normal ones before low ones.
    fn tenants_of(&self, lane: Lane, first: TenantId) -> Vec<TenantId> {
        let mut tenants = Vec::new();
        let mut from = 0;
        while let Some(&(other, tenant, ..)) = self.by_lane.range((lane, from, false, 0)..).next() {
            if other != lane {
                break;
            }
            tenants.push(tenant);
            let Some(next) = tenant.checked_add(1) else { break };
            from = next;
        }
        let low = |tenant: TenantId| self.fair.band(tenant) == Some(Band::Low);
        tenants.sort_by_key(|&tenant| (tenant != first, low(tenant), tenant < first, tenant));
        tenants
    }

    /// The slots of a batch that a tenant gets in one round, by its weight beside the smallest.
    fn slots(&self, tenant: TenantId, tenants: &[TenantId]) -> u32 {
        let least = tenants.iter().map(|&id| self.fair.weight(id)).min().unwrap_or(1);
        (self.fair.weight(tenant) / least).max(1)
    }
}
