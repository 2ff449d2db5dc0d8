//! Lambda authorizers: they decide which clients may connect, and describe them to the functions.
//!
//! This module implements "Create an API Gateway Lambda REQUEST authorizer function" for WebSocket APIs. An authorizer
//! runs at every handshake and never at a message, and its result is not cached. Some statuses are inferred, because
//! they come from "Gateway response types", a page about REST APIs.
//!
//! A policy can have `Action`, `Resource` and their wildcards. A policy with a `Condition` or a `Not…` element is
//! refused, because to ignore such an element could allow too much.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::connection::{Connection, Context};
use super::definition::Authorizer;
use super::event::{AuthorizerEvent, Multi};
use super::id::Id;
use super::integration::IntegrationError;
use super::refusal::Refusal;
use super::state::{Gateway, log};
use crate::iam::{self, Effect, OneOrMany, Patterns, Statement};
use crate::inspector::Story;

/// The error text of an authorizer that makes the refusal a 401 and not a 403.
const UNAUTHORIZED: &str = "Unauthorized";

/// The action that a policy must allow ("Controlling access for invoking an API").
pub(super) const ACTION: &str = "execute-api:Invoke";

/// The result of an authorizer that allows a client to connect.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) context: Context,
    /// The client's API key, if the authorizer returns one.
    pub(super) usage_identifier_key: Option<String>,
}

/// Asks the authorizer whether the client may connect. Returns the authorizer's description of the client.
pub(super) async fn authorize(
    gateway: &Gateway,
    authorizer: &Authorizer,
    connection: &Connection,
    headers: &Multi,
    query: Option<&Multi>,
    story: Option<Story>,
) -> Result<Allowed, Refusal> {
    let request_id = Id::new();
    let method_arn = gateway.api.connect_arn();
    let event = AuthorizerEvent::new(&gateway.api, connection, &request_id, &method_arn, headers, query);
    let identity = serde_json::to_value(&event).unwrap_or_default();
    if !authorizer.identity_sources.iter().all(|source| has_identity(&identity, source)) {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "an identity source of the authorizer is missing"));
    }

    let decision = match gateway.call(&authorizer.function, connection, &event, story).await {
        Err(IntegrationError::Function(error)) if error.error_message == UNAUTHORIZED => {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "the authorizer answered `Unauthorized`"));
        }
        Err(error) => Err(error.to_string()),
        Ok(result) => decide(&result, gateway.settings.limits.authorizer_result_limit, &method_arn),
    };
    match decision {
        Ok(Some(allowed)) => Ok(allowed),
        Ok(None) => Err(Refusal::new(StatusCode::FORBIDDEN, "the authorizer does not allow the client to connect")),
        Err(error) => {
            log(format_args!("the authorizer failed, request {request_id}: {error}"));
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the authorizer failed"))
        }
    }
}

/// Returns whether the request has a value for an identity source, and the value is not empty.
fn has_identity(event: &Value, source: &str) -> bool {
    let value = if let Some(name) = source.strip_prefix("route.request.header.") {
        let headers = event["headers"].as_object();
        headers.and_then(|headers| headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name))).map(|it| it.1)
    } else if let Some(name) = source.strip_prefix("route.request.querystring.") {
        event["queryStringParameters"].get(name)
    } else if let Some(name) = source.strip_prefix("context.") {
        name.split('.').try_fold(&event["requestContext"], |value, name| value.get(name))
    } else {
        source.strip_prefix("stageVariables.").and_then(|name| event["stageVariables"].get(name))
    };
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

/// The output of an authorizer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    principal_id: String,
    policy_document: Policy,
    #[serde(default)]
    context: Option<Map<String, Value>>,
    #[serde(default)]
    usage_identifier_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Policy {
    statement: OneOrMany<Statement>,
}

