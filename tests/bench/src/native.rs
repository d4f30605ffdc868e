//! Bare servers that answer what the functions answer, with the functions' own code and the same inference plane, but
//! without a sandbox and without an edge.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sandpiper_domain::{
    Band, DataType, InferenceRequest, Model, ModelKey, NamedTensor, Share, TenantName, Tensor,
};
use sandpiper_inference::{Config, InferencePlane, LoadedModel};
use tokio::net::TcpListener;

/// As in the functions' manifests.
const WALL: Duration = Duration::from_secs(10);

/// What a server does for each request.
enum Work {
    Hello,
    Digits(Runner),
    Iris(Runner),
    Filetype(Runner),
}

/// Listens on a free port, prints it, and serves until killed.
pub(crate) fn serve(work: &str, model: Option<&Path>) -> anyhow::Result<()> {
    // As the server under test does it: a worker for each core.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let work = Arc::new(match (work, model) {
            ("hello", None) => Work::Hello,
            ("digits", Some(model)) => Work::Digits(Runner::load(model).await?),
            ("iris", Some(model)) => Work::Iris(Runner::load(model).await?),
            ("filetype", Some(model)) => Work::Filetype(Runner::load(model).await?),
            _ => bail!("`hello` takes no model; `digits`, `iris` and `filetype` take one"),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        crate::say(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let work = work.clone();
            let service = service_fn(move |request| answer(work.clone(), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(
    work: Arc<Work>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (kind, body) = match &*work {
        Work::Hello => ("text/plain; charset=utf-8", Ok(Bytes::from_static(b"1"))),
        work => ("application/json", work.compute(request).await.map(Bytes::from)),
    };
    let mut response = Response::new(Full::default());
    match body {
        Ok(body) => *response.body_mut() = Full::new(body),
        Err(error) => {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            *response.body_mut() = Full::new(format!("{error:#}").into());
        }
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

impl Work {
    async fn compute(&self, request: Request<Incoming>) -> anyhow::Result<Vec<u8>> {
        let body = request.into_body().collect().await?.to_bytes();
        match self {
            Work::Hello => Ok(Vec::new()),
            Work::Digits(model) => {
                let gray = digits::decode(&body).map_err(refused)?;
                let pixels = digits::prepare(gray).map_err(refused)?;
                let shape = [1, 1, digits::SIDE as u64, digits::SIDE as u64];
                let outputs = model.run("image", floats(&shape, &pixels)?).await?;
                let digit = digits::most_likely(&to_floats(find(&outputs, "probs")?));
                Ok(serde_json::to_vec(&digit.map_err(refused)?)?)
            }
            Work::Iris(model) => {
                let question = serde_json::from_slice(&body)?;
                let iris::Question::Flower(flower) = question else { bail!("one flower, please") };
                let outputs = model.run("X", floats(&[1, 4], &flower.row())?).await?;
                let labels = find(&outputs, "label")?.data().as_chunks().0.iter();
                let labels: Vec<i64> = labels.map(|bytes| i64::from_le_bytes(*bytes)).collect();
                let probabilities = to_floats(find(&outputs, "probabilities")?);
                let predictions = iris::predictions(&labels, &probabilities, 1).map_err(refused)?;
                Ok(serde_json::to_vec(predictions.first().context("no answer")?)?)
            }
            Work::Filetype(model) => {
                let filetype::Features::Enough(features) = filetype::Features::of(&body) else {
                    bail!("the file is too small");
                };
                let bytes: Vec<u8> = features.iter().flat_map(|n| n.to_le_bytes()).collect();
                let shape = [1, filetype::FEATURES as u64];
                let bytes = Tensor::new(DataType::I32, &shape, bytes.into())?;
                let outputs = model.run("bytes", bytes).await?;
                let answer = filetype::judge(&to_floats(find(&outputs, "target_label")?));
                Ok(serde_json::to_vec(&answer.map_err(refused)?)?)
            }
        }
    }
}

/// A model on an inference plane of the usual size.
struct Runner {
    model: Arc<LoadedModel>,
    tenant: TenantName,
    // Its threads end with it.
    _plane: Arc<InferencePlane>,
}

impl Runner {
    async fn load(file: &Path) -> anyhow::Result<Self> {
        let bytes = Bytes::from(std::fs::read(file).context("read the model")?);
        let plane = InferencePlane::start(Config::default())?;
        let tenant: TenantName = "bench".parse()?;
        let key = ModelKey { tenant: tenant.clone(), model: "model".parse()?, version: 1 };
        let model = plane.load(&key, || Ok(bytes.into())).await?;
        Ok(Runner { model, tenant, _plane: plane })
    }

    async fn run(&self, name: &str, tensor: Tensor) -> anyhow::Result<Vec<NamedTensor>> {
        let request = InferenceRequest {
            share: Share { weight: 1, band: Band::Normal },
            batch_with_others: true,
            brief: Default::default(),
            bill: None,
            tenant: self.tenant.clone(),
            deadline: Some(Instant::now() + WALL),
            inputs: vec![NamedTensor { name: name.to_owned(), tensor }],
        };
        Ok(self.model.infer(request).await?.outputs)
    }
}

fn find<'a>(outputs: &'a [NamedTensor], name: &str) -> anyhow::Result<&'a Tensor> {
    let found = outputs.iter().find(|output| output.name == name);
    Ok(&found.with_context(|| format!("the model has no output {name}"))?.tensor)
}

fn floats(shape: &[u64], values: &[f32]) -> anyhow::Result<Tensor> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(Tensor::new(DataType::F32, shape, bytes.into())?)
}

fn to_floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The examples' errors are responses rather than errors.
fn refused(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("{error:?}")
}
