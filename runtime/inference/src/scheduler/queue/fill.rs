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
                let range = (lane, tenant, 0)..=(lane, tenant, u64::MAX);
                let calls = self.by_lane.range(range).map(|(_, _, ticket)| *ticket);
                (self.slots(tenant, &tenants), calls.peekable())
            })
            .collect();
        let (mut chosen, mut rows, mut best) = (Vec::new(), 0, 1);
        'full: loop {
            let before = chosen.len();
            for (slots, calls) in &mut waiting {
                for _ in 0..*slots {
                    let Some(ticket) = calls.peek() else { break };
                    let more = self.entries.get(ticket).map_or(0, |entry| entry.rows);
                    if rows + more > largest as usize {
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
            if chosen.len() == before {
                break;
            }
        }
        chosen.truncate(best);
        match chosen.first() {
            Some(ticket) if *ticket == first => chosen,
            _ => alone,
        }
    }

    /// The tenants with calls in a lane, from `first` on; normal ones before low ones.
    fn tenants_of(&self, lane: Lane, first: TenantId) -> Vec<TenantId> {
        let mut tenants = Vec::new();
        let mut from = 0;
        while let Some(&(other, tenant, _)) = self.by_lane.range((lane, from, 0)..).next() {
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
        let weight = |id| self.fair.share(id).map_or(1, |share| share.weight.max(1));
        let least = tenants.iter().map(|&id| weight(id)).min().unwrap_or(1);
        (weight(tenant) / least.max(1)).max(1)
    }
}
