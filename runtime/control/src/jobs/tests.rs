use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use proptest::prelude::*;
use sandpiper_domain::{
    Again, Digest, End, Enqueued, JobError, JobId, JobQueue, JobRequest, JobResult, JobState, Lane,
    NewJob, TenantName,
};

use super::{Leased, SqliteJobs};
use crate::DataFolder;

mod batches;
mod limits;
mod webhooks;

/// So much may be kept where that makes no difference.
const MOST: u64 = 1 << 30;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn open(home: &tempfile::TempDir) -> SqliteJobs {
    let folder = DataFolder::open(home.path().join("data")).unwrap();
    SqliteJobs::open(&folder, Box::new(|_, _| {})).unwrap()
}

fn job(number: u128) -> NewJob {
    NewJob {
        id: JobId::at(1_000, number),
        tenant: "acme".parse().unwrap(),
        function: "f".parse().unwrap(),
        selector: Default::default(),
        request: JobRequest {
            method: "GET".into(),
            path_and_query: "/".into(),
            headers: Vec::new(),
        },
        body: "body".into(),
        lane: Lane::Job,
        priority: 5,
        created_ms: 1_000,
        ready_ms: 1_000,
        deadline_ms: 1_000_000,
        attempts_max: 2,
        timeout_ms: 1_000,
        result_ttl_ms: 5_000,
        webhook: None,
        idempotency: None,
        waiting_max: 10,
        bytes_max: 1 << 20,
    }
}

fn done() -> End {
    End::Done(JobResult {
        status: 201,
        headers: vec![("a".into(), b"b".to_vec())],
        body: "yes".into(),
        version: 3,
    })
}

fn state(jobs: &SqliteJobs, id: JobId) -> JobState {
    jobs.get(&"acme".parse().unwrap(), id).unwrap().unwrap().state
}

/// One look that wants so many of each list.
fn look(jobs: &SqliteJobs, now_ms: u64, count: usize) -> Leased {
    let plan = move |lanes: &[(TenantName, Lane)]| vec![count; lanes.len()];
    block_on(jobs.lease_next(None, plan, now_ms, now_ms + 100)).unwrap()
}

fn lease(jobs: &SqliteJobs, now_ms: u64) -> Vec<sandpiper_domain::Lease> {
    look(jobs, now_ms, 10).leases
}

#[test]
fn a_job_goes_through_the_queue_once() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    assert_eq!(block_on(jobs.enqueue(job(1))).unwrap(), Enqueued::New);
    let leases = lease(&jobs, 1_000);
    assert_eq!((leases.len(), leases[0].attempt, &leases[0].job.body[..]), (1, 1, &b"body"[..]));
    assert!(lease(&jobs, 1_000).is_empty());
    let (id, token) = (leases[0].job.id, leases[0].token);
    let wrong = block_on(jobs.ack(id, token + 1, done(), MOST, 1_001));
    assert!(matches!(wrong, Err(JobError::LeaseLost)));
    block_on(jobs.ack(id, token, done(), MOST, 1_001)).unwrap();
    let result = jobs.result(id).unwrap().unwrap();
    assert_eq!((result.status, &result.body[..]), (201, &b"yes"[..]));
    assert_eq!(result.headers, [("a".to_owned(), b"b".to_vec())]);
    assert!(matches!(block_on(jobs.ack(id, token, done(), MOST, 1_002)), Err(JobError::LeaseLost)));
    block_on(jobs.expire(7_000)).unwrap();
    assert_eq!((jobs.result(id).unwrap(), state(&jobs, id)), (None, JobState::Done));
    block_on(jobs.expire(u64::MAX / 4)).unwrap();
    assert_eq!(jobs.get(&"acme".parse().unwrap(), id).unwrap(), None);
}

