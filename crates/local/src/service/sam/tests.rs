use super::super::testing::{error, load, load_with};
use super::super::{Service, Settings};
use crate::iam::ACCOUNT_ID;

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
