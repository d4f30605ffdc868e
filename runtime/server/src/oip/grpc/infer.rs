//! Inference: one call, and streams of them.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, future::BoxFuture, stream};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};

use super::{
    Credentials,
    codec::Decoded,
    message::{
        InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
        infer_parameter::ParameterChoice,
    },
    status::as_others_say,
    tensors,
};
use crate::{
    app::App,
    oip::{
        Caller, OipError,
        error::shown,
        service::{self, InferCall},
    },
};

/// Requests of one stream that are worked on at once. Their answers wait for each other, so that more would take memory
/// and gain nothing.
const IN_FLIGHT_MAX: usize = 8;

/// How often the key of a stream is asked after when nothing comes.
const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Asks for a mark on the last answer to each request of a stream; here each has one answer.
const EMPTY_FINAL_RESPONSE: &str = "triton_enable_empty_final_response";
const FINAL_RESPONSE: &str = "triton_final_response";

/// When a call began, and how long its transport says that it may take.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) began: Instant,
    pub(super) timeout: Option<Duration>,
}

impl Clock {
    /// The clock of a request that comes now over something that began before.
    fn now(self) -> Self {
        let (began, passed) = (Instant::now(), self.began.elapsed());
        Clock { began, timeout: self.timeout.map(|timeout| timeout.saturating_sub(passed)) }
    }

    /// Waits no longer than the caller does.
    pub(super) async fn limit<T>(self, work: impl Future<Output = T>) -> Result<T, OipError> {
        let Some(timeout) = self.timeout else { return Ok(work.await) };
        let left = timeout.saturating_sub(self.began.elapsed());
        tokio::time::timeout(left, work).await.map_err(|_| {
            let text = "the deadline passed while the request waited for its turn";
            OipError::DeadlineExceeded(text.to_owned())
        })
    }
}

/// Answers one request. The caller has been let in.
pub(super) async fn infer(
    app: &App,
    caller: &Caller,
    request_id: &Arc<str>,
    clock: Clock,
    mut request: ModelInferRequest,
) -> Result<ModelInferResponse, OipError> {
    let parameters = Parameters::read(&request)?;
    let inputs = tensors::inputs(&mut request)?;
    let outputs = std::mem::take(&mut request.outputs).into_iter().map(|output| {
        if let Some(key) = output.parameters.keys().find(|key| is_unsupported(key)) {
            let text = format!("this server has no `{}` of outputs", shown(key));
            return Err(OipError::unsupported(text));
        }
        Ok(output.name)
    });
    let call = InferCall {
        request_id: request_id.clone(),
        began: clock.began,
        inputs,
        outputs: outputs.collect::<Result<_, _>>()?,
        timeout: [clock.timeout, parameters.timeout].into_iter().flatten().min(),
        priority: parameters.priority,
    };
    let version = Some(request.model_version.as_str()).filter(|version| !version.is_empty());
    let answer = service::infer(app, caller, &request.model_name, version, call).await?;
    Ok(tensors::response(answer, request.id))
}

/// Extensions of Triton's for single outputs.
fn is_unsupported(key: &str) -> bool {
    key == "classification" || key.starts_with("shared_memory_")
}

/// What a request's parameters ask for.
#[derive(Debug, Default, PartialEq)]
struct Parameters {
    priority: u64,
    timeout: Option<Duration>,
    marks_final: bool,
}

