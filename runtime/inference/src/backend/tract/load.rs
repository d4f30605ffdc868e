//! From the bytes of an ONNX file to a program.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sandpiper_domain::{DataType, ModelOptions, ModelSignature, NamedTensor, TensorSpec};
use tract_onnx::prelude::{Framework, InferenceModel, TVec, TractError};

use super::{
    Plans, TractProgram,
    audit::{self, Declared, Dim, Slot},
    batch,
    convert::data_type,
    explain::unloadable,
    fact, fold,
    plan::{Failure, Plan, Trace},
    shapes::PlansByShape,
    zeros,
};
use crate::{
    Batching, LoadError,
    alloc::WORK_BYTES_MAX,
    backend::Program,
    contain::{Panicked, contained, measured_within},
    contract::{Contract, Tie, shown},
    scheduler::thread_cpu_ns,
};

/// A plan that runs longer than this on the smallest inputs is taken to work. It is CPU time, so that a busy machine
/// looks no less closely.
const TRIAL: Duration = Duration::from_secs(2);
/// Sizes tried for free dimensions other than the first. Convolutions refuse images of one pixel.
pub(super) const SAMPLE_SIZES: [usize; 2] = [1, 32];
/// How often the weights of a model may be in memory while it is loaded.
const WEIGHTS_HELD: usize = 8;
/// Stands for the shape of a value whose rank the graph does not state.
const RANK_UNKNOWN: [i64; 1] = [-1];

/// Parses, checks and optimises. Run it on a thread with a deep stack: tract recurses.
/// Measures what batches bring, too, unless that is `known` from before, and what the program holds in memory.
pub(crate) fn load(
    bytes: &[u8],
    options: &ModelOptions,
    samples: &[Vec<NamedTensor>],
    known: Option<&Batching>,
) -> Result<Arc<dyn Program>, LoadError> {
    let parse = || parse(bytes, options, samples, known);
    let loaded = measured_within(room(bytes.len()), parse);
    let (program, held) = loaded.map_err(|_| LoadError::Panicked)?;
    let program = program?;
    // Plans that were kept on the way have been counted already.
    program.footprint().add(held.saturating_sub(program.footprint().bytes()));
    Ok(program)
}

/// The memory that making a plan may take: the weights are held several times on the way.
fn room(file: usize) -> usize {
    WORK_BYTES_MAX.saturating_add(file.saturating_mul(WEIGHTS_HELD))
}

fn parse(
    bytes: &[u8],
    options: &ModelOptions,
    samples: &[Vec<NamedTensor>],
    known: Option<&Batching>,
) -> Result<Arc<dyn Program>, LoadError> {
    let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let broken = || match begins_like_onnx(bytes) {
        true => LoadError::Truncated,
        false => LoadError::NotOnnx,
    };
    let mut proto = onnx.proto_model_for_read(&mut &*bytes).map_err(|_| broken())?;
    if proto.graph.is_none() {
        return Err(broken());
    }
    let declared = audit::audit(&mut proto, &|operator| onnx.op_register.0.contains_key(operator))?;
    let mut model = onnx.model_for_proto_model(&proto).map_err(|error| unloadable(&error))?;
    let extremes = audit::extremes(&proto);
    drop(proto);
    fold::watch(&mut model, &extremes);
    if model.input_outlets().map_or(0, <[_]>::len) != declared.inputs.len() {
        let text = "it uses a value that nothing defines".to_owned();
        return Err(LoadError::Malformed(text));
    }
    let mut program = program(model.clone(), declared.clone(), room(bytes.len()))?;
    match known {
        Some(known) if batch::restore(&mut program, &model, &declared, known) => {}
        _ => batch::fit(&mut program, &model, &declared, options, samples),
    }
    Ok(Arc::new(program))
}

/// Files begin with the field `ir_version`, a small number.
fn begins_like_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=32, ..] | [0x08])
}

