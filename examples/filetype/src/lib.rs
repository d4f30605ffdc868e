//! Tells what kind of file it is sent, with the model of Magika.

mod features;
mod labels;

use sandpiper_guest::prelude::*;
use serde::Serialize;

pub use features::{FEATURES, Features};
pub use labels::{EMPTY, LABELS, Label, OVERWRITES, THRESHOLD, THRESHOLDS, TXT, UNKNOWN};

/// What the function answers.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The label.
    pub r#type: &'static str,
    /// How sure the model is, from 0 to 1.
    pub score: f32,
    /// What kind of thing it is: code, a document, an archive …
    pub group: &'static str,
    /// Its media type.
    pub mime_type: &'static str,
    /// Whether it is text.
    pub is_text: bool,
    /// What the model said, where the answer is not that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_type: Option<&'static str>,
}

impl Answer {
    /// An answer that needed no model.
    fn certain(label: Label) -> Self {
        Self::new(label, 1.0, None)
    }

    fn new(label: Label, score: f32, model: Option<Label>) -> Self {
        Self {
            r#type: label.name,
            score,
            group: label.group,
            mime_type: label.mime_type,
            is_text: label.is_text,
            model_type: model.map(|model| model.name).filter(|name| *name != label.name),
        }
    }
}

/// Answers any file with `{"type": label, "score": x, …}`.
#[handler]
pub fn filetype(request: Request) -> Result<Response> {
    let answer = match Features::of(request.try_body()?) {
        Features::Empty => Answer::certain(EMPTY),
        Features::TooFew { text: true } => Answer::certain(TXT),
        Features::TooFew { text: false } => Answer::certain(UNKNOWN),
        Features::Enough(bytes) => {
            let bytes = Tensor::i32([1, FEATURES], bytes.as_slice());
            let outputs = Model::named("magika")?.run([("bytes", bytes)])?;
            judge(&outputs.get("target_label")?.to_f32()?)?
        }
    };
    Response::json(&answer)
}

/// The best label, unless its score is too low to rely on: then only whether the file is text.
pub fn judge(scores: &[f32]) -> Result<Answer> {
    if scores.len() != LABELS.len() {
        return Err(Error::internal(format!(
            "the model gives {} scores for {} labels",
            scores.len(),
            LABELS.len()
        )));
    }
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        // Of equal scores the first wins.
        if *score > scores[best] {
            best = index;
        }
    }
    let (model, score) = (LABELS[best], scores[best]);
    let overwritten = lookup(&OVERWRITES, model.name).unwrap_or(model);
    let threshold = lookup(&THRESHOLDS, model.name).unwrap_or(THRESHOLD);
    let label = match (f64::from(score) >= threshold, overwritten.is_text) {
        (true, _) => overwritten,
        (false, true) => TXT,
        (false, false) => UNKNOWN,
    };
    Ok(Answer::new(label, score, Some(model)))
}

fn lookup<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests;
