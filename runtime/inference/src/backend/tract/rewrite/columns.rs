//! Which strings the columns of an input hold as a rule. Encoders may fail on all but their own, so that made-up rows
//! of any others say nothing of a model.

use std::collections::HashMap;

use tract_onnx::pb::{NodeProto, TensorProto, tensor_proto::DataType};

use super::emit::integer;

/// An input, and a column of it; `None` for all of them.
type Column = (String, Option<i64>);
type ByColumn = HashMap<Option<i64>, Vec<i64>>;

/// Follows the columns of inputs to the encoders that read them.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// The column that a value is.
    of: HashMap<String, Column>,
    /// The weights that are one place.
    places: HashMap<String, i64>,
    usual: HashMap<String, ByColumn>,
}

impl Columns {
    pub(super) fn weight(&mut self, tensor: &TensorProto) {
        let (raw, list) = (tensor.raw_data.as_chunks().0, &tensor.int64_data);
        let place = match (raw, list.as_slice()) {
            ([raw], []) => i64::from_le_bytes(*raw),
            ([], [place]) => *place,
            _ => return,
        };
        if tensor.data_type == DataType::Int64 as i32 {
            self.places.insert(tensor.name.clone(), place);
        }
    }

    pub(super) fn input(&mut self, name: &str) {
        self.of.insert(name.to_owned(), (name.to_owned(), None));
    }

    /// Notes a node that cuts a column out of a table.
    pub(super) fn cut(&mut self, node: &NodeProto) {
        let is_cut = match node.op_type.as_str() {
            "ArrayFeatureExtractor" => true,
            "Gather" => matches!(integer(node, "axis"), Some(1 | -1)),
            _ => false,
        };
        let ([data, place], [output]) = (&node.input[..], &node.output[..]) else { return };
        if let (true, Some((input, None)), Some(place)) =
            (is_cut, self.of.get(data), self.places.get(place))
        {
            self.of.insert(output.clone(), (input.clone(), Some(*place)));
        }
    }

    /// Notes that a value which is none of these is an error.
    pub(super) fn must_be_of(&mut self, value: &str, categories: &[i64]) {
        if let Some((input, column)) = self.of.get(value) {
            let columns = self.usual.entry(input.clone()).or_default();
            columns.entry(*column).or_insert_with(|| categories.to_vec());
        }
    }

    pub(super) fn into_usual(self) -> Usual {
        Usual(self.usual)
    }
}

/// The numbers of the strings that columns hold as a rule.
#[derive(Debug, Default)]
pub(super) struct Usual(HashMap<String, ByColumn>);

impl Usual {
    /// One of them, by chance where there are several.
    pub(super) fn any(&self, input: &str, column: usize, chance: u64) -> Option<i64> {
        let columns = self.0.get(input)?;
        let all = columns.get(&i64::try_from(column).ok()).or_else(|| columns.get(&None))?;
        all.get(usize::try_from(chance % all.len().max(1) as u64).ok()?).copied()
    }
}
