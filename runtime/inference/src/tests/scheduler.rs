//! Shares, batches, deadlines, cancellation and quarantine, through `Model::infer`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, future::join_all};
use sandpiper_domain::{
    Band, DataType, InferenceError, InferenceRequest, Model, ModelOptions, NamedTensor, Share,
};
use tract_onnx::pb::{GraphProto, NodeProto, tensor_proto::DataType as Onnx};

use super::plane::{busy, depth, one_row};
use crate::{
    InferencePlane, LoadedModel, ModelSpec,
    testing::{
        D, adder, brittle, bytes, f32s, i64s, joined_rows, key, load, node, plane, request,
        request_of, value, weight, with_int,
    },
};

/// `y = tanh(tanh(… x))` on rows of 8 elements: a run takes long enough for a backlog, and no longer with more rows.
fn work() -> bytes::Bytes {
    const COUNT: usize = 500;
    let name = |step: usize| if step == 0 { "x".to_owned() } else { format!("v{step}") };
    let step = |n: usize| NodeProto {
        name: format!("step_{n}"),
        ..node("Tanh", &[&name(n)], &[&name(n + 1)])
    };
    bytes(GraphProto {
        node: (0..COUNT).map(step).collect(),
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(8)])],
        output: vec![value(&name(COUNT), Onnx::Float, &[D::N("N"), D::F(8)])],
        ..Default::default()
    })
}

fn work_row() -> Vec<NamedTensor> {
    vec![f32s("x", &[1, 8], &[0.5; 8])]
}

fn row(n: f32) -> Vec<NamedTensor> {
    vec![f32s("x", &[1, 3], &[n, n, n])]
}

fn sums(n: f32) -> NamedTensor {
    f32s("y", &[1, 3], &[n + 10., n + 20., n + 30.])
}

async fn unbatched(plane: &InferencePlane, model: bytes::Bytes) -> Arc<LoadedModel> {
    let options = ModelOptions { batching: false, ..Default::default() };
    plane.inspect(ModelSpec { options, ..model.into() }).await.unwrap()
}

