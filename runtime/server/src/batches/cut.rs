//! Where the lines of a batch begin and end, and how they are cut into shards. No input or output.

/// A longer line is refused.
pub(crate) const LINE_BYTES_MAX: u64 = 1 << 20;
/// More lines are refused: where each begins is in memory until the batch is written down.
pub(crate) const LINES_MAX: usize = 1_000_000;
/// A batch is cut into about so many shards…
const SHARDS: u64 = 200;
/// …of so many lines at most…
const SHARD_LINES_MAX: usize = 500;
/// …and of so many bytes, which a worker has in memory. A line is shorter.
const SHARD_BYTES_MAX: u64 = 4 << 20;

/// Finds the lines of what comes bit by bit.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    starts: Vec<u64>,
    at: u64,
    line_began: u64,
    in_line: bool,
}

/// Why there are too many or too long lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    LineTooLong(usize),
    TooManyLines,
}

impl Cutter {
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.in_line {
                if self.starts.len() >= LINES_MAX {
                    return Err(Cut::TooManyLines);
                }
                self.starts.push(self.at);
                self.line_began = self.at;
                self.in_line = true;
            }
            self.at += piece.len() as u64;
            if self.at - self.line_began > LINE_BYTES_MAX + 1 {
                return Err(Cut::LineTooLong(self.starts.len()));
            }
            if piece.ends_with(b"\n") {
                self.in_line = false;
            }
        }
        Ok(())
    }

    /// Where each line begins, and where the last one ends.
    pub(crate) fn finish(self) -> (Vec<u64>, u64) {
        (self.starts, self.at)
    }
}

/// A shard: its first line from 1, its lines, where it begins, its length.
pub(crate) type Part = (u64, u64, u64, u64);

/// The shards of these lines, `shard_lines` each or as many as suit the batch; fewer where they are long.
pub(crate) fn cut(starts: &[u64], end: u64, shard_lines: Option<u64>) -> Vec<Part> {
    let suits = (starts.len() as u64).div_ceil(SHARDS);
    let most = (shard_lines.unwrap_or(suits) as usize).clamp(1, SHARD_LINES_MAX);
    let mut parts = Vec::new();
    let (mut first, mut begin) = (0, starts.first().copied().unwrap_or(end));
    for line in 1..=starts.len() {
        let next = |line: usize| starts.get(line).copied().unwrap_or(end);
        let is_full = line - first == most || next(line + 1) - begin > SHARD_BYTES_MAX;
        if is_full || line == starts.len() {
            let bytes = next(line) - begin;
            parts.push((first as u64 + 1, (line - first) as u64, begin, bytes));
            (first, begin) = (line, next(line));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &[u8], step: usize) -> (Vec<u64>, u64) {
        let mut cutter = Cutter::default();
        text.chunks(step.max(1)).try_for_each(|piece| cutter.take(piece)).unwrap();
        cutter.finish()
    }

    #[test]
    fn a_line_feed_ends_a_line_and_the_last_may_lack_it() {
        assert_eq!(lines(b"", 1), (vec![], 0));
        assert_eq!(lines(b"a\n\nbc", 2), (vec![0, 2, 3], 5));
        assert_eq!(lines(b"a\n", 9), (vec![0], 2));
        let mut cutter = Cutter::default();
        cutter.take(b"1\n").unwrap();
        assert_eq!(cutter.take(&[b'x'; (1 << 20) + 2]), Err(Cut::LineTooLong(2)));
    }

    #[test]
    fn long_lines_make_short_shards() {
        let starts: Vec<u64> = (0..100).map(|line| line << 20).collect();
        let parts = cut(&starts, 100 << 20, Some(500));
        assert_eq!((parts.len(), parts[0]), (25, (1, 4, 0, 4 << 20)));
        assert_eq!(parts[24], (97, 4, 96 << 20, 4 << 20));
    }

    proptest! {
        #[test]
        fn shards_hold_every_line_once_and_in_order(
            text in "[a\n]{0,300}", step in 1..50usize, size in proptest::option::of(1..20u64),
        ) {
            let (starts, end) = lines(text.as_bytes(), step);
            let expected: Vec<_> = text.as_bytes().split_inclusive(|byte| *byte == b'\n').collect();
            prop_assert_eq!(starts.len(), expected.len());
            let mut all = Vec::new();
            for (first, count, offset, length) in cut(&starts, end, size) {
                prop_assert_eq!(first as usize, all.len() + 1);
                let part = &text.as_bytes()[offset as usize..(offset + length) as usize];
                let found: Vec<_> = part.split_inclusive(|byte| *byte == b'\n').collect();
                prop_assert_eq!(found.len() as u64, count);
                all.extend(found);
            }
            prop_assert_eq!(all, expected);
        }
    }
}
