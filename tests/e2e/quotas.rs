//! Admission, fairness and monthly budgets.

use std::{fs, thread, time::Duration};

use sandpiper_tests::{Answer, Server, Start, Tenant, guest, model, repository, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One slow inference; there is one compute thread in these tests.
const SLOW: &str = "/slow-infer?model=slow&input=x&shape=1,1";

/// A server with a tier `tight` that has these limits of traffic, and the rest of the tier `standard`.
fn server(traffic: &str, more: &str, settings: &str) -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let ours = repository().join("policies");
    fs::create_dir(folder.path().join("tiers")).unwrap();
    fs::copy(ours.join("platform.toml"), folder.path().join("platform.toml")).unwrap();
    let text = fs::read_to_string(ours.join("tiers/standard.toml")).unwrap();
    let mut tier: toml::Table = text.parse().unwrap();
    tier.insert("traffic".to_owned(), toml::Value::Table(traffic.parse().unwrap()));
    tier.extend(more.parse::<toml::Table>().unwrap());
    fs::write(folder.path().join("tiers/tight.toml"), tier.to_string()).unwrap();
    let policies = Some(folder.path().to_owned());
    let settings = settings.to_owned();
    (Server::start_with(Start { policies, settings, ..Start::default() }), folder)
}

fn misbehaving(server: &Server, tier: &str, limits: &str) -> Tenant {
    let tenant = server.tenant("acme", tier);
    tenant.put_function("m", &guest("misbehave"), &format!("[limits]\n{limits}")).expect(201);
    tenant
}

fn usage(tenant: &Tenant) -> Value {
    tenant.client.get("/api/v1/usage").expect(200).json()
}

fn sum(server: &Server, name: &str) -> f64 {
    server.metrics().sum(name, &[])
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").expect("it says when to come again").parse().unwrap()
}

#[test]
fn suspended_sandboxes_let_others_in() {
    let traffic = "concurrency = 2\nsandboxes = 6\nqueue = 16\nrate = \"none\"";
    let (server, _policies) = server(traffic, "", "inference_threads = 1");
    let tenant = misbehaving(&server, "tight", "wall_ms = 30000");
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    let slow = format!("{SLOW}&times=3");
    thread::scope(|scope| {
        let asking: Vec<_> = (0..5).map(|_| scope.spawn(|| tenant.invoke("m", &slow))).collect();
        // Two may run, and five are there at once because they wait for the model.
        until("all five wait for the model", || {
            (sum(&server, "sandpiper_suspended") == 5.0).then_some(())
        });
        assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
        assert!(!asking.iter().any(|one| one.is_finished()), "the model is not slow enough");
        for one in asking {
            one.join().unwrap().expect(200);
        }
    });
    until("nobody is left", || {
        (sum(&server, "sandpiper_suspended") + sum(&server, "sandpiper_running") == 0.0)
            .then_some(())
    });
}

#[test]
fn those_alive_are_bounded_too() {
    let traffic = "concurrency = 2\nsandboxes = 3\nqueue = 16\nrate = \"none\"";
    let (server, _policies) = server(traffic, "", "inference_threads = 1");
    let tenant = misbehaving(&server, "tight", "wall_ms = 30000");
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(|| tenant.invoke("m", SLOW))).collect();
        until("three wait for the model and the others at the gate", || {
            let waiting = sum(&server, "sandpiper_admission_waiting");
            (waiting == 3.0 && sum(&server, "sandpiper_suspended") == 3.0).then_some(())
        });
        assert!(sum(&server, "sandpiper_sandboxes") <= 3.0);
        for one in asking {
            one.join().unwrap().expect(200);
        }
    });
}

