//! The resources that the Serverless Framework generates, with its names for them; see its `naming.js`.

use std::collections::{BTreeMap, BTreeSet};

use super::definition::API_ID;
use super::kinds;
use super::resources::Resource;

/// The logical id of the API.
pub(super) const API: &str = "WebsocketsApi";

/// The logical id of the API's stage.
pub(super) const STAGE: &str = "WebsocketsDeploymentStage";

/// The logical id of the role of functions without one.
pub(super) const DEFAULT_ROLE: &str = "IamRoleLambdaExecution";

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
    /// The values of the templates' parameters.
    pub(super) parameters: BTreeMap<String, String>,
    /// The plugins.
    pub(super) plugins: &'a [String],
}

/// Returns the resources that a service may refer to, by logical id.
pub(super) fn resources(names: &Names<'_>) -> BTreeMap<String, Resource> {
    let Names { service, stage, region, functions, routes, .. } = names;
    let mut generated = vec![
        (API.to_owned(), kinds::API, API_ID.to_owned()),
        (STAGE.to_owned(), kinds::STAGE, (*stage).to_owned()),
        (DEFAULT_ROLE.to_owned(), kinds::ROLE, format!("{service}-{stage}-{region}-lambdaRole")),
        ("ServerlessDeploymentBucket".to_owned(), kinds::BUCKET, format!("{service}-{stage}-deployment")),
    ];
    for route in *routes {
        generated.push((route_id(route), kinds::ROUTE, format!("{API_ID}-{route}")));
    }
    for (key, name) in *functions {
        generated.push((function_id(key), kinds::FUNCTION, name.clone()));
        generated.push((format!("{}LogGroup", normalized(key)), kinds::LOG_GROUP, format!("/aws/lambda/{name}")));
        generated.push((integration_id(key), kinds::INTEGRATION, format!("integration-{key}")));
    }
    generated.into_iter().map(|(id, kind, name)| (id, Resource::new(kind, name))).collect()
}

/// Tells whether the framework generates a resource of this logical id for events that never come here.
pub(super) fn is_generated_for_others(id: &str) -> bool {
    ["HttpApi", "ApiGateway", "SNSTopic", "S3Bucket", "CloudFront", "CognitoUserPool"]
        .iter()
        .any(|prefix| id.starts_with(prefix))
        || ["LambdaFunctionUrl", "LambdaVersion", "HttpApiAuthorizer"].iter().any(|part| id.contains(part))
}

/// Returns the logical id of a function.
pub(super) fn function_id(function: &str) -> String {
    format!("{}LambdaFunction", normalized(function))
}

/// Returns the logical id of the integration of a function's routes.
pub(super) fn integration_id(function: &str) -> String {
    format!("{}WebsocketsIntegration", normalized(function))
}

/// Returns the logical id of a route.
pub(super) fn route_id(route: &str) -> String {
    let replaced = [("$", "S"), ("/", "Slash"), ("-", "Dash"), ("_", "Underscore"), (".", "Period")];
    let key = replaced.iter().fold(route.to_owned(), |key, (from, to)| key.replace(from, to));
    format!("{key}WebsocketsRoute")
}

/// Returns a function key in the form of logical ids: `send-message` is `SendDashmessage`.
fn normalized(key: &str) -> String {
    let key = key.replace('-', "Dash").replace('_', "Underscore");
    let mut characters = key.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}
