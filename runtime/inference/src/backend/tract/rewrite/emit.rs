//! Reads attributes of nodes, and writes new nodes and weights.

use std::collections::HashSet;

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};

/// The version of ONNX's own operators that the model is written in.
pub(in super::super) fn opset(model: &ModelProto) -> i64 {
    let own = |domain: &str| matches!(domain, "" | "ai.onnx");
    model.opset_import.iter().find(|set| own(&set.domain)).map_or(1, |set| set.version)
}

pub(in super::super) fn attribute<'a>(
    node: &'a NodeProto,
    name: &str,
) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

pub(in super::super) fn integer(node: &NodeProto, name: &str) -> Option<i64> {
    attribute(node, name).map(|attribute| attribute.i)
}

pub(in super::super) fn integers<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |attribute| &attribute.ints)
}

pub(in super::super) fn float(node: &NodeProto, name: &str) -> Option<f32> {
    attribute(node, name).map(|attribute| attribute.f)
}

pub(in super::super) fn floats<'a>(node: &'a NodeProto, name: &str) -> &'a [f32] {
    attribute(node, name).map_or(&[], |attribute| &attribute.floats)
}

pub(in super::super) fn string<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    attribute(node, name).and_then(|attribute| std::str::from_utf8(&attribute.s).ok())
}

pub(in super::super) fn strings<'a>(node: &'a NodeProto, name: &str) -> Vec<&'a str> {
    let texts = attribute(node, name).map_or(&[][..], |attribute| &attribute.strings);
    texts.iter().map(|text| std::str::from_utf8(text).unwrap_or_default()).collect()
}

pub(super) fn with_int(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.to_owned(), r#type, i, ..Default::default() }
}

pub(super) fn with_ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    let r#type = AttributeType::Ints as i32;
    AttributeProto { name: name.to_owned(), r#type, ints, ..Default::default() }
}

pub(super) fn with_floats(name: &str, floats: Vec<f32>) -> AttributeProto {
    let r#type = AttributeType::Floats as i32;
    AttributeProto { name: name.to_owned(), r#type, floats, ..Default::default() }
}

pub(super) fn with_strings(name: &str, texts: &[&str]) -> AttributeProto {
    let strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    let r#type = AttributeType::Strings as i32;
    AttributeProto { name: name.to_owned(), r#type, strings, ..Default::default() }
}

/// Every name of a value in a model, so that new ones differ from them.
pub(super) struct Names {
    taken: HashSet<String>,
    next: usize,
}

impl Names {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut names = Names { taken: HashSet::new(), next: 0 };
        names.collect(graph);
        names
    }

    fn collect(&mut self, graph: &GraphProto) {
        self.taken.extend(graph.input.iter().map(|input| input.name.clone()));
        self.taken.extend(graph.output.iter().map(|output| output.name.clone()));
        self.taken.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
        for node in &graph.node {
            self.taken.insert(node.name.clone());
            self.taken.extend(node.input.iter().chain(&node.output).cloned());
            for attribute in &node.attribute {
                attribute.g.iter().chain(&attribute.graphs).for_each(|inner| self.collect(inner));
            }
        }
    }

    fn fresh(&mut self) -> String {
        loop {
            self.next += 1;
            let name = format!("sandpiper_{}", self.next);
            if !self.taken.contains(&name) {
                return name;
            }
        }
    }
}

/// Collects the nodes of a graph, old and new.
pub(super) struct Emit<'a> {
    pub(super) opset: i64,
    names: &'a mut Names,
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
}

impl<'a> Emit<'a> {
    pub(super) fn new(opset: i64, names: &'a mut Names) -> Self {
        Emit { opset, names, nodes: Vec::new(), weights: Vec::new() }
    }

    pub(super) fn names(&mut self) -> &mut Names {
        self.names
    }

