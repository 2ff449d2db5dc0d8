//! The filter criteria of a mapping. They select the records that its function gets.
//!
//! Implements ["Control which events Lambda sends to your
//! function"](https://docs.aws.amazon.com/lambda/latest/dg/invocation-eventfiltering.html) and "Using event filtering
//! with a DynamoDB event source": a record passes when one pattern matches it. Every field of a pattern must match, and
//! one entry of each field's list must match. A pattern checks every element of a list in the record.
//!
//! `numeric` is refused. AWS documents that it does not work, because a record has DynamoDB's numbers as texts.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The most patterns of a mapping. AWS allows five, and ten on request.
const MAX_PATTERNS: usize = 10;

/// The key, in the place of a field's name, for a list of patterns. At least one of them must match.
const OR: &str = "$or";

/// The patterns of one mapping. Without patterns, every record passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<Pattern>);

impl Filter {
    /// Returns the number of patterns.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether the function gets this record, which is an element of `Records`.
    pub(super) fn passes(&self, record: &Value) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.matches(Some(record), &[record]))
    }
}

/// Fields that must all match.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    fields: Vec<(String, Field)>,
    /// Patterns under `$or`. If there are any, at least one must match as well.
    alternatives: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Nested(Pattern),
    /// Tests of a value. At least one must hold.
    Leaf(Vec<Test>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equals(Value),
    /// The text in lower case.
    EqualsIgnoreCase(String),
    Prefix(String),
    Suffix(String),
    AnythingBut(Vec<Value>),
    Exists(bool),
}

impl Pattern {
    /// `all` are the values at this place of the record; there are several if a list is on the way. `one` is one of
    /// these: all fields must match it together.
    fn matches(&self, one: Option<&Value>, all: &[&Value]) -> bool {
        let field_matches = |(name, field): &(String, Field)| {
            let all: Vec<_> = all.iter().filter_map(|value| value.get(name)).flat_map(elements).collect();
            let ones = one.and_then(|value| value.get(name)).map(elements).unwrap_or_default();
            match field {
                Field::Nested(pattern) if ones.is_empty() => pattern.matches(None, &all),
                Field::Nested(pattern) => ones.iter().any(|one| pattern.matches(Some(one), &all)),
                Field::Leaf(tests) => tests.iter().any(|test| match test {
                    Test::Exists(false) => all.iter().all(|value| value.is_object()),
                    test => ones.iter().any(|one| !one.is_object() && test.holds(one)),
                }),
            }
        };
        self.fields.iter().all(field_matches)
            && (self.alternatives.is_empty() || self.alternatives.iter().any(|pattern| pattern.matches(one, all)))
    }
}

impl Test {
    fn holds(&self, leaf: &Value) -> bool {
        let text = leaf.as_str();
        match self {
            Self::Equals(value) => value == leaf,
            Self::EqualsIgnoreCase(value) => text.is_some_and(|text| text.to_lowercase() == *value),
            Self::Prefix(prefix) => text.is_some_and(|text| text.starts_with(prefix)),
            Self::Suffix(suffix) => text.is_some_and(|text| text.ends_with(suffix)),
            Self::AnythingBut(values) => !values.contains(leaf),
            Self::Exists(expected) => *expected,
        }
    }
}

/// Returns the elements of a list and of the lists in it, or the value itself.
fn elements(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().flat_map(elements).collect(),
        value => vec![value],
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let patterns = Vec::deserialize(deserializer)?;
        match patterns.len() {
            1..=MAX_PATTERNS => Ok(Self(patterns)),
            count => Err(D::Error::custom(format!("expected 1 to {MAX_PATTERNS} patterns, found {count}"))),
        }
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Pattern;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pattern, A::Error> {
                let mut pattern = Pattern { fields: Vec::new(), alternatives: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == OR {
                        pattern.alternatives = map.next_value()?;
                        if pattern.alternatives.is_empty() {
                            return Err(A::Error::custom("the list is empty"));
                        }
                    } else {
                        pattern.fields.push((name, map.next_value()?));
                    }
                }
                if pattern.fields.is_empty() && pattern.alternatives.is_empty() {
                    return Err(A::Error::custom("the pattern has no field"));
                }
                Ok(pattern)
            }
        }

        deserializer.deserialize_any(Fields)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of values, or a mapping of fields")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
                let mut tests = Vec::new();
                while let Some(test) = list.next_element()? {
                    tests.push(test);
                }
                if tests.is_empty() {
                    return Err(A::Error::custom("the list is empty"));
                }
                Ok(Field::Leaf(tests))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Field, A::Error> {
                Pattern::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Field::Nested)
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

impl<'de> Deserialize<'de> for Test {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueOrOperator;

