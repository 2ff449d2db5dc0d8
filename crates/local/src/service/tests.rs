//! Each test writes a service's files and checks the [`Service`] or the text of the error.

use super::*;
use crate::gateway::KeySource;
use crate::iam::Patterns;
use serde_json::json;

fn load_with(files: &[(&str, &str)], settings: &Settings) -> Result<Service, ServiceError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Service::load(&folder.path().join("serverless.yml"), settings)
}

fn load(files: &[(&str, &str)]) -> Service {
    load_with(files, &Settings::default()).unwrap()
}

fn error(files: &[(&str, &str)]) -> String {
    without_line(load_with(files, &Settings::default()).unwrap_err())
}

/// Returns the text of an error without the line of its key. Another test is about lines.
fn without_line(mut error: ServiceError) -> String {
    if let ServiceError::Invalid { location, .. } = &mut error {
        location.line = None;
    }
    error.to_string()
}

/// Makes a service with the given lines below the function's environment, and others at the top level.
fn service_with(environment: &str, top_level: &str) -> String {
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
fn value_of(value: &str, top_level: &str, settings: &Settings) -> Result<String, ServiceError> {
    let text = service_with(&format!("      X: {value}"), top_level);
    let service = load_with(&[("serverless.yml", &text)], settings)?;
    Ok(service.functions["connect"].environment["X"].clone())
}

fn value(value: &str, top_level: &str) -> String {
    value_of(value, top_level, &Settings::default()).unwrap()
}

fn value_error(value: &str, top_level: &str) -> String {
    without_line(value_of(value, top_level, &Settings::default()).unwrap_err())
}

/// Tables with and without a stream, and a queue.
const RESOURCES: &str = "
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

#[test]
fn a_realistic_service_is_read_whole() {
    let main = r"
service: chat
frameworkVersion: '4'
useDotenv: true
package: {individually: true, artifact: '${ssm:/only/a/deployment/knows}'}
plugins: [serverless-plugin]
custom:
  retries: {dev: 3, prod: 10}
provider:
  name: aws
  runtime: provided.al2023
  architecture: arm64
  stage: ${opt:stage, 'dev'}
  region: eu-central-1
  memorySize: 256
  websocketsApiRouteSelectionExpression: $request.body.type
  logs: {lambda: {logFormat: JSON, applicationLogLevel: DEBUG, systemLogLevel: WARN}, websocket: {level: INFO}}
  iam: {role: {statements: '${file(infra/iam.yml)}'}}
  environment:
    TABLE: !Ref ConnectionsTable
    LIMIT: 10
    VERBOSE: true
functions:
  connect:
    handler: connect
    description: who is this
    events:
      - websocket: $connect
  sendMessage:
    handler: send-message
    name: ${self:service}-send
    timeout: ${env:SEND_TIMEOUT, '29'}
    reservedConcurrency: 5
    environment: {LIMIT: 20}
    logs: {logFormat: Text}
    events:
      - websocket: {route: sendMessage, routeResponseSelectionExpression: $default}
      - websocket: $default
  publish:
    handler: publish
    memorySize: 512
    events:
      - stream:
          type: dynamodb
          arn: !GetAtt EventsTable.StreamArn
          batchSize: 100
          batchWindow: 1
          startingPosition: LATEST
          maximumRetryAttempts: ${self:custom.retries.${sls:stage}}
          maximumRecordAgeInSeconds: 3600
          bisectBatchOnFunctionError: true
          parallelizationFactor: 2
          functionResponseType: ReportBatchItemFailures
          destinations: {onFailure: {type: sqs, arn: !GetAtt FailedEvents.Arn}}
          filterPatterns: [{eventName: [INSERT], dynamodb: {NewImage: {a: {N: ['${self:custom.retries.${sls:stage}}']}}}}]
resources:
  - ${file(infra/tables.yml)}
  - Resources:
      FailedEvents: {Type: AWS::SQS::Queue}
    Outputs:
      Url: {Value: !Sub 'wss://${WebsocketsApi}.example'}
";
    let tables = r"
Resources:
  ConnectionsTable:
    Type: AWS::DynamoDB::Table
    DeletionPolicy: Retain
    Properties:
      TableName: ${self:service}-${sls:stage}-connections
      BillingMode: PAY_PER_REQUEST
      AttributeDefinitions: [{AttributeName: connectionId, AttributeType: S}]
      KeySchema: [{AttributeName: connectionId, KeyType: HASH}]
      TimeToLiveSpecification: {AttributeName: ttl, Enabled: true}
      PointInTimeRecoverySpecification: {PointInTimeRecoveryEnabled: true}
      Tags: [{Key: a, Value: b}]
  EventsTable:
    Type: AWS::DynamoDB::Table
    Properties:
      AttributeDefinitions:
        - {AttributeName: topic, AttributeType: S}
        - {AttributeName: id, AttributeType: S}
      KeySchema:
        - {AttributeName: topic, KeyType: HASH}
        - {AttributeName: id, KeyType: RANGE}
      ProvisionedThroughput: {ReadCapacityUnits: 1, WriteCapacityUnits: 1}
      StreamSpecification: {StreamViewType: NEW_IMAGE}
      GlobalSecondaryIndexes:
        - IndexName: byId
          KeySchema: [{AttributeName: id, KeyType: HASH}]
          Projection: {ProjectionType: ALL}
          ProvisionedThroughput: {ReadCapacityUnits: 1, WriteCapacityUnits: 1}
";
    let service = load(&[("serverless.yml", main), ("infra/tables.yml", tables), ("infra/iam.yml", "[]")]);

    assert_eq!(
        (service.name.as_str(), service.api.stage.as_str(), service.region.as_str()),
        ("chat", "dev", "eu-central-1")
    );
    assert_eq!(service.api.route_selection_expression, "$request.body.type");
    let routes: Vec<_> = service.api.routes.iter().map(|(route, key)| (route.as_str(), key.as_str())).collect();
    assert_eq!(routes, [("$connect", "connect"), ("$default", "sendMessage"), ("sendMessage", "sendMessage")]);
    let reserved = |key: &str| service.functions[key].reserved_concurrency;
    assert_eq!((reserved("sendMessage"), reserved("connect")), (Some(5), None));
    assert_eq!(service.api.two_way_routes.iter().collect::<Vec<_>>(), ["sendMessage"]);

    let connect = &service.functions["connect"];
    assert_eq!((connect.name.as_str(), connect.handler.as_str()), ("chat-dev-connect", "connect"));
    assert_eq!((connect.memory_size_mb, connect.timeout), (256, Duration::from_secs(6)));
    assert_eq!((connect.log_format, connect.log_level.as_deref()), (LogFormat::Json, Some("DEBUG")));
    let environment: Vec<_> = connect.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(environment, [("LIMIT", "10"), ("TABLE", "chat-dev-connections"), ("VERBOSE", "true")]);

    let send = &service.functions["sendMessage"];
    assert_eq!((send.name.as_str(), send.timeout), ("chat-send", Duration::from_secs(29)));
    assert_eq!((send.log_format, send.log_level.as_deref()), (LogFormat::Text, None));
    assert_eq!(send.environment["LIMIT"], "20");

    let publish = &service.functions["publish"];
    assert_eq!(publish.memory_size_mb, 512);
    let expected = StreamMapping {
        table: "EventsTable".to_owned(),
        batch_size: 100,
        batch_window: Duration::from_secs(1),
        starting_position: StartingPosition::Latest,
        maximum_retry_attempts: Some(3),
        maximum_record_age: Some(Duration::from_secs(3600)),
        bisect_batch_on_function_error: true,
        parallelization_factor: 2,
        report_batch_item_failures: true,
        filter: serde_json::from_value(json!([{"eventName": ["INSERT"], "dynamodb": {"NewImage": {"a": {"N": [3]}}}}]))
            .unwrap(),
        on_failure: Some("arn:aws:sqs:eu-central-1:123456789012:chat-dev-FailedEvents".to_owned()),
        enabled: true,
    };
    assert_eq!(publish.streams, [expected]);

    let [connections, events] = service.tables.as_slice() else { panic!("two tables: {:?}", service.tables) };
    assert_eq!(
        (connections.logical_id.as_str(), connections.ttl_attribute.as_deref()),
        ("ConnectionsTable", Some("ttl"))
    );
    assert_eq!(
        connections.create_table,
        json!({
            "TableName": "chat-dev-connections",
            "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": "connectionId", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "connectionId", "KeyType": "HASH"}],
        })
    );
    assert_eq!(events.ttl_attribute, None);
    assert_eq!(events.create_table["TableName"], "chat-dev-EventsTable");
    assert_eq!(
        events.create_table["StreamSpecification"],
        json!({"StreamEnabled": true, "StreamViewType": "NEW_IMAGE"})
    );
    assert_eq!(events.create_table["GlobalSecondaryIndexes"][0]["Projection"], json!({"ProjectionType": "ALL"}));
    crate::table::Tables::open(None, &service.tables).unwrap();
}

