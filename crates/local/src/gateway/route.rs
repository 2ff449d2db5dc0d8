//! Route selection: from the text of a message to the key of its route.
//!
//! This module implements "Working with routes for WebSocket APIs" (route selection expressions). It supports the
//! members and array elements of JSONPath (`.name`, `['name']`, `[0]`), but not filters or wildcards. The only variable
//! is `request.body`. Any other variable is the empty string, and so is a path that finds nothing.

use std::fmt;

use serde_json::Value;

use super::json;

/// The route for messages that no other route takes.
pub(super) const DEFAULT_ROUTE: &str = "$default";

/// A parsed expression that selects a route or a model, for example `$request.body.action`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SelectionExpression(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    /// A path into the body of the message.
    Body(Vec<Step>),
    /// A variable that messages do not have.
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Element(usize),
}

impl SelectionExpression {
    /// Parses an expression. This cannot fail, because everything that is not a variable is text.
    pub(super) fn parse(expression: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = expression;
        while let Some(character) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("\\$") {
                text.push('$');
                rest = after;
                continue;
            }
            let variable = match rest.strip_prefix("${") {
                Some(after) => after.split_once('}'),
                None => rest.strip_prefix('$').map(bare_variable),
            };
            match variable {
                Some((variable, after)) => {
                    parts.extend((!text.is_empty()).then(|| Part::Text(std::mem::take(&mut text))));
                    parts.push(parse_variable(variable));
                    rest = after;
                }
                None => {
                    text.push(character);
                    rest = &rest[character.len_utf8()..];
                }
            }
        }
        parts.extend((!text.is_empty()).then_some(Part::Text(text)));
        Self(parts)
    }

    /// Selects the route of a message from the routes that exist. Returns `None` if no route takes the message.
    pub(super) fn select(&self, body: &str, lenient_json: bool, has_route: impl Fn(&str) -> bool) -> Option<String> {
        self.evaluate(body, lenient_json)
            // A message must not reach the functions of `$connect` and `$disconnect`. This is inferred from the rule
            // that the key of a custom route cannot begin with `$`.
            .filter(|key| !key.starts_with('$') && has_route(key))
            .or_else(|| has_route(DEFAULT_ROUTE).then(|| DEFAULT_ROUTE.to_owned()))
    }

    /// Evaluates the expression. Returns `None` if it needs the body and the body is not JSON.
    pub(super) fn evaluate(&self, body: &str, lenient_json: bool) -> Option<String> {
        let is_static = self.0.iter().all(|part| matches!(part, Part::Text(_)));
        let body = if is_static { Value::Null } else { json::read(body, lenient_json)? };
        let mut key = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::Body(path) => match find(&body, path) {
                    None | Some(Value::Null) => {}
                    Some(value) => key.push_str(&Plain(value).to_string()),
                },
                Part::Unknown => {}
            }
        }
        Some(key)
    }
}

/// Splits after a variable without braces. Its end is not documented. Here it ends before the first character that
/// cannot be part of a path.
fn bare_variable(rest: &str) -> (&str, &str) {
    let belongs = |character: char| character.is_alphanumeric() || "_-.[]'\"".contains(character);
    rest.split_at(rest.find(|character| !belongs(character)).unwrap_or(rest.len()))
}

fn parse_variable(variable: &str) -> Part {
    match variable.strip_prefix("request.body") {
        Some(path) if path.is_empty() || path.starts_with(['.', '[']) => {
            parse_path(path).map_or(Part::Unknown, Part::Body)
        }
        _ => Part::Unknown,
    }
}

fn parse_path(mut path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let (name, rest) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
            steps.push(Step::Member(name.to_owned()));
            path = rest;
        } else {
            let (inside, rest) = path.strip_prefix('[')?.split_once(']')?;
            steps.push(match inside.trim_matches(['\'', '"']) {
                name if name.len() < inside.len() => Step::Member(name.to_owned()),
                index => Step::Element(index.parse().ok()?),
            });
            path = rest;
        }
    }
    Some(steps)
}

fn find<'a>(body: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(body, |value, step| match step {
        Step::Member(name) => value.get(name),
        Step::Element(index) => value.get(index),
    })
}

