use crate::iam::{Patterns, Role};
use crate::service::testing::{load, load_with, read_with, service_with, without_line};
use crate::service::{Service, ServiceErrors, Settings};

/// Makes a service with other resources and one function. Its role `Role` has these properties, in YAML flow style.
fn with_role(properties: &str, others: &str) -> Vec<(&'static str, String)> {
    let main = "
service: chat
provider: {name: aws}
params: {default: {tracing: Active}, prod: {tracing: PassThrough}}
functions:
  connect: {handler: connect, role: Role, events: [websocket: $connect]}
  other: {handler: other, events: [websocket: $default]}
resources: ${file(roles.yml)}
";
    let roles = format!(
        "
Conditions: {{Tracing: !Equals ['${{param:tracing}}', Active], Never: !Not [Condition: Tracing]}}
Resources:
  Birds:
    Type: AWS::DynamoDB::Table
    Properties:
      AttributeDefinitions: [{{AttributeName: id, AttributeType: S}}]
      KeySchema: [{{AttributeName: id, KeyType: HASH}}]
      BillingMode: PAY_PER_REQUEST
  Role: {{Type: AWS::IAM::Role, Properties: {properties}}}
{others}"
    );
    vec![("serverless.yml", main.to_owned()), ("roles.yml", roles)]
}

fn role_of(properties: &str, others: &str, settings: &Settings) -> Result<Option<Role>, ServiceErrors> {
    let files = with_role(properties, others);
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let service = load_with(&files, settings)?;
    assert_eq!(service.functions["other"].role, None);
    Ok(service.functions["connect"].role.as_deref().cloned())
}

/// Returns the actions and resources of the statements.
fn allowed(properties: &str, others: &str) -> Vec<String> {
    let role = role_of(properties, others, &Settings::default()).unwrap().unwrap();
    role.statements.iter().map(|it| format!("{:?} {:?} {:?}", it.effect, it.actions, it.resources)).collect()
}

/// Makes a policy with these statements.
fn policies(statements: &str) -> String {
    format!("{{Policies: [{{PolicyName: p, PolicyDocument: {{Version: '2012-10-17', Statement: {statements}}}}}]}}")
}

#[test]
fn a_functions_role_is_read_with_its_intrinsic_functions() {
    let statements = "[
      {Effect: Allow, Action: dynamodb:GetItem, Resource: !GetAtt Birds.Arn},
      {Effect: Deny, NotAction: ['dynamodb:A*'], NotResource: [!Sub 'arn:${AWS::Partition}:x:${WebsocketsApi}/${sls:stage}/*']},
      !If [Tracing, {Effect: Allow, Action: 'dynamodb:X*', Resource: '*'}, !Ref AWS::NoValue],
      !If [Never, {Effect: Allow, Action: 'dynamodb:N*', Resource: '*'}, !Ref AWS::NoValue]]";
    let expected = [
        r#"Allow Of(["dynamodb:GetItem"]) Of(["arn:aws:dynamodb:us-east-1:123456789012:table/chat-dev-Birds"])"#,
        r#"Deny Not(["dynamodb:A*"]) Not(["arn:aws:x:local0ws01/dev/*"])"#,
        r#"Allow Of(["dynamodb:X*"]) Of(["*"])"#,
    ];
    assert_eq!(allowed(&policies(statements), ""), expected);
    let settings = Settings { stage: Some("prod".to_owned()), ..Settings::default() };
    let role = role_of(&policies(statements), "", &settings).unwrap().unwrap();
    let last = role.statements.last().unwrap();
    assert_eq!((role.name.as_str(), &last.actions), ("chat-prod-Role", &Patterns::Of(vec!["dynamodb:N*".to_owned()])));
}

