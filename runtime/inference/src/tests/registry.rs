//! The budget, pins, growth, samples, cached answers, and everything at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sandpiper_domain::{Model, ModelKey, ModelOptions, NamedTensor, TenantName};
use tract_onnx::pb::{GraphProto, tensor_proto::DataType as Onnx};

use crate::{
    Config, InferencePlane, LoadError, LoadedModel, Measurement, MemoryTerms, ModelSpec,
    testing::{
        D, adder, bytes, f32s, gather, i64s, key, node, request, request_of, slow, value, weight,
    },
};

/// `y = x x w`, with x one row and w the square matrix of `side` whose elements are all `element`. A model of one row
/// has no plans for several, which would take memory of their own.
fn product(side: usize, element: f32) -> Bytes {
    bytes(GraphProto {
        node: vec![node("MatMul", &["x", "w"], &["y"])],
        initializer: vec![weight("w", &[side as i64; 2], &vec![element; side * side])],
        input: vec![value("x", Onnx::Float, &[D::F(1), D::F(side as i64)])],
        output: vec![value("y", Onnx::Float, &[D::F(1), D::F(side as i64)])],
        ..Default::default()
    })
}

fn start(models_bytes_max: u64) -> Arc<InferencePlane> {
    InferencePlane::start(Config { threads: 2, models_bytes_max, ..Config::default() }).unwrap()
}

fn spec(bytes: Bytes, options: ModelOptions) -> ModelSpec {
    ModelSpec { options, ..bytes.into() }
}

fn pinned() -> ModelOptions {
    ModelOptions { pinned: true, ..ModelOptions::default() }
}

async fn bring(
    plane: &InferencePlane,
    key: &ModelKey,
    spec: ModelSpec,
) -> Result<Arc<LoadedModel>, LoadError> {
    plane.load(key, move || Ok(spec)).await
}

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_model_counts_with_the_memory_it_takes() {
    let plane = start(u64::MAX);
    // Weights of 1 MiB and of 4 MiB, which are held once, give or take the packing.
    for (side, mib) in [(512, 1), (1024, 4)] {
        let model = plane.inspect(product(side, 0.5)).await.unwrap();
        let held = model.memory_bytes();
        assert!(held >= mib * MIB && held < mib * MIB + mib * MIB / 2, "{held}");
        assert_eq!(model.profile().memory_bytes, held);
        assert_eq!(plane.models_bytes(), held);
        drop(model);
        assert_eq!(plane.models_bytes(), 0);
    }
}

#[tokio::test]
async fn a_model_over_the_budget_is_refused_and_nothing_makes_room_for_it() {
    let plane = start(2 * MIB);
    plane.load(&key(1), || Ok(adder().into())).await.unwrap();
    let error = plane.inspect(product(1024, 0.5)).await.unwrap_err();
    assert!(matches!(error, LoadError::OverBudget { budget, .. } if budget == 2 * MIB), "{error}");
    let error = bring(&plane, &key(2), product(1024, 0.5).into()).await.unwrap_err();
    assert!(matches!(error, LoadError::OverBudget { .. }), "{error}");
    assert!(plane.loaded(&key(2)).is_none());
    plane.load(&key(1), || Ok(adder().into())).await.unwrap();
}

#[tokio::test]
async fn a_pinned_model_stays_and_what_finds_no_room_beside_it_is_refused() {
    let plane = start(7 * MIB);
    bring(&plane, &key(1), spec(product(880, 0.5), pinned())).await.unwrap();
    for version in 2..6 {
        bring(&plane, &key(version), product(880, 0.5).into()).await.unwrap();
        assert!(plane.loaded(&key(1)).is_some());
        assert_eq!(plane.model_count(), 2);
    }
    let error = bring(&plane, &key(9), product(1100, 0.5).into()).await.unwrap_err();
    assert!(matches!(error, LoadError::NoRoom { .. }), "{error}");
    let upload = plane.inspect(spec(product(880, 0.5), pinned())).await.unwrap();
    let may_pin = |name: &str| plane.may_pin(&upload, &key(1).tenant, &name.parse().unwrap());
    assert!(matches!(may_pin("other"), Err(LoadError::PinsFull { .. })));
    // It may take the place of its own earlier version.
    assert_eq!(may_pin(key(1).model.as_str()), Ok(()));
    drop(upload);
    // Without its pin it makes room as any other.
    plane.settle_pins(|_| false);
    bring(&plane, &key(9), product(1100, 0.5).into()).await.unwrap();
    assert!(plane.loaded(&key(1)).is_none() && plane.loaded(&key(9)).is_some());
}