#[test]
fn attempts_are_counted_until_the_job_is_dead_and_redriven() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    block_on(jobs.enqueue(job(1))).unwrap();
    let back = |counts| Again { not_before_ms: 0, error: "no".into(), counts };
    let id = job(1).id;
    for (attempt, counts) in [(1, false), (1, true), (2, true)] {
        let leases = lease(&jobs, 2_000);
        assert_eq!(leases[0].attempt, attempt);
        block_on(jobs.nack(id, leases[0].token, back(counts))).unwrap();
    }
    assert_eq!(state(&jobs, id), JobState::Dead);
    assert!(lease(&jobs, 3_000).is_empty());
    let tenant = || "acme".parse().unwrap();
    assert_eq!(block_on(jobs.redrive(tenant(), None, None, 10, 4_000)).unwrap(), 1);
    assert_eq!(lease(&jobs, 4_000)[0].attempt, 1);
}

#[test]
fn an_expired_lease_and_a_crash_give_the_job_back() {
    let home = tempfile::tempdir().unwrap();
    let mut jobs = open(&home);
    block_on(jobs.enqueue(NewJob { attempts_max: 4, ..job(1) })).unwrap();
    assert_eq!(lease(&jobs, 1_000)[0].attempt, 1);
    assert!(lease(&jobs, 1_050).is_empty());
    assert_eq!(lease(&jobs, 1_100)[0].attempt, 2);
    for attempt in [3, 4] {
        drop(jobs);
        // The folder's lock goes with the process; here there is but one.
        jobs = open(&home);
        assert_eq!(block_on(jobs.reclaim(2_000, true)).unwrap(), 1);
        let ready = look(&jobs, 2_000, 10);
        let leases = match attempt {
            3 => ready.leases,
            _ => {
                assert_eq!((ready.leases.len(), ready.apart.len()), (0, 1), "a suspect runs alone");
                block_on(jobs.lease_apart("acme".parse().unwrap(), 2_000, 2_100)).unwrap()
            }
        };
        assert_eq!(leases[0].attempt, attempt);
    }
    assert_eq!(block_on(jobs.reclaim(3_000, true)).unwrap(), 1);
    assert_eq!(state(&jobs, job(1).id), JobState::Dead);
}

#[test]
fn equal_keys_are_one_job_even_in_one_commit() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let with_key = |number, print| NewJob {
        idempotency: Some(("k".into(), Digest([print; 32]))),
        ..job(number)
    };
    let both = futures::future::join(jobs.enqueue(with_key(1, 7)), jobs.enqueue(with_key(2, 7)));
    let (first, second) = block_on(both);
    assert_eq!((first.unwrap(), second.unwrap()), (Enqueued::New, Enqueued::Known(job(1).id)));
    let other = block_on(jobs.enqueue(with_key(3, 8)));
    assert!(matches!(other, Err(JobError::KeyConflict)));
    assert_eq!(jobs.count_waiting().unwrap(), (1, 0));
}

#[test]
fn priority_delay_and_the_limit_hold() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    block_on(jobs.enqueue(job(1))).unwrap();
    block_on(jobs.enqueue(NewJob { priority: 9, ..job(2) })).unwrap();
    block_on(jobs.enqueue(NewJob { ready_ms: 5_000, ..job(3) })).unwrap();
    let full = block_on(jobs.enqueue(NewJob { waiting_max: 3, ..job(4) }));
    assert!(matches!(full, Err(JobError::TenantFull)));
    assert_eq!(look(&jobs, 1_000, 0).next_ms, Some(5_000));
    let order: Vec<_> = lease(&jobs, 1_000).iter().map(|lease| lease.job.id).collect();
    assert_eq!(order, [job(2).id, job(1).id]);
    assert!(lease(&jobs, 4_999).iter().all(|lease| lease.job.id != job(3).id));
    assert_eq!(lease(&jobs, 5_000)[0].job.id, job(3).id);
}

#[test]
fn what_a_tenant_keeps_is_bounded_in_bytes_too() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let large = |number| NewJob { body: vec![7; 600_000].into(), ..job(number) };
    block_on(jobs.enqueue(large(1))).unwrap();
    assert!(matches!(block_on(jobs.enqueue(large(2))), Err(JobError::TenantFull)));
    block_on(jobs.enqueue(job(3))).unwrap();
    for lease in lease(&jobs, 1_000) {
        let body = vec![1; 400_000].into();
        let large = JobResult { status: 200, headers: Vec::new(), body, version: 1 };
        let end = End::Done(large);
        block_on(jobs.ack(lease.job.id, lease.token, end, MOST, 1_000)).unwrap();
    }
    // The requests are gone, the results are there.
    assert!(matches!(block_on(jobs.enqueue(large(4))), Err(JobError::TenantFull)));
    block_on(jobs.expire(7_000)).unwrap();
    block_on(jobs.enqueue(large(5))).unwrap();
}

