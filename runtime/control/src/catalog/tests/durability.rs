//! What is there after a restart, however the last run ended.

use std::sync::atomic::{AtomicBool, Ordering};

use sandpiper_domain::{Operation, Record, StoreError};

use super::*;
use crate::{FolderBlobs, KeyText, SqliteStore};

/// Everything a snapshot holds, in an order that can be compared.
fn everything(house: &House) -> String {
    let snapshot = house.snapshot();
    let mut lines = Vec::new();
    for tenant in snapshot.tenants() {
        lines.push(format!(
            "{} {} {} {:?}",
            tenant.name, tenant.tier, tenant.created_at, tenant.limits
        ));
        lines.extend(tenant.functions.values().map(|function| format!("{function:?}")));
        lines.extend(tenant.models.values().map(|model| format!("{model:?}")));
        lines.extend(snapshot.keys_of(&tenant.name).iter().map(|key| format!("{key:?}")));
    }
    lines.sort();
    lines.join("\n")
}

/// One of everything, and a bit of history.
fn busy_house() -> (House, KeyText) {
    let house = House::new("standard");
    house.create_tenant(&tenant("acme-b"), &tier("free"), now()).unwrap();
    let end = Some(now() + Duration::days(1));
    let text = house.create_key(&acme(), scopes(&[Scope::Invoke]), end, now()).unwrap().text;
    house.create_key(&acme(), ScopeSet::all(), None, now()).unwrap();
    for name in ["f", "f-b"] {
        house.deploy(name, b"1");
        house.deploy(name, b"2");
    }
    let split = Target::Weights([(1, 50), (2, 50)].into());
    house.set_function_alias(&acme(), &function("f"), &alias("split"), split, now()).unwrap();
    let mut new = house.new_function("f", b"component made of it");
    new.source = house.put_blob(b"core module").unwrap();
    new.manifest =
        Manifest::parse("name = \"f\"\n[models]\nm = \"1\"\n[limits]\ncpu_ms = 3\n[env]\nA = \"\"")
            .unwrap();
    house.put_function(&acme(), &new, true, now()).unwrap();
    house.upload(&acme(), "M.1", b"model");
    let granted = ModelGrants::Tenants([tenant("acme-b")].into());
    house.set_model_grants(&acme(), &model("M.1"), granted, true).unwrap();
    (house, text)
}

#[test]
fn everything_is_there_after_a_restart() {
    let (mut house, text) = busy_house();
    let before = everything(&house);
    assert!(before.lines().count() > 6);
    house.reopen();
    assert_eq!(everything(&house), before);
    assert!(house.find_key(text.expose(), now()).is_ok());
    assert_eq!(house.blob_count(), 5);
}

#[test]
fn a_closed_catalog_is_anothers_to_change() {
    let (house, text) = busy_house();
    assert!(matches!(open(house.home.path()), Err(OpenError::Locked)));
    house.close();
    house.close();
    let before = everything(&house);
    let refused = house.create_tenant(&tenant("late"), &tier("free"), now());
    assert!(matches!(refused, Err(CatalogError::Closed)), "{refused:?}");
    // What it still knows, it still tells.
    assert_eq!(everything(&house), before);
    assert!(house.find_key(text.expose(), now()).is_ok());
    let other = open(house.home.path()).unwrap();
    other.create_tenant(&tenant("new"), &tier("free"), now()).unwrap();
    // A blob that this catalog knows nothing of is not garbage to it.
    other.put_blob(b"somebody else's").unwrap();
    assert_eq!(house.collect_garbage().unwrap(), 0);
    assert!(matches!(Catalog::reopen(&house), Err(OpenError::Locked)));
    drop(other);
    Catalog::reopen(&house).unwrap();
    assert!(house.snapshot().tenant(&tenant("new")).is_some());
    house.create_tenant(&tenant("late"), &tier("free"), now()).unwrap();
    assert!(matches!(open(house.home.path()), Err(OpenError::Locked)));
}

#[test]
fn everything_is_there_after_a_kill() {
    let (house, text) = busy_house();
    let revived = house.killed_now();
    assert_eq!(everything(&revived), everything(&house));
    assert!(revived.find_key(text.expose(), now()).is_ok());
    let snapshot = revived.snapshot();
    for (_, version) in snapshot.function(&acme(), &function("f")).unwrap().versions.iter() {
        assert!(revived.blob(&version.digest).unwrap().is_some());
        assert!(revived.blob(&version.source_digest).unwrap().is_some());
    }
}

#[test]
fn a_kill_after_any_step_keeps_what_was_acknowledged() {
    let house = House::new("free");
    for number in 1..=5u8 {
        house.deploy("f", &[number]);
        let revived = house.killed_now();
        assert_eq!(revived.live("f"), Some(number.into()));
    }
}

