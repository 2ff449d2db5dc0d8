//! The resources of the CloudFormation stack that a deployment would create, with names and ARNs of the right form.

use std::collections::BTreeMap;

use super::error::Problem;
use super::generated::is_generated_for_others;
use super::key_path::KeyPath;
use super::kinds::{API, API_KEY, BUCKET, FUNCTION, LOG_GROUP, PARAMETER, QUEUE, ROLE, TABLE, TOPIC, USAGE_PLAN};
use crate::iam::ACCOUNT_ID;

/// One resource of the stack.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: String,
    /// The physical name. A table's is not known while its `TableName` is being evaluated.
    name: Option<String>,
    has_stream: bool,
    /// The place in the templates, unless the framework generates the resource.
    pub(super) at: Option<KeyPath>,
}

impl Resource {
    pub(super) fn new(kind: &str, name: String) -> Self {
        Self { kind: kind.to_owned(), name: Some(name), has_stream: false, at: None }
    }

    /// Makes a table. [`Resources::name_table`] names it.
    pub(super) fn table(has_stream: bool) -> Self {
        Self { kind: TABLE.to_owned(), name: None, has_stream, at: None }
    }

    /// Makes a parameter of a template. Its name is its value.
    pub(super) fn parameter(value: Option<String>) -> Self {
        Self { kind: PARAMETER.to_owned(), name: value, has_stream: false, at: None }
    }

    /// Returns the resource with its place.
    pub(super) fn placed(self, at: &KeyPath) -> Self {
        Self { at: Some(at.clone()), ..self }
    }
}

/// All resources of the stack.
#[derive(Debug)]
pub(super) struct Resources {
    pub(super) stack_name: String,
    pub(super) region: String,
    pub(super) by_id: BTreeMap<String, Resource>,
    /// Whether the service has plugins, which may add resources.
    pub(super) has_plugins: bool,
}

impl Resources {
    /// Evaluates a `Ref`: a pseudo parameter, or a resource.
    pub(super) fn reference(&self, id: &str, at: &KeyPath) -> Result<String, Problem> {
        match id {
            "AWS::AccountId" => return Ok(ACCOUNT_ID.to_owned()),
            "AWS::Partition" => return Ok("aws".to_owned()),
            "AWS::Region" => return Ok(self.region.clone()),
            "AWS::StackName" => return Ok(self.stack_name.clone()),
            "AWS::URLSuffix" => return Ok("amazonaws.com".to_owned()),
            _ => {}
        }
        let (resource, name) = self.named(id, at)?;
        Ok(match resource.kind.as_str() {
            QUEUE => self.queue_url(name),
            TOPIC | "AWS::SecretsManager::Secret" | "AWS::StepFunctions::StateMachine" => self.arn(resource, name),
            _ => name.to_owned(),
        })
    }

    /// Evaluates a `Fn::GetAtt`.
    pub(super) fn attribute(&self, id: &str, attribute: &str, at: &KeyPath) -> Result<String, Problem> {
        let (resource, name) = self.named(id, at)?;
        match (resource.kind.as_str(), attribute) {
            (TABLE, "StreamArn") if resource.has_stream => {
                Ok(format!("{}/stream/2015-05-11T21:21:33.291", self.arn(resource, name)))
            }
            (TABLE, "StreamArn") => Err(Problem::new(at, format!("the table `{id}` has no StreamSpecification"))),
            (API, "ApiId") => Ok(name.to_owned()),
            (API, "ApiEndpoint") => Ok(format!("wss://{name}.execute-api.{}.amazonaws.com", self.region)),
            (API_KEY, "APIKeyId") | (USAGE_PLAN, "Id") => Ok(name.to_owned()),
            (TOPIC, "TopicArn") | (_, "Arn") => Ok(self.arn(resource, name)),
            (TOPIC, "TopicName") | (QUEUE, "QueueName") => Ok(name.to_owned()),
            (QUEUE, "QueueUrl") => Ok(self.queue_url(name)),
            (PARAMETER | TABLE, _) => Err(Problem::new(at, format!("`{id}` has no attribute `{attribute}`"))),
            _ => Err(Problem::unknown_here(at, format!("only a deployment knows `{id}.{attribute}`"))),
        }
    }

