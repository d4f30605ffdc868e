//! Reads a handwritten digit off a picture.
//!
//! The README describes the preparation exactly, since the model was trained on its result.

mod decode;
mod prepare;

use sandpiper_guest::prelude::*;
use serde::Serialize;

pub use decode::{Gray, decode};
pub use prepare::{SIDE, prepare};

/// What the function answers.
#[derive(Debug, Serialize)]
pub struct Digit {
    /// The digit, from 0 to 9.
    pub digit: usize,
    /// How sure the model is, from 0 to 1.
    pub confidence: f32,
}

/// Answers a PNG or JPEG with `{"digit": n, "confidence": x}`.
#[handler]
pub fn digits(request: Request) -> Result<Response> {
    let body = request.try_body()?;
    if body.is_empty() {
        return Err(Error::bad_request("send a PNG or a JPEG as the body"));
    }
    let pixels = prepare(decode(body)?)?;
    let image = Tensor::f32([1, 1, SIDE, SIDE], &pixels);
    let outputs = Model::named("digits")?.run([("image", image)])?;
    Response::json(&most_likely(&outputs.get("probs")?.to_f32()?)?)
}

/// The answer to what the model gives: a probability for each digit.
pub fn most_likely(probs: &[f32]) -> Result<Digit> {
    let best = probs.iter().copied().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    match best {
        Some((digit, confidence)) if probs.len() == 10 => Ok(Digit { digit, confidence }),
        _ => Err(Error::internal("the model does not tell ten digits apart")),
    }
}

#[cfg(test)]
mod tests;
