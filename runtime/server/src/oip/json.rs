//! Tensors as JSON: numbers straight from the text to little-endian bytes and back.
//!
//! Integers keep every bit and floats are rounded once, to their own type: nothing passes through `f64` on its way.
//! JSON has no words for NaN and infinity. In a request they are refused; in an answer a NaN is `null`, as KServe's
//! servers write it, and an infinity is an error that says to ask for binary data. So is a string that is no UTF-8.

use half::{bf16, f16};
use sandpiper_domain::{DataType, NamedTensor, RANK_MAX, Tensor, put_string};

use super::{OipError, narrow, tensor::InputSpec};

/// Reads `data`, which is known to be valid JSON: a list in row-major order, flat or nested as the shape is.
pub(crate) fn read_tensor(spec: &InputSpec<'_>, data: &str) -> Result<NamedTensor, OipError> {
    let datatype = spec.datatype;
    // An element takes a character and a comma at least, so that no shape reserves more than was sent.
    let room = spec.elements.min(data.len() / 2 + 1) * datatype.size_min();
    let out = Vec::with_capacity(room);
    let mut elements = Elements { spec, out, count: 0 };
    macro_rules! integers {
        ($type:ty) => {
            elements.read(data, |token, out| push(out, token.parse::<$type>().ok()?.to_le_bytes()))
        };
    }
    macro_rules! floats {
        ($read:expr) => {
            elements.read(data, |token, out| {
                let number = $read(is_number(token)?)?;
                number.is_finite().then_some(())?;
                push(out, number.to_le_bytes())
            })
        };
    }
    match datatype {
        DataType::F32 => floats!(|token: &str| token.parse::<f32>().ok()),
        DataType::F64 => floats!(|token: &str| token.parse::<f64>().ok()),
        DataType::F16 => floats!(narrow::to_f16),
        DataType::BF16 => floats!(narrow::to_bf16),
        DataType::I8 => integers!(i8),
        DataType::I16 => integers!(i16),
        DataType::I32 => integers!(i32),
        DataType::I64 => integers!(i64),
        DataType::U8 => integers!(u8),
        DataType::U16 => integers!(u16),
        DataType::U32 => integers!(u32),
        DataType::U64 => integers!(u64),
        DataType::Bool => elements.read(data, |token, out| match token {
            "true" | "1" => push(out, [1]),
            "false" | "0" => push(out, [0]),
            _ => None,
        }),
        DataType::Bytes => elements.read(data, |token, out| {
            match plain(token)? {
                Some(text) => put_string(out, text.as_bytes()),
                None => put_string(out, serde_json::from_str::<String>(token).ok()?.as_bytes()),
            }
            Some(())
        }),
    }?;
    spec.with_bytes(elements.out.into())
}

/// What is between the quotes of a string, unless something in it is escaped; `None` where it is no string.
fn plain(token: &str) -> Option<Option<&str>> {
    let text = token.strip_prefix('"')?.strip_suffix('"')?;
    Some(if text.contains('\\') { None } else { Some(text) })
}

/// JSON's numbers are a part of what Rust reads as one; its words for NaN and infinity are not.
fn is_number(token: &str) -> Option<&str> {
    token.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(token)
}

fn push<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) -> Option<()> {
    out.extend_from_slice(&bytes);
    Some(())
}

struct Elements<'a> {
    spec: &'a InputSpec<'a>,
    out: Vec<u8>,
    count: usize,
}

impl Elements<'_> {
    /// Goes through the lists and gives every element to `take`, which refuses what does not fit the datatype.
    fn read(
        &mut self,
        data: &str,
        take: impl Fn(&str, &mut Vec<u8>) -> Option<()>,
    ) -> Result<(), OipError> {
        let bytes = data.as_bytes();
        let shape = self.spec.shape();
        // How many items each open list has so far; lists at the depth of the elements are as deep as it gets.
        let mut lengths = [0u64; RANK_MAX + 1];
        let (mut depth, mut depth_max, mut element_depth) = (0usize, 0usize, 0usize);
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'[' => {
                    lengths[depth] += 1;
                    depth += 1;
                    if depth > shape.len().max(1) {
                        return Err(self.nested());
                    }
                    depth_max = depth_max.max(depth);
                    lengths[depth] = 0;
                    at += 1;
                }
                b']' => {
                    let whole = depth == 1 && depth_max == 1;
                    if !whole && shape.get(depth - 1) != Some(&lengths[depth]) {
                        return Err(self.nested());
                    }
                    depth -= 1;
                    at += 1;
                }
                b',' | b' ' | b'\n' | b'\r' | b'\t' => at += 1,
                _ => {
                    let end = at + token_length(&bytes[at..]);
                    if element_depth == 0 {
                        element_depth = depth;
                    }
                    if depth == 0 || depth != element_depth {
                        return Err(self.nested());
                    }
                    lengths[depth] += 1;
                    let token = data.get(at..end).unwrap_or_default();
                    if self.count == self.spec.elements || take(token, &mut self.out).is_none() {
                        return Err(self.refused(token));
                    }
                    self.count += 1;
                    at = end;
                }
            }
        }
        // Elements of a nested list stand at its full depth; empty lists may end before it.
        if element_depth > 1 && element_depth != shape.len() {
            return Err(self.nested());
        }
        if self.count != self.spec.elements {
            return Err(self.miscounted(&self.count.to_string()));
        }
        Ok(())
    }

    fn refused(&self, token: &str) -> OipError {
        if self.count == self.spec.elements {
            return self.miscounted("more");
        }
        let datatype = self.spec.datatype;
        let kind = match token.as_bytes().first() {
            Some(b'"') if datatype == DataType::Bytes => "a string that is no Unicode",
            Some(b'"') => "a string",
            Some(b'{') => "an object",
            Some(b'n') => "null",
            Some(b't' | b'f') => "a boolean",
            _ => "a number that it cannot hold",
        };
        self.spec.refuse(format!("is {datatype}, and element {} is {kind}", self.count))
    }

    fn miscounted(&self, given: &str) -> OipError {
        let (shape, wanted) = (self.spec.shape(), self.spec.elements);
        self.spec.refuse(format!("has the shape {shape:?}, {wanted} elements; {given} were given"))
    }

    fn nested(&self) -> OipError {
        let shape = self.spec.shape();
        let text = format!("is neither one flat list nor nested as its shape {shape:?} says");
        self.spec.refuse(text)
    }
}

