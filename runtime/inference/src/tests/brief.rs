//! Calls that are too brief for another thread: where they run, and when they do not.

use std::sync::Arc;

use futures::FutureExt;
use sandpiper_domain::{BriefRuns, Deferred, InferenceRequest, Model, ModelOptions, NamedTensor};
use tract_onnx::pb::{GraphProto, TensorProto, tensor_proto::DataType as Onnx};

use super::plane::{busy, depth};
use crate::{
    LoadedModel, ModelSpec,
    testing::{
        self, D, adder, bytes, f32s, i64s, integers, node, plane, request, request_of, value,
    },
};

fn row() -> Vec<NamedTensor> {
    vec![f32s("x", &[1, 3], &[1., 2., 3.])]
}

fn here(inputs: Vec<NamedTensor>) -> InferenceRequest {
    InferenceRequest { brief: BriefRuns::Here, ..request(inputs) }
}

fn scalar(name: &str, number: i64) -> TensorProto {
    TensorProto { dims: Vec::new(), ..integers(name, &[number]) }
}

/// `y = range(0, n, 1)`: how much work it is says a value.
fn counter() -> bytes::Bytes {
    bytes(GraphProto {
        node: vec![node("Range", &["zero", "n", "one"], &["y"])],
        initializer: vec![scalar("zero", 0), scalar("one", 1)],
        input: vec![value("n", Onnx::Int64, &[])],
        output: vec![value("y", Onnx::Int64, &[D::N("K")])],
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brief_call_needs_no_compute_thread() {
    let plane = plane(1, 8);
    let model = plane.inspect(adder()).await.unwrap();
    let busy = busy(&plane).await;
    // At the first poll, although the only compute thread has other work.
    let output = model.infer(here(row())).now_or_never().unwrap().unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1, 3], &[11., 22., 33.])]);
    assert_eq!(output.batch_size, 1);
    assert_eq!(model.stats().success.get().0, 1);
    // One that may not run here waits.
    assert!(model.infer(request(row())).now_or_never().is_none());
    busy.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_take_long_is_for_the_compute_threads() {
    let plane = plane(1, 8);
    let (adder, counter) =
        (plane.inspect(adder()).await.unwrap(), plane.inspect(counter()).await.unwrap());
    let busy = busy(&plane).await;
    let waits = |model: &Arc<LoadedModel>, inputs| model.infer(here(inputs)).now_or_never();
    assert!(waits(&adder, vec![f32s("x", &[2, 3], &[1.; 6])]).is_none(), "several rows");
    assert!(waits(&counter, vec![i64s_scalar("n", 3)]).is_none(), "a value decides");
    // While another call of the model waits, this one may share a batch with it; and nobody overtakes himself.
    let first = tokio::spawn(adder.infer(request(row())));
    depth(&plane, 1).await;
    assert!(waits(&adder, row()).is_none());
    first.abort();
    // A model whose calls are to wait for company.
    let options = ModelOptions { max_delay_us: 1_000_000, ..ModelOptions::default() };
    let patient = ModelSpec { options, ..testing::adder().into() };
    let patient = plane.inspect(patient).await.unwrap();
    assert!(waits(&patient, row()).is_none(), "a delay");
    busy.abort();
}

fn i64s_scalar(name: &str, number: i64) -> NamedTensor {
    let one = i64s(name, &[number]);
    crate::testing::named(name, one.tensor.datatype(), &[], one.tensor.data().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_call_runs_when_it_is_told_to() {
    let plane = plane(1, 8);
    let model = plane.inspect(adder()).await.unwrap();
    let place = Arc::new(Deferred::default());
    let call = || {
        let brief = BriefRuns::Later(place.clone());
        model.infer(InferenceRequest { brief, ..request_of("beta", row()) })
    };
    let mut first = call();
    assert!(first.as_mut().now_or_never().is_none());
    assert!(!place.is_vacant());
    assert_eq!(model.stats().execution_count.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(place.run());
    let output = first.now_or_never().unwrap().unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1, 3], &[11., 22., 33.])]);
    assert!(!place.run());
    // One that is given up never runs, whether it is told to or not.
    let mut second = call();
    assert!(second.as_mut().now_or_never().is_none());
    drop(second);
    assert!(place.run());
    assert_eq!(model.stats().execution_count.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(model.stats().cancelled.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(model.stats().pending.load(std::sync::atomic::Ordering::Relaxed), 0);
}
