//! The counting of usage, over months, restarts and two processes at once.

use time::{Date, Duration, Month as Calendar, Time};

use super::*;

/// The first moment of a month, and the last second of the one before.
const DECEMBER: OffsetDateTime = first(2026, Calendar::December);
const NOVEMBER: OffsetDateTime = DECEMBER.saturating_sub(Duration::SECOND);

const fn first(year: i32, month: Calendar) -> OffsetDateTime {
    match Date::from_calendar_date(year, month, 1) {
        Ok(date) => OffsetDateTime::new_utc(date, Time::MIDNIGHT),
        Err(_) => panic!(),
    }
}

fn owner(name: &str) -> Owner {
    Owner::new(name.parse().unwrap(), OffsetDateTime::UNIX_EPOCH)
}

fn requests(count: u64) -> Amounts {
    let mut amounts = Amounts::default();
    amounts[Counted::Requests] = count;
    amounts
}

fn month(ledgers: &Ledgers, now: OffsetDateTime) -> Vec<(String, u64)> {
    let used = ledgers.month(&owner("acme"), Month::of(now), now).unwrap();
    used.into_iter().map(|(function, amounts)| (function, amounts[Counted::Requests])).collect()
}

#[test]
fn a_month_is_read_and_written_and_ends_with_the_next() {
    assert_eq!(Month::of(NOVEMBER).to_string(), "2026-11");
    assert_eq!("2026-11".parse(), Ok(Month::of(NOVEMBER)));
    assert_eq!(Month::of(NOVEMBER).end(), DECEMBER);
    assert_eq!(Month::of(DECEMBER).end(), first(2027, Calendar::January));
    for bad in
        ["", "2026", "2026-00", "2026-13", "2026-1", "26-11", "+026-11", "2026-+1", "2026-11-"]
    {
        assert_eq!(bad.parse::<Month>(), Err(ParseMonthError), "{bad}");
    }
}

#[test]
fn what_is_read_is_exact_at_any_moment() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("usage.db");
    let ledgers = Ledgers::open(&path, NOVEMBER).unwrap();
    let ledger = ledgers.of(&owner("acme"), NOVEMBER);
    for round in 1..=3 {
        ledger.add("hello", requests(2), NOVEMBER);
        ledger.add("", requests(1), NOVEMBER);
        let expected = vec![(String::new(), round), ("hello".to_owned(), 2 * round)];
        assert_eq!(month(&ledgers, NOVEMBER), expected);
        ledgers.flush(NOVEMBER).unwrap();
        assert_eq!(month(&ledgers, NOVEMBER), expected);
        assert_eq!(ledger.used(NOVEMBER)[Counted::Requests], 3 * round);
    }
    drop(ledgers);
    let ledgers = Ledgers::open(&path, NOVEMBER).unwrap();
    assert_eq!(month(&ledgers, NOVEMBER), [(String::new(), 3), ("hello".to_owned(), 6)]);
    assert_eq!(ledgers.of(&owner("acme"), NOVEMBER).used(NOVEMBER)[Counted::Requests], 9);
    assert!(ledgers.of(&owner("other"), NOVEMBER).used(NOVEMBER).is_zero());
}

#[test]
fn two_processes_add_up() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("usage.db");
    let [one, other] = [(); 2].map(|()| Ledgers::open(&path, NOVEMBER).unwrap());
    one.of(&owner("acme"), NOVEMBER).add("hello", requests(3), NOVEMBER);
    other.of(&owner("acme"), NOVEMBER).add("hello", requests(4), NOVEMBER);
    one.flush(NOVEMBER).unwrap();
    other.flush(NOVEMBER).unwrap();
    assert_eq!(month(&one, NOVEMBER), [("hello".to_owned(), 7)]);
    assert_eq!(other.of(&owner("acme"), NOVEMBER).used(NOVEMBER)[Counted::Requests], 7);
}

