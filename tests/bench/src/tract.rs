//! The bare run of a model: tract alone, one thread, no queue, no server.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tract_onnx::{prelude::*, tract_hir::infer::Factoid};

const WARM_UP: usize = 1_000;
const SAMPLES: usize = 20_000;
/// A slow model is not run so often.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Prints the p50 and the p99 in µs of a run on one input of this shape, such as `1,4`, filled with zeros. A size as
/// in `N=1` is left free when the plan is made.
pub(crate) fn measure(file: &Path, shape: &str) -> anyhow::Result<()> {
    let sizes: Vec<&str> = shape.split(',').collect();
    let size = |size: &&str| size.trim_start_matches("N=").parse::<usize>();
    let shape: Vec<usize> = sizes.iter().map(size).collect::<Result<_, _>>()?;
    let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let model = onnx.model_for_path(file).context("read the model")?;
    let datatype = model.input_fact(0)?.datum_type.concretize().context("the input has no type")?;
    let free = model.symbols.sym("N");
    let fact = sizes.iter().zip(&shape).map(|(text, size)| match text.starts_with("N=") {
        true => free.clone().to_dim(),
        false => size.to_dim(),
    });
    let fact: Vec<TDim> = fact.collect();
    let plan = model
        .with_input_fact(0, InferenceFact::dt_shape(datatype, &fact))?
        .into_optimized()?
        .into_runnable()?;
    let input: TValue = Tensor::zero_dt(datatype, &shape)?.into();
    let mut samples = Vec::with_capacity(SAMPLES);
    let begun = Instant::now();
    for index in 0..WARM_UP + SAMPLES {
        let input = input.clone();
        let started = Instant::now();
        let outputs = plan.run(tvec!(input))?;
        let took = started.elapsed();
        ensure!(!outputs.is_empty(), "the model gave nothing");
        if index >= WARM_UP || begun.elapsed() > TIME_MAX / 2 {
            samples.push(took);
        }
        if begun.elapsed() > TIME_MAX {
            break;
        }
    }
    samples.sort_unstable();
    let us = |part: usize| {
        let index = (samples.len() * part / 100).min(samples.len() - 1);
        samples[index].as_nanos() as f64 / 1000.0
    };
    crate::say(format!("{:.1} {:.1}", us(50), us(99)))?;
    Ok(())
}
