//! The autoscaler's rules, on arbitrary pasts and on simulated loads.

use proptest::prelude::*;

use super::*;

#[allow(dead_code, unreachable_pub, reason = "shared with the example that prints it")]
mod simulate;

use simulate::{Point, Simulation, TICK};

const SLOW: Duration = Duration::from_secs(60);

fn windows() -> Windows {
    Windows {
        slow: SLOW,
        fast: Duration::from_secs(6),
        panic_ratio: 2.0,
        code_idle: Duration::from_secs(90),
    }
}

fn terms(mode: Mode, min: u32, max: u32) -> Terms {
    Terms { min, max, concurrency: 1, mode, start: Duration::from_millis(1) }
}

fn simulation(mode: Mode, min: u32) -> Simulation {
    let service = Duration::from_millis(200);
    Simulation { terms: terms(mode, min, 10_000), windows: windows(), service }
}

fn run(mode: Mode, min: u32, load: &str) -> Vec<Point> {
    let (_, load) = simulate::loads().into_iter().find(|(name, _)| *name == load).unwrap();
    simulation(mode, min).run(&load)
}

fn at(points: &[Point], second: u32) -> Point {
    points[second as usize * 10]
}

#[test]
fn a_step_is_followed_up_and_down() {
    let points = run(Mode::Prepared, 1, "step");
    assert_eq!(at(&points, 29).wanted, 1);
    // 100/s × 0.2 s are 20 at work.
    assert!((20..=30).contains(&at(&points, 60).wanted), "{:?}", at(&points, 60));
    let cold: u32 =
        points.iter().filter(|point| point.at > Duration::from_secs(40)).map(|p| p.cold).sum();
    assert_eq!(cold, 0, "once it has grown, none waits for its sandbox");
    assert_eq!(at(&points, 215).wanted, 1, "a slow window without traffic leaves the minimum");
}

#[test]
fn a_spike_is_panic_and_what_it_needed_stays_for_a_slow_window() {
    let points = run(Mode::Prepared, 0, "spike");
    assert!(!at(&points, 59).panicking);
    assert!(at(&points, 62).panicking && at(&points, 110).panicking, "{:?}", at(&points, 62));
    let (before, peak) = (at(&points, 59).wanted, at(&points, 62).wanted);
    assert!(peak >= 10 * before, "{before} before, {peak} in the spike");
    assert!(at(&points, 110).wanted >= peak);
    assert!(at(&points, 230).wanted <= peak / 4, "{:?}", at(&points, 230));
}

#[test]
fn a_slow_wave_is_followed_without_panic() {
    let points = run(Mode::Reused, 0, "diurnal");
    for point in points.iter().skip(1_300) {
        assert!(!point.panicking, "{point:?}");
        assert!(point.wanted + 4 >= point.running, "{point:?}");
    }
    let wanted = |second| at(&points, second).wanted;
    assert!(wanted(450) > 2 * wanted(345), "{} at the top, {} below", wanted(450), wanted(345));
}

#[test]
fn what_comes_and_goes_within_a_window_keeps_its_sandboxes() {
    let points = run(Mode::Reused, 0, "flapping");
    let steady: Vec<u32> = points.iter().skip(900).map(|point| point.wanted).collect();
    let (low, high) = (steady.iter().min().unwrap(), steady.iter().max().unwrap());
    assert!(*low >= 20 && high - low <= 2, "from {low} to {high}");
}

#[test]
fn a_recorded_load_is_followed() {
    let text = include_str!("../../../../tests/bench/autoscaler/recorded.csv");
    let mut load = Vec::new();
    for line in text.lines().skip(1) {
        let (_, rate) = line.split_once(',').expect("two columns");
        load.push(rate.parse::<f64>().expect("a rate"));
    }
    assert!(load.len() >= 100, "a load of {} ticks", load.len());
    let points = simulation(Mode::Prepared, 2).run(&load);
    let arrivals: f64 = load.iter().map(|rate| rate * TICK.as_secs_f64()).sum();
    let cold: u32 = points.iter().map(|point| point.cold).sum();
    assert!(f64::from(cold) < arrivals / 4.0, "{cold} of {arrivals} were cold");
    assert!(points.iter().all(|point| point.wanted >= 2));
}

#[test]
fn code_is_kept_while_it_is_used_and_for_its_idle_time() {
    let mut load = vec![10.0; 100];
    load.extend(vec![0.0; 1_200]);
    let points = simulation(Mode::Fresh, 0).run(&load);
    assert!(points.iter().all(|point| point.wanted == 0), "a fresh function keeps none");
    assert!(at(&points, 95).keep_code);
    assert!(!at(&points, 110).keep_code);
    let points = simulation(Mode::Prepared, 1).run(&load);
    assert!(points.iter().all(|point| point.keep_code), "what is kept ready needs its code");
}

#[test]
fn a_plan_for_more_requests_wants_fewer_sandboxes() {
    let wanted = |concurrency| {
        let mut simulation = simulation(Mode::Reused, 0);
        simulation.terms.concurrency = concurrency;
        simulation.run(&vec![100.0; 900]).last().unwrap().wanted
    };
    assert_eq!((wanted(1), wanted(2), wanted(20)), (20, 10, 1));
}

fn any_observation() -> impl Strategy<Value = (u64, u64, u64, u32, u32, u32)> {
    (0..u64::MAX / 4, 0..1u64 << 40, 0..100_000u64, any::<u32>(), any::<u32>(), any::<u32>())
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Fresh), Just(Mode::Prepared), Just(Mode::Reused)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is observed, the answer lies within the limits.
    #[test]
    fn the_limits_hold(
        seen in prop::collection::vec(any_observation(), 1..40),
        mode in any_mode(),
        min in 0..50u32,
        more in 0..1_000u32,
        concurrency in 0..100u32,
    ) {
        let mut autoscaler = Autoscaler::new(windows());
        let terms = Terms { concurrency, ..terms(mode, min, min + more) };
        let mut at = Duration::ZERO;
        for (arrivals, busy_us, pause_ms, running, waiting, ready) in seen {
            at += Duration::from_millis(pause_ms);
            let in_guest = Duration::from_micros(busy_us);
            let seen = Observation {
                at, arrivals, completed: arrivals, in_guest, suspended: in_guest, running, waiting, ready,
            };
            let decision = autoscaler.decide(&seen, &terms);
            match mode {
                Mode::Fresh => prop_assert_eq!(decision.ready, 0),
                _ => prop_assert!((min..=min + more).contains(&decision.ready)),
            }
            prop_assert!(decision.keep_code || decision.ready == 0);
        }
    }

    /// More of the same load never wants fewer sandboxes.
    #[test]
    fn more_load_wants_no_fewer(rate in 0.0..500.0f64, more in 0.0..500.0f64, mode in any_mode()) {
        let wanted = |rate| simulation(mode, 0).run(&vec![rate; 700]).last().unwrap().wanted;
        prop_assert!(wanted(rate + more) >= wanted(rate));
    }

    /// A slow window without traffic leaves the minimum, whatever came before.
    #[test]
    fn silence_leaves_the_minimum(
        load in prop::collection::vec(0.0..1_000.0f64, 1..100),
        min in 0..10u32,
    ) {
        let mut load = load;
        // What still runs at the end has to end first.
        load.extend(vec![0.0; 605]);
        let points = simulation(Mode::Prepared, min).run(&load);
        prop_assert_eq!(points.last().unwrap().wanted, min);
    }
}
