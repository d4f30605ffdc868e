//! Triton's `ModelConfig` in JSON, as far as this server does what it says.
//!
//! The configuration is taken whole: what it does not name has the default of an upload. What has no counterpart here
//! is refused by its name rather than passed over, unless it says nothing: null, false, 0, an empty text, list or
//! object. Names may be written as the protocol's JSON or protobuf's has them, `max_batch_size` and `maxBatchSize`.

use std::collections::BTreeMap;

use sandpiper_domain::{ModelName, ModelOptions, ModelSignature, TensorSpec};
use serde_json::{Map, Value};

use crate::oip::{OipError, describe::config_type, shown};

/// Fields of a `ModelConfig` that this server has nothing for, and what it has instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("instance_group", "every model runs on the compute threads of the node"),
    ("model_warmup", "samples to warm up with come with an upload, PUT /api/v1/models/{name}"),
    ("sequence_batching", "no call depends on another"),
    ("ensemble_scheduling", "models are joined in a function"),
    ("optimization", "the graph is always optimised"),
    ("parameters", "the backend has none"),
    ("model_operations", "the backend has one library of operators"),
    ("model_repository_agents", "there are no agents"),
    ("cc_model_filenames", "there is one file"),
    ("batch_input", "inputs are those of the graph"),
    ("batch_output", "outputs are those of the graph"),
    ("metric_tags", "metrics have the labels `model` and `version`"),
    ("model_metrics", "metrics are the operator's"),
    ("runtime", "the backend has one"),
];

const UNSUPPORTED_OF_BATCHING: &[(&str, &str)] = &[
    ("preserve_ordering", "each answer goes to its own request"),
    ("priority_levels", "a request's parameter `priority` needs no levels"),
    ("default_priority_level", "a request's parameter `priority` needs no levels"),
    (
        "default_queue_policy",
        "queues are bounded by the tenant's limits and the requests' timeouts",
    ),
    (
        "priority_queue_policy",
        "queues are bounded by the tenant's limits and the requests' timeouts",
    ),
];

const UNSUPPORTED_OF_TENSORS: &[(&str, &str)] = &[
    ("format", "a tensor is what the graph says"),
    ("reshape", "a tensor is what the graph says"),
    ("is_shape_tensor", "a tensor is what the graph says"),
    ("allow_ragged_batch", "the rows of a batch have one shape"),
    ("optional", "every input of the graph is needed"),
    ("is_non_linear_format_io", "a tensor is what the graph says"),
    ("label_filename", "there is no classification"),
];

/// What the backend goes by, here and in Triton.
const BACKENDS: &[&str] = &["onnxruntime", "onnx", "tract"];
const PLATFORMS: &[&str] = &["onnxruntime_onnx", "onnxruntime", "onnx", "tract_onnx", "tract"];

/// A configuration that this server can do.
#[derive(Debug)]
pub(super) struct Config {
    options: ModelOptions,
    /// Whether `dims` lack the first dimension, that of the batch.
    has_rows: bool,
    inputs: Vec<Declared>,
    outputs: Vec<Declared>,
    file_name: Option<String>,
}

/// A tensor that the configuration names.
#[derive(Debug)]
struct Declared {
    name: String,
    data_type: Option<String>,
    dims: Option<Vec<i64>>,
}

impl Config {
    /// Reads a configuration of the model `name`.
    pub(super) fn read(text: &str, name: &ModelName) -> Result<Self, OipError> {
        let json: Value = serde_json::from_str(text).map_err(|error| {
            OipError::invalid(format!("the parameter `config` is no JSON: {error}"))
        })?;
        let mut fields = Fields::of("config", json)?;
        if fields.text("name")?.is_some_and(|named| named != name.as_str()) {
            return Err(refuse("config.name", "is not the name of the model that is loaded"));
        }
        fields.one_of("backend", BACKENDS)?;
        fields.one_of("platform", PLATFORMS)?;
        let file_name = fields.text("default_model_filename")?;
        versions(&mut fields)?;
        let rows = fields.number("max_batch_size")?;
        let mut texts = BTreeMap::new();
        match rows {
            Some(0) => drop(texts.insert("batching", "false".to_owned())),
            Some(rows) => drop(texts.insert("batch_size_max", rows.to_string())),
            None => {}
        }
        if let Some(delay) = batching(&mut fields, rows)? {
            texts.insert("max_delay_us", delay.to_string());
        }
        if let Some(mut cache) = fields.object("response_cache")? {
            let enable = cache.switch("enable")?.unwrap_or(false);
            texts.insert("cache", enable.to_string());
            cache.end(&[])?;
        }
        if let Some(policy) = fields.object("model_transaction_policy")? {
            policy.end(&[("decoupled", "each request has one answer")])?;
        }
        let (inputs, outputs) = (fields.tensors("input")?, fields.tensors("output")?);
        fields.end(UNSUPPORTED)?;
        let texts = texts.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        let options = ModelOptions::from_texts(&texts);
        let options = options.map_err(|error| {
            OipError::invalid(format!("the configuration asks for more than there is: {error}"))
        })?;
        let has_rows = rows.is_some_and(|rows| rows > 0);
        Ok(Config { options, has_rows, inputs, outputs, file_name })
    }

