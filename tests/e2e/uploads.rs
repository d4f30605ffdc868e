//! Bad uploads: each is refused with a clear answer, nothing of it is kept, and the server goes on.

use sandpiper_tests::{Answer, Server, Tenant, guest, guest_for, model, multipart};
use serde_json::json;

/// A component that is fine but for what `parts` add.
fn component(parts: &str) -> Vec<u8> {
    let handler = r#"(instance $i) (export "wasi:http/incoming-handler@0.2.3" (instance $i))"#;
    wat::parse_str(format!("(component {parts} {handler})")).unwrap()
}

/// Uploads what must be refused; afterwards the catalog and the blobs are as before, and a good upload works.
fn refused(upload: &[u8], code: &str) -> Answer {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let before = server.blobs();
    let answer = tenant.client.put("/api/v1/functions/bad", upload).refused(422, code);
    tenant.client.get("/api/v1/functions/bad").refused(404, "not_found");
    assert_eq!(server.blobs(), before, "a refused upload left something behind");
    good_upload(&mut server, &tenant);
    answer
}

fn good_upload(server: &mut Server, tenant: &Tenant) {
    server.still_runs();
    tenant.deploy("counter", "");
    assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
}

#[test]
fn what_is_not_wasm_is_refused() {
    let answer = refused(b"#!/bin/sh\necho not wasm\n", "not_wasm");
    assert!(answer.json()["error"]["hint"].as_str().unwrap().contains("wasm32-wasip2"));
}

#[test]
fn half_a_header_is_not_wasm() {
    refused(b"\0asm", "not_wasm");
}

#[test]
fn a_core_module_without_metadata_is_refused() {
    let module = wat::parse_str("(module (memory 1) (func (export \"_start\")))").unwrap();
    refused(&module, "core_module");
}

#[test]
fn a_component_without_a_handler_is_refused() {
    let component = wat::parse_str("(component)").unwrap();
    let answer = refused(&component, "no_incoming_handler");
    assert!(answer.message().contains("wasi:http/incoming-handler"), "{answer:?}");
}

#[test]
fn a_handler_that_is_no_handler_is_refused() {
    // It has the name and nothing in it: what is exported must also be of the right type.
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let answer = tenant.client.put("/api/v1/functions/bad", component(""));
    assert_eq!(answer.status, 422, "{answer:?}");
    good_upload(&mut server, &tenant);
}

/// A component that begins with so many component types, each within the one before.
fn nested_types(levels: usize) -> Vec<u8> {
    let types = [&[0x01], [0x41, 0x01, 0x01].repeat(levels).as_slice(), &[0x41, 0x00]].concat();
    let length = u32::try_from(types.len()).unwrap();
    let length = [0, 7, 14].map(|shift| ((length >> shift) & 0x7f) as u8);
    let section = [&[0x07, length[0] | 0x80, length[1] | 0x80, length[2]], types.as_slice()];
    let mut bytes = component("");
    bytes.splice(8..8, section.concat());
    bytes
}

#[test]
fn types_that_nest_deeply_do_not_end_the_node() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "free");
    for levels in [1_000, 40_000, 60_000, 500_000] {
        let answer = tenant.client.put("/api/v1/functions/deep", nested_types(levels));
        assert_eq!(answer.status, 422, "{levels} levels: {answer:?}");
    }
    good_upload(&mut server, &tenant);
}

#[test]
fn an_import_outside_the_list_is_refused_by_name() {
    let upload = component(
        r#"(import "wasi:keyvalue/store@0.2.0" (instance))
           (import "acme:secrets/vault@1.0.0" (instance))
           (import "wasi:nn/graph@0.2.0-rc-2024-08-19" (instance))"#,
    );
    let message = refused(&upload, "forbidden_imports").message();
    for name in [
        "wasi:keyvalue/store@0.2.0",
        "acme:secrets/vault@1.0.0",
        "wasi:nn/graph@0.2.0-rc-2024-08-19",
    ] {
        assert!(message.contains(name), "{name} is not named in {message:?}");
    }
}

#[test]
fn a_precompiled_file_is_refused() {
    // Machine code of wasmtime is an ELF file with sections of its own; any ELF file is machine code.
    let elf = sandpiper_tests::read(sandpiper_tests::expected("files/program.elf"));
    refused(&elf, "precompiled");
}

#[test]
fn an_empty_body_is_refused() {
    refused(b"", "empty_upload");
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.client.put("/api/v1/models/empty", b"").refused(422, "empty_upload");
}