fn of(tenant: &str, version: u32) -> ModelKey {
    ModelKey { tenant: tenant.parse().unwrap(), ..key(version) }
}

#[tokio::test]
async fn a_tenant_pins_what_its_terms_allow_and_no_more() {
    let one = start(u64::MAX).inspect(product(512, 0.5)).await.unwrap().memory_bytes();
    let limit = 2 * one + one / 2;
    let terms = move |tenant: &TenantName| MemoryTerms {
        weight: 1,
        pinned_bytes_max: if tenant.as_str() == "acme" { limit } else { 0 },
    };
    let config = Config { threads: 1, models_bytes_max: 6 * one, ..Config::default() };
    let plane = InferencePlane::start_with(config, Box::new(terms), Box::new(|_| true)).unwrap();
    let file = || spec(product(512, 0.5), pinned());
    // At the upload, in the tenant's own words, and for the version that takes another's place.
    let upload = plane.inspect(file()).await.unwrap();
    let may_pin = |tenant: &str, name: &str| {
        plane.may_pin(&upload, &tenant.parse().unwrap(), &name.parse().unwrap())
    };
    assert!(matches!(may_pin("beta", "m"), Err(LoadError::PinLimit { held: 0, limit: 0, .. })));
    for version in 1..=2 {
        assert_eq!(may_pin("acme", "other"), Ok(()));
        bring(&plane, &of("acme", version), file()).await.unwrap();
    }
    let refused = may_pin("acme", "other");
    assert!(matches!(refused, Err(LoadError::PinLimit { held, .. }) if held > one), "{refused:?}");
    assert_eq!(may_pin("acme", "m"), Ok(()));
    drop(upload);
    // What is pinned by its options and comes all the same, by a load, is in memory without its pin.
    bring(&plane, &of("acme", 3), file()).await.unwrap();
    bring(&plane, &of("beta", 1), file()).await.unwrap();
    for version in 10..14 {
        bring(&plane, &of("gamma", version), product(512, 0.5).into()).await.unwrap();
        assert!(plane.loaded(&of("gamma", version)).is_some());
    }
    // Only what fits the limit is sure to be there still.
    for version in 14..24 {
        bring(&plane, &of("gamma", version), spec(product(512, 0.5), ModelOptions::default()))
            .await
            .unwrap();
        plane.loaded(&of("acme", 1));
        plane.loaded(&of("acme", 2));
    }
    bring(&plane, &of("delta", 1), product(1024, 0.5).into()).await.unwrap();
    let there = |tenant, version| plane.peek(&of(tenant, version)).is_some();
    assert!(there("acme", 1) && there("acme", 2) && there("delta", 1));
    assert!(!there("acme", 3) && !there("beta", 1));
}

