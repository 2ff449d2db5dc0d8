//! The keys of a serverless.yml that the local stack reads. `keys.rs` has dropped the ignored keys before, and
//! `findings.rs` says what happens to any other key.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::definition::{LogFormat, StartingPosition};
use super::findings::Validation;
use crate::iam::OneOrMany;
use crate::stream::Filter;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a service")]
pub(super) struct Root {
    pub(super) service: ServiceName,
    pub(super) provider: Provider,
    #[serde(rename = "configValidationMode")]
    _config_validation_mode: Option<Validation>,
    /// A mapping of functions, or a list of such mappings.
    #[serde(default)]
    pub(super) functions: Value,
    /// A CloudFormation template, or a list of templates.
    #[serde(default)]
    pub(super) resources: Value,
}

/// `service: name`. A mapping was valid in the framework's first two versions.
#[derive(Debug, Deserialize)]
#[serde(transparent, expecting = "a name, as in `service: chat`")]
pub(super) struct ServiceName(#[serde(deserialize_with = "service_name")] pub(super) String);

fn service_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(name) => Ok(name),
        Value::Object(entries) => {
            let name = entries.get("name").and_then(Value::as_str).unwrap_or("NAME");
            Err(D::Error::custom(format!(
                "a mapping was valid in old versions of the framework: write `service: {name}`"
            )))
        }
        _ => Err(D::Error::custom("expected a name, as in `service: chat`")),
    }
}

