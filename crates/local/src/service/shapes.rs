//! The values of keys that change nothing here. Such a key is ignored, but a value that the framework refuses is told: with
//! it, a deployment would stop. The shapes follow the schema of osls 4 (`config-schema.js` and the AWS provider's
//! `provider.js`), whose other rules for these keys are left out.

use serde_json::Value;

use super::intrinsics;

/// The shape of a value.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Any,
    Text,
    List,
    Mapping,
    /// A mapping with no other keys than these, each with the shape of its value.
    Keys(&'static [(&'static str, Shape)]),
    /// A mapping whose values have this shape.
    Each(&'static Shape),
    Flag,
    Number(i64, i64),
    /// The ARN of something.
    Arn,
    /// One of these texts or numbers.
    OneOf(&'static [&'static str]),
    /// One of many names of something, which are one text.
    Named(&'static str, &'static str),
    /// A flag, or a mapping with these keys.
    FlagOrKeys(&'static [(&'static str, Shape)]),
    /// A range of versions, as npm has them.
    Versions,
    /// The key is not in osls. It is one of an older version, or of the framework that osls continues.
    Nothing,
}

use Shape::{Any, Arn, Each, Flag, FlagOrKeys, Keys, List, Mapping, Named, Nothing, Number, OneOf, Text, Versions};

const ARCHITECTURES: Shape = OneOf(&["arm64", "x86_64"]);

const DAYS: Shape = OneOf(&[
    "1", "3", "5", "7", "14", "30", "60", "90", "120", "150", "180", "365", "400", "545", "731", "1096", "1827",
    "2192", "2557", "2922", "3288", "3653",
]);

const REGIONS: Shape = Named(
    "region",
    "us-east-1 us-east-2 us-gov-east-1 us-gov-west-1 us-iso-east-1 us-iso-west-1 us-isob-east-1 us-west-1 \
     us-west-2 af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 \
     ap-south-2 ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 \
     ap-southeast-7 ca-central-1 ca-west-1 cn-north-1 cn-northwest-1 eu-central-1 eu-central-2 eu-north-1 \
     eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3 il-central-1 me-central-1 me-south-1 mx-central-1 \
     sa-east-1",
);

const RUNTIMES: Shape = Named(
    "runtime",
    "dotnet8 dotnet9 dotnet10 java25 java21 java17.al2023 java17 java11.al2023 java11 java8.al2023 java8.al2 \
     nodejs20.x nodejs22.x nodejs24.x provided.al2 provided.al2023 python3.10 python3.11 python3.12 \
     python3.13 python3.14 ruby3.3 ruby3.4 ruby4.0",
);

const TAGS: Shape = Each(&Text);

const TRACING: Shape = OneOf(&["Active", "PassThrough", "false", "true"]);

const TOP_LEVEL: &[(&str, Shape)] = &[
    ("app", Nothing),
    ("build", Nothing),
    ("console", Nothing),
    ("custom", Mapping),
    ("deprecationNotificationMode", OneOf(&["error", "warn", "warn:summary"])),
    ("frameworkVersion", Versions),
    ("layers", Mapping),
    ("org", Nothing),
    ("outputs", Nothing),
    (
        "package",
        Keys(&[
            ("artifact", Text),
            ("excludeDevDependencies", Flag),
            ("individually", Flag),
            ("path", Text),
            ("patterns", List),
        ]),
    ),
    ("params", Each(&Mapping)),
    ("stages", Nothing),
    ("useDotenv", OneOf(&["true"])),
    ("variablesResolutionMode", OneOf(&["20210326"])),
];

const PROVIDER: &[(&str, Shape)] = &[
    ("alb", Keys(&[("authorizers", Mapping), ("targetGroupPrefix", Text)])),
    ("apiGateway", Mapping),
    ("apiName", Text),
    ("architecture", ARCHITECTURES),
    ("cfnRole", Arn),
    ("deletionProtection", FlagOrKeys(&[("stages", List)])),
    ("deploymentMethod", OneOf(&["changesets", "direct"])),
    ("deploymentPrefix", Text),
    ("disableRollback", Flag),
    ("eventBridge", Nothing),
    ("httpApi", Mapping),
    ("kinesis", Keys(&[("consumerNamingMode", OneOf(&["serviceSpecific"]))])),
    ("kmsKeyArn", Arn),
    ("lambdaHashingVersion", Nothing),
    ("logDataProtectionPolicy", Mapping),
    ("logRetentionInDays", DAYS),
    ("notificationArns", List),
    ("profile", Text),
    ("pruneFunctionVersions", FlagOrKeys(&[("number", Number(1, i64::MAX))])),
    ("region", REGIONS),
    ("rollbackConfiguration", Keys(&[("MonitoringTimeInMinutes", Number(0, i64::MAX)), ("RollbackTriggers", List)])),
    ("runtime", RUNTIMES),
    ("s3", Mapping),
    ("stackTags", TAGS),
    ("tags", TAGS),
    ("tracing", Keys(&[("apiGateway", Flag), ("lambda", TRACING)])),
    ("versionFunctions", Flag),
    ("websocket", Keys(&[("useProviderTags", Flag)])),
    ("websocketsApiName", Text),
    ("websocketsDescription", Text),
];

