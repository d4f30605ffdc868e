//! Ensembles of trees.
//!
//! tract walks a tree without looking where it steps: a class of a leaf that is not there would be written outside
//! its array, and a branch that leads back to itself would never end. So each ensemble is checked here and
//! written anew: trees and nodes in order, the root first, comparisons that tract has. tract only adds up the
//! leaves; base values, classes and what comes after are operators of their own, since tract takes the winner of
//! two classes wrongly.

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::pb::{NodeProto, tensor_proto::DataType};

use super::{
    ML,
    emit::{
        Emit, floats, integer, integers, string, strings, with_floats, with_int, with_ints,
        with_strings,
    },
    types::Types,
};
use crate::LoadError;

/// Tree, node, class and weight.
type Leaf = (i64, i64, i64, f32);

/// Scores of one row by class or target, added up over the leaves.
struct Forest {
    nodes: Vec<Branch>,
    leaves: Vec<Leaf>,
    trees: usize,
}

struct Branch {
    tree: i64,
    node: i64,
    feature: i64,
    value: f32,
    mode: &'static str,
    yes: i64,
    no: i64,
    missing_is_yes: bool,
}

fn malformed(node: &NodeProto, text: &str) -> LoadError {
    LoadError::Malformed(format!("an operator `{}` {text}", node.op_type))
}

fn unsupported(node: &NodeProto, why: &str) -> LoadError {
    LoadError::UnsupportedVariant { operator: node.op_type.clone(), why: why.to_owned() }
}

/// `TreeEnsembleClassifier` -> labels and scores, as onnxruntime has them.
pub(super) fn classifier(
    node: &NodeProto,
    types: &Types,
    emit: &mut Emit<'_>,
) -> Result<bool, LoadError> {
    let labels = integers(node, "classlabels_int64s");
    let classes = labels.len() as i64;
    let forest = Forest::of(node, "class", classes)?;
    let base = floats(node, "base_values");
    let post = string(node, "post_transform").unwrap_or("NONE");
    let scores = forest.scores(node, types, classes.max(3), emit)?;
    let own = |index: usize| node.output.get(index).filter(|name| !name.is_empty()).cloned();
    let label = own(0).unwrap_or_else(|| emit.fresh());
    let output = own(1).unwrap_or_else(|| emit.fresh());
    let only_first = forest.leaves.iter().all(|leaf| leaf.2 == 0);
    let has_base = base.iter().any(|value| *value != 0.);
    let place = match classes {
        // onnxruntime gives them no base value either.
        2 if has_base && !forest.scores_all(1) => {
            return Err(unsupported(node, "a base value, and rows that get no score"));
        }
        2 if only_first && base.len() < 2 => {
            let score = emit.columns(&scores, &[0]);
            let score = add(&score, base, emit);
            binary(node, &score, forest.is_positive(), post, &output, emit)?
        }
        0..=2 => return Err(unsupported(node, "one class, or two with a score for each")),
        _ if !base.is_empty() && base.len() != labels.len() => {
            return Err(malformed(node, "has more or fewer base values than classes"));
        }
        _ if base.is_empty() && !forest.is_positive() && !forest.scores_all(classes) => {
            return Err(unsupported(node, "classes that some rows get no score for"));
        }
        _ => {
            let score = add(&scores, base, emit);
            match post {
                "NONE" => emit.op_to("Identity", &[&score], &output),
                "LOGISTIC" => emit.op_to("Sigmoid", &[&score], &output),
                "SOFTMAX" => emit.node_to("Softmax", &[&score], &output, vec![with_int("axis", 1)]),
                _ => return Err(unsupported(node, "this `post_transform`")),
            }
            emit.node("ArgMax", &[&score], vec![with_int("axis", 1), with_int("keepdims", 0)])
        }
    };
    let labels = emit.integers(&[classes], labels);
    emit.node_to("Gather", &[&labels, &place], &label, vec![with_int("axis", 0)]);
    Ok(true)
}

