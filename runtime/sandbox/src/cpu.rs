//! CPU time of a guest: the thread's CPU clock while the guest's future is polled, and nothing else.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// The CPU time that the calling thread has used so far.
fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Counts the CPU time of one invocation. Only the thread that polls writes it; the epoch callback, which runs
/// inside that poll, reads it.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    used_ns: AtomicU64,
    /// The thread's CPU clock when the running poll began; 0 between polls.
    poll_began_ns: AtomicU64,
}

impl CpuMeter {
    /// The CPU time so far, including that of a poll which is running on this thread.
    pub(crate) fn used(&self) -> Duration {
        let running = match self.poll_began_ns.load(Relaxed) {
            0 => 0,
            began => thread_cpu_ns().saturating_sub(began),
        };
        Duration::from_nanos(self.used_ns.load(Relaxed) + running)
    }

    /// Polls `future` to its end and charges the polls' CPU time, but for the last one's: a future that has ended took
    /// its reading before it did, and each reading of the clock is a system call.
    pub(crate) async fn charge<F: Future>(&self, mut future: Pin<&mut F>) -> F::Output {
        poll_fn(|context| {
            let began = thread_cpu_ns().max(1);
            self.poll_began_ns.store(began, Relaxed);
            let outcome = future.as_mut().poll(context);
            if outcome.is_pending() {
                self.used_ns.fetch_add(thread_cpu_ns().saturating_sub(began), Relaxed);
            }
            self.poll_began_ns.store(0, Relaxed);
            outcome
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn waiting_costs_nothing_and_work_is_counted() {
        let meter = CpuMeter::default();
        let work = pin!(async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let waited = meter.used();
            let began = thread_cpu_ns();
            while thread_cpu_ns() - began < 20_000_000 {
                std::hint::black_box(0);
            }
            tokio::task::yield_now().await;
            (waited, meter.used())
        });
        let (waited, all) = meter.charge(work).await;
        assert!(all - waited >= Duration::from_millis(20), "{:?}", all - waited);
        assert!(waited < Duration::from_millis(20), "{waited:?} of CPU time for waiting");
    }
}
