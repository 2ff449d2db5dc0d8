use crate::service::definition::API_ID;
use crate::service::testing::{RESOURCES, error, ignored, load, service_with, value, value_error};

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
        ("!GetAtt Plain.Colour", "Fn::GetAtt: `Plain` has no attribute `Colour`"),
        ("!Cidr [a, 1, 2]", "Fn::Cidr: not supported by the local stack"),
        ("!Select [2, [a, b]]", "Fn::Select: the list has 2 values, and none at 2"),
        ("!FindInMap [Colours, green, hex]", "Fn::FindInMap: the templates have no mapping `Colours.green.hex`"),
        ("!Join ['', [!If [A, b, c]]]", "Fn::Join[1][0].Fn::If: the stack has no condition `A`"),
        ("!Join a", "Fn::Join: the argument has the wrong form"),
    ] {
        let expected = format!("serverless.yml: functions.connect.environment.X.{expected}");
        assert_eq!(value_error(expression, RESOURCES), expected, "{expression}");
    }
}

#[test]
fn lists_mappings_and_parameters_have_values() {
    let resources = "
resources:
  Parameters: {Colour: {Type: String, Default: green}, Size: {Type: Number, Default: 5}}
  Mappings: {Colours: {green: {hex: 0f0}}}
";
    for (expression, expected) in [
        ("!Select [1, !Split ['/', 'a/b']]", "b"),
        ("!Join ['-', !Split ['/', 'a/b']]", "a-b"),
        ("!FindInMap [Colours, !Ref Colour, hex]", "0f0"),
        ("!Base64 green", "Z3JlZW4="),
        ("!Ref Colour", "green"),
        ("!Sub '${Colour}-${Size}'", "green-5"),
        ("!Select [0, !GetAZs '']", "us-east-1a"),
    ] {
        assert_eq!(value(expression, resources), expected, "{expression}");
    }
    let stack_parameters = service_with("      X: !Ref Colour", resources)
        .replace("name: aws", "name: aws\n  stackParameters: [{ParameterKey: Colour, ParameterValue: red}]");
    assert_eq!(load(&[("serverless.yml", &stack_parameters)]).functions["connect"].environment["X"], "red");
}

#[test]
fn what_only_a_deployment_knows_is_a_placeholder_with_a_warning() {
    let resources = "
resources:
  Parameters: {Colour: {Type: String}}
  Resources: {Cache: {Type: AWS::ElastiCache::CacheCluster}}
";
    for (expression, expected, reason) in [
        ("!ImportValue other", "${Fn::ImportValue other}", "needs another stack"),
        ("!Sub 'https://${HttpApi}.x'", "https://${HttpApi}.x", "belongs to events that never come here"),
        ("!GetAtt Cache.RedisEndpoint.Address", "${Cache.RedisEndpoint.Address}", "only a deployment knows"),
        ("!Ref Colour", "${Colour}", "has no default"),
        ("${ssm:/a}-${sls:stage}", "${ssm:/a}-${sls:stage}", "only a deployment knows"),
        ("!Sub '${ssm:/a}-${AWS::Region}'", "${ssm:/a}-us-east-1", "only a deployment knows"),
    ] {
        assert_eq!(value(expression, resources), expected, "{expression}");
        let told = ignored(&service_with(&format!("      X: {expression}"), resources)).join("\n");
        assert!(told.contains(reason) && told.contains("`--env X=VALUE`"), "{expression}: {told}");
    }
}

#[test]
fn a_plugin_writes_hash_signs_for_sub() {
    let plugin = format!("plugins: [serverless-pseudo-parameters]\n{RESOURCES}");
    assert_eq!(value("'a-#{AWS::Region}-#{Plain}'", &plugin), "a-us-east-1-chat-dev-Plain");
    assert_eq!(value("'a-#{AWS::Region}'", RESOURCES), "a-#{AWS::Region}");
}

#[test]
fn resources_have_their_own_names() {
    let resources = "
resources:
  Resources:
    Nest: {Type: AWS::S3::Bucket, Properties: {BucketName: !Sub 'nest-${Seeds.QueueName}'}}
    Seeds: {Type: AWS::SQS::Queue, Properties: {QueueName: seeds}}
    Calls: {Type: AWS::SNS::Topic, Properties: {TopicName: calls}}
    Bus: {Type: AWS::Events::EventBus, Properties: {Name: bus}}
    Odd: {Type: AWS::S3::Bucket, Properties: {BucketName: !ImportValue x}}
";
    for (expression, expected) in [
        ("!Ref Nest", "nest-seeds"),
        ("!GetAtt Nest.Arn", "arn:aws:s3:::nest-seeds"),
        ("!Ref Seeds", "https://sqs.us-east-1.amazonaws.com/123456789012/seeds"),
        ("!Ref Calls", "arn:aws:sns:us-east-1:123456789012:calls"),
        ("!GetAtt Bus.Arn", "arn:aws:events:us-east-1:123456789012:event-bus/bus"),
        ("!Ref Odd", "chat-dev-Odd"),
    ] {
        assert_eq!(value(expression, resources), expected, "{expression}");
    }
    let told = ignored(&service_with("      X: !Ref Seeds", resources)).join("\n");
    assert_eq!(
        told,
        "serverless.yml:14: resources.Resources.Seeds: AWS::SQS::Queue is not imitated: calls to it leave this machine"
    );
}

#[test]
fn conditions_that_lead_back_to_themselves_are_refused() {
    let text =
        service_with("      X: !If [A, b, c]", "resources: {Conditions: {A: {Condition: B}, B: {Condition: A}}}");
    let expected = "serverless.yml: resources.Conditions.A: the condition leads back to itself";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}
