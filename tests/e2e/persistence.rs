//! What was answered with 2xx is there after a kill -9; what a crash left half done is not.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use sandpiper_tests::{Server, guest, model};
use serde_json::{Value, json};

/// Without what is true of this process alone: whether a model is in memory, and what it takes there.
fn lasting(mut answer: Value) -> Value {
    const PASSING: [&str; 5] = ["state", "memory_bytes", "operators", "parameters", "batching"];
    for model in answer["models"].as_array_mut().into_iter().flatten() {
        let model = model.as_object_mut().unwrap();
        model.retain(|key, _| !PASSING.contains(&key.as_str()));
    }
    answer
}

#[test]
fn everything_is_there_after_a_kill_9() {
    let mut server = Server::start();
    let (acme, beta) = (server.tenant("acme", "standard"), server.tenant("beta", "dedicated"));
    let key = acme.with_scopes(&["invoke"]);
    acme.put_model("digits", &model("digits")).expect(201);
    acme.client
        .put_json("/api/v1/models/digits/grants", &json!({ "tenants": ["beta"] }))
        .expect(200);
    beta.put_function("m", &guest("misbehave"), "").expect(201);
    acme.put_function("f", &guest("misbehave"), "[env]\nN = \"1\"").expect(201);
    acme.put_function("f", &guest("misbehave"), "[env]\nN = \"2\"").expect(201);
    let path = "/api/v1/functions/f/aliases/canary";
    acme.client.put_json(path, &json!({ "version": 1 })).expect(200);
    let paths = [
        "/api/v1/functions",
        "/api/v1/functions/f/versions",
        "/api/v1/models",
        "/api/v1/tenants/acme/keys",
    ];
    let all = || -> Vec<Value> {
        paths.map(|path| lasting(acme.client.get(path).expect(200).json())).into()
    };
    let before = all();
    let tenants = server.operator().get("/api/v1/tenants").expect(200).json();
    server.crash();
    assert_eq!(all(), before);
    assert_eq!(server.operator().get("/api/v1/tenants").expect(200).json(), tenants);
    assert_eq!(key.get("/fn/acme/f/env").expect(200).json()["N"], "2");
    assert_eq!(key.get("/fn/acme/f@canary/env").expect(200).json()["N"], "1");
    let shared = beta.invoke("m", "/tensor?case=ok&model=acme/digits").expect(200).json();
    assert!(shared["outputs"].is_array(), "{shared}");
}

#[test]
fn the_last_acknowledged_write_survives_a_kill_9() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    for n in 0..10 {
        let name = format!("f{n}");
        match n % 3 {
            0 => drop(tenant.put_function(&name, &guest("counter"), "").expect(201)),
            1 => drop(tenant.put_model(&name, &model("mul-add.onnx")).expect(201)),
            _ => drop(tenant.with_scopes(&["invoke"])),
        }
        server.crash();
        match n % 3 {
            0 => assert_eq!(tenant.invoke(&name, "/").expect(200).text(), "1"),
            1 => drop(tenant.client.get(&format!("/api/v1/models/{name}")).expect(200)),
            _ => {
                let keys = tenant.client.get("/api/v1/tenants/acme/keys").expect(200).json();
                assert_eq!(keys["keys"].as_array().map(Vec::len), Some(2 + n / 3));
            }
        }
    }
}

#[test]
fn a_revoked_key_stays_revoked_after_a_kill_9() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let path = "/api/v1/tenants/acme/keys";
    let key = tenant.client.post_json(path, &json!({})).expect(201).json();
    let revoked = server.client().with_key(key["key"].as_str().unwrap());
    tenant.client.delete(&format!("{path}/{}", key["id"].as_str().unwrap())).expect(204);
    tenant.put_function("gone", &guest("counter"), "").expect(201);
    tenant.client.delete("/api/v1/functions/gone").expect(204);
    server.crash();
    revoked.get("/api/v1/whoami").refused(401, "key_unknown");
    tenant.invoke("gone", "/").refused(404, "not_found");
}