const LOG_OF_APIS: &[(&str, Shape)] = &[
    ("accessLogging", Flag),
    ("executionLogging", Flag),
    ("format", Text),
    ("fullExecutionData", Flag),
    ("level", OneOf(&["INFO", "ERROR"])),
];

const PROVIDER_LOGS: &[(&str, Shape)] = &[("frameworkLambda", Flag), ("websocket", FlagOrKeys(LOG_OF_APIS))];

const LOGS: &[(&str, Shape)] = &[("logGroup", Text), ("systemLogLevel", OneOf(&["DEBUG", "INFO", "WARN"]))];

const FUNCTION: &[(&str, Shape)] = &[
    ("architecture", ARCHITECTURES),
    ("awsKmsKeyArn", Arn),
    ("dependsOn", List),
    ("description", Text),
    ("destinations", Keys(&[("onFailure", Any), ("onSuccess", Any)])),
    ("disableLogs", Flag),
    ("ephemeralStorageSize", Number(512, 10_240)),
    ("kmsKeyArn", Arn),
    ("logDataProtectionPolicy", Mapping),
    ("logRetentionInDays", DAYS),
    ("maximumEventAge", Number(60, 21_600)),
    ("maximumRetryAttempts", Number(0, 2)),
    ("onError", Arn),
    ("package", Keys(&[("artifact", Text), ("individually", Flag), ("patterns", List)])),
    ("provisionedConcurrency", Number(0, i32::MAX as i64)),
    ("recursiveLoop", OneOf(&["Allow", "Terminate"])),
    ("runtime", RUNTIMES),
    ("tags", TAGS),
    ("tracing", TRACING),
    ("versionFunction", Flag),
];

const SCHEDULE: &[(&str, Shape)] = &[("description", Text), ("name", Text)];

/// Returns what is wrong with the value of a key in the mapping at `parent`. A value that a variable gives is not looked at.
pub(super) fn problem(parent: &[&str], key: &str, value: &Value) -> Option<String> {
    let shapes = match parent {
        [] => TOP_LEVEL,
        ["provider"] => PROVIDER,
        ["provider", "logs"] => PROVIDER_LOGS,
        ["provider", "logs", "lambda"] | ["functions", _, "logs"] => LOGS,
        ["functions", _] => FUNCTION,
        ["functions", _, "events", "schedule"] => SCHEDULE,
        _ => return None,
    };
    let (_, shape) = shapes.iter().find(|(known, _)| *known == key)?;
    mismatch(*shape, value, "this value")
}

/// Returns why `value`, called `name`, does not have the shape.
fn mismatch(shape: Shape, value: &Value, name: &str) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let is_evaluated = value.as_object().is_some_and(|entries| intrinsics::call(entries).is_some());
    if value.is_null() || is_evaluated || (value.is_string() && text.contains("${")) {
        return None;
    }
    let is_flag = ["false", "true"].contains(&text.as_str());
    let expected = match shape {
        // The framework takes a list of one text for the text.
        Text if value.is_object() || value.as_array().is_some_and(|items| items.len() != 1) => "a text".to_owned(),
        List if value.is_object() => "a list".to_owned(),
        FlagOrKeys(_) if is_flag => return None,
        Keys(known) | FlagOrKeys(known) if value.is_object() => {
            return entries(value).find_map(|(key, value)| match known.iter().find(|(known, _)| known == key) {
                Some((_, shape)) => mismatch(*shape, value, &format!("the value of `{key}`")),
                None => {
                    let known: Vec<_> = known.iter().map(|(known, _)| *known).collect();
                    Some(format!("the framework refuses `{key}` there: expected {}", known.join(", ")))
                }
            });
        }
        Each(shape) if value.is_object() => {
            return entries(value).find_map(|(key, value)| mismatch(*shape, value, &format!("the value of `{key}`")));
        }
        Mapping | Keys(_) | Each(_) if !value.is_object() => "a mapping".to_owned(),
        FlagOrKeys(_) => "true, false or a mapping".to_owned(),
        Flag if !is_flag => "true or false".to_owned(),
        Number(least, i64::MAX) if !text.parse().is_ok_and(|it: i64| it >= least) => {
            format!("a whole number from {least} on")
        }
        Number(least, most) if !text.parse().is_ok_and(|it: i64| (least..=most).contains(&it)) => {
            format!("a whole number from {least} to {most}")
        }
        Arn if value.is_string() && !text.starts_with("arn:") => "an ARN".to_owned(),
        OneOf(known) if !known.contains(&text.as_str()) => format!("one of {}", known.join(", ")),
        Named(kind, known) if !known.split(' ').any(|known| known == text) => {
            return Some(format!("osls has no {kind} `{text}`"));
        }
        Versions if !(value.is_string() && is_range(&text)) => "a range of versions such as '^4' as a text".to_owned(),
        Nothing => return Some("osls has no such key".to_owned()),
        _ => return None,
    };
    Some(format!("the framework refuses {name}: expected {expected}"))
}

