use std::sync::Arc;

use rusqlite::params;
use sandpiper_domain::{Again, JobError, JobId, JobQueue, JobState, Lane, Lease, TenantName};

use super::{MOST, block_on, job, look, open};
use crate::{NewBatch, NewShard, ShardOutput, SqliteJobs};

const BATCH: JobId = JobId(77);

fn acme() -> TenantName {
    "acme".parse().unwrap()
}

/// A batch of so many shards of two lines, each line four bytes long.
fn batch(jobs: &SqliteJobs, shards: u64) -> Arc<NewBatch> {
    let shard = |number| NewShard {
        job: JobId::at(1_000, 1_000 + u128::from(number)),
        first_line: 2 * number + 1,
        lines: 2,
        offset: 8 * number,
        bytes: 8,
    };
    Arc::new(NewBatch {
        id: BATCH,
        tenant: acme(),
        function: "f".parse().unwrap(),
        selector: Default::default(),
        path: "/".into(),
        input: jobs.put_work(b"the input").unwrap(),
        input_bytes: 100_000,
        of_blobs: false,
        lines: 2 * shards,
        shards: (0..shards).map(shard).collect(),
        created_ms: 1_000,
        attempts_max: 5,
        timeout_ms: 1_000,
        deadline_ms: 1_000_000,
        waiting_max: 5_000,
        bytes_max: 10 << 20,
    })
}

fn output(jobs: &SqliteJobs, text: &str, answered: u64) -> ShardOutput {
    let blob = jobs.put_work(text.as_bytes()).unwrap();
    ShardOutput { blob, bytes: text.len() as u64, answered, failed: 0 }
}

fn state(jobs: &SqliteJobs) -> Option<JobState> {
    jobs.batch(&acme(), BATCH).unwrap().map(|batch| batch.state)
}

fn held(jobs: &SqliteJobs) -> (u64, u64) {
    jobs.held_by(&acme()).unwrap()
}

fn leases(jobs: &SqliteJobs, now_ms: u64) -> Vec<Lease> {
    look(jobs, now_ms, 10).leases
}

/// Drops all that is due.
fn expire(jobs: &SqliteJobs, now_ms: u64) {
    while block_on(jobs.expire(now_ms)).unwrap() {}
}

const DAYS: u64 = 24 * 3_600_000;

#[test]
fn a_large_batch_comes_and_goes_bit_by_bit() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let large = batch(&jobs, 2_500);
    for (part, whole) in [(0, false), (1, false), (2, true)] {
        assert_eq!(state(&jobs), None, "nobody sees half a batch");
        assert_eq!(block_on(jobs.create_batch(large.clone(), part)).unwrap(), whole);
    }
    assert_eq!((state(&jobs), held(&jobs).0), (Some(JobState::Pending), 2_500));
    assert_eq!(jobs.count_waiting().unwrap(), (0, 2_500));
    let leased = leases(&jobs, 1_000);
    block_on(jobs.cancel_batch(acme(), BATCH, 2_000)).unwrap();
    assert_eq!(state(&jobs), Some(JobState::Cancelled));
    // A worker that looks what to do finds nothing.
    assert!(matches!(jobs.shard(leased[0].job.id), Err(JobError::LeaseLost)));
    let mut ended = Vec::new();
    for expected in [1_000, 1_000, 500, 0] {
        let (more, is_all) = block_on(jobs.end_cancelled(2_000)).unwrap();
        assert_eq!((more.len(), is_all), (expected, expected == 0));
        ended.extend(more);
    }
    assert!(ended.contains(&leased[0].job.id));
    assert_eq!((held(&jobs).0, leases(&jobs, 3_000).len()), (0, 0));
    expire(&jobs, 3_000 + 7 * DAYS);
    assert_eq!((state(&jobs), held(&jobs)), (None, (0, 0)));
}

#[test]
fn a_batch_that_was_never_whole_goes_with_the_next_start() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let large = batch(&jobs, 1_500);
    assert!(!block_on(jobs.create_batch(large.clone(), 0)).unwrap());
    block_on(jobs.reclaim(2_000, true)).unwrap();
    let late = block_on(jobs.create_batch(large, 1));
    assert!(matches!(late, Err(JobError::NotFound)), "{late:?}");
    while !block_on(jobs.end_cancelled(2_000)).unwrap().1 {}
    expire(&jobs, 2_000);
    assert_eq!((state(&jobs), held(&jobs)), (None, (0, 0)));
    assert!(leases(&jobs, 3_000).is_empty());
}

