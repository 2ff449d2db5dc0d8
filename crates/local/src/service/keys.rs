//! The keys that the local stack reads, ignores and refuses.
//!
//! A key is ignored if it changes nothing that a client or a function can see. It is ignored with a warning if it is about
//! something that never happens on a laptop. It is refused if it would change what the stack imitates. All other keys are
//! read. The lists follow the schema of the Serverless Framework (`config-schema.js` and the AWS provider's `provider.js`) and
//! [AWS::DynamoDB::Table](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-dynamodb-table.html).

use serde_json::{Map, Value};

use super::generated::{API, STAGE};
use super::key_path::KeyPath;
use super::kinds::TABLES;
use super::shapes;

/// The treatment of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Treatment {
    Read,
    /// Like [`Treatment::Read`], but variables that only a deployment knows stay as they are, with a warning.
    ReadWithPlaceholders,
    /// Like [`Treatment::Read`], but variables without a value stay as they are. Most such values do not matter here.
    ReadLeniently,
    Ignore,
    /// Ignore it, and tell the reason.
    Warn(String),
    /// Ignore it, and say why the framework refuses it.
    Invalid(String),
    /// Refuse it for this reason.
    Refuse(String),
}

/// The reason why a key is refused, if there is no better one.
const NOT_SUPPORTED: &str = "not supported by the local stack";

/// Returns the properties to ignore of a generated resource whose other properties are read.
fn ignored_properties(id: &str) -> Option<&'static [&'static str]> {
    match id {
        API => Some(API_PROPERTIES),
        STAGE => Some(STAGE_PROPERTIES),
        _ => id.ends_with("WebsocketsRoute").then_some(&["OperationName"]),
    }
}

/// Returns the treatment of `key` in the mapping `siblings`, which has the key `parent` in the resolved document.
///
/// An ignored value is not resolved, because it may use variables that only a deployment knows.
pub(super) fn treatment(parent: &KeyPath, key: &str, siblings: &Map<String, Value>) -> Treatment {
    let kind = siblings.get("Type").and_then(Value::as_str);
    let (ignored, refused): (&[&str], &[&str]) = match parent.keys().as_slice() {
        ["functions", _] if ["package", "role"].contains(&key) => return Treatment::ReadLeniently,
        ["resources"] if ["Conditions", "Mappings", "Parameters"].contains(&key) => return Treatment::ReadLeniently,
        ["provider"] if PROVIDER_ROLE.contains(&key) => return Treatment::ReadLeniently,
        ["provider"] if key == "stackParameters" => return Treatment::ReadLeniently,
        ["functions", _] if FUNCTION_ROLE.contains(&key) => return Treatment::ReadLeniently,
        ["provider" | "functions", .., "environment"] => return Treatment::ReadWithPlaceholders,
        [] if key == "plugins" => return Treatment::Ignore,
        [] => (TOP_LEVEL, &[]),
        ["provider"] => match NOT_HERE.iter().find(|(known, _)| *known == key) {
            Some((_, reason)) => return Treatment::Warn((*reason).to_owned()),
            None => (PROVIDER, &[]),
        },
        ["provider", "logs"] => (&["frameworkLambda", "httpApi", "restApi", "websocket"], &[]),
        ["provider", "logs", "lambda"] | ["functions", _, "logs"] => (&["logGroup", "systemLogLevel"], &[]),
        ["functions", _] => match NOT_HERE.iter().find(|(known, _)| *known == key) {
            Some((_, reason)) => return Treatment::Warn((*reason).to_owned()),
            None => (FUNCTION, &["condition", "durableConfig"]),
        },
        ["functions", _, "events"] if OTHER_EVENTS.contains(&key) => {
            return Treatment::Warn(format!("`{key}` events never come here"));
        }
        ["functions", _, "events"] if key == "websocket" && siblings.get(key).is_some_and(Value::is_null) => {
            return Treatment::Invalid("an event without a route is none".to_owned());
        }
        ["functions", _, "events", "stream"] => {
            (&["consumer"], &["startingPositionTimestamp", "tumblingWindowInSeconds"])
        }
        ["functions", _, "events", "schedule"] => (&["description", "name"], &[]),
        ["resources"] => (TEMPLATE, &["Transform"]),
        ["resources", "extensions"] => {
            return if key.ends_with("LambdaPermissionWebsockets") { Treatment::Ignore } else { Treatment::Read };
        }
        ["resources", "extensions", _] => (RESOURCE, &["Condition"]),
        ["resources", "Resources", id] if ignored_properties(id).is_some() => (RESOURCE, &["Condition"]),
        ["resources", "extensions" | "Resources", id, "Properties"] if ignored_properties(id).is_some() => {
            (ignored_properties(id).unwrap_or_default(), &[])
        }
        ["resources", "Resources"] if !key.chars().all(|it| it.is_ascii_alphanumeric()) => {
            return Treatment::Refuse("a logical id has letters and digits only".to_owned());
        }
        ["resources", "Resources", _] if kind.is_some_and(|kind| TABLES.contains(&kind)) => (RESOURCE, &[]),
        ["resources", "Resources", _] => {
            return match key {
                "Type" | "Condition" => Treatment::Read,
                "Properties" => Treatment::ReadLeniently,
                key if RESOURCE.contains(&key) || kind.is_none() => Treatment::Ignore,
                _ => Treatment::Invalid("CloudFormation has no such attribute of a resource".to_owned()),
            };
        }
        ["resources", "Resources", _, "Properties"] => {
            (TABLE_PROPERTIES, &["ImportSourceSpecification", "KinesisStreamSpecification"])
        }
        ["resources", "Resources", _, "Properties", "GlobalSecondaryIndexes"] => (INDEX_PROPERTIES, &[]),
        ["resources", "Resources", _, "Properties", "StreamSpecification"] => (&["ResourcePolicy"], &[]),
        _ => (&[], &[]),
    };
    if ignored.contains(&key) {
        let value = siblings.get(key).unwrap_or(&Value::Null);
        shapes::problem(&parent.keys(), key, value).map_or(Treatment::Ignore, Treatment::Invalid)
    } else if refused.contains(&key) {
        Treatment::Refuse(NOT_SUPPORTED.to_owned())
    } else {
        Treatment::Read
    }
}

