//! What is asked rightly.

use sandpiper_tests::{GrpcClient, OPERATOR_KEY, Server, model};
use serde_json::{Value, json};

use super::{
    client, code, floats, infer, inference,
    message::{
        InferTensorContents, LogSettingsRequest, LogSettingsResponse, ModelConfigRequest,
        ModelConfigResponse, ModelInferRequest, ModelMetadataRequest, ModelMetadataResponse,
        ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
        RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
        RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse,
        ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
        ServerReadyRequest, ServerReadyResponse, TraceSettingRequest, TraceSettingResponse,
        health::{HealthCheckRequest, HealthCheckResponse},
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        trace_setting_request::SettingValue,
    },
    refused, row, tenant,
};
use crate::models::{corpus, half};

/// The little-endian bytes of one element of onnxruntime's.
fn bytes_of(datatype: &str, value: &Value) -> Vec<u8> {
    let float = || value.as_f64().unwrap();
    let integer = || -> i128 {
        let number = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
        number.unwrap_or_else(|| value.as_bool().unwrap().into())
    };
    match datatype {
        "FP16" => half(float()).to_le_bytes().to_vec(),
        "FP32" => (float() as f32).to_le_bytes().to_vec(),
        "FP64" => float().to_le_bytes().to_vec(),
        "BOOL" | "UINT8" | "INT8" => integer().to_le_bytes()[..1].to_vec(),
        "UINT16" | "INT16" => integer().to_le_bytes()[..2].to_vec(),
        "UINT32" | "INT32" => integer().to_le_bytes()[..4].to_vec(),
        "UINT64" | "INT64" => integer().to_le_bytes()[..8].to_vec(),
        "BYTES" => {
            let text = value.as_str().unwrap();
            [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
        }
        other => panic!("{other}"),
    }
}

/// The same elements as typed contents; `None` for the types that have none.
fn contents(datatype: &str, data: &[Value]) -> Option<InferTensorContents> {
    let int = |value: &Value| value.as_i64().unwrap();
    let uint = |value: &Value| value.as_u64().unwrap();
    let float = |value: &Value| value.as_f64().unwrap();
    let mut all = InferTensorContents::default();
    match datatype {
        "FP32" => all.fp32_contents = data.iter().map(|v| float(v) as f32).collect(),
        "FP64" => all.fp64_contents = data.iter().map(float).collect(),
        "BOOL" => all.bool_contents = data.iter().map(|v| v.as_bool().unwrap()).collect(),
        "INT8" | "INT16" | "INT32" => {
            all.int_contents = data.iter().map(|v| int(v).try_into().unwrap()).collect();
        }
        "INT64" => all.int64_contents = data.iter().map(int).collect(),
        "UINT8" | "UINT16" | "UINT32" => {
            all.uint_contents = data.iter().map(|v| uint(v).try_into().unwrap()).collect();
        }
        "UINT64" => all.uint64_contents = data.iter().map(uint).collect(),
        "BYTES" => {
            let texts = data.iter().map(|v| v.as_str().unwrap().as_bytes().to_vec().into());
            all.bytes_contents = texts.collect();
        }
        _ => return None,
    }
    Some(all)
}

/// A request of the corpus' case, raw and, where there is such a thing, typed.
fn requests(model: &str, inputs: &Value) -> Vec<ModelInferRequest> {
    let mut raw = ModelInferRequest { model_name: model.to_owned(), ..Default::default() };
    let mut typed = Some(raw.clone());
    for (name, spec) in inputs.as_object().unwrap() {
        let datatype = spec["datatype"].as_str().unwrap();
        let data = spec["data"].as_array().unwrap();
        let shape = spec["shape"].as_array().unwrap();
        let input = InferInputTensor {
            name: name.clone(),
            datatype: datatype.to_owned(),
            shape: shape.iter().map(|dim| dim.as_i64().unwrap()).collect(),
            ..Default::default()
        };
        let bytes: Vec<u8> = data.iter().flat_map(|value| bytes_of(datatype, value)).collect();
        raw.raw_input_contents.push(bytes.into());
        raw.inputs.push(input.clone());
        typed = typed.and_then(|mut typed| {
            typed
                .inputs
                .push(InferInputTensor { contents: Some(contents(datatype, data)?), ..input });
            Some(typed)
        });
    }
    [Some(raw), typed].into_iter().flatten().collect()
}

fn check_outputs(what: &str, client: &GrpcClient, request: &ModelInferRequest, case: &Value) {
    let response = match infer(client, request) {
        Ok(response) => response,
        Err(status) if case["error"] == true => {
            assert!([3, 13].contains(&status.code), "{what}: {status:?}");
            return;
        }
        Err(status) => panic!("{what}: {status:?}"),
    };
    assert_ne!(case["error"], true, "{what}");
    assert_eq!(response.outputs.len(), response.raw_output_contents.len(), "{what}");
    assert_eq!(response.outputs.len(), case["outputs"].as_object().unwrap().len(), "{what}");
    for (output, raw) in response.outputs.iter().zip(&response.raw_output_contents) {
        let spec = &case["outputs"][&output.name];
        assert_eq!(output.datatype, spec["datatype"], "{what}");
        assert_eq!(json!(output.shape), spec["shape"], "{what}");
        let data = spec["data"].as_array().unwrap();
        let theirs: Vec<u8> = data.iter().flat_map(|v| bytes_of(&output.datatype, v)).collect();
        if !["FP32", "FP64"].contains(&output.datatype.as_str()) {
            assert_eq!(raw, &theirs, "{what}");
            continue;
        }
        let width = theirs.len() / data.len().max(1);
        assert_eq!(raw.len(), theirs.len(), "{what}");
        for (ours, theirs) in raw.chunks(width.max(1)).zip(data) {
            let ours = match width {
                4 => f32::from_le_bytes(ours.try_into().unwrap()).into(),
                _ => f64::from_le_bytes(ours.try_into().unwrap()),
            };
            let theirs = theirs.as_f64().unwrap();
            assert!((ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0), "{what}: {ours}");
        }
    }
}

#[test]
fn every_datatype_answers_as_onnxruntime_does_raw_and_typed() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    let client = client(&server, &tenant);
    let (mut raw, mut typed) = (0, 0);
    for entry in corpus().iter().filter(|entry| entry["loads"] == true) {
        let file = entry["file"].as_str().unwrap();
        if file == "slow.onnx" {
            continue; // It is for those who leave before the answer.
        }
        let name = file.trim_end_matches(".onnx");
        tenant.put_model(name, &model(file)).expect(201);
        let cases = entry["cases"].as_array().unwrap();
        for (index, case) in cases.iter().enumerate() {
            let mut forms = requests(name, &case["inputs"]);
            if case["error"] == true {
                // A model that panics three times in a row is taken out of service.
                forms.truncate(1);
                forms.extend(requests(name, &cases[0]["inputs"]).into_iter().take(1));
                check_outputs(&format!("{file}, case {index}"), &client, &forms[0], case);
                check_outputs(&format!("{file}, after {index}"), &client, &forms[1], &cases[0]);
                continue;
            }
            for (form, request) in forms.iter().enumerate() {
                check_outputs(
                    &format!("{file}, case {index}, form {form}"),
                    &client,
                    request,
                    case,
                );
                *[&mut raw, &mut typed][form] += 1;
            }
        }
    }
    assert!(raw > 60 && typed > 55, "{raw} raw, {typed} typed");
}

