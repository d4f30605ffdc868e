//! `sandpiper jobs`, and `invoke --async`.

use std::{io::Read, process::ExitCode, thread, time::Duration};

use clap::ValueEnum;
use sandpiper_domain::JobId;
use serde_json::{Value, json};

use super::{Context, invoke::exit_code, rows, text};
use crate::{
    args::{Jobs, State},
    client::{Client, interrupted},
    error::{CliError, Kind, Result},
    output::{fields, stdout, table},
};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);

pub(super) fn run(context: &Context, command: Jobs) -> Result<ExitCode> {
    let client = context.client()?;
    match command {
        Jobs::List { state, function, limit } => {
            let state = state.and_then(|state: State| state.to_possible_value());
            let state = state.map(|state| format!("&state={}", state.get_name()));
            let function = function.map(|function| format!("&function={function}"));
            let (state, function) = (state.unwrap_or_default(), function.unwrap_or_default());
            let answer = client.get(&format!("/api/v1/jobs?limit={limit}{state}{function}"))?;
            let columns = [
                ("ID", "/id"),
                ("FUNCTION", "/function"),
                ("STATE", "/state"),
                ("ATTEMPTS", "/attempts"),
                ("CREATED", "/created_at"),
                ("ERROR", "/error"),
            ];
            context.ui.result(&answer, |answer| table(rows(answer, "jobs"), &columns))
        }
        Jobs::Show { id } => context.ui.result(&client.get(&format!("/api/v1/jobs/{id}"))?, fields),
        Jobs::Result { id } => {
            let job = client.get(&format!("/api/v1/jobs/{id}"))?;
            if ["pending", "running"].contains(&text(&job, "state")) {
                return Err(CliError::new(Kind::Rejected, "the job has not ended")
                    .next("try again later, or wait for it: sandpiper invoke --async --wait"));
            }
            return result(&client, id);
        }
        Jobs::Cancel { id } => {
            client.delete(&format!("/api/v1/jobs/{id}"))?;
            context.ui.result(&json!({ "cancelled": id }), |_| format!("cancelled {id}"))
        }
        Jobs::Redrive { id, function } => {
            let answer = match id {
                Some(id) => client.post(&format!("/api/v1/jobs/{id}/redrive"), &json!({}))?,
                None => client.post("/api/v1/jobs/redrive", &json!({ "function": function }))?,
            };
            context.ui.result(&answer, |answer| format!("{} redriven", answer["redriven"]))
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what the function answered to a job; the exit code is as if it had answered just now.
fn result(client: &Client, id: JobId) -> Result<ExitCode> {
    let (status, mut reader) = client.kept(&format!("/api/v1/jobs/{id}/result"))?;
    copy_all(&mut reader, &mut |bytes| stdout(bytes))?;
    Ok(ExitCode::from(exit_code(status)))
}

/// Copies an answer as it comes.
pub(super) fn copy(
    client: &Client,
    path: &str,
    to: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    copy_all(&mut client.stream(path)?, to)
}

fn copy_all(reader: &mut impl Read, to: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer).map_err(interrupted)? {
            0 => return Ok(()),
            count => to(&buffer[..count])?,
        }
    }
}

/// What became of `invoke --async`: the job's id, or with `wait` its result.
pub(super) fn accepted(
    context: &Context,
    client: &Client,
    job: &Value,
    wait: bool,
) -> Result<ExitCode> {
    let id: JobId = text(job, "id").parse().map_err(|error| {
        CliError::unexpected("the server did not make a job of the request").why(error)
    })?;
    if !wait {
        context.ui.result(job, |_| id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let task = context.ui.spinner("waiting");
    loop {
        let job = client.get(&format!("/api/v1/jobs/{id}"))?;
        match text(&job, "state") {
            "pending" | "running" => task.detail(text(&job, "state")),
            _ => break,
        }
        thread::sleep(LOOK_INTERVAL);
    }
    drop(task);
    result(client, id)
}
