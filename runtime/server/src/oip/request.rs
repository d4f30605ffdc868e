//! An inference request as REST carries it: JSON, and behind it the raw bytes of the tensors that the JSON announces.

use std::{borrow::Cow, fmt, marker::PhantomData, time::Duration};

use bytes::Bytes;
use sandpiper_domain::{ModelSignature, NamedTensor, RANK_MAX};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{OipError, json, tensor::InputSpec};

/// The longest id of a request: every answer has it again.
const ID_BYTES_MAX: usize = 4096;

/// Fails for an id that is too long to be told again.
pub(super) fn check_id(id: &str) -> Result<(), OipError> {
    match id.len() <= ID_BYTES_MAX {
        true => Ok(()),
        false => {
            let text = format!("the id is too long: it may have {ID_BYTES_MAX} bytes");
            Err(OipError::invalid(text))
        }
    }
}

/// Bytes of tensors that a byte of JSON can become: a digit and a comma are eight bytes of FP64.
pub(super) const GROWTH_MAX: u64 = 4;
/// Inputs of one request, and outputs. No model has so many, and the memory of a list does not grow with the text.
const FEW_MAX: usize = 1024;
/// Texts of the JSON parser are cut here: they may quote what was sent.
const PARSER_TEXT_MAX: usize = 200;

/// A request, read.
#[derive(Debug)]
pub(super) struct InferRequest {
    pub(super) id: Option<String>,
    pub(super) inputs: Vec<NamedTensor>,
    /// Empty is all.
    pub(super) outputs: Vec<WantedOutput>,
    /// Whether outputs come as raw bytes that say nothing else of themselves.
    pub(super) binary_by_default: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) priority: u64,
}

/// An output that is asked for.
#[derive(Debug)]
pub(super) struct WantedOutput {
    pub(super) name: String,
    pub(super) is_binary: bool,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow)]
    inputs: Few<Input<'a>>,
    #[serde(borrow, default)]
    outputs: Option<Few<Output<'a>>>,
}

/// Parameters that this server does not know are the protocol's way of talking past it, and are left alone.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    binary_data_output: Option<bool>,
    timeout: Option<u64>,
    priority: Option<u64>,
    sequence_id: SequenceMark,
    sequence_start: SequenceMark,
    sequence_end: SequenceMark,
}

#[derive(Deserialize)]
struct Input<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Dims,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<InputParameters>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InputParameters {
    binary_data_size: Option<u64>,
    shared_memory_region: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<IgnoredAny>,
    shared_memory_region: Option<IgnoredAny>,
}

/// Whether something is said of a sequence. What says that there is none is said by many clients, and is nothing.
#[derive(Default)]
struct SequenceMark(bool);

impl<'de> Deserialize<'de> for SequenceMark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mark;
        impl Visitor<'_> for Mark {
            type Value = bool;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a name or a flag")
            }

            fn visit_bool<E>(self, flag: bool) -> Result<bool, E> {
                Ok(flag)
            }

            fn visit_u64<E>(self, number: u64) -> Result<bool, E> {
                Ok(number != 0)
            }

            fn visit_i64<E>(self, number: i64) -> Result<bool, E> {
                Ok(number != 0)
            }

            fn visit_f64<E>(self, number: f64) -> Result<bool, E> {
                Ok(number != 0.0)
            }

            fn visit_str<E>(self, name: &str) -> Result<bool, E> {
                Ok(!name.is_empty())
            }

            fn visit_unit<E>(self) -> Result<bool, E> {
                Ok(false)
            }
        }
        deserializer.deserialize_any(Mark).map(SequenceMark)
    }
}

/// A list of at most [`FEW_MAX`] items, however long the text is.
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Few<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    if items.len() == FEW_MAX {
                        let text = format!("at most {FEW_MAX} inputs and outputs are read");
                        return Err(A::Error::custom(text));
                    }
                    items.push(item);
                }
                Ok(Few(items))
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// A shape, of which no more is read than a tensor may have.
pub(crate) struct Dims {
    sizes: [i64; RANK_MAX],
    rank: usize,
}

