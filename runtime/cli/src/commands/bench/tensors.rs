//! A request for a model, made from what the model says of its inputs.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};
use sandpiper_domain::DataType;
use serde_json::{Value, json};

use crate::{
    args::InputShape,
    commands::{rows, text},
    error::{CliError, Kind, Result},
    output::clean,
};

/// The body, and the length of its JSON where tensors follow as bytes.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) json_length: Option<usize>,
}

/// Far above what a server takes in one request.
const ELEMENTS_MAX: u64 = 64 * 1024 * 1024;
/// The same inputs in every run, so that runs can be compared.
const SEED: u64 = 1;

/// Makes the body of an inference request. Floats lie between 0 and 1; integers, which may be indices, are 0 or 1.
pub(super) fn request(metadata: &Value, shapes: &[InputShape], binary: bool) -> Result<Body> {
    let mut wanted: BTreeMap<&str, &[u64]> =
        shapes.iter().map(|shape| (shape.name.as_str(), shape.sizes.as_slice())).collect();
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut inputs, mut tail) = (Vec::new(), Vec::new());
    for input in rows(metadata, "inputs") {
        let name = text(input, "name");
        let datatype = datatype(name, text(input, "datatype"))?;
        let sizes = sizes(input, name, wanted.remove(name))?;
        let (values, bytes) = tensor(datatype, &sizes, &mut random)?;
        let mut entry =
            json!({ "name": name, "datatype": text(input, "datatype"), "shape": sizes });
        if binary {
            entry["parameters"] = json!({ "binary_data_size": bytes.len() });
            tail.extend(bytes);
        } else if matches!(datatype, DataType::F16 | DataType::BF16) {
            return Err(CliError::usage(format!(
                "the input {} has a type that JSON cannot hold",
                clean(name)
            ))
            .next("send it as bytes: --binary"));
        } else {
            entry["data"] = Value::Array(values);
        }
        inputs.push(entry);
    }
    if let Some(name) = wanted.keys().next() {
        let known = rows(metadata, "inputs").iter().map(|input| clean(text(input, "name")));
        let known = known.collect::<Vec<_>>().join(", ");
        return Err(CliError::usage(format!("the model has no input {name}"))
            .next(format!("its inputs are: {known}")));
    }
    let mut head = json!({ "inputs": inputs });
    if !binary {
        return Ok(Body { bytes: head.to_string().into_bytes(), json_length: None });
    }
    head["parameters"] = json!({ "binary_data_output": true });
    let mut bytes = head.to_string().into_bytes();
    let json_length = Some(bytes.len());
    bytes.extend(tail);
    Ok(Body { bytes, json_length })
}

fn datatype(name: &str, datatype: &str) -> Result<DataType> {
    let known = serde_json::from_value(datatype.into()).ok();
    // Which strings a model knows, only who made it can tell.
    known.filter(|known| *known != DataType::Bytes).ok_or_else(|| {
        let (name, datatype) = (clean(name), clean(datatype));
        CliError::usage(format!("no values can be made for the input {name} of type {datatype}"))
            .next("give the whole request with --input FILE")
    })
}

/// The sizes that were asked for, or the model's own with 1 where they are free.
fn sizes(input: &Value, name: &str, wanted: Option<&[u64]>) -> Result<Vec<u64>> {
    let own: Vec<i64> = rows(input, "shape").iter().filter_map(Value::as_i64).collect();
    let Some(wanted) = wanted else {
        return Ok(own.iter().map(|size| u64::try_from(*size).unwrap_or(1)).collect());
    };
    let fits = wanted.len() == own.len()
        && wanted
            .iter()
            .zip(&own)
            .all(|(wanted, own)| *own < 0 || u64::try_from(*own) == Ok(*wanted));
    if !fits {
        return Err(CliError::new(
            Kind::Usage,
            format!("the sizes {wanted:?} do not fit the input {}", clean(name)),
        )
        .next(format!("its shape is {own:?}, where -1 may be any size")));
    }
    Ok(wanted.to_vec())
}