/// The length of a string, an object, a number or a word at the start of valid JSON.
fn token_length(bytes: &[u8]) -> usize {
    match bytes.first() {
        Some(b'"') => string_length(bytes),
        // An object is refused wherever it stands; what follows it is of no interest.
        Some(b'{') => bytes.len(),
        _ => {
            let is_end = |byte: &u8| matches!(byte, b',' | b']' | b' ' | b'\n' | b'\r' | b'\t');
            bytes.iter().position(is_end).unwrap_or(bytes.len()).max(1)
        }
    }
}

fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Appends the elements as one flat list.
pub(super) fn write_tensor(out: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), OipError> {
    let data = tensor.data();
    macro_rules! list {
        ($type:ty) => {
            list!($type, |number: $type| number)
        };
        ($type:ty, $widen:expr) => {
            write_list(out, data, |bytes| $widen(<$type>::from_le_bytes(bytes)))
        };
    }
    let written = match tensor.datatype() {
        DataType::F32 => list!(f32),
        DataType::F64 => list!(f64),
        DataType::F16 => list!(f16, f16::to_f32),
        DataType::BF16 => list!(bf16, bf16::to_f32),
        DataType::I8 => list!(i8),
        DataType::I16 => list!(i16),
        DataType::I32 => list!(i32),
        DataType::I64 => list!(i64),
        DataType::U8 => list!(u8),
        DataType::U16 => list!(u16),
        DataType::U32 => list!(u32),
        DataType::U64 => list!(u64),
        DataType::Bool => list!(u8, |byte| byte != 0),
        DataType::Bytes => write_strings(out, tensor),
    };
    written.map_err(|Unsayable(what)| {
        let name = super::error::shown(name);
        OipError::invalid(format!(
            "the output `{name}` holds {what}, which JSON cannot say; ask for it as binary data (`\"parameters\": \
             {{\"binary_data\": true}}` of the output)"
        ))
    })
}

/// An element that JSON cannot say.
#[derive(Debug)]
struct Unsayable(&'static str);

const INFINITE: Unsayable = Unsayable("an infinity");

fn write_strings(out: &mut Vec<u8>, tensor: &Tensor) -> Result<(), Unsayable> {
    out.push(b'[');
    for (index, bytes) in tensor.strings().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let text =
            std::str::from_utf8(bytes).map_err(|_| Unsayable("a string that is no UTF-8"))?;
        serde_json::to_writer(&mut *out, text).map_err(|_| Unsayable("a string"))?;
    }
    out.push(b']');
    Ok(())
}

/// A value that may be one that JSON cannot say.
trait Element: serde::Serialize + Copy {
    fn is_infinite(self) -> bool {
        false
    }
}

macro_rules! elements {
    ($($type:ty),*) => { $(impl Element for $type {})* };
}
elements!(bool, i8, i16, i32, i64, u8, u16, u32, u64);

impl Element for f32 {
    fn is_infinite(self) -> bool {
        f32::is_infinite(self)
    }
}

impl Element for f64 {
    fn is_infinite(self) -> bool {
        f64::is_infinite(self)
    }
}

fn write_list<const N: usize, T: Element>(
    out: &mut Vec<u8>,
    data: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> Result<(), Unsayable> {
    out.push(b'[');
    for (index, bytes) in data.as_chunks::<N>().0.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let element = read(*bytes);
        if element.is_infinite() {
            return Err(INFINITE);
        }
        // Writing a number to memory cannot fail; serde_json writes a NaN as `null`.
        serde_json::to_writer(&mut *out, &element).map_err(|_| INFINITE)?;
    }
    out.push(b']');
    Ok(())
}
