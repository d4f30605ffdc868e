//! The interface has seven element types, models have more. What a model takes or gives outside the seven travels in
//! the next wider of them: bool as U8, 8- and 16-bit integers and u16 as I32, u32 and u64 as I64.
//!
//! Strings travel as their bytes: a U8 tensor of one dimension that holds them in row-major order, each after its
//! length in 32 bits, little-endian. The shape of such an input is the model's own, where one size at most may be free:
//! it is told from how many strings there are.

use bytes::Bytes;
use sandpiper_domain::{DataType, InferenceError, ModelSignature, Tensor, TensorError, TensorSpec};

use super::nn::{TensorType, wit_type};

pub(crate) fn datatype(ty: TensorType) -> DataType {
    match ty {
        TensorType::Fp16 => DataType::F16,
        TensorType::Bf16 => DataType::BF16,
        TensorType::Fp32 => DataType::F32,
        TensorType::Fp64 => DataType::F64,
        TensorType::U8 => DataType::U8,
        TensorType::I32 => DataType::I32,
        TensorType::I64 => DataType::I64,
    }
}

/// The type that carries `datatype` through the interface.
fn carrier(datatype: DataType) -> DataType {
    match datatype {
        DataType::Bool => DataType::U8,
        DataType::I8 | DataType::I16 | DataType::U16 => DataType::I32,
        DataType::U32 | DataType::U64 => DataType::I64,
        DataType::Bytes => DataType::U8,
        own => own,
    }
}

/// Narrows an input to the model's own type when the interface could not express that type. Anything else is left as
/// it is: the backend names what does not fit.
pub(crate) fn fit_input(
    tensor: Tensor,
    name: &str,
    signature: &ModelSignature,
) -> Result<Tensor, InferenceError> {
    let Some(spec) = signature.inputs.iter().find(|spec| spec.name == name) else {
        return Ok(tensor);
    };
    let wanted = spec.datatype;
    if wanted == tensor.datatype() || carrier(wanted) != tensor.datatype() {
        return Ok(tensor);
    }
    let (Some(size), Some(wide)) = (wanted.size(), tensor.datatype().size()) else {
        return strings(&tensor, spec);
    };
    let mut narrow = Vec::with_capacity(tensor.data().len() / wide * size);
    for element in tensor.data().chunks_exact(wide) {
        let value = integer(element, tensor.datatype());
        if !range(wanted).contains(&value) {
            return Err(InferenceError::InvalidArgument(format!(
                "input `{name}` is {wanted}, and an element is outside its range"
            )));
        }
        narrow.extend_from_slice(&value.to_le_bytes()[..size]);
    }
    rebuild(wanted, &tensor, narrow)
}

/// The strings that the bytes of an input are, in the shape that the model takes.
fn strings(tensor: &Tensor, spec: &TensorSpec) -> Result<Tensor, InferenceError> {
    let refuse = |text: String| {
        let name = &spec.name;
        InferenceError::InvalidArgument(format!("input `{name}` is BYTES: {text}"))
    };
    if tensor.shape().len() != 1 {
        let text = "give a U8 tensor of one dimension with each string after its length in 32 bits";
        return Err(refuse(text.to_owned()));
    }
    let count = |shape: &[u64]| Tensor::new(DataType::Bytes, shape, tensor.data().clone());
    let elements = match count(&[0]) {
        Ok(_) => 0,
        Err(TensorError::Count { actual, .. }) => actual as u64,
        Err(error) => return Err(refuse(error.to_string())),
    };
    let fixed = spec.shape.iter().filter_map(|size| u64::try_from(*size).ok());
    let row = fixed.fold(1u64, u64::saturating_mul);
    let free = elements.checked_div(row).unwrap_or(0);
    if spec.shape.iter().filter(|size| **size < 0).count() > 1 {
        return Err(refuse(
            "more than one of its sizes is free, so that wasi:nn cannot say it".to_owned(),
        ));
    }
    let shape: Vec<u64> =
        spec.shape.iter().map(|size| u64::try_from(*size).unwrap_or(free)).collect();
    count(&shape).map_err(|error| refuse(error.to_string()))
}

/// Widens an output to a type the interface has.
pub(crate) fn widen_output(tensor: Tensor) -> Result<(TensorType, Tensor), InferenceError> {
    let own = tensor.datatype();
    if let Some(ty) = wit_type(own) {
        return Ok((ty, tensor));
    }
    let wide = carrier(own);
    let (Some(size), Some(wide_size)) = (own.size(), wide.size()) else {
        let (shape, data) = ([tensor.data().len() as u64], tensor.data().clone());
        let bytes = Tensor::new(DataType::U8, &shape, data);
        let bytes = bytes.map_err(|error| InferenceError::Runtime(error.to_string()))?;
        return Ok((TensorType::U8, bytes));
    };
    let ty = wit_type(wide).ok_or_else(|| {
        InferenceError::Unsupported(format!("wasi:nn has no type for an output of {own}"))
    })?;
    let mut data = Vec::with_capacity(tensor.data().len() / size * wide_size);
    for element in tensor.data().chunks_exact(size) {
        let value = integer(element, own);
        if !range(wide).contains(&value) {
            return Err(InferenceError::Runtime(format!(
                "an output of {own} does not fit the {wide} that wasi:nn carries it in"
            )));
        }
        data.extend_from_slice(&value.to_le_bytes()[..wide_size]);
    }
    Ok((ty, rebuild(wide, &tensor, data)?))
}

