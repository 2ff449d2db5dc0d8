//! Messages as JSON, to select their routes and models. Functions get a message as the client sent it.
//!
//! AWS does not document whether API Gateway reads JSON strictly. This module does so, unless `--lenient-json` is
//! given. One recording shows that `{"action":"sendMessage", body:"hello"}`, which has an unquoted key, reached its
//! route.

use jsonc_parser::{ParseOptions, parse_to_serde_value};
use serde::de::IgnoredAny;
use serde_json::Value;

/// Reads a message. Returns `None` if it is not JSON or is nested deeper than 127 levels.
///
/// If `is_lenient` is set, other text is read once more as JSON5: an object or an array of at most 512 levels.
pub(super) fn read(text: &str, is_lenient: bool) -> Option<Value> {
    let value = serde_json::from_str(text).ok().or_else(|| read_nearest(text));
    if is_lenient { value.or_else(|| read_json5(text)) } else { value }
}

/// Reads JSON with numbers or strings that a [`Value`] cannot hold, and replaces them as [`nearest`] says.
///
/// The grammar of JSON allows such numbers and strings. The behaviour of API Gateway is unknown. Inferred: it selects a
/// route for such a message.
fn read_nearest(text: &str) -> Option<Value> {
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    serde_json::from_str(&nearest(text)).ok()
}

/// Replaces each number beyond a double with the largest double, and each half of a surrogate pair with U+FFFD.
fn nearest(json: &str) -> String {
    let mut nearest = String::with_capacity(json.len());
    let (mut rest, mut is_in_string) = (json, false);
    while let Some(character) = rest.chars().next() {
        let (length, replacement) = match character {
            '\\' => match (utf16_unit(rest), rest.get(6..).and_then(utf16_unit)) {
                (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, None),
                (Some(0xd800..=0xdfff), _) => (6, Some(r"\ufffd".to_owned())),
                _ => (2, None),
            },
            '-' | '0'..='9' if !is_in_string => {
                let length = rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(rest.len());
                let is_held = serde_json::from_str::<f64>(&rest[..length]).is_ok();
                let largest = if character == '-' { f64::MIN } else { f64::MAX };
                (length, (!is_held).then(|| format!("{largest:e}")))
            }
            _ => (character.len_utf8(), None),
        };
        is_in_string ^= character == '"';
        let (same, after) = rest.split_at(length);
        nearest.push_str(replacement.as_deref().unwrap_or(same));
        rest = after;
    }
    nearest
}

/// Reads the UTF-16 unit of an escape such as `\ud83d`.
fn utf16_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

