//! Metrics of models under the names that Triton gives them, so that its dashboards work here.
//!
//! They are read from [`ModelStats`] when somebody scrapes; an inference does nothing for them.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use sandpiper_domain::{Band, ModelKey, TenantName};
use sandpiper_inference::{ModelStats, Timing};

use crate::app::App;

/// Versions whose metrics carry their names. The others are summed, or uploads could grow a scrape without bound.
const NAMED_MAX: usize = 1_000;
/// The same for one tenant, so that none takes the names of all others.
const NAMED_OF_TENANT_MAX: usize = 100;

/// One line for each version.
struct Series {
    /// Series of one name stand together.
    name: &'static str,
    help: &'static str,
    /// A label beside those of the version.
    label: &'static str,
    kind: Kind,
    read: fn(&Sample<'_>) -> u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It falls with what it counts.
    Gauge,
    /// It never falls.
    Counter,
    /// A part of a histogram: it never falls, and is named after the histogram with this behind it.
    Histogram(&'static str),
}

/// What is known of a version.
struct Sample<'a> {
    stats: &'a ModelStats,
    /// 0 where it is not in memory.
    memory_bytes: u64,
}

impl std::ops::Deref for Sample<'_> {
    type Target = ModelStats;

    fn deref(&self) -> &ModelStats {
        self.stats
    }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: fn(&Sample<'_>) -> u64,
) -> Series {
    Series { name, help, label, kind: Kind::Counter, read }
}

const fn histogram(
    part: &'static str,
    label: &'static str,
    read: fn(&Sample<'_>) -> u64,
) -> Series {
    let name = "nv_inference_first_response_histogram_ms";
    let help = "Time from the queue to the answer, of calls that ended well";
    Series { name, help, label, kind: Kind::Histogram(part), read }
}

fn count(timing: &Timing) -> u64 {
    timing.get().0
}

fn us(timing: &Timing) -> u64 {
    timing.get().1 / 1000
}

const FAILURES: &str = "nv_inference_request_failure";
const FAILURES_HELP: &str = "Calls that did not end well";

/// Named because an optimised build cannot have the length of a constant with functions in it in a type.
const SERIES_COUNT: usize = 29;

const SERIES: [Series; SERIES_COUNT] = [
    counter("nv_inference_request_success", "Calls that ended well", "", |s| count(&s.success)),
    counter(FAILURES, FAILURES_HELP, ",reason=\"REJECTED\"", |s| s.rejected.load(Relaxed)),
    counter(FAILURES, FAILURES_HELP, ",reason=\"CANCELED\"", |s| s.cancelled.load(Relaxed)),
    counter(FAILURES, FAILURES_HELP, ",reason=\"BACKEND\"", |s| count(&s.fail)),
    // There always, as Triton has it; nothing here fails for another reason.
    counter(FAILURES, FAILURES_HELP, ",reason=\"OTHER\"", |_| 0),
    counter("nv_inference_count", "Rows computed; those from the cache do not count", "", |s| {
        s.inference_count.load(Relaxed)
    }),
    counter("nv_inference_exec_count", "Runs of the graph, whatever their batch", "", |s| {
        s.execution_count.load(Relaxed)
    }),
    counter(
        "nv_inference_request_duration_us",
        "Time from the queue to the answer, of calls that ended well",
        "",
        |s| us(&s.success),
    ),
    counter("nv_inference_queue_duration_us", "Time in the queue", "", |s| us(&s.queue)),
    counter(
        "nv_inference_compute_input_duration_us",
        "Time to bring inputs into the engine's form",
        "",
        |s| us(&s.compute_input),
    ),
    counter("nv_inference_compute_infer_duration_us", "Time in the graph", "", |s| {
        us(&s.compute_infer)
    }),
    counter(
        "nv_inference_compute_output_duration_us",
        "Time to bring outputs out of the engine's form",
        "",
        |s| us(&s.compute_output),
    ),
    counter("nv_cache_num_hits_per_model", "Answers from the cache", "", |s| count(&s.cache_hit)),
    counter("nv_cache_num_misses_per_model", "Answers that the cache did not have", "", |s| {
        count(&s.cache_miss)
    }),
    counter("nv_cache_hit_duration_per_model", "Time of cache hits, in microseconds", "", |s| {
        us(&s.cache_hit)
    }),
    counter("nv_cache_miss_duration_per_model", "Time of cache misses, in microseconds", "", |s| {
        us(&s.cache_miss)
    }),
    histogram("_bucket", ",le=\"1\"", |s| s.answered_within(0)),
    histogram("_bucket", ",le=\"10\"", |s| s.answered_within(1)),
    histogram("_bucket", ",le=\"100\"", |s| s.answered_within(2)),
    histogram("_bucket", ",le=\"500\"", |s| s.answered_within(3)),
    histogram("_bucket", ",le=\"2000\"", |s| s.answered_within(4)),
    histogram("_bucket", ",le=\"5000\"", |s| s.answered_within(5)),
    histogram("_bucket", ",le=\"+Inf\"", |s| s.answered_within(6)),
    histogram("_sum", "", |s| s.success.get().1 / 1_000_000),
    histogram("_count", "", |s| s.answered_within(6)),
    Series {
        name: "nv_inference_pending_request_count",
        help: "Calls that wait",
        label: "",
        kind: Kind::Gauge,
        read: |s| s.pending.load(Relaxed),
    },
    Series {
        name: "sandpiper_model_memory_bytes",
        help: "Memory that the model takes; 0 where it is not loaded",
        label: "",
        kind: Kind::Gauge,
        read: |s| s.memory_bytes,
    },
    counter("sandpiper_model_loads_total", "Times the model was brought into memory", "", |s| {
        s.loads.load(Relaxed)
    }),
    counter("sandpiper_model_evictions_total", "Times it made room for another model", "", |s| {
        s.evictions.load(Relaxed)
    }),
];

type Totals = [u64; SERIES_COUNT];

/// What lasts from one scrape to the next.
#[derive(Default)]
pub(crate) struct ModelMetrics(Mutex<State>);

#[derive(Default)]
struct State {
    named: HashSet<ModelKey>,
    /// Versions without series of their own, as they were last seen.
    others: HashMap<ModelKey, Totals>,
    /// What such versions had come to that are gone: a sum of counters must not fall when one of them leaves it.
    gone: Totals,
    cpu: Option<CpuTimes>,
}

impl ModelMetrics {
    /// The metrics in Prometheus' text format.
    pub(crate) fn render(&self, app: &App) -> String {
        let all = app.inference.all_stats();
        let memory: HashMap<ModelKey, u64> = app.inference.models_memory().into_iter().collect();
        let all = all.into_iter().map(|(key, stats)| {
            let memory_bytes = memory.get(&key).copied().unwrap_or_default();
            let sample = Sample { stats: &stats, memory_bytes };
            (key, SERIES.map(|series| (series.read)(&sample)))
        });
        let all = all.collect();
        let mut text = String::new();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write_series(&mut text, &state.rows(all));
        write_bands(&mut text, app);
        let budget = (app.settings.models_mib << 20) as f64;
        let help = "The most that models in memory may take together";
        write_gauge(&mut text, "sandpiper_models_bytes_max", help, budget);
        state.write_node(&mut text);
        text
    }
}

/// The labels of one row, and its numbers.
type Row = (String, Totals);

impl State {
    fn rows(&mut self, all: Vec<(ModelKey, Totals)>) -> Vec<Row> {
        let State { named, others, gone, .. } = self;
        let present: HashSet<&ModelKey> = all.iter().map(|(key, _)| key).collect();
        named.retain(|key| present.contains(key));
        others.retain(|key, totals| {
            let stays = present.contains(key);
            if !stays {
                add_counters(gone, totals);
            }
            stays
        });
        let mut of_tenant: HashMap<TenantName, usize> = HashMap::new();
        for key in named.iter() {
            *of_tenant.entry(key.tenant.clone()).or_default() += 1;
        }
        let mut rows = Vec::new();
        for (key, totals) in all {
            // A version that is among the others stays there, or their sum would fall.
            if !named.contains(&key) && !others.contains_key(&key) {
                let of_tenant = of_tenant.entry(key.tenant.clone()).or_default();
                if named.len() < NAMED_MAX && *of_tenant < NAMED_OF_TENANT_MAX {
                    *of_tenant += 1;
                    named.insert(key.clone());
                }
            }
            match named.contains(&key) {
                true => rows.push((labels(&key), totals)),
                false => drop(others.insert(key, totals)),
            }
        }
        rows.sort();
        if !others.is_empty() || gone.iter().any(|total| *total > 0) {
            let mut sum = *gone;
            for totals in others.values() {
                sum.iter_mut().zip(totals).for_each(|(sum, total)| *sum += total);
            }
            rows.push((r#"model="other",version="other",tenant="other""#.to_owned(), sum));
        }
        rows
    }

    /// The node's processor and memory.
    fn write_node(&mut self, text: &mut String) {
        let now = CpuTimes::read();
        if let (Some(now), Some(before)) = (&now, &self.cpu) {
            let used = now.utilization_since(before);
            let help =
                "Part of the node's processor time in use since the last scrape, from 0 to 1";
            write_gauge(text, "nv_cpu_utilization", help, used);
        }
        self.cpu = now.or(self.cpu.take());
        if let Some((total, available)) = memory() {
            write_gauge(text, "nv_cpu_memory_total_bytes", "The node's memory", total as f64);
            let used = total.saturating_sub(available) as f64;
            write_gauge(text, "nv_cpu_memory_used_bytes", "The node's memory in use", used);
        }
    }
}

fn add_counters(gone: &mut Totals, totals: &Totals) {
    for ((sum, total), series) in gone.iter_mut().zip(totals).zip(&SERIES) {
        if series.kind != Kind::Gauge {
            *sum += total;
        }
    }
}

/// Names of tenants and models hold nothing that would have to be escaped.
fn labels(key: &ModelKey) -> String {
    format!(r#"model="{}",version="{}",tenant="{}""#, key.model, key.version, key.tenant)
}

fn write_series(text: &mut String, rows: &[Row]) {
    let mut last = "";
    for (index, series) in SERIES.iter().enumerate() {
        let Series { name, help, label, kind, .. } = series;
        let (kind, part) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", ""),
            Kind::Histogram(part) => ("histogram", *part),
        };
        // Writing to a string cannot fail.
        if *name != last {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        last = name;
        for (labels, totals) in rows {
            let _ = writeln!(text, "{name}{part}{{{labels}{label}}} {}", totals[index]);
        }
    }
}

fn write_bands(text: &mut String, app: &App) {
    let name = "sandpiper_inference_waiting";
    let _ = write!(
        text,
        "# HELP {name} Calls that wait, by their tenants' band\n# TYPE {name} gauge\n"
    );
    for (label, band) in [("low", Band::Low), ("normal", Band::Normal)] {
        let waiting = app.inference.queue_depth_of(band);
        let _ = writeln!(text, "{name}{{band=\"{label}\"}} {waiting}");
    }
}

fn write_gauge(text: &mut String, name: &str, help: &str, value: f64) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
}

/// Processor time of the node since it booted, in the kernel's ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CpuTimes {
    idle: u64,
    all: u64,
}

impl CpuTimes {
    fn read() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// proc(5): `cpu user nice system idle iowait irq softirq steal guest guest_nice`; the guests' time is part of the
    /// first two.
    fn parse(stat: &str) -> Option<Self> {
        let times = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
        let times: Vec<u64> = times.map_while(|ticks| ticks.parse().ok()).take(8).collect();
        let idle = times.get(3)? + times.get(4)?;
        Some(CpuTimes { idle, all: times.iter().sum() })
    }

    fn utilization_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        let idle = self.idle.saturating_sub(before.idle).min(all);
        if all == 0 { 0.0 } else { (all - idle) as f64 / all as f64 }
    }
}

/// The node's memory and what of it is available, in bytes.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((kib("MemTotal:")? << 10, kib("MemAvailable:")? << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str, model: &str, version: u32) -> ModelKey {
        ModelKey { tenant: tenant.parse().unwrap(), model: model.parse().unwrap(), version }
    }

