//! Many models of which few fit the budget, under traffic that prefers some: nothing may fail, every answer must be
//! right, and the process may hold little more than the budget says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use sandpiper_domain::{
    Band, DataType, InferenceRequest, Model, ModelKey, NamedTensor, Share, Tensor,
};
use sandpiper_inference::{Config, InferencePlane, LoadError, Measurement, ModelSpec};

#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../src/onnx.rs"]
mod onnx;

/// The side of each model's one matrix: 0.9 MiB of weights.
const SIDE: u64 = 480;
const CLIENTS: u64 = 16;
const SAMPLE: Duration = Duration::from_millis(20);

/// What the clients came to.
#[derive(Default)]
struct Tally {
    answers: AtomicU64,
    loads: AtomicU64,
    failures: AtomicU64,
    is_over: AtomicBool,
}

/// `models` models, of which `fit` fit the budget, for `seconds`.
pub(crate) fn measure(models: u32, fit: u64, seconds: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // What was measured at the upload is known at each load, as it is in a node. The baseline is that of a process
        // that has loaded and run a model before.
        let (one, files) = {
            let plane = InferencePlane::start(Config::default())?;
            let model = plane.inspect(Bytes::from(onnx::row_product(SIDE, 1.0))).await?;
            let files = Arc::new(Files::new(model.measurement()));
            ask(&plane, &files, 1, &Arc::default()).await?;
            (model.memory_bytes(), files)
        };
        let budget = one * fit;
        let config = Config { models_bytes_max: budget, ..Config::default() };
        let plane = InferencePlane::start(config)?;
        let baseline = resident()?;
        let tally = Arc::new(Tally::default());
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| tokio::spawn(client(plane.clone(), files.clone(), models, seed, tally.clone())))
            .collect();
        let (mut highest, mut sum, mut samples) = (0u64, 0u64, 0u64);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(SAMPLE).await;
            let held = resident()?.saturating_sub(baseline);
            (highest, sum, samples) = (highest.max(held), sum + held, samples + 1);
        }
        tally.is_over.store(true, Relaxed);
        for client in clients {
            client.await?;
        }
        let end = resident()?.saturating_sub(baseline);
        let (counted, in_memory) = (plane.models_bytes(), plane.model_count());
        let (answers, loads) = (tally.answers.load(Relaxed), tally.loads.load(Relaxed));
        let failures = tally.failures.load(Relaxed);
        let mean = sum / samples.max(1);
        let part = |bytes: u64| format!("{:.1} MiB = {:.3}", mib(bytes), bytes as f64 / budget as f64);
        crate::say(format!(
            "models {models}, each {:.2} MiB; budget {:.1} MiB; {answers} answers, {loads} loads, {failures} failures",
            mib(one),
            mib(budget),
        ))?;
        crate::say(format!(
            "resident over the baseline of {:.1} MiB, and its part of the budget: mean {}, highest {}, at the end {}",
            mib(baseline),
            part(mean),
            part(highest),
            part(end),
        ))?;
        crate::say(format!("the plane counts {} in {in_memory} models", part(counted)))?;
        ensure!(failures == 0, "{failures} calls failed or were wrong");
        Ok(())
    })
}

/// Asks models drawn by Zipf's law with exponent 1, one call after the other.
async fn client(
    plane: Arc<InferencePlane>,
    files: Arc<Files>,
    models: u32,
    seed: u64,
    tally: Arc<Tally>,
) {
    let weights: f64 = (1..=models).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut state = seed * 2_654_435_761 + 1;
    while !tally.is_over.load(Relaxed) {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut draw = (state >> 11) as f64 / (1u64 << 53) as f64 * weights;
        let drawn = (1..=models).find(|rank| {
            draw -= 1.0 / f64::from(*rank);
            draw <= 0.0
        });
        match ask(&plane, &files, drawn.unwrap_or(models), &tally).await {
            Ok(()) => tally.answers.fetch_add(1, Relaxed),
            Err(error) => {
                let _ = crate::say(format!("a call failed: {error:#}"));
                tally.failures.fetch_add(1, Relaxed)
            }
        };
    }
}

async fn ask(
    plane: &InferencePlane,
    files: &Arc<Files>,
    number: u32,
    tally: &Arc<Tally>,
) -> anyhow::Result<()> {
    let key =
        ModelKey { tenant: "acme".parse()?, model: format!("m{number}").parse()?, version: 1 };
    let (files, counted) = (files.clone(), tally.clone());
    let source = move || {
        counted.loads.fetch_add(1, Relaxed);
        Ok(files.read(number))
    };
    let model = match plane.load(&key, source).await {
        // A request is told to come again; the client does.
        Err(LoadError::Saturated) => return Ok(()),
        model => model?,
    };
    let ones: Vec<u8> = (0..SIDE).flat_map(|_| 1f32.to_le_bytes()).collect();
    let tensor = Tensor::new(DataType::F32, &[1, SIDE], Bytes::from(ones))?;
    let request = InferenceRequest {
        tenant: "acme".parse()?,
        share: Share { weight: 1, band: Band::Normal },
        deadline: None,
        inputs: vec![NamedTensor { name: "x".to_owned(), tensor }],
        batch_with_others: true,
        brief: Default::default(),
        bill: None,
    };
    let answer = model.infer(request).await?;
    let output = answer.outputs.first().context("no output")?;
    let wanted = (SIDE as f32 * number as f32).to_le_bytes();
    let is_right = output.tensor.data().chunks_exact(4).all(|value| value == wanted);
    ensure!(is_right, "the model {number} gave a wrong answer");
    Ok(())
}

/// The files of all models, which differ in their weights alone.
struct Files {
    template: Vec<u8>,
    /// Where the weights begin.
    weights: usize,
    measurement: Measurement,
}

impl Files {
    fn new(measurement: Measurement) -> Self {
        let template = onnx::row_product(SIDE, 1.0);
        let ones = [1f32.to_le_bytes(); 64].concat();
        let weights = template.windows(ones.len()).position(|bytes| bytes == ones);
        Files { template, weights: weights.unwrap_or_default(), measurement }
    }

    /// Takes the memory that reading a file takes, and no more.
    fn read(&self, number: u32) -> ModelSpec {
        let mut file = self.template.clone();
        let weights = &mut file[self.weights..][..(SIDE * SIDE * 4) as usize];
        for weight in weights.chunks_exact_mut(4) {
            weight.copy_from_slice(&(number as f32).to_le_bytes());
        }
        ModelSpec { measurement: Some(self.measurement.clone()), ..Bytes::from(file).into() }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What the process holds in memory, in bytes.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}
