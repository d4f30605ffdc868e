//! How many sandboxes a function needs: arithmetic over what was observed, without a clock of its own.
//!
//! 1. Demand is the mean number of sandboxes at work (Little's law: rate × time in the sandbox), over a slow window and
//!    over a fast one. The larger one counts, so that growth is quick.
//! 2. A sandbox that serves one request has to be replaced while others arrive: what arrives in that time counts too.
//! 3. When the fast window shows far more than the slow one, the function panics: what runs and waits at this moment
//!    counts, and nothing shrinks until a slow window has passed without it.
//! 4. Otherwise it shrinks to the largest demand of the last slow window, so that a load that comes and goes within
//!    it keeps its sandboxes, and by no more than half at a time.

use std::{collections::VecDeque, time::Duration};

use sandpiper_domain::Mode;

#[cfg(test)]
mod tests;

/// Parts of a window: the precision of its edge.
const SLOW_PARTS: u32 = 20;
const FAST_PARTS: u32 = 6;
/// How often in a slow window the number may shrink.
const SHRINKS: u32 = 10;
/// How long it takes at most until a sandbox that was taken begins to be replaced.
const REFILL: Duration = Duration::from_millis(100);

/// What happened since the last observation, and what there is now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observation {
    /// Time since any start.
    pub at: Duration,
    /// Requests that were let in.
    pub arrivals: u64,
    /// Requests that ended.
    pub completed: u64,
    /// Time that sandboxes ran, summed.
    pub in_guest: Duration,
    /// Time that sandboxes waited for models, summed.
    pub suspended: Duration,
    /// Sandboxes at work now, those that wait for models among them.
    pub running: u32,
    /// Requests that wait to be let in now.
    pub waiting: u32,
    /// Sandboxes that are ready now.
    pub ready: u32,
}

/// What a version asks for, and how long its sandboxes take to start.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Sandboxes kept ready.
    pub min: u32,
    /// Sandboxes at once.
    pub max: u32,
    /// Requests at once that one is planned for.
    pub concurrency: u32,
    /// How they come to be.
    pub mode: Mode,
    /// The time that making one ready takes.
    pub start: Duration,
}

/// How the past is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// The window that decides in calm.
    pub slow: Duration,
    /// The one in which a sudden demand is seen.
    pub fast: Duration,
    /// How many times the slow demand the fast one must be for panic.
    pub panic_ratio: f64,
    /// How long code that nobody asks for is kept.
    pub code_idle: Duration,
}

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Sandboxes wanted.
    pub ready: u32,
    /// Whether the code stays in memory.
    pub keep_code: bool,
    /// Whether demand grows suddenly.
    pub panicking: bool,
}

/// Decides for one version.
#[derive(Debug)]
pub struct Autoscaler {
    windows: Windows,
    slow: Window,
    fast: Window,
    /// The largest demand of each part of the last slow window.
    peaks: VecDeque<(Duration, f64)>,
    last: Option<Duration>,
    busy_at: Duration,
    panic_until: Option<Duration>,
    shrunk_at: Duration,
    wanted: u32,
}

impl Autoscaler {
    /// Knows nothing of the past.
    pub fn new(windows: Windows) -> Self {
        Autoscaler {
            windows,
            slow: Window::new(windows.slow, SLOW_PARTS),
            fast: Window::new(windows.fast, FAST_PARTS),
            peaks: VecDeque::new(),
            last: None,
            busy_at: Duration::ZERO,
            panic_until: None,
            shrunk_at: Duration::ZERO,
            wanted: 0,
        }
    }

    /// Takes an observation in. Observations come in the order of their times.
    pub fn decide(&mut self, seen: &Observation, terms: &Terms) -> Decision {
        let span = seen.at.saturating_sub(self.last.unwrap_or(seen.at));
        if self.last.is_none() || seen.arrivals > 0 || seen.running > 0 || seen.waiting > 0 {
            self.busy_at = seen.at;
        }
        self.last = Some(seen.at);
        let busy = (seen.in_guest + seen.suspended).as_secs_f64();
        self.slow.add(seen.at, span, seen.arrivals, busy);
        self.fast.add(seen.at, span, seen.arrivals, busy);
        let is_over = seen.at.saturating_sub(self.busy_at) >= self.windows.slow;
        let is_panicking = !is_over && self.panics(seen);
        let level = match is_over {
            true => 0.0,
            false => self.level(seen, terms, is_panicking),
        };
        self.remember(seen.at, level);
        self.settle(seen.at, is_over, is_panicking);
        let wanted = match terms.mode {
            Mode::Fresh => 0,
            Mode::Prepared | Mode::Reused => self.wanted.clamp(terms.min, terms.max.max(terms.min)),
        };
        let is_idle = seen.at.saturating_sub(self.busy_at) >= self.windows.code_idle;
        Decision { ready: wanted, keep_code: wanted > 0 || !is_idle, panicking: is_panicking }
    }

