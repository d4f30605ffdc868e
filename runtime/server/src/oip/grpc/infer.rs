//! Inference: a message in, a message out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;

use super::{
    codec,
    frames::{self, Frame},
    message::{InferParameter, ModelInferRequest, infer_parameter::ParameterChoice},
    outline::Outline,
    tensors,
};
use crate::{
    app::App,
    oip::{
        Caller, OipError, Place, compress,
        error::shown,
        place::{INLINE_BYTES_MAX, apart_if},
        request,
        service::{self, InferAnswer, InferCall, NamedModel},
    },
};

/// Asks for a mark on the last answer to each request of a stream; here each has one answer.
const EMPTY_FINAL_RESPONSE: &str = "triton_enable_empty_final_response";

/// When a call began, and how long its transport says that it may take.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) began: Instant,
    pub(super) timeout: Option<Duration>,
}

impl Clock {
    /// The clock of a request that comes now over something that began before.
    pub(super) fn now(self) -> Self {
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

/// One inference, whose caller has been let in.
pub(super) struct Unary<'a> {
    pub(super) app: &'a Arc<App>,
    pub(super) caller: &'a Caller,
    pub(super) request_id: &'a Arc<str>,
    pub(super) clock: Clock,
}

/// A request, read.
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) marks_final: bool,
    /// What is asked of which model, or why that cannot be.
    pub(super) call: Result<(NamedModel, InferCall), OipError>,
}

impl Unary<'_> {
    /// The answer as a frame.
    pub(super) async fn answer(
        &self,
        frame: Frame,
        wants_gzip: bool,
        place: Place,
    ) -> Result<(Bytes, Place), OipError> {
        let (asked, place) = self.read(frame, place).await?;
        let Asked { id, call, .. } = asked?;
        let answer = self.run(call?).await?;
        self.write(tensors::response(answer, id), wants_gzip, place).await
    }

    /// Decodes a request, charged with what that makes of it. What is wrong with a message is told apart from there
    /// being no room for it, and the place is kept.
    pub(super) async fn read(
        &self,
        frame: Frame,
        place: Place,
    ) -> Result<(Result<Asked, OipError>, Place), OipError> {
        // A short message is looked through in no time, and may become a long one.
        let is_long = frame.is_packed()
            || frame.bytes().len() > INLINE_BYTES_MAX
            || codec::growth(frame.bytes()).is_ok_and(|growth| growth.is_long());
        let reading = Reading {
            app: self.app.clone(),
            caller: self.caller.clone(),
            request_id: self.request_id.clone(),
            clock: self.clock,
        };
        let tensor_bytes_max = self.caller.tensor_bytes_max();
        let work = move |place: &mut Place| {
            let read = || {
                let bytes = frame.unpack(Some(&mut place.charge))?;
                let growth = codec::growth(&bytes)?;
                if growth.number_bytes() > tensor_bytes_max {
                    let text = "the request's contents are more than the tensors that the tenant's tier allows";
                    return Err(OipError::TooLarge(text.to_owned()));
                }
                place.charge.cover(2 * bytes.len() as u64 + growth.bytes())?;
                let kept = (bytes.len() + growth.number_bytes()) as u64;
                let asked = reading.read(bytes, is_long);
                place.charge.shrink(kept);
                asked
            };
            Ok(read())
        };
        let deadline = self.caller.deadline(self.clock.began, self.clock.timeout);
        apart_if(self.app, place, deadline, is_long, work).await
    }

    pub(super) async fn run(
        &self,
        (model, call): (NamedModel, InferCall),
    ) -> Result<InferAnswer, OipError> {
        service::infer(self.app, self.caller, model, call).await
    }

    /// Writes a message. Its outputs and their copy are charged, and then the copy alone.
    pub(super) async fn write(
        &self,
        message: impl Message + 'static,
        wants_gzip: bool,
        place: Place,
    ) -> Result<(Bytes, Place), OipError> {
        let length = message.encoded_len();
        let work = move |place: &mut Place| {
            place.charge.add(length as u64 * 2)?;
            let written = frames::write(&message, wants_gzip)?;
            place.charge.shrink(written.len() as u64);
            Ok(written)
        };
        let is_long = length > INLINE_BYTES_MAX || (wants_gzip && length > compress::BYTES_MIN);
        let deadline = self.caller.deadline(self.clock.began, self.clock.timeout);
        apart_if(self.app, place, deadline, is_long, work).await
    }
}

/// What a request is read with, on whichever thread.
struct Reading {
    app: Arc<App>,
    caller: Caller,
    request_id: Arc<str>,
    clock: Clock,
}

impl Reading {
    /// A long message is compared with its model before it is decoded.
    fn read(&self, message: Bytes, is_long: bool) -> Result<Asked, OipError> {
        // What is no message as an outline is none as a whole, and is told so below.
        if is_long && let Ok(outline) = Outline::decode(message.clone()) {
            let outline = ModelInferRequest::from(outline);
            if let Err(error) = self.fitting(&outline) {
                return Ok(asked(outline, Err(error)));
            }
        }
        let mut request: ModelInferRequest = codec::decode(message)?;
        let call = self.call(&mut request);
        Ok(asked(request, call))
    }

    /// The model that is meant, if the inputs fit it.
    fn fitting(&self, request: &ModelInferRequest) -> Result<NamedModel, OipError> {
        let version = Some(request.model_version.as_str()).filter(|version| !version.is_empty());
        let model = service::resolve(&self.app, &self.caller, &request.model_name, version)?;
        tensors::must_fit(&request.inputs, &model.model.version.signature)?;
        Ok(model)
    }

    fn call(&self, request: &mut ModelInferRequest) -> Result<(NamedModel, InferCall), OipError> {
        let parameters = Parameters::read(request)?;
        let model = self.fitting(request)?;
        let inputs = tensors::inputs(request, &model.model.version.signature)?;
        let outputs = std::mem::take(&mut request.outputs).into_iter().map(|output| {
            if let Some(key) = output.parameters.keys().find(|key| is_unsupported(key)) {
                let text = format!("this server has no `{}` of outputs", shown(key));
                return Err(OipError::unsupported(text));
            }
            Ok(output.name)
        });
        let call = InferCall {
            request_id: self.request_id.clone(),
            began: self.clock.began,
            inputs,
            outputs: outputs.collect::<Result<_, _>>()?,
            timeout: [self.clock.timeout, parameters.timeout].into_iter().flatten().min(),
            priority: parameters.priority,
        };
        Ok((model, call))
    }
}

fn asked(request: ModelInferRequest, call: Result<(NamedModel, InferCall), OipError>) -> Asked {
    let marks_final = request.parameters.get(EMPTY_FINAL_RESPONSE).is_some_and(is_set);
    match request::check_id(&request.id) {
        Ok(()) => Asked { id: request.id, marks_final, call },
        Err(error) => Asked { id: String::new(), marks_final, call: Err(error) },
    }
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