#[test]
fn a_small_service_gets_the_frameworks_defaults() {
    let text = service_with("      X: x", RESOURCES).replace(
        "events: [websocket: $connect]",
        "events: [websocket: $connect, stream: {type: dynamodb, arn: {Fn::GetAtt: [Events, StreamArn]}}]",
    );
    let service = load(&[("serverless.yml", &text)]);
    assert_eq!((service.api.stage.as_str(), service.region.as_str()), ("dev", "us-east-1"));
    assert_eq!(service.api.route_selection_expression, "$request.body.action");
    let function = &service.functions["connect"];
    assert_eq!((function.memory_size_mb, function.timeout), (1024, Duration::from_secs(6)));
    assert_eq!((function.log_format, function.log_level.as_deref()), (LogFormat::Text, None));
    let expected = StreamMapping {
        table: "Events".to_owned(),
        batch_size: 10,
        batch_window: Duration::ZERO,
        starting_position: StartingPosition::TrimHorizon,
        maximum_retry_attempts: None,
        maximum_record_age: None,
        bisect_batch_on_function_error: false,
        parallelization_factor: 1,
        report_batch_item_failures: false,
        on_failure: None,
        filter: Filter::default(),
        enabled: true,
    };
    assert_eq!(function.streams, [expected]);
}

