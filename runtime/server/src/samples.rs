//! Sample inputs of a model: a JSON array of requests as the Open Inference Protocol has them, each with its `inputs`.

use std::borrow::Cow;

use sandpiper_domain::{DataType, NamedTensor};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::oip::{Dims, InputSpec, read_tensor, shown};

/// Samples of one model version, and inputs of one sample.
const SAMPLES_MAX: usize = 32;
const INPUTS_MAX: usize = 64;

#[derive(Deserialize)]
struct Sample<'a> {
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
}

#[derive(Deserialize)]
struct Input<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Dims,
    datatype: DataType,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Reads samples, whose numbers go straight from the text to their bytes. The text of an error names the sample and the
/// input, and holds no values. Blocks for as long as that takes.
pub(crate) fn parse(json: &[u8]) -> Result<Vec<Vec<NamedTensor>>, String> {
    let samples: Vec<Sample<'_>> = serde_json::from_slice(json).map_err(|error| {
        format!("the samples are not a JSON array of requests with `inputs`: {error}")
    })?;
    if samples.len() > SAMPLES_MAX || samples.iter().any(|one| one.inputs.len() > INPUTS_MAX) {
        return Err(format!(
            "at most {SAMPLES_MAX} samples with {INPUTS_MAX} inputs each are taken"
        ));
    }
    let sample = |(number, sample): (usize, &Sample<'_>)| {
        let tensors = sample.inputs.iter().map(|input| {
            let name = shown(&input.name);
            tensor(input).map_err(|why| {
                let why = why.strip_prefix(&format!("the input `{name}` ")).unwrap_or(&why);
                format!("sample {number}, input `{name}`: it {why}")
            })
        });
        tensors.collect()
    };
    samples.iter().enumerate().map(sample).collect()
}

fn tensor(input: &Input<'_>) -> Result<NamedTensor, String> {
    let spec = InputSpec::new(&input.name, input.datatype.name(), input.shape.sizes());
    spec.and_then(|spec| read_tensor(&spec, input.data.get())).map_err(|error| error.to_string())
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
