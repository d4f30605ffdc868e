//! Deficit round robin among tenants, in CPU time. No threads, no clock and no calls: only who is next.
//!
//! 1. The tenants that have work stand in a ring. When a tenant's turn comes it gets a quantum times its weight, and
//!    it is served as long as it has anything left of that.
//! 2. An estimate stands against its account for as long as its call runs, and what was measured is paid when the call
//!    has ended, so that it may go into debt by the length of one run for each thread. The debt is paid from the turns
//!    that follow, also from those that pass while the tenant has no work.
//! 3. What is left on an account when no call waits or runs any more is forfeit: idling earns nothing. Nor does an
//!    estimate that was too large: beyond what still runs, an account never holds more than one turn.

use std::collections::{HashMap, VecDeque};

use sandpiper_domain::{Band, TenantName};

/// CPU time that a turn gives for each unit of weight. A tenant of weight 16 then keeps a core for 1.6 ms at a time,
/// and calls of tens of microseconds do not change hands at every one.
pub(super) const QUANTUM_NS: i64 = 100_000;
/// The most that stands against an account for a call that runs. Estimates follow from what callers send.
pub(super) const ESTIMATE_NS_MAX: u64 = 1_000_000_000;
/// Tenants without work that are remembered; those without a debt go first.
const IDLE_MAX: usize = 1024;

/// A tenant's number, valid while it has work or a call of it runs.
pub(super) type TenantId = u32;

/// The accounts and the rings.
#[derive(Default)]
pub(super) struct Fair {
    accounts: Vec<Option<Account>>,
    vacant: Vec<TenantId>,
    ids: HashMap<TenantName, TenantId>,
    /// Tenants without a call that waits or runs.
    idle: usize,
    normal: Ring,
    low: Ring,
}

struct Account {
    name: TenantName,
    weight: u32,
    /// What its turns gave, less what its calls took; negative is a debt.
    balance_ns: i64,
    /// The estimates of the calls that run.
    running_ns: i64,
    /// Calls that wait or run.
    calls: usize,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It stood in this ring last, until this round.
    Out(Band, u64),
    In(Band),
}

/// Those who have work, the one whose turn it is first.
#[derive(Default)]
struct Ring {
    members: VecDeque<TenantId>,
    /// The one whose turn has begun.
    current: Option<TenantId>,
    /// Rounds so far, and turns since the last.
    round: u64,
    turns: usize,
}

impl Fair {
    /// The number of a tenant whose weight is this from now on.
    pub(super) fn tenant(&mut self, name: &TenantName, weight: u32) -> TenantId {
        if let Some(&id) = self.ids.get(name) {
            if let Some(account) = self.account_mut(id) {
                account.weight = weight;
            }
            return id;
        }
        self.forget_some();
        let place = Place::Out(Band::Normal, self.normal.round);
        let name_of = name.clone();
        let account =
            Account { name: name_of, weight, balance_ns: 0, running_ns: 0, calls: 0, place };
        let id = self.vacant.pop().unwrap_or(self.accounts.len() as TenantId);
        match self.accounts.get_mut(id as usize) {
            Some(vacant) => *vacant = Some(account),
            None => self.accounts.push(Some(account)),
        }
        self.ids.insert(name.clone(), id);
        self.idle += 1;
        id
    }

    /// The tenant of this name, if it is known.
    pub(super) fn find(&self, name: &TenantName) -> Option<TenantId> {
        self.ids.get(name).copied()
    }

    /// What the tenant is due beside others, at least 1.
    pub(super) fn weight(&self, id: TenantId) -> u32 {
        self.account(id).map_or(1, |account| account.weight.max(1))
    }

    /// Whether no call of the tenant waits or runs.
    pub(super) fn is_idle(&self, id: TenantId) -> bool {
        self.account(id).is_none_or(|account| account.calls == 0)
    }

    /// The band whose ring the tenant stands in.
    pub(super) fn band(&self, id: TenantId) -> Option<Band> {
        match self.account(id)?.place {
            Place::In(band) => Some(band),
            Place::Out(..) => None,
        }
    }

