//! A bounded first-in, first-out queue served by a fixed set of threads. All tenants stand in the one line, and each
//! may take up a part of it only.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use sandpiper_domain::TenantName;

/// Optimising and running deep graphs recurses. The memory is reserved, not used, until a model needs it.
const STACK_BYTES: usize = 64 << 20;

/// A job that waits on somebody's account.
pub(crate) trait Owned {
    /// `None` for what counts for nobody.
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

/// `waiting` counts the jobs by owner and has no zeros.
struct Queue<J> {
    jobs: VecDeque<J>,
    waiting: HashMap<TenantName, usize>,
    /// Threads that wait for a job. Waking is a system call, so nobody is woken in vain.
    idle: usize,
    closed: bool,
}

impl<J: Owned + Send + 'static> Pool<J> {
    /// Starts `threads` threads called `name` that hand every job to `handler`. `capacity` jobs may wait, `share` of
    /// one owner; a share is at least one.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        capacity: usize,
        share: usize,
        handler: impl Fn(J) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (jobs, waiting) = (VecDeque::new(), HashMap::new());
        let queue = Mutex::new(Queue { jobs, waiting, idle: 0, closed: false });
        let (ready, share) = (Condvar::new(), share.max(1));
        let shared = Arc::new(Shared { queue, ready, capacity, share });
        let pool = Pool { shared };
        let handler = Arc::new(handler);
        for number in 0..threads.max(1) {
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
        if queue.jobs.len() >= self.shared.capacity || queue.closed {
            return Err(job);
        }
        if let Some(owner) = job.owner() {
            match queue.waiting.get_mut(owner) {
                Some(count) if *count >= self.shared.share => return Err(job),
                Some(count) => *count += 1,
                None => {
                    queue.waiting.insert(owner.clone(), 1);
                }
            }
        }
        queue.jobs.push_back(job);
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
        queue.waiting.clear();
        let waiting = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.ready.notify_all();
        drop(waiting);
    }
}

impl<J: Owned> Queue<J> {
    /// A job of this owner waits no more.
    fn forget(&mut self, job: &J) {
        let Some(owner) = job.owner() else { return };
        match self.waiting.get_mut(owner) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                self.waiting.remove(owner);
            }
        }
    }
}

impl<J: Owned> Shared<J> {
    /// A panic never happens while the queue is half changed, so that a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<J> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                queue.forget(&job);
                return Some(job);
            }
            queue.idle += 1;
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// The handler contains what it expects to panic; the catch here keeps the thread alive through the rest.
    fn serve(&self, handler: &impl Fn(J)) {
        while let Some(job) = self.take() {
            if catch_unwind(AssertUnwindSafe(|| handler(job))).is_err() {
                tracing::error!("a job of the inference plane panicked; its thread goes on");
            }
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
        });
        (pool.unwrap(), open, done)
    }

    fn settle<J: Owned + Send>(pool: &Pool<J>, depth: usize) {
        while pool.shared.lock().jobs.len() != depth {
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
        assert!(shared.lock().jobs.is_empty());
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
        // One that is begun gives its place back.
        open.send(()).unwrap();
        settle(&pool, 3);
        push("acme", 9).unwrap();
        assert!(push("acme", 10).is_err());
        (0..5).for_each(|_| open.send(()).unwrap());
        let order: Vec<_> = (0..6).map(|_| done.recv().unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 4, 5, 9]);
        assert!(pool.shared.lock().waiting.is_empty());
    }
}
