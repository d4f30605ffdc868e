//! Messages in and out of gRPC's frames, with what prost alone does not bound.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::oip::OipError;

/// What a client sent: a message, or why it is none. A message that is none does not end the stream that it came in.
pub(super) type Decoded<Q> = Result<Q, OipError>;

/// Looks at the bytes of a message before it is decoded.
pub(super) type Check = fn(&[u8]) -> Result<(), OipError>;

/// prost's codec, whose decoder answers to a malformed message and checks it first.
pub(super) struct CheckedCodec<A, Q> {
    check: Check,
    messages: PhantomData<(A, Q)>,
}

impl<A, Q> CheckedCodec<A, Q> {
    pub(super) fn new(check: Check) -> Self {
        CheckedCodec { check, messages: PhantomData }
    }
}

impl<A, Q> Codec for CheckedCodec<A, Q>
where
    A: Message + Send + 'static,
    Q: Message + Default + Send + 'static,
{
    type Encode = A;
    type Decode = Decoded<Q>;
    type Encoder = ProstEncoder<A>;
    type Decoder = CheckedDecoder<Q>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<A, Q>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        CheckedDecoder { check: self.check, messages: PhantomData }
    }
}

pub(super) struct CheckedDecoder<Q> {
    check: Check,
    messages: PhantomData<Q>,
}

impl<Q: Message + Default> Decoder for CheckedDecoder<Q> {
    type Item = Decoded<Q>;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let decoded = (self.check)(frame.chunk()).and_then(|()| {
            Q::decode(&mut *frame).map_err(|error| {
                OipError::invalid(format!("the message is no {}: {error}", short_name::<Q>()))
            })
        });
        // What is left of a message that failed is no part of the next one.
        frame.advance(frame.remaining());
        Ok(Some(decoded))
    }
}

fn short_name<Q>() -> &'static str {
    let name = std::any::type_name::<Q>();
    name.rsplit("::").next().unwrap_or(name)
}

/// The most strings, byte strings and submessages in one request. Each takes two bytes on the wire and a hundred times
/// that in memory, so that the length of a message alone bounds nothing.
const PARTS_MAX: u32 = 1 << 16;

/// The submessages that are looked into.
struct Level {
    tag: u32,
    below: &'static [Level],
}

/// `inputs` and their `contents`, and `outputs`.
const OF_INFERENCE: &[Level] =
    &[Level { tag: 5, below: &[Level { tag: 5, below: &[] }] }, Level { tag: 6, below: &[] }];

/// Accepts any message.
pub(super) fn unchecked(_: &[u8]) -> Result<(), OipError> {
    Ok(())
}

/// Refuses a `ModelInferRequest` of more parts than [`PARTS_MAX`].
pub(super) fn inference(message: &[u8]) -> Result<(), OipError> {
    let mut left = PARTS_MAX;
    count(message, OF_INFERENCE, &mut left)
}

fn count(mut bytes: &[u8], levels: &[Level], left: &mut u32) -> Result<(), OipError> {
    let malformed = || OipError::invalid("the message is no ModelInferRequest: it is malformed");
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| malformed())?;
        let length = match wire_type {
            WireType::Varint => decode_varint(&mut bytes).map(|_| 0).map_err(|_| malformed())?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                *left = left.checked_sub(1).ok_or_else(|| {
                    OipError::TooLarge(format!("the request has more than {PARTS_MAX} parts"))
                })?;
                let length = decode_varint(&mut bytes).map_err(|_| malformed())?;
                usize::try_from(length).map_err(|_| malformed())?
            }
            // No version of the protocol has groups.
            WireType::StartGroup | WireType::EndGroup => return Err(malformed()),
        };
        let (part, rest) = bytes.split_at_checked(length).ok_or_else(malformed)?;
        if wire_type == WireType::LengthDelimited
            && let Some(level) = levels.iter().find(|level| level.tag == tag)
        {
            count(part, level.below, left)?;
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
        assert_eq!(inference(&at_the_limit), Ok(()));
        let beyond = with_parts(PARTS_MAX as usize - 1).encode_to_vec();
        assert!(matches!(inference(&beyond), Err(OipError::TooLarge(_))));
        // An input, an output and a raw input of two bytes each.
        for key in [[5 << 3 | 2, 0], [6 << 3 | 2, 0], [7 << 3 | 2, 0]] {
            let message = key.repeat(PARTS_MAX as usize + 1);
            assert!(matches!(inference(&message), Err(OipError::TooLarge(_))), "{key:?}");
        }
    }

    #[test]
    fn what_the_scan_cannot_read_is_refused() {
        // A group; a length beyond the end; half a key.
        for message in [&[5 << 3 | 3][..], &[5 << 3 | 2, 9, 0], &[0x80]] {
            assert!(matches!(inference(message), Err(OipError::InvalidArgument(_))), "{message:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_scan_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = inference(&bytes);
        }

        #[test]
        fn what_prost_writes_passes(name in ".{0,20}", raw in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let request = ModelInferRequest {
                model_name: name,
                raw_input_contents: vec![raw.into()],
                ..with_parts(3)
            };
            proptest::prop_assert_eq!(inference(&request.encode_to_vec()), Ok(()));
        }
    }
}
