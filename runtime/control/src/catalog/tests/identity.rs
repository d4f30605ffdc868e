//! Tenants and keys.

use super::*;
use crate::KeyText;

fn tenant_of(catalog: &Catalog, text: &str) -> Result<TenantName, KeyError> {
    match catalog.find_key(text, now())? {
        Principal::Tenant { tenant, .. } => Ok(tenant),
        Principal::Operator => panic!("it is the operator's"),
    }
}

#[test]
fn a_key_opens_its_tenant_with_its_scopes() {
    let house = House::new("free");
    let invoke = scopes(&[Scope::Invoke]);
    let new = house.create_key(&acme(), invoke, None, now()).unwrap();
    let principal = house.find_key(new.text.expose(), now()).unwrap();
    let expected = Principal::Tenant { tenant: acme(), key_id: new.key.id, scopes: invoke };
    assert_eq!(principal, expected);
    assert!(!format!("{new:?}").contains(&new.text.expose()[16..]));
}

#[test]
fn the_operator_s_key_is_the_operator_s_alone() {
    let house = House::new("free");
    assert_eq!(house.find_key(OPERATOR, now()).unwrap(), Principal::Operator);
    for near in [&OPERATOR[1..], &format!("{OPERATOR} "), "", "sp_"] {
        assert_eq!(house.find_key(near, now()), Err(KeyError::Malformed));
    }
}

#[test]
fn a_well_formed_key_that_nobody_has_is_unknown() {
    let house = House::new("free");
    let (_, text) = KeyText::generate().unwrap();
    assert_eq!(house.find_key(text.expose(), now()), Err(KeyError::Unknown));
}

#[test]
fn another_secret_under_a_known_id_is_unknown() {
    let house = House::new("free");
    let new = house.create_key(&acme(), ScopeSet::all(), None, now()).unwrap();
    let (_, other) = KeyText::generate().unwrap();
    let forged = format!("sp_{}_{}", new.key.id, &other.expose()[16..59]);
    let forged = format!("{forged}{}", checksum(&forged));
    assert_eq!(house.find_key(&forged, now()), Err(KeyError::Unknown));
}

/// The documented checksum, written a second time.
fn checksum(body: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let sum = u64::from(crc32fast::hash(body.as_bytes()));
    (0..6).rev().map(|place| char::from(DIGITS[(sum / 62u64.pow(place) % 62) as usize])).collect()
}

#[test]
fn a_revoked_key_is_refused_at_once_and_after_a_restart() {
    let mut house = House::new("free");
    let new = house.create_key(&acme(), ScopeSet::all(), None, now()).unwrap();
    let text = new.text.expose();
    assert_eq!(tenant_of(&house, text), Ok(acme()));
    house.create_tenant(&tenant("beta"), &tier("free"), now()).unwrap();
    let foreign = house.delete_key(&tenant("beta"), &new.key.id).unwrap_err();
    assert!(matches!(foreign, CatalogError::NotFound { what: "key" }));
    assert_eq!(tenant_of(&house, text), Ok(acme()));
    house.delete_key(&acme(), &new.key.id).unwrap();
    assert_eq!(tenant_of(&house, text), Err(KeyError::Unknown));
    assert!(house.delete_key(&acme(), &new.key.id).is_err());
    house.reopen();
    assert_eq!(tenant_of(&house, text), Err(KeyError::Unknown));
}

#[test]
fn a_key_expires_on_the_dot_also_after_a_restart() {
    let mut house = House::new("free");
    let end = now() + Duration::hours(1);
    let new = house.create_key(&acme(), ScopeSet::all(), Some(end), now()).unwrap();
    let text = new.text.expose();
    for _ in 0..2 {
        assert!(house.find_key(text, end - Duration::nanoseconds(1)).is_ok());
        assert_eq!(house.find_key(text, end), Err(KeyError::Expired));
        house.reopen();
    }
}

#[test]
fn keys_that_would_never_work_are_not_made() {
    let house = House::new("free");
    let none = house.create_key(&acme(), scopes(&[]), None, now());
    assert!(matches!(none, Err(CatalogError::Invalid(_))));
    let past = house.create_key(&acme(), ScopeSet::all(), Some(now()), now());
    assert!(matches!(past, Err(CatalogError::Invalid(_))));
    let nobody = house.create_key(&tenant("nobody"), ScopeSet::all(), None, now());
    assert!(matches!(nobody, Err(CatalogError::NotFound { what: "tenant" })));
}

#[test]
fn a_tenant_lists_its_own_keys() {
    let house = House::new("free");
    house.create_tenant(&tenant("beta"), &tier("free"), now()).unwrap();
    let first = house.create_key(&acme(), ScopeSet::all(), None, now()).unwrap().key.id;
    let later = now() + Duration::seconds(1);
    let second = house.create_key(&acme(), ScopeSet::all(), None, later).unwrap().key.id;
    house.create_key(&tenant("beta"), ScopeSet::all(), None, now()).unwrap();
    let ids: Vec<_> = house.snapshot().keys_of(&acme()).iter().map(|key| key.id).collect();
    assert_eq!(ids, [first, second]);
}

#[test]
fn nothing_on_the_disk_holds_a_secret() {
    let house = House::new("free");
    let new = house.create_key(&acme(), ScopeSet::all(), None, now()).unwrap();
    let secret = &new.text.expose()[16..59];
    for name in ["sandpiper.db", "sandpiper.db-wal"] {
        let bytes = fs::read(house.home.path().join(name)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(secret) && !text.contains(OPERATOR));
    }
}

#[test]
fn a_tenant_is_made_once_and_of_a_tier_that_exists() {
    let house = House::new("free");
    let again = house.create_tenant(&acme(), &tier("standard"), now()).unwrap_err();
    assert!(matches!(again, CatalogError::AlreadyExists { what: "tenant" }));
    let gold = house.create_tenant(&tenant("beta"), &tier("gold"), now()).unwrap_err();
    assert!(gold.to_string().starts_with("there is no tier `gold`"));
    assert_eq!(house.snapshot().tenants().count(), 1);
    assert_eq!(house.snapshot().tenant(&acme()).unwrap().limits.concurrency, 4);
}

#[test]
fn a_deleted_tenant_leaves_nothing_behind_and_its_keys_die() {
    let mut house = House::new("free");
    house.create_tenant(&tenant("beta"), &tier("free"), now()).unwrap();
    let dead = house.create_key(&acme(), ScopeSet::all(), None, now()).unwrap();
    let alive = house.create_key(&tenant("beta"), ScopeSet::all(), None, now()).unwrap();
    house.deploy("f", b"component");
    house.upload(&acme(), "m", b"model");
    house.delete_tenant(&acme()).unwrap();
    for _ in 0..2 {
        assert_eq!(tenant_of(&house, dead.text.expose()), Err(KeyError::Unknown));
        assert_eq!(tenant_of(&house, alive.text.expose()), Ok(tenant("beta")));
        assert!(house.snapshot().tenant(&acme()).is_none());
        house.reopen();
    }
    assert_eq!(house.blob_count(), 0);
    assert!(matches!(house.delete_tenant(&acme()), Err(CatalogError::NotFound { .. })));
    // The same name again: numbering goes on, since caches may still know the old versions.
    house.create_tenant(&acme(), &tier("free"), now()).unwrap();
    assert_eq!(house.deploy("f", b"component").version().version, 2);
    assert_eq!(house.upload(&acme(), "m", b"model").version().version, 2);
    assert_eq!(house.upload(&acme(), "other", b"model").version().version, 1);
}