/// A value as an expression prints it. The form `[item1, item2]` of an array is documented. The form `{key=value}` of
/// an object is inferred from it, because Java prints a map so.
struct Plain<'a>(&'a Value);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if index > 0 { ", " } else { "" }, Plain(item))?;
                }
                f.write_str("]")
            }
            Value::Object(members) => {
                f.write_str("{")?;
                for (index, (name, value)) in members.iter().enumerate() {
                    write!(f, "{}{name}={}", if index > 0 { ", " } else { "" }, Plain(value))?;
                }
                f.write_str("}")
            }
            scalar => write!(f, "{scalar}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(expression: &str, body: &str) -> Option<String> {
        SelectionExpression::parse(expression).evaluate(body, false)
    }

    #[test]
    fn expressions_evaluate_as_the_guide_prints_them() {
        let body = r#"{"service":"chat","action":"join","data":{"room":"room1234","tags":["item1","item2"]}}"#;
        for (expression, expected) in [
            ("$request.body.action", "join"),
            ("${request.body.action}", "join"),
            ("${request.body.service}/${request.body.action}", "chat/join"),
            ("$request.body.service/$request.body.action", "chat/join"),
            ("${request.body.action}-${request.body.invalidPath}", "join-"),
            ("action", "action"),
            ("\\$default", "$default"),
            ("$request.body.data.room", "room1234"),
            ("$request.body.data.tags", "[item1, item2]"),
            ("$request.body.data.tags[1]", "item2"),
            ("$request.body['data']['room']", "room1234"),
            ("$request.header.action", ""),
            ("${context.stage}", ""),
            ("${request.body.action", "${request.body.action"),
        ] {
            assert_eq!(evaluate(expression, body).as_deref(), Some(expected), "{expression}");
        }
    }

    #[test]
    fn values_that_are_not_strings_are_printed() {
        for (value, expected) in [
            ("1", "1"),
            ("true", "true"),
            ("null", ""),
            (r#"["a",1,null]"#, "[a, 1, null]"),
            (r#"{"b":1,"a":"x"}"#, "{a=x, b=1}"),
        ] {
            let body = format!(r#"{{"action":{value}}}"#);
            assert_eq!(evaluate("$request.body.action", &body).as_deref(), Some(expected), "{value}");
        }
    }

    #[test]
    fn a_message_that_is_not_json_has_no_value() {
        for body in ["", "hello", r#"{"action":"sendMessage", body:"x"}"#] {
            assert_eq!(evaluate("$request.body.action", body), None, "{body}");
            assert_eq!(evaluate("static", body).as_deref(), Some("static"), "{body}");
        }
    }

    #[test]
    fn a_message_selects_the_route_of_its_exact_key_else_the_default() {
        let routes = ["$connect", "$disconnect", "$default", "sendMessage", "1", "[a, b]"];
        let expression = SelectionExpression::parse("$request.body.action");
        for (body, expected) in [
            (r#"{"action":"sendMessage"}"#, "sendMessage"),
            (r#"{"action":"a","action":"sendMessage"}"#, "sendMessage"),
            (r#"{"action":1}"#, "1"),
            (r#"{"action":["a","b"]}"#, "[a, b]"),
            (r#"{"action":"sendMessage","destinationUserId":"2","body":1e400}"#, "sendMessage"),
            (r#"{"action":"sendMessage","body":{"\ud83d":"\udc00"}}"#, "sendMessage"),
            (r#"{"action":"sendMessage","\ud83d":1}"#, "sendMessage"),
            (r#"{"action":"sendMessage\ud83d"}"#, "$default"),
            (r#"{"action":1e400}"#, "$default"),
            (r#"{"action":"SendMessage"}"#, "$default"),
            (r#"{"action":"unknown"}"#, "$default"),
            (r#"{"action":""}"#, "$default"),
            (r#"{"action":null}"#, "$default"),
            (r#"{"action":"$connect"}"#, "$default"),
            (r#"{"action":"$disconnect"}"#, "$default"),
            (r#"{"action":"$default"}"#, "$default"),
            (r#"{"foo":1}"#, "$default"),
            ("hello", "$default"),
            ("", "$default"),
            ("42", "$default"),
            ("[1,2]", "$default"),
            (r#""x""#, "$default"),
            ("true", "$default"),
        ] {
            assert_eq!(
                expression.select(body, false, |key| routes.contains(&key)).as_deref(),
                Some(expected),
                "{body}"
            );
        }
        assert_eq!(expression.select("hello", false, |key| key == "sendMessage"), None);
    }
}