/// Reads the result of an authorizer. Returns the description of the client if the policy allows `arn`, `None` if it
/// does not, and an error if the result is malformed.
fn decide(result: &[u8], limit: usize, arn: &str) -> Result<Option<Allowed>, String> {
    if result.len() > limit {
        return Err(format!("its result has {} bytes, and the limit is {limit}", result.len()));
    }
    let output: Output = serde_json::from_slice(result).map_err(|error| error.to_string())?;
    let mut context = Context::new();
    for (key, value) in output.context.unwrap_or_default() {
        match value {
            Value::String(text) => context.insert(key, text),
            Value::Number(_) | Value::Bool(_) => context.insert(key, value.to_string()),
            // Inferred: null has no text.
            Value::Null => None,
            Value::Array(_) | Value::Object(_) => {
                return Err(format!("`{key}` in its context is not a text, a number or a boolean"));
            }
        };
    }
    context.insert("principalId".to_owned(), output.principal_id);

    let statements: Vec<Statement> = output.policy_document.statement.into();
    let is_negated = |patterns| matches!(patterns, &Patterns::Not(_));
    if statements.iter().any(|statement| is_negated(&statement.actions) || is_negated(&statement.resources)) {
        return Err("its policy has a `NotAction` or a `NotResource`".to_owned());
    }
    let is_allowed = iam::decide(&statements, ACTION, arn) == Some(Effect::Allow);
    Ok(is_allowed.then_some(Allowed { context, usage_identifier_key: output.usage_identifier_key }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ARN: &str = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/dev/$connect";

    fn decide_on(result: &Value) -> Result<Option<Allowed>, String> {
        decide(result.to_string().as_bytes(), 8192, ARN)
    }

    fn statement(effect: &str, action: &Value, resource: &Value) -> Value {
        let statement = json!({ "Effect": effect, "Action": action, "Resource": resource });
        json!({ "principalId": "user", "policyDocument": { "Version": "2012-10-17", "Statement": [statement] } })
    }

    fn is_allowed(action: &Value, resource: &Value) -> bool {
        decide_on(&statement("Allow", action, resource)).unwrap().is_some()
    }

    #[test]
    fn a_policy_must_allow_the_connect_route() {
        let api = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234";
        let invoke = json!("execute-api:Invoke");
        for (resource, allowed) in [
            (ARN.to_owned(), true),
            ("*".to_owned(), true),
            (format!("{api}/dev/*"), true),
            (format!("{api}/*"), true),
            ("arn:aws:execute-api:*:*:abcdef????/*/$connect".to_owned(), true),
            // Policies of REST APIs have this form.
            (format!("{api}/dev/*/*"), false),
            (format!("{api}/dev/$default"), false),
            (format!("{api}/prod/*"), false),
            (format!("{ARN}/"), false),
        ] {
            assert_eq!(is_allowed(&invoke, &json!(resource)), allowed, "{resource}");
            assert_eq!(is_allowed(&invoke, &json!(["other", resource])), allowed, "{resource}");
        }
        for (action, allowed) in [
            (json!("*"), true),
            (json!("execute-api:*"), true),
            (json!("Execute-API:invoke"), true),
            (json!(["execute-api:ManageConnections", "execute-api:Invoke"]), true),
            (json!("execute-api:ManageConnections"), false),
        ] {
            assert_eq!(is_allowed(&action, &json!("*")), allowed, "{action}");
        }
    }

    #[test]
    fn a_deny_wins_over_an_allow() {
        let statement = |effect| json!({ "Effect": effect, "Action": "*", "Resource": "*" });
        for (statements, allowed) in [
            (json!([statement("Allow"), statement("Deny")]), false),
            (json!([statement("Deny")]), false),
            (json!([]), false),
            (statement("Allow"), true),
        ] {
            let result = json!({ "principalId": "u", "policyDocument": { "Statement": statements } });
            assert_eq!(decide_on(&result).unwrap().is_some(), allowed, "{statements}");
        }
    }

    #[test]
    fn the_context_becomes_text() {
        let mut result = statement("Allow", &json!("*"), &json!("*"));
        result["context"] = json!({ "userId": "7", "n": 1, "b": true, "nothing": null, "principalId": "not this" });
        let expected = [("userId", "7"), ("n", "1"), ("b", "true"), ("principalId", "user")];
        let expected: Context = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(decide_on(&result).map(|allowed| allowed.unwrap().context), Ok(expected));
        for nested in [json!({ "a": {} }), json!({ "a": [] })] {
            result["context"] = nested;
            assert!(decide_on(&result).unwrap_err().starts_with("`a` in its context"));
        }
    }

    #[test]
    fn a_malformed_result_is_an_error() {
        let conditional = {
            let mut result = statement("Allow", &json!("*"), &json!("*"));
            result["policyDocument"]["Statement"][0]["Condition"] = json!({});
            result
        };
        let negated = {
            let mut result = statement("Allow", &json!("*"), &json!("*"));
            result["policyDocument"]["Statement"][0] = json!({ "Effect": "Allow", "Action": "*", "NotResource": "x" });
            result
        };
        let no_result = [json!(null), json!({}), json!({ "principalId": "u" }), json!({ "isAuthorized": true })];
        for result in no_result.into_iter().chain([conditional, negated]) {
            assert!(decide_on(&result).is_err(), "{result}");
        }
        let result = statement("Allow", &json!("*"), &json!("*")).to_string();
        assert!(decide(result.as_bytes(), result.len(), ARN).is_ok());
        assert!(decide(result.as_bytes(), result.len() - 1, ARN).is_err());
    }

    #[test]
    fn identity_sources_must_be_present_and_not_empty() {
        let event = json!({
            "headers": { "AUTH": "a", "Empty": "" },
            "queryStringParameters": { "token": "t", "empty": "" },
            "stageVariables": {},
            "requestContext": { "stage": "dev", "connectedAt": 1, "identity": { "sourceIp": "::1" } },
        });
        for (source, is_there) in [
            ("route.request.header.Auth", true),
            ("route.request.header.Empty", false),
            ("route.request.header.Other", false),
            ("route.request.querystring.token", true),
            ("route.request.querystring.Token", false),
            ("route.request.querystring.empty", false),
            ("context.stage", true),
            ("context.connectedAt", true),
            ("context.identity.sourceIp", true),
            ("context.identity.userAgent", false),
            ("stageVariables.x", false),
            ("request.header.Auth", false),
        ] {
            assert_eq!(has_identity(&event, source), is_there, "{source}");
        }
        assert!(!has_identity(&json!({ "headers": {} }), "route.request.querystring.token"));
    }
}
