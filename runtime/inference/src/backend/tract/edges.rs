//! Strings at the edges of a model: callers have strings, and the graph has their numbers.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sandpiper_domain::{DataType, InferenceError, NamedTensor, Tensor, put_string};

use super::{
    audit::{Declared, Slot},
    plan::TENSOR_BYTES_MAX,
    rewrite::Strings,
};

/// Strings up to here are copied as soon as other elements are calculated.
const SHORT_BYTES: usize = 1024;

/// Translates what goes in and what comes out.
pub(super) struct Edges {
    strings: Arc<Strings>,
    /// Which inputs and outputs are strings; empty where none is.
    inputs: Vec<bool>,
    outputs: Vec<bool>,
}

impl Edges {
    pub(super) fn of(declared: &Declared) -> Self {
        let texts = |slots: &[Slot]| {
            let texts: Vec<bool> = slots.iter().map(|slot| slot.is_text).collect();
            if texts.contains(&true) { texts } else { Vec::new() }
        };
        let (inputs, outputs) = (texts(&declared.inputs), texts(&declared.outputs));
        Edges { strings: declared.strings.clone(), inputs, outputs }
    }

    /// Whether no string that comes out takes long to copy.
    pub(super) fn are_short(&self) -> bool {
        self.outputs.is_empty() || self.strings.longest() <= SHORT_BYTES
    }

    /// The inputs as the graph takes them.
    pub(super) fn enter(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferenceError> {
        for (tensor, _) in inputs.iter_mut().zip(&self.inputs).filter(|(_, is_text)| **is_text) {
            let mut numbers = BytesMut::with_capacity(tensor.elements().saturating_mul(8));
            for text in tensor.strings() {
                numbers.extend_from_slice(&self.strings.number(text).to_le_bytes());
            }
            *tensor = like(tensor, DataType::I64, numbers.freeze())?;
        }
        Ok(inputs)
    }

    /// The outputs as callers get them. All strings together take no more than a value inside a graph may.
    pub(super) fn leave(
        &self,
        mut outputs: Vec<NamedTensor>,
    ) -> Result<Vec<NamedTensor>, InferenceError> {
        let mut room = usize::try_from(TENSOR_BYTES_MAX).unwrap_or(usize::MAX);
        for (output, _) in outputs.iter_mut().zip(&self.outputs).filter(|(_, is_text)| **is_text) {
            let mut bytes = 0usize;
            for text in self.texts(&output.tensor) {
                bytes = bytes.saturating_add(text?.len() + DataType::Bytes.size_min());
            }
            room = room.checked_sub(bytes).ok_or_else(|| {
                let text = "the strings of the outputs would take more than 1 GiB for these inputs";
                InferenceError::TooLarge(text.to_owned())
            })?;
            let mut data = BytesMut::with_capacity(bytes);
            for text in self.texts(&output.tensor) {
                put_string(&mut data, text?);
            }
            output.tensor = like(&output.tensor, DataType::Bytes, data.freeze())?;
        }
        Ok(outputs)
    }

    /// The strings that the elements of an output are the numbers of.
    fn texts<'a>(
        &'a self,
        tensor: &'a Tensor,
    ) -> impl Iterator<Item = Result<&'a [u8], InferenceError>> {
        let numbers = tensor.data().as_chunks().0.iter();
        numbers.map(|number| {
            self.strings.text(i64::from_le_bytes(*number)).ok_or_else(|| {
                let text = "an output of strings holds one that the model does not have";
                InferenceError::Runtime(text.to_owned())
            })
        })
    }
}

/// The tensor with other elements.
fn like(tensor: &Tensor, datatype: DataType, data: Bytes) -> Result<Tensor, InferenceError> {
    let shape: Vec<u64> = tensor.shape().iter().map(|size| *size as u64).collect();
    Tensor::new(datatype, &shape, data).map_err(|error| InferenceError::Runtime(error.to_string()))
}
