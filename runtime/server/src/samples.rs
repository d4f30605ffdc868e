//! Sample inputs of a model: a JSON array of requests as the Open Inference Protocol has them, each with its `inputs`.

use bytes::Bytes;
use sandpiper_domain::{DataType, NamedTensor, Tensor};
use serde::Deserialize;
use serde_json::Value;

/// Samples of one model version, and inputs of one sample.
const SAMPLES_MAX: usize = 32;
const INPUTS_MAX: usize = 64;

#[derive(Deserialize)]
struct Sample {
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<u64>,
    datatype: DataType,
    data: Value,
}

/// Reads samples. The text of an error names the sample and the input, and holds no values.
pub(crate) fn parse(json: &[u8]) -> Result<Vec<Vec<NamedTensor>>, String> {
    let samples: Vec<Sample> = serde_json::from_slice(json).map_err(|error| {
        format!("the samples are not a JSON array of requests with `inputs`: {error}")
    })?;
    if samples.len() > SAMPLES_MAX || samples.iter().any(|one| one.inputs.len() > INPUTS_MAX) {
        return Err(format!(
            "at most {SAMPLES_MAX} samples with {INPUTS_MAX} inputs each are taken"
        ));
    }
    let sample = |(number, sample): (usize, Sample)| {
        let tensors = sample.inputs.into_iter().map(|input| {
            let name: String = input.name.chars().take(80).collect();
            tensor(input).map_err(|why| format!("sample {number}, input `{name}`: {why}"))
        });
        tensors.collect()
    };
    samples.into_iter().enumerate().map(sample).collect()
}

fn tensor(input: Input) -> Result<NamedTensor, String> {
    let Input { name, shape, datatype, data } = input;
    let mut bytes = Vec::new();
    if !flatten(&data, datatype, &mut bytes) {
        return Err(format!("the data holds what is no {datatype}"));
    }
    let tensor = Tensor::new(datatype, &shape, Bytes::from(bytes)).map_err(|e| e.to_string())?;
    Ok(NamedTensor { name, tensor })
}

/// Rows may be arrays of their own, as deep as JSON may nest.
fn flatten(data: &Value, datatype: DataType, bytes: &mut Vec<u8>) -> bool {
    match data {
        Value::Array(elements) => elements.iter().all(|element| flatten(element, datatype, bytes)),
        element => match encode(element, datatype) {
            Some((encoded, size)) => {
                bytes.extend_from_slice(&encoded[..size]);
                true
            }
            None => false,
        },
    }
}

/// One element in little-endian bytes, of which so many count.
fn encode(element: &Value, datatype: DataType) -> Option<([u8; 8], usize)> {
    let float = || element.as_f64();
    let integer = || element.as_i64();
    let bits: u64 = match datatype {
        DataType::Bool => match element {
            Value::Bool(value) => u64::from(*value),
            number => number.as_u64().filter(|number| *number <= 1)?,
        },
        DataType::U8 => u8::try_from(element.as_u64()?).ok()?.into(),
        DataType::U16 => u16::try_from(element.as_u64()?).ok()?.into(),
        DataType::U32 => u32::try_from(element.as_u64()?).ok()?.into(),
        DataType::U64 => element.as_u64()?,
        DataType::I8 => i64::from(i8::try_from(integer()?).ok()?) as u64,
        DataType::I16 => i64::from(i16::try_from(integer()?).ok()?) as u64,
        DataType::I32 => i64::from(i32::try_from(integer()?).ok()?) as u64,
        DataType::I64 => integer()? as u64,
        DataType::F16 => half::f16::from_f64(float()?).to_bits().into(),
        DataType::BF16 => half::bf16::from_f64(float()?).to_bits().into(),
        DataType::F32 => (float()? as f32).to_bits().into(),
        DataType::F64 => float()?.to_bits(),
    };
    Some((bits.to_le_bytes(), datatype.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(shape: &str, datatype: &str, data: &str) -> Result<Vec<u8>, String> {
        let json = format!(
            r#"[{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": {data}}}]}}]"#
        );
        Ok(parse(json.as_bytes())?[0][0].tensor.data().to_vec())
    }

    #[test]
    fn every_type_is_read_flat_or_in_rows() {
        assert_eq!(one("[2]", "FP32", "[1, 0.5]").unwrap(), [0, 0, 128, 63, 0, 0, 0, 63]);
        assert_eq!(one("[2,1]", "FP32", "[[1], [0.5]]").unwrap(), [0, 0, 128, 63, 0, 0, 0, 63]);
        assert_eq!(one("[3]", "INT8", "[-1, -128, 127]").unwrap(), [255, 128, 127]);
        assert_eq!(one("[2]", "BOOL", "[true, 0]").unwrap(), [1, 0]);
        assert_eq!(one("[1]", "UINT64", "[18446744073709551615]").unwrap(), [255; 8]);
        assert_eq!(one("[1]", "FP16", "[1]").unwrap(), [0, 60]);
        assert_eq!(one("[1]", "INT16", "[-2]").unwrap(), [254, 255]);
        assert_eq!(one("[]", "FP64", "[1]").unwrap(), [0, 0, 0, 0, 0, 0, 240, 63]);
        assert_eq!(one("[0]", "INT64", "[]").unwrap(), [0u8; 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_named() {
        for (shape, datatype, data) in [
            ("[1]", "INT8", "[128]"),
            ("[1]", "UINT8", "[-1]"),
            ("[1]", "FP32", "[\"secret\"]"),
            ("[1]", "INT64", "[1.5]"),
            ("[2]", "INT64", "[1]"),
            ("[1]", "BOOL", "[2]"),
        ] {
            let error = one(shape, datatype, data).unwrap_err();
            assert!(error.starts_with("sample 0, input `x`: "), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(one("[-1]", "FP32", "[1]").is_err() && one("[1]", "FP31", "[1]").is_err());
        assert!(parse(b"{}").is_err() && parse(b"").is_err());
        let many = format!("[{}]", vec![r#"{"inputs": []}"#; 33].join(","));
        assert!(parse(many.as_bytes()).unwrap_err().contains("at most 32"));
        assert_eq!(parse(b"[]"), Ok(Vec::new()));
    }
}
