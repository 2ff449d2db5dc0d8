//! [AWS::IAM::Role](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-iam-role.html) and
//! the policies that are attached to it, in the templates or by `ManagedPolicyArns`.
//!
//! Only roles that a function uses are read. What such a role says and is not imitated is an error: a permission that was
//! not understood would be missing, or be one too many.

use serde::Deserialize;
use serde_json::Value;

use super::cloudformation::{Stack, parts};
use super::error::{KeyPath, Problem, ServiceError};
use super::keys::{POLICIES, ROLE};
use super::variables::Document;
use crate::iam::{Effect, Patterns, Role, Statement};

/// What AWS's own policies allow that a call to the local stack can need.
const AWS_POLICIES: [(&str, &[&str]); 8] = [
    ("AWSLambdaBasicExecutionRole", &[]),
    ("AWSLambdaVPCAccessExecutionRole", &[]),
    ("AWSXRayDaemonWriteAccess", &[]),
    ("AWSXrayWriteOnlyAccess", &[]),
    ("CloudWatchLambdaInsightsExecutionRolePolicy", &[]),
    // Reading streams is Lambda's own affair here.
    ("AWSLambdaDynamoDBExecutionRole", &[]),
    ("AmazonDynamoDBFullAccess", &["dynamodb:*"]),
    ("AmazonAPIGatewayInvokeFullAccess", &["execute-api:Invoke", "execute-api:ManageConnections"]),
];

/// A `Statement`; the intrinsic functions are evaluated.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a statement")]
struct StatementDefinition {
    #[serde(default, rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    action: Option<Value>,
    not_action: Option<Value>,
    resource: Option<Value>,
    not_resource: Option<Value>,
}

impl Stack {
    /// The role that a function's `role` refers to. None when that is not a role of the templates.
    pub(super) fn role(&self, document: &Document, role: &Value, at: &KeyPath) -> Result<Option<Role>, ServiceError> {
        let id = match (role, role["Fn::GetAtt"].as_array().map(Vec::as_slice)) {
            (Value::String(id), _) => id,
            (_, Some([Value::String(id), Value::String(attribute)])) if attribute == "Arn" => id,
            _ => return Ok(None),
        };
        let Some((properties, role_at)) = self.definitions.get(id) else { return Ok(None) };
        let name = |problem| document.error(problem);
        let (resource, default_name) = self.resource(id, at).map_err(name)?;
        if resource.kind != ROLE {
            return Err(document.error(Problem::new(at, format!("`{id}` is not a role"))));
        }
        if properties.get("PermissionsBoundary").is_some() {
            return Err(document.error(unknown(&role_at.key("PermissionsBoundary"))));
        }
        let role_name = match properties.get("RoleName") {
            Some(role_name) => self.text(role_name, &role_at.key("RoleName")).map_err(name)?,
            None => default_name.to_owned(),
        };

        let mut statements = Vec::new();
        let policies_at = role_at.key("Policies");
        for (policy, at) in self.list(&properties["Policies"], &policies_at).map_err(name)? {
            statements.extend(self.statements(document, &policy["PolicyDocument"], &at.key("PolicyDocument"))?);
        }
        let attached_at = role_at.key("ManagedPolicyArns");
        for (arn, at) in self.list(&properties["ManagedPolicyArns"], &attached_at).map_err(name)? {
            let arn = self.text(&arn, &at).map_err(name)?;
            match self.managed(&arn) {
                Some((document_of, policy_at)) => {
                    statements.extend(self.statements(document, document_of, &policy_at)?)
                }
                None => statements.extend(aws_policy(&arn).ok_or_else(|| document.error(unknown(&at)))?),
            }
        }
        for (policy_id, (properties, policy_at)) in &self.definitions {
            let (resource, _) = self.resource(policy_id, policy_at).map_err(name)?;
            if !POLICIES.contains(&resource.kind.as_str()) {
                continue;
            }
            let mut roles = self.list(&properties["Roles"], &policy_at.key("Roles")).map_err(name)?;
            roles.extend(self.list(&properties["RoleName"], &policy_at.key("RoleName")).map_err(name)?);
            let is_attached =
                |(name, _): &(Value, KeyPath)| [default_name, &role_name].contains(&name.as_str().unwrap_or(""));
            if roles.iter().any(is_attached) {
                let at = policy_at.key("PolicyDocument");
                statements.extend(self.statements(document, &properties["PolicyDocument"], &at)?);
            }
        }
        Ok(Some(Role { name: role_name, statements }))
    }