#[test]
fn half_done_uploads_are_cleared_away_at_the_start() {
    let mut house = House::new("free");
    house.deploy("f", b"1");
    let blobs = house.home.path().join("blobs");
    fs::write(blobs.join(".tmp-half"), "ha").unwrap();
    // Whole, but the commit that would have named it never came.
    house.put_blob(b"orphan").unwrap();
    assert_eq!(house.blob_count(), 3);
    house.reopen();
    assert_eq!(house.blob_count(), 1);
}

#[test]
fn a_missing_blob_breaks_its_version_alone() {
    let mut house = House::new("free");
    let digest = house.deploy("f", b"1").version().digest;
    house.deploy("g", b"2");
    fs::remove_file(house.home.path().join("blobs").join(digest.to_string())).unwrap();
    house.reopen();
    assert_eq!(house.blob(&digest).unwrap(), None);
    assert_eq!(house.live("g"), Some(1));
}

#[test]
fn a_damaged_blob_is_not_handed_out() {
    let house = House::new("free");
    let digest = house.deploy("f", b"1").version().digest;
    fs::write(house.home.path().join("blobs").join(digest.to_string()), "2").unwrap();
    let error = house.blob(&digest).unwrap_err();
    assert!(matches!(error, CatalogError::Store(_)));
    // The user is told nothing of digests or files.
    assert_eq!(error.to_string(), "the server could not store or read this");
}

#[test]
fn a_second_server_and_a_foreign_pepper_are_refused() {
    let mut house = House::new("free");
    assert!(matches!(open(house.home.path()), Err(OpenError::Locked)));
    house.catalog = None;
    let pepper = house.home.path().join("pepper");
    fs::remove_file(&pepper).unwrap();
    assert!(matches!(open(house.home.path()), Err(OpenError::Pepper)));
}

#[test]
fn a_tenant_of_a_tier_that_is_gone_stops_the_start() {
    let mut house = House::new("free");
    house.catalog = None;
    let home = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies"), home.path());
    fs::remove_file(home.path().join("tiers/free.toml")).unwrap();
    let policies = Policies::load(home.path()).unwrap();
    let folder = DataFolder::open(house.home.path()).unwrap();
    let error = Catalog::open(folder, policies, &OPERATOR.parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("no tier `free`"), "{error}");
}

/// A store whose answer gets lost on the way when told so: the transaction is done, the caller hears of a failure.
struct Unsure {
    store: SqliteStore,
    lose_answer: AtomicBool,
}

impl MetadataStore for Unsure {
    fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.store.get(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Record>, StoreError> {
        self.store.list(prefix)
    }
    fn transact(&self, operations: &[Operation]) -> Result<u64, StoreError> {
        let revision = self.store.transact(operations)?;
        if self.lose_answer.swap(false, Ordering::Relaxed) {
            return Err(StoreError::Failed("the answer is lost".to_owned()));
        }
        Ok(revision)
    }
}

#[test]
fn after_a_failure_the_store_is_asked_what_happened() {
    let home = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&home.path().join("db")).unwrap();
    let store = Arc::new(Unsure { store, lose_answer: AtomicBool::new(false) });
    let blobs = Arc::new(FolderBlobs::open(home.path()).unwrap());
    let (policies, pepper) = (Policies::shipped().unwrap(), Pepper::new(&[1; 32]));
    let operator = OPERATOR.parse().unwrap();
    let catalog = Catalog::new(store.clone(), blobs, policies, pepper, &operator).unwrap();
    store.lose_answer.store(true, Ordering::Relaxed);
    assert!(catalog.create_tenant(&acme(), &tier("free"), now()).is_err());
    assert!(catalog.snapshot().tenant(&acme()).is_none());
    assert_eq!(catalog.collect_garbage().unwrap(), 0);
    let error = catalog.create_tenant(&acme(), &tier("free"), now()).unwrap_err();
    assert!(matches!(error, CatalogError::AlreadyExists { .. }));
    assert!(catalog.snapshot().tenant(&acme()).is_some());
    catalog.create_key(&acme(), ScopeSet::all(), None, now()).unwrap();
}

#[test]
fn a_change_from_outside_is_a_conflict_and_then_known() {
    let house = House::new("free");
    house.deploy("f", b"1");
    let other = SqliteStore::open(&house.home.path().join("sandpiper.db")).unwrap();
    let record = other.get("function/acme/f").unwrap().unwrap();
    let value = String::from_utf8(record.value.to_vec()).unwrap();
    let value = value.replace("\"next_version\":2", "\"next_version\":9").into();
    let expect = sandpiper_domain::Expect::Any;
    other.transact(&[Operation::Put { key: record.key, value, expect }]).unwrap();
    let new = house.new_function("f", b"2");
    let error = house.put_function(&acme(), &new, true, now()).unwrap_err();
    assert!(matches!(error, CatalogError::Conflict));
    let outcome = house.put_function(&acme(), &new, true, now()).unwrap();
    assert_eq!(outcome.version().version, 9);
}
