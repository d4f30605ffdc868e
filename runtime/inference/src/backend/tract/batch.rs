//! Decides at load whether calls of a model run together.
//!
//! 1. By structure ([`rows`](super::rows)): axis 0 of everything is the row, and every operator leaves rows apart.
//! 2. By measuring t(b), in CPU time of this thread: with the one plan for all sizes, and with a plan made for b rows
//!    where such plans cost little. The faster one is kept, and b only where a row in it takes clearly less.
//! 3. By a probe: rows of made-up values give the same bits in a batch as alone, or within the model's tolerance.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sandpiper_domain::{ModelOptions, NamedTensor, Tensor};
use tract_onnx::prelude::{InferenceModel, TVec};

use super::{
    Plans, TractProgram,
    audit::{Declared, Dim},
    load::{SAMPLE_SIZES, sample},
    plan::Plan,
    rows::declares_rows,
    trial_rows::{Random, agrees, rows_of},
};
use crate::{BatchCost, Batching, batch, contain::contained, scheduler::thread_cpu_ns};

/// The batch sizes that are tried.
const SIZES: [u32; 6] = [1, 2, 4, 8, 16, 32];
/// What measuring and probing may take. A model that is loaded again pays it again, and somebody may be waiting.
const BUDGET: Duration = Duration::from_millis(500);
/// A size is of use where one of its rows takes less than this part of a row alone.
const GAIN: f64 = 0.9;
/// A plan for one size is kept where it takes less than this part of the one for all.
const SPECIAL_GAIN: f64 = 0.97;
/// Runs of which the median is taken: more where they are short.
const RUNS: [usize; 2] = [5, 15];
const SHORT: Duration = Duration::from_micros(500);
/// Plans for one size hold weights of their own. All of a model together hold no more than about this.
const SPECIAL_BYTES_MAX: u64 = 16 << 20;
/// Samples that each size is probed with, in the time there is.
const SAMPLES: u64 = 4;
/// Making a plan for one size is not tried where the first took longer.
const SPECIAL_BUILD_MAX: Duration = Duration::from_millis(40);

/// Measures, probes, and sets up the program accordingly.
pub(super) fn fit(
    program: &mut TractProgram,
    model: &InferenceModel,
    declared: &Declared,
    options: &ModelOptions,
    samples: &[Vec<NamedTensor>],
) {
    let mut batching = Batching { sizes: vec![1], ..Batching::default() };
    if let Err(reason) = is_made_of_rows(program, model, declared) {
        batching.reason = Some(reason.to_owned());
    } else {
        let (begun, rows) = (Instant::now(), rows_of(program, samples));
        let trial = Trial { program, model, declared, begun, shapes: Vec::new(), rows };
        let measured = trial.measure(options);
        program.by_rows = measured.plans;
        batching = measured.batching;
    }
    program.batching = batching;
}

/// Sets up the program as measuring it did before; says whether that could be done.
pub(super) fn restore(
    program: &mut TractProgram,
    model: &InferenceModel,
    declared: &Declared,
    known: &Batching,
) -> bool {
    let build = |rows: u32| {
        let shapes = with_rows(sample(model, declared, SAMPLE_SIZES[1])?, rows as usize);
        let plan = contained(|| Plan::for_shapes(model, declared, &shapes).ok()).ok()??;
        Some((rows as usize, shapes, Arc::new(plan)))
    };
    match &program.plans {
        Plans::One(_) => {
            let plans: Option<Vec<_>> = known.own_plans.iter().map(|rows| build(*rows)).collect();
            let Some(plans) = plans else { return false };
            program.by_rows = plans.into_iter().map(|(rows, _, plan)| (rows, plan)).collect();
        }
        Plans::ByShape(plans) if has_one_shape(declared) => {
            for (_, shapes, plan) in known.sizes.iter().filter_map(|rows| build(*rows)) {
                plans.keep(&shapes, plan);
            }
        }
        Plans::ByShape(_) => {}
    }
    program.batching = known.clone();
    true
}

/// No axis but the first is free.
fn has_one_shape(declared: &Declared) -> bool {
    let dims = declared.inputs.iter().flat_map(|slot| slot.dims.iter().flatten().skip(1));
    dims.into_iter().all(|dim| matches!(dim, Dim::Fixed(_)))
}

