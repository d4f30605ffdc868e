//! The log of one function: what its guests print, in a ring of bounded size, with exact counts of what was dropped.

use std::{collections::VecDeque, sync::Arc};

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Longest line kept; the rest of a longer one is dropped and counted.
const LINE_BYTES_MAX: usize = 4096;
/// Lines one function keeps.
const RING_LINES_MAX: usize = 1000;
/// Bytes one function keeps.
const RING_BYTES_MAX: usize = 256 * 1024;

/// Which of the guest's streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    /// `stdout` or `stderr`.
    pub fn name(self) -> &'static str {
        match self {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        }
    }
}

/// One line that a guest printed.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// When it was complete.
    pub at: time::OffsetDateTime,
    /// Where it was printed.
    pub stream: LogStream,
    /// The invocation that printed it.
    pub request_id: Arc<str>,
    /// The text without its line feed; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// What a reader gets: the lines from a position on, and what is missing before them.
#[derive(Debug, Clone, Default)]
pub struct LogTail {
    /// The lines, oldest first.
    pub lines: Vec<LogLine>,
    /// Pass this position to read on.
    pub next: u64,
    /// Lines between the wanted position and the first one here that the ring no longer held.
    pub missed_lines: u64,
    /// Lines dropped over the function's lifetime, by the ring or by a limit.
    pub dropped_lines: u64,
    /// Bytes dropped over the function's lifetime.
    pub dropped_bytes: u64,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    first: u64,
    dropped_lines: u64,
    dropped_bytes: u64,
}

/// The bounded log of one function. Cheap to share; nothing here blocks for long.
#[derive(Debug)]
pub struct FunctionLog {
    ring: Mutex<Ring>,
    position: watch::Sender<u64>,
}

impl Default for FunctionLog {
    fn default() -> Self {
        FunctionLog { ring: Mutex::default(), position: watch::Sender::new(0) }
    }
}

impl FunctionLog {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept lines from position `from` on; 0 is the beginning.
    pub fn tail(&self, from: u64) -> LogTail {
        let ring = self.ring();
        let skip = from.saturating_sub(ring.first) as usize;
        LogTail {
            lines: ring.lines.iter().skip(skip).cloned().collect(),
            next: (ring.first + ring.lines.len() as u64).max(from),
            missed_lines: ring.first.saturating_sub(from),
            dropped_lines: ring.dropped_lines,
            dropped_bytes: ring.dropped_bytes,
        }
    }

    /// Changes whenever there is something new to read.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.position.subscribe()
    }

    /// Adds a line of the host's own, for the owner of the function to see.
    pub(crate) fn note(&self, request_id: &str, text: String) {
        let at = time::OffsetDateTime::now_utc();
        self.push(LogLine { at, stream: LogStream::Stderr, request_id: request_id.into(), text });
    }

    fn push(&self, line: LogLine) {
        let position = {
            let mut ring = self.ring();
            ring.bytes += line.text.len();
            ring.lines.push_back(line);
            while ring.bytes > RING_BYTES_MAX || ring.lines.len() > RING_LINES_MAX {
                let Some(oldest) = ring.lines.pop_front() else { break };
                ring.bytes -= oldest.text.len();
                ring.first += 1;
                ring.dropped_lines += 1;
                ring.dropped_bytes += oldest.text.len() as u64;
            }
            ring.first + ring.lines.len() as u64
        };
        self.position.send_replace(position);
    }

    fn count_dropped(&self, lines: u64, bytes: u64) {
        let mut ring = self.ring();
        ring.dropped_lines += lines;
        ring.dropped_bytes += bytes;
    }
}

#[derive(Debug, Default)]
struct Partial {
    text: Vec<u8>,
    dropped: u64,
}

/// What one invocation prints: cut into lines, within a budget of bytes.
#[derive(Debug)]
pub(crate) struct InvocationLog {
    log: Arc<FunctionLog>,
    state: Mutex<Writing>,
}

#[derive(Debug)]
struct Writing {
    request_id: Arc<str>,
    budget: usize,
    partials: [Partial; 2],
}

impl InvocationLog {
    pub(crate) fn new(log: Arc<FunctionLog>, request_id: Arc<str>, budget_bytes: usize) -> Self {
        let partials = Default::default();
        InvocationLog {
            log,
            state: Mutex::new(Writing { request_id, budget: budget_bytes, partials }),
        }
    }

    /// Goes on for another invocation of the same function.
    pub(crate) fn begin(&self, request_id: Arc<str>, budget_bytes: usize) {
        let mut state = self.state();
        self.flush(&mut state);
        (state.request_id, state.budget) = (request_id, budget_bytes);
    }

