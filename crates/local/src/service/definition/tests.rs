use crate::service::testing::{RESOURCES, load, service_with};

#[test]
fn more_than_five_filter_patterns_cause_a_warning() {
    let with = |count: usize| {
        let patterns = vec!["{eventName: [INSERT]}"; count].join(", ");
        let stream = format!("stream: {{type: dynamodb, arn: !GetAtt Events.StreamArn, filterPatterns: [{patterns}]}}");
        let text = service_with("      X: x", RESOURCES)
            .replace("[websocket: $connect]", &format!("[websocket: $connect, {stream}]"));
        load(&[("serverless.yml", &text)]).beyond_quotas(&crate::gateway::Settings::default().limits)
    };
    assert!(with(5).is_empty());
    assert_eq!(with(6), ["6 filter patterns of connect/Events: AWS allows 5, and more on request"]);
}

#[test]
fn counts_beyond_a_quota_are_reported() {
    let function = |key: usize, routes: std::ops::Range<usize>| {
        let events: String = routes.map(|route| format!("      - websocket: r{route}\n")).collect();
        format!("  f{key}:\n    handler: f\n    events:\n{events}")
    };
    let beyond = |functions: String| {
        let text = format!("service: chat\nprovider: {{name: aws}}\nfunctions:\n{functions}");
        load(&[("serverless.yml", &text)]).beyond_quotas(&crate::gateway::Settings::default().limits)
    };
    let each = |count: usize| (0..count).map(|key| function(key, key..key + 1)).collect::<String>();
    let routes = "301 routes: AWS allows 300, and more on request";
    let integrations = "301 integrations: AWS allows 300, and more on request";
    assert_eq!(beyond(each(300)), Vec::<String>::new());
    assert_eq!(beyond(each(301)), [routes, integrations]);
    assert_eq!(beyond(function(0, 0..301)), [routes]);
}
