//! Settings: flags, environment and file, read here and nowhere else, and checked before anything starts.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use anyhow::Context;
use sandpiper_inference::Trial;
use serde::Deserialize;

/// The argument with which this program tries a model; whoever has the program calls [`crate::try_model`] then.
pub const TRIAL_ARGUMENT: &str = "try-model";

/// The argument of `serve` with which a server starts the one that takes over from it.
pub const INHERIT_ARGUMENT: &str = "--inherit";

/// File descriptors that another server has left open for this one, written as their numbers with commas between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    /// What the two talk through.
    pub control: i32,
    /// The socket that clients come to.
    pub listener: i32,
    /// The socket for metrics alone.
    pub metrics: Option<i32>,
}

impl FromStr for Inherited {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "a server gives this argument to the one that takes over from it";
        let numbers: Result<Vec<i32>, _> = text.split(',').map(str::parse).collect();
        match numbers.map_err(|_| RULE)?[..] {
            [control, listener] => Ok(Inherited { control, listener, metrics: None }),
            [control, listener, metrics] => {
                Ok(Inherited { control, listener, metrics: Some(metrics) })
            }
            _ => Err(RULE),
        }
    }
}

/// What this process was started with: the file, by its path, so that a newer one in its place is what starts next.
#[derive(Debug, Clone)]
pub(crate) struct OwnCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl OwnCommand {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut arguments = std::env::args_os();
        let program = match arguments.next().and_then(as_started) {
            Some(program) => program,
            None => std::env::current_exe().context("find the file of this program")?,
        };
        Ok(OwnCommand { program, arguments: without_inherited(arguments) })
    }
}

/// The program by the name it was started with, if that leads to it from everywhere. A link in it may lead to a newer
/// version by the time it is started again; the kernel knows only where it led.
fn as_started(name: OsString) -> Option<PathBuf> {
    let path = PathBuf::from(name);
    (path.is_absolute() && path.is_file()).then_some(path)
}

fn without_inherited(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == INHERIT_ARGUMENT {
            arguments.next();
        } else {
            kept.push(argument);
        }
    }
    kept
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line says.
pub struct ServeOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The folder of everything that lasts.
    pub data: PathBuf,
    /// A settings file.
    pub config: Option<PathBuf>,
    /// A folder of policies, instead of those compiled in.
    pub policies: Option<PathBuf>,
    /// A second listener, for metrics without a key.
    pub metrics_listen: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Memory for models, in MiB, instead of what the settings file says.
    pub model_memory_mib: Option<u64>,
    /// What a server leaves to this one, which takes over from it.
    pub inherited: Option<Inherited>,
    /// Called with the bound address once requests are answered.
    pub on_ready: Option<Box<dyn FnOnce(SocketAddr) + Send>>,
}

/// The settings file. An unknown key is an error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileSettings {
    /// Proxies whose `x-forwarded-*` headers are believed.
    pub(crate) trusted_proxies: Vec<IpAddr>,
    /// Compute threads; 0 is one for each core.
    pub(crate) inference_threads: usize,
    /// Calls of models that may wait.
    pub(crate) inference_queue: usize,
    /// Memory for models, in MiB. Those used longest ago make room.
    pub(crate) models_mib: u64,
    /// Answers kept for models that ask for it, in MiB.
    pub(crate) response_cache_mib: u64,
    /// Requests and answers of the inference protocol that are in memory, in MiB. A tenant has half of it at most.
    pub(crate) protocol_mib: u64,
    /// What trying an upload may take beside what the size of its file explains: memory in MiB, processor time in
    /// seconds. 0 leaves the usual limit.
    pub(crate) trial_memory_mib: u64,
    pub(crate) trial_cpu_s: u64,
    /// Sandboxes alive at once.
    pub(crate) sandboxes_max: u32,
    /// Connections open at once.
    pub(crate) connections_max: usize,
    /// Uploads worked on at once.
    pub(crate) uploads_max: usize,
    /// How long running requests are waited for at the end, in milliseconds.
    pub(crate) drain_ms: u64,
    /// The window over which a function's demand is averaged, in milliseconds.
    pub(crate) scale_window_ms: u64,
    /// The shorter one in which a sudden demand is seen.
    pub(crate) scale_panic_window_ms: u64,
    /// How long code that nobody asks for stays in memory, in milliseconds.
    pub(crate) code_idle_ms: u64,
    /// Sandboxes kept ready at once; 0 is half of `sandboxes_max`.
    pub(crate) ready_max: u32,
    /// Jobs worked on at once; 0 leaves it to the node.
    pub(crate) job_workers: usize,
    /// Private addresses that webhooks may call all the same.
    pub(crate) webhook_private: Vec<IpAddr>,
    /// How long the node says that it is not ready before it stops listening, in milliseconds.
    pub(crate) drain_delay_ms: u64,
    /// A log line for each invocation.
    pub(crate) access_log: bool,
}

impl Default for FileSettings {
    fn default() -> Self {
        FileSettings {
            trusted_proxies: Vec::new(),
            inference_threads: 0,
            inference_queue: 1024,
            models_mib: 4096,
            response_cache_mib: 64,
            protocol_mib: 1024,
            trial_memory_mib: 0,
            trial_cpu_s: 0,
            sandboxes_max: 1000,
            connections_max: 10_000,
            uploads_max: 4,
            drain_ms: 30_000,
            scale_window_ms: 60_000,
            scale_panic_window_ms: 6_000,
            code_idle_ms: 300_000,
            ready_max: 0,
            job_workers: 0,
            webhook_private: Vec::new(),
            drain_delay_ms: 0,
            access_log: false,
        }
    }
}