const TOP_LEVEL: &[&str] = &[
    "app",
    "build",
    "console",
    "custom",
    "deprecationNotificationMode",
    "disabledDeprecations",
    "frameworkVersion",
    "layers",
    "org",
    "outputs",
    "package",
    "params",
    "projectDir",
    "stages",
    "useDotenv",
    "variablesResolutionMode",
];

const PROVIDER: &[&str] = &[
    "alb",
    "apiGateway",
    "apiName",
    "architecture",
    "cfnRole",
    "cloudFront",
    "deletionProtection",
    "deploymentBucket",
    "deploymentMethod",
    "deploymentPrefix",
    "disableRollback",
    "ecr",
    "endpointType",
    "eventBridge",
    "httpApi",
    "kinesis",
    "kmsKeyArn",
    "lambdaHashingVersion",
    "logDataProtectionPolicy",
    "logRetentionInDays",
    "notificationArns",
    "profile",
    "pruneFunctionVersions",
    "rollbackConfiguration",
    "runtime",
    "runtimeManagement",
    "s3",
    "stackPolicy",
    "stackTags",
    "tags",
    "tracing",
    "versionFunctions",
    "vpcEndpointIds",
    "websocket",
    "websocketsApiName",
    "websocketsDescription",
];

/// The keys that define the role of functions without one of their own.
const PROVIDER_ROLE: &[&str] = &["iam", "iamManagedPolicies", "iamRoleStatements", "role", "rolePermissionsBoundary"];

/// Ignored keys. `destinations`, `maximumEventAge`, `maximumRetryAttempts` and `onError` are about asynchronous
/// invocations, which do not happen here.
const FUNCTION: &[&str] = &[
    "architecture",
    "awsKmsKeyArn",
    "dependsOn",
    "description",
    "destinations",
    "disableLogs",
    "ephemeralStorageSize",
    "httpApi",
    "kmsKeyArn",
    "logDataProtectionPolicy",
    "logRetentionInDays",
    "maximumEventAge",
    "maximumRetryAttempts",
    "onError",
    "provisionedConcurrency",
    "recursiveLoop",
    "runtime",
    "runtimeManagement",
    "tags",
    "tracing",
    "versionFunction",
];

/// The keys that the serverless-iam-roles-per-function plugin reads.
const FUNCTION_ROLE: &[&str] = &["iamRoleStatements", "iamRoleStatementsInherit", "iamRoleStatementsName"];

/// Keys of the provider and of functions whose meaning no client can see, or that is missing loudly.
const NOT_HERE: &[(&str, &str)] = &[
    ("fileSystemConfig", "no file system is mounted here"),
    ("layers", "layers are not loaded here"),
    ("snapStart", "there are no snapshots here"),
    ("url", "function URLs are not served here"),
    ("vpc", "functions are in this machine's network, not in a VPC"),
];

const OTHER_EVENTS: &[&str] = &[
    "activemq",
    "alb",
    "alexaSkill",
    "alexaSmartHome",
    "cloudFront",
    "cloudwatchEvent",
    "cloudwatchLog",
    "cognitoUserPool",
    "eventBridge",
    "http",
    "httpApi",
    "iot",
    "iotFleetProvisioning",
    "kinesis",
    "kafka",
    "msk",
    "rabbitmq",
    "s3",
    "sns",
    "sqs",
];

const TEMPLATE: &[&str] = &["AWSTemplateFormatVersion", "Description", "Hooks", "Metadata", "Outputs", "Rules"];

const RESOURCE: &[&str] =
    &["CreationPolicy", "DeletionPolicy", "DependsOn", "Metadata", "UpdatePolicy", "UpdateReplacePolicy"];

const API_PROPERTIES: &[&str] =
    &["Description", "DisableSchemaValidation", "FailOnWarnings", "IpAddressType", "Name", "Tags", "Version"];

/// Ignored properties. For throttling the local stack has a rate for all routes, and for access logs the terminal.
const STAGE_PROPERTIES: &[&str] = &[
    "AccessLogSettings",
    "AccessPolicyId",
    "AutoDeploy",
    "ClientCertificateId",
    "DefaultRouteSettings",
    "Description",
    "RouteSettings",
    "Tags",
];

/// Ignored properties of tables. The last ones are those of global tables.
const TABLE_PROPERTIES: &[&str] = &[
    "ContributorInsightsSpecification",
    "DeletionProtectionEnabled",
    "OnDemandThroughput",
    "PointInTimeRecoverySpecification",
    "ResourcePolicy",
    "SSESpecification",
    "TableClass",
    "Tags",
    "WarmThroughput",
    "GlobalTableSettingsReplicationMode",
    "GlobalTableWitnesses",
    "MultiRegionConsistency",
    "ReadOnDemandThroughputSettings",
    "ReadProvisionedThroughputSettings",
    "WriteOnDemandThroughputSettings",
    "WriteProvisionedThroughputSettings",
];

const INDEX_PROPERTIES: &[&str] = &[
    "ContributorInsightsSpecification",
    "OnDemandThroughput",
    "ReadOnDemandThroughputSettings",
    "ReadProvisionedThroughputSettings",
    "WarmThroughput",
    "WriteOnDemandThroughputSettings",
    "WriteProvisionedThroughputSettings",
];