    /// The elements of a list of which some may be `AWS::NoValue`, or of the one value in its place.
    fn list(&self, value: &Value, at: &KeyPath) -> Result<Vec<(Value, KeyPath)>, Problem> {
        let value = if value.is_null() { Value::Array(Vec::new()) } else { self.evaluate(value, at)? };
        Ok(parts(&value, at).into_iter().map(|(part, at)| (part.clone(), at)).collect())
    }

    /// The document of a managed policy of the templates.
    fn managed(&self, arn: &str) -> Option<(&Value, KeyPath)> {
        self.definitions.iter().find_map(|(id, (properties, at))| {
            let (resource, name) = self.resource(id, at).ok()?;
            let is_meant = resource.kind == "AWS::IAM::ManagedPolicy" && name == arn;
            is_meant.then(|| (&properties["PolicyDocument"], at.key("PolicyDocument")))
        })
    }

    fn statements(&self, document: &Document, policy: &Value, at: &KeyPath) -> Result<Vec<Statement>, ServiceError> {
        let policy = self.evaluate(policy, at).map_err(|problem| document.error(problem))?;
        let at = at.key("Statement");
        let statements = parts(&policy["Statement"], &at).into_iter().map(|(statement, at)| {
            let definition: StatementDefinition = document.parse(statement, &at)?;
            let patterns = |of, not| patterns(of, not, &at).map_err(|problem| document.error(problem));
            Ok(Statement {
                effect: definition.effect,
                actions: patterns(("Action", definition.action), ("NotAction", definition.not_action))?,
                resources: patterns(("Resource", definition.resource), ("NotResource", definition.not_resource))?,
            })
        });
        statements.collect()
    }
}

fn patterns(of: (&str, Option<Value>), not: (&str, Option<Value>), at: &KeyPath) -> Result<Patterns, Problem> {
    let (key, value, make): (_, _, fn(Vec<String>) -> Patterns) = match (of, not) {
        ((key, Some(value)), (_, None)) => (key, value, Patterns::Of),
        ((_, None), (key, Some(value))) => (key, value, Patterns::Not),
        ((of, _), (not, _)) => return Err(Problem::new(at, format!("expected either `{of}` or `{not}`"))),
    };
    let texts = parts(&value, &at.key(key)).into_iter().map(|(pattern, at)| match pattern.as_str() {
        // A policy variable, or one of the framework's that has no value here.
        Some(text) if text.contains("${") => Err(unknown(&at)),
        Some(text) => Ok(text.to_owned()),
        None => Err(Problem::new(&at, "expected a text")),
    });
    texts.collect::<Result<_, _>>().map(make)
}

fn aws_policy(arn: &str) -> Option<Option<Statement>> {
    let name = arn.strip_prefix("arn:aws:iam::aws:policy/")?.rsplit('/').next()?;
    let (_, actions) = AWS_POLICIES.iter().find(|(known, _)| *known == name)?;
    let statement = Statement {
        effect: Effect::Allow,
        actions: Patterns::Of(actions.iter().map(|&action| action.to_owned()).collect()),
        resources: Patterns::Of(vec!["*".to_owned()]),
    };
    Some(Some(statement).filter(|_| !actions.is_empty()))
}

fn unknown(at: &KeyPath) -> Problem {
    Problem::new(at, "the local stack does not understand this of a role; `--no-iam` lets every function do everything")
}
