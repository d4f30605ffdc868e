//! Rewrites a graph before tract reads it: operators that tract lacks, or would calculate wrongly, become others
//! that it has. What cannot be rewritten is left alone, and refused by [`super::refuse`].
//!
//! 1. Strings become numbers, wherever they are: [`strings`].
//! 2. scikit-learn's exports: [`features`] (what prepares the columns), [`trees`], [`vectors`] (support vector
//!    machines), [`outputs`] (labels and probabilities).
//! 3. ONNX's own operators: [`recurrent`] and [`elementary`].

mod columns;
mod elementary;
mod emit;
mod features;
mod outputs;
mod recurrent;
mod strings;
mod trees;
mod types;
mod vectors;

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

pub(super) use emit::{attribute, integer, opset, string, strings};
pub(super) use strings::{Strings, makes_text};

use emit::{Emit, Names};
use types::Types;

use crate::LoadError;

/// What the operators of scikit-learn's exports and their like belong to.
pub(super) const ML: &str = "ai.onnx.ml";

/// Rewrites every graph of the model, and gives the strings that it had.
pub(super) fn rewrite(model: &mut ModelProto) -> Result<Strings, LoadError> {
    let opset = opset(model);
    let Some(graph) = model.graph.as_mut() else { return Ok(Strings::default()) };
    let strings = strings::to_numbers(graph)?;
    let mut names = Names::of(graph);
    in_graph(graph, opset, &mut names, &Types::default())?;
    Ok(strings)
}

fn in_graph(
    graph: &mut GraphProto,
    opset: i64,
    names: &mut Names,
    outer: &Types,
) -> Result<(), LoadError> {
    let types = Types::of(graph, outer);
    let nodes = std::mem::take(&mut graph.node);
    let mut emit = Emit::new(opset, names);
    for mut node in nodes {
        for attribute in &mut node.attribute {
            for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                in_graph(inner, opset, emit.names(), &types)?;
            }
        }
        outputs::retype(&node, graph);
        if !in_node(&node, graph, &types, &mut emit)? {
            emit.keep(node);
        }
    }
    let (nodes, weights) = emit.into_parts();
    graph.node = nodes;
    graph.initializer.extend(weights);
    Ok(())
}

/// Whether the node has been rewritten: what stands for it is in `emit` then.
fn in_node(
    node: &NodeProto,
    graph: &GraphProto,
    types: &Types,
    emit: &mut Emit<'_>,
) -> Result<bool, LoadError> {
    if node.domain == ML {
        return match node.op_type.as_str() {
            "ZipMap" => Ok(outputs::zip_map(node, emit)),
            "ArrayFeatureExtractor" => Ok(features::extract(node, graph, emit)),
            "Scaler" => Ok(features::scale(node, emit)),
            "Imputer" => Ok(features::impute(node, emit)),
            "Binarizer" => Ok(features::binarize(node, emit)),
            "FeatureVectorizer" => Ok(features::vectorize(node, emit)),
            "OneHotEncoder" => Ok(features::one_hot(node, emit)),
            "LabelEncoder" => Ok(features::encode(node, emit)),
            "TreeEnsembleClassifier" => trees::classifier(node, types, emit),
            "TreeEnsembleRegressor" => trees::regressor(node, types, emit),
            "SVMRegressor" => Ok(vectors::regressor(node, emit)),
            _ => Ok(false),
        };
    }
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Ok(false);
    }
    Ok(match node.op_type.as_str() {
        "LSTM" | "GRU" | "RNN" => recurrent::forward(node, emit),
        "Cast" => elementary::cast(node, types, emit),
        "BitShift" => return elementary::shift(node, types, emit),
        "Celu" => elementary::celu(node, types, emit),
        "Swish" => elementary::swish(node, emit),
        "OneHot" => elementary::one_hot(node, graph, emit),
        "SpaceToDepth" => elementary::space_to_depth(node, emit),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "And" | "Or" | "Xor" | "Equal" | "Greater"
        | "Less" => elementary::broadcast(node, graph, emit),
        "ReduceMax" | "ReduceMin" => elementary::extreme(node, types, emit),
        _ => false,
    })
}
