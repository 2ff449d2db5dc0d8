//! The [intrinsic
//! functions](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/intrinsic-function-reference.html)
//! `Ref`, `Fn::GetAtt`, `Fn::Sub`, `Fn::Join` and `Fn::If`, and the conditions of templates.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::Problem;
use super::key_path::{KeyPath, Placed, parts};
use super::resources::Resources;

/// Evaluates intrinsic functions.
#[derive(Debug)]
pub(super) struct Intrinsics {
    pub(super) resources: Resources,
    /// The conditions by name.
    pub(super) conditions: BTreeMap<String, Placed>,
}

impl Intrinsics {
    /// Evaluates a value to a text. Numbers and booleans become texts.
    pub(super) fn text(&self, value: &Value, at: &KeyPath) -> Result<String, Problem> {
        match self.evaluate(value, at)? {
            Value::String(text) => Ok(text),
            scalar @ (Value::Number(_) | Value::Bool(_)) => Ok(scalar.to_string()),
            Value::Null => Err(Problem::new(at, "expected a text, a number or a boolean, found nothing")),
            Value::Array(_) => Err(Problem::new(at, "expected a text, a number or a boolean, found a list")),
            Value::Object(_) => Err(Problem::new(at, "expected a text, a number or a boolean, found a mapping")),
        }
    }

    /// Does the same as [`Self::text`], but returns `None` for `AWS::NoValue`.
    pub(super) fn optional_text(&self, value: &Value, at: &KeyPath) -> Result<Option<String>, Problem> {
        self.optional(value, at)?.map(|value| self.text(&value, at)).transpose()
    }

    /// Evaluates a text of a resource that is read leniently. Returns `None` for `AWS::NoValue`.
    pub(super) fn lenient_text(&self, value: &Value, at: &KeyPath) -> Result<Option<String>, Problem> {
        match self.optional_text(value, at)? {
            // This is a variable of the framework without a value.
            Some(text) if text.contains("${") => Err(Problem::new(at, format!("`{text}` has no value"))),
            text => Ok(text),
        }
    }

    /// Evaluates a boolean of a resource that is read leniently. `AWS::NoValue` is false.
    pub(super) fn boolean(&self, value: &Value, at: &KeyPath) -> Result<bool, Problem> {
        match self.lenient_text(value, at)?.as_deref() {
            Some("true") => Ok(true),
            Some("false") | None => Ok(false),
            Some(other) => Err(Problem::new(at, format!("`{other}` is neither true nor false"))),
        }
    }

    /// Evaluates a list and returns its elements, without those that are `AWS::NoValue`. A single value counts as a
    /// list.
    pub(super) fn list(&self, value: &Value, at: &KeyPath) -> Result<Vec<Placed>, Problem> {
        let value = if value.is_null() { Value::Array(Vec::new()) } else { self.evaluate(value, at)? };
        Ok(parts(&value, at).into_iter().map(|(part, at)| (part.clone(), at)).collect())
    }

    /// Replaces the intrinsic functions in `value` by their results.
    pub(super) fn evaluate(&self, value: &Value, at: &KeyPath) -> Result<Value, Problem> {
        self.optional(value, at)?.ok_or_else(|| Problem::new(at, "`AWS::NoValue` cannot stand here"))
    }

    /// Does the same as [`Self::evaluate`], but returns `None` for `AWS::NoValue`, which disappears from lists and
    /// mappings.
    pub(super) fn optional(&self, value: &Value, at: &KeyPath) -> Result<Option<Value>, Problem> {
        match value {
            Value::Object(entries) => match call(entries) {
                Some(("Ref", Value::String(id))) if id == "AWS::NoValue" => Ok(None),
                Some(("Fn::If", argument)) => self.choose(argument, &at.key("Fn::If")),
                Some((name, argument)) => self.call(name, argument, &at.key(name)).map(|text| Some(text.into())),
                None => {
                    let entry = |(key, value): (&String, &Value)| {
                        let value = self.optional(value, &at.key(key)).transpose()?;
                        Some(value.map(|value| (key.clone(), value)))
                    };
                    entries.iter().filter_map(entry).collect::<Result<_, _>>().map(|it| Some(Value::Object(it)))
                }
            },
            Value::Array(items) => {
                let item = |(index, item)| self.optional(item, &at.index(index)).transpose();
                items.iter().enumerate().filter_map(item).collect::<Result<_, _>>().map(|it| Some(Value::Array(it)))
            }
            scalar => Ok(Some(scalar.clone())),
        }
    }

    /// Evaluates `Fn::If`.
    fn choose(&self, argument: &Value, at: &KeyPath) -> Result<Option<Value>, Problem> {
        match argument.as_array().map(Vec::as_slice) {
            Some([Value::String(condition), then, otherwise]) => {
                let holds = self.condition(condition, at)?;
                let (value, index) = if holds { (then, 1) } else { (otherwise, 2) };
                self.optional(value, &at.index(index))
            }
            _ => Err(Problem::new(at, "expected a condition and two values")),
        }
    }