#[test]
fn the_wait_is_in_order_and_a_full_queue_says_when_to_come_again() {
    let traffic = "concurrency = 1\nqueue = 3\nrate = \"none\"";
    let (server, _policies) = server(traffic, "", "");
    let tenant = misbehaving(&server, "tight", "wall_ms = 1500");
    // What was served before is what the wait is judged by.
    tenant.invoke("m", "/hang").refused(504, "wall_exceeded");
    let order = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for place in 0..4_u32 {
            let (tenant, order) = (&tenant, &order);
            scope.spawn(move || {
                tenant.invoke("m", "/hang").refused(504, "wall_exceeded");
                order.lock().unwrap().push(place);
            });
            until("it runs, or waits behind those before it", || {
                let there =
                    sum(&server, "sandpiper_running") + sum(&server, "sandpiper_admission_waiting");
                (there >= f64::from(place + 1)).then_some(())
            });
        }
        let refused = tenant.invoke("m", "/hang").refused(429, "queue_full");
        // Three wait, each for 1.5 s.
        assert!((4..=8).contains(&retry_after(&refused)), "{refused:?}");
    });
    assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3]);
    let refused = [("reason", "queue_full")];
    assert_eq!(server.metrics().sum("sandpiper_admission_refused_total", &refused), 1.0);
}

#[test]
fn a_rate_s_retry_after_is_true() {
    let traffic = "concurrency = 8\nqueue = 8\nrate = { per_s = 1, burst = 2 }";
    let (server, _policies) = server(traffic, "", "");
    let tenant = misbehaving(&server, "tight", "");
    let refused = until("it is too fast", || {
        Some(tenant.invoke("m", "/ok")).filter(|answer| answer.status == 429)
    });
    let refused = refused.refused(429, "rate_limited");
    assert_eq!(retry_after(&refused), 1);
    thread::sleep(Duration::from_secs(retry_after(&refused)));
    tenant.invoke("m", "/ok").expect(200);
}

#[test]
fn a_budget_ends_and_says_when_there_is_a_new_one() {
    let traffic = "concurrency = 8\nqueue = 8\nrate = \"none\"";
    let (mut server, _policies) = server(traffic, "[budget]\nrequests = 3", "");
    let tenant = misbehaving(&server, "tight", "");
    for _ in 0..3 {
        tenant.invoke("m", "/ok").expect(200);
    }
    let refused = tenant.invoke("m", "/ok").refused(429, "budget_exhausted");
    assert_eq!(refused.message(), "the tenant has used up its requests of this month");
    let (wait, month) = (retry_after(&refused), 31 * 24 * 3600);
    assert!((1..=month).contains(&wait), "{refused:?}");
    let used = usage(&tenant);
    assert_eq!(used["budget"], json!({ "requests": { "limit": 3, "used": 3 } }));
    assert!(used["renewed_at"].as_str().unwrap().ends_with("-01T00:00:00Z"), "{used}");
    // A start does not give it back.
    server.restart();
    tenant.invoke("m", "/ok").refused(429, "budget_exhausted");
    // Nor does one tenant's budget touch another's.
    let other = server.tenant("other", "tight");
    other.put_function("m", &guest("misbehave"), "").expect(201);
    other.invoke("m", "/ok").expect(200);

    let path = "/api/v1/tenants/acme/budget";
    let shown = server.operator().get(path).expect(200).json();
    let budget = json!({ "requests": 3, "cpu_s": null, "memory_gib_s": null, "inference_s": null });
    assert_eq!(shown, json!({ "budget": budget, "from": "tier" }));
    tenant.client.put_json(path, &json!({})).refused(403, "operator_only");
    let raised = server.operator().put_json(path, &json!({ "requests": 5 })).expect(200).json();
    assert_eq!((&raised["budget"]["requests"], &raised["from"]), (&json!(5), &json!("tenant")));
    tenant.invoke("m", "/ok").expect(200);
    server.crash();
    tenant.invoke("m", "/ok").expect(200);
    server.operator().delete(path).expect(200);
    tenant.invoke("m", "/ok").refused(429, "budget_exhausted");
    server.operator().put_json(path, &json!({ "cpu_s": 1000 })).expect(200);
    tenant.invoke("m", "/ok").expect(200);
}

