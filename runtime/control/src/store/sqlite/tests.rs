use super::*;

fn store(home: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(&home.path().join("test.db")).unwrap()
}

fn put(key: &str, value: &'static str, expect: Expect) -> Operation {
    Operation::Put { key: key.to_owned(), value: value.into(), expect }
}

fn delete(key: &str, expect: Expect) -> Operation {
    Operation::Delete { key: key.to_owned(), expect }
}

#[test]
fn the_pragmas_are_in_force() {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home);
    let connection = store.lock();
    let read = |pragma: &str| -> String {
        connection
            .query_row(&format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}"), [], |row| {
                row.get(0)
            })
            .unwrap()
    };
    assert_eq!(read("journal_mode"), "wal");
    assert_eq!(read("synchronous"), "2");
}

#[test]
fn records_survive_a_reopening() {
    let home = tempfile::tempdir().unwrap();
    let revision = store(&home).transact(&[put("a/1", "x", Expect::Absent)]).unwrap();
    let record = store(&home).get("a/1").unwrap().unwrap();
    assert_eq!(record, Record { key: "a/1".into(), value: "x".into(), revision });
}

#[test]
fn all_operations_are_done_or_none() {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home);
    store.transact(&[put("a", "1", Expect::Absent)]).unwrap();
    let error = store
        .transact(&[put("b", "2", Expect::Absent), put("a", "3", Expect::Absent)])
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict { key } if key == "a"));
    assert_eq!(store.get("b").unwrap(), None);
    // A conflict is no failure: the next write goes through.
    store.transact(&[put("b", "2", Expect::Absent)]).unwrap();
}

#[test]
fn expectations_hold_or_nothing_happens() {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home);
    let first = store.transact(&[put("a", "1", Expect::Absent)]).unwrap();
    let second = store.transact(&[put("a", "2", Expect::Revision(first))]).unwrap();
    assert!(store.transact(&[put("a", "3", Expect::Revision(first))]).is_err());
    assert!(store.transact(&[delete("a", Expect::Revision(first))]).is_err());
    assert!(store.transact(&[delete("a", Expect::Absent)]).is_err());
    assert!(store.transact(&[put("b", "3", Expect::Revision(second))]).is_err());
    store.transact(&[delete("a", Expect::Revision(second))]).unwrap();
    assert_eq!(store.get("a").unwrap(), None);
    // The revision grows even though no record holds the last one.
    assert!(store.transact(&[put("a", "4", Expect::Any)]).unwrap() > second + 1);
}

#[test]
fn a_list_is_ordered_and_bounded_by_its_prefix() {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home);
    for key in ["b/2", "b/1", "b-/1", "a/1", "b0", "c", "b/\u{10ffff}x"] {
        store.transact(&[put(key, "", Expect::Absent)]).unwrap();
    }
    let keys = |prefix| -> Vec<_> {
        store.list(prefix).unwrap().into_iter().map(|record| record.key).collect()
    };
    assert_eq!(keys("b/"), ["b/1", "b/2", "b/\u{10ffff}x"]);
    assert_eq!(keys("").len(), 7);
    assert!(keys("d").is_empty());
}

#[test]
fn successors_skip_what_is_no_character() {
    assert_eq!(successor("a/").unwrap(), "a0");
    assert_eq!(successor("a\u{d7ff}").unwrap(), "a\u{e000}");
    assert_eq!(successor("a\u{10ffff}").unwrap(), "b");
    assert_eq!(successor(""), None);
}

#[test]
fn a_newer_schema_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("test.db");
    let store = store(&home);
    store.lock().execute("UPDATE meta SET value = 2 WHERE name = 'schema'", []).unwrap();
    drop(store);
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1 }), "{error}");
}

#[test]
fn what_is_no_database_of_ours_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("test.db");
    std::fs::write(&path, "not a database, but long enough to have a header".repeat(20)).unwrap();
    assert!(SqliteStore::open(&path).is_err());
}

#[test]
fn after_a_failed_write_nothing_is_accepted() {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home);
    store.transact(&[put("a", "1", Expect::Absent)]).unwrap();
    store.lock().execute("DROP TABLE meta", []).unwrap();
    assert!(store.transact(&[put("b", "1", Expect::Absent)]).is_err());
    let error = store.transact(&[put("b", "1", Expect::Absent)]).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    assert!(store.get("a").unwrap().is_some());
}

#[test]
fn a_full_disk_is_survived() {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home);
    store.lock().pragma_update(None, "max_page_count", 8).unwrap();
    let large =
        Operation::Put { key: "big".into(), value: vec![1; 1 << 20].into(), expect: Expect::Any };
    assert!(store.transact(&[large]).is_err());
    store.transact(&[put("small", "1", Expect::Absent)]).unwrap();
}
