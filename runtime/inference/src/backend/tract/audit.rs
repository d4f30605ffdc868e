//! Reads an ONNX protobuf before tract does: refuses what tract would answer with a panic or with a vague error,
//! and rewrites the few things that tract reads wrongly.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use sandpiper_domain::DataType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto, tensor_shape_proto::dimension::Value as DimValue,
    type_proto::Value as TypeValue,
};

use super::{
    refuse,
    rewrite::{Strings, opset, rewrite},
};
use crate::{LoadError, contract::shown};

/// Longer or more deeply nested expressions of a dimension are taken as an unknown size: tract's parser of them
/// recurses and backtracks.
const DIMENSION_TEXT_MAX: usize = 64;
const DIMENSION_NESTING_MAX: usize = 3;

/// A dimension as the graph declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dim {
    Fixed(usize),
    /// A symbol, or an expression of symbols that other inputs bind.
    Named(String),
    Unknown,
}

/// An input or output as the graph declares it.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) datatype: Option<DataType>,
    /// `None` where the graph does not state the rank.
    pub(super) dims: Option<Vec<Dim>>,
    /// Callers have strings, and the graph has their numbers.
    pub(super) is_text: bool,
}

/// What a caller gives and gets: an input that has an initializer is a weight and not here.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) inputs: Vec<Slot>,
    pub(super) outputs: Vec<Slot>,
    /// How often each operator is there, in the graphs inside others too.
    pub(super) operators: BTreeMap<String, u32>,
    /// Elements of all weights.
    pub(super) parameters: u64,
    /// Whether tract is right about the graph only where it knows every size.
    pub(super) needs_sizes: bool,
    /// The strings that the graph had.
    pub(super) strings: Arc<Strings>,
}

/// The nodes that take the largest or smallest of values.
pub(super) fn extremes(model: &ModelProto) -> HashSet<String> {
    let operators = ["ReduceMax", "ReduceMin", "ArgMax", "ArgMin"];
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    let nodes = nodes.filter(|node| operators.contains(&node.op_type.as_str()));
    nodes.map(|node| node.name.clone()).collect()
}

/// Checks and rewrites `model`; `registered` says which names of operators tract has.
pub(super) fn audit(
    model: &mut ModelProto,
    registered: &dyn Fn(&str) -> bool,
) -> Result<Declared, LoadError> {
    let opset_missing = model.opset_import.is_empty() && model.ir_version >= 3;
    let graph = model.graph.as_ref().ok_or(LoadError::Truncated)?;
    if opset_missing {
        return Err(malformed("it names no operator set (`opset_import`)"));
    }
    let Census { operators, parameters } = Census::of(graph);
    let strings = rewrite(model)?;
    let opset = opset(model);
    let graph = model.graph.as_mut().ok_or(LoadError::Truncated)?;
    let mut audit = Audit { registered, opset, missing: Missing::default(), needs_sizes: false };
    audit.visit(graph, false)?;
    let Audit { missing, needs_sizes, .. } = audit;
    if !missing.operators.is_empty() {
        return Err(LoadError::UnsupportedOperator { operators: missing.operators });
    }
    name_dimensions(graph);
    let (mut inputs, mut outputs) = declare(graph)?;
    inputs.iter_mut().for_each(|slot| slot.is_text = strings.inputs.contains(&slot.name));
    outputs.iter_mut().for_each(|slot| slot.is_text = strings.outputs.contains(&slot.name));
    name_nodes(graph);
    let strings = Arc::new(strings);
    Ok(Declared { inputs, outputs, operators, parameters, needs_sizes, strings })
}

/// What a graph is made of, as uploaded.
#[derive(Default)]
struct Census {
    operators: BTreeMap<String, u32>,
    parameters: u64,
}

impl Census {
    /// Names that one hostile graph may have counted.
    const OPERATORS_MAX: usize = 512;

    fn of(graph: &GraphProto) -> Self {
        let mut census = Census::default();
        census.visit(graph);
        census
    }

