//! Streams of inferences: the frames come in, and their answers go out in the same order.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::HeaderMap;
use http_body::Frame as BodyFrame;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::Status;

use super::{
    Credentials,
    frames::{self, Frame, Frames},
    infer::{Asked, Clock, Unary},
    message::{
        InferParameter, ModelInferResponse, ModelStreamInferResponse,
        infer_parameter::ParameterChoice,
    },
    tensors,
};
use crate::{
    app::App,
    budget::Charge,
    edge::{Phase, STALL_TIMEOUT, Unread, Watched},
    oip::{Caller, OipError, Place},
};

/// Requests of one stream that are worked on at once. Their answers wait for each other, so that more would take memory
/// and gain nothing.
const IN_FLIGHT_MAX: usize = 8;
/// How often the key of a stream is asked after when nothing comes.
const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// What is handed to the connection at once. What waits there is beyond recall.
const CHUNK_BYTES: usize = 64 * 1024;
/// The mark on the last answer to a request; here each has one answer.
const FINAL_RESPONSE: &str = "triton_final_response";

/// One stream of requests.
pub(super) struct InferStream {
    pub(super) app: Arc<App>,
    pub(super) credentials: Credentials,
    pub(super) request_id: Arc<str>,
    pub(super) clock: Clock,
    /// One of the streams that the tenant may have.
    pub(super) _place: OwnedSemaphorePermit,
}

/// A request that was let in and read, or why it was not.
type Taken = Result<(Caller, Clock, Place, Frame), OipError>;

/// A message on its way out, and the bytes that it takes.
type Answer = (Bytes, Option<Charge>);

/// Why a request failed, and what of it the answer repeats.
struct Failed {
    error: OipError,
    id: String,
    marks_final: bool,
}

impl From<OipError> for Failed {
    fn from(error: OipError) -> Self {
        Failed { error, id: String::new(), marks_final: false }
    }
}

impl InferStream {
    /// Answers in the order of the requests, a bounded number of which are worked on at once. What is asked when the
    /// node drains is refused, so that the stream ends.
    pub(super) fn answer(self, frames: Frames) -> Answers {
        let drained = Box::pin(self.app.reaches(Phase::Draining));
        let stream = Arc::new(self);
        let incoming = Incoming { stream: stream.clone(), frames, drained, is_over: false };
        let answers = stream::unfold(incoming, Incoming::next)
            .map(move |taken| {
                let stream = stream.clone();
                async move { Ok(stream.answer_one(taken?).await) }
            })
            .buffered(IN_FLIGHT_MAX);
        Answers::new(Box::pin(answers), STALL_TIMEOUT)
    }

    async fn answer_one(&self, taken: Taken) -> Answer {
        let failed = match taken {
            Ok(taken) => match self.try_answer(taken).await {
                Ok(answer) => return answer,
                Err(failed) => failed,
            },
            Err(error) => Failed::from(error),
        };
        // Clients tell by the id which of their requests failed.
        let response = ModelInferResponse { id: failed.id, ..Default::default() };
        let message = message(failed.error.to_string(), response, failed.marks_final);
        (frames::write(&message, false).unwrap_or_default(), None)
    }

    async fn try_answer(
        &self,
        (caller, clock, place, frame): (Caller, Clock, Place, Frame),
    ) -> Result<Answer, Failed> {
        let (app, request_id) = (&self.app, &self.request_id);
        let unary = Unary { app, caller: &caller, request_id, clock };
        let (asked, place) = unary.read(frame, place).await?;
        let Asked { id, marks_final, call } = asked?;
        let written = async {
            let answer = unary.run(call?).await?;
            let response = tensors::response(answer, id.clone());
            unary.write(message(String::new(), response, marks_final), false, place).await
        };
        match written.await {
            Ok((bytes, place)) => Ok((bytes, Some(place.leave()))),
            Err(error) => Err(Failed { error, id, marks_final }),
        }
    }
}

fn message(
    error_message: String,
    mut response: ModelInferResponse,
    marks_final: bool,
) -> ModelStreamInferResponse {
    if marks_final {
        let parameter_choice = Some(ParameterChoice::BoolParam(true));
        let mark = InferParameter { parameter_choice };
        response.parameters.insert(FINAL_RESPONSE.to_owned(), mark);
    }
    ModelStreamInferResponse { error_message, infer_response: Some(response) }
}

/// The requests of a stream until its end.
struct Incoming {
    stream: Arc<InferStream>,
    frames: Frames,
    drained: BoxFuture<'static, ()>,
    is_over: bool,
}

impl Incoming {
    async fn next(mut self) -> Option<(Result<Taken, Status>, Self)> {
        if self.is_over {
            return None;
        }
        let next = {
            let mut taking = std::pin::pin!(take(&self.stream, &mut self.frames));
            loop {
                break tokio::select! {
                    next = &mut taking => next.map_err(Status::from),
                    () = &mut self.drained => Err(Status::unavailable("the node is shutting down")),
                    () = tokio::time::sleep(KEY_CHECK_INTERVAL) => {
                        match self.stream.credentials.caller(&self.stream.app) {
                            Err(error @ OipError::Unauthenticated(_)) => Err(error.into()),
                            _ => continue,
                        }
                    }
                };
            }
        };
        self.is_over = next.is_err();
        Some((next.transpose()?, self))
    }
}

