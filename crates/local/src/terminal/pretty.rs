//! Log lines for people: one line in columns for each line of JSON that a function writes.
//!
//! ```text
//! 14:24:04.685 default     INFO  served route.key=$default outcome=ok duration_ms=9.885 request.id=ZhJKMsSdEACi8t8=
//! ```

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::{Map, Value};

use super::escape::escaped;

/// The fields that come first, in this order.
const FIRST: [&str; 6] = ["route.key", "connection.id", "topic.name", "outcome", "duration_ms", "error"];

/// The field that comes last.
const LAST: &str = "request.id";

/// The width of the names of the stack's own parts, the longest one being `dynamodb`.
const MIN_NAME_WIDTH: usize = 8;

/// A longer name moves the columns of its own lines only.
const MAX_NAME_WIDTH: usize = 24;

const NONE: Style = Style::new();
const DIM: Style = Style::new().dimmed();
const NAME: Style = AnsiColor::Cyan.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DURATION: Style = Style::new().bold();
const COLD_START: Style = AnsiColor::Magenta.on_default().bold();

/// The layout of lines for people.
#[derive(Debug)]
pub(super) struct Pretty {
    name_width: usize,
    is_coloured: bool,
}

impl Pretty {
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>, is_coloured: bool) -> Self {
        let longest = names.into_iter().map(|name| name.chars().count()).max().unwrap_or_default();
        Self { name_width: longest.clamp(MIN_NAME_WIDTH, MAX_NAME_WIDTH), is_coloured }
    }

    /// Formats a line of text.
    pub(super) fn line(&self, now: &Zoned, name: &str, text: &str) -> String {
        format!("{} {}", self.start(now, name, ""), escaped(text))
    }

    /// Formats the note that a new process is ready.
    pub(super) fn cold_start(&self, now: &Zoned, name: &str, init: Duration) -> String {
        let mark = self.paint(COLD_START, "cold start");
        format!("{} {mark} init_ms={}", self.start(now, name, ""), self.paint(DURATION, &init.as_millis().to_string()))
    }

    /// Formats a line that a function wrote. Returns `None` for metrics in CloudWatch's embedded metric format: they
    /// are not for people, and the log has a line of its own for each event.
    pub(super) fn function_line(&self, now: &Zoned, name: &str, text: &str) -> Option<String> {
        let Ok(Value::Object(object)) = serde_json::from_str(text) else {
            return Some(self.line(now, name, text));
        };
        if object.contains_key("_aws") {
            return None;
        }
        let mut fields = flat(object);
        let level = take(&mut fields, "level");
        let message = take(&mut fields, "message");
        if level.is_none() && message.is_none() {
            // Any JSON that is not a log line.
            return Some(self.line(now, name, text));
        }
        let written = take_time(&mut fields, now.time_zone());
        let level = level.map(|level| shown(&level)).unwrap_or_default();
        let mut line = self.start(written.as_ref().unwrap_or(now), name, &level);
        if let Some(message) = message {
            let text = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            line = format!("{line} {}", escaped(&text));
        }
        for (field, value) in in_order(fields) {
            let value = shown(&value);
            let style = match field.as_str() {
                "outcome" if value == "ok" => GOOD,
                "outcome" => WARNING,
                "error" => BAD,
                "duration_ms" => DURATION,
                _ => NONE,
            };
            let label = self.paint(DIM, &format!("{}=", escaped(&field)));
            line = format!("{line} {label}{}", self.paint(style, &escaped(&value)));
        }
        Some(line)
    }

    /// Formats the columns in front of the text. A line without a level has an empty column for it.
    fn start(&self, time: &Zoned, name: &str, level: &str) -> String {
        let style = match level {
            "ERROR" | "FATAL" => BAD,
            "WARN" => WARNING,
            "INFO" => GOOD,
            _ => DIM,
        };
        let time = self.paint(DIM, &time.strftime("%H:%M:%S%.3f").to_string());
        let name = self.paint(NAME, &format!("{:<width$}", escaped(name), width = self.name_width));
        format!("{time} {name} {}", self.paint(style, &format!("{:<5}", escaped(level))))
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.is_coloured { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// Returns the fields of a log line, without those that are null. `tracing` writes most of them as an object `fields`.
fn flat(object: Map<String, Value>) -> Vec<(String, Value)> {
    let fields = object.into_iter().flat_map(|(name, value)| match value {
        Value::Object(fields) if name == "fields" => fields.into_iter().collect(),
        value => vec![(name, value)],
    });
    fields.filter(|(_, value)| !value.is_null()).collect()
}

fn take(fields: &mut Vec<(String, Value)>, name: &str) -> Option<Value> {
    let index = fields.iter().position(|(field, _)| field == name)?;
    Some(fields.remove(index).1)
}

/// Takes the time at which the function wrote the line. A time in another form stays among the fields.
fn take_time(fields: &mut Vec<(String, Value)>, time_zone: &TimeZone) -> Option<Zoned> {
    let (_, value) = fields.iter().find(|(field, _)| field == "timestamp")?;
    let time: Timestamp = value.as_str()?.parse().ok()?;
    take(fields, "timestamp");
    Some(time.to_zoned(time_zone.clone()))
}

/// Sorts the fields: those of [`FIRST`], then those of the line in its own order, then [`LAST`].
fn in_order(mut fields: Vec<(String, Value)>) -> Vec<(String, Value)> {
    fields.sort_by_key(|(name, _)| match FIRST.iter().position(|first| first == name) {
        Some(index) => index,
        None if name == LAST => FIRST.len() + 1,
        None => FIRST.len(),
    });
    fields
}

/// Returns a value as it is shown: a string of one word without quotes, everything else as JSON.
fn shown(value: &Value) -> String {
    let is_word = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '"' || c == '\\');
    match value {
        Value::String(text) if is_word(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Pretty = Pretty { name_width: 8, is_coloured: false };

    fn now() -> Zoned {
        "2026-01-02T13:04:05.006+01:00[+01:00]".parse().unwrap()
    }

    #[test]
    fn a_line_of_json_becomes_a_line_for_people() {
        for (raw, pretty) in [
            // As `tracing` writes them.
            (
                r#"{"level":"INFO","fields":{"message":"served","request.id":"r=","invocation.id":"i","duration_ms":9.885,"outcome":"ok","topic.name":"general","connection.id":"c=","route.key":"$connect"}}"#,
                "INFO  served route.key=$connect connection.id=c= topic.name=general outcome=ok duration_ms=9.885 invocation.id=i request.id=r=",
            ),
            (
                r#"{"level":"ERROR","fields":{"message":"failed","error":"no table: \"x\"\nand more","reason":null}}"#,
                r#"ERROR failed error="no table: \"x\"\nand more""#,
            ),
            // The form of Lambda's own JSON, with a time in UTC.
            (
                r#"{"timestamp":"2026-01-02T09:00:00.5Z","level":"WARN","message":"slow","requestId":"r"}"#,
                "09:00 WARN  slow requestId=r",
            ),
            (r#"{"timestamp":"today","message":"hi"}"#, "      hi timestamp=today"),
            // All of the fields are there, also the nested ones.
            (
                r#"{"level":"DEBUG","message":{"a":1},"span":{"name":"s"},"empty":"","n":-1,"list":[1,"b"],"yes":true}"#,
                r#"DEBUG {"a":1} span={"name":"s"} empty="" n=-1 list=[1,"b"] yes=true"#,
            ),
            (r#"{"level":"INFO"}"#, "INFO "),
            (r#"{"level":"INFO","fields":{"message":""}}"#, "INFO  "),
            // Neither a log line nor a metric.
            (r#"{"event":{"a":null}}"#, r#"      {"event":{"a":null}}"#),
            (r#"{"level":null,"a":1}"#, r#"      {"level":null,"a":1}"#),
            (r#"["level"]"#, r#"      ["level"]"#),
            (r#"{"level":"INFO","fields":{"mess"#, r#"      {"level":"INFO","fields":{"mess"#),
            ("thread 'main' panicked", "      thread 'main' panicked"),
            ("", "      "),
        ] {
            let line = PLAIN.function_line(&now(), "f", raw).unwrap();
            let expected = match pretty.strip_prefix("09:00 ") {
                Some(pretty) => format!("10:00:00.500 f        {pretty}"),
                None => format!("13:04:05.006 f        {pretty}"),
            };
            let (line, expected) = (sorted(&line), sorted(&expected));
            assert_eq!(line, expected, "{raw}");
        }
    }

    /// The order of further fields is that of `serde_json`, which depends on a feature that other crates may turn on.
    fn sorted(line: &str) -> String {
        if !line.contains("span=") {
            return line.to_owned();
        }
        let mut words: Vec<_> = line.split(' ').collect();
        words.sort_unstable();
        words.join(" ")
    }

    #[test]
    fn metrics_are_not_shown() {
        let metric = r#"{"ColdStart":1,"Function":"f","_aws":{"Timestamp":1}}"#;
        assert_eq!(PLAIN.function_line(&now(), "f", metric), None);
    }

    #[test]
    fn a_terminal_obeys_nothing_that_a_function_writes() {
        for raw in [
            "\x1b[2J\u{9b}\u{202e}",
            r#"{"level":"\u001b[2J","message":"\u001b[2J\u009b\n"}"#,
            r#"{"message":"\u202e","a\u001b\n":"\u001b\u009b","error":"\r\n\u202e","b":{"\u009b":"\u2028"}}"#,
        ] {
            let line = PLAIN.function_line(&now(), "f\x1b", raw).unwrap();
            let is_obeyed = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}');
            assert!(!line.contains(is_obeyed), "{line:?}");
        }
    }

    #[test]
    fn colours_change_no_text() {
        let coloured = Pretty { name_width: 8, is_coloured: true };
        let raw = r#"{"level":"ERROR","message":"failed","outcome":"x","error":"\u001b[2J no","duration_ms":1}"#;
        let line = coloured.function_line(&now(), "f", raw).unwrap();
        assert!(line.contains("\x1b[1m\x1b[31mERROR\x1b[0m"), "{line:?}");
        assert!(line.contains("\x1b[33mx\x1b[0m"), "{line:?}");
        let mut stripped = String::new();
        for (index, part) in line.split('\x1b').enumerate() {
            stripped += if index == 0 { part } else { part.split_once('m').unwrap().1 };
        }
        assert_eq!(stripped, PLAIN.function_line(&now(), "f", raw).unwrap());
    }

    #[test]
    fn names_are_in_a_column() {
        let pretty = Pretty::new(["connect", "sendMessage"], false);
        assert_eq!(pretty.line(&now(), "gateway", "hi"), "13:04:05.006 gateway           hi");
        assert_eq!(
            pretty.function_line(&now(), "sendMessage", r#"{"level":"INFO","message":"hi"}"#).unwrap(),
            "13:04:05.006 sendMessage INFO  hi"
        );
        let start = pretty.cold_start(&now(), "connect", Duration::from_micros(38_900));
        assert_eq!(start, "13:04:05.006 connect           cold start init_ms=38");
    }
}