    fn visit(&mut self, graph: &GraphProto) {
        graph.initializer.iter().for_each(|tensor| self.weigh(tensor));
        for node in &graph.node {
            self.count(node);
            for attribute in &node.attribute {
                attribute.g.iter().chain(&attribute.graphs).for_each(|inner| self.visit(inner));
            }
        }
    }

    fn count(&mut self, node: &NodeProto) {
        let operator = named(node);
        if self.operators.len() < Self::OPERATORS_MAX || self.operators.contains_key(&operator) {
            *self.operators.entry(operator).or_default() += 1;
        }
    }

    fn weigh(&mut self, tensor: &TensorProto) {
        let sizes = tensor.dims.iter().map(|size| u64::try_from(*size).unwrap_or(0));
        let elements = sizes.fold(1, u64::saturating_mul);
        self.parameters = self.parameters.saturating_add(elements);
    }
}

/// The operator as errors and listings show it: with its domain, unless that is ONNX's own.
fn named(node: &NodeProto) -> String {
    let operator = shown(&node.op_type);
    match node.domain.as_str() {
        "" | "ai.onnx" => operator,
        domain => format!("{operator} ({})", shown(domain)),
    }
}

#[derive(Default)]
struct Missing {
    operators: Vec<String>,
    seen: HashSet<String>,
}

impl Missing {
    /// Operators of one hostile graph are not all worth keeping.
    const MAX: usize = 64;

    fn add(&mut self, node: &NodeProto) {
        let operator = named(node);
        if self.operators.len() < Self::MAX && self.seen.insert(operator.clone()) {
            self.operators.push(operator);
        }
    }
}

/// Goes through one graph and the graphs inside its nodes. The protobuf decoder bounds the depth.
struct Audit<'a> {
    registered: &'a dyn Fn(&str) -> bool,
    opset: i64,
    missing: Missing,
    needs_sizes: bool,
}

impl Audit<'_> {
    fn visit(&mut self, graph: &mut GraphProto, is_inner: bool) -> Result<(), LoadError> {
        // What other tools inferred about inner values is often stale, and never needed.
        graph.value_info = Vec::new();
        if !graph.sparse_initializer.is_empty() {
            return Err(LoadError::UnsupportedType(
                "the model has sparse initializers, which the backend cannot hold".to_owned(),
            ));
        }
        graph.initializer.iter_mut().try_for_each(check_tensor)?;
        graph.input.iter_mut().for_each(forget_hostile_dimensions);
        if is_inner && graph.input.iter().chain(&graph.output).any(is_text) {
            let text = "a graph inside an operator has strings, which the backend cannot hold";
            return Err(LoadError::UnsupportedType(text.to_owned()));
        }
        for node in &mut graph.node {
            match refuse::is_known(node, self.registered) {
                true => refuse::check(node, self.opset)?,
                false => self.missing.add(node),
            }
            self.needs_sizes |= refuse::needs_sizes(node);
            give_default_constant(node);
            for attribute in &mut node.attribute {
                attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(check_tensor)?;
                for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.visit(inner, true)?;
                }
            }
        }
        Ok(())
    }
}

fn is_text(info: &ValueInfoProto) -> bool {
    let value = info.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let text = tensor_proto::DataType::String as i32;
    matches!(value, Some(TypeValue::TensorType(tensor)) if tensor.elem_type == text)
}

/// `ConstantOfShape` without a value is zeros of 32-bit floats; tract takes 64-bit ones.
fn give_default_constant(node: &mut NodeProto) {
    if node.op_type == "ConstantOfShape" && node.attribute.is_empty() {
        let zero = TensorProto {
            dims: vec![1],
            data_type: tensor_proto::DataType::Float as i32,
            raw_data: vec![0; 4],
            ..Default::default()
        };
        node.attribute.push(AttributeProto {
            name: "value".to_owned(),
            r#type: AttributeType::Tensor as i32,
            t: Some(zero),
            ..Default::default()
        });
    }
}

