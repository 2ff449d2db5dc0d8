use std::collections::BTreeMap;

use crate::service::Settings;
use crate::service::testing::{error, load_with, read_with, service_with, value_error, value_of};

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
        ("${opt:nope, self:custom.none, ${self:custom.a.b.0}}", "x"),
        ("${env:HOME_PAGE, \"a, b\"}", "a, b"),
        ("${env:NAME}", "from the environment"),
        ("${opt:x, 7}", "7"),
        ("${opt:x, 'in-${sls:stage}'}", "in-dev"),
        ("${opt:region, 'none'}", "eu-west-1"),
        ("${aws:region} ${aws:accountId}", "eu-west-1 123456789012"),
        ("${param:colour}", "green"),
        ("${ssm:/a, 'none'} ${cf(eu-west-1):stack.Output, 'nothing'}", "none nothing"),
        ("${file(text.txt)}", "as it is"),
        ("${strToBool('true')} ${strToBool(0)}", "true false"),
        ("${sls:instanceId}", "local"),
        ("${file(values.yml):list.1}", "two"),
        ("${file(values.yml):stage}", "dev"),
        ("${file(missing.yml):x, 'none'}", "none"),
        ("${NotAVariable} and $5", "${NotAVariable} and $5"),
        ("${It's} ${AWS::Region} ${sls:stage}", "${It's} ${AWS::Region} dev"),
    ] {
        let main = service_with(&format!("      X: '{}'", expression.replace('\'', "''")), custom);
        let settings = Settings {
            environment: BTreeMap::from([("NAME".to_owned(), "from the environment".to_owned())]),
            region: Some("eu-west-1".to_owned()),
            parameters: BTreeMap::from([("colour".to_owned(), "green".to_owned())]),
            ..Settings::default()
        };
        let values = "{list: [one, two], stage: '${sls:stage}'}";
        let files = [("serverless.yml", main.as_str()), ("values.yml", values), ("text.txt", "as it is")];
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
        (
            "${opt:nope}",
            "`${opt:nope}` has no value: of the framework's options there are only `--stage` and `--region`; add a fallback",
        ),
        ("${param:nope}", "`${param:nope}` has no value: `--param nope=VALUE` gives one"),
        ("${opt:region}", "`${opt:region}` has no value: `--region` gives one"),
        ("${env:NOPE}", "`${env:NOPE}` has no value: set NOPE in the environment, or in `.env` with `useDotenv: true`"),
        ("${aws:username}", "the framework has no variable `aws:username`"),
        ("${strToBool(maybe)}", "`maybe` is not one of `true`, `false`, `1`, `0`"),
        ("${file(nope.yml)}", "`${file(nope.yml)}` has no value: no such file or key"),
        (
            "${file(nope.js)}",
            "`nope.js` is a program: `osls print > resolved.yml` resolves it, and `--config resolved.yml` reads that",
        ),
        ("${opt:x, dev}", "`dev` is neither a variable nor a text in quotes"),
        ("a-${self:provider}", "`${self:provider}` is not a text"),
    ] {
        assert_eq!(value_error(&format!("'{expression}'"), ""), format!("{at}: {expected}"), "{expression}");
    }
}

#[test]
fn a_value_that_a_flag_gives_is_not_read() {
    let settings = Settings { variables: BTreeMap::from([("X".to_owned(), "mine".to_owned())]), ..Settings::default() };
    for expression in ["${ssm:/a}", "${env:NOPE}", "${file(a.js)}", "!ImportValue a"] {
        let main = service_with(&format!("      X: {expression}"), "");
        let reading = read_with(&[("serverless.yml", &main)], &settings);
        assert!(reading.refused.is_empty() && reading.ignored.is_empty(), "{expression}: {reading:?}");
    }
}

#[test]
fn elsewhere_a_value_of_a_deployment_is_refused_with_the_cure() {
    let resources = "resources: {Resources: {A: {Type: AWS::DynamoDB::Table, Properties: {TableName: '${ssm:/a}'}}}}";
    let text = service_with("      X: x", resources);
    let error = error(&[("serverless.yml", &text)]);
    let expected = "serverless.yml: resources.Resources.A.Properties.TableName: `${ssm:/a}` has no value: `ssm` cannot be \
                    asked here; add a fallback, or: `osls print > resolved.yml` resolves it, and `--config resolved.yml` \
                    reads that";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_dotenv_file_has_values_for_variables_and_with_a_plugin_for_functions() {
    let read = |top_level: &str, variables: &[(&str, &str)]| {
        let main = service_with("      X: ${env:COLOUR, 'none'}", top_level);
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let settings = Settings { environment, ..Settings::default() };
        let service = load_with(&[("serverless.yml", &main), (".env", "COLOUR=green\n")], &settings).unwrap();
        service.functions["connect"].environment.clone()
    };
    assert_eq!(read("", &[])["X"], "none");
    assert_eq!(read("useDotenv: true", &[])["X"], "green");
    assert_eq!(read("useDotenv: true", &[("COLOUR", "red")])["X"], "red");
    assert!(!read("useDotenv: true", &[]).contains_key("COLOUR"));
    assert_eq!(read("plugins: [serverless-dotenv-plugin]", &[])["COLOUR"], "green");
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