#[test]
fn what_is_said_of_the_server_needs_no_key() {
    let server = Server::start();
    let client = server.grpc();
    let live: ServerLiveResponse =
        client.unary(&inference("ServerLive"), &ServerLiveRequest {}).unwrap();
    let ready: ServerReadyResponse =
        client.unary(&inference("ServerReady"), &ServerReadyRequest {}).unwrap();
    assert!(live.live && ready.ready);
    let metadata: ServerMetadataResponse =
        client.unary(&inference("ServerMetadata"), &ServerMetadataRequest {}).unwrap();
    assert_eq!(metadata.name, "sandpiper");
    let check = |service: &str| {
        let question = HealthCheckRequest { service: service.to_owned() };
        client.unary::<HealthCheckResponse>("/grpc.health.v1.Health/Check", &question)
    };
    assert_eq!(check("").unwrap().status, 1);
    assert_eq!(check("inference.GRPCInferenceService").unwrap().status, 1);
    refused(check("nothing"), code::NOT_FOUND);
}

#[test]
fn an_answer_tells_the_model_the_version_and_the_id() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    tenant.put_model("mul-add", &model("linear-batch.onnx")).expect(201);
    let client = client(&server, &tenant);
    let request = ModelInferRequest {
        id: "ünïque-7".to_owned(),
        model_version: "1".to_owned(),
        outputs: vec![InferRequestedOutputTensor { name: "y".to_owned(), ..Default::default() }],
        ..row([1.0, 2.0, 3.0])
    };
    let response = infer(&client, &request).unwrap();
    assert_eq!((&*response.model_name, &*response.model_version), ("mul-add", "1"));
    assert_eq!(response.id, request.id);
    assert_eq!(floats(&response), [3.0, 6.0, 9.0]);
    // Without a version it is the newest, which takes four columns.
    let newest = ModelInferRequest { model_version: String::new(), ..request };
    refused(infer(&client, &newest), code::INVALID_ARGUMENT);
}

