//! Typed arrays, as they travel to a model and back.

use half::{bf16, f16};

use crate::{Error, Result};

/// What one element of a [`Tensor`] is.
///
/// ```
/// use sandpiper_guest::DataType;
///
/// assert_eq!(DataType::BF16.bytes(), 2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// The upper half of a binary32.
    BF16,
    /// Unsigned, one byte.
    U8,
    /// Signed, four bytes.
    I32,
    /// Signed, eight bytes.
    I64,
}

impl DataType {
    /// The size of one element.
    ///
    /// ```
    /// # use sandpiper_guest::DataType;
    /// assert_eq!(DataType::I64.bytes(), 8);
    /// ```
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// A dense array of numbers, row by row.
///
/// A tensor can be made of any dimensions and any number of elements; whether the two agree is
/// checked when a model is run with it, see [`Tensor::check`].
///
/// ```
/// use sandpiper_guest::{Error, Tensor};
///
/// let tensor = Tensor::f32([2, 2], &[1.0, 2.0, 3.0, 4.0]);
/// assert_eq!(tensor.dims(), [2, 2]);
/// assert_eq!(tensor.to_f32()?, [1.0, 2.0, 3.0, 4.0]);
/// assert!(tensor.to_i64().is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    dims: Vec<usize>,
    data_type: DataType,
    data: Vec<u8>,
}

/// Copies numbers into little-endian bytes. A loop over whole chunks compiles to a plain copy.
macro_rules! pack {
    ($values:expr, $number:ty) => {{
        const SIZE: usize = size_of::<$number>();
        let values: &[$number] = $values;
        let mut data = vec![0; values.len() * SIZE];
        for (bytes, value) in data.chunks_exact_mut(SIZE).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        data
    }};
}

/// The way back, through `$convert` to the number wanted.
macro_rules! unpack {
    ($data:expr, $number:ty, $convert:expr) => {
        $data
            .as_chunks::<{ size_of::<$number>() }>()
            .0
            .iter()
            .map(|bytes| $convert(<$number>::from_le_bytes(*bytes)))
            .collect()
    };
}

impl Tensor {
    /// Bytes as the model wants them: little-endian, without padding.
    ///
    /// ```
    /// # use sandpiper_guest::{DataType, Tensor};
    /// let tensor = Tensor::raw([1], DataType::I32, vec![1, 0, 0, 0]);
    /// assert_eq!(tensor, Tensor::i32([1], &[1]));
    /// ```
    pub fn raw(dims: impl Into<Vec<usize>>, data_type: DataType, data: Vec<u8>) -> Self {
        Self { dims: dims.into(), data_type, data }
    }

    /// A tensor of `f32`.
    ///
    /// ```
    /// # use sandpiper_guest::{DataType, Tensor};
    /// assert_eq!(Tensor::f32([1, 2], &[0.5, 1.5]).data_type(), DataType::F32);
    /// ```
    pub fn f32(dims: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        Self::raw(dims, DataType::F32, pack!(values, f32))
    }

    /// A tensor of `f64`.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::f64([1], &[0.1]).bytes().len(), 8);
    /// ```
    pub fn f64(dims: impl Into<Vec<usize>>, values: &[f64]) -> Self {
        Self::raw(dims, DataType::F64, pack!(values, f64))
    }

    /// A tensor of `i64`.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::i64([2], &[7, -7]).bytes().len(), 16);
    /// ```
    pub fn i64(dims: impl Into<Vec<usize>>, values: &[i64]) -> Self {
        Self::raw(dims, DataType::I64, pack!(values, i64))
    }

    /// A tensor of `i32`.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::i32([1], &[1]).bytes(), [1, 0, 0, 0]);
    /// ```
    pub fn i32(dims: impl Into<Vec<usize>>, values: &[i32]) -> Self {
        Self::raw(dims, DataType::I32, pack!(values, i32))
    }

    /// A tensor of bytes.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::u8([3], b"abc").bytes(), b"abc");
    /// ```
    pub fn u8(dims: impl Into<Vec<usize>>, values: &[u8]) -> Self {
        Self::raw(dims, DataType::U8, values.to_vec())
    }

    /// Strings as a model with an input of type BYTES takes them: the interface has no strings, so that they travel as
    /// bytes, each after its length. The tensor has one dimension; how many rows the strings are, the model says.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::strings(&["ab", ""]).bytes(), b"\x02\0\0\0ab\0\0\0\0");
    /// ```
    pub fn strings(texts: &[impl AsRef<str>]) -> Self {
        let mut data = Vec::new();
        for text in texts.iter().map(AsRef::as_ref) {
            data.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            data.extend_from_slice(text.as_bytes());
        }
        Self::raw([data.len()], DataType::U8, data)
    }