/// Reads null like a missing key, as the framework does.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping with the provider's name")]
pub(super) struct Provider {
    #[serde(rename = "name")]
    pub(super) _name: ProviderName,
    pub(super) stage: Option<String>,
    pub(super) region: Option<String>,
    pub(super) stack_name: Option<String>,
    pub(super) memory_size: Option<MemorySize>,
    pub(super) timeout: Option<Timeout>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) environment: BTreeMap<String, Value>,
    /// The values of the templates' parameters.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) stack_parameters: Vec<StackParameter>,
    pub(super) websockets_api_route_selection_expression: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) logs: ProviderLogs,
    pub(super) iam: Option<Iam>,
    /// The role, in older services. It has the meaning of [`Iam::role`] when that is a role of the resources.
    #[serde(default)]
    pub(super) role: Value,
    /// The statements of [`ProviderRole`], in older services. The next two fields are like it.
    #[serde(default)]
    pub(super) iam_role_statements: Value,
    #[serde(default)]
    pub(super) iam_managed_policies: Value,
    #[serde(default)]
    pub(super) role_permissions_boundary: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StackParameter {
    pub(super) parameter_key: String,
    #[serde(default)]
    pub(super) parameter_value: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Iam {
    /// A role of the resources, or a [`ProviderRole`].
    #[serde(default)]
    pub(super) role: Value,
    #[serde(rename = "deploymentRole")]
    _deployment_role: Option<IgnoredAny>,
}

/// The parts that a service adds to the role that the framework makes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ProviderRole {
    pub(super) name: Option<Value>,
    #[serde(default)]
    pub(super) statements: Value,
    #[serde(default)]
    pub(super) managed_policies: Value,
    #[serde(default, alias = "permissionBoundary")]
    pub(super) permissions_boundary: Value,
    #[serde(rename = "path")]
    _path: Option<IgnoredAny>,
    #[serde(rename = "tags")]
    _tags: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProviderName {
    Aws,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProviderLogs {
    #[serde(default)]
    pub(super) lambda: Logs,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Logs {
    #[serde(default)]
    pub(super) log_format: LogFormat,
    pub(super) application_log_level: Option<LogLevel>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

impl LogLevel {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a function")]
pub(super) struct Function {
    pub(super) handler: Option<String>,
    pub(super) image: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) package: Value,
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) role: Value,
    #[serde(default)]
    pub(super) iam_role_statements: Value,
    #[serde(default)]
    pub(super) iam_role_statements_inherit: Value,
    pub(super) iam_role_statements_name: Option<Value>,
    pub(super) memory_size: Option<MemorySize>,
    pub(super) timeout: Option<Timeout>,
    pub(super) reserved_concurrency: Option<Within<0, { i32::MAX }>>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) environment: BTreeMap<String, Value>,
    pub(super) logs: Option<Logs>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) events: Vec<Event>,
}

/// [Memory](https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html), in MB.
pub(super) type MemorySize = Within<128, 10_240>;

/// [Timeout](https://docs.aws.amazon.com/lambda/latest/dg/configuration-timeout.html), in seconds.
pub(super) type Timeout = Within<1, 900>;

/// An event. Those that never come here are left out before, so an event may be empty.
#[derive(Debug, Default)]
pub(super) struct Event {
    pub(super) websocket: Option<Websocket>,
    pub(super) stream: Option<Value>,
    pub(super) schedule: Option<Value>,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct LongForm {
            websocket: Option<Websocket>,
            stream: Option<Value>,
            schedule: Option<Value>,
        }

        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = Event;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event")
            }

            fn visit_unit<E: Error>(self) -> Result<Event, E> {
                Ok(Event::default())
            }

            /// `alexaSkill` is the only event that is a text.
            fn visit_str<E: Error>(self, _: &str) -> Result<Event, E> {
                Ok(Event::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Event, A::Error> {
                let LongForm { websocket, stream, schedule } = LongForm::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Event { websocket, stream, schedule })
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

/// `websocket: $connect`, or `websocket: {route: $connect}`.
#[derive(Debug)]
pub(super) struct Websocket {
    pub(super) route: String,
    route_response: Option<RouteResponse>,
    pub(super) authorizer: Option<Authorizer>,
}

impl Websocket {
    /// Tells whether the sender of a message gets the body of its result.
    pub(super) fn is_two_way(&self) -> bool {
        self.route_response.is_some()
    }
}

/// `authorizer: name`, `authorizer: arn:…`, or `authorizer: {name: …, arn: …, identitySource: […]}`.
#[derive(Debug, Clone)]
pub(super) struct Authorizer {
    pub(super) name: Option<String>,
    pub(super) arn: Option<Value>,
    pub(super) identity_source: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for Authorizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct LongForm {
            name: Option<String>,
            arn: Option<Value>,
            identity_source: Option<OneOrMany<String>>,
        }

        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = Authorizer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a function's key, an ARN or a mapping with name or arn")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Authorizer, E> {
                let is_arn = text.contains(':');
                let (name, arn) = if is_arn { (None, Some(Value::from(text))) } else { (Some(text.to_owned()), None) };
                Ok(Authorizer { name, arn, identity_source: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Authorizer, A::Error> {
                let LongForm { name, arn, identity_source } = LongForm::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Authorizer { name, arn, identity_source: identity_source.map(Vec::from) })
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

/// The only route response selection expression that API Gateway knows.
#[derive(Debug, Clone, Copy, Deserialize)]
enum RouteResponse {
    #[serde(rename = "$default")]
    Default,
}

impl<'de> Deserialize<'de> for Websocket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct LongForm {
            route: String,
            route_response_selection_expression: Option<RouteResponse>,
            authorizer: Option<Authorizer>,
        }

        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = Websocket;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a route key or a mapping with a route")
            }

            fn visit_str<E: Error>(self, route: &str) -> Result<Websocket, E> {
                Ok(Websocket { route: route.to_owned(), route_response: None, authorizer: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Websocket, A::Error> {
                let form = LongForm::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Websocket {
                    route: form.route,
                    route_response: form.route_response_selection_expression,
                    authorizer: form.authorizer,
                })
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

/// An event source mapping of a DynamoDB stream. The ranges are those of
/// [CreateEventSourceMapping](https://docs.aws.amazon.com/lambda/latest/api/API_CreateEventSourceMapping.html).
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping whose arn is the Fn::GetAtt of a table's StreamArn"
)]
pub(super) struct Stream {
    #[serde(rename = "type")]
    pub(super) _type: StreamType,
    pub(super) arn: Value,
    pub(super) batch_size: Option<Within<1, 10_000>>,
    pub(super) batch_window: Option<Within<0, 300>>,
    #[serde(default)]
    pub(super) starting_position: StartingPosition,
    pub(super) maximum_retry_attempts: Option<Within<-1, 10_000>>,
    /// -1, or at least 60.
    pub(super) maximum_record_age_in_seconds: Option<Within<-1, 604_800>>,
    #[serde(default, deserialize_with = "flag")]
    pub(super) bisect_batch_on_function_error: Option<bool>,
    pub(super) parallelization_factor: Option<Within<1, 10>>,
    pub(super) function_response_type: Option<FunctionResponseType>,
    pub(super) destinations: Option<Destinations>,
    pub(super) filter_patterns: Option<Filter>,
    #[serde(default, deserialize_with = "flag")]
    pub(super) enabled: Option<bool>,
}

/// Reads true or false. It may be a text, because variables of the environment are texts.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Bool(is_set) => Ok(Some(is_set)),
        Value::String(text) if text == "true" => Ok(Some(true)),
        Value::String(text) if text == "false" => Ok(Some(false)),
        value => Err(D::Error::custom(format!("{value} is neither true nor false"))),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StreamType {
    Dynamodb,
}

#[derive(Debug, Deserialize)]
pub(super) enum FunctionResponseType {
    ReportBatchItemFailures,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Destinations {
    pub(super) on_failure: Destination,
}

/// `onFailure: arn:…`, or `onFailure: {type: sqs, arn: …}`.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) arn: Value,
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum DestinationType {
            Sns,
            Sqs,
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct LongForm {
            #[serde(rename = "type")]
            kind: Option<DestinationType>,
            arn: Value,
        }

        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = Destination;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an ARN or a mapping with type and arn")
            }

            fn visit_str<E: Error>(self, arn: &str) -> Result<Destination, E> {
                if !arn.starts_with("arn:") {
                    return Err(E::custom(format!("`{arn}` is no ARN")));
                }
                Ok(Destination { arn: Value::from(arn) })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Destination, A::Error> {
                let LongForm { kind, arn } = LongForm::deserialize(MapAccessDeserializer::new(map))?;
                // The framework reads the type from the ARN, unless only the deployment knows that.
                match (kind, arn.is_string()) {
                    (None, false) => Err(A::Error::missing_field("type")),
                    _ => Ok(Destination { arn }),
                }
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

/// A whole number from `MIN` to `MAX`. It may be a text, because variables of the environment are texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Within<const MIN: i32, const MAX: i32>(i32);

impl<const MIN: i32, const MAX: i32> Within<MIN, MAX> {
    pub(super) fn get(self) -> i32 {
        self.0
    }
}

impl<'de, const MIN: i32, const MAX: i32> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.and_then(|number| i32::try_from(number).ok()).filter(|number| (MIN..=MAX).contains(number));
        number.map(Self).ok_or_else(|| D::Error::custom(format!("{value} is not a whole number from {MIN} to {MAX}")))
    }
}
