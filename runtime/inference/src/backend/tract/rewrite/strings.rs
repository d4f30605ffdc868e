//! Strings become numbers, so that tract has none: its string tensors hold pointers, and its kernels copy memory.
//!
//! 1. Every string that the graph mentions gets a number. What callers send and the graph does not mention is
//!    [one more](Strings::number) that equals none of them.
//! 2. A value of strings becomes one of numbers. Operators that move elements stay as they are; encoders and
//!    classifiers get numbers in the place of their strings. Any other operator of strings is refused.
//! 3. What goes in and out of the graph is translated by [`edges`](super::super::edges).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::{DataLocation, DataType},
    type_proto::Value,
};

use super::{
    ML, attribute,
    columns::{Columns, Usual},
    emit::{integer, integers, with_int, with_ints},
};
use crate::LoadError;

/// What ONNX gives for a value that a table does not have, unless the model says otherwise.
const UNUSED: &str = "_Unused";

/// Operators that move elements of their first input, or of all (`true`), and look at none.
const MOVERS: [(&str, bool); 15] = [
    ("Concat", true),
    ("Expand", false),
    ("Flatten", false),
    ("Gather", false),
    ("GatherElements", false),
    ("GatherND", false),
    ("Identity", false),
    ("Reshape", false),
    ("Slice", false),
    ("Split", false),
    ("Squeeze", false),
    ("Tile", false),
    ("Transpose", false),
    ("Unsqueeze", false),
    ("ArrayFeatureExtractor", false),
];

/// Operators that are for strings alone.
const TEXT_OPERATORS: [&str; 4] =
    ["RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"];

/// The strings of a graph by number.
#[derive(Debug, Default)]
pub(in super::super) struct Strings {
    texts: Vec<Arc<[u8]>>,
    numbers: HashMap<Arc<[u8]>, i64>,
    /// The inputs and outputs of the graph that are strings for callers.
    pub(in super::super) inputs: HashSet<String>,
    pub(in super::super) outputs: HashSet<String>,
    usual: Usual,
}

impl Strings {
    /// The string of a number.
    pub(in super::super) fn text(&self, number: i64) -> Option<&[u8]> {
        let text = self.texts.get(usize::try_from(number).ok()?)?;
        Some(text)
    }

    /// The number of a string; all strings that the graph does not mention have the same.
    pub(in super::super) fn number(&self, text: &[u8]) -> i64 {
        self.numbers.get(text).copied().unwrap_or_else(|| self.count())
    }

    /// The number of a string that an input may well hold in this column, by chance.
    pub(in super::super) fn usual(&self, input: &str, column: usize, chance: u64) -> i64 {
        self.usual.any(input, column, chance).unwrap_or((chance & 1).cast_signed())
    }

    /// The bytes of the longest string.
    pub(in super::super) fn longest(&self) -> usize {
        self.texts.iter().map(|text| text.len()).max().unwrap_or(0)
    }

    fn count(&self) -> i64 {
        i64::try_from(self.texts.len()).unwrap_or(i64::MAX)
    }

    fn learn(&mut self, text: &[u8]) -> i64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let (number, text) = (self.count(), Arc::<[u8]>::from(text));
        self.texts.push(text.clone());
        self.numbers.insert(text, number);
        number
    }

    fn learn_all(&mut self, texts: &[Vec<u8>]) -> Vec<i64> {
        texts.iter().map(|text| self.learn(text)).collect()
    }
}

/// Puts numbers in the place of all strings of the graph.
pub(super) fn to_numbers(graph: &mut GraphProto) -> Result<Strings, LoadError> {
    let mut pass = Pass::default();
    let mut weights = HashSet::new();
    for tensor in &mut graph.initializer {
        if is_text(tensor) && pass.tensor(tensor)? {
            pass.texts.insert(tensor.name.clone(), Text::Known);
        }
        pass.columns.weight(tensor);
        weights.insert(tensor.name.as_str());
    }
    for input in &mut graph.input {
        if retype(input, |kind| kind == DataType::String as i32)
            && !weights.contains(input.name.as_str())
        {
            pass.texts.insert(input.name.clone(), Text::Any);
            pass.strings.inputs.insert(input.name.clone());
            pass.columns.input(&input.name);
        }
    }
    for node in &mut graph.node {
        pass.used.extend(node.input.iter().cloned());
        pass.columns.cut(node);
        pass.node(node)?;
    }
    for output in &mut graph.output {
        match pass.texts.get(&output.name) {
            None => continue,
            Some(Text::Any) => return Err(passed_on(&output.name)),
            Some(Text::Known) => {}
        }
        retype(output, |_| true);
        pass.strings.outputs.insert(output.name.clone());
    }
    pass.strings.usual = pass.columns.into_usual();
    Ok(pass.strings)
}

