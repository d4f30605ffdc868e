//! A node in fast motion: requests of one length arrive at a given rate, take ready sandboxes, and are counted as cold
//! where there is none. The test looks at what the autoscaler made of it, and the plots show it.

use std::{collections::VecDeque, time::Duration};

use super::{Autoscaler, Observation, Terms, Windows};

/// What the loop of the server waits between two looks.
pub const TICK: Duration = Duration::from_millis(100);

/// One function under load.
pub struct Simulation {
    pub terms: Terms,
    pub windows: Windows,
    /// How long each request runs.
    pub service: Duration,
}

/// What was seen at one tick.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub at: Duration,
    pub rate: f64,
    pub running: u32,
    pub ready: u32,
    pub wanted: u32,
    /// Requests of this tick that found nothing ready.
    pub cold: u32,
    pub panicking: bool,
    pub keep_code: bool,
}

impl Simulation {
    /// Runs through a load: requests per second, one number for each tick.
    pub fn run(&self, load: &[f64]) -> Vec<Point> {
        let mut autoscaler = Autoscaler::new(self.windows);
        let mut ends: VecDeque<Duration> = VecDeque::new();
        let (mut ready, mut owed, mut wanted) = (0u32, 0.0f64, 0u32);
        let mut points = Vec::with_capacity(load.len());
        for (number, rate) in load.iter().enumerate() {
            let at = TICK * (number as u32 + 1);
            // One core fills; one that takes no time still takes its turn.
            let start = self.terms.start.max(Duration::from_micros(10));
            let made = (TICK.as_secs_f64() / start.as_secs_f64()) as u32;
            ready += wanted.saturating_sub(ready).min(made);
            owed += rate * TICK.as_secs_f64();
            let arrivals = owed.floor().max(0.0) as u32;
            owed -= f64::from(arrivals);
            let warm = arrivals.min(ready);
            ready -= warm;
            let before: Duration = ends.iter().map(|end| busy(*end, at)).sum();
            ends.extend((0..arrivals).map(|_| at + self.service));
            let running_before = ends.len();
            ends.retain(|end| *end > at);
            let decision = autoscaler.decide(
                &Observation {
                    at,
                    arrivals: u64::from(arrivals),
                    completed: (running_before - ends.len()) as u64,
                    in_guest: before,
                    suspended: Duration::ZERO,
                    running: ends.len() as u32,
                    waiting: 0,
                    ready,
                },
                &self.terms,
            );
            wanted = decision.ready;
            ready = ready.min(wanted);
            points.push(Point {
                at,
                rate: *rate,
                running: ends.len() as u32,
                ready,
                wanted,
                cold: arrivals - warm,
                panicking: decision.panicking,
                keep_code: decision.keep_code,
            });
        }
        points
    }
}

/// The part of the last tick in which one ran that ends at `end`.
fn busy(end: Duration, at: Duration) -> Duration {
    let began = at.saturating_sub(TICK);
    end.min(at).saturating_sub(began)
}

/// Loads by name, each some minutes long.
pub fn loads() -> Vec<(&'static str, Vec<f64>)> {
    let ticks = |seconds: u32| (0..seconds * 10).map(|tick| f64::from(tick) / 10.0);
    let step = ticks(240).map(|s| if (30.0..150.0).contains(&s) { 100.0 } else { 0.0 });
    let spike = ticks(240).map(|s| if (60.0..62.0).contains(&s) { 1_000.0 } else { 10.0 });
    let diurnal = ticks(600).map(|s| 100.0 * (1.2 - (s / 300.0 * std::f64::consts::TAU).cos()));
    let flapping = ticks(300).map(|s| if s % 20.0 < 10.0 { 100.0 } else { 0.0 });
    vec![
        ("step", step.collect()),
        ("spike", spike.collect()),
        ("diurnal", diurnal.collect()),
        ("flapping", flapping.collect()),
    ]
}
