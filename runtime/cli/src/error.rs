//! What a command can fail with: what happened, why, what to do next, and an exit code that scripts can rely on.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// Every command answers with this.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// The class of a failure. Its number is the exit code and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reader of our output went away; there is nobody to tell.
    OutputClosed = 0,
    /// Something that should not happen.
    Unexpected = 1,
    /// The command line, a name or a local file is wrong.
    Usage = 2,
    /// No answer from the server.
    Unreachable = 3,
    /// No key, a bad key, or a key without the scope.
    Auth = 4,
    /// No such thing, or none that this key may see.
    NotFound = 5,
    /// The server refused what was sent.
    Rejected = 6,
    /// A limit of the tenant or of the node; worth another try.
    Busy = 7,
    /// The function gave no answer, or one of its own with 500 or more.
    Function = 8,
    /// The build command failed.
    Build = 9,
    /// A signal ended it before its end.
    Interrupted = 130,
}

impl Kind {
    /// The class of an answer of the control plane with this status.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Kind::Auth,
            404 => Kind::NotFound,
            429 | 503 => Kind::Busy,
            // No function is asked here: a gateway before the server got no answer from it.
            502 | 504 => Kind::Unreachable,
            400..=499 => Kind::Rejected,
            _ => Kind::Unexpected,
        }
    }

    /// The class of the server's own answer in place of a function's.
    pub(crate) fn of_invocation(status: u16) -> Self {
        match status {
            502 | 504 => Kind::Function,
            _ => Self::of_status(status),
        }
    }

    /// The code of an error that never came from a server.
    fn code(self) -> &'static str {
        match self {
            Kind::OutputClosed => "output_closed",
            Kind::Unexpected => "unexpected",
            Kind::Usage => "usage",
            Kind::Unreachable => "unreachable",
            Kind::Auth => "not_authenticated",
            Kind::NotFound => "not_found",
            Kind::Rejected => "rejected",
            Kind::Busy => "busy",
            Kind::Function => "function_failed",
            Kind::Build => "build_failed",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// The table of exit codes, as `--help` shows it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something unexpected
  2  usage: the command line, a name or a local file is wrong
  3  the server cannot be reached
  4  not authenticated, or the key lacks a scope
  5  not found
  6  rejected by the server, or a 4xx of the function's own
  7  busy: a limit was hit (429, 503); try again
  8  the function failed (502, 504, or a 5xx of its own)
  9  the build failed
130  stopped by a signal";

/// A failure and what to do about it. Boxed texts keep every `Result` small.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) kind: Kind,
    /// What happened, in one sentence.
    pub(crate) what: String,
    /// Why, where that is known.
    pub(crate) why: Option<Box<str>>,
    /// The next step.
    pub(crate) next: Option<Box<str>>,
    /// The server's code, where it gave one.
    pub(crate) code: Option<Box<str>>,
    /// The server's request id, to be found again in its log.
    pub(crate) request_id: Option<Box<str>>,
}

impl CliError {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Self {
        let what = what.into();
        CliError { kind, what, why: None, next: None, code: None, request_id: None }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    pub(crate) fn unexpected(what: impl Into<String>) -> Self {
        Self::new(Kind::Unexpected, what)
    }

    pub(crate) fn why(mut self, why: impl ToString) -> Self {
        self.why = Some(why.to_string().into());
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into().into());
        self
    }

    /// Adds a next step where none is known yet.
    pub(crate) fn or_next(mut self, next: impl Into<String>) -> Self {
        self.next.get_or_insert_with(|| next.into().into());
        self
    }

    /// Whether there was no answer from the server.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.kind as u8
    }

    /// The form for people: a sentence, then the cause and the next step, each on its line.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}", self.what);
        let indented = |text: &str| text.trim_end().replace('\n', "\n         ");
        if let Some(why) = &self.why {
            let _ = write!(text, "\n  cause: {}", indented(why));
        }
        if let Some(next) = &self.next {
            let _ = write!(text, "\n  next:  {}", indented(next));
        }
        if let Some(id) = &self.request_id {
            let _ = write!(text, "\n  (request id {id})");
        }
        text
    }

    /// The form for programs.
    pub(crate) fn json(&self) -> Value {
        let mut error = Map::new();
        let code = self.code.as_deref().unwrap_or(self.kind.code());
        error.insert("code".into(), code.into());
        error.insert("message".into(), self.what.as_str().into());
        let optional =
            [("cause", &self.why), ("hint", &self.next), ("request_id", &self.request_id)];
        for (key, value) in optional {
            if let Some(value) = value {
                error.insert(key.into(), value.as_ref().into());
            }
        }
        error.insert("exit_code".into(), self.exit_code().into());
        json!({ "error": error })
    }
}

impl From<sandpiper_domain::NameError> for CliError {
    fn from(error: sandpiper_domain::NameError) -> Self {
        CliError::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_exit_code() {
        let expected = [
            (400, 6),
            (401, 4),
            (403, 4),
            (404, 5),
            (409, 6),
            (413, 6),
            (422, 6),
            (429, 7),
            (500, 1),
            (502, 3),
            (503, 7),
            (504, 3),
        ];
        for (status, code) in expected {
            assert_eq!(Kind::of_status(status) as u8, code, "{status}");
            let invoked = if matches!(status, 502 | 504) { 8 } else { code };
            assert_eq!(Kind::of_invocation(status) as u8, invoked, "{status}");
        }
    }

    #[test]
    fn the_text_says_what_why_and_what_next() {
        let error = CliError::usage("no manifest").why("two\nlines").next("run this");
        assert_eq!(
            error.text(),
            "error: no manifest\n  cause: two\n         lines\n  next:  run this"
        );
    }

    #[test]
    fn the_json_keeps_the_servers_words() {
        let mut error = CliError::new(Kind::Rejected, "too large").next("shrink it");
        error.code = Some("body_too_large".into());
        error.request_id = Some("r1".into());
        assert_eq!(
            error.json(),
            json!({"error": {"code": "body_too_large", "message": "too large",
                "hint": "shrink it", "request_id": "r1", "exit_code": 6}})
        );
    }

    #[test]
    fn the_help_names_every_exit_code() {
        for code in (0..=9).chain([130]) {
            assert!(EXIT_CODES.contains(&format!("\n{code:>3}  ")), "{code}");
        }
    }
}