impl Parameters {
    fn read(request: &ModelInferRequest) -> Result<Self, OipError> {
        let mut read = Parameters::default();
        for (key, value) in &request.parameters {
            match key.as_str() {
                "priority" => read.priority = whole(key, value)?,
                "timeout" => {
                    let timeout = Duration::from_micros(whole(key, value)?);
                    read.timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
                }
                "sequence_id" | "sequence_start" | "sequence_end" if is_set(value) => {
                    return Err(OipError::unsupported("this server keeps no sequences"));
                }
                EMPTY_FINAL_RESPONSE => read.marks_final = is_set(value),
                key if key.starts_with("triton_") => {
                    let text = format!("the parameter `{}` is reserved", shown(key));
                    return Err(OipError::invalid(text));
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

fn whole(key: &str, value: &InferParameter) -> Result<u64, OipError> {
    let number = match value.parameter_choice {
        Some(ParameterChoice::Uint64Param(number)) => Some(number),
        Some(ParameterChoice::Int64Param(number)) => u64::try_from(number).ok(),
        _ => None,
    };
    number.ok_or_else(|| OipError::invalid(format!("the parameter `{key}` is no whole number")))
}

fn is_set(value: &InferParameter) -> bool {
    match &value.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => *value,
        Some(ParameterChoice::Int64Param(value)) => *value != 0,
        Some(ParameterChoice::Uint64Param(value)) => *value != 0,
        Some(ParameterChoice::DoubleParam(value)) => *value != 0.0,
        Some(ParameterChoice::StringParam(value)) => !value.is_empty(),
        None => false,
    }
}

pub(super) type Answers =
    Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

/// One stream of requests.
pub(super) struct InferStream {
    pub(super) app: Arc<App>,
    pub(super) credentials: Credentials,
    pub(super) request_id: Arc<str>,
    pub(super) clock: Clock,
    /// One of the streams that the tenant may have.
    pub(super) _place: OwnedSemaphorePermit,
}

impl InferStream {
    /// Answers in the order of the requests, a bounded number of which are worked on at once. What is asked when the
    /// node drains is refused, so that the stream ends.
    pub(super) fn answer(self, requests: Streaming<Decoded<ModelInferRequest>>) -> Answers {
        let drained = self.app.drain_begins();
        let stream = Arc::new(self);
        let of_key = stream.clone();
        let incoming =
            Incoming { requests, drained: Box::pin(drained), stream: of_key, is_over: false };
        let answers = stream::unfold(incoming, Incoming::next)
            .map(move |request| {
                let stream = stream.clone();
                async move { stream.answer_one(request?).await }
            })
            .buffered(IN_FLIGHT_MAX);
        Box::pin(answers)
    }

    /// A request that fails is answered, and the stream goes on; with a key that is none any more it ends.
    async fn answer_one(
        &self,
        request: Decoded<ModelInferRequest>,
    ) -> Result<ModelStreamInferResponse, Status> {
        let (id, marks_final) = match &request {
            Ok(request) => (request.id.clone(), asks_for_mark(request)),
            Err(_) => Default::default(),
        };
        let answer = match request {
            Ok(request) => self.try_answer(request).await,
            Err(error) => Err(error),
        };
        let (error_message, mut response) = match answer {
            Ok(response) => (String::new(), response),
            Err(error @ OipError::Unauthenticated(_)) => return Err(error.into()),
            // Clients tell by the id which of their requests failed.
            Err(error) => (error.to_string(), ModelInferResponse { id, ..Default::default() }),
        };
        if marks_final {
            let parameter_choice = Some(ParameterChoice::BoolParam(true));
            response
                .parameters
                .insert(FINAL_RESPONSE.to_owned(), InferParameter { parameter_choice });
        }
        Ok(ModelStreamInferResponse { error_message, infer_response: Some(response) })
    }

    async fn try_answer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, OipError> {
        let clock = self.clock.now();
        // Asked anew each time: a key that was revoked must not go on for as long as its stream.
        let caller = self.credentials.caller(&self.app)?;
        let _place = clock.limit(caller.enter(&self.app)).await??;
        infer(&self.app, &caller, &self.request_id, clock, request).await
    }
}

fn asks_for_mark(request: &ModelInferRequest) -> bool {
    request.parameters.get(EMPTY_FINAL_RESPONSE).is_some_and(is_set)
}

/// The requests of a stream until its end.
struct Incoming {
    requests: Streaming<Decoded<ModelInferRequest>>,
    drained: BoxFuture<'static, ()>,
    stream: Arc<InferStream>,
    is_over: bool,
}

impl Incoming {
    async fn next(mut self) -> Option<(Result<Decoded<ModelInferRequest>, Status>, Self)> {
        if self.is_over {
            return None;
        }
        let next = loop {
            break tokio::select! {
                next = self.requests.message() => next.map_err(as_others_say),
                () = &mut self.drained => Err(Status::unavailable("the node is shutting down")),
                () = tokio::time::sleep(KEY_CHECK_INTERVAL) => {
                    match self.stream.credentials.caller(&self.stream.app) {
                        Err(error @ OipError::Unauthenticated(_)) => Err(error.into()),
                        _ => continue,
                    }
                }
            };
        };
        self.is_over = next.is_err();
        Some((next.transpose()?, self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(parameters: &[(&str, ParameterChoice)]) -> ModelInferRequest {
        let parameters = parameters.iter().map(|(key, value)| {
            let parameter_choice = Some(value.clone());
            ((*key).to_owned(), InferParameter { parameter_choice })
        });
        ModelInferRequest { parameters: parameters.collect(), ..Default::default() }
    }

    #[test]
    fn priority_and_timeout_come_as_either_integer() {
        use ParameterChoice::*;
        let read = |priority, timeout| {
            Parameters::read(&request(&[("priority", priority), ("timeout", timeout)]))
        };
        let expected =
            Parameters { priority: 2, timeout: Some(Duration::from_millis(5)), marks_final: false };
        assert_eq!(read(Uint64Param(2), Int64Param(5000)).as_ref(), Ok(&expected));
        assert_eq!(read(Int64Param(2), Uint64Param(5000)).as_ref(), Ok(&expected));
        assert!(read(Int64Param(-1), Int64Param(5000)).is_err());
        assert!(read(Uint64Param(1), StringParam("5000".to_owned())).is_err());
        assert_eq!(read(Uint64Param(0), Int64Param(0)), Ok(Parameters::default()));
    }

    #[test]
    fn what_would_change_the_answer_is_not_passed_over() {
        use ParameterChoice::*;
        let read = |key, value| Parameters::read(&request(&[(key, value)]));
        assert!(matches!(read("sequence_id", Int64Param(7)), Err(OipError::Unsupported(_))));
        assert!(matches!(read("triton_x", BoolParam(true)), Err(OipError::InvalidArgument(_))));
        assert_eq!(read("sequence_start", BoolParam(false)), Ok(Parameters::default()));
        assert_eq!(read("my_own", StringParam("x".to_owned())), Ok(Parameters::default()));
        assert_eq!(
            read(EMPTY_FINAL_RESPONSE, BoolParam(true)),
            Ok(Parameters { marks_final: true, ..Parameters::default() })
        );
    }
}