    /// Tells whether a condition of the templates holds.
    pub(super) fn condition(&self, name: &str, at: &KeyPath) -> Result<bool, Problem> {
        self.condition_within(name, at, self.conditions.len())
    }

    /// Does the same as [`Self::condition`]. More than `depth` references from one condition to the next are a circle.
    fn condition_within(&self, name: &str, at: &KeyPath, depth: usize) -> Result<bool, Problem> {
        let unknown = || Problem::new(at, format!("the stack has no condition `{name}`"));
        let (condition, at) = self.conditions.get(name).ok_or_else(unknown)?;
        let depth = depth.checked_sub(1).ok_or_else(|| Problem::new(at, "the condition leads back to itself"))?;
        self.holds(condition, at, depth)
    }

    fn holds(&self, condition: &Value, at: &KeyPath, depth: usize) -> Result<bool, Problem> {
        let call = condition.as_object().and_then(|entries| entries.iter().next().filter(|_| entries.len() == 1));
        let Some((function, argument)) = call else { return Err(Problem::new(at, "expected a condition")) };
        let at = at.key(function);
        let arguments = argument.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut each = arguments.iter().enumerate().map(|(index, it)| self.holds(it, &at.index(index), depth));
        match (function.as_str(), argument, arguments) {
            ("Condition", Value::String(name), _) => self.condition_within(name, &at, depth),
            ("Fn::Equals", _, [one, other]) => Ok(self.text(one, &at.index(0))? == self.text(other, &at.index(1))?),
            ("Fn::Not", _, [one]) => self.holds(one, &at.index(0), depth).map(|holds| !holds),
            ("Fn::And", _, [_, ..]) => each.try_fold(true, |all, holds| Ok(all & holds?)),
            ("Fn::Or", _, [_, ..]) => each.try_fold(false, |any, holds| Ok(any | holds?)),
            _ => Err(Problem::new(&at, "not supported by the local stack")),
        }
    }

    fn call(&self, function: &str, argument: &Value, at: &KeyPath) -> Result<String, Problem> {
        match (function, argument) {
            ("Ref", Value::String(id)) => self.resources.reference(id, at),
            ("Fn::GetAtt", Value::Array(items)) => match items.as_slice() {
                [Value::String(id), Value::String(attribute)] => self.resources.attribute(id, attribute, at),
                _ => Err(Problem::new(at, "expected a logical id and an attribute")),
            },
            ("Fn::Sub", Value::String(text)) => self.substitute(text, &Map::new(), at),
            ("Fn::Sub", Value::Array(items)) => match items.as_slice() {
                [Value::String(text), Value::Object(variables)] => self.substitute(text, variables, at),
                _ => Err(Problem::new(at, "expected a text and a mapping of its variables")),
            },
            ("Fn::Join", Value::Array(items)) => match items.as_slice() {
                [Value::String(delimiter), Value::Array(values)] => {
                    let text = |(index, value)| self.text(value, &at.index(1).index(index));
                    Ok(values.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join(delimiter))
                }
                _ => Err(Problem::new(at, "expected a delimiter and a list of values")),
            },
            ("Ref" | "Fn::GetAtt" | "Fn::Sub" | "Fn::Join", _) => {
                Err(Problem::new(at, "the argument has the wrong form"))
            }
            _ => Err(Problem::new(at, "not supported by the local stack")),
        }
    }

    /// Evaluates `Fn::Sub`: `${Name}` is a variable of the mapping or a `Ref`, `${Id.Attribute}` a `GetAtt`, and
    /// `${!Name}` a literal `${Name}`.
    fn substitute(&self, text: &str, variables: &Map<String, Value>, at: &KeyPath) -> Result<String, Problem> {
        let mut substituted = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}').ok_or_else(|| Problem::new(at, "`${` without `}`"))?;
            substituted.push_str(before);
            rest = after;
            if let Some(literal) = name.strip_prefix('!') {
                substituted.push_str(&format!("${{{literal}}}"));
            } else if let Some(value) = variables.get(name) {
                substituted.push_str(&self.text(value, &at.index(1).key(name))?);
            } else if let Some((id, attribute)) = name.split_once('.') {
                substituted.push_str(&self.resources.attribute(id, attribute, at)?);
            } else {
                substituted.push_str(&self.resources.reference(name, at)?);
            }
        }
        substituted.push_str(rest);
        Ok(substituted)
    }
}

/// Returns the call of an intrinsic function: a mapping with the one key `Ref` or `Fn::…`.
pub(super) fn call(entries: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (name, argument) = entries.iter().next().filter(|_| entries.len() == 1)?;
    (name == "Ref" || name.starts_with("Fn::")).then_some((name.as_str(), argument))
}

#[cfg(test)]
mod tests;
