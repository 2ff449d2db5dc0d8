//! What the deployment and the local stack must agree on: routes, functions, variables, tables, streams, permissions,
//! and the names of the metrics. The deployment's side is the template that the framework makes of serverless.yml.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use switchboard_core::error::{GATEWAY_THROTTLED, UNKNOWN_ITEM};
use switchboard_core::metrics::Metric;
use switchboard_local::iam::{self, ACCOUNT_ID, Effect, Patterns, Statement};
use switchboard_local::service::{Service, Settings};
use switchboard_tests::proxy::{Call, Proxy, answer};
use switchboard_tests::stack::{Stack, matching, number, root, table_name};

use crate::rights::{KEYS, token};

/// The CloudFormation template of the stage dev. The framework requires every zip to exist and does not look into it.
fn template() -> Value {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(root().join("serverless.yml"), folder.path().join("serverless.yml")).unwrap();
    std::os::unix::fs::symlink(root().join("infra"), folder.path().join("infra")).unwrap();
    let archives = folder.path().join("target/lambda/arm64");
    std::fs::create_dir_all(&archives).unwrap();
    for function in local().functions.values() {
        std::fs::write(archives.join(format!("{}.zip", function.handler)), "").unwrap();
    }
    let framework = root().join("infra/node_modules/.bin/serverless");
    assert!(framework.exists(), "the framework is not installed: run `make infra/node_modules` (`make test` does)");
    let output = std::process::Command::new(framework)
        .args(["package", "--stage", "dev"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let path = folder.path().join(".serverless/cloudformation-template-update-stack.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn local() -> Service {
    Service::load(&root().join("serverless.yml"), &Settings::default()).unwrap()
}

/// The resources of a type: logical id and properties.
fn resources<'a>(template: &'a Value, kind: &str) -> BTreeMap<&'a str, &'a Value> {
    let all = template["Resources"].as_object().unwrap().iter();
    let of_kind = all.filter(|(_, resource)| resource["Type"] == kind);
    of_kind.map(|(id, resource)| (id.as_str(), &resource["Properties"])).collect()
}

/// The logical id in an expression: that of its `Ref` or `Fn::GetAtt`, at any depth.
fn referred<'a>(value: &'a Value, among: &BTreeMap<&'a str, &Value>) -> Option<&'a str> {
    match value {
        Value::String(text) => among.contains_key(text.as_str()).then_some(text),
        Value::Array(items) => items.iter().find_map(|item| referred(item, among)),
        Value::Object(entries) => entries.values().find_map(|value| referred(value, among)),
        _ => None,
    }
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |items| items.iter().collect())
}

#[test]
fn both_have_the_same_routes_functions_variables_tables_and_streams() {
    let template = template();
    let local = local();
    let functions = resources(&template, "AWS::Lambda::Function");
    let integrations = resources(&template, "AWS::ApiGatewayV2::Integration");
    let tables = resources(&template, "AWS::DynamoDB::Table");

    let routes = resources(&template, "AWS::ApiGatewayV2::Route").into_values().map(|route| {
        let integration = referred(&route["Target"], &integrations).unwrap();
        let function = referred(&integrations[integration]["IntegrationUri"], &functions).unwrap();
        (text(&route["RouteKey"]), text(&functions[function]["FunctionName"]))
    });
    let local_routes = local.api.routes.iter().map(|(route, key)| (route.clone(), local.functions[key].name.clone()));
    assert_eq!(routes.collect::<BTreeMap<_, _>>(), local_routes.collect());
    let api = resources(&template, "AWS::ApiGatewayV2::Api").into_values().next().unwrap();
    assert_eq!(api["RouteSelectionExpression"], *local.api.route_selection_expression);

    let deployed = functions.iter().map(|(id, function)| {
        let variables = function["Environment"]["Variables"].as_object().unwrap();
        let streams = resources(&template, "AWS::Lambda::EventSourceMapping");
        let streams =
            streams.into_values().filter(|mapping| referred(&mapping["FunctionName"], &functions) == Some(id));
        let streams: Vec<_> = streams
            .map(|mapping| json!([referred(&mapping["EventSourceArn"], &tables), mapping["BatchSize"]]))
            .collect();
        let summary = json!({
            "handler": function["Handler"],
            "memory": function["MemorySize"],
            "timeout": function["Timeout"],
            "variables": variables.keys().collect::<Vec<_>>(),
            "streams": streams,
        });
        (text(&function["FunctionName"]), summary)
    });
    let here = local.functions.values().map(|function| {
        let streams = function.streams.iter().map(|mapping| json!([mapping.table, mapping.batch_size]));
        let summary = json!({
            "handler": function.handler,
            "memory": function.memory_size_mb,
            "timeout": function.timeout.as_secs(),
            "variables": function.environment.keys().collect::<Vec<_>>(),
            "streams": streams.collect::<Vec<_>>(),
        });
        (function.name.clone(), summary)
    });
    assert_eq!(deployed.collect::<BTreeMap<_, _>>(), here.collect());

    let keys = ["TableName", "KeySchema", "AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes"];
    let deployed = tables.iter().map(|(id, table)| {
        let stream = table["StreamSpecification"]["StreamViewType"].clone();
        let expiry = table["TimeToLiveSpecification"]["AttributeName"].clone();
        ((*id).to_owned(), json!([keys.map(|key| table[key].clone()), stream, expiry]))
    });
    let here = local.tables.iter().map(|table| {
        let stream = table.create_table["StreamSpecification"]["StreamViewType"].clone();
        let properties = keys.map(|key| table.create_table[key].clone());
        (table.logical_id.clone(), json!([properties, stream, table.ttl_attribute]))
    });
    assert_eq!(deployed.collect::<BTreeMap<_, _>>(), here.collect());
}

#[test]
fn dev_is_the_only_open_stage_here_too() {
    for (stage, mode) in [("dev", "open"), ("prod", "verified"), ("production", "verified"), ("Dev", "verified")] {
        let options = Settings { stage: Some(stage.to_owned()), ..Settings::default() };
        let service = Service::load(&root().join("serverless.yml"), &options).unwrap();
        assert_eq!(service.functions["connect"].environment["IDENTITY_MODE"], mode, "{stage}");
    }
    assert_eq!(local().functions["connect"].environment["IDENTITY_MODE"], "open");
}

/// Events and continuations are told apart by one attribute, so that each record starts one function. Only rows of topics with
/// presence have a `userId`.
#[test]
fn readers_of_a_stream_get_the_records_that_concern_them() {
    let template = template();
    let mappings = resources(&template, "AWS::Lambda::EventSourceMapping");
    let mut patterns: Vec<_> =
        mappings.into_values().map(|mapping| mapping["FilterCriteria"]["Filters"].clone()).collect();
    patterns.sort_by_key(Value::to_string);
    let pattern = |exists: bool| {
        let pattern = json!({
            "eventName": ["INSERT"],
            "dynamodb": {"NewImage": {"originTopic": {"S": [{"exists": exists}]}}},
        });
        json!([pattern])
    };
    let of_members = |image: &str| json!({"dynamodb": {image: {"userId": {"S": [{"exists": true}]}}}});
    let found = patterns.iter().map(|filters| {
        let filters = filters.as_array().unwrap().iter();
        filters.map(|filter| serde_json::from_str::<Value>(&text(&filter["Pattern"])).unwrap()).collect::<Value>()
    });
    let of_members = json!([of_members("NewImage"), of_members("OldImage")]);
    assert_eq!(found.collect::<Vec<_>>(), [of_members, pattern(false), pattern(true)]);
}

/// The framework makes one permission for each function, and `connect` has two routes.
#[test]
fn the_gateway_may_invoke_a_function_on_its_own_routes_alone() {
    let template = template();
    let functions = resources(&template, "AWS::Lambda::Function");
    let permissions = resources(&template, "AWS::Lambda::Permission").into_values();
    let (schedule, permissions): (Vec<_>, Vec<_>) =
        permissions.partition(|permission| permission["Principal"] == "events.amazonaws.com");
    assert_eq!(schedule.len(), 1);
    assert_eq!(referred(&schedule[0]["FunctionName"], &functions), Some("PresenceLambdaFunction"));
    let permissions = permissions.into_iter().map(|permission| {
        let function = referred(&permission["FunctionName"], &functions).unwrap();
        assert_eq!(permission["Action"], "lambda:InvokeFunction");
        assert_eq!(permission["Principal"], "apigateway.amazonaws.com");
        let route = text(&permission["SourceArn"]["Fn::Sub"]).rsplit_once("/dev/").unwrap().1.to_owned();
        (route, text(&functions[function]["FunctionName"]))
    });
    let local = local();
    let routes = local.api.routes.iter().map(|(route, key)| (route.clone(), local.functions[key].name.clone()));
    assert_eq!(permissions.collect::<BTreeSet<_>>(), routes.collect());
}

/// The permissions of a role of the template, as `action resource`. Those that Lambda itself uses are left out: logs,
/// traces, the stream and its failures.
fn allowed(template: &Value, function: &str) -> BTreeSet<String> {
    let functions = resources(template, "AWS::Lambda::Function");
    let roles = resources(template, "AWS::IAM::Role");
    let tables = resources(template, "AWS::DynamoDB::Table");
    let name = format!("switchboard-dev-{function}");
    let properties = functions.into_values().find(|properties| properties["FunctionName"] == *name).unwrap();
    let role = roles[referred(&properties["Role"], &roles).unwrap()];
    let statements = role["Policies"].as_array().unwrap().iter();
    let statements = statements.flat_map(|policy| policy["PolicyDocument"]["Statement"].as_array().unwrap());
    let mut allowed = BTreeSet::new();
    for statement in statements.filter(|statement| statement.get("Fn::If").is_none()) {
        for action in list(&statement["Action"]).into_iter().map(text) {
            for resource in list(&statement["Resource"]) {
                let used_by_lambda = action.starts_with("logs:")
                    || action == "sqs:SendMessage"
                    || resource["Fn::GetAtt"][1] == "StreamArn";
                if used_by_lambda {
                    continue;
                }
                let resource = match referred(resource, &tables) {
                    Some(table) => text(&tables[table]["TableName"]),
                    None => text(&resource["Fn::Sub"]).split_once("${WebsocketsApi}").unwrap().1.to_owned(),
                };
                allowed.insert(format!("{action} {resource}"));
            }
        }
    }
    allowed
}

/// The permission that a call needs, in the same form.
fn needed(call: &Call) -> Vec<String> {
    match call.operation.as_str() {
        "POST" | "DELETE" => vec![format!("execute-api:ManageConnections /dev/{}/@connections/*", call.operation)],
        "BatchGetItem" => {
            let tables = call.body["RequestItems"].as_object().unwrap().keys();
            tables.map(|table| format!("dynamodb:BatchGetItem {table}")).collect()
        }
        "BatchWriteItem" => {
            let tables = call.body["RequestItems"].as_object().unwrap().keys();
            tables.map(|table| format!("dynamodb:BatchWriteItem {table}")).collect()
        }
        operation => vec![format!("dynamodb:{operation} {}", text(&call.body["TableName"]))],
    }
}

/// Adds a subscriber to `topic` whose connection is long gone.
async fn vanished(stack: &Stack, topic: &str) {
    let mut row = stack.rows("topics").await.remove(0);
    let long_ago = number(&row, "connectedAt") - 60_000;
    row.insert("connectedAt".to_owned(), AttributeValue::N(long_ago.to_string()));
    row.insert("topic".to_owned(), AttributeValue::S(topic.to_owned()));
    row.insert("connectionId".to_owned(), AttributeValue::S("AAAAAAAAAAAAAAA=".to_owned()));
    stack.dynamodb().await.put_item().table_name(table_name("topics")).set_item(Some(row)).send().await.unwrap();
}

async fn put_event(stack: &Stack, topic: &str, attribute: &str, value: AttributeValue) {
    let put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    let put = put.item("topic", AttributeValue::S(topic.to_owned())).item("id", AttributeValue::S("1".to_owned()));
    put.item(attribute, value).send().await.unwrap();
}

/// Fills the lists of all connections with topics whose rows are gone.
async fn fill_with_expired_subscriptions(stack: &Stack) {
    for mut row in stack.rows("connections").await {
        let topics = (0..100).map(|number| format!("expired {number}")).collect();
        row.insert("topics".to_owned(), AttributeValue::Ss(topics));
        let put = stack.dynamodb().await.put_item().table_name(table_name("connections"));
        put.set_item(Some(row)).send().await.unwrap();
    }
}

/// A continuation that has everybody still before it.
async fn put_continuation(stack: &Stack, origin_topic: &str) {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let number = |number: i64| AttributeValue::N(number.to_string());
    let mut put = stack.dynamodb().await.put_item().table_name(table_name("events"));
    put = put.item("topic", string(&format!("continuation of {origin_topic}"))).item("id", string("-"));
    put = put.item("originTopic", string(origin_topic)).item("originId", string("1")).item("json", string("1"));
    put = put.item("after", string("0")).item("again", AttributeValue::L(Vec::new())).item("ttl", number(0));
    if origin_topic == "INITIAL_CONNECTION" {
        put = put.item("segment", number(0));
    }
    put.send().await.unwrap();
}

/// Each permission of each role is needed by a call of its function: without it, that call would fail. And no function makes
/// a call that its role does not allow. Each feature that makes a call of a new kind therefore has a frame or an event here.
#[tokio::test]
async fn roles_allow_what_the_functions_call_and_nothing_else() {
    let rules = r#"TOPIC_RULES=[{"topic":"room.*","history":{"hours":24}},{"topic":"@*","history":{"hours":72}},
        {"topic":"mine","subscribe":"granted"},{"topic":"lobby","presence":true}]"#;
    let arguments = ["--env", KEYS, "--env", "IDENTITY_MODE=open-with-tokens", "--env", rules];
    let (proxy, stack) = Proxy::in_front(&arguments, |_| None).await;
    let mut called: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut note = |function| {
        let calls = proxy.take_calls();
        called.entry(function).or_default().extend(calls.iter().flat_map(needed));
    };

    let mut one = stack.connect("?userId=1").await;
    let two = stack.connect("?userId=2").await;
    note("connect");
    // A fresh token grants a topic, and the next one takes it away and keeps another.
    let grants = [json!({"subscribe": ["mine"]}), json!(null)].map(|topics| token("1", 600, &topics));
    one.ask(json!({"action": "auth", "token": grants[0], "id": "t"})).await;
    note("connect");
    for topic in ["mine", "yours"] {
        one.ask(json!({"type": "subscribe", "topic": topic, "id": "t"})).await;
    }
    note("default");
    let ack = one.ask(json!({"action": "auth", "token": grants[1], "id": "t"})).await;
    assert_eq!(ack["removed"], json!(["mine"]));
    note("connect");

    vanished(&stack, "@2").await;
    one.ask(json!({"action": "sendMessage", "destinationUserId": "2", "body": "x", "id": "1", "again": true})).await;
    note("sendMessage");

    one.ask(json!({"type": "subscribe", "topic": "general", "id": "2"})).await;
    vanished(&stack, "general").await;
    one.send(json!({"type": "message", "topic": "general", "message": "x"})).await;
    one.next().await;
    stack.logged(4, &["default |", "\"served\""]).await;
    let ack = one.ask(json!({"type": "message", "topic": "room.1", "message": "x", "id": "a", "again": true})).await;
    assert_eq!(ack["seq"], 1);
    one.send(json!({"type": "subscribe", "topic": "room.1", "last": 1, "id": "b"})).await;
    assert_eq!((one.next().await["type"].clone(), one.next().await["type"].clone()), (json!("history"), json!("ack")));
    one.ask(json!({"type": "unsubscribe", "topic": "general", "id": "3"})).await;
    one.ask(json!({"type": "ping", "positions": {"room.1": {"epoch": "00000000", "seq": 0}}})).await;
    fill_with_expired_subscriptions(&stack).await;
    one.ask(json!({"type": "subscribe", "topic": "general", "id": "4"})).await;
    note("default");

    vanished(&stack, "general").await;
    for topic in ["general", "room.1", "INITIAL_CONNECTION"] {
        put_event(&stack, topic, "data", AttributeValue::S("x".to_owned())).await;
    }
    stack.logged(3, &["publish |", "\"published\""]).await;
    put_event(&stack, "@nobody", "disconnect", AttributeValue::Bool(true)).await;
    stack.logged(1, &["publish |", "connections were ended"]).await;
    note("publish");

    vanished(&stack, "general").await;
    for audience in ["general", "INITIAL_CONNECTION"] {
        put_continuation(&stack, audience).await;
    }
    stack.logged(2, &["fanOut |", "\"published\""]).await;
    note("fanOut");

    two.close().await;
    stack.logged(1, &["disconnect |", "\"served\""]).await;
    note("disconnect");

    let mut three = stack.connect("?userId=3").await;
    note("connect");
    three.ask(json!({"type": "subscribe", "topic": "lobby", "presence": true, "id": "5"})).await;
    three.ask(json!({"type": "presence", "topic": "lobby", "data": "away", "id": "6"})).await;
    note("default");
    // A member whose connection is gone is told, too.
    let is_lobby = |row: &switchboard_tests::stack::Row| row["topic"] == AttributeValue::S("lobby".to_owned());
    let mut row = stack.rows("topics").await.into_iter().find(is_lobby).unwrap();
    let long_ago = number(&row, "connectedAt") - 60_000;
    row.insert("connectedAt".to_owned(), AttributeValue::N(long_ago.to_string()));
    row.insert("connectionId".to_owned(), AttributeValue::S("AAAAAAAAAAAAAAA=".to_owned()));
    row.insert("userId".to_owned(), AttributeValue::S("9".to_owned()));
    stack.dynamodb().await.put_item().table_name(table_name("topics")).set_item(Some(row)).send().await.unwrap();
    stack.logged(1, &["presence |", "members have changed", "\"left\":1"]).await;
    note("presence");

    // No publish here takes long enough to leave a continuation, which `publish.rs` tests.
    for function in ["default", "fanOut", "presence", "publish", "sendMessage"] {
        called.get_mut(function).unwrap().insert("dynamodb:PutItem switchboard-dev-events".to_owned());
    }
    // Only a large one notes how far it has come, which `large.rs` of the publisher tests.
    called.get_mut("fanOut").unwrap().insert("dynamodb:UpdateItem switchboard-dev-events".to_owned());
    // The local stack has no schedule. The simulation of a day of members runs what these are for.
    for needed in [
        "dynamodb:Scan switchboard-dev-topics",
        "dynamodb:DeleteItem switchboard-dev-topics",
        "execute-api:ManageConnections /dev/GET/@connections/*",
    ] {
        called.get_mut("presence").unwrap().insert(needed.to_owned());
    }
    // Only too many `auth` frames let it close a connection, which `sessions.rs` tests.
    called.get_mut("connect").unwrap().insert("execute-api:ManageConnections /dev/DELETE/@connections/*".to_owned());
    let template = template();
    assert_eq!(local().functions.keys().collect::<Vec<_>>(), called.keys().collect::<Vec<_>>());
    for (function, called) in called {
        assert_eq!(allowed(&template, function), called, "{function}");
        without_each_statement(function, &called);
    }
}

