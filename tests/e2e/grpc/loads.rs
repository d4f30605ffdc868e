//! Loads that bring a model's file and its configuration.

use std::collections::HashMap;

use bytes::Bytes;
use sandpiper_tests::{GrpcClient, GrpcStatus, Server, model, until};
use serde_json::json;

use super::{
    client, code, floats, infer, inference,
    message::{
        ModelRepositoryParameter, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
        model_repository_parameter::ParameterChoice,
    },
    refused, row, tenant,
};

fn file(bytes: impl Into<Bytes>) -> ParameterChoice {
    ParameterChoice::BytesParam(bytes.into())
}

fn text(text: &str) -> ParameterChoice {
    ParameterChoice::StringParam(text.to_owned())
}

fn load(
    client: &GrpcClient,
    name: &str,
    parameters: Vec<(&str, ParameterChoice)>,
) -> Result<RepositoryModelLoadResponse, GrpcStatus> {
    let parameter = |choice| ModelRepositoryParameter { parameter_choice: Some(choice) };
    let parameters: HashMap<_, _> =
        parameters.into_iter().map(|(name, choice)| (name.to_owned(), parameter(choice))).collect();
    let model_name = name.to_owned();
    let question = RepositoryModelLoadRequest { model_name, parameters, ..Default::default() };
    client.unary(&inference("RepositoryModelLoad"), &question)
}

#[test]
fn a_load_with_a_file_deploys_the_next_version() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    assert_eq!(floats(&infer(&client, &row([0.0, 1.0, -1.5])).unwrap()), [1.0, 4.0, 0.0]);
    let identity = || file(model("identity-fp32.onnx"));
    let loaded = load(&client, "mul-add", vec![("file:9/model.onnx", identity())]).unwrap();
    assert_eq!((&*loaded.model_name, loaded.is_loaded), ("mul-add", true));
    let answer = infer(&client, &row([0.0, 1.0, -1.5])).unwrap();
    assert_eq!((&*answer.model_version, floats(&answer)), ("2", vec![0.0, 1.0, -1.5]));
    // The configuration alone makes a version of the same file, and with the file of what is there none.
    let config = || ("config", text(r#"{"response_cache":{"enable":true}}"#));
    load(&client, "mul-add", vec![config()]).unwrap();
    load(&client, "mul-add", vec![config(), ("file:1/model.onnx", identity())]).unwrap();
    let shown = tenant.client.get("/api/v1/models/mul-add/versions/3").expect(200).json();
    assert_eq!(shown["options"]["cache"], true);
    tenant.client.get("/api/v1/models/mul-add/versions/4").expect(404);
    let answer = infer(&client, &row([0.0, 1.0, -1.5])).unwrap();
    assert_eq!((&*answer.model_version, floats(&answer)), ("3", vec![0.0, 1.0, -1.5]));
    // A new name, and more than any other message may have.
    let magika = model("magika");
    assert!(magika.len() > 1 << 20, "{}", magika.len());
    load(&client, "new", vec![("file:1/model.onnx", file(magika))]).unwrap();
    let ready = tenant.client.get("/v2/models/new/ready").expect(200).json();
    assert_eq!(ready["ready"], true);
}

#[test]
fn what_a_load_cannot_bring_is_refused() {
    let mut server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let good = || file(model("identity-fp32.onnx"));
    for (parameters, said) in [
        (vec![("file:1/model.onnx", text("AAAA"))], "sent as bytes"),
        (vec![("file:1/model.onnx", file(""))], "empty"),
        (vec![("file:1/model.onnx", ParameterChoice::BoolParam(true))], "missing"),
        (vec![("file:1/model.onnx", file("plain text"))], "ONNX"),
        (vec![("file:1/a.onnx", good()), ("file:2/b.onnx", good())], "one file"),
        (vec![("file:1/a.bin", good())], "one ONNX file"),
        (vec![("config", file("{}"))], "a text of JSON"),
        (vec![("config", text(r#"{"instance_group":[{"count":2}]}"#))], "`config.instance_group`"),
        (vec![("speed", ParameterChoice::Int64Param(3))], "`speed`"),
    ] {
        let words = refused(load(&client, "mul-add", parameters), code::INVALID_ARGUMENT);
        assert!(words.contains(said), "{said}: {words}");
    }
    let names: Vec<String> = (0..65).map(|n| format!("p{n}")).collect();
    let many = names.iter().map(|name| (&**name, text(""))).collect();
    let words = refused(load(&client, "mul-add", many), code::INVALID_ARGUMENT);
    assert!(words.contains("at most 64 parameters"), "{words}");
    refused(load(&client, "none", vec![("config", text("{}"))]), code::NOT_FOUND);
    let key =
        tenant.client.post_json("/api/v1/tenants/acme/keys", &json!({ "scopes": ["invoke"] }));
    let key = key.expect(201).json()["key"].as_str().unwrap().to_owned();
    let invoke = server.grpc().with_key(&key);
    let answer = load(&invoke, "mul-add", vec![("file:1/model.onnx", good())]);
    assert!(refused(answer, code::PERMISSION_DENIED).contains("`models`"));
    // `free` has 64 MiB for a model, and a MiB more for what is around it.
    let free = server.tenant("beta", "free");
    let free = server.grpc().with_key(&free.key);
    for beyond in [1, 2 << 20] {
        let long = file(vec![8; (64 << 20) + beyond]);
        let answer = load(&free, "mul-add", vec![("file:1/model.onnx", long)]);
        refused(answer, code::RESOURCE_EXHAUSTED);
    }
    assert_eq!(infer(&client, &row([0.0; 3])).unwrap().model_version, "1");
    server.still_runs();
}

#[test]
fn loads_take_the_places_of_uploads() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let parameters = || vec![("file:1/model.onnx", file(model("identity-fp32.onnx")))];
    // Two that have announced a MiB and not sent it are two uploads. One that came while another was worked on was
    // refused, so that there may be more of them.
    let mut slow = Vec::new();
    until("two are let in", || {
        let mut call = client.open(&inference("RepositoryModelLoad"));
        call.send_bytes(Bytes::from_static(&[0, 0, 16, 0, 0, 7]), false);
        slow.push(call);
        tenant.put_model("other", &model("mul-add.onnx")).status.eq(&429).then_some(())
    });
    let words = refused(load(&client, "mul-add", parameters()), code::RESOURCE_EXHAUSTED);
    assert!(words.contains("uploads"), "{words}");
    // What brings nothing takes none of them.
    load(&client, "mul-add", vec![]).unwrap();
    drop(slow);
    until("their places are free again", || load(&client, "mul-add", parameters()).ok());
}
