//! Loading once, queueing, cancelling and deadlines.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use sandpiper_domain::{InferenceError, InferenceRequest, Model, NamedTensor};

use crate::{
    Config, InferencePlane, LoadError, LoadedModel,
    testing::{adder, brittle, f32s, gather, i64s, key, plane, request, request_of, slow},
};

fn square() -> Vec<NamedTensor> {
    vec![f32s("x", &[512, 512], &vec![0.001; 512 * 512])]
}

pub(super) fn one_row() -> Vec<NamedTensor> {
    vec![f32s("x", &[1, 3], &[1., 2., 3.])]
}

/// Keeps the one compute thread of a plane busy until the future is dropped.
pub(super) async fn busy(plane: &Arc<InferencePlane>) -> tokio::task::JoinHandle<()> {
    let model = plane.inspect(slow(1000)).await.unwrap();
    let mut call = model.infer(request(square()));
    // The first look at the future queues the call, so that an empty queue means that it runs.
    assert!((&mut call).now_or_never().is_none());
    depth(plane, 0).await;
    tokio::spawn(async move {
        let _ = call.await;
    })
}

pub(super) async fn depth(plane: &InferencePlane, depth: usize) {
    let patience = Instant::now() + Duration::from_secs(30);
    while plane.queue_depth() != depth {
        assert!(Instant::now() < patience, "{} calls wait, not {depth}", plane.queue_depth());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_loaded_once() {
    let plane = plane(2, 8);
    let calls = Arc::new(AtomicUsize::new(0));
    let load = || {
        let (plane, calls) = (plane.clone(), calls.clone());
        tokio::spawn(async move {
            let fetch = move || {
                calls.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                Ok(adder().into())
            };
            plane.load(&key(1), fetch).await.unwrap()
        })
    };
    let tasks: Vec<_> = (0..20).map(|_| load()).collect();
    let mut models: Vec<Arc<LoadedModel>> = Vec::new();
    for task in tasks {
        models.push(task.await.unwrap());
    }
    models.push(load().await.unwrap());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(models.iter().all(|model| Arc::ptr_eq(model, &models[0])));
    assert_eq!(plane.model_count(), 1);

    plane.unload(&key(1));
    assert!(plane.loaded(&key(1)).is_none());
    load().await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failed_load_is_told_and_tried_again() {
    let plane = plane(1, 8);
    let error = plane.load(&key(1), || Err("the blob is gone".to_owned())).await.unwrap_err();
    assert_eq!(error, LoadError::Bytes("the blob is gone".to_owned()));
    let error = plane.load(&key(1), || panic!("in the store")).await.unwrap_err();
    assert_eq!(error, LoadError::Panicked);
    assert!(plane.load(&key(1), || Ok(adder().into())).await.is_ok());
}

#[tokio::test]
async fn a_load_whose_caller_left_is_kept_but_not_after_unload() {
    let plane = plane(1, 8);
    for unloaded in [false, true] {
        let fetch = || {
            std::thread::sleep(Duration::from_millis(30));
            Ok(gather().into())
        };
        let (key, other) = (key(2), key(1));
        let load = plane.load(&key, fetch);
        assert!(tokio::time::timeout(Duration::from_millis(5), load).await.is_err());
        if unloaded {
            plane.unload(&key);
        }
        // The loader thread works in order, so that the load is over once this one is.
        plane.load(&other, || Ok(adder().into())).await.unwrap();
        plane.unload(&other);
        assert_eq!(plane.loaded(&key).is_some(), !unloaded);
        plane.unload(&key);
    }
}

#[tokio::test]
async fn an_inspected_model_can_be_registered() {
    let plane = plane(1, 8);
    let model = plane.inspect(adder()).await.unwrap();
    assert_eq!(plane.model_count(), 0);
    plane.register(key(3), model.clone()).unwrap();
    let again = plane.load(&key(3), || Err("not needed".to_owned())).await.unwrap();
    assert!(Arc::ptr_eq(&model, &again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_a_dropped_call_frees_its_place() {
    let plane = plane(1, 2);
    let model = plane.inspect(adder()).await.unwrap();
    let busy = busy(&plane).await;
    let call = |tenant: &str| tokio::spawn(model.infer(request_of(tenant, one_row())));
    // Half of the places are the most that one tenant has.
    let first = call("acme");
    depth(&plane, 1).await;
    assert_eq!(call("acme").await.unwrap().unwrap_err(), InferenceError::TenantSaturated);
    let second = call("beta");
    depth(&plane, 2).await;
    assert_eq!(call("gamma").await.unwrap().unwrap_err(), InferenceError::Saturated);

    first.abort();
    depth(&plane, 1).await;
    let third = call("acme");
    depth(&plane, 2).await;
    busy.abort();
    for call in [second, third] {
        let output = call.await.unwrap().unwrap();
        assert_eq!(output.outputs, [f32s("y", &[1, 3], &[11., 22., 33.])]);
        assert!(output.queued > Duration::ZERO && output.computed > Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_call_stops_when_its_future_is_dropped() {
    let plane = plane(1, 2);
    let busy = busy(&plane).await;
    busy.abort();
    let model = plane.inspect(adder()).await.unwrap();
    let begun = Instant::now();
    model.infer(request(one_row())).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_what_waits_and_what_runs() {
    let plane = plane(1, 2);
    let model = plane.inspect(adder()).await.unwrap();
    let by = |deadline, inputs| InferenceRequest { deadline: Some(deadline), ..request(inputs) };
    let past = Instant::now();
    assert_eq!(model.infer(by(past, one_row())).await.unwrap_err(), InferenceError::Timeout);

    let long = plane.inspect(slow(300)).await.unwrap();
    let begun = Instant::now();
    let soon = begun + Duration::from_millis(50);
    assert_eq!(long.infer(by(soon, square())).await.unwrap_err(), InferenceError::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_of_one_model_do_not_mix() {
    let plane = plane(2, 1024);
    let model = plane.inspect(adder()).await.unwrap();
    let call = |n: usize| {
        let model = model.clone();
        tokio::spawn(async move {
            let rows = n % 4 + 1;
            let values = vec![n as f32; rows * 3];
            let input = f32s("x", &[rows as u64, 3], &values);
            let sums: Vec<f32> =
                (0..rows * 3).map(|i| n as f32 + 10. * (i % 3 + 1) as f32).collect();
            let output = model.infer(request(vec![input])).await.unwrap();
            assert_eq!(output.outputs, [f32s("y", &[rows as u64, 3], &sums)]);
        })
    };
    for task in (0..200).map(call).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_of_one_caller_leave_the_others_alone() {
    let plane = plane(1, 1024);
    let model = plane.inspect(brittle()).await.unwrap();
    let call = |n: i64| {
        let model = model.clone();
        tokio::spawn(async move {
            let id = if n % 2 == 0 { 1 } else { 99 };
            let answer = model.infer(request(vec![i64s("ids", &[id])])).await;
            match n % 2 {
                0 => assert_eq!(answer.unwrap().outputs, [f32s("y", &[1], &[1.5])]),
                _ => assert!(matches!(answer, Err(InferenceError::Runtime(_)))),
            }
        })
    };
    for task in (0..100).map(call).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn uploads_do_not_hold_up_loads() {
    let plane = plane(2, 8);
    // Uploads that take long, more than there are threads.
    let upload = |_| {
        let plane = plane.clone();
        tokio::spawn(async move { plane.inspect(slow(1500)).await.map(drop) })
    };
    let uploads: Vec<_> = (0..4).map(upload).collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    plane.load(&key(1), || Ok(adder().into())).await.unwrap();
    assert!(uploads.iter().any(|upload| !upload.is_finished()));
    uploads.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn the_model_used_longest_ago_makes_room() {
    let size = plane(1, 8).inspect(adder()).await.unwrap().memory_bytes();
    let config = Config { threads: 1, models_bytes_max: 2 * size + size / 2, ..Config::default() };
    let plane = InferencePlane::start(config).unwrap();
    let bring = async |version| plane.load(&key(version), || Ok(adder().into())).await.unwrap();
    let first = bring(1).await;
    bring(2).await;
    // Using the first makes the second the older one.
    assert!(plane.loaded(&key(1)).is_some());
    bring(3).await;
    let loaded = |version| plane.loaded(&key(version)).is_some();
    assert_eq!([1, 2, 3].map(loaded), [true, false, true]);

    // An upload makes room as well, and what is forgotten still works for who has it.
    assert!(loaded(3));
    plane.register(key(4), plane.inspect(adder()).await.unwrap()).unwrap();
    assert_eq!([1, 2, 3, 4].map(loaded), [false, false, true, true]);
    let output = first.infer(request(one_row())).await.unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1, 3], &[11., 22., 33.])]);
    let again = bring(1).await;
    assert!(!Arc::ptr_eq(&first, &again));
    assert_eq!((plane.model_count(), loaded(1)), (2, true));
}
