//! What the tests of this module share. Each test writes a service's files and checks the [`Service`] or the text of
//! the error.

use super::definition::{Service, Settings};
use super::error::{ServiceError, ServiceErrors};
use super::read::Reading;

pub(super) fn read_with(files: &[(&str, &str)], settings: &Settings) -> Reading {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Reading::of(&folder.path().join("serverless.yml"), settings)
}

pub(super) fn load_with(files: &[(&str, &str)], settings: &Settings) -> Result<Service, ServiceErrors> {
    match read_with(files, settings) {
        Reading { service: Some(service), refused, .. } if refused.is_empty() => Ok(service),
        Reading { refused, .. } => Err(ServiceErrors(refused)),
    }
}

/// Returns what is ignored of a service, line by line.
pub(super) fn ignored(text: &str) -> Vec<String> {
    let reading = read_with(&[("serverless.yml", text)], &Settings::default());
    assert!(reading.refused.is_empty(), "{:?}", reading.refused);
    reading.ignored.iter().map(ToString::to_string).collect()
}

pub(super) fn load(files: &[(&str, &str)]) -> Service {
    load_with(files, &Settings::default()).unwrap()
}

pub(super) fn error(files: &[(&str, &str)]) -> String {
    without_line(load_with(files, &Settings::default()).unwrap_err())
}

/// Returns the text of an error without the line of its key. Another test is about lines.
pub(super) fn without_line(mut errors: ServiceErrors) -> String {
    for error in &mut errors.0 {
        match error {
            ServiceError::Invalid { location, .. } => location.line = None,
            ServiceError::Read { file, .. } => *file = file.rsplit('/').next().unwrap().to_owned(),
            ServiceError::Syntax { .. } => {}
        }
    }
    errors.to_string()
}

/// Makes a service with the given lines below the function's environment, and others at the top level.
pub(super) fn service_with(environment: &str, top_level: &str) -> String {
    format!(
        "service: chat
provider:
  name: aws
functions:
  connect:
    handler: connect
    events: [websocket: $connect]
    environment:
{environment}
{top_level}
"
    )
}

/// Returns the value of an environment variable whose definition is YAML, with more lines at the top level.
pub(super) fn value_of(value: &str, top_level: &str, settings: &Settings) -> Result<String, ServiceErrors> {
    let text = service_with(&format!("      X: {value}"), top_level);
    let service = load_with(&[("serverless.yml", &text)], settings)?;
    Ok(service.functions["connect"].environment["X"].clone())
}

pub(super) fn value(value: &str, top_level: &str) -> String {
    value_of(value, top_level, &Settings::default()).unwrap()
}

pub(super) fn value_error(value: &str, top_level: &str) -> String {
    without_line(value_of(value, top_level, &Settings::default()).unwrap_err())
}

/// Tables with and without a stream, and a queue.
pub(super) const RESOURCES: &str = "
resources:
  Resources:
    Events:
      Type: AWS::DynamoDB::Table
      Properties:
        TableName: ${self:service}-events
        AttributeDefinitions: [{AttributeName: id, AttributeType: S}]
        KeySchema: [{AttributeName: id, KeyType: HASH}]
        BillingMode: PAY_PER_REQUEST
        StreamSpecification: {StreamViewType: NEW_IMAGE}
    Plain:
      Type: AWS::DynamoDB::Table
      Properties:
        AttributeDefinitions: [{AttributeName: id, AttributeType: S}]
        KeySchema: [{AttributeName: id, KeyType: HASH}]
        BillingMode: PAY_PER_REQUEST
    Failed:
      Type: AWS::SQS::Queue
      Properties: {Anything: !ImportValue goes}
    Alarm:
      Type: AWS::SNS::Topic
";

/// Makes a service with the routes `$connect` and `chat/a-b_c.d` and these resources.
pub(super) fn with_resources(resources: &str) -> Result<Service, ServiceErrors> {
    let text = format!(
        "service: chat
provider: {{name: aws}}
params: {{default: {{domain: ''}}}}
functions:
  auth: {{handler: auth}}
  connect: {{handler: connect, events: [websocket: {{route: $connect, authorizer: auth}}]}}
  other: {{handler: other, events: [websocket: chat/a-b_c.d]}}
resources:
{resources}"
    );
    load_with(&[("serverless.yml", &text)], &Settings::default())
}

/// Returns the error text for these resources, below `serverless.yml: resources`.
pub(super) fn resources_error(resources: &str) -> String {
    let error = without_line(with_resources(resources).unwrap_err());
    error.strip_prefix("serverless.yml: resources").unwrap_or(&error).to_owned()
}
