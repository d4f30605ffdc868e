//! What requests may take of the node's memory before anybody has answered them.

use bytes::Bytes;
use prost::Message;
use sandpiper_tests::{GrpcCall, GrpcClient, Server, frame, model, until};

use super::{
    client, code, infer, inference,
    message::{
        InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
        model_infer_request::InferInputTensor,
    },
    refused, row, tenant, with_ballast,
};
use crate::oip_bad_input::wide;

fn numbers(count: usize) -> Bytes {
    let contents = InferTensorContents { int64_contents: vec![0; count], ..Default::default() };
    let input = InferInputTensor {
        name: "x".to_owned(),
        datatype: "INT64".to_owned(),
        shape: vec![count as i64],
        contents: Some(contents),
        ..Default::default()
    };
    let model_name = "mul-add".to_owned();
    let request = ModelInferRequest { model_name, inputs: vec![input], ..Default::default() };
    frame(&request.encode_to_vec())
}

#[test]
fn packed_numbers_are_refused_before_they_grow() {
    let mut server = Server::start();
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let before = server.memory_peak_mib();
    // 40 MiB of zeros of a byte each would be 320 MiB; `dedicated` has 256 MiB of tensors.
    let answer =
        client.unary_bytes::<ModelInferResponse>(&inference("ModelInfer"), numbers(40 << 20));
    assert!(refused(answer, code::RESOURCE_EXHAUSTED).contains("tensors"));
    let peak = server.memory_peak_mib();
    assert!(peak < before + 160, "the server went from {before} to {peak} MiB");
    infer(&client, &row([0.0; 3])).unwrap();
    server.still_runs();
}

#[test]
fn what_does_not_fit_its_model_is_refused_before_it_grows() {
    let mut server = Server::with_settings("protocol_mib = 4096");
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let before = server.memory_peak_mib();
    // 24 MiB of zeros of a byte each would be 192 MiB, which `dedicated` may have.
    let message = numbers(24 << 20);
    let answer =
        client.unary_bytes::<ModelInferResponse>(&inference("ModelInfer"), message.clone());
    let text = refused(answer, code::INVALID_ARGUMENT);
    assert!(text.contains("is INT64; the model takes FP32"), "{text}");
    // In a stream, the answer has the id that is behind the elements.
    let mut call = client.open(&inference("ModelStreamInfer"));
    let end = ModelInferRequest { id: "mine".to_owned(), ..Default::default() };
    call.send_bytes(frame(&[&message[5..], &end.encode_to_vec()].concat()), false);
    let answer = ModelStreamInferResponse::decode(call.message().unwrap()).unwrap();
    assert!(answer.error_message.contains("the model takes FP32"), "{answer:?}");
    assert_eq!(answer.infer_response.unwrap().id, "mine");
    drop(call);
    let peak = server.memory_peak_mib();
    assert!(peak < before + 128, "the server went from {before} to {peak} MiB");
    infer(&client, &row([0.0; 3])).unwrap();
    server.still_runs();
}

#[test]
fn a_message_that_unpacks_beyond_the_limit_is_refused() {
    let mut server = Server::start();
    let free = server.tenant("acme", "free");
    free.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let script = "import gzip, sys; sys.stdout.buffer.write(gzip.compress(bytes(64 << 20)))";
    let output = std::process::Command::new("python3").args(["-c", script]).output().unwrap();
    assert!(output.status.success() && output.stdout.len() < 1 << 17);
    let mut bomb = frame(&output.stdout).to_vec();
    bomb[0] = 1;
    let client = client(&server, &free);
    let before = server.memory_peak_mib();
    let packed = super::client(&server, &free).with_header("grpc-encoding", "gzip");
    let answer = packed.unary_bytes::<ModelInferResponse>(&inference("ModelInfer"), bomb.into());
    let text = refused(answer, code::RESOURCE_EXHAUSTED);
    assert!(text.contains("1048576"), "{text}");
    let peak = server.memory_peak_mib();
    assert!(peak < before + 32, "the server went from {before} to {peak} MiB");
    infer(&client, &row([0.0; 3])).unwrap();
    server.still_runs();
}

#[test]
fn empty_inputs_are_charged_with_what_they_become() {
    // A tenant has 16 MiB.
    let mut server = Server::with_settings("protocol_mib = 32");
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    // 64 KiB that would be 30 MiB of lists as they grow.
    let bomb = Bytes::from([5 << 3 | 2, 0].repeat(1 << 15));
    let answer = client.unary_bytes::<ModelInferResponse>(&inference("ModelInfer"), frame(&bomb));
    let text = refused(answer, code::RESOURCE_EXHAUSTED);
    assert!(text.contains("more memory than a tenant may have"), "{text}");
    infer(&client, &row([0.0; 3])).unwrap();
    server.still_runs();
}

