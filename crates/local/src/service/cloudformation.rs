//! CloudFormation, as far as tables, environment values and roles need it: the logical ids of the stack, its
//! conditions, the intrinsic functions `Ref`, `Fn::GetAtt`, `Fn::Sub`, `Fn::Join` and `Fn::If`, and
//! `AWS::DynamoDB::Table` ([intrinsic
//! functions](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/intrinsic-function-reference.html)).
//!
//! Roles are in `roles.rs`, the parts of the WebSocket API in `websocket.rs`. Resources that do not exist locally
//! (queues, log groups, …) only have names and ARNs of the right form.
//!
//! A service's definition of a generated resource is merged into the framework's: first `Resources`, level by level,
//! then the properties of `extensions`, each as a whole (`merge-custom-provider-resources.js`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::error::{KeyPath, Problem, ServiceError};
use super::keys::{API, API_KEY, DEFAULT_ROLE, GATEWAY, POLICIES, ROLE, STAGE, TABLE, USAGE_PLAN, route_id};
use super::variables::Document;
use super::{API_ID, Table};
use crate::iam::ACCOUNT_ID;

/// The CloudFormation stack that a deployment would create.
#[derive(Debug)]
pub(super) struct Stack {
    name: String,
    region: String,
    /// By logical id.
    resources: BTreeMap<String, Resource>,
    /// The conditions by name, each with its place.
    conditions: BTreeMap<String, (Value, KeyPath)>,
    /// The properties of roles, policies and the gateway's resources by logical id, each with its place.
    pub(super) definitions: BTreeMap<String, (Value, KeyPath)>,
    /// The properties that the templates add to generated resources, by logical id.
    pub(super) additions: BTreeMap<String, Properties>,
}

/// Properties by name, each with its place.
pub(super) type Properties = BTreeMap<String, (Value, KeyPath)>;

#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: String,
    /// The physical name. A table's is not known while its `TableName` is being evaluated.
    name: Option<String>,
    has_stream: bool,
}

/// The parts of the service that decide about names in the stack.
#[derive(Debug)]
pub(super) struct Names<'a> {
    pub(super) service: &'a str,
    pub(super) stage: &'a str,
    pub(super) region: &'a str,
    pub(super) stack: String,
    /// The function names by function key.
    pub(super) functions: &'a BTreeMap<String, String>,
    /// The route keys.
    pub(super) routes: &'a BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a CloudFormation template")]
struct Template {
    #[serde(default)]
    resources: BTreeMap<String, ResourceDefinition>,
    #[serde(default)]
    conditions: BTreeMap<String, Value>,
    /// The extensions that `keys.rs` allows.
    #[serde(default, rename = "extensions")]
    extensions: BTreeMap<String, Extension>,
}

/// An addition to a resource that the framework generates.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a mapping with properties")]
struct Extension {
    #[serde(default)]
    properties: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a resource")]
struct ResourceDefinition {
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(default)]
    properties: Map<String, Value>,
    condition: Option<String>,
}

