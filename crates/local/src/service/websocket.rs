//! The parts of the WebSocket API that only CloudFormation defines: properties that are added to the API, its stage and
//! its routes, and further resources.
//!
//! It reads [AWS::ApiGatewayV2::Api, Route and
//! Stage](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApiGatewayV2.html), and from [API
//! Gateway V1](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApiGateway.html) the keys of
//! clients, if a route requires one. Quotas and throttles of usage plans are not imitated.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::API_ID;
use super::cloudformation::{Properties, Stack, sha256};
use super::error::{KeyPath, Problem, ServiceError};
use super::keys::{API, API_KEY, API_MAPPING, MODEL, STAGE, USAGE_PLAN, USAGE_PLAN_KEY, route_id};
use super::variables::Document;
use crate::gateway::{ApiKey, ApiKeys, Definition, KeySource, Model, RequestModels};

/// The characters, besides letters and digits, in the value of [a stage
/// variable](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-stages.html). Its name has
/// letters, digits and `_`.
const STAGE_VARIABLE: &[u8] = b"-._~:/?#&=,";

/// The characters, besides letters and digits, in
/// [a mapping's key](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-mappings.html).
const MAPPING_KEY: &[u8] = b"$-_.+!*'()";

/// The most characters in a mapping's key, from the same page.
const MAX_MAPPING_KEY_LENGTH: usize = 300;

/// The numbers of characters of [an API
/// key](https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-setup-api-keys.html).
const KEY_LENGTH: std::ops::RangeInclusive<usize> = 20..=128;

/// The number of characters of the keys that API Gateway makes.
const GENERATED_KEY_LENGTH: usize = 40;

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

/// [AWS::ApiGateway::ApiKey](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-apikey.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ApiKeyProperties {
    value: Option<Value>,
    enabled: Option<Value>,
    #[serde(rename = "CustomerId")]
    _customer_id: Option<IgnoredAny>,
    #[serde(rename = "Description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "GenerateDistinctId")]
    _generate_distinct_id: Option<IgnoredAny>,
    #[serde(rename = "Name")]
    _name: Option<IgnoredAny>,
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

/// [AWS::ApiGateway::UsagePlan](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-usageplan.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct UsagePlanProperties {
    #[serde(default)]
    api_stages: Vec<ApiStage>,
    #[serde(rename = "Description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "Quota")]
    _quota: Option<IgnoredAny>,
    #[serde(rename = "Throttle")]
    _throttle: Option<IgnoredAny>,
    #[serde(rename = "UsagePlanName")]
    _usage_plan_name: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ApiStage {
    api_id: Value,
    stage: Value,
    #[serde(rename = "Throttle")]
    _throttle: Option<IgnoredAny>,
}

/// [AWS::ApiGateway::UsagePlanKey](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-usageplankey.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct UsagePlanKeyProperties {
    key_id: Value,
    #[serde(rename = "KeyType")]
    _key_type: KeyType,
    usage_plan_id: Value,
}

#[derive(Debug, Deserialize)]
enum KeyType {
    #[serde(rename = "API_KEY")]
    ApiKey,
}

impl Stack {
    /// Completes the definition of an API with the properties in the templates. Returns the `AuthorizationType` of
    /// `$connect`, which wins over the `authorizer` of its event, and the place where it stands.
    pub(super) fn complete(
        &self,
        document: &Document,
        api: &mut Definition,
    ) -> Result<Option<(Authorization, KeyPath)>, ServiceError> {
        let wrong = |problem| document.error(problem);
        let mut connect_authorization = None;
        let stage = api.stage.clone();
        let properties = self
            .added(API, &["ApiKeySelectionExpression", "DisableExecuteApiEndpoint", "RouteSelectionExpression"])
            .map_err(wrong)?;
        if let Some((expression, _)) = self.texts(&properties, "RouteSelectionExpression").map_err(wrong)? {
            api.route_selection_expression = expression;
        }
        let is_disabled = self.boolean(&properties, "DisableExecuteApiEndpoint").map_err(wrong)?;
        api.paths.mapping_keys = self.mapping_keys(document, &stage)?;
        api.paths.stage = (!is_disabled).then(|| stage.clone());
        let source = match self.texts(&properties, "ApiKeySelectionExpression").map_err(wrong)? {
            None => KeySource::Header,
            Some((text, at)) => match text.as_str() {
                "$request.header.x-api-key" => KeySource::Header,
                "$context.authorizer.usageIdentifierKey" => KeySource::Authorizer,
                _ => {
                    let reason = format!(
                        "`{text}` is neither `$request.header.x-api-key` nor `$context.authorizer.usageIdentifierKey`"
                    );
                    return Err(wrong(Problem::new(&at, reason)));
                }
            },
        };
        let properties = self.added(STAGE, &["StageVariables"]).map_err(wrong)?;
        api.stage_variables = self.stage_variables(&properties).map_err(wrong)?;
        for route in api.routes.keys() {
            let properties = self.added(&route_id(route), &ROUTE_PROPERTIES).map_err(wrong)?;
            if let Some(models) = self.request_models(document, &properties)? {
                if ["$connect", "$disconnect"].contains(&route.as_str()) {
                    let at = &properties[MODEL_SELECTION].1;
                    return Err(wrong(Problem::new(at, format!("`{route}` has no messages"))));
                }
                api.request_models.insert(route.clone(), models);
            }
            let key_required = self.boolean(&properties, "ApiKeyRequired").map_err(wrong)?;
            let authorization = self.authorization(&properties).map_err(wrong)?;
            for (key, is_there) in [
                ("ApiKeyRequired", key_required),
                ("AuthorizationType", authorization.as_ref().is_some_and(|(it, _)| *it != Authorization::None)),
            ] {
                if is_there && route != "$connect" {
                    let at = &properties[key].1;
                    return Err(wrong(Problem::new(at, "only `$connect` can have this property")));
                }
            }
            if route == "$connect" {
                connect_authorization = authorization;
                if key_required {
                    api.api_keys = Some(ApiKeys { source, keys: self.keys(document, &stage)? });
                }
            }
        }
        Ok(connect_authorization)
    }

