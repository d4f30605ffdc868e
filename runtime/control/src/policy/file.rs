//! One policy file, as written and as checked.

use sandpiper_domain::{Band, Budget, RateLimit, SandboxLimits, TenantLimits};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Limits, PolicyError, refusal};

const SCHEMA: u32 = 1;

/// No limit is larger: products with 1 MiB or 1,000 µs then stay far from overflow.
const LIMIT_MAX: u64 = 1 << 30;
/// A month's budget may be larger; it is counted in the units that it is written in.
const BUDGET_MAX: u64 = 1 << 40;
/// Sandboxes alive for each that may run, where a tier does not say.
const SANDBOXES_PER_PLACE: u32 = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: u32,
    sandbox: Sandbox,
    traffic: Traffic,
    catalog: Catalog,
    scheduler: Scheduler,
    #[serde(default)]
    jobs: Jobs,
    #[serde(default)]
    budget: Budget,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sandbox {
    memory_mib: u64,
    cpu_ms: u64,
    wall_ms: u64,
    tensor_mib: u64,
    request_body_mib: u64,
    log_kib: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Traffic {
    concurrency: u32,
    sandboxes: Option<u32>,
    queue: u32,
    #[serde(deserialize_with = "rate")]
    rate: Option<Rate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rate {
    per_s: u32,
    burst: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalog {
    functions: u32,
    models: u32,
    versions: u32,
    component_mib: u64,
    model_mib: u64,
    pinned_mib: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scheduler {
    weight: u32,
    band: Band,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Jobs {
    waiting: u32,
    batch_mib: u64,
}

impl Default for Jobs {
    fn default() -> Self {
        Jobs { waiting: 10_000, batch_mib: 256 }
    }
}

/// `"none"` is spelt out, so that a forgotten rate is an error and not an absent limit.
fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) if text == "none" => Ok(None),
        toml::Value::Table(table) => {
            table.try_into().map(Some).map_err(|error| D::Error::custom(error.message()))
        }
        _ => Err(D::Error::custom("a rate is `{ per_s = …, burst = … }` or \"none\"")),
    }
}

/// Reads and checks one file.
pub(super) fn parse(name: &str, text: &str) -> Result<Limits, PolicyError> {
    let file: File = toml::from_str(text).map_err(|error| refusal(name, error))?;
    if file.schema != SCHEMA {
        return Err(refusal(name, format!("schema is {}; known is {SCHEMA}", file.schema)));
    }
    for (key, value) in file.numbers() {
        if value == 0 || value > LIMIT_MAX {
            return Err(refusal(name, format!("`{key}` must be between 1 and {LIMIT_MAX}")));
        }
    }
    for (key, value) in file.budgets() {
        if value == 0 || value > BUDGET_MAX {
            return Err(refusal(name, format!("`{key}` must be between 1 and {BUDGET_MAX}")));
        }
    }
    // The one limit that may be nothing: a tier without pins.
    if file.catalog.pinned_mib > LIMIT_MAX {
        return Err(refusal(
            name,
            format!("`catalog.pinned_mib` must be between 0 and {LIMIT_MAX}"),
        ));
    }
    Ok(file.into())
}

impl File {
    fn numbers(&self) -> Vec<(&'static str, u64)> {
        let File { schema: _, sandbox, traffic, catalog, scheduler, jobs, budget: _ } = self;
        let mut numbers = vec![
            ("sandbox.memory_mib", sandbox.memory_mib),
            ("sandbox.cpu_ms", sandbox.cpu_ms),
            ("sandbox.wall_ms", sandbox.wall_ms),
            ("sandbox.tensor_mib", sandbox.tensor_mib),
            ("sandbox.request_body_mib", sandbox.request_body_mib),
            ("sandbox.log_kib", sandbox.log_kib),
            ("traffic.concurrency", traffic.concurrency.into()),
            ("traffic.queue", traffic.queue.into()),
            ("catalog.functions", catalog.functions.into()),
            ("catalog.models", catalog.models.into()),
            ("catalog.versions", catalog.versions.into()),
            ("catalog.component_mib", catalog.component_mib),
            ("catalog.model_mib", catalog.model_mib),
            ("scheduler.weight", scheduler.weight.into()),
            ("jobs.waiting", jobs.waiting.into()),
            ("jobs.batch_mib", jobs.batch_mib),
        ];
        if let Some(sandboxes) = traffic.sandboxes {
            numbers.push(("traffic.sandboxes", sandboxes.into()));
        }
        if let Some(rate) = &traffic.rate {
            numbers.push(("traffic.rate.per_s", rate.per_s.into()));
            numbers.push(("traffic.rate.burst", rate.burst.into()));
        }
        numbers
    }

    fn budgets(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Budget { requests, cpu_s, memory_gib_s, inference_s } = self.budget;
        [
            ("budget.requests", requests),
            ("budget.cpu_s", cpu_s),
            ("budget.memory_gib_s", memory_gib_s),
            ("budget.inference_s", inference_s),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }
}

impl From<File> for Limits {
    fn from(file: File) -> Self {
        let File { schema: _, sandbox, traffic, catalog, scheduler, jobs, budget } = file;
        let sandboxes = traffic.concurrency.saturating_mul(SANDBOXES_PER_PLACE);
        Limits {
            sandbox: SandboxLimits {
                memory_mib: sandbox.memory_mib,
                cpu_ms: sandbox.cpu_ms,
                wall_ms: sandbox.wall_ms,
                tensor_mib: sandbox.tensor_mib,
                request_body_mib: sandbox.request_body_mib,
                log_kib: sandbox.log_kib,
            },
            tenant: TenantLimits {
                concurrency: traffic.concurrency,
                sandboxes: traffic.sandboxes.unwrap_or(sandboxes),
                jobs: jobs.waiting,
                batch_mib: jobs.batch_mib,
                budget,
                queue: traffic.queue,
                rate: traffic.rate.map(|rate| RateLimit { per_s: rate.per_s, burst: rate.burst }),
                functions: catalog.functions,
                models: catalog.models,
                versions: catalog.versions,
                component_mib: catalog.component_mib,
                model_mib: catalog.model_mib,
                pinned_mib: catalog.pinned_mib,
                weight: scheduler.weight,
                band: scheduler.band,
            },
        }
    }
}

impl Limits {
    /// These limits, none above `ceiling`'s.
    pub(super) fn under(self, ceiling: Limits) -> Limits {
        let (own, top) = (self.tenant, ceiling.tenant);
        Limits {
            sandbox: self.sandbox.min(ceiling.sandbox),
            tenant: TenantLimits {
                concurrency: own.concurrency.min(top.concurrency),
                sandboxes: own.sandboxes.min(top.sandboxes),
                jobs: own.jobs.min(top.jobs),
                batch_mib: own.batch_mib.min(top.batch_mib),
                budget: own.budget.min(top.budget),
                queue: own.queue.min(top.queue),
                rate: lower_rate(own.rate, top.rate),
                functions: own.functions.min(top.functions),
                models: own.models.min(top.models),
                versions: own.versions.min(top.versions),
                component_mib: own.component_mib.min(top.component_mib),
                model_mib: own.model_mib.min(top.model_mib),
                pinned_mib: own.pinned_mib.min(top.pinned_mib),
                weight: own.weight.min(top.weight),
                band: match (own.band, top.band) {
                    (Band::Normal, Band::Normal) => Band::Normal,
                    _ => Band::Low,
                },
            },
        }
    }
}

fn lower_rate(own: Option<RateLimit>, top: Option<RateLimit>) -> Option<RateLimit> {
    match (own, top) {
        (Some(own), Some(top)) => {
            Some(RateLimit { per_s: own.per_s.min(top.per_s), burst: own.burst.min(top.burst) })
        }
        (rate, None) | (None, rate) => rate,
    }
}
