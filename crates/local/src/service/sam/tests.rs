use super::super::testing::{error, ignored, load, load_with};
use super::super::{Service, Settings};
use crate::iam::{ACCOUNT_ID, Patterns, Statement};

fn of_file(text: &str) -> Service {
    load(&[("serverless.yml", text)])
}

/// Makes a template of an API with these further properties, and of two functions.
fn chat(properties: &str) -> String {
    format!(
        "Transform: AWS::Serverless-2016-10-31
Parameters:
  Stage: {{Type: String, Default: test}}
Resources:
  Chat:
    Type: AWS::Serverless::WebSocketApi
    Properties:
      Routes:
        $connect: {{FunctionArn: !GetAtt Talk.Arn}}
        $default: {{FunctionArn: !Sub '${{Talk.Arn}}'}}
{properties}
  Talk:
    Type: AWS::Serverless::Function
    Properties: {{Handler: talk, Runtime: provided.al2023}}
  Guard:
    Type: AWS::Serverless::Function
    Properties: {{Handler: guard, Runtime: provided.al2023}}
"
    )
}

#[test]
fn functions_routes_streams_and_tables_are_those_of_the_template() {
    let service = of_file(include_str!("../../../tests/services/sam.yaml"));
    let api = &service.api;
    assert_eq!((api.stage.as_str(), api.route_selection_expression.as_str()), ("test", "$request.body.do"));
    let routes: Vec<_> = api.routes.iter().map(|(route, function)| (route.as_str(), function.as_str())).collect();
    assert_eq!(routes, [("$connect", "Connect"), ("$default", "Talk")]);
    assert_eq!(api.two_way_routes.iter().collect::<Vec<_>>(), ["$default"]);

    let (connect, talk) = (&service.functions["Connect"], &service.functions["Talk"]);
    assert_eq!((connect.handler.as_str(), connect.timeout.as_secs()), ("on-connect", 10));
    assert_eq!((talk.handler.as_str(), talk.memory_size_mb), ("bootstrap", 256));
    assert_eq!(talk.artifact.as_deref(), Some("target/lambda/talk/bootstrap.zip"));
    assert_eq!(talk.environment["ENDPOINT"], "https://local0ws01.execute-api.us-east-1.amazonaws.com/test");
    assert_eq!(talk.environment["OTHER"], connect.name);
    let tables: Vec<_> = service.tables.iter().map(|table| &table.create_table["TableName"]).collect();
    assert_eq!(tables[0], &*connect.environment["TABLE"]);
    assert_eq!(service.tables[0].create_table["KeySchema"][0]["AttributeName"], "connectionId");
    assert_eq!(tables.len(), 2);
    let [mapping] = &talk.streams[..] else { panic!("{:?}", talk.streams) };
    assert_eq!((mapping.batch_size, mapping.table.as_str()), (100, "Messages"));
}

#[test]
fn an_api_may_be_written_with_the_resources_of_cloudformation() {
    let service = of_file(include_str!("../../../tests/services/sam-with-api-gateway-v2.yaml"));
    assert_eq!(service.api.stage, "Prod");
    assert_eq!(service.api.routes["$connect"], "OnConnect");
    assert_eq!(service.api.stage_variables["colour"], "green");
    let function = &service.functions["OnConnect"];
    assert_eq!(function.artifact.as_deref(), Some("onconnect/bootstrap.zip"));
    assert!(function.role.is_some());
}

#[test]
fn a_function_has_the_defaults_of_lambda_and_of_globals() {
    let limits = |globals: &str, ignored: &str| {
        let globals = format!("Globals: {{Function: {{{globals}}}}}\nResources:\n");
        let text = talk("Runtime: provided.al2023", "").replace("Resources:\n", &globals);
        let service = of_file(&text.replace("  Guard:", &format!("{ignored}  Guard:")));
        let function = &service.functions["Talk"];
        (function.timeout.as_secs(), function.memory_size_mb)
    };
    assert_eq!(limits("", ""), (3, 128));
    let globals = "Timeout: 9, MemorySize: 512";
    assert_eq!(limits(globals, ""), (9, 512));
    assert_eq!(limits(globals, "    IgnoreGlobals: [Timeout]\n"), (3, 512));
    assert_eq!(limits(globals, "    IgnoreGlobals: '*'\n"), (3, 128));
}

