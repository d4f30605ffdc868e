//! Rows: joining the inputs of several calls to those of one, and parting the outputs again.

use bytes::{Bytes, BytesMut};
use sandpiper_domain::{NamedTensor, Tensor};

/// The inputs of the calls one after the other along axis 0; `None` where they do not fit each other.
pub(crate) fn join<'a>(calls: impl Iterator<Item = &'a [Tensor]>) -> Option<Vec<Tensor>> {
    let calls: Vec<&[Tensor]> = calls.collect();
    let first = calls.first()?;
    if calls.iter().any(|inputs| inputs.len() != first.len()) {
        return None;
    }
    (0..first.len()).map(|input| concatenate(calls.iter().map(|inputs| &inputs[input]))).collect()
}

fn concatenate<'a>(tensors: impl Iterator<Item = &'a Tensor> + Clone) -> Option<Tensor> {
    let first = tensors.clone().next()?;
    let (_, row) = first.shape().split_first()?;
    let mut bytes =
        BytesMut::with_capacity(tensors.clone().map(|tensor| tensor.data().len()).sum());
    let mut rows = 0u64;
    for tensor in tensors {
        let (count, rest) = tensor.shape().split_first()?;
        if tensor.datatype() != first.datatype() || rest != row {
            return None;
        }
        rows += *count as u64;
        bytes.extend_from_slice(tensor.data());
    }
    let shape: Vec<u64> = [rows].into_iter().chain(row.iter().map(|size| *size as u64)).collect();
    Tensor::new(first.datatype(), &shape, bytes.freeze()).ok()
}

/// The outputs of a batch for each of the calls that it was made of, which have `rows` rows. `None` where an output
/// does not have as many rows as went in.
pub(crate) fn split(outputs: Vec<NamedTensor>, rows: &[usize]) -> Option<Vec<Vec<NamedTensor>>> {
    let total: usize = rows.iter().sum();
    let mut calls: Vec<Vec<NamedTensor>> =
        rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for NamedTensor { name, tensor } in outputs {
        if tensor.shape().first() != Some(&total) || total == 0 {
            return None;
        }
        let row = tensor.data().len() / total;
        let mut at = 0;
        for (call, &rows) in calls.iter_mut().zip(rows) {
            let end = at + rows * row;
            let tensor = part(&tensor, rows, tensor.data().slice(at..end))?;
            call.push(NamedTensor { name: name.clone(), tensor });
            at = end;
        }
    }
    Some(calls)
}

/// One row of a tensor.
pub(crate) fn row(tensor: &Tensor, row: usize) -> Option<Tensor> {
    let bytes = tensor.data().len() / (*tensor.shape().first()?).max(1);
    let end = row.checked_add(1)?.checked_mul(bytes)?;
    let data = (end <= tensor.data().len()).then(|| tensor.data().slice(end - bytes..end))?;
    part(tensor, 1, data)
}

fn part(tensor: &Tensor, rows: usize, data: Bytes) -> Option<Tensor> {
    let mut shape: Vec<u64> = tensor.shape().iter().map(|size| *size as u64).collect();
    *shape.first_mut()? = rows as u64;
    Tensor::new(tensor.datatype(), &shape, data).ok()
}
