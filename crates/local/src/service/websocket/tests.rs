use crate::gateway::KeySource;
use crate::service::testing::{error, resources_error, service_with, with_resources};

#[test]
fn a_route_is_extended_in_either_of_the_frameworks_ways() {
    for resources in [
        "  Resources: {SconnectWebsocketsRoute: {Type: AWS::ApiGatewayV2::Route, Properties: {ApiKeyRequired: true}}}",
        "  extensions: {SconnectWebsocketsRoute: {DependsOn: [], Properties: {ApiKeyRequired: true, OperationName: x}}}",
        // The extension wins, in any order.
        "  - extensions: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}}
  - Resources: {SconnectWebsocketsRoute: {Type: AWS::ApiGatewayV2::Route, Properties: {ApiKeyRequired: false}}}",
        "  extensions: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: !If [Yes, true, !Ref AWS::NoValue]}}}
  Conditions: {Yes: !Equals [a, a]}",
    ] {
        assert!(with_resources(resources).unwrap().api.api_keys.is_some(), "{resources}");
    }
    let other =
        "  extensions: {chatSlashaDashbUnderscorecPerioddWebsocketsRoute: {Properties: {ApiKeyRequired: false}}}";
    assert_eq!(with_resources(other).unwrap().api.api_keys, None);
}

#[test]
fn an_authorizer_is_used_as_its_route_says() {
    let authorization = |kind: &str| {
        with_resources(&format!(
            "  extensions: {{SconnectWebsocketsRoute: {{Properties: {{AuthorizationType: {kind}}}}}}}"
        ))
    };
    assert!(authorization("CUSTOM").unwrap().api.authorizer.is_some());
    assert!(authorization("NONE").unwrap().api.authorizer.is_none());
    let signed = authorization("AWS_IAM").unwrap();
    assert_eq!((signed.api.is_iam_authorized, signed.api.authorizer), (true, None));
    assert!(!authorization("CUSTOM").unwrap().api.is_iam_authorized);
    assert!(authorization("!Ref AWS::NoValue").unwrap().api.authorizer.is_some());
    let text = service_with(
        "      X: x",
        "resources: {extensions: {SconnectWebsocketsRoute: {Properties: {AuthorizationType: CUSTOM}}}}",
    );
    let expected = "serverless.yml: resources.extensions.SconnectWebsocketsRoute.Properties.AuthorizationType: the \
                    `$connect` event has no `authorizer`";
    assert_eq!(error(&[("serverless.yml", &text)]), expected);
}

#[test]
fn the_api_says_where_keys_are_and_what_selects_routes() {
    let resources = "
  extensions:
    SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}
    WebsocketsApi:
      Properties:
        ApiKeySelectionExpression: $context.authorizer.usageIdentifierKey
        RouteSelectionExpression: ${request.body.type}
        Description: !ImportValue ignored
";
    let service = with_resources(resources).unwrap();
    assert_eq!(service.api.api_keys.unwrap().source, KeySource::Authorizer);
    assert_eq!(service.api.route_selection_expression, "${request.body.type}");
    assert_eq!(service.api.paths.primary(), "/dev");
    let disabled = resources.replace("Description: !ImportValue ignored", "DisableExecuteApiEndpoint: true");
    assert_eq!(with_resources(&disabled).unwrap().api.paths.primary(), "");
    let header = resources.replace("$context.authorizer.usageIdentifierKey", "$request.header.x-api-key");
    assert_eq!(with_resources(&header).unwrap().api.api_keys.unwrap().source, KeySource::Header);
}

/// Makes a model with this schema and a route that refers to it.
fn models(schema: &str, route: &str) -> String {
    format!(
        "
  Resources:
    Talk:
      Type: AWS::ApiGatewayV2::Model
      Properties: {{ApiId: !Ref WebsocketsApi, Name: Talk, ContentType: application/json, Schema: {schema}}}
  extensions: {{chatSlashaDashbUnderscorecPerioddWebsocketsRoute: {{Properties: {{{route}}}}}}}
"
    )
}