/// Takes each statement of a role away in turn, as the local stack has read it. At least one call of the function must then be
/// refused. Otherwise the statement is superfluous, or others allow the same.
fn without_each_statement(function: &str, called: &BTreeSet<String>) {
    let service = local();
    let role = service.functions[function].role.as_ref().unwrap();
    let is_refused = |statements: &[Statement], call: &String| {
        let (action, resource) = call.split_once(' ').unwrap();
        let (partition, region) = ("arn:aws", &service.region);
        let arn = match action.split_once(':').unwrap().0 {
            "dynamodb" => format!("{partition}:dynamodb:{region}:{ACCOUNT_ID}:table/{resource}"),
            service => format!("{partition}:{service}:{region}:{ACCOUNT_ID}:local0ws01{resource}"),
        };
        iam::decide(statements, action, &arn) != Some(Effect::Allow)
    };
    assert!(!called.iter().any(|call| is_refused(&role.statements, call)), "{function}");
    // Lambda itself uses these: logs, traces, the stream and the queue of records that were given up.
    let by_lambda = |action: &String| ["logs:", "xray:", "sqs:"].iter().any(|service| action.starts_with(service));
    let is_stream = |resource: &String| resource.contains("/stream/");
    let mut needed = 0;
    for (index, statement) in role.statements.iter().enumerate() {
        let (Patterns::Of(actions), Patterns::Of(resources)) = (&statement.actions, &statement.resources) else {
            panic!("{function} has a statement with exceptions: {statement:?}");
        };
        if actions.iter().all(by_lambda) || resources.iter().all(is_stream) {
            continue;
        }
        let mut others = role.statements.clone();
        others.remove(index);
        assert!(called.iter().any(|call| is_refused(&others, call)), "{function} does not need {statement:?}");
        needed += 1;
    }
    assert!(needed > 0, "{function}");
}