        impl<'de> Visitor<'de> for ValueOrOperator {
            type Value = Test;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, a boolean, null, or a mapping with one operator")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Test, E> {
                Ok(Test::Equals(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Test, E> {
                Ok(Test::Equals(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Test, E> {
                Ok(Test::Equals(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Test, E> {
                Ok(Test::Equals(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Test, E> {
                Ok(Test::Equals(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Test, E> {
                Ok(Test::Equals(Value::Null))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Test, A::Error> {
                let one = || A::Error::custom("expected a mapping with one operator");
                let test = match map.next_key()?.ok_or_else(one)? {
                    Operator::AnythingBut => Test::AnythingBut(map.next_value::<Scalars>()?.0),
                    Operator::EqualsIgnoreCase => Test::EqualsIgnoreCase(map.next_value::<String>()?.to_lowercase()),
                    Operator::Exists => Test::Exists(map.next_value()?),
                    Operator::Prefix => Test::Prefix(map.next_value()?),
                    Operator::Suffix => Test::Suffix(map.next_value()?),
                    Operator::Numeric => {
                        return Err(A::Error::custom("`numeric` does not work on DynamoDB, whose numbers are texts"));
                    }
                };
                if map.next_key::<String>()?.is_some() {
                    return Err(one());
                }
                Ok(test)
            }
        }

        deserializer.deserialize_any(ValueOrOperator)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Operator {
    AnythingBut,
    EqualsIgnoreCase,
    Exists,
    Numeric,
    Prefix,
    Suffix,
}

/// A text or a number, or a list of them.
struct Scalars(Vec<Value>);

impl<'de> Deserialize<'de> for Scalars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match Value::deserialize(deserializer)? {
            Value::Array(values) => values,
            value => vec![value],
        };
        if values.is_empty() || !values.iter().all(|value| value.is_string() || value.is_number()) {
            return Err(D::Error::custom("expected a list of texts or numbers"));
        }
        Ok(Self(values))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn filter(patterns: &Value) -> Filter {
        serde_json::from_value(patterns.clone()).unwrap_or_else(|error| panic!("{patterns}: {error}"))
    }

    #[test]
    fn a_record_passes_when_a_pattern_matches_it() {
        let insert = json!({
            "eventName": "INSERT",
            "dynamodb": {
                "Keys": {"id": {"S": "Polly"}},
                "NewImage": {
                    "id": {"S": "Polly"},
                    "weight": {"N": "300"},
                    "tame": {"BOOL": true},
                    "owner": {"NULL": true},
                    "name": {"S": ""},
                    "foods": {"L": [{"S": "nuts"}, {"S": "figs"}, {"N": "7"}]},
                    "colours": {"SS": ["green", "red"]},
                    "chicks": {"L": [
                        {"M": {"name": {"S": "Ann"}, "sex": {"S": "f"}}},
                        {"M": {"name": {"S": "Bob"}, "sex": {"S": "m"}}},
                    ]},
                },
                "SizeBytes": 59,
            },
            "nothing": null,
        });
        let image = |fields: Value| json!([{"dynamodb": {"NewImage": fields}}]);
        for (patterns, expected) in [
            // Values.
            (json!([{"eventName": ["INSERT"]}]), true),
            (json!([{"eventName": ["insert"]}]), false),
            (json!([{"eventName": ["REMOVE", "INSERT"]}]), true),
            (json!([{"eventName": ["MODIFY", "REMOVE"]}]), false),
            (image(json!({"tame": {"BOOL": [true]}})), true),
            (image(json!({"tame": {"BOOL": [false]}})), false),
            (image(json!({"tame": {"BOOL": ["true"]}})), false),
            (image(json!({"weight": {"N": ["300"]}})), true),
            (image(json!({"weight": {"N": [300]}})), false),
            (image(json!({"weight": {"N": ["300.0"]}})), false),
            (json!([{"dynamodb": {"SizeBytes": [59]}}]), true),
            (json!([{"dynamodb": {"SizeBytes": [59.0]}}]), false),
            (image(json!({"name": {"S": [""]}})), true),
            (json!([{"nothing": [null]}]), true),
            (json!([{"eventName": [null]}]), false),
            (json!([{"absent": [null]}]), false),
            // Fields are joined by and, patterns and $or by or.
            (json!([{"eventName": ["INSERT"], "dynamodb": {"Keys": {"id": {"S": ["Polly"]}}}}]), true),
            (json!([{"eventName": ["INSERT"], "dynamodb": {"Keys": {"id": {"S": ["Molly"]}}}}]), false),
            (json!([{"eventName": ["REMOVE"]}, {"eventName": ["INSERT"]}]), true),
            (json!([{"$or": [{"eventName": ["REMOVE"]}, {"dynamodb": {"SizeBytes": [59]}}]}]), true),
            (json!([{"$or": [{"eventName": ["REMOVE"]}, {"dynamodb": {"SizeBytes": [60]}}]}]), false),
            (json!([{"eventName": ["REMOVE"], "$or": [{"dynamodb": {"SizeBytes": [59]}}]}]), false),
            // Operators.
            (image(json!({"id": {"S": [{"prefix": "Pol"}]}})), true),
            (image(json!({"id": {"S": [{"prefix": "pol"}]}})), false),
            (image(json!({"id": {"S": [{"suffix": "lly"}]}})), true),
            (image(json!({"id": {"S": [{"suffix": "Pol"}]}})), false),
            (json!([{"dynamodb": {"SizeBytes": [{"prefix": "5"}]}}]), false),
            (image(json!({"id": {"S": [{"equals-ignore-case": "pOLLY"}]}})), true),
            (image(json!({"id": {"S": [{"equals-ignore-case": "poll"}]}})), false),
            (image(json!({"id": {"S": [{"anything-but": ["Molly", "Dolly"]}]}})), true),
            (image(json!({"id": {"S": [{"anything-but": ["Molly", "Polly"]}]}})), false),
            (image(json!({"id": {"S": [{"anything-but": "Molly"}]}})), true),
            (image(json!({"absent": {"S": [{"anything-but": ["Molly"]}]}})), false),
            (image(json!({"id": {"S": [{"prefix": "Mol"}, "Polly"]}})), true),
            // Exists looks at leaves only.
            (image(json!({"id": {"S": [{"exists": true}]}})), true),
            (image(json!({"id": {"S": [{"exists": false}]}})), false),
            (image(json!({"absent": {"S": [{"exists": true}]}})), false),
            (image(json!({"absent": {"S": [{"exists": false}]}})), true),
            (image(json!({"id": [{"exists": true}]})), false),
            (image(json!({"id": [{"exists": false}]})), true),
            (json!([{"dynamodb": {"OldImage": {"id": {"S": [{"exists": false}]}}}}]), true),
            (json!([{"nothing": [{"exists": true}]}]), true),
            (image(json!({"absent": {"S": [{"exists": false}, "x"]}})), true),
            // Every element of a list counts.
            (image(json!({"foods": {"L": {"S": ["figs"]}}})), true),
            (image(json!({"foods": {"L": {"S": ["rice"]}}})), false),
            (image(json!({"foods": {"L": {"S": [{"exists": true}]}}})), true),
            (image(json!({"foods": {"L": {"N": [{"exists": false}]}}})), false),
            (image(json!({"foods": {"L": {"B": [{"exists": false}]}}})), true),
            (image(json!({"colours": {"SS": ["red"]}})), true),
            (image(json!({"colours": {"SS": [{"prefix": "blu"}]}})), false),
            (image(json!({"chicks": {"L": {"M": {"name": {"S": ["Bob"]}, "sex": {"S": ["m"]}}}}})), true),
            (image(json!({"chicks": {"L": {"M": {"name": {"S": ["Bob"]}, "sex": {"S": ["f"]}}}}})), false),
        ] {
            assert_eq!(filter(&patterns).passes(&insert), expected, "{patterns}");
        }
        assert!(Filter::default().passes(&insert));
    }

    #[test]
    fn patterns_that_aws_does_not_document_are_refused() {
        let many: Vec<_> = (0..11).map(|_| json!({"eventName": ["INSERT"]})).collect();
        for (patterns, expected) in [
            (json!([]), "expected 1 to 10 patterns, found 0"),
            (json!(many), "expected 1 to 10 patterns, found 11"),
            (json!([{}]), "the pattern has no field"),
            (json!(["INSERT"]), "invalid type: string \"INSERT\", expected a mapping of fields"),
            (json!([{"a": "x"}]), "invalid type: string \"x\", expected a list of values, or a mapping of fields"),
            (json!([{"a": []}]), "the list is empty"),
            (json!([{"a": {}}]), "the pattern has no field"),
            (json!([{"$or": []}]), "the list is empty"),
            (
                json!([{"a": [["x"]]}]),
                "invalid type: sequence, expected a text, a number, a boolean, null, or a mapping",
            ),
            (json!([{"a": [{}]}]), "expected a mapping with one operator"),
            (json!([{"a": [{"prefix": "x", "suffix": "y"}]}]), "expected a mapping with one operator"),
            (json!([{"a": [{"wildcard": "x*"}]}]), "unknown variant `wildcard`, expected one of `anything-but`"),
            (json!([{"a": [{"numeric": ["=", 1]}]}]), "`numeric` does not work on DynamoDB, whose numbers are texts"),
            (json!([{"a": [{"prefix": 1}]}]), "invalid type: integer `1`, expected a string"),
            (json!([{"a": [{"exists": "true"}]}]), "invalid type: string \"true\", expected a boolean"),
            (json!([{"a": [{"anything-but": []}]}]), "expected a list of texts or numbers"),
            (json!([{"a": [{"anything-but": {"prefix": "x"}}]}]), "expected a list of texts or numbers"),
        ] {
            let error = serde_json::from_value::<Filter>(patterns.clone()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{patterns}: {error}");
        }
    }
}