#[test]
fn a_route_with_a_model_selection_expression_has_models() {
    let with = |route: &str| with_resources(&models("{type: object}", route)).unwrap().api.request_models;
    let selected = with("ModelSelectionExpression: $default, RequestModels: {$default: Talk}");
    assert_eq!(selected.into_keys().collect::<Vec<_>>(), ["chat/a-b_c.d"]);
    assert_eq!(with("ModelSelectionExpression: '${request.body.a}', RequestModels: {a: Talk}").len(), 1);
    assert!(with("RequestModels: {$default: Talk}").is_empty());
    let route = "chatSlashaDashbUnderscorecPerioddWebsocketsRoute.Properties";
    let used = "ModelSelectionExpression: $default, RequestModels: {$default: Talk}";
    for (schema, refers, expected) in [
        (
            "{type: object}",
            used.replace("Talk", "Walk"),
            format!("extensions.{route}.RequestModels.$default: the API has no model `Walk`"),
        ),
        ("{type: objct}", used.to_owned(), "Resources.Talk.Properties.Schema: \"objct\" is not valid".to_owned()),
        (
            "{type: object}, Scheme: {}",
            used.to_owned(),
            "Resources.Talk.Properties.Scheme: unknown field `Scheme`".to_owned(),
        ),
    ] {
        let error = resources_error(&models(schema, &refers));
        assert!(error.starts_with(&format!(".{expected}")), "{error}");
    }
    let connect = models("{}", used).replace("chatSlashaDashbUnderscorecPeriodd", "Sconnect");
    assert!(resources_error(&connect).ends_with("ModelSelectionExpression: `$connect` has no messages"));
}

/// Makes mappings of this API and of another one. The first has this key.
fn mappings(key: &str) -> String {
    format!(
        "
  Conditions: {{Domain: !Not [!Equals ['${{param:domain}}', '']]}}
  Resources:
    Other: {{Type: AWS::ApiGatewayV2::Api}}
    Domain: {{Type: AWS::ApiGatewayV2::DomainName, Properties: {{DomainName: '${{ssm:/domain}}'}}}}
    Keyed:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties: {{ApiId: !Ref WebsocketsApi, DomainName: !Ref Domain, Stage: dev, ApiMappingKey: {key}}}
    Root:
      Type: AWS::ApiGatewayV2::ApiMapping
      Condition: Domain
      Properties: {{ApiId: !Ref WebsocketsApi, DomainName: !Ref Domain, Stage: !Ref WebsocketsDeploymentStage}}
    Theirs:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties: {{ApiId: !Ref Other, DomainName: !Ref Domain, Stage: dev, ApiMappingKey: a/b}}
    Elsewhere:
      Type: AWS::ApiGatewayV2::ApiMapping
      Properties: {{ApiId: !Ref WebsocketsApi, DomainName: !Ref Domain, Stage: prod, ApiMappingKey: prod}}
"
    )
}

#[test]
fn mappings_of_the_stage_are_paths() {
    let keys =
        |resources: &str| with_resources(resources).unwrap().api.paths.mapping_keys.into_iter().collect::<Vec<_>>();
    assert_eq!(keys(&mappings("chat")), ["chat"]);
    assert_eq!(keys(&mappings("\"c$-_.+!*'()1\"")), ["c$-_.+!*'()1"]);
    assert_eq!(keys(&mappings("!Ref AWS::NoValue")), [""]);
    assert_eq!(keys(&mappings("chat").replace("!Not [!Equals", "!And [!Equals")), ["", "chat"]);
    let at = ".Resources.Keyed.Properties.ApiMappingKey";
    for (key, reason) in [
        ("a/b", "the local stack does not support mappings of several levels"),
        ("'a b'", "`a b` is not a valid key of a mapping"),
        ("'${ssm:/key}'", "`${ssm:/key}` has no value"),
        ("!Ref Nothing", "the stack has no resource `Nothing`"),
    ] {
        let at = if key.starts_with('!') { format!("{at}.Ref") } else { at.to_owned() };
        assert_eq!(resources_error(&mappings(key)), format!("{at}: {reason}"));
    }
    let error = resources_error(&mappings("chat, Key: x"));
    assert!(error.starts_with(".Resources.Keyed.Properties.Key: unknown field `Key`"), "{error}");
}

