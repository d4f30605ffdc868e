//! Streams, times and channels that live long.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use sandpiper_tests::{GrpcCall, GrpcClient, Server, frame, model, until};

use super::{
    client, code, floats, infer, inference,
    message::{
        ModelInferRequest, ModelStreamInferResponse,
        health::{HealthCheckRequest, HealthCheckResponse},
        infer_parameter::ParameterChoice,
        model_infer_request::InferInputTensor,
    },
    parameter, refused, row, tenant,
};

fn next(call: &mut GrpcCall<'_>) -> ModelStreamInferResponse {
    ModelStreamInferResponse::decode(call.message().expect("an answer")).unwrap()
}

fn numbered(number: usize) -> ModelInferRequest {
    ModelInferRequest { id: number.to_string(), ..row([number as f32, 0.0, 0.0]) }
}

#[test]
fn a_stream_answers_in_order_and_survives_bad_requests() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let mut call = client.open(&inference("ModelStreamInfer"));
    for number in 0..100 {
        match number % 10 {
            3 => {
                call.send(&ModelInferRequest { model_name: "none".to_owned(), ..numbered(number) })
            }
            7 => call.send_bytes(frame(b"\xff\xff\xff"), false),
            _ => call.send(&numbered(number)),
        }
    }
    call.finish();
    for number in 0..100 {
        let answer = next(&mut call);
        let response = answer.infer_response.expect("every answer has a response");
        let id = number.to_string();
        match number % 10 {
            3 => {
                assert!(answer.error_message.contains("`none`"), "{}", answer.error_message);
                assert_eq!(response.id, id);
            }
            7 => assert!(
                answer.error_message.contains("ModelInferRequest"),
                "{}",
                answer.error_message
            ),
            _ => {
                assert_eq!((answer.error_message.as_str(), response.id.as_str()), ("", &*id));
                assert_eq!(floats(&response), [2.0 * number as f32 + 1.0, 2.0, 3.0]);
            }
        }
    }
    assert_eq!(call.message(), None);
    assert_eq!(call.end().code, 0);
}

#[test]
fn a_stream_answers_before_it_ends_and_marks_last_answers_when_asked() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let mut call = client.open(&inference("ModelStreamInfer"));
    call.send(&numbered(1));
    assert!(next(&mut call).infer_response.unwrap().parameters.is_empty());
    let mut asked = numbered(2);
    let key = "triton_enable_empty_final_response".to_owned();
    asked.parameters.insert(key, parameter(ParameterChoice::BoolParam(true)));
    call.send(&asked);
    let response = next(&mut call).infer_response.unwrap();
    let mark = response.parameters["triton_final_response"].parameter_choice.clone();
    assert_eq!(mark, Some(ParameterChoice::BoolParam(true)));
}

#[test]
fn a_key_that_is_revoked_ends_its_streams_too() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let path = "/api/v1/tenants/acme/keys";
    let key = tenant.client.post_json(path, &serde_json::json!({})).expect(201).json();
    let client = server.grpc().with_key(key["key"].as_str().unwrap());
    let mut call = client.open(&inference("ModelStreamInfer"));
    call.send(&numbered(1));
    assert_eq!(next(&mut call).error_message, "");
    let id = key["id"].as_str().unwrap();
    tenant.client.delete(&format!("{path}/{id}")).expect(204);
    call.send(&numbered(2));
    call.send(&numbered(3));
    assert_eq!(call.message(), None);
    assert_eq!(call.end().code, code::UNAUTHENTICATED);
}

/// A stream that has had one answer.
fn opened(client: &GrpcClient) -> GrpcCall<'_> {
    let mut call = client.open(&inference("ModelStreamInfer"));
    call.send(&numbered(1));
    assert_eq!(next(&mut call).error_message, "");
    call
}

#[test]
fn a_stream_that_is_idle_ends_with_its_key_too() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let path = "/api/v1/tenants/acme/keys";
    let key = tenant.client.post_json(path, &serde_json::json!({})).expect(201).json();
    let (gone, kept) =
        (server.grpc().with_key(key["key"].as_str().unwrap()), client(&server, &tenant));
    let (mut gone, mut kept) = (opened(&gone), opened(&kept));
    tenant.client.delete(&format!("{path}/{}", key["id"].as_str().unwrap())).expect(204);
    assert_eq!(gone.end().code, code::UNAUTHENTICATED);
    kept.send(&numbered(2));
    assert_eq!(next(&mut kept).infer_response.unwrap().id, "2");
}

