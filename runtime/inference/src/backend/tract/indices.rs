//! Keeps indices that come from values inside what they index.
//!
//! tract 0.23.9 checks few of them: most that are out of range panic, and `Gather` along an axis other than the first
//! reads the neighbouring row, which in a batch may be another caller's. So they are checked before the operator runs.

use tract_onnx::tract_core::{
    internal::{TValue, TypedOp},
    ops::array::{Gather, GatherElements, GatherNd, OneHot, ScatterElements, ScatterNd},
    tract_linalg::{block_quant::BlockQuantStorage, mmm::PackedMatrixStorage},
};

/// Whether every index among the inputs of this operator is in its range. True where the operator has none, and where
/// it fails of itself.
pub(super) fn fit(op: &dyn TypedOp, inputs: &[TValue]) -> bool {
    let outcome = if let Some(op) = op.downcast_ref::<Gather>() {
        gathered(op.axis, inputs)
    } else if let Some(op) = op.downcast_ref::<GatherElements>() {
        elements(op.axis, inputs)
    } else if let Some(op) = op.downcast_ref::<GatherNd>() {
        tuples(op.batch_dims, inputs)
    } else if op.is::<ScatterNd>() {
        tuples(0, inputs)
    } else if let Some(op) = op.downcast_ref::<OneHot>() {
        inputs.first().and_then(|indices| all_within(indices, -length(op.dim), length(op.dim)))
    } else if let Some(op) = op.downcast_ref::<ScatterElements>() {
        scattered(op.axis, inputs)
    } else {
        return true;
    };
    outcome.unwrap_or(true)
}

fn length(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Whether all indices are `least` or above, and below `end`. `None` if they are no numbers.
fn all_within(indices: &TValue, least: i64, end: i64) -> Option<bool> {
    let indices = indices.cast_to::<i64>().ok()?;
    let indices = indices.try_as_plain_ram().ok()?;
    Some(indices.as_slice::<i64>().ok()?.iter().all(|index| (least..end).contains(index)))
}

/// A negative index counts from the end, but not in weights that are packed.
fn gathered(axis: usize, inputs: &[TValue]) -> Option<bool> {
    let [data, indices] = inputs else { return None };
    if let Some(packed) = data.storage_as::<PackedMatrixStorage>() {
        return all_within(indices, 0, length(packed.values().first()?.mn()));
    }
    if data.storage_as::<BlockQuantStorage>().is_some() {
        let rows = data.shape().len().checked_sub(2)?;
        return all_within(indices, 0, length(*data.shape().get(rows)?));
    }
    let end = length(*data.shape().get(axis)?);
    all_within(indices, -end, end)
}

/// Along the other axes, indices go as far as the data at most.
fn elements(axis: usize, inputs: &[TValue]) -> Option<bool> {
    let (data, indices) = (inputs.first()?, inputs.get(1)?);
    let end = length(*data.shape().get(axis)?);
    let mut sizes = data.shape().iter().zip(indices.shape()).enumerate();
    let fits = sizes.all(|(own, (data, indices))| own == axis || indices <= data);
    Some((fits || indices.len() == 0) && all_within(indices, -end, end)?)
}

fn scattered(axis: usize, inputs: &[TValue]) -> Option<bool> {
    let (indices, updates) = (inputs.get(1)?, inputs.get(2)?);
    Some(indices.shape() == updates.shape() && elements(axis, inputs)?)
}

/// The last axis of the indices holds one index for each of the first axes of the data, after those that both share.
fn tuples(shared: usize, inputs: &[TValue]) -> Option<bool> {
    let (data, indices) = (inputs.first()?, inputs.get(1)?);
    let (data, shape) = (data.shape(), indices.shape());
    let count = *shape.last()?;
    if shared >= shape.len() || data.get(..shared)? != shape.get(..shared)? {
        return Some(false);
    }
    if count == 0 {
        return Some(true);
    }
    let ends = data.get(shared..)?.get(..count)?;
    let indices = indices.cast_to::<i64>().ok()?;
    let indices = indices.try_as_plain_ram().ok()?;
    let mut tuples = indices.as_slice::<i64>().ok()?.chunks_exact(count);
    Some(
        tuples.all(|tuple| {
            tuple.iter().zip(ends).all(|(index, end)| (0..length(*end)).contains(index))
        }),
    )
}