/// Everything that was settled before the start.
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) policies: Option<PathBuf>,
    /// The operator's key, when the environment brings one.
    pub(crate) operator_key: Option<String>,
    /// What is logged, in the syntax of `tracing`'s filters.
    pub(crate) log_filter: String,
    /// Another process leaves its sockets and its folder to this one, and drains.
    pub(crate) follows: bool,
    pub(crate) file: FileSettings,
}

impl Settings {
    pub(crate) fn load(options: &ServeOptions) -> anyhow::Result<Self> {
        let mut file = match &options.config {
            None => FileSettings::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("read the settings file {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("the settings file {} is refused", path.display()))?
            }
        };
        if let Some(models_mib) = options.model_memory_mib {
            file.models_mib = models_mib;
        }
        file.check()?;
        Ok(Settings {
            data: options.data.clone(),
            policies: options.policies.clone(),
            operator_key: environment("SANDPIPER_OPERATOR_KEY"),
            log_filter: environment("SANDPIPER_LOG").unwrap_or_else(|| "info".to_owned()),
            follows: options.inherited.is_some(),
            file,
        })
    }
}

impl FileSettings {
    /// How uploads of models are tried: by this very program, even when its file has been replaced meanwhile.
    pub(crate) fn trial(&self) -> Trial {
        let mut trial = Trial::new("/proc/self/exe".into(), vec![TRIAL_ARGUMENT.into()]);
        if self.trial_memory_mib > 0 {
            trial.memory_bytes = self.trial_memory_mib << 20;
        }
        if self.trial_cpu_s > 0 {
            trial.cpu_s = self.trial_cpu_s;
        }
        trial
    }

    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            (1..=5_000).contains(&self.sandboxes_max),
            "sandboxes_max must be from 1 to 5000"
        );
        anyhow::ensure!(self.inference_queue > 0, "inference_queue must be at least 1");
        anyhow::ensure!(
            (1..=1 << 40).contains(&self.models_mib),
            "models_mib must be from 1 to 2^40"
        );
        anyhow::ensure!(
            self.response_cache_mib <= 1 << 40 && self.trial_memory_mib <= 1 << 40,
            "response_cache_mib and trial_memory_mib must be at most 2^40"
        );
        anyhow::ensure!(
            (8..=1 << 40).contains(&self.protocol_mib),
            "protocol_mib must be from 8 to 2^40"
        );
        anyhow::ensure!(self.trial_cpu_s <= 86_400, "trial_cpu_s must be at most a day");
        anyhow::ensure!(self.connections_max > 0, "connections_max must be at least 1");
        anyhow::ensure!(self.uploads_max > 0, "uploads_max must be at least 1");
        self.check_elasticity()
    }

    fn check_elasticity(&self) -> anyhow::Result<()> {
        const HOUR_MS: u64 = 3_600_000;
        anyhow::ensure!(
            (1_000..=HOUR_MS).contains(&self.scale_window_ms),
            "scale_window_ms must be from 1000 to 3600000"
        );
        anyhow::ensure!(
            (100..=self.scale_window_ms).contains(&self.scale_panic_window_ms),
            "scale_panic_window_ms must be from 100 to scale_window_ms"
        );
        anyhow::ensure!(
            (1..=24 * HOUR_MS).contains(&self.code_idle_ms),
            "code_idle_ms must be from 1 to a day"
        );
        anyhow::ensure!(
            self.ready_max <= self.sandboxes_max,
            "ready_max must be no more than sandboxes_max"
        );
        anyhow::ensure!(self.job_workers <= 5_000, "job_workers must be at most 5000");
        anyhow::ensure!(
            self.webhook_private.len() <= 1_000,
            "webhook_private has too many addresses"
        );
        anyhow::ensure!(self.drain_delay_ms <= HOUR_MS, "drain_delay_ms must be at most an hour");
        Ok(())
    }
}

/// Where a supervisor wants to hear how the server is, as systemd's `sd_notify` has it.
#[allow(clippy::disallowed_methods)]
pub(crate) fn supervisor() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET")
}

#[allow(clippy::disallowed_methods)]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inherited_is_not_passed_on_again() {
        let given = ["serve", "--inherit", "3,4", "--data", "d"].map(OsString::from);
        assert_eq!(without_inherited(given.into_iter()), ["serve", "--data", "d"]);
        let inherited: Inherited = "3,4,5".parse().unwrap();
        assert_eq!(inherited, Inherited { control: 3, listener: 4, metrics: Some(5) });
        for wrong in ["", "3", "3,x", "3,4,5,6"] {
            assert!(wrong.parse::<Inherited>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_program_is_started_again_by_the_link_it_was_started_by() {
        let home = tempfile::tempdir().unwrap();
        let (file, link) = (home.path().join("v1"), home.path().join("current"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(as_started(link.clone().into()), Some(link));
        for name in [home.path().join("v2").into(), home.path().into(), OsString::from("current")] {
            assert_eq!(as_started(name), None);
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_and_a_known_one_is_read() {
        assert!(toml::from_str::<FileSettings>("sandboxs_max = 1").is_err());
        let file: FileSettings =
            toml::from_str("sandboxes_max = 7\ntrusted_proxies = [\"10.0.0.1\"]").unwrap();
        assert_eq!((file.sandboxes_max, file.trusted_proxies.len()), (7, 1));
        assert!(FileSettings { models_mib: 0, ..file.clone() }.check().is_err());
        assert!(FileSettings { sandboxes_max: 0, ..file.clone() }.check().is_err());
        assert!(FileSettings { ready_max: 8, ..file.clone() }.check().is_err());
        assert!(FileSettings { scale_panic_window_ms: 60_001, ..file.clone() }.check().is_err());
        assert!(FileSettings { drain_delay_ms: u64::MAX, ..file }.check().is_err());
    }
}