/// One score that speaks for the second class; writes the scores of both and returns the winner.
fn binary(
    node: &NodeProto,
    score: &str,
    positive: bool,
    post: &str,
    output: &str,
    emit: &mut Emit<'_>,
) -> Result<String, LoadError> {
    let other = match (post, positive) {
        ("LOGISTIC", _) | ("NONE", false) => emit.op("Neg", &[score]),
        ("NONE", true) => {
            let one = emit.floats(&[1], &[1.]);
            emit.op("Sub", &[&one, score])
        }
        _ => return Err(unsupported(node, "this `post_transform` for two classes")),
    };
    let beside = vec![with_int("axis", 1)];
    if post == "LOGISTIC" {
        let both = emit.node("Concat", &[&other, score], beside);
        emit.op_to("Sigmoid", &[&both], output);
    } else {
        emit.node_to("Concat", &[&other, score], output, beside);
    }
    let least = emit.floats(&[1], &[if positive { 0.5 } else { 0. }]);
    let won = emit.op("Greater", &[score, &least]);
    let won = emit.cast(&won, DataType::Int64);
    Ok(emit.reshape(&won, &[-1]))
}

/// `TreeEnsembleRegressor` -> one value for each target.
pub(super) fn regressor(
    node: &NodeProto,
    types: &Types,
    emit: &mut Emit<'_>,
) -> Result<bool, LoadError> {
    let targets = integer(node, "n_targets").unwrap_or(1);
    let forest = Forest::of(node, "target", targets)?;
    let base = floats(node, "base_values");
    let Some(output) = node.output.first() else { return Ok(false) };
    if !base.is_empty() && base.len() as i64 != targets {
        return Err(malformed(node, "has more or fewer base values than targets"));
    }
    if !matches!(string(node, "post_transform"), None | Some("NONE")) {
        return Err(unsupported(node, "a `post_transform`"));
    }
    let all = targets.max(3);
    let mut scores = forest.scores(node, types, all, emit)?;
    if targets < all {
        scores = emit.columns(&scores, &(0..targets).collect::<Vec<_>>());
    }
    match string(node, "aggregate_function").unwrap_or("SUM") {
        "SUM" => {}
        "AVERAGE" => {
            let count = emit.floats(&[1], &[forest.trees as f32]);
            scores = emit.op("Div", &[&scores, &count]);
        }
        _ => return Err(unsupported(node, "an `aggregate_function` other than SUM and AVERAGE")),
    }
    let scores = add(&scores, base, emit);
    emit.op_to("Identity", &[&scores], output);
    Ok(true)
}

fn add(scores: &str, base: &[f32], emit: &mut Emit<'_>) -> String {
    if base.iter().all(|value| *value == 0.) {
        return scores.to_owned();
    }
    let base = emit.floats(&[base.len() as i64], base);
    emit.op("Add", &[scores, &base])
}

/// The columns of an ensemble, all of one length.
struct Columns<'a> {
    trees: &'a [i64],
    nodes: &'a [i64],
    features: &'a [i64],
    values: &'a [f32],
    modes: Vec<&'a str>,
    yes: &'a [i64],
    no: &'a [i64],
    missing: &'a [i64],
}

impl<'a> Columns<'a> {
    fn of(node: &'a NodeProto) -> Result<Self, LoadError> {
        let columns = Columns {
            trees: integers(node, "nodes_treeids"),
            nodes: integers(node, "nodes_nodeids"),
            features: integers(node, "nodes_featureids"),
            values: floats(node, "nodes_values"),
            modes: strings(node, "nodes_modes"),
            yes: integers(node, "nodes_truenodeids"),
            no: integers(node, "nodes_falsenodeids"),
            missing: integers(node, "nodes_missing_value_tracks_true"),
        };
        let count = columns.trees.len();
        let lengths = [
            columns.nodes.len(),
            columns.features.len(),
            columns.values.len(),
            columns.modes.len(),
            columns.yes.len(),
            columns.no.len(),
        ];
        let missing = columns.missing.len();
        if count == 0
            || lengths.iter().any(|length| *length != count)
            || (missing != 0 && missing != count)
        {
            return Err(malformed(node, "has lists of nodes of different lengths, or none"));
        }
        Ok(columns)
    }