    /// Ends what the invocation printed; nothing more is taken until the next begins.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        self.flush(&mut state);
        state.budget = 0;
    }

    fn state(&self) -> MutexGuard<'_, Writing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was printed without a line feed is a line too.
    fn flush(&self, state: &mut Writing) {
        let Writing { request_id, budget, partials } = state;
        for (stream, partial) in [LogStream::Stdout, LogStream::Stderr].into_iter().zip(partials) {
            if !partial.text.is_empty() || partial.dropped > 0 {
                self.finish(stream, partial, *budget, request_id);
            }
        }
    }

    /// Takes what a guest wrote. Never blocks on a reader and never grows beyond the budget and one line.
    pub(crate) fn write(&self, stream: LogStream, bytes: &[u8]) {
        let mut state = self.state();
        let Writing { request_id, budget, partials } = &mut *state;
        let partial = &mut partials[stream as usize];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) = match piece.split_last() {
                Some((b'\n', line)) => (line, true),
                _ => (piece, false),
            };
            let room = (LINE_BYTES_MAX - partial.text.len()).min(*budget).min(piece.len());
            partial.text.extend_from_slice(&piece[..room]);
            partial.dropped += (piece.len() - room) as u64;
            *budget -= room;
            if ends {
                self.finish(stream, partial, *budget, request_id);
                // A line feed costs a byte too, or empty lines would be free.
                *budget = budget.saturating_sub(1);
            }
        }
    }

    fn finish(
        &self,
        stream: LogStream,
        partial: &mut Partial,
        budget: usize,
        request_id: &Arc<str>,
    ) {
        let text = std::mem::take(&mut partial.text);
        let dropped = std::mem::take(&mut partial.dropped);
        let lost = text.is_empty() && (dropped > 0 || budget == 0);
        if dropped > 0 || lost {
            self.log.count_dropped(lost.into(), dropped);
        }
        if !lost {
            self.log.push(LogLine {
                at: time::OffsetDateTime::now_utc(),
                stream,
                request_id: request_id.clone(),
                text: String::from_utf8_lossy(&text).into_owned(),
            });
        }
    }
}

impl Drop for InvocationLog {
    fn drop(&mut self) {
        self.flush(&mut self.state());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(log: &Arc<FunctionLog>, budget: usize) -> InvocationLog {
        InvocationLog::new(log.clone(), "r".into(), budget)
    }

    fn texts(log: &FunctionLog) -> Vec<String> {
        log.tail(0).lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn writes_are_cut_into_lines_and_the_last_needs_no_line_feed() {
        let log = Arc::new(FunctionLog::default());
        let writer = invocation(&log, 1000);
        writer.write(LogStream::Stdout, b"one\ntw");
        writer.write(LogStream::Stderr, b"err\n");
        writer.write(LogStream::Stdout, b"o\n\nlast");
        drop(writer);
        assert_eq!(texts(&log), ["one", "err", "two", "", "last"]);
        assert_eq!(log.tail(0).dropped_bytes, 0);
    }

    #[test]
    fn beyond_the_budget_every_byte_and_line_is_counted() {
        let log = Arc::new(FunctionLog::default());
        let writer = invocation(&log, 10);
        writer.write(LogStream::Stdout, b"12345678\nabcdef\nghi\n\n");
        drop(writer);
        assert_eq!(texts(&log), ["12345678", "a"]);
        let tail = log.tail(0);
        assert_eq!((tail.dropped_lines, tail.dropped_bytes), (2, 8));
    }

    #[test]
    fn a_long_line_is_cut() {
        let log = Arc::new(FunctionLog::default());
        invocation(&log, 1 << 20).write(LogStream::Stdout, &[b'x'; LINE_BYTES_MAX + 7]);
        assert_eq!(texts(&log)[0].len(), LINE_BYTES_MAX);
        assert_eq!(log.tail(0).dropped_bytes, 7);
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_says_so() {
        let log = Arc::new(FunctionLog::default());
        let writer = invocation(&log, 1 << 20);
        for n in 0..RING_LINES_MAX + 5 {
            writer.write(LogStream::Stdout, format!("{n}\n").as_bytes());
        }
        let tail = log.tail(2);
        assert_eq!(tail.missed_lines, 3);
        assert_eq!(tail.lines[0].text, "5");
        assert_eq!(tail.next, RING_LINES_MAX as u64 + 5);
        assert_eq!(log.tail(tail.next).lines.len(), 0);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_uncounted(writes in proptest::collection::vec("[a-z\n]{0,40}", 0..40), budget in 0usize..400) {
            let log = Arc::new(FunctionLog::default());
            let writer = invocation(&log, budget);
            for text in &writes {
                writer.write(LogStream::Stdout, text.as_bytes());
            }
            drop(writer);
            let printed: usize = writes.iter().map(|text| text.bytes().filter(|b| *b != b'\n').count()).sum();
            let tail = log.tail(0);
            let kept: usize = tail.lines.iter().map(|line| line.text.len()).sum();
            assert_eq!(kept as u64 + tail.dropped_bytes, printed as u64);
            assert!(kept <= budget);
        }
    }
}
