//! What is asked wrongly: refused with the right code, and the server goes on.

use bytes::Bytes;
use prost::Message;
use sandpiper_tests::{GrpcStatus, Server, frame, model};

use super::{
    client, code, infer, inference,
    message::{
        InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
        ModelMetadataResponse, ModelStreamInferResponse, RepositoryModelLoadRequest,
        RepositoryModelLoadResponse, ServerLiveRequest, ServerLiveResponse,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
    parameter, refused, row, tenant, with_ballast,
};
use crate::oip_reading::slow_free_tier;

/// What is wrong with the request, how it becomes so, and a word of the answer.
type Case = (&'static str, fn(&mut ModelInferRequest), &'static str);

fn input(request: &mut ModelInferRequest) -> &mut InferInputTensor {
    &mut request.inputs[0]
}

fn output(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor { name: name.to_owned(), ..Default::default() }
}

const INVALID: [Case; 24] = [
    ("a shape whose product is not the data", |r| input(r).shape = vec![2, 3], "`x`"),
    ("a shape the model does not take", |r| input(r).shape = vec![3, 1], "`x`"),
    ("a negative dimension", |r| input(r).shape = vec![-1, 3], "negative"),
    ("dimensions that overflow", |r| input(r).shape = vec![1 << 62, 1 << 62], "overflow"),
    ("too many dimensions", |r| input(r).shape = vec![1; 9], "dimensions"),
    ("an unknown type", |r| input(r).datatype = "FLOAT".to_owned(), "`FLOAT`"),
    ("no type", |r| input(r).datatype = String::new(), "`x`"),
    ("another type than the model's", |r| input(r).datatype = "INT32".to_owned(), "FP32"),
    ("BYTES with a bad length", |r| input(r).datatype = "BYTES".to_owned(), "BYTES"),
    ("an unknown input", |r| input(r).name = "z".to_owned(), "`z`"),
    ("no inputs", |r| (r.inputs, r.raw_input_contents) = Default::default(), "`x`"),
    (
        "an input twice",
        |r| {
            r.inputs.extend(r.inputs.clone());
            r.raw_input_contents.extend(r.raw_input_contents.clone());
        },
        "twice",
    ),
    ("fewer raw buffers than inputs", |r| r.inputs.push(r.inputs[0].clone()), "raw_input_contents"),
    (
        "more raw buffers than inputs",
        |r| r.raw_input_contents.push(Bytes::new()),
        "raw_input_contents",
    ),
    (
        "raw and typed contents",
        |r| {
            let fp32_contents = vec![1.0, 2.0, 3.0];
            input(r).contents = Some(InferTensorContents { fp32_contents, ..Default::default() });
        },
        "raw_input_contents",
    ),
    (
        "contents of another type",
        |r| {
            r.raw_input_contents.clear();
            let fp64_contents = vec![1.0, 2.0, 3.0];
            input(r).contents = Some(InferTensorContents { fp64_contents, ..Default::default() });
        },
        "contents",
    ),
    ("neither raw nor typed contents", |r| r.raw_input_contents.clear(), "`x`"),
    ("an unknown output", |r| r.outputs.push(output("zz")), "`zz`"),
    ("an output twice", |r| r.outputs.extend([output("y"), output("y")]), "2 outputs"),
    ("a version that is no number", |r| r.model_version = "latest".to_owned(), "version"),
    (
        "a priority that is no number",
        |r| {
            let text = parameter(ParameterChoice::StringParam("high".to_owned()));
            r.parameters.insert("priority".to_owned(), text);
        },
        "priority",
    ),
    (
        "a negative timeout",
        |r| {
            r.parameters.insert("timeout".to_owned(), parameter(ParameterChoice::Int64Param(-5)));
        },
        "timeout",
    ),
    (
        "a reserved parameter",
        |r| {
            r.parameters.insert("triton_x".to_owned(), parameter(ParameterChoice::BoolParam(true)));
        },
        "triton_x",
    ),
    ("a name that cannot be one", |r| r.model_name = "../x".to_owned(), "name"),
];

#[test]
fn what_does_not_fit_is_an_invalid_argument() {
    let mut server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let mut failures = Vec::new();
    for (what, spoil, word) in INVALID {
        let mut request = row([1.0, 2.0, 3.0]);
        spoil(&mut request);
        let answer = infer(&client, &request);
        let is_right = answer.as_ref().is_err_and(|status| {
            status.code == code::INVALID_ARGUMENT && status.message.contains(word)
        });
        if !is_right {
            failures.push((what, answer));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    infer(&client, &row([1.0, 2.0, 3.0])).unwrap();
    server.still_runs();
}

#[test]
fn an_index_beyond_the_model_is_an_invalid_argument() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    tenant.put_model("gather", &model("gather.onnx")).expect(201);
    let client = client(&server, &tenant);
    let rows = |index: i64| {
        let input = InferInputTensor {
            name: "indices".to_owned(),
            datatype: "INT64".to_owned(),
            shape: vec![1],
            ..Default::default()
        };
        let request = ModelInferRequest {
            model_name: "gather".to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![index.to_le_bytes().to_vec().into()],
            ..Default::default()
        };
        infer(&client, &request)
    };
    for _ in 0..4 {
        let text = refused(rows(16), code::INVALID_ARGUMENT);
        assert!(text.contains("an index that is out of its range"), "{text}");
    }
    assert_eq!(super::floats(&rows(15).unwrap()), [150.0, 151.0, 152.0, 153.0]);
}

#[test]
fn what_this_server_does_not_do_is_unimplemented() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let with = |key: &str| {
        let parameters = [(key.to_owned(), parameter(ParameterChoice::Int64Param(1)))];
        ModelInferRequest { parameters: parameters.into(), ..row([0.0; 3]) }
    };
    refused(infer(&client, &with("sequence_id")), code::UNIMPLEMENTED);
    let mut shared = row([0.0; 3]);
    let region = parameter(ParameterChoice::StringParam("r".to_owned()));
    shared.inputs[0].parameters.insert("shared_memory_region".to_owned(), region);
    refused(infer(&client, &shared), code::UNIMPLEMENTED);
    let mut classes = row([0.0; 3]);
    let mut wanted = output("y");
    wanted
        .parameters
        .insert("classification".to_owned(), parameter(ParameterChoice::Int64Param(3)));
    classes.outputs.push(wanted);
    refused(infer(&client, &classes), code::UNIMPLEMENTED);
    for path in [
        "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
        "/inference.GRPCInferenceService/CudaSharedMemoryRegister",
        "/inference.GRPCInferenceService/Nothing",
        "/grpc.health.v1.Health/Nothing",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/",
    ] {
        let answer = client.unary::<ServerLiveResponse>(path, &ServerLiveRequest {});
        refused(answer, code::UNIMPLEMENTED);
    }
}

#[test]
fn without_a_key_that_fits_nothing_is_told() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let metadata = |key: Option<&str>| {
        let client = server.grpc();
        let client = match key {
            Some(key) => client.with_key(key),
            None => client,
        };
        let question = ModelMetadataRequest { name: "mul-add".to_owned(), ..Default::default() };
        client.unary::<ModelMetadataResponse>(&inference("ModelMetadata"), &question)
    };
    refused(metadata(None), code::UNAUTHENTICATED);
    refused(metadata(Some("nonsense")), code::UNAUTHENTICATED);
    refused(metadata(Some(&format!("{}x", tenant.key))), code::UNAUTHENTICATED);
    let basic = server.grpc().with_header("authorization", "Basic YTpi");
    refused(infer(&basic, &row([0.0; 3])), code::UNAUTHENTICATED);
    let logs = tenant.with_scopes(&["logs"]);
    let key = logs.call("GET", "/").header_of("authorization");
    let client = server.grpc().with_header("authorization", &key);
    let text = refused(infer(&client, &row([0.0; 3])), code::PERMISSION_DENIED);
    assert!(text.contains("`invoke`"), "{text}");
}

