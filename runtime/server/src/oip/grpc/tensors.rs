//! Tensors of the wire: raw bytes or typed contents, checked against the shape and type they claim.

use bytes::Bytes;
use sandpiper_domain::{ModelSignature, NamedTensor, put_string};

use super::message::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    model_infer_request::InferInputTensor, model_infer_response::InferOutputTensor,
};
use crate::oip::{OipError, error::shown, service::InferAnswer, tensor::InputSpec};

/// Compares what inputs are said to be with what the model takes, before anything is read of their elements.
pub(super) fn must_fit(
    inputs: &[InferInputTensor],
    signature: &ModelSignature,
) -> Result<(), OipError> {
    inputs.iter().try_for_each(|input| spec(input)?.must_fit(signature))
}

/// The inputs of a request, which are taken out of it.
pub(super) fn inputs(
    request: &mut ModelInferRequest,
    signature: &ModelSignature,
) -> Result<Vec<NamedTensor>, OipError> {
    let inputs = std::mem::take(&mut request.inputs);
    let typed = |input| typed(input, signature);
    let raw = std::mem::take(&mut request.raw_input_contents);
    if raw.is_empty() {
        return inputs.into_iter().map(typed).collect();
    }
    if let Some(input) = inputs.iter().find(|input| !is_empty(input)) {
        let name = shown(&input.name);
        let text = format!("the input `{name}` has `contents`, and there are `raw_input_contents`");
        return Err(OipError::invalid(text));
    }
    if raw.len() != inputs.len() {
        let (raw, inputs) = (raw.len(), inputs.len());
        let text = format!("{raw} raw_input_contents do not go with {inputs} inputs");
        return Err(OipError::invalid(text));
    }
    inputs.iter().zip(raw).map(|(input, raw)| tensor(input, raw, signature)).collect()
}

fn is_empty(input: &InferInputTensor) -> bool {
    input.contents.as_ref().is_none_or(|contents| *contents == InferTensorContents::default())
}

fn tensor(
    input: &InferInputTensor,
    data: Bytes,
    signature: &ModelSignature,
) -> Result<NamedTensor, OipError> {
    let spec = spec(input)?;
    let tensor = spec.with_bytes(data)?;
    spec.must_be_wanted(signature)?;
    Ok(tensor)
}

fn spec(input: &InferInputTensor) -> Result<InputSpec<'_>, OipError> {
    if input.parameters.keys().any(|key| key.starts_with("shared_memory_")) {
        let name = shown(&input.name);
        let text = format!("the input `{name}`: this server shares no memory with its clients");
        return Err(OipError::unsupported(text));
    }
    InputSpec::new(&input.name, &input.datatype, &input.shape)
}

/// An input whose elements are in the field that its type goes with.
fn typed(mut input: InferInputTensor, signature: &ModelSignature) -> Result<NamedTensor, OipError> {
    let mut contents = input.contents.take().unwrap_or_default();
    let data = match input.datatype.as_str() {
        "BOOL" => std::mem::take(&mut contents.bool_contents).into_iter().map(u8::from).collect(),
        "INT8" => narrowed::<i32, i8, 1>(&input, &mut contents.int_contents, i8::to_le_bytes)?,
        "INT16" => narrowed::<i32, i16, 2>(&input, &mut contents.int_contents, i16::to_le_bytes)?,
        "INT32" => little_endian(&mut contents.int_contents, i32::to_le_bytes),
        "INT64" => little_endian(&mut contents.int64_contents, i64::to_le_bytes),
        "UINT8" => narrowed::<u32, u8, 1>(&input, &mut contents.uint_contents, u8::to_le_bytes)?,
        "UINT16" => narrowed::<u32, u16, 2>(&input, &mut contents.uint_contents, u16::to_le_bytes)?,
        "UINT32" => little_endian(&mut contents.uint_contents, u32::to_le_bytes),
        "UINT64" => little_endian(&mut contents.uint64_contents, u64::to_le_bytes),
        "FP32" => little_endian(&mut contents.fp32_contents, f32::to_le_bytes),
        "FP64" => little_endian(&mut contents.fp64_contents, f64::to_le_bytes),
        "BYTES" => lengths_and_bytes(std::mem::take(&mut contents.bytes_contents)),
        // FP16 and BF16 have no field, and what is unknown none either.
        _ => Vec::new(),
    };
    if contents != InferTensorContents::default() {
        let (name, datatype) = (shown(&input.name), shown(&input.datatype));
        let text = format!(
            "the input `{name}` has contents that do not go with `{datatype}`; FP16 and BF16 go into \
             raw_input_contents"
        );
        return Err(OipError::invalid(text));
    }
    tensor(&input, data.into(), signature)
}

fn little_endian<T: Copy, const N: usize>(values: &mut Vec<T>, bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    let mut data = Vec::with_capacity(values.len() * N);
    for value in std::mem::take(values) {
        data.extend_from_slice(&bytes(value));
    }
    data
}

fn narrowed<W, T: TryFrom<W>, const N: usize>(
    input: &InferInputTensor,
    values: &mut Vec<W>,
    bytes: fn(T) -> [u8; N],
) -> Result<Vec<u8>, OipError> {
    let mut data = Vec::with_capacity(values.len() * N);
    for value in std::mem::take(values) {
        let Ok(value) = T::try_from(value) else {
            let (name, datatype) = (shown(&input.name), &input.datatype);
            let text = format!("the input `{name}` has an element that is no {datatype}");
            return Err(OipError::invalid(text));
        };
        data.extend_from_slice(&bytes(value));
    }
    Ok(data)
}

