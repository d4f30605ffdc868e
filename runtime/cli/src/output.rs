//! The two streams of the terminal: results on stdout, everything else on stderr. Progress is drawn only for a person.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::error::{CliError, Kind, Result};

/// How to talk to whoever called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    /// Results as JSON, no progress at all.
    pub(crate) json: bool,
    /// Somebody watches stderr.
    interactive: bool,
}

impl Ui {
    pub(crate) fn new(json: bool) -> Self {
        Ui { json, interactive: !json && io::stderr().is_terminal() }
    }

    /// Prints a result: the value itself for programs, the text for people.
    pub(crate) fn result(&self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<()> {
        let mut text = if self.json { pretty(value) } else { text(value) };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        stdout(text.as_bytes())
    }

    /// Says something on the side; programs are spared.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            stderr(text);
        }
    }

    /// Work of unknown length.
    pub(crate) fn spinner(&self, text: &str) -> Task {
        let bar = self.bar(None);
        // The templates are constants; should one be refused, the default style serves too.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        self.start(bar, text)
    }

    /// An upload of `bytes` bytes.
    pub(crate) fn upload(&self, text: &str, bytes: u64) -> Task {
        const TEMPLATE: &str =
            "{spinner} {msg} [{bar:24}] {bytes}/{total_bytes} {binary_bytes_per_sec}";
        let bar = self.bar(Some(bytes));
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        self.start(bar, text)
    }

    fn bar(&self, length: Option<u64>) -> ProgressBar {
        let target = if self.interactive {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        ProgressBar::with_draw_target(length, target)
    }

    fn start(&self, bar: ProgressBar, text: &str) -> Task {
        bar.set_message(text.to_owned());
        if self.interactive {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Task { bar, text: text.to_owned(), started: Instant::now() }
    }
}

/// Work under way. Dropping it takes its line off the screen.
#[derive(Debug)]
pub(crate) struct Task {
    bar: ProgressBar,
    text: String,
    started: Instant,
}

impl Task {
    /// Shows what the work is at now.
    pub(crate) fn detail(&self, detail: &str) {
        let detail: String = clean(detail).chars().take(60).collect();
        self.bar.set_message(format!("{}: {}", self.text, detail.trim()));
    }

    /// Counts bytes of an upload; when all are sent the bar waits for the server.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.bar.length().is_some_and(|length| self.bar.position() >= length) {
            self.bar.set_message(format!("{}: sent, the server prepares it", self.text));
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes to stdout. A reader that has gone away ends the command quietly.
pub(crate) fn stdout(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(stdout_error)
}

/// What a failed write to stdout means.
pub(crate) fn stdout_error(error: io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return CliError::new(Kind::OutputClosed, "the reader of the output has gone");
    }
    CliError::unexpected("the output cannot be written").why(error)
}

/// Writes one line to stderr. Nobody is left to be told when that fails.
pub(crate) fn stderr(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// JSON as people like to read it.
pub(crate) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Takes control characters out, so that no log line and no name can drive the terminal.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => clean.push('\t'),
            c if c.is_control() => clean.extend(c.escape_default()),
            c => clean.push(c),
        }
    }
    clean
}

