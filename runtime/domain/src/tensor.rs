//! Tensors as every plane exchanges them: a type, a shape, and little-endian bytes.
//!
//! Elements have a size of their type, or are strings ([`DataType::Bytes`]), each with its length before it.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The most dimensions a tensor may have.
pub const RANK_MAX: usize = 8;

/// Bytes of the length before a string.
const STRING_HEAD: usize = 4;

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
    /// Strings of any bytes. In a tensor each is its length, 32 bits, and so many bytes.
    #[serde(rename = "BYTES")]
    Bytes,
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
            DataType::Bytes => "BYTES",
        }
    }

    /// Bytes of one element; `None` where each has a length of its own.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            DataType::Bool | DataType::U8 | DataType::I8 => 1,
            DataType::U16 | DataType::I16 | DataType::F16 | DataType::BF16 => 2,
            DataType::U32 | DataType::I32 | DataType::F32 => 4,
            DataType::U64 | DataType::I64 | DataType::F64 => 8,
            DataType::Bytes => return None,
        })
    }

    /// The least bytes that an element takes in a tensor. So many zeros are an element: 0, or the empty string.
    pub fn size_min(self) -> usize {
        self.size().unwrap_or(STRING_HEAD)
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
    /// Strings do not add up.
    #[error("a BYTES tensor of shape {shape:?} has {expected} elements; {actual} were given")]
    Count {
        /// The claimed shape.
        shape: Vec<u64>,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements that came.
        actual: usize,
    },
    /// A string says that it is longer than what there is.
    #[error("a BYTES element says that its length is {length} where {left} bytes are left")]
    Overlong {
        /// What it says.
        length: usize,
        /// Bytes behind it.
        left: usize,
    },
    /// What is left is too short for the length of a string.
    #[error("the data ends in {0} bytes that are no whole BYTES element")]
    Rest(usize),
}

/// A dense tensor in row-major order, little-endian. Its fields always agree: see [`Tensor::new`].
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    datatype: DataType,
    shape: Vec<usize>,
    data: Bytes,
}

impl Tensor {
    /// Checks that `shape` x `datatype` is the length of `data`, in bytes, with overflow in mind; of strings, that
    /// there are as many and that each is whole.
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
        let Some(size) = datatype.size() else {
            let count = count(&data)?;
            if count != elements {
                let (shape, expected, actual) = (shape.to_vec(), elements, count);
                return Err(TensorError::Count { shape, expected, actual });
            }
            return Ok(Tensor { datatype, shape: dims, data });
        };
        let expected = elements.checked_mul(size).ok_or_else(overflow)?;
        if expected != data.len() {
            let (shape, actual) = (shape.to_vec(), data.len());
            return Err(TensorError::Length { datatype, shape, expected, actual });
        }
        Ok(Tensor { datatype, shape: dims, data })
    }

    /// A tensor of strings. One as long as 4 GiB is in no memory here, and would be refused.
    pub fn of_strings<'a>(
        shape: &[u64],
        strings: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<Self, TensorError> {
        let bytes = strings.clone().map(|string| STRING_HEAD + string.len()).sum();
        let mut data = BytesMut::with_capacity(bytes);
        strings.for_each(|string| put_string(&mut data, string));
        Tensor::new(DataType::Bytes, shape, data.freeze())
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

    /// How many elements there are.
    pub fn elements(&self) -> usize {
        // It was multiplied when the tensor was made.
        self.shape.iter().product()
    }

    /// The elements of a tensor of strings; none of any other.
    pub fn strings(&self) -> Strings<'_> {
        Strings(if self.datatype == DataType::Bytes { &self.data } else { &[] })
    }
}

/// Writes a string as tensors have it.
pub fn put_string(out: &mut impl BufMut, string: &[u8]) {
    out.put_u32_le(u32::try_from(string.len()).unwrap_or(u32::MAX));
    out.put_slice(string);
}

/// How many strings these bytes are.
fn count(data: &[u8]) -> Result<usize, TensorError> {
    let mut strings = Strings(data);
    let count = strings.by_ref().count();
    match strings.0.split_first_chunk::<STRING_HEAD>() {
        None if strings.0.is_empty() => Ok(count),
        None => Err(TensorError::Rest(strings.0.len())),
        Some((length, left)) => {
            let length = u32::from_le_bytes(*length) as usize;
            Err(TensorError::Overlong { length, left: left.len() })
        }
    }
}

/// The strings of a tensor, in order.
#[derive(Debug, Clone)]
pub struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    /// The bytes that the strings not yet given take, with their lengths.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<STRING_HEAD>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let (string, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
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

    fn of_strings(shape: &[u64], data: &'static [u8]) -> Result<Tensor, TensorError> {
        Tensor::new(DataType::Bytes, shape, Bytes::from_static(data))
    }

    #[test]
    fn strings_are_whole_and_as_many_as_the_shape_says() {
        let pair = of_strings(&[2, 1], b"\x02\0\0\0ab\0\0\0\0").unwrap();
        assert_eq!(pair.strings().collect::<Vec<_>>(), [&b"ab"[..], b""]);
        assert!(of_strings(&[0, 7], b"").is_ok() && of_strings(&[], b"\0\0\0\0").is_ok());
        let overlong = |length, left| Err(TensorError::Overlong { length, left });
        assert_eq!(of_strings(&[1], b"\x03\0\0\0ab"), overlong(3, 2));
        assert_eq!(of_strings(&[1], b"\xff\xff\xff\xffab"), overlong(u32::MAX as usize, 2));
        assert_eq!(of_strings(&[1], b"\x01\0\0"), Err(TensorError::Rest(3)));
        for (shape, data) in [(&[2][..], &b"\x02\0\0\0ab"[..]), (&[], b""), (&[1 << 40], b"")] {
            assert!(matches!(of_strings(shape, data), Err(TensorError::Count { .. })), "{shape:?}");
        }
        assert!(matches!(
            of_strings(&[u64::MAX, 2], b""),
            Err(TensorError::Overflow { datatype: DataType::Bytes, .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn strings_come_back(strings in proptest::collection::vec(".{0,9}", 0..9)) {
            let bytes: Vec<&[u8]> = strings.iter().map(|string| string.as_bytes()).collect();
            let shape = [bytes.len() as u64];
            let tensor = Tensor::of_strings(&shape, bytes.iter().copied()).unwrap();
            assert_eq!(tensor.strings().collect::<Vec<_>>(), bytes);
            assert_eq!((tensor.elements(), tensor.strings().count()), (bytes.len(), bytes.len()));
        }

        #[test]
        fn no_strings_panic(
            shape in proptest::collection::vec(0u64..4, 0..4),
            data in proptest::collection::vec(0u8..5, 0..40),
        ) {
            let elements = shape.iter().product::<u64>() as usize;
            if let Ok(tensor) = Tensor::new(DataType::Bytes, &shape, data.into()) {
                assert_eq!(tensor.strings().count(), elements);
                let bytes: usize = tensor.strings().map(|string| STRING_HEAD + string.len()).sum();
                assert_eq!(bytes, tensor.data().len());
            }
        }

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
