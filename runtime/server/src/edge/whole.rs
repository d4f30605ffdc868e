//! A body that is read to its end before anything is done with it.

use bytes::Bytes;
use http_body::SizeHint;

/// Bytes are gathered in segments of this size, so that many small pieces take no more than what is in them, and what
/// is here already is copied once and not at every doubling.
const SEGMENT_BYTES: usize = 1 << 20;

/// What has come of a body so far.
pub(crate) struct Whole {
    segment_bytes: usize,
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Default for Whole {
    fn default() -> Self {
        Whole { segment_bytes: SEGMENT_BYTES, full: Vec::new(), last: Vec::new() }
    }
}

impl Whole {
    /// With addresses for all that is announced, so that nothing is copied again. Memory comes with the bytes. Not for
    /// bodies of which there may be many at once.
    pub(crate) fn announced(hint: &SizeHint) -> Self {
        let Some(bytes) = hint.exact() else { return Whole::default() };
        let segment_bytes = (bytes as usize).max(1);
        Whole { segment_bytes, full: Vec::new(), last: Vec::with_capacity(segment_bytes) }
    }

    pub(crate) fn len(&self) -> usize {
        self.full.len() * self.segment_bytes + self.last.len()
    }

    pub(crate) fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.last.len() == self.segment_bytes {
                let next = Vec::with_capacity(self.segment_bytes);
                self.full.push(std::mem::replace(&mut self.last, next));
            }
            let (now, rest) = data.split_at(data.len().min(self.segment_bytes - self.last.len()));
            self.last.extend_from_slice(now);
            data = rest;
        }
    }

    /// All of it in one piece. Segments go as they are copied.
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.full.is_empty() {
            return self.last.into();
        }
        let mut whole = Vec::with_capacity(self.len());
        for segment in self.full {
            whole.extend_from_slice(&segment);
        }
        whole.extend_from_slice(&self.last);
        whole.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_one_body() {
        for size in [1, 7, 4096, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES] {
            let body: Vec<u8> = (0..2 * SEGMENT_BYTES + 5).map(|n| (n % 251) as u8).collect();
            let announced = SizeHint::with_exact(body.len() as u64);
            for mut whole in [Whole::default(), Whole::announced(&announced)] {
                body.chunks(size).for_each(|piece| whole.push(piece));
                assert_eq!(whole.len(), body.len(), "{size}");
                assert_eq!(whole.into_bytes(), body, "{size}");
            }
        }
        assert!(Whole::default().into_bytes().is_empty());
    }
}
