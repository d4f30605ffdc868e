//! The server is killed again and again while jobs run. No job that was accepted is lost, and none is begun more often
//! than it has attempts.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use sandpiper_tests::{Server, Tenant};
use serde_json::Value;

const JOBS: usize = 1_000;
const CRASHES: usize = 100;
const ATTEMPTS: u64 = 10;
const CLIENTS: usize = 4;

/// Everything that the tenant's list holds.
fn all(tenant: &Tenant) -> Vec<Value> {
    let mut jobs = Vec::<Value>::new();
    loop {
        let after = jobs.last().map(|job| format!("&after={}", job["id"].as_str().unwrap()));
        let path = format!("/api/v1/jobs?limit=1000{}", after.unwrap_or_default());
        let mut page = tenant.client.get(&path).expect(200).json();
        let page = page["jobs"].as_array_mut().unwrap();
        if page.is_empty() {
            return jobs;
        }
        jobs.append(page);
    }
}

/// How often each job was begun, as the logs of all processes tell it.
fn begun(logs: &str) -> HashMap<String, u64> {
    let mut begun = HashMap::new();
    for line in logs.lines().filter(|line| line.contains("job begins")) {
        let id = line.split("job=").nth(1).and_then(|rest| rest.get(..32)).expect(line);
        *begun.entry(id.to_owned()).or_default() += 1;
    }
    begun
}

/// A number that differs from call to call without a source of chance: a failure can be played again.
fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Sends all jobs, from several clients, while the server is killed; gives those that were acknowledged.
fn enqueue_while_it_crashes(server: &mut Server, tenant: &Tenant) -> HashMap<String, usize> {
    let accepted: Mutex<HashMap<String, usize>> = Mutex::default();
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut random = 0x9e37_79b9_7f4a_7c15;
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut unsent = None;
                while !stop.load(Relaxed) {
                    // As the crashes go on, so do the new jobs: about ten for each life of the server.
                    let number = unsent.take().unwrap_or_else(|| next.fetch_add(1, Relaxed));
                    if number >= JOBS {
                        return;
                    }
                    let call =
                        tenant.call("POST", "misbehave", &format!("/job?ms={}", number % 40));
                    let call = call.header("prefer", "respond-async");
                    let call = call.header("x-sandpiper-attempts", &ATTEMPTS.to_string());
                    match call.body(number.to_string()).try_send() {
                        Ok(answer) if answer.status == 202 => {
                            let id = answer.json()["id"].as_str().unwrap().to_owned();
                            accepted.lock().unwrap().insert(id, number);
                        }
                        // Not acknowledged: the job may or may not be there, and another takes its number.
                        _ => unsent = Some(number),
                    }
                    thread::sleep(Duration::from_millis(25));
                }
            });
        }
        for _ in 0..CRASHES {
            thread::sleep(Duration::from_millis(20 + step(&mut random) % 180));
            server.crash();
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while accepted.lock().unwrap().len() < JOBS && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Relaxed);
    });
    accepted.into_inner().unwrap()
}

#[test]
fn no_job_is_lost_in_100_crashes() {
    let mut server = Server::with_settings("access_log = true");
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy("misbehave", "");
    let accepted = enqueue_while_it_crashes(&mut server, &tenant);
    assert_eq!(accepted.len(), JOBS);
    let deadline = Instant::now() + Duration::from_secs(90);
    let jobs = loop {
        let jobs = all(&tenant);
        let has_ended = |job: &Value| ["done", "dead"].iter().any(|state| job["state"] == *state);
        if jobs.iter().all(has_ended) {
            break jobs;
        }
        assert!(
            Instant::now() < deadline,
            "some jobs never end: {:?}",
            jobs.iter().find(|job| !has_ended(job))
        );
        thread::sleep(Duration::from_millis(200));
    };
    server.still_runs();
    let jobs: HashMap<&str, &Value> =
        jobs.iter().map(|job| (job["id"].as_str().unwrap(), job)).collect();
    let begun = begun(&server.all_logs());
    for (id, job) in &jobs {
        let attempts = job["attempts"].as_u64().unwrap();
        let runs = begun.get(*id).copied().unwrap_or(0);
        assert!(runs <= attempts && attempts <= ATTEMPTS, "{runs} runs of {job}");
    }
    let mut done = 0;
    for (id, number) in &accepted {
        let job = jobs.get(id.as_str()).unwrap_or_else(|| panic!("the job {id} is lost"));
        if job["state"] == "dead" {
            assert_eq!(job["attempts"], ATTEMPTS, "{job}");
            continue;
        }
        done += 1;
        let answer = tenant.client.get(&format!("/api/v1/jobs/{id}/result")).expect(200).json();
        assert_eq!(answer["body"], number.to_string());
    }
    let runs: u64 = begun.values().sum();
    assert!(runs > JOBS as u64, "some jobs were running when the server was killed");
    // Few are so unlucky that each of their attempts ends with the server.
    assert!(done >= JOBS * 9 / 10, "only {done} jobs were done");
    eprintln!("{done} of {JOBS} jobs done, {} known, {runs} runs, {CRASHES} crashes", jobs.len());
}

#[test]
fn poison_that_kills_the_process_is_dead_lettered() {
    let mut server = Server::with_settings("access_log = true");
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy("misbehave", "");
    let send = |path: &str| {
        let call = tenant.call("POST", "misbehave", path).header("prefer", "respond-async");
        let answer = call.header("x-sandpiper-attempts", "4").body(b"").send().expect(202).json();
        answer["id"].as_str().unwrap().to_owned()
    };
    // It runs for as long as it takes to be seen, and whenever it is seen the process dies.
    let poison = send("/job?ms=5000");
    let others: Vec<String> = (0..20).map(|_| send("/job?ms=20")).collect();
    let state = |id: &str| {
        tenant.client.get(&format!("/api/v1/jobs/{id}")).expect(200).json()["state"].clone()
    };
    for _ in 0..4 {
        sandpiper_tests::until("the poison is begun", || {
            let log = server.log();
            log.lines().any(|l| l.contains("job begins") && l.contains(&poison)).then_some(())
        });
        server.crash();
    }
    for id in &others {
        sandpiper_tests::until("the others are done", || (state(id) == "done").then_some(()));
    }
    sandpiper_tests::until("the poison is dead", || (state(&poison) == "dead").then_some(()));
    let job = tenant.client.get(&format!("/api/v1/jobs/{poison}")).expect(200).json();
    assert_eq!(
        (&job["attempts"], &job["error"]),
        (&4.into(), &"the server ended while it ran".into())
    );
    assert_eq!(begun(&server.all_logs())[&poison], 4);
}