/// Lets the next request in, and only then reads it. An error ends the stream.
async fn take(stream: &InferStream, frames: &mut Frames) -> Result<Option<Taken>, OipError> {
    let Some(head) = frames.head().await? else { return Ok(None) };
    let clock = stream.clock.now();
    let enter = async {
        // Asked anew each time: a key that was revoked must not go on for as long as its stream.
        let caller = stream.credentials.caller(&stream.app)?;
        let place = clock.limit(caller.enter(&stream.app)).await??;
        Ok((caller, place))
    };
    let (caller, mut place) = match enter.await {
        Ok(entered) => entered,
        // With a key that is none any more the stream ends.
        Err(error @ OipError::Unauthenticated(_)) => return Err(error),
        Err(error) => return Ok(Some(Err(error))),
    };
    match frames.message(head, Some(&mut place.charge)).await {
        Ok(frame) => Ok(Some(Ok((caller, clock, place, frame)))),
        Err(
            error @ (OipError::TooLarge(_)
            | OipError::TooManyRequests { .. }
            | OipError::Unavailable { .. }),
        ) => Ok(Some(Err(error))),
        Err(error) => Err(error),
    }
}

/// The body of the response: messages piece by piece, and the status at the end. Where the client reads no further the
/// stream is given up, with all that it holds.
pub(super) struct Answers {
    sending: Watched<Sending>,
    is_over: bool,
}

struct Sending {
    answers: BoxStream<'static, Result<Answer, Status>>,
    unsent: Bytes,
    /// What the message takes that was handed on last.
    charge: Option<Charge>,
    /// When something was handed on, unless more was asked for since.
    handed: Option<Instant>,
}

impl Unread for Sending {
    fn unread_since(&self) -> Option<Instant> {
        self.handed
    }
}

impl Answers {
    fn new(answers: BoxStream<'static, Result<Answer, Status>>, stall: Duration) -> Self {
        let sending = Sending { answers, unsent: Bytes::new(), charge: None, handed: None };
        Answers { sending: Watched::new(sending, stall), is_over: false }
    }
}

impl Sending {
    /// The next piece, or the status that ends the stream.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        self.handed = None;
        if self.unsent.is_empty() {
            self.charge = None;
            match ready!(self.answers.as_mut().poll_next(context)) {
                Some(Ok((bytes, charge))) => (self.unsent, self.charge) = (bytes, charge),
                Some(Err(status)) => return Poll::Ready(Err(status)),
                None => return Poll::Ready(Err(Status::ok(""))),
            }
        }
        self.handed = Some(Instant::now());
        let length = self.unsent.len().min(CHUNK_BYTES);
        Poll::Ready(Ok(self.unsent.split_to(length)))
    }
}

impl Stream for Answers {
    type Item = Result<BodyFrame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let next = match self.sending.with(|sending| sending.poll(context)) {
            Some(next) => ready!(next),
            None => Err(Status::cancelled("the answers were left unread for too long")),
        };
        let frame = match next {
            Ok(piece) => BodyFrame::data(piece),
            Err(status) => {
                self.is_over = true;
                let mut trailers = HeaderMap::new();
                // Fails where a text cannot be a header, and ours can.
                let _ = status.add_header(&mut trailers);
                BodyFrame::trailers(trailers)
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const STALL: Duration = Duration::from_millis(20);

    async fn status(answers: &mut Answers) -> String {
        let frame = answers.next().await.unwrap().unwrap();
        frame.into_trailers().unwrap()["grpc-status"].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_stream_whose_client_reads_no_further_is_given_up() {
        let (held, mut gone) = tokio::sync::oneshot::channel::<()>();
        let message = Ok((Bytes::from(vec![0; CHUNK_BYTES + 1]), None));
        let messages = stream::once(async { message }).chain(stream::pending());
        let messages = messages.inspect(move |_| assert!(!held.is_closed()));
        let mut answers = Answers::new(Box::pin(messages), STALL);
        let piece = answers.next().await.unwrap().unwrap();
        assert_eq!(piece.into_data().unwrap().len(), CHUNK_BYTES);
        // Nobody asks for the last byte.
        while gone.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            tokio::time::sleep(STALL).await;
        }
        assert_eq!(status(&mut answers).await, "1");
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_whose_client_waits_for_answers_goes_on() {
        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        let last = stream::once(async move {
            receive.await.unwrap();
            Ok((Bytes::from_static(b"last"), None))
        });
        let mut answers = Answers::new(Box::pin(last), STALL);
        for _ in 0..5 {
            assert!(answers.next().now_or_never().is_none());
            tokio::time::sleep(STALL).await;
        }
        send.send(()).unwrap();
        let piece = answers.next().await.unwrap().unwrap();
        assert_eq!(piece.into_data().unwrap(), "last");
        assert_eq!(status(&mut answers).await, "0");
    }
}