#[test]
fn bad_budgets_and_months_are_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let path = "/api/v1/tenants/acme/budget";
    for bad in [json!({ "requests": -1 }), json!({ "requests": 1_u64 << 41 }), json!({ "rps": 1 })]
    {
        server.operator().put_json(path, &bad).refused(400, "bad_request");
    }
    server
        .operator()
        .put_json("/api/v1/tenants/nobody/budget", &json!({}))
        .refused(404, "not_found");
    for bad in ["2026-13", "2026", "26-1", "%00", "2026-1x"] {
        let path = format!("/api/v1/usage?month={bad}");
        let refused = tenant.client.get(&path).refused(400, "bad_request");
        assert_eq!(refused.message(), "a month is written like `2026-11`");
    }
    let old = tenant.client.get("/api/v1/usage?month=2020-01").expect(200).json();
    assert_eq!((&old["month"], &old["functions"]), (&json!("2020-01"), &json!([])));
    tenant.with_scopes(&["invoke"]).get("/api/v1/usage").refused(403, "missing_scope");
}

#[test]
fn a_tenant_of_the_same_name_begins_at_nothing() {
    let server = Server::start();
    let tenant = misbehaving(&server, "standard", "");
    tenant.invoke("m", "/ok").expect(200);
    assert_eq!(usage(&tenant)["total"]["requests"], 1);
    let path = "/api/v1/tenants/acme/budget";
    server.operator().put_json(path, &json!({ "requests": 1 })).expect(200);
    tenant.invoke("m", "/ok").refused(429, "budget_exhausted");
    server.operator().delete("/api/v1/tenants/acme").expect(204);
    let tenant = misbehaving(&server, "standard", "");
    assert_eq!(usage(&tenant)["functions"], json!([]));
    tenant.invoke("m", "/ok").expect(200);
    assert_eq!(usage(&tenant)["total"]["requests"], 1);
}

/// CPU time of the process so far, in microseconds.
fn cpu_us(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    // The kernel shows a hundred ticks a second, whatever it counts itself.
    ticks * 10_000
}

