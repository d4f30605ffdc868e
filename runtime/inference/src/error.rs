//! Why a model could not be loaded.

/// The most operators an error names.
const OPERATORS_SHOWN: usize = 16;

/// Why a model was refused. The text is meant for the tenant who uploaded it: it holds no weights and no paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The bytes are something else than an ONNX model.
    #[error("the bytes are not an ONNX model")]
    NotOnnx,
    /// They begin like an ONNX model and then stop making sense.
    #[error("the ONNX model is truncated or damaged")]
    Truncated,
    /// The protobuf can be read but breaks a rule of ONNX.
    #[error("the ONNX model is malformed: {0}")]
    Malformed(String),
    /// Weights lie in other files.
    #[error(
        "the model keeps the tensor `{tensor}` in an external file; upload one self-contained ONNX file"
    )]
    ExternalData {
        /// The first tensor that does.
        tensor: String,
    },
    /// The backend has no such operators.
    #[error("the backend does not implement these operators of the model: {}", list(.operators))]
    UnsupportedOperator {
        /// Their names, each once, in the order of their first use.
        operators: Vec<String>,
    },
    /// The backend has the operator, but not what this node asks of it, and would answer something else.
    #[error("the backend does not implement this use of the operator `{operator}`: {why}")]
    UnsupportedVariant {
        /// The operator's name.
        operator: String,
        /// What about it the backend lacks.
        why: String,
    },
    /// A tensor of a type that the backend cannot hold.
    #[error("{0}")]
    UnsupportedType(String),
    /// The backend understands every operator and still cannot make a plan of the graph.
    #[error("the model cannot be loaded: {0}")]
    Unloadable(String),
    /// The backend panicked over the model; the panic was contained.
    #[error("the model cannot be loaded: the backend failed on it in an unforeseen way")]
    Panicked,
    /// Too many models wait to be loaded.
    #[error("too many models are being loaded; try again shortly")]
    Saturated,
    /// The bytes could not be had.
    #[error("{0}")]
    Bytes(String),
}

fn list(operators: &[String]) -> String {
    let shown = operators.iter().take(OPERATORS_SHOWN).map(String::as_str).collect::<Vec<_>>();
    let mut text = shown.join(", ");
    if operators.len() > OPERATORS_SHOWN {
        text.push_str(&format!(" and {} more", operators.len() - OPERATORS_SHOWN));
    }
    text
}
