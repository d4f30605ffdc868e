//! Which models a function may load.

use std::collections::BTreeMap;

use sandpiper_domain::{InferenceError, ModelScope};

use super::*;

/// `acme` and `beta`; `beta` owns `ocr` (versions 1 and 2, live 2, canary 1), `acme` owns `digits` alike.
fn two_tenants() -> House {
    let house = House::new("free");
    house.create_tenant(&tenant("beta"), &tier("free"), now()).unwrap();
    for (owner, name) in [("acme", "digits"), ("beta", "ocr")] {
        house.upload(&tenant(owner), name, b"1");
        house.upload(&tenant(owner), name, b"2");
        let (owner, name) = (tenant(owner), model(name));
        house.set_model_alias(&owner, &name, &alias("canary"), Target::Version(1), now()).unwrap();
    }
    house
}

fn scope(bindings: Option<&[(&str, &str)]>) -> ModelScope {
    let bindings = bindings.map(|pairs| {
        pairs
            .iter()
            .map(|(name, to)| (name.to_string(), to.parse().unwrap()))
            .collect::<BTreeMap<_, _>>()
    });
    ModelScope { tenant: acme(), bindings, pins: Default::default() }
}

fn resolve(house: &House, scope: &ModelScope, text: &str) -> Result<(String, u32), InferenceError> {
    let (key, version) = house.snapshot().resolve_model(scope, text, 0)?;
    assert_eq!(key.version, version.version);
    Ok((format!("{}/{}", key.tenant, key.model), key.version))
}

#[test]
fn without_a_table_every_own_model_is_there() {
    let house = two_tenants();
    let scope = scope(None);
    let digits = |version| Ok(("acme/digits".to_owned(), version));
    assert_eq!(resolve(&house, &scope, "digits"), digits(2));
    assert_eq!(resolve(&house, &scope, "digits@1"), digits(1));
    assert_eq!(resolve(&house, &scope, "digits@canary"), digits(1));
    assert_eq!(resolve(&house, &scope, "acme/digits"), digits(2));
}

#[test]
fn missing_foreign_and_unbound_look_alike() {
    let house = two_tenants();
    let bound = scope(Some(&[("digits", "live"), ("gone", "live"), ("beta/ocr", "live")]));
    for (scope, text) in [
        (&scope(None), "missing"),
        (&scope(None), "ocr"),
        (&scope(None), "beta/ocr"),
        (&scope(None), "beta/ocr@1"),
        (&scope(None), "beta/missing"),
        (&scope(None), "nobody/ocr"),
        (&scope(None), "digits@3"),
        (&scope(None), "digits@nothing"),
        (&scope(Some(&[])), "digits"),
        (&bound, "gone"),
        (&bound, "beta/ocr"),
        (&bound, "beta/ocr@1"),
    ] {
        assert_eq!(resolve(&house, scope, text), Err(InferenceError::NotFound), "{text}");
    }
    for text in ["", "@", "a/b/c", "../digits", "digits@0"] {
        let outcome = resolve(&house, &scope(None), text);
        assert!(matches!(outcome, Err(InferenceError::InvalidArgument(_))), "{text}");
    }
}

#[test]
fn a_table_says_which_and_at_what() {
    let house = two_tenants();
    let digits = |version| Ok(("acme/digits".to_owned(), version));
    for table in [[("digits", "canary")], [("acme/digits", "1")]] {
        let scope = scope(Some(&table));
        assert_eq!(resolve(&house, &scope, "digits"), digits(1));
        assert_eq!(resolve(&house, &scope, "acme/digits"), digits(1));
        assert_eq!(resolve(&house, &scope, "digits@live"), digits(2));
        assert_eq!(resolve(&house, &scope, "digits@2"), digits(2));
    }
}

#[test]
fn a_grant_opens_a_model_to_those_it_names() {
    let mut house = two_tenants();
    let (beta, ocr) = (tenant("beta"), model("ocr"));
    let ours = Ok(("beta/ocr".to_owned(), 2));
    let table = scope(Some(&[("beta/ocr", "canary")]));
    for grants in [ModelGrants::All, ModelGrants::Tenants([acme(), tenant("other")].into())] {
        house.set_model_grants(&beta, &ocr, grants, true).unwrap();
        house.reopen();
        assert_eq!(resolve(&house, &scope(None), "beta/ocr"), ours);
        assert_eq!(resolve(&house, &scope(None), "beta/ocr@1"), Ok(("beta/ocr".to_owned(), 1)));
        assert_eq!(resolve(&house, &table, "beta/ocr"), Ok(("beta/ocr".to_owned(), 1)));
        // A grant gives no shorter name, and no other model.
        assert!(resolve(&house, &scope(None), "ocr").is_err());
        assert!(resolve(&house, &scope(Some(&[("digits", "live")])), "beta/ocr").is_err());
    }
    for grants in [ModelGrants::None, ModelGrants::Tenants([tenant("other")].into())] {
        house.set_model_grants(&beta, &ocr, grants, true).unwrap();
        assert_eq!(resolve(&house, &scope(None), "beta/ocr"), Err(InferenceError::NotFound));
    }
}

#[test]
fn a_new_owner_of_a_name_inherits_no_grant() {
    let mut house = two_tenants();
    let (beta, ocr) = (tenant("beta"), model("ocr"));
    let both = ModelGrants::Tenants([acme(), tenant("other")].into());
    house.set_model_grants(&beta, &ocr, both, true).unwrap();
    house.delete_tenant(&acme()).unwrap();
    house.create_tenant(&acme(), &tier("free"), now()).unwrap();
    for _ in 0..2 {
        assert_eq!(resolve(&house, &scope(None), "beta/ocr"), Err(InferenceError::NotFound));
        let left = house.snapshot().model(&beta, &ocr).unwrap().grants.clone();
        assert_eq!(left, ModelGrants::Tenants([tenant("other")].into()));
        house.reopen();
    }
}

#[test]
fn a_split_alias_is_followed() {
    let house = two_tenants();
    let split = Target::Weights([(1, 30), (2, 70)].into());
    house.set_model_alias(&acme(), &model("digits"), &AliasName::live(), split, now()).unwrap();
    let snapshot = house.snapshot();
    let ones = (0..1_000)
        .filter(|pick| {
            snapshot.resolve_model(&scope(None), "digits", *pick).unwrap().0.version == 1
        })
        .count();
    assert_eq!(ones, 300);
}

proptest::proptest! {
    #[test]
    fn any_reference_is_judged_without_a_panic(text in ".*") {
        let snapshot = Snapshot::default();
        assert!(snapshot.resolve_model(&scope(None), &text, 0).is_err());
    }
}
