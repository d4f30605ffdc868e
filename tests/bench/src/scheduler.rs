//! What batches bring at the scheduler's port: the same model on the same plane with batching on and off, in turns,
//! with a fixed number of calls in flight.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use sandpiper_domain::{
    Band, DataType, InferenceRequest, Model, ModelOptions, NamedTensor, Share, Tensor,
};
use sandpiper_inference::{Config, InferencePlane, LoadedModel, ModelSpec};

const IN_FLIGHT: usize = 64;
/// Rounds of each way, and how long one is measured.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1500);

/// Prints t(b) and the ratio for each model file.
pub(crate) fn measure(models: &[&str]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for file in models {
            compare(Path::new(file)).await?;
        }
        Ok(())
    })
}

async fn compare(file: &Path) -> anyhow::Result<()> {
    let bytes = Bytes::from(std::fs::read(file).context("read the model")?);
    let plane = InferencePlane::start(Config::default())?;
    let with = |batching| {
        let (plane, bytes) = (plane.clone(), bytes.clone());
        let options = ModelOptions { batching, ..ModelOptions::default() };
        async move { plane.inspect(ModelSpec { options, ..bytes.into() }).await }
    };
    let (on, off) = (with(true).await?, with(false).await?);
    crate::say(format_args!("{}", file.display()))?;
    for cost in &on.profile().batching.curve {
        let row = cost.us / f64::from(cost.size);
        crate::say(format_args!("  t({}) = {:.1} us, {row:.1} us a row", cost.size, cost.us))?;
    }
    let batching = &on.profile().batching;
    crate::say(format_args!(
        "  sizes {:?} {}",
        batching.sizes,
        batching.reason.as_deref().unwrap_or("")
    ))?;
    let mut rates = [Vec::new(), Vec::new()];
    // A, B, B, A: a drift of the machine hits both alike.
    for round in 0..2 * ROUNDS {
        let way = usize::from(matches!(round % 4, 1 | 2));
        rates[way].push(rate([&on, &off][way]).await?);
    }
    let [on_rate, off_rate] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    });
    let stats = on.stats();
    let rows = stats.inference_count.load(Relaxed) as f64;
    let runs = stats.execution_count.load(Relaxed).max(1) as f64;
    crate::say(format_args!(
        "  batched {on_rate:.0} calls/s, unbatched {off_rate:.0} calls/s, ratio {:.2}; {:.1} rows a run",
        on_rate / off_rate,
        rows / runs,
    ))?;
    Ok(())
}

/// Calls a second with all in flight.
async fn rate(model: &Arc<LoadedModel>) -> anyhow::Result<f64> {
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let inputs = inputs(model)?;
    let tenant = "bench".parse()?;
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (model, over, done) = (model.clone(), over.clone(), done.clone());
            let request =
                |inputs: &[NamedTensor], tenant: &sandpiper_domain::TenantName| InferenceRequest {
                    tenant: tenant.clone(),
                    share: Share { weight: 4, band: Band::Normal },
                    deadline: Some(Instant::now() + Duration::from_secs(30)),
                    inputs: inputs.to_vec(),
                    batch_with_others: true,
                    brief: Default::default(),
                    bill: None,
                };
            let (inputs, tenant): (Vec<_>, sandpiper_domain::TenantName) =
                (inputs.clone(), Clone::clone(&tenant));
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    model.infer(request(&inputs, &tenant)).await?;
                    done.fetch_add(1, Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    // What is measured begins when the queue is full.
    tokio::time::sleep(ROUND / 10).await;
    let (began, before) = (Instant::now(), done.load(Relaxed));
    tokio::time::sleep(ROUND).await;
    let rate = (done.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    over.store(true, Relaxed);
    for task in tasks {
        task.await??;
    }
    Ok(rate)
}

/// One row of values between 0 and 1, or of ones.
fn inputs(model: &LoadedModel) -> anyhow::Result<Vec<NamedTensor>> {
    let mut inputs = Vec::new();
    for spec in &model.signature().inputs {
        let shape: Vec<u64> = spec.shape.iter().map(|size| (*size).max(1) as u64).collect();
        let count = shape.iter().product::<u64>() as usize;
        let data: Vec<u8> = match spec.datatype {
            DataType::F32 => {
                (0..count).flat_map(|n| ((n % 17) as f32 / 17.0).to_le_bytes()).collect()
            }
            DataType::I32 => (0..count).flat_map(|n| ((n % 2) as i32).to_le_bytes()).collect(),
            DataType::I64 => (0..count).flat_map(|n| ((n % 2) as i64).to_le_bytes()).collect(),
            other => bail!("no values for an input of {other}"),
        };
        let tensor = Tensor::new(spec.datatype, &shape, data.into())?;
        inputs.push(NamedTensor { name: spec.name.clone(), tensor });
    }
    Ok(inputs)
}