#[test]
fn an_authorizer_is_a_function_of_the_template() {
    let auth = "      Auth: {AuthType: CUSTOM, AuthArn: !GetAtt Guard.Arn, IdentitySource: [route.request.header.Key]}";
    let authorizer = of_file(&chat(auth)).api.authorizer.unwrap();
    assert_eq!(
        (authorizer.function.as_str(), &authorizer.identity_sources[..]),
        ("Guard", &["route.request.header.Key".to_owned()][..])
    );
    assert!(of_file(&chat("      Auth: {AuthType: AWS_IAM}")).api.is_iam_authorized);
    let none = of_file(&chat("      Auth: {AuthType: NONE}")).api;
    assert!(none.authorizer.is_none() && !none.is_iam_authorized);
    let wrong = error(&[("serverless.yml", &chat("      Auth: {AuthType: JWT}"))]);
    assert_eq!(wrong, "serverless.yml: Resources.Chat.Properties.Auth.AuthType: expected NONE, AWS_IAM or CUSTOM");
}

#[test]
fn the_stage_is_a_text_or_a_parameter_and_flags_win() {
    let stage = |properties: &str, settings: &Settings| {
        load_with(&[("serverless.yml", &chat(properties))], settings).unwrap().api.stage
    };
    let parameter = "      StageName: !Ref Stage";
    let prod = Settings { parameters: [("Stage".to_owned(), "prod".to_owned())].into(), ..Settings::default() };
    let flag = Settings { stage: Some("flag".to_owned()), ..prod.clone() };
    assert_eq!(stage("", &Settings::default()), "default");
    assert_eq!(stage("      StageName: dev", &Settings::default()), "dev");
    assert_eq!(stage(parameter, &Settings::default()), "test");
    assert_eq!((stage(parameter, &prod), stage(parameter, &flag)), ("prod".to_owned(), "flag".to_owned()));
    assert!(
        error(&[("serverless.yml", &chat("      StageName: !Ref Nothing"))]).contains("StageName: expected a name")
    );
}

#[test]
fn stage_variables_and_arns_have_the_names_of_the_functions() {
    let service = of_file(&chat("      StageVariables: {guard: !GetAtt Guard.Arn, api: !Ref Chat}"));
    let variables = &service.api.stage_variables;
    assert_eq!(variables["api"], "local0ws01");
    let arn = &variables["guard"];
    assert!(arn.contains(ACCOUNT_ID) && arn.ends_with("-Guard"), "{arn}");
}

/// Makes a template whose function `Talk` has these properties, and with more resources.
fn talk(properties: &str, resources: &str) -> String {
    chat("").replace("{Handler: talk, Runtime: provided.al2023}", &format!("{{Handler: talk, {properties}}}"))
        + resources
}

const BIRDS: &str = "  Birds: {Type: AWS::Serverless::SimpleTable, Properties: {TableName: birds}}\n";

/// Returns the statements of the role that a function has from its policies, in short.
fn allowed(policies: &str, resources: &str) -> Vec<String> {
    let service = of_file(&talk(&format!("Policies: {policies}"), &format!("{BIRDS}{resources}")));
    let role = service.functions["Talk"].role.clone().unwrap();
    assert!(role.name.ends_with("-TalkRole"), "{}", role.name);
    let short = |patterns: &Patterns| match patterns {
        Patterns::Of(patterns) => patterns.join(" ").replace(&format!("us-east-1:{ACCOUNT_ID}"), "ME"),
        Patterns::Not(_) => unreachable!(),
    };
    let line = |it: &Statement| format!("{:?} {} {}", it.effect, short(&it.actions), short(&it.resources));
    role.statements.iter().map(line).collect()
}

#[test]
fn policies_are_the_role_of_a_function() {
    let statement = "Statement: [{Effect: Allow, Action: dynamodb:GetItem, Resource: !GetAtt Birds.Arn}]";
    assert_eq!(allowed(&format!("{{{statement}}}"), ""), ["Allow dynamodb:GetItem arn:aws:dynamodb:ME:table/birds"]);
    let managed = "  Own: {Type: AWS::IAM::ManagedPolicy, Properties: {PolicyDocument: {Statement: [{Effect: Deny, \
                   Action: dynamodb:Scan, Resource: '*'}]}}}\n";
    let policies = format!(
        "[AWSLambdaBasicExecutionRole, AmazonDynamoDBFullAccess, {{{statement}}}, !Ref Own, \
         'arn:aws:iam::aws:policy/AmazonSSMFullAccess', !Sub 'arn:${{AWS::Partition}}:iam::aws:policy/PowerUserAccess']"
    );
    assert_eq!(
        allowed(&policies, managed),
        [
            "Allow dynamodb:GetItem arn:aws:dynamodb:ME:table/birds",
            "Allow dynamodb:* *",
            "Deny dynamodb:Scan *",
            "Allow ssm:* *",
            "Allow * *",
        ]
    );
    assert!(allowed("[]", "").is_empty());
    assert!(allowed("AWSLambdaBasicExecutionRole", "").is_empty());
}