/// [AWS::DynamoDB::Table](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-dynamodb-table.html),
/// which serialises to the body of a `CreateTable` call.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct TableProperties {
    #[serde(default)]
    table_name: String,
    attribute_definitions: Vec<AttributeDefinition>,
    key_schema: Vec<KeySchemaElement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    billing_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioned_throughput: Option<ProvisionedThroughput>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    local_secondary_indexes: Vec<Index>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    global_secondary_indexes: Vec<Index>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_specification: Option<StreamSpecification>,
    #[serde(skip_serializing)]
    time_to_live_specification: Option<TimeToLiveSpecification>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct AttributeDefinition {
    attribute_name: String,
    attribute_type: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct KeySchemaElement {
    attribute_name: String,
    key_type: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ProvisionedThroughput {
    read_capacity_units: u64,
    write_capacity_units: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Index {
    index_name: String,
    key_schema: Vec<KeySchemaElement>,
    projection: Projection,
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioned_throughput: Option<ProvisionedThroughput>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Projection {
    #[serde(skip_serializing_if = "Option::is_none")]
    projection_type: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    non_key_attributes: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct StreamSpecification {
    /// CloudFormation does not have this member: a specification means true.
    #[serde(skip_deserializing, default = "enabled")]
    stream_enabled: bool,
    stream_view_type: StreamViewType,
}

fn enabled() -> bool {
    true
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum StreamViewType {
    KeysOnly,
    NewImage,
    OldImage,
    NewAndOldImages,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct TimeToLiveSpecification {
    attribute_name: Option<String>,
    enabled: bool,
}

impl Stack {
    /// Reads `resources`: one template, or a list of them.
    pub(super) fn load(
        document: &Document,
        resources: &Value,
        names: &Names<'_>,
    ) -> Result<(Self, Vec<Table>), ServiceError> {
        let mut stack = Self {
            name: names.stack.clone(),
            region: names.region.to_owned(),
            resources: generated_resources(names),
            conditions: BTreeMap::new(),
            definitions: BTreeMap::new(),
            additions: BTreeMap::new(),
        };
        let mut tables = Vec::new();
        let mut extensions: BTreeMap<String, Properties> = BTreeMap::new();
        let mut conditional = Vec::new();
        for (template, at) in parts(resources, &KeyPath::default().key("resources")) {
            let template: Template = document.parse(template, &at)?;
            for (name, condition) in template.conditions {
                let at = at.key("Conditions").key(&name);
                stack.conditions.insert(name, (condition, at));
            }
            for (id, definition) in template.resources {
                let at = at.key("Resources").key(&id);
                let problem = |reason: String| document.error(Problem::new(&at, reason));
                if let Some(known) = stack.resources.get(&id) {
                    let is_extensible = EXTENSIBLE.contains(&known.kind.as_str());
                    if is_extensible && definition.kind.is_none() {
                        // The framework has this check, too.
                        return Err(problem("missing field `Type`".to_owned()));
                    }
                    if is_extensible && definition.kind.as_ref() == Some(&known.kind) {
                        merge(stack.additions.entry(id).or_default(), definition.properties, &at.key("Properties"));
                        continue;
                    }
                    // The retention of a log group does not matter here. A changed role is not imitated.
                    if known.kind == ROLE {
                        stack.additions.entry(id.clone()).or_default();
                    }
                    if IGNORED_IF_GENERATED.contains(&known.kind.as_str()) {
                        continue;
                    }
                    return Err(problem("the stack has a resource of this logical id already".to_owned()));
                }
                let kind = definition.kind.ok_or_else(|| problem("missing field `Type`".to_owned()))?;
                let (name, has_stream) = if kind == TABLE {
                    let has_stream = definition.properties.contains_key("StreamSpecification");
                    tables.push((id.clone(), definition.properties, at.key("Properties")));
                    (None, has_stream)
                } else {
                    if kind == ROLE || POLICIES.contains(&kind.as_str()) || GATEWAY.contains(&kind.as_str()) {
                        let properties = Value::Object(definition.properties);
                        stack.definitions.insert(id.clone(), (properties, at.key("Properties")));
                    }
                    conditional.extend(definition.condition.map(|name| (id.clone(), name, at.key("Condition"))));
                    let name = format!("{}-{id}", stack.name);
                    (Some(if [API_KEY, USAGE_PLAN].contains(&kind.as_str()) { short_id(&name) } else { name }), false)
                };
                stack.resources.insert(id, Resource { kind, name, has_stream });
            }
            for (id, extension) in template.extensions {
                let at = at.key("extensions").key(&id);
                if !stack.resources.get(&id).is_some_and(|it| EXTENSIBLE.contains(&it.kind.as_str())) {
                    let reason = "the framework generates no resource of this logical id";
                    return Err(document.error(Problem::new(&at, reason)));
                }
                merge(extensions.entry(id).or_default(), extension.properties, &at.key("Properties"));
            }
        }
        for (id, properties) in extensions {
            stack.additions.entry(id).or_default().extend(properties);
        }
        for (id, condition, at) in conditional {
            let exists = stack.condition(&condition, &at, stack.conditions.len());
            if !exists.map_err(|problem| document.error(problem))? {
                stack.definitions.remove(&id);
            }
        }

        // Names come first, because a table's properties may refer to another table's name.
        for (id, properties, at) in &mut tables {
            let name = match properties.get("TableName") {
                Some(name) => stack.text(name, &at.key("TableName")).map_err(|problem| document.error(problem))?,
                None => format!("{}-{}-{id}", names.service, names.stage),
            };
            properties.insert("TableName".to_owned(), Value::from(name));
        }
        for (id, properties, at) in &tables {
            let name = properties["TableName"].as_str();
            if let Some((other, _)) =
                stack.resources.iter().find(|(_, it)| it.kind == TABLE && it.name.as_deref() == name)
            {
                let reason = format!("`{other}` has this name already");
                return Err(document.error(Problem::new(&at.key("TableName"), reason)));
            }
            if let Some(resource) = stack.resources.get_mut(id) {
                resource.name = name.map(str::to_owned);
            }
        }
        let tables = tables
            .into_iter()
            .map(|(id, properties, at)| stack.table(document, id, properties, &at))
            .collect::<Result<_, _>>()?;
        Ok((stack, tables))
    }

    fn table(
        &self,
        document: &Document,
        logical_id: String,
        properties: Map<String, Value>,
        at: &KeyPath,
    ) -> Result<Table, ServiceError> {
        let properties = self.evaluate(&Value::Object(properties), at).map_err(|problem| document.error(problem))?;
        let table: TableProperties = document.parse(&properties, at)?;
        let ttl_attribute = match &table.time_to_live_specification {
            Some(TimeToLiveSpecification { enabled: true, attribute_name: None }) => {
                let at = at.key("TimeToLiveSpecification");
                return Err(document.error(Problem::new(&at, "missing field `AttributeName`")));
            }
            Some(TimeToLiveSpecification { enabled: true, attribute_name }) => attribute_name.clone(),
            Some(_) | None => None,
        };
        let create_table = serde_json::to_value(&table)
            .map_err(|error| document.error(Problem::new(at, format!("cannot be written as JSON: {error}"))))?;
        Ok(Table { logical_id, create_table, ttl_attribute })
    }

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

    /// Returns the table that `arn` refers to: `{"Fn::GetAtt": [table, "StreamArn"]}`.
    pub(super) fn stream_table(&self, arn: &Value, at: &KeyPath) -> Result<String, Problem> {
        // This evaluates `arn` for its errors: the table must exist and have a stream.
        self.text(arn, at)?;
        match arn["Fn::GetAtt"].as_array().map(Vec::as_slice) {
            Some([Value::String(table), Value::String(attribute)]) if attribute == "StreamArn" => Ok(table.clone()),
            _ => Err(Problem::new(at, "the local stack needs the Fn::GetAtt of a table's StreamArn here")),
        }
    }

    /// Replaces the intrinsic functions in `value` by their results.
    pub(super) fn evaluate(&self, value: &Value, at: &KeyPath) -> Result<Value, Problem> {
        self.optional(value, at)?.ok_or_else(|| Problem::new(at, "`AWS::NoValue` cannot stand here"))
    }

    /// Does the same as [`Self::evaluate`], but returns `None` for `AWS::NoValue`, which disappears from lists and
    /// mappings.
    pub(super) fn optional(&self, value: &Value, at: &KeyPath) -> Result<Option<Value>, Problem> {
        match value {
            Value::Object(entries) => match intrinsic(entries) {
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
                let holds = self.condition(condition, at, self.conditions.len())?;
                let (value, index) = if holds { (then, 1) } else { (otherwise, 2) };
                self.optional(value, &at.index(index))
            }
            _ => Err(Problem::new(at, "expected a condition and two values")),
        }
    }

    /// Tells whether a condition of the templates holds. More than `depth` references from one condition to the next
    /// are a circle.
    fn condition(&self, name: &str, at: &KeyPath, depth: usize) -> Result<bool, Problem> {
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
            ("Condition", Value::String(name), _) => self.condition(name, &at, depth),
            ("Fn::Equals", _, [one, other]) => Ok(self.text(one, &at.index(0))? == self.text(other, &at.index(1))?),
            ("Fn::Not", _, [one]) => self.holds(one, &at.index(0), depth).map(|holds| !holds),
            ("Fn::And", _, [_, ..]) => each.try_fold(true, |all, holds| Ok(all & holds?)),
            ("Fn::Or", _, [_, ..]) => each.try_fold(false, |any, holds| Ok(any | holds?)),
            _ => Err(Problem::new(&at, "not supported by the local stack")),
        }
    }

    fn call(&self, function: &str, argument: &Value, at: &KeyPath) -> Result<String, Problem> {
        match (function, argument) {
            ("Ref", Value::String(id)) => self.reference(id, at),
            ("Fn::GetAtt", Value::Array(items)) => match items.as_slice() {
                [Value::String(id), Value::String(attribute)] => self.attribute(id, attribute, at),
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
                substituted.push_str(&self.attribute(id, attribute, at)?);
            } else {
                substituted.push_str(&self.reference(name, at)?);
            }
        }
        substituted.push_str(rest);
        Ok(substituted)
    }

    fn reference(&self, id: &str, at: &KeyPath) -> Result<String, Problem> {
        match id {
            "AWS::AccountId" => return Ok(ACCOUNT_ID.to_owned()),
            "AWS::Partition" => return Ok("aws".to_owned()),
            "AWS::Region" => return Ok(self.region.clone()),
            "AWS::StackName" => return Ok(self.name.clone()),
            "AWS::URLSuffix" => return Ok("amazonaws.com".to_owned()),
            _ => {}
        }
        let (resource, name) = self.resource(id, at)?;
        Ok(match resource.kind.as_str() {
            "AWS::SQS::Queue" => self.queue_url(name),
            "AWS::SNS::Topic" => self.arn(resource, name),
            _ => name.to_owned(),
        })
    }

    fn attribute(&self, id: &str, attribute: &str, at: &KeyPath) -> Result<String, Problem> {
        let (resource, name) = self.resource(id, at)?;
        match (resource.kind.as_str(), attribute) {
            (TABLE, "StreamArn") if resource.has_stream => {
                Ok(format!("{}/stream/2015-05-11T21:21:33.291", self.arn(resource, name)))
            }
            (TABLE, "StreamArn") => Err(Problem::new(at, format!("the table `{id}` has no StreamSpecification"))),
            ("AWS::ApiGatewayV2::Api", "ApiId") => Ok(name.to_owned()),
            ("AWS::ApiGatewayV2::Api", "ApiEndpoint") => {
                Ok(format!("wss://{name}.execute-api.{}.amazonaws.com", self.region))
            }
            (API_KEY, "APIKeyId") | (USAGE_PLAN, "Id") => Ok(name.to_owned()),
            ("AWS::SNS::Topic", "TopicArn") | (_, "Arn") => Ok(self.arn(resource, name)),
            ("AWS::SNS::Topic", "TopicName") | ("AWS::SQS::Queue", "QueueName") => Ok(name.to_owned()),
            ("AWS::SQS::Queue", "QueueUrl") => Ok(self.queue_url(name)),
            _ => Err(Problem::new(at, format!("the local stack does not know `{id}.{attribute}`"))),
        }
    }

    pub(super) fn resource(&self, id: &str, at: &KeyPath) -> Result<(&Resource, &str), Problem> {
        let unknown = || Problem::new(at, format!("the stack has no resource `{id}`"));
        let resource = self.resources.get(id).ok_or_else(unknown)?;
        let unnamed = || Problem::new(at, format!("a TableName cannot depend on the table `{id}`"));
        Ok((resource, resource.name.as_deref().ok_or_else(unnamed)?))
    }

    fn queue_url(&self, name: &str) -> String {
        format!("https://sqs.{}.amazonaws.com/{ACCOUNT_ID}/{name}", self.region)
    }

    fn arn(&self, resource: &Resource, name: &str) -> String {
        let region = &self.region;
        match resource.kind.as_str() {
            TABLE => format!("arn:aws:dynamodb:{region}:{ACCOUNT_ID}:table/{name}"),
            "AWS::IAM::Role" => format!("arn:aws:iam::{ACCOUNT_ID}:role/{name}"),
            "AWS::Lambda::Function" => format!("arn:aws:lambda:{region}:{ACCOUNT_ID}:function:{name}"),
            "AWS::Logs::LogGroup" => format!("arn:aws:logs:{region}:{ACCOUNT_ID}:log-group:{name}:*"),
            "AWS::S3::Bucket" => format!("arn:aws:s3:::{name}"),
            kind => {
                let service = kind.split("::").nth(1).unwrap_or(kind).to_lowercase();
                format!("arn:aws:{service}:{region}:{ACCOUNT_ID}:{name}")
            }
        }
    }
}

/// Returns the elements of a list with their keys, or the value itself if it is not a list.
pub(super) fn parts<'a>(value: &'a Value, at: &KeyPath) -> Vec<(&'a Value, KeyPath)> {
    let parts = match value {
        Value::Array(items) => items.iter().enumerate().map(|(index, item)| (item, at.index(index))).collect(),
        other => vec![(other, at.clone())],
    };
    parts.into_iter().filter(|(part, _)| !part.is_null()).collect()
}

/// Returns the call of an intrinsic function: a mapping with the one key `Ref` or `Fn::…`.
fn intrinsic(entries: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (name, argument) = entries.iter().next().filter(|_| entries.len() == 1)?;
    (name == "Ref" || name.starts_with("Fn::")).then_some((name.as_str(), argument))
}

/// The types of generated resources that a service may extend.
const EXTENSIBLE: [&str; 3] = ["AWS::ApiGatewayV2::Api", "AWS::ApiGatewayV2::Route", "AWS::ApiGatewayV2::Stage"];

/// The types of generated resources whose additions are ignored.
const IGNORED_IF_GENERATED: [&str; 3] = ["AWS::IAM::Role", "AWS::Logs::LogGroup", "AWS::S3::Bucket"];

/// Adds properties to others. A mapping is merged with the existing one.
fn merge(properties: &mut Properties, added: Map<String, Value>, at: &KeyPath) {
    for (key, value) in added {
        let at = at.key(&key);
        match (properties.get_mut(&key), value) {
            (Some((Value::Object(entries), _)), Value::Object(added)) if intrinsic(&added).is_none() => {
                entries.extend(added);
            }
            (_, value) => drop(properties.insert(key, (value, at))),
        }
    }
}

/// Makes an id like those of keys and plans in API Gateway: ten characters. It is the same in every run.
fn short_id(name: &str) -> String {
    sha256(name)[..10].to_owned()
}

/// Returns the digest in hexadecimal.
pub(super) fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the resources that the framework generates and a service may refer to; see its `naming.js`.
fn generated_resources(names: &Names<'_>) -> BTreeMap<String, Resource> {
    let Names { service, stage, region, functions, routes, .. } = names;
    let mut generated = vec![
        (API.to_owned(), "AWS::ApiGatewayV2::Api", API_ID.to_owned()),
        (STAGE.to_owned(), "AWS::ApiGatewayV2::Stage", (*stage).to_owned()),
        (DEFAULT_ROLE.to_owned(), "AWS::IAM::Role", format!("{service}-{stage}-{region}-lambdaRole")),
        ("ServerlessDeploymentBucket".to_owned(), "AWS::S3::Bucket", format!("{service}-{stage}-deployment")),
    ];
    for route in *routes {
        generated.push((route_id(route), "AWS::ApiGatewayV2::Route", format!("{API_ID}-{route}")));
    }
    for (key, name) in *functions {
        let normalized = normalized(key);
        generated.push((format!("{normalized}LambdaFunction"), "AWS::Lambda::Function", name.clone()));
        generated.push((format!("{normalized}LogGroup"), "AWS::Logs::LogGroup", format!("/aws/lambda/{name}")));
    }
    let resource = |kind: &str, name| Resource { kind: kind.to_owned(), name: Some(name), has_stream: false };
    generated.into_iter().map(|(id, kind, name)| (id, resource(kind, name))).collect()
}

/// Returns a function key in the form of logical ids: `send-message` is `SendDashmessage`.
fn normalized(key: &str) -> String {
    let key = key.replace('-', "Dash").replace('_', "Underscore");
    let mut characters = key.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}
