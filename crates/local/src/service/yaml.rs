//! Converts YAML to JSON, and CloudFormation's short forms to the long ones: `!Ref Table` becomes `{"Ref": "Table"}`.
//!
//! Merge keys (`<<`) are followed, as the Serverless Framework's parser does. Not here: timestamps and binaries, which
//! stay strings.

use saphyr::{LoadableYamlNode, MarkedYaml, Marker, Scalar, YamlData};
use serde_json::{Map, Value};

use super::error::ServiceError;
use super::key_path::{KeyPath, Step};

/// The functions, except `Ref` and `Condition`, with a short form that the framework's parser knows.
const FUNCTIONS: [&str; 17] = [
    "And",
    "Base64",
    "Cidr",
    "Equals",
    "FindInMap",
    "GetAZs",
    "GetAtt",
    "GetStackOutput",
    "If",
    "ImportValue",
    "Join",
    "Not",
    "Or",
    "Select",
    "Split",
    "Sub",
    "Transform",
];

/// Parses the text of `file`. An empty file is null.
pub(super) fn parse(file: &str, text: &str) -> Result<Value, ServiceError> {
    let syntax = |marker: &Marker, reason: String| ServiceError::Syntax {
        file: file.to_owned(),
        line: marker.line(),
        column: marker.col() + 1,
        reason,
    };
    let documents = MarkedYaml::load_from_str(text).map_err(|error| syntax(error.marker(), error.info().to_owned()))?;
    match documents.as_slice() {
        [] => Ok(Value::Null),
        [document] => convert(document).map_err(|(marker, reason)| syntax(&marker, reason)),
        [_, second, ..] => Err(syntax(&second.span.start, "more than one document in a file".to_owned())),
    }
}

/// Returns the line of a key in the text of a file, else the line of the innermost key around it.
pub(super) fn line(text: &str, key: &KeyPath) -> Option<usize> {
    let documents = MarkedYaml::load_from_str(text).ok()?;
    let mut node = documents.first()?;
    let mut line = None;
    for step in &key.0 {
        let (start, child) = match step {
            Step::Key(name) => {
                let mut entries = node.data.as_mapping().into_iter().flatten();
                let Some((key, value)) = entries.find(|(key, _)| key.data.as_str() == Some(name)) else { break };
                (key.span.start, value)
            }
            Step::Index(index) => {
                let Some(item) = node.data.as_sequence().and_then(|items| items.get(*index)) else { break };
                (item.span.start, item)
            }
        };
        line = Some(start.line());
        node = child;
    }
    line
}

fn convert(node: &MarkedYaml<'_>) -> Result<Value, (Marker, String)> {
    let wrong = |reason: String| Err((node.span.start, reason));
    match &node.data {
        YamlData::Value(Scalar::Null) => Ok(Value::Null),
        YamlData::Value(Scalar::Boolean(boolean)) => Ok(Value::Bool(*boolean)),
        YamlData::Value(Scalar::Integer(integer)) => Ok(Value::from(*integer)),
        YamlData::Value(Scalar::FloatingPoint(float)) => Ok(Value::from(float.into_inner())),
        YamlData::Value(Scalar::String(text)) => Ok(Value::from(text.as_ref())),
        YamlData::Sequence(items) => items.iter().map(convert).collect(),
        YamlData::Mapping(_) => mapping(node).map(Value::Object),
        YamlData::Tagged(tag, value) => {
            let value = convert(value)?;
            let name = tag.suffix.as_str();
            match (name, value) {
                _ if tag.handle != "!" => wrong(format!("unknown tag `{tag}`")),
                ("Ref" | "Condition", value) => Ok(function(name, value)),
                ("GetAtt", Value::String(text)) => match text.split_once('.') {
                    Some((id, attribute)) => Ok(function("Fn::GetAtt", Value::from(vec![id, attribute]))),
                    None => wrong(format!("`!GetAtt {text}` lacks an attribute")),
                },
                (_, value) if FUNCTIONS.contains(&name) => Ok(function(&format!("Fn::{name}"), value)),
                _ => wrong(format!("unknown tag `!{name}`")),
            }
        }
        YamlData::Alias(_) | YamlData::BadValue | YamlData::Representation(..) => {
            wrong("a value that does not fit its tag, or an alias without an anchor".to_owned())
        }
    }
}

