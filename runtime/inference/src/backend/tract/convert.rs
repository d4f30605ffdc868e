//! Tensors of the domain to tensors of tract, and back.

use std::sync::Arc;

use bytes::Bytes;
use sandpiper_domain::{DataType, InferenceError, Tensor};
use tract_onnx::prelude::{DatumType, TDim, Tensor as TractTensor, TractResult};

/// The type tract calculates in; `None` for the one it lacks, and for strings, which it must never hold.
pub(super) fn datum_type(datatype: DataType) -> Option<DatumType> {
    Some(match datatype {
        DataType::Bool => DatumType::Bool,
        DataType::U8 => DatumType::U8,
        DataType::U16 => DatumType::U16,
        DataType::U32 => DatumType::U32,
        DataType::U64 => DatumType::U64,
        DataType::I8 => DatumType::I8,
        DataType::I16 => DatumType::I16,
        DataType::I32 => DatumType::I32,
        DataType::I64 => DatumType::I64,
        DataType::F16 => DatumType::F16,
        DataType::F32 => DatumType::F32,
        DataType::F64 => DatumType::F64,
        DataType::BF16 | DataType::Bytes => return None,
    })
}

/// The type callers see. tract types shapes and what is derived from them as `TDim`; they are integers.
/// Quantised tensors are seen as the integers they hold.
pub(super) fn data_type(datum: DatumType) -> Option<DataType> {
    Some(match datum.unquantized() {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::U8,
        DatumType::U16 => DataType::U16,
        DatumType::U32 => DataType::U32,
        DatumType::U64 => DataType::U64,
        DatumType::I8 => DataType::I8,
        DatumType::I16 => DataType::I16,
        DatumType::I32 => DataType::I32,
        DatumType::I64 | DatumType::TDim => DataType::I64,
        DatumType::F16 => DataType::F16,
        DatumType::F32 => DataType::F32,
        DatumType::F64 => DataType::F64,
        _ => return None,
    })
}

/// Copies a tensor into tract's aligned memory.
pub(super) fn to_tract(tensor: &Tensor) -> Result<TractTensor, InferenceError> {
    let Some(datum) = datum_type(tensor.datatype()) else {
        let text = format!("the backend cannot hold {} tensors", tensor.datatype());
        return Err(InferenceError::Unsupported(text));
    };
    copy(datum, tensor.shape(), tensor.data()).map_err(|_| {
        InferenceError::InvalidArgument("an input is no dense tensor of its shape".to_owned())
    })
}

fn copy(datum: DatumType, shape: &[usize], data: &[u8]) -> TractResult<TractTensor> {
    if datum == DatumType::Bool {
        // Only 0 and 1 are values of a Rust `bool`.
        let values: Vec<bool> = data.iter().map(|byte| *byte != 0).collect();
        return TractTensor::from_shape(shape, &values);
    }
    // SAFETY: `datum` is an integer or a float, whose every bit pattern is a value. tract checks that `data` has
    // the length that type and shape ask for, and copies it into memory aligned for the type.
    #[allow(unsafe_code)]
    unsafe {
        TractTensor::from_raw_dt(datum, shape, data)
    }
}

/// Keeps a tensor of tract alive as the owner of its bytes.
struct Owner(Arc<TractTensor>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Hands out a result without copying it; `None` if no tensor of the domain can hold it.
pub(super) fn from_tract(tensor: Arc<TractTensor>) -> Option<Tensor> {
    let tensor = match tensor.datum_type() {
        DatumType::TDim => Arc::new(tensor.cast_to::<i64>().ok()?.into_owned()),
        _ => tensor,
    };
    let datatype = data_type(tensor.datum_type())?;
    let shape: Vec<u64> = tensor.shape().iter().map(|dim| *dim as u64).collect();
    if !tensor.is_plain_ram() || !is_row_major(&tensor) {
        return None;
    }
    Tensor::new(datatype, &shape, Bytes::from_owner(Owner(tensor))).ok()
}

/// Strides of axes that have one step say nothing.
fn is_row_major(tensor: &TractTensor) -> bool {
    let natural = TractTensor::natural_strides(tensor.shape());
    let mut axes = tensor.shape().iter().zip(tensor.strides()).zip(natural);
    tensor.shape().contains(&0)
        || axes.all(|((size, stride), natural)| *size == 1 || *stride == natural)
}

/// Whether the type is the symbolic integer of shapes.
pub(super) fn is_symbolic(datum: DatumType) -> bool {
    datum == <TDim as tract_onnx::prelude::Datum>::datum_type()
}
