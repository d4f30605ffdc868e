//! The parser of server-sent events (WHATWG HTML, section 9.2), without input or output. Feed it lines, take events.

/// The most that one event may hold; what is beyond is dropped.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its type; `message` where the stream names none.
    pub(crate) name: String,
    /// Its data, several `data` lines joined by line feeds.
    pub(crate) data: String,
}

/// What has been read of the event that is under way.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    name: String,
    data: String,
    any: bool,
}

impl Parser {
    /// Takes one line, with or without its end, and gives an event when the line completes one.
    pub(crate) fn line(&mut self, line: &str) -> Option<Event> {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" if self.data.len() + value.len() < EVENT_BYTES_MAX => {
                if self.any {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.any = true;
            }
            // Comments (an empty field), `id`, `retry` and whatever may come later.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let Parser { name, data, any } = std::mem::take(self);
        any.then(|| Event { name: if name.is_empty() { "message".into() } else { name }, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &str) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let lines = stream.split_inclusive('\n');
        lines.filter_map(|line| parser.line(line)).map(|event| (event.name, event.data)).collect()
    }

    fn pair(name: &str, data: &str) -> (String, String) {
        (name.to_owned(), data.to_owned())
    }

    #[test]
    fn events_end_at_an_empty_line() {
        let stream = "event: log\ndata: {\"a\":1}\n\nevent: dropped\r\ndata:{\"lines\":2}\r\n\r\n";
        assert_eq!(events(stream), [pair("log", "{\"a\":1}"), pair("dropped", "{\"lines\":2}")]);
    }

    #[test]
    fn data_lines_are_joined_and_only_one_space_is_eaten() {
        assert_eq!(events("data:  a\ndata\ndata: b\n\n"), [pair("message", " a\n\nb")]);
    }

    #[test]
    fn comments_unknown_fields_and_unfinished_events_are_ignored() {
        assert_eq!(events(": keep-alive\n\nid: 7\nretry: 1\nx\n\nevent: log\n\ndata: cut"), []);
    }

    #[test]
    fn an_endless_event_does_not_grow_for_ever() {
        let mut parser = Parser::default();
        for _ in 0..40 {
            parser.line(&format!("data: {}", "x".repeat(100_000)));
        }
        assert!(parser.line("").unwrap().data.len() <= EVENT_BYTES_MAX);
    }
}