    /// A tensor of half-precision numbers, rounded from `f32`.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::f16([1], &[0.5]).to_f32()?, [0.5]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn f16(dims: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
        Self::raw(dims, DataType::F16, pack!(&halves, f16))
    }

    /// A tensor of bfloat16 numbers, rounded from `f32`.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::bf16([1], &[1.0]).to_f32()?, [1.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn bf16(dims: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        let halves: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
        Self::raw(dims, DataType::BF16, pack!(&halves, bf16))
    }

    /// The length of each axis, outermost first.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::u8([1, 3], b"abc").dims(), [1, 3]);
    /// ```
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The type of the elements.
    ///
    /// ```
    /// # use sandpiper_guest::{DataType, Tensor};
    /// assert_eq!(Tensor::u8([3], b"abc").data_type(), DataType::U8);
    /// ```
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The elements as little-endian bytes.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert_eq!(Tensor::i64([1], &[1]).bytes(), [1, 0, 0, 0, 0, 0, 0, 0]);
    /// ```
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Checks that the dimensions account for every byte. [`Model::run`](crate::Model::run) does.
    ///
    /// # Errors
    ///
    /// `model_invalid_argument`, which is also what the host would answer.
    ///
    /// ```
    /// # use sandpiper_guest::Tensor;
    /// assert!(Tensor::u8([3], b"abc").check().is_ok());
    /// assert!(Tensor::u8([4], b"abc").check().is_err());
    /// assert!(Tensor::u8([usize::MAX, 2], b"abc").check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        let wanted = self
            .dims
            .iter()
            .try_fold(self.data_type.bytes(), |bytes, dim| bytes.checked_mul(*dim))
            .filter(|_| self.dims.iter().all(|dim| u32::try_from(*dim).is_ok()));
        if wanted == Some(self.data.len()) {
            return Ok(());
        }
        let message = format!(
            "{:?} of {:?} does not fit the {} bytes given",
            self.dims,
            self.data_type,
            self.data.len()
        );
        Err(Error::model(crate::ModelFailure::InvalidArgument, message))
    }

    /// The elements as `f32`: also from `f16` and `bf16`, which it holds exactly.
    ///
    /// # Errors
    ///
    /// 500 where the elements are of another type.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::bf16([1], &[2.0]).to_f32()?, [2.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.data_type {
            DataType::F32 => Ok(unpack!(self.data, f32, std::convert::identity)),
            DataType::F16 => Ok(unpack!(self.data, f16, f16::to_f32)),
            DataType::BF16 => Ok(unpack!(self.data, bf16, bf16::to_f32)),
            other => Err(Self::mismatch(other, "f32")),
        }
    }

    /// The elements as `f64`: also from every smaller float.
    ///
    /// # Errors
    ///
    /// 500 where the elements are integers.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::f32([1], &[0.25]).to_f64()?, [0.25]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        match self.data_type {
            DataType::F64 => Ok(unpack!(self.data, f64, std::convert::identity)),
            DataType::F32 => Ok(unpack!(self.data, f32, f64::from)),
            DataType::F16 => Ok(unpack!(self.data, f16, f16::to_f64)),
            DataType::BF16 => Ok(unpack!(self.data, bf16, bf16::to_f64)),
            other => Err(Self::mismatch(other, "f64")),
        }
    }

    /// The elements as `i64`: also from every smaller integer.
    ///
    /// # Errors
    ///
    /// 500 where the elements are floats.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::i32([1], &[-3]).to_i64()?, [-3]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match self.data_type {
            DataType::I64 => Ok(unpack!(self.data, i64, std::convert::identity)),
            DataType::I32 => Ok(unpack!(self.data, i32, i64::from)),
            DataType::U8 => Ok(self.data.iter().map(|byte| i64::from(*byte)).collect()),
            other => Err(Self::mismatch(other, "i64")),
        }
    }

    /// The elements as `i32`: also from bytes.
    ///
    /// # Errors
    ///
    /// 500 where the elements are of another type.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::u8([1], &[200]).to_i32()?, [200]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match self.data_type {
            DataType::I32 => Ok(unpack!(self.data, i32, std::convert::identity)),
            DataType::U8 => Ok(self.data.iter().map(|byte| i32::from(*byte)).collect()),
            other => Err(Self::mismatch(other, "i32")),
        }
    }

    /// The elements as bytes.
    ///
    /// # Errors
    ///
    /// 500 where the elements are of another type; [`Tensor::bytes`] takes any.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::u8([2], &[1, 2]).to_u8()?, [1, 2]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_u8(&self) -> Result<Vec<u8>> {
        match self.data_type {
            DataType::U8 => Ok(self.data.clone()),
            other => Err(Self::mismatch(other, "u8")),
        }
    }

    /// The strings of an output of type BYTES, see [`Tensor::strings`].
    ///
    /// # Errors
    ///
    /// 500 where the elements are no bytes, or the bytes no strings.
    ///
    /// ```
    /// # use sandpiper_guest::{Error, Tensor};
    /// assert_eq!(Tensor::strings(&["setosa"]).to_strings()?, ["setosa"]);
    /// assert!(Tensor::u8([3], b"abc").to_strings().is_err());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_strings(&self) -> Result<Vec<String>> {
        let broken = || Error::internal("the tensor's bytes are no strings, each after its length");
        if self.data_type != DataType::U8 {
            return Err(Self::mismatch(self.data_type, "strings"));
        }
        let (mut rest, mut texts) = (&self.data[..], Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk().ok_or_else(broken)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (text, after) = after.split_at_checked(length).ok_or_else(broken)?;
            texts.push(std::str::from_utf8(text).map_err(|_| broken())?.to_owned());
            rest = after;
        }
        Ok(texts)
    }

    fn mismatch(actual: DataType, wanted: &str) -> Error {
        Error::internal(format!("the tensor holds {actual:?}, which does not read as {wanted}"))
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn into_data(self) -> Vec<u8> {
        self.data
    }
}
