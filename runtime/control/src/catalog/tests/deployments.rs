//! Functions, models, their versions, and blobs.

use super::*;

#[test]
fn a_new_version_goes_live_unless_it_is_told_not_to() {
    let house = House::new("free");
    assert!(
        matches!(house.deploy("f", b"one"), PutOutcome::Created(version) if version.version == 1)
    );
    assert_eq!(house.live("f"), Some(1));
    let new = house.new_function("f", b"two");
    let outcome = house.put_function(&acme(), &new, false, now()).unwrap();
    assert_eq!((outcome.version().version, house.live("f")), (2, Some(1)));
    // The same again, and `live` follows; once more, and nothing is left to do.
    for _ in 0..2 {
        let outcome = house.put_function(&acme(), &new, true, now()).unwrap();
        assert!(matches!(outcome, PutOutcome::Unchanged(version) if version.version == 2));
        assert_eq!(house.live("f"), Some(2));
    }
    // Only the newest counts: bytes of an older version are a new version.
    assert_eq!(house.deploy("f", b"one").version().version, 3);
}

#[test]
fn a_function_that_was_never_activated_is_not_served() {
    let house = House::new("free");
    let new = house.new_function("f", b"one");
    house.put_function(&acme(), &new, false, now()).unwrap();
    assert_eq!(house.live("f"), None);
    house
        .set_function_alias(&acme(), &function("f"), &AliasName::live(), Target::Version(1), now())
        .unwrap();
    assert_eq!(house.live("f"), Some(1));
}

#[test]
fn another_manifest_is_another_version_but_another_build_is_not() {
    let house = House::new("free");
    house.deploy("f", b"one");
    let mut new = house.new_function("f", b"one");
    new.manifest.build.command = Some("make".to_owned());
    assert!(matches!(
        house.put_function(&acme(), &new, true, now()).unwrap(),
        PutOutcome::Unchanged(_)
    ));
    new.manifest.limits.cpu_ms = Some(7);
    let outcome = house.put_function(&acme(), &new, true, now()).unwrap();
    assert!(matches!(outcome, PutOutcome::Created(version) if version.grant.sandbox.cpu_ms == 7));
}

#[test]
fn another_option_is_another_version_of_a_model() {
    let house = House::new("free");
    house.upload(&acme(), "m", b"one");
    assert!(matches!(house.upload(&acme(), "m", b"one"), PutOutcome::Unchanged(_)));
    let mut new = house.new_model(b"one");
    new.options.insert("batch".to_owned(), "8".to_owned());
    let outcome = house.put_model(&acme(), &model("m"), &new, true, now()).unwrap();
    assert!(matches!(outcome, PutOutcome::Created(version) if version.version == 2));
}

