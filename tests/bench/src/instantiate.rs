//! What a fresh sandbox costs when nothing runs in it, on the engine and with the limits of the product.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use sandpiper_domain::{
    Band, BoxFuture, Budget, Digest, Grant, InferenceError, Model, ModelScope, ModelSource,
    SandboxLimits, TenantLimits,
};
use sandpiper_sandbox::{CacheKey, Config, FunctionLog, Purpose, Sandboxes};

const WARM_UP: usize = 1_000;
const SAMPLES: usize = 20_000;

/// Knows no model.
struct NoModels;

impl ModelSource for NoModels {
    fn open<'a>(
        &'a self,
        _scope: &'a ModelScope,
        _name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Model>, InferenceError>> {
        Box::pin(async { Err(InferenceError::NotFound) })
    }
}

/// Prints the p50 and the p99 in µs.
pub(crate) fn measure(component: &Path, folder: &Path) -> anyhow::Result<()> {
    let component = Bytes::from(std::fs::read(component)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut samples = runtime.block_on(async {
        let config = Config {
            cache: folder.to_owned(),
            cache_key: CacheKey([0; 32]),
            sandboxes_max: 1000,
            memory_mib_max: 512,
        };
        let sandboxes = Sandboxes::start(config, Arc::new(NoModels))?;
        let code = sandboxes.load(Purpose::Deploy, Digest([0; 32]), || Ok(component)).await?;
        let (grant, log) = (Arc::new(grant()?), Arc::new(FunctionLog::default()));
        let request_id: Arc<str> = "bench".into();
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..WARM_UP {
            sandboxes.probe_instantiation(&code, &grant, &log, &request_id).await?;
        }
        for _ in 0..SAMPLES {
            let took = sandboxes.probe_instantiation(&code, &grant, &log, &request_id).await?;
            samples.push(took);
        }
        anyhow::Ok(samples)
    })?;
    samples.sort_unstable();
    let us = |took: Duration| took.as_nanos() as f64 / 1000.0;
    let (p50, p99) = (samples[SAMPLES / 2], samples[SAMPLES * 99 / 100]);
    crate::say(format!("{:.1} {:.1}", us(p50), us(p99)))?;
    Ok(())
}

/// The limits of the tier `dedicated`.
fn grant() -> anyhow::Result<Grant> {
    Ok(Grant {
        sandbox: SandboxLimits {
            memory_mib: 512,
            cpu_ms: 10_000,
            wall_ms: 300_000,
            tensor_mib: 256,
            request_body_mib: 64,
            log_kib: 64,
        },
        tenant: TenantLimits {
            concurrency: 512,
            sandboxes: 2_048,
            jobs: 1_000_000,
            batch_mib: 1_024,
            budget: Budget::default(),
            queue: 2_048,
            rate: None,
            functions: 10_000,
            models: 1_000,
            versions: 100,
            component_mib: 64,
            model_mib: 4096,
            pinned_mib: 2_048,
            weight: 16,
            band: Band::Normal,
        },
        models: Arc::new(ModelScope {
            tenant: "bench".parse()?,
            bindings: None,
            pins: Arc::default(),
        }),
        env: Arc::default(),
    })
}
