//! The binary `sandpiper`: `serve`, `demo` and the client verbs.
//!
//! 1. `args` reads the command line, `config` adds the environment and the config file.
//! 2. `commands` has one file per verb; each talks to a server through `client` alone.
//! 3. `output` is the only way to the terminal, `error` decides the exit code.

mod args;
mod client;
mod commands;
mod config;
mod error;
mod expires;
mod output;
mod project;
mod sse;
mod upload;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind as ClapErrorKind};

use crate::error::{CliError, Kind};

fn main() -> ExitCode {
    config::settle_backtraces();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let json = cli.global.json;
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => report(&error, json),
    }
}

fn report(error: &CliError, json: bool) -> ExitCode {
    match error.kind {
        Kind::OutputClosed => {}
        _ if json => output::stderr(&error.json().to_string()),
        _ => output::stderr(&error.text()),
    }
    ExitCode::from(error.exit_code())
}

/// Help and version are results; anything else that clap says is a usage error.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let shown = matches!(error.kind(), ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion);
    // The command line did not parse, so `--json` has to be looked for by hand.
    let json = std::env::args_os().any(|argument| argument == "--json");
    if !shown && json {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim();
        return report(&CliError::usage(text), true);
    }
    let _ = error.print();
    ExitCode::from(if shown { 0 } else { Kind::Usage as u8 })
}