/// Sends most of a message, and keeps the rest.
fn hold(client: &GrpcClient, bytes: usize) -> GrpcCall<'_> {
    let mut message = frame(&vec![0; bytes + (256 << 10)]).to_vec();
    message.truncate(bytes);
    let mut call = client.open(&inference("ModelInfer"));
    call.send_bytes(message.into(), false);
    call
}

#[test]
fn a_tenant_holds_half_of_the_nodes_budget_and_all_hold_no_more_than_the_whole() {
    let mut server = Server::with_settings("protocol_mib = 8");
    let tenants = ["one", "two", "three"].map(|name| tenant(&server, name));
    let clients = tenants.each_ref().map(|tenant| client(&server, tenant));
    let ask = |client: &GrpcClient| infer(client, &with_ballast(row([0.0; 3]), 1 << 19));
    ask(&clients[0]).unwrap();
    let first = hold(&clients[0], 7 << 19);
    // A tenant that has too much at once is told so, and the others are not.
    until("the tenant's part is full", || {
        ask(&clients[0]).is_err_and(|status| status.code == code::RESOURCE_EXHAUSTED).then_some(())
    });
    ask(&clients[1]).unwrap();
    let second = hold(&clients[1], 7 << 19);
    until("the node is full", || {
        ask(&clients[2]).is_err_and(|status| status.code == code::UNAVAILABLE).then_some(())
    });
    infer(&clients[2], &row([0.0; 3])).unwrap();
    drop((first, second));
    until("what was held is free", || clients.iter().all(|c| ask(c).is_ok()).then_some(()));
    server.still_runs();
}

#[test]
fn outputs_beyond_the_tier_are_refused_and_those_at_its_limit_are_not() {
    let mut server = Server::start();
    // `free` has 8 MiB of tensors.
    let free = server.tenant("acme", "free");
    free.put_model("wide", &wide()).expect(201);
    let client = client(&server, &free);
    let ask = |rows: usize| {
        let mut request = row([0.0; 3]);
        request.model_name = "wide".to_owned();
        request.inputs[0].shape = vec![rows as i64, 1];
        request.raw_input_contents = vec![vec![0; rows * 4].into()];
        request
    };
    let before = server.memory_peak_mib();
    let text = refused(infer(&client, &ask(2049)), code::RESOURCE_EXHAUSTED);
    assert!(text.contains("8 MiB of tensors"), "{text}");
    let mut call = client.open(&inference("ModelStreamInfer"));
    call.send(&ask(2049));
    let answer = ModelStreamInferResponse::decode(call.message().unwrap()).unwrap();
    assert!(answer.error_message.contains("8 MiB of tensors"), "{}", answer.error_message);
    let peak = server.memory_peak_mib();
    assert!(peak < before + 64, "the server went from {before} to {peak} MiB");
    call.send(&ask(2048));
    let answer = ModelStreamInferResponse::decode(call.message().unwrap()).unwrap();
    assert_eq!(answer.error_message, "");
    assert_eq!(answer.infer_response.unwrap().raw_output_contents[0].len(), 8 << 20);
    assert_eq!(infer(&client, &ask(2048)).unwrap().raw_output_contents[0].len(), 8 << 20);
    server.still_runs();
}

#[test]
fn a_stream_outlives_messages_that_find_no_room() {
    let server = Server::with_settings("protocol_mib = 8");
    let tenant = tenant(&server, "acme");
    let client = client(&server, &tenant);
    let mut call = client.open(&inference("ModelStreamInfer"));
    let mut ask = |bytes: usize| {
        call.send(&with_ballast(row([0.0; 3]), bytes));
        let answer = ModelStreamInferResponse::decode(call.message().expect("an answer")).unwrap();
        answer.error_message
    };
    // More than a tenant may ever have; as it comes, and once it is decoded.
    for bytes in [5 << 20, 3 << 20] {
        let text = ask(bytes);
        assert!(text.contains("more memory than a tenant may have"), "{text}");
        assert_eq!(ask(1 << 19), "");
    }
    // More than the tenant has left.
    let held = hold(&client, 7 << 19);
    until("the tenant's part is full", || ask(1 << 19).contains("all of its memory").then_some(()));
    assert_eq!(ask(0), "");
    drop(held);
    until("what was held is free", || ask(1 << 19).is_empty().then_some(()));
}

#[test]
fn messages_of_a_stream_that_are_none_count_against_the_rate() {
    let server = Server::start();
    let free = server.tenant("acme", "free");
    free.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let client = client(&server, &free);
    let mut call = client.open(&inference("ModelStreamInfer"));
    // A burst of 40 and 20 each second.
    let mut next = || {
        call.send_bytes(frame(b"\xff\xff\xff"), false);
        let answer = call.message().expect("an answer");
        ModelStreamInferResponse::decode(answer).unwrap().error_message
    };
    assert!(next().contains("ModelInferRequest"));
    assert!((0..2000).any(|_| next().contains("faster than its limit")));
}