#[tokio::test]
async fn tenants_together_pin_half_of_the_budget_and_no_more() {
    let one = start(u64::MAX).inspect(product(512, 0.5)).await.unwrap().memory_bytes();
    let plane = start(7 * one);
    let file = || spec(product(512, 0.5), pinned());
    let upload = plane.inspect(file()).await.unwrap();
    let tenants = ["acme", "beta", "gamma", "delta"];
    for (number, tenant) in tenants.into_iter().enumerate() {
        let allowed = plane.may_pin(&upload, &tenant.parse().unwrap(), &"m".parse().unwrap());
        let limit = 7 * one / 2;
        match number < 3 {
            true => assert_eq!(allowed, Ok(()), "{tenant}"),
            false => assert!(
                matches!(allowed, Err(LoadError::PinsFull { limit: l, .. }) if l == limit),
                "{allowed:?}"
            ),
        }
        // A load, which nobody can refuse for its pin, brings it without.
        bring(&plane, &of(tenant, 1), file()).await.unwrap();
    }
    drop(upload);
    for version in 10..20 {
        bring(&plane, &of("flood", version), product(512, 0.5).into()).await.unwrap();
        // Used or not: no pinned one makes room.
        assert!(["acme", "beta", "gamma"].iter().all(|t| plane.peek(&of(t, 1)).is_some()));
    }
    bring(&plane, &of("flood", 20), product(900, 0.5).into()).await.unwrap();
    assert!(plane.peek(&of("delta", 1)).is_none());
}

#[tokio::test]
async fn a_flood_of_models_of_one_tenant_leaves_those_of_another_in_memory() {
    let one = start(u64::MAX).inspect(product(256, 0.5)).await.unwrap().memory_bytes();
    let plane = start(8 * one);
    bring(&plane, &of("victim", 1), product(256, 0.5).into()).await.unwrap();
    bring(&plane, &of("victim", 2), product(256, 0.5).into()).await.unwrap();
    for version in 1..=20 {
        bring(&plane, &of("flood", version), product(256, 0.5).into()).await.unwrap();
    }
    assert!(plane.peek(&of("victim", 1)).is_some() && plane.peek(&of("victim", 2)).is_some());
    assert!(plane.peek(&of("flood", 20)).is_some() && plane.peek(&of("flood", 1)).is_none());
}

#[tokio::test]
async fn loads_of_one_tenant_wait_their_turn_behind_those_of_others() {
    let plane = crate::testing::plane(1, 8);
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let blocked = {
        let (plane, key) = (plane.clone(), of("flood", 100));
        tokio::spawn(async move {
            let source = move || {
                let _ = gate.recv();
                Ok(adder().into())
            };
            plane.load(&key, source).await.map(drop)
        })
    };
    let load = |asker: &str, key: ModelKey| {
        let (plane, order) = (plane.clone(), order.clone());
        let asker: TenantName = asker.parse().unwrap();
        tokio::spawn(async move {
            let (noted, name) = (order.clone(), asker.to_string());
            let source = move || {
                noted.lock().unwrap().push(name);
                Ok(adder().into())
            };
            plane.load_for(&asker, &key, 0, source).await.map(drop)
        })
    };
    tokio::task::yield_now().await;
    // The flood is of a tenant that was granted the victim's models, and asks for many of them.
    let mut loads: Vec<_> = (1..=20).map(|n| load("flood", of("victim", n))).collect();
    tokio::task::yield_now().await;
    loads.push(load("victim", of("victim", 50)));
    tokio::task::yield_now().await;
    open.send(()).unwrap();
    for load in loads {
        load.await.unwrap().unwrap();
    }
    blocked.await.unwrap().unwrap();
    let place = order.lock().unwrap().iter().position(|asker| asker == "victim");
    assert!(place.is_some_and(|place| place <= 1), "{place:?}");
}