#[test]
fn a_month_that_ends_keeps_its_own_and_renews_the_budget() {
    let home = tempfile::tempdir().unwrap();
    let ledgers = Ledgers::open(&home.path().join("usage.db"), NOVEMBER).unwrap();
    let budget = Budget { requests: Some(2), ..Budget::default() };
    let ledger = ledgers.of(&owner("acme"), NOVEMBER);
    ledger.add("hello", requests(2), NOVEMBER);
    let spent = ledger.check(budget, NOVEMBER).unwrap_err();
    assert_eq!(spent, Spent { limit: "requests", renewed_at: DECEMBER });
    assert_eq!(ledger.check(budget, DECEMBER), Ok(()));
    ledger.add("hello", requests(1), DECEMBER);
    // A clock that goes back finds the new month.
    ledger.add("hello", requests(1), NOVEMBER);
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 2)]);
    ledgers.flush(DECEMBER).unwrap();
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 2)]);
    assert_eq!(month(&ledgers, DECEMBER), [("hello".to_owned(), 2)]);
    assert!(ledger.check(budget, DECEMBER).is_err());
}

#[test]
fn each_part_of_a_budget_is_checked_in_its_unit() {
    let ledger = Ledger::new(Month::of(NOVEMBER), Amounts::default());
    let mut amounts = Amounts::default();
    amounts[Counted::GuestCpuUs] = 1_500_000;
    amounts[Counted::StartCpuUs] = 499_999;
    amounts[Counted::MemoryMibMs] = 2 * 1024 * 1000;
    amounts[Counted::InferenceUs] = 3_000_000;
    ledger.add("hello", amounts, NOVEMBER);
    let limit = |budget| ledger.check(budget, NOVEMBER).err().map(|spent| spent.limit);
    assert_eq!(limit(Budget { cpu_s: Some(2), ..Budget::default() }), None);
    assert_eq!(limit(Budget { cpu_s: Some(1), ..Budget::default() }), Some("cpu_s"));
    assert_eq!(limit(Budget { memory_gib_s: Some(3), ..Budget::default() }), None);
    assert_eq!(limit(Budget { memory_gib_s: Some(2), ..Budget::default() }), Some("memory_gib_s"));
    assert_eq!(limit(Budget { inference_s: Some(3), ..Budget::default() }), Some("inference_s"));
    assert_eq!(limit(Budget { requests: Some(0), ..Budget::default() }), Some("requests"));
}

#[test]
fn what_could_not_be_written_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("usage.db");
    let ledgers = Ledgers::open(&path, NOVEMBER).unwrap();
    ledgers.of(&owner("acme"), NOVEMBER).add("hello", requests(5), NOVEMBER);
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("ALTER TABLE usage RENAME TO away").unwrap();
    assert!(ledgers.flush(NOVEMBER).is_err());
    assert_eq!(ledgers.of(&owner("acme"), NOVEMBER).used(NOVEMBER)[Counted::Requests], 5);
    // A tenant that is gone stays until its last use is on the disk.
    ledgers.retain(|_| false);
    other.execute_batch("ALTER TABLE away RENAME TO usage").unwrap();
    ledgers.flush(NOVEMBER).unwrap();
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 5)]);
    ledgers.retain(|_| false);
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 5)]);
}

#[test]
fn a_tally_is_counted_once_wherever_it_is_read() {
    let home = tempfile::tempdir().unwrap();
    let ledgers = Ledgers::open(&home.path().join("usage.db"), NOVEMBER).unwrap();
    let ledger = ledgers.of(&owner("acme"), NOVEMBER);
    let add = |tally: &Tally, count, now: OffsetDateTime| {
        ledger.add_to(tally, &requests(count), now.unix_timestamp());
    };
    let tally = ledger.tally("hello");
    for round in 1..=3 {
        add(&tally, 2, NOVEMBER);
        ledger.add("hello", requests(1), NOVEMBER);
        assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 3 * round)]);
        assert_eq!(ledger.used(NOVEMBER)[Counted::Requests], 3 * round);
        ledgers.flush(NOVEMBER).unwrap();
        assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 3 * round)]);
        assert_eq!(ledger.used(NOVEMBER)[Counted::Requests], 3 * round);
    }
    // The month ends with something in the tally, and the first of the next month says so.
    add(&tally, 5, NOVEMBER);
    add(&tally, 7, DECEMBER);
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 14)]);
    assert_eq!(month(&ledgers, DECEMBER), [("hello".to_owned(), 7)]);
    assert_eq!(ledger.used(DECEMBER)[Counted::Requests], 7);
    let budget = Budget { requests: Some(7), ..Budget::default() };
    assert!(ledger.check(budget, DECEMBER).is_err());
    ledgers.flush(DECEMBER).unwrap();
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 14)]);
    // What its last holder leaves is not lost with it.
    add(&tally, 1, DECEMBER);
    drop(tally);
    assert_eq!(month(&ledgers, DECEMBER), [("hello".to_owned(), 8)]);
    ledgers.flush(DECEMBER).unwrap();
    assert_eq!(month(&ledgers, DECEMBER), [("hello".to_owned(), 8)]);
}

