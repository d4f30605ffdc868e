use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::commands::bench::measure::{Measured, Plan, measure};

/// A server that answers each connection with `answer`, request by request, and counts the requests.
fn serve(answer: fn(u64) -> &'static str) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let counted = Arc::clone(&counted);
            thread::spawn(move || converse(stream.unwrap(), answer, &counted));
        }
    });
    (port, count)
}

fn converse(mut stream: TcpStream, answer: fn(u64) -> &'static str, count: &AtomicU64) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if !line.is_empty() {
            continue;
        }
        let answer = answer(count.fetch_add(1, Ordering::Relaxed));
        if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Runs one level for a moment; gives what happened, what was sent and what is overdue.
fn run(port: u16, concurrency: u32, rate: Option<u32>, timeout: Duration) -> (Tally, u64, u64) {
    let request = Request::builder().uri("/").header("host", "x").body(Full::default()).unwrap();
    let call = Arc::new(Call { host: "127.0.0.1".into(), port, request });
    let mut load = Load::start(call, Level { concurrency, rate }, 2, timeout).unwrap();
    thread::sleep(Duration::from_millis(400));
    let overdue = load.overdue();
    let shared = Arc::clone(&load.shared);
    let sent = load.finish();
    let mut tally = Tally::new().unwrap();
    shared.tallies.iter().for_each(|part| tally.merge(&lock(part)));
    (tally, sent, overdue)
}

const LONG: Duration = Duration::from_secs(30);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn every_request_is_accounted_for() {
    let (port, count) = serve(|index| match index % 4 {
        0 => OK,
        1 => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        2 => {
            "HTTP/1.1 503 Service Unavailable\r\nx-sandpiper-error: saturated\r\ncontent-length: 0\r\n\r\n"
        }
        _ => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    });
    let (tally, sent, _) = run(port, 4, None, LONG);
    assert_eq!(sent, count.load(Ordering::Relaxed), "what was sent is what came");
    assert_eq!(tally.latencies.len() + tally.failures.values().sum::<u64>(), sent);
    let failures: Vec<String> = tally.failures.keys().map(ToString::to_string).collect();
    assert_eq!(failures, ["404", "503 saturated"]);
    assert_eq!(tally.latencies.len(), sent.div_ceil(4) + (sent + 2) / 4);
}

#[test]
fn connections_that_end_are_made_again() {
    let (port, _) = serve(|index| match index % 2 {
        0 => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        _ => "",
    });
    let (tally, sent, _) = run(port, 1, None, LONG);
    let broken = tally.failures.get(&Failure::Broken).copied().unwrap_or(0);
    assert!(broken > 0 && !tally.latencies.is_empty(), "{tally:?}");
    assert_eq!(tally.latencies.len() + broken, sent);
}

#[test]
fn a_server_that_is_away_is_counted_and_not_hammered() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (tally, sent, _) = run(port, 1, None, LONG);
    let refused = tally.failures[&Failure::NoConnection];
    assert!((1..=41).contains(&refused), "{refused}");
    assert_eq!(sent, 0);
}

#[test]
fn an_answer_that_does_not_come_is_a_failure() {
    let (port, _) = serve(|_| "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    let (tally, ..) = run(port, 1, None, Duration::from_millis(50));
    assert!(tally.failures[&Failure::TimedOut] > 0);
    assert_eq!(tally.latencies.len(), 0);
}

#[test]
fn an_open_loop_counts_from_when_a_request_was_due() {
    let (port, _) = serve(|index| {
        // One stall: what falls due meanwhile waits, and says so.
        if index == 0 {
            thread::sleep(Duration::from_millis(200));
        }
        OK
    });
    let (tally, ..) = run(port, 1, Some(100), LONG);
    let late = tally.latencies.count_between(50_000_000, u64::MAX);
    assert!(late >= 10, "{late} of {} were late", tally.latencies.len());
}

#[test]
fn what_could_not_be_sent_is_overdue() {
    let (port, _) = serve(|_| {
        thread::sleep(Duration::from_millis(100));
        OK
    });
    let (_, sent, overdue) = run(port, 1, Some(1_000), LONG);
    assert!(sent < 10 && overdue > 100, "{sent} sent, {overdue} overdue");
}

#[test]
fn foreign_codes_do_not_grow_the_list_without_end() {
    let mut tally = Tally::new().unwrap();
    for n in 0..1_000 {
        tally.fail(Failure::Status(500, Some(n.to_string())), 1);
    }
    assert!(tally.failures.len() <= FAILURES_MAX + 1);
    assert_eq!(tally.failures.values().sum::<u64>(), 1_000);
}

/// Measures a level whose answers take longer than all of its windows.
fn measure_slow(answer: fn(u64) -> &'static str) -> Measured {
    let (port, _) = serve(answer);
    let request = Request::builder().uri("/").header("host", "x").body(Full::default()).unwrap();
    let call = Arc::new(Call { host: "127.0.0.1".into(), port, request });
    let load = Load::start(call, Level { concurrency: 3, rate: None }, 1, LONG).unwrap();
    let seconds = Some(Duration::from_millis(90));
    let plan = Plan { warm_up: Duration::from_millis(10), seconds };
    measure(load, &plan, 1, |_| ()).unwrap()
}

#[test]
fn what_is_in_flight_at_the_end_is_counted() {
    let failing = measure_slow(|_| {
        thread::sleep(Duration::from_secs(2));
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    });
    assert_eq!((failing.succeeded(), failing.late, failing.sent), (0, 0, 3));
    assert_eq!(failing.failures, BTreeMap::from([(Failure::Status(503, None), 3)]));
    let late = measure_slow(|_| {
        thread::sleep(Duration::from_secs(2));
        OK
    });
    assert_eq!((late.succeeded(), late.late, late.failed(), late.sent), (0, 3, 0, 3));
}
