//! From a file to the numbers that the model reads: its first and its last bytes.

/// How many numbers the model reads.
pub const FEATURES: usize = BEGIN + END;

/// From the beginning, after white space.
const BEGIN: usize = 1024;
/// From the end, before white space.
const END: usize = 1024;
/// White space is skipped, and bytes are taken, within this distance from either end.
const BLOCK: usize = 4096;
/// Stands where the file has no byte.
const PADDING: i32 = 256;
/// With fewer bytes than this the model has nothing to go by.
const BYTES_MIN: usize = 8;

/// What can be made of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Features {
    /// Not one byte.
    Empty,
    /// Too few bytes for the model. All that can be told is whether they are text.
    TooFew {
        /// Whether they are UTF-8.
        text: bool,
    },
    /// The model's input.
    Enough(Box<[i32; FEATURES]>),
}

impl Features {
    /// Looks at both ends of a file.
    pub fn of(file: &[u8]) -> Self {
        let block = file.len().min(BLOCK);
        let first = &file[..block];
        let begin = trim_start(first);
        if file.is_empty() {
            return Self::Empty;
        }
        if begin.len() < BYTES_MIN {
            return Self::TooFew { text: std::str::from_utf8(first).is_ok() };
        }
        let end = trim_end(&file[file.len() - block..]);

        let mut features = Box::new([PADDING; FEATURES]);
        let (head, tail) = features.split_at_mut(BEGIN);
        for (feature, byte) in head.iter_mut().zip(begin) {
            *feature = i32::from(*byte);
        }
        for (feature, byte) in tail.iter_mut().rev().zip(end.iter().rev()) {
            *feature = i32::from(*byte);
        }
        Self::Enough(features)
    }
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_space(*byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// ASCII white space, vertical tab included (which Rust's own definition leaves out).
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}
