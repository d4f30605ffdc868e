//! The arguments of `jobs` and `batch`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sandpiper_domain::{FunctionName, JobId, Selector};

/// Where a job stands, as the server names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum State {
    Pending,
    Running,
    Done,
    Dead,
    Cancelled,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// List jobs, the newest first
    List {
        /// Those in this state alone
        #[arg(long, value_enum)]
        state: Option<State>,
        /// Those of this function alone
        #[arg(long, value_name = "NAME")]
        function: Option<FunctionName>,
        /// So many at most
        #[arg(long, default_value_t = 100, value_name = "COUNT")]
        limit: u32,
    },
    /// Show one job
    Show { id: JobId },
    /// Print what a job was answered
    Result { id: JobId },
    /// Take a job back; of one that is done, delete the result
    Cancel { id: JobId },
    /// Send dead jobs on their way again: one, those of a function, or all
    Redrive {
        /// The job
        #[arg(conflicts_with = "function")]
        id: Option<JobId>,
        /// The dead jobs of this function
        #[arg(long, value_name = "NAME")]
        function: Option<FunctionName>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Batch {
    /// Send every line of a file to a function, and fetch what comes out
    Run(BatchRun),
    /// Follow a batch that runs, and fetch what comes out
    Attach {
        id: JobId,
        /// Where the output goes [default: stdout]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List batches, the newest first
    List,
    /// Show one batch
    Show { id: JobId },
    /// Print a batch's output
    Output {
        id: JobId,
        /// What is there so far
        #[arg(long)]
        partial: bool,
    },
    /// Stop a batch
    Cancel { id: JobId },
}

#[derive(Debug, Args)]
pub(crate) struct BatchRun {
    /// The function
    pub(crate) function: FunctionName,
    /// A file of JSON Lines
    pub(crate) input: PathBuf,
    /// Where the output goes [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The path that the function sees
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) path: String,
    /// A version or an alias of the function
    #[arg(long, default_value = "live", value_name = "SELECTOR")]
    pub(crate) selector: Selector,
    /// Lines in one shard [default: what suits the batch]
    #[arg(long, value_name = "COUNT")]
    pub(crate) shard_lines: Option<u32>,
    /// Print the batch's id and leave it running
    #[arg(long, conflicts_with = "output")]
    pub(crate) detach: bool,
}