fn passed_on(output: &str) -> LoadError {
    let name = crate::contract::shown(output);
    LoadError::UnsupportedType(format!(
        "the output `{name}` of the model hands out strings of an input, which the backend cannot hold"
    ))
}

/// What a value of strings may hold.
#[derive(Clone, Copy, PartialEq)]
enum Text {
    /// Strings of the graph.
    Known,
    /// Whatever a caller has sent.
    Any,
}

#[derive(Default)]
struct Pass {
    strings: Strings,
    /// The values of strings so far.
    texts: HashMap<String, Text>,
    /// The names that nodes have read so far.
    used: HashSet<String>,
    columns: Columns,
}

impl Pass {
    fn node(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        if node.domain == ML {
            match node.op_type.as_str() {
                "TreeEnsembleClassifier" => return self.classifier(node, "classlabels_int64s"),
                "LinearClassifier" | "SVMClassifier" => {
                    return self.classifier(node, "classlabels_ints");
                }
                "LabelEncoder" => return self.encoder(node),
                "CategoryMapper" => return self.mapper(node),
                "OneHotEncoder" => return self.one_hot(node),
                "ArrayFeatureExtractor" => return self.mover(node, false),
                _ => {}
            }
        }
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            return self.refuse_any(node);
        }
        let name = node.op_type.as_str();
        if TEXT_OPERATORS.contains(&name) {
            return Err(LoadError::UnsupportedOperator { operators: vec![name.to_owned()] });
        }
        if let Some((_, all)) = MOVERS.iter().find(|(mover, _)| *mover == name) {
            return self.mover(node, *all);
        }
        match name {
            "Constant" => self.constant(node),
            "Cast" | "CastLike" => self.cast(node),
            "Where" => self.choose(node),
            "Equal" => self.compare(node),
            "Shape" | "Size" => Ok(()),
            _ => self.refuse_any(node),
        }
    }

    fn of(&self, node: &NodeProto, place: usize) -> Option<Text> {
        self.texts.get(node.input.get(place)?).copied()
    }

    /// Notes that the outputs of a node are strings.
    fn give(&mut self, node: &NodeProto, text: Text, count: usize) -> Result<(), LoadError> {
        for output in node.output.iter().take(count).filter(|output| !output.is_empty()) {
            if self.used.contains(output) {
                let why = "a node reads a string before another has made it".to_owned();
                return Err(LoadError::Malformed(why));
            }
            self.texts.insert(output.clone(), text);
        }
        Ok(())
    }

    /// For operators that have no strings here.
    fn refuse_any(&self, node: &NodeProto) -> Result<(), LoadError> {
        let read = node.input.iter().any(|input| self.texts.contains_key(input));
        let holds = |attribute: &AttributeProto| {
            attribute.t.iter().chain(&attribute.tensors).any(is_text)
                || attribute.g.iter().chain(&attribute.graphs).any(|graph| self.touches(graph))
        };
        match read || node.attribute.iter().any(holds) {
            true => Err(refused(node, "strings")),
            false => Ok(()),
        }
    }

    /// Whether a graph inside a node has to do with strings.
    fn touches(&self, graph: &GraphProto) -> bool {
        let makes = |node: &NodeProto| {
            let own = ["classlabels_strings", "keys_strings", "values_strings", "cats_strings"];
            let mentions = |attribute: &AttributeProto| {
                own.contains(&attribute.name.as_str()) && node.op_type != "ZipMap"
                    || attribute.name.starts_with("value_string")
            };
            node.attribute.iter().any(mentions) || makes_text(node)
        };
        let outer = |node: &NodeProto| self.refuse_any(node).is_err();
        graph.initializer.iter().any(is_text) || graph.node.iter().any(|n| makes(n) || outer(n))
    }

    fn mover(&mut self, node: &NodeProto, all: bool) -> Result<(), LoadError> {
        let moved = if all { node.input.len() } else { 1 };
        self.move_of(node, 0..moved)
    }

    /// Passes on the strings of these inputs, which all are strings or none; the others are none.
    fn move_of(
        &mut self,
        node: &NodeProto,
        moved: std::ops::Range<usize>,
    ) -> Result<(), LoadError> {
        let texts: Vec<_> = (0..node.input.len()).map(|place| self.of(node, place)).collect();
        if texts.iter().all(Option::is_none) {
            return Ok(());
        }
        if texts.iter().enumerate().any(|(place, text)| text.is_some() != moved.contains(&place)) {
            return Err(refused(node, "strings together with others"));
        }
        let text = if texts.contains(&Some(Text::Any)) { Text::Any } else { Text::Known };
        self.give(node, text, node.output.len())
    }

    fn choose(&mut self, node: &NodeProto) -> Result<(), LoadError> {
        self.move_of(node, 1..3)
    }

    /// What the graph does not mention is one number, so that two such strings cannot be told from each other.
    fn compare(&self, node: &NodeProto) -> Result<(), LoadError> {
        match (self.of(node, 0), self.of(node, 1)) {
            (None, None) | (Some(Text::Known), Some(_)) | (Some(_), Some(Text::Known)) => Ok(()),
            (Some(_), Some(_)) => Err(refused(node, "strings of inputs with each other")),
            _ => Err(refused(node, "strings together with others")),
        }
    }

    fn cast(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        let like = node.op_type == "CastLike" && self.of(node, 1).is_some();
        match (self.of(node, 0), makes_text(node) || like) {
            (None, false) => Ok(()),
            (Some(text), true) => {
                node.op_type = "Identity".to_owned();
                node.input.truncate(1);
                node.attribute.clear();
                self.give(node, text, 1)
            }
            (Some(_), false) => Err(refused(node, "strings as numbers")),
            (None, true) => Err(refused(node, "numbers as strings")),
        }
    }

    fn constant(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        let Some(attribute) = node.attribute.first_mut() else { return Ok(()) };
        let (dims, texts) = match attribute.name.as_str() {
            "value_string" => (vec![], vec![std::mem::take(&mut attribute.s)]),
            "value_strings" => {
                let texts = std::mem::take(&mut attribute.strings);
                (vec![texts.len() as i64], texts)
            }
            _ => {
                let Some(tensor) = attribute.t.as_mut().filter(|tensor| is_text(tensor)) else {
                    return Ok(());
                };
                self.tensor(tensor)?;
                return self.give(node, Text::Known, 1);
            }
        };
        let int64_data = self.strings.learn_all(&texts);
        let data_type = DataType::Int64 as i32;
        *attribute = AttributeProto {
            name: "value".to_owned(),
            r#type: AttributeType::Tensor as i32,
            t: Some(TensorProto { dims, data_type, int64_data, ..Default::default() }),
            ..Default::default()
        };
        self.give(node, Text::Known, 1)
    }

    /// Says whether the tensor holds its strings itself.
    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<bool, LoadError> {
        // What is not here, or in a form that ONNX does not have, is refused with other such weights.
        let external = tensor.data_location == Some(DataLocation::External as i32);
        if external || !tensor.raw_data.is_empty() {
            return Ok(false);
        }
        let count = tensor.dims.iter().try_fold(1i64, |count, size| count.checked_mul(*size));
        if count != i64::try_from(tensor.string_data.len()).ok() {
            let why = "a tensor of strings has more or fewer of them than its shape says";
            return Err(LoadError::Malformed(why.to_owned()));
        }
        let texts: Vec<Vec<u8>> = std::mem::take(&mut tensor.string_data);
        tensor.int64_data = self.strings.learn_all(&texts);
        tensor.data_type = DataType::Int64 as i32;
        Ok(true)
    }

    fn classifier(&mut self, node: &mut NodeProto, labels: &str) -> Result<(), LoadError> {
        self.refuse_any(node)?;
        let texts = take(node, "classlabels_strings");
        if texts.is_empty() {
            return Ok(());
        }
        if !integers(node, labels).is_empty() {
            return Err(malformed(node, "has labels of two types"));
        }
        remove(node, labels);
        node.attribute.push(with_ints(labels, self.strings.learn_all(&texts)));
        self.give(node, Text::Known, 1)
    }

    fn one_hot(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        let texts = take(node, "cats_strings");
        match (self.of(node, 0), texts.is_empty()) {
            (None, true) => return Ok(()),
            (Some(_), false) if integers(node, "cats_int64s").is_empty() => {}
            _ => return Err(malformed(node, "has categories of another type than its input")),
        }
        remove(node, "cats_int64s");
        let categories = self.strings.learn_all(&texts);
        if let (Some(input), Some(0)) = (node.input.first(), integer(node, "zeros")) {
            self.columns.must_be_of(input, &categories);
        }
        node.attribute.push(with_ints("cats_int64s", categories));
        Ok(())
    }

    /// From strings to numbers or the other way about, whichever the input is not.
    fn mapper(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        let (texts, numbers) = (take(node, "cats_strings"), integers(node, "cats_int64s").to_vec());
        self.table(node, texts, numbers)
    }

    /// Makes the node a `LabelEncoder` between these strings and numbers.
    fn table(
        &mut self,
        node: &mut NodeProto,
        texts: Vec<Vec<u8>>,
        numbers: Vec<i64>,
    ) -> Result<(), LoadError> {
        if texts.len() != numbers.len() {
            return Err(malformed(node, "has lists of different lengths"));
        }
        let texts = self.strings.learn_all(&texts);
        let is_text = self.of(node, 0).is_some();
        let other = match is_text {
            true => integer(node, "default_int64").unwrap_or(-1),
            false => self.other(node),
        };
        let (keys, values) = if is_text { (texts, numbers) } else { (numbers, texts) };
        node.op_type = "LabelEncoder".to_owned();
        node.attribute = vec![
            with_ints("keys_int64s", keys),
            with_ints("values_int64s", values),
            with_int("default_int64", other),
        ];
        if is_text { Ok(()) } else { self.give(node, Text::Known, 1) }
    }

    /// The number of the string that stands for what a table does not have.
    fn other(&mut self, node: &NodeProto) -> i64 {
        let tensor = attribute(node, "default_tensor").and_then(|default| default.t.as_ref());
        let text = match (attribute(node, "default_string"), tensor) {
            (Some(default), _) => default.s.clone(),
            (None, Some(tensor)) if is_text(tensor) => {
                tensor.string_data.first().cloned().unwrap_or_default()
            }
            _ => UNUSED.as_bytes().to_vec(),
        };
        self.strings.learn(&text)
    }

    fn encoder(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        // As the first version of the operator has it: the place in a list.
        let classes = take(node, "classes_strings");
        if !classes.is_empty() {
            let places = (0..classes.len() as i64).collect();
            return self.table(node, classes, places);
        }
        let (keys, values) = (take_list(node, "keys"), take_list(node, "values"));
        if keys.is_empty() == self.of(node, 0).is_some() {
            return Err(malformed(node, "has keys of another type than its input"));
        }
        if !keys.is_empty() {
            remove(node, "keys_int64s");
            node.attribute.push(with_ints("keys_int64s", self.strings.learn_all(&keys)));
        }
        if values.is_empty() {
            return Ok(());
        }
        let (values, other) = (self.strings.learn_all(&values), self.other(node));
        remove(node, "values_int64s");
        remove(node, "default_int64");
        node.attribute
            .extend([with_ints("values_int64s", values), with_int("default_int64", other)]);
        self.give(node, Text::Known, 1)
    }
}

