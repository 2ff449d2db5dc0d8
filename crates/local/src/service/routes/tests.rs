use crate::gateway::Authorizer;
use crate::service::testing::{load_with, without_line};
use crate::service::{ServiceErrors, Settings};

/// Returns the authorizer of a service with this `$connect` event and the functions `auth` and `connect`.
fn authorizer(value: &str) -> Result<Authorizer, ServiceErrors> {
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
    let found = authorizer("{name: auth, identitySource: route.request.querystring.t}");
    assert_eq!(found.unwrap().identity_sources, ["route.request.querystring.t"]);
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
    ] {
        assert_eq!(without_line(authorizer(value).unwrap_err()), format!("{at}{reason}"));
    }
}
