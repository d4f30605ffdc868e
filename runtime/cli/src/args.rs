//! The command line.

mod bench;
mod jobs;
mod traffic;

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use sandpiper_domain::{AliasName, FunctionName, ModelName, Scope, Selector, TenantName};
use sandpiper_server::{INHERIT_ARGUMENT, Inherited};

pub(crate) use self::{
    bench::{Bench, InputShape},
    jobs::{Batch, BatchRun, Jobs, State},
    traffic::{Canary, Diff, Rollback, Sticky},
};
use crate::error::EXIT_CODES;

/// Sandpiper: a serverless runtime for inference.
///
/// Functions are WebAssembly components, models are ONNX files, and each function gets an HTTP endpoint.
#[derive(Debug, Parser)]
#[command(name = "sandpiper", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The server's address [default: http://127.0.0.1:8080]
    #[arg(long, global = true, value_name = "URL", env = "SANDPIPER_SERVER")]
    pub(crate) server: Option<String>,
    /// The API key
    #[arg(long, global = true, value_name = "KEY", env = "SANDPIPER_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// The tenant to act for, with the operator's key
    #[arg(long, global = true, value_name = "NAME", env = "SANDPIPER_TENANT")]
    pub(crate) tenant: Option<String>,
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a server
    Serve(Serve),
    /// Build and run the digits example on a server of its own
    Demo(Demo),
    /// Start a function from a template
    New(New),
    /// Build the function in a folder
    Build {
        /// The function's folder, or its manifest
        #[arg(default_value = ".")]
        path: PathBuf,
    },
    /// Build and upload the function in a folder
    Deploy(Deploy),
    /// Send a request to a function
    Invoke(Invoke),
    /// Show and change jobs: requests that were sent with `invoke --async`
    #[command(subcommand)]
    Jobs(Jobs),
    /// Send the lines of a file to a function
    #[command(subcommand)]
    Batch(Batch),
    /// Measure a model or a function under load
    Bench(Bench),
    /// Show and change functions
    #[command(subcommand)]
    Functions(Functions),
    /// Upload, show and change models
    #[command(subcommand)]
    Models(Models),
    /// List the versions of a function
    Versions {
        /// The function
        function: FunctionName,
    },
    /// Move a function back to where it was before, with the models that it used there
    Rollback(Rollback),
    /// Show how two versions of a function differ
    Diff(Diff),
    /// Show what a function printed
    Logs {
        /// The function
        function: FunctionName,
        /// Keep showing lines as they come
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the sandboxes of a function
    Instances {
        /// The function
        function: FunctionName,
        /// Keep showing changes as they come
        #[arg(short, long)]
        follow: bool,
    },
    /// Show what the functions have used in a month, and the budget
    Usage {
        /// The month, such as 2026-11 [default: this one]
        #[arg(long, value_name = "MONTH")]
        month: Option<String>,
    },
    /// Manage tenants (needs the operator's key)
    #[command(subcommand)]
    Tenant(Tenant),
    /// Manage the API keys of a tenant
    #[command(subcommand)]
    Key(Key),
    /// Check the toolchain, the server and the key
    Doctor,
    /// Show and set the defaults of this command line
    #[command(subcommand)]
    Config(Config),
    /// Try the model on stdin; the server starts itself so for every upload
    #[command(name = sandpiper_server::TRIAL_ARGUMENT, hide = true)]
    TryModel,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// The folder that holds everything the server stores; made when missing
    #[arg(long, value_name = "DIR", default_value = "sandpiper-data")]
    pub(crate) data: PathBuf,
    /// A configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A folder of policies in place of the built-in ones
    #[arg(long, value_name = "DIR")]
    pub(crate) policies: Option<PathBuf>,
    /// A second address that serves /metrics without a key
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// The form of the server's own log, on stderr
    #[arg(long, value_enum, default_value_t = LogForm::Text)]
    pub(crate) log_format: LogForm,
    /// The memory for models, such as 512MiB or 8GiB; a bare number is MiB [default: the settings file's, or 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub(crate) model_memory: Option<u64>,
    /// Stop when stdin ends; the demo ties its server to itself by this
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
    /// The file descriptors that a server leaves to the one that takes over from it
    #[arg(long = INHERIT_ARGUMENT.trim_start_matches('-'), hide = true, value_name = "FDS")]
    pub(crate) inherit: Option<Inherited>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Print the answer and stop
    #[arg(long)]
    pub(crate) once: bool,
    /// The picture of a digit to send
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Keep the server's data in this folder [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// The function's name, and the folder's
    pub(crate) name: FunctionName,
    /// What to start from
    #[arg(long, value_enum, default_value_t = Template::Hello)]
    pub(crate) template: Template,
    /// The guest SDK to depend on [default: that of the checkout around you, or of the one this program was built in]
    #[arg(long, value_name = "PATH")]
    pub(crate) sdk: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    /// Answers with JSON
    Hello,
    /// Runs a model on the numbers it is sent
    Model,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The function's folder, or its manifest
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Upload what the last build left
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Leave the alias `live` where it is
    #[arg(long)]
    pub(crate) no_activate: bool,
    /// Upload this component; nothing is built
    #[arg(long, value_name = "FILE")]
    pub(crate) component: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) canary: Canary,
}

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// [TENANT/]NAME[@VERSION|@ALIAS]
    pub(crate) function: FunctionRef,
    /// The path and query that the function sees
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// The body; @FILE reads a file and @- reads stdin
    #[arg(short, long, value_name = "DATA|@FILE")]
    pub(crate) data: Option<String>,
    /// The method [default: GET, or POST with --data]
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// A header, as `name: value`; may be given again
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
    /// Print the status and the headers too
    #[arg(short, long)]
    pub(crate) include: bool,
    /// Make a job of the request, and print the job's id
    #[arg(long = "async")]
    pub(crate) later: bool,
    /// Wait for the job's end and print its result
    #[arg(long, requires = "later")]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Functions {
    /// List the functions
    List,
    /// Show one function
    Show { name: FunctionName },
    /// Delete a function and all its versions
    Delete { name: FunctionName },
    /// List the versions of a function
    Versions { name: FunctionName },
    /// Move an alias back to where it was before
    Rollback {
        name: FunctionName,
        #[arg(long, default_value = "live")]
        alias: AliasName,
    },
    /// Point an alias at a version, or split its traffic: `3`, or `3=90,4=10`
    Alias {
        name: FunctionName,
        alias: AliasName,
        target: AliasTarget,
        /// Keep each caller on one version of a split, by a header or a cookie: `header:x-user`, `cookie:group`,
        /// or `none`
        #[arg(long, value_name = "HOW")]
        sticky: Option<Sticky>,
        /// Point at a version even though it has failed
        #[arg(long)]
        force: bool,
    },
    /// Show the rollout of an alias, or end it
    Rollout {
        name: FunctionName,
        #[arg(long, default_value = "live")]
        alias: AliasName,
        /// Give all the traffic back to the version of before
        #[arg(long)]
        abort: bool,
    },
    /// Show where an alias has pointed, and why
    History {
        name: FunctionName,
        #[arg(long, default_value = "live")]
        alias: AliasName,
    },
    /// Say which versions are kept: the latest, or these; the newest and those with aliases always are
    Retain {
        name: FunctionName,
        /// So many of the newest
        #[arg(long, value_name = "COUNT", conflicts_with = "versions")]
        latest: Option<u32>,
        /// These, with commas between them
        #[arg(long, value_name = "VERSIONS", value_delimiter = ',')]
        versions: Option<Vec<u32>>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Upload a model
    Push {
        /// An ONNX file
        file: PathBuf,
        /// The model's name [default: the file's, without its extension]
        #[arg(long)]
        name: Option<ModelName>,
        /// Leave the alias `live` where it is
        #[arg(long)]
        no_activate: bool,
        /// How the version is loaded and run, as `name=value`: batching, batch_size_max, batch_tolerance,
        /// max_delay_us, cache, pinned; may be given again
        #[arg(long = "option", value_name = "OPTION", value_parser = option)]
        options: Vec<(String, String)>,
        /// A JSON array of requests, each with its `inputs`, to warm up and to measure with
        #[arg(long, value_name = "FILE")]
        samples: Option<PathBuf>,
    },
    /// Say which versions are kept: the latest, or these; the newest and those with aliases always are
    Retain {
        name: ModelName,
        /// So many of the newest
        #[arg(long, value_name = "COUNT", conflicts_with = "versions")]
        latest: Option<u32>,
        /// These, with commas between them
        #[arg(long, value_name = "VERSIONS", value_delimiter = ',')]
        versions: Option<Vec<u32>>,
    },
    /// List the models
    List,
    /// Show one model
    Show { name: ModelName },
    /// Delete a model and all its versions
    Delete { name: ModelName },
    /// List the versions of a model
    Versions { name: ModelName },
    /// Let other tenants load a model
    Grant {
        name: ModelName,
        /// Tenants, with commas between them, or `*` for every tenant; they replace those of before
        #[arg(long, value_name = "TENANTS", required_unless_present = "none")]
        to: Option<String>,
        /// Withdraw every grant
        #[arg(long, conflicts_with = "to")]
        none: bool,
    },
    /// Move an alias back to where it was before
    Rollback {
        name: ModelName,
        #[arg(long, default_value = "live")]
        alias: AliasName,
    },
    /// Point an alias at a version, or split its traffic: `3`, or `3=90,4=10`
    Alias { name: ModelName, alias: AliasName, target: AliasTarget },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Make a tenant
    Create {
        name: TenantName,
        /// Its tier, such as free, standard or dedicated
        #[arg(long, default_value = "standard")]
        tier: String,
    },
    /// List the tenants
    List,
    /// Show one tenant
    Show { name: TenantName },
    /// Delete a tenant and everything it owns
    Delete { name: TenantName },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key; it is shown once
    Create {
        /// What it may do: deploy,delete,invoke,models,logs,keys [default: all]
        #[arg(long, value_delimiter = ',', value_name = "SCOPES")]
        scopes: Vec<Scope>,
        /// When it ends: a span such as 12h, 30d or 8w, or a moment such as 2030-01-31T00:00:00Z
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// List the keys, without their secrets
    List,
    /// End a key now
    Revoke {
        /// The key's id, as `list` shows it
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Set a default; the value `-` reads it from stdin
    Set { name: Setting, value: String },
    /// Remove a default
    Unset { name: Setting },
    /// Show what is in force, and where it comes from
    Show,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setting {
    Server,
    Key,
    Tenant,
}

/// A size in MiB, or with a unit.
fn mebibytes(text: &str) -> Result<u64, &'static str> {
    const RULE: &str = "give a size such as 512, 512MiB or 8GiB, of at least 1 MiB";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => 1,
        "g" | "gib" => 1 << 10,
        "t" | "tib" => 1 << 20,
        _ => return Err(RULE),
    };
    let size = number.parse().ok().and_then(|number: u64| number.checked_mul(factor));
    size.filter(|size| (1..=1 << 40).contains(size)).ok_or(RULE)
}

/// `name=value`.
fn option(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("give it as name=value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// `[tenant/]name[@selector]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FunctionRef {
    pub(crate) tenant: Option<TenantName>,
    pub(crate) name: FunctionName,
    pub(crate) selector: Option<Selector>,
}

impl FromStr for FunctionRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let say = |error: &dyn std::fmt::Display| error.to_string();
        let (path, selector) = match text.split_once('@') {
            Some((path, selector)) => {
                (path, Some(selector.parse::<Selector>().map_err(|error| say(&error))?))
            }
            None => (text, None),
        };
        let (tenant, name) = match path.split_once('/') {
            Some((tenant, name)) => {
                (Some(tenant.parse::<TenantName>().map_err(|error| say(&error))?), name)
            }
            None => (None, path),
        };
        Ok(FunctionRef { tenant, name: name.parse().map_err(|error| say(&error))?, selector })
    }
}

/// What an alias is to point at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AliasTarget {
    /// One version.
    Version(u32),
    /// Versions and their weights.
    Weights(Vec<(u32, u32)>),
}

impl FromStr for AliasTarget {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "give a version such as 3, or weights such as 3=90,4=10";
        let number = |text: &str| text.parse::<u32>().map_err(|_| RULE);
        let version = |text: &str| number(text).and_then(|n| if n > 0 { Ok(n) } else { Err(RULE) });
        if !text.contains('=') {
            return Ok(AliasTarget::Version(version(text)?));
        }
        let weight = |part: &str| {
            let (left, right) = part.split_once('=').ok_or(RULE)?;
            Ok((version(left)?, number(right)?))
        };
        text.split(',').map(weight).collect::<Result<_, _>>().map(AliasTarget::Weights)
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