#[test]
fn a_damaged_component_is_refused() {
    let whole = guest("counter");
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    for length in [9, 100, whole.len() / 2, whole.len() - 1] {
        let answer = tenant.client.put("/api/v1/functions/bad", &whole[..length]);
        answer.refused(422, "malformed_component");
    }
    assert_eq!(server.blobs().len(), 0);
    good_upload(&mut server, &tenant);
}

#[test]
fn a_component_that_is_not_valid_is_refused() {
    // Every section can be read, and the function's body has the wrong type.
    let module = r#"(core module (func (export "f") (result i32) (drop (i32.const 1))))"#;
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    // wat does not check types.
    let answer = tenant.client.put("/api/v1/functions/bad", component(module));
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(!answer.message().contains("wasmtime"), "{answer:?}");
    good_upload(&mut server, &tenant);
}

#[test]
fn a_body_over_the_cap_is_refused_before_it_is_read() {
    let mut server = Server::start();
    let tenant = server.tenant("small", "free");
    let (key, cap_mib) = (&tenant.key, 16u64);
    for path in ["functions/big", "models/big"] {
        let length =
            if path.starts_with("models") { (64u64 << 20) + 1 } else { (cap_mib << 20) + 1 };
        let mut connection = server.connect();
        connection.send(format!(
            "PUT /api/v1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
        ));
        // Not one byte of the body has been sent.
        connection.answer().refused(413, "too_large");
    }
    good_upload(&mut server, &tenant);
}

#[test]
fn a_chunked_body_over_the_cap_is_refused() {
    let mut server = Server::start();
    let tenant = server.tenant("small", "free");
    let mut connection = server.connect();
    connection.send(format!(
        "PUT /api/v1/functions/big HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
        tenant.key
    ));
    let chunk = [b"100000\r\n".as_slice(), &vec![b'.'; 1 << 20], b"\r\n"].concat();
    for _ in 0..17 {
        connection.send(&chunk);
    }
    connection.answer().refused(413, "too_large");
    assert_eq!(server.blobs().len(), 0);
    good_upload(&mut server, &tenant);
}

#[test]
fn a_refusal_reaches_a_client_that_sends_its_whole_body_first() {
    // Most clients write before they read. A server that answers early and closes with bytes unread resets the
    // connection, and the answer is lost.
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let body = vec![b'.'; 8 << 20];
    for (key, name, status) in [(tenant.key.as_str(), "Upper", 400), ("not-a-key", "fine", 401)] {
        for _ in 0..5 {
            let mut connection = server.connect();
            connection.send(format!(
                "PUT /api/v1/functions/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            ));
            connection.send(&body);
            assert_eq!(connection.answer().status, status);
        }
    }
}

#[test]
fn a_multipart_component_over_the_cap_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    let (kind, body) = multipart(&[("component", &vec![b'.'; (16 << 20) + 1])]);
    let call = tenant.client.call("PUT", "/api/v1/functions/big").header("content-type", &kind);
    call.body(body).send().refused(413, "too_large");
}

#[test]
fn a_multipart_body_of_other_parts_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let counter = guest("counter");
    let put = |kind: &str, body: Vec<u8>| {
        let call = tenant.client.call("PUT", "/api/v1/functions/bad").header("content-type", kind);
        call.body(body).send()
    };
    for parts in [
        &[("manifest", b"name = \"bad\"".as_slice())][..],
        &[("component", &counter), ("component", &counter)],
        &[("component", &counter), ("surprise", b"")],
    ] {
        let (kind, body) = multipart(parts);
        put(&kind, body).refused(400, "bad_request");
    }
    let (kind, body) = multipart(&[("component", &counter)]);
    put("multipart/form-data", body.clone()).refused(400, "bad_request");
    put(&kind, body[..body.len() / 2].to_vec()).refused(400, "bad_request");
    tenant.client.get("/api/v1/functions/bad").refused(404, "not_found");
}