fn lengths_and_bytes(elements: Vec<Bytes>) -> Vec<u8> {
    let mut data = Vec::with_capacity(elements.iter().map(|element| element.len() + 4).sum());
    elements.iter().for_each(|element| put_string(&mut data, element));
    data
}

/// The answer, with its outputs raw: clients do not look elsewhere.
pub(super) fn response(answer: InferAnswer, id: String) -> ModelInferResponse {
    let mut response = ModelInferResponse {
        model_name: answer.model_name,
        model_version: answer.model_version.to_string(),
        id,
        ..Default::default()
    };
    for output in answer.outputs {
        let tensor = output.tensor;
        response.raw_output_contents.push(tensor.data().clone());
        response.outputs.push(InferOutputTensor {
            name: output.name,
            datatype: tensor.datatype().name().to_owned(),
            shape: tensor.shape().iter().map(|&dim| dim as i64).collect(),
            ..Default::default()
        });
    }
    response
}

#[cfg(test)]
mod tests {
    use sandpiper_domain::TensorSpec;

    use super::*;

    fn input(datatype: &str, shape: &[i64], contents: InferTensorContents) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents: Some(contents),
            ..Default::default()
        }
    }

    /// A model that takes just this.
    fn taking(input: &InferInputTensor) -> ModelSignature {
        let (name, shape) = (input.name.clone(), input.shape.clone());
        let datatype = serde_json::from_value(input.datatype.clone().into());
        let inputs = datatype.map(|datatype| vec![TensorSpec { name, datatype, shape }]);
        ModelSignature { inputs: inputs.unwrap_or_default(), outputs: vec![] }
    }

    fn typed(input: InferInputTensor) -> Result<NamedTensor, OipError> {
        let signature = taking(&input);
        super::typed(input, &signature)
    }

    fn data(input: InferInputTensor) -> Vec<u8> {
        typed(input).unwrap().tensor.data().to_vec()
    }

    #[test]
    fn typed_contents_are_little_endian() {
        let contents = InferTensorContents { int_contents: vec![-2, 127], ..Default::default() };
        assert_eq!(data(input("INT8", &[2], contents.clone())), [0xfe, 127]);
        assert_eq!(data(input("INT16", &[2], contents.clone())), [0xfe, 0xff, 127, 0]);
        assert_eq!(data(input("INT32", &[1, 2], contents)), [0xfe, 0xff, 0xff, 0xff, 127, 0, 0, 0]);
        let contents = InferTensorContents { fp64_contents: vec![1.5], ..Default::default() };
        assert_eq!(data(input("FP64", &[], contents)), [0, 0, 0, 0, 0, 0, 0xf8, 0x3f]);
        let contents = InferTensorContents { bool_contents: vec![true], ..Default::default() };
        assert_eq!(data(input("BOOL", &[1], contents)), [1]);
    }

    #[test]
    fn contents_that_do_not_fit_their_type_are_refused() {
        let wide = InferTensorContents { int_contents: vec![128], ..Default::default() };
        let wrong = InferTensorContents { fp32_contents: vec![1.0], ..Default::default() };
        let both = InferTensorContents { fp64_contents: vec![1.0], ..wrong.clone() };
        let cases = [("INT8", wide), ("FP64", wrong.clone()), ("FP16", wrong), ("FP32", both)];
        for (datatype, contents) in cases {
            assert!(typed(input(datatype, &[1], contents)).is_err(), "{datatype}");
        }
    }

    #[test]
    fn strings_get_their_lengths() {
        let contents = InferTensorContents {
            bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()],
            ..Default::default()
        };
        let encoded = b"\x02\0\0\0ab\0\0\0\0";
        assert_eq!(data(input("BYTES", &[2], contents.clone())), encoded);
        let mut other = input("BYTES", &[2], contents);
        let numbers = taking(&InferInputTensor { datatype: "FP32".to_owned(), ..other.clone() });
        let refused = super::typed(other.clone(), &numbers).unwrap_err().to_string();
        assert!(refused.contains("is BYTES; the model takes FP32"), "{refused}");
        other.shape = vec![3];
        assert!(super::typed(other, &numbers).unwrap_err().to_string().contains("2 were given"));
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(
            datatype in "(BYTES|FP32|BOOL|INT8|UINT16|INT64|FP16|x)",
            shape in proptest::collection::vec(-2i64..5, 0..10),
            ints in proptest::collection::vec(proptest::num::i32::ANY, 0..6),
            floats in proptest::collection::vec(proptest::num::f32::ANY, 0..6),
        ) {
            let int_contents = ints.clone();
            let uint_contents = ints.iter().map(|int| *int as u32).collect();
            for contents in [
                InferTensorContents { int_contents, ..Default::default() },
                InferTensorContents { uint_contents, ..Default::default() },
                InferTensorContents { fp32_contents: floats.clone(), ..Default::default() },
            ] {
                let _ = typed(input(&datatype, &shape, contents));
            }
        }
    }
}
