//! The [intrinsic
//! functions](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/intrinsic-function-reference.html)
//! that give texts and lists, and the conditions of templates.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64;

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
    /// The mappings by name.
    pub(super) mappings: BTreeMap<String, Value>,
    /// Whether `#{Name}` in a text is a `Fn::Sub`, as the serverless-pseudo-parameters plugin has it.
    pub(super) has_pseudo_parameters: bool,
    /// The placeholders in the value that is being evaluated, if it may have any.
    pub(super) placeholders: RefCell<Option<Vec<Problem>>>,
    /// The logical ids in values that may have placeholders.
    pub(super) used: RefCell<BTreeSet<String>>,
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

    /// Does the same as [`Self::text`], but `${Name}` stands for what only a deployment knows. Each such place has a problem
    /// in the result.
    pub(super) fn text_or_placeholder(&self, value: &Value, at: &KeyPath) -> Result<(String, Vec<Problem>), Problem> {
        self.placeholders.replace(Some(Vec::new()));
        let text = self.text(value, at);
        let placeholders = self.placeholders.take().unwrap_or_default();
        Ok((text?, placeholders))
    }

    /// Does the same as [`Self::evaluate`], with placeholders.
    pub(super) fn evaluate_or_placeholder(&self, value: &Value, at: &KeyPath) -> Result<Value, Problem> {
        self.placeholders.replace(Some(Vec::new()));
        let value = self.evaluate(value, at);
        self.placeholders.replace(None);
        value
    }

    fn or_placeholder(&self, result: Result<String, Problem>, name: &str) -> Result<String, Problem> {
        let mut placeholders = self.placeholders.borrow_mut();
        if placeholders.is_some() {
            self.used.borrow_mut().insert(name.split('.').next().unwrap_or(name).to_owned());
        }
        match (result, placeholders.as_mut()) {
            (Err(problem), Some(placeholders)) if problem.is_unknown_here => {
                placeholders.push(problem);
                Ok(format!("${{{name}}}"))
            }
            (result, _) => result,
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
                Some((name, argument)) => self.call(name, argument, &at.key(name)).map(Some),
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
            Value::String(text) if self.has_pseudo_parameters && text.contains("#{") => {
                self.substitute(&text.replace("#{", "${"), &Map::new(), at).map(|text| Some(text.into()))
            }
            scalar => Ok(Some(scalar.clone())),
        }
    }

    /// Returns the items of a list, or the value itself, before they are evaluated. `Fn::If` chooses among them.
    pub(super) fn choices<'a>(&self, value: &'a Value, at: &KeyPath) -> Result<Vec<(&'a Value, KeyPath)>, Problem> {
        let mut choices = Vec::new();
        for (part, at) in parts(value, at) {
            match part.as_object().and_then(call) {
                Some(("Ref", Value::String(id))) if id == "AWS::NoValue" => {}
                Some(("Fn::If", argument)) => {
                    let at = at.key("Fn::If");
                    let (value, at) = self.branch(argument, &at)?;
                    choices.extend(self.choices(value, &at)?);
                }
                _ => choices.push((part, at)),
            }
        }
        Ok(choices)
    }

    /// Evaluates `Fn::If`.
    fn choose(&self, argument: &Value, at: &KeyPath) -> Result<Option<Value>, Problem> {
        let (value, at) = self.branch(argument, at)?;
        self.optional(value, &at)
    }

    /// Returns the value that `Fn::If` chooses.
    fn branch<'a>(&self, argument: &'a Value, at: &KeyPath) -> Result<(&'a Value, KeyPath), Problem> {
        match argument.as_array().map(Vec::as_slice) {
            Some([Value::String(condition), then, otherwise]) => {
                let holds = self.condition(condition, at)?;
                Ok(if holds { (then, at.index(1)) } else { (otherwise, at.index(2)) })
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

    fn call(&self, function: &str, argument: &Value, at: &KeyPath) -> Result<Value, Problem> {
        let items = argument.as_array().map(Vec::as_slice).unwrap_or_default();
        let text = match (function, argument, items) {
            ("Ref", Value::String(id), _) => self.or_placeholder(self.resources.reference(id, at), id)?,
            ("Fn::GetAtt", _, [Value::String(id), Value::String(attribute)]) => {
                self.or_placeholder(self.resources.attribute(id, attribute, at), &format!("{id}.{attribute}"))?
            }
            ("Fn::GetAtt", Value::Array(_), _) => {
                return Err(Problem::new(at, "expected a logical id and an attribute"));
            }
            ("Fn::Sub", Value::String(text), _) => self.substitute(text, &Map::new(), at)?,
            ("Fn::Sub", _, [Value::String(text), Value::Object(variables)]) => self.substitute(text, variables, at)?,
            ("Fn::Sub", Value::Array(_), _) => {
                return Err(Problem::new(at, "expected a text and a mapping of its variables"));
            }
            ("Fn::Join", _, [Value::String(delimiter), values]) => {
                let values = self.list(values, &at.index(1))?;
                let texts = values.iter().map(|(value, at)| self.text(value, at));
                texts.collect::<Result<Vec<_>, _>>()?.join(delimiter)
            }
            ("Fn::Join", Value::Array(_), _) => {
                return Err(Problem::new(at, "expected a delimiter and a list of values"));
            }
            ("Fn::Select", _, [index, values]) => return self.select(index, values, at),
            ("Fn::Split", _, [Value::String(delimiter), text]) if !delimiter.is_empty() => {
                let text = self.text(text, &at.index(1))?;
                return Ok(text.split(delimiter.as_str()).collect());
            }
            ("Fn::FindInMap", _, [map, first, second, ..]) => {
                let keys = [map, first, second].map(|key| self.text(key, at));
                let [map, first, second] = keys;
                let (map, first, second) = (map?, first?, second?);
                let value = self.mappings.get(&map).map(|map| &map[&first][&second]).filter(|value| !value.is_null());
                let unknown = || Problem::new(at, format!("the templates have no mapping `{map}.{first}.{second}`"));
                return value.cloned().ok_or_else(unknown);
            }
            ("Fn::Base64", text, _) => BASE64.encode(self.text(text, at)?.as_bytes()),
            ("Fn::GetAZs", _, _) => {
                return Ok(["a", "b", "c"].iter().map(|zone| format!("{}{zone}", self.resources.region)).collect());
            }
            ("Fn::ImportValue" | "Fn::GetStackOutput", ..) => {
                let name = self.text(argument, at).unwrap_or_default();
                let reason = format!("`{function}` needs another stack, which is not here");
                self.or_placeholder(Err(Problem::unknown_here(at, reason)), &format!("{function} {name}"))?
            }
            ("Ref" | "Fn::GetAtt" | "Fn::Sub" | "Fn::Join" | "Fn::Select" | "Fn::Split" | "Fn::FindInMap", ..) => {
                return Err(Problem::new(at, "the argument has the wrong form"));
            }
            _ => return Err(Problem::new(at, "not supported by the local stack")),
        };
        Ok(Value::from(text))
    }

    /// Evaluates `Fn::Select`.
    fn select(&self, index: &Value, values: &Value, at: &KeyPath) -> Result<Value, Problem> {
        let index = self.text(index, &at.index(0))?;
        let values = self.list(values, &at.index(1))?;
        let selected = index.parse::<usize>().ok().and_then(|index| values.get(index));
        let missing = || Problem::new(at, format!("the list has {} values, and none at {index}", values.len()));
        selected.map(|(value, _)| value.clone()).ok_or_else(missing)
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
            } else if name.contains(':') && !name.contains("::") {
                // This is a variable of the framework that only a deployment knows.
                substituted.push_str(&format!("${{{name}}}"));
            } else if let Some((id, attribute)) = name.split_once('.') {
                substituted.push_str(&self.or_placeholder(self.resources.attribute(id, attribute, at), name)?);
            } else {
                substituted.push_str(&self.or_placeholder(self.resources.reference(name, at), name)?);
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