#[test]
fn functions_and_their_parts_can_come_from_other_files() {
    let main = "
service: chat
provider: ${file(./provider.yml)}
functions:
  - ${file(functions.yml)}
  - two: {handler: two, events: [{websocket: two}]}
";
    let provider = "{name: aws, stage: '${self:provider.name}-x', environment: {STAGE: '${sls:stage}'}}";
    let functions = "{one: {handler: one, events: [{websocket: one}]}}";
    let service = load(&[("serverless.yml", main), ("provider.yml", provider), ("functions.yml", functions)]);
    assert_eq!(service.api.routes.into_keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(service.functions["one"].environment["STAGE"], "aws-x");
}

#[test]
fn variables_take_their_values_from_each_source() {
    let custom = "custom: {a: {b: [x, y]}, n: 5, none: ~, dev: {x: deep}, other: '${self:custom.a.b.1}', t: true}";
    for (expression, expected) in [
        ("${self:service}", "chat"),
        ("${self:custom.a.b.1}", "y"),
        ("${self:custom.other}", "y"),
        ("${self:custom.${sls:stage}.x}", "deep"),
        ("${self:custom.n}", "5"),
        ("a-${self:custom.n}-${self:custom.t}", "a-5-true"),
        ("${sls:stage}", "dev"),
        ("${opt:stage, 'none'}", "none"),
        ("${opt:stage, sls:stage}", "dev"),
        ("${opt:region, self:custom.none, ${self:custom.a.b.0}}", "x"),
        ("${env:HOME_PAGE, \"a, b\"}", "a, b"),
        ("${env:NAME}", "from the environment"),
        ("${opt:x, 7}", "7"),
        ("${opt:x, 'in-${sls:stage}'}", "in-dev"),
        ("${file(values.yml):list.1}", "two"),
        ("${file(values.yml):stage}", "dev"),
        ("${file(missing.yml):x, 'none'}", "none"),
        ("${NotAVariable} and $5", "${NotAVariable} and $5"),
        ("${It's} ${AWS::Region} ${sls:stage}", "${It's} ${AWS::Region} dev"),
    ] {
        let main = service_with(&format!("      X: '{}'", expression.replace('\'', "''")), custom);
        let settings = Settings {
            environment: BTreeMap::from([("NAME".to_owned(), "from the environment".to_owned())]),
            ..Settings::default()
        };
        let files = [("serverless.yml", main.as_str()), ("values.yml", "{list: [one, two], stage: '${sls:stage}'}")];
        let service = load_with(&files, &settings).unwrap();
        assert_eq!(service.functions["connect"].environment["X"], expected, "{expression}");
    }
}

#[test]
fn the_stage_flag_wins() {
    let settings = Settings { stage: Some("prod".to_owned()), ..Settings::default() };
    assert_eq!(value_of("${sls:stage}-${opt:stage}", "", &settings).unwrap(), "prod-prod");
    assert_eq!(value_of("!Ref AWS::StackName", "", &settings).unwrap(), "chat-prod");
}

#[test]
fn a_parameter_of_the_stage_wins_in_each_form() {
    let parameters = "params: {default: {mode: closed, size: 5}, dev: {mode: open}}";
    for (provider, flag, expected) in [
        ("", None, "open 5"),
        (", stage: dev", None, "open 5"),
        (", stage: '${opt:stage, ''dev''}'", None, "open 5"),
        (", stage: '${opt:stage, ''dev''}'", Some("production"), "closed 5"),
        (", stage: production", None, "closed 5"),
        (", stage: production", Some("dev"), "open 5"),
    ] {
        let main = service_with("      X: ${param:mode} ${param:size}", parameters);
        let main = main.replace("provider:\n  name: aws\n", &format!("provider: {{name: aws{provider}}}\n"));
        let settings = Settings { stage: flag.map(str::to_owned), ..Settings::default() };
        let service = load_with(&[("serverless.yml", &main)], &settings).unwrap();
        assert_eq!(service.functions["connect"].environment["X"], expected, "{provider} {flag:?}");
    }
}

#[test]
fn intrinsic_functions_are_evaluated() {
    for (expression, expected) in [
        ("!Ref Events", "chat-events"),
        ("!Ref Plain", "chat-dev-Plain"),
        ("!Ref WebsocketsApi", API_ID),
        ("!Ref ConnectLambdaFunction", "chat-dev-connect"),
        ("!Ref Failed", "https://sqs.us-east-1.amazonaws.com/123456789012/chat-dev-Failed"),
        ("!Ref Alarm", "arn:aws:sns:us-east-1:123456789012:chat-dev-Alarm"),
        ("!Ref AWS::Region", "us-east-1"),
        ("!GetAtt Events.Arn", "arn:aws:dynamodb:us-east-1:123456789012:table/chat-events"),
        (
            "{Fn::GetAtt: [ConnectLambdaFunction, Arn]}",
            "arn:aws:lambda:us-east-1:123456789012:function:chat-dev-connect",
        ),
        ("!GetAtt IamRoleLambdaExecution.Arn", "arn:aws:iam::123456789012:role/chat-dev-us-east-1-lambdaRole"),
        ("!GetAtt Failed.QueueName", "chat-dev-Failed"),
        ("!Sub '${Events}/${Plain.Arn}'", "chat-events/arn:aws:dynamodb:us-east-1:123456789012:table/chat-dev-Plain"),
        (
            "!Sub 'https://${WebsocketsApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/${sls:stage}'",
            "https://local0ws01.execute-api.us-east-1.amazonaws.com/dev",
        ),
        ("!Sub ['${A}-${!B}-${Events}', {A: !Ref Plain}]", "chat-dev-Plain-${B}-chat-events"),
        ("!Join ['/', [a, !Ref Events, 3]]", "a/chat-events/3"),
        ("!Join ['', ['arn:', !Ref AWS::Partition, ':', !Ref AWS::AccountId]]", "arn:aws:123456789012"),
    ] {
        assert_eq!(value(expression, RESOURCES), expected, "{expression}");
    }
    assert!(value("!GetAtt Events.StreamArn", RESOURCES).contains(":table/chat-events/stream/"));
}

#[test]
fn intrinsic_functions_that_have_no_value_here_are_refused() {
    for (expression, expected) in [
        ("!Ref Evnts", "Ref: the stack has no resource `Evnts`"),
        ("!GetAtt Evnts.Arn", "Fn::GetAtt: the stack has no resource `Evnts`"),
        ("!Sub '${Evnts}'", "Fn::Sub: the stack has no resource `Evnts`"),
        ("!GetAtt Plain.StreamArn", "Fn::GetAtt: the table `Plain` has no StreamSpecification"),
        ("!GetAtt Failed.Colour", "Fn::GetAtt: the local stack does not know `Failed.Colour`"),
        ("!ImportValue other", "Fn::ImportValue: not supported by the local stack"),
        ("!Join ['', [!If [A, b, c]]]", "Fn::Join[1][0].Fn::If: the stack has no condition `A`"),
        ("!Join a", "Fn::Join: the argument has the wrong form"),
    ] {
        let expected = format!("serverless.yml: functions.connect.environment.X.{expected}");
        assert_eq!(value_error(expression, RESOURCES), expected, "{expression}");
    }
}

#[test]
fn environment_values_are_scalars() {
    let at = "serverless.yml: functions.connect.environment.X";
    let expected = "expected a text, a number or a boolean, found";
    assert_eq!(value_error("[a]", ""), format!("{at}: {expected} a list"));
    assert_eq!(value_error("{a: b}", ""), format!("{at}: {expected} a mapping"));
    assert_eq!(value_error("", ""), format!("{at}: {expected} nothing"));
    let text = service_with("      A-B: x", "");
    let expected =
        "serverless.yml: functions.connect.environment.A-B: not a name that an environment variable can have";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}

#[test]
fn variables_that_have_no_value_name_file_and_key() {
    let at = "serverless.yml: functions.connect.environment.X";
    for (expression, expected) in [
        ("${self:custom.nope}", "`${self:custom.nope}` has no value"),
        ("${opt:nope}", "`${opt:nope}` has no value"),
        ("${file(nope.yml)}", "`${file(nope.yml)}` has no value: no such file or key"),
        ("${file(nope.js)}", "`nope.js` is not a .yml, .yaml or .json file"),
        ("${ssm:/a/b}", "the local stack has no variable `ssm:/a/b`"),
        ("${cf:stack.Output}", "the local stack has no variable `cf:stack.Output`"),
        ("${opt:x, dev}", "`dev` is neither a variable nor a text in quotes"),
        ("a-${self:provider}", "`${self:provider}` is not a text"),
    ] {
        assert_eq!(value_error(&format!("'{expression}'"), ""), format!("{at}: {expected}"), "{expression}");
    }
}

#[test]
fn cycles_are_found() {
    let custom = "custom: {a: '${self:custom.b}', b: 'x${self:custom.a}', c: {d: '${self:custom.c}'}}";
    let expected = "serverless.yml: custom.a: `${self:custom.b}` leads back to itself";
    assert_eq!(value_error("${self:custom.a}", custom), expected);
    assert_eq!(
        value_error("${self:custom.c}", custom),
        "serverless.yml: custom.c: a variable includes the mapping or list that it is part of"
    );
    let main = service_with("      X: x", "resources: '${file(a.yml)}'");
    let files =
        [("serverless.yml", main.as_str()), ("a.yml", "Resources: {A: {Type: '${file(a.yml):Resources.A.Type}'}}")];
    assert_eq!(error(&files), "a.yml: Resources.A.Type: `${file(a.yml):Resources.A.Type}` leads back to itself");
}

#[test]
fn broken_files_are_refused_with_file_and_key() {
    let good = service_with("      X: x", RESOURCES);
    load(&[("serverless.yml", &good)]);
    for (original, broken, expected) in [
        ("service: chat", "service: 5chat", "service: `5chat` is not a letter followed by letters, digits and `-`"),
        (
            "service: chat",
            "service: chat\nservce: chat",
            "servce: unknown field `servce`, expected one of `service`, `provider`, `functions`, `resources`",
        ),
        ("name: aws", "name: google", "provider.name: unknown variant `google`, expected `aws`"),
        ("name: aws", "stage: dev", "provider: missing field `name`"),
        ("name: aws", "name: aws\n  vpc: {subnetIds: []}", "provider.vpc: not supported by the local stack"),
        (
            "resources:\n",
            "resources:\n  extensions: {WebsocketsDeploymentStage: {}, ConnectWebsocketsIntegration: {}}\n",
            "resources.extensions.ConnectWebsocketsIntegration: not supported by the local stack",
        ),
        (
            "name: aws",
            "name: aws\n  stage: 'a b'",
            "provider.stage: the stage `a b` is not 1 to 128 letters, digits, `-` and `_`",
        ),
        ("name: aws", "name: aws\n  memorySize: 64", "provider.memorySize: 64 is not a whole number from 128 to 10240"),
        (
            "name: aws",
            "name: aws\n  logs: {lambda: {logFormat: XML}}",
            "provider.logs.lambda.logFormat: unknown variant `XML`, expected `JSON` or `Text`",
        ),
        ("handler: connect", "timeout: 5", "functions.connect: missing field `handler`"),
        (
            "handler: connect",
            "handler: connect\n    timeout: 901",
            "functions.connect.timeout: 901 is not a whole number from 1 to 900",
        ),
        (
            "handler: connect",
            "handler: connect\n    image: x",
            "functions.connect.image: not supported by the local stack",
        ),
        ("websocket: $connect", "http: GET /", "functions.connect.events[0].http: not supported by the local stack"),
        (
            "websocket: $connect",
            "websockets: $connect",
            "functions.connect.events[0].websockets: unknown field `websockets`, expected `websocket` or `stream`",
        ),
        (
            "websocket: $connect",
            "websocket: $conect",
            "functions.connect.events[0].websocket: `$conect` is not one of `$connect`, `$disconnect`, `$default`",
        ),
        (
            "websocket: $connect",
            "websocket: {route: a, authorizer: b}",
            "functions.connect.events[0].websocket.authorizer: only `$connect` can have an authorizer",
        ),
        (
            "websocket: $connect",
            "websocket: {route: a, routeResponseSelectionExpression: $request.body.b}",
            "functions.connect.events[0].websocket.routeResponseSelectionExpression: unknown variant \
             `$request.body.b`, expected `$default`",
        ),
        (
            "websocket: $connect",
            "websocket: {rout: a}",
            "functions.connect.events[0].websocket.rout: unknown field `rout`, expected one of `route`, `routeResponseSelectionExpression`, `authorizer`",
        ),
        (
            "[websocket: $connect]",
            "[{websocket: a}, {websocket: a}]",
            "functions.connect.events[1].websocket: the route `a` leads to the function `connect` already",
        ),
        ("events: [websocket: $connect]", "events: []", "functions: no function has a websocket event"),
        (
            "StreamViewType",
            "StreamViewTypo",
            "resources.Resources.Events.Properties.StreamSpecification.StreamViewTypo: unknown field `StreamViewTypo`, expected `StreamViewType`",
        ),
        (
            "NEW_IMAGE",
            "NEW",
            "resources.Resources.Events.Properties.StreamSpecification.StreamViewType: unknown variant `NEW`, expected one of `KEYS_ONLY`, `NEW_IMAGE`, `OLD_IMAGE`, `NEW_AND_OLD_IMAGES`",
        ),
        (
            "${self:service}-events",
            "!Ref Plain",
            "resources.Resources.Events.Properties.TableName.Ref: a TableName cannot depend on the table `Plain`",
        ),
        (
            "${self:service}-events",
            "chat-dev-Plain",
            "resources.Resources.Plain.Properties.TableName: `Events` has this name already",
        ),
        (
            "Failed:",
            "ConnectLambdaFunction:",
            "resources.Resources.ConnectLambdaFunction: the stack has a resource of this logical id already",
        ),
        ("Type: AWS::SNS::Topic", "Typ: AWS::SNS::Topic", "resources.Resources.Alarm: missing field `Type`"),
    ] {
        let text = good.replacen(original, broken, 1);
        assert_eq!(error(&[("serverless.yml", &text)]), format!("serverless.yml: {expected}"));
    }
}

#[test]
fn broken_stream_mappings_are_refused() {
    let good = service_with("      X: x", RESOURCES).replace(
        "[websocket: $connect]",
        "[websocket: $connect, stream: {type: dynamodb, arn: !GetAtt Events.StreamArn}]",
    );
    load(&[("serverless.yml", &good)]);
    let arn = "arn: !GetAtt Events.StreamArn";
    for (original, broken, expected) in [
        ("dynamodb", "kinesis", "type: unknown variant `kinesis`, expected `dynamodb`"),
        (arn, "arn: 'arn:aws:dynamodb:a'", "arn: the local stack needs the Fn::GetAtt of a table's StreamArn here"),
        (arn, "arn: !GetAtt Events.Arn", "arn: the local stack needs the Fn::GetAtt of a table's StreamArn here"),
        (arn, "arn: !GetAtt Plain.StreamArn", "arn.Fn::GetAtt: the table `Plain` has no StreamSpecification"),
        ("}]", ", batchSize: 0}]", "batchSize: 0 is not a whole number from 1 to 10000"),
        ("}]", ", batchWindow: 301}]", "batchWindow: 301 is not a whole number from 0 to 300"),
        ("}]", ", parallelizationFactor: 11}]", "parallelizationFactor: 11 is not a whole number from 1 to 10"),
        ("}]", ", maximumRetryAttempts: -2}]", "maximumRetryAttempts: -2 is not a whole number from -1 to 10000"),
        ("}]", ", maximumRecordAgeInSeconds: 59}]", "maximumRecordAgeInSeconds: 59 is neither -1 nor at least 60"),
        ("}]", ", filterPatterns: [{}]}]", "filterPatterns[0]: the pattern has no field"),
        (
            "}]",
            ", filterPatterns: [{eventName: [{wildcard: x}]}]}]",
            "filterPatterns[0].eventName[0]: unknown variant `wildcard`, expected one of `anything-but`, \
             `equals-ignore-case`, `exists`, `numeric`, `prefix`, `suffix`",
        ),
        (
            "}]",
            ", filterPatterns: [{eventName: INSERT}]}]",
            "filterPatterns[0].eventName: invalid type: string \"INSERT\", \
             expected a list of values, or a mapping of fields",
        ),
        ("}]", ", tumblingWindowInSeconds: 1}]", "tumblingWindowInSeconds: not supported by the local stack"),
        (
            "}]",
            ", startingPosition: AT_TIMESTAMP}]",
            "startingPosition: unknown variant `AT_TIMESTAMP`, expected `TRIM_HORIZON` or `LATEST`",
        ),
        (
            "}]",
            ", destinations: {onFailure: {arn: !GetAtt Failed.Arn}}}]",
            "destinations.onFailure: missing field `type`",
        ),
        (
            "}]",
            ", destinations: {onFailure: !GetAtt Failed.Arn}}]",
            "destinations.onFailure.Fn::GetAtt: unknown field `Fn::GetAtt`, expected `type` or `arn`",
        ),
    ] {
        let text = good.replacen(original, broken, 1);
        let expected = format!("serverless.yml: functions.connect.events[1].stream.{expected}");
        assert_eq!(error(&[("serverless.yml", &text)]), expected);
    }
}

#[test]
fn a_problem_is_reported_with_the_line_of_its_key() {
    let main = "service: chat
provider:
  name: aws
functions:
  connect:
    handler: connect
    events:
      - websocket: $connect
      - stream:
          type: dynamodb
          arn: !GetAtt Events.StreamArn
          filterPatterns:
            - eventName: [INSERT]
            - dynamodb:
                NewImage:
                  id:
                    S:
                      - polly
                      - like: p
resources: ${file(infra/tables.yml)}
";
    let tables = RESOURCES.trim_start().trim_start_matches("resources:");
    let text = |main: &str, tables: &str| {
        let files = [("serverless.yml", main), ("infra/tables.yml", tables)];
        load_with(&files, &Settings::default()).unwrap_err().to_string()
    };
    let pattern = "functions.connect.events[1].stream.filterPatterns[1].dynamodb.NewImage.id.S[1]";
    assert!(text(main, tables).starts_with(&format!("serverless.yml:19: {pattern}: unknown variant `like`")));
    let good = main.replace("                      - like: p\n", "");
    let unknown = tables.replace("TableName", "Name");
    assert!(text(&good, &unknown).starts_with("infra/tables.yml:6: Resources.Events.Properties.Name: unknown field"));
    // A missing key has the line of its mapping.
    let missing = good.replace("          type: dynamodb\n", "");
    let expected = "serverless.yml:9: functions.connect.events[1].stream: missing field `type`";
    assert_eq!(text(&missing, tables), expected);
}

#[test]
fn a_function_has_one_mapping_of_a_stream_as_on_aws() {
    let stream = "stream: {type: dynamodb, arn: !GetAtt Events.StreamArn}";
    let text = service_with("      X: x", RESOURCES)
        .replace("[websocket: $connect]", &format!("[websocket: $connect, {stream}, {stream}]"));
    let expected = "serverless.yml: functions.connect.events[2].stream.arn: \
                    the function has a mapping of this stream already; AWS allows one";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}

#[test]
fn more_than_five_filter_patterns_cause_a_warning() {
    let with = |count: usize| {
        let patterns = vec!["{eventName: [INSERT]}"; count].join(", ");
        let stream = format!("stream: {{type: dynamodb, arn: !GetAtt Events.StreamArn, filterPatterns: [{patterns}]}}");
        let text = service_with("      X: x", RESOURCES)
            .replace("[websocket: $connect]", &format!("[websocket: $connect, {stream}]"));
        load(&[("serverless.yml", &text)]).beyond_quotas(&crate::gateway::Settings::default().limits)
    };
    assert!(with(5).is_empty());
    assert_eq!(with(6), ["6 filter patterns of connect/Events: AWS allows 5, and more on request"]);
}

#[test]
fn a_problem_in_an_included_file_is_reported_there() {
    let main = service_with("      X: x", "resources: ['${file(infra/tables.yml)}', '${file(infra/more.yml):stack}']");
    let tables = RESOURCES.trim_start().trim_start_matches("resources:");
    let with = |tables: &str, more: &str| {
        error(&[("serverless.yml", main.as_str()), ("infra/tables.yml", tables), ("infra/more.yml", more)])
    };
    assert_eq!(
        with(&tables.replace("StreamViewType", "StreamViewTypo"), "stack: {}"),
        "infra/tables.yml: Resources.Events.Properties.StreamSpecification.StreamViewTypo: \
         unknown field `StreamViewTypo`, expected `StreamViewType`"
    );
    assert_eq!(
        with(tables, "stack: {Resources: {More: {Type: AWS::DynamoDB::Table, Properties: {Nme: x}}}}"),
        "infra/more.yml: stack.Resources.More.Properties.Nme: unknown field `Nme`, expected one of `TableName`, \
         `AttributeDefinitions`, `KeySchema`, `BillingMode`, `ProvisionedThroughput`, `LocalSecondaryIndexes`, \
         `GlobalSecondaryIndexes`, `StreamSpecification`, `TimeToLiveSpecification`"
    );
    assert_eq!(
        with(tables, "stack: {Resources: {Events: {Type: AWS::SQS::Queue}}}"),
        "infra/more.yml: stack.Resources.Events: the stack has a resource of this logical id already"
    );
    assert_eq!(
        with("Resources: [", "stack: {}"),
        "infra/tables.yml:2:1: while parsing a node, did not find expected node content"
    );
    assert_eq!(
        with(tables, "stack: {Transform: x}"),
        "infra/more.yml: stack.Transform: not supported by the local stack"
    );
}

#[test]
fn a_missing_or_empty_serverless_yml_is_named() {
    assert_eq!(error(&[]), "serverless.yml: cannot be read");
    assert_eq!(error(&[("serverless.yml", "")]), "serverless.yml: invalid type: null, expected a service");
    assert_eq!(error(&[("serverless.yml", "service: chat\n")]), "serverless.yml: missing field `provider`");
}

/// Returns the authorizer of a service with this `$connect` event and the functions `auth` and `connect`.
fn authorizer(value: &str) -> Result<Authorizer, ServiceError> {
    let text = format!(
        "service: chat
provider: {{name: aws}}
functions:
  auth: {{handler: auth, name: who-is-it}}
  connect:
    handler: connect
    events:
      - websocket:
          route: $connect
          authorizer: {value}
"
    );
    load_with(&[("serverless.yml", &text)], &Settings::default()).map(|service| service.api.authorizer.unwrap())
}

#[test]
fn an_authorizer_is_a_function_of_the_service_in_any_form() {
    for value in [
        "auth",
        "{name: auth}",
        "arn:aws:lambda:us-east-1:123456789012:function:who-is-it",
        "{arn: 'arn:aws:lambda:us-east-1:123456789012:function:who-is-it'}",
        "{name: whatever, arn: {Fn::GetAtt: [AuthLambdaFunction, Arn]}}",
    ] {
        let found = authorizer(value).unwrap();
        let default = vec!["route.request.header.Auth".to_owned()];
        assert_eq!(found, Authorizer { function: "auth".to_owned(), identity_sources: default }, "{value}");
    }
    let found = authorizer("{name: auth, identitySource: [route.request.querystring.t, context.identity.sourceIp]}");
    assert_eq!(found.unwrap().identity_sources, ["route.request.querystring.t", "context.identity.sourceIp"]);
}

#[test]
fn an_authorizer_that_cannot_run_here_is_refused() {
    let at = "serverless.yml: functions.connect.events[0].websocket.authorizer";
    for (value, reason) in [
        ("other", ": there is no function `other`"),
        ("{identitySource: []}", ": expected `name` or `arn`"),
        (
            "arn:aws:lambda:us-east-1:123456789012:function:other",
            ": `arn:aws:lambda:us-east-1:123456789012:function:other` is not a function of this service",
        ),
        (
            "{name: auth, identitySource: [$request.header.Auth]}",
            ".identitySource[0]: `$request.header.Auth` does not begin with one of `route.request.header.`, \
             `route.request.querystring.`, `context.`, `stageVariables.`",
        ),
        ("{name: auth, type: token}", ".type: unknown field `type`, expected one of `name`, `arn`, `identitySource`"),
    ] {
        assert_eq!(without_line(authorizer(value).unwrap_err()), format!("{at}{reason}"));
    }
}

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

fn role_of(properties: &str, others: &str, settings: &Settings) -> Result<Option<Role>, ServiceError> {
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
      {Effect: Deny, NotAction: ['a:*'], NotResource: [!Sub 'arn:${AWS::Partition}:x:${WebsocketsApi}/${sls:stage}/*']},
      !If [Tracing, {Effect: Allow, Action: 'xray:*', Resource: '*'}, !Ref AWS::NoValue],
      !If [Never, {Effect: Allow, Action: 'never:*', Resource: '*'}, !Ref AWS::NoValue]]";
    let expected = [
        r#"Allow Of(["dynamodb:GetItem"]) Of(["arn:aws:dynamodb:us-east-1:123456789012:table/chat-dev-Birds"])"#,
        r#"Deny Not(["a:*"]) Not(["arn:aws:x:local0ws01/dev/*"])"#,
        r#"Allow Of(["xray:*"]) Of(["*"])"#,
    ];
    assert_eq!(allowed(&policies(statements), ""), expected);
    let settings = Settings { stage: Some("prod".to_owned()), ..Settings::default() };
    let role = role_of(&policies(statements), "", &settings).unwrap().unwrap();
    let last = role.statements.last().unwrap();
    assert_eq!((role.name.as_str(), &last.actions), ("chat-prod-Role", &Patterns::Of(vec!["never:*".to_owned()])));
}