    fn panics(&mut self, seen: &Observation) -> bool {
        let slow = self.slow.mean_busy().max(1.0);
        if self.fast.mean_busy() >= self.windows.panic_ratio * slow {
            self.panic_until = Some(seen.at + self.windows.slow);
        }
        self.panic_until.is_some_and(|until| seen.at < until)
    }

    /// The sandboxes that this moment asks for.
    fn level(&self, seen: &Observation, terms: &Terms, is_panicking: bool) -> f64 {
        let planned_for = f64::from(terms.concurrency.max(1));
        let mut demand = self.slow.mean_busy().max(self.fast.mean_busy());
        if is_panicking {
            demand = demand.max(f64::from(seen.running));
        }
        let demand = (demand + f64::from(seen.waiting)) / planned_for;
        let replaced = match terms.mode {
            Mode::Prepared => self.fast.rate() * (terms.start + REFILL).as_secs_f64(),
            Mode::Fresh | Mode::Reused => 0.0,
        };
        demand.max(replaced)
    }

    fn remember(&mut self, at: Duration, level: f64) {
        let width = self.windows.slow / SLOW_PARTS;
        match self.peaks.back_mut() {
            Some((began, peak)) if at.saturating_sub(*began) < width => *peak = peak.max(level),
            _ => self.peaks.push_back((at, level)),
        }
        while self
            .peaks
            .front()
            .is_some_and(|(began, _)| at.saturating_sub(*began) > self.windows.slow)
        {
            self.peaks.pop_front();
        }
    }

    /// Grows at once and shrinks slowly.
    fn settle(&mut self, at: Duration, is_over: bool, is_panicking: bool) {
        let peak = self.peaks.iter().map(|(_, peak)| *peak).fold(0.0, f64::max);
        // Beyond u32, `as` gives its largest value; the clamp to `max` comes later.
        let level = peak.ceil() as u32;
        if is_over {
            self.wanted = 0;
            self.peaks.clear();
        } else if level >= self.wanted {
            self.wanted = level;
            self.shrunk_at = at;
        } else if !is_panicking && at.saturating_sub(self.shrunk_at) >= self.windows.slow / SHRINKS
        {
            self.wanted = level.max(self.wanted / 2);
            self.shrunk_at = at;
        }
    }
}

/// Sums over the recent past.
#[derive(Debug)]
struct Window {
    length: Duration,
    width: Duration,
    parts: VecDeque<Part>,
}

#[derive(Debug, Default)]
struct Part {
    began: Duration,
    span: Duration,
    arrivals: u64,
    busy: f64,
}

impl Window {
    fn new(length: Duration, parts: u32) -> Self {
        Window { length, width: length / parts, parts: VecDeque::new() }
    }

    fn add(&mut self, at: Duration, span: Duration, arrivals: u64, busy: f64) {
        let is_new =
            self.parts.back().is_none_or(|part| at.saturating_sub(part.began) >= self.width);
        if is_new {
            self.parts.push_back(Part { began: at, ..Part::default() });
        }
        if let Some(part) = self.parts.back_mut() {
            part.span += span;
            part.arrivals = part.arrivals.saturating_add(arrivals);
            part.busy += busy;
        }
        while self.parts.front().is_some_and(|part| at.saturating_sub(part.began) > self.length) {
            self.parts.pop_front();
        }
    }

    /// A window that is not full yet counts as if it had been quiet before.
    fn seconds(&self) -> f64 {
        let span: Duration = self.parts.iter().map(|part| part.span).sum();
        span.max(self.length).max(Duration::from_millis(1)).as_secs_f64()
    }

    fn mean_busy(&self) -> f64 {
        self.parts.iter().map(|part| part.busy).sum::<f64>() / self.seconds()
    }

    fn rate(&self) -> f64 {
        let arrivals = self.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.arrivals));
        arrivals as f64 / self.seconds()
    }
}
