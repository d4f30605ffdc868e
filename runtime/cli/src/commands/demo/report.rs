//! What the demo says: the stages with their times, and the lines to try next.

use std::{path::Path, time::Duration};

use serde_json::{Map, Value};

use super::{EXAMPLE, TENANT, node::Node};
use crate::output::{Ui, human};

/// The stages so far. Each is shown as soon as it is done.
pub(super) struct Stages {
    ui: Ui,
    done: Vec<(&'static str, Duration)>,
}

impl Stages {
    pub(super) fn new(ui: Ui) -> Self {
        Stages { ui, done: Vec::new() }
    }

    pub(super) fn add(&mut self, name: &'static str, time: Duration) {
        self.ui.note(&line(name, time));
        self.done.push((name, time));
    }

    /// Shows the sum.
    pub(super) fn total(&self) {
        self.ui.note(&line("together", self.done.iter().map(|(_, time)| *time).sum()));
    }

    /// The times in milliseconds, under names for programs.
    pub(super) fn json(&self) -> Value {
        let entry = |(name, time): &(&str, Duration)| {
            let name = name.split(" (").next().unwrap_or(name).replace(' ', "_");
            let ms = (time.as_secs_f64() * 1e6).round() / 1e3;
            (name, Value::from(ms))
        };
        Value::Object(self.done.iter().map(entry).collect::<Map<_, _>>())
    }
}

fn line(name: &str, time: Duration) -> String {
    format!("  {name:28} {:>10}", human(time))
}

/// The middle of `times`, which are sorted by this.
pub(super) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// What to try while the server runs.
pub(super) fn lines_to_try(node: &Node, key: &str, image: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "sandpiper".to_owned());
    try_lines(node.url(), node.operator_key(), key, &from_here(image), &program)
}

fn try_lines(url: &str, operator_key: &str, key: &str, image: &str, program: &str) -> String {
    let (image, program) = (quoted(image), quoted(program));
    let bearer = format!("-H 'authorization: Bearer {key}'");
    format!(
        "
The server runs at {url} until ctrl-c. Try:

  curl -s {bearer} --data-binary @{image} {url}/fn/{TENANT}/{EXAMPLE}
  curl -s {bearer} {url}/api/v1/functions/{EXAMPLE}
  curl -s {bearer} {url}/api/v1/models/{EXAMPLE}

  export SANDPIPER_SERVER={url} SANDPIPER_KEY={key}
  {program} invoke {EXAMPLE} -d @{image}
  {program} logs {EXAMPLE}
  {program} doctor

The operator's key is {operator_key}
"
    )
}

/// The path as it is best typed here.
fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).ok();
    let short = here.and_then(|here| path.strip_prefix(here).ok());
    short.unwrap_or(path).display().to_string()
}

/// Quotes what a shell would take apart.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_keyed_for_programs() {
        let mut stages = Stages::new(Ui::new(true));
        stages.add("tenant and key", Duration::from_micros(1_500));
        stages.add("warm request (p50 of 20)", Duration::from_micros(250));
        let expected = serde_json::json!({"tenant_and_key": 1.5, "warm_request": 0.25});
        assert_eq!(stages.json(), expected);
    }

    #[test]
    fn the_median_is_the_middle() {
        let mut times = [5, 1, 9].map(Duration::from_millis);
        assert_eq!(median(&mut times), Duration::from_millis(5));
        assert_eq!(median(&mut []), Duration::ZERO);
    }

    #[test]
    fn the_lines_can_be_pasted() {
        let lines = try_lines("http://h:1", "op", "k", "my pictures/it's.png", "target/sandpiper");
        assert!(lines.contains(r"@'my pictures/it'\''s.png' http://h:1/fn/demo/digits"), "{lines}");
        assert!(lines.contains("  target/sandpiper invoke digits"));
    }
}
