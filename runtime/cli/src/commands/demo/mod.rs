//! `sandpiper demo`: the whole way from a source tree to an answer, on a server of its own.
//!
//! 1. The example function is built.
//! 2. A child process serves on a free port, with its data in a temporary folder.
//! 3. A tenant and its key are made; the model and the function are uploaded.
//! 4. A real image is sent; the answer and the time of each stage are shown.
//! 5. The server stays until ctrl-c, with lines to try; with `--once` it stops at once.

mod node;
mod report;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sandpiper_domain::{ModelName, TenantName};
use serde_json::{Value, json};
use ureq::{Body, http::Response};

use self::{node::Node, report::Stages};
use super::{Context, build, deploy, interrupt::Interrupt, models, text};
use crate::{
    args::Demo,
    client::{Client, Invocation},
    error::{CliError, Kind, Result},
    output::{Ui, clean, stdout},
    project::{Project, checkout_for_demo},
};

const TENANT: &str = "demo";
const EXAMPLE: &str = "digits";
const WARM_REQUESTS: usize = 20;

/// What the demo works on.
struct Material {
    project: Project,
    model: PathBuf,
    image: PathBuf,
    image_bytes: Vec<u8>,
}

/// What it found out.
struct Outcome {
    /// The function's answer, as it came.
    answer: String,
    /// The key of the demo's tenant.
    key: String,
}

pub(super) fn run(context: &Context, arguments: &Demo) -> Result<()> {
    let ui = context.ui;
    let interrupt = Interrupt::watch()?;
    let material = Material::find(arguments)?;
    let mut stages = Stages::new(ui);

    let built = build::build(ui, &material.project, Some(&interrupt));
    let built = interrupt.check(built)?;
    stages.add("build", built.time);

    let started = Instant::now();
    let node = Node::start(arguments.data.as_deref(), &interrupt);
    let mut node = interrupt.check(node)?;
    let outcome = serve_and_ask(ui, &interrupt, &mut node, started, &material, &mut stages)
        .map_err(|error| node.explain(error))?;
    stages.total();

    if ui.json {
        let answer = serde_json::from_str(&outcome.answer).unwrap_or(json!(outcome.answer));
        let mut result = json!({ "answer": answer, "stages_ms": stages.json() });
        if !arguments.once {
            result["server"] = json!(node.url());
            result["tenant"] = json!(TENANT);
            result["key"] = json!(outcome.key);
            result["operator_key"] = json!(node.operator_key());
        }
        ui.result(&result, |_| String::new())?;
    } else {
        stdout(format!("{}\n", clean(outcome.answer.trim())).as_bytes())?;
    }
    if arguments.once {
        return Ok(());
    }
    if !ui.json {
        let lines = report::lines_to_try(&node, &outcome.key, &material.image);
        stdout(lines.as_bytes())?;
    }
    stay(&interrupt, &mut node)
}

/// Everything that needs the server, stage by stage.
fn serve_and_ask(
    ui: Ui,
    interrupt: &Interrupt,
    node: &mut Node,
    started: Instant,
    material: &Material,
    stages: &mut Stages,
) -> Result<Outcome> {
    let task = ui.spinner("starting the server");
    let operator = Client::with(node.url(), Some(node.operator_key().to_owned()), None)?;
    node.wait_until_ready(&operator, interrupt)?;
    drop(task);
    stages.add("start", started.elapsed());

    let started = Instant::now();
    let tenant: TenantName = TENANT.parse()?;
    let key = interrupt.check(tenant_and_key(&operator, &tenant))?;
    stages.add("tenant and key", started.elapsed());

    let client = Client::with(node.url(), Some(key.clone()), None)?;
    let model: ModelName = EXAMPLE.parse()?;
    let pushed = models::push(ui, &client, &material.model, &model, &models::Push::PLAIN);
    stages.add("model upload", interrupt.check(pushed)?.1);

    let component = material.project.component()?;
    let deployed = deploy::upload(ui, &client, &material.project, &component, true);
    stages.add("function upload and compile", interrupt.check(deployed)?.1);

    let (answer, first) = interrupt.check(ask(&client, material))?;
    stages.add("first request", first);

    let mut times = Vec::with_capacity(WARM_REQUESTS);
    for _ in 0..WARM_REQUESTS {
        times.push(interrupt.check(ask(&client, material))?.1);
    }
    stages.add("warm request (p50 of 20)", report::median(&mut times));
    Ok(Outcome { answer, key })
}

