//! `sandpiper models`: uploads with a progress bar, grants, and the verbs shared with functions.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sandpiper_domain::{ModelName, TenantName};
use serde_json::{Value, json};

use super::{
    Context,
    catalog::{self, Collection},
    number, text,
};
use crate::{
    args::Models,
    client::Client,
    error::{CliError, Result},
    output::{Ui, clean, fields, human, short},
    upload::Upload,
};

pub(super) fn run(context: &Context, command: Models) -> Result<()> {
    let collection = Collection::Models;
    match command {
        Models::Push { file, name, no_activate, options, samples } => {
            let name = match name {
                Some(name) => name,
                None => name_of(&file)?,
            };
            let push = Push { activate: !no_activate, options, samples };
            push_and_print(context, &file, &name, &push)
        }
        Models::Retain { name, latest, versions } => {
            let body = match (latest, versions) {
                (Some(count), _) => json!({ "latest": count }),
                (None, Some(versions)) => json!({ "versions": versions }),
                (None, None) => json!({}),
            };
            let path = format!("/api/v1/models/{name}/retention");
            context.ui.result(&context.client()?.put(&path, &body)?, fields)
        }
        Models::List => catalog::list(context, collection),
        Models::Show { name } => catalog::show(context, collection, name.as_str()),
        Models::Delete { name } => catalog::delete(context, collection, name.as_str()),
        Models::Versions { name } => catalog::versions(context, collection, name.as_str()),
        // Without `--to` there is `--none`: the command line sees to that.
        Models::Grant { name, to, .. } => grant(context, &name, to.as_deref()),
        Models::Rollback { name, alias } => {
            catalog::rollback(context, collection, name.as_str(), &alias)
        }
        Models::Alias { name, alias, target } => catalog::point(
            context,
            collection,
            name.as_str(),
            &alias,
            &catalog::alias_body(&target),
        ),
    }
}

fn name_of(file: &Path) -> Result<ModelName> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    stem.parse().map_err(|error| {
        CliError::usage("the file's name is no model name").why(error).next("give one with --name")
    })
}

/// How a model is to be uploaded.
pub(super) struct Push {
    pub(super) activate: bool,
    pub(super) options: Vec<(String, String)>,
    pub(super) samples: Option<PathBuf>,
}

impl Push {
    /// With every option at its default.
    pub(super) const PLAIN: Push = Push { activate: true, options: Vec::new(), samples: None };

    fn query(&self) -> String {
        let activate = (!self.activate).then(|| "activate=false".to_owned());
        let options = self
            .options
            .iter()
            .map(|(name, value)| format!("{}={}", percent_encoded(name), percent_encoded(value)));
        let all = activate.into_iter().chain(options).collect::<Vec<_>>().join("&");
        if all.is_empty() { all } else { format!("?{all}") }
    }
}

/// Everything but letters, digits and `-._~` in percent signs.
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

fn push_and_print(context: &Context, file: &Path, name: &ModelName, how: &Push) -> Result<()> {
    let client = context.client()?;
    let (mut answer, time) = push(context.ui, &client, file, name, how)?;
    let activate = how.activate;
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("ms".into(), json!(time.as_millis() as u64));
    }
    context.ui.result(&answer, |answer| {
        let (version, digest) = (number(answer, "version"), short(text(answer, "digest")));
        let mut lines = format!("{name} version {version} ({digest}) is ready in {}", human(time));
        for (heading, key) in [("in ", "inputs"), ("out", "outputs")] {
            for tensor in answer.get(key).and_then(Value::as_array).into_iter().flatten() {
                lines.push_str(&format!("\n  {heading}  {}", signature(tensor)));
            }
        }
        if !activate {
            lines.push_str(&format!(
                "\n`live` has not moved; move it with: sandpiper models alias {name} live {version}"
            ));
        }
        lines
    })
}

/// One input or output: `image FP32 [-1, 1, 8, 8]`.
fn signature(tensor: &Value) -> String {
    let sizes = tensor.get("shape").and_then(Value::as_array).into_iter().flatten();
    let shape = sizes.map(Value::to_string).collect::<Vec<_>>().join(", ");
    clean(&format!("{} {} [{shape}]", text(tensor, "name"), text(tensor, "datatype")))
}

/// Uploads one model and waits until it is ready.
pub(super) fn push(
    ui: Ui,
    client: &Client,
    file: &Path,
    name: &ModelName,
    how: &Push,
) -> Result<(Value, Duration)> {
    let upload = match &how.samples {
        None => Upload::file(file)?,
        Some(samples) => Upload::model(file, samples)?,
    };
    let task = ui.upload(&format!("uploading {name}"), upload.length);
    let query = how.query();
    let answer = client.upload(&format!("/api/v1/models/{name}{query}"), upload, &task)?;
    Ok((answer, task.elapsed()))
}

fn grant(context: &Context, name: &ModelName, to: Option<&str>) -> Result<()> {
    let body = grant_body(to)?;
    let answer = context.client()?.put(&format!("/api/v1/models/{name}/grants"), &body)?;
    let answer = if answer.is_null() { body } else { answer };
    context.ui.result(&answer, |_| match to {
        None => format!("no other tenant may load {name}"),
        Some("*") => format!("every tenant may load {name}"),
        Some(to) => format!("{to} may load {name}, and no other tenant"),
    })
}

fn grant_body(to: Option<&str>) -> Result<Value> {
    let to = match to {
        None => return Ok(json!({ "tenants": [] })),
        Some("*") => return Ok(json!({ "tenants": "*" })),
        Some(to) => to,
    };
    let tenants = to.split(',').map(|name| name.trim().parse::<TenantName>());
    let tenants = tenants.collect::<Result<Vec<_>, _>>().map_err(|error| {
        CliError::from(error).next("give tenants with commas between them, or '*' in quotes")
    })?;
    Ok(json!({ "tenants": tenants }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_takes_its_files_name() {
        assert_eq!(name_of(Path::new("a/digits.v2.onnx")).unwrap().as_str(), "digits.v2");
        assert!(name_of(Path::new("a/my model.onnx")).unwrap_err().text().contains("--name"));
        assert!(name_of(Path::new("..")).is_err());
    }

    #[test]
    fn options_are_put_into_the_query() {
        assert_eq!(Push::PLAIN.query(), "");
        let options = vec![("cache".to_owned(), "true".to_owned()), ("x&y".into(), "1 2".into())];
        let push = Push { activate: false, options, samples: None };
        assert_eq!(push.query(), "?activate=false&cache=true&x%26y=1%202");
    }

    #[test]
    fn grants_go_to_tenants_to_all_or_to_none() {
        assert_eq!(grant_body(None).unwrap(), json!({"tenants": []}));
        assert_eq!(grant_body(Some("*")).unwrap(), json!({"tenants": "*"}));
        let two = grant_body(Some("beta, gamma")).unwrap();
        assert_eq!(two, json!({"tenants": ["beta", "gamma"]}));
        assert!(grant_body(Some("beta,*")).is_err() && grant_body(Some("")).is_err());
    }

    #[test]
    fn a_signature_is_one_line() {
        let tensor = json!({"name": "image", "datatype": "FP32", "shape": [-1, 1, 8]});
        assert_eq!(signature(&tensor), "image FP32 [-1, 1, 8]");
    }
}