#[test]
fn the_bill_is_exact() {
    let mut server = Server::start();
    let tenant = misbehaving(&server, "dedicated", "wall_ms = 60000");
    let paths = ["/ok", "/counter", "/trap", "/status?code=500", "/body-size", "/no-response"];
    let answers: Vec<Answer> = thread::scope(|scope| {
        let ask = |path: &str| match path {
            "/body-size" => tenant.call("POST", "m", path).body([7; 1000]).send(),
            _ => tenant.invoke("m", path),
        };
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(move || (0..126).map(|n| ask(paths[n % 6])).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let answered = answers.iter().filter(|answer| ![429, 503].contains(&answer.status)).count();
    let faults = answers.iter().filter(|answer| answer.status == 502).count();
    let echoed = answers.iter().filter(|answer| answer.text() == "1000").count();
    let of_guests = answers.iter().filter(|answer| answer.header("x-sandpiper-error").is_none());
    let bytes_out: usize = of_guests.map(|answer| answer.body.len()).sum();
    assert!(answered > 900 && faults > 300 && echoed > 150, "{answered} {faults} {echoed}");
    // Some go away before they have an answer; their sandboxes ran all the same.
    let left: Vec<_> = (0..10)
        .map(|_| {
            let mut connection = server.connect();
            let (path, key) = (tenant.path("m", "/hang"), &tenant.key);
            connection.send(format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
            ));
            connection
        })
        .collect();
    until("they run", || (sum(&server, "sandpiper_running") == 10.0).then_some(()));
    drop(left);
    let used = until("all are billed", || {
        let used = usage(&tenant);
        let all = (answered + 10, bytes_out);
        let [requests, bytes] = ["requests", "bytes_out"].map(|name| used["total"][name].as_u64());
        (requests == Some(all.0 as u64) && bytes == Some(all.1 as u64)).then_some(used)
    });
    assert_eq!(used["functions"].as_array().unwrap().len(), 1);
    assert_eq!(used["functions"][0]["function"], "m");
    assert_eq!(used["total"]["faults"], faults);
    assert_eq!(used["total"]["bytes_in"], 1000 * echoed);
    assert_eq!(used["total"]["bytes_out"], bytes_out);
    let cpu = used["total"]["guest_cpu_us"].as_u64().unwrap();
    assert!(cpu > 0 && cpu <= cpu_us(&server) + 20_000, "{cpu} of {}", cpu_us(&server));
    assert!(used["total"]["memory_mib_ms"].as_u64().unwrap() > 0, "{used}");
    server.restart();
    assert_eq!(usage(&tenant), used);
    tenant.invoke("m", "/ok").expect(200);
    assert_eq!(usage(&tenant)["total"]["requests"], answered + 11);
    // What is a second old is on the disk.
    thread::sleep(Duration::from_secs(4));
    server.crash();
    assert_eq!(usage(&tenant)["total"]["requests"], answered + 11);
}

#[test]
fn starts_and_what_is_kept_ready_are_billed() {
    let windows = "scale_window_ms = 1000\nscale_panic_window_ms = 300";
    let mut server = Server::with_settings(windows);
    let tenant = server.tenant("acme", "dedicated");
    let manifest = |start: &str| {
        format!("[limits]\ncpu_ms = 50\n[scale]\nmin = 1\n[env]\nSTART = \"{start}\"")
    };
    let amount = |used: &Value, name: &str| used["total"][name].as_u64().unwrap();
    tenant.put_function("good", &guest("starter"), &manifest("")).expect(201);
    let first = until("its start is billed", || {
        let used = usage(&tenant);
        (amount(&used, "start_cpu_us") > 0 && amount(&used, "memory_mib_ms") > 0).then_some(used)
    });
    // Nobody asks for it, and its memory costs all the same.
    let later = until("what it keeps is billed", || {
        let used = usage(&tenant);
        (amount(&used, "memory_mib_ms") >= amount(&first, "memory_mib_ms") + 100).then_some(used)
    });
    assert_eq!((amount(&later, "requests"), amount(&later, "guest_cpu_us")), (0, 0), "{later}");
    // A start that fails has used the processor too.
    tenant.put_function("bad", &guest("starter"), &manifest("burn:60000")).expect(201);
    until("the start that fails is billed", || {
        let used = usage(&tenant);
        let mut functions = used["functions"].as_array().unwrap().iter();
        let bad = functions.find(|one| one["function"] == "bad")?;
        (bad["start_cpu_us"].as_u64()? >= 50_000).then_some(())
    });
    // All of it is written, and counts against the budget: nothing more is kept.
    server.restart();
    let used = usage(&tenant);
    assert!(amount(&used, "start_cpu_us") >= 50_000, "{used}");
    assert!(amount(&used, "memory_mib_ms") >= amount(&later, "memory_mib_ms"), "{used}");
    let path = "/api/v1/functions/good/instances";
    let ready = |count: u64| {
        let shown = tenant.client.get(path).expect(200).json();
        (shown["versions"][0]["ready"] == count).then_some(())
    };
    until("it is kept ready", || ready(1));
    let budget = json!({ "memory_gib_s": 0 });
    server.operator().put_json("/api/v1/tenants/acme/budget", &budget).expect(200);
    until("nothing is kept that cannot be paid", || ready(0));
    server.operator().delete("/api/v1/tenants/acme/budget").expect(200);
    until("it is kept again", || ready(1));
}

#[test]
fn one_who_leaves_before_there_is_a_sandbox_is_not_billed() {
    let server = Server::with_settings("sandboxes_max = 1");
    let tenant = misbehaving(&server, "dedicated", "wall_ms = 60000");
    let ask = |path: &str| {
        let mut connection = server.connect();
        let (path, key) = (tenant.path("m", path), &tenant.key);
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
        connection.send(head);
        connection
    };
    let ended = |outcome| {
        server.metrics().sum("sandpiper_invocations_total", &[("outcome", outcome)]) as u64
    };
    let hangs = ask("/hang");
    until("it hangs", || (sum(&server, "sandpiper_sandboxes") == 1.0).then_some(()));
    until("one has left while it waited", || {
        let turned_away = ended("node_saturated");
        let waits = ask("/ok");
        // On a busy machine it may be turned away before it leaves; then the next one may be quicker.
        until("it waits", || {
            let is_there = sum(&server, "sandpiper_running") == 2.0;
            (is_there || ended("node_saturated") > turned_away).then_some(())
        });
        drop(waits);
        until("it is gone", || (sum(&server, "sandpiper_running") == 1.0).then_some(()));
        (ended("cancelled") == 1).then_some(())
    });
    drop(hangs);
    until("the other one has left too", || (ended("cancelled") == 2).then_some(()));
    assert_eq!(usage(&tenant)["total"]["requests"], 1);
}

#[test]
fn inference_without_a_function_is_billed() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("digits", &model("digits")).expect(201);
    let input =
        json!({ "name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": vec![0; 64] });
    let body = json!({ "inputs": [input] });
    for _ in 0..3 {
        tenant.client.post_json("/v2/models/digits/infer", &body).expect(200);
    }
    tenant.client.post_json("/v2/models/digits/infer", &json!({ "inputs": [] })).expect(400);
    let used = usage(&tenant);
    assert_eq!(used["functions"][0]["function"], "direct_inference");
    assert_eq!(used["total"]["requests"], 3);
    let path = "/api/v1/tenants/acme/budget";
    server.operator().put_json(path, &json!({ "requests": 3 })).expect(200);
    let refused = tenant.client.post_json("/v2/models/digits/infer", &body).expect(429);
    assert!(retry_after(&refused) > 0, "{refused:?}");
}

#[test]
fn a_full_queue_of_inferences_is_told_before_a_sandbox_is_made() {
    let settings = "inference_threads = 1\ninference_queue = 4";
    let traffic = "concurrency = 64\nqueue = 64\nrate = \"none\"";
    let (server, _policies) = server(traffic, "", settings);
    let tenant = misbehaving(&server, "tight", "wall_ms = 20000");
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    // The node learns that this function asks models.
    for _ in 0..8 {
        tenant.invoke("m", SLOW).expect(200);
    }
    let made = |server: &Server| sum(server, "sandpiper_invocations_total");
    let slow = format!("{SLOW}&times=8");
    thread::scope(|scope| {
        let asking: Vec<_> = (0..3).map(|_| scope.spawn(|| tenant.invoke("m", &slow))).collect();
        let refused = until("one is turned away", || {
            // One that is let in asks a model, too: the node goes on thinking that the function does.
            if sum(&server, "sandpiper_inference_waiting") < 2.0 {
                return None;
            }
            let before = made(&server);
            let answer = tenant.invoke("m", SLOW);
            (answer.status == 503 && made(&server) == before).then_some(answer)
        });
        assert!(retry_after(&refused.refused(503, "inference_saturated")) >= 1);
        for one in asking {
            one.join().unwrap();
        }
    });
    until("it is let in again", || (tenant.invoke("m", "/ok").status == 200).then_some(()));
}

#[test]
fn the_command_line_shows_what_was_used() {
    let server = Server::start();
    let tenant = misbehaving(&server, "standard", "");
    tenant.invoke("m", "/ok").expect(200);
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(sandpiper_tests::binary())
            .args(arguments)
            .env("SANDPIPER_SERVER", server.url())
            .env("SANDPIPER_KEY", &tenant.key)
            .env("HOME", home.path())
            .env_remove("SANDPIPER_TENANT")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&["usage"]);
    assert!(text.contains(": 1 requests\n") && text.contains("FUNCTION"), "{text}");
    let json: Value =
        serde_json::from_str(&run(&["--json", "usage", "--month", "2020-01"])).unwrap();
    assert_eq!((&json["month"], &json["functions"]), (&json!("2020-01"), &json!([])));
}
