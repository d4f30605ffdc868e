//! The reader of inference requests: JSON with raw tensors behind it, and raw bodies. It must neither panic nor hold
//! more than a small multiple of what it was given.
//!
//! The files of the reader are compiled in as they are, without the server around them, so that a build takes seconds.
#![no_main]
#![allow(dead_code, unused_imports)]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sandpiper_domain::{DataType, ModelSignature, TensorSpec};

#[path = "../../../runtime/server/src/oip/error.rs"]
mod error;
#[path = "../../../runtime/server/src/oip/json.rs"]
mod json;
#[path = "../../../runtime/server/src/oip/narrow.rs"]
mod narrow;
#[path = "../../../runtime/server/src/oip/request.rs"]
mod request;
#[path = "../../../runtime/server/src/oip/tensor.rs"]
mod tensor;

use error::OipError;
use request::InferRequest;

/// The first two bytes say where the JSON ends; all ones says that nobody said.
fn read(input: &[u8]) {
    let Some((length, body)) = input.split_first_chunk::<2>() else { return };
    let body = Bytes::copy_from_slice(body);
    for signature in signatures() {
        match u16::from_le_bytes(*length) {
            0 => check(&body, request::read_raw(&body, &signature)),
            u16::MAX => check(&body, request::read(&body, None, &signature)),
            length => check(&body, request::read(&body, Some(usize::from(length)), &signature)),
        }
    }
}

/// What is read fits together, and holds no more than eight bytes for each that was sent.
fn check(body: &[u8], read: Result<InferRequest, OipError>) {
    match read {
        Ok(request) => {
            let tensors = request.inputs.iter().map(|input| &input.tensor);
            let bytes: usize = tensors.map(|tensor| tensor.data().len()).sum();
            assert!(bytes <= body.len() * 8);
        }
        Err(error) => assert!(error.to_string().len() < 4_000),
    }
}

fn signatures() -> Vec<ModelSignature> {
    use DataType::{Bool, F16, F32, F64, I8, I16, I64, U64};

    let shapes = [vec![-1, 4], vec![-1, -1, 3], vec![2, 2], vec![-1]];
    let types = [F32, F16, F64, I8, I64, U64, Bool, DataType::Bytes];
    let input = |shape: &Vec<i64>, datatype: DataType| {
        let input = TensorSpec { name: "x".to_owned(), datatype, shape: shape.clone() };
        ModelSignature { inputs: vec![input], outputs: Vec::new() }
    };
    let alone = shapes.iter().flat_map(|shape| types.map(|datatype| input(shape, datatype)));
    let named = |(name, datatype, shape): (&str, DataType, [i64; 2])| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    };
    let inputs = [("a", I16, [2, 2]), ("b", F32, [2, 1])].map(named).to_vec();
    alone.chain([ModelSignature { inputs, outputs: Vec::new() }]).collect()
}

fuzz_target!(|input: &[u8]| read(input));