/// The structure of the graph allows batches.
fn is_made_of_rows(
    program: &TractProgram,
    model: &InferenceModel,
    declared: &Declared,
) -> Result<(), &'static str> {
    declares_rows(declared)?;
    let apart = "an operator may mix the rows of a batch";
    match &program.plans {
        Plans::One(plan) => {
            plan.keeps_rows()?;
            plan.carries_rows().then_some(()).ok_or(apart)
        }
        Plans::ByShape(plans) => {
            let build = |rows: usize| {
                let shapes = with_rows(sample(model, declared, SAMPLE_SIZES[1])?, rows);
                contained(|| plans.build(&shapes).ok()).ok().flatten()
            };
            let (Some(one), Some(two)) = (build(1), build(2)) else {
                return Err("the backend cannot make a plan for a batch");
            };
            let outputs = declared.outputs.len();
            if !(0..outputs).all(|output| grows_with_rows(&one, &two, output)) {
                return Err("axis 0 of an output is not that of the inputs");
            }
            two.carries_rows().then_some(()).ok_or(apart)
        }
    }
}

/// Whether an output of a plan for one row becomes that of a plan for two by its axis 0 alone.
fn grows_with_rows(one: &Plan, two: &Plan, output: usize) -> bool {
    let shape = |plan: &Plan| -> Option<Vec<i64>> {
        plan.output(output).ok()?.shape.iter().map(|dim| dim.to_i64().ok()).collect()
    };
    match (shape(one).as_deref(), shape(two).as_deref()) {
        (Some([1, one @ ..]), Some([2, two @ ..])) => one == two,
        _ => false,
    }
}

pub(super) fn with_rows(mut shapes: Vec<TVec<usize>>, rows: usize) -> Vec<TVec<usize>> {
    for shape in &mut shapes {
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
    }
    shapes
}

struct Trial<'a> {
    program: &'a TractProgram,
    model: &'a InferenceModel,
    declared: &'a Declared,
    begun: Instant,
    /// Of the sample's inputs, with one row.
    shapes: Vec<TVec<usize>>,
    /// The rows of the samples that came with the model, all of the same shapes; none where there are none.
    rows: Vec<Vec<Tensor>>,
}

#[derive(Default)]
struct Measured {
    batching: Batching,
    plans: Vec<(usize, Arc<Plan>)>,
}

/// A way to run so many rows.
#[derive(Clone)]
struct Way {
    rows: usize,
    took: Duration,
    plan: Arc<Plan>,
    is_special: bool,
}

impl Way {
    /// The time for each row.
    fn row(&self) -> Duration {
        self.took / self.rows as u32
    }
}

/// The ways to run so many rows: the plan for all sizes, then a faster one for this size where there is one.
type Ways = (Way, Option<Way>);