fn check_tensor(tensor: &mut TensorProto) -> Result<(), LoadError> {
    use tensor_proto::{DataLocation, DataType as Onnx};

    let name = || if tensor.name.is_empty() { "(unnamed)".into() } else { shown(&tensor.name) };
    let external = tensor.data_location == Some(DataLocation::External as i32);
    if external || !tensor.external_data.is_empty() {
        return Err(LoadError::ExternalData { tensor: name() });
    }
    let onnx = Onnx::try_from(tensor.data_type);
    datatype(tensor.data_type).map_err(|kind| {
        let name = name();
        LoadError::UnsupportedType(format!(
            "the tensor `{name}` of the model is {kind}, which the backend cannot hold"
        ))
    })?;
    // ONNX keeps these two in `uint64_data`, where tract does not look.
    if tensor.raw_data.is_empty() && !tensor.uint64_data.is_empty() {
        let values = std::mem::take(&mut tensor.uint64_data);
        match onnx {
            Ok(Onnx::Uint32) => {
                let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
                tensor.raw_data = values.iter().flat_map(|v| narrow(*v).to_le_bytes()).collect();
            }
            Ok(Onnx::Uint64) => {
                tensor.raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            }
            _ => {}
        }
    }
    Ok(())
}

/// The type of this ONNX number, or the name of a type that tensors here cannot have.
fn datatype(number: i32) -> Result<DataType, String> {
    use tensor_proto::DataType as Onnx;

    match Onnx::try_from(number) {
        Ok(Onnx::Bool) => Ok(DataType::Bool),
        Ok(Onnx::Uint8) => Ok(DataType::U8),
        Ok(Onnx::Uint16) => Ok(DataType::U16),
        Ok(Onnx::Uint32) => Ok(DataType::U32),
        Ok(Onnx::Uint64) => Ok(DataType::U64),
        Ok(Onnx::Int8) => Ok(DataType::I8),
        Ok(Onnx::Int16) => Ok(DataType::I16),
        Ok(Onnx::Int32) => Ok(DataType::I32),
        Ok(Onnx::Int64) => Ok(DataType::I64),
        Ok(Onnx::Float16) => Ok(DataType::F16),
        Ok(Onnx::Float) => Ok(DataType::F32),
        Ok(Onnx::Double) => Ok(DataType::F64),
        Ok(other) => Err(format!("of the type {}", other.as_str_name())),
        Err(_) => Err(format!("of the unknown type number {number}")),
    }
}

fn dimensions(info: &mut ValueInfoProto) -> impl Iterator<Item = &mut Option<DimValue>> {
    let kind = info.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    let shape = kind.and_then(|TypeValue::TensorType(tensor)| tensor.shape.as_mut());
    shape.into_iter().flat_map(|shape| &mut shape.dim).map(|dim| &mut dim.value)
}

fn forget_hostile_dimensions(info: &mut ValueInfoProto) {
    for value in dimensions(info) {
        let hostile = match value {
            Some(DimValue::DimParam(text)) => {
                let nesting = text.matches('(').count();
                !text.is_ascii()
                    || text.len() > DIMENSION_TEXT_MAX
                    || nesting > DIMENSION_NESTING_MAX
            }
            Some(DimValue::DimValue(size)) => *size < 0,
            None => false,
        };
        if hostile {
            *value = None;
        }
    }
}