    /// Those who stand in a ring, the next one first.
    pub(super) fn members(&self, band: Band) -> impl Iterator<Item = TenantId> {
        self.ring(band).members.iter().copied()
    }

    /// The tenant has work; it goes to the end of the ring of `band`, from the other one too.
    pub(super) fn enter(&mut self, id: TenantId, band: Band) {
        let Some(account) = self.account(id) else { return };
        match account.place {
            Place::In(other) if other == band => return,
            Place::In(_) => self.leave(id),
            Place::Out(..) => {}
        }
        self.settle(id, band);
        let Some(account) = self.account_mut(id) else { return };
        account.place = Place::In(band);
        self.ring_mut(band).members.push_back(id);
    }

    /// The tenant has no more work.
    pub(super) fn leave(&mut self, id: TenantId) {
        let Some(Place::In(band)) = self.account(id).map(|account| account.place) else { return };
        let ring = self.ring_mut(band);
        let round = ring.round;
        ring.members.retain(|member| *member != id);
        ring.current = ring.current.filter(|current| *current != id);
        if let Some(account) = self.account_mut(id) {
            account.place = Place::Out(band, round);
        }
    }

    /// Whose turn it is in this ring. The tenant stays first until it has used up what it has.
    pub(super) fn next(&mut self, band: Band) -> Option<TenantId> {
        if let Some(id) = self.go_round(band) {
            return Some(id);
        }
        // Everybody has had a turn and is still in debt: all the rounds that change nothing pass at once. Those who are
        // away are paid for rounds that real debts made necessary, and not for those that estimates did.
        let least = |debt_ns: fn(&Account) -> i64| {
            let accounts = self.members(band).filter_map(|id| self.account(id));
            let turns =
                |account: &Account| debt_ns(account).unsigned_abs() / account.turn_ns() as u64;
            accounts.map(turns).min()
        };
        let rounds = least(|account| account.left_ns().min(0))?;
        let real = least(|account| account.balance_ns.min(0))?;
        self.grant_all(band, rounds);
        let ring = self.ring_mut(band);
        ring.round = ring.round.saturating_add(rounds.min(real));
        self.go_round(band).or_else(|| self.ring(band).members.front().copied())
    }

    /// The first one who has something left, within one round from here.
    fn go_round(&mut self, band: Band) -> Option<TenantId> {
        for _ in 0..self.ring(band).members.len() {
            let id = *self.ring(band).members.front()?;
            if self.ring(band).current != Some(id) {
                self.ring_mut(band).current = Some(id);
                self.grant(id, 1);
            }
            if self.account(id)?.left_ns() > 0 {
                return Some(id);
            }
            self.pass(band);
        }
        None
    }

    /// The tenant has one call more that waits or runs.
    pub(super) fn claim(&mut self, id: TenantId) {
        if let Some(account) = self.account_mut(id) {
            account.calls += 1;
            if account.calls == 1 {
                self.idle -= 1;
            }
        }
    }

    /// The tenant has one call less.
    pub(super) fn unclaim(&mut self, id: TenantId) {
        if let Some(account) = self.account_mut(id) {
            account.calls = account.calls.saturating_sub(1);
            if account.calls == 0 {
                account.balance_ns = account.balance_ns.min(0);
                self.idle += 1;
            }
        }
    }

    /// Whether the tenant, which has no work, has had what its next turn in this band will give.
    pub(super) fn owes_a_turn(&mut self, id: TenantId, band: Band) -> bool {
        self.settle(id, band);
        self.account(id).is_some_and(|account| account.left_ns() <= -account.turn_ns())
    }

