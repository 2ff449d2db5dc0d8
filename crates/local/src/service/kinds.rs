//! The types of CloudFormation's resources that have a meaning here. A resource of any other type only contributes its
//! logical id.

/// The type of tables.
pub(super) const TABLE: &str = "AWS::DynamoDB::Table";

/// The type of tables with replicas. Here it is a table of one region.
pub(super) const GLOBAL_TABLE: &str = "AWS::DynamoDB::GlobalTable";

/// The types that make a table here.
pub(super) const TABLES: [&str; 2] = [TABLE, GLOBAL_TABLE];

/// The type of roles. A role is read for the functions that use it.
pub(super) const ROLE: &str = "AWS::IAM::Role";

/// The types of policies. A policy is read for the roles that it is attached to.
pub(super) const POLICIES: [&str; 3] = ["AWS::IAM::ManagedPolicy", "AWS::IAM::Policy", "AWS::IAM::RolePolicy"];

/// The type of the clients' keys.
pub(super) const API_KEY: &str = "AWS::ApiGateway::ApiKey";

/// The type of usage plans, which say what a key may use.
pub(super) const USAGE_PLAN: &str = "AWS::ApiGateway::UsagePlan";

/// The type that adds a key to a usage plan.
pub(super) const USAGE_PLAN_KEY: &str = "AWS::ApiGateway::UsagePlanKey";

/// The type that maps a path of a custom domain to an API.
pub(super) const API_MAPPING: &str = "AWS::ApiGatewayV2::ApiMapping";

/// The type of the models that messages must match.
pub(super) const MODEL: &str = "AWS::ApiGatewayV2::Model";

/// The types that are read if they belong to the WebSocket API or to a function.
pub(super) const GATEWAY: [&str; 8] =
    [API_KEY, API_MAPPING, EVENT_SOURCE_MAPPING, INTEGRATION, MODEL, ROUTE, USAGE_PLAN, USAGE_PLAN_KEY];

/// The types of generated resources that a service may extend.
pub(super) const EXTENSIBLE: [&str; 3] = [API, ROUTE, STAGE];

/// The types of generated resources whose additions are ignored. The retention of a log group does not matter here, and
/// a changed role is not imitated.
pub(super) const IGNORED_IF_GENERATED: [&str; 3] = [BUCKET, LOG_GROUP, ROLE];

/// The properties of a function that may be added to a generated one, because no client sees them.
pub(super) const FUNCTION_PROPERTIES: [&str; 8] = [
    "CodeSigningConfigArn",
    "DeadLetterConfig",
    "Description",
    "KmsKeyArn",
    "RecursiveLoop",
    "RuntimeManagementConfig",
    "Tags",
    "TracingConfig",
];

/// Types that need no name of their own here and that no function calls, besides those that the stack imitates.
pub(super) const PASSIVE: [&str; 8] = [API, API_KEY, FUNCTION, INTEGRATION, LOG_GROUP, PARAMETER, ROLE, STAGE];

/// The kind of a template's parameter. It is no type of a resource.
pub(super) const PARAMETER: &str = "parameter";

/// Returns the property that names a resource of this type.
pub(super) fn name_property(kind: &str) -> Option<&'static str> {
    Some(match kind {
        BUCKET => "BucketName",
        FUNCTION => "FunctionName",
        LOG_GROUP => "LogGroupName",
        QUEUE => "QueueName",
        ROLE => "RoleName",
        TOPIC => "TopicName",
        "AWS::Cognito::UserPool" => "UserPoolName",
        "AWS::Events::EventBus" | "AWS::Events::Rule" | "AWS::Kinesis::Stream" | "AWS::SSM::Parameter" => "Name",
        "AWS::KinesisFirehose::DeliveryStream" => "DeliveryStreamName",
        "AWS::SecretsManager::Secret" => "Name",
        "AWS::StepFunctions::StateMachine" => "StateMachineName",
        _ => return None,
    })
}

pub(super) const API: &str = "AWS::ApiGatewayV2::Api";
pub(super) const INTEGRATION: &str = "AWS::ApiGatewayV2::Integration";
pub(super) const EVENT_SOURCE_MAPPING: &str = "AWS::Lambda::EventSourceMapping";
pub(super) const ROUTE: &str = "AWS::ApiGatewayV2::Route";
pub(super) const STAGE: &str = "AWS::ApiGatewayV2::Stage";

// Resources of these types only have names and ARNs.
pub(super) const BUCKET: &str = "AWS::S3::Bucket";
pub(super) const FUNCTION: &str = "AWS::Lambda::Function";
pub(super) const LOG_GROUP: &str = "AWS::Logs::LogGroup";
pub(super) const QUEUE: &str = "AWS::SQS::Queue";
pub(super) const TOPIC: &str = "AWS::SNS::Topic";
