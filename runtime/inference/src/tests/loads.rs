//! Loads leave room for those of others.

use std::{
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use sandpiper_domain::{ModelKey, TenantName};
use tokio::task::JoinHandle;

use crate::{
    Config, InferencePlane, LoadError, ModelSpec,
    testing::{adder, key},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn of(tenant: &str, version: u32) -> ModelKey {
    ModelKey { tenant: tenant.parse().unwrap(), ..key(version) }
}

type Loading = JoinHandle<Result<(), LoadError>>;

struct Plane(std::sync::Arc<InferencePlane>);

impl Plane {
    fn start(models_bytes_max: u64) -> Self {
        let config = Config { threads: 2, models_bytes_max, ..Config::default() };
        Plane(InferencePlane::start(config).unwrap())
    }

    fn load(
        &self,
        key: ModelKey,
        bytes: u64,
        source: impl FnOnce() -> Result<ModelSpec, String> + Send + 'static,
    ) -> Loading {
        let plane = self.0.clone();
        tokio::spawn(async move {
            let owner: TenantName = key.tenant.clone();
            plane.load_for(&owner, &key, bytes, source).await.map(drop)
        })
    }

    /// A load that has begun and goes on when the sender is dropped.
    async fn slow(&self, key: ModelKey, bytes: u64) -> (Loading, Sender<()>) {
        let (open, gate) = channel::<()>();
        let (begins, begun) = tokio::sync::oneshot::channel();
        let load = self.load(key, bytes, move || {
            let _ = begins.send(());
            let _ = gate.recv();
            Ok(adder().into())
        });
        begun.await.unwrap();
        (load, open)
    }
}

async fn ends(load: Loading) {
    let ended = tokio::time::timeout(PATIENCE, load).await;
    ended.expect("the load waits for those of others").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_of_one_tenant_leave_a_thread_to_those_of_others() {
    let plane = Plane::start(u64::MAX);
    let (first, open) = plane.slow(of("acme", 1), 0).await;
    let (gate, closed) = channel::<()>();
    let second = plane.load(of("acme", 2), 0, move || {
        let _ = closed.recv();
        Ok(adder().into())
    });
    for version in 1..=3 {
        ends(plane.load(of("beta", version), 0, || Ok(adder().into()))).await;
    }
    drop((open, gate));
    ends(first).await;
    ends(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_load_that_waits_for_another_takes_no_thread() {
    const MIB: u64 = 1 << 20;
    let plane = Plane::start(4 * MIB);
    let (first, open) = plane.slow(of("acme", 1), MIB).await;
    let second = plane.load(of("beta", 1), MIB, || Ok(adder().into()));
    for version in 1..=3 {
        ends(plane.load(of("gamma", version), 0, || Ok(adder().into()))).await;
    }
    assert!(!second.is_finished(), "two large loads are made at once");
    drop(open);
    ends(first).await;
    ends(second).await;
}