#[tokio::test]
async fn a_model_that_runs_is_counted_until_its_run_ends() {
    let plane = start(u64::MAX);
    let model = bring(&plane, &key(1), slow(1000).into()).await.unwrap();
    let held = model.memory_bytes();
    let square = vec![f32s("x", &[512, 512], &vec![0.001; 512 * 512])];
    let call = tokio::spawn(model.infer(request(square)));
    while plane.queue_depth() == 0 && model.stats().pending.load(Ordering::Relaxed) == 0 {
        if model.is_in_use() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(model);
    plane.unload(&key(1));
    assert_eq!((plane.model_count(), plane.models_bytes()), (0, held));
    call.abort();
    let patience = Instant::now() + Duration::from_secs(60);
    while plane.models_bytes() > 0 {
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn samples_are_run_and_must_fit() {
    let plane = start(u64::MAX);
    let with = |samples| ModelSpec { samples, ..adder().into() };
    let good = vec![f32s("x", &[2, 3], &[0.; 6])];
    plane.inspect(with(vec![good.clone(), good.clone()])).await.unwrap();
    let error = plane.inspect(with(vec![good.clone(), vec![f32s("z", &[1], &[0.])]])).await;
    let LoadError::Sample { number: 1, why } = error.unwrap_err() else { panic!() };
    assert!(why.contains("has no input `z`"), "{why}");
    let samples = vec![vec![i64s("ids", &[7])]];
    let error = plane.inspect(ModelSpec { samples, ..gather().into() }).await.unwrap_err();
    assert!(matches!(error, LoadError::Sample { number: 0, .. }), "{error}");
}

#[tokio::test]
async fn the_probe_for_batches_runs_on_samples() {
    let plane = start(u64::MAX);
    let sample = vec![i64s("ids", &[2, 1, 0, 2])];
    let with = |samples| ModelSpec { samples, ..gather().into() };
    let model = plane.inspect(with(vec![sample])).await.unwrap();
    assert_eq!(model.profile().batching.curve[0].size, 1);
    let output = model.infer(request(vec![i64s("ids", &[2])])).await.unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1], &[2.5])]);
    // A model that fails on what is made up is measured with what it can run on.
    let far = bytes(GraphProto {
        node: vec![
            node("Sub", &["ids", "base"], &["place"]),
            node("Gather", &["table", "place"], &["y"]),
        ],
        initializer: vec![
            weight("table", &[3], &[0.5, 1.5, 2.5]),
            crate::testing::integers("base", &[100]),
        ],
        input: vec![value("ids", Onnx::Int64, &[D::N("N")])],
        output: vec![value("y", Onnx::Float, &[D::N("N")])],
        ..Default::default()
    });
    let blind = plane.inspect(far.clone()).await.unwrap();
    assert!(blind.profile().batching.curve.is_empty(), "{:?}", blind.profile().batching);
    let samples = vec![vec![i64s("ids", &[100, 101, 102])]];
    let model = plane.inspect(ModelSpec { samples, ..far.into() }).await.unwrap();
    assert!(!model.profile().batching.curve.is_empty(), "{:?}", model.profile().batching);
    let output = model.infer(request(vec![i64s("ids", &[101])])).await.unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1], &[1.5])]);
}

#[tokio::test]
async fn answers_are_kept_for_the_tenant_that_asked() {
    let plane = start(u64::MAX);
    let cached = ModelOptions { cache: true, ..ModelOptions::default() };
    let model = bring(&plane, &key(1), spec(gather(), cached)).await.unwrap();
    let stats = model.stats().clone();
    let counts = || (stats.cache_hit.get().0, stats.cache_miss.get().0, stats.success.get().0);
    let runs = || stats.execution_count.load(Ordering::Relaxed);
    let ask =
        async |tenant: &str, id| model.infer(request_of(tenant, vec![i64s("ids", &[id])])).await;
    let is = |output: &sandpiper_domain::InferenceOutput, value| {
        assert_eq!(output.outputs, [f32s("y", &[1], &[value])]);
    };
    let first = ask("acme", 1).await.unwrap();
    assert_eq!((counts(), first.batch_size), ((0, 1, 1), 1));
    let again = ask("acme", 1).await.unwrap();
    is(&again, 1.5);
    assert_eq!((counts(), again.batch_size, runs()), ((1, 1, 2), 0, 1));
    // Neither another tenant nor another question meets the answer.
    is(&ask("beta", 1).await.unwrap(), 1.5);
    is(&ask("acme", 2).await.unwrap(), 2.5);
    assert_eq!((counts(), runs()), ((1, 3, 4), 3));
    // A failure is no answer.
    for failures in 1..=2 {
        ask("acme", 99).await.unwrap_err();
        assert_eq!((counts(), stats.fail.get().0), ((1, 3, 4), failures));
    }
    assert!(plane.responses_bytes() > 0);
    plane.retain_responses(|_| false);
    assert_eq!(plane.responses_bytes(), 0);
    ask("acme", 1).await.unwrap();
    assert_eq!(counts().1, 4);
}