#[test]
fn a_model_tells_of_itself() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let name = "mul-add".to_owned();
    let question = ModelMetadataRequest { name: name.clone(), ..Default::default() };
    let metadata: ModelMetadataResponse =
        client.unary(&inference("ModelMetadata"), &question).unwrap();
    assert_eq!((&*metadata.name, &metadata.versions[..]), ("mul-add", &["1".to_owned()][..]));
    let input = &metadata.inputs[0];
    assert_eq!((&*input.name, &*input.datatype, &input.shape[..]), ("x", "FP32", &[-1, 3][..]));
    let question = ModelConfigRequest { name: name.clone(), ..Default::default() };
    let config: ModelConfigResponse = client.unary(&inference("ModelConfig"), &question).unwrap();
    let config = config.config.unwrap();
    assert_eq!(config.name, "mul-add");
    // TYPE_FP32; without its first dimension where the model is batched.
    assert_eq!(config.input[0].data_type, 11);
    let dims: &[i64] = if config.max_batch_size > 0 { &[3] } else { &[-1, 3] };
    assert_eq!(config.input[0].dims, dims);
    infer(&client, &row([0.0; 3])).unwrap();
    let question = ModelStatisticsRequest { name, ..Default::default() };
    let stats: ModelStatisticsResponse =
        client.unary(&inference("ModelStatistics"), &question).unwrap();
    let stats = &stats.model_stats[0];
    assert_eq!((stats.inference_count, stats.execution_count), (1, 1));
    assert_eq!(stats.inference_stats.unwrap().success.unwrap().count, 1);
    assert_eq!(stats.batch_stats[0].batch_size, 1);
}

#[test]
fn models_are_loaded_and_unloaded_as_both_protocols_say() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let ready = || {
        let question = ModelReadyRequest { name: "mul-add".to_owned(), ..Default::default() };
        let answer: ModelReadyResponse = client.unary(&inference("ModelReady"), &question).unwrap();
        answer.ready
    };
    let index = |ready| {
        let question = RepositoryIndexRequest { ready, ..Default::default() };
        let index: RepositoryIndexResponse =
            client.unary(&inference("RepositoryIndex"), &question).unwrap();
        index.models.into_iter().map(|m| (m.name, m.version, m.state)).collect::<Vec<_>>()
    };
    let entry = |state: &str| ("mul-add".to_owned(), "1".to_owned(), state.to_owned());
    // Triton's clients name the model in field 2, KServe's in field 1.
    for (repository_name, model_name) in [("", "mul-add"), ("mul-add", "")] {
        assert!(ready());
        assert_eq!(index(true), [entry("READY")]);
        let question = RepositoryModelUnloadRequest {
            repository_name: repository_name.to_owned(),
            model_name: model_name.to_owned(),
            ..Default::default()
        };
        let unloaded: RepositoryModelUnloadResponse =
            client.unary(&inference("RepositoryModelUnload"), &question).unwrap();
        assert_eq!((&*unloaded.model_name, unloaded.is_unloaded), ("mul-add", true));
        assert!(!ready());
        assert_eq!((index(true), index(false)), (vec![], vec![entry("UNAVAILABLE")]));
        let status = infer(&client, &row([0.0; 3])).unwrap_err();
        assert_eq!(status.code, code::UNAVAILABLE, "{status:?}");
        assert!(status.metadata.contains_key("grpc-status-details-bin"), "{status:?}");
        let question = RepositoryModelLoadRequest {
            repository_name: repository_name.to_owned(),
            model_name: model_name.to_owned(),
            ..Default::default()
        };
        let loaded: RepositoryModelLoadResponse =
            client.unary(&inference("RepositoryModelLoad"), &question).unwrap();
        assert_eq!((&*loaded.model_name, loaded.is_loaded), ("mul-add", true));
        infer(&client, &row([0.0; 3])).unwrap();
    }
}

#[test]
fn settings_can_be_read_and_not_changed() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let traces: TraceSettingResponse =
        client.unary(&inference("TraceSetting"), &TraceSettingRequest::default()).unwrap();
    assert_eq!(traces.settings["trace_level"].value, ["OFF"]);
    let logs: LogSettingsResponse =
        client.unary(&inference("LogSettings"), &LogSettingsRequest::default()).unwrap();
    assert!(logs.settings.contains_key("log_info"));
    let value = SettingValue { value: vec!["TIMESTAMPS".to_owned()] };
    let change = TraceSettingRequest {
        settings: [("trace_level".to_owned(), value)].into(),
        ..Default::default()
    };
    let changed = client.unary::<TraceSettingResponse>(&inference("TraceSetting"), &change);
    refused(changed, code::UNIMPLEMENTED);
}

#[test]
fn the_operator_names_the_tenant_and_a_shared_model_its_owner() {
    let server = Server::start();
    let owner = tenant(&server, "owner");
    let other = server.tenant("other", "dedicated");
    let operator = server.grpc().with_key(OPERATOR_KEY);
    refused(infer(&operator, &row([0.0; 3])), code::INVALID_ARGUMENT);
    let operator = operator.with_header("x-sandpiper-tenant", "owner");
    assert_eq!(floats(&infer(&operator, &row([0.0; 3])).unwrap()), [1.0, 2.0, 3.0]);
    let other = client(&server, &other);
    let shared = ModelInferRequest { model_name: "owner/mul-add".to_owned(), ..row([0.0; 3]) };
    refused(infer(&other, &shared), code::NOT_FOUND);
    let grants = json!({ "tenants": ["other"] });
    owner.client.put_json("/api/v1/models/mul-add/grants", &grants).expect(200);
    let response = infer(&other, &shared).unwrap();
    assert_eq!(
        (response.model_name.as_str(), floats(&response)),
        ("owner/mul-add", vec![1.0, 2.0, 3.0])
    );
}
