//! [AWS::IAM::Role](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-iam-role.html) and
//! the policies that are attached to it, in the templates or by `ManagedPolicyArns`.
//!
//! Functions without a role of their own have the provider's, or the role that the framework makes from the provider's
//! keys. Only roles that a function uses are read. A statement about services that are not here is left out. If another
//! part of such a role is not imitated, that is an error: otherwise the function would have too few permissions, or too
//! many.

use serde_json::Value;
use wildmatch::WildMatch;

use super::error::{Problem, parse};
use super::findings::Findings;
use super::generated::DEFAULT_ROLE;
use super::key_path::{KeyPath, Placed, parts};
use super::kinds::{POLICIES, ROLE};
use super::schema::{Function, Provider, ProviderRole};
use super::template::Templates;
use crate::iam::{Effect, Patterns, Role, Statement};

/// AWS's own policies, each with those of its actions that a call to the local stack can need.
const AWS_POLICIES: [(&str, &[&str]); 14] = [
    ("AWSLambdaBasicExecutionRole", &[]),
    ("AWSLambdaVPCAccessExecutionRole", &[]),
    ("AWSXRayDaemonWriteAccess", &[]),
    ("AWSXrayWriteOnlyAccess", &[]),
    ("CloudWatchLambdaInsightsExecutionRolePolicy", &[]),
    // Here the stack itself reads streams, and needs no permission for that.
    ("AWSLambdaDynamoDBExecutionRole", &[]),
    ("AmazonDynamoDBFullAccess", &["dynamodb:*"]),
    ("AmazonAPIGatewayInvokeFullAccess", &["execute-api:Invoke", "execute-api:ManageConnections"]),
    ("AmazonSSMFullAccess", &["ssm:*"]),
    ("AmazonSSMReadOnlyAccess", &["ssm:Describe*", "ssm:Get*", "ssm:List*"]),
    ("AdministratorAccess", &["*"]),
    ("PowerUserAccess", &["*"]),
    ("AWSLambdaRole", &[]),
    ("AWSLambdaSQSQueueExecutionRole", &[]),
];

/// Tells whether one of AWS's policies is known by its name.
pub(super) fn is_known(policy: &str) -> bool {
    AWS_POLICIES.iter().any(|(known, _)| *known == policy)
}

/// The names of AWS's policies that may be about the services that are here. A policy that reads one other service, such
/// as `AmazonS3ReadOnlyAccess`, is none of them.
const POLICIES_THAT_MATTER: [&str; 7] =
    ["*APIGateway*", "*Access-*", "*DynamoDB*", "*SSM*", "AWSLambda*Access", "ReadOnlyAccess", "ViewOnlyAccess"];

/// The reason why a permission is left out.
const NOT_HERE: &str = "only a deployment knows what this names";

/// The services whose calls are checked.
const SERVICES: [&str; 3] = ["dynamodb", "execute-api", "ssm"];

/// Reads the role that a function's `role` refers to. Returns `None` if that is not a role of the templates.
pub(super) fn read(
    templates: &Templates,
    role: &Value,
    at: &KeyPath,
    findings: &Findings,
) -> Result<Option<Role>, Problem> {
    let id = match (role, role["Fn::GetAtt"].as_array().map(Vec::as_slice)) {
        (Value::String(id), _) => id,
        (_, Some([Value::String(id), Value::String(attribute)])) if attribute == "Arn" => id,
        _ => return Ok(elsewhere(at, findings)),
    };
    let Some((properties, role_at)) = templates.definitions.get(id) else { return Ok(elsewhere(at, findings)) };
    let (resource, default_name) = templates.intrinsics.resources.named(id, at)?;
    if resource.kind != ROLE {
        return Err(Problem::new(at, format!("`{id}` is not a role")));
    }
    refuse_boundary(templates, &properties["PermissionsBoundary"], &role_at.key("PermissionsBoundary"))?;
    let role_name = match properties.get("RoleName") {
        Some(role_name) => templates.intrinsics.text(role_name, &role_at.key("RoleName"))?,
        None => default_name.to_owned(),
    };

    let mut statements = Vec::new();
    let policies_at = role_at.key("Policies");
    for (policy, at) in templates.intrinsics.choices(&properties["Policies"], &policies_at)? {
        let at = at.key("PolicyDocument");
        statements.extend(policy_statements(templates, &policy["PolicyDocument"], &at, findings)?);
    }
    let attached = (&properties["ManagedPolicyArns"], role_at.key("ManagedPolicyArns"));
    statements.extend(attached_statements(templates, attached, &[default_name, &role_name], findings)?);
    Ok(Some(Role { name: role_name, statements }))
}

