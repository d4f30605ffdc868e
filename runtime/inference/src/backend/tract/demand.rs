//! How large a value an operator makes, where the values of its inputs decide it.

use tract_onnx::tract_core::{
    internal::{DatumType, SymbolValues, TDim, TValue, Tensor, TractResult, TypedOp},
    ops::array::{DynTile, Range, Topk},
};

use super::convert::is_symbolic;

/// Whether the operator's output is as large as its inputs say.
pub(super) fn depends_on_values(op: &dyn TypedOp) -> bool {
    op.is::<Range>() || op.is::<DynTile>() || op.is::<Topk>() || op.name() == "NonZero"
}

/// The bytes that the largest output takes; `None` where the inputs make no sense, which the operator will say.
pub(super) fn bytes(op: &dyn TypedOp, inputs: &[TValue], symbols: &SymbolValues) -> Option<u64> {
    let first = inputs.first()?;
    let element = first.datum_type().size_of() as u64;
    let larger = element.max(DatumType::I64.size_of() as u64);
    if op.is::<Range>() {
        let [start, end, step] = inputs else { return None };
        return Some(range([&**start, &**end, &**step], symbols)?.saturating_mul(larger));
    }
    if op.is::<DynTile>() {
        let times = integers(inputs.get(1)?, symbols).ok()?;
        let times = times.iter().map(|times| u64::try_from(*times).ok());
        return product(times.chain([Some(first.len() as u64), Some(element)]));
    }
    if let Some(top) = op.downcast_ref::<Topk>() {
        let count = integers(inputs.get(1)?, symbols).ok()?.first().copied()?;
        let others = first.shape().iter().enumerate().filter(|(axis, _)| *axis != top.axis);
        let others = others.map(|(_, size)| Some(*size as u64));
        return product(others.chain([u64::try_from(count).ok(), Some(larger)]));
    }
    // NonZero: at worst the place of every element.
    let (rank, count) = (first.rank() as u64, first.len() as u64);
    product([Some(rank), Some(count), Some(larger)].into_iter())
}

/// Negative and overflowing sizes are as large as can be.
fn product(sizes: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let mut product = 1u64;
    for size in sizes {
        match size.and_then(|size| product.checked_mul(size)) {
            Some(next) => product = next,
            None => return Some(u64::MAX),
        }
    }
    Some(product)
}

/// The steps of a range, as tract counts them.
pub(super) fn range(inputs: [&Tensor; 3], symbols: &SymbolValues) -> Option<u64> {
    let number = |value: &Tensor| -> Option<f64> {
        match value.datum_type().is_float() {
            true => value.cast_to_scalar::<f64>().ok(),
            false => integers(value, symbols).ok()?.first().map(|integer| *integer as f64),
        }
    };
    let [start, end, step] = inputs.map(number);
    let count = (end? - start?) / step?;
    // A step of zero makes infinitely many, and `as` keeps to the type's range.
    Some(match is_symbolic(inputs[0].datum_type()) {
        true => count.abs().ceil() as u64,
        false => count.ceil() as u64,
    })
}

/// tract's own cast of integers to its symbolic ones goes through 32 bits.
pub(super) fn integers(value: &Tensor, symbols: &SymbolValues) -> TractResult<Vec<i64>> {
    if !is_symbolic(value.datum_type()) {
        let plain = value.cast_to::<i64>()?;
        return Ok(plain.try_as_plain_ram()?.as_slice::<i64>()?.to_vec());
    }
    let plain = value.try_as_plain_ram()?;
    plain.as_slice::<TDim>()?.iter().map(|dim| dim.eval_to_i64(symbols)).collect()
}