#[test]
fn policies_that_are_attached_to_a_role_are_its_own() {
    let document = "PolicyDocument: {Statement: {Effect: Allow, Action: 'b:*', Resource: '*'}}";
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
    let b = r#"Allow Of(["b:*"]) Of(["*"])"#;
    assert_eq!(allowed(properties, &others), [b, r#"Allow Of(["dynamodb:*"]) Of(["*"])"#, b, b]);
}

/// Makes the service of [`with_role`] with further keys of the provider.
fn with_provider(provider: &str, settings: &Settings) -> Result<Service, ServiceError> {
    let statement = "{Statement: {Effect: Allow, Action: 'attached:*', Resource: '*'}}";
    let others = format!(
        "  Attached:
    Type: AWS::IAM::ManagedPolicy
    Properties: {{Roles: [!Ref IamRoleLambdaExecution], PolicyDocument: {statement}}}
"
    );
    let mut files = with_role(&policies("[{Effect: Allow, Action: 'own:*', Resource: '*'}]"), &others);
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
    let statements = "[{Effect: Allow, Action: 'a:*', Resource: !GetAtt Birds.Arn}]";
    let connections = r#"Of(["execute-api:ManageConnections"])"#;
    let attached = r#"Of(["attached:*"])"#;
    let a = r#"Of(["a:*"])"#;
    let expected = format!("chat-dev-us-east-1-lambdaRole: {connections} {a} {attached}");
    for provider in
        [format!("iam: {{role: {{statements: {statements}, tags: {{}}}}}}"), format!("iamRoleStatements: {statements}")]
    {
        assert_eq!(actions(&provider, "other").as_deref(), Some(expected.as_str()), "{provider}");
        assert_eq!(actions(&provider, "connect").unwrap(), r#"chat-dev-Role: Of(["own:*"])"#);
    }
    let managed = "iam: {role: {name: flock, managedPolicies: ['arn:aws:iam::aws:policy/AmazonDynamoDBFullAccess']}}";
    let expected = format!(r#"flock: {connections} Of(["dynamodb:*"]) {attached}"#);
    assert_eq!(actions(managed, "other").as_deref(), Some(expected.as_str()));
    for provider in
        ["iam: {role: Role}", "iam: {role: !GetAtt Role.Arn}", "role: Role", "iam: {role: {tags: {}}}, role: Role"]
    {
        assert_eq!(actions(provider, "other").unwrap(), r#"chat-dev-Role: Of(["own:*"])"#, "{provider}");
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
            "iam: {role: {statements: [{Effect: Allow, Action: a, Resource: '*', Condition: {}}]}}",
            "iam.role.statements[0].Condition: unknown",
        ),
        (
            "iam: {role: {statements: [], permissionsBoundary: x}}",
            "iam.role.permissionsBoundary: the local stack does not",
        ),
        ("iam: {role: {statments: []}}", "iam.role.statments: unknown field `statments`"),
        ("iamManagedPolicies: ['arn:aws:iam::aws:policy/X']", "iamManagedPolicies[0]: the local stack does not"),
        ("iam: {roles: x}", "iam.roles: unknown field `roles`"),
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
            policies("[{Effect: Allow, Action: a, Resource: '*', Condition: {}}]"),
            format!("{statement}.Condition: unknown"),
        ),
        (policies("[{Effect: Allow, Action: a}]"), format!("{statement}: expected either `Resource` or `NotResource`")),
        (
            policies("[{Effect: Allow, Action: a, Resource: 'x/${aws:username}'}]"),
            format!("{statement}.Resource: {not_understood}"),
        ),
        (
            policies("[{Effect: Allow, Action: a, Resource: '${ssm:/x}'}]"),
            format!("{statement}.Resource: {not_understood}"),
        ),
        (
            policies("[{Effect: Allow, Action: a, Resource: !Ref Nope}]"),
            format!("{statement}.Resource.Ref: the stack has no"),
        ),
        (policies("[!If [Nope, a, b]]"), format!("{statement}.Fn::If: the stack has no condition `Nope`")),
        (
            "{ManagedPolicyArns: ['arn:aws:iam::aws:policy/X']}".to_owned(),
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
fn conditions_that_lead_back_to_themselves_are_refused() {
    let text =
        service_with("      X: !If [A, b, c]", "resources: {Conditions: {A: {Condition: B}, B: {Condition: A}}}");
    let expected = "serverless.yml: resources.Conditions.A: the condition leads back to itself";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}

#[test]
fn unused_roles_and_roles_from_elsewhere_are_not_read() {
    let others = "  Unused: {Type: AWS::IAM::Role, Properties: {PermissionsBoundary: '${ssm:/x}'}}\n";
    role_of("{}", others, &Settings::default()).unwrap();
    let text = service_with("      X: x", "").replace("    handler:", "    role: '${ssm:/role}'\n    handler:");
    assert_eq!(load(&[("serverless.yml", &text)]).functions["connect"].role, None);
}

#[test]
fn counts_beyond_a_quota_are_reported() {
    let function = |key: usize, routes: std::ops::Range<usize>| {
        let events: String = routes.map(|route| format!("      - websocket: r{route}\n")).collect();
        format!("  f{key}:\n    handler: f\n    events:\n{events}")
    };
    let beyond = |functions: String| {
        let text = format!("service: chat\nprovider: {{name: aws}}\nfunctions:\n{functions}");
        load(&[("serverless.yml", &text)]).beyond_quotas(&crate::gateway::Settings::default().limits)
    };
    let each = |count: usize| (0..count).map(|key| function(key, key..key + 1)).collect::<String>();
    let routes = "301 routes: AWS allows 300, and more on request";
    let integrations = "301 integrations: AWS allows 300, and more on request";
    assert_eq!(beyond(each(300)), Vec::<String>::new());
    assert_eq!(beyond(each(301)), [routes, integrations]);
    assert_eq!(beyond(function(0, 0..301)), [routes]);
}

/// Makes a service with the routes `$connect` and `chat/a-b_c.d` and these resources.
fn with_resources(resources: &str) -> Result<Service, ServiceError> {
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
fn resources_error(resources: &str) -> String {
    let error = without_line(with_resources(resources).unwrap_err());
    error.strip_prefix("serverless.yml: resources").unwrap_or(&error).to_owned()
}

/// Keys, plans and the resources that join them. `$connect` requires a key.
const KEYS: &str = "
  extensions: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}}
  Conditions: {Never: !Equals [a, b]}
  Resources:
    Alice: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: alices-key-is-her-own, Enabled: true, Tags: []}}
    Bob: {Type: AWS::ApiGateway::ApiKey, Properties: {Name: bob, Enabled: 'true'}}
    Disabled: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: carols-key-is-disabled}}
    Elsewhere: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: daves-key-is-elsewhere, Enabled: true}}
    Unplanned: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: erins-key-is-unplanned, Enabled: true}}
    Absent: {Type: AWS::ApiGateway::ApiKey, Condition: Never, Properties: {Value: '${ssm:/x}', Enabled: true}}
    Rest: {Type: AWS::ApiGateway::RestApi}
    Ours:
      Type: AWS::ApiGateway::UsagePlan
      Properties:
        Quota: {Limit: 5, Period: DAY}
        ApiStages: [{ApiId: !Ref WebsocketsApi, Stage: !Ref WebsocketsDeploymentStage}]
    Theirs: {Type: AWS::ApiGateway::UsagePlan, Properties: {ApiStages: [{ApiId: !Ref Rest, Stage: dev}]}}
    A: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Alice, KeyType: API_KEY, UsagePlanId: !Ref Ours}}
    B: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !GetAtt Bob.APIKeyId, KeyType: API_KEY, UsagePlanId: !GetAtt Ours.Id}}
    C: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Disabled, KeyType: API_KEY, UsagePlanId: !Ref Ours}}
    D: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Elsewhere, KeyType: API_KEY, UsagePlanId: !Ref Theirs}}
    E: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Absent, KeyType: API_KEY, UsagePlanId: !Ref Ours}}
