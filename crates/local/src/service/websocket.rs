//! The parts of the WebSocket API that only CloudFormation defines: properties that are added to the API, its stage and
//! its routes, and further resources.
//!
//! It reads [AWS::ApiGatewayV2::Api, Route and
//! Stage](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApiGatewayV2.html), and their models
//! and mappings. The keys of clients are in `api_keys.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::api_keys;
use super::definition::API_ID;
use super::error::{Problem, parse};
use super::generated::{API, STAGE, route_id};
use super::intrinsics::Intrinsics;
use super::key_path::KeyPath;
use super::kinds::{API_MAPPING, MODEL};
use super::template::{Properties, Templates};
use crate::gateway::{ApiKeys, Definition, KeySource, Model, RequestModels};

/// The characters, besides letters and digits, in the value of [a stage
/// variable](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-stages.html). Its name has
/// letters, digits and `_`.
const STAGE_VARIABLE: &[u8] = b"-._~:/?#&=,";

/// The characters, besides letters and digits, in
/// [a mapping's key](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-mappings.html).
const MAPPING_KEY: &[u8] = b"$-_.+!*'()";

/// The most characters in a mapping's key, from the same page.
const MAX_MAPPING_KEY_LENGTH: usize = 300;

/// The property that selects the model of a message.
const MODEL_SELECTION: &str = "ModelSelectionExpression";

/// The properties of a route that are read.
const ROUTE_PROPERTIES: [&str; 4] = ["ApiKeyRequired", "AuthorizationType", MODEL_SELECTION, "RequestModels"];

/// A route's `AuthorizationType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authorization {
    None,
    Custom,
    Iam,
}

/// [AWS::ApiGatewayV2::ApiMapping](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigatewayv2-apimapping.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ApiMappingProperties {
    api_id: Value,
    stage: Value,
    api_mapping_key: Option<Value>,
    #[serde(rename = "DomainName")]
    _domain_name: IgnoredAny,
}

/// [AWS::ApiGatewayV2::Model](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigatewayv2-model.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ModelProperties {
    api_id: Value,
    name: Value,
    schema: Value,
    #[serde(rename = "ContentType")]
    _content_type: Option<ContentType>,
    #[serde(rename = "Description")]
    _description: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
enum ContentType {
    #[serde(rename = "application/json")]
    Json,
}

/// Completes the definition of an API with the properties in the templates. Returns the `AuthorizationType` of
/// `$connect`, which wins over the `authorizer` of its event, and the place where it stands.
pub(super) fn complete(
    templates: &Templates,
    api: &mut Definition,
) -> Result<Option<(Authorization, KeyPath)>, Problem> {
    let intrinsics = &templates.intrinsics;
    let mut connect_authorization = None;
    let stage = api.stage.clone();
    let properties = added(
        templates,
        API,
        &["ApiKeySelectionExpression", "DisableExecuteApiEndpoint", "ProtocolType", "RouteSelectionExpression"],
    )?;
    if let Some((kind, at)) = texts(intrinsics, &properties, "ProtocolType")?.filter(|(kind, _)| kind != "WEBSOCKET") {
        return Err(Problem::new(&at, format!("`{kind}` is not `WEBSOCKET`")));
    }
    if let Some((expression, _)) = texts(intrinsics, &properties, "RouteSelectionExpression")? {
        api.route_selection_expression = expression;
    }
    let is_disabled = boolean(intrinsics, &properties, "DisableExecuteApiEndpoint")?;
    api.paths.mapping_keys = mapping_keys(templates, &stage)?;
    api.paths.stage = (!is_disabled).then(|| stage.clone());
    let source = match texts(intrinsics, &properties, "ApiKeySelectionExpression")? {
        None => KeySource::Header,
        Some((text, at)) => match text.as_str() {
            "$request.header.x-api-key" => KeySource::Header,
            "$context.authorizer.usageIdentifierKey" => KeySource::Authorizer,
            _ => {
                let reason = format!(
                    "`{text}` is neither `$request.header.x-api-key` nor `$context.authorizer.usageIdentifierKey`"
                );
                return Err(Problem::new(&at, reason));
            }
        },
    };
    let properties = added(templates, STAGE, &["StageVariables"])?;
    api.stage_variables = stage_variables(intrinsics, &properties)?;
    for route in api.routes.keys() {
        let properties = added(templates, &route_id(route), &ROUTE_PROPERTIES)?;
        if let Some(models) = request_models(templates, &properties)? {
            if ["$connect", "$disconnect"].contains(&route.as_str()) {
                let at = &properties[MODEL_SELECTION].1;
                return Err(Problem::new(at, format!("`{route}` has no messages")));
            }
            api.request_models.insert(route.clone(), models);
        }
        let key_required = boolean(intrinsics, &properties, "ApiKeyRequired")?;
        let authorization = authorization(intrinsics, &properties)?;
        for (key, is_there) in [
            ("ApiKeyRequired", key_required),
            ("AuthorizationType", authorization.as_ref().is_some_and(|(it, _)| *it != Authorization::None)),
        ] {
            if is_there && route != "$connect" {
                let at = &properties[key].1;
                return Err(Problem::new(at, "only `$connect` can have this property"));
            }
        }
        if route == "$connect" {
            connect_authorization = authorization;
            if key_required {
                api.api_keys = Some(ApiKeys { source, keys: api_keys::read(templates, &stage)? });
            }
        }
    }
    Ok(connect_authorization)
}