fn tenant_and_key(operator: &Client, tenant: &TenantName) -> Result<String> {
    let made = operator.post("/api/v1/tenants", &json!({ "name": tenant, "tier": "standard" }));
    if let Err(error) = made {
        // A data folder that was kept has the tenant already; any other refusal stands.
        if error.kind != Kind::Rejected
            || operator.get(&format!("/api/v1/tenants/{tenant}")).is_err()
        {
            return Err(error);
        }
    }
    let answer: Value = operator.post(&format!("/api/v1/tenants/{tenant}/keys"), &json!({}))?;
    match text(&answer, "key") {
        "" => Err(CliError::unexpected("the server made a key and did not show it")),
        key => Ok(key.to_owned()),
    }
}

/// Sends the image once.
fn ask(client: &Client, material: &Material) -> Result<(String, Duration)> {
    let content_type = match material.image.extension().and_then(|extension| extension.to_str()) {
        Some("jpg" | "jpeg") => "content-type: image/jpeg",
        Some("png") => "content-type: image/png",
        _ => "content-type: application/octet-stream",
    };
    let headers = [content_type.to_owned()];
    let invocation = Invocation {
        path: "/",
        method: None,
        headers: &headers,
        body: Some(material.image_bytes.clone()),
    };
    let started = Instant::now();
    let mut response: Response<Body> = client.invoke(&format!("{TENANT}/{EXAMPLE}"), invocation)?;
    let body = response.body_mut().read_to_string();
    let time = started.elapsed();
    let status = response.status();
    let body =
        body.map_err(|error| CliError::unexpected("the answer cannot be read").why(error))?;
    if !status.is_success() {
        let error = CliError::new(Kind::Function, format!("the function answered {status}"));
        return Err(error.why(clean(body.trim())).next("try another --image"));
    }
    Ok((body, time))
}

/// Waits for ctrl-c, or for the server to end by itself.
fn stay(interrupt: &Interrupt, node: &mut Node) -> Result<()> {
    while !interrupt.wait(Duration::from_millis(200)) {
        if let Some(status) = node.ended()? {
            let error = CliError::unexpected(format!("the server stopped by itself ({status})"));
            return Err(node.explain(error));
        }
    }
    Ok(())
}

impl Material {
    /// Finds everything before anything is built, so that a wrong path is told at once.
    fn find(arguments: &Demo) -> Result<Self> {
        let example = checkout_for_demo()
            .map(|root| root.join("examples").join(EXAMPLE))
            .filter(|example| example.join(crate::project::MANIFEST).is_file())
            .ok_or_else(|| {
                CliError::usage("the demo builds examples/digits, and there is none here")
                    .next("run it inside a checkout of Sandpiper: cargo run --release -- demo")
            })?;
        let project = Project::load(&example)?;
        let model = example.join("model").join("digits.onnx");
        let image = match &arguments.image {
            Some(image) => image.clone(),
            None => sample(&example.join("images"))?,
        };
        let image_bytes = std::fs::read(&image).map_err(|error| {
            CliError::usage(format!("{} cannot be read", image.display()))
                .why(error)
                .next("give the picture of a digit with --image FILE")
        })?;
        Ok(Material { project, model, image, image_bytes })
    }
}

/// The image that is sent when none is named.
fn sample(folder: &Path) -> Result<PathBuf> {
    let preferred = folder.join("seven.png");
    if preferred.is_file() {
        return Ok(preferred);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let images = entries.map(|entry| entry.path());
    let image = images.filter(|path| path.extension().is_some_and(|ext| ext == "png")).min();
    image.ok_or_else(|| {
        CliError::usage("examples/digits has no images").next("give one with --image FILE")
    })
}
