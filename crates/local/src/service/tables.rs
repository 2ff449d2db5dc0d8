//! [AWS::DynamoDB::Table](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-dynamodb-table.html):
//! the tables that templates define.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::definition::Table;
use super::error::Problem;
use super::findings::Findings;
use super::intrinsics::Intrinsics;
use super::key_path::KeyPath;

/// A table as a template has it.
#[derive(Debug)]
pub(super) struct TableDefinition {
    pub(super) logical_id: String,
    pub(super) properties: Map<String, Value>,
    /// The place of the properties.
    pub(super) at: KeyPath,
}

/// The properties of a table. They serialise to the body of a `CreateTable` call.
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
    #[serde(deserialize_with = "number")]
    read_capacity_units: u64,
    #[serde(deserialize_with = "number")]
    write_capacity_units: u64,
}

/// Reads a number, which may be a text. CloudFormation converts texts.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.ok_or_else(|| D::Error::custom(format!("{value} is not a whole number")))
}

/// Reads a boolean, which may be a text.
fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let boolean = value.as_bool().or_else(|| value.as_str()?.parse().ok());
    boolean.ok_or_else(|| D::Error::custom(format!("{value} is neither true nor false")))
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
    #[serde(deserialize_with = "boolean")]
    enabled: bool,
}

/// Reads tables. `default_prefix` begins the name of a table that has no `TableName`.
pub(super) fn read(
    mut definitions: Vec<TableDefinition>,
    intrinsics: &mut Intrinsics,
    default_prefix: &str,
    findings: &Findings,
) -> Vec<Table> {
    // Names come first, because a table's properties may refer to another table's name.
    for TableDefinition { logical_id, properties, at } in &mut definitions {
        let default = || format!("{default_prefix}-{logical_id}");
        let name = properties.get("TableName").map(|name| findings.keep(intrinsics.text(name, &at.key("TableName"))));
        properties.insert("TableName".to_owned(), Value::from(name.flatten().unwrap_or_else(default)));
    }
    for TableDefinition { logical_id, properties, at } in &definitions {
        let name = properties["TableName"].as_str().unwrap_or_default();
        findings.keep(intrinsics.resources.name_table(logical_id, name, &at.key("TableName")));
    }
    definitions
        .into_iter()
        .filter_map(|definition| findings.keep(table(definition, intrinsics, findings)).flatten())
        .collect()
}

fn table(definition: TableDefinition, intrinsics: &Intrinsics, findings: &Findings) -> Result<Option<Table>, Problem> {
    let TableDefinition { logical_id, properties, at } = definition;
    let properties = intrinsics.evaluate(&Value::Object(properties), &at)?;
    let Some(table): Option<TableProperties> = findings.parse(&properties, &at) else { return Ok(None) };
    let ttl_attribute = match &table.time_to_live_specification {
        Some(TimeToLiveSpecification { enabled: true, attribute_name: None }) => {
            return Err(Problem::new(&at.key("TimeToLiveSpecification"), "missing field `AttributeName`"));
        }
        Some(TimeToLiveSpecification { enabled: true, attribute_name }) => attribute_name.clone(),
        Some(_) | None => None,
    };
    let create_table = serde_json::to_value(&table)
        .map_err(|error| Problem::new(&at, format!("cannot be written as JSON: {error}")))?;
    Ok(Some(Table { logical_id, create_table, ttl_attribute }))
}