#[tokio::test]
async fn a_model_is_not_cached_unless_it_asks() {
    let plane = start(u64::MAX);
    let model = bring(&plane, &key(1), gather().into()).await.unwrap();
    for _ in 0..3 {
        model.infer(request(vec![i64s("ids", &[1])])).await.unwrap();
    }
    assert_eq!((model.stats().cache_hit.get().0, model.stats().cache_miss.get().0), (0, 0));
    assert_eq!(plane.responses_bytes(), 0);
}

/// Many threads load, unload, evict and run a few models in a budget that holds some of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn loads_unloads_evictions_and_runs_do_not_get_in_each_others_way() {
    const MODELS: u32 = 8;
    const TASKS: usize = 12;
    const ROUNDS: usize = 40;
    let one = start(u64::MAX).inspect(product(256, 1.)).await.unwrap().memory_bytes();
    let budget = 3 * one + one / 2;
    let plane = start(budget);
    let files: Arc<Vec<Bytes>> =
        Arc::new((0..MODELS).map(|number| product(256, number as f32)).collect());
    let done = Arc::new(AtomicUsize::new(0));
    let task = |seed: usize| {
        let (plane, files, done) = (plane.clone(), files.clone(), done.clone());
        tokio::spawn(async move {
            let mut state = seed as u64 * 2_654_435_761 + 1;
            for _ in 0..ROUNDS {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let number = (state >> 33) as u32 % MODELS;
                if (state >> 20).is_multiple_of(10) {
                    plane.unload(&key(number + 1));
                    continue;
                }
                let file = files[number as usize].clone();
                let model = match plane.load(&key(number + 1), || Ok(file.into())).await {
                    Ok(model) => model,
                    Err(LoadError::Saturated) => continue,
                    Err(error) => panic!("{error}"),
                };
                let row: Vec<NamedTensor> = vec![f32s("x", &[1, 256], &[1.; 256])];
                let output = model.infer(request(row)).await.unwrap();
                let wanted = f32s("y", &[1, 256], &[256. * number as f32; 256]);
                assert_eq!(output.outputs, [wanted]);
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for task in (0..TASKS).map(task).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert!(done.load(Ordering::Relaxed) > TASKS * ROUNDS / 2);
    let patience = Instant::now() + Duration::from_secs(60);
    while plane.models_bytes() > budget {
        assert!(Instant::now() < patience, "{} of {budget}", plane.models_bytes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(plane.model_count() >= 1);
}

/// What this plane would have measured had every run taken 123 µs.
fn edited(measurement: &Measurement, machine: Option<&str>) -> Measurement {
    let mut json = serde_json::to_value(measurement).unwrap();
    for cost in json["batching"]["curve"].as_array_mut().unwrap() {
        cost["us"] = 123.0.into();
    }
    if let Some(machine) = machine {
        json["machine"] = machine.into();
    }
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn what_was_measured_on_this_machine_is_not_measured_again() {
    let plane = start(u64::MAX);
    let measurement = plane.inspect(adder()).await.unwrap().measurement();
    let times = async |machine| {
        let measurement = Some(edited(&measurement, machine));
        let spec = ModelSpec { measurement, ..adder().into() };
        let model = plane.inspect(spec).await.unwrap();
        let row = vec![f32s("x", &[1, 3], &[1., 2., 3.])];
        assert_eq!(model.infer(request(row)).await.unwrap().outputs.len(), 1);
        model.profile().batching.curve.iter().map(|cost| cost.us).collect::<Vec<_>>()
    };
    let known = times(None).await;
    assert!(!known.is_empty() && known.iter().all(|us| *us == 123.0), "{known:?}");
    assert!(times(Some("another")).await.iter().any(|us| *us != 123.0));
}
