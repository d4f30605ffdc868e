//! What a request says of itself, without the elements of its inputs.
//!
//! It is decoded from the bytes of a `ModelInferRequest`, and passes over what it does not have. So a long request that
//! does not fit its model is refused before it has grown.

use std::collections::HashMap;

use prost::Message;

use super::message::{InferParameter, ModelInferRequest, model_infer_request::InferInputTensor};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Outline {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, InferParameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<InputOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct InputOutline {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

impl From<Outline> for ModelInferRequest {
    fn from(outline: Outline) -> Self {
        let Outline { model_name, model_version, id, parameters, inputs } = outline;
        let inputs = inputs.into_iter().map(|input| {
            let InputOutline { name, datatype, shape } = input;
            InferInputTensor { name, datatype, shape, ..Default::default() }
        });
        let inputs = inputs.collect();
        ModelInferRequest {
            model_name,
            model_version,
            id,
            parameters,
            inputs,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oip::grpc::message::{InferTensorContents, infer_parameter::ParameterChoice};

    #[test]
    fn all_but_the_elements_is_kept() {
        let parameter_choice = Some(ParameterChoice::BoolParam(true));
        let mut request = ModelInferRequest {
            model_name: "m".to_owned(),
            model_version: "7".to_owned(),
            id: "i".to_owned(),
            parameters: [("p".to_owned(), InferParameter { parameter_choice })].into(),
            inputs: vec![InferInputTensor {
                name: "x".to_owned(),
                datatype: "INT64".to_owned(),
                shape: vec![2, -300],
                contents: Some(InferTensorContents {
                    int64_contents: vec![1; 1000],
                    ..Default::default()
                }),
                ..Default::default()
            }],
            raw_input_contents: vec![vec![1; 1000].into()],
            ..Default::default()
        };
        let outline = Outline::decode(&*request.encode_to_vec()).unwrap();
        request.inputs[0].contents = None;
        request.raw_input_contents.clear();
        assert_eq!(ModelInferRequest::from(outline), request);
    }
}
