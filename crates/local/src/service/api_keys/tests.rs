use crate::gateway::KeySource;
use crate::service::testing::{resources_error, with_resources};

/// Keys, plans and the resources that join them. `$connect` requires a key.
const KEYS: &str = "
  extensions: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}}
  Conditions: {Never: !Equals [a, b]}
  Resources:
    Alice: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: alices-key-is-her-own, Enabled: true, Tags: []}}
    Bob: {Type: AWS::ApiGateway::ApiKey, Properties: {Name: bob, Enabled: 'true'}}
    Disabled: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: carols-key-is-disabled}}
    Elsewhere: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: daves-key-is-elsewhere, Enabled: true}}
    Unplanned: {Type: AWS::ApiGateway::ApiKey, Properties: {Value: erins-key-is-unplanned, Enabled: true}}
    Absent: {Type: AWS::ApiGateway::ApiKey, Condition: Never, Properties: {Value: '${ssm:/x}', Enabled: true}}
    Rest: {Type: AWS::ApiGateway::RestApi}
    Ours:
      Type: AWS::ApiGateway::UsagePlan
      Properties:
        Quota: {Limit: 5, Period: DAY}
        ApiStages: [{ApiId: !Ref WebsocketsApi, Stage: !Ref WebsocketsDeploymentStage}]
    Theirs: {Type: AWS::ApiGateway::UsagePlan, Properties: {ApiStages: [{ApiId: !Ref Rest, Stage: dev}]}}
    A: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Alice, KeyType: API_KEY, UsagePlanId: !Ref Ours}}
    B: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !GetAtt Bob.APIKeyId, KeyType: API_KEY, UsagePlanId: !GetAtt Ours.Id}}
    C: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Disabled, KeyType: API_KEY, UsagePlanId: !Ref Ours}}
    D: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Elsewhere, KeyType: API_KEY, UsagePlanId: !Ref Theirs}}
    E: {Type: AWS::ApiGateway::UsagePlanKey, Properties: {KeyId: !Ref Absent, KeyType: API_KEY, UsagePlanId: !Ref Ours}}
";

#[test]
fn api_keys_are_those_that_a_usage_plan_of_the_stage_has() {
    let api_keys = with_resources(KEYS).unwrap().api.api_keys.unwrap();
    assert_eq!(api_keys.source, KeySource::Header);
    let mut keys = api_keys.keys;
    keys.sort_by_key(|key| key.value != "alices-key-is-her-own");
    let [alice, bob] = keys.as_slice() else { panic!("{keys:?}") };
    assert_eq!(alice.value, "alices-key-is-her-own");
    // A key without a value gets one, as in API Gateway. It is the same every time.
    assert_eq!(bob.value.len(), 40);
    assert_eq!(
        with_resources(KEYS).unwrap().api.api_keys.unwrap().keys.iter().filter(|key| key.value == bob.value).count(),
        1
    );
    for key in [alice, bob] {
        assert!(
            key.id.len() == 10 && key.id.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit()),
            "{key:?}"
        );
    }
    // No route requires a key.
    let unused =
        KEYS.replace("ApiKeyRequired: true", "ApiKeyRequired: false").replace("alices-key-is-her-own", "'${ssm:/x}'");
    assert_eq!(with_resources(&unused).unwrap().api.api_keys, None);
}

#[test]
fn keys_that_cannot_be_used_here_are_named() {
    for (from, to, expected) in [
        ("alices-key-is-her-own", "short", "Alice.Properties.Value: a key has 20 to 128 characters"),
        ("alices-key-is-her-own", "'${ssm:/key}'", "Alice.Properties.Value: `${ssm:/key}` has no value"),
        (
            "Value: alices",
            "Valu: alices",
            "Alice.Properties.Valu: unknown field `Valu`, expected one of `Value`, `Enabled`",
        ),
        ("Stage: dev", "Stag: dev", "Theirs.Properties.ApiStages[0].Stag: unknown field `Stag`"),
        ("KeyType: API_KEY", "KeyType: KEY", "A.Properties.KeyType: unknown variant `KEY`, expected `API_KEY`"),
        ("KeyId: !Ref Alice", "KeyId: !Ref Nobody", "A.Properties.KeyId.Ref: the stack has no resource `Nobody`"),
        ("Condition: Never", "Condition: Sometimes", "Absent.Condition: the stack has no condition `Sometimes`"),
        ("Name: bob", "Value: alices-key-is-her-own", "Bob.Properties.Value: another key has this value already"),
    ] {
        assert!(KEYS.contains(from), "{from}");
        let error = resources_error(&KEYS.replacen(from, to, 1));
        assert!(error.starts_with(&format!(".Resources.{expected}")), "{to}: {error}");
    }
}
