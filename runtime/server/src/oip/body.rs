//! Reading the body of a request, never more of it than it may have.

use bytes::Bytes;
use futures::FutureExt;
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::OipError;
use crate::{
    budget::{Charge, NoRoom},
    edge::{Paced, TooSlow, Whole},
};

/// Why a body could not be read.
#[derive(Debug)]
pub(super) enum BodyError {
    TooLarge,
    TooSlow,
    BrokeOff,
    NoRoom(NoRoom),
}

impl From<BodyError> for OipError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => {
                OipError::TooLarge("the request's body is larger than it may be".to_owned())
            }
            BodyError::TooSlow => OipError::DeadlineExceeded(
                "the body came too slowly; send it again over a faster connection".to_owned(),
            ),
            BodyError::BrokeOff => OipError::invalid("the body broke off"),
            BodyError::NoRoom(no_room) => no_room.into(),
        }
    }
}

/// A whole body of at most `bytes_max` bytes, charged as it comes. Most
/// are here with their heads, and are read without a copy or a timer.
pub(super) async fn read(
    mut body: Incoming,
    bytes_max: usize,
    mut charge: Option<&mut Charge>,
) -> Result<Bytes, BodyError> {
    let hint = body.size_hint();
    if hint.lower() > bytes_max as u64 {
        return Err(BodyError::TooLarge);
    }
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let first = match body.frame().now_or_never() {
        Some(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        Some(Some(Err(_))) => return Err(BodyError::BrokeOff),
        Some(None) => return Ok(Bytes::new()),
        None => Bytes::new(),
    };
    let left = bytes_max.checked_sub(first.len()).ok_or(BodyError::TooLarge)?;
    if body.is_end_stream() {
        return Ok(first);
    }
    let mut whole = match &charge {
        Some(_) => Whole::default(),
        None => Whole::announced(&hint),
    };
    whole.push(&first);
    drop(first);
    let mut rest = Limited::new(Paced::new(body), left);
    while let Some(frame) = rest.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if is::<LengthLimitError>(&*error) => return Err(BodyError::TooLarge),
            Err(error) if is::<TooSlow>(&*error) => return Err(BodyError::TooSlow),
            Err(_) => return Err(BodyError::BrokeOff),
        };
        let Ok(data) = frame.into_data() else { continue };
        if let Some(charge) = &mut charge {
            let bytes = (whole.len() + data.len()) as u64;
            charge.cover(bytes).map_err(BodyError::NoRoom)?;
        }
        whole.push(&data);
    }
    Ok(whole.into_bytes())
}

fn is<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<T>())
}