/// Metric and dimension of each alarm and each graph that has a metric of ours.
fn emitted() -> BTreeSet<(String, String)> {
    Metric::ALL.into_iter().map(|metric| (metric.name(), metric.dimension().to_owned())).collect()
}

#[test]
fn dashboard_and_alarms_use_the_names_that_the_functions_write() {
    let template = template();
    let dashboard = resources(&template, "AWS::CloudWatch::Dashboard").into_values().next().unwrap();
    let body = text(&dashboard["DashboardBody"]["Fn::Sub"]);
    assert!(serde_json::from_str::<Value>(&body).unwrap()["widgets"].is_array());
    let searches = body.split("SEARCH('{switchboard-dev,").skip(1).map(|search| {
        let (dimension, rest) = search.split_once("} MetricName=\\\"").unwrap();
        (rest.split_once("\\\"").unwrap().0.to_owned(), dimension.to_owned())
    });
    assert_eq!(searches.collect::<BTreeSet<_>>(), emitted());

    let alarms = resources(&template, "AWS::CloudWatch::Alarm");
    let ours = alarms.into_values().filter(|alarm| alarm["Namespace"] == "switchboard-dev");
    let mut error_types = BTreeSet::new();
    for alarm in ours {
        let dimension = &alarm["Dimensions"][0];
        assert!(emitted().contains(&(text(&alarm["MetricName"]), text(&dimension["Name"]))), "{alarm}");
        error_types.insert(text(&dimension["Value"]));
    }
    let source = std::fs::read_to_string(root().join("crates/core/src/error.rs")).unwrap();
    let named = source.lines().filter_map(|line| line.trim().strip_suffix("\",")?.split_once(" => \""));
    let named = named.map(|(_, name)| name.to_owned()).filter(|name| name.contains('.'));
    // With a wrong configuration a function does not start. The alarm on all of its errors covers that.
    let named =
        named.filter(|name| name != "Config.Invalid").chain([UNKNOWN_ITEM, GATEWAY_THROTTLED].map(str::to_owned));
    assert_eq!(error_types, named.collect());
}