/// Returns the properties that the templates add to a generated resource. Only the expected ones are allowed.
fn added(templates: &Templates, id: &str, expected: &[&str]) -> Result<Properties, Problem> {
    let properties = templates.additions.get(id).cloned().unwrap_or_default();
    match properties.iter().find(|(key, _)| !expected.contains(&key.as_str())) {
        Some((key, (_, at))) => {
            Err(Problem::new(at, format!("unknown field `{key}`, expected `{}`", expected.join("` or `"))))
        }
        None => Ok(properties),
    }
}

/// Evaluates a property to a text, if the property is there.
fn texts(intrinsics: &Intrinsics, properties: &Properties, key: &str) -> Result<Option<(String, KeyPath)>, Problem> {
    let Some((value, at)) = properties.get(key) else { return Ok(None) };
    let text = intrinsics.optional_text(value, at)?;
    Ok(text.map(|text| (text, at.clone())))
}

fn boolean(intrinsics: &Intrinsics, properties: &Properties, key: &str) -> Result<bool, Problem> {
    properties.get(key).map_or(Ok(false), |(value, at)| intrinsics.boolean(value, at))
}

fn authorization(
    intrinsics: &Intrinsics,
    properties: &Properties,
) -> Result<Option<(Authorization, KeyPath)>, Problem> {
    let Some((text, at)) = texts(intrinsics, properties, "AuthorizationType")? else { return Ok(None) };
    let authorization = match text.as_str() {
        "NONE" => Authorization::None,
        "CUSTOM" => Authorization::Custom,
        "AWS_IAM" => Authorization::Iam,
        _ => return Err(Problem::new(&at, format!("`{text}` is not one of `NONE`, `CUSTOM`, `AWS_IAM`"))),
    };
    Ok(Some((authorization, at)))
}

/// Reads the models of a route, if it has a selection expression. Without one it has no models ("Request
/// validation").
fn request_models(templates: &Templates, properties: &Properties) -> Result<Option<RequestModels>, Problem> {
    let intrinsics = &templates.intrinsics;
    let Some((expression, _)) = texts(intrinsics, properties, MODEL_SELECTION)? else { return Ok(None) };
    let mut models = BTreeMap::new();
    if let Some((value, at)) = properties.get("RequestModels") {
        let value = intrinsics.optional(value, at)?.unwrap_or_default();
        let names: BTreeMap<String, Value> = parse(&value, at)?;
        for (key, name) in names {
            let at = at.key(&key);
            let name = intrinsics.text(&name, &at)?;
            let model = model(templates, &name)?;
            let unknown = || Problem::new(&at, format!("the API has no model `{name}`"));
            models.insert(key, model.ok_or_else(unknown)?);
        }
    }
    Ok(Some(RequestModels::new(&expression, models)))
}

/// Finds the API's model of this name.
fn model(templates: &Templates, name: &str) -> Result<Option<Model>, Problem> {
    for (_, properties, at) in templates.of_kind::<ModelProperties>(MODEL)? {
        let api_id = templates.intrinsics.lenient_text(&properties.api_id, &at.key("ApiId"))?;
        let known = templates.intrinsics.lenient_text(&properties.name, &at.key("Name"))?;
        if api_id.as_deref() == Some(API_ID) && known.as_deref() == Some(name) {
            let at = at.key("Schema");
            let schema = templates.intrinsics.evaluate(&properties.schema, &at)?;
            let model = Model::new(&schema).map_err(|reason| Problem::new(&at, reason))?;
            return Ok(Some(model));
        }
    }
    Ok(None)
}

/// Returns the keys of the mappings to the stage.
fn mapping_keys(templates: &Templates, stage: &str) -> Result<BTreeSet<String>, Problem> {
    let mut keys = BTreeSet::new();
    for (_, properties, at) in templates.of_kind::<ApiMappingProperties>(API_MAPPING)? {
        let api_id = templates.intrinsics.lenient_text(&properties.api_id, &at.key("ApiId"))?;
        if api_id.as_deref() != Some(API_ID)
            || templates.intrinsics.lenient_text(&properties.stage, &at.key("Stage"))?.as_deref() != Some(stage)
        {
            continue;
        }
        let at = at.key("ApiMappingKey");
        let key = properties.api_mapping_key.map_or(Ok(None), |key| templates.intrinsics.lenient_text(&key, &at))?;
        let key = key.unwrap_or_default();
        if key.contains('/') {
            return Err(Problem::new(&at, "the local stack does not support mappings of several levels"));
        }
        let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || MAPPING_KEY.contains(&byte);
        if key.len() > MAX_MAPPING_KEY_LENGTH || !key.bytes().all(may_stand) {
            return Err(Problem::new(&at, format!("`{key}` is not a valid key of a mapping")));
        }
        keys.insert(key);
    }
    Ok(keys)
}

fn stage_variables(intrinsics: &Intrinsics, properties: &Properties) -> Result<BTreeMap<String, String>, Problem> {
    let mut variables = BTreeMap::new();
    let Some((value, at)) = properties.get("StageVariables") else { return Ok(variables) };
    match intrinsics.optional(value, at)? {
        Some(Value::Object(entries)) => {
            for (name, value) in entries {
                let at = at.key(&name);
                let value = intrinsics.text(&value, &at)?;
                let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                let is_value = |byte: u8| byte.is_ascii_alphanumeric() || STAGE_VARIABLE.contains(&byte);
                if name.is_empty() || !is_name(&name) || value.is_empty() || !value.bytes().all(is_value) {
                    let reason = format!("`{name}: {value}` is not a valid stage variable");
                    return Err(Problem::new(&at, reason));
                }
                variables.insert(name, value);
            }
            Ok(variables)
        }
        None => Ok(variables),
        Some(_) => Err(Problem::new(at, "expected a mapping of names to texts")),
    }
}

#[cfg(test)]
mod tests;