#[test]
fn a_bad_manifest_is_refused_and_its_mistake_is_named() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let counter = guest("counter");
    for (lines, named) in [
        ("nmae = 1", "nmae"),
        ("auth = \"nobody\"", "nobody"),
        ("[limits]\ncpu_ms = 0", "limits.cpu_ms"),
        ("[limits]\nmemory_mb = 1", "memory_mb"),
        ("[scale]\nreuse = 0", "scale.reuse"),
        ("[models]\n\"../x\" = \"live\"", "models"),
        ("[env]\n\"A=B\" = \"1\"", "env"),
        ("this is no TOML", "manifest"),
    ] {
        let answer = tenant.put_function("bad", &counter, lines).refused(422, "invalid_manifest");
        assert!(answer.message().contains(named), "{lines:?}: {answer:?}");
    }
    let (kind, body) = multipart(&[("component", &counter), ("manifest", b"name = \"another\"")]);
    let call = tenant.client.call("PUT", "/api/v1/functions/bad").header("content-type", &kind);
    call.body(body).send().refused(422, "invalid_manifest");
    tenant.client.get("/api/v1/functions/bad").refused(404, "not_found");
}

#[test]
fn a_component_that_needs_more_memory_than_it_may_have_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let answer = tenant.put_function("fat", &guest("counter"), "[limits]\nmemory_mib = 1");
    let answer = answer.refused(422, "memory_limit");
    assert!(answer.message().contains("1 MiB"), "{answer:?}");
}

#[test]
fn a_core_module_with_metadata_becomes_a_component() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("digits", &model("digits")).expect(201);
    for target in ["wasm32-wasip2", "wasm32-wasip1"] {
        let name = target.replace("wasm32-", "on-");
        let answer =
            tenant.put_function(&name, &guest_for(target, "core_module"), "[env]\nA = \"b\"");
        let json = answer.expect(201).json();
        assert_ne!(json["digest"], json["source_digest"], "{target}: what runs is not what came");
        assert_eq!(tenant.invoke(&name, "/").expect(200).text(), "core module\n", "{target}");
        assert_eq!(tenant.invoke(&name, "/env?name=A").expect(200).text(), "b", "{target}");
        let probs = tenant.invoke(&name, "/model").expect(200).json();
        assert_eq!(probs.as_array().map(Vec::len), Some(10), "{target}: {probs}");
    }
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    for path in ["functions/half", "models/half"] {
        let mut connection = server.connect();
        connection.send(format!(
            "PUT /api/v1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 100000\r\n\r\nsome",
            tenant.key
        ));
        drop(connection);
        tenant.client.get(&format!("/api/v1/{path}")).refused(404, "not_found");
    }
    assert_eq!(server.blobs().len(), 0);
    good_upload(&mut server, &tenant);
}

#[test]
fn a_bad_model_is_refused_without_a_trace() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    for (file, code) in [
        ("text.onnx", "not_onnx"),
        ("noise.onnx", "not_onnx"),
        ("truncated.onnx", "truncated_model"),
        ("truncated-end.onnx", "truncated_model"),
        ("external-parent.onnx", "external_data"),
        ("external-absolute.onnx", "external_data"),
        ("external-beside.onnx", "external_data"),
        ("string-identity.onnx", "unsupported_type"),
    ] {
        let answer = tenant.put_model("bad", &model(file)).refused(422, code);
        assert!(!answer.message().contains("../"), "{file}: {answer:?}");
        tenant.client.get("/api/v1/models/bad").refused(404, "not_found");
    }
    assert_eq!(server.blobs().len(), 0);
    good_upload(&mut server, &tenant);
}

#[test]
fn an_operator_that_the_backend_lacks_is_named() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    for (file, operator) in [
        ("unsupported-unique.onnx", "Unique"),
        ("unsupported-roialign.onnx", "RoiAlign"),
        ("unsupported-contrib.onnx", "Relu (com.microsoft)"),
        ("unsupported-domain.onnx", "Nonesuch"),
    ] {
        let answer = tenant.put_model("bad", &model(file)).refused(422, "unsupported_operator");
        assert!(answer.message().contains(operator), "{file}: {answer:?}");
    }
    let list = tenant.client.get("/api/v1/models").expect(200).json();
    assert_eq!(list, json!({ "models": [] }));
}

#[test]
fn many_uploads_at_once_are_done_or_told_to_wait() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    let component = guest("misbehave");
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (tenant, component) = (&tenant, &component);
            scope.spawn(move || {
                let answer = tenant.put_function(&format!("f{n}"), component, "");
                match answer.status {
                    201 => {}
                    429 => {
                        assert!(answer.refused(429, "upload_limit").header("retry-after").is_some())
                    }
                    _ => assert!(
                        answer.refused(503, "node_saturated").header("retry-after").is_some()
                    ),
                }
            });
        }
    });
    good_upload(&mut server, &tenant);
}