fn program(
    model: InferenceModel,
    declared: Declared,
    room: usize,
) -> Result<TractProgram, LoadError> {
    let free = |dim: &Dim| !matches!(dim, Dim::Fixed(_));
    let unranked = declared.inputs.iter().any(|slot| slot.dims.is_none());
    let flexible =
        unranked || declared.inputs.iter().flat_map(|slot| slot.dims.iter().flatten()).any(free);
    match symbolic_plan(&model, &declared) {
        Ok(plan) if !flexible => Ok(with_one_plan(declared, plan)?),
        Ok(plan) => {
            if runs_on_sample(&model, &declared, &plan, SAMPLE_SIZES[0]) {
                return with_one_plan(declared, plan);
            }
            // Perhaps the sample is too small for any plan; else plans by shape are the better ones.
            let plans = PlansByShape::new(model.clone(), declared.clone(), room);
            let sample = sample(&model, &declared, SAMPLE_SIZES[0]);
            let special = sample.and_then(|shapes| contained(|| plans.build(&shapes).ok()).ok()?);
            match special {
                Some(special) if runs_on_sample(&model, &declared, &special, SAMPLE_SIZES[0]) => {
                    with_plans_by_shape(&model, plans, declared)
                }
                _ => with_one_plan(declared, plan),
            }
        }
        Err(error) if !flexible => Err(error),
        Err(error) => {
            let plans = PlansByShape::new(model.clone(), declared.clone(), room);
            with_plans_by_shape(&model, plans, declared).map_err(|special| match special {
                // The symbolic attempt says more when both panic.
                LoadError::Panicked => error,
                special => special,
            })
        }
    }
}

fn symbolic_plan(model: &InferenceModel, declared: &Declared) -> Result<Plan, LoadError> {
    let fixed = |slot: &Slot| slot.dims.iter().flatten().all(|dim| matches!(dim, Dim::Fixed(_)));
    if declared.needs_sizes
        && !declared.inputs.iter().all(|slot| slot.dims.is_some() && fixed(slot))
    {
        return Err(LoadError::Unloadable("it needs the sizes of its inputs".to_owned()));
    }
    let attempt = contained(|| {
        let mut model = model.clone();
        for (index, slot) in declared.inputs.iter().enumerate() {
            let fact = fact::symbolic(&model, slot);
            model.set_input_fact(index, fact)?;
        }
        Plan::build(model)
    });
    explained(attempt)
}

fn explained(attempt: Result<Result<Plan, TractError>, Panicked>) -> Result<Plan, LoadError> {
    match attempt {
        Ok(plan) => plan.map_err(|error| unloadable(&error)),
        Err(Panicked) => Err(LoadError::Panicked),
    }
}

pub(super) fn sample(
    model: &InferenceModel,
    declared: &Declared,
    free: usize,
) -> Option<Vec<TVec<usize>>> {
    declared.inputs.iter().map(|slot| fact::sample(model, slot, free)).collect()
}

/// Runs the plan once on small tensors of zeros.
fn runs_on_sample(model: &InferenceModel, declared: &Declared, plan: &Plan, free: usize) -> bool {
    let Some(shapes) = sample(model, declared, free) else { return true };
    let zeros = |(slot, shape): (&Slot, &TVec<usize>)| zeros(&declared.strings, slot, shape);
    let tensors: Option<TVec<_>> = declared.inputs.iter().zip(&shapes).map(zeros).collect();
    let Some(tensors) = tensors else { return true };
    let end_ns = thread_cpu_ns().saturating_add(TRIAL.as_nanos() as u64);
    let stop = || thread_cpu_ns() > end_ns;
    let outcome = contained(|| plan.run(tensors, &stop, &Trace::default()));
    matches!(outcome, Ok(Ok(_) | Err(Failure::Stopped)))
}

fn with_one_plan(declared: Declared, plan: Plan) -> Result<TractProgram, LoadError> {
    let mut outputs = Vec::new();
    for (index, slot) in declared.outputs.iter().enumerate() {
        let fact = plan.output(index).map_err(|error| unloadable(&error))?;
        let datatype = data_type(fact.datum_type).ok_or_else(|| untypable(slot))?;
        let datatype = outward(slot, datatype)?;
        let shape = fact.shape.iter().map(|dim| dim.to_i64().unwrap_or(-1)).collect();
        outputs.push(TensorSpec { name: slot.name.clone(), datatype, shape });
    }
    let contract = contract(&declared, outputs, ties(&declared))?;
    Ok(TractProgram::new(contract, declared, Plans::One(Arc::new(plan))))
}

