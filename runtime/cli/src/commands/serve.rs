//! `sandpiper serve`: the one place where the server is called.

use std::{io, net::SocketAddr, process::ExitCode, thread};

use sandpiper_server::{Ended, LogFormat, ServeOptions};
use serde_json::json;

use super::Context;
use crate::{
    args::{LogForm, Serve},
    error::{CliError, Kind, Result},
};

pub(super) fn run(context: &Context, arguments: Serve) -> Result<ExitCode> {
    if arguments.until_stdin_ends {
        thread::spawn(stop_when_stdin_ends);
    }
    let ui = context.ui;
    let on_ready = move |address: SocketAddr| {
        let url = format!("http://{address}");
        if ui.json {
            let _ = ui.result(&json!({ "listening": url }), |_| String::new());
        } else {
            ui.note(&format!("sandpiper listens at {url}"));
        }
    };
    let options = ServeOptions {
        listen: arguments.listen,
        data: arguments.data,
        config: arguments.config,
        policies: arguments.policies,
        metrics_listen: arguments.metrics_listen,
        log_format: match arguments.log_format {
            LogForm::Text => LogFormat::Text,
            LogForm::Json => LogFormat::Json,
        },
        model_memory_mib: arguments.model_memory,
        inherited: arguments.inherit,
        on_ready: Some(Box::new(on_ready)),
    };
    let ended = sandpiper_server::serve(options).map_err(|error| {
        let mut causes = error.chain();
        let what = causes.next().map(ToString::to_string).unwrap_or_default();
        let why = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let error = CliError::unexpected(format!("the server stopped: {what}"));
        if why.is_empty() { error } else { error.why(why) }
    })?;
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::AtOnce => ExitCode::from(Kind::Interrupted as u8),
    })
}

/// The pipe closes when the parent ends, however it ends; the server then stops as it does at a signal.
fn stop_when_stdin_ends() {
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    // SAFETY: `kill` and `getpid` take and return plain integers and touch no memory of ours.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(libc::getpid(), libc::SIGTERM);
    }
}
