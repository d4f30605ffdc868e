//! A bounded first-in, first-out queue served by a fixed set of threads.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Optimising and running deep graphs recurses. The memory is reserved, not used, until a model needs it.
const STACK_BYTES: usize = 64 << 20;

/// Names a waiting job, so that its owner can take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The threads end when the pool is dropped; jobs that still wait are dropped with it.
pub(crate) struct Pool<J: Send + 'static> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    ready: Condvar,
    capacity: usize,
}

/// `jobs` is in order of the tickets, which only grow.
struct Queue<J> {
    jobs: VecDeque<(Ticket, J)>,
    next: u64,
    closed: bool,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts `threads` threads called `name` that hand every job to `handler`.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        capacity: usize,
        handler: impl Fn(J) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let queue = Queue { jobs: VecDeque::new(), next: 0, closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), ready: Condvar::new(), capacity });
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

    /// Queues a job, or gives it back when the queue is full.
    pub(crate) fn push(&self, job: J) -> Result<Ticket, J> {
        let mut queue = self.shared.lock();
        if queue.jobs.len() >= self.shared.capacity || queue.closed {
            return Err(job);
        }
        let ticket = Ticket(queue.next);
        queue.next += 1;
        queue.jobs.push_back((ticket, job));
        drop(queue);
        self.shared.ready.notify_one();
        Ok(ticket)
    }

    /// Takes back a job that no thread has begun; its place is free at once.
    pub(crate) fn cancel(&self, ticket: Ticket) -> Option<J> {
        let mut queue = self.shared.lock();
        let place = queue.jobs.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        queue.jobs.remove(place).map(|(_, job)| job)
    }

    /// Jobs that wait.
    pub(crate) fn depth(&self) -> usize {
        self.shared.lock().jobs.len()
    }
}

impl<J: Send + 'static> Drop for Pool<J> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        let waiting = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.ready.notify_all();
        drop(waiting);
    }
}

impl<J> Shared<J> {
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
            if let Some((_, job)) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
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

    /// A pool of one thread whose handler waits on a gate before it reports the job.
    fn gated() -> (Pool<u32>, mpsc::Sender<()>, mpsc::Receiver<u32>) {
        let (open, gate) = mpsc::channel::<()>();
        let (report, done) = mpsc::channel();
        let gate = Mutex::new(gate);
        let pool = Pool::start("test", 1, 3, move |job| {
            gate.lock().unwrap().recv().unwrap();
            assert_ne!(job, 13, "unlucky");
            report.send(job).unwrap();
        });
        (pool.unwrap(), open, done)
    }

    fn settle(pool: &Pool<u32>, depth: usize) {
        while pool.depth() != depth {
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
    fn a_cancelled_job_gives_its_place_back() {
        let (pool, open, done) = gated();
        pool.push(0).unwrap();
        settle(&pool, 0);
        let tickets: Vec<_> = (1..=3).map(|job| pool.push(job).unwrap()).collect();
        assert_eq!(pool.cancel(tickets[1]), Some(2));
        assert_eq!(pool.cancel(tickets[1]), None);
        pool.push(4).unwrap();
        (0..4).for_each(|_| open.send(()).unwrap());
        assert_eq!((0..4).map(|_| done.recv().unwrap()).collect::<Vec<_>>(), [0, 1, 3, 4]);
        assert_eq!(pool.cancel(tickets[0]), None);
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
}
