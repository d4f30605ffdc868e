//! Whose sandbox is started next: tenants in turn, and no tenant with more starts under way than it may have. A tenant
//! whose starts are slow waits for itself alone.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use sandpiper_domain::TenantName;

/// The versions that wait for a start, by tenant.
pub(super) struct Turns<T> {
    /// Starts of one tenant at once.
    of_tenant_max: usize,
    /// The tenants that have something in their line and may start it.
    order: VecDeque<TenantName>,
    lines: HashMap<TenantName, Line<T>>,
}

struct Line<T> {
    waiting: VecDeque<T>,
    under_way: usize,
    is_in_order: bool,
}

impl<T> Turns<T> {
    pub(super) fn new(of_tenant_max: usize) -> Self {
        Turns { of_tenant_max, order: VecDeque::new(), lines: HashMap::new() }
    }

    /// Puts one at the end of its tenant's line.
    pub(super) fn push(&mut self, tenant: &TenantName, one: T) {
        let line = self.lines.entry(tenant.clone()).or_insert_with(|| Line {
            waiting: VecDeque::new(),
            under_way: 0,
            is_in_order: false,
        });
        line.waiting.push_back(one);
        self.settle(tenant);
    }

    /// The next one to be started, which is under way from then on.
    pub(super) fn next(&mut self) -> Option<(TenantName, T)> {
        let tenant = self.order.pop_front()?;
        let line = self.lines.get_mut(&tenant)?;
        line.is_in_order = false;
        let one = line.waiting.pop_front()?;
        line.under_way += 1;
        self.settle(&tenant);
        Some((tenant, one))
    }

    /// One that was under way has ended.
    pub(super) fn done(&mut self, tenant: &TenantName) {
        if let Some(line) = self.lines.get_mut(tenant) {
            line.under_way = line.under_way.saturating_sub(1);
        }
        self.settle(tenant);
    }

    fn settle(&mut self, tenant: &TenantName) {
        let Entry::Occupied(mut entry) = self.lines.entry(tenant.clone()) else { return };
        let line = entry.get_mut();
        if line.waiting.is_empty() {
            if line.under_way == 0 {
                entry.remove();
            }
        } else if !line.is_in_order && line.under_way < self.of_tenant_max {
            line.is_in_order = true;
            self.order.push_back(tenant.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TenantName {
        text.parse().unwrap()
    }

    #[test]
    fn tenants_take_turns_and_a_slow_one_holds_nobody_up() {
        let mut turns = Turns::new(1);
        let (slow, quick) = (name("slow"), name("quick"));
        for number in 0..3 {
            turns.push(&slow, number);
        }
        assert_eq!(turns.next(), Some((slow.clone(), 0)));
        assert_eq!(turns.next(), None);
        for number in 10..13 {
            turns.push(&quick, number);
            assert_eq!(turns.next(), Some((quick.clone(), number)));
            turns.done(&quick);
        }
        turns.push(&quick, 13);
        turns.done(&slow);
        assert_eq!(turns.next(), Some((quick.clone(), 13)));
        assert_eq!(turns.next(), Some((slow.clone(), 1)));
        turns.done(&quick);
        turns.done(&slow);
        assert_eq!(turns.next(), Some((slow.clone(), 2)));
        turns.done(&slow);
        assert!(turns.next().is_none() && turns.lines.is_empty());
    }

    #[test]
    fn a_tenant_has_no_more_under_way_than_it_may() {
        let mut turns = Turns::new(2);
        let tenant = name("acme");
        (0..5).for_each(|number| turns.push(&tenant, number));
        assert!(turns.next().is_some() && turns.next().is_some());
        assert_eq!(turns.next(), None);
        turns.done(&tenant);
        assert_eq!(turns.next(), Some((tenant.clone(), 2)));
        assert_eq!(turns.next(), None);
    }
}