    /// Returns the properties that the templates add to a generated resource. Only the expected ones are allowed.
    fn added(&self, id: &str, expected: &[&str]) -> Result<Properties, Problem> {
        let properties = self.additions.get(id).cloned().unwrap_or_default();
        match properties.iter().find(|(key, _)| !expected.contains(&key.as_str())) {
            Some((key, (_, at))) => {
                Err(Problem::new(at, format!("unknown field `{key}`, expected `{}`", expected.join("` or `"))))
            }
            None => Ok(properties),
        }
    }

    /// Evaluates a property to a text, if the property is there.
    fn texts(&self, properties: &Properties, key: &str) -> Result<Option<(String, KeyPath)>, Problem> {
        let Some((value, at)) = properties.get(key) else { return Ok(None) };
        let text = self.optional(value, at)?.map(|value| self.text(&value, at)).transpose()?;
        Ok(text.map(|text| (text, at.clone())))
    }

    /// Evaluates a text of a resource that is read leniently. Returns `None` for `AWS::NoValue`.
    fn text_of(&self, value: &Value, at: &KeyPath) -> Result<Option<String>, Problem> {
        let text = self.optional(value, at)?.map(|value| self.text(&value, at)).transpose()?;
        match text {
            // This is a variable of the framework without a value.
            Some(text) if text.contains("${") => Err(Problem::new(at, format!("`{text}` has no value"))),
            text => Ok(text),
        }
    }

    fn boolean(&self, properties: &Properties, key: &str) -> Result<bool, Problem> {
        let Some((value, at)) = properties.get(key) else { return Ok(false) };
        self.boolean_of(value, at)
    }

    fn boolean_of(&self, value: &Value, at: &KeyPath) -> Result<bool, Problem> {
        match self.text_of(value, at)?.as_deref() {
            Some("true") => Ok(true),
            Some("false") | None => Ok(false),
            Some(other) => Err(Problem::new(at, format!("`{other}` is neither true nor false"))),
        }
    }