    /// Returns a resource and its physical name.
    pub(super) fn named(&self, id: &str, at: &KeyPath) -> Result<(&Resource, &str), Problem> {
        let unknown = || match () {
            () if is_generated_for_others(id) => {
                Problem::unknown_here(at, format!("`{id}` belongs to events that never come here"))
            }
            () if self.has_plugins => {
                Problem::unknown_here(at, format!("the templates have no resource `{id}`; a plugin may add it"))
            }
            () => Problem::new(at, format!("the stack has no resource `{id}`")),
        };
        let resource = self.by_id.get(id).ok_or_else(unknown)?;
        let unnamed = || match resource.kind.as_str() {
            PARAMETER => Problem::unknown_here(at, format!("the parameter `{id}` has no default")),
            _ => Problem::new(at, format!("a TableName cannot depend on the table `{id}`")),
        };
        Ok((resource, resource.name.as_deref().ok_or_else(unnamed)?))
    }

    /// Gives a resource that is not a table the name that its property says.
    pub(super) fn rename(&mut self, id: &str, name: String) {
        if let Some(resource) = self.by_id.get_mut(id) {
            resource.name = Some(name);
        }
    }

    /// Gives a table its name. Each table needs a name of its own.
    pub(super) fn name_table(&mut self, id: &str, name: &str, at: &KeyPath) -> Result<(), Problem> {
        let has_name = |resource: &Resource| resource.kind == TABLE && resource.name.as_deref() == Some(name);
        if let Some((other, _)) = self.by_id.iter().find(|(_, resource)| has_name(resource)) {
            return Err(Problem::new(at, format!("`{other}` has this name already")));
        }
        if let Some(resource) = self.by_id.get_mut(id) {
            resource.name = Some(name.to_owned());
        }
        Ok(())
    }

    fn queue_url(&self, name: &str) -> String {
        format!("https://sqs.{}.amazonaws.com/{ACCOUNT_ID}/{name}", self.region)
    }

    fn arn(&self, resource: &Resource, name: &str) -> String {
        let region = &self.region;
        match resource.kind.as_str() {
            TABLE => format!("arn:aws:dynamodb:{region}:{ACCOUNT_ID}:table/{name}"),
            ROLE => format!("arn:aws:iam::{ACCOUNT_ID}:role/{name}"),
            FUNCTION => format!("arn:aws:lambda:{region}:{ACCOUNT_ID}:function:{name}"),
            LOG_GROUP => format!("arn:aws:logs:{region}:{ACCOUNT_ID}:log-group:{name}:*"),
            BUCKET => format!("arn:aws:s3:::{name}"),
            "AWS::Events::EventBus" => format!("arn:aws:events:{region}:{ACCOUNT_ID}:event-bus/{name}"),
            "AWS::Kinesis::Stream" => format!("arn:aws:kinesis:{region}:{ACCOUNT_ID}:stream/{name}"),
            "AWS::KinesisFirehose::DeliveryStream" => {
                format!("arn:aws:firehose:{region}:{ACCOUNT_ID}:deliverystream/{name}")
            }
            "AWS::StepFunctions::StateMachine" => format!("arn:aws:states:{region}:{ACCOUNT_ID}:stateMachine:{name}"),
            "AWS::SecretsManager::Secret" => {
                format!("arn:aws:secretsmanager:{region}:{ACCOUNT_ID}:secret:{name}-000000")
            }
            kind => {
                let service = kind.split("::").nth(1).unwrap_or(kind).to_lowercase();
                format!("arn:aws:{service}:{region}:{ACCOUNT_ID}:{name}")
            }
        }
    }
}
