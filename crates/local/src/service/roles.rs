//! [AWS::IAM::Role](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-iam-role.html) and
//! the policies that are attached to it, in the templates or by `ManagedPolicyArns`.
//!
//! Functions without a role of their own have the provider's, or the role that the framework makes from the provider's
//! keys. Only roles that a function uses are read. If such a role has a part that is not imitated, that is an error:
//! otherwise the function would have too few permissions, or too many.

use serde_json::Value;

use super::error::{Problem, parse};
use super::generated::DEFAULT_ROLE;
use super::key_path::{KeyPath, parts};
use super::kinds::{POLICIES, ROLE};
use super::schema::{Provider, ProviderRole};
use super::template::Templates;
use crate::iam::{Effect, Patterns, Role, Statement};

/// AWS's own policies, each with those of its actions that a call to the local stack can need.
const AWS_POLICIES: [(&str, &[&str]); 8] = [
    ("AWSLambdaBasicExecutionRole", &[]),
    ("AWSLambdaVPCAccessExecutionRole", &[]),
    ("AWSXRayDaemonWriteAccess", &[]),
    ("AWSXrayWriteOnlyAccess", &[]),
    ("CloudWatchLambdaInsightsExecutionRolePolicy", &[]),
    // Here the stack itself reads streams, and needs no permission for that.
    ("AWSLambdaDynamoDBExecutionRole", &[]),
    ("AmazonDynamoDBFullAccess", &["dynamodb:*"]),
    ("AmazonAPIGatewayInvokeFullAccess", &["execute-api:Invoke", "execute-api:ManageConnections"]),
];

/// Reads the role that a function's `role` refers to. Returns `None` if that is not a role of the templates.
pub(super) fn read(templates: &Templates, role: &Value, at: &KeyPath) -> Result<Option<Role>, Problem> {
    let id = match (role, role["Fn::GetAtt"].as_array().map(Vec::as_slice)) {
        (Value::String(id), _) => id,
        (_, Some([Value::String(id), Value::String(attribute)])) if attribute == "Arn" => id,
        _ => return Ok(None),
    };
    let Some((properties, role_at)) = templates.definitions.get(id) else { return Ok(None) };
    let (resource, default_name) = templates.intrinsics.resources.named(id, at)?;
    if resource.kind != ROLE {
        return Err(Problem::new(at, format!("`{id}` is not a role")));
    }
    if properties.get("PermissionsBoundary").is_some() {
        return Err(unknown(&role_at.key("PermissionsBoundary")));
    }
    let role_name = match properties.get("RoleName") {
        Some(role_name) => templates.intrinsics.text(role_name, &role_at.key("RoleName"))?,
        None => default_name.to_owned(),
    };

    let mut statements = Vec::new();
    let policies_at = role_at.key("Policies");
    for (policy, at) in templates.intrinsics.list(&properties["Policies"], &policies_at)? {
        statements.extend(policy_statements(templates, &policy["PolicyDocument"], &at.key("PolicyDocument"))?);
    }
    let attached = (&properties["ManagedPolicyArns"], role_at.key("ManagedPolicyArns"));
    statements.extend(attached_statements(templates, attached, &[default_name, &role_name])?);
    Ok(Some(Role { name: role_name, statements }))
}