impl Trial<'_> {
    fn measure(mut self, options: &ModelOptions) -> Measured {
        let mut measured = Measured::default();
        measured.batching.sizes = vec![1];
        let Some(alone) = self.first() else {
            let reason =
                "a sample of made-up values does not run, or not in the time for measuring";
            measured.batching.reason = Some(reason.to_owned());
            return measured;
        };
        let mut all = vec![alone];
        // Without batches, the one size is still worth a plan of its own.
        let size_max = if options.batching { options.batch_size_max } else { 1 };
        for size in SIZES.iter().skip(1).filter(|size| **size <= size_max) {
            let last = all.last().map_or(Duration::ZERO, |(way, _)| way.took);
            if self.begun.elapsed() + last * 2 * RUNS[0] as u32 > BUDGET {
                break;
            }
            let Some(ways) = self.ways(*size as usize) else { break };
            all.push(ways);
        }
        let fastest =
            |(general, special): &Ways| special.as_ref().map_or(general.took, |way| way.took);
        let point = |ways: &Ways| BatchCost {
            size: ways.0.rows as u32,
            us: fastest(ways).as_secs_f64() * 1e6,
        };
        measured.batching.curve = all.iter().map(point).collect();
        let alone = all.remove(0);
        let limit = fastest(&alone).mul_f64(GAIN);
        let tried = all.len();
        let pays =
            all.into_iter().flat_map(|(general, special)| [special, Some(general)]).flatten();
        let pays: Vec<Way> = pays.filter(|way| way.row() < limit).collect();
        self.begun = Instant::now();
        let chosen = self.choose(alone, &pays, options.batch_tolerance);
        let unfaithful = pays.iter().any(|way| chosen.iter().all(|kept| kept.rows != way.rows));
        let differs = "rows of a sample do not give the same in a batch as alone";
        measured.batching.reason = match (tried, pays.is_empty(), chosen.len()) {
            (0, ..) if !options.batching => Some("the option `batching` is off".to_owned()),
            (0, ..) if options.batch_size_max < 2 => {
                Some("the option `batch_size_max` is 1".to_owned())
            }
            (0, ..) => {
                Some("batches of a sample do not run, or not in the time for measuring".to_owned())
            }
            (_, true, _) => Some("batches are not faster than the same rows one by one".to_owned()),
            (_, _, 1) => Some(differs.to_owned()),
            _ if unfaithful => Some(format!("{differs}, in some sizes")),
            _ => None,
        };
        measured.batching.sizes = chosen.iter().map(|way| way.rows as u32).collect();
        if let (Plans::ByShape(plans), true) = (&self.program.plans, has_one_shape(self.declared)) {
            for way in &chosen {
                plans.keep(&with_rows(self.shapes.clone(), way.rows), way.plan.clone());
            }
        }
        let special = chosen.into_iter().filter(|way| way.is_special);
        measured.plans = special.map(|way| (way.rows, way.plan)).collect();
        measured.batching.own_plans = measured.plans.iter().map(|(rows, _)| *rows as u32).collect();
        measured
    }

    /// How rows run, first those alone. A row alone may run in the way that agrees with batches although it is not the
    /// fastest one, where the batches make up for it.
    fn choose(&self, alone: Ways, pays: &[Way], tolerance: f32) -> Vec<Way> {
        let (general, special) = alone;
        let with = |alone: &Way| {
            let mut chosen = vec![alone.clone()];
            for way in pays {
                // The faster way of a size comes first.
                let is_new = chosen.iter().all(|kept| kept.rows != way.rows);
                if is_new && self.is_faithful(alone, way, tolerance) {
                    chosen.push(way.clone());
                }
            }
            chosen
        };
        let best = |chosen: &[Way]| chosen.iter().map(Way::row).min().unwrap_or(Duration::MAX);
        let common = with(&general);
        let Some(special) = special else { return common };
        let fast = with(&special);
        if best(&common) < best(&fast).mul_f64(GAIN) { common } else { fast }
    }

    /// A row alone. Settles how large the sample is.
    fn first(&mut self) -> Option<Ways> {
        if let Some(row) = self.rows.first() {
            self.shapes = row.iter().map(|input| input.shape().iter().copied().collect()).collect();
            if let Some(ways) = self.ways(1) {
                return Some(ways);
            }
            self.rows.clear();
        }
        let mut sizes = SAMPLE_SIZES;
        sizes.reverse();
        for free in sizes {
            self.shapes = sample(self.model, self.declared, free)?;
            if let Some(ways) = self.ways(1) {
                return Some(ways);
            }
        }
        None
    }

    /// The plan for all sizes, and one for this size where it is faster.
    fn ways(&self, rows: usize) -> Option<Ways> {
        let inputs = self.inputs(rows, 0)?;
        let general = match &self.program.plans {
            Plans::One(plan) => plan.clone(),
            Plans::ByShape(plans) => {
                let shapes = with_rows(self.shapes.clone(), rows);
                Arc::new(contained(|| plans.build(&shapes).ok()).ok().flatten()?)
            }
        };
        // Plans by shape are made for this one already.
        let is_general = matches!(self.program.plans, Plans::One(_));
        let special = if is_general { self.special(rows) } else { None };
        let took = self.time([Some(&general), special.as_ref()], &inputs);
        let general = Way { rows, took: took[0]?, plan: general, is_special: false };
        let special =
            special.zip(took[1]).map(|(plan, took)| Way { rows, took, plan, is_special: true });
        let limit = general.took.mul_f64(SPECIAL_GAIN);
        Some((general, special.filter(|way| way.took < limit)))
    }

    /// A plan for this number of rows, where it is small and soon made.
    fn special(&self, rows: usize) -> Option<Arc<Plan>> {
        let bytes = self.program.parameters.saturating_mul(4 * SIZES.len() as u64);
        if !has_one_shape(self.declared)
            || bytes > SPECIAL_BYTES_MAX
            || self.begun.elapsed() > BUDGET / 2
        {
            return None;
        }
        let begun = Instant::now();
        let shapes = with_rows(self.shapes.clone(), rows);
        let plan =
            contained(|| Plan::for_shapes(self.model, self.declared, &shapes).ok()).ok()??;
        (begun.elapsed() < SPECIAL_BUILD_MAX).then(|| Arc::new(plan))
    }

    /// The medians of both plans, which take turns; `None` for one that fails or takes all of the time.
    fn time(&self, plans: [Option<&Arc<Plan>>; 2], inputs: &[Tensor]) -> [Option<Duration>; 2] {
        let first = plans.map(|plan| plan.and_then(|plan| self.once(plan, inputs)));
        let shortest = first.iter().flatten().min().copied().unwrap_or(Duration::ZERO);
        let runs = if shortest < SHORT { RUNS[1] } else { RUNS[0] };
        let mut took = first.map(|first| first.map(|first| vec![first]));
        for _ in 1..runs {
            for (plan, took) in plans.iter().zip(&mut took) {
                if self.begun.elapsed() > BUDGET {
                    break;
                }
                if let (Some(plan), Some(took)) = (plan, took) {
                    took.extend(self.once(plan, inputs));
                }
            }
        }
        took.map(|took| {
            let mut took = took?;
            // The first run is the slowest, and counts only where it is the only one.
            if took.len() > 1 {
                took.remove(0);
            }
            took.sort_unstable();
            took.get(took.len() / 2).copied()
        })
    }

    /// The CPU time of one run.
    fn once(&self, plan: &Plan, inputs: &[Tensor]) -> Option<Duration> {
        let inputs = inputs.to_vec();
        let cpu = thread_cpu_ns();
        self.run(plan, inputs)?;
        Some(Duration::from_nanos(thread_cpu_ns().saturating_sub(cpu).max(1)))
    }

    fn run(&self, plan: &Plan, inputs: Vec<Tensor>) -> Option<Vec<NamedTensor>> {
        let stop = || self.begun.elapsed() > BUDGET;
        let ran = self.program.run_with(plan, inputs, &stop, Instant::now());
        Some(ran.ok()?.outputs)
    }

    /// Whether each row of some samples gives in a batch what it gives alone.
    fn is_faithful(&self, alone: &Way, way: &Way, tolerance: f32) -> bool {
        for sample in 0..SAMPLES {
            if sample > 0 && self.begun.elapsed() > BUDGET / 2 {
                break;
            }
            if !self.agrees_on(sample, alone, way, tolerance).unwrap_or(false) {
                return false;
            }
        }
        true
    }

    /// Calls of several rows run with the general plan where they run alone, so that it must agree, too.
    fn agrees_on(&self, sample: u64, alone: &Way, way: &Way, tolerance: f32) -> Option<bool> {
        let inputs = self.inputs(way.rows, sample)?;
        let rows = vec![1; way.rows];
        let whole = batch::split(self.run(&way.plan, inputs.clone())?, &rows)?;
        let general = match &self.program.plans {
            Plans::One(plan) => batch::split(self.run(plan, inputs.clone())?, &rows)?,
            Plans::ByShape(_) => whole.clone(),
        };
        for (row, (whole, general)) in whole.iter().zip(&general).enumerate() {
            let inputs: Option<Vec<Tensor>> =
                inputs.iter().map(|input| batch::row(input, row)).collect();
            let own = self.run(&alone.plan, inputs?)?;
            let same = |other: &Vec<NamedTensor>| {
                let mut pairs = own.iter().zip(other);
                own.len() == other.len()
                    && pairs.all(|(a, b)| agrees(&a.tensor, &b.tensor, tolerance))
            };
            if !same(whole) || !same(general) {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Rows of the samples that came with the model, or of made-up values: integers of 0 and 1, floats from 0 to 1. The
    /// same ones each time.
    fn inputs(&self, rows: usize, sample: u64) -> Option<Vec<Tensor>> {
        if !self.rows.is_empty() {
            let turned = self.rows.iter().cycle().skip(sample as usize % self.rows.len());
            return batch::join(turned.take(rows).map(Vec::as_slice));
        }
        let mut random = Random(rows as u64 ^ (sample << 32));
        let slots = self.declared.inputs.iter().zip(&self.shapes);
        let tensor = |(slot, shape): (&super::audit::Slot, &TVec<usize>)| {
            let mut shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
            *shape.first_mut()? = rows as u64;
            let count = usize::try_from(shape.iter().product::<u64>()).ok()?;
            let columns = shape.last().map_or(1, |size| *size as usize).max(1);
            let element = |at: usize| match slot.is_text {
                true => {
                    let strings = &self.declared.strings;
                    let number = strings.usual(&slot.name, at % columns, random.next());
                    number.to_le_bytes().to_vec()
                }
                false => random.element(slot.datatype),
            };
            let data: Vec<u8> = (0..count).flat_map(element).collect();
            Tensor::new(slot.datatype?, &shape, Bytes::from(data)).ok()
        };
        slots.map(tensor).collect()
    }
}