#[test]
fn templates_of_policies_are_known() {
    let of_table = |template: &str| allowed(&format!("[{{{template}: {{TableName: !Ref Birds}}}}]"), "");
    let table = "arn:aws:dynamodb:ME:table/birds arn:aws:dynamodb:ME:table/birds/index/*";
    assert_eq!(
        of_table("DynamoDBCrudPolicy"),
        [format!(
            "Allow dynamodb:GetItem dynamodb:DeleteItem dynamodb:PutItem dynamodb:Scan dynamodb:Query \
             dynamodb:UpdateItem dynamodb:BatchWriteItem dynamodb:BatchGetItem dynamodb:DescribeTable \
             dynamodb:ConditionCheckItem {table}"
        )]
    );
    assert_eq!(
        of_table("DynamoDBReadPolicy"),
        [format!(
            "Allow dynamodb:GetItem dynamodb:Scan dynamodb:Query dynamodb:BatchGetItem dynamodb:DescribeTable {table}"
        )]
    );
    assert_eq!(
        of_table("DynamoDBWritePolicy"),
        [format!("Allow dynamodb:PutItem dynamodb:UpdateItem dynamodb:BatchWriteItem {table}")]
    );
    assert_eq!(of_table("DynamoDBReconfigurePolicy"), ["Allow dynamodb:UpdateTable arn:aws:dynamodb:ME:table/birds"]);
    assert_eq!(
        of_table("DynamoDBBackupFullAccessPolicy"),
        [
            "Allow dynamodb:CreateBackup dynamodb:DescribeContinuousBackups arn:aws:dynamodb:ME:table/birds",
            "Allow dynamodb:DeleteBackup dynamodb:DescribeBackup dynamodb:ListBackups \
             arn:aws:dynamodb:ME:table/birds/backup/*",
        ]
    );
    assert_eq!(
        of_table("DynamoDBRestoreFromBackupPolicy"),
        [
            "Allow dynamodb:RestoreTableFromBackup arn:aws:dynamodb:ME:table/birds/backup/*",
            "Allow dynamodb:PutItem dynamodb:UpdateItem dynamodb:DeleteItem dynamodb:GetItem dynamodb:Query \
             dynamodb:Scan dynamodb:BatchWriteItem arn:aws:dynamodb:ME:table/birds",
        ]
    );
    assert_eq!(
        allowed("[{DynamoDBStreamReadPolicy: {TableName: !Ref Birds, StreamName: '*'}}]", ""),
        [
            "Allow dynamodb:DescribeStream dynamodb:GetRecords dynamodb:GetShardIterator \
             arn:aws:dynamodb:ME:table/birds/stream/*",
            "Allow dynamodb:ListStreams arn:aws:dynamodb:ME:table/birds/stream/*",
        ]
    );
    for (template, name) in
        [("SSMParameterReadPolicy", "songs/*"), ("SSMParameterWithSlashPrefixReadPolicy", "/songs/*")]
    {
        assert_eq!(
            allowed(&format!("[{{{template}: {{ParameterName: {name}}}}}]"), ""),
            [
                "Allow ssm:DescribeParameters *",
                "Allow ssm:GetParameters ssm:GetParameter ssm:GetParametersByPath arn:aws:ssm:ME:parameter/songs/*",
            ]
        );
    }
}

#[test]
fn a_condition_chooses_among_policies() {
    let template = "Transform: AWS::Serverless-2016-10-31
Conditions: {Yes: !Equals [a, a], No: !Equals [a, b]}
";
    let policies = "[!If [Yes, {DynamoDBReadPolicy: {TableName: x}}, AmazonDynamoDBFullAccess], \
                    !If [No, AdministratorAccess, !Ref AWS::NoValue]]";
    let text = talk(&format!("Policies: {policies}"), "").replace("Transform: AWS::Serverless-2016-10-31\n", template);
    let role = of_file(&text).functions["Talk"].role.clone().unwrap();
    let [statement] = &role.statements[..] else { panic!("{role:?}") };
    assert!(matches!(&statement.actions, Patterns::Of(actions) if actions[0] == "dynamodb:GetItem"), "{statement:?}");
}