#[test]
fn stage_variables_are_merged_as_the_framework_does_it() {
    let variables = |resources: &str| {
        let variables = with_resources(resources).unwrap().api.stage_variables;
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let stage =
        |variables: &str| format!("{{WebsocketsDeploymentStage: {{Properties: {{StageVariables: {variables}}}}}}}");
    let (one, two) = (stage("{a: 1, b: !Ref AuthLambdaFunction}"), stage("{b: 2, c: !Ref AWS::NoValue}"));
    let typed = |stage: &str| stage.replacen("Properties", "Type: AWS::ApiGatewayV2::Stage, Properties", 1);
    let (resource, other) = (typed(&one), typed(&two));
    // `Resources` are merged level by level, `extensions` as a whole.
    assert_eq!(variables(&format!("  - Resources: {resource}\n  - Resources: {other}")), ["a=1", "b=2"]);
    assert_eq!(variables(&format!("  - extensions: {two}\n  - Resources: {resource}")), ["b=2"]);
    assert_eq!(variables(&format!("  - extensions: {one}\n  - extensions: {two}")), ["a=1", "b=2"]);
    assert_eq!(variables(&format!("  extensions: {one}")), ["a=1", "b=chat-dev-auth"]);
    assert!(variables("  Resources: {}").is_empty());
}

#[test]
fn parts_of_the_gateway_that_are_not_imitated_are_named() {
    let extensions = |text: &str| resources_error(&format!("  extensions: {{{text}}}"));
    let route = "SconnectWebsocketsRoute: {Properties: ";
    for (text, expected) in [
        (
            format!("{route}{{AuthorizerId: x}}}}"),
            ".SconnectWebsocketsRoute.Properties.AuthorizerId: unknown field `AuthorizerId`, expected `ApiKey",
        ),
        (
            format!("{route}{{AuthorizationType: JWT}}}}"),
            ".SconnectWebsocketsRoute.Properties.AuthorizationType: `JWT` is not one of",
        ),
        (
            format!("{route}{{ApiKeyRequired: maybe}}}}"),
            ".SconnectWebsocketsRoute.Properties.ApiKeyRequired: `maybe` is neither true nor false",
        ),
        ("SconnectWebsocketsRoute: {Condition: Yes}".to_owned(), ".SconnectWebsocketsRoute.Condition: not supported"),
        ("SconnectWebsocketsRoute: {Typo: {}}".to_owned(), ".SconnectWebsocketsRoute.Typo: unknown field `Typo`"),
        (
            "chatSlashaDashbUnderscorecPerioddWebsocketsRoute: {Properties: {ApiKeyRequired: true}}".to_owned(),
            ".chatSlashaDashbUnderscorecPerioddWebsocketsRoute.Properties.ApiKeyRequired: only `$connect` can have this",
        ),
        (
            "SdefaultWebsocketsRoute: {Properties: {}}".to_owned(),
            ".SdefaultWebsocketsRoute.Properties: the framework generates no resource of this logical id",
        ),
        (
            "WebsocketsApi: {Properties: {ApiKeySelectionExpression: $request.header.key}}".to_owned(),
            ".WebsocketsApi.Properties.ApiKeySelectionExpression: `$request.header.key` is neither",
        ),
        (
            "WebsocketsApi: {Properties: {ProtocolType: HTTP}}".to_owned(),
            ".WebsocketsApi.Properties.ProtocolType: `HTTP` is not `WEBSOCKET`",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageVariables: {a-b: x}}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageVariables.a-b: `a-b: x` is not a valid stage variable",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageVariables: {a: 'x y'}}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageVariables.a: `a: x y` is not a valid stage variable",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageVariables: [a]}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageVariables: expected a mapping",
        ),
        (
            "WebsocketsDeploymentStage: {Properties: {StageName: x}}".to_owned(),
            ".WebsocketsDeploymentStage.Properties.StageName: unknown field `StageName`",
        ),
    ] {
        let error = extensions(&text);
        assert!(error.starts_with(&format!(".extensions{expected}")), "{text}: {error}");
    }
    let error = resources_error("  Resources: {SconnectWebsocketsRoute: {Properties: {ApiKeyRequired: true}}}");
    assert_eq!(error, ".Resources.SconnectWebsocketsRoute: missing field `Type`");
    let error = resources_error("  Resources: {SconnectWebsocketsRoute: {Type: AWS::SNS::Topic}}");
    assert_eq!(error, ".Resources.SconnectWebsocketsRoute: the stack has a resource of this logical id already");
}
