//! The types of CloudFormation's resources that have a meaning here. A resource of any other type only contributes its
//! logical id.

/// The type of tables.
pub(super) const TABLE: &str = "AWS::DynamoDB::Table";

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

/// The types that are read if they belong to the WebSocket API.
pub(super) const GATEWAY: [&str; 5] = [API_KEY, API_MAPPING, MODEL, USAGE_PLAN, USAGE_PLAN_KEY];

/// The types of generated resources that a service may extend.
pub(super) const EXTENSIBLE: [&str; 3] = [API, ROUTE, STAGE];

/// The types of generated resources whose additions are ignored. The retention of a log group does not matter here, and
/// a changed role is not imitated.
pub(super) const IGNORED_IF_GENERATED: [&str; 3] = [BUCKET, LOG_GROUP, ROLE];

pub(super) const API: &str = "AWS::ApiGatewayV2::Api";
pub(super) const ROUTE: &str = "AWS::ApiGatewayV2::Route";
pub(super) const STAGE: &str = "AWS::ApiGatewayV2::Stage";

// Resources of these types only have names and ARNs.
pub(super) const BUCKET: &str = "AWS::S3::Bucket";
pub(super) const FUNCTION: &str = "AWS::Lambda::Function";
pub(super) const LOG_GROUP: &str = "AWS::Logs::LogGroup";
pub(super) const QUEUE: &str = "AWS::SQS::Queue";
pub(super) const TOPIC: &str = "AWS::SNS::Topic";