#[test]
fn a_tenant_has_no_more_streams_than_its_concurrency() {
    let server = Server::start();
    let free = server.tenant("acme", "free");
    free.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let client = client(&server, &free);
    // `free` has a concurrency of 4.
    let mut open: Vec<GrpcCall<'_>> = Vec::new();
    for number in 0..4 {
        let mut call = client.open(&inference("ModelStreamInfer"));
        call.send(&numbered(number));
        assert_eq!(next(&mut call).error_message, "");
        open.push(call);
    }
    let mut fifth = client.open(&inference("ModelStreamInfer"));
    assert_eq!(fifth.end().code, code::RESOURCE_EXHAUSTED);
    open.pop();
    until("the place of the stream that was dropped is free", || {
        let mut call = client.open(&inference("ModelStreamInfer"));
        call.send(&numbered(5));
        call.finish();
        (call.end().code == 0).then_some(())
    });
}

#[test]
fn a_channel_and_a_stream_may_be_idle_for_long() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let mut call = client.open(&inference("ModelStreamInfer"));
    call.send(&numbered(1));
    assert_eq!(next(&mut call).error_message, "");
    // Longer than a client may take for the first bytes of a connection.
    client.idle(Duration::from_secs(12));
    call.send(&numbered(2));
    assert_eq!(next(&mut call).infer_response.unwrap().id, "2");
    infer(&client, &row([0.0; 3])).unwrap();
}

#[test]
fn open_streams_do_not_hold_up_the_end_of_the_server() {
    let mut server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let mut stream = client.open(&inference("ModelStreamInfer"));
    stream.send(&numbered(1));
    assert_eq!(next(&mut stream).error_message, "");
    let mut watch = client.open("/grpc.health.v1.Health/Watch");
    watch.send(&HealthCheckRequest::default());
    watch.finish();
    let status = |call: &mut GrpcCall<'_>| {
        HealthCheckResponse::decode(call.message().expect("a state")).unwrap().status
    };
    assert_eq!(status(&mut watch), 1);
    let ended = server.stop();
    assert!(ended.success(), "{ended}");
    assert!(!server.log().contains("still running at the end of the drain"), "{}", server.log());
    assert_eq!(status(&mut watch), 2);
    assert_eq!(watch.end().code, 0);
    assert_eq!(stream.end().code, code::UNAVAILABLE);
}

fn slow(tenant: &sandpiper_tests::Tenant) -> ModelInferRequest {
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    let input = InferInputTensor {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 1],
        ..Default::default()
    };
    ModelInferRequest {
        model_name: "slow".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from_static(&[0, 0, 0x80, 0x3f])],
        ..Default::default()
    }
}

#[test]
fn the_nearer_of_two_deadlines_counts() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let slow = slow(&tenant);
    let mut timed = slow.clone();
    let ms = parameter(ParameterChoice::Int64Param(1000));
    timed.parameters.insert("timeout".to_owned(), ms);
    let patient = client(&server, &tenant).with_header("grpc-timeout", "100S");
    let hasty = client(&server, &tenant).with_header("grpc-timeout", "1m");
    for (client, request) in [(&patient, &timed), (&hasty, &slow)] {
        let status = infer(client, request).unwrap_err();
        // What can be foreseen is refused at once.
        assert!([code::DEADLINE_EXCEEDED, code::UNAVAILABLE].contains(&status.code), "{status:?}");
    }
    let odd = client(&server, &tenant).with_header("grpc-timeout", "soon");
    refused(infer(&odd, &row([0.0; 3])), code::INVALID_ARGUMENT);
    infer(&patient, &row([0.0; 3])).unwrap();
}

#[test]
fn a_call_that_is_cancelled_leaves_the_queue() {
    let server = Server::with_settings("inference_threads = 1");
    let tenant = tenant(&server, "acme");
    let slow = slow(&tenant);
    let client = client(&server, &tenant);
    let depth = || server.metrics().sum("sandpiper_inference_queue_depth", &[]);
    let start = || {
        let mut call = client.open(&inference("ModelInfer"));
        call.send(&slow);
        call.finish();
        call
    };
    let running = start();
    let waiting: Vec<_> = (0..6).map(|_| start()).collect();
    until("some wait", || (depth() >= 1.0).then_some(()));
    drop((waiting, running));
    until("the queue is empty", || (depth() == 0.0).then_some(()));
    // What runs is stopped between two nodes of the graph, so that this is soon answered.
    infer(&client, &row([0.0; 3])).unwrap();
    let runs = server.metrics().sum("nv_inference_count", &[("model", "slow")]);
    assert!(runs < 7.0, "{runs} of the calls that left have run");
    until("those that left are counted", || {
        let labels = [("model", "slow"), ("reason", "CANCELED")];
        let cancelled = server.metrics().sum("nv_inference_request_failure", &labels);
        (cancelled >= 2.0).then_some(())
    });
}