/// Tells whether a text is a range of versions, such as `^3.2`, `>=3 <5`, `2.x || 4` and `3.1 - 4`.
fn is_range(text: &str) -> bool {
    let is_number = |part: &str| ["*", "x", "X"].contains(&part) || part.chars().all(|it| it.is_ascii_digit());
    let is_version = |text: &str| {
        let numbers = text.split(['-', '+']).next().unwrap_or_default().split('.');
        numbers.clone().count() <= 3 && numbers.into_iter().all(is_number)
    };
    let mut comparators =
        text.split_whitespace().filter(|part| !["-", "||"].contains(part)).flat_map(|part| part.split("||"));
    comparators.all(|part| is_version(part.trim_start_matches(['<', '>', '=', '~', '^']).trim_start_matches('v')))
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{ignored, load_with, service_with};
    use super::super::{ServiceErrors, Settings};
    use super::*;

    #[test]
    fn values_that_the_framework_refuses_are_told() {
        let told = |key: &str, value: Value| problem(&["functions", "x"], key, &value).unwrap_or_default();
        assert_eq!(told("architecture", json!("arm64")), "");
        assert!(told("architecture", json!("mips")).ends_with("expected one of arm64, x86_64"));
        assert_eq!((told("logRetentionInDays", json!(7)), told("logRetentionInDays", json!("7"))), Default::default());
        assert!(told("logRetentionInDays", json!(6)).contains("expected one of 1, 3, 5"));
        assert_eq!((told("versionFunction", json!(false)), told("versionFunction", json!("true"))), Default::default());
        assert!(told("versionFunction", json!(0)).ends_with("expected true or false"));
        assert_eq!(told("maximumRetryAttempts", json!(2)), "");
        assert!(told("maximumRetryAttempts", json!(3)).ends_with("expected a whole number from 0 to 2"));
        assert!(told("tags", json!([])).ends_with("expected a mapping"));
        for unknown in [json!(null), json!("${param:x}"), json!({"Ref": "X"})] {
            assert_eq!(told("architecture", unknown), "");
        }
        assert_eq!(problem(&["provider"], "tracing", &json!({"lambda": true})), None);
        let inner = problem(&["provider"], "tracing", &json!({"lambda": "x"})).unwrap();
        assert!(inner.starts_with("the framework refuses the value of `lambda`: expected one of Active"), "{inner}");
        assert!(told("tags", json!({"a": []})).ends_with("the value of `a`: expected a text"));
        assert_eq!((told("tags", json!({"a": 1})), told("description", json!(["x"]))), Default::default());
        assert!(told("kmsKeyArn", json!("x")).ends_with("expected an ARN"));
        assert_eq!(told("runtime", json!("provided.al2023")), "");
        assert_eq!(told("runtime", json!("cobol")), "osls has no runtime `cobol`");
        let package = problem(&[], "package", &json!({"individually": true, "exclude": []})).unwrap();
        assert!(package.starts_with("the framework refuses `exclude` there"), "{package}");
    }

    #[test]
    fn a_range_of_versions_has_the_form_that_npm_knows() {
        let told = |range: Value| problem(&[], "frameworkVersion", &range);
        for range in [
            "3",
            "^3.38.0",
            ">=2.1.1 <4.0.0",
            ">= 3",
            "2.x || 3",
            "3||4",
            "*",
            "~> 3.2",
            "v4",
            "3.1 - 4",
            "4.0.0-beta.1",
        ] {
            assert_eq!(told(json!(range)), None, "{range}");
        }
        for range in [json!("latest"), json!("three"), json!("3,4"), json!("1.2.3.4"), json!(3), json!([])] {
            assert!(told(range.clone()).is_some_and(|it| it.contains("a range of versions")), "{range}");
        }
    }

    #[test]
    fn a_region_and_a_package_that_are_read_have_a_shape_as_well() {
        let region = service_with("      X: x", "")
            .replace("name: aws", "{name: aws, region: mars-1}")
            .replace("provider:\n  ", "provider: ");
        assert_eq!(ignored(&region), ["serverless.yml:2: provider.region: osls has no region `mars-1`"]);
        let package =
            service_with("      X: x", "").replace("    handler:", "    package: {exclude: [x]}\n    handler:");
        assert_eq!(
            ignored(&package),
            ["serverless.yml:6: functions.connect.package: the framework refuses `exclude` there: expected artifact, \
              individually, patterns"]
        );
    }

    #[test]
    fn the_validation_mode_says_what_happens_then() {
        let service = |mode: &str| service_with("      X: x", &format!("org: flock\n{mode}"));
        let org = "serverless.yml:10: org: osls has no such key";
        assert_eq!(ignored(&service("")), [org]);
        assert_eq!(ignored(&service("configValidationMode: 'off'")), [""; 0]);
        let text = service("configValidationMode: error");
        let ServiceErrors(refused) = load_with(&[("serverless.yml", &text)], &Settings::default()).unwrap_err();
        assert_eq!(refused[0].to_string(), format!("{org}, and `configValidationMode: error` refuses it"));
    }
}