";

#[test]
fn api_keys_are_those_that_a_usage_plan_of_the_stage_has() {
    let api_keys = with_resources(KEYS).unwrap().api.api_keys.unwrap();
    assert_eq!(api_keys.source, KeySource::Header);
    let mut keys = api_keys.keys;
    keys.sort_by_key(|key| key.value != "alices-key-is-her-own");
    let [alice, bob] = keys.as_slice() else { panic!("{keys:?}") };
    assert_eq!(alice.value, "alices-key-is-her-own");
    // A key without a value gets one, as in API Gateway. It is the same every time.
    assert_eq!(bob.value.len(), 40);
    assert_eq!(
        with_resources(KEYS).unwrap().api.api_keys.unwrap().keys.iter().filter(|key| key.value == bob.value).count(),
        1
    );
    for key in [alice, bob] {
        assert!(
            key.id.len() == 10 && key.id.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit()),
            "{key:?}"
        );
    }
    // No route requires a key.
    let unused =
        KEYS.replace("ApiKeyRequired: true", "ApiKeyRequired: false").replace("alices-key-is-her-own", "'${ssm:/x}'");
    assert_eq!(with_resources(&unused).unwrap().api.api_keys, None);
}

#[test]
fn a_route_is_extended_in_either_of_the_frameworks_ways() {
    for resources in [
        "  Resources: {SconnectWebsocketsRoute: {Type: AWS::ApiGatewayV2::Route, Properties: {ApiKeyRequired: true}}}",
        "  extensions: {SconnectWebsocketsRoute: {DependsOn: [], Properties: {ApiKeyRequired: true, OperationName: x}}}",
        // The extension wins, in any order.
        "  - extensions: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}}
  - Resources: {SconnectWebsocketsRoute: {Type: AWS::ApiGatewayV2::Route, Properties: {ApiKeyRequired: false}}}",
        "  extensions: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: !If [Yes, true, !Ref AWS::NoValue]}}}
  Conditions: {Yes: !Equals [a, a]}",
    ] {
        assert!(with_resources(resources).unwrap().api.api_keys.is_some(), "{resources}");
    }
    let other =
        "  extensions: {chatSlashaDashbUnderscorecPerioddWebsocketsRoute: {Properties: {ApiKeyRequired: false}}}";
    assert_eq!(with_resources(other).unwrap().api.api_keys, None);
}

