use crate::service::testing::{error, load, service_with, value_error};

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
fn environment_values_are_scalars() {
    let at = "serverless.yml: functions.connect.environment.X";
    let expected = "expected a text, a number or a boolean, found";
    assert_eq!(value_error("[a]", ""), format!("{at}: {expected} a list"));
    assert_eq!(value_error("{a: b}", ""), format!("{at}: {expected} a mapping"));
    let text = service_with("      A-B: x", "");
    let expected =
        "serverless.yml: functions.connect.environment.A-B: not a name that an environment variable can have";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}

#[test]
fn a_function_leaves_out_a_variable_with_null() {
    let provider = "provider: {name: aws, environment: {X: a, Y: b, Z: null}}";
    let text = service_with("      X: null", "").replace("provider:\n  name: aws", provider);
    let environment = &load(&[("serverless.yml", &text)]).functions["connect"].environment;
    assert_eq!(environment.iter().collect::<Vec<_>>(), [(&"Y".to_owned(), &"b".to_owned())]);
}

#[test]
fn a_schedule_is_a_rate_and_may_be_disabled() {
    let minutes = |schedules: &str| {
        let events = format!("[{{websocket: one}}, {schedules}]");
        let main = format!(
            "{{service: chat, provider: {{name: aws}}, functions: {{one: {{handler: one, events: {events}}}}}}}"
        );
        let service = load(&[("serverless.yml", &main)]);
        service.functions["one"].schedules.iter().map(|rate| rate.as_secs() / 60).collect::<Vec<_>>()
    };
    assert_eq!(minutes("{schedule: {rate: rate(5 minutes)}}, {schedule: {rate: rate(1 hour)}}"), [5, 60]);
    assert_eq!(
        minutes(
            "{schedule: {rate: rate(2 days), enabled: false}}, {schedule: {rate: rate(1 minute), enabled: 'true'}}"
        ),
        [1]
    );
}