fn count(model: &LoadedModel) -> (u64, u64) {
    let stats = model.stats();
    (stats.inference_count.load(Relaxed), stats.execution_count.load(Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_run_in_batches_and_get_their_own_answers() {
    let plane = plane(1, 1024);
    let model = plane.inspect(adder()).await.unwrap();
    assert_eq!(model.profile().batching.sizes, [1, 2, 4, 8, 16, 32]);
    let busy = busy(&plane).await;
    let call = |n: u32| {
        let tenant = ["acme", "beta", "gamma"][n as usize % 3];
        tokio::spawn(model.infer(request_of(tenant, row(n as f32))))
    };
    let calls: Vec<_> = (0..100).map(call).collect();
    depth(&plane, 100).await;
    assert_eq!(model.stats().pending.load(Relaxed), 100);
    busy.abort();
    let mut sizes = Vec::new();
    for (n, call) in (0..).zip(calls) {
        let output = call.await.unwrap().unwrap();
        assert_eq!(output.outputs, [sums(n as f32)]);
        assert!(output.queued > Duration::ZERO && output.computed > Duration::ZERO);
        sizes.push(output.batch_size);
    }
    // 32 + 32 + 32 + 4.
    assert_eq!(count(&model), (100, 4));
    assert_eq!(sizes.iter().filter(|size| **size == 32).count(), 96);
    assert_eq!(sizes.iter().filter(|size| **size == 4).count(), 4);
    let stats = model.stats();
    assert_eq!(
        stats.batches().into_iter().map(|(b, t)| (b, t.count)).collect::<Vec<_>>(),
        [(4, 1), (32, 3)]
    );
    assert_eq!((stats.success.get().0, stats.fail.get().0, stats.queue.get().0), (100, 0, 100));
    assert_eq!(stats.pending.load(Relaxed), 0);
    let timings = [&stats.compute_input, &stats.compute_infer, &stats.compute_output];
    assert!(timings.iter().all(|timing| timing.get().0 == 100 && timing.get().1 > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_call_count_and_sizes_are_exact() {
    let plane = plane(1, 1024);
    let model = plane.inspect(adder()).await.unwrap();
    let busy = busy(&plane).await;
    let call = |rows: u64| {
        let inputs = vec![f32s("x", &[rows, 3], &vec![rows as f32; 3 * rows as usize])];
        let call = tokio::spawn(model.infer(request(inputs)));
        async move { (call, rows) }
    };
    let mut calls = Vec::new();
    // 6 + 10 rows make 16; 3, 5 and 32 go with none of the sizes, or fill one; 0 rows are no batch.
    for rows in [6, 10, 3, 32, 0] {
        calls.push(call(rows).await);
        depth(&plane, calls.len()).await;
    }
    busy.abort();
    let mut sizes = Vec::new();
    for (call, rows) in calls {
        let output = call.await.unwrap().unwrap();
        let row = [10., 20., 30.].map(|w| w + rows as f32);
        assert_eq!(output.outputs, [f32s("y", &[rows, 3], &row.repeat(rows as usize))]);
        sizes.push(output.batch_size);
    }
    assert_eq!(sizes, [2, 2, 1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batching_can_be_switched_off_and_limited() {
    let plane = plane(1, 1024);
    for (options, sizes, runs) in [
        (ModelOptions { batching: false, ..Default::default() }, vec![1], 20),
        (ModelOptions { batch_size_max: 4, ..Default::default() }, vec![1, 2, 4], 5),
        (ModelOptions { batch_size_max: 1, ..Default::default() }, vec![1], 20),
    ] {
        let model = plane.inspect(ModelSpec { options, ..adder().into() }).await.unwrap();
        let batching = &model.profile().batching;
        assert_eq!(batching.sizes, sizes);
        assert_eq!(batching.reason.is_some(), sizes.len() == 1, "{batching:?}");
        let busy = busy(&plane).await;
        let calls: Vec<_> =
            (0..20).map(|n| tokio::spawn(model.infer(request(row(n as f32))))).collect();
        depth(&plane, 20).await;
        busy.abort();
        join_all(calls).await.into_iter().for_each(|call| drop(call.unwrap().unwrap()));
        assert_eq!(count(&model), (20, runs));
    }
}

#[test]
fn what_mixes_rows_is_not_batched() {
    let graph = |nodes, out: &[D]| {
        let model = load(bytes(GraphProto {
            node: nodes,
            initializer: vec![weight("w", &[3], &[10., 20., 30.])],
            input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(3)])],
            output: vec![value("y", Onnx::Float, out)],
            ..Default::default()
        }));
        model.unwrap().profile().batching.clone()
    };
    let rows = [D::N("N"), D::F(3)];
    let softmax = |axis| vec![with_int(node("Softmax", &["x"], &["y"]), "axis", axis)];
    // Whether batches pay is measured, and a busy machine may say no; that rows mix would be wrong.
    let alone = graph(softmax(1), &rows);
    let is_slow =
        |reason: &str| reason.contains("not faster") || reason.contains("time for measuring");
    assert!(alone.sizes.len() > 1 || alone.reason.as_deref().is_some_and(is_slow), "{alone:?}");
    let mean = vec![node("ReduceMax", &["x"], &["m"]), node("Sub", &["x", "m"], &["y"])];
    let turned = vec![node("Transpose", &["x"], &["y"])];
    for (nodes, out) in [(softmax(0), rows), (mean, rows), (turned, [D::F(3), D::N("N")])] {
        let batching = graph(nodes, &out);
        assert_eq!(batching.sizes, [1]);
        assert!(batching.reason.is_some() && batching.curve.is_empty(), "{batching:?}");
    }
    let fixed = load(bytes(GraphProto {
        node: vec![node("Neg", &["x"], &["y"])],
        input: vec![value("x", Onnx::Float, &[D::F(4), D::F(3)])],
        output: vec![value("y", Onnx::Float, &[D::F(4), D::F(3)])],
        ..Default::default()
    }));
    let reason = fixed.unwrap().profile().batching.reason.clone();
    assert_eq!(reason.as_deref(), Some("axis 0 of an input has a fixed size"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shapes_that_differ_do_not_mix() {
    let plane = plane(1, 1024);
    let model = bytes(GraphProto {
        node: vec![node("Neg", &["x"], &["y"])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::N("S")])],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::N("S")])],
        ..Default::default()
    });
    let model = plane.inspect(model).await.unwrap();
    assert!(model.profile().batching.sizes.contains(&8), "{:?}", model.profile().batching);
    let busy = busy(&plane).await;
    let input = |width: u64| vec![f32s("x", &[1, width], &vec![1.5; width as usize])];
    let calls: Vec<_> = (0..16)
        .map(|n| (n % 2 + 2, tokio::spawn(model.infer(request(input(n % 2 + 2))))))
        .collect();
    depth(&plane, 16).await;
    busy.abort();
    for (width, call) in calls {
        let output = call.await.unwrap().unwrap();
        assert_eq!(output.outputs, [f32s("y", &[1, width], &vec![-1.5; width as usize])]);
        assert_eq!(output.batch_size, 8);
    }
    assert_eq!(count(&model), (16, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uneven_inputs_move_nobody_elses_rows() {
    let plane = plane(1, 1024);
    let model = plane.inspect(joined_rows()).await.unwrap();
    assert!(model.profile().batching.sizes.contains(&4), "{:?}", model.profile().batching);
    let busy = busy(&plane).await;
    let call = |(tenant, a, b, mark): (&str, u64, u64, f32)| {
        let inputs = [("a", a, mark), ("b", b, mark + 0.5)];
        let inputs = inputs.map(|(name, n, mark)| f32s(name, &[n, 1, 1], &vec![mark; n as usize]));
        let mut call = model.infer(request_of(tenant, inputs.into()));
        // The first look queues the call, so that they wait in this order. Together, both inputs would have four rows.
        let refused = (&mut call).now_or_never();
        async move { if let Some(answer) = refused { answer } else { call.await } }
    };
    let calls = [("acme", 2, 1, 1.), ("beta", 1, 1, 2.), ("gamma", 1, 2, 3.)].map(call);
    busy.abort();
    let [uneven, victim, other] = calls;
    let output = victim.await.unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1, 1, 2], &[2., 2.5])]);
    for answer in [uneven.await, other.await] {
        let error = answer.unwrap_err();
        assert!(matches!(error, InferenceError::InvalidArgument(_)), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_keep_apart_share_no_batch() {
    let plane = plane(1, 1024);
    let model = plane.inspect(adder()).await.unwrap();
    let busy = busy(&plane).await;
    let call = |tenant, with_others| {
        let request = request_of(tenant, one_row());
        tokio::spawn(model.infer(InferenceRequest { batch_with_others: with_others, ..request }))
    };
    let calls: Vec<_> = [("acme", true), ("beta", false), ("gamma", false), ("delta", true)]
        .into_iter()
        .flat_map(|(tenant, with_others)| [call(tenant, with_others), call(tenant, with_others)])
        .collect();
    depth(&plane, 8).await;
    busy.abort();
    let mut sizes = Vec::new();
    for call in calls {
        sizes.push(call.await.unwrap().unwrap().batch_size);
    }
    assert_eq!(sizes, [4, 4, 2, 2, 2, 2, 4, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_row_takes_no_neighbour_with_it() {
    let plane = plane(1, 1024);
    let model = plane.inspect(brittle()).await.unwrap();
    assert!(model.profile().batching.sizes.contains(&16));
    let busy = busy(&plane).await;
    let bad = [3, 4, 11];
    let calls: Vec<_> = (0..16)
        .map(|n| {
            let id = if bad.contains(&n) { 99 } else { n % 3 };
            tokio::spawn(model.infer(request(vec![i64s("ids", &[id])])))
        })
        .collect();
    depth(&plane, 16).await;
    busy.abort();
    for (n, call) in (0..).zip(calls) {
        match call.await.unwrap() {
            Ok(output) => {
                let expected = [0.5, 1.5, 2.5][n as usize % 3];
                assert_eq!(output.outputs, [f32s("y", &[1], &[expected])]);
            }
            Err(error) => assert!(bad.contains(&n) && matches!(error, InferenceError::Runtime(_))),
        }
    }
    let stats = model.stats();
    assert_eq!((stats.success.get().0, stats.fail.get().0), (13, 3));
    assert_eq!(count(&model).0, 13);
    assert!(model.quarantine().is_none(), "one batch is not three calls in a row");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_company_where_its_model_says_so() {
    let plane = plane(2, 1024);
    let options = ModelOptions { max_delay_us: 500_000, batch_size_max: 4, ..Default::default() };
    let model = plane.inspect(ModelSpec { options, ..adder().into() }).await.unwrap();
    let begun = Instant::now();
    let calls = (0..4).map(|n| model.infer(request(row(n as f32))));
    for (n, output) in (0..).zip(join_all(calls).await) {
        let output = output.unwrap();
        assert_eq!((output.outputs, output.batch_size), (vec![sums(n as f32)], 4));
    }
    let full = begun.elapsed();
    // Alone it waits in vain, and then runs.
    let begun = Instant::now();
    assert_eq!(model.infer(request(row(1.))).await.unwrap().batch_size, 1);
    assert!(begun.elapsed() >= Duration::from_millis(500) && full < begun.elapsed(), "{full:?}");
    // A call that is given up while it waits leaves its place.
    let given_up = model.infer(request(row(1.)));
    let soon = tokio::time::timeout(Duration::from_millis(20), given_up);
    assert!(soon.await.is_err());
    assert_eq!((plane.queue_depth(), model.stats().cancelled.load(Relaxed)), (0, 1));
}

/// Keeps `depth` calls of a tenant in flight until `over`, and gives how many ended.
fn load_of(
    model: &Arc<LoadedModel>,
    request: impl Fn() -> InferenceRequest + Send + Sync + 'static,
    depth: usize,
    over: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<usize> {
    let (model, over, request) = (model.clone(), over.clone(), Arc::new(request));
    let one = move || {
        let (model, over, request) = (model.clone(), over.clone(), request.clone());
        async move {
            let mut done = 0;
            while !over.load(Relaxed) {
                match model.infer(request()).await {
                    Ok(_) => done += usize::from(!over.load(Relaxed)),
                    Err(InferenceError::TenantSaturated) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
            done
        }
    };
    let tasks: Vec<_> = (0..depth).map(|_| tokio::spawn(one())).collect();
    tokio::spawn(async move { join_all(tasks).await.into_iter().map(Result::unwrap).sum() })
}

async fn shares(model: Arc<LoadedModel>, weights: [u32; 2], depths: [usize; 2]) -> f64 {
    let over = Arc::new(AtomicBool::new(false));
    let names = ["acme", "beta"];
    let loads: Vec<_> = (0..2)
        .map(|n| {
            let share = Share { weight: weights[n], band: Band::Normal };
            let request = move || InferenceRequest { share, ..request_of(names[n], work_row()) };
            load_of(&model, request, depths[n], &over)
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    over.store(true, Relaxed);
    let done: Vec<usize> = join_all(loads).await.into_iter().map(Result::unwrap).collect();
    done[1] as f64 / done[0] as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_get_their_weighted_shares_alone_and_in_batches() {
    for batching in [false, true] {
        let plane = plane(1, 1024);
        let options = ModelOptions { batching, batch_size_max: 2, ..Default::default() };
        let model = plane.inspect(ModelSpec { options, ..work().into() }).await.unwrap();
        assert_eq!(model.profile().batching.sizes.len(), 1 + usize::from(batching));
        let ratio = shares(model.clone(), [1, 4], [64, 64]).await;
        assert!(
            (3.6..=4.4).contains(&ratio),
            "beta gets {ratio} of acme's share, not 4; batches: {batching}"
        );
        // Ten times the load brings no more than the share.
        let ratio = shares(model, [1, 1], [30, 300]).await;
        assert!((0.9..=1.1).contains(&ratio), "{ratio}; batches: {batching}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_low_band_stands_back_and_is_served_all_the_same() {
    let plane = plane(1, 1024);
    let model = unbatched(&plane, adder()).await;
    let normal = unbatched(&plane, work()).await;
    let low = || InferenceRequest {
        share: Share { weight: 1, band: Band::Low },
        ..request_of("small", one_row())
    };
    // Whatever order they came in, the normal calls are first.
    let busy = busy(&plane).await;
    let first = tokio::spawn(model.infer(low()));
    depth(&plane, 1).await;
    let others: Vec<_> = (0..20).map(|_| tokio::spawn(normal.infer(request(work_row())))).collect();
    depth(&plane, 21).await;
    busy.abort();
    let waited = first.await.unwrap().unwrap().queued;
    for other in others {
        let _ = other.await.unwrap().unwrap();
    }
    assert!(waited > Duration::ZERO);
    // Where normal work never ends, the low call waits for its age and no longer.
    let over = Arc::new(AtomicBool::new(false));
    let endless = load_of(&normal, || request(work_row()), 64, &over);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let call = model.infer(low());
    let output = tokio::time::timeout(Duration::from_secs(20), call).await.unwrap().unwrap();
    over.store(true, Relaxed);
    assert!(endless.await.unwrap() > 0);
    assert!(output.queued >= Duration::from_millis(150), "{:?}", output.queued);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_behind_a_backlog_is_refused_at_once() {
    let plane = plane(1, 1024);
    let model = unbatched(&plane, work()).await;
    let took = model.infer(request(work_row())).await.unwrap().computed;
    let busy = busy(&plane).await;
    let calls: Vec<_> = (0..400).map(|_| tokio::spawn(model.infer(request(work_row())))).collect();
    depth(&plane, 400).await;
    let deadline = Some(Instant::now() + took * 4);
    let late = InferenceRequest { deadline, ..request(work_row()) };
    let refused = model.infer(late).now_or_never().expect("at once").unwrap_err();
    let InferenceError::Unmeetable { retry_after } = refused else { panic!("{refused:?}") };
    assert!(retry_after > took * 4, "{retry_after:?}, {took:?}");
    assert_eq!(model.stats().rejected.load(Relaxed), 1);
    // Another tenant has its share at once, and time enough.
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    let other = InferenceRequest { deadline, ..request_of("beta", work_row()) };
    let other = tokio::spawn(model.infer(other));
    depth(&plane, 401).await;
    busy.abort();
    assert!(other.await.unwrap().is_ok());
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_or_late_never_runs() {
    let plane = plane(1, 1024);
    let model = unbatched(&plane, adder()).await;
    let busy = busy(&plane).await;
    let calls: Vec<_> = (0..10).map(|_| tokio::spawn(model.infer(request(one_row())))).collect();
    let deadline = Some(Instant::now() + Duration::from_millis(30));
    let late = InferenceRequest { deadline, ..request(one_row()) };
    let late = tokio::spawn(model.infer(late));
    depth(&plane, 11).await;
    calls.iter().take(7).for_each(tokio::task::JoinHandle::abort);
    depth(&plane, 4).await;
    tokio::time::sleep(Duration::from_millis(40)).await;
    busy.abort();
    assert_eq!(late.await.unwrap().unwrap_err(), InferenceError::Timeout);
    for call in calls.into_iter().skip(7) {
        let _ = call.await.unwrap().unwrap();
    }
    let stats = model.stats();
    assert_eq!(count(&model), (3, 3));
    assert_eq!((stats.cancelled.load(Relaxed), stats.fail.get().0), (7, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_keeps_panicking_is_put_in_quarantine_until_it_is_loaded_again() {
    let plane = plane(1, 1024);
    let load = async || plane.load(&key(1), || Ok(brittle().into())).await;
    let model = load().await.unwrap();
    let other = plane.inspect(adder()).await.unwrap();
    let call = |tenant: &str, id| model.infer(request_of(tenant, vec![i64s("ids", &[id])]));
    // A guest closes the model to itself alone, whatever others ask meanwhile.
    for _ in 0..3 {
        assert!(call("acme", 0).await.is_ok() && call("gamma", 0).await.is_ok());
        assert!(matches!(call("beta", 99).await.unwrap_err(), InferenceError::Runtime(_)));
    }
    let InferenceError::Unavailable(text) = call("beta", 0).await.unwrap_err() else { panic!() };
    assert!(text.starts_with("unavailable: "), "{text}");
    assert!(model.quarantine().is_none() && call("acme", 0).await.is_ok());
    // The owner's calls tell of the model.
    for _ in 0..3 {
        assert!(matches!(call("acme", 99).await.unwrap_err(), InferenceError::Runtime(_)));
    }
    let reason = model.quarantine().unwrap();
    assert!(reason.contains("Pow"), "{reason}");
    for tenant in ["acme", "gamma"] {
        assert!(matches!(call(tenant, 0).await.unwrap_err(), InferenceError::Unavailable(_)));
    }
    assert!(other.infer(request(one_row())).await.is_ok());
    plane.unload(&key(1));
    let again = load().await.unwrap();
    assert!(again.quarantine().is_none());
    let answer = again.infer(request(vec![i64s("ids", &[1])])).await.unwrap();
    assert_eq!(answer.outputs[0].tensor.datatype(), DataType::F32);
}
