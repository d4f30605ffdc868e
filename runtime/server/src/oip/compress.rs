//! gzip and deflate (RFC 1950, as HTTP means it), both ways.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::{
    Compression,
    bufread::{MultiGzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderValue, header};

use super::OipError;
use crate::budget::Charge;

/// Answers that are shorter go as they are: compressing them takes longer than sending them.
pub(super) const BYTES_MIN: usize = 1024;
/// DEFLATE makes no more bytes of one (RFC 1951: 258 of two bits, and what the codes take).
const RATIO_MAX: u64 = 1040;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    Deflate,
}

impl Encoding {
    /// What a request's body is packed with; `None` where it is not.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, OipError> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let (first, second) = (values.next(), values.next());
        let value = first.map_or(Ok(""), |value| value.to_str()).unwrap_or("?").trim();
        match value.to_ascii_lowercase().as_str() {
            _ if second.is_some() => {}
            "" | "identity" => return Ok(None),
            "gzip" | "x-gzip" => return Ok(Some(Encoding::Gzip)),
            "deflate" => return Ok(Some(Encoding::Deflate)),
            _ => {}
        }
        let text = "the Content-Encoding is none of gzip, deflate and identity";
        Err(OipError::invalid(text))
    }

    /// What the client would have the answer packed with.
    pub(super) fn for_response(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::ACCEPT_ENCODING).iter();
        let names = values.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
        let mut found = None;
        for name in names {
            let (name, weight) = name.split_once(';').unwrap_or((name, ""));
            let weight = weight.trim().trim_start_matches("q=").trim();
            if !weight.is_empty() && weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0) {
                continue;
            }
            match name.trim().to_ascii_lowercase().as_str() {
                "gzip" => return Some(Encoding::Gzip),
                "deflate" => found = Some(Encoding::Deflate),
                _ => {}
            }
        }
        found
    }

    /// The header's value.
    pub(super) fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        })
    }

    /// Unpacks a body; `None` is more than `bytes_max` bytes. Blocks for as long as that takes.
    pub(super) fn unpack(self, body: &[u8], bytes_max: usize) -> Result<Option<Bytes>, OipError> {
        let unpacked = match self {
            Encoding::Gzip => read_at_most(MultiGzDecoder::new(body), bytes_max),
            Encoding::Deflate => {
                let mut decoder = ZlibDecoder::new(body);
                let read = read_at_most(&mut decoder, bytes_max);
                let is_over = decoder.into_inner().is_empty();
                // A body beyond the limit is not over, and is refused below.
                let is_whole = |bytes: &Vec<u8>| is_over || bytes.len() > bytes_max;
                read.and_then(|b| is_whole(&b).then_some(b).ok_or(io::ErrorKind::Other.into()))
            }
        };
        let unpacked = unpacked.map_err(|_| {
            OipError::invalid("the body is not packed as its Content-Encoding says, or is cut off")
        })?;
        if unpacked.len() > bytes_max {
            return Ok(None);
        }
        Ok(Some(unpacked.into()))
    }

    /// The same, charged with what it may grow to and then with what it has.
    pub(super) fn unpack_charged(
        self,
        body: &[u8],
        bytes_max: usize,
        charge: &mut Charge,
    ) -> Result<Option<Bytes>, OipError> {
        let packed = body.len() as u64;
        let grown = packed.saturating_mul(RATIO_MAX).min(bytes_max as u64 + 1);
        charge.cover(packed + grown)?;
        let unpacked = self.unpack(body, bytes_max)?;
        charge.shrink(packed + unpacked.as_ref().map_or(0, Bytes::len) as u64);
        Ok(unpacked)
    }

    /// Packs a body, quickly rather than well. Blocks for as long as that takes.
    pub(super) fn pack(self, body: &[u8]) -> io::Result<Vec<u8>> {
        let out = Vec::with_capacity(body.len() / 2);
        match self {
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(out, Compression::fast());
                io::Write::write_all(&mut encoder, body)?;
                encoder.finish()
            }
            Encoding::Deflate => {
                let mut encoder = ZlibEncoder::new(out, Compression::fast());
                io::Write::write_all(&mut encoder, body)?;
                encoder.finish()
            }
        }
    }
}

/// Reads to the end, or one byte beyond the limit.
fn read_at_most(reader: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(bytes_max as u64 + 1).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn bodies_pass_through_unchanged() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            for body in [&b""[..], b"a", &[7; 100_000]] {
                let packed = encoding.pack(body).unwrap();
                assert_eq!(encoding.unpack(&packed, body.len()).unwrap().unwrap(), body);
            }
        }
    }

    #[test]
    fn a_bomb_goes_no_further_than_the_limit() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let bomb = encoding.pack(&vec![0; 8 << 20]).unwrap();
            assert!(bomb.len() < 64 << 10);
            assert_eq!(encoding.unpack(&bomb, 1 << 20), Ok(None));
        }
    }

    #[test]
    fn what_is_cut_off_or_followed_by_more_is_refused() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let packed = encoding.pack(b"some text, and some more").unwrap();
            assert!(encoding.unpack(&packed[..packed.len() - 5], 100).is_err());
            assert!(encoding.unpack(&[&packed[..], b"x"].concat(), 100).is_err());
            assert!(encoding.unpack(b"", 100).is_err());
            assert!(encoding.unpack(b"plain", 100).is_err());
        }
    }

    #[test]
    fn encodings_are_chosen_as_the_headers_say() {
        let of = |value| Encoding::of_request(&headers(header::CONTENT_ENCODING, value));
        assert_eq!(of("GZIP"), Ok(Some(Encoding::Gzip)));
        assert_eq!(of("deflate"), Ok(Some(Encoding::Deflate)));
        assert_eq!(of("identity"), Ok(None));
        assert!(of("br").is_err() && of("gzip, gzip").is_err());
        let answer = |value| Encoding::for_response(&headers(header::ACCEPT_ENCODING, value));
        assert_eq!(answer("gzip, deflate, br"), Some(Encoding::Gzip));
        assert_eq!(answer("deflate;q=0.5, gzip;q=0"), Some(Encoding::Deflate));
        assert_eq!(answer("br, identity"), None);
        assert_eq!(Encoding::for_response(&HeaderMap::new()), None);
    }
}
