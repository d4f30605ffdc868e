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
use sandpiper_domain::{Model, ModelOptions, Tensor};

use super::plane::busy;
use crate::{
    Batching, LoadedModel,
    backend::{Failed, Program, Ran, tract},
    builders::{Builders, Work},
    contract::Contract,
    footprint::Footprint,
    scheduler::Scheduler,
    testing::{adder, f32s, joined, key, plane, request},
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

    fn missing_plan(self: Arc<Self>, inputs: &[Tensor]) -> Option<Work> {
        self.inner.clone().missing_plan(inputs)
    }

    fn run(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed> {
        self.inner.run(inputs, stop)
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
