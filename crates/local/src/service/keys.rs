//! The keys that the local stack reads, ignores and refuses.
//!
//! A key is ignored if it changes nothing that a client or a function can see. It is refused if it would change
//! something that the stack does not imitate. All other keys are read, and a key that cannot be read is an error. The
//! lists follow the schema of the Serverless Framework (`config-schema.js` and the AWS provider's `provider.js`) and
//! [AWS::DynamoDB::Table](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-dynamodb-table.html).

use serde_json::{Map, Value};

use super::generated::{API, STAGE};
use super::key_path::KeyPath;
use super::kinds::{GATEWAY, POLICIES, ROLE, TABLE};

/// The treatment of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    Read,
    /// Like [`Treatment::Read`], but variables without a value stay as they are. Most such values do not matter here.
    ReadLeniently,
    Ignore,
    Refuse,
}

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
        ["functions", _] if key == "role" => return Treatment::ReadLeniently,
        ["resources"] if key == "Conditions" => return Treatment::ReadLeniently,
        ["provider"] if PROVIDER_ROLE.contains(&key) => return Treatment::ReadLeniently,
        [] => (TOP_LEVEL, &[]),
        ["provider"] => (PROVIDER, &["vpc"]),
        ["provider", "logs"] => (&["frameworkLambda", "httpApi", "restApi", "websocket"], &[]),
        ["provider", "logs", "lambda"] | ["functions", _, "logs"] => (&["logGroup", "systemLogLevel"], &[]),
        ["functions", _] => (FUNCTION, REFUSED_FUNCTION),
        ["functions", _, "events"] => (&[], REFUSED_EVENTS),
        ["functions", _, "events", "stream"] => {
            (&[], &["consumer", "startingPositionTimestamp", "tumblingWindowInSeconds"])
        }
        ["functions", _, "events", "schedule"] => {
            (&["description", "name"], &["input", "inputPath", "inputTransformer", "method", "timezone"])
        }
        ["resources"] => (TEMPLATE, &["Transform"]),
        ["resources", "extensions"] => match ignored_properties(key) {
            Some(_) => (&[], &[]),
            // Permissions to invoke a function do not matter here.
            None if key.ends_with("LambdaPermissionWebsockets") => return Treatment::Ignore,
            None => return Treatment::Refuse,
        },
        ["resources", "extensions", _] => (RESOURCE, &["Condition"]),
        ["resources", "Resources", id] if ignored_properties(id).is_some() => (RESOURCE, &["Condition"]),
        ["resources", "extensions" | "Resources", id, "Properties"] if ignored_properties(id).is_some() => {
            (ignored_properties(id).unwrap_or_default(), &[])
        }
        ["resources", "Resources", _] if kind == Some(TABLE) => (RESOURCE, &["Condition"]),
        ["resources", "Resources", _] => {
            let is_iam = kind.is_some_and(|kind| kind == ROLE || POLICIES.contains(&kind));
            let is_gateway = kind.is_some_and(|kind| GATEWAY.contains(&kind));
            return match key {
                "Type" => Treatment::Read,
                "Condition" if is_gateway => Treatment::Read,
                "Properties" if is_iam || is_gateway => Treatment::ReadLeniently,
                _ => Treatment::Ignore,
            };
        }
        ["resources", "Resources", _, "Properties"] => {
            (TABLE_PROPERTIES, &["ImportSourceSpecification", "KinesisStreamSpecification"])
        }
        ["resources", "Resources", _, "Properties", "GlobalSecondaryIndexes"] => {
            (&["ContributorInsightsSpecification", "OnDemandThroughput", "WarmThroughput"], &[])
        }
        ["resources", "Resources", _, "Properties", "StreamSpecification"] => (&["ResourcePolicy"], &[]),
        _ => (&[], &[]),
    };
    if ignored.contains(&key) {
        Treatment::Ignore
    } else if refused.contains(&key) {
        Treatment::Refuse
    } else {
        Treatment::Read
    }
}

const TOP_LEVEL: &[&str] = &[
    "app",
    "build",
    "configValidationMode",
    "custom",
    "deprecationNotificationMode",
    "disabledDeprecations",
    "frameworkVersion",
    "layers",
    "org",
    "outputs",
    "package",
    "params",
    "plugins",
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
    "httpApi",
    "kinesis",
    "kmsKeyArn",
    "layers",
    "logDataProtectionPolicy",
    "logRetentionInDays",
    "notificationArns",
    "profile",
    "pruneFunctionVersions",
    "rollbackConfiguration",
    "runtime",
    "runtimeManagement",
    "stackParameters",
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
    "layers",
    "logDataProtectionPolicy",
    "logRetentionInDays",
    "maximumEventAge",
    "maximumRetryAttempts",
    "onError",
    "package",
    "provisionedConcurrency",
    "recursiveLoop",
    "runtime",
    "runtimeManagement",
    "tags",
    "tracing",
    "versionFunction",
];

const REFUSED_FUNCTION: &[&str] =
    &["condition", "durableConfig", "fileSystemConfig", "image", "snapStart", "url", "vpc"];

const REFUSED_EVENTS: &[&str] = &[
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
    "kafka",
    "msk",
    "rabbitmq",
    "s3",
    "sns",
    "sqs",
];

const TEMPLATE: &[&str] =
    &["AWSTemplateFormatVersion", "Description", "Mappings", "Metadata", "Outputs", "Parameters", "Rules"];

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
];