/// A duration in the unit that reads best.
pub(crate) fn human(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

/// The first digits of a digest; enough to tell versions apart.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// A table of `rows` with the columns `(heading, JSON pointer)`; a column that no row fills is left out.
pub(crate) fn table(rows: &[Value], columns: &[(&str, &str)]) -> String {
    if rows.is_empty() {
        return "(none)".to_owned();
    }
    let filled = |pointer: &str| rows.iter().any(|row| !cell(row, pointer).is_empty());
    let columns: Vec<_> = columns.iter().filter(|(_, pointer)| filled(pointer)).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|(heading, _)| (*heading).to_owned()));
    for row in rows {
        table.add_row(columns.iter().map(|(_, pointer)| cell(row, pointer)));
    }
    // The style pads every cell; the first column then starts at the margin.
    let lines = table.lines().map(|line| line.trim_end().trim_start_matches(' ').to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn cell(row: &Value, pointer: &str) -> String {
    let Some(value) = row.pointer(pointer) else { return String::new() };
    let text = flat(value);
    let shown = match pointer {
        "/digest" => short(&text).to_owned(),
        // Nobody reads fractions of a second in a list.
        _ if pointer.ends_with("_at") => match text.split_once('.') {
            Some((second, _)) => format!("{second}Z"),
            None => text,
        },
        _ => text,
    };
    clean(&shown)
}

/// One value on one line.
fn flat(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join(", "),
        Value::Object(entries) => alias_target(value).unwrap_or_else(|| {
            let alias = |(name, value): (&String, &Value)| {
                Some(format!("{name} is {}", alias_target(value)?))
            };
            let aliases = entries.iter().map(alias).collect::<Option<Vec<_>>>();
            aliases.map_or_else(|| value.to_string(), |aliases| aliases.join("; "))
        }),
        other => other.to_string(),
    }
}

/// Where an alias points: `3`, or `3=90,4=10`, which is how the command line takes it too.
fn alias_target(value: &Value) -> Option<String> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    if let Some(version) = object.get("version") {
        return version.as_u64().map(|version| version.to_string());
    }
    let weights = object.get("weights")?.as_object()?;
    let weights = weights.iter().map(|(version, weight)| format!("{version}={weight}"));
    Some(weights.collect::<Vec<_>>().join(","))
}

/// An object as lines of `key  value`.
pub(crate) fn fields(value: &Value) -> String {
    let Some(object) = value.as_object() else { return clean(&flat(value)) };
    let width = object.keys().map(|key| key.chars().count()).max().unwrap_or(0);
    let line = |(key, value): (&String, &Value)| {
        format!("{:width$}  {}", clean(key), clean(&flat(value))).trim_end().to_owned()
    };
    object.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(clean("a\tb\u{1b}[2J\u{9b}é"), "a\tb\\u{1b}[2J\\u{9b}é");
    }

    #[test]
    fn durations_choose_their_unit() {
        assert_eq!(human(Duration::from_micros(1_234)), "1.23 ms");
        assert_eq!(human(Duration::from_micros(123_400)), "123 ms");
        assert_eq!(human(Duration::from_millis(12_345)), "12.3 s");
    }

    #[test]
    fn a_table_leaves_empty_columns_out() {
        let rows = [
            json!({"name": "a", "digest": "0123456789abcdef"}),
            json!({"name": "longer", "digest": "fedcba9876543210", "x": null}),
        ];
        let made = json!({"made_at": "2026-11-24T10:43:29.10358366Z"});
        assert_eq!(cell(&made, "/made_at"), "2026-11-24T10:43:29Z");
        let text = table(&rows, &[("NAME", "/name"), ("X", "/x"), ("DIGEST", "/digest")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(!lines[0].contains('X'), "{text}");
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["longer", "fedcba987654"]);
        assert_eq!(table(&[], &[("NAME", "/name")]), "(none)");
    }

    #[test]
    fn aliases_read_as_they_are_typed() {
        assert_eq!(flat(&json!({"version": 3})), "3");
        assert_eq!(flat(&json!({"weights": {"3": 90, "4": 10}})), "3=90,4=10");
        let aliases = json!({"canary": {"version": 4}, "live": {"version": 3}});
        assert_eq!(flat(&aliases), "canary is 4; live is 3");
        assert_eq!(flat(&json!({"version": 3, "x": 1})), r#"{"version":3,"x":1}"#);
    }

    #[test]
    fn an_object_becomes_aligned_lines() {
        let text = fields(&json!({"id": "k1", "scopes": ["a", "b"]}));
        assert_eq!(text, "id      k1\nscopes  a, b");
    }
}
