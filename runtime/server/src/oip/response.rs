//! An inference's answer as REST carries it: JSON, and behind it the raw bytes of the outputs that were asked for so.

use bytes::Bytes;
use sandpiper_domain::{DataType, NamedTensor};

use super::{OipError, json, request::WantedOutput, service::InferAnswer};

/// How outputs are to be written.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) id: Option<String>,
    pub(super) outputs: Vec<WantedOutput>,
    pub(super) binary_by_default: bool,
}

/// A body on its way out.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) body: Bytes,
    /// The length of the JSON, where bytes follow it.
    pub(super) json_length: Option<usize>,
}

/// Writes an answer. Fails where an output cannot be said in JSON.
pub(super) fn write(answer: &InferAnswer, format: &Format) -> Result<Written, OipError> {
    let mut out = Vec::with_capacity(expected_length(answer, format));
    out.push(b'{');
    if let Some(id) = &format.id {
        out.extend_from_slice(b"\"id\":");
        text(&mut out, id)?;
        out.push(b',');
    }
    out.extend_from_slice(b"\"model_name\":");
    text(&mut out, &answer.model_name)?;
    out.extend_from_slice(b",\"model_version\":\"");
    number(&mut out, answer.model_version)?;
    out.extend_from_slice(b"\",\"outputs\":[");
    for (index, output) in answer.outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_output(&mut out, output, is_binary(format, output))?;
    }
    out.extend_from_slice(b"]}");
    let json_length = out.len();
    let mut has_binary = false;
    for output in answer.outputs.iter().filter(|output| is_binary(format, output)) {
        has_binary = true;
        out.extend_from_slice(output.tensor.data());
    }
    Ok(Written { body: out.into(), json_length: has_binary.then_some(json_length) })
}

fn is_binary(format: &Format, output: &NamedTensor) -> bool {
    let wanted = format.outputs.iter().find(|wanted| wanted.name == output.name);
    wanted.map_or(format.binary_by_default, |wanted| wanted.is_binary)
}

/// The most that [`write`] makes of an answer, whatever its numbers are.
pub(super) fn length_max(answer: &InferAnswer, format: &Format) -> u64 {
    let outputs = answer.outputs.iter().map(|output| {
        let tensor = &output.tensor;
        let data = tensor.data().len() as u64;
        // The longest number of each type with its comma, by the bytes that it has.
        let growth = match (is_binary(format, output), tensor.datatype().size()) {
            (true, _) => 1,
            // A byte of a string may be six characters, `\u0000`; its quotes and comma are fewer than its length takes.
            (false, None | Some(1)) => 6,
            (false, Some(2)) => 8,
            (false, Some(4)) => 5,
            (false, Some(_)) => 4,
        };
        100 + output.name.len() as u64 + data * growth
    });
    // A character becomes six at most.
    let id = 6 * format.id.as_ref().map_or(0, String::len) as u64;
    200 + id + outputs.sum::<u64>()
}

/// Room for the whole body at once: a number of four bytes takes a dozen characters at most, as a rule.
fn expected_length(answer: &InferAnswer, format: &Format) -> usize {
    let outputs = answer.outputs.iter().map(|output| {
        let bytes = output.tensor.data().len();
        let is_text = output.tensor.datatype() == DataType::Bytes;
        let data = if is_text || is_binary(format, output) { bytes } else { bytes * 3 };
        100 + output.name.len() + data
    });
    200 + outputs.sum::<usize>()
}

fn write_output(out: &mut Vec<u8>, output: &NamedTensor, is_binary: bool) -> Result<(), OipError> {
    let tensor = &output.tensor;
    out.extend_from_slice(b"{\"name\":");
    text(out, &output.name)?;
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype().name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    for (index, size) in tensor.shape().iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        number(out, *size)?;
    }
    if is_binary {
        out.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        number(out, tensor.data().len())?;
        out.push(b'}');
    } else {
        out.extend_from_slice(b"],\"data\":");
        json::write_tensor(out, &output.name, tensor)?;
    }
    out.push(b'}');
    Ok(())
}

fn text(out: &mut Vec<u8>, text: &str) -> Result<(), OipError> {
    serde_json::to_writer(out, text).map_err(OipError::internal)
}

fn number(out: &mut Vec<u8>, number: impl serde::Serialize) -> Result<(), OipError> {
    serde_json::to_writer(out, &number).map_err(OipError::internal)
}
