//! Misusing `wasi:nn`, without the SDK's checks.

use std::{hint::black_box, mem};

use serde_json::{Value, json};

use self::bindings::wasi::nn::{
    errors::Error,
    graph::{self, ExecutionTarget, GraphEncoding},
    tensor::{Tensor, TensorType},
};
use crate::http::{Exchange, Query};

// Generated: calls across the component boundary are unsafe by nature.
#[allow(unsafe_code, dead_code, clippy::all, reason = "generated code")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../guest-sdk/wit", world: "ml", generate_all });
}

type Named = Vec<(String, Tensor)>;

pub(crate) fn small_tensor() -> Tensor {
    Tensor::new(&[1], TensorType::U8, &[0])
}

/// Runs `?model=` on the input that `?case=` describes. `?input=` and `?shape=1,1,8,8` say what
/// would be right.
pub(crate) fn tensor(exchange: Exchange, query: &Query) {
    let case = query.get("case").unwrap_or("ok");
    let answer = match case {
        "load-bytes" => {
            let builder = [vec![0x08, 0x07], vec![0x12, 0x00]];
            graph::load(&builder, GraphEncoding::Onnx, ExecutionTarget::Cpu)
                .map(|_| json!({ "loaded": true }))
        }
        "unknown-model" => run(query.get("model").unwrap_or("no-such-model"), Vec::new()),
        "many-tensors" => loop {
            let data = vec![0; 1 << 20];
            mem::forget(black_box(Tensor::new(&[1 << 20], TensorType::U8, &data)));
        },
        _ => match inputs(case, query) {
            Some(inputs) => run(query.get("model").unwrap_or("digits"), inputs),
            None => return exchange.respond(404, "text/plain", b"no such case"),
        },
    };
    exchange.json(&explain(answer));
}

/// Runs `?model=` once on zeros: `?input=` and `?shape=`, `?times=` to do it again.
pub(crate) fn slow_infer(exchange: Exchange, query: &Query) {
    let model = query.get("model").unwrap_or("digits");
    let mut answer = Ok(Value::Null);
    for _ in 0..query.number("times", 1) {
        answer = run(model, inputs("ok", query).unwrap_or_default());
        if answer.is_err() {
            break;
        }
    }
    exchange.json(&explain(answer));
}

fn inputs(case: &str, query: &Query) -> Option<Named> {
    let name = query.get("input").unwrap_or("image");
    let shape = query.get("shape").unwrap_or(if case == "oob-gather" { "1" } else { "1,1,8,8" });
    let shape: Vec<u32> = shape.split(',').filter_map(|dim| dim.parse().ok()).collect();
    let elements = shape.iter().map(|dim| *dim as usize).product::<usize>();
    let zeros = vec![0; 4 * elements];
    let f32s = |dims: &[u32], data: &[u8]| Tensor::new(dims, TensorType::Fp32, data);
    let one = |tensor| Some(vec![(name.to_owned(), tensor)]);
    match case {
        "ok" => one(f32s(&shape, &zeros)),
        "nan" => one(f32s(&shape, &f32::NAN.to_le_bytes().repeat(elements))),
        "wrong-length" => one(f32s(&shape, &zeros[..zeros.len() - 4])),
        "too-long" => one(f32s(&shape, &[&zeros[..], &[0; 4]].concat())),
        "half-an-element" => one(f32s(&shape, &zeros[..zeros.len() - 1])),
        "overflow-dims" => one(f32s(&[u32::MAX; 4], &[0; 16])),
        // The product is 2^66 bytes: 0 for those who multiply in 64 bits.
        "overflow-to-zero" => one(f32s(&[1 << 16; 4], &[])),
        "rank9" => one(f32s(&[1; 9], &[0; 4])),
        "rank-many" => one(f32s(&vec![1; 100_000], &[0; 4])),
        "zero-dim" => one(f32s(&[0, 1, 8, 8], &[])),
        "wrong-name" => Some(vec![("no-such-input".to_owned(), f32s(&shape, &zeros))]),
        "odd-name" => Some(vec![("\0\u{202e}\n".repeat(1000), f32s(&shape, &zeros))]),
        "wrong-shape" => one(f32s(&[3, 5], &[0; 60])),
        "wrong-type" => one(Tensor::new(&shape, TensorType::I64, &vec![0; 8 * elements])),
        "bf16" => one(Tensor::new(&shape, TensorType::Bf16, &vec![0; 2 * elements])),
        "missing-input" => Some(Vec::new()),
        "duplicate-input" => Some(vec![
            (name.to_owned(), f32s(&shape, &zeros)),
            (name.to_owned(), f32s(&shape, &zeros)),
        ]),
        "surplus-input" => Some(vec![
            (name.to_owned(), f32s(&shape, &zeros)),
            ("surplus".to_owned(), f32s(&shape, &zeros)),
        ]),
        "many-inputs" => Some((0..10_000).map(|n| (n.to_string(), f32s(&[1], &[0; 4]))).collect()),
        "oob-gather" => {
            let indices = query.number("index", 999_999).to_le_bytes().repeat(elements);
            let name = query.get("input").unwrap_or("indices").to_owned();
            Some(vec![(name, Tensor::new(&shape, TensorType::I64, &indices))])
        }
        _ => None,
    }
}

fn run(model: &str, inputs: Named) -> Result<Value, Error> {
    let context = graph::load_by_name(model)?.init_execution_context()?;
    let outputs = context.compute(inputs)?;
    let outputs: Vec<Value> = outputs
        .into_iter()
        .map(|(name, tensor)| {
            let data = tensor.data();
            json!({
                "name": name,
                "dims": tensor.dimensions(),
                "type": format!("{:?}", tensor.ty()).trim_start_matches("TensorType::").to_uppercase(),
                "bytes": data.len(),
            })
        })
        .collect();
    Ok(json!({ "outputs": outputs }))
}

fn explain(answer: Result<Value, Error>) -> Value {
    match answer {
        Ok(value) => value,
        Err(error) => {
            // `ErrorCode::InvalidArgument` -> `invalid-argument`
            let code = format!("{:?}", error.code());
            let code = code.trim_start_matches("ErrorCode::");
            let mut kebab = String::new();
            for letter in code.chars() {
                if letter.is_ascii_uppercase() && !kebab.is_empty() {
                    kebab.push('-');
                }
                kebab.push(letter.to_ascii_lowercase());
            }
            json!({ "error_code": kebab, "data": error.data() })
        }
    }
}