    fn all(versions: std::ops::Range<u32>, calls: u64) -> Vec<(ModelKey, Totals)> {
        versions.map(|version| (key("acme", "m", version), [calls; SERIES.len()])).collect()
    }

    fn other(rows: &[Row]) -> Option<Totals> {
        let row = rows.iter().find(|(labels, _)| labels.contains("tenant=\"other\""));
        row.map(|(_, totals)| *totals)
    }

    #[test]
    fn no_tenant_has_more_series_than_its_part() {
        let mut state = State::default();
        let rows = state.rows(all(1..1 + NAMED_OF_TENANT_MAX as u32, 1));
        assert_eq!((rows.len(), other(&rows)), (NAMED_OF_TENANT_MAX, None));
        let mut more = all(1..1 + NAMED_OF_TENANT_MAX as u32 + 7, 1);
        more.push((key("beta", "m", 1), [5; SERIES.len()]));
        let rows = state.rows(more);
        assert_eq!(rows.len(), NAMED_OF_TENANT_MAX + 2);
        assert_eq!(other(&rows), Some([7; SERIES.len()]));
        assert!(rows.iter().any(|(labels, _)| labels.contains("tenant=\"beta\"")));
    }

    #[test]
    fn the_node_has_no_more_series_than_its_limit() {
        let tenants = NAMED_MAX / NAMED_OF_TENANT_MAX + 1;
        let versions = (0..tenants).flat_map(|tenant| {
            let tenant = format!("t{tenant}");
            (1..=NAMED_OF_TENANT_MAX as u32).map(move |v| (key(&tenant, "m", v), [1; SERIES.len()]))
        });
        let rows = State::default().rows(versions.collect());
        assert_eq!(rows.len(), NAMED_MAX + 1);
        assert_eq!(other(&rows), Some([NAMED_OF_TENANT_MAX as u64; SERIES.len()]));
    }

