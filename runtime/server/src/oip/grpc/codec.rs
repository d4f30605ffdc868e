//! Messages in and out of gRPC's frames, with what prost alone does not bound.

use bytes::Buf;
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

use super::message::model_infer_request::InferInputTensor;
use crate::oip::{OipError, place::INLINE_BYTES_MAX, repository::PARAMETERS_MAX};

/// Decodes a message, or says what it is not.
pub(super) fn decode<Q: Message + Default>(bytes: impl Buf) -> Result<Q, OipError> {
    Q::decode(bytes).map_err(|error| {
        OipError::invalid(format!("the message is no {}: {error}", short_name::<Q>()))
    })
}

fn short_name<Q>() -> &'static str {
    let name = std::any::type_name::<Q>();
    name.rsplit("::").next().unwrap_or(name)
}

/// The most strings, byte strings and submessages in one request. Each takes two bytes on the wire and a hundred times
/// that in memory, so that the length of a message alone bounds nothing.
const PARTS_MAX: u32 = 1 << 16;

/// What a part of these takes once it is decoded, at most, beside its bytes.
const PART_BYTES: u64 = 256;

/// What one of them takes beside that if it is an input or an output, or may stand for one: a list that grows has three
/// times what it holds, while it is copied.
const TENSOR_BYTES: u64 = 768;
const _: () = assert!(3 * size_of::<InferInputTensor>() as u64 <= PART_BYTES + TENSOR_BYTES);

/// Messages that become no more than this are decoded where they are.
const INLINE_GROWTH_BYTES_MAX: u64 = 8 * INLINE_BYTES_MAX as u64;

/// The submessages and packed numbers that are looked into.
struct Level {
    tag: u32,
    below: Below,
}

enum Below {
    Parts(&'static [Level]),
    Varints,
    Fixed(usize),
}

const fn level(tag: u32, below: Below) -> Level {
    Level { tag, below }
}

/// `inputs` with their `shape` and `contents`, and `outputs`.
const OF_INFERENCE: &[Level] = &[
    level(5, Below::Parts(&[level(3, Below::Varints), level(5, Below::Parts(OF_CONTENTS))])),
    level(6, Below::Parts(&[])),
];

/// Booleans and four kinds of integers, and two of floats.
const OF_CONTENTS: &[Level] = &[
    level(1, Below::Varints),
    level(2, Below::Varints),
    level(3, Below::Varints),
    level(4, Below::Varints),
    level(5, Below::Varints),
    level(6, Below::Fixed(4)),
    level(7, Below::Fixed(8)),
];

/// What a message becomes once it is decoded.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    parts: u32,
    /// Those parts that are looked into.
    tensors: u32,
    /// Numbers that are no raw bytes: a varint of one byte becomes eight.
    numbers: usize,
}

impl Growth {
    /// Bytes of the numbers alone.
    pub(super) fn number_bytes(self) -> usize {
        self.numbers.saturating_mul(8)
    }

    /// Bytes of everything that is not raw: what is decoded, and the numbers once more as a tensor's bytes.
    pub(super) fn bytes(self) -> u64 {
        let parts = u64::from(self.parts) * PART_BYTES + u64::from(self.tensors) * TENSOR_BYTES;
        self.number_bytes() as u64 * 2 + parts
    }

    /// Whether it takes long to decode, however short it is.
    pub(super) fn is_long(self) -> bool {
        self.bytes() > INLINE_GROWTH_BYTES_MAX
    }
}

/// Looks through a `ModelInferRequest` before it is decoded. Refuses one of more parts than [`PARTS_MAX`].
pub(super) fn growth(message: &[u8]) -> Result<Growth, OipError> {
    let mut growth = Growth::default();
    count("ModelInferRequest", message, OF_INFERENCE, &mut growth)?;
    Ok(growth)
}

/// The `parameters` of a load, each with its value.
const OF_LOAD: &[Level] = &[level(3, Below::Parts(&[level(2, Below::Parts(&[]))]))];

/// Looks through a `RepositoryModelLoadRequest` before it is decoded. Each parameter is four parts, and two are names.
pub(super) fn check_load(message: &[u8]) -> Result<(), OipError> {
    let mut growth = Growth::default();
    count("RepositoryModelLoadRequest", message, OF_LOAD, &mut growth)?;
    match growth.parts as usize > 2 + 4 * PARAMETERS_MAX {
        true => {
            let text = format!("a load has at most {PARAMETERS_MAX} parameters");
            Err(OipError::invalid(text))
        }
        false => Ok(()),
    }
}

