//! Which models make room for others.
//!
//! The budget is shared as the compute threads are: every tenant with models in memory is due a part of it by its
//! weight. Models of tenants that hold more than their part go first, and with them those that nobody has asked for in
//! a while, whoever owns them; so a tenant alone may fill the budget, and cannot keep out others that come.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    time::Duration,
};

use sandpiper_domain::{ModelKey, TenantName};

/// A model that was not asked for in this time protects nobody's part.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// One model in memory.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) key: ModelKey,
    pub(crate) bytes: u64,
    /// How long ago it was asked for.
    pub(crate) idle: Duration,
    pub(crate) is_in_use: bool,
    /// It may not be forgotten: it is pinned, or it is what room is made for.
    pub(crate) stays: bool,
}

/// The models to forget so that the rest takes no more than `target` bytes. `incoming` is what room is made for,
/// which counts as its tenant's.
pub(crate) fn choose(
    mut held: Vec<Held>,
    incoming: Option<(&TenantName, u64)>,
    target: u64,
    weight: impl Fn(&TenantName) -> u32,
) -> Vec<ModelKey> {
    let mut total = held.iter().map(|model| model.bytes).fold(0, u64::saturating_add);
    if total <= target {
        return Vec::new();
    }
    let mut parts = Parts::default();
    let owned = held.iter().map(|model| (&model.key.tenant, model.bytes));
    for (tenant, bytes) in owned.chain(incoming) {
        parts.add(tenant, bytes, &weight);
    }
    let pool = target.saturating_add(incoming.map_or(0, |(_, bytes)| bytes));
    held.retain(|model| !model.stays);
    held.sort_by_key(|model| (model.is_in_use, Reverse(model.idle), model.bytes));
    let mut chosen = Vec::new();
    let mut gone = HashSet::new();
    for is_fair in [true, false] {
        for (place, model) in held.iter().enumerate() {
            if total <= target {
                return chosen;
            }
            let tenant = &model.key.tenant;
            let spared = is_fair && model.idle < IDLE && !parts.is_over(tenant, pool);
            if !spared && gone.insert(place) {
                parts.take(tenant, model.bytes);
                total = total.saturating_sub(model.bytes);
                chosen.push(model.key.clone());
            }
        }
    }
    chosen
}

/// What each tenant holds, and its weight.
#[derive(Default)]
struct Parts {
    by_tenant: HashMap<TenantName, (u64, u32)>,
    weights: u64,
}

impl Parts {
    fn add(&mut self, tenant: &TenantName, bytes: u64, weight: impl Fn(&TenantName) -> u32) {
        if let Some((held, _)) = self.by_tenant.get_mut(tenant) {
            *held = held.saturating_add(bytes);
            return;
        }
        let weight = weight(tenant).max(1);
        self.weights += u64::from(weight);
        self.by_tenant.insert(tenant.clone(), (bytes, weight));
    }

    fn take(&mut self, tenant: &TenantName, bytes: u64) {
        if let Some((held, _)) = self.by_tenant.get_mut(tenant) {
            *held = held.saturating_sub(bytes);
        }
    }

    /// Whether the tenant holds more than its part of `pool`.
    fn is_over(&self, tenant: &TenantName, pool: u64) -> bool {
        let Some((held, weight)) = self.by_tenant.get(tenant) else { return true };
        u128::from(*held) * u128::from(self.weights) > u128::from(pool) * u128::from(*weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(tenant: &str, version: u32, bytes: u64, idle_s: u64) -> Held {
        let tenant = tenant.parse().unwrap();
        let key = ModelKey { tenant, model: "m".parse().unwrap(), version };
        let idle = Duration::from_secs(idle_s);
        Held { key, bytes, idle, is_in_use: false, stays: false }
    }

    fn chosen(held: Vec<Held>, incoming: Option<(&str, u64)>, target: u64) -> Vec<String> {
        let incoming =
            incoming.map(|(tenant, bytes)| (tenant.parse::<TenantName>().unwrap(), bytes));
        let incoming = incoming.as_ref().map(|(tenant, bytes)| (tenant, *bytes));
        let weight = |tenant: &TenantName| if tenant.as_str() == "heavy" { 4 } else { 1 };
        let keys = choose(held, incoming, target, weight);
        keys.iter().map(|key| format!("{}{}", key.tenant, key.version)).collect()
    }

    #[test]
    fn one_tenant_s_models_go_in_the_order_of_their_last_use() {
        let models = || (1..=4).map(|n| held("a", n, 10, u64::from(n % 3))).collect::<Vec<_>>();
        assert_eq!(chosen(models(), None, 40), Vec::<String>::new());
        assert_eq!(chosen(models(), None, 25), ["a2", "a1"]);
        let mut used = models();
        used[1].is_in_use = true;
        used[0].stays = true;
        assert_eq!(chosen(used, None, 0), ["a4", "a3", "a2"]);
    }

    #[test]
    fn a_tenant_that_floods_the_budget_evicts_its_own() {
        // The model of b is the one used longest ago, and the flood of a leaves it alone.
        let mut models = vec![held("b", 1, 20, 50)];
        models.extend((1..=8).map(|n| held("a", n, 10, u64::from(9 - n))));
        assert_eq!(chosen(models.clone(), None, 80), ["a1", "a2"]);
        // Neither does the load of one more, though without it nobody is over a half.
        let even = vec![held("b", 1, 50, 50), held("a", 1, 25, 9), held("a", 2, 25, 8)];
        assert_eq!(chosen(even.clone(), Some(("a", 20)), 80), ["a1"]);
        assert_eq!(chosen(even, Some(("b", 20)), 80), ["b1"]);
        // What nobody has asked for in a minute goes first, whoever holds it.
        models[0].idle = IDLE;
        assert_eq!(chosen(models, None, 80), ["b1"]);
    }

    #[test]
    fn weights_are_parts_of_the_budget() {
        // A part of 80 for the one, of 20 for the other.
        let models = vec![held("heavy", 1, 70, 50), held("a", 1, 20, 9), held("a", 2, 20, 8)];
        assert_eq!(chosen(models, None, 100), ["a1"]);
    }

    #[test]
    fn what_is_asked_for_is_freed_though_only_those_within_their_part_can_give() {
        let mut models = vec![held("a", 1, 90, 1), held("b", 1, 10, 2)];
        models[0].stays = true;
        assert_eq!(chosen(models, None, 90), ["b1"]);
    }
}