fn is_text(tensor: &TensorProto) -> bool {
    tensor.data_type == DataType::String as i32
}

/// Whether a node says that what it makes is strings.
pub(in super::super) fn makes_text(node: &NodeProto) -> bool {
    let text = Some(DataType::String as i64);
    ["to", "dtype", "output_dtype"].iter().any(|name| integer(node, name) == text)
}

/// Makes an input or output one of integers, if its type is `wanted`.
fn retype(info: &mut ValueInfoProto, wanted: impl Fn(i32) -> bool) -> bool {
    let value = info.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    let Some(Value::TensorType(tensor)) = value else { return false };
    let is_wanted = wanted(tensor.elem_type);
    if is_wanted {
        tensor.elem_type = DataType::Int64 as i32;
    }
    is_wanted
}

fn remove(node: &mut NodeProto, name: &str) -> Option<AttributeProto> {
    let place = node.attribute.iter().position(|attribute| attribute.name == name)?;
    Some(node.attribute.remove(place))
}

/// The strings of an attribute, which is removed.
fn take(node: &mut NodeProto, name: &str) -> Vec<Vec<u8>> {
    remove(node, name).map(|attribute| attribute.strings).unwrap_or_default()
}

/// The same in the two forms that encoders have had: a list, or a tensor.
fn take_list(node: &mut NodeProto, name: &str) -> Vec<Vec<u8>> {
    let list = take(node, &format!("{name}_strings"));
    let tensor = format!("{name}_tensor");
    let is_ours = attribute(node, &tensor).and_then(|found| found.t.as_ref()).is_some_and(is_text);
    if !list.is_empty() || !is_ours {
        return list;
    }
    remove(node, &tensor).and_then(|found| found.t).map(|t| t.string_data).unwrap_or_default()
}

fn malformed(node: &NodeProto, text: &str) -> LoadError {
    LoadError::Malformed(format!("an operator `{}` {text}", crate::contract::shown(&node.op_type)))
}

fn refused(node: &NodeProto, why: &str) -> LoadError {
    let operator = crate::contract::shown(&node.op_type);
    LoadError::UnsupportedVariant { operator, why: why.to_owned() }
}
