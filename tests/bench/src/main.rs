//! Baselines and probes for the bench table. `tests/bench/run` starts it; by itself:
//!
//! ```text
//! sandpiper-bench native hello|digits|iris|filetype [MODEL]   a bare server with the same answers
//! sandpiper-bench verify COUNT URL [KEY [BODY]]               asks COUNT times; prints the one answer
//! sandpiper-bench first URL [KEY [BODY]]                      µs that one request takes on a warm connection
//! sandpiper-bench hold COUNT URL KEY BODY                     leaves COUNT requests half sent until stdin ends
//! sandpiper-bench instantiate COMPONENT FOLDER                p50 and p99 of making and dropping a sandbox, in µs
//! sandpiper-bench scheduler MODEL...                          calls per second with batches and without, and t(b)
//! sandpiper-bench budget MODELS FIT SECONDS                   MODELS models of which FIT fit the budget, Zipf traffic
//! sandpiper-bench density COUNT ADDRESS TENANT KEY COMPONENT PID   COUNT functions: memory, and p99 from disk
//! sandpiper-bench spike COUNT URL [KEY [BODY]]                COUNT requests at one moment: failed, p50, p99, longest
//! sandpiper-bench steady RATE SECONDS CONNECTIONS URL [KEY [BODY]]   RATE requests a second: the same
//! sandpiper-bench tract MODEL SHAPE                           p50 and p99 of the bare run of a model, in µs
//! ```

mod budget;
mod client;
mod density;
mod instantiate;
mod native;
mod open;
mod scheduler;
mod tract;

use std::{
    io::{Write, stdout},
    path::Path,
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["native", work, model @ ..] => native::serve(work, model.first().map(Path::new)),
        ["verify", count, url, rest @ ..] => {
            client::verify(count.parse()?, &client::Call::new(url, rest)?)
        }
        ["first", url, rest @ ..] => client::first(&client::Call::new(url, rest)?),
        ["hold", count, url, rest @ ..] => {
            client::hold(count.parse()?, &client::Call::new(url, rest)?)
        }
        ["budget", models, fit, seconds] => {
            budget::measure(models.parse()?, fit.parse()?, seconds.parse()?)
        }
        ["instantiate", component, folder] => {
            instantiate::measure(Path::new(component), Path::new(folder))
        }
        ["density", count, address, tenant, key, component, pid] => {
            density::measure(count.parse()?, address, tenant, key, component, pid.parse()?)
        }
        ["spike", count, url, rest @ ..] => {
            open::spike(count.parse()?, &client::Call::new(url, rest)?)
        }
        ["steady", rate, seconds, connections, url, rest @ ..] => {
            let call = client::Call::new(url, rest)?;
            open::steady(rate.parse()?, seconds.parse()?, connections.parse()?, &call)
        }
        ["scheduler", first, rest @ ..] => scheduler::measure(&[&[*first], rest].concat()),
        ["tract", model, shape] => tract::measure(Path::new(model), shape),
        _ => anyhow::bail!("see the head of tests/bench/src/main.rs"),
    }
}

/// Prints one line at once; the script waits for it.
fn say(line: impl std::fmt::Display) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
