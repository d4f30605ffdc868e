//! A bounded queue served by a fixed set of threads, with turns among those who wait.
//!
//! The next job is one of the owner with the fewest jobs running, and among those of the one whose jobs have taken the
//! least time; an owner that comes anew starts level with whoever is served then, so that nobody saves turns up (the
//! virtual time of fair queueing). Of one owner the jobs go first in, first out, and each may take up a part of the
//! queue only. Where there are several threads no owner has all of them, so that one whose jobs take long keeps nobody
//! else waiting. A job that cannot be done yet goes back to where it was, and its line waits a little.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use sandpiper_domain::TenantName;

/// Optimising and running deep graphs recurses. The memory is reserved, not used, until a model needs it.
const STACK_BYTES: usize = 64 << 20;
/// When a job that could not be done is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// A job that waits on somebody's account.
pub(crate) trait Owned {
    /// `None` for what counts for nobody; all such jobs share the turns of one owner.
    fn owner(&self) -> Option<&TenantName>;
}

/// The threads end when the pool is dropped; jobs that still wait are dropped with it.
pub(crate) struct Pool<J: Owned + Send + 'static> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    ready: Condvar,
    capacity: usize,
    /// The most jobs of one owner that may wait.
    share: usize,
}

type Owner = Option<TenantName>;

struct Queue<J> {
    lines: HashMap<Owner, Line<J>>,
    threads: usize,
    /// Jobs in all lines.
    waiting: usize,
    /// What the owner that was served last had taken by then.
    level: Duration,
    /// Numbers the jobs.
    arrivals: u64,
    /// Threads that wait for a job. Waking is a system call, so nobody is woken in vain.
    idle: usize,
    closed: bool,
}

/// A job that is next, and its number.
struct Turn<J> {
    owner: Owner,
    arrival: u64,
    job: J,
}

/// The jobs of one owner.
struct Line<J> {
    jobs: VecDeque<(u64, J)>,
    running: usize,
    /// Its first job could not be done, and is not tried again before.
    held_until: Option<Instant>,
    /// The time that its jobs have taken, at least the level when it came.
    taken: Duration,
}

impl<J: Owned + Send + 'static> Pool<J> {
    /// Starts `threads` threads called `name` that hand every job to `handler`, which gives back what it cannot do yet.
    /// `capacity` jobs may wait, `share` of one owner; a share is at least one.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        capacity: usize,
        share: usize,
        handler: impl Fn(J) -> Option<J> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let threads = threads.max(1);
        let queue = Mutex::new(Queue {
            lines: HashMap::new(),
            threads,
            waiting: 0,
            level: Duration::ZERO,
            arrivals: 0,
            idle: 0,
            closed: false,
        });
        let (ready, share) = (Condvar::new(), share.max(1));
        let shared = Arc::new(Shared { queue, ready, capacity, share });
        let pool = Pool { shared };
        let handler = Arc::new(handler);
        for number in 0..threads {
            let (shared, handler) = (pool.shared.clone(), handler.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || shared.serve(&*handler))?;
        }
        Ok(pool)
    }

    /// Queues a job, or gives it back when the queue is full or has as many of its owner as it may.
    pub(crate) fn push(&self, job: J) -> Result<(), J> {
        let mut queue = self.shared.lock();
        if queue.waiting >= self.shared.capacity || queue.closed {
            return Err(job);
        }
        let owner = job.owner().cloned();
        let of_owner = queue.lines.get(&owner).map_or(0, |line| line.jobs.len());
        if owner.is_some() && of_owner >= self.shared.share {
            return Err(job);
        }
        queue.add(owner, job);
        let is_awaited = queue.idle > 0;
        drop(queue);
        if is_awaited {
            self.shared.ready.notify_one();
        }
        Ok(())
    }
}

impl<J: Owned + Send + 'static> Drop for Pool<J> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.waiting = 0;
        let lines = std::mem::take(&mut queue.lines);
        drop(queue);
        self.shared.ready.notify_all();
        drop(lines);
    }
}

impl<J> Queue<J> {
    fn add(&mut self, owner: Owner, job: J) {
        let level = self.level;
        let new = || Line { jobs: VecDeque::new(), running: 0, held_until: None, taken: level };
        let line = self.lines.entry(owner).or_insert_with(new);
        if line.jobs.is_empty() && line.running == 0 {
            line.taken = line.taken.max(level);
        }
        line.jobs.push_back((self.arrivals, job));
        self.arrivals += 1;
        self.waiting += 1;
    }

    /// The job whose turn it is.
    fn next(&mut self) -> Option<Turn<J>> {
        let running_max = (self.threads - 1).max(1);
        let waiting = self.lines.iter().filter_map(|(owner, line)| {
            let (arrival, _) = line.jobs.front()?;
            let has_all = owner.is_some() && line.running >= running_max;
            let is_held = line.held_until.is_some_and(|until| Instant::now() < until);
            let rank = (line.running, line.taken, *arrival);
            (!has_all && !is_held).then_some((rank, owner))
        });
        let owner = waiting.min_by_key(|(rank, _)| *rank)?.1.clone();
        let line = self.lines.get_mut(&owner)?;
        let (arrival, job) = line.jobs.pop_front()?;
        line.running += 1;
        line.held_until = None;
        self.level = self.level.max(line.taken);
        self.waiting -= 1;
        Some(Turn { owner, arrival, job })
    }

