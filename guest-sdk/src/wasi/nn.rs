//! `wasi:nn`: models by name.

use crate::{DataType, Error, ModelFailure, Result, Tensor};

use self::bindings::wasi::nn::{
    errors::{Error as NnError, ErrorCode},
    graph,
    inference::GraphExecutionContext,
    tensor::{Tensor as NnTensor, TensorType},
};

// Generated: calls across the component boundary are unsafe by nature, and the generator neither
// documents nor lints its output.
#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::pedantic,
    reason = "generated code"
)]
mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "ml", generate_all });
}

/// A model, and the right to run it.
pub(crate) struct RawModel(GraphExecutionContext);

impl RawModel {
    pub(crate) fn load(name: &str) -> Result<Self> {
        let context = graph::load_by_name(name).and_then(|graph| graph.init_execution_context());
        Ok(Self(context.map_err(explain)?))
    }

    pub(crate) fn compute(
        &self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, RawTensor)>> {
        let inputs = inputs.into_iter().map(|(name, tensor)| (name, lower(tensor))).collect();
        let outputs = self.0.compute(inputs).map_err(explain)?;
        Ok(outputs.into_iter().map(|(name, tensor)| (name, RawTensor(tensor))).collect())
    }
}

/// A tensor that the host still holds.
pub(crate) struct RawTensor(NnTensor);

impl RawTensor {
    pub(crate) fn read(&self) -> Tensor {
        let data_type = match self.0.ty() {
            TensorType::Fp16 => DataType::F16,
            TensorType::Fp32 => DataType::F32,
            TensorType::Fp64 => DataType::F64,
            TensorType::Bf16 => DataType::BF16,
            TensorType::U8 => DataType::U8,
            TensorType::I32 => DataType::I32,
            TensorType::I64 => DataType::I64,
        };
        let dims: Vec<usize> = self.0.dimensions().into_iter().map(|dim| dim as usize).collect();
        Tensor::raw(dims, data_type, self.0.data())
    }
}

fn lower(tensor: Tensor) -> NnTensor {
    let data_type = match tensor.data_type() {
        DataType::F16 => TensorType::Fp16,
        DataType::F32 => TensorType::Fp32,
        DataType::F64 => TensorType::Fp64,
        DataType::BF16 => TensorType::Bf16,
        DataType::U8 => TensorType::U8,
        DataType::I32 => TensorType::I32,
        DataType::I64 => TensorType::I64,
    };
    // `Tensor::check` has seen that every dimension is a `u32`.
    let dims: Vec<u32> = tensor.dims().iter().map(|dim| *dim as u32).collect();
    NnTensor::new(&dims, data_type, &tensor.into_data())
}

fn explain(error: NnError) -> Error {
    let failure = match error.code() {
        ErrorCode::InvalidArgument => ModelFailure::InvalidArgument,
        ErrorCode::InvalidEncoding => ModelFailure::InvalidEncoding,
        ErrorCode::Timeout => ModelFailure::Timeout,
        ErrorCode::RuntimeError => ModelFailure::RuntimeError,
        ErrorCode::UnsupportedOperation => ModelFailure::UnsupportedOperation,
        ErrorCode::TooLarge => ModelFailure::TooLarge,
        ErrorCode::NotFound => ModelFailure::NotFound,
        ErrorCode::Security => ModelFailure::Security,
        ErrorCode::Unknown => ModelFailure::Unknown,
    };
    Error::model(failure, error.data())
}
