//! Messages in gRPC's frames, one at a time: nothing of a message is read before its caller has been let in.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tonic::{Code, Status};

use crate::{
    budget::Charge,
    oip::{OipError, compress::Encoding},
};

/// A flag that says whether the message is packed, and its length, 32 bits.
const PREFIX_BYTES: usize = 5;
/// A message gets this much time for nothing, and a second for each [`RATE_BYTES`] of it.
const TIME_FREE: Duration = Duration::from_secs(20);
const RATE_BYTES: u64 = 16 * 1024;

/// The messages of a request's body.
pub(super) struct Frames {
    body: Incoming,
    buffer: BytesMut,
    /// What is still to come of a message that nobody read.
    unread: usize,
    is_gzip: bool,
    bytes_max: usize,
}

/// What is announced of a message.
pub(super) struct Head {
    is_packed: bool,
    length: usize,
}

/// A message as it came.
pub(super) struct Frame {
    bytes: Bytes,
    is_packed: bool,
    bytes_max: usize,
}

impl Frames {
    pub(super) fn new(
        headers: &HeaderMap,
        body: Incoming,
        bytes_max: usize,
    ) -> Result<Self, Status> {
        let is_gzip = match headers.get("grpc-encoding").map(|value| value.as_bytes()) {
            None | Some(b"identity") => false,
            Some(b"gzip") => true,
            Some(_) => {
                let text = "the grpc-encoding is neither gzip nor identity";
                let mut status = Status::new(Code::Unimplemented, text);
                let known = tonic::metadata::MetadataValue::from_static("gzip,identity");
                status.metadata_mut().insert("grpc-accept-encoding", known);
                return Err(status);
            }
        };
        Ok(Frames { body, buffer: BytesMut::new(), unread: 0, is_gzip, bytes_max })
    }

    /// Waits for the next message's head; `None` at the end of the body. An error ends the body.
    pub(super) async fn head(&mut self) -> Result<Option<Head>, OipError> {
        loop {
            let passed = self.unread.min(self.buffer.len());
            let _ = self.buffer.split_to(passed);
            self.unread -= passed;
            if self.unread == 0 && self.buffer.len() >= PREFIX_BYTES {
                break;
            }
            if !self.fill().await? {
                let is_over = self.unread == 0 && self.buffer.is_empty();
                return if is_over { Ok(None) } else { Err(broke_off()) };
            }
        }
        let prefix = self.buffer.split_to(PREFIX_BYTES);
        let is_packed = match (prefix[0], self.is_gzip) {
            (0, _) => false,
            (1, true) => true,
            _ => return Err(OipError::invalid("a message is packed otherwise than was announced")),
        };
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if length > self.bytes_max {
            return Err(too_long(self.bytes_max));
        }
        self.unread = length;
        Ok(Some(Head { is_packed, length }))
    }

    /// The head of the one message of a call. Whoever waits for it holds a place, and does not wait for long.
    pub(super) async fn first(&mut self) -> Result<Head, OipError> {
        let head = tokio::time::timeout(TIME_FREE, self.head()).await.map_err(|_| too_slow())??;
        head.ok_or_else(|| OipError::invalid("there is no message in the request"))
    }

    /// Reads the message, which is charged as it comes.
    pub(super) async fn message(
        &mut self,
        head: Head,
        mut charge: Option<&mut Charge>,
    ) -> Result<Frame, OipError> {
        if self.buffer.len() < head.length {
            let time = TIME_FREE + Duration::from_secs(head.length as u64 / RATE_BYTES);
            let whole = tokio::time::timeout(time, async {
                while self.buffer.len() < head.length {
                    // What was announced is taken at its word only as far as it has come.
                    if let Some(charge) = &mut charge {
                        charge.cover(self.buffer.len() as u64 + crate::budget::FLOOR_BYTES)?;
                    }
                    if !self.fill().await? {
                        return Err(broke_off());
                    }
                }
                Ok(())
            });
            whole.await.map_err(|_| too_slow())??;
        }
        self.unread = 0;
        let bytes = self.buffer.split_to(head.length).freeze();
        Ok(Frame { bytes, is_packed: head.is_packed, bytes_max: self.bytes_max })
    }

    /// Whether more has come.
    async fn fill(&mut self) -> Result<bool, OipError> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Err(_)) => Err(broke_off()),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    // A message that came whole, as most do, is not copied.
                    match self.buffer.is_empty() {
                        true => self.buffer = BytesMut::from(data),
                        false => self.buffer.extend_from_slice(&data),
                    }
                }
                Ok(true)
            }
        }
    }
}

fn too_long(bytes_max: usize) -> OipError {
    OipError::TooLarge(format!("the message is longer than the limit of {bytes_max} bytes"))
}

fn too_slow() -> OipError {
    let text = "the message came too slowly; send it again over a faster connection";
    OipError::DeadlineExceeded(text.to_owned())
}

fn broke_off() -> OipError {
    OipError::invalid("the request broke off before its message was whole")
}

impl Head {
    /// Whether the message may take more than so many bytes.
    pub(super) fn may_exceed(&self, bytes: usize) -> bool {
        self.is_packed || self.length > bytes
    }
}

impl Frame {
    /// Its bytes as they are.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_packed(&self) -> bool {
        self.is_packed
    }

    /// The message's bytes. Takes long where they are packed.
    pub(super) fn unpack(self, charge: Option<&mut Charge>) -> Result<Bytes, OipError> {
        let (packed, bytes_max) = (self.bytes, self.bytes_max);
        let unpacked = match charge {
            _ if !self.is_packed => return Ok(packed),
            Some(charge) => Encoding::Gzip.unpack_charged(&packed, bytes_max, charge)?,
            None => Encoding::Gzip.unpack(&packed, bytes_max)?,
        };
        unpacked.ok_or_else(|| too_long(bytes_max))
    }
}

/// A message in its frame, packed if that is wished.
pub(super) fn write(message: &impl Message, is_packed: bool) -> Result<Bytes, OipError> {
    let length = message.encoded_len();
    let long = |_| OipError::TooLarge("the answer is longer than a message may be".to_owned());
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    if is_packed {
        let packed = Encoding::Gzip.pack(&message.encode_to_vec()).map_err(OipError::internal)?;
        out.put_u8(1);
        out.put_u32(u32::try_from(packed.len()).map_err(long)?);
        out.extend_from_slice(&packed);
    } else {
        out.put_u8(0);
        out.put_u32(u32::try_from(length).map_err(long)?);
        message.encode(&mut out).map_err(OipError::internal)?;
    }
    Ok(out.freeze())
}