    /// A job that could not be done is the first of its line again.
    fn put_back(&mut self, owner: &Owner, arrival: u64, job: J) {
        let line = self.lines.get_mut(owner).filter(|_| !self.closed);
        if let Some(line) = line {
            line.jobs.push_front((arrival, job));
            line.held_until = Some(Instant::now() + RETRY);
            self.waiting += 1;
        }
    }

    fn holds_back(&self) -> bool {
        self.lines.values().any(|line| line.held_until.is_some())
    }

    /// A job of this owner has ended.
    fn settle(&mut self, owner: &Owner, took: Duration) {
        if let Some(line) = self.lines.get_mut(owner) {
            line.running = line.running.saturating_sub(1);
            line.taken = line.taken.saturating_add(took);
        }
        // Who is no further than others and has nothing here would start again at the same level.
        let level = self.level;
        self.lines
            .retain(|_, line| !line.jobs.is_empty() || line.running > 0 || line.taken > level);
    }
}

impl<J: Owned> Shared<J> {
    /// A panic never happens while the queue is half changed, so that a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Turn<J>> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(next) = queue.next() {
                return Some(next);
            }
            queue.idle += 1;
            queue = match queue.holds_back() {
                false => self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner),
                true => {
                    let waited = self.ready.wait_timeout(queue, RETRY);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            queue.idle -= 1;
        }
    }

    /// The handler contains what it expects to panic; the catch here keeps the thread alive through the rest.
    fn serve(&self, handler: &impl Fn(J) -> Option<J>) {
        while let Some(Turn { owner, arrival, job }) = self.take() {
            let begun = Instant::now();
            let refused = catch_unwind(AssertUnwindSafe(|| handler(job))).unwrap_or_else(|_| {
                tracing::error!("a job of the inference plane panicked; its thread goes on");
                None
            });
            let mut queue = self.lock();
            if let Some(job) = refused {
                queue.put_back(&owner, arrival, job);
            }
            queue.settle(&owner, begun.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    impl Owned for u32 {
        fn owner(&self) -> Option<&TenantName> {
            None
        }
    }

    impl Owned for (TenantName, u32) {
        fn owner(&self) -> Option<&TenantName> {
            Some(&self.0)
        }
    }

    /// A pool of one thread whose handler waits on a gate before it reports the job.
    fn gated() -> (Pool<u32>, mpsc::Sender<()>, mpsc::Receiver<u32>) {
        let (open, gate) = mpsc::channel::<()>();
        let (report, done) = mpsc::channel();
        let gate = Mutex::new(gate);
        let pool = Pool::start("test", 1, 3, 3, move |job| {
            gate.lock().unwrap().recv().unwrap();
            assert_ne!(job, 13, "unlucky");
            report.send(job).unwrap();
            None
        });
        (pool.unwrap(), open, done)
    }

    fn settle<J: Owned + Send>(pool: &Pool<J>, depth: usize) {
        while pool.shared.lock().waiting != depth {
            thread::yield_now();
        }
    }

    #[test]
    fn jobs_run_in_order_and_a_full_queue_refuses() {
        let (pool, open, done) = gated();
        pool.push(0).unwrap();
        settle(&pool, 0);
        for job in 1..=3 {
            pool.push(job).unwrap();
        }
        assert_eq!(pool.push(4), Err(4));
        (0..4).for_each(|_| open.send(()).unwrap());
        assert_eq!((0..4).map(|_| done.recv().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_thread_outlives_the_panic_of_a_job() {
        let (pool, open, done) = gated();
        pool.push(13).unwrap();
        pool.push(14).unwrap();
        (0..2).for_each(|_| open.send(()).unwrap());
        assert_eq!(done.recv().unwrap(), 14);
    }

    #[test]
    fn dropping_the_pool_drops_what_waits() {
        let (pool, _open, done) = gated();
        pool.push(0).unwrap();
        settle(&pool, 0);
        pool.push(1).unwrap();
        let shared = pool.shared.clone();
        drop(pool);
        assert!(shared.lock().lines.is_empty());
        assert!(done.try_recv().is_err());
    }

    #[test]
    fn an_owner_has_its_share_and_no_more() {
        let (open, gate) = mpsc::channel::<()>();
        let (report, done) = mpsc::channel();
        let gate = Mutex::new(gate);
        let pool = Pool::start("test", 1, 6, 2, move |(_, job): (TenantName, u32)| {
            gate.lock().unwrap().recv().unwrap();
            report.send(job).unwrap();
            None
        });
        let pool = pool.unwrap();
        let push = |tenant: &str, job| pool.push((tenant.parse().unwrap(), job));
        push("acme", 0).unwrap();
        settle(&pool, 0);
        // The one that runs does not wait.
        push("acme", 1).unwrap();
        push("acme", 2).unwrap();
        assert!(push("acme", 3).is_err());
        push("beta", 4).unwrap();
        push("beta", 5).unwrap();
        assert!(push("beta", 6).is_err());
        // One that is begun gives its place back, and it is one of who has had nothing yet.
        open.send(()).unwrap();
        settle(&pool, 3);
        push("beta", 9).unwrap();
        assert!(push("beta", 10).is_err());
        (0..5).for_each(|_| open.send(()).unwrap());
        let order: Vec<_> = (0..6).map(|_| done.recv().unwrap()).collect();
        // Who has taken nothing yet goes before the rest of who has.
        assert_eq!(order[..2], [0, 4], "{order:?}");
        assert_eq!(pool.shared.lock().waiting, 0);
    }

    fn empty(threads: usize) -> Queue<u32> {
        let lines = HashMap::new();
        let (waiting, arrivals, idle) = (0, 0, 0);
        Queue { lines, threads, waiting, level: Duration::ZERO, arrivals, idle, closed: false }
    }

    fn owner(name: &str) -> Owner {
        Some(name.parse().unwrap())
    }

    #[test]
    fn owners_take_turns_by_the_time_that_their_jobs_take() {
        let mut queue = empty(1);
        (0..32).for_each(|job| queue.add(owner("flood"), job));
        queue.add(owner("acme"), 100);
        queue.add(None, 200);
        let second = Duration::from_secs(1);
        let serve = |queue: &mut Queue<u32>, took| {
            let Turn { owner, job, .. } = queue.next().unwrap();
            queue.settle(&owner, took);
            job
        };
        // Everybody's first, in the order in which they came, before anybody's second.
        assert_eq!([0; 3].map(|_| serve(&mut queue, second)), [0, 100, 200]);
        // One whose jobs take a tenth of the time gets ten times as many.
        (101..120).for_each(|job| queue.add(owner("acme"), job));
        assert_eq!(serve(&mut queue, second), 1);
        let jobs = (0..11).map(|_| serve(&mut queue, second / 10)).collect::<Vec<_>>();
        assert!(jobs.iter().filter(|job| **job > 100).count() >= 10, "{jobs:?}");
        // Nobody saves up turns by staying away, and nobody is made to wait for having been alone.
        while queue.waiting > 0 {
            serve(&mut queue, second);
        }
        assert!(queue.lines.len() <= 1, "only one can be further than the one served last");
        queue.add(owner("flood"), 1);
        queue.add(owner("late"), 2);
        queue.add(owner("late"), 3);
        let served = [0; 3].map(|_| serve(&mut queue, second));
        assert!(served[2] == 3, "{served:?}");
    }

    #[test]
    fn no_owner_takes_a_second_thread_while_another_waits() {
        let mut queue = empty(3);
        (0..4).for_each(|job| queue.add(owner("flood"), job));
        let first = queue.next().unwrap();
        queue.add(owner("acme"), 100);
        // The first job has not ended, so that its time is not known yet.
        let second = queue.next().unwrap();
        assert_eq!((first.job, second.job), (0, 100));
        assert_eq!(queue.next().unwrap().job, 1);
    }

    #[test]
    fn no_owner_has_every_thread() {
        let mut queue = empty(3);
        (0..4).for_each(|job| queue.add(owner("flood"), job));
        let first = queue.next().unwrap();
        assert_eq!((first.job, queue.next().unwrap().job), (0, 1));
        assert!(queue.next().is_none());
        queue.add(owner("acme"), 100);
        assert_eq!(queue.next().unwrap().job, 100);
        queue.settle(&first.owner, Duration::ZERO);
        assert_eq!(queue.next().unwrap().job, 2);
    }

    #[test]
    fn a_job_that_cannot_be_done_yet_waits_in_its_place_and_holds_up_nobody() {
        let (may_run, is_open) =
            (Arc::new(Mutex::new(false)), |open: &Mutex<bool>| *open.lock().unwrap());
        let (report, done) = mpsc::channel();
        let open = may_run.clone();
        let pool = Pool::start("test", 2, 8, 8, move |(owner, job): (TenantName, u32)| {
            if job == 0 && !is_open(&open) {
                return Some((owner, job));
            }
            report.send(job).unwrap();
            None
        });
        let pool = pool.unwrap();
        let push = |tenant: &str, job| pool.push((tenant.parse().unwrap(), job)).unwrap();
        push("acme", 0);
        push("acme", 1);
        for job in 2..5 {
            push("beta", job);
            assert_eq!(done.recv().unwrap(), job);
        }
        *may_run.lock().unwrap() = true;
        assert_eq!([(); 2].map(|()| done.recv().unwrap()), [0, 1]);
    }
}
