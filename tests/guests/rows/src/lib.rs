//! Answers the inference request of the Open Inference Protocol from inside a sandbox, so that it can be compared with
//! servers that speak it: the same body in, the same values out. The path names the model.
//!
//! Inputs are FP32, or INT32 below 2^24; outputs are FP32 or INT64: what the examples' models have.

use sandpiper_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Question<'a> {
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: &'a str,
    shape: Vec<usize>,
    datatype: &'a str,
    data: Vec<f32>,
}

#[derive(Serialize)]
struct Answer<'a> {
    model_name: &'a str,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    data: Data,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

#[handler]
fn rows(request: Request) -> Result<Response> {
    let model = request.path().trim_matches('/');
    let question: Question<'_> = request.json()?;
    let mut inputs = Vec::new();
    for Input { name, shape, datatype, data } in question.inputs {
        let tensor = match datatype {
            "FP32" => Tensor::f32(shape, &data),
            "INT32" => {
                Tensor::i32(shape, &data.iter().map(|value| *value as i32).collect::<Vec<_>>())
            }
            _ => return Err(Error::bad_request("inputs are FP32 or INT32")),
        };
        inputs.push((name, tensor));
    }
    let outputs = Model::named(model)?.run(inputs)?;
    let outputs = outputs.iter().map(|(name, tensor)| {
        let (datatype, data) = match tensor.data_type() {
            DataType::I64 => ("INT64", Data::I64(tensor.to_i64()?)),
            _ => ("FP32", Data::F32(tensor.to_f32()?)),
        };
        Ok(Output { name, datatype, shape: tensor.dims(), data })
    });
    Response::json(&Answer { model_name: model, outputs: outputs.collect::<Result<_>>()? })
}
