use std::time::Duration;

use sandpiper_domain::{
    Digest, End, Enqueued, JobError, JobId, JobQueue, JobResult, JobState, NewJob, TenantName,
};

use super::{super::expiry, MOST, block_on, done, job, lease, open, state};
use crate::{JobFilter, SqliteJobs};

fn acme() -> TenantName {
    "acme".parse().unwrap()
}

fn files(home: &tempfile::TempDir) -> usize {
    let names = std::fs::read_dir(home.path().join("data/work")).unwrap();
    names
        .filter(|name| !name.as_ref().unwrap().file_name().to_string_lossy().contains(".db"))
        .count()
}

#[test]
fn what_is_refused_leaves_no_file() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let large = |number| NewJob { body: vec![number as u8; 600_000].into(), ..job(number) };
    block_on(jobs.enqueue(large(1))).unwrap();
    assert_eq!(files(&home), 1);
    assert!(matches!(block_on(jobs.enqueue(large(2))), Err(JobError::TenantFull)));
    assert_eq!(files(&home), 1, "it is not even written");
    let with_key = NewJob { idempotency: Some(("k".into(), Digest([1; 32]))), ..large(3) };
    assert!(matches!(block_on(jobs.enqueue(with_key)), Err(JobError::TenantFull)));
    // The same bytes as those of a job that is there stay.
    let same = NewJob { body: vec![1; 600_000].into(), ..job(4) };
    let same = NewJob { idempotency: Some(("l".into(), Digest([1; 32]))), ..same };
    assert!(matches!(block_on(jobs.enqueue(same)), Err(JobError::TenantFull)));
    let blob = jobs.put_work(&[9; 5_000]).unwrap();
    let owned = block_on(jobs.own_blob(acme(), blob, 5_000, 9_000, 600_000));
    assert!(matches!(owned, Err(JobError::TenantFull)));
    for _ in 0..500 {
        if files(&home) == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(files(&home), 1);
    let lease = lease(&jobs, 1_000).remove(0);
    assert_eq!(jobs.work(&lease.blob.unwrap().0).unwrap().len(), 600_000);
}

#[test]
fn a_result_beyond_the_quota_is_not_kept() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    block_on(jobs.enqueue(job(1))).unwrap();
    let lease = lease(&jobs, 1_000).remove(0);
    let body = vec![1; 10_000].into();
    let result = JobResult { status: 200, headers: Vec::new(), body, version: 1 };
    block_on(jobs.ack(lease.job.id, lease.token, End::Done(result), 10_000, 1_000)).unwrap();
    let view = jobs.get(&acme(), lease.job.id).unwrap().unwrap();
    assert_eq!(view.state, JobState::Dead);
    assert!(view.error.unwrap().starts_with("result_quota: "));
}

#[test]
fn blobs_count_by_the_space_that_their_files_take() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let own = |byte: u8| {
        let blob = jobs.put_work(&[byte]).unwrap();
        let digest = blob.digest();
        (block_on(jobs.own_blob(acme(), blob, 1, 9_000, 10_000)), digest)
    };
    let (first, digest) = own(1);
    first.unwrap();
    own(2).0.unwrap();
    own(1).0.unwrap();
    assert_eq!(jobs.held_by(&acme()).unwrap().1, 8_192, "the same one counts once");
    assert!(matches!(own(3).0, Err(JobError::TenantFull)));
    block_on(jobs.disown_blob(acme(), digest)).unwrap();
    own(3).0.unwrap();
    block_on(jobs.expire(9_000)).unwrap();
    assert_eq!(jobs.held_by(&acme()).unwrap().1, 0);
}

fn run(jobs: &SqliteJobs, number: u128, now_ms: u64) -> JobId {
    block_on(jobs.enqueue(NewJob { id: JobId::at(now_ms, number), ..job(number) })).unwrap();
    let lease = lease(jobs, now_ms).remove(0);
    block_on(jobs.ack(lease.job.id, lease.token, done(), MOST, now_ms)).unwrap();
    lease.job.id
}

#[test]
fn the_oldest_of_those_without_a_result_are_forgotten_first() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let ended: Vec<JobId> = (0..6).map(|n| run(&jobs, n, 1_000 + n as u64)).collect();
    block_on(jobs.expire(6_003)).unwrap();
    // Four have lost their results; two are not due yet and stay whatever happens.
    let trim = |most| {
        block_on(jobs.inner.submit(move |connection| expiry::trim(connection, &acme(), most)))
    };
    assert_eq!((trim(4).unwrap(), trim(1).unwrap(), trim(1).unwrap()), (0, 3, 0));
    let left: Vec<JobId> =
        ended.iter().filter(|id| jobs.get(&acme(), **id).unwrap().is_some()).copied().collect();
    assert_eq!(left, ended[3..]);
    assert_eq!(block_on(jobs.trim(None)).unwrap(), Some((acme(), false)));
    assert_eq!(block_on(jobs.trim(Some(acme()))).unwrap(), None);
}

#[test]
fn a_key_of_a_forgotten_job_may_be_used_again() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    let with_key =
        |number| NewJob { idempotency: Some(("k".into(), Digest([1; 32]))), ..job(number) };
    block_on(jobs.enqueue(with_key(1))).unwrap();
    block_on(jobs.cancel(acme(), job(1).id, 1_000)).unwrap();
    assert_eq!(block_on(jobs.enqueue(with_key(2))).unwrap(), Enqueued::Known(job(1).id));
    let trim = jobs.inner.submit(|connection| expiry::trim(connection, &acme(), 0));
    assert_eq!(block_on(trim).unwrap(), 1);
    assert_eq!(block_on(jobs.enqueue(with_key(3))).unwrap(), Enqueued::New);
}

#[test]
fn dead_letters_go_on_their_way_as_long_as_there_is_room() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    for number in 1..=3 {
        block_on(jobs.enqueue(NewJob { webhook: Some("http://a/".into()), ..job(number) }))
            .unwrap();
    }
    let kill = |now| {
        for lease in lease(&jobs, now) {
            let end = End::Dead { error: "no".into() };
            block_on(jobs.ack(lease.job.id, lease.token, end, MOST, now)).unwrap();
        }
    };
    kill(1_000);
    let filter = JobFilter { state: Some(JobState::Dead), limit: 10, ..JobFilter::default() };
    assert_eq!(jobs.list(&acme(), &filter).unwrap().len(), 3);
    let redrive = |most, now| block_on(jobs.redrive(acme(), None, None, most, now));
    assert_eq!(redrive(2, 500_000).unwrap(), 2);
    assert!(matches!(redrive(2, 500_000), Err(JobError::TenantFull)));
    assert_eq!(redrive(3, 500_000).unwrap(), 1);
    assert_eq!(super::webhooks::due(&jobs, 600_000, &Default::default()).len(), 0);
    // Each time it has as long as at first, and not longer.
    for round in 1..4 {
        kill(500_000 * round);
        assert_eq!(redrive(10, 500_000 * (round + 1)).unwrap(), 3);
    }
    assert!(lease(&jobs, 2_000_000 + 999_000).is_empty());
    assert_eq!(state(&jobs, job(1).id), JobState::Dead);
}