#[test]
fn a_foreign_model_looks_like_none() {
    let server = Server::start();
    tenant(&server, "owner");
    let other = server.tenant("other", "dedicated");
    let client = client(&server, &other);
    let named = |name: &str| ModelInferRequest { model_name: name.to_owned(), ..row([0.0; 3]) };
    let foreign = refused(infer(&client, &named("owner/mul-add")), code::NOT_FOUND);
    let unknown = refused(infer(&client, &named("owner/mul-adx")), code::NOT_FOUND);
    let nobody = refused(infer(&client, &named("nobody/mul-add")), code::NOT_FOUND);
    assert_eq!(foreign.replace("mul-add", "mul-adx"), unknown);
    assert_eq!(foreign.replace("owner", "nobody"), nobody);
    let load = |name: &str| {
        let question =
            RepositoryModelLoadRequest { model_name: name.to_owned(), ..Default::default() };
        client.unary::<RepositoryModelLoadResponse>(&inference("RepositoryModelLoad"), &question)
    };
    let foreign = refused(load("owner/mul-add"), code::NOT_FOUND);
    let unknown = refused(load("owner/mul-adx"), code::NOT_FOUND);
    assert_eq!(foreign.replace("mul-add", "mul-adx"), unknown);
    refused(load("nothing"), code::NOT_FOUND);
}

