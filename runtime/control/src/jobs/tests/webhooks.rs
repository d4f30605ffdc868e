use std::collections::HashSet;

use sandpiper_domain::{JobId, JobQueue, NewJob, TenantName};

use super::{MOST, block_on, done, job, look, open};
use crate::{Calls, SqliteJobs};

/// As many as two of each tenant.
#[derive(Default)]
pub(super) struct Made(HashSet<(TenantName, JobId)>);

impl Calls for Made {
    fn room(&self, tenant: &TenantName) -> usize {
        2_usize.saturating_sub(self.0.iter().filter(|(other, _)| other == tenant).count())
    }
    fn has(&self, job: JobId) -> bool {
        self.0.iter().any(|(_, other)| *other == job)
    }
}

pub(super) fn due(jobs: &SqliteJobs, now_ms: u64, made: &Made) -> Vec<String> {
    let due = jobs.due_webhooks(now_ms, None, made, 64).unwrap();
    due.iter().map(|call| call.tenant.to_string()).collect()
}

#[test]
fn each_tenant_has_its_turn() {
    let home = tempfile::tempdir().unwrap();
    let jobs = open(&home);
    for (number, tenant) in ["a", "a", "a", "a", "b", "c"].into_iter().enumerate() {
        let tenant = tenant.parse().unwrap();
        let webhook = Some("http://example.com/".to_owned());
        let new = NewJob { tenant, webhook, ..job(number as u128) };
        block_on(jobs.enqueue(new)).unwrap();
    }
    for lease in look(&jobs, 1_000, 10).leases {
        block_on(jobs.ack(lease.job.id, lease.token, done(), MOST, 1_000)).unwrap();
    }
    let mut made = Made::default();
    assert_eq!(due(&jobs, 999, &made), [""; 0]);
    assert_eq!(due(&jobs, 1_000, &made), ["a", "a", "b", "c"]);
    // Behind `a`, and no more than there are callers: `a` comes last.
    let few = |count| {
        let after = "a".parse().unwrap();
        let due = jobs.due_webhooks(1_000, Some(&after), &made, count).unwrap();
        due.iter().map(|call| call.tenant.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((few(1), few(3)), (vec!["b".into()], vec!["b".into(), "c".into(), "a".into()]));
    // What is being called is not called again, and holds its tenant's place.
    let first = jobs.due_webhooks(1_000, None, &made, 1).unwrap().remove(0);
    made.0.insert((first.tenant.clone(), first.id));
    assert_eq!(due(&jobs, 1_000, &made), ["a", "b", "c"]);
    block_on(jobs.webhook_called(&first, false, Some(2_000))).unwrap();
    made.0.clear();
    assert_eq!(due(&jobs, 1_000, &made), ["a", "a", "b", "c"]);
    let later = jobs.due_webhooks(2_000, None, &made, 64).unwrap();
    assert!(later.iter().all(|call| call.id != first.id || call.calls == 1));
}