#[test]
fn no_acknowledged_write_is_lost_in_ten_crashes_under_load() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    let (component, onnx) = (guest("counter"), model("mul-add.onnx"));
    let acknowledged: Mutex<Vec<String>> = Mutex::default();
    for round in 0..10 {
        let stop = AtomicBool::new(false);
        let count = || acknowledged.lock().unwrap().len();
        let before = count();
        thread::scope(|scope| {
            for writer in 0..3 {
                let (stop, tenant, acknowledged) = (&stop, &tenant, &acknowledged);
                let (component, onnx) = (&component, &onnx);
                scope.spawn(move || {
                    for n in 0.. {
                        if stop.load(Relaxed) {
                            return;
                        }
                        let (kind, body) =
                            if n % 2 == 0 { ("models", onnx) } else { ("functions", component) };
                        let path = format!("/api/v1/{kind}/w{writer}-{round}-{n}");
                        let sent = tenant.client.call("PUT", &path).body(body).try_send();
                        match sent {
                            Ok(answer) if answer.status == 201 => {
                                acknowledged.lock().unwrap().push(path);
                            }
                            // As many at once as the tenant may; the next one has another name.
                            Ok(answer) if answer.status == 429 => thread::yield_now(),
                            Ok(answer) => panic!("{answer:?}"),
                            // Killed in the middle: either outcome is right.
                            Err(_) => return,
                        }
                    }
                });
            }
            // Each round is killed at another moment of the work.
            sandpiper_tests::until("some writes are acknowledged", || {
                (count() >= before + 3 + round).then_some(())
            });
            server.kill9();
            stop.store(true, Relaxed);
        });
        server.start_again();
        for path in acknowledged.lock().unwrap().iter() {
            tenant.client.get(path).expect(200);
        }
    }
    server.still_runs();
    let functions = tenant.client.get("/api/v1/functions").expect(200).json();
    let newest = functions["functions"].as_array().unwrap().last().unwrap()["name"].clone();
    assert_eq!(tenant.invoke(newest.as_str().unwrap(), "/").expect(200).text(), "1");
}

#[test]
fn what_a_crash_left_half_written_is_swept() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    server.kill9();
    let blobs = server.data().join("blobs");
    fs::write(blobs.join(".tmp-torn"), b"half a comp").unwrap();
    // Whole and under its right name, but no record says that it is needed.
    let orphan = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    fs::write(blobs.join(orphan), b"hello").unwrap();
    server.start_again();
    assert!(!server.blobs().contains(&".tmp-torn".to_owned()), "{:?}", server.blobs());
    assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
    // A sweep follows every deletion.
    tenant.put_function("other", &guest("misbehave"), "").expect(201);
    tenant.client.delete("/api/v1/functions/other").expect(204);
    server.sweeps_to(1);
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let (code, words) = server.second_start();
    assert_ne!(code, Some(0));
    assert!(words.contains("another sandpiper uses this data folder"), "{words}");
    tenant.deploy("counter", "");
    server.still_runs();
    // The lock goes with the process, however it ended.
    server.crash();
    tenant.invoke("counter", "/").expect(200);
}

#[test]
fn a_damaged_entry_of_the_code_cache_is_ignored() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    server.kill9();
    let cache = server.data().join("cache");
    let entries: Vec<_> =
        fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    let whole = fs::read(&entries[0]).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], b"", &[0; 4096]] {
        fs::write(&entries[0], damaged).unwrap();
        server.start_again();
        assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
        server.still_runs();
        server.kill9();
    }
    fs::remove_dir_all(&cache).unwrap();
    server.start_again();
    assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
}

#[test]
fn a_damaged_blob_is_told_from_a_good_one() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    let blob = server.data().join("blobs").join(&server.blobs()[0]);
    server.kill9();
    fs::write(&blob, b"\0asm\x0d\0\x01\0 this is another component").unwrap();
    fs::remove_dir_all(server.data().join("cache")).unwrap();
    server.start_again();
    tenant.invoke("counter", "/").refused(503, "function_unavailable");
    // The same upload mends it.
    tenant.put_function("counter", &guest("counter"), "").expect(200);
    assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
    server.still_runs();
}

#[test]
fn a_good_end_and_a_new_start_keep_everything() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    server.restart();
    assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
    server.operator().get("/api/v1/whoami").expect(200);
}

#[test]
fn the_data_folder_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    for path in ["", "blobs", "sandpiper.db", "pepper", "cache.key"] {
        let mode = fs::metadata(server.data().join(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path:?} has the mode {mode:o}");
    }
}