#[test]
fn an_authorizer_is_used_as_its_route_says() {
    let authorization = |kind: &str| {
        with_resources(&format!(
            "  extensions: {{SconnectWebsocketsRoute: {{Properties: {{AuthorizationType: {kind}}}}}}}"
        ))
    };
    assert!(authorization("CUSTOM").unwrap().api.authorizer.is_some());
    assert!(authorization("NONE").unwrap().api.authorizer.is_none());
    let signed = authorization("AWS_IAM").unwrap();
    assert_eq!((signed.api.is_iam_authorized, signed.api.authorizer), (true, None));
    assert!(!authorization("CUSTOM").unwrap().api.is_iam_authorized);
    assert!(authorization("!Ref AWS::NoValue").unwrap().api.authorizer.is_some());
    let text = service_with(
        "      X: x",
        "resources: {extensions: {SconnectWebsocketsRoute: {Properties: {AuthorizationType: CUSTOM}}}}",
    );
    let expected = "serverless.yml: resources.extensions.SconnectWebsocketsRoute.Properties.AuthorizationType: the \
                    `$connect` event has no `authorizer`";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}

#[test]
fn the_api_says_where_keys_are_and_what_selects_routes() {
    let resources = "
  extensions:
    SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}
    WebsocketsApi:
      Properties:
        ApiKeySelectionExpression: $context.authorizer.usageIdentifierKey
        RouteSelectionExpression: ${request.body.type}
        Description: !ImportValue ignored