    /// The options that it asks for. Those that Triton has no words for stay as they are.
    pub(super) fn options(&self, kept: &ModelOptions) -> ModelOptions {
        let ModelOptions { batch_tolerance, pinned, .. } = *kept;
        ModelOptions { batch_tolerance, pinned, ..self.options.clone() }
    }

    /// Whether the file is the one that it names.
    pub(super) fn check_file_name(&self, name: &str) -> Result<(), OipError> {
        match &self.file_name {
            Some(wanted) if wanted != name => {
                let text = format!("names another file than `{}`", shown(name));
                Err(refuse("config.default_model_filename", &text))
            }
            _ => Ok(()),
        }
    }

    /// Whether the tensors that it names are the model's.
    pub(super) fn check(&self, signature: &ModelSignature) -> Result<(), String> {
        let all = [
            ("input", &self.inputs, &signature.inputs),
            ("output", &self.outputs, &signature.outputs),
        ];
        for (kind, declared, specs) in all {
            for tensor in declared {
                let spec = specs.iter().find(|spec| spec.name == tensor.name);
                let named = || format!("the {kind} `{}` of the configuration", shown(&tensor.name));
                let spec = spec.ok_or_else(|| format!("{} is none of the model", named()))?;
                tensor.check(spec, self.has_rows).map_err(|what| format!("{} {what}", named()))?;
            }
        }
        Ok(())
    }
}

impl Declared {
    fn check(&self, spec: &TensorSpec, has_rows: bool) -> Result<(), String> {
        let actual = config_type(spec.datatype);
        if self.data_type.as_ref().is_some_and(|named| named != actual) {
            return Err(format!("has another data type than the model's, {actual}"));
        }
        let Some(dims) = &self.dims else { return Ok(()) };
        let skipped = usize::from(has_rows);
        let shape = spec.shape.get(skipped..).unwrap_or_default();
        // A model that takes any size takes this one too.
        let fits = |(named, actual): (&i64, &i64)| *actual == -1 || named == actual;
        let is_same = spec.shape.len() >= skipped
            && dims.len() == shape.len()
            && dims.iter().zip(shape).all(fits);
        match (is_same, has_rows) {
            (true, _) => Ok(()),
            (false, true) => {
                Err(format!("has other dims than the model's, {shape:?} after that of the batch"))
            }
            (false, false) => Err(format!("has other dims than the model's, {shape:?}")),
        }
    }
}

/// All versions of a model can be asked for; how many are kept is for the control plane.
fn versions(fields: &mut Fields) -> Result<(), OipError> {
    let Some(mut policy) = fields.object("version_policy")? else { return Ok(()) };
    if let Some(all) = policy.object("all")? {
        all.end(&[])?;
    }
    let kept =
        "each version can be asked for as long as it is kept: PUT /api/v1/models/{name}/retention";
    policy.end(&[("latest", kept), ("specific", kept)])
}

/// How long a call waits for others, in microseconds, where the configuration has `dynamic_batching`.
fn batching(fields: &mut Fields, rows: Option<u64>) -> Result<Option<u64>, OipError> {
    let Some(mut batching) = fields.object("dynamic_batching")? else { return Ok(None) };
    let delay = batching.number("max_queue_delay_microseconds")?;
    // Which sizes pay is measured; these must make sense all the same.
    for size in batching.list("preferred_batch_size")? {
        let size = number(&size).filter(|size| *size > 0 && rows.is_none_or(|rows| *size <= rows));
        if size.is_none() {
            let what = "holds something that is no batch size from 1 to `max_batch_size`";
            return Err(refuse("config.dynamic_batching.preferred_batch_size", what));
        }
    }
    if rows == Some(0) {
        let what = "contradicts `max_batch_size`, which is 0: nothing is batched";
        return Err(refuse("config.dynamic_batching", what));
    }
    batching.end(UNSUPPORTED_OF_BATCHING)?;
    Ok(Some(delay.unwrap_or(0)))
}

