use crate::service::testing::{RESOURCES, error, ignored, load, service_with};

#[test]
fn broken_stream_mappings_are_refused() {
    let good = service_with("      X: x", RESOURCES).replace(
        "[websocket: $connect]",
        "[websocket: $connect, stream: {type: dynamodb, arn: !GetAtt Events.StreamArn}]",
    );
    load(&[("serverless.yml", &good)]);
    let arn = "arn: !GetAtt Events.StreamArn";
    for (original, broken, expected) in [
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
        ("}]", ", destinations: {onFailure: !GetAtt Failed.Arn}}]", "destinations.onFailure: missing field `arn`"),
    ] {
        let text = good.replacen(original, broken, 1);
        let expected = format!("serverless.yml: functions.connect.events[1].stream.{expected}");
        assert_eq!(error(&[("serverless.yml", &text)]), expected);
    }
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
fn a_stream_of_another_stack_is_ignored() {
    for stream in [
        "arn:aws:dynamodb:us-east-1:123456789012:table/Eggs/stream/2020-01-01T00:00:00.000",
        "{type: kinesis, arn: !GetAtt Wind.Arn, consumer: true}",
        "{type: dynamodb, arn: !ImportValue eggs}",
    ] {
        let text = service_with("      X: x", "")
            .replace("[websocket: $connect]", &format!("[websocket: $connect, {{stream: {stream}}}]"));
        let expected = "serverless.yml:7: functions.connect.events[1].stream: \
                        this stream is not here, so its records never come";
        assert_eq!(ignored(&text), [expected], "{stream}");
    }
}
