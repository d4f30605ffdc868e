//! The decisions of the scheduler, without threads: a simulated core runs what it is told to.

mod hostile;

use std::time::{Duration, Instant};

use proptest::{collection::vec, prelude::*};
use sandpiper_domain::{Band, Share, TenantName};

use super::queue::{Ask, Charge, LOW_BAND_WAIT, Limits, Picked, Queue, Refusal, Ticket, Waiting};

const LIMITS: Limits = Limits { node: 1000, model: 1000, tenant: 1000, threads: 1 };

/// A call: whose, which, and what it is thought to cost for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    tenant: usize,
    number: usize,
    ns: u64,
    sizes: &'static [u32],
}

impl Waiting for Call {
    fn cost_ns(&self, rows: usize) -> u64 {
        self.ns.saturating_mul(rows as u64)
    }

    fn sizes(&self) -> &[u32] {
        self.sizes
    }
}

fn name(tenant: usize) -> TenantName {
    format!("t{tenant}").parse().unwrap()
}

struct House {
    queue: Queue<Call>,
    now: Instant,
    number: usize,
}

impl House {
    fn new(limits: Limits) -> Self {
        House { queue: Queue::new(limits), now: Instant::now(), number: 0 }
    }

    fn push_with(
        &mut self,
        tenant: usize,
        share: Share,
        call: Call,
        change: impl FnOnce(&mut Ask<'_>),
    ) -> Result<Ticket, Refusal> {
        let name = name(tenant);
        let mut ask = ask(&name, share);
        change(&mut ask);
        let call = Call { tenant, number: self.number, ..call };
        self.number += 1;
        self.queue.push(&ask, call, Duration::ZERO, self.now).map_err(|(_, refusal)| refusal)
    }

    fn push(&mut self, tenant: usize, share: Share, ns: u64) -> Result<Ticket, Refusal> {
        self.push_with(tenant, share, call(ns), |_| {})
    }

    /// Runs what is next; it takes `ns` for each call.
    fn run(&mut self, ns: impl Fn(&Call) -> u64) -> Option<Vec<Call>> {
        let Picked { jobs, bill, .. } = self.queue.take(self.now)?;
        let costs: Vec<u64> = jobs.iter().map(ns).collect();
        self.now += Duration::from_nanos(costs.iter().sum());
        self.queue.settle(&bill, &costs);
        Some(jobs)
    }
}

fn ask(tenant: &TenantName, share: Share) -> Ask<'_> {
    Ask {
        tenant,
        share,
        model: 1,
        rows: 1,
        group: None,
        with_others: true,
        deadline: None,
        delay: Duration::ZERO,
        floor_ns: 0,
    }
}

fn call(ns: u64) -> Call {
    Call { tenant: 0, number: 0, ns, sizes: &[] }
}

fn normal(weight: u32) -> Share {
    Share { weight, band: Band::Normal }
}

fn low(weight: u32) -> Share {
    Share { weight, band: Band::Low }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]

    /// Tenants that always have work get CPU time by weight, whatever their calls cost and whatever was thought of it.
    #[test]
    fn shares_follow_the_weights(
        tenants in vec((1u32..=16, 5_000u64..3_000_000, 0u64..3_000_000), 2..6),
    ) {
        let mut house = House::new(LIMITS);
        for (tenant, &(weight, _, thought)) in tenants.iter().enumerate() {
            for _ in 0..3 {
                house.push(tenant, normal(weight), thought).unwrap();
            }
        }
        let mut used = vec![0u64; tenants.len()];
        let longest = tenants.iter().map(|(_, ns, _)| *ns).max().unwrap();
        let weights: u64 = tenants.iter().map(|(weight, ..)| u64::from(*weight)).sum();
        // Long enough that one run more or less of anybody is a small part of the smallest share.
        let whole = 100 * longest.max(100_000 * 16) * weights;
        while used.iter().sum::<u64>() < whole {
            let ran = house.run(|call| tenants[call.tenant].1).unwrap();
            let tenant = ran[0].tenant;
            used[tenant] += tenants[tenant].1;
            house.push(tenant, normal(tenants[tenant].0), tenants[tenant].2).unwrap();
        }
        let total = used.iter().sum::<u64>() as f64;
        for (used, (weight, ..)) in used.iter().zip(&tenants) {
            let (share, due) = (*used as f64 / total, f64::from(*weight) / weights as f64);
            prop_assert!((share / due - 1.0).abs() < 0.03, "{share} instead of {due}");
        }
    }

    /// Every call runs once or is taken back, no thread idles while calls wait, and nothing is left behind.
    #[test]
    fn nothing_is_lost_and_nothing_idles(
        steps in vec((0usize..5, 0u8..4, 1u32..5, 0u64..500_000, 0u64..3), 1..400),
    ) {
        let mut house = House::new(LIMITS);
        let (mut waiting, mut tickets) = (0usize, Vec::new());
        for (tenant, what, weight, ns, group) in steps {
            let share = if weight == 1 { low(1) } else { normal(weight) };
            match what {
                0 | 1 => {
                    let ask = Call { sizes: &[2, 4, 8], ..call(ns) };
                    let ticket = house.push_with(tenant, share, ask, |ask| {
                        ask.group = group.checked_sub(1);
                        ask.with_others = weight != 3;
                        ask.rows = 1 + (ns % 3) as usize;
                    });
                    tickets.push(ticket.unwrap());
                    waiting += 1;
                }
                2 => {
                    let taken = tickets.pop().and_then(|ticket| house.queue.cancel(ticket));
                    waiting -= usize::from(taken.is_some());
                }
                _ => match house.run(|call| call.ns) {
                    Some(ran) => waiting -= ran.len(),
                    None => prop_assert_eq!(waiting, 0),
                },
            }
            prop_assert_eq!(house.queue.len(), waiting);
        }
        while let Some(ran) = house.run(|call| call.ns) {
            waiting -= ran.len();
        }
        prop_assert_eq!((waiting, house.queue.len()), (0, 0));
    }
}

