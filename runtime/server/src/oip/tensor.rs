//! Tensors by the protocol's names: the common ground of JSON, binary parts and gRPC's raw contents.

use bytes::Bytes;
use sandpiper_domain::{
    DataType, ModelSignature, NamedTensor, RANK_MAX, Tensor, TensorError, TensorSpec,
};

use super::{OipError, error::shown};

/// Reads the protocol's name of a datatype, such as `FP32`.
fn datatype(name: &str) -> Option<DataType> {
    Some(match name {
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
        "BYTES" => DataType::Bytes,
        _ => return None,
    })
}

/// The name, type and shape of an input, checked.
#[derive(Debug)]
pub(crate) struct InputSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: DataType,
    shape: [u64; RANK_MAX],
    rank: usize,
    /// The product of the shape.
    pub(crate) elements: usize,
}

impl<'a> InputSpec<'a> {
    /// Checks what a request says of an input.
    pub(crate) fn new(name: &'a str, kind: &str, shape: &[i64]) -> Result<Self, OipError> {
        let refuse =
            |text: String| OipError::invalid(format!("the input `{}` {text}", shown(name)));
        let datatype = datatype(kind)
            .ok_or_else(|| refuse(format!("has the unknown datatype `{}`", shown(kind))))?;
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
        Ok(InputSpec { name, datatype, shape: dims, rank: shape.len(), elements })
    }

    /// The dimensions.
    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape[..self.rank]
    }

    /// Checks name, type and shape against the model's, before anything is read of the data. Strings for a model that
    /// takes none are read first, so that what is wrong with them is told.
    pub(crate) fn must_fit(&self, signature: &ModelSignature) -> Result<(), OipError> {
        let is_text = |spec: &TensorSpec| spec.name == self.name && spec.datatype == self.datatype;
        if self.datatype == DataType::Bytes && !signature.inputs.iter().any(is_text) {
            return Ok(());
        }
        self.must_be_wanted(signature)
    }

    /// The same, whatever the type is.
    pub(crate) fn must_be_wanted(&self, signature: &ModelSignature) -> Result<(), OipError> {
        let spec = signature.inputs.iter().find(|spec| spec.name == self.name);
        let Some(spec) = spec else {
            return Err(OipError::invalid(format!(
                "the model has no input `{}`",
                shown(self.name)
            )));
        };
        if self.datatype != spec.datatype {
            let (datatype, wanted) = (self.datatype, spec.datatype);
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
        let tensor = Tensor::new(self.datatype, self.shape(), data).map_err(|error| {
            let detail = match error {
                TensorError::Overlong { length, left } => format!(
                    "has a BYTES element whose length is {length} where {left} bytes are left"
                ),
                TensorError::Rest(bytes) => {
                    format!("ends in {bytes} bytes that are no whole BYTES element")
                }
                TensorError::Count { shape, expected, actual } => {
                    format!("has the shape {shape:?}, {expected} elements; {actual} were given")
                }
                error => format!("does not fit together: {error}"),
            };
            self.refuse(detail)
        })?;
        Ok(NamedTensor { name: self.name.to_owned(), tensor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_is_known_by_its_own_name() {
        let (bf16, bytes) = (DataType::BF16, DataType::Bytes);
        for datatype in [DataType::Bool, DataType::U8, bf16, DataType::F16, DataType::I64, bytes] {
            assert_eq!(super::datatype(datatype.name()), Some(datatype));
        }
        for text in ["", "fp32", "FLOAT", "TYPE_FP32", "STRING", "FP32 "] {
            assert_eq!(datatype(text), None, "{text}");
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
    fn bytes_with_a_bad_length_are_refused() {
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
            let tensor = spec.with_bytes(data.into()).unwrap().tensor;
            let read: Vec<&[u8]> = tensor.strings().collect();
            proptest::prop_assert_eq!(read, strings.iter().map(|s| s.as_bytes()).collect::<Vec<_>>());
        }
    }
}
