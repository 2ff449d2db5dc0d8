use std::collections::BTreeMap;

use crate::service::Settings;
use crate::service::testing::{error, load_with, service_with, value_error, value_of};

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
