use proptest::prelude::*;

use super::{super::placement::HISTORY_MAX, *};

fn alias(name: &str) -> AliasName {
    name.parse().unwrap()
}

fn numbered(count: u32) -> Versions<u32> {
    let mut versions = Versions::starting_at(1);
    for _ in 0..count {
        versions.add(|number| number).unwrap();
    }
    versions
}

fn back(versions: &mut Versions<u32>) -> Result<Target, CatalogError> {
    versions.roll_back(&AliasName::live(), None, |_| true).map(|placement| placement.target)
}

fn weights(pairs: &[(u32, u32)]) -> Target {
    Target::Weights(pairs.iter().copied().collect())
}

#[test]
fn a_selector_is_a_number_or_an_alias() {
    let mut versions = numbered(3);
    versions.point(&AliasName::live(), Target::Version(2)).unwrap();
    let resolve = |text: &str| versions.resolve(&text.parse().unwrap(), 0).map(|v| **v);
    assert_eq!(resolve("3"), Some(3));
    assert_eq!(resolve("live"), Some(2));
    assert_eq!(resolve("4"), None);
    assert_eq!(resolve("canary"), None);
}

#[test]
fn weights_divide_the_traffic_as_they_say() {
    let mut versions = numbered(3);
    versions.point(&AliasName::live(), weights(&[(1, 85), (2, 10), (3, 5)])).unwrap();
    let mut counts = BTreeMap::new();
    for pick in 0..1_000 {
        let version = versions.resolve(&Selector::default(), pick).unwrap();
        *counts.entry(**version).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([(1, 850), (2, 100), (3, 50)]));
}

#[test]
fn weights_must_be_percentages_of_versions_that_exist() {
    let mut versions = numbered(2);
    let live = AliasName::live();
    for bad in [
        weights(&[]),
        weights(&[(1, 99)]),
        weights(&[(1, 100), (2, 0)]),
        weights(&[(1, u32::MAX), (2, 101)]),
        weights(&[(1, 60), (2, 60)]),
    ] {
        let error = versions.point(&live, bad).unwrap_err();
        assert!(matches!(error, CatalogError::Invalid(_)), "{error}");
    }
    for missing in [weights(&[(1, 50), (3, 50)]), Target::Version(3), Target::Version(0)] {
        let error = versions.point(&live, missing).unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { what: "version" }), "{error}");
    }
    versions.point(&live, weights(&[(2, 100)])).unwrap();
    assert!(versions.points_at(&live, 2));
}

#[test]
fn a_rollback_goes_back_step_by_step() {
    let mut versions = numbered(3);
    let live = AliasName::live();
    for number in [1, 2, 2, 3] {
        versions.point(&live, Target::Version(number)).unwrap();
    }
    assert_eq!(back(&mut versions).unwrap(), Target::Version(2));
    assert_eq!(back(&mut versions).unwrap(), Target::Version(1));
    assert!(matches!(back(&mut versions), Err(CatalogError::Invalid(_))));
    assert!(versions.points_at(&live, 1));
    assert!(matches!(
        versions.roll_back(&alias("x"), None, |_| true),
        Err(CatalogError::NotFound { .. })
    ));
}

#[test]
fn a_rollback_steps_over_what_is_gone() {
    let mut versions = numbered(3);
    let live = AliasName::live();
    for number in [3, 1, 2, 1] {
        versions.point(&live, Target::Version(number)).unwrap();
    }
    versions.remove(2).unwrap();
    assert_eq!(back(&mut versions).unwrap(), Target::Version(3));
}

#[test]
fn the_history_and_the_aliases_are_bounded() {
    let mut versions = numbered(2);
    let live = AliasName::live();
    for step in 0..2 * HISTORY_MAX as u32 {
        versions.point(&live, Target::Version(1 + step % 2)).unwrap();
    }
    assert_eq!(versions.alias(&live).unwrap().history.len(), HISTORY_MAX);
    for number in 1..ALIASES_MAX {
        versions.point(&alias(&format!("a{number}")), Target::Version(1)).unwrap();
    }
    let error = versions.point(&alias("one-more"), Target::Version(1)).unwrap_err();
    assert!(matches!(error, CatalogError::LimitReached { what: "aliases", .. }));
    versions.point(&live, Target::Version(1)).unwrap();
}

#[test]
fn what_an_alias_points_at_stays() {
    let mut versions = numbered(4);
    versions.point(&alias("canary"), weights(&[(1, 50), (3, 50)])).unwrap();
    let error = versions.remove(3).unwrap_err();
    assert_eq!(error.to_string(), "version 3 is in use: the alias `canary` points at it");
    assert_eq!(versions.prune(3, |_| false).unwrap(), [2]);
    let error = versions.prune(2, |_| false).unwrap_err();
    assert!(matches!(error, CatalogError::LimitReached { what: "versions", limit: 2 }));
    versions.remove_alias(&alias("canary")).unwrap();
    assert_eq!(versions.prune(1, |_| false).unwrap(), [1, 3]);
    assert_eq!(versions.add(|number| number).map(|version| *version).unwrap(), 5);
}

#[test]
fn numbers_run_out_before_they_repeat() {
    let mut versions = Versions::starting_at(u32::MAX);
    assert!(versions.add(|number| number).is_err());
}

proptest! {
    #[test]
    fn every_pick_of_good_weights_finds_a_version(cut in 1u32..100, pick: u32) {
        let mut versions = numbered(2);
        versions.point(&AliasName::live(), weights(&[(1, cut), (2, 100 - cut)])).unwrap();
        let version = versions.resolve(&Selector::default(), pick).unwrap();
        prop_assert_eq!(**version == 2, pick % 100 < 100 - cut);
    }

    #[test]
    fn any_weights_are_judged_without_a_panic(pairs in proptest::collection::btree_map(any::<u32>(), any::<u32>(), 0..20)) {
        let _ = numbered(3).point(&AliasName::live(), Target::Weights(pairs));
    }
}
