//! Tensors by the protocol's names: the common ground of JSON, binary parts and gRPC's raw contents.

use bytes::Bytes;
use sandpiper_domain::{DataType, ModelSignature, NamedTensor, RANK_MAX, Tensor};

use super::{OipError, error::shown};

/// A datatype as a request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireType {
    /// Elements of a fixed size.
    Fixed(DataType),
    /// `BYTES`: each element is its length, 32 bits, and so many bytes.
    Bytes,
}

impl WireType {
    /// Reads the protocol's name, such as `FP32`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(WireType::Fixed(match name {
            "FP32" => DataType::F32,
            "INT64" => DataType::I64,
            "BOOL" => DataType::Bool,
            "UINT8" => DataType::U8,
            "UINT16" => DataType::U16,
            "UINT32" => DataType::U32,
            "UINT64" => DataType::U64,
            "INT8" => DataType::I8,
            "INT16" => DataType::I16,
            "INT32" => DataType::I32,
            "FP16" => DataType::F16,
            "BF16" => DataType::BF16,
            "FP64" => DataType::F64,
            "BYTES" => return Some(WireType::Bytes),
            _ => return None,
        }))
    }
}

/// The name, type and shape of an input, checked.
#[derive(Debug)]
pub(crate) struct InputSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: WireType,
    shape: [u64; RANK_MAX],
    rank: usize,
    /// The product of the shape.
    pub(crate) elements: usize,
}

impl<'a> InputSpec<'a> {
    /// Checks what a request says of an input.
    pub(crate) fn new(name: &'a str, datatype: &str, shape: &[i64]) -> Result<Self, OipError> {
        let refuse =
            |text: String| OipError::invalid(format!("the input `{}` {text}", shown(name)));
        let wire = WireType::parse(datatype)
            .ok_or_else(|| refuse(format!("has the unknown datatype `{}`", shown(datatype))))?;
        if shape.len() > RANK_MAX {
            let text = format!("has {} dimensions; at most {RANK_MAX} are allowed", shape.len());
            return Err(refuse(text));
        }
        let (mut dims, mut elements) = ([0; RANK_MAX], 1usize);
        for (dim, size) in dims.iter_mut().zip(shape) {
            *dim = u64::try_from(*size)
                .map_err(|_| refuse(format!("has the shape {shape:?}, with a negative size")))?;
            elements =
                usize::try_from(*dim).ok().and_then(|dim| elements.checked_mul(dim)).ok_or_else(
                    || refuse(format!("has the shape {shape:?}, whose product overflows")),
                )?;
        }
        Ok(InputSpec { name, datatype: wire, shape: dims, rank: shape.len(), elements })
    }

