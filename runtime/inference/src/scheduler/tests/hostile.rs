//! Callers who send what makes estimates wrong, and what they cannot bring about by it.

use super::*;
use crate::scheduler::{Sleepers, queue::Charge};

const MS: u64 = 1_000_000;

/// A run on one of several threads.
struct Run {
    over: Instant,
    bill: Vec<Charge>,
    costs: Vec<u64>,
}

/// Two threads that run what the queue gives them; each call is followed by another one like it. Says what each of two
/// tenants used within `span`.
fn on_two_threads(house: &mut House, span: Duration, ns: impl Fn(&Call) -> u64) -> [u64; 2] {
    let (mut used, end) = ([0; 2], house.now + span);
    let mut threads: [Option<Run>; 2] = [None, None];
    while house.now < end {
        for thread in &mut threads {
            if thread.as_ref().is_some_and(|run| run.over <= house.now) {
                let Run { bill, costs, .. } = thread.take().unwrap();
                house.queue.settle(&bill, &costs);
            }
            if thread.is_some() {
                continue;
            }
            let Some(Picked { jobs, bill, .. }) = house.queue.take(house.now) else { continue };
            let costs: Vec<u64> = jobs.iter().map(&ns).collect();
            for (job, ns) in jobs.iter().zip(&costs) {
                used[job.tenant] += ns;
                house.push(job.tenant, normal(1), job.ns).unwrap();
            }
            let over = house.now + Duration::from_nanos(costs.iter().sum());
            *thread = Some(Run { over, bill, costs });
        }
        let next = threads.iter().flatten().map(|run| run.over).min();
        house.now = next.unwrap_or(end);
    }
    for Run { bill, costs, .. } in threads.into_iter().flatten() {
        house.queue.settle(&bill, &costs);
    }
    used
}

fn thought() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), Just(1 << 62), 0..10_000 * MS, any::<u64>()]
}

fn band() -> impl Strategy<Value = Share> {
    (1u32..5, any::<bool>())
        .prop_map(|(weight, is_low)| if is_low { low(weight) } else { normal(weight) })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..Default::default() })]

    /// Whatever its calls are thought to cost, and however long it was alone, a tenant gets no more than its share
    /// when another one comes.
    #[test]
    fn a_wrong_estimate_earns_nothing(
        thoughts in vec(thought(), 1..6),
        real in 10_000u64..3 * MS,
        other in 10_000u64..3 * MS,
        alone_ms in 0u64..50,
    ) {
        let mut house = House::new(LIMITS);
        for thought in &thoughts {
            house.push(0, normal(1), *thought).unwrap();
        }
        let cost = |call: &Call| [real, other][call.tenant];
        on_two_threads(&mut house, Duration::from_millis(alone_ms), cost);
        for _ in 0..4 {
            house.push(1, normal(1), other).unwrap();
        }
        let used = on_two_threads(&mut house, Duration::from_secs(1), cost);
        let share = used[1] as f64 / (used[0] + used[1]) as f64;
        prop_assert!(share > 0.48, "{share}: {used:?}");
    }

    /// Whatever waits and runs of others, a tenant with nothing that waits or runs is let in while there is a place,
    /// nobody is sent away for long, and no run is expected to outlast the deadlines of its calls.
    #[test]
    fn estimates_of_others_keep_nobody_out(
        calls in vec((0usize..4, thought(), band(), 1u64..60_000, any::<bool>(), any::<u32>()), 1..60),
        newcomer in band(),
        left_ms in 2u64..60_000,
    ) {
        let mut house = House::new(LIMITS);
        let mut free_in = Duration::ZERO;
        for (tenant, ns, share, ms, runs, rows) in calls {
            let (now, floor_ns) = (house.now, MS);
            let name = name(tenant);
            let by = now + Duration::from_millis(ms);
            let ask = Ask { deadline: Some(by), floor_ns, rows: rows as usize, ..ask(&name, share) };
            let call = Call { tenant, ..call(ns) };
            if let Err((_, Refusal::Late { retry_after })) = house.queue.push(&ask, call, free_in, now) {
                prop_assert!(retry_after <= Duration::from_secs(60));
            }
            if runs && let Some(picked) = house.queue.take(now) {
                prop_assert!(picked.estimate_ns <= 60_000 * MS);
                free_in = free_in.max(Duration::from_nanos(picked.estimate_ns));
            }
        }
        let (now, name) = (house.now, name(9));
        let by = now + Duration::from_millis(left_ms);
        let ask = Ask { deadline: Some(by), floor_ns: MS, ..ask(&name, newcomer) };
        let pushed = house.queue.push(&ask, Call { tenant: 9, ..call(MS) }, free_in, now);
        prop_assert!(pushed.is_ok());
    }

    /// Any number of rows is taken, and what is no batch runs alone.
    #[test]
    fn any_number_of_rows_is_counted(
        rows in vec(prop_oneof![0usize..9, Just(usize::MAX), Just(usize::MAX / 2), any::<usize>()], 1..30),
        delay_us in 0u64..2,
    ) {
        let mut house = House::new(LIMITS);
        for rows in &rows {
            let call = Call { sizes: &[2, 4, 8], ..call(u64::MAX) };
            let pushed = house.push_with(0, normal(1), call, |ask| {
                (ask.rows, ask.group) = (*rows, Some(0));
                ask.delay = Duration::from_micros(delay_us);
            });
            prop_assert!(pushed.is_ok());
        }
        house.now += Duration::from_millis(1);
        let mut ran = 0;
        while let Some(calls) = house.run(|_| 1000) {
            let sum = calls.iter().fold(0usize, |sum, call| sum.saturating_add(rows[call.number]));
            prop_assert!(calls.len() == 1 || [2, 4, 8].contains(&sum));
            ran += calls.len();
        }
        prop_assert_eq!(ran, rows.len());
    }
}

