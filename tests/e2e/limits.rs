//! Every limit of a sandbox is reached, answered, and survived: the process is the same and serves on.

use std::thread;

use sandpiper_tests::{Answer, Server, Tenant, guest, until};

/// A tenant whose function `m` misbehaves under these limits.
fn tenant(server: &Server, limits: &str) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("m", &guest("misbehave"), &format!("[limits]\n{limits}")).expect(201);
    tenant
}

/// Goes to each path, expects this end, and a good answer after it. Twice, in case the first only wounds.
fn ends(limits: &str, paths: &[&str], status: u16, code: &'static str) -> Answer {
    let mut server = Server::start();
    let tenant = tenant(&server, limits);
    let mut last = None;
    for path in paths.iter().chain(paths) {
        last = Some(tenant.invoke("m", path).refused(status, code));
        assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok", "after {path}");
    }
    server.still_runs();
    let metrics = server.metrics();
    let labels = [("function", "m"), ("outcome", code)];
    let count = metrics.sum("sandpiper_invocations_total", &labels);
    assert_eq!(count, 2.0 * paths.len() as f64, "{}", metrics.text());
    assert_eq!(metrics.sum("sandpiper_sandboxes", &[]), 0.0);
    let last = last.unwrap();
    assert!(last.json()["error"]["hint"].is_string(), "{last:?}");
    last
}

#[test]
fn an_infinite_loop_is_stopped() {
    let answer = ends("cpu_ms = 50", &["/spin", "/spin-alloc"], 504, "cpu_exceeded");
    assert!(answer.message().contains("50 ms"), "{answer:?}");
}

#[test]
fn an_infinite_loop_leaves_room_for_others() {
    let server = Server::start();
    let tenant = tenant(&server, "cpu_ms = 1000");
    thread::scope(|scope| {
        let spinning: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| tenant.invoke("m", "/spin").refused(504, "cpu_exceeded")))
            .collect();
        // More loops than cores: they yield, so the others are served all the while.
        let mut served = 0;
        while !spinning.iter().all(|thread| thread.is_finished()) {
            assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
            served += 1;
        }
        assert!(served >= 3, "only {served} were served beside the loops");
    });
}

#[test]
fn a_guest_that_never_answers_is_stopped() {
    let answer = ends("wall_ms = 200", &["/hang"], 504, "wall_exceeded");
    assert!(answer.message().contains("200 ms"), "{answer:?}");
}

#[test]
fn a_memory_bomb_is_stopped() {
    let answer = ends("memory_mib = 16", &["/grow"], 502, "memory_exceeded");
    assert!(answer.message().contains("16 MiB"), "{answer:?}");
}

#[test]
fn many_memory_bombs_at_once_do_not_swell_the_server() {
    let mut server = Server::start();
    let tenant = tenant(&server, "memory_mib = 16");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..4 {
                    tenant.invoke("m", "/grow").refused(502, "memory_exceeded");
                }
            });
        }
    });
    tenant.invoke("m", "/ok").expect(200);
    let peak = server.memory_peak_mib();
    assert!(peak < 1024, "the server took {peak} MiB");
    server.still_runs();
}

#[test]
fn deep_recursion_is_stopped() {
    // Rust keeps a stack of its own in the guest's memory, which may run out before the machine's does.
    ends("cpu_ms = 5000", &["/recurse"], 502, "trap");
}

#[test]
fn a_trap_is_told() {
    let answer = ends("", &["/trap"], 502, "trap");
    assert!(answer.message().contains("panicked or aborted"), "{answer:?}");
    let answer = ends("", &["/exit?code=1"], 502, "trap");
    assert!(answer.message().contains("exited"), "{answer:?}");
}

#[test]
fn no_response_is_told() {
    ends("", &["/no-response", "/exit?code=0"], 502, "no_response");
}

#[test]
fn too_many_handles_are_stopped() {
    let kinds =
        ["/handles", "/handles?kind=pollable", "/handles?kind=tensor", "/tensor?case=many-inputs"];
    ends("cpu_ms = 5000", &kinds, 502, "trap");
}

#[test]
fn a_bomb_of_tensors_is_stopped() {
    let answer = ends("tensor_mib = 4", &["/tensor?case=many-tensors"], 502, "memory_exceeded");
    assert!(answer.message().contains("4 MiB"), "{answer:?}");
}