fn read_json5(text: &str) -> Option<Value> {
    // By default the parser accepts more than JSON5.
    let options = ParseOptions { allow_missing_commas: false, ..ParseOptions::default() };
    let value: Value = parse_to_serde_value(text, &options).ok()?;
    // The parser reads an empty text or a comment as null.
    (value.is_object() || value.is_array()).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop};
    use proptest::test_runner::{Config, TestCaseError, TestRunner};
    use proptest::{prop_assert_eq, prop_oneof};
    use serde_json::json;

    use super::super::route::SelectionExpression;
    use super::super::settings::MESSAGE_LIMIT;
    use super::*;

    /// Selects the route of a message when every route exists. Like the gateway, it runs in a task, on a worker's stack
    /// of 2 MiB.
    async fn key(expression: &str, text: String) -> Option<String> {
        let expression = SelectionExpression::parse(expression);
        tokio::spawn(async move { expression.select(&text, true, |_| true) }).await.unwrap()
    }

    fn try_all<S: Strategy>(strategy: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
        let config = Config { failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(strategy, check).unwrap_or_else(|harm| panic!("{harm}"));
    }

    #[test]
    fn json5_is_read_only_in_lenient_mode() {
        for (text, expected) in [
            (r#"{"action":"sendMessage", body:"hello"}"#, json!({"action": "sendMessage", "body": "hello"})),
            ("{action: 'a', 'b': 1,}", json!({"action": "a", "b": 1})),
            ("/* one */ {action: 'it\\'s', // two\n}", json!({"action": "it's"})),
            ("{$a_1: [.5, +1, 0x10,],}", json!({"$a_1": [0.5, 1, 16]})),
            ("{action: 'a', action: 'b'}", json!({"action": "b"})),
            ("{action: '[{'}", json!({"action": "[{"})),
        ] {
            assert_eq!(read(text, false), None, "{text}");
            assert_eq!(read(text, true), Some(expected), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_json5_either_is_not_read() {
        for text in
            ["", " ", "hello", "'hello'", "// {}", "{", "{a:1 b:2}", "[1 2]", "{a:b}", "{a:1}}", "{a:1} {b:2}", "{:}"]
        {
            assert_eq!(read(text, true), None, "{text}");
        }
    }

    #[test]
    fn numbers_and_strings_that_a_value_cannot_hold_are_read_as_the_nearest_ones() {
        let long = format!("[-1{},1.5]", "0".repeat(309));
        for (text, expected) in [
            ("1e400", json!(f64::MAX)),
            ("[-1E+400 ]", json!([f64::MIN])),
            (&long, json!([f64::MIN, 1.5])),
            (r#"{"action":"a","body":1e400}"#, json!({"action": "a", "body": f64::MAX})),
            (r#""so happy \ud83d""#, json!("so happy \u{fffd}")),
            (r#"{"\uDC00":["\ud83d\ud83d\ude00x"]}"#, json!({"\u{fffd}": ["\u{fffd}😀x"]})),
            (r#"["\ud83d","1e400","\\ud83d","\"",1e-400]"#, json!(["\u{fffd}", "1e400", "\\ud83d", "\"", 0.0])),
            (r#"["é🦀\n",null,true,1e400]"#, json!(["é🦀\n", null, true, f64::MAX])),
            (r#"{"a":"\ud83d","a":2}"#, json!({"a": 2})),
        ] {
            assert_eq!(read(text, false), Some(expected), "{text}");
        }
        for text in ["[1e400", "[01e400]", "[1e400,]", r#"["\ud83"]"#, "[1e400] x", "[\"\n\",1e400]", "[+1e400]"] {
            assert_eq!(read(text, false), None, "{text}");
        }
        let nested = |levels: usize| format!("{}1e400{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&nested(127), false).is_some() && read(&nested(128), false).is_none());
    }

    #[test]
    fn both_modes_read_strict_json_in_the_same_way() {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        try_all(&value, |value| {
            let text = value.to_string();
            prop_assert_eq!(read(&text, true), Some(value.clone()));
            prop_assert_eq!(nearest(&text), text.as_str());
            prop_assert_eq!(read_json5(&text), (value.is_object() || value.is_array()).then_some(value));
            Ok(())
        });
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        let tokens = prop_oneof![
            prop::sample::select(vec![
                "{", "}", "[", "]", ":", ",", "\"", "'", "\\", "\\u", "\\x", "//", "/*", "*/", "\n", "\u{2028}", "a",
                "é", "-", "+", "0x", ".", "1", "e", "NaN", "Infinity", "null", "true", "\u{feff}", "\0", "\u{d7ff}",
                "1e400", "\\ud83d", "\\udc00",
            ])
            .prop_map(str::to_owned),
            any::<char>().prop_map(String::from),
        ];
        try_all(&vec(tokens, 0..64).prop_map(|tokens| tokens.concat()), |text| {
            read(&text, true);
            Ok(())
        });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn no_message_overflows_the_stack_or_takes_long() {
        let units = [
            "[", "]", "{", "}", "{a:", "{\"a\":[", "[[],", "{a:1,", "[1,", "\"", "'", "\\", "\"\\", "'\\'", "\\u", "/",
            "/*", "*/", "/**/", "//", "//\n", "[//\n", "[/**/", "a", "é", "-", "+", "0", "9", "0x", "1e", ".", ",",
            ":", " ", "\n", "\u{2028}", "\0",
        ];
        for unit in units {
            for before in ["", "[", "{a:", "{a:\"", "{a:'", "//", "/*", "{action:'a',b:"] {
                let text = format!("{before}{}", unit.repeat((MESSAGE_LIMIT - before.len()) / unit.len()));
                let began = Instant::now();
                key("$request.body.action", text).await;
                // A correct reader needs some milliseconds. One whose work is quadratic in the length needs minutes.
                assert!(began.elapsed() < Duration::from_secs(5), "{before}{unit}… took {:?}", began.elapsed());
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn json5_of_512_levels_is_read_and_printed_and_deeper_json5_is_not() {
        let nested = |open: &str, close: &str, levels| format!("{}'x'{}", open.repeat(levels), close.repeat(levels));
        for (open, close) in [("[", "]"), ("{a:", "}")] {
            let printed = nested(open, close, 512).replace('\'', "").replace(':', "=");
            assert_eq!(key("${request.body}", nested(open, close, 512)).await.as_ref(), Some(&printed));
            assert_eq!(key("${request.body}", nested(open, close, 513)).await.as_deref(), Some("$default"));
        }
    }
}
