//! Pins follow the versions that are in use, and what has grown beyond the limit lets go of one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sandpiper_domain::{Model, ModelKey, ModelOptions};

use crate::{
    Config, InferencePlane, MemoryTerms, ModelSpec,
    testing::{f32s, joined, key, plane, request},
};

fn pinned(bytes: Bytes) -> ModelSpec {
    ModelSpec { options: ModelOptions { pinned: true, ..ModelOptions::default() }, ..bytes.into() }
}

fn of(tenant: &str, version: u32) -> ModelKey {
    ModelKey { tenant: tenant.parse().unwrap(), ..key(version) }
}

async fn bring(plane: &InferencePlane, key: ModelKey, spec: ModelSpec) {
    plane.load(&key, move || Ok(spec)).await.unwrap();
}

/// Brings models of this tenant that drive out all of its own that are not pinned.
async fn flood(plane: &InferencePlane, tenant: &str) {
    for version in 100..120 {
        bring(plane, of(tenant, version), joined().into()).await;
    }
}

#[tokio::test]
async fn a_pin_follows_the_version_that_is_in_use() {
    let one = plane(1, 4).inspect(joined()).await.unwrap().memory_bytes();
    let live = Arc::new(AtomicU32::new(1));
    let is_used = {
        let live = live.clone();
        move |key: &ModelKey| key.version == live.load(Relaxed)
    };
    let terms = MemoryTerms { weight: 1, pinned_bytes_max: one + one / 2 };
    let config = Config { threads: 1, models_bytes_max: 6 * one, ..Config::default() };
    let pins = Box::new(is_used.clone());
    let plane = InferencePlane::start_with(config, Box::new(move |_| terms), pins).unwrap();
    let there = |version| plane.peek(&key(version)).is_some();
    bring(&plane, key(1), pinned(joined())).await;
    live.store(2, Relaxed);
    plane.settle_pins(&is_used);
    bring(&plane, key(2), pinned(joined())).await;
    // Back to the first, which is in memory still.
    live.store(1, Relaxed);
    plane.settle_pins(&is_used);
    flood(&plane, "acme").await;
    assert_eq!((there(1), there(2)), (true, false));
    // One that is asked for by its number, and not in use, holds no pin, though it asks for one.
    bring(&plane, key(2), pinned(joined())).await;
    flood(&plane, "acme").await;
    assert_eq!((there(1), there(2)), (true, false));
    // Nor does one that finds no room beside the pins of its tenant.
    bring(&plane, key(2), pinned(joined())).await;
    plane.settle_pins(|_| true);
    flood(&plane, "acme").await;
    assert_eq!((there(1), there(2)), (true, false));
}

#[tokio::test]
async fn the_tenant_that_pins_most_lets_go_where_pinned_models_grow_beyond_half() {
    let one = plane(1, 4).inspect(joined()).await.unwrap().memory_bytes();
    let config = Config { threads: 1, models_bytes_max: 5 * one, ..Config::default() };
    let plane = InferencePlane::start(config).unwrap();
    let upload = plane.inspect(pinned(joined())).await.unwrap();
    let may_pin =
        || plane.may_pin(&upload, &"gamma".parse().unwrap(), &"m".parse().unwrap()).is_ok();
    bring(&plane, of("acme", 1), pinned(joined())).await;
    bring(&plane, of("beta", 1), pinned(joined())).await;
    assert!(!may_pin(), "three of them are more than half");
    // Each new shape takes memory.
    let grows = plane.loaded(&of("acme", 1)).unwrap();
    for rows in 1.. {
        if grows.memory_bytes() > one + one / 2 + one / 8 {
            break;
        }
        let column = |name: &str| f32s(name, &[rows, 1], &vec![7.; rows as usize]);
        grows.infer(request(vec![column("a"), column("b")])).await.unwrap();
    }
    let patience = Instant::now() + Duration::from_secs(60);
    while !may_pin() {
        assert!(Instant::now() < patience, "nobody has let go of a pin");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop((grows, upload));
    flood(&plane, "beta").await;
    flood(&plane, "acme").await;
    let there = |tenant| plane.peek(&of(tenant, 1)).is_some();
    assert_eq!((there("acme"), there("beta")), (false, true));
}
