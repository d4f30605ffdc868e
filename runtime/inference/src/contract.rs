//! Checks a caller's tensors against a model's signature, before the backend sees them.

use std::fmt::Write;

use sandpiper_domain::{DataType, InferenceError, ModelSignature, NamedTensor, Tensor, TensorSpec};

/// Names and lists in messages are cut here, whatever the caller sent.
const NAME_SHOWN: usize = 80;
const INPUTS_SHOWN: usize = 16;

/// Free dimensions that must agree, since the graph gives them one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tie {
    pub(crate) symbol: String,
    /// Input and axis of each place.
    pub(crate) places: Vec<(usize, usize)>,
}

/// What a model asks of its inputs.
#[derive(Debug)]
pub(crate) struct Contract {
    pub(crate) signature: ModelSignature,
    /// Whether the graph states the rank of each input; where it does not, any shape goes.
    pub(crate) ranked: Vec<bool>,
    pub(crate) ties: Vec<Tie>,
}

impl Contract {
    /// Puts the inputs into the graph's order, or says what is wrong with them.
    pub(crate) fn order(&self, inputs: Vec<NamedTensor>) -> Result<Vec<Tensor>, InferenceError> {
        let specs = &self.signature.inputs;
        let mut ordered: Vec<Option<Tensor>> = specs.iter().map(|_| None).collect();
        for input in inputs {
            let place = specs.iter().position(|spec| spec.name == input.name);
            let Some(place) = place else {
                let text = format!("the model has no input `{}`", shown(&input.name));
                return Err(self.with_inputs(text));
            };
            self.check(place, &input.tensor)?;
            if ordered[place].replace(input.tensor).is_some() {
                let text = format!("the input `{}` is given twice", shown(&input.name));
                return Err(InferenceError::InvalidArgument(text));
            }
        }
        let missing = ordered.iter().position(Option::is_none);
        if let Some(missing) = missing {
            let text = format!("the input `{}` is missing", shown(&specs[missing].name));
            return Err(self.with_inputs(text));
        }
        let ordered: Vec<Tensor> = ordered.into_iter().flatten().collect();
        self.check_ties(&ordered)?;
        Ok(ordered)
    }

    fn check(&self, place: usize, tensor: &Tensor) -> Result<(), InferenceError> {
        let spec = &self.signature.inputs[place];
        let name = shown(&spec.name);
        if tensor.datatype() == DataType::BF16 {
            let text = format!("the input `{name}` is BF16, which the backend cannot hold");
            return Err(InferenceError::Unsupported(text));
        }
        if tensor.datatype() != spec.datatype {
            let (given, wanted) = (tensor.datatype(), spec.datatype);
            let text = format!("the input `{name}` is {given}; the model takes {wanted}");
            return Err(InferenceError::InvalidArgument(text));
        }
        if self.ranked[place] && !fits(spec, tensor.shape()) {
            let (given, wanted) = (tensor.shape(), &spec.shape);
            let text = format!(
                "the input `{name}` has the shape {given:?}; the model takes {wanted:?}, where -1 is any size"
            );
            return Err(InferenceError::InvalidArgument(text));
        }
        Ok(())
    }

    fn check_ties(&self, inputs: &[Tensor]) -> Result<(), InferenceError> {
        for tie in &self.ties {
            let size = |&(input, axis): &(usize, usize)| inputs[input].shape().get(axis).copied();
            let name = |&(input, _): &(usize, usize)| shown(&self.signature.inputs[input].name);
            for pair in tie.places.windows(2) {
                if size(&pair[0]) != size(&pair[1]) {
                    let text = format!(
                        "dimension {} of the input `{}` and dimension {} of the input `{}` must be the same size (`{}`); they are {} and {}",
                        pair[0].1,
                        name(&pair[0]),
                        pair[1].1,
                        name(&pair[1]),
                        shown(&tie.symbol),
                        size(&pair[0]).unwrap_or_default(),
                        size(&pair[1]).unwrap_or_default(),
                    );
                    return Err(InferenceError::InvalidArgument(text));
                }
            }
        }
        Ok(())
    }

    fn with_inputs(&self, mut text: String) -> InferenceError {
        let specs = &self.signature.inputs;
        text.push_str("; the model takes ");
        for (index, spec) in specs.iter().take(INPUTS_SHOWN).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let (name, datatype, shape) = (shown(&spec.name), spec.datatype, &spec.shape);
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}`{name}` ({datatype} {shape:?})");
        }
        match specs.len() {
            0 => text.push_str("no inputs"),
            count if count > INPUTS_SHOWN => {
                let _ = write!(text, " and {} more", count - INPUTS_SHOWN);
            }
            _ => {}
        }
        InferenceError::InvalidArgument(text)
    }
}

fn fits(spec: &TensorSpec, shape: &[usize]) -> bool {
    spec.shape.len() == shape.len()
        && spec.shape.iter().zip(shape).all(|(&wanted, &given)| {
            wanted < 0 || usize::try_from(wanted).is_ok_and(|wanted| wanted == given)
        })
}

/// A name as messages show it: short, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    let clean = |c: char| if c.is_control() || c == '`' { '\u{fffd}' } else { c };
    let mut text: String = name.chars().take(NAME_SHOWN).map(clean).collect();
    if name.chars().nth(NAME_SHOWN).is_some() {
        text.push('…');
    }
    text
}
