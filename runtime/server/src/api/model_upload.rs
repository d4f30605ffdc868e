//! What a client sends to make a model version: the file, its options, and perhaps samples.

use std::collections::BTreeMap;

use axum::extract::Request;
use http::StatusCode;
use sandpiper_domain::ModelOptions;

use super::upload;
use crate::{respond::Problem, samples, uploads::ModelUpload};

/// What options and samples may add to a model.
const EXTRA_MIB: u64 = 8;
const OPTIONS_BYTES_MAX: usize = 64 * 1024;

/// Where the version is to go, and the options that the query names.
pub(super) struct Wanted {
    pub(super) activate: bool,
    pub(super) wait: bool,
    options: BTreeMap<String, String>,
}

impl Wanted {
    /// Reads the query of an upload: `activate`, `wait`, and any option of a model.
    pub(super) fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut wanted = Wanted { activate: true, wait: true, options: BTreeMap::new() };
        let switch = |name: &str, text: &str| {
            text.parse().map_err(|_| {
                Problem::bad_request(format!("`{name}` in the query is true or false"))
            })
        };
        for (name, text) in query {
            match name.as_str() {
                "activate" => wanted.activate = switch("activate", &text)?,
                "wait" => wanted.wait = switch("wait", &text)?,
                _ => {
                    let cut = name.chars().take(40).collect::<String>();
                    if wanted.options.insert(name, text).is_some() {
                        return Err(twice(&cut));
                    }
                }
            }
        }
        ModelOptions::from_texts(&wanted.options).map_err(invalid_option)?;
        Ok(wanted)
    }
}

/// Reads the body: the file alone, or the parts `model`, `options` (TOML) and `samples` (JSON).
pub(super) async fn read(
    request: Request,
    wanted: &Wanted,
    limit_mib: u64,
) -> Result<ModelUpload, Problem> {
    let parts = ["model", "options", "samples"];
    let mut parts = upload::parts(request, &parts, limit_mib, EXTRA_MIB << 20).await?;
    let bytes = parts.remove("model").unwrap_or_default();
    if bytes.is_empty() {
        let message = "the upload is empty";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "empty_upload", message)
            .hint("send the ONNX file as the request's body, or as the part `model`"));
    }
    let mut texts = wanted.options.clone();
    if let Some(toml) = parts.remove("options") {
        for (name, text) in texts_of(&toml)? {
            if texts.insert(name.clone(), text).is_some() {
                return Err(twice(&name));
            }
        }
    }
    let options = ModelOptions::from_texts(&texts).map_err(invalid_option)?;
    let samples = match parts.remove("samples") {
        None => None,
        Some(json) => {
            let text = json.clone();
            // At most as long as what may come beside a model, and still long enough to hold up a thread.
            let parsed = tokio::task::spawn_blocking(move || samples::parse(&text)).await;
            let samples = parsed.map_err(Problem::internal)?.map_err(|error| {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_sample", error)
                    .hint("samples are a JSON array: [{\"inputs\": [{\"name\", \"shape\", \"datatype\", \"data\"}]}]")
            })?;
            (!samples.is_empty()).then_some((json, samples))
        }
    };
    Ok(ModelUpload { bytes, options, samples })
}

fn texts_of(toml: &[u8]) -> Result<Vec<(String, String)>, Problem> {
    let malformed =
        || Problem::bad_request("the part `options` is no TOML table of names and plain values");
    if toml.len() > OPTIONS_BYTES_MAX {
        return Err(malformed());
    }
    let text = std::str::from_utf8(toml).map_err(|_| malformed())?;
    let table: toml::Table = text.parse().map_err(|_| malformed())?;
    let texts = table.into_iter().map(|(name, value)| {
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Boolean(value) => value.to_string(),
            toml::Value::Integer(value) => value.to_string(),
            toml::Value::Float(value) => value.to_string(),
            _ => return Err(malformed()),
        };
        Ok((name, text))
    });
    texts.collect()
}

fn invalid_option(error: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_option", error.to_string())
}

fn twice(name: &str) -> Problem {
    invalid_option(format!("the option `{name}` is given twice"))
}