impl Dims {
    /// The dimensions as they were sent.
    pub(crate) fn sizes(&self) -> &[i64] {
        &self.sizes[..self.rank]
    }
}

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Dims, A::Error> {
                let mut dims = Dims { sizes: [0; RANK_MAX], rank: 0 };
                while let Some(size) = list.next_element()? {
                    let place = dims.sizes.get_mut(dims.rank).ok_or_else(|| {
                        A::Error::custom(format!("a tensor has at most {RANK_MAX} dimensions"))
                    })?;
                    *place = size;
                    dims.rank += 1;
                }
                Ok(dims)
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// Reads a request. `json_length` is what `Inference-Header-Content-Length` says; without it all of the body is JSON.
pub(super) fn read(
    body: &Bytes,
    json_length: Option<usize>,
    signature: &ModelSignature,
) -> Result<InferRequest, OipError> {
    let length = json_length.unwrap_or(body.len());
    let text = body.get(..length).ok_or_else(|| {
        let text = format!(
            "the header Inference-Header-Content-Length says {length}; the body has {} bytes",
            body.len()
        );
        OipError::invalid(text)
    })?;
    let head: Head<'_> = serde_json::from_slice(text).map_err(|error| unreadable(&error))?;
    let parameters = head.parameters.unwrap_or_default();
    let Parameters { sequence_id, sequence_start, sequence_end, .. } = &parameters;
    if [sequence_id, sequence_start, sequence_end].iter().any(|mark| mark.0) {
        return Err(OipError::unsupported(
            "sequences are not supported: every request stands alone",
        ));
    }
    head.id.as_deref().map_or(Ok(()), check_id)?;
    let mut binary = BinaryPart { body, at: length };
    let mut inputs = Vec::with_capacity(head.inputs.0.len());
    for input in &head.inputs.0 {
        inputs.push(input.read(&mut binary, signature)?);
    }
    binary.must_be_over()?;
    let binary_by_default = parameters.binary_data_output.unwrap_or(false);
    let outputs = head.outputs.map(|few| few.0).unwrap_or_default();
    let wanted = outputs.into_iter().map(|output| output.read(binary_by_default));
    Ok(InferRequest {
        id: head.id.map(Cow::into_owned),
        inputs,
        outputs: wanted.collect::<Result<_, _>>()?,
        binary_by_default,
        timeout: parameters.timeout.filter(|us| *us > 0).map(Duration::from_micros),
        priority: parameters.priority.unwrap_or(0),
    })
}

pub(super) fn unreadable(error: &serde_json::Error) -> OipError {
    let text: String = error.to_string().chars().take(PARSER_TEXT_MAX).collect();
    OipError::invalid(format!("the JSON is not as expected: {text}"))
}

impl Input<'_> {
    fn read(
        &self,
        binary: &mut BinaryPart<'_>,
        signature: &ModelSignature,
    ) -> Result<NamedTensor, OipError> {
        let spec = InputSpec::new(&self.name, &self.datatype, self.shape.sizes())?;
        spec.must_fit(signature)?;
        let parameters = self.parameters.as_ref();
        if parameters.is_some_and(|parameters| parameters.shared_memory_region.is_some()) {
            return Err(no_shared_memory());
        }
        let input = match (self.data, parameters.and_then(|parameters| parameters.binary_data_size))
        {
            (Some(data), None) => json::read_tensor(&spec, data.get()),
            (None, Some(size)) => spec.with_bytes(binary.take(&spec, size)?),
            (Some(_), Some(_)) => {
                Err(spec.refuse("has both `data` and `parameters.binary_data_size`; give one"))
            }
            (None, None) => {
                Err(spec.refuse("has neither `data` nor `parameters.binary_data_size`; give one"))
            }
        }?;
        spec.must_be_wanted(signature)?;
        Ok(input)
    }
}

impl Output<'_> {
    fn read(self, binary_by_default: bool) -> Result<WantedOutput, OipError> {
        let parameters = self.parameters.unwrap_or_default();
        if parameters.classification.is_some() {
            return Err(OipError::unsupported(
                "the classification extension is not supported; ask for the output and sort it",
            ));
        }
        if parameters.shared_memory_region.is_some() {
            return Err(no_shared_memory());
        }
        let is_binary = parameters.binary_data.unwrap_or(binary_by_default);
        Ok(WantedOutput { name: self.name.into_owned(), is_binary })
    }
}

fn no_shared_memory() -> OipError {
    OipError::unsupported("shared memory is not supported; send tensors in the request")
}

/// The raw tensors behind the JSON, in the order of the inputs.
struct BinaryPart<'a> {
    body: &'a Bytes,
    at: usize,
}

impl BinaryPart<'_> {
    fn take(&mut self, spec: &InputSpec<'_>, size: u64) -> Result<Bytes, OipError> {
        let left = self.body.len() - self.at;
        let size = usize::try_from(size).ok().filter(|size| *size <= left).ok_or_else(|| {
            spec.refuse(format!("takes {size} bytes of binary data where {left} are left"))
        })?;
        let slice = self.body.slice(self.at..self.at + size);
        self.at += size;
        Ok(slice)
    }

    fn must_be_over(&self) -> Result<(), OipError> {
        match self.body.len() - self.at {
            0 => Ok(()),
            left => Err(OipError::invalid(format!(
                "the body holds {left} bytes more than the inputs take"
            ))),
        }
    }
}

/// Reads a body that is one raw tensor and nothing else, for a model with one input.
pub(super) fn read_raw(body: &Bytes, signature: &ModelSignature) -> Result<InferRequest, OipError> {
    let [input] = &signature.inputs[..] else {
        let count = signature.inputs.len();
        let text = format!(
            "a raw body (Inference-Header-Content-Length: 0) is for models with one input; this one has {count}"
        );
        return Err(OipError::invalid(text));
    };
    let Some(element) = input.datatype.size() else {
        let text = "a raw body (Inference-Header-Content-Length: 0) cannot be BYTES; send the header's JSON, too";
        return Err(OipError::invalid(text));
    };
    let mut shape = input.shape.clone();
    // One size can be told from the length. Where two are free, the first is the batch, and a raw body is one row.
    let is_free = |size: &i64| *size < 0;
    if shape.iter().copied().filter(|size| is_free(size)).count() > 1 && is_free(&shape[0]) {
        shape[0] = 1;
    }
    if let Some(place) = shape.iter().position(is_free) {
        // The product of the others; an overflow is found when the tensor is made.
        shape[place] = 1;
        if shape.iter().any(is_free) {
            let text = "a raw body is for models whose input has one free size besides the batch";
            return Err(OipError::invalid(text));
        }
        let row = shape.iter().try_fold(element as i64, |bytes, size| bytes.checked_mul(*size));
        shape[place] = row.and_then(|row| (body.len() as i64).checked_div(row)).unwrap_or(0);
    }
    let spec = InputSpec::new(&input.name, input.datatype.name(), &shape)?;
    Ok(InferRequest {
        id: None,
        inputs: vec![spec.with_bytes(body.clone())?],
        outputs: Vec::new(),
        binary_by_default: true,
        timeout: None,
        priority: 0,
    })
}