fn function(name: &str, argument: Value) -> Value {
    Value::Object(Map::from_iter([(name.to_owned(), argument)]))
}

fn mapping(node: &MarkedYaml<'_>) -> Result<Map<String, Value>, (Marker, String)> {
    let mut entries = Map::new();
    let mut merged = Vec::new();
    for (key, value) in node.data.as_mapping().into_iter().flatten() {
        let Value::String(name) = text_key(convert(key)?) else {
            return Err((key.span.start, "a key that is not a text".to_owned()));
        };
        let converted = convert(value)?;
        match (name.as_str(), converted) {
            ("<<", Value::Object(entries)) => merged.push(entries),
            ("<<", Value::Array(items)) if items.iter().all(Value::is_object) => {
                merged.extend(items.into_iter().filter_map(|item| match item {
                    Value::Object(entries) => Some(entries),
                    _ => None,
                }));
            }
            ("<<", _) => return Err((value.span.start, "`<<` merges mappings only".to_owned())),
            (_, converted) => {
                entries.insert(name, converted);
            }
        }
    }
    for (name, value) in merged.into_iter().flatten() {
        entries.entry(name).or_insert(value);
    }
    Ok(entries)
}

/// Converts a key to a text: numbers and booleans are keys too, as in `${self:custom.retention.30}`.
fn text_key(key: Value) -> Value {
    match key {
        Value::Number(_) | Value::Bool(_) => Value::String(key.to_string()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(text: &str) -> String {
        parse("a.yml", text).unwrap_err().to_string()
    }

    #[test]
    fn scalars_keep_their_types_and_quotes_make_text() {
        let parsed = parse("a.yml", "{a: 1, b: '1', c: true, d: 'true', e: ~, f: 1.5, g: 2012-10-17, 7: x}").unwrap();
        let expected =
            json!({"a": 1, "b": "1", "c": true, "d": "true", "e": null, "f": 1.5, "g": "2012-10-17", "7": "x"});
        assert_eq!(parsed, expected);
    }

    #[test]
    fn short_forms_are_written_out() {
        let text = "
a: !Ref Table
b: !GetAtt Table.Arn
c: !GetAtt [Table, Arn]
d: !Sub 'x-${AWS::Region}'
e: !Join ['-', [a, !Ref B]]
f: !Sub ['${X}', {X: 1}]
";
        let expected = json!({
            "a": {"Ref": "Table"},
            "b": {"Fn::GetAtt": ["Table", "Arn"]},
            "c": {"Fn::GetAtt": ["Table", "Arn"]},
            "d": {"Fn::Sub": "x-${AWS::Region}"},
            "e": {"Fn::Join": ["-", ["a", {"Ref": "B"}]]},
            "f": {"Fn::Sub": ["${X}", {"X": 1}]},
        });
        assert_eq!(parse("a.yml", text).unwrap(), expected);
    }

    #[test]
    fn anchors_and_merge_keys_are_followed() {
        let text = "{base: &base {a: 1, b: 2}, one: {<<: *base, b: 3}, two: {<<: [*base, {c: 4}]}}";
        let parsed = parse("a.yml", text).unwrap();
        assert_eq!(parsed["one"], json!({"a": 1, "b": 3}));
        assert_eq!(parsed["two"], json!({"a": 1, "b": 2, "c": 4}));
    }

    #[test]
    fn an_empty_file_is_null() {
        assert_eq!(parse("a.yml", "").unwrap(), Value::Null);
        assert_eq!(parse("a.yml", "# nothing\n").unwrap(), Value::Null);
    }

    #[test]
    fn errors_name_file_line_and_column() {
        assert_eq!(error("a: 1\nb: [1, 2\nc: 3\n"), "a.yml:3:2: illegal placement of ':' indicator");
        assert_eq!(error("a:\n  b: 1\n  b: 2\n"), "a.yml:3:3: duplicated key in mapping");
        assert_eq!(error("a: 1\nb: !Nope x\n"), "a.yml:2:4: unknown tag `!Nope`");
        assert_eq!(error("a: !GetAtt Table\n"), "a.yml:1:4: `!GetAtt Table` lacks an attribute");
        assert_eq!(error("a: 1\n---\nb: 2\n"), "a.yml:3:1: more than one document in a file");
        assert_eq!(error("[a]: 1\n"), "a.yml:1:1: a key that is not a text");
    }
}