    /// The dimensions.
    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape[..self.rank]
    }

    /// Checks name, type and shape against the model's, before anything is read of the data. Strings are read first, so
    /// that what is wrong with them is told.
    pub(crate) fn must_fit(&self, signature: &ModelSignature) -> Result<(), OipError> {
        let WireType::Fixed(datatype) = self.datatype else { return Ok(()) };
        let spec = signature.inputs.iter().find(|spec| spec.name == self.name);
        let Some(spec) = spec else {
            return Err(OipError::invalid(format!(
                "the model has no input `{}`",
                shown(self.name)
            )));
        };
        if datatype != spec.datatype {
            let wanted = spec.datatype;
            return Err(self.refuse(format!("is {datatype}; the model takes {wanted}")));
        }
        let fits = |(size, wanted): (&u64, &i64)| *wanted < 0 || *size as i64 == *wanted;
        let is_same =
            self.rank == spec.shape.len() && self.shape().iter().zip(&spec.shape).all(fits);
        // A graph may say nothing of an input's rank; the model itself looks then.
        if !spec.shape.is_empty() && !is_same {
            let (given, wanted) = (self.shape(), &spec.shape);
            let text = format!(
                "has the shape {given:?}; the model takes {wanted:?}, where -1 is any size"
            );
            return Err(self.refuse(text));
        }
        Ok(())
    }

    /// An error about this input.
    pub(crate) fn refuse(&self, text: impl std::fmt::Display) -> OipError {
        OipError::invalid(format!("the input `{}` {text}", shown(self.name)))
    }

    /// The input with these bytes: little-endian, row-major, elements of `BYTES` with their lengths.
    pub(crate) fn with_bytes(&self, data: Bytes) -> Result<NamedTensor, OipError> {
        match self.datatype {
            WireType::Fixed(datatype) => self.of(datatype, data),
            WireType::Bytes => {
                self.check_lengths(&data)?;
                Err(self.no_strings())
            }
        }
    }

    pub(super) fn of(&self, datatype: DataType, data: Bytes) -> Result<NamedTensor, OipError> {
        let tensor = Tensor::new(datatype, self.shape(), data)
            .map_err(|error| self.refuse(format!("does not fit together: {error}")))?;
        Ok(NamedTensor { name: self.name.to_owned(), tensor })
    }

    /// Strings are read, so that what is wrong with them is told, and then refused: no model of this backend has any.
    pub(super) fn no_strings(&self) -> OipError {
        self.refuse("is BYTES; models here take numbers and booleans alone")
    }

    fn check_lengths(&self, data: &[u8]) -> Result<(), OipError> {
        let (mut rest, mut count) = (data, 0usize);
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            rest = after.get(length..).ok_or_else(|| {
                let left = after.len();
                self.refuse(format!(
                    "has a BYTES element whose length is {length} where {left} bytes are left"
                ))
            })?;
            count += 1;
        }
        if !rest.is_empty() {
            let text = format!("ends in {} bytes that are no whole BYTES element", rest.len());
            return Err(self.refuse(text));
        }
        if count != self.elements {
            let (shape, wanted) = (self.shape(), self.elements);
            let text = format!("has the shape {shape:?}, {wanted} elements; {count} were given");
            return Err(self.refuse(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_is_known_by_its_own_name() {
        for datatype in [DataType::Bool, DataType::U8, DataType::BF16, DataType::F16, DataType::I64]
        {
            assert_eq!(WireType::parse(datatype.name()), Some(WireType::Fixed(datatype)));
        }
        for text in ["", "fp32", "FLOAT", "TYPE_FP32", "STRING", "FP32 "] {
            assert_eq!(WireType::parse(text), None, "{text}");
        }
    }

    #[test]
    fn shapes_are_checked_for_sign_rank_and_overflow() {
        for shape in [&[-1i64][..], &[1; 9], &[i64::MAX, i64::MAX], &[1 << 40, 1 << 40]] {
            assert!(InputSpec::new("x", "FP32", shape).is_err(), "{shape:?}");
        }
        assert_eq!(InputSpec::new("x", "FP32", &[]).unwrap().elements, 1);
        assert_eq!(InputSpec::new("x", "FP32", &[3, 0, 5]).unwrap().elements, 0);
        // Bytes overflow though elements do not.
        let spec = InputSpec::new("x", "FP64", &[1 << 61]).unwrap();
        assert!(spec.with_bytes(Bytes::new()).is_err());
    }

    fn of_bytes(shape: &[i64], data: &'static [u8]) -> String {
        let spec = InputSpec::new("s", "BYTES", shape).unwrap();
        spec.with_bytes(Bytes::from_static(data)).unwrap_err().to_string()
    }

    #[test]
    fn bytes_with_a_bad_length_are_told_from_good_ones() {
        assert!(of_bytes(&[1], b"\x02\0\0\0ab").contains("numbers and booleans"));
        assert!(of_bytes(&[0], b"").contains("numbers and booleans"));
        assert!(of_bytes(&[1], b"\x03\0\0\0ab").contains("length is 3"));
        assert!(of_bytes(&[1], b"\xff\xff\xff\xffab").contains("length is 4294967295"));
        assert!(of_bytes(&[1], b"\x01\0\0").contains("no whole"));
        assert!(of_bytes(&[2], b"\x02\0\0\0ab").contains("2 elements; 1 were given"));
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(
            datatype in "(BYTES|FP32|BOOL|INT64|BF16|x)",
            shape in proptest::collection::vec(-2i64..5, 0..10),
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
        ) {
            if let Ok(spec) = InputSpec::new("x", &datatype, &shape) {
                let _ = spec.with_bytes(data.into());
            }
        }

        #[test]
        fn whole_strings_are_counted(strings in proptest::collection::vec(".{0,9}", 0..9)) {
            let mut data = Vec::new();
            for string in &strings {
                data.extend_from_slice(&(string.len() as u32).to_le_bytes());
                data.extend_from_slice(string.as_bytes());
            }
            let shape = [strings.len() as i64];
            let spec = InputSpec::new("s", "BYTES", &shape).unwrap();
            proptest::prop_assert!(spec.check_lengths(&data).is_ok());
        }
    }
}