";
    let service = with_resources(resources).unwrap();
    assert_eq!(service.api.api_keys.unwrap().source, KeySource::Authorizer);
    assert_eq!(service.api.route_selection_expression, "${request.body.type}");
    assert_eq!(service.api.paths.primary(), "/dev");
    let disabled = resources.replace("Description: !ImportValue ignored", "DisableExecuteApiEndpoint: true");
    assert_eq!(with_resources(&disabled).unwrap().api.paths.primary(), "");
    let header = resources.replace("$context.authorizer.usageIdentifierKey", "$request.header.x-api-key");
    assert_eq!(with_resources(&header).unwrap().api.api_keys.unwrap().source, KeySource::Header);
}

/// Makes a model with this schema and a route that refers to it.
fn models(schema: &str, route: &str) -> String {
    format!(
        "
  Resources:
    Talk:
      Type: AWS::ApiGatewayV2::Model
      Properties: {{ApiId: !Ref WebsocketsApi, Name: Talk, ContentType: application/json, Schema: {schema}}}
  extensions: {{chatSlashaDashbUnderscorecPerioddWebsocketsRoute: {{Properties: {{{route}}}}}}}
"
    )
}

#[test]
fn a_route_with_a_model_selection_expression_has_models() {
    let with = |route: &str| with_resources(&models("{type: object}", route)).unwrap().api.request_models;
    let selected = with("ModelSelectionExpression: $default, RequestModels: {$default: Talk}");
    assert_eq!(selected.into_keys().collect::<Vec<_>>(), ["chat/a-b_c.d"]);
    assert_eq!(with("ModelSelectionExpression: '${request.body.a}', RequestModels: {a: Talk}").len(), 1);
    assert!(with("RequestModels: {$default: Talk}").is_empty());
    let route = "chatSlashaDashbUnderscorecPerioddWebsocketsRoute.Properties";
    let used = "ModelSelectionExpression: $default, RequestModels: {$default: Talk}";
    for (schema, refers, expected) in [
        (
            "{type: object}",
            used.replace("Talk", "Walk"),
            format!("extensions.{route}.RequestModels.$default: the API has no model `Walk`"),
        ),
        ("{type: objct}", used.to_owned(), "Resources.Talk.Properties.Schema: \"objct\" is not valid".to_owned()),
        (
            "{type: object}, Scheme: {}",
            used.to_owned(),
            "Resources.Talk.Properties.Scheme: unknown field `Scheme`".to_owned(),
        ),
    ] {
        let error = resources_error(&models(schema, &refers));
        assert!(error.starts_with(&format!(".{expected}")), "{error}");
    }
    let connect = models("{}", used).replace("chatSlashaDashbUnderscorecPeriodd", "Sconnect");
    assert!(resources_error(&connect).ends_with("ModelSelectionExpression: `$connect` has no messages"));
}

/// Makes mappings of this API and of another one. The first has this key.
fn mappings(key: &str) -> String {
    format!(
        "
  Conditions: {{Domain: !Not [!Equals ['${{param:domain}}', '']]}}
  Resources:
    Other: {{Type: AWS::ApiGatewayV2::Api}}
    Domain: {{Type: AWS::ApiGatewayV2::DomainName, Properties: {{DomainName: '${{ssm:/domain}}'}}}}
    Keyed:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties: {{ApiId: !Ref WebsocketsApi, DomainName: !Ref Domain, Stage: dev, ApiMappingKey: {key}}}
    Root:
      Type: AWS::ApiGatewayV2::ApiMapping
      Condition: Domain
      Properties: {{ApiId: !Ref WebsocketsApi, DomainName: !Ref Domain, Stage: !Ref WebsocketsDeploymentStage}}
    Theirs:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties: {{ApiId: !Ref Other, DomainName: !Ref Domain, Stage: dev, ApiMappingKey: a/b}}
    Elsewhere:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties: {{ApiId: !Ref WebsocketsApi, DomainName: !Ref Domain, Stage: prod, ApiMappingKey: prod}}
"
    )
}