    #[test]
    fn the_sum_of_the_others_never_falls() {
        let mut state = State::default();
        let count = NAMED_OF_TENANT_MAX as u32 + 2;
        state.rows(all(1..1 + count, 3));
        // All that have a series go, and one of the others: the one that stays does not move.
        let left = state.others.keys().next().unwrap().version;
        let rows = state.rows(all(left..left + 1, 4));
        let sum = other(&rows).unwrap();
        assert_eq!(rows.len(), 1);
        for (series, total) in SERIES.iter().zip(sum) {
            let expected = if series.kind == Kind::Gauge { 4 } else { 3 + 4 };
            assert_eq!(total, expected, "{}", series.name);
        }
    }

    #[test]
    fn the_buckets_are_those_that_are_counted() {
        let bounds = SERIES.iter().filter_map(|series| {
            let bound = series.label.strip_prefix(",le=\"")?.strip_suffix('"')?;
            bound.parse::<u64>().ok()
        });
        assert_eq!(bounds.collect::<Vec<_>>(), sandpiper_inference::ANSWER_BOUNDS_MS);
    }

    #[test]
    fn processor_time_is_what_the_kernel_says() {
        let stat = "cpu  10 0 20 60 10 0 0 0 5 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        let before = CpuTimes::parse(stat).unwrap();
        assert_eq!(before, CpuTimes { idle: 70, all: 100 });
        let now = CpuTimes { idle: 145, all: 200 };
        assert_eq!(now.utilization_since(&before), 0.25);
        assert_eq!(before.utilization_since(&before), 0.0);
        assert_eq!(CpuTimes::parse("cpu 1 2"), None);
    }
}