#[test]
fn inputs_and_outputs_count_until_the_batch_goes() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let batch = batch(&jobs, 2);
    block_on(jobs.create_batch(batch, 0)).unwrap();
    let before = held(&jobs).1;
    assert!(before >= 100_000, "{before}");
    let leases = leases(&jobs, 1_000);
    let lease = |at: usize| (leases[at].job.id, leases[at].token);
    let first = output(&jobs, &"x".repeat(50_000), 2);
    block_on(jobs.finish_shard(lease(0), first, 1, MOST, 2_000)).unwrap();
    let between = held(&jobs).1;
    assert!(between > 140_000, "{between}");
    // The second does not fit.
    let second = output(&jobs, &"y".repeat(50_000), 2);
    block_on(jobs.finish_shard(lease(1), second, 1, between + 10_000, 2_000)).unwrap();
    let ended = jobs.batch(&acme(), BATCH).unwrap().unwrap();
    assert_eq!((ended.state, ended.done_shards, ended.failed_lines), (JobState::Done, 2, 2));
    let shard = jobs.shard_from(BATCH, 3).unwrap().unwrap();
    assert!(shard.error.unwrap().starts_with("result_quota: "));
    // The owner may make room before its time.
    block_on(jobs.cancel_batch(acme(), BATCH, 3_000)).unwrap();
    expire(&jobs, 3_000);
    assert_eq!(state(&jobs), None);
    let left = held(&jobs).1;
    assert!(left < 2_000, "the request of the dead shard is left: {left}");
    assert_eq!(jobs.sweep().unwrap(), 3, "the input and both outputs");
}

#[test]
fn a_shard_that_was_given_back_goes_on_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    block_on(jobs.create_batch(batch(&jobs, 1), 0)).unwrap();
    let first = leases(&jobs, 1_000).remove(0);
    let again = Again { not_before_ms: 5_000, error: "busy".into(), counts: false };
    let lease = (first.job.id, first.token);
    let half = output(&jobs, "one", 1);
    let digest = half.blob.digest();
    block_on(jobs.pause_shard(lease, half, again, MOST, 2_000)).unwrap();
    assert_eq!(jobs.sweep().unwrap(), 0);
    assert!(leases(&jobs, 4_999).is_empty());
    let second = leases(&jobs, 5_000).remove(0);
    assert_eq!(second.attempt, 1, "it does not count");
    let before = jobs.shard(second.job.id).unwrap().before.unwrap();
    assert_eq!((before.output, before.answered), (digest, 1));
    // What was answered stays where the rest is given up.
    let end = sandpiper_domain::End::Dead { error: "no".into() };
    block_on(jobs.ack(second.job.id, second.token, end, MOST, 6_000)).unwrap();
    let shard = jobs.shard_from(BATCH, 1).unwrap().unwrap();
    assert_eq!((shard.done, shard.output, shard.answered), (true, Some(digest), 1));
    assert_eq!(jobs.batch(&acme(), BATCH).unwrap().unwrap().failed_lines, 1);
}

#[test]
fn a_shard_under_suspicion_is_cut_into_lines_that_run_apart() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    block_on(jobs.create_batch(batch(&jobs, 1), 0)).unwrap();
    for now in [1_000, 1_010] {
        assert_eq!(leases(&jobs, now).len(), 1);
        block_on(jobs.reclaim(now, true)).unwrap();
    }
    let apart = |now| block_on(jobs.lease_apart(acme(), now, now + 100)).unwrap();
    let whole = apart(2_000).remove(0);
    assert_eq!((whole.crashes, leases(&jobs, 2_000).len()), (crate::CRASHES_MAX, 0));
    let parts = vec![(JobId(1), 0, 4), (JobId(2), 4, 4)];
    block_on(jobs.split_shard((whole.job.id, whole.token), parts, 2_000)).unwrap();
    assert_eq!(jobs.batch(&acme(), BATCH).unwrap().unwrap().shards, 2);
    let mut lines = Vec::new();
    for now in [3_000, 3_001] {
        let lease = apart(now).remove(0);
        let shard = jobs.shard(lease.job.id).unwrap();
        assert_eq!((shard.part.lines, lease.attempt), (1, 1));
        lines.push((shard.part.first_line, shard.part.offset, shard.part.bytes));
        let out = (lease.job.id, lease.token);
        block_on(jobs.finish_shard(out, output(&jobs, "one", 1), 1, MOST, now)).unwrap();
    }
    lines.sort_unstable();
    assert_eq!(lines, [(1, 0, 4), (2, 4, 4)]);
    let ended = jobs.batch(&acme(), BATCH).unwrap().unwrap();
    assert_eq!((ended.state, ended.done_lines, ended.failed_lines), (JobState::Done, 2, 0));
}

#[test]
fn nothing_that_a_transaction_may_bring_back_is_swept() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let body = vec![7; 200_000];
    let new = sandpiper_domain::NewJob { body: body.into(), ..job(1) };
    block_on(jobs.enqueue(new)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let work = jobs.inner.work.clone();
    let failing = jobs.inner.submit(move |connection| {
        connection.execute("DELETE FROM payloads", params![]).unwrap();
        sender.send(work.sweep().unwrap()).unwrap();
        Err::<(), _>(JobError::NotFound)
    });
    assert!(matches!(block_on(failing), Err(JobError::NotFound)));
    assert_eq!(receiver.recv().unwrap(), 0);
    let lease = look(&jobs, 1_000, 1).leases.remove(0);
    assert_eq!(
        (lease.job.lane, jobs.work(&lease.blob.unwrap().0).unwrap().len()),
        (Lane::Job, 200_000)
    );
}