#[test]
fn mappings_of_the_stage_are_paths() {
    let keys =
        |resources: &str| with_resources(resources).unwrap().api.paths.mapping_keys.into_iter().collect::<Vec<_>>();
    assert_eq!(keys(&mappings("chat")), ["chat"]);
    assert_eq!(keys(&mappings("\"c$-_.+!*'()1\"")), ["c$-_.+!*'()1"]);
    assert_eq!(keys(&mappings("!Ref AWS::NoValue")), [""]);
    assert_eq!(keys(&mappings("chat").replace("!Not [!Equals", "!And [!Equals")), ["", "chat"]);
    let at = ".Resources.Keyed.Properties.ApiMappingKey";
    for (key, reason) in [
        ("a/b", "the local stack does not support mappings of several levels"),
        ("'a b'", "`a b` is not a valid key of a mapping"),
        ("'${ssm:/key}'", "`${ssm:/key}` has no value"),
        ("!Ref Nothing", "the stack has no resource `Nothing`"),
    ] {
        let at = if key.starts_with('!') { format!("{at}.Ref") } else { at.to_owned() };
        assert_eq!(resources_error(&mappings(key)), format!("{at}: {reason}"));
    }
    let error = resources_error(&mappings("chat, Key: x"));
    assert!(error.starts_with(".Resources.Keyed.Properties.Key: unknown field `Key`"), "{error}");
}

#[test]
fn stage_variables_are_merged_as_the_framework_does_it() {
    let variables = |resources: &str| {
        let variables = with_resources(resources).unwrap().api.stage_variables;
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let stage =
        |variables: &str| format!("{{WebsocketsDeploymentStage: {{Properties: {{StageVariables: {variables}}}}}}}");
    let (one, two) = (stage("{a: 1, b: !Ref AuthLambdaFunction}"), stage("{b: 2, c: !Ref AWS::NoValue}"));
    let typed = |stage: &str| stage.replacen("Properties", "Type: AWS::ApiGatewayV2::Stage, Properties", 1);
    let (resource, other) = (typed(&one), typed(&two));
    // `Resources` are merged level by level, `extensions` as a whole.
    assert_eq!(variables(&format!("  - Resources: {resource}\n  - Resources: {other}")), ["a=1", "b=2"]);
    assert_eq!(variables(&format!("  - extensions: {two}\n  - Resources: {resource}")), ["b=2"]);
    assert_eq!(variables(&format!("  - extensions: {one}\n  - extensions: {two}")), ["a=1", "b=2"]);
    assert_eq!(variables(&format!("  extensions: {one}")), ["a=1", "b=chat-dev-auth"]);
    assert!(variables("  Resources: {}").is_empty());
}

#[test]
fn parts_of_the_gateway_that_are_not_imitated_are_named() {
    let extensions = |text: &str| resources_error(&format!("  extensions: {{{text}}}"));
    let route = "SconnectWebsocketsRoute: {Properties: ";
    for (text, expected) in [
        (
            format!("{route}{{AuthorizerId: x}}}}"),
            ".SconnectWebsocketsRoute.Properties.AuthorizerId: unknown field `AuthorizerId`, expected `ApiKey",
        ),
        (
            format!("{route}{{AuthorizationType: JWT}}}}"),
            ".SconnectWebsocketsRoute.Properties.AuthorizationType: `JWT` is not one of",
        ),
        (
            format!("{route}{{ApiKeyRequired: maybe}}}}"),
            ".SconnectWebsocketsRoute.Properties.ApiKeyRequired: `maybe` is neither true nor false",
        ),
        ("SconnectWebsocketsRoute: {Condition: Yes}".to_owned(), ".SconnectWebsocketsRoute.Condition: not supported"),
        ("SconnectWebsocketsRoute: {Typo: {}}".to_owned(), ".SconnectWebsocketsRoute.Typo: unknown field `Typo`"),
        (
            "chatSlashaDashbUnderscorecPerioddWebsocketsRoute: {Properties: {ApiKeyRequired: true}}".to_owned(),
            ".chatSlashaDashbUnderscorecPerioddWebsocketsRoute.Properties.ApiKeyRequired: only `$connect` can have this",
        ),
        (
            "SdefaultWebsocketsRoute: {Properties: {}}".to_owned(),
            ".SdefaultWebsocketsRoute: the framework generates no resource of this logical id",
        ),
        (
            "WebsocketsApi: {Properties: {ApiKeySelectionExpression: $request.header.key}}".to_owned(),
            ".WebsocketsApi.Properties.ApiKeySelectionExpression: `$request.header.key` is neither",
        ),
        (
            "WebsocketsApi: {Properties: {ProtocolType: HTTP}}".to_owned(),
            ".WebsocketsApi.Properties.ProtocolType: unknown field `ProtocolType`",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageVariables: {a-b: x}}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageVariables.a-b: `a-b: x` is not a valid stage variable",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageVariables: {a: 'x y'}}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageVariables.a: `a: x y` is not a valid stage variable",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageVariables: [a]}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageVariables: expected a mapping",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageName: x}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageName: unknown field `StageName`",
        ),
    ] {
        let error = extensions(&text);
        assert!(error.starts_with(&format!(".extensions{expected}")), "{text}: {error}");
    }
    let error = resources_error("  Resources: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}}");
    assert_eq!(error, ".Resources.SconnectWebsocketsRoute: missing field `Type`");
    let error = resources_error("  Resources: {SconnectWebsocketsRoute: {Type: AWS::SNS::Topic}}");
    assert_eq!(error, ".Resources.SconnectWebsocketsRoute: the stack has a resource of this logical id already");
}

#[test]
fn keys_that_cannot_be_used_here_are_named() {
    for (from, to, expected) in [
        ("alices-key-is-her-own", "short", "Alice.Properties.Value: a key has 20 to 128 characters"),
        ("alices-key-is-her-own", "'${ssm:/key}'", "Alice.Properties.Value: `${ssm:/key}` has no value"),
        (
            "Value: alices",
            "Valu: alices",
            "Alice.Properties.Valu: unknown field `Valu`, expected one of `Value`, `Enabled`",
        ),
        ("Stage: dev", "Stag: dev", "Theirs.Properties.ApiStages[0].Stag: unknown field `Stag`"),
        ("KeyType: API_KEY", "KeyType: KEY", "A.Properties.KeyType: unknown variant `KEY`, expected `API_KEY`"),
        ("KeyId: !Ref Alice", "KeyId: !Ref Nobody", "A.Properties.KeyId.Ref: the stack has no resource `Nobody`"),
        ("Condition: Never", "Condition: Sometimes", "Absent.Condition: the stack has no condition `Sometimes`"),
        ("Name: bob", "Value: alices-key-is-her-own", "Bob.Properties.Value: another key has this value already"),
    ] {
        assert!(KEYS.contains(from), "{from}");
        let error = resources_error(&KEYS.replacen(from, to, 1));
        assert!(error.starts_with(&format!(".Resources.{expected}")), "{to}: {error}");
    }
}
