//! Request models: JSON Schemas that a route's messages must match before they reach its function.
//!
//! This module implements ["Request validation for WebSocket APIs in API
//! Gateway"](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-request-validation.html) with
//! JSON Schema, draft 4. It does not follow references to other documents. Inferred: a message that is not JSON never
//! matches.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jsonschema::{Draft, Validator};
use serde_json::Value;

use super::json;
use super::route::SelectionExpression;

/// The key of the model for messages that select no other model.
const DEFAULT_MODEL: &str = "$default";

/// The models of a route, and the expression that selects one of them for each message.
#[derive(Debug, Clone)]
pub struct RequestModels {
    expression: SelectionExpression,
    models: BTreeMap<String, Model>,
}

/// A JSON Schema.
#[derive(Clone)]
pub struct Model(Arc<Validator>);

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").finish_non_exhaustive()
    }
}

impl Model {
    /// Reads a schema.
    ///
    /// # Errors
    ///
    /// Returns a text that says why the schema is not valid.
    pub fn new(schema: &Value) -> Result<Self, String> {
        let validator = jsonschema::options().with_draft(Draft::Draft4).build(schema);
        validator.map(|validator| Self(Arc::new(validator))).map_err(|error| error.to_string())
    }
}

impl RequestModels {
    /// Makes a selection from `models`. Their keys are the values that `model_selection_expression` can have.
    #[must_use]
    pub fn new(model_selection_expression: &str, models: BTreeMap<String, Model>) -> Self {
        Self { expression: SelectionExpression::parse(model_selection_expression), models }
    }

    /// Returns whether a message selects a model and matches it.
    pub(super) fn accept(&self, message: &str, lenient_json: bool) -> bool {
        let key = self.expression.evaluate(message, lenient_json);
        let model = key.and_then(|key| self.models.get(&key)).or_else(|| self.models.get(DEFAULT_MODEL));
        let message = json::read(message, lenient_json);
        model.zip(message).is_some_and(|(model, message)| model.0.is_valid(&message))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn models(expression: &str, schemas: &[(&str, Value)]) -> RequestModels {
        let models = schemas.iter().map(|(key, schema)| ((*key).to_owned(), Model::new(schema).unwrap()));
        RequestModels::new(expression, models.collect())
    }

    fn requires(member: &str) -> Value {
        json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "required": [member]})
    }

    #[test]
    fn the_expression_selects_the_model_else_the_default_is_used() {
        let kinds = [("one", requires("a")), ("$default", requires("b"))];
        let models = models("$request.body.kind", &kinds);
        for (message, accepted) in [
            (r#"{"kind":"one","a":1}"#, true),
            (r#"{"kind":"one","b":1}"#, false),
            (r#"{"kind":"two","b":1}"#, true),
            (r#"{"b":1}"#, true),
            (r#"{"kind":"one","a":1e400}"#, true),
            (r#"{"kind":"one","\ud83d":1e400}"#, false),
            (r#"{"b":"\ud83d"}"#, true),
            ("[]", false),
            ("not JSON", false),
            ("", false),
        ] {
            assert_eq!(models.accept(message, false), accepted, "{message}");
        }
        let without_default = self::models("$request.body.kind", &kinds[..1]);
        assert_eq!(
            (without_default.accept(r#"{"kind":"two"}"#, false), without_default.accept(r#"{"a":1}"#, false)),
            (false, false)
        );
        for expression in ["$default", "\\$default"] {
            let default = self::models(expression, &kinds);
            assert!(default.accept(r#"{"b":1}"#, false) && !default.accept(r#"{"a":1}"#, false), "{expression}");
        }
    }

    #[test]
    fn recursive_schemas_and_deep_messages_do_no_harm() {
        let recursive =
            models("$default", &[("$default", json!({"additionalProperties": {"$ref": "#"}, "items": {"$ref": "#"}}))]);
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(recursive.accept(&deep(127), false));
        assert!(!recursive.accept(&deep(100_000), false));
        models("$default", &[("$default", json!({"$ref": "#"}))]).accept("{}", false);
    }

    #[test]
    fn an_invalid_schema_is_refused_with_its_reason() {
        for (schema, expected) in [
            (json!({"type": "objct"}), "objct"),
            (json!("text"), "not of type \"object\""),
            (json!({"pattern": "("}), "regex"),
            (json!({"$ref": "https://apigateway.amazonaws.com/restapis/a/models/b"}), "apigateway.amazonaws.com"),
        ] {
            let error = Model::new(&schema).unwrap_err();
            assert!(error.contains(expected), "{schema}: {error}");
        }
    }
}