#[test]
fn large_bodies_are_blobs_that_go_with_their_job() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let body = vec![7; 200_000];
    block_on(jobs.enqueue(NewJob { body: body.clone().into(), ..job(1) })).unwrap();
    assert_eq!(jobs.sweep().unwrap(), 0);
    let leases = lease(&jobs, 1_000);
    // Whoever runs it reads it.
    let (digest, size) = leases[0].blob.unwrap();
    assert!(leases[0].job.body.is_empty() && size >= 200_000);
    assert_eq!(jobs.work(&digest).unwrap(), body);
    block_on(jobs.ack(leases[0].job.id, leases[0].token, done(), MOST, 1_000)).unwrap();
    assert_eq!(jobs.sweep().unwrap(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever happens in whatever order: no job is lost, and none is leased more often than its attempts.
    #[test]
    fn no_job_is_lost_or_run_too_often(steps in proptest::collection::vec((0..7u8, any::<u8>()), 1..80)) {
        let home = tempfile::tempdir().unwrap();
        let jobs = open(&home);
        let tenant = || "acme".parse::<sandpiper_domain::TenantName>().unwrap();
        let (mut now, mut known, mut leased) = (1_000, Vec::new(), Vec::new());
        let mut runs = HashMap::<JobId, u32>::new();
        for (step, pick) in steps {
            now += u64::from(pick);
            let some = |list: &mut Vec<(JobId, u64)>| {
                (!list.is_empty()).then(|| list.swap_remove(usize::from(pick) % list.len()))
            };
            match step {
                0 | 1 => {
                    let new = job(known.len() as u128);
                    if block_on(jobs.enqueue(new.clone())).is_ok() {
                        known.push(new.id);
                    }
                }
                2 => {
                    let mut found = lease(&jobs, now);
                    found.extend(block_on(jobs.lease_apart(tenant(), now, now + 100)).unwrap());
                    for lease in found {
                        *runs.entry(lease.job.id).or_default() += 1;
                        prop_assert_eq!(lease.attempt, runs[&lease.job.id]);
                        leased.push((lease.job.id, lease.token));
                    }
                }
                3 => drop(some(&mut leased).map(|(id, token)| block_on(jobs.ack(id, token, done(), MOST, now)))),
                4 => drop(some(&mut leased).map(|(id, token)| {
                    let again = Again { not_before_ms: now + 10, error: "x".into(), counts: true };
                    block_on(jobs.nack(id, token, again))
                })),
                5 => {
                    block_on(jobs.reclaim(now, true)).unwrap();
                    leased.clear();
                }
                _ => drop(known.first().map(|id| block_on(jobs.cancel(tenant(), *id, now)))),
            }
        }
        let waiting = known.iter().filter(|id| state(&jobs, **id) == JobState::Pending).count();
        prop_assert_eq!(jobs.count_waiting().unwrap(), (waiting as u64, 0));
        // Whoever had a lease is gone, and somebody works until nothing is left: each job comes to its end.
        block_on(jobs.reclaim(now, false)).unwrap();
        for _ in 0..=2 * known.len() {
            now += 1_000;
            let mut found = lease(&jobs, now);
            found.extend(block_on(jobs.lease_apart(tenant(), now, now + 100)).unwrap());
            for lease in found {
                *runs.entry(lease.job.id).or_default() += 1;
                block_on(jobs.ack(lease.job.id, lease.token, done(), MOST, now)).unwrap();
            }
        }
        for id in &known {
            let state = state(&jobs, *id);
            let has_ended =
                matches!(state, JobState::Done | JobState::Dead | JobState::Cancelled);
            prop_assert!(has_ended, "{id:?} is {state:?}");
        }
        prop_assert_eq!(jobs.count_waiting().unwrap(), (0, 0));
        prop_assert!(runs.values().all(|runs| *runs <= 2));
    }
}
