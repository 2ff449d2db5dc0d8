use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::service::testing::{RESOURCES, error, ignored, load, load_with, read_with, service_with};
use crate::service::{LogFormat, Reading, ServiceErrors, Settings, StartingPosition, StreamMapping};
use crate::stream::Filter;

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
fn broken_files_are_refused_with_file_and_key() {
    let good = service_with("      X: x", &format!("configValidationMode: error\n{RESOURCES}"));
    load(&[("serverless.yml", &good)]);
    for (original, broken, expected) in [
        ("service: chat", "service: 5chat", "service: `5chat` is not a letter followed by letters, digits and `-`"),
        (
            "service: chat",
            "service: chat\nservce: chat",
            "servce: the framework has no such key, and `configValidationMode: error` refuses it",
        ),
        ("name: aws", "name: google", "provider.name: unknown variant `google`, expected `aws`"),
        ("name: aws", "stage: dev", "provider: missing field `name`"),
        (
            "service: chat",
            "service: {name: chat}",
            "service: a mapping was valid in old versions of the framework: write `service: chat`\n\
             serverless.yml: resources.Resources.Events.Properties.TableName: `${self:service}` is not a text",
        ),
        (
            "resources:\n",
            "resources:\n  extensions: {WebsocketsDeploymentStage: {}, ConnectWebsocketsIntegration: {}}\n",
            "resources.extensions.ConnectWebsocketsIntegration.Properties: the local stack does not extend resources of this kind",
        ),
        (
            "name: aws",
            "name: aws\n  stage: 'a b'",
            "provider.stage: the stage `a b` is not 1 to 128 letters, digits and `-`",
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
            "functions.connect.image: container images do not run here: name a binary as `handler`",
        ),
        ("websocket: $connect", "http: GET /", "functions: no function has a websocket event"),
        (
            "websocket: $connect",
            "websocket: $connect, schedule: rate(0 minutes)",
            "functions.connect.events[1].schedule: expected a rate such as `rate(5 minutes)`",
        ),
        (
            "websocket: $connect",
            "websockets: $connect",
            "functions.connect.events[0].websockets: the framework has no such key, and `configValidationMode: error` refuses it",
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
            "functions.connect.events[0].websocket.rout: the framework has no such key, and `configValidationMode: error` refuses it\n\
             serverless.yml: functions.connect.events[0].websocket: missing field `route`",
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
    assert_eq!(error(&[]), "serverless.yml: cannot be read: No such file or directory (os error 2)");
    assert_eq!(error(&[("serverless.yml", "")]), "serverless.yml: invalid type: null, expected a service");
    assert_eq!(error(&[("serverless.yml", "service: chat\n")]), "serverless.yml: missing field `provider`");
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = "service: chat
provider:
  name: aws
  timeout: 901
  environment:
    A: ${env:NOPE}
    B: !Ref Nope
functions:
  connect:
    memorySize: 1
    events:
      - websocket: $conect
      - websocket: {rout: x}
resources:
  Resources:
    Eggs:
      Type: AWS::DynamoDB::Table
      Properties: {Name: x, KeySchema: 5}
";
    let error = load_with(&[("serverless.yml", text)], &Settings::default()).unwrap_err().to_string();
    let places: Vec<_> = error.lines().map(|line| line.splitn(3, ": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "serverless.yml:4 provider.timeout",
        "serverless.yml:6 provider.environment.A",
        "serverless.yml:10 functions.connect.memorySize",
        "serverless.yml:12 functions.connect.events[0].websocket",
        "serverless.yml:13 functions.connect.events[1].websocket",
        "serverless.yml:18 resources.Resources.Eggs.Properties.KeySchema",
        "serverless.yml:18 resources.Resources.Eggs.Properties.Name",
    ];
    assert_eq!(places, expected, "{error}");
}

#[test]
fn what_never_comes_here_is_ignored_once_for_each_kind() {
    let text = "service: chat
plugins: [serverless-step-functions, serverless-offline]
stepFunctions: {stateMachines: {}}
provider:
  name: aws
  vpc: {subnetIds: []}
  lambdaHashingVersion: 20201221
functions:
  connect:
    handler: connect
    layers: [arn]
    warmup: true
    events:
      - websocket: $connect
      - httpApi: '*'
      - schedule: rate(1 hour)
      - schedule: cron(0 3 * * ? *)
  api:
    image: there
    role: {Ref: Nobody}
    environment: {A: '${ssm:/a}'}
    events:
      - httpApi: GET /a
      - alexaSkill
  off:
    handler: off
    vpc: false
    events:
  nothing:
";
    let expected = [
        "serverless.yml:2: plugins: plugins do not run here: serverless-step-functions",
        "serverless.yml:3: stepFunctions: the framework has no such key, and plugins do not run here \
         (also line 12)",
        "serverless.yml:6: provider.vpc: functions are in this machine's network, not in a VPC",
        "serverless.yml:7: provider.lambdaHashingVersion: osls has no such key",
        "serverless.yml:11: functions.connect.layers: layers are not loaded here",
        "serverless.yml:15: functions.connect.events[1].httpApi: `httpApi` events never come here (also line 23)",
        "serverless.yml:17: functions.connect.events[3].schedule: a schedule with `cron` or `at` never comes here",
    ];
    assert_eq!(ignored(text), expected);
    let service = load(&[("serverless.yml", text)]);
    assert_eq!(service.functions.keys().collect::<Vec<_>>(), ["connect"]);
    assert_eq!(service.idle_functions.iter().collect::<Vec<_>>(), ["api", "off"]);
    assert_eq!(service.functions["connect"].schedules, [Duration::from_secs(3600)]);
    // The framework can be told what to do about keys that it does not know.
    let off = text.replace("plugins:", "configValidationMode: off\nplugins:");
    assert!(!ignored(&off).join("").contains("no such key"));
    let strict = text.replace("plugins:", "configValidationMode: error\nplugins:");
    assert_eq!(error(&[("serverless.yml", &strict)]).lines().count(), 3);
}

#[test]
fn a_program_is_refused_with_the_cure() {
    let reading = Reading::of(Path::new("services/serverless.ts"), &Settings::default());
    let expected = "serverless.ts: this is a program: `osls print --config serverless.ts > resolved.yml` writes YAML, and \
                    `--config resolved.yml` reads that";
    assert_eq!(ServiceErrors(reading.refused).to_string(), expected);
}

#[test]
fn the_short_form_of_the_provider_is_its_name() {
    let text = service_with("      X: x", "").replace("provider:\n  name: aws", "provider: aws");
    assert_eq!(load(&[("serverless.yml", &text)]).region, "us-east-1");
}

#[test]
fn routes_and_mappings_of_the_resources_are_read() {
    let routes = "
resources:
  Resources:
    MoreRoute:
      Type: AWS::ApiGatewayV2::Route
      Properties:
        ApiId: !Ref WebsocketsApi
        RouteKey: more
        RouteResponseSelectionExpression: $default
        Target: !Join ['/', [integrations, !Ref ConnectWebsocketsIntegration]]
    Own:
      Type: AWS::ApiGatewayV2::Integration
      Properties:
        ApiId: !Ref WebsocketsApi
        IntegrationUri: !Sub 'arn:aws:apigateway:x:lambda:path/2015-03-31/functions/${ConnectLambdaFunction.Arn}/invocations'
    OwnRoute:
      Type: AWS::ApiGatewayV2::Route
      Properties: {ApiId: !Ref WebsocketsApi, RouteKey: own, Target: !Sub 'integrations/${Own}'}
    Elsewhere:
      Type: AWS::ApiGatewayV2::Route
      Properties: {ApiId: abc, RouteKey: x, Target: integrations/y}
    Mapping:
      Type: AWS::Lambda::EventSourceMapping
      Properties:
        FunctionName: !Ref ConnectLambdaFunction
        EventSourceArn: !GetAtt Events.StreamArn
        StartingPosition: LATEST
        FilterCriteria: {Filters: [{Pattern: '{\"eventName\": [\"INSERT\"]}'}]}
    Queue:
      Type: AWS::Lambda::EventSourceMapping
      Properties: {FunctionName: !Ref ConnectLambdaFunction, EventSourceArn: !GetAtt Failed.Arn}
";
    let text = service_with("      X: x", &format!("{routes}{}", RESOURCES.split_once("Resources:\n").unwrap().1));
    let reading = read_with(&[("serverless.yml", &text)], &Settings::default());
    assert!(reading.refused.is_empty(), "{:?}", reading.refused);
    let service = reading.service.unwrap();
    assert_eq!(service.api.routes.keys().collect::<Vec<_>>(), ["$connect", "more", "own"]);
    assert_eq!(service.api.two_way_routes.iter().collect::<Vec<_>>(), ["more"]);
    let [mapping] = service.functions["connect"].streams.as_slice() else { panic!("{service:?}") };
    assert_eq!((mapping.table.as_str(), mapping.batch_size, mapping.filter.len()), ("Events", 100, 1));
    assert_eq!(mapping.starting_position, StartingPosition::Latest);
    let told: Vec<_> = reading.ignored.iter().map(|it| it.reason.as_str()).collect();
    assert_eq!(told, ["this event source is not here, so its events never come"]);
    let refused = error(&[("serverless.yml", &text.replace("!Sub 'integrations/${Own}'", "integrations/nope"))]);
    let expected = "serverless.yml: resources.Resources.OwnRoute.Properties.Target: \
                    this is no integration of a function of the service";
    assert_eq!(refused, expected);
}
