//! Runs whatever model the caller names on whatever tensors the caller sends, so that a test can compare a model's
//! answers byte for byte.
//!
//! In:  `{"model": "name", "inputs":  [{"name": "x", "type": "FP32", "dims": [1, 3], "bytes": [0, …]}]}`
//! Out: `{"outputs": [{"name": "y", "type": "FP32", "dims": [1, 3], "bytes": [0, …]}]}`, in the model's order.
//!
//! Types are those of `wasi:nn`: FP16 FP32 FP64 BF16 U8 I32 I64. Bytes are little-endian.

use sandpiper_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Question {
    model: String,
    inputs: Vec<Named>,
}

#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
    r#type: String,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

#[derive(Serialize)]
struct Answer {
    outputs: Vec<Named>,
}

const TYPES: [(&str, DataType); 7] = [
    ("FP16", DataType::F16),
    ("FP32", DataType::F32),
    ("FP64", DataType::F64),
    ("BF16", DataType::BF16),
    ("U8", DataType::U8),
    ("I32", DataType::I32),
    ("I64", DataType::I64),
];

#[handler]
fn infer(request: Request) -> Result<Response> {
    let question: Question = request.json()?;
    let mut inputs = Vec::new();
    for input in question.inputs {
        let data_type = TYPES.iter().find(|(name, _)| *name == input.r#type);
        let (_, data_type) = data_type.ok_or_else(|| Error::bad_request("no such type"))?;
        inputs.push((input.name, Tensor::raw(input.dims, *data_type, input.bytes)));
    }
    let outputs = Model::named(&question.model)?.run(inputs)?;
    let mut named = Vec::new();
    for name in outputs.names() {
        let tensor = outputs.get(name)?;
        let ty = TYPES.iter().find(|(_, data_type)| *data_type == tensor.data_type());
        named.push(Named {
            name: name.to_owned(),
            r#type: ty.map_or("?", |(name, _)| *name).to_owned(),
            dims: tensor.dims().to_vec(),
            bytes: tensor.bytes().to_vec(),
        });
    }
    Response::json(&Answer { outputs: named })
}