fn count(
    name: &str,
    mut bytes: &[u8],
    levels: &[Level],
    growth: &mut Growth,
) -> Result<(), OipError> {
    let malformed = || OipError::invalid(format!("the message is no {name}: it is malformed"));
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| malformed())?;
        let length = match wire_type {
            WireType::Varint => decode_varint(&mut bytes).map(|_| 0).map_err(|_| malformed())?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                if growth.parts == PARTS_MAX {
                    let text = format!("the request has more than {PARTS_MAX} parts");
                    return Err(OipError::TooLarge(text));
                }
                growth.parts += 1;
                let length = decode_varint(&mut bytes).map_err(|_| malformed())?;
                usize::try_from(length).map_err(|_| malformed())?
            }
            // No version of the protocol has groups.
            WireType::StartGroup | WireType::EndGroup => return Err(malformed()),
        };
        let (part, rest) = bytes.split_at_checked(length).ok_or_else(malformed)?;
        if wire_type != WireType::LengthDelimited {
            // A number on its own, wherever it stands.
            growth.numbers += 1;
        } else if let Some(level) = levels.iter().find(|level| level.tag == tag) {
            match &level.below {
                Below::Parts(below) => {
                    growth.tensors += 1;
                    count(name, part, below, growth)?;
                }
                Below::Varints => {
                    // The last byte of each has its highest bit clear.
                    growth.numbers += part.iter().filter(|byte| **byte < 0x80).count();
                }
                Below::Fixed(size) => growth.numbers += part.len() / size,
            }
        }
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oip::grpc::message::{
        InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor,
    };

    fn with_parts(parts: usize) -> ModelInferRequest {
        let contents = InferTensorContents {
            bytes_contents: vec![bytes::Bytes::new(); parts],
            ..Default::default()
        };
        let input = InferInputTensor { contents: Some(contents), ..Default::default() };
        ModelInferRequest { inputs: vec![input], ..Default::default() }
    }

    #[test]
    fn a_message_of_too_many_parts_is_too_large_wherever_they_are() {
        // The input and its contents are parts too.
        let at_the_limit = with_parts(PARTS_MAX as usize - 2).encode_to_vec();
        assert!(growth(&at_the_limit).is_ok());
        let beyond = with_parts(PARTS_MAX as usize - 1).encode_to_vec();
        assert!(matches!(growth(&beyond), Err(OipError::TooLarge(_))));
        // An input, an output and a raw input of two bytes each.
        for key in [[5 << 3 | 2, 0], [6 << 3 | 2, 0], [7 << 3 | 2, 0]] {
            let message = key.repeat(PARTS_MAX as usize + 1);
            assert!(matches!(growth(&message), Err(OipError::TooLarge(_))), "{key:?}");
        }
    }

    #[test]
    fn empty_inputs_are_counted_as_what_they_become() {
        let inputs = |count| growth(&[5 << 3 | 2, 0].repeat(count)).unwrap();
        let most = inputs(PARTS_MAX as usize);
        assert!(most.bytes() >= 3 * size_of::<InferInputTensor>() as u64 * u64::from(PARTS_MAX));
        // It takes no more bytes than what is decoded where it is.
        assert!(most.is_long() && 2 * PARTS_MAX as usize <= INLINE_BYTES_MAX);
        assert!(!inputs(16).is_long());
    }

    #[test]
    fn what_the_scan_cannot_read_is_refused() {
        // A group; a length beyond the end; half a key.
        for message in [&[5 << 3 | 3][..], &[5 << 3 | 2, 9, 0], &[0x80]] {
            assert!(matches!(growth(message), Err(OipError::InvalidArgument(_))), "{message:?}");
        }
    }

    #[test]
    fn packed_numbers_are_counted_before_they_are_decoded() {
        let contents = InferTensorContents {
            int64_contents: vec![0; 1000],
            fp64_contents: vec![0.0; 10],
            ..Default::default()
        };
        let shape = vec![1, 300];
        let input = InferInputTensor { contents: Some(contents), shape, ..Default::default() };
        let request = ModelInferRequest { inputs: vec![input], ..Default::default() };
        let growth = growth(&request.encode_to_vec()).unwrap();
        // The input, its contents, and three lists.
        assert_eq!(growth, Growth { parts: 5, tensors: 2, numbers: 1012 });
        assert_eq!(growth.number_bytes(), 8096);
    }

    #[test]
    fn the_parameters_of_a_load_are_counted_before_they_are_decoded() {
        use crate::oip::grpc::message::{
            ModelRepositoryParameter, RepositoryModelLoadRequest,
            model_repository_parameter::ParameterChoice,
        };
        let with = |parameters: usize| {
            let value = || {
                let choice = ParameterChoice::BytesParam(bytes::Bytes::from_static(b"file"));
                ModelRepositoryParameter { parameter_choice: Some(choice) }
            };
            let request = RepositoryModelLoadRequest {
                repository_name: "r".to_owned(),
                model_name: "m".to_owned(),
                parameters: (0..parameters).map(|n| (format!("p{n}"), value())).collect(),
            };
            check_load(&request.encode_to_vec())
        };
        assert_eq!(with(PARAMETERS_MAX), Ok(()));
        assert!(matches!(with(PARAMETERS_MAX + 1), Err(OipError::InvalidArgument(_))));
        // Parameters of two bytes each.
        let empty = [3 << 3 | 2, 0].repeat(1 << 20);
        assert!(matches!(check_load(&empty), Err(OipError::TooLarge(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_scan_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = growth(&bytes);
        }

        #[test]
        fn what_prost_writes_passes(name in ".{0,20}", raw in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let request = ModelInferRequest {
                model_name: name,
                raw_input_contents: vec![raw.into()],
                ..with_parts(3)
            };
            proptest::prop_assert!(growth(&request.encode_to_vec()).is_ok());
        }
    }
}