#[test]
fn old_versions_make_room_and_aliased_ones_stay() {
    let house = House::new("free");
    let name = function("f");
    house.deploy("f", b"0");
    house.set_function_alias(&acme(), &name, &alias("stable"), Target::Version(1), now()).unwrap();
    for number in 1..15 {
        house.deploy("f", &[number]);
    }
    let snapshot = house.snapshot();
    let numbers: Vec<_> =
        snapshot.function(&acme(), &name).unwrap().versions.iter().map(|(n, _)| n).collect();
    assert_eq!(numbers, [1, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let error = house.delete_function_version(&acme(), &name, 1).unwrap_err();
    assert!(matches!(&error, CatalogError::InUse { version: 1, alias } if alias == "stable"));
    assert!(error.hint().is_some());
}

#[test]
fn when_every_version_is_aliased_the_next_is_refused() {
    let house = House::new("free");
    let name = model("m");
    for number in 1..=10 {
        house.upload(&acme(), "m", &[number]);
        let version = Target::Version(number.into());
        house
            .set_model_alias(&acme(), &name, &alias(&format!("a{number}")), version, now())
            .unwrap();
    }
    let error = house.put_model(&acme(), &name, &house.new_model(b"x"), true, now()).unwrap_err();
    assert!(matches!(error, CatalogError::LimitReached { what: "versions", limit: 10 }));
    assert_eq!(house.snapshot().model(&acme(), &name).unwrap().versions.next_number(), 11);
}

#[test]
fn the_tier_limits_how_many_and_how_large() {
    let house = House::new("free");
    for number in 0..10 {
        house.deploy(&format!("f{number}"), b"same");
    }
    let one_more = house.put_function(&acme(), &house.new_function("g", b"same"), true, now());
    let error = one_more.unwrap_err();
    assert_eq!(error.to_string(), "the limit of 10 functions is reached");
    house.deploy("f3", b"other");
    house.delete_function(&acme(), &function("f0")).unwrap();
    house.deploy("g", b"same");
    for number in 0..5 {
        house.upload(&acme(), &format!("m{number}"), b"same");
    }
    let error = house.put_model(&acme(), &model("n"), &house.new_model(b"same"), true, now());
    assert!(matches!(error, Err(CatalogError::LimitReached { what: "models", limit: 5 })));
    let large = house.new_function("g", &vec![0; (16 << 20) + 1]);
    let error = house.put_function(&acme(), &large, true, now());
    assert!(matches!(error, Err(CatalogError::TooLarge { what: "component", limit_mib: 16 })));
}

#[test]
fn a_number_is_never_used_again() {
    let mut house = House::new("free");
    let name = function("f");
    for bytes in [b"1", b"2", b"3"] {
        house.deploy("f", bytes);
    }
    house
        .set_function_alias(&acme(), &name, &AliasName::live(), Target::Version(1), now())
        .unwrap();
    house.delete_function_version(&acme(), &name, 3).unwrap();
    house.reopen();
    assert_eq!(house.deploy("f", b"4").version().version, 4);
    house.delete_function(&acme(), &name).unwrap();
    assert_eq!(house.live("f"), None);
    house.reopen();
    assert_eq!(house.deploy("f", b"5").version().version, 5);
    assert_eq!(house.deploy("g", b"5").version().version, 1);

    house.upload(&acme(), "m", b"1");
    house.delete_model(&acme(), &model("m")).unwrap();
    assert_eq!(house.upload(&acme(), "m", b"1").version().version, 2);
}

#[test]
fn aliases_move_split_and_go_back() {
    let mut house = House::new("free");
    let (name, live) = (function("f"), AliasName::live());
    house.deploy("f", b"1");
    house.deploy("f", b"2");
    let split = Target::Weights([(1, 90), (2, 10)].into());
    house.set_function_alias(&acme(), &name, &live, split.clone(), now()).unwrap();
    house.reopen();
    let snapshot = house.snapshot();
    let hits = (0..100)
        .filter(|pick| {
            let found = snapshot.find_function(
                acme().as_str(),
                name.as_str(),
                &Selector::default(),
                |_| *pick,
            );
            found.unwrap().version.version == 1
        })
        .count();
    assert_eq!(hits, 90);
    let back = house.roll_back_function_alias(&acme(), &name, &live, None, now()).unwrap();
    assert_eq!(back.target, Target::Version(2));
    assert_eq!(house.live("f"), Some(2));
    house.delete_function_alias(&acme(), &name, &live).unwrap();
    assert_eq!(house.live("f"), None);
}

#[test]
fn what_does_not_exist_is_not_found() {
    let house = House::new("free");
    let (f, m, live) = (function("f"), model("m"), AliasName::live());
    let one = Target::Version(1);
    for outcome in [
        house.delete_function(&acme(), &f),
        house.delete_model(&acme(), &m),
        house.delete_function_version(&acme(), &f, 1),
        house.delete_model_version(&acme(), &m, 1),
        house.set_function_alias(&acme(), &f, &live, one.clone(), now()),
        house.set_model_alias(&acme(), &m, &live, one, now()),
        house.set_model_grants(&acme(), &m, ModelGrants::All, true),
        house.delete_function(&tenant("nobody"), &f),
        house.roll_back_model_alias(&acme(), &m, &live, now()).map(drop),
        house.delete_model_alias(&acme(), &m, &live, now()),
    ] {
        assert!(matches!(outcome, Err(CatalogError::NotFound { .. })), "{outcome:?}");
    }
}

#[test]
fn a_reader_keeps_what_it_has_seen() {
    let house = House::new("free");
    house.deploy("f", b"1");
    let before = Arc::clone(&house.snapshot());
    house.delete_function(&acme(), &function("f")).unwrap();
    assert!(before.function(&acme(), &function("f")).is_some());
    assert!(house.snapshot().function(&acme(), &function("f")).is_none());
}

#[test]
fn a_mutation_leaves_the_other_tenants_where_they_are() {
    let house = House::new("free");
    house.create_tenant(&tenant("beta"), &tier("free"), now()).unwrap();
    let before = Arc::clone(&house.snapshot());
    house.deploy("f", b"1");
    let after = house.snapshot();
    let beta = tenant("beta");
    assert!(Arc::ptr_eq(before.tenant(&beta).unwrap(), after.tenant(&beta).unwrap()));
}

#[test]
fn eight_threads_deploying_one_name_lose_nothing() {
    let mut house = House::new("standard");
    let numbers = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let (house, numbers) = (&house, &numbers);
            scope.spawn(move || {
                for round in 0..5u8 {
                    let number = house.deploy("f", &[thread, round]).version().version;
                    numbers.lock().unwrap().push(number);
                }
            });
        }
    });
    let mut numbers = numbers.into_inner().unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
    house.reopen();
    assert_eq!(house.live("f"), Some(40));
    let snapshot = house.snapshot();
    let versions = &snapshot.function(&acme(), &function("f")).unwrap().versions;
    for (_, version) in versions.iter() {
        assert!(house.blob(&version.digest).unwrap().is_some());
    }
    assert_eq!(versions.len(), 40);
}

#[test]
fn a_blob_goes_when_nobody_needs_it() {
    let house = House::new("free");
    house.deploy("f", b"shared");
    house.upload(&acme(), "m", b"shared");
    let pinned = house.put_blob(b"in flight").unwrap();
    assert_eq!(house.collect_garbage().unwrap(), 0);
    house.delete_function(&acme(), &function("f")).unwrap();
    assert_eq!(house.collect_garbage().unwrap(), 0);
    house.delete_model(&acme(), &model("m")).unwrap();
    assert_eq!(house.collect_garbage().unwrap(), 1);
    let second = pinned.clone();
    drop(pinned);
    assert_eq!(house.collect_garbage().unwrap(), 0);
    assert_eq!(house.blob(&second.digest()).unwrap().unwrap(), "in flight");
    drop(second);
    assert_eq!(house.collect_garbage().unwrap(), 1);
    assert_eq!(house.blob_count(), 0);
}

#[test]
fn sweeps_and_deployments_at_once_lose_no_blob() {
    let house = House::new("standard");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                house.collect_garbage().unwrap();
            }
        });
        let workers: Vec<_> = (0..3u8)
            .map(|thread| {
                let house = &house;
                scope.spawn(move || {
                    let name = format!("f{thread}");
                    for round in 0..25u8 {
                        // The same bytes come, go, and come again.
                        let version = house.deploy(&name, &[round % 2]);
                        let bytes = house.blob(&version.version().digest).unwrap();
                        assert_eq!(bytes.unwrap(), &[round % 2][..]);
                        house.delete_function(&acme(), &function(&name)).unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    house.collect_garbage().unwrap();
    assert_eq!(house.blob_count(), 0);
}