    fn authorization(&self, properties: &Properties) -> Result<Option<(Authorization, KeyPath)>, Problem> {
        let Some((text, at)) = self.texts(properties, "AuthorizationType")? else { return Ok(None) };
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
    fn request_models(
        &self,
        document: &Document,
        properties: &Properties,
    ) -> Result<Option<RequestModels>, ServiceError> {
        let wrong = |problem| document.error(problem);
        let Some((expression, _)) = self.texts(properties, MODEL_SELECTION).map_err(wrong)? else { return Ok(None) };
        let mut models = BTreeMap::new();
        if let Some((value, at)) = properties.get("RequestModels") {
            let value = self.optional(value, at).map_err(wrong)?.unwrap_or_default();
            let names: BTreeMap<String, Value> = document.parse(&value, at)?;
            for (key, name) in names {
                let at = at.key(&key);
                let name = self.text(&name, &at).map_err(wrong)?;
                let model = self.model(document, &name)?;
                let unknown = || wrong(Problem::new(&at, format!("the API has no model `{name}`")));
                models.insert(key, model.ok_or_else(unknown)?);
            }
        }
        Ok(Some(RequestModels::new(&expression, models)))
    }

    /// Finds the API's model of this name.
    fn model(&self, document: &Document, name: &str) -> Result<Option<Model>, ServiceError> {
        let wrong = |problem| document.error(problem);
        for (_, properties, at) in self.of_kind::<ModelProperties>(document, MODEL)? {
            let api_id = self.text_of(&properties.api_id, &at.key("ApiId")).map_err(wrong)?;
            let known = self.text_of(&properties.name, &at.key("Name")).map_err(wrong)?;
            if api_id.as_deref() == Some(API_ID) && known.as_deref() == Some(name) {
                let at = at.key("Schema");
                let schema = self.evaluate(&properties.schema, &at).map_err(wrong)?;
                let model = Model::new(&schema).map_err(|reason| wrong(Problem::new(&at, reason)))?;
                return Ok(Some(model));
            }
        }
        Ok(None)
    }

    /// Returns the keys of the mappings to the stage.
    fn mapping_keys(&self, document: &Document, stage: &str) -> Result<BTreeSet<String>, ServiceError> {
        let wrong = |problem| document.error(problem);
        let mut keys = BTreeSet::new();
        for (_, properties, at) in self.of_kind::<ApiMappingProperties>(document, API_MAPPING)? {
            let api_id = self.text_of(&properties.api_id, &at.key("ApiId")).map_err(wrong)?;
            if api_id.as_deref() != Some(API_ID)
                || self.text_of(&properties.stage, &at.key("Stage")).map_err(wrong)?.as_deref() != Some(stage)
            {
                continue;
            }
            let at = at.key("ApiMappingKey");
            let key = properties.api_mapping_key.map_or(Ok(None), |key| self.text_of(&key, &at)).map_err(wrong)?;
            let key = key.unwrap_or_default();
            if key.contains('/') {
                return Err(wrong(Problem::new(&at, "the local stack does not support mappings of several levels")));
            }
            let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || MAPPING_KEY.contains(&byte);
            if key.len() > MAX_MAPPING_KEY_LENGTH || !key.bytes().all(may_stand) {
                return Err(wrong(Problem::new(&at, format!("`{key}` is not a valid key of a mapping"))));
            }
            keys.insert(key);
        }
        Ok(keys)
    }

    fn stage_variables(&self, properties: &Properties) -> Result<BTreeMap<String, String>, Problem> {
        let mut variables = BTreeMap::new();
        let Some((value, at)) = properties.get("StageVariables") else { return Ok(variables) };
        match self.optional(value, at)? {
            Some(Value::Object(entries)) => {
                for (name, value) in entries {
                    let at = at.key(&name);
                    let value = self.text(&value, &at)?;
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

    /// Returns the keys that a usage plan allows for the stage.
    fn keys(&self, document: &Document, stage: &str) -> Result<Vec<ApiKey>, ServiceError> {
        let wrong = |problem| document.error(problem);
        let mut plans = BTreeSet::new();
        for (name, properties, at) in self.of_kind::<UsagePlanProperties>(document, USAGE_PLAN)? {
            let at = at.key("ApiStages");
            for (index, api_stage) in properties.api_stages.iter().enumerate() {
                let at = at.index(index);
                let api_id = self.text_of(&api_stage.api_id, &at.key("ApiId")).map_err(wrong)?;
                if api_id.as_deref() == Some(API_ID)
                    && self.text_of(&api_stage.stage, &at.key("Stage")).map_err(wrong)?.as_deref() == Some(stage)
                {
                    plans.insert(name.clone());
                }
            }
        }
        let mut usable = BTreeSet::new();
        for (_, properties, at) in self.of_kind::<UsagePlanKeyProperties>(document, USAGE_PLAN_KEY)? {
            let plan = self.text_of(&properties.usage_plan_id, &at.key("UsagePlanId")).map_err(wrong)?;
            if plan.is_some_and(|plan| plans.contains(&plan)) {
                usable.extend(self.text_of(&properties.key_id, &at.key("KeyId")).map_err(wrong)?);
            }
        }
        let mut keys: BTreeMap<String, ApiKey> = BTreeMap::new();
        for (id, properties, at) in self.of_kind::<ApiKeyProperties>(document, API_KEY)? {
            // A key without `Enabled` is not enabled: that is the default of CreateApiKey.
            let enabled = properties.enabled.map_or(Ok(false), |it| self.boolean_of(&it, &at.key("Enabled")));
            if !usable.contains(&id) || !enabled.map_err(wrong)? {
                continue;
            }
            let at = at.key("Value");
            let value = properties.value.map_or(Ok(None), |value| self.text_of(&value, &at)).map_err(wrong)?;
            let value = value.unwrap_or_else(|| sha256(&id)[..GENERATED_KEY_LENGTH].to_owned());
            if !KEY_LENGTH.contains(&value.len()) {
                let reason = format!("a key has {} to {} characters", KEY_LENGTH.start(), KEY_LENGTH.end());
                return Err(wrong(Problem::new(&at, reason)));
            }
            if keys.insert(value.clone(), ApiKey { id, value }).is_some() {
                return Err(wrong(Problem::new(&at, "another key has this value already")));
            }
        }
        Ok(keys.into_values().collect())
    }

    /// Returns the resources of a kind, each with its `Ref`, properties and place.
    fn of_kind<T: serde::de::DeserializeOwned>(
        &self,
        document: &Document,
        kind: &str,
    ) -> Result<Vec<(String, T, KeyPath)>, ServiceError> {
        let mut found = Vec::new();
        for (id, (properties, at)) in &self.definitions {
            let (resource, name) = self.resource(id, at).map_err(|problem| document.error(problem))?;
            if resource.kind == kind {
                found.push((name.to_owned(), document.parse(properties, at)?, at.clone()));
            }
        }
        Ok(found)
    }
}
