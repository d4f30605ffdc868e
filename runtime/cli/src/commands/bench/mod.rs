//! `sandpiper bench`: loads one model or one function, level by level, and says what it did.
//!
//! 1. `target` finds out what is meant and builds the one request that is sent; it is tried once.
//! 2. `load` keeps so many requests in flight, or sends them when they are due.
//! 3. `measure` cuts the time into windows and decides when a level has been measured.
//! 4. `statistics` asks the server for its part of the time.
//! 5. `report` prints the table and the curve, or JSON.

mod load;
mod measure;
mod report;
mod statistics;
mod target;
mod tensors;

use std::{process::ExitCode, sync::Arc};

use serde_json::Value;

use self::{
    load::{Failure, Level},
    measure::{Measured, Plan},
    target::{Kind, Target},
};
use super::Context;
use crate::{
    args::Bench,
    error::{self, CliError, Result},
};

/// Connections that one process may keep open.
const CONCURRENCY_MAX: u32 = 4_096;
const RATE_MAX: u32 = 1_000_000;

pub(super) fn run(context: &Context, arguments: &Bench) -> Result<ExitCode> {
    let levels = levels(arguments)?;
    let client = context.client()?;
    let target = Target::find(&client, arguments)?;
    let version = target.try_once(&client, arguments.timeout)?;
    let statistics = || statistics::Statistics::read(&client, &target, version.as_deref());
    let mut rows = Vec::new();
    // The request that was tried counts too: what is reported is what the server saw.
    let mut sent = 1;
    for level in levels {
        let task = context.ui.spinner(&format!("{} {}, {level}", target.kind, target.name));
        let before = statistics();
        let plan = Plan { warm_up: arguments.warm_up, seconds: arguments.seconds };
        let threads = usize::from(arguments.threads);
        let load = load::Load::start(Arc::clone(&target.call), level, threads, arguments.timeout)?;
        let measured = measure::measure(load, &plan, threads, |detail| task.detail(detail))?;
        drop(task);
        sent += measured.sent;
        let server = statistics().zip(before).and_then(|(after, before)| after.since(&before));
        context.ui.note(&report::line(level, &measured));
        rows.push((level, measured, server));
    }
    let result = report::json(&target, &rows, sent);
    context.ui.result(&result, |_| report::text(&target, &rows))?;
    conclude(context, arguments, &target, &rows)
}

fn levels(arguments: &Bench) -> Result<Vec<Level>> {
    let concurrency = &arguments.concurrency.0;
    if let Some(too_many) = concurrency.iter().find(|n| **n > CONCURRENCY_MAX) {
        return Err(CliError::usage(format!("{too_many} requests in flight are too many"))
            .next(format!("stay at {CONCURRENCY_MAX} or below")));
    }
    let Some(rates) = &arguments.rate else {
        return Ok(concurrency.iter().map(|n| Level { concurrency: *n, rate: None }).collect());
    };
    if rates.0.iter().any(|rate| *rate > RATE_MAX) {
        return Err(CliError::usage("that rate is too high")
            .next(format!("stay at {RATE_MAX} requests a second or below")));
    }
    let most = concurrency.iter().copied().max().unwrap_or(1);
    Ok(rates.0.iter().map(|rate| Level { concurrency: most, rate: Some(*rate) }).collect())
}

type Row = (Level, Measured, Option<Value>);

/// A run with failures does not end well, unless that was asked for; one with a level at which nothing succeeded never
/// does, for it has measured nothing.
fn conclude(
    context: &Context,
    arguments: &Bench,
    target: &Target,
    rows: &[Row],
) -> Result<ExitCode> {
    let failed: u64 = rows.iter().map(|(_, measured, _)| measured.failed()).sum();
    let nothing = rows.iter().find(|(_, measured, _)| measured.succeeded() == 0);
    if nothing.is_none() && (failed == 0 || arguments.allow_errors) {
        return Ok(ExitCode::SUCCESS);
    }
    let failures = rows.iter().flat_map(|(_, measured, _)| &measured.failures);
    let most = failures.max_by_key(|(_, count)| **count);
    let kind = match most {
        Some((Failure::Status(status, code), _)) => {
            // An answer of the function's own has no code of ours.
            let own = target.kind == Kind::Function && code.is_none();
            match *status {
                500.. if own => error::Kind::Function,
                _ if own => error::Kind::Rejected,
                status => error::Kind::of_invocation(status),
            }
        }
        _ => error::Kind::Unreachable,
    };
    context.ui.note(&match nothing {
        Some((level, _, _)) => format!("{level}: no request succeeded within the measured time"),
        None => format!("{failed} requests failed; --allow-errors ends well all the same"),
    });
    Ok(ExitCode::from(kind as u8))
}