/// Makes the role of functions without one of their own, as the framework makes it from the provider's keys.
/// Returns `None` if these have no permissions, or if a template changes that role.
pub(super) fn default(templates: &Templates, provider: &Provider) -> Result<Option<Role>, Problem> {
    let at = KeyPath::default().key("provider");
    let iam_role = provider.iam.as_ref().map_or(&Value::Null, |iam| &iam.role);
    let iam_at = at.key("iam").key("role");
    // The framework tells the two forms apart in this way.
    if iam_role.is_string() || iam_role.as_object().is_some_and(|keys| keys.keys().any(|key| key.contains("::"))) {
        return read(templates, iam_role, &iam_at);
    }
    if !provider.role.is_null() {
        return read(templates, &provider.role, &at.key("role"));
    }
    let role: ProviderRole = if iam_role.is_null() { ProviderRole::default() } else { parse(iam_role, &iam_at)? };
    let either = |new: &'_ Value, key: &str, old: &'_ Value, old_key: &str| match new {
        Value::Null => (old.clone(), at.key(old_key)),
        new => (new.clone(), iam_at.key(key)),
    };
    let (boundary, boundary_at) = either(
        &role.permissions_boundary,
        "permissionsBoundary",
        &provider.role_permissions_boundary,
        "rolePermissionsBoundary",
    );
    let (own, own_at) = either(&role.statements, "statements", &provider.iam_role_statements, "iamRoleStatements");
    let (managed, managed_at) =
        either(&role.managed_policies, "managedPolicies", &provider.iam_managed_policies, "iamManagedPolicies");
    if (own.is_null() && managed.is_null()) || templates.additions.contains_key(DEFAULT_ROLE) {
        return Ok(None);
    }
    if !boundary.is_null() {
        return Err(unknown(&boundary_at));
    }
    let (_, default_name) = templates.intrinsics.resources.named(DEFAULT_ROLE, &iam_at)?;
    let role_name = match &role.name {
        Some(role_name) => templates.intrinsics.text(role_name, &iam_at.key("name"))?,
        None => default_name.to_owned(),
    };
    // The framework adds this statement.
    let mut statements = vec![Statement {
        effect: Effect::Allow,
        actions: Patterns::Of(vec!["execute-api:ManageConnections".to_owned()]),
        resources: Patterns::Of(vec!["arn:aws:execute-api:*:*:*/@connections/*".to_owned()]),
    }];
    let own = if own.is_null() { own } else { templates.intrinsics.evaluate(&own, &own_at)? };
    statements.extend(parse_statements(&own, &own_at)?);
    statements.extend(attached_statements(templates, (&managed, managed_at), &[default_name, &role_name])?);
    Ok(Some(Role { name: role_name, statements }))
}

/// Returns the statements of a list of managed policies, and those of the policies that name the role.
fn attached_statements(
    templates: &Templates,
    (managed, managed_at): (&Value, KeyPath),
    role_names: &[&str],
) -> Result<Vec<Statement>, Problem> {
    let mut statements = Vec::new();
    for (arn, at) in templates.intrinsics.list(managed, &managed_at)? {
        let arn = templates.intrinsics.text(&arn, &at)?;
        match managed_policy(templates, &arn) {
            Some((document_of, policy_at)) => statements.extend(policy_statements(templates, document_of, &policy_at)?),
            None => statements.extend(aws_policy(&arn).ok_or_else(|| unknown(&at))?),
        }
    }
    for (policy_id, (properties, policy_at)) in &templates.definitions {
        let (resource, _) = templates.intrinsics.resources.named(policy_id, policy_at)?;
        if !POLICIES.contains(&resource.kind.as_str()) {
            continue;
        }
        let mut roles = templates.intrinsics.list(&properties["Roles"], &policy_at.key("Roles"))?;
        roles.extend(templates.intrinsics.list(&properties["RoleName"], &policy_at.key("RoleName"))?);
        if roles.iter().any(|(role, _)| role_names.contains(&role.as_str().unwrap_or(""))) {
            let at = policy_at.key("PolicyDocument");
            statements.extend(policy_statements(templates, &properties["PolicyDocument"], &at)?);
        }
    }
    Ok(statements)
}

/// Returns the document of a managed policy of the templates.
fn managed_policy<'a>(templates: &'a Templates, arn: &str) -> Option<(&'a Value, KeyPath)> {
    templates.definitions.iter().find_map(|(id, (properties, at))| {
        let (resource, name) = templates.intrinsics.resources.named(id, at).ok()?;
        let is_meant = resource.kind == "AWS::IAM::ManagedPolicy" && name == arn;
        is_meant.then(|| (&properties["PolicyDocument"], at.key("PolicyDocument")))
    })
}

fn policy_statements(templates: &Templates, policy: &Value, at: &KeyPath) -> Result<Vec<Statement>, Problem> {
    let policy = templates.intrinsics.evaluate(policy, at)?;
    parse_statements(&policy["Statement"], &at.key("Statement"))
}

/// Reads one statement, or a list of statements. Their intrinsic functions are evaluated already.
fn parse_statements(statements: &Value, at: &KeyPath) -> Result<Vec<Statement>, Problem> {
    let statements = parts(statements, at).into_iter().map(|(statement, at)| {
        for key in ["Action", "NotAction", "Resource", "NotResource"] {
            for (pattern, at) in parts(&statement[key], &at.key(key)) {
                // A policy variable, or one of the framework's that has no value here.
                if pattern.as_str().is_some_and(|text| text.contains("${")) {
                    return Err(unknown(&at));
                }
            }
        }
        parse(statement, &at)
    });
    statements.collect()
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
    Problem::new(
        at,
        "the local stack does not understand this part of a role; `--no-iam` lets every function do everything",
    )
}

#[cfg(test)]
mod tests;
