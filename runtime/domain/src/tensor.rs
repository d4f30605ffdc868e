//! Tensors as every plane exchanges them: a type, a shape, and little-endian bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The most dimensions a tensor may have.
pub const RANK_MAX: usize = 8;

/// Element types, under the names of the Open Inference Protocol v2 ("Tensor Data Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum DataType {
    #[serde(rename = "BOOL")]
    Bool,
    #[serde(rename = "UINT8")]
    U8,
    #[serde(rename = "UINT16")]
    U16,
    #[serde(rename = "UINT32")]
    U32,
    #[serde(rename = "UINT64")]
    U64,
    #[serde(rename = "INT8")]
    I8,
    #[serde(rename = "INT16")]
    I16,
    #[serde(rename = "INT32")]
    I32,
    #[serde(rename = "INT64")]
    I64,
    #[serde(rename = "FP16")]
    F16,
    #[serde(rename = "BF16")]
    BF16,
    #[serde(rename = "FP32")]
    F32,
    #[serde(rename = "FP64")]
    F64,
}

impl DataType {
    /// The protocol's name, such as `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            DataType::Bool => "BOOL",
            DataType::U8 => "UINT8",
            DataType::U16 => "UINT16",
            DataType::U32 => "UINT32",
            DataType::U64 => "UINT64",
            DataType::I8 => "INT8",
            DataType::I16 => "INT16",
            DataType::I32 => "INT32",
            DataType::I64 => "INT64",
            DataType::F16 => "FP16",
            DataType::BF16 => "BF16",
            DataType::F32 => "FP32",
            DataType::F64 => "FP64",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DataType::Bool | DataType::U8 | DataType::I8 => 1,
            DataType::U16 | DataType::I16 | DataType::F16 | DataType::BF16 => 2,
            DataType::U32 | DataType::I32 | DataType::F32 => 4,
            DataType::U64 | DataType::I64 | DataType::F64 => 8,
        }
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes are no tensor of the claimed type and shape. No text holds element values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// More than [`RANK_MAX`] dimensions.
    #[error("the tensor has {0} dimensions; at most {RANK_MAX} are allowed")]
    Rank(usize),
    /// The byte size of the claimed shape does not fit in memory.
    #[error("the size of a {datatype} tensor of shape {shape:?} overflows")]
    Overflow {
        /// The claimed type.
        datatype: DataType,
        /// The claimed shape.
        shape: Vec<u64>,
    },
    /// Shape, type and data disagree.
    #[error("a {datatype} tensor of shape {shape:?} takes {expected} bytes; {actual} were given")]
    Length {
        /// The claimed type.
        datatype: DataType,
        /// The claimed shape.
        shape: Vec<u64>,
        /// Bytes that type and shape ask for.
        expected: usize,
        /// Bytes that came.
        actual: usize,
    },
}

/// A dense tensor in row-major order, little-endian. Its fields always agree: see [`Tensor::new`].
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    datatype: DataType,
    shape: Vec<usize>,
    data: Bytes,
}

impl Tensor {
    /// Checks that `shape` x `datatype` is the length of `data`, in bytes, with overflow in mind.
    pub fn new(datatype: DataType, shape: &[u64], data: Bytes) -> Result<Self, TensorError> {
        if shape.len() > RANK_MAX {
            return Err(TensorError::Rank(shape.len()));
        }
        let mut dims = Vec::with_capacity(shape.len());
        let mut elements = 1usize;
        let overflow = || TensorError::Overflow { datatype, shape: shape.to_vec() };
        for &dim in shape {
            let dim = usize::try_from(dim).map_err(|_| overflow())?;
            elements = elements.checked_mul(dim).ok_or_else(overflow)?;
            dims.push(dim);
        }
        let expected = elements.checked_mul(datatype.size()).ok_or_else(overflow)?;
        if expected != data.len() {
            let (shape, actual) = (shape.to_vec(), data.len());
            return Err(TensorError::Length { datatype, shape, expected, actual });
        }
        Ok(Tensor { datatype, shape: dims, data })
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, little-endian, row-major.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

/// A tensor and the name of the input or output it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// The input's or output's name in the graph.
    pub name: String,
    /// Its value.
    pub tensor: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scalar_and_an_empty_tensor_are_tensors() {
        assert!(Tensor::new(DataType::F32, &[], Bytes::from_static(&[0; 4])).is_ok());
        assert!(Tensor::new(DataType::F32, &[0, 5], Bytes::new()).is_ok());
    }

    #[test]
    fn overflow_is_seen_however_it_is_spelt() {
        let shapes: [&[u64]; 4] =
            [&[u64::MAX], &[1 << 32, 1 << 32], &[1 << 62, 4, 0], &[u64::MAX / 4 + 1]];
        for shape in shapes {
            let error = Tensor::new(DataType::F32, shape, Bytes::new()).unwrap_err();
            assert!(matches!(error, TensorError::Overflow { .. }), "{shape:?}: {error}");
        }
    }

    #[test]
    fn nine_dimensions_are_too_many() {
        let error = Tensor::new(DataType::U8, &[1; 9], Bytes::from_static(&[0])).unwrap_err();
        assert_eq!(error, TensorError::Rank(9));
    }

    proptest::proptest! {
        #[test]
        fn only_the_exact_length_is_accepted(shape in proptest::collection::vec(0u64..5, 0..5), length in 0usize..700) {
            let expected = shape.iter().product::<u64>() as usize * 4;
            let tensor = Tensor::new(DataType::F32, &shape, Bytes::from(vec![0; length]));
            assert_eq!(tensor.is_ok(), length == expected);
        }

        #[test]
        fn no_shape_panics(shape in proptest::collection::vec(proptest::num::u64::ANY, 0..12)) {
            let _ = Tensor::new(DataType::F64, &shape, Bytes::new());
        }
    }
}
