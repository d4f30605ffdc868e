//! What is done on which threads: plans for new shapes on none that compute, and freeing models on none of a caller.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use futures::FutureExt;
use sandpiper_domain::{InferenceError, InferenceRequest, Model, ModelOptions, TenantName, Tensor};

use super::plane::{busy, depth};
use crate::{
    Batching, LoadedModel,
    backend::{Failed, Hold, Planned, Program, Ran, tract},
    builders::Builders,
    contract::Contract,
    footprint::Footprint,
    scheduler::Scheduler,
    testing::{adder, f32s, joined, joined_rows, key, plane, request, request_of},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_for_new_shapes_are_made_on_no_compute_thread() {
    let plane = plane(1, 8);
    let model = plane.inspect(joined()).await.unwrap();
    // The only compute thread has work without end, so that whoever makes a plan meanwhile is another.
    let busy = busy(&plane).await;
    let before = model.memory_bytes();
    let column = |name: &str| f32s(name, &[5, 1], &[7.; 5]);
    let mut call = model.infer(request(vec![column("a"), column("b")]));
    assert!((&mut call).now_or_never().is_none());
    let call = tokio::spawn(call);
    let patience = Instant::now() + Duration::from_secs(60);
    while model.memory_bytes() == before {
        assert!(Instant::now() < patience, "no plan was made while the compute thread was busy");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!busy.is_finished(), "the compute thread was free");
    busy.abort();
    let output = call.await.unwrap().unwrap();
    assert_eq!(output.outputs[0], f32s("y", &[5, 2], &[7.; 10]));
    // Now that it is known, the plan is used without a detour.
    let held = model.memory_bytes();
    let again = model.infer(request(vec![column("a"), column("b")])).await.unwrap();
    assert_eq!((again.outputs, model.memory_bytes()), (output.outputs, held));
    // Shapes that no plan can be made for are refused as before.
    let unequal = vec![f32s("a", &[2, 1], &[4.; 2]), f32s("b", &[3, 1], &[4.; 3])];
    model.infer(request(unequal)).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_shapes_never_seen_is_planned_on_no_compute_thread() {
    let plane = plane(1, 64);
    let model = plane.inspect(joined_rows()).await.unwrap();
    let size = model.profile().batching.sizes[1] as usize;
    let together = async || {
        let busy = busy(&plane).await;
        let row = |name: &str| f32s(name, &[1, 7, 1], &[1.; 7]);
        let call = |_| tokio::spawn(model.infer(request(vec![row("a"), row("b")])));
        let calls: Vec<_> = (0..size).map(call).collect();
        // Each has its own plan by now.
        depth(&plane, size).await;
        busy.abort();
        let mut sizes = Vec::new();
        for call in calls {
            let output = call.await.unwrap().unwrap();
            assert_eq!(output.outputs, [f32s("y", &[1, 7, 2], &[1.; 14])]);
            sizes.push(output.batch_size);
        }
        sizes
    };
    // Nobody has made the plan for all of them, and so each runs alone.
    assert_eq!(together().await, vec![1; size]);
    // What is asked for again is made where nobody waits for it.
    let patience = Instant::now() + Duration::from_secs(60);
    while together().await != vec![size; size] {
        assert!(Instant::now() < patience, "no batch came together");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_there_until_its_call_has_run_and_a_tenant_holds_a_few() {
    const HELD_MAX: usize = 16;
    let plane = plane(1, 64);
    let model = plane.inspect(joined()).await.unwrap();
    let busy = busy(&plane).await;
    let call = |tenant: &str, rows: usize| {
        let column = |name: &str| f32s(name, &[rows as u64, 1], &vec![7.; rows]);
        let call = model.infer(request_of(tenant, vec![column("a"), column("b")]));
        tokio::spawn(async move {
            let wanted = f32s("y", &[rows as u64, 2], &vec![7.; 2 * rows]);
            assert_eq!(call.await.unwrap().outputs, [wanted]);
        })
    };
    let mut calls: Vec<_> = (1..=20).map(|rows| call("acme", rows)).collect();
    depth(&plane, HELD_MAX).await;
    // Calls of shapes that are held already, and those of others, do not wait for that.
    calls.push(call("beta", 30));
    depth(&plane, HELD_MAX + 1).await;
    let late =
        request_of("acme", vec![f32s("a", &[40, 1], &[1.; 40]), f32s("b", &[40, 1], &[1.; 40])]);
    let soon = Some(Instant::now() + Duration::from_millis(50));
    let late = model.infer(InferenceRequest { deadline: soon, ..late }).await;
    assert_eq!(late.unwrap_err(), InferenceError::Timeout);
    assert_eq!(plane.queue_depth(), HELD_MAX + 1);
    busy.abort();
    for call in calls {
        call.await.unwrap();
    }
}

/// A program that says which thread drops it.
struct Noted {
    inner: Arc<dyn Program>,
    dropped: Sender<String>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        let _ = self.dropped.send(thread::current().name().unwrap_or_default().to_owned());
    }
}

impl Program for Noted {
    fn contract(&self) -> &Contract {
        self.inner.contract()
    }

    fn operators(&self) -> &BTreeMap<String, u32> {
        self.inner.operators()
    }

    fn parameters(&self) -> u64 {
        self.inner.parameters()
    }

    fn batching(&self) -> &Batching {
        self.inner.batching()
    }

    fn footprint(&self) -> &Arc<Footprint> {
        self.inner.footprint()
    }

    fn is_steady(&self) -> bool {
        self.inner.is_steady()
    }

    fn hold(&self, tenant: &TenantName, inputs: &[Tensor]) -> Hold {
        self.inner.hold(tenant, inputs)
    }

    fn is_planned(&self, inputs: &[Tensor], rows: usize) -> Planned {
        self.inner.is_planned(inputs, rows)
    }

    fn run(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed> {
        self.inner.run(inputs, stop)
    }

    fn run_planned(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed> {
        self.inner.run_planned(inputs, stop)
    }
}

fn noted() -> (Arc<LoadedModel>, Receiver<String>) {
    let (dropped, drops) = channel();
    let options = ModelOptions::default();
    let inner = tract::load(&adder(), &options, &[], None).unwrap();
    let threads =
        (Arc::new(Scheduler::start(1, 4).unwrap()), Arc::new(Builders::start(1).unwrap()));
    let program = Arc::new(Noted { inner, dropped });
    (Arc::new(LoadedModel::new(program, threads, &options, Arc::default(), None)), drops)
}

#[tokio::test]
async fn a_caller_that_unloads_a_model_does_not_free_it() {
    let plane = plane(1, 4);
    let freed_by = |drops: Receiver<String>| drops.recv_timeout(Duration::from_secs(60)).unwrap();
    let (model, drops) = noted();
    plane.register(key(1), model).unwrap();
    plane.unload(&key(1));
    assert_eq!(freed_by(drops), "sandpiper-free");
    let (model, drops) = noted();
    plane.register(key(1), model).unwrap();
    plane.retain(|_| false);
    assert_eq!(freed_by(drops), "sandpiper-free");
    // Neither does one whose model takes the place of another.
    let (model, drops) = noted();
    plane.register(key(1), model).unwrap();
    plane.register(key(1), noted().0).unwrap();
    assert_eq!(freed_by(drops), "sandpiper-free");
}
