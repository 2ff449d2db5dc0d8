use crate::service::definition::API_ID;
use crate::service::testing::{RESOURCES, error, service_with, value, value_error};

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
fn conditions_that_lead_back_to_themselves_are_refused() {
    let text =
        service_with("      X: !If [A, b, c]", "resources: {Conditions: {A: {Condition: B}, B: {Condition: A}}}");
    let expected = "serverless.yml: resources.Conditions.A: the condition leads back to itself";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}
