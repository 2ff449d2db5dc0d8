//! The values of keys that change nothing here. Such a key is ignored, but a value that the framework refuses is told: with
//! it, a deployment would stop. The shapes follow the schema of osls 4 (`config-schema.js` and the AWS provider's
//! `provider.js`), whose other rules for these keys are left out.

use serde_json::Value;

use super::intrinsics;

/// The shape of a value.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Mapping,
    /// A mapping with no other keys than these.
    Keys(&'static [&'static str]),
    Flag,
    Number(i64, i64),
    /// One of these texts or numbers.
    OneOf(&'static [&'static str]),
    /// The key is not in osls. It is one of an older version, or of the framework that osls continues.
    Nothing,
}

use Shape::{Flag, Keys, Mapping, Nothing, Number, OneOf};

const ARCHITECTURES: Shape = OneOf(&["arm64", "x86_64"]);

const DAYS: Shape = OneOf(&[
    "1", "3", "5", "7", "14", "30", "60", "90", "120", "150", "180", "365", "400", "545", "731", "1096", "1827",
    "2192", "2557", "2922", "3288", "3653",
]);

const TOP_LEVEL: &[(&str, Shape)] = &[
    ("app", Nothing),
    ("build", Nothing),
    ("console", Nothing),
    ("custom", Mapping),
    ("layers", Mapping),
    ("org", Nothing),
    ("outputs", Nothing),
    ("package", Keys(&["artifact", "excludeDevDependencies", "individually", "path", "patterns"])),
    ("params", Mapping),
    ("stages", Nothing),
];

const PROVIDER: &[(&str, Shape)] = &[
    ("alb", Mapping),
    ("apiGateway", Mapping),
    ("architecture", ARCHITECTURES),
    ("deploymentMethod", OneOf(&["changesets", "direct"])),
    ("eventBridge", Nothing),
    ("httpApi", Mapping),
    ("lambdaHashingVersion", Nothing),
    ("logRetentionInDays", DAYS),
    ("rollbackConfiguration", Mapping),
    ("s3", Mapping),
    ("stackTags", Mapping),
    ("tags", Mapping),
    ("tracing", Mapping),
    ("versionFunctions", Flag),
];

const FUNCTION: &[(&str, Shape)] = &[
    ("architecture", ARCHITECTURES),
    ("destinations", Mapping),
    ("disableLogs", Flag),
    ("ephemeralStorageSize", Number(512, 10_240)),
    ("logRetentionInDays", DAYS),
    ("maximumEventAge", Number(60, 21_600)),
    ("maximumRetryAttempts", Number(0, 2)),
    ("provisionedConcurrency", Number(0, i32::MAX as i64)),
    ("recursiveLoop", OneOf(&["Allow", "Terminate"])),
    ("tags", Mapping),
    ("tracing", OneOf(&["Active", "PassThrough"])),
    ("versionFunction", Flag),
];

/// Returns what is wrong with the value of a key in the mapping at `parent`. A value that a variable gives is not looked at.
pub(super) fn problem(parent: &[&str], key: &str, value: &Value) -> Option<String> {
    let shapes = match parent {
        [] => TOP_LEVEL,
        ["provider"] => PROVIDER,
        ["functions", _] => FUNCTION,
        _ => return None,
    };
    let (_, shape) = shapes.iter().find(|(known, _)| *known == key)?;
    let text = match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let is_evaluated = value.as_object().is_some_and(|entries| intrinsics::call(entries).is_some());
    if value.is_null() || is_evaluated || (value.is_string() && text.contains("${")) {
        return None;
    }
    let expected = match shape {
        Mapping if !value.is_object() => "a mapping".to_owned(),
        Keys(known) => match value.as_object() {
            Some(entries) => {
                let unknown = entries.keys().find(|key| !known.contains(&key.as_str()))?;
                return Some(format!("the framework refuses `{unknown}` there: expected {}", known.join(", ")));
            }
            None => "a mapping".to_owned(),
        },
        Flag if !["false", "true"].contains(&text.as_str()) => "true or false".to_owned(),
        Number(least, most) if !text.parse().is_ok_and(|it: i64| (*least..=*most).contains(&it)) => {
            format!("a whole number from {least} to {most}")
        }
        OneOf(known) if !known.contains(&text.as_str()) => format!("one of {}", known.join(", ")),
        Nothing => return Some("osls has no such key".to_owned()),
        _ => return None,
    };
    Some(format!("the framework refuses this value: expected {expected}"))
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
        let package = problem(&[], "package", &json!({"individually": true, "exclude": []})).unwrap();
        assert!(package.starts_with("the framework refuses `exclude` there"), "{package}");
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