fn is_symbol(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Renames dimensions such as `batch-size`, which tract would read as a difference, unless they really are
/// expressions of symbols that stand alone elsewhere.
fn name_dimensions(graph: &mut GraphProto) {
    let mut symbols = HashSet::new();
    for value in graph.input.iter_mut().flat_map(dimensions) {
        match value {
            Some(DimValue::DimParam(text)) if is_symbol(text) => {
                symbols.insert(text.clone());
            }
            _ => {}
        }
    }
    let mut renamed = HashMap::new();
    for value in graph.input.iter_mut().flat_map(dimensions) {
        let Some(DimValue::DimParam(text)) = value else { continue };
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let bound = |word: &str| {
            word.is_empty()
                || word.chars().all(|c| c.is_ascii_digit())
                || symbols.contains(word)
                || ["floor", "ceil", "min", "max"].contains(&word)
        };
        if text.is_empty() || text == "?" {
            *value = None;
        } else if !is_symbol(text) && !words.all(bound) {
            let count = renamed.len();
            let name = renamed.entry(text.clone()).or_insert_with(|| format!("dimension_{count}"));
            *text = name.clone();
        }
    }
}

/// tract wants every node, input and weight of a graph to have a name of its own; ONNX does not.
fn name_nodes(graph: &mut GraphProto) {
    let inputs = graph.input.iter().map(|input| input.name.clone());
    let weights = graph.initializer.iter().map(|tensor| tensor.name.clone());
    let mut taken: HashSet<String> = inputs.chain(weights).collect();
    for (index, node) in graph.node.iter_mut().enumerate() {
        if node.name.is_empty() {
            node.name = node.output.first().cloned().unwrap_or_default();
        }
        if node.name.is_empty() || taken.contains(&node.name) {
            node.name = format!("{}#{index}", node.name);
        }
        taken.insert(node.name.clone());
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(name_nodes);
        }
    }
}

fn declare(graph: &mut GraphProto) -> Result<(Vec<Slot>, Vec<Slot>), LoadError> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let mut defined = weights.clone();
    let mut inputs = Vec::new();
    for input in &graph.input {
        if weights.contains(input.name.as_str()) {
            continue;
        }
        if !defined.insert(&input.name) {
            return Err(malformed(&format!("it has two inputs `{}`", shown(&input.name))));
        }
        let slot = slot("input", input)?;
        if slot.datatype.is_none() {
            return Err(malformed(&format!("its input `{}` has no type", shown(&input.name))));
        }
        inputs.push(slot);
    }
    defined.extend(graph.node.iter().flat_map(|node| &node.output).map(String::as_str));
    let mut outputs: Vec<Slot> = Vec::new();
    for output in &graph.output {
        let name = shown(&output.name);
        if !defined.contains(output.name.as_str()) {
            return Err(malformed(&format!("no node computes its output `{name}`")));
        }
        if outputs.iter().any(|slot| slot.name == output.name) {
            return Err(malformed(&format!("it has two outputs `{name}`")));
        }
        outputs.push(slot("output", output)?);
    }
    if outputs.is_empty() {
        return Err(malformed("it has no outputs"));
    }
    Ok((inputs, outputs))
}

fn slot(noun: &str, info: &ValueInfoProto) -> Result<Slot, LoadError> {
    let name = info.name.clone();
    let unsupported = |kind: &str| {
        let name = shown(&name);
        LoadError::UnsupportedType(format!(
            "the {noun} `{name}` of the model is {kind}, which the backend cannot hold"
        ))
    };
    let tensor = match &info.r#type {
        None => return Ok(Slot { name, datatype: None, dims: None, is_text: false }),
        Some(TypeProto { value: None, .. }) => {
            return Err(unsupported("a sequence, a map or an optional value"));
        }
        Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), .. }) => tensor,
    };
    // Exporters leave the type of an output undefined when they do not know it.
    let untyped = noun == "output" && tensor.elem_type == 0;
    let datatype = match untyped {
        true => None,
        false => Some(datatype(tensor.elem_type).map_err(|kind| unsupported(&kind))?),
    };
    let dims = tensor.shape.as_ref().map(|shape| {
        let dim = |value: &Option<DimValue>| match value {
            Some(DimValue::DimValue(size)) => {
                usize::try_from(*size).map_or(Dim::Unknown, Dim::Fixed)
            }
            Some(DimValue::DimParam(text)) => Dim::Named(text.clone()),
            None => Dim::Unknown,
        };
        shape.dim.iter().map(|d| dim(&d.value)).collect()
    });
    Ok(Slot { name, datatype, dims, is_text: false })
}

fn malformed(text: &str) -> LoadError {
    LoadError::Malformed(text.to_owned())
}
