//! What an alias settles when it moves, and rollouts.

use std::collections::BTreeMap;

use super::*;
use crate::{Health, NewRollout, RolloutEnd};

/// Deploys `f` bound so.
fn deploy(house: &House, bytes: &[u8], bindings: &[(&str, &str)]) -> u32 {
    let mut new = house.new_function("f", bytes);
    let bindings = bindings.iter().map(|(name, to)| (name.to_string(), to.parse().unwrap()));
    new.manifest.models = Some(bindings.collect());
    house.put_function(&acme(), &new, true, now()).unwrap().version().version
}

fn place(house: &House) -> Placement {
    let snapshot = house.snapshot();
    let function = snapshot.function(&acme(), &super::function("f")).unwrap();
    function.versions.alias(&AliasName::live()).unwrap().now.clone()
}

fn models(house: &House) -> BTreeMap<String, u32> {
    BTreeMap::clone(&place(house).models)
}

fn settled(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
    pairs.iter().map(|(name, version)| (name.to_string(), *version)).collect()
}

/// What the version that `pick` leads to would load by this name.
fn loads(house: &House, pick: u32, name: &str) -> Option<u32> {
    let snapshot = house.snapshot();
    let found = snapshot.find_function("acme", "f", &Selector::default(), |_| pick).unwrap();
    let loaded = snapshot.resolve_model(&found.grant.models, name, 0).ok();
    loaded.map(|(key, _)| key.version)
}

fn point_model(house: &House, name: &str, to: &str, target: Target) {
    house.set_model_alias(&acme(), &model(name), &alias(to), target, now()).unwrap();
}

fn begin(house: &House, candidate: u32) -> Result<crate::Rollout, CatalogError> {
    let bake = Duration::minutes(5);
    let new = NewRollout { candidate, percent: 10, bake, health: Health::default() };
    house.begin_rollout(&acme(), &function("f"), &AliasName::live(), new, now())
}

fn end(house: &House, end: RolloutEnd) -> Result<Placement, CatalogError> {
    house.end_rollout(&acme(), &function("f"), &AliasName::live(), None, end, now())
}

#[test]
fn only_what_is_bound_through_an_alias_is_settled() {
    let house = House::new("free");
    for bytes in [b"1", b"2", b"3"] {
        house.upload(&acme(), "m", bytes);
    }
    point_model(&house, "m", "canary", Target::Version(1));
    deploy(&house, b"a", &[("m", "2")]);
    assert_eq!(models(&house), settled(&[]));
    deploy(&house, b"b", &[("m", "canary"), ("missing", "live")]);
    assert_eq!(models(&house), settled(&[("m@canary", 1)]));
    assert_eq!(loads(&house, 0, "m"), Some(1));
    // Written with its owner, it is the same.
    deploy(&house, b"c", &[("acme/m", "live")]);
    assert_eq!(models(&house), settled(&[("m", 3)]));
    assert_eq!((loads(&house, 0, "m"), loads(&house, 0, "acme/m")), (Some(3), Some(3)));
    // A split is no version: it is decided at each load.
    point_model(&house, "m", "live", Target::Weights([(1, 50), (2, 50)].into()));
    assert_eq!(models(&house), settled(&[]));
    // What the guest itself names counts before what was settled.
    point_model(&house, "m", "live", Target::Version(2));
    assert_eq!((loads(&house, 0, "m"), loads(&house, 0, "m@1")), (Some(2), Some(1)));
}

#[test]
fn a_function_without_bindings_settles_all_models_of_its_tenant() {
    let house = House::new("free");
    house.upload(&acme(), "m", b"1");
    house.deploy("f", b"a");
    assert_eq!(models(&house), settled(&[("m", 1)]));
    house.upload(&acme(), "n", b"1");
    assert_eq!(models(&house), settled(&[("m", 1), ("n", 1)]));
    house.delete_model_alias(&acme(), &model("m"), &AliasName::live(), now()).unwrap();
    assert_eq!(models(&house), settled(&[("n", 1)]));
    assert_eq!(loads(&house, 0, "m"), None);
}

#[test]
fn a_place_with_as_many_models_as_it_may_have_follows_them() {
    let house = House::new("dedicated");
    for number in 0..256 {
        house.upload(&acme(), &format!("m{number}"), b"1");
    }
    house.deploy("f", b"a");
    assert_eq!(models(&house).len(), 256);
    house.upload(&acme(), "m7", b"2");
    let settled = models(&house);
    assert_eq!((settled.len(), settled["m7"]), (256, 2));
    // One more means what it means at each load.
    house.upload(&acme(), "n", b"1");
    assert_eq!(models(&house).len(), 256);
    assert_eq!((loads(&house, 0, "m7"), loads(&house, 0, "n")), (Some(2), Some(1)));
}

#[test]
fn an_alias_that_moves_leaves_the_others_as_they_were_settled() {
    let mut house = House::new("free");
    house.upload(&acme(), "m", b"1");
    house.upload(&acme(), "n", b"1");
    deploy(&house, b"a", &[("m", "live"), ("n", "live")]);
    house.upload(&acme(), "m", b"2");
    let back =
        house.roll_back_function_alias(&acme(), &function("f"), &AliasName::live(), None, now());
    assert_eq!(*back.unwrap().models, settled(&[("m", 1), ("n", 1)]));
    house.upload(&acme(), "n", b"2");
    point_model(&house, "m", "canary", Target::Version(2));
    assert_eq!(models(&house), settled(&[("m", 1), ("n", 2)]));
    house.reopen();
    assert_eq!(models(&house), settled(&[("m", 1), ("n", 2)]));
    assert_eq!(loads(&house, 0, "m"), Some(1));
}