    pub(super) fn into_parts(self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.nodes, self.weights)
    }

    /// A node as it was.
    pub(super) fn keep(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    pub(super) fn fresh(&mut self) -> String {
        self.names.fresh()
    }

    /// A node whose one output gets a new name, which is returned.
    pub(super) fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let output = self.fresh();
        self.node_to(op, inputs, &output, attributes);
        output
    }

    /// A node whose output has a given name.
    pub(super) fn node_to(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..Default::default()
        });
    }

    pub(super) fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(op, inputs, Vec::new())
    }

    pub(super) fn op_to(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.node_to(op, inputs, output, Vec::new());
    }

    /// A cast to this type of ONNX.
    pub(super) fn cast(&mut self, input: &str, to: DataType) -> String {
        if to == DataType::Int64 {
            let output = self.fresh();
            self.widen(input, &output);
            return output;
        }
        self.node("Cast", &[input], vec![with_int("to", to as i64)])
    }

    /// A cast to 64-bit integers. tract takes `Cast` for one to sizes of tensors, and on the way there for one to 32
    /// bits.
    pub(super) fn widen(&mut self, input: &str, output: &str) {
        let like = self.integers(&[], &[0]);
        self.op_to("CastLike", &[input, &like], output);
    }

    /// A reshape; 0 keeps a size and -1 stands for the rest.
    pub(super) fn reshape(&mut self, input: &str, shape: &[i64]) -> String {
        let shape = self.integers(&[shape.len() as i64], shape);
        self.op("Reshape", &[input, &shape])
    }

    /// A reduction over one axis that stays, as an axis of size 1.
    pub(super) fn reduce(&mut self, op: &str, input: &str, axis: i64) -> String {
        let as_input = self.opset >= 18 || (op == "ReduceSum" && self.opset >= 13);
        let keep = with_int("keepdims", 1);
        if as_input {
            let axes = self.integers(&[1], &[axis]);
            return self.node(op, &[input, &axes], vec![keep]);
        }
        self.node(op, &[input], vec![keep, with_ints("axes", vec![axis])])
    }

    /// Axes are an attribute before version 13, and an input since.
    fn last(&mut self) -> (Option<String>, Vec<AttributeProto>) {
        match self.opset >= 13 {
            true => (Some(self.integers(&[1], &[-1])), Vec::new()),
            false => (None, vec![with_ints("axes", vec![-1])]),
        }
    }

    /// The value with a new last axis of size 1.
    pub(super) fn with_last_axis(&mut self, input: &str) -> String {
        let (axes, attributes) = self.last();
        let inputs: Vec<&str> = std::iter::once(input).chain(axes.as_deref()).collect();
        self.node("Unsqueeze", &inputs, attributes)
    }

    /// The value without its last axis, which is of size 1.
    pub(super) fn without_last_axis(&mut self, input: &str, output: &str) {
        let (axes, attributes) = self.last();
        let inputs: Vec<&str> = std::iter::once(input).chain(axes.as_deref()).collect();
        self.node_to("Squeeze", &inputs, output, attributes);
    }

    /// The value as it is, where it is a matrix of so many columns; the model does not load or run on any other. It is
    /// put before a matrix of no rows.
    pub(super) fn of_columns(&mut self, input: &str, count: i64, kind: DataType) -> String {
        let none = self.weight(&[0, count], kind, Vec::new());
        self.node("Concat", &[input, &none], vec![with_int("axis", 0)])
    }

    /// Some columns of a matrix.
    pub(super) fn columns(&mut self, input: &str, columns: &[i64]) -> String {
        let indices = self.integers(&[columns.len() as i64], columns);
        self.node("Gather", &[input, &indices], vec![with_int("axis", 1)])
    }

    pub(super) fn floats(&mut self, dims: &[i64], values: &[f32]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.weight(dims, DataType::Float, raw)
    }

    pub(super) fn integers(&mut self, dims: &[i64], values: &[i64]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.weight(dims, DataType::Int64, raw)
    }

    pub(super) fn weight(&mut self, dims: &[i64], data: DataType, raw_data: Vec<u8>) -> String {
        let name = self.fresh();
        let (dims, data_type) = (dims.to_vec(), data as i32);
        let tensor =
            TensorProto { name: name.clone(), dims, data_type, raw_data, ..Default::default() };
        self.weights.push(tensor);
        name
    }
}
