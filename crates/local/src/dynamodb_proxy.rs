//! The HTTP proxies of DynamoDB, one for functions and one for other callers. Both refuse strangers (`access.rs`).
//! The functions' proxy also checks permissions and injects faults.
//!
//! An allowed call is forwarded unchanged to the HTTP server of the embedded engine. "Actions, resources, and condition
//! keys for Amazon DynamoDB" (Service Authorization Reference) defines the permissions: a call needs the action of its
//! name on each of its tables, a transaction the action of each part. Not here: the single actions of PartiQL, whose
//! statements are checked as `ExecuteStatement` and the like on all resources, and the tables behind a stream's
//! records.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::access::{self, Access};
use crate::faults::{Chance, Faults};
use crate::iam::ACCOUNT_ID;
use crate::iam::{Callers, Denial};
use crate::inspector::{Event, Inspector, Text};
use crate::signature;
use crate::terminal;

/// The namespace of errors that DynamoDB shares with other services.
const COMMON: &str = "com.amazon.coral.service";

/// The namespace of DynamoDB's own errors.
const OWN: &str = "com.amazonaws.dynamodb.v20120810";

/// A proxy between callers and the engine.
#[derive(Debug)]
pub(crate) struct DynamodbProxy {
    engine: SocketAddr,
    region: String,
    callers: Callers,
    faults: Arc<Faults>,
    access: Arc<Access>,
    /// It is told what happens.
    inspector: Arc<Inspector>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// The parts of a call's body that decide which permissions it needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Call {
    table_name: Option<String>,
    index_name: Option<String>,
    #[serde(default)]
    request_items: BTreeMap<String, IgnoredAny>,
    #[serde(default)]
    transact_items: Vec<BTreeMap<String, Part>>,
}

/// One part of a transaction, under the key of its kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    table_name: String,
}

impl DynamodbProxy {
    /// Makes a proxy of the engine's server at `engine`.
    pub(crate) fn new(
        engine: SocketAddr,
        region: &str,
        callers: Callers,
        faults: Arc<Faults>,
        access: Arc<Access>,
        inspector: Arc<Inspector>,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { engine, region: region.to_owned(), callers, faults, access, inspector, client }
    }