/// The fields of one object that nobody has asked for yet.
struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    fn of(path: &str, json: Value) -> Result<Self, OipError> {
        match json {
            Value::Object(map) => Ok(Fields { path: path.to_owned(), map }),
            _ => Err(refuse(path, "is no object")),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// A field by either of its names; null says nothing.
    fn take(&mut self, name: &str) -> Option<Value> {
        let value = self.map.remove(name).or_else(|| self.map.remove(&camel(name)))?;
        (!value.is_null()).then_some(value)
    }

    fn object(&mut self, name: &str) -> Result<Option<Fields>, OipError> {
        let path = self.path(name);
        self.take(name).map(|value| Fields::of(&path, value)).transpose()
    }

    fn list(&mut self, name: &str) -> Result<Vec<Value>, OipError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => Err(refuse(&self.path(name), "is no list")),
        }
    }

    /// A text; an empty one is none.
    fn text(&mut self, name: &str) -> Result<Option<String>, OipError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(_) => Err(refuse(&self.path(name), "is no text")),
        }
    }

    fn one_of(&mut self, name: &str, known: &[&str]) -> Result<(), OipError> {
        match self.text(name)? {
            Some(text) if !known.contains(&text.as_str()) => {
                let what = format!(
                    "`{}` is none that this server has: {}",
                    shown(&text),
                    known.join(", ")
                );
                Err(refuse(&self.path(name), &what))
            }
            _ => Ok(()),
        }
    }

    /// A number that is not negative, which protobuf's JSON may write as a text.
    fn number(&mut self, name: &str) -> Result<Option<u64>, OipError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match number(&value) {
            Some(number) => Ok(Some(number)),
            None => Err(refuse(&self.path(name), "is no number from 0 on")),
        }
    }

    fn switch(&mut self, name: &str) -> Result<Option<bool>, OipError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(refuse(&self.path(name), "is neither true nor false")),
        }
    }

    fn tensors(&mut self, name: &str) -> Result<Vec<Declared>, OipError> {
        let path = self.path(name);
        let tensor = |value| {
            let mut fields = Fields::of(&path, value)?;
            let name = fields.text("name")?.ok_or_else(|| refuse(&path, "has no `name`"))?;
            let data_type = fields.text("data_type")?;
            let dims = match fields.take("dims") {
                None => None,
                Some(Value::Array(dims)) => {
                    let dims: Option<Vec<i64>> = dims.iter().map(dimension).collect();
                    Some(dims.ok_or_else(|| refuse(&path, "has `dims` that are no numbers"))?)
                }
                Some(_) => return Err(refuse(&path, "has `dims` that are no list")),
            };
            if fields.map.get("format").is_some_and(|format| format == "FORMAT_NONE") {
                fields.map.remove("format");
            }
            fields.end(UNSUPPORTED_OF_TENSORS)?;
            Ok(Declared { name, data_type, dims })
        };
        self.list(name)?.into_iter().map(tensor).collect()
    }

    /// Refuses what is left: what this server cannot do, and what is no field at all.
    fn end(self, unsupported: &[(&str, &str)]) -> Result<(), OipError> {
        for (name, value) in &self.map {
            let known =
                unsupported.iter().find(|(known, _)| known == name || camel(known) == *name);
            match known {
                Some(_) if says_nothing(value) => {}
                Some((known, instead)) => {
                    let what = format!("is not supported here ({instead}): leave it out");
                    return Err(refuse(&self.path(known), &what));
                }
                None => {
                    return Err(refuse(&self.path(&shown(name)), "is no field of a ModelConfig"));
                }
            }
        }
        Ok(())
    }
}

fn refuse(path: &str, what: &str) -> OipError {
    OipError::invalid(format!("`{path}` {what}"))
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut camel = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn dimension(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, OipError> {
        Config::read(text, &"m".parse().unwrap())
    }

    #[test]
    fn options_are_what_the_configuration_says_and_defaults_beside_it() {
        let kept =
            ModelOptions { pinned: true, cache: true, max_delay_us: 9, ..Default::default() };
        let of = |text: &str| read(text).unwrap().options(&kept);
        let whole = ModelOptions { pinned: true, ..Default::default() };
        for (text, options) in [
            ("{}", whole.clone()),
            (r#"{"max_batch_size":0}"#, ModelOptions { batching: false, ..whole.clone() }),
            (r#"{"max_batch_size":"8"}"#, ModelOptions { batch_size_max: 8, ..whole.clone() }),
            (r#"{"responseCache":{"enable":true}}"#, ModelOptions { cache: true, ..whole.clone() }),
            (
                r#"{"dynamic_batching":{"max_queue_delay_microseconds":100}}"#,
                ModelOptions { max_delay_us: 100, ..whole.clone() },
            ),
            (r#"{"dynamic_batching":null,"max_batch_size":null}"#, whole),
        ] {
            assert_eq!(of(text), options, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_configuration_makes_the_reader_panic(
            name in "[a-z_A-Z]{0,20}|max_batch_size|dynamic_batching|input|version_policy|response_cache",
            value in r#"-?[0-9]{1,22}|"[ -~]{0,5}"|null|\[\{"name":"x","dims":\[-?[0-9]{1,21}\]\}\]|\{"[a-z_]{0,9}":[0-9]\}|.{0,40}"#,
        ) {
            let _ = read(&format!(r#"{{"{name}":{value}}}"#));
        }
    }
}