#[test]
fn versions_of_one_split_may_be_bound_to_different_aliases_of_one_model() {
    let house = House::new("free");
    house.upload(&acme(), "m", b"1");
    house.upload(&acme(), "m", b"2");
    point_model(&house, "m", "canary", Target::Version(1));
    deploy(&house, b"a", &[("m", "live")]);
    deploy(&house, b"b", &[("m", "canary")]);
    let split = Target::Weights([(1, 50), (2, 50)].into());
    let live = AliasName::live();
    house.set_function_alias(&acme(), &function("f"), &live, split, now()).unwrap();
    assert_eq!(models(&house), settled(&[("m", 2), ("m@canary", 1)]));
    // The newest has the low half.
    assert_eq!((loads(&house, 0, "m"), loads(&house, 99, "m")), (Some(1), Some(2)));
}

#[test]
fn a_model_that_is_settled_on_makes_no_room_for_others() {
    let house = House::new("free");
    house.upload(&acme(), "m", b"0");
    deploy(&house, b"a", &[("m", "live")]);
    house.upload(&acme(), "m", b"1");
    let live = AliasName::live();
    house.roll_back_function_alias(&acme(), &function("f"), &live, None, now()).unwrap();
    for number in 2..20 {
        let new = house.new_model(&[number]);
        house.put_model(&acme(), &model("m"), &new, false, now()).unwrap();
    }
    assert_eq!(loads(&house, 0, "m"), Some(1));
    let error = house.delete_model_version(&acme(), &model("m"), 1).unwrap_err();
    assert!(matches!(error, CatalogError::Placed { version: 1 }) && error.hint().is_some());
}

#[test]
fn a_model_makes_room_for_the_one_that_takes_its_place() {
    let house = House::new("free");
    house.upload(&acme(), "m", b"1");
    deploy(&house, b"a", &[("m", "live")]);
    house.set_model_retention(&acme(), &model("m"), Retention::Latest(1)).unwrap();
    house.upload(&acme(), "m", b"2");
    let snapshot = house.snapshot();
    assert_eq!(snapshot.model(&acme(), &model("m")).unwrap().versions.len(), 1);
    assert_eq!(loads(&house, 0, "m"), Some(2));
    // There is no model to go back to any more, and nothing else to go back for.
    let back = || {
        let live = AliasName::live();
        house.roll_back_function_alias(&acme(), &function("f"), &live, None, now())
    };
    assert!(matches!(back(), Err(CatalogError::Invalid(_))));
    // A version that is there goes back, with the model of today in the place of what is gone.
    deploy(&house, b"b", &[("m", "live")]);
    let placement = back().unwrap();
    assert_eq!((placement.target, &*placement.models), (Target::Version(1), &settled(&[("m", 2)])));
}

#[test]
fn a_rollout_leaves_no_split_behind() {
    let mut house = House::new("free");
    house.upload(&acme(), "m", b"1");
    deploy(&house, b"a", &[("m", "live")]);
    let mut new = house.new_function("f", b"b");
    new.manifest.models = Some([("m".to_owned(), Selector::default())].into());
    house.put_function(&acme(), &new, false, now()).unwrap();
    begin(&house, 2).unwrap();
    assert!(matches!(begin(&house, 2), Err(CatalogError::RolloutRunning { candidate: 2 })));
    house.reopen();
    // A model that moves meanwhile belongs to what is tried.
    house.upload(&acme(), "m", b"2");
    let reason = "slow".to_owned();
    let back = end(&house, RolloutEnd::RolledBack { reason: reason.clone() }).unwrap();
    assert_eq!((back.target, back.cause), (Target::Version(1), Cause::Failed { reason }));
    assert_eq!(*back.models, settled(&[("m", 1)]), "it goes back with its models");
    assert!(matches!(end(&house, RolloutEnd::Promoted), Err(CatalogError::NotFound { .. })));
    assert!(matches!(begin(&house, 2), Err(CatalogError::Failed { version: 2 })));
    // Deployed again as it is, it has failed already.
    let again = house.put_function(&acme(), &new, true, now());
    assert!(matches!(again, Err(CatalogError::Failed { version: 2 })));
    house.reopen();
    let snapshot = house.snapshot();
    let function = snapshot.function(&acme(), &super::function("f")).unwrap();
    assert_eq!(function.versions.get(2).unwrap().failed.as_deref(), Some("slow"));
    assert!(function.versions.alias(&AliasName::live()).unwrap().history.is_empty());
}

#[test]
fn a_promoted_version_keeps_the_models_it_was_tried_with() {
    let house = House::new("free");
    house.upload(&acme(), "m", b"1");
    house.upload(&acme(), "n", b"1");
    deploy(&house, b"a", &[("n", "live")]);
    let mut new = house.new_function("f", b"b");
    new.manifest.models = Some([("m".to_owned(), Selector::default())].into());
    house.put_function(&acme(), &new, false, now()).unwrap();
    begin(&house, 2).unwrap();
    assert_eq!(models(&house), settled(&[("m", 1), ("n", 1)]));
    let promoted = end(&house, RolloutEnd::Promoted).unwrap();
    assert_eq!((promoted.target, promoted.cause), (Target::Version(2), Cause::Promoted));
    assert_eq!(*promoted.models, settled(&[("m", 1)]));
    let live = AliasName::live();
    let back = house.roll_back_function_alias(&acme(), &function("f"), &live, None, now()).unwrap();
    assert_eq!((back.target, &*back.models), (Target::Version(1), &settled(&[("n", 1)])));
}