#[test]
fn many_threads_are_counted_exactly_while_it_is_written() {
    let home = tempfile::tempdir().unwrap();
    let ledgers = Ledgers::open(&home.path().join("usage.db"), NOVEMBER).unwrap();
    let ledger = ledgers.of(&owner("acme"), NOVEMBER);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || {
                for _ in 0..5_000 {
                    let tally = ledger.tally(if number % 2 == 0 { "even" } else { "odd" });
                    ledger.add_to(&tally, &requests(1), NOVEMBER.unix_timestamp());
                }
            });
        }
        for _ in 0..20 {
            ledgers.flush(NOVEMBER).unwrap();
            assert!(ledger.used(NOVEMBER)[Counted::Requests] <= 20_000);
        }
    });
    let expected = vec![("even".to_owned(), 10_000), ("odd".to_owned(), 10_000)];
    assert_eq!(month(&ledgers, NOVEMBER), expected);
    assert_eq!(ledger.used(NOVEMBER)[Counted::Requests], 20_000);
    ledgers.flush(NOVEMBER).unwrap();
    assert_eq!(month(&ledgers, NOVEMBER), expected);
}

#[test]
fn a_tenant_that_is_gone_is_billed_for_what_ends_after_it() {
    let home = tempfile::tempdir().unwrap();
    let ledgers = Ledgers::open(&home.path().join("usage.db"), NOVEMBER).unwrap();
    let ledger = ledgers.of(&owner("acme"), NOVEMBER);
    let tally = ledger.tally("hello");
    ledgers.retain(|_| false);
    ledger.add_to(&tally, &requests(1), NOVEMBER.unix_timestamp());
    drop((ledger, tally));
    ledgers.retain(|_| false);
    ledgers.flush(NOVEMBER).unwrap();
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 1)]);
    ledgers.retain(|_| false);
    assert_eq!(month(&ledgers, NOVEMBER), [("hello".to_owned(), 1)]);
}

#[test]
fn a_tenant_of_many_names_makes_no_long_ledger() {
    let ledger = Ledger::new(Month::of(NOVEMBER), Amounts::default());
    for number in 0..3_000 {
        ledger.add(&format!("f{number}"), requests(1), NOVEMBER);
    }
    let rows = ledger.take(NOVEMBER);
    assert_eq!(rows.len(), 1_001);
    assert_eq!(rows.iter().map(|row| row.amounts[Counted::Requests]).sum::<u64>(), 3_000);
    let others = rows.iter().find(|row| &*row.function == "(others)").unwrap();
    assert_eq!(others.amounts[Counted::Requests], 2_000);
}

#[test]
fn a_budget_of_its_own_survives_and_can_be_taken_away() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("usage.db");
    let ledgers = Ledgers::open(&path, NOVEMBER).unwrap();
    let budget = Budget { requests: Some(7), ..Budget::default() };
    ledgers.set_budget(&owner("acme"), Some(budget), NOVEMBER).unwrap();
    drop(ledgers);
    let ledgers = Ledgers::open(&path, NOVEMBER).unwrap();
    let ledger = ledgers.of(&owner("acme"), NOVEMBER);
    assert_eq!((ledger.own_budget(), ledger.budget(Budget::default())), (Some(budget), budget));
    ledgers.set_budget(&owner("acme"), None, NOVEMBER).unwrap();
    assert_eq!(ledger.budget(Budget::default()), Budget::default());
}