    /// Serves until the future is dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let router = Router::new().fallback(respond).with_state(Arc::new(self));
        // Calls are small and a caller waits for each, so packets are sent at once.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        // This never returns: axum tries again after a failed accept.
        let _ = axum::serve(listener, router).await;
    }

    /// Refuses a call that the caller's role does not allow.
    fn check(&self, access_key_id: Option<&str>, operation: &str, call: &Call) -> Result<(), Denial> {
        needed(operation, call).into_iter().try_for_each(|(action, table)| {
            let resource = self.resource(table, call.index_name.as_deref());
            self.callers.check(access_key_id, &format!("dynamodb:{action}"), &resource)
        })
    }

    /// Returns the ARN of a table or of one of its indexes. `table` may be an ARN already.
    fn resource(&self, table: Option<&str>, index: Option<&str>) -> String {
        let Some(table) = table else { return "*".to_owned() };
        let table = match table.starts_with("arn:") {
            true => table.to_owned(),
            false => format!("arn:aws:dynamodb:{}:{ACCOUNT_ID}:table/{table}", self.region),
        };
        index.map_or(table.clone(), |index| format!("{table}/index/{index}"))
    }

    /// Returns the answer of a fault that happens before the engine gets the call, if one does.
    fn fault(&self, operation: &str, call: &Call) -> Option<Response> {
        if self.faults.injects(Chance::DynamodbThrottle) {
            let message = "The level of configured provisioned throughput for the table was exceeded. Consider \
                           increasing your provisioning level with the UpdateTable API.";
            return Some(refusal(&json!({
                "__type": format!("{OWN}#ProvisionedThroughputExceededException"),
                "message": message,
            })));
        }
        if operation.starts_with("Transact") && self.faults.injects(Chance::TransactionConflict) {
            let mut codes = vec!["None"; call.transact_items.len()];
            codes.splice(0..codes.len().min(1), ["TransactionConflict"]);
            let reason = |code: &&str| match *code {
                "None" => json!({"Code": "None"}),
                code => json!({"Code": code, "Message": "Transaction is ongoing for the item"}),
            };
            let message = "Transaction cancelled, please refer cancellation reasons for specific reasons";
            return Some(refusal(&json!({
                "__type": format!("{OWN}#TransactionCanceledException"),
                "CancellationReasons": codes.iter().map(reason).collect::<Vec<_>>(),
                "Message": format!("{message} [{}]", codes.join(", ")),
            })));
        }
        None
    }

    async fn forward(&self, mut parts: request::Parts, body: Bytes) -> Response {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder().scheme("http").authority(self.engine.to_string()).path_and_query(path).build();
        let forwarded = match uri {
            Ok(uri) => {
                parts.uri = uri;
                self.client.request(Request::from_parts(parts, Full::new(body))).await.map_err(|it| it.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        forwarded.map(|response| response.map(Body::new)).unwrap_or_else(|error| {
            terminal::line("dynamodb", &format!("a call was not answered: {error}"));
            let body = json!({"__type": format!("{OWN}#InternalServerError"), "message": "Internal server error"});
            answer(StatusCode::INTERNAL_SERVER_ERROR, &body)
        })
    }

    /// Forwards a `BatchWriteItem` without its last `count` writes. Adds these to the unprocessed items of the answer.
    async fn forward_without(&self, mut parts: request::Parts, mut body: Value, count: usize) -> Response {
        let mut left: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let tables: Vec<_> = body["RequestItems"].as_object_mut().into_iter().flatten().collect();
        let mut missing = count;
        for (table, writes) in tables.into_iter().rev() {
            let Some(writes) = writes.as_array_mut() else { continue };
            let kept = writes.len().saturating_sub(missing);
            let taken = writes.split_off(kept);
            missing -= taken.len();
            if !taken.is_empty() {
                left.insert(table.clone(), taken);
            }
        }
        if let Some(tables) = body["RequestItems"].as_object_mut() {
            tables.retain(|_, writes| writes.as_array().is_none_or(|writes| !writes.is_empty()));
        }
        let body = Bytes::from(body.to_string());
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let response = self.forward(parts, body).await;
        if response.status() != StatusCode::OK {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let mut answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        for (table, writes) in left {
            match &mut answer["UnprocessedItems"][&table] {
                Value::Array(others) => others.extend(writes),
                nothing => *nothing = writes.into(),
            }
        }
        // Both headers fit the engine's answer only.
        parts.headers.remove(HeaderName::from_static("x-amz-crc32"));
        parts.headers.remove(CONTENT_LENGTH);
        Response::from_parts(parts, Body::from(answer.to_string()))
    }
}

async fn respond(State(proxy): State<Arc<DynamodbProxy>>, request: Request) -> Response {
    match proxy.access.check(request.headers(), request.uri()) {
        Ok(origin) => {
            let mut response = read(&proxy, request).await;
            access::share(response.headers_mut(), origin);
            response
        }
        Err(stranger) => answer(
            StatusCode::FORBIDDEN,
            &json!({"__type": format!("{COMMON}#AccessDeniedException"), "Message": stranger.to_string()}),
        ),
    }
}

async fn read(proxy: &DynamodbProxy, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match body.collect().await {
        Ok(body) if proxy.inspector.is_watched() => inspected(proxy, parts, body.to_bytes()).await,
        Ok(body) => serve(proxy, parts, body.to_bytes()).await,
        // The caller has gone, so nobody reads the answer.
        Err(_) => Response::default(),
    }
}

/// Serves a call and tells the inspector. To know the consumed capacity, it asks the engine for it. The caller sees
/// that only if it has asked as well.
async fn inspected(proxy: &DynamodbProxy, mut parts: request::Parts, body: Bytes) -> Response {
    let caller = proxy.inspector.caller(&parts.headers, parts.uri.query());
    let operation = operation(&parts).to_owned();
    let call: Call = serde_json::from_slice(&body).unwrap_or_default();
    let mut tables: Vec<_> =
        needed(&operation, &call).into_iter().filter_map(|(_, it)| it.map(str::to_owned)).collect();
    tables.dedup();
    let input = Text::new(&body);
    let asking = if HAVE_CAPACITY.contains(&operation.as_str()) { with_capacity(&body) } else { None };
    let is_ours = asking.is_some();
    let body = asking.unwrap_or(body);
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let begin = Instant::now();
    let (mut parts, body) = serve(proxy, parts, body).await.into_parts();
    let mut body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let ms = begin.elapsed().into();
    let (units, rest) = without_capacity(&body);
    if is_ours && let Some(rest) = rest {
        body = rest;
        // Both headers fit the engine's answer only.
        parts.headers.remove(HeaderName::from_static("x-amz-crc32"));
        parts.headers.remove(CONTENT_LENGTH);
    }
    proxy.inspector.tell_of(&caller, |invocation| Event::Call {
        invocation,
        operation,
        tables,
        units,
        ms,
        status: parts.status.as_u16(),
        error: (parts.status != StatusCode::OK).then(|| error_type(&body)),
        input,
        output: Text::new(&body),
    });
    Response::from_parts(parts, Body::from(body))
}

/// The operations that return the consumed capacity on request.
const HAVE_CAPACITY: [&str; 13] = [
    "BatchExecuteStatement",
    "BatchGetItem",
    "BatchWriteItem",
    "DeleteItem",
    "ExecuteStatement",
    "ExecuteTransaction",
    "GetItem",
    "PutItem",
    "Query",
    "Scan",
    "TransactGetItems",
    "TransactWriteItems",
    "UpdateItem",
];

/// An object of JSON whose values stay as they are.
type Members<'a> = BTreeMap<std::borrow::Cow<'a, str>, &'a RawValue>;

/// Asks for the consumed capacity, unless the call does so already.
fn with_capacity(body: &[u8]) -> Option<Bytes> {
    let members: Members<'_> = serde_json::from_slice(body).ok()?;
    if members.contains_key("ReturnConsumedCapacity") {
        return None;
    }
    let mut members: BTreeMap<_, _> = members.into_iter().collect();
    let total: &RawValue = serde_json::from_str(r#""TOTAL""#).ok()?;
    members.insert("ReturnConsumedCapacity".into(), total);
    Some(serde_json::to_vec(&members).ok()?.into())
}

/// Returns the capacity units of an answer, and the answer without them.
fn without_capacity(body: &[u8]) -> (Option<f64>, Option<Bytes>) {
    let Ok(mut members) = serde_json::from_slice::<Members<'_>>(body) else { return (None, None) };
    let Some(capacity) = members.remove("ConsumedCapacity") else { return (None, None) };
    let capacity: Value = serde_json::from_str(capacity.get()).unwrap_or_default();
    let tables = capacity.as_array().map_or(std::slice::from_ref(&capacity), Vec::as_slice);
    let units = tables.iter().filter_map(|table| table["CapacityUnits"].as_f64()).sum();
    (Some(units), serde_json::to_vec(&members).ok().map(Bytes::from))
}

/// Returns an error's type without its namespace.
fn error_type(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["__type"].as_str().unwrap_or_default().rsplit('#').next().unwrap_or_default().to_owned()
}

/// Returns the operation that the headers name.
fn operation(parts: &request::Parts) -> &str {
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    target.rsplit('.').next().unwrap_or_default()
}

async fn serve(proxy: &DynamodbProxy, parts: request::Parts, body: Bytes) -> Response {
    let operation = operation(&parts).to_owned();
    // If the body cannot be read, the engine refuses it.
    let call: Call = serde_json::from_slice(&body).unwrap_or_default();
    let access_key_id = signature::access_key_id(&parts.headers, parts.uri.query());
    if let Err(denial) = proxy.check(access_key_id.as_deref(), &operation, &call) {
        return refusal(&json!({
            "__type": format!("{COMMON}#AccessDeniedException"),
            "Message": denial.to_string(),
        }));
    }
    if let Some(response) = proxy.fault(&operation, &call) {
        return response;
    }
    if operation == "BatchWriteItem"
        && let Ok(whole) = serde_json::from_slice::<Value>(&body)
        && let Some(tables) = whole["RequestItems"].as_object()
    {
        let writes = tables.values().filter_map(Value::as_array).map(Vec::len).sum();
        if let Some(count) = proxy.faults.injects_part(Chance::Unprocessed, writes) {
            return proxy.forward_without(parts, whole, count).await;
        }
    }
    proxy.forward(parts, body).await
}

/// Returns the actions that a call needs, each with its table.
fn needed<'a>(operation: &'a str, call: &'a Call) -> Vec<(&'a str, Option<&'a str>)> {
    if !call.transact_items.is_empty() {
        let parts = call.transact_items.iter().flatten();
        let parts = parts.map(|(kind, part)| {
            let action = match kind.as_str() {
                "Get" => "GetItem",
                "Put" => "PutItem",
                "Update" => "UpdateItem",
                "Delete" => "DeleteItem",
                "ConditionCheck" => "ConditionCheckItem",
                other => other,
            };
            (action, Some(part.table_name.as_str()))
        });
        return parts.collect();
    }
    if !call.request_items.is_empty() {
        return call.request_items.keys().map(|table| (operation, Some(table.as_str()))).collect();
    }
    vec![(operation, call.table_name.as_deref())]
}

fn refusal(body: &Value) -> Response {
    answer(StatusCode::BAD_REQUEST, body)
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/x-amz-json-1.0"));
    if let Ok(request_id) = HeaderValue::try_from(uuid::Uuid::new_v4().to_string()) {
        headers.insert("x-amzn-requestid", request_id);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::faults::Settings;
    use crate::iam::{Caller, Effect, Patterns, Role, Statement};
    use crate::service::Table;
    use crate::table::Tables;

    /// Starts a proxy of an engine with one table. `connect` may do the actions given as `action table`.
    async fn start(allowed: &[(&str, &str)], faults: &[&str]) -> SocketAddr {
        let table = Table {
            logical_id: "Birds".to_owned(),
            create_table: json!({
                "TableName": "birds",
                "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
                "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
                "BillingMode": "PAY_PER_REQUEST",
            }),
            ttl_attribute: None,
        };
        let tables = Tables::open(None, &[table]).unwrap();
        let engine = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let engine_address = engine.local_addr().unwrap();
        tokio::spawn(tables.serve(engine, std::future::pending()));

        let statements = allowed.iter().map(|(action, table)| Statement {
            effect: Effect::Allow,
            actions: Patterns::Of(vec![format!("dynamodb:{action}")]),
            resources: Patterns::Of(vec![format!("arn:aws:dynamodb:eu-central-1:{ACCOUNT_ID}:table/{table}")]),
        });
        let role = Arc::new(Role { name: "Role".to_owned(), statements: statements.collect() });
        let caller = Caller { function: "connect".to_owned(), session: "chat-connect".to_owned(), role: Some(role) };
        let callers = Callers(HashMap::from([("local-connect".to_owned(), caller)]));
        let settings = Settings { faults: faults.iter().map(|fault| fault.parse().unwrap()).collect(), seed: 7 };
        let access = Arc::new(Access::new("dynamodb", access::Settings::default(), None));
        let proxy = DynamodbProxy::new(
            engine_address,
            "eu-central-1",
            callers,
            Arc::new(Faults::new(&settings)),
            access,
            Arc::default(),
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(proxy.serve(listener));
        address
    }

    /// Sends a call of `connect`. Returns status and body.
    async fn call(address: SocketAddr, operation: &str, body: &Value) -> (u16, Value) {
        let request = Request::post(format!("http://{address}/"))
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
            .header("x-amz-date", "20260101T000000Z")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=local-connect/20260101/eu-central-1/dynamodb/aws4_request, \
                 SignedHeaders=host, Signature=0",
            )
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn key(id: usize) -> Value {
        json!({"id": {"S": id.to_string()}})
    }

    fn batch(count: usize) -> Value {
        let writes = (0..count).map(|id| json!({"PutRequest": {"Item": key(id)}}));
        json!({"RequestItems": {"birds": writes.collect::<Vec<_>>()}})
    }

    #[tokio::test]
    async fn only_calls_that_the_role_allows_reach_the_engine() {
        let proxy = start(&[("PutItem", "birds"), ("Scan", "birds")], &[]).await;
        let put = json!({"TableName": "birds", "Item": key(1)});
        assert_eq!(call(proxy, "PutItem", &put).await.0, 200);
        let (status, body) = call(proxy, "DeleteItem", &json!({"TableName": "birds", "Key": key(1)})).await;
        assert_eq!((status, &body["__type"]), (400, &json!("com.amazon.coral.service#AccessDeniedException")));
        let message = body["Message"].as_str().unwrap();
        assert!(message.contains("assumed-role/Role/chat-connect is not authorized to perform: dynamodb:DeleteItem"));
        assert!(message.contains("arn:aws:dynamodb:eu-central-1:123456789012:table/birds because no"), "{message}");
        assert_eq!(call(proxy, "BatchWriteItem", &batch(2)).await.0, 400);
        assert_eq!(call(proxy, "Scan", &json!({"TableName": "birds"})).await.1["Count"], 1);
        // An index is a separate resource.
        assert_eq!(call(proxy, "Scan", &json!({"TableName": "birds", "IndexName": "i"})).await.0, 400);
    }

    #[tokio::test]
    async fn a_transaction_needs_the_permissions_of_all_its_parts() {
        let put = json!({"Put": {"TableName": "birds", "Item": key(1)}});
        let delete = json!({"Delete": {"TableName": "birds", "Key": key(2)}});
        let proxy = start(&[("PutItem", "birds")], &[]).await;
        assert_eq!(call(proxy, "TransactWriteItems", &json!({"TransactItems": [put]})).await.0, 200);
        let (_, body) = call(proxy, "TransactWriteItems", &json!({"TransactItems": [put, delete]})).await;
        assert!(body["Message"].as_str().unwrap().contains("dynamodb:DeleteItem"), "{body}");
    }

    #[test]
    fn every_part_of_a_call_has_its_action_and_table() {
        let needed = |operation: &str, body: Value| -> Vec<String> {
            let call: Call = serde_json::from_value(body).unwrap();
            let needed = needed(operation, &call).into_iter();
            needed.map(|(action, table)| format!("{action} {}", table.unwrap_or("?"))).collect()
        };
        assert_eq!(needed("Query", json!({"TableName": "a", "Limit": 1})), ["Query a"]);
        assert_eq!(
            needed("BatchGetItem", json!({"RequestItems": {"a": {}, "b": {}}})),
            ["BatchGetItem a", "BatchGetItem b"]
        );
        let parts = ["Put", "Update", "Delete", "ConditionCheck", "Get"].map(|kind| json!({kind: {"TableName": "a"}}));
        assert_eq!(
            needed("TransactWriteItems", json!({"TransactItems": parts})),
            ["PutItem a", "UpdateItem a", "DeleteItem a", "ConditionCheckItem a", "GetItem a"]
        );
        assert_eq!(needed("ListTables", json!({})), ["ListTables ?"]);
    }

    #[tokio::test]
    async fn a_throttled_call_does_not_reach_the_engine() {
        let proxy = start(&[("*", "birds")], &["dynamodb-throttle=1"]).await;
        let (status, body) = call(proxy, "PutItem", &json!({"TableName": "birds", "Item": key(1)})).await;
        assert_eq!(status, 400);
        assert!(body["__type"].as_str().unwrap().ends_with("#ProvisionedThroughputExceededException"), "{body}");
    }

    #[tokio::test]
    async fn unprocessed_writes_come_back_and_the_others_are_done() {
        let proxy = start(&[("*", "birds")], &["unprocessed=1"]).await;
        let (status, body) = call(proxy, "BatchWriteItem", &batch(10)).await;
        assert_eq!(status, 200);
        let left = body["UnprocessedItems"]["birds"].as_array().unwrap();
        assert!((1..10).contains(&left.len()), "{body}");
        assert_eq!(left.last().unwrap()["PutRequest"]["Item"], key(9));
        let done = call(proxy, "Scan", &json!({"TableName": "birds"})).await.1["Count"].as_u64().unwrap();
        assert_eq!(usize::try_from(done).unwrap() + left.len(), 10);
        assert_eq!(call(proxy, "BatchWriteItem", &batch(1)).await.1["UnprocessedItems"], json!({}));
    }

    #[tokio::test]
    async fn a_conflict_cancels_a_transaction_and_spares_other_calls() {
        let proxy = start(&[("*", "birds")], &["transaction-conflict=1"]).await;
        let put = json!({"TableName": "birds", "Item": key(1)});
        assert_eq!(call(proxy, "PutItem", &put).await.0, 200);
        let (status, body) = call(proxy, "TransactWriteItems", &json!({"TransactItems": [{"Put": put}]})).await;
        assert_eq!((status, &body["CancellationReasons"][0]["Code"]), (400, &json!("TransactionConflict")));
        assert!(body["__type"].as_str().unwrap().ends_with("#TransactionCanceledException"), "{body}");
    }
}
