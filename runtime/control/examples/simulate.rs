//! Prints what the autoscaler makes of the simulated loads, and of a recorded one, as CSV;
//! `tests/bench/autoscaler/plot.py` draws it.

use std::{
    io::{Write, stdout},
    time::Duration,
};

use sandpiper_control::{Autoscaler, Observation, Terms, Windows};
use sandpiper_domain::Mode;

#[path = "../src/autoscaler/tests/simulate.rs"]
#[allow(missing_docs, dead_code, unreachable_pub, reason = "shared with the tests")]
mod simulate;

fn main() -> std::io::Result<()> {
    let mut loads = simulate::loads();
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(path)?;
        let rates = text.lines().skip(1).filter_map(|line| line.split_once(',')?.1.parse().ok());
        loads.push(("recorded", rates.collect()));
    }
    let mut out = stdout().lock();
    writeln!(out, "load,mode,second,rate,running,ready,wanted,cold,panicking")?;
    for (name, load) in &loads {
        for (mode, label) in [(Mode::Prepared, "prepared"), (Mode::Reused, "reused")] {
            let terms =
                Terms { min: 1, max: 1_000, concurrency: 1, mode, start: Duration::from_millis(1) };
            let windows = Windows {
                slow: Duration::from_secs(60),
                fast: Duration::from_secs(6),
                panic_ratio: 2.0,
                code_idle: Duration::from_secs(300),
            };
            let service = Duration::from_millis(200);
            for point in (simulate::Simulation { terms, windows, service }).run(load) {
                writeln!(
                    out,
                    "{name},{label},{:.1},{:.1},{},{},{},{},{}",
                    point.at.as_secs_f64(),
                    point.rate,
                    point.running,
                    point.ready,
                    point.wanted,
                    point.cold,
                    u8::from(point.panicking),
                )?;
            }
        }
    }
    Ok(())
}
