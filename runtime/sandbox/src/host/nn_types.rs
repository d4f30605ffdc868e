//! The interface has seven element types, models have more. What a model takes or gives outside the seven travels in
//! the next wider of them: bool as U8, 8- and 16-bit integers and u16 as I32, u32 and u64 as I64.

use bytes::Bytes;
use sandpiper_domain::{DataType, InferenceError, ModelSignature, Tensor};

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
    let size = wanted.size();
    let mut narrow = Vec::with_capacity(tensor.data().len() / tensor.datatype().size() * size);
    for element in tensor.data().chunks_exact(tensor.datatype().size()) {
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

/// Widens an output to a type the interface has.
pub(crate) fn widen_output(tensor: Tensor) -> Result<(TensorType, Tensor), InferenceError> {
    let own = tensor.datatype();
    if let Some(ty) = wit_type(own) {
        return Ok((ty, tensor));
    }
    let wide = carrier(own);
    let ty = wit_type(wide).ok_or_else(|| {
        InferenceError::Unsupported(format!("wasi:nn has no type for an output of {own}"))
    })?;
    let mut data = Vec::with_capacity(tensor.data().len() / own.size() * wide.size());
    for element in tensor.data().chunks_exact(own.size()) {
        let value = integer(element, own);
        if !range(wide).contains(&value) {
            return Err(InferenceError::Runtime(format!(
                "an output of {own} does not fit the {wide} that wasi:nn carries it in"
            )));
        }
        data.extend_from_slice(&value.to_le_bytes()[..wide.size()]);
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
    let bits = if datatype == DataType::Bool { 1 } else { datatype.size() as u32 * 8 };
    match is_signed(datatype) {
        true => -(1 << (bits - 1))..=(1 << (bits - 1)) - 1,
        false => 0..=(1 << bits) - 1,
    }
}

#[cfg(test)]
mod tests {
    use sandpiper_domain::TensorSpec;

    use super::*;

    fn tensor(datatype: DataType, data: &[u8]) -> Tensor {
        let elements = data.len() / datatype.size();
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

    proptest::proptest! {
        #[test]
        fn widening_and_narrowing_are_inverse(data in proptest::collection::vec(0u8.., 0..64)) {
            for datatype in [DataType::I8, DataType::I16, DataType::U16, DataType::U32] {
                let whole = data.len() / datatype.size() * datatype.size();
                let tensor = tensor(datatype, &data[..whole]);
                let (_, wide) = widen_output(tensor.clone()).unwrap();
                assert_eq!(fit_input(wide, "x", &takes(datatype)).unwrap(), tensor);
            }
        }
    }
}