#[test]
fn a_message_beyond_the_tenants_limit_is_refused_before_it_is_read() {
    let mut server = Server::start();
    // 1 MiB for `free`.
    let free = server.tenant("acme", "free");
    free.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let client = client(&server, &free);
    let ballasted = |bytes| with_ballast(row([0.0; 3]), bytes);
    let request = ballasted((1 << 20) + 1);
    let text = refused(infer(&client, &request), code::RESOURCE_EXHAUSTED);
    assert!(text.contains("1048576"), "{text}");
    // A length that nothing follows.
    let mut announced = frame(b"").to_vec();
    announced[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    let answer =
        client.unary_bytes::<ModelInferResponse>(&inference("ModelInfer"), announced.into());
    refused(answer, code::RESOURCE_EXHAUSTED);
    infer(&client, &ballasted(1 << 19)).unwrap();
    server.still_runs();
}

#[test]
fn an_id_that_is_too_long_is_refused_and_not_told_again() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let of = |bytes| ModelInferRequest { id: "x".repeat(bytes), ..row([0.0; 3]) };
    assert_eq!(infer(&client, &of(4096)).unwrap().id.len(), 4096);
    // A long request is read in another way.
    for bytes in [4097, 1 << 20] {
        let text = refused(infer(&client, &of(bytes)), code::INVALID_ARGUMENT);
        assert_eq!(text, "the id is too long: it may have 4096 bytes");
    }
    let mut call = client.open(&inference("ModelStreamInfer"));
    for bytes in [4097, 4096, 1 << 20, 4096] {
        call.send(&of(bytes));
        let answer = ModelStreamInferResponse::decode(call.message().unwrap()).unwrap();
        let response = answer.infer_response.unwrap();
        match bytes {
            4096 => assert_eq!((&*answer.error_message, response.id.len()), ("", 4096)),
            _ => {
                let text = &answer.error_message;
                assert!(text.contains("the id is too long"), "{text}");
                assert_eq!(response.id, "");
            }
        }
    }
}

#[test]
fn small_parts_do_not_add_up_to_a_memory_bomb() {
    let mut server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let before = server.memory_peak_mib();
    // Thirty million inputs of two bytes each: gigabytes, once they are decoded.
    let bomb = Bytes::from([5 << 3 | 2, 0].repeat(30 << 20));
    let answer = client.unary_bytes::<ModelInferResponse>(&inference("ModelInfer"), frame(&bomb));
    refused(answer, code::RESOURCE_EXHAUSTED);
    let peak = server.memory_peak_mib();
    assert!(peak < before + 512, "the server went from {before} to {peak} MiB");
    infer(&client, &row([0.0; 3])).unwrap();
    server.still_runs();
}

#[test]
fn what_is_no_message_is_refused_and_the_connection_goes_on() {
    let mut server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let send = |body: Bytes| -> Result<ModelInferResponse, GrpcStatus> {
        client.unary_bytes(&inference("ModelInfer"), body)
    };
    refused(send(frame(b"\xff\xff\xff\xff")), code::INVALID_ARGUMENT);
    // A name that is no UTF-8; a group; a submessage longer than what holds it.
    refused(send(frame(&[1 << 3 | 2, 1, 0xff])), code::INVALID_ARGUMENT);
    refused(send(frame(&[5 << 3 | 3])), code::INVALID_ARGUMENT);
    refused(send(frame(&[5 << 3 | 2, 2, 1 << 3 | 2, 9])), code::INVALID_ARGUMENT);
    // No frame at all, half a frame, a frame that says it is compressed, and one of an unknown kind.
    for body in
        [&b""[..], &[0, 0, 0], &[0, 0, 0, 0, 9, 1], &[1, 0, 0, 0, 1, 0], &[7, 0, 0, 0, 1, 0]]
    {
        let status = send(Bytes::from_static(body)).unwrap_err();
        assert_ne!(status.code, 0, "{body:?}");
    }
    // In as many pieces as there are bytes it is still a message.
    let mut call = client.open(&inference("ModelInfer"));
    for byte in frame(&row([0.0, 1.0, 2.0]).encode_to_vec()) {
        call.send_bytes(Bytes::copy_from_slice(&[byte]), false);
    }
    call.finish();
    let answer = call.message().expect("an answer");
    assert_eq!(super::floats(&ModelInferResponse::decode(answer).unwrap()), [1.0, 4.0, 7.0]);
    server.still_runs();
}

#[test]
fn what_is_no_grpc_is_told_in_http() {
    let server = Server::start();
    let client = server.client();
    let path = inference("ServerLive");
    client.post(&path).refused(505, "http_version");
    let output = std::process::Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(["-X", "POST", "-H", "content-type: application/json"])
        .arg(format!("{}{path}", server.url()))
        .output()
        .expect("curl is installed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "415", "{output:?}");
}

#[test]
fn the_tenants_rate_holds_for_grpc() {
    let (server, _policies) = slow_free_tier();
    let free = server.tenant("acme", "free");
    free.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let client = client(&server, &free);
    let refusal = (0..100).find_map(|_| infer(&client, &row([0.0; 3])).err());
    let status = refusal.expect("the rate ends");
    assert_eq!(status.code, code::RESOURCE_EXHAUSTED, "{status:?}");
    assert!(status.metadata.contains_key("grpc-status-details-bin"), "{status:?}");
}