fn rebuild(datatype: DataType, like: &Tensor, data: Vec<u8>) -> Result<Tensor, InferenceError> {
    let shape: Vec<u64> = like.shape().iter().map(|dim| *dim as u64).collect();
    Tensor::new(datatype, &shape, Bytes::from(data))
        .map_err(|error| InferenceError::Runtime(error.to_string()))
}

fn is_signed(datatype: DataType) -> bool {
    matches!(datatype, DataType::I8 | DataType::I16 | DataType::I32 | DataType::I64)
}

/// Reads one little-endian integer element of up to eight bytes.
fn integer(element: &[u8], datatype: DataType) -> i128 {
    let negative = is_signed(datatype) && element.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    for (to, from) in wide.iter_mut().zip(element) {
        *to = *from;
    }
    i128::from_le_bytes(wide)
}

fn range(datatype: DataType) -> std::ops::RangeInclusive<i128> {
    let bits = if datatype == DataType::Bool { 1 } else { datatype.size_min() as u32 * 8 };
    match is_signed(datatype) {
        true => -(1 << (bits - 1))..=(1 << (bits - 1)) - 1,
        false => 0..=(1 << bits) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: DataType, data: &[u8]) -> Tensor {
        let elements = data.len() / datatype.size_min();
        Tensor::new(datatype, &[elements as u64], Bytes::copy_from_slice(data)).unwrap()
    }

    fn takes(datatype: DataType) -> ModelSignature {
        let spec = TensorSpec { name: "x".to_owned(), datatype, shape: vec![-1] };
        ModelSignature { inputs: vec![spec], outputs: vec![] }
    }

    #[test]
    fn signed_outputs_keep_their_sign() {
        let (ty, wide) = widen_output(tensor(DataType::I8, &[0xff, 0x7f, 0x80])).unwrap();
        assert_eq!(ty, TensorType::I32);
        let values: Vec<i32> =
            wide.data().chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(values, [-1, 127, -128]);
    }

    #[test]
    fn an_unsigned_64_bit_output_beyond_i64_is_an_error() {
        assert!(widen_output(tensor(DataType::U64, &u64::MAX.to_le_bytes())).is_err());
        assert!(widen_output(tensor(DataType::U64, &7u64.to_le_bytes())).is_ok());
    }

    #[test]
    fn inputs_are_narrowed_only_where_the_interface_could_not_say_the_type() {
        let bools = fit_input(tensor(DataType::U8, &[0, 1]), "x", &takes(DataType::Bool)).unwrap();
        assert_eq!(bools.datatype(), DataType::Bool);
        assert!(fit_input(tensor(DataType::U8, &[2]), "x", &takes(DataType::Bool)).is_err());
        let floats = fit_input(tensor(DataType::F32, &[0; 4]), "x", &takes(DataType::I64)).unwrap();
        assert_eq!(floats.datatype(), DataType::F32);
        let small = tensor(DataType::I32, &(-300i32).to_le_bytes());
        assert!(fit_input(small.clone(), "x", &takes(DataType::I8)).is_err());
        let fitted = fit_input(small, "x", &takes(DataType::I16)).unwrap();
        assert_eq!(&fitted.data()[..], (-300i16).to_le_bytes());
    }

    #[test]
    fn strings_travel_as_their_bytes() {
        let texts = [&b"ab"[..], b"", b"c"];
        let own = |shape: &[u64]| Tensor::of_strings(shape, texts.into_iter()).unwrap();
        let (ty, bytes) = widen_output(own(&[3])).unwrap();
        assert_eq!((ty, bytes.shape()), (TensorType::U8, &[15][..]));
        let fit = |shape: &[i64], tensor: &Tensor| {
            let mut signature = takes(DataType::Bytes);
            signature.inputs[0].shape = shape.to_vec();
            fit_input(tensor.clone(), "x", &signature)
        };
        assert_eq!(fit(&[-1], &bytes), Ok(own(&[3])));
        assert_eq!(fit(&[-1, 1], &bytes), Ok(own(&[3, 1])));
        assert_eq!(fit(&[1, 3], &bytes), Ok(own(&[1, 3])));
        for shape in [&[-1, -1][..], &[2], &[-1, 2], &[], &[-1, 0]] {
            assert!(fit(shape, &bytes).is_err(), "{shape:?}");
        }
        assert!(fit(&[-1], &tensor(DataType::U8, b"\x03\0\0\0ab")).is_err());
        let none = tensor(DataType::U8, b"");
        assert_eq!(fit(&[-1, 2], &none).unwrap().shape(), [0, 2]);
    }

    proptest::proptest! {
        #[test]
        fn widening_and_narrowing_are_inverse(data in proptest::collection::vec(0u8.., 0..64)) {
            for datatype in [DataType::I8, DataType::I16, DataType::U16, DataType::U32] {
                let whole = data.len() / datatype.size_min() * datatype.size_min();
                let tensor = tensor(datatype, &data[..whole]);
                let (_, wide) = widen_output(tensor.clone()).unwrap();
                assert_eq!(fit_input(wide, "x", &takes(datatype)).unwrap(), tensor);
            }
        }
    }
}
