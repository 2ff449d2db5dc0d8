//! What `resources` declare besides the functions' events:
//! [AWS::ApiGatewayV2::Route](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigatewayv2-route.html)
//! and
//! [AWS::Lambda::EventSourceMapping](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-lambda-eventsourcemapping.html).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::definition::API_ID;
use super::error::Problem;
use super::findings::Findings;
use super::functions::Sources;
use super::generated::integration_id;
use super::kinds::{EVENT_SOURCE_MAPPING, INTEGRATION, ROUTE};
use super::template::Templates;
use super::{routes, streams};
use crate::gateway::Definition;

/// Lambda's default for the batch size. The framework's is another.
const DEFAULT_BATCH_SIZE: u32 = 100;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RouteProperties {
    api_id: Value,
    route_key: Value,
    #[serde(default)]
    target: Value,
    route_response_selection_expression: Option<Value>,
    authorization_type: Option<Value>,
    #[serde(rename = "OperationName")]
    _operation_name: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct IntegrationProperties {
    #[serde(default)]
    integration_uri: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MappingProperties {
    function_name: Value,
    #[serde(default)]
    event_source_arn: Value,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Adds the routes of the API that the templates declare. `names` are the function names by function key.
pub(super) fn add_routes(
    templates: &Templates,
    names: &BTreeMap<String, String>,
    api: &mut Definition,
    findings: &Findings,
) {
    let intrinsics = &templates.intrinsics;
    for (_, properties, at) in findings.keep(templates.of_kind::<RouteProperties>(ROUTE)).unwrap_or_default() {
        let mut read = || {
            if intrinsics.lenient_text(&properties.api_id, &at.key("ApiId"))?.as_deref() != Some(API_ID) {
                return Ok(());
            }
            let route = intrinsics.text(&properties.route_key, &at.key("RouteKey"))?;
            let target_at = at.key("Target");
            let target = intrinsics.text(&properties.target, &target_at)?;
            let function = integrated(templates, names, target.strip_prefix("integrations/").unwrap_or(&target))?;
            let no_function = || Problem::new(&target_at, "this is no integration of a function of the service");
            let function = function.ok_or_else(no_function)?;
            let authorization = properties.authorization_type.as_ref();
            let authorization =
                authorization.map(|it| intrinsics.text(it, &at.key("AuthorizationType"))).transpose()?;
            if authorization.is_some_and(|authorization| authorization != "NONE") {
                let reason = "only a route that is a `websocket` event can have an authorizer here";
                return Err(Problem::new(&at.key("AuthorizationType"), reason));
            }
            if properties.route_response_selection_expression.is_some() {
                api.two_way_routes.insert(route.clone());
            }
            routes::add_route(&mut api.routes, &route, &function, &at.key("RouteKey"))
        };
        findings.keep(read());
    }
}

/// Returns the key of the function behind an integration.
fn integrated(
    templates: &Templates,
    names: &BTreeMap<String, String>,
    integration: &str,
) -> Result<Option<String>, Problem> {
    let resources = &templates.intrinsics.resources;
    for (key, name) in names {
        let is_generated = |id: &str| resources.reference(id, &Default::default()).is_ok_and(|id| id == integration);
        if is_generated(&integration_id(key)) {
            return Ok(Some(key.clone()));
        }
        for (own, properties, at) in templates.of_kind::<IntegrationProperties>(INTEGRATION)? {
            let at = at.key("IntegrationUri");
            let uri = templates.intrinsics.optional_text(&properties.integration_uri, &at)?.unwrap_or_default();
            if own == integration && uri.ends_with(&format!(":function:{name}/invocations")) {
                return Ok(Some(key.clone()));
            }
        }
    }
    Ok(None)
}

/// Adds the event source mappings that the templates declare.
pub(super) fn add_mappings(
    templates: &Templates,
    names: &BTreeMap<String, String>,
    sources: &mut BTreeMap<String, Sources>,
    findings: &Findings,
) {
    let intrinsics = &templates.intrinsics;
    let mappings = templates.of_kind::<MappingProperties>(EVENT_SOURCE_MAPPING);
    for (_, properties, at) in findings.keep(mappings).unwrap_or_default() {
        if properties.event_source_arn["Fn::GetAtt"][1] != "StreamArn" {
            findings.ignore(&at, "this event source is not here, so its events never come");
            continue;
        }
        let function_at = at.key("FunctionName");
        let Some(function) = findings.keep(intrinsics.text(&properties.function_name, &function_at)) else { continue };
        let key = names.iter().find(|(_, name)| function == **name || function.ends_with(&format!(":function:{name}")));
        let Some((key, _)) = key else {
            findings.refuse(Problem::new(&function_at, format!("`{function}` is not a function of this service")));
            continue;
        };
        let event = event(&properties);
        let Some(mapping) = streams::mapping(&event, &at, intrinsics, findings) else { continue };
        let streams = &mut sources.entry(key.clone()).or_default().streams;
        if streams.iter().any(|other| other.table == mapping.table) {
            let reason = "the function has a mapping of this stream already; AWS allows one";
            findings.refuse(Problem::new(&at, reason));
        } else {
            streams.push(mapping);
        }
    }
}

/// Writes a mapping as the `stream` event of a function.
fn event(properties: &MappingProperties) -> Value {
    let mut event = json!({"type": "dynamodb", "arn": properties.event_source_arn, "batchSize": DEFAULT_BATCH_SIZE});
    for (name, value) in &properties.others {
        let (key, value) = match name.as_str() {
            "MaximumBatchingWindowInSeconds" => ("batchWindow".to_owned(), value.clone()),
            "FunctionResponseTypes" => ("functionResponseType".to_owned(), value[0].clone()),
            "DestinationConfig" => {
                let arn = &value["OnFailure"]["Destination"];
                ("destinations".to_owned(), json!({"onFailure": {"type": "sqs", "arn": arn}}))
            }
            "FilterCriteria" => {
                let filters = value["Filters"].as_array().into_iter().flatten();
                let patterns = filters.map(|filter| {
                    let text = filter["Pattern"].as_str().unwrap_or_default();
                    serde_json::from_str(text).unwrap_or(Value::Null)
                });
                ("filterPatterns".to_owned(), patterns.collect())
            }
            "Tags" => continue,
            other => {
                let mut characters = other.chars();
                let first = characters.next().map(|first| first.to_ascii_lowercase());
                (first.into_iter().chain(characters).collect(), value.clone())
            }
        };
        event[key] = value;
    }
    event
}