#[test]
fn policies_that_are_attached_to_a_role_are_its_own() {
    let document = "PolicyDocument: {Statement: {Effect: Allow, Action: 'dynamodb:B*', Resource: '*'}}";
    let properties = "{RoleName: flock, ManagedPolicyArns: [!Ref Managed, \
                      'arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole', \
                      'arn:aws:iam::aws:policy/AmazonDynamoDBFullAccess']}";
    let others = format!(
        "  Managed: {{Type: AWS::IAM::ManagedPolicy, Properties: {{{document}}}}}
  Inline: {{Type: AWS::IAM::Policy, Properties: {{Roles: [!Ref Role], {document}}}}}
  ByName: {{Type: AWS::IAM::RolePolicy, Properties: {{RoleName: flock, {document}}}}}
  Another: {{Type: AWS::IAM::Policy, Properties: {{Roles: [!Ref IamRoleLambdaExecution], {document}}}}}
"
    );
    let b = r#"Allow Of(["dynamodb:B*"]) Of(["*"])"#;
    assert_eq!(allowed(properties, &others), [b, r#"Allow Of(["dynamodb:*"]) Of(["*"])"#, b, b]);
}

/// Makes the service of [`with_role`] with further keys of the provider.
fn with_provider(provider: &str, settings: &Settings) -> Result<Service, ServiceErrors> {
    let statement = "{Statement: {Effect: Allow, Action: 'dynamodb:Attached*', Resource: '*'}}";
    let others = format!(
        "  Attached:
    Type: AWS::IAM::ManagedPolicy
    Properties: {{Roles: [!Ref IamRoleLambdaExecution], PolicyDocument: {statement}}}
"
    );
    let mut files = with_role(&policies("[{Effect: Allow, Action: 'dynamodb:Own*', Resource: '*'}]"), &others);
    files[0].1 = files[0].1.replace("provider: {name: aws}", &format!("provider: {{name: aws, {provider}}}"));
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    load_with(&files, settings)
}

#[test]
fn functions_without_a_role_have_the_providers() {
    let actions = |provider: &str, function: &str| {
        let service = with_provider(provider, &Settings::default()).unwrap();
        let role = service.functions[function].role.clone()?;
        let actions = role.statements.iter().map(|it| format!("{:?}", it.actions)).collect::<Vec<_>>().join(" ");
        Some(format!("{}: {actions}", role.name))
    };
    let statements = "[{Effect: Allow, Action: 'dynamodb:A*', Resource: !GetAtt Birds.Arn}]";
    let connections = r#"Of(["execute-api:ManageConnections"])"#;
    let attached = r#"Of(["dynamodb:Attached*"])"#;
    let a = r#"Of(["dynamodb:A*"])"#;
    let expected = format!("chat-dev-us-east-1-lambdaRole: {connections} {a} {attached}");
    for provider in
        [format!("iam: {{role: {{statements: {statements}, tags: {{}}}}}}"), format!("iamRoleStatements: {statements}")]
    {
        assert_eq!(actions(&provider, "other").as_deref(), Some(expected.as_str()), "{provider}");
        assert_eq!(actions(&provider, "connect").unwrap(), r#"chat-dev-Role: Of(["dynamodb:Own*"])"#);
    }
    let managed = "iam: {role: {name: flock, managedPolicies: ['arn:aws:iam::aws:policy/AmazonDynamoDBFullAccess']}}";
    let expected = format!(r#"flock: {connections} Of(["dynamodb:*"]) {attached}"#);
    assert_eq!(actions(managed, "other").as_deref(), Some(expected.as_str()));
    for provider in
        ["iam: {role: Role}", "iam: {role: !GetAtt Role.Arn}", "role: Role", "iam: {role: {tags: {}}}, role: Role"]
    {
        assert_eq!(actions(provider, "other").unwrap(), r#"chat-dev-Role: Of(["dynamodb:Own*"])"#, "{provider}");
    }
    for provider in [
        "iam: {deploymentRole: x}",
        "iam: {role: 'arn:aws:iam::1:role/x'}",
        "role: '${ssm:/x}'",
        "iam: {role: {tags: {}}}",
    ] {
        assert_eq!(actions(provider, "other"), None, "{provider}");
    }
}

#[test]
fn unknown_parts_of_the_providers_role_are_named() {
    let at = "serverless.yml: provider";
    for (provider, expected) in [
        (
            "iam: {role: {statements: [{Effect: Allow, Action: 'dynamodb:a', Resource: '*', Condition: {}}]}}",
            "iam.role.statements[0].Condition: unknown",
        ),
        (
            "iam: {role: {statements: [], permissionsBoundary: x}}",
            "iam.role.permissionsBoundary: the local stack does not",
        ),
        (
            "iamManagedPolicies: ['arn:aws:iam::aws:policy/DynamoDBX']",
            "iamManagedPolicies[0]: the local stack does not",
        ),
        (
            "iamManagedPolicies: ['arn:aws:iam::aws:policy/ReadOnlyAccess']",
            "iamManagedPolicies[0]: the local stack does not",
        ),
    ] {
        let error = without_line(with_provider(provider, &Settings::default()).unwrap_err());
        assert!(error.starts_with(&format!("{at}.{expected}")), "{provider}: {error}");
    }
    let no_iam = Settings { no_iam: true, ..Settings::default() };
    let boundary = "iam: {role: {statements: [], permissionsBoundary: x}}";
    assert_eq!(with_provider(boundary, &no_iam).unwrap().functions["other"].role, None);
}

#[test]
fn unknown_parts_of_a_used_role_are_named() {
    let at = "roles.yml: Resources.Role.Properties";
    let statement = "Policies[0].PolicyDocument.Statement[0]";
    let not_understood =
        "the local stack does not understand this part of a role; `--no-iam` lets every function do everything";
    for (properties, expected) in [
        (
            policies("[{Effect: Allow, Action: 'dynamodb:a', Resource: '*', Condition: {}}]"),
            format!("{statement}.Condition: unknown"),
        ),
        (
            policies("[{Effect: Allow, Action: 'dynamodb:a'}]"),
            format!("{statement}: expected either `Resource` or `NotResource`"),
        ),
        (
            policies("[{Effect: Allow, Action: 'dynamodb:a', Resource: 'x/${aws:username}'}]"),
            format!("{statement}.Resource: {not_understood}"),
        ),
        (
            policies("[{Effect: Deny, Action: 'dynamodb:a', Resource: '${ssm:/x}'}]"),
            format!("{statement}.Resource: {not_understood}"),
        ),
        (
            policies("[{Effect: Allow, Action: 'dynamodb:a', Resource: !Ref Nope}]"),
            format!("{statement}.Resource.Ref: the stack has no"),
        ),
        (policies("[!If [Nope, a, b]]"), format!("{statement}.Fn::If: the stack has no condition `Nope`")),
        (
            "{ManagedPolicyArns: ['arn:aws:iam::aws:policy/DynamoDBX']}".to_owned(),
            format!("ManagedPolicyArns[0]: {not_understood}"),
        ),
        ("{PermissionsBoundary: x}".to_owned(), format!("PermissionsBoundary: {not_understood}")),
    ] {
        let error = without_line(role_of(&properties, "", &Settings::default()).unwrap_err());
        assert!(error.starts_with(&format!("{at}.{expected}")), "{properties}: {error}");
        let no_iam = Settings { no_iam: true, ..Settings::default() };
        assert_eq!(role_of(&properties, "", &no_iam).unwrap(), None);
    }
}

#[test]
fn unused_roles_and_roles_from_elsewhere_are_not_read() {
    role_of("{PermissionsBoundary: !Ref AWS::NoValue}", "", &Settings::default()).unwrap();
    with_provider("iam: {role: {statements: [], permissionsBoundary: !Ref AWS::NoValue}}", &Settings::default())
        .unwrap();
    let others = "  Unused: {Type: AWS::IAM::Role, Properties: {PermissionsBoundary: '${ssm:/x}'}}\n";
    role_of("{}", others, &Settings::default()).unwrap();
    let text = service_with("      X: x", "").replace("    handler:", "    role: '${ssm:/role}'\n    handler:");
    assert_eq!(load(&[("serverless.yml", &text)]).functions["connect"].role, None);
}

#[test]
fn what_a_role_says_about_services_that_are_not_here_is_left_out() {
    let statements = "[
      {Effect: Allow, Action: 'cloudwatch:PutMetricData', Resource: '*', Condition: {}},
      {Effect: Allow, Action: ['sqs:SendMessage', 's3:*'], Resource: '${ssm:/x}'},
      {Effect: Allow, Action: ['sqs:SendMessage', 'dynamo*:Query'], Resource: '${ssm:/x}'},
      {Effect: Deny, NotAction: 's3:*', Resource: '*'}]";
    let properties = policies(statements).replacen(
        "{Policies",
        "{ManagedPolicyArns: ['arn:aws:iam::aws:policy/AmazonSQSFullAccess', !ImportValue mine], Policies",
        1,
    );
    let read = allowed(&properties, "");
    let expected =
        [r#"Allow Of(["sqs:SendMessage", "dynamo*:Query"]) Of(["${ssm:/x}"])"#, r#"Deny Not(["s3:*"]) Of(["*"])"#];
    assert_eq!(read, expected);
    let files = with_role(&properties, "");
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let told: Vec<_> = read_with(&files, &Settings::default()).ignored.iter().map(|it| it.reason.clone()).collect();
    let expected = [
        "the policy AmazonSQSFullAccess is not read: it is taken for one of services that are not here",
        "only a deployment knows what this names; calls that it allows are refused, unless `--no-iam` is given",
        "only a deployment knows what this names; calls to it are refused, unless `--no-iam` is given",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_plugin_gives_each_function_a_role_of_its_own() {
    let roles = |plugin: &str, inherit: bool| {
        let text = format!(
            "
service: chat
plugins: [{plugin}]
provider: {{name: aws, iam: {{role: {{statements: [{{Effect: Allow, Action: 'dynamodb:B*', Resource: '*'}}]}}}}}}
functions:
  connect:
    handler: connect
    events: [websocket: $connect]
    iamRoleStatementsInherit: {inherit}
    iamRoleStatements: [{{Effect: Allow, Action: 'dynamodb:A*', Resource: '*'}}]
"
        );
        let service = load_with(&[("serverless.yml", &text)], &Settings::default()).unwrap();
        let role = service.functions["connect"].role.clone().unwrap();
        role.statements.iter().map(|it| format!("{:?}", it.actions)).collect::<Vec<_>>().join(" ")
    };
    let plugin = "serverless-iam-roles-per-function";
    assert_eq!(roles(plugin, false), r#"Of(["dynamodb:A*"])"#);
    assert_eq!(roles(plugin, true), r#"Of(["dynamodb:A*"]) Of(["dynamodb:B*"])"#);
    assert_eq!(roles("", true), r#"Of(["execute-api:ManageConnections"]) Of(["dynamodb:B*"])"#);
}
