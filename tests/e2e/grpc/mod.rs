//! The inference protocol over gRPC. The messages are the server's own; `tests/conformance` asks with those of others.

use sandpiper_tests::{GrpcClient, GrpcStatus, Server, Tenant, model};

#[allow(dead_code, unused_imports, reason = "not every message is in a test")]
#[path = "../../../runtime/server/src/oip/grpc/message/mod.rs"]
mod message;

mod bad_input;
mod budget;
mod calls;
mod loads;
mod reading;
mod slow;
mod streams;

use message::model_infer_request::InferInputTensor;
use message::{
    InferParameter, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
};

/// gRPC's codes.
mod code {
    pub(super) const INVALID_ARGUMENT: u32 = 3;
    pub(super) const DEADLINE_EXCEEDED: u32 = 4;
    pub(super) const NOT_FOUND: u32 = 5;
    pub(super) const PERMISSION_DENIED: u32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(super) const UNIMPLEMENTED: u32 = 12;
    pub(super) const UNAVAILABLE: u32 = 14;
    pub(super) const UNAUTHENTICATED: u32 = 16;
}

fn inference(method: &str) -> String {
    format!("/inference.GRPCInferenceService/{method}")
}

/// A tenant with `mul-add`: y = 2x + [1, 2, 3].
fn tenant(server: &Server, name: &str) -> Tenant {
    let tenant = server.tenant(name, "dedicated");
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    tenant
}

fn client(server: &Server, tenant: &Tenant) -> GrpcClient {
    server.grpc().with_key(&tenant.key)
}

/// One row of `mul-add`, as raw bytes.
fn row(values: [f32; 3]) -> ModelInferRequest {
    let input = InferInputTensor {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 3],
        ..Default::default()
    };
    let raw: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    ModelInferRequest {
        model_name: "mul-add".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    }
}

/// The same with so many bytes that say nothing.
fn with_ballast(request: ModelInferRequest, bytes: usize) -> ModelInferRequest {
    let ballast = parameter(ParameterChoice::StringParam("x".repeat(bytes)));
    ModelInferRequest { parameters: [("ballast".to_owned(), ballast)].into(), ..request }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn infer(
    client: &GrpcClient,
    request: &ModelInferRequest,
) -> Result<ModelInferResponse, GrpcStatus> {
    client.unary(&inference("ModelInfer"), request)
}

#[track_caller]
fn floats(response: &ModelInferResponse) -> Vec<f32> {
    let raw = &response.raw_output_contents[0];
    raw.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Fails unless the call was refused with this code and a text that says something.
#[track_caller]
fn refused<A: std::fmt::Debug>(answer: Result<A, GrpcStatus>, code: u32) -> String {
    let status = answer.expect_err("the call is refused");
    assert_eq!(status.code, code, "{status:?}");
    assert!(!status.message.is_empty(), "{status:?}");
    status.message
}