    /// The comparison as tract has it: `x >= v` is `x < v` with the branches exchanged.
    fn branch(&self, index: usize, node: &NodeProto) -> Result<Branch, LoadError> {
        let (mode, exchanged) = match self.modes[index] {
            "LEAF" => ("LEAF", false),
            "BRANCH_LEQ" => ("BRANCH_LEQ", false),
            "BRANCH_LT" => ("BRANCH_LT", false),
            "BRANCH_GT" => ("BRANCH_GT", false),
            "BRANCH_EQ" => ("BRANCH_EQ", false),
            "BRANCH_NEQ" => ("BRANCH_NEQ", false),
            "BRANCH_GTE" => ("BRANCH_LT", true),
            _ => return Err(malformed(node, "has a node of an unknown mode")),
        };
        let tracks = self.missing.get(index).is_some_and(|flag| *flag != 0);
        // A missing value is unequal to every other.
        let missing_is_yes = (tracks || mode == "BRANCH_NEQ") != exchanged;
        let (yes, no) = (self.yes[index], self.no[index]);
        let (yes, no) = if exchanged { (no, yes) } else { (yes, no) };
        let (feature, value) = (self.features[index], self.values[index]);
        if mode != "LEAF" && i32::try_from(feature).map_or(true, |feature| feature < 0) {
            return Err(malformed(node, "has a node of a feature that cannot be"));
        }
        let feature = if mode == "LEAF" { 0 } else { feature };
        Ok(Branch {
            tree: self.trees[index],
            node: self.nodes[index],
            feature,
            value,
            mode,
            yes,
            no,
            missing_is_yes,
        })
    }
}

impl Forest {
    /// Reads the ensemble whose leaves are for `prefix` (`class` or `target`), numbered below `targets`.
    fn of(node: &NodeProto, prefix: &str, targets: i64) -> Result<Self, LoadError> {
        let wide = |attribute: &&_| -> bool {
            let attribute: &tract_onnx::pb::AttributeProto = attribute;
            attribute.name.ends_with("_as_tensor")
        };
        if node.attribute.iter().any(|attribute| wide(&attribute)) {
            return Err(unsupported(node, "weights of 64-bit floats"));
        }
        let columns = Columns::of(node)?;
        let mut trees: BTreeMap<i64, BTreeMap<i64, Branch>> = BTreeMap::new();
        for index in 0..columns.trees.len() {
            let branch = columns.branch(index, node)?;
            let tree = trees.entry(branch.tree).or_default();
            if tree.insert(branch.node, branch).is_some() {
                return Err(malformed(node, "has two nodes of one number in a tree"));
            }
        }
        let mut weights = leaves(node, prefix, targets)?;
        let mut forest = Forest { nodes: Vec::new(), leaves: Vec::new(), trees: trees.len() };
        for (number, (id, tree)) in trees.into_iter().enumerate() {
            forest
                .plant(number as i64, id, tree, &mut weights)
                .map_err(|text| malformed(node, text))?;
        }
        match weights.is_empty() {
            true => Ok(forest),
            false => Err(malformed(node, "has a weight for a node that is no leaf")),
        }
    }