#[test]
fn a_huge_estimate_leaves_the_backlog_of_others_as_it_is() {
    let mut house = House::new(LIMITS);
    for _ in 0..100 {
        house.push(0, normal(1), MS).unwrap();
    }
    let huge: Vec<Ticket> = (0..3).map(|_| house.push(1, normal(1), u64::MAX).unwrap()).collect();
    for ticket in huge {
        assert!(house.queue.cancel(ticket).is_some());
    }
    let by = house.now + Duration::from_millis(90);
    let late = house.push_with(0, normal(1), call(MS), |ask| ask.deadline = Some(by));
    assert_eq!(late, Err(Refusal::Late { retry_after: Duration::from_millis(100) }));
}

#[test]
fn the_band_is_the_calls_own() {
    let mut house = House::new(LIMITS);
    // The order in which a tenant's calls of both bands come changes nothing.
    for calls in [[low(1), normal(1)], [normal(1), low(1)]] {
        for share in calls {
            house.push(0, share, if share.band == Band::Low { 1 } else { 2 }).unwrap();
        }
        for _ in 0..3 {
            house.push(1, normal(1), 3).unwrap();
        }
        assert_eq!((house.queue.len_of(Band::Low), house.queue.len_of(Band::Normal)), (1, 4));
        let order: Vec<u64> = (0..5).map(|_| house.run(|_| MS).unwrap()[0].ns).collect();
        assert_eq!(order[4], 1, "{order:?}");
        assert!(order[..2].contains(&2), "{order:?}");
    }
    // A low call that has waited long enough goes before the tenant's own normal ones.
    house.push(0, low(1), 1).unwrap();
    house.now += LOW_BAND_WAIT;
    house.push(0, normal(1), 2).unwrap();
    assert_eq!(house.run(|_| MS).unwrap()[0].ns, 1);
}

#[test]
fn a_model_may_show_that_it_is_faster_than_was_thought() {
    let mut house = House::new(LIMITS);
    let by = house.now + Duration::from_millis(5);
    let mut push = |model| {
        house.push_with(0, normal(1), call(1), |ask| {
            (ask.model, ask.floor_ns, ask.deadline) = (model, 10 * MS, Some(by));
        })
    };
    assert!(push(1).is_ok());
    assert!(matches!(push(1), Err(Refusal::Late { .. })));
    assert!(push(2).is_ok());
}

#[test]
fn a_full_queue_has_a_place_for_the_next_tenant() {
    let limits = Limits { node: 100, model: 1000, tenant: 50, threads: 1 };
    let mut house = House::new(limits);
    for tenants in 1..6 {
        for tenant in 0..tenants {
            while house.push(tenant, normal(1), 0).is_ok() {}
        }
        assert!(house.queue.len() < 100, "{tenants} tenants fill the queue");
    }
    // One tenant by itself has half.
    let mut house = House::new(limits);
    let pushed = (0..100).filter(|_| house.push(0, normal(1), 0).is_ok()).count();
    assert_eq!(pushed, 50);
}

#[test]
fn a_thread_is_woken_for_what_waits_and_for_nothing_else() {
    let mut sleepers = Sleepers::default();
    assert!(!sleepers.wake_for(3), "nobody sleeps");
    (0..3).for_each(|_| sleepers.sleep());
    assert!(sleepers.wake_for(1));
    assert!(!sleepers.wake_for(1), "one is on its way to it");
    assert!(sleepers.wake_for(2));
    // The first one is awake and takes a call; one call more waits, for which the second is on its way.
    sleepers.awake();
    assert!(!sleepers.wake_for(1));
    sleepers.awake();
    // It took one and leaves another: the third is needed.
    assert!(sleepers.wake_for(1));
    assert!(!sleepers.wake_for(9), "nobody sleeps any more");
}