    /// Pays a debt from the turns that have passed in this band while the tenant had no work.
    fn settle(&mut self, id: TenantId, band: Band) {
        let round = self.ring(band).round;
        let Some(account) = self.account_mut(id) else { return };
        let Place::Out(left, at) = account.place else { return };
        if left != band {
            return;
        }
        account.place = Place::Out(band, round);
        if account.balance_ns < 0 {
            let rounds = i64::try_from(round.saturating_sub(at)).unwrap_or(i64::MAX);
            let paid = rounds.saturating_mul(account.turn_ns());
            account.balance_ns = account.balance_ns.saturating_add(paid).min(0);
        }
    }

    /// A call of the tenant begins; the estimate stands against its account until it has ended.
    pub(super) fn begin(&mut self, id: TenantId, estimate_ns: u64) {
        if let Some(account) = self.account_mut(id) {
            account.running_ns = account.running_ns.saturating_add(clamp(estimate_ns));
        }
    }

    /// A call of the tenant has ended and took `measured_ns` instead of the estimate.
    pub(super) fn end(&mut self, id: TenantId, estimate_ns: u64, measured_ns: u64) {
        if let Some(account) = self.account_mut(id) {
            account.running_ns = account.running_ns.saturating_sub(clamp(estimate_ns)).max(0);
            account.balance_ns = account.balance_ns.saturating_sub(clamp(measured_ns));
            account.balance_ns = account.balance_ns.min(account.balance_ns_max());
        }
    }

    fn account_mut(&mut self, id: TenantId) -> Option<&mut Account> {
        self.accounts.get_mut(id as usize)?.as_mut()
    }

    fn account(&self, id: TenantId) -> Option<&Account> {
        self.accounts.get(id as usize)?.as_ref()
    }

    fn ring(&self, band: Band) -> &Ring {
        match band {
            Band::Normal => &self.normal,
            Band::Low => &self.low,
        }
    }

    fn ring_mut(&mut self, band: Band) -> &mut Ring {
        match band {
            Band::Normal => &mut self.normal,
            Band::Low => &mut self.low,
        }
    }

    /// The turn goes to the next in the ring.
    fn pass(&mut self, band: Band) {
        let ring = self.ring_mut(band);
        ring.members.rotate_left(1);
        ring.current = None;
        ring.turns += 1;
        if ring.turns >= ring.members.len() {
            ring.turns = 0;
            ring.round += 1;
        }
    }

    fn grant_all(&mut self, band: Band, rounds: u64) {
        for place in 0..self.ring(band).members.len() {
            if let Some(&id) = self.ring(band).members.get(place) {
                self.grant(id, rounds);
            }
        }
    }

    fn grant(&mut self, id: TenantId, rounds: u64) {
        if let Some(account) = self.account_mut(id) {
            let turns = i64::try_from(rounds).unwrap_or(i64::MAX);
            let given = account.balance_ns.saturating_add(turns.saturating_mul(account.turn_ns()));
            // What is left does not grow past one turn, and what was left does not shrink.
            account.balance_ns = given.min(account.balance_ns_max()).max(account.balance_ns);
        }
    }

    /// Keeps the number of idle accounts bounded. A debt that is forgotten is one of a few runs at most.
    fn forget_some(&mut self) {
        if self.idle < IDLE_MAX {
            return;
        }
        for keep_debts in [true, false] {
            for id in 0..self.accounts.len() {
                let Some(account) = &self.accounts[id] else { continue };
                if account.calls == 0 && !(keep_debts && account.balance_ns < 0) {
                    self.ids.remove(&account.name);
                    self.accounts[id] = None;
                    self.vacant.push(id as TenantId);
                    self.idle -= 1;
                }
            }
            if self.idle < IDLE_MAX / 2 {
                return;
            }
        }
    }
}

impl Account {
    fn turn_ns(&self) -> i64 {
        QUANTUM_NS * i64::from(self.weight.clamp(1, 1 << 20))
    }

    /// What is left of its turns if what runs takes what it is thought to.
    fn left_ns(&self) -> i64 {
        self.balance_ns.saturating_sub(self.running_ns)
    }

    fn balance_ns_max(&self) -> i64 {
        self.running_ns.saturating_add(self.turn_ns())
    }
}

fn clamp(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