#[test]
fn a_policy_that_is_not_read_is_told_by_its_name() {
    let policies = "[S3ReadPolicy: {BucketName: nest}, AmazonDynamoDBReadOnlyAccess, \
                    'arn:aws:iam::000000000000:policy/flock', !Sub 'arn:aws:iam::${AWS::AccountId}:policy/swarm']";
    let told = ignored(&talk(&format!("Policies: {policies}"), ""));
    for (index, name) in ["S3ReadPolicy", "AmazonDynamoDBReadOnlyAccess", "flock", "swarm"].into_iter().enumerate() {
        let start =
            format!("serverless.yml:14: Resources.Talk.Properties.Policies[{index}]: the policy {name} is not read");
        assert!(told[index].starts_with(&start), "{told:?}");
    }
    assert_eq!(told.len(), 4);
}

#[test]
fn a_wrong_statement_has_its_place_in_the_template() {
    let wrong = |statement: &str| error(&[("serverless.yml", &talk(&format!("Policies: [x, {{{statement}}}]"), ""))]);
    let at = "serverless.yml: Resources.Talk.Properties.Policies[1].Statement[0]";
    let condition = "Statement: [{Effect: Allow, Action: '*', Resource: '*', Condition: {}}]";
    assert!(wrong(condition).starts_with(&format!("{at}.Condition: unknown field")), "{}", wrong(condition));
    let unknown = "Statement: [{Effect: Allow, Action: '*', Resource: !GetAtt Nest.Arn}]";
    assert!(wrong(unknown).starts_with(&format!("{at}.Resource.Fn::GetAtt: ")), "{}", wrong(unknown));
}

#[test]
fn a_boundary_of_permissions_is_refused() {
    let policies = "Policies: [DynamoDBReadPolicy: {TableName: x}]";
    let reason =
        "the local stack does not understand this part of a role; `--no-iam` lets every function do everything";
    let own = talk(&format!("PermissionsBoundary: !Sub 'arn:x:${{AWS::Region}}', {policies}"), "");
    let global = |boundary: &str| {
        let globals = format!("Globals: {{Function: {{PermissionsBoundary: {boundary}}}}}\nResources:\n");
        let conditions = "Conditions: {Yes: !Equals [a, a], No: !Equals [a, b]}\n";
        talk(policies, "").replace("Resources:\n", &format!("{conditions}{globals}"))
    };
    for (text, at) in [
        (&own, "Resources.Talk.Properties.PermissionsBoundary"),
        (&global("x"), "Globals.Function.PermissionsBoundary"),
        (&global("!If [Yes, x, !Ref AWS::NoValue]"), "Globals.Function.PermissionsBoundary.Fn::If[1]"),
    ] {
        assert_eq!(error(&[("serverless.yml", text)]), format!("serverless.yml: {at}: {reason}"));
        let no_iam = Settings { no_iam: true, ..Settings::default() };
        assert!(load_with(&[("serverless.yml", text)], &no_iam).is_ok());
    }

    // Here nothing is bounded: there is no boundary, no permission, or a role of the template.
    let role = "  Flock: {Type: AWS::IAM::Role}\n";
    for text in [
        global("!If [No, x, !Ref AWS::NoValue]"),
        talk("PermissionsBoundary: x", ""),
        talk(&format!("PermissionsBoundary: x, Role: !GetAtt Flock.Arn, {policies}"), role),
    ] {
        of_file(&text);
    }
}

#[test]
fn a_role_wins_and_connectors_allow_what_is_not_read() {
    let policies = "Policies: [DynamoDBReadPolicy: {TableName: x}]";
    let role = "  Flock: {Type: AWS::IAM::Role, Properties: {RoleName: flock}}\n";
    let service = of_file(&talk(&format!("Role: !GetAtt Flock.Arn, {policies}"), role));
    assert_eq!(service.functions["Talk"].role.as_ref().unwrap().name, "flock");

    let connector = "  Wire:
    Type: AWS::Serverless::Connector
    Properties: {Source: {Id: Talk}, Destination: {Id: Birds}, Permissions: [Read]}
";
    let with_connector = talk(policies, &format!("{BIRDS}{connector}"));
    assert!(of_file(&with_connector).functions["Talk"].role.is_none());
    assert!(ignored(&with_connector)[0].contains("Policies: what connectors allow is not read here"));
    let embedded = talk(policies, "").replace("  Guard:", "    Connectors: {Wire: {}}\n  Guard:");
    assert!(of_file(&embedded).functions["Talk"].role.is_none());
    let of_another = with_connector.replace("Id: Talk", "Id: Guard");
    assert!(of_file(&of_another).functions["Talk"].role.is_some());
}