#[test]
fn idling_earns_nothing_and_debts_stay() {
    let mut house = House::new(LIMITS);
    let ns = 200_000;
    // One works for long while the other has nothing to do.
    for _ in 0..1000 {
        house.push(0, normal(1), ns).unwrap();
        house.run(|_| ns).unwrap();
    }
    for _ in 0..100 {
        house.push(0, normal(1), ns).unwrap();
        house.push(1, normal(1), ns).unwrap();
    }
    let order: Vec<usize> = (0..100).map(|_| house.run(|_| ns).unwrap()[0].tenant).collect();
    let of_first = order.iter().filter(|tenant| **tenant == 0).count();
    assert!((48..=52).contains(&of_first), "{order:?}");
    // Calls that come one at a time do not shake off what the last one cost.
    let mut house = House::new(LIMITS);
    let mut used = [0u64; 2];
    let mut is_away = false;
    house.push(0, normal(1), 0).unwrap();
    house.push(1, normal(1), 0).unwrap();
    for _ in 0..2000 {
        let cost = |call: &Call| [2_000_000, 100_000][call.tenant];
        let ran = house.run(cost).unwrap()[0];
        used[ran.tenant] += cost(&ran);
        if ran.tenant == 1 {
            house.push(1, normal(1), 0).unwrap();
        }
        // The first comes back when the second has had a call.
        if is_away {
            house.push(0, normal(1), 0).unwrap();
        }
        is_away = ran.tenant == 0;
    }
    let ratio = used[0] as f64 / used[1] as f64;
    assert!((0.9..=1.1).contains(&ratio), "{used:?}");
}

#[test]
fn the_low_band_is_served_when_it_has_waited() {
    let mut house = House::new(LIMITS);
    house.push(1, low(1), 0).unwrap();
    let mut served_after = None;
    for _ in 0..1000 {
        house.push(0, normal(4), 1_000_000).unwrap();
        let ran = house.run(|_| 1_000_000).unwrap()[0];
        if ran.tenant == 1 {
            served_after = Some(house.now);
            break;
        }
    }
    assert!(served_after.is_some());
    // 200 runs of a millisecond, and one turn of the other.
    assert!((200..=206).contains(&house.number), "{}", house.number);
    assert!(LOW_BAND_WAIT == Duration::from_millis(200));
    // Work conserving: alone it need not wait.
    let mut house = House::new(LIMITS);
    house.push(1, low(1), 0).unwrap();
    assert!(house.run(|_| 1).is_some());
}

