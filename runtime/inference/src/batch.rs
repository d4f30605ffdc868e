//! Rows: joining the inputs of several calls to those of one, and parting the outputs again.

use bytes::{Bytes, BytesMut};
use sandpiper_domain::{NamedTensor, Strings, Tensor};

/// The rows of a call: axis 0 of every input. `None` where the inputs do not agree on it, or one has no axes.
pub(crate) fn rows_of(inputs: &[Tensor]) -> Option<usize> {
    let rows = *inputs.first()?.shape().first()?;
    inputs.iter().all(|input| input.shape().first() == Some(&rows)).then_some(rows)
}

/// The inputs of the calls one after the other along axis 0; `None` where they do not fit each other. A call whose own
/// inputs have different numbers of rows fits none: in a batch it would shift the rows of the others.
pub(crate) fn join<'a>(calls: impl Iterator<Item = &'a [Tensor]>) -> Option<Vec<Tensor>> {
    let calls: Vec<&[Tensor]> = calls.collect();
    let first = calls.first()?;
    if calls.iter().any(|inputs| inputs.len() != first.len() || rows_of(inputs).is_none()) {
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
        rows = rows.checked_add(*count as u64)?;
        bytes.extend_from_slice(tensor.data());
    }
    let shape: Vec<u64> = [rows].into_iter().chain(row.iter().map(|size| *size as u64)).collect();
    Tensor::new(first.datatype(), &shape, bytes.freeze()).ok()
}

/// The outputs of a batch for each of the calls that it was made of, which have `rows` rows. `None` where an output
/// does not have as many rows as went in.
pub(crate) fn split(outputs: Vec<NamedTensor>, rows: &[usize]) -> Option<Vec<Vec<NamedTensor>>> {
    let total = rows.iter().try_fold(0usize, |total, rows| total.checked_add(*rows))?;
    let mut calls: Vec<Vec<NamedTensor>> =
        rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for NamedTensor { name, tensor } in outputs {
        if tensor.shape().first() != Some(&total) || total == 0 {
            return None;
        }
        let mut cut = Cut::of(&tensor);
        for (call, &rows) in calls.iter_mut().zip(rows) {
            let tensor = part(&tensor, rows, cut.next(rows))?;
            call.push(NamedTensor { name: name.clone(), tensor });
        }
    }
    Some(calls)
}

/// One row of a tensor.
pub(crate) fn row(tensor: &Tensor, row: usize) -> Option<Tensor> {
    if row >= *tensor.shape().first()? {
        return None;
    }
    let mut cut = Cut::of(tensor);
    cut.next(row);
    part(tensor, 1, cut.next(1))
}

/// Takes the bytes of a tensor apart, some rows after the others.
struct Cut<'a> {
    data: &'a Bytes,
    at: usize,
    row: Row<'a>,
}

/// What a row is.
enum Row<'a> {
    /// So many bytes.
    Bytes(usize),
    /// So many strings, and those that are not yet taken.
    Strings(usize, Strings<'a>),
}

impl<'a> Cut<'a> {
    fn of(tensor: &'a Tensor) -> Self {
        let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
        let row = match tensor.datatype().size() {
            Some(_) => Row::Bytes(tensor.data().len() / rows),
            None => Row::Strings(tensor.elements() / rows, tensor.strings()),
        };
        Cut { data: tensor.data(), at: 0, row }
    }

    /// The bytes of the next rows, which are there.
    fn next(&mut self, rows: usize) -> Bytes {
        let bytes = match &mut self.row {
            Row::Bytes(bytes) => rows.saturating_mul(*bytes),
            Row::Strings(count, strings) => {
                let before = strings.rest().len();
                strings.by_ref().take(rows.saturating_mul(*count)).for_each(drop);
                before - strings.rest().len()
            }
        };
        let (start, end) = (self.at, self.data.len().min(self.at.saturating_add(bytes)));
        self.at = end;
        self.data.slice(start..end)
    }
}

fn part(tensor: &Tensor, rows: usize, data: Bytes) -> Option<Tensor> {
    let mut shape: Vec<u64> = tensor.shape().iter().map(|size| *size as u64).collect();
    *shape.first_mut()? = rows as u64;
    Tensor::new(tensor.datatype(), &shape, data).ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use sandpiper_domain::DataType;

    use super::*;

    /// Rows of `width` elements: bytes that are `mark`, or strings that are longer from row to row and hold it.
    fn tensor(rows: usize, width: usize, mark: u8, is_text: bool) -> Tensor {
        let shape = [rows as u64, width as u64];
        if is_text {
            let strings: Vec<Vec<u8>> =
                (0..rows * width).map(|length| vec![mark; length]).collect();
            return Tensor::of_strings(&shape, strings.iter().map(Vec::as_slice)).unwrap();
        }
        Tensor::new(DataType::U8, &shape, Bytes::from(vec![mark; rows * width])).unwrap()
    }

    proptest! {
        /// Inputs that were joined come back to the calls they came from; no call that is uneven in itself is joined.
        #[test]
        fn what_was_joined_comes_back_to_its_own_call(
            widths in vec(1usize..4, 1..4),
            rows in vec(vec(0usize..4, 4), 1..8),
            is_even in any::<bool>(),
            is_text in any::<bool>(),
        ) {
            let inputs = |(call, rows): (usize, &Vec<usize>)| -> Vec<Tensor> {
                let rows = |input: usize| rows[if is_even { 0 } else { input }];
                let widths = widths.iter().enumerate();
                let one = |(input, width): (usize, &usize)| {
                    tensor(rows(input), *width, call as u8, is_text)
                };
                widths.map(one).collect()
            };
            let calls: Vec<Vec<Tensor>> = rows.iter().enumerate().map(inputs).collect();
            let own: Vec<Option<usize>> = calls.iter().map(|inputs| rows_of(inputs)).collect();
            let joined = join(calls.iter().map(Vec::as_slice));
            prop_assert_eq!(joined.is_some(), own.iter().all(Option::is_some));
            let Some(joined) = joined else { return Ok(()) };
            let own: Vec<usize> = own.into_iter().flatten().collect();
            let named = |tensor| NamedTensor { name: "y".to_owned(), tensor };
            let parts = split(joined.into_iter().map(named).collect(), &own);
            prop_assert_eq!(parts.is_some(), own.iter().sum::<usize>() > 0);
            for (part, call) in parts.iter().flatten().zip(&calls) {
                let part: Vec<Tensor> = part.iter().map(|named| named.tensor.clone()).collect();
                prop_assert_eq!(&part, call);
                let rows = part[0].shape()[0];
                prop_assert!(row(&part[0], rows).is_none());
                let single: Vec<Tensor> = (0..rows).filter_map(|at| row(&part[0], at)).collect();
                let joined = join(single.iter().map(std::slice::from_ref));
                prop_assert_eq!(joined.unwrap_or_default(), part[..1.min(rows)].to_vec());
            }
        }
    }
}
