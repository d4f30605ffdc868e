//! One file per verb. Each takes its arguments and a [`Context`], and prints its own result.

mod batch;
mod bench;
mod build;
mod catalog;
mod config;
mod demo;
mod deploy;
mod doctor;
mod instances;
mod interrupt;
mod invoke;
mod jobs;
mod keys;
mod logs;
mod models;
mod new;
mod serve;
mod tenants;
mod traffic;
mod usage;

use std::process::ExitCode;

use serde_json::Value;

use crate::{
    args::{Cli, Command, Global},
    client::Client,
    config::Settings,
    error::Result,
    output::Ui,
};

/// What every command may use.
struct Context {
    global: Global,
    ui: Ui,
}

impl Context {
    fn settings(&self) -> Result<Settings> {
        Settings::load(&self.global)
    }

    fn client(&self) -> Result<Client> {
        Client::new(&self.settings()?)
    }
}

/// Runs one command. An error's exit code is in the error; the code here is for commands that end well or have
/// said themselves what went wrong.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let context = &Context { ui: Ui::new(cli.global.json), global: cli.global };
    match cli.command {
        Command::TryModel => return Ok(ExitCode::from(sandpiper_server::try_model())),
        Command::Serve(arguments) => return serve::run(context, arguments),
        Command::Demo(arguments) => demo::run(context, &arguments)?,
        Command::New(arguments) => new::run(context, &arguments)?,
        Command::Build { path } => build::run(context, &path)?,
        Command::Deploy(arguments) => return deploy::run(context, &arguments),
        Command::Invoke(arguments) => return invoke::run(context, &arguments),
        Command::Jobs(command) => return jobs::run(context, command),
        Command::Batch(command) => batch::run(context, command)?,
        Command::Bench(arguments) => return bench::run(context, &arguments),
        Command::Functions(command) => catalog::functions(context, command)?,
        Command::Models(command) => models::run(context, command)?,
        Command::Versions { function } => traffic::versions(context, &function)?,
        Command::Rollback(arguments) => traffic::rollback(context, &arguments)?,
        Command::Diff(arguments) => traffic::diff(context, &arguments)?,
        Command::Logs { function, follow } => logs::run(context, &function, follow)?,
        Command::Instances { function, follow } => instances::run(context, &function, follow)?,
        Command::Usage { month } => usage::run(context, month.as_deref())?,
        Command::Tenant(command) => tenants::run(context, command)?,
        Command::Key(command) => keys::run(context, command)?,
        Command::Doctor => return doctor::run(context),
        Command::Config(command) => config::run(context, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows of a list's answer, such as `{"keys": […]}`.
fn rows<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A field of an answer as text; empty where it is missing.
fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A field of an answer as a number; 0 where it is missing.
fn number(answer: &Value, name: &str) -> u64 {
    answer.get(name).and_then(Value::as_u64).unwrap_or_default()
}