/// Checks the graph on samples, and takes from them what the declaration leaves open about the outputs.
fn with_plans_by_shape(
    model: &InferenceModel,
    plans: PlansByShape,
    declared: Declared,
) -> Result<TractProgram, LoadError> {
    let free = |slot: &Slot| {
        let dims = slot.dims.iter().flatten().skip(1);
        slot.dims.is_none() || dims.into_iter().any(|dim| !matches!(dim, Dim::Fixed(_)))
    };
    let lenient = declared.inputs.iter().any(free);
    let mut known = None;
    let mut refusal = None;
    for size in SAMPLE_SIZES {
        let Some(shapes) = sample(model, &declared, size) else { break };
        match explained(contained(|| plans.build(&shapes))) {
            Ok(plan) => {
                known = Some(plan);
                break;
            }
            Err(error) => refusal = refusal.or(Some(error)),
        }
        if !lenient {
            break;
        }
    }
    if let (None, Some(refusal), false) = (&known, &refusal, lenient) {
        return Err(refusal.clone());
    }
    let mut outputs = Vec::new();
    for (index, slot) in declared.outputs.iter().enumerate() {
        let fact = known.as_ref().and_then(|plan| plan.output(index).ok());
        let datatype = match fact {
            Some(fact) => data_type(fact.datum_type),
            None => slot.datatype,
        };
        let sampled = fact.map(|fact| fact.shape.iter().map(|dim| dim.to_i64().ok()).collect());
        let datatype =
            datatype.ok_or_else(|| refusal.clone().unwrap_or_else(|| untypable(slot)))?;
        let datatype = outward(slot, datatype)?;
        let shape = declared_shape(slot, sampled);
        outputs.push(TensorSpec { name: slot.name.clone(), datatype, shape });
    }
    let contract = contract(&declared, outputs, ties(&declared))?;
    Ok(TractProgram::new(contract, declared, Plans::ByShape(Arc::new(plans))))
}

/// The declared shape where the sample agrees with it; -1 for every size that it does not settle.
fn declared_shape(slot: &Slot, sampled: Option<Vec<Option<i64>>>) -> Vec<i64> {
    let stated = slot.dims.as_ref().map(|dims| {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).ok(),
            _ => None,
        };
        dims.iter().map(size).collect::<Vec<_>>()
    });
    match (stated, sampled) {
        (Some(stated), Some(sampled)) if stated.len() == sampled.len() => {
            let agree = |(stated, sampled)| if stated == sampled { stated } else { None };
            stated.into_iter().zip(sampled).map(agree).map(|size| size.unwrap_or(-1)).collect()
        }
        (_, Some(sampled)) => vec![-1; sampled.len()],
        (Some(stated), None) => stated.into_iter().map(|size| size.unwrap_or(-1)).collect(),
        (None, None) => RANK_UNKNOWN.to_vec(),
    }
}

/// The type of an output for callers.
fn outward(slot: &Slot, datatype: DataType) -> Result<DataType, LoadError> {
    match (slot.is_text, datatype) {
        (false, own) => Ok(own),
        (true, DataType::I64) => Ok(DataType::Bytes),
        (true, _) => Err(untypable(slot)),
    }
}

fn untypable(slot: &Slot) -> LoadError {
    let name = shown(&slot.name);
    LoadError::UnsupportedType(format!(
        "the output `{name}` of the model has a type that the runtime cannot hand out"
    ))
}

fn contract(
    declared: &Declared,
    outputs: Vec<TensorSpec>,
    ties: Vec<Tie>,
) -> Result<Contract, LoadError> {
    let mut inputs = Vec::new();
    for slot in &declared.inputs {
        let datatype = outward(slot, slot.datatype.ok_or_else(|| untypable(slot))?)?;
        let shape = match &slot.dims {
            None => RANK_UNKNOWN.to_vec(),
            Some(_) => declared_shape(slot, None),
        };
        inputs.push(TensorSpec { name: slot.name.clone(), datatype, shape });
    }
    let ranked = declared.inputs.iter().map(|slot| slot.dims.is_some()).collect();
    Ok(Contract { signature: ModelSignature { inputs, outputs }, ranked, ties })
}

/// Dimensions that share a name.
fn ties(declared: &Declared) -> Vec<Tie> {
    let mut places: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (input, slot) in declared.inputs.iter().enumerate() {
        for (axis, dim) in slot.dims.iter().flatten().enumerate() {
            if let Dim::Named(name) = dim {
                places.entry(name).or_default().push((input, axis));
            }
        }
    }
    places.retain(|_, places| places.len() > 1);
    let tie = |(symbol, places): (&str, _)| Tie { symbol: symbol.to_owned(), places };
    places.into_iter().map(tie).collect()
}