#[tokio::test]
async fn functions_write_their_metrics() {
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"action": "sendMessage", "destinationUserId": "1", "body": "x"})).await;
    let lines = stack.logged(1, &["sendMessage |", "\"_aws\""]).await;
    let mut seen = BTreeSet::new();
    for line in lines {
        let line: Value = serde_json::from_str(line.split_once(" | ").unwrap().1).unwrap();
        for directive in line["_aws"]["CloudWatchMetrics"].as_array().unwrap() {
            assert_eq!(directive["Namespace"], "switchboard-dev");
            let dimension = text(&directive["Dimensions"][0][0]);
            assert_eq!(line[&dimension], "switchboard-dev-sendMessage");
            let metrics = directive["Metrics"].as_array().unwrap().iter().map(|metric| text(&metric["Name"]));
            seen.extend(metrics.map(|metric| (metric, dimension.clone())));
        }
    }
    // What did not happen is not written, and small publishes that went well are not counted.
    assert_eq!(seen, emitted().into_iter().filter(|(name, _)| name == "ColdStart").collect());
}

#[tokio::test]
async fn requests_that_the_gateway_refuses_for_their_rate_are_counted_and_others_are_not() {
    let left = AtomicUsize::new(3);
    let refuse = move |call: &Call| {
        let is_refused = call.operation == "POST"
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        is_refused.then(|| answer(429, "LimitExceededException", "{}"))
    };
    let (_proxy, stack) = Proxy::in_front(&["--env", "LOG_ONE_IN=0"], refuse).await;
    let mut one = stack.connect("?userId=1").await;
    for id in ["a", "b"] {
        let message = json!({"action": "sendMessage", "destinationUserId": "1", "body": "x", "id": id});
        assert_eq!(one.ask(message).await, json!({"senderId": "1", "body": "x"}));
        assert_eq!(one.next().await["delivered"], 1);
    }
    let log = stack.whole_log().await;
    let lines = matching(&log, &["sendMessage |", "\"Throttled\""]);
    let counted = lines.iter().map(|line| serde_json::from_str::<Value>(line.split_once(" | ").unwrap().1).unwrap());
    let counted: Vec<_> = counted.collect();
    assert_eq!(counted.len(), 1, "{log:#?}");
    assert_eq!((&counted[0]["Throttled"], &counted[0]["ErrorType"]), (&json!(3), &json!(GATEWAY_THROTTLED)));
    let directives = &counted[0]["_aws"]["CloudWatchMetrics"];
    assert_eq!((directives.as_array().unwrap().len(), &directives[0]["Dimensions"]), (1, &json!([["ErrorType"]])));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
