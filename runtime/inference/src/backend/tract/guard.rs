//! Keeps tract's matrix kernels inside their operands.
//!
//! tract takes two dimensions that may be equal for equal: symbols of different names, a symbol and a number, or
//! a size that only shows at run time. When they then differ, the packed kernels of 0.23.9 read past the end of
//! the shorter operand, which hands out memory of other calls. Debug assertions would catch some of it; release
//! builds have none. So the operands of every product are measured before it runs.

use tract_onnx::tract_core::{
    internal::{SymbolValues, TValue, TypedOp},
    ops::matmul::optimized::{MapOutputAxisToInput, MatMulOperand, OptMatMul, ProtoFusedSpec},
    ops::nn::{Reduce, Reducer},
    tract_linalg::mmm::{MMMInputValue, PackedMatrixStorage},
};

/// Whether the inputs of this operator are as large as it will read.
pub(super) fn fits(op: &dyn TypedOp, inputs: &[TValue], symbols: &SymbolValues) -> bool {
    if let (Some(axes), Some(input)) = (extreme_along(op), inputs.first()) {
        return axes.iter().all(|axis| input.shape().get(*axis) != Some(&0));
    }
    match op.downcast_ref::<OptMatMul>() {
        Some(product) => product_fits(product, inputs, symbols).unwrap_or(false),
        None => true,
    }
}

/// `None` where something is not as a product has it.
fn product_fits(op: &OptMatMul, inputs: &[TValue], symbols: &SymbolValues) -> Option<bool> {
    let shape = op.c_fact.shape.eval_to_usize(symbols).ok()?;
    let rows = op.c_m_axis.map_or(Some(1), |axis| shape.get(axis).copied())?;
    let columns = op.c_n_axis.map_or(Some(1), |axis| shape.get(axis).copied())?;
    if shape.contains(&0) {
        return Some(true);
    }
    for step in &op.micro_ops {
        let fits = match step {
            ProtoFusedSpec::AddMatMul { a, b, .. } => {
                let (a, b) = (operand(a, inputs)?, operand(b, inputs)?);
                a.k() == b.k() && a.mn() >= rows && b.mn() >= columns
            }
            ProtoFusedSpec::BinScalar(input, _) | ProtoFusedSpec::LeakyRelu(input) => {
                inputs.get(*input)?.len() > 0
            }
            ProtoFusedSpec::BinPerRow(input, _, map) => {
                vector_fits(inputs.get(*input)?, map, &shape, op.c_m_axis, rows)?
            }
            ProtoFusedSpec::BinPerCol(input, _, map) => {
                vector_fits(inputs.get(*input)?, map, &shape, op.c_n_axis, columns)?
            }
            ProtoFusedSpec::AddRowColProducts(row, column) => {
                inputs.get(*row)?.len() >= rows && inputs.get(*column)?.len() >= columns
            }
            ProtoFusedSpec::AddUnicast(_, input, map) => {
                vector_fits(inputs.get(*input)?, map, &shape, None, 1)?
            }
            ProtoFusedSpec::Scaler(_) | ProtoFusedSpec::Store(_) => true,
        };
        if !fits {
            return Some(false);
        }
    }
    Some(true)
}

/// The first matrix of an operand; those of one batch are all of one size.
fn operand<'a>(operand: &'a MatMulOperand, inputs: &'a [TValue]) -> Option<&'a dyn MMMInputValue> {
    match operand {
        MatMulOperand::Const(value) => Some(&**value),
        MatMulOperand::Input(index) => {
            let storage = inputs.get(*index)?.storage_as::<PackedMatrixStorage>()?;
            storage.values().first().map(|value| &**value)
        }
    }
}

/// Whether the axes that the product walks are long enough, and the rest, with the kernel's own axis, holds the
/// `count` elements that the kernel reads.
fn vector_fits(
    value: &TValue,
    map: &MapOutputAxisToInput,
    product: &[usize],
    own: Option<usize>,
    count: usize,
) -> Option<bool> {
    let mut rest = value.len();
    // The kernel walks its own axis; the product offsets the others.
    for &(from, to) in map.0.iter().filter(|(from, _)| Some(*from) != own) {
        let (walked, held) = (*product.get(from)?, *value.shape().get(to)?);
        if held < walked {
            return Some(false);
        }
        rest /= held.max(1);
    }
    Some(rest >= count)
}

/// The axes along which this operator takes the largest or smallest value. Of no values at all tract takes the
/// limit of the type, where ONNX has an infinity or nothing.
fn extreme_along(op: &dyn TypedOp) -> Option<&[usize]> {
    let reduce = op.downcast_ref::<Reduce>()?;
    let extreme = matches!(
        reduce.reducer,
        Reducer::Max | Reducer::Min | Reducer::ArgMax(_) | Reducer::ArgMin(_)
    );
    extreme.then_some(&reduce.axes[..])
}