/// Reports a role that is not in the templates.
fn elsewhere(at: &KeyPath, findings: &Findings) -> Option<Role> {
    findings.ignore(at, "this role is not in the templates: functions with it may do everything");
    None
}

/// Makes the role of functions without one of their own, as the framework makes it from the provider's keys.
/// Returns `None` if these have no permissions, or if a template changes that role.
pub(super) fn default(
    templates: &Templates,
    provider: &Provider,
    findings: &Findings,
) -> Result<Option<Role>, Problem> {
    let at = KeyPath::default().key("provider");
    let iam_role = provider.iam.as_ref().map_or(&Value::Null, |iam| &iam.role);
    let iam_at = at.key("iam").key("role");
    // The framework tells the two forms apart in this way.
    if iam_role.is_string() || iam_role.as_object().is_some_and(|keys| keys.keys().any(|key| key.contains("::"))) {
        return read(templates, iam_role, &iam_at, findings);
    }
    if !provider.role.is_null() {
        return read(templates, &provider.role, &at.key("role"), findings);
    }
    let role: Option<ProviderRole> = if iam_role.is_null() { None } else { findings.parse(iam_role, &iam_at) };
    let role = role.unwrap_or_default();
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
    refuse_boundary(templates, &boundary, &boundary_at)?;
    if own.is_object() {
        findings.report_invalid(&own_at, "the framework refuses one statement without a list");
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
    statements.extend(parse_statements(templates, &own, &own_at, findings)?);
    statements.extend(attached_statements(templates, (&managed, managed_at), &[default_name, &role_name], findings)?);
    Ok(Some(Role { name: role_name, statements }))
}

/// Refuses a boundary of permissions, unless it is `AWS::NoValue`.
fn refuse_boundary(templates: &Templates, boundary: &Value, at: &KeyPath) -> Result<(), Problem> {
    match templates.intrinsics.choices(boundary, at)?.first() {
        Some((_, at)) => Err(unknown(at)),
        None => Ok(()),
    }
}

/// Makes the role of a function with `iamRoleStatements`, as the serverless-iam-roles-per-function plugin makes it.
pub(super) fn of_function(
    templates: &Templates,
    provider: &Provider,
    key: &str,
    (definition, at): &(Function, KeyPath),
    findings: &Findings,
) -> Result<Role, Problem> {
    let own_at = at.key("iamRoleStatements");
    let mut statements = parse_statements(templates, &definition.iam_role_statements, &own_at, findings)?;
    if definition.iam_role_statements_inherit == Value::Bool(true) {
        let at = KeyPath::default().key("provider");
        let of_role = provider.iam.as_ref().map_or(&Value::Null, |iam| &iam.role["statements"]);
        let (inherited, at) = match of_role {
            Value::Null => (&provider.iam_role_statements, at.key("iamRoleStatements")),
            statements => (statements, at.key("iam").key("role").key("statements")),
        };
        statements.extend(parse_statements(templates, inherited, &at, findings)?);
    }
    let stack = &templates.intrinsics.resources.stack_name;
    let name = match &definition.iam_role_statements_name {
        Some(name) => templates.intrinsics.text(name, &at.key("iamRoleStatementsName"))?,
        None => format!("{stack}-{key}-lambdaRole"),
    };
    Ok(Role { name, statements })
}

/// Returns the statements of a list of managed policies, and those of the policies that name the role.
fn attached_statements(
    templates: &Templates,
    (managed, managed_at): (&Value, KeyPath),
    role_names: &[&str],
    findings: &Findings,
) -> Result<Vec<Statement>, Problem> {
    let mut statements = Vec::new();
    for (arn, at) in templates.intrinsics.choices(managed, &managed_at)? {
        let (arn, placeholders) = templates.intrinsics.text_or_placeholder(arn, &at)?;
        match managed_policy(templates, &arn) {
            Some((document_of, policy_at)) => {
                statements.extend(policy_statements(templates, document_of, &policy_at, findings)?);
            }
            None if !placeholders.is_empty() || arn.contains("${") => {
                findings
                    .ignore(&at, format!("{NOT_HERE}; calls that it allows are refused, unless `--no-iam` is given"));
            }
            None => statements.extend(aws_policy(&arn, &at, findings)?),
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
            statements.extend(policy_statements(templates, &properties["PolicyDocument"], &at, findings)?);
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

fn policy_statements(
    templates: &Templates,
    policy: &Value,
    at: &KeyPath,
    findings: &Findings,
) -> Result<Vec<Statement>, Problem> {
    parse_statements(templates, &policy["Statement"], &at.key("Statement"), findings)
}

/// Reads one statement, or a list of statements. Those about services that are not here are left out unread.
fn parse_statements(
    templates: &Templates,
    statements: &Value,
    at: &KeyPath,
    findings: &Findings,
) -> Result<Vec<Statement>, Problem> {
    let mut parsed = Vec::new();
    for (statement, at) in templates.intrinsics.choices(statements, at)? {
        let actions = templates.intrinsics.list(&statement["Action"], &at.key("Action"))?;
        let action_matters = |(action, _): &Placed| action.as_str().is_none_or(matters);
        if !actions.is_empty() && !actions.iter().any(action_matters) {
            continue;
        }
        let statement = templates.intrinsics.evaluate_or_placeholder(statement, &at).map_err(with_cure)?;
        for key in ["Action", "NotAction", "Resource", "NotResource"] {
            for (pattern, at) in parts(&statement[key], &at.key(key)) {
                let text = pattern.as_str().unwrap_or_default();
                if !text.contains("${") {
                    continue;
                }
                // The value of a policy variable depends on the call.
                let is_variable =
                    ["${aws:", "${saml:", ".com:", "${*}", "${?}", "${$}"].iter().any(|it| text.contains(it));
                if is_variable || key != "Resource" || statement["Effect"] != "Allow" {
                    return Err(unknown(&at));
                }
                findings.ignore(&at, format!("{NOT_HERE}; calls to it are refused, unless `--no-iam` is given"));
            }
        }
        parsed.push(parse(&statement, &at).map_err(with_cure)?);
    }
    Ok(parsed)
}

/// Tells whether a pattern of actions covers one that is checked here.
fn matters(pattern: &str) -> bool {
    let service = pattern.split(':').next().unwrap_or(pattern).to_ascii_lowercase();
    SERVICES.iter().any(|known| WildMatch::new(&service).matches(known))
}

fn aws_policy(arn: &str, at: &KeyPath, findings: &Findings) -> Result<Option<Statement>, Problem> {
    let name = arn.strip_prefix("arn:aws:iam::aws:policy/").and_then(|path| path.rsplit('/').next());
    let name = name.ok_or_else(|| unknown(at))?;
    let Some((_, actions)) = AWS_POLICIES.iter().find(|(known, _)| *known == name) else {
        if POLICIES_THAT_MATTER.iter().any(|pattern| WildMatch::new(pattern).matches(name)) {
            return Err(unknown(at));
        }
        findings
            .ignore(at, format!("the policy {name} is not read: it is taken for one of services that are not here"));
        return Ok(None);
    };
    let statement = Statement {
        effect: Effect::Allow,
        actions: Patterns::Of(actions.iter().map(|&action| action.to_owned()).collect()),
        resources: Patterns::Of(vec!["*".to_owned()]),
    };
    Ok(Some(statement).filter(|_| !actions.is_empty()))
}

/// Adds the cure to a problem of a role.
fn with_cure(problem: Problem) -> Problem {
    Problem { reason: format!("{}; `--no-iam` lets every function do everything", problem.reason), ..problem }
}

fn unknown(at: &KeyPath) -> Problem {
    Problem::new(
        at,
        "the local stack does not understand this part of a role; `--no-iam` lets every function do everything",
    )
}

#[cfg(test)]
mod tests;