    /// Adds a tree, numbered anew from its root.
    fn plant(
        &mut self,
        number: i64,
        id: i64,
        mut tree: BTreeMap<i64, Branch>,
        weights: &mut BTreeMap<(i64, i64), Vec<(i64, f32)>>,
    ) -> Result<(), &'static str> {
        let inner = |branch: &&Branch| branch.mode != "LEAF";
        let children: Vec<i64> = tree.values().filter(inner).flat_map(|b| [b.yes, b.no]).collect();
        let mut parentless: BTreeSet<i64> = tree.keys().copied().collect();
        for child in &children {
            if !parentless.remove(child) {
                return Err("has a node with no place in its tree, or with two");
            }
        }
        let mut roots = parentless.into_iter();
        let (Some(root), None) = (roots.next(), roots.next()) else {
            return Err("has a tree without one root");
        };
        // Every other node has one parent, so that what the root leads to is a tree; the rest would be a circle.
        let mut order = vec![root];
        let mut next = 0;
        let mut scored = false;
        while let Some(old) = order.get(next).copied() {
            let Some(mut branch) = tree.remove(&old) else { return Err("has a tree that is none") };
            (branch.tree, branch.node) = (number, next as i64);
            if branch.mode == "LEAF" {
                let own = weights.remove(&(id, old)).unwrap_or_default();
                scored |= !own.is_empty();
                self.leaves.extend(
                    own.into_iter().map(|(class, weight)| (number, next as i64, class, weight)),
                );
                (branch.yes, branch.no) = (0, 0);
            } else {
                order.extend([branch.yes, branch.no]);
                branch.yes = order.len() as i64 - 2;
                branch.no = order.len() as i64 - 1;
            }
            self.nodes.push(branch);
            next += 1;
        }
        if !tree.is_empty() {
            return Err("has nodes that its tree does not lead to");
        }
        if !scored {
            // tract wants a weight in every tree; there is a leaf in each.
            let leaf = self.nodes.iter().rev().find(|branch| branch.mode == "LEAF");
            self.leaves.push((number, leaf.map_or(0, |leaf| leaf.node), 0, 0.));
        }
        Ok(())
    }

    fn is_positive(&self) -> bool {
        self.leaves.iter().all(|leaf| leaf.3 >= 0.)
    }

    /// Whether every row gets a score for each class: some tree has one in each of its leaves.
    fn scores_all(&self, classes: i64) -> bool {
        let mut leaves: BTreeMap<i64, usize> = BTreeMap::new();
        for branch in self.nodes.iter().filter(|branch| branch.mode == "LEAF") {
            *leaves.entry(branch.tree).or_default() += 1;
        }
        let mut scored: BTreeMap<(i64, i64), BTreeSet<i64>> = BTreeMap::new();
        for (tree, node, class, _) in &self.leaves {
            scored.entry((*class, *tree)).or_default().insert(*node);
        }
        let full =
            scored.iter().filter(|((_, tree), nodes)| leaves.get(tree) == Some(&nodes.len()));
        full.map(|((class, _), _)| class).collect::<BTreeSet<_>>().len() as i64 == classes
    }

    /// Writes the ensemble with `classes` columns of scores.
    fn scores(
        &self,
        node: &NodeProto,
        types: &Types,
        classes: i64,
        emit: &mut Emit<'_>,
    ) -> Result<String, LoadError> {
        let Some(input) = node.input.first() else {
            return Err(malformed(node, "has no input"));
        };
        if types.get(input) == Some(DataType::Double) {
            return Err(unsupported(node, "inputs of 64-bit floats"));
        }
        let ints = |of: &dyn Fn(&Branch) -> i64| self.nodes.iter().map(of).collect::<Vec<_>>();
        let leaf = |of: fn(&Leaf) -> i64| self.leaves.iter().map(of).collect::<Vec<_>>();
        let modes: Vec<_> = self.nodes.iter().map(|branch| branch.mode).collect();
        let attribute = vec![
            with_ints("nodes_treeids", ints(&|b| b.tree)),
            with_ints("nodes_nodeids", ints(&|b| b.node)),
            with_ints("nodes_featureids", ints(&|b| b.feature)),
            with_floats("nodes_values", self.nodes.iter().map(|b| b.value).collect()),
            with_strings("nodes_modes", &modes),
            with_ints("nodes_truenodeids", ints(&|b| b.yes)),
            with_ints("nodes_falsenodeids", ints(&|b| b.no)),
            with_ints("nodes_missing_value_tracks_true", ints(&|b| i64::from(b.missing_is_yes))),
            with_ints("class_treeids", leaf(|l| l.0)),
            with_ints("class_nodeids", leaf(|l| l.1)),
            with_ints("class_ids", leaf(|l| l.2)),
            with_floats("class_weights", self.leaves.iter().map(|l| l.3).collect()),
            with_ints("classlabels_int64s", (0..classes).collect()),
        ];
        let input = emit.cast(input, DataType::Float);
        let (labels, scores) = (emit.fresh(), emit.fresh());
        emit.keep(NodeProto {
            op_type: "TreeEnsembleClassifier".to_owned(),
            domain: ML.to_owned(),
            input: vec![input],
            output: vec![labels, scores.clone()],
            attribute,
            ..Default::default()
        });
        Ok(scores)
    }
}

/// By tree and node: classes or targets with their weights.
type Leaves = BTreeMap<(i64, i64), Vec<(i64, f32)>>;

/// The weights by tree and node.
fn leaves(node: &NodeProto, prefix: &str, targets: i64) -> Result<Leaves, LoadError> {
    let column = |name: &str| integers(node, &format!("{prefix}_{name}"));
    let (trees, nodes, ids) = (column("treeids"), column("nodeids"), column("ids"));
    let weights = floats(node, &format!("{prefix}_weights"));
    if [nodes.len(), ids.len(), weights.len()].iter().any(|length| *length != trees.len()) {
        return Err(malformed(node, "has lists of weights of different lengths"));
    }
    if ids.iter().any(|id| !(0..targets).contains(id)) {
        return Err(malformed(node, "has a weight for a class or target that is not there"));
    }
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (index, id) in ids.iter().enumerate() {
        all.entry((trees[index], nodes[index])).or_default().push((*id, weights[index]));
    }
    Ok(all)
}