#[test]
fn a_batch_takes_tenants_in_turn() {
    let mut house = House::new(LIMITS);
    let ask = Call { sizes: &[2, 4, 8], ..call(1000) };
    let mut push = |tenant| {
        house.push_with(tenant, normal(1), ask, |ask| ask.group = Some(0)).unwrap();
    };
    (0..20).for_each(|_| push(0));
    (0..3).for_each(|_| push(1));
    (0..2).for_each(|_| push(2));
    let batch: Vec<usize> = house.run(|_| 1000).unwrap().iter().map(|call| call.tenant).collect();
    assert_eq!(batch, [0, 1, 2, 0, 1, 2, 0, 1]);
    let calls = house.run(|_| 1000).unwrap();
    assert_eq!(calls.len(), 8);
    // Those of one tenant stay in order.
    let numbers: Vec<usize> = calls.iter().map(|call| call.number).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[test]
fn every_limit_refuses_with_its_own_word() {
    let limits = Limits { node: 6, model: 4, tenant: 3, threads: 1 };
    let mut house = House::new(limits);
    for _ in 0..3 {
        house.push(0, normal(1), 0).unwrap();
    }
    assert_eq!(house.push(0, normal(1), 0), Err(Refusal::Tenant));
    house.push(1, normal(1), 0).unwrap();
    assert_eq!(house.push(1, normal(1), 0), Err(Refusal::Full));
    let mut other = |tenant| house.push_with(tenant, normal(1), call(0), |ask| ask.model = 2);
    other(1).unwrap();
    other(2).unwrap();
    assert_eq!(other(2), Err(Refusal::Full));
}

#[test]
fn what_cannot_be_in_time_is_refused() {
    const MS: u64 = 1_000_000;
    let mut house = House::new(LIMITS);
    for _ in 0..100 {
        house.push(0, normal(1), MS).unwrap();
    }
    let now = house.now;
    let mut by = |tenant, share, ms: u64| {
        house.push_with(tenant, share, call(MS), |ask| {
            ask.deadline = Some(now + Duration::from_millis(ms));
            ask.floor_ns = MS;
        })
    };
    let Err(Refusal::Late { retry_after }) = by(0, normal(1), 90) else { panic!() };
    assert_eq!(retry_after, Duration::from_millis(100));
    // Another tenant stands behind as much of that as the weights say, a low one behind all of it.
    by(1, normal(1), 1000).unwrap();
    assert!(by(1, normal(1), 3).is_err());
    assert!(by(1, normal(1), 4).is_ok());
    by(2, low(1), 1000).unwrap();
    assert!(by(2, low(1), 90).is_err());
    assert!(by(2, low(1), 200).is_ok());
    // Who has nothing that waits or runs is refused only where the call alone would be late.
    assert!(by(3, normal(1), 0).is_err());
    assert!(by(3, normal(1), 1).is_ok());
    let mut expired = Vec::new();
    house.queue.expire(now + Duration::from_millis(4), &mut expired);
    assert_eq!(expired.iter().map(|call| call.tenant).collect::<Vec<_>>(), [3, 1]);
}

/// A call that asks to run where it was made.
fn claim(house: &mut House, tenant: usize, share: Share) -> Option<Charge> {
    let name = name(tenant);
    house.queue.begin_here(&Ask { model: 2, ..ask(&name, share) }, 10_000)
}

#[test]
fn a_brief_call_runs_at_once_where_its_tenant_is_due() {
    let mut house = House::new(LIMITS);
    // Alone, a tenant pays nothing for it.
    for _ in 0..1000 {
        let charge = claim(&mut house, 0, normal(1)).unwrap();
        house.queue.settle(&[charge], &[10_000_000]);
    }
    house.push(1, normal(1), 1_000_000).unwrap();
    // Others wait: it may take what its next turn will give, and no more before others had theirs.
    for _ in 0..2 {
        let charge = claim(&mut house, 0, normal(1)).unwrap();
        house.queue.settle(&[charge], &[50_000]);
    }
    assert!(claim(&mut house, 0, normal(1)).is_none());
    house.push(1, normal(1), 1_000_000).unwrap();
    house.push(1, normal(1), 1_000_000).unwrap();
    for _ in 0..2 {
        house.run(|call| call.ns).unwrap();
    }
    let charge = claim(&mut house, 0, normal(1)).unwrap();
    house.queue.settle(&[charge], &[1_000_000]);
    assert!(claim(&mut house, 0, normal(1)).is_none());
    assert!(claim(&mut house, 2, low(1)).is_none());
    // Nobody overtakes his own call.
    assert!(claim(&mut house, 1, normal(1)).is_none());
    // What never ran is paid back.
    let charge = claim(&mut house, 3, normal(1)).unwrap();
    house.queue.settle(&[charge], &[0]);
    assert!(claim(&mut house, 3, normal(1)).is_some());
}
