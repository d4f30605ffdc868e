//! How a level is measured: a warm-up, then windows.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use super::load::{Failure, Load, Tally};
use crate::error::Result;

/// Windows that have to agree, as perf_analyzer has it.
const WINDOWS: usize = 3;
const WINDOWS_MAX: usize = 10;
const WINDOW: Duration = Duration::from_secs(1);
/// How far a window may be from the mean of the last ones.
const TOLERANCE: f64 = 0.1;

/// How long.
pub(super) struct Plan {
    pub(super) warm_up: Duration,
    /// A fixed time, all of which is reported. Without it a level ends when its last windows agree, and only those
    /// are reported.
    pub(super) seconds: Option<Duration>,
}

/// What a level gave.
pub(super) struct Measured {
    /// The time that is reported.
    pub(super) time: Duration,
    /// Latencies of successes, in nanoseconds.
    pub(super) latencies: Histogram<u64>,
    pub(super) failures: BTreeMap<Failure, u64>,
    /// Successes that came when the time was over: they count nowhere else.
    pub(super) late: u64,
    /// Whether the last three windows agreed.
    pub(super) stable: bool,
    /// CPU time of this process over the time that its threads had.
    pub(super) client_cpu: f64,
    /// Requests sent, warm-up and end included.
    pub(super) sent: u64,
}

impl Measured {
    pub(super) fn succeeded(&self) -> u64 {
        self.latencies.len()
    }

    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Successes in a second.
    pub(super) fn rate(&self) -> f64 {
        self.succeeded() as f64 / self.time.as_secs_f64()
    }
}

struct Window {
    time: Duration,
    cpu: Duration,
    tally: Tally,
}

impl Window {
    fn rate(&self) -> f64 {
        self.tally.latencies.len() as f64 / self.time.as_secs_f64()
    }
}

/// Measures a level and ends it.
pub(super) fn measure(
    mut load: Load,
    plan: &Plan,
    threads: usize,
    progress: impl Fn(&str),
) -> Result<Measured> {
    progress("warming up");
    thread::sleep(plan.warm_up);
    // What happened until now is left out. Windows follow each other without a gap.
    let (mut started, mut cpu) = (Instant::now(), cpu_time());
    load.take()?;
    let (length, least, most) = match plan.seconds {
        None => (WINDOW, WINDOWS, WINDOWS_MAX),
        Some(seconds) => {
            let count = (seconds.as_secs() as usize).max(WINDOWS);
            (seconds / count as u32, count, count)
        }
    };
    let mut windows = Vec::new();
    let mut overdue = load.overdue();
    while windows.len() < most && (windows.len() < least || !stable(&windows)) {
        thread::sleep(length);
        let mut tally = load.take()?;
        let waiting = load.overdue();
        tally.fail(Failure::NotSent, waiting.saturating_sub(overdue));
        overdue = waiting;
        let (ended, used) = (Instant::now(), cpu_time());
        let window = Window { time: ended - started, cpu: used.saturating_sub(cpu), tally };
        (started, cpu) = (ended, used);
        progress(&format!("{:.0} requests/s", window.rate()));
        windows.push(window);
    }
    let sent = load.finish();
    // What was in flight at the end belongs to no window, and its successes would lift the rate of the last one. That
    // it failed is told all the same, or a server that stalls would look like one that is only asked less.
    let late = load.take()?;
    let stable = stable(&windows);
    // Without a fixed time the first windows only showed that the later ones had settled.
    let reported = if plan.seconds.is_some() { windows.len() } else { WINDOWS };
    let reported = &windows[windows.len().saturating_sub(reported)..];
    let mut whole = Tally::new()?;
    reported.iter().for_each(|window| whole.merge(&window.tally));
    late.failures.iter().for_each(|(failure, count)| whole.fail(failure.clone(), *count));
    whole.failures.retain(|_, count| *count > 0);
    let time: Duration = reported.iter().map(|window| window.time).sum();
    let cpu: Duration = reported.iter().map(|window| window.cpu).sum();
    Ok(Measured {
        time,
        latencies: whole.latencies,
        failures: whole.failures,
        late: late.latencies.len(),
        stable,
        client_cpu: cpu.as_secs_f64() / time.as_secs_f64() / threads as f64,
        sent,
    })
}

/// Whether the last windows agree in throughput and in mean latency.
fn stable(windows: &[Window]) -> bool {
    let Some(last) = windows.last_chunk::<WINDOWS>() else { return false };
    agree(&last.each_ref().map(Window::rate))
        && agree(&last.each_ref().map(|window| window.tally.latencies.mean()))
}

fn agree(values: &[f64]) -> bool {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    mean > 0.0 && values.iter().all(|value| (value - mean).abs() <= TOLERANCE * mean)
}

/// CPU time that this process has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_agree_within_a_tenth_of_their_mean() {
        assert!(agree(&[100.0, 105.0, 95.0]));
        assert!(!agree(&[100.0, 100.0, 130.0]));
        assert!(!agree(&[0.0, 0.0, 0.0]), "nothing has succeeded");
    }

    #[test]
    fn only_the_last_three_windows_decide() {
        let window = |count: u64, latency: u64| {
            let mut tally = Tally::new().unwrap();
            tally.latencies.record_n(latency, count).unwrap();
            Window { time: Duration::from_secs(1), cpu: Duration::ZERO, tally }
        };
        let mut windows = vec![window(10, 1_000), window(100, 1_000), window(104, 1_020)];
        assert!(!stable(&windows));
        windows.push(window(98, 990));
        assert!(stable(&windows));
        windows.push(window(100, 1_500));
        assert!(!stable(&windows), "the rate is steady, the latency is not");
    }

    #[test]
    fn the_clock_of_the_process_moves() {
        let before = cpu_time();
        assert!((0..1_000_000u64).map(std::hint::black_box).sum::<u64>() > 0);
        assert!(cpu_time() > before);
    }
}
