//! What the graph declares of an input, as a fact of tract's.

use sandpiper_domain::DataType;
use tract_onnx::{
    dim_expr::parse_onnx_dim,
    prelude::{InferenceFact, InferenceModel, Symbol, TDim, TVec},
    tract_hir::infer::{DimFact, ShapeFactoid},
    tract_hir::internal::DimLike,
};

use super::{
    audit::{Dim, Slot},
    convert::datum_type,
};

fn typed(datatype: Option<DataType>) -> InferenceFact {
    match datatype.and_then(datum_type) {
        Some(datum) => InferenceFact::dt(datum),
        None => InferenceFact::default(),
    }
}

/// The input with its free dimensions as symbols of the model, a new one for each that has no name.
pub(super) fn symbolic(model: &InferenceModel, slot: &Slot) -> InferenceFact {
    let fact = typed(slot.datatype);
    match &slot.dims {
        None => fact,
        Some(dims) => {
            let dims = dims.iter().map(|dim| DimFact::from(dimension(model, dim))).collect();
            fact.with_shape(ShapeFactoid::closed(dims))
        }
    }
}

/// The input with this shape and no other.
pub(super) fn fixed(slot: &Slot, shape: &[usize]) -> InferenceFact {
    typed(slot.datatype).with_shape(shape)
}

fn dimension(model: &InferenceModel, dim: &Dim) -> TDim {
    match dim {
        Dim::Fixed(size) => TDim::from(*size),
        Dim::Named(text) => parse_onnx_dim(&model.symbols, text)
            .unwrap_or_else(|_| TDim::from(model.symbols.new_with_prefix("free"))),
        Dim::Unknown => TDim::from(model.symbols.new_with_prefix("free")),
    }
}

/// The size of a dimension when every free one is `free`.
pub(super) fn size(model: &InferenceModel, dim: &Dim, free: usize) -> usize {
    let dim = dimension(model, dim);
    let values = dim.symbols().into_iter().map(|symbol: Symbol| (symbol, TDim::from(free)));
    let dim = dim.substitute_all(&values.collect());
    dim.ok().and_then(|dim| dim.to_usize().ok()).unwrap_or(free)
}

/// The shape of an input whose axis 0 is 1 if it is free, and whose other free dimensions are `free`.
pub(super) fn sample(model: &InferenceModel, slot: &Slot, free: usize) -> Option<TVec<usize>> {
    let dims = slot.dims.as_ref()?;
    let size = |(axis, dim)| size(model, dim, if axis == 0 { 1 } else { free });
    Some(dims.iter().enumerate().map(size).collect())
}