#[test]
fn a_trap_in_the_middle_of_a_response_breaks_it_off() {
    let mut server = Server::start();
    let tenant = tenant(&server, "");
    let mut connection = server.connect();
    connection.send(format!(
        "GET /fn/acme/m/trap-after-head HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    let head = connection.head();
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
    let rest = connection.rest();
    assert!(rest.len() < 1000, "a response cut short must not look whole: {rest:?}");
    assert!(b"the beginning of something".starts_with(&rest[..]), "{rest:?}");
    tenant.invoke("m", "/ok").expect(200);
    server.still_runs();
    until("the trap is counted", || {
        let labels = [("function", "m"), ("outcome", "trap")];
        (server.metrics().sum("sandpiper_invocations_total", &labels) == 1.0).then_some(())
    });
}

#[test]
fn the_wall_limit_ends_a_response_that_goes_on() {
    let server = Server::start();
    let tenant = tenant(&server, "wall_ms = 300");
    let mut connection = server.connect();
    connection.send(format!(
        "GET /fn/acme/m/stream?chunks=1000000&ms=20 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    assert_eq!(connection.head().status, 200);
    let rest = connection.rest();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a response cut short must not look whole");
    until("the sandbox is gone", || {
        (server.metrics().sum("sandpiper_sandboxes", &[]) == 0.0).then_some(())
    });
}

#[test]
fn egress_is_denied() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let targets = [
        format!("{}/livez", server.url()),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://example.com/".to_owned(),
        "http://[::1]/".to_owned(),
    ];
    for target in targets {
        let answer = tenant.invoke("m", &format!("/egress?url={target}")).expect(200).json();
        assert_eq!(answer["error"], "HttpRequestDenied", "{target}: {answer}");
    }
}

#[test]
fn sockets_refuse() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let port = server.address().rsplit(':').next().unwrap().to_owned();
    let answer = tenant.invoke("m", &format!("/sockets?port={port}")).expect(200).json();
    for way in ["tcp", "udp", "lookup", "std"] {
        let outcome = answer[way].as_str().unwrap();
        assert_ne!(outcome, "allowed", "{way}: {answer}");
    }
    assert!(answer["tcp"].as_str().unwrap().contains("access-denied"), "{answer}");
}

#[test]
fn there_are_no_files() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    for path in ["/etc/passwd", "/", "/proc/self/environ", "..%2f..%2fetc%2fpasswd"] {
        let answer = tenant.invoke("m", &format!("/fs?path={path}")).expect(200).json();
        assert_eq!(answer["preopens"], serde_json::json!([]), "{answer}");
        assert_ne!(answer["read"], "allowed", "{path}: {answer}");
        assert_ne!(answer["write"], "allowed", "{path}: {answer}");
    }
}

#[test]
fn the_rate_limit_answers_429() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    tenant.deploy("counter", "");
    let mut statuses = Vec::new();
    // 40 at once and 20 a second: these come faster than that even on a slow machine.
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| (0..100).map(|_| tenant.invoke("counter", "/")).collect::<Vec<_>>())
            })
            .collect();
        statuses.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
    });
    let good = statuses.iter().filter(|answer| answer.status == 200).count();
    assert!(good >= 40, "the burst passes: {good}");
    let refused = statuses.iter().find(|answer| answer.status == 429).expect("one too many");
    let refused = refused.clone().refused(429, "rate_limited");
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    // Another tenant is not touched, and the control plane has no such limit.
    let other = server.tenant("other", "free");
    other.deploy("counter", "");
    other.invoke("counter", "/").expect(200);
    tenant.client.get("/api/v1/functions").expect(200);
}

#[test]
fn a_full_queue_answers_429() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    // 4 run and 16 wait; the burst of 40 is not reached.
    tenant.put_function("m", &guest("misbehave"), "[limits]\nwall_ms = 2000").expect(201);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..26).map(|_| scope.spawn(|| tenant.invoke("m", "/hang"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count = |code| {
        answers.iter().filter(|answer| answer.header("x-sandpiper-error") == Some(code)).count()
    };
    assert!(count("queue_full") >= 1, "{answers:?}");
    let full = answers.iter().find(|one| one.header("x-sandpiper-error") == Some("queue_full"));
    let full = full.unwrap().clone().refused(429, "queue_full");
    assert!(full.header("retry-after").is_some(), "{full:?}");
    assert_eq!(count("queue_full") + count("wall_exceeded") + count("queue_timeout"), 26);
    assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
}

#[test]
fn a_full_pool_answers_503() {
    let mut server = Server::with_settings("sandboxes_max = 2");
    let tenant = tenant(&server, "wall_ms = 3000");
    let answers: Vec<Answer> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| tenant.invoke("m", "/hang"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let busy = answers.iter().find(|answer| answer.status == 503).expect("one too many");
    let busy = busy.clone().refused(503, "node_saturated");
    assert!(busy.header("retry-after").is_some(), "{busy:?}");
    assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
    server.still_runs();
}