/// Values for one tensor, as JSON and as little-endian bytes.
fn tensor(datatype: DataType, sizes: &[u64], random: &mut StdRng) -> Result<(Vec<Value>, Vec<u8>)> {
    let count = sizes.iter().try_fold(1u64, |count, size| count.checked_mul(*size));
    let count = count.filter(|count| *count <= ELEMENTS_MAX).ok_or_else(|| {
        CliError::usage(format!("a tensor of the sizes {sizes:?} is too large"))
            .next("give smaller sizes with --shape")
    })?;
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let bit = random.random_bool(0.5);
        match datatype {
            DataType::F32 => {
                let value: f32 = random.random();
                values.push(json!(value));
                bytes.extend(value.to_le_bytes());
            }
            DataType::F64 => {
                let value: f64 = random.random();
                values.push(json!(value));
                bytes.extend(value.to_le_bytes());
            }
            // 1 or 0.5, in the two forms of half the width.
            DataType::F16 => bytes.extend(if bit { 0x3c00_u16 } else { 0x3800 }.to_le_bytes()),
            DataType::BF16 => bytes.extend(if bit { 0x3f80_u16 } else { 0x3f00 }.to_le_bytes()),
            _ => {
                let boolean = datatype == DataType::Bool;
                values.push(if boolean { json!(bit) } else { json!(u8::from(bit)) });
                let start = bytes.len();
                bytes.resize(start + datatype.size_min(), 0);
                if let Some(first) = bytes.get_mut(start) {
                    *first = bit.into();
                }
            }
        }
    }
    Ok((values, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(datatype: &str) -> Value {
        json!({"inputs": [{"name": "x", "datatype": datatype, "shape": [-1, 3]}]})
    }

    fn shape(text: &str) -> [InputShape; 1] {
        [text.parse().unwrap()]
    }

    #[test]
    fn free_sizes_are_one_unless_they_are_given() {
        let body = |shapes: &[InputShape]| {
            let body = request(&model("FP32"), shapes, false).unwrap();
            serde_json::from_slice::<Value>(&body.bytes).unwrap()
        };
        let input = &body(&[])["inputs"][0];
        assert_eq!(input["shape"], json!([1, 3]));
        assert_eq!(input["data"].as_array().unwrap().len(), 3);
        assert_eq!(body(&shape("x:4,3"))["inputs"][0]["data"].as_array().unwrap().len(), 12);
        assert_eq!(body(&[]), body(&[]), "runs are compared");
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let error =
            |shapes: &str| request(&model("FP32"), &shape(shapes), false).unwrap_err().text();
        assert!(error("x:4,5").contains("[-1, 3]"));
        assert!(error("x:4").contains("[-1, 3]"));
        assert!(error("y:1,3").contains("its inputs are: x"));
        assert!(error("x:18446744073709551615,3").contains("too large"));
    }

    #[test]
    fn every_type_has_its_bytes() {
        for (datatype, size) in [
            ("BOOL", 1),
            ("UINT8", 1),
            ("UINT16", 2),
            ("UINT32", 4),
            ("UINT64", 8),
            ("INT8", 1),
            ("INT16", 2),
            ("INT32", 4),
            ("INT64", 8),
            ("FP16", 2),
            ("BF16", 2),
            ("FP32", 4),
            ("FP64", 8),
        ] {
            let body = request(&model(datatype), &[], true).unwrap();
            let json_length = body.json_length.unwrap();
            assert_eq!(body.bytes.len() - json_length, 3 * size, "{datatype}");
            let head: Value = serde_json::from_slice(&body.bytes[..json_length]).unwrap();
            assert_eq!(head["inputs"][0]["parameters"]["binary_data_size"], 3 * size);
            let as_json = request(&model(datatype), &[], false);
            assert_eq!(as_json.is_err(), ["FP16", "BF16"].contains(&datatype), "{datatype}");
        }
        assert!(request(&model("BYTES"), &[], true).unwrap_err().text().contains("--input"));
    }
}
