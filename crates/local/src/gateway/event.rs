//! The events that functions receive. Every member is as recorded on AWS.
//!
//! This module implements "Setting up a WebSocket API integration request in API Gateway" and the `$context` variables
//! of "API Gateway WebSocket API mapping template reference".
//!
//! It shares no type with the functions on purpose: with a shared type, both sides could be wrong in the same way and
//! no test would fail. A member that recorded events leave out is absent here too. `--null-style explicit` makes it
//! null. Inferred: stage variables are in all events of a connection, not only in the first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::connection::{Connection, Context, Identity};
use super::definition::Definition;
use super::id::Id;

/// Header or query names with one value each. A name with several values has its last one.
pub(super) type Single = BTreeMap<String, String>;
/// Header or query names with all their values, in order.
pub(super) type Multi = BTreeMap<String, Vec<String>>;

/// The event of `$connect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectEvent<'a> {
    headers: Single,
    multi_value_headers: Multi,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_string_parameters: Option<Single>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multi_value_query_string_parameters: Option<Multi>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stage_variables: &'a Single,
    request_context: RequestContext<'a>,
    is_base64_encoded: bool,
}

/// The event of an authorizer. It is the event of `$connect` with the differences that AWS's page on authorizers shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthorizerEvent<'a> {
    r#type: &'static str,
    method_arn: &'a str,
    headers: Single,
    multi_value_headers: Multi,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_string_parameters: Option<Single>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multi_value_query_string_parameters: Option<&'a Multi>,
    stage_variables: &'a Single,
    request_context: RequestContext<'a>,
}

/// The event of every route except `$connect` and `$disconnect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MessageEvent<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stage_variables: &'a Single,
    request_context: RequestContext<'a>,
    body: &'a str,
    is_base64_encoded: bool,
}

/// The event of `$disconnect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DisconnectEvent<'a> {
    headers: Single,
    multi_value_headers: Multi,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stage_variables: &'a Single,
    request_context: RequestContext<'a>,
    is_base64_encoded: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext<'a> {
    route_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disconnect_status_code: Option<u16>,
    event_type: &'static str,
    extended_request_id: &'a Id,
    /// A time in Common Log Format: `28/Nov/2023:17:44:02 +0000`.
    request_time: String,
    message_direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    disconnect_reason: Option<&'a str>,
    stage: &'a str,
    /// Milliseconds since 1970. `request_time_epoch` has the same unit.
    connected_at: i64,
    request_time_epoch: i64,
    identity: &'a Identity,
    request_id: &'a Id,
    domain_name: &'a str,
    connection_id: &'a Id,
    api_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorizer: Option<&'a Context>,
}

impl<'a> ConnectEvent<'a> {
    pub(super) fn new(
        api: &'a Definition,
        connection: &'a Connection,
        request_id: &'a Id,
        headers: Multi,
        query: Option<Multi>,
    ) -> Self {
        Self {
            headers: last_values(&headers),
            multi_value_headers: headers,
            query_string_parameters: query.as_ref().map(last_values),
            multi_value_query_string_parameters: query,
            stage_variables: &api.stage_variables,
            request_context: RequestContext::connect(api, connection, request_id),
            is_base64_encoded: false,
        }
    }
}

impl<'a> AuthorizerEvent<'a> {
    pub(super) fn new(
        api: &'a Definition,
        connection: &'a Connection,
        request_id: &'a Id,
        method_arn: &'a str,
        headers: &Multi,
        query: Option<&'a Multi>,
    ) -> Self {
        let mut headers = headers.clone();
        headers.retain(|name, _| !name.eq_ignore_ascii_case("content-length"));
        for (name, value) in [("Connection", "upgrade"), ("content-length", "0"), ("Upgrade", "websocket")] {
            headers.insert(name.to_owned(), vec![value.to_owned()]);
        }
        Self {
            r#type: "REQUEST",
            method_arn,
            headers: last_values(&headers),
            multi_value_headers: headers,
            query_string_parameters: query.map(last_values),
            multi_value_query_string_parameters: query,
            stage_variables: &api.stage_variables,
            request_context: RequestContext::connect(api, connection, request_id),
        }
    }
}

impl<'a> MessageEvent<'a> {
    pub(super) fn new(
        api: &'a Definition,
        connection: &'a Connection,
        request_id: &'a Id,
        route_key: &'a str,
        body: &'a str,
    ) -> Self {
        Self {
            stage_variables: &api.stage_variables,
            request_context: RequestContext {
                message_id: Some(Id::new()),
                ..RequestContext::new(api, connection, request_id, route_key, "MESSAGE", Timestamp::now())
            },
            body,
            is_base64_encoded: false,
        }
    }
}

impl<'a> DisconnectEvent<'a> {
    pub(super) fn new(
        api: &'a Definition,
        connection: &'a Connection,
        request_id: &'a Id,
        code: u16,
        reason: &'a str,
    ) -> Self {
        // Every recorded event has exactly these headers.
        let headers =
            [("Host", connection.domain_name.as_str()), ("X-Forwarded-For", ""), ("x-api-key", ""), ("x-restapi", "")]
                .map(|(name, value)| (name.to_owned(), vec![value.to_owned()]));
        let headers = Multi::from(headers);
        Self {
            headers: last_values(&headers),
            multi_value_headers: headers,
            stage_variables: &api.stage_variables,
            request_context: RequestContext {
                disconnect_status_code: Some(code),
                disconnect_reason: Some(reason),
                ..RequestContext::new(api, connection, request_id, "$disconnect", "DISCONNECT", Timestamp::now())
            },
            is_base64_encoded: false,
        }
    }
}

impl<'a> RequestContext<'a> {
    /// Makes the context of a handshake, for `$connect` and for the authorizer. Its time is `connectedAt`: in recorded
    /// events the two differ by 0 to 2 ms.
    fn connect(api: &'a Definition, connection: &'a Connection, request_id: &'a Id) -> Self {
        Self::new(api, connection, request_id, "$connect", "CONNECT", connection.connected_at)
    }

    fn new(
        api: &'a Definition,
        connection: &'a Connection,
        request_id: &'a Id,
        route_key: &'a str,
        event_type: &'static str,
        time: Timestamp,
    ) -> Self {
        Self {
            route_key,
            message_id: None,
            disconnect_status_code: None,
            event_type,
            extended_request_id: request_id,
            request_time: time.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string(),
            message_direction: "IN",
            disconnect_reason: None,
            stage: &api.stage,
            connected_at: connection.connected_at.as_millisecond(),
            request_time_epoch: time.as_millisecond(),
            identity: &connection.identity,
            request_id,
            domain_name: &connection.domain_name,
            connection_id: &connection.id,
            api_id: &api.api_id,
            authorizer: connection.authorizer.as_ref(),
        }
    }
}

/// Adds the nulls of events that were recorded in 2020 (`--null-style explicit`). The real events may have had more
/// nulls in `requestContext` and `identity` than the published ones show.
pub(super) fn add_nulls(event: &mut Value) {
    const CONTEXT: [&str; 3] = ["messageId", "disconnectStatusCode", "disconnectReason"];
    const IDENTITY: [&str; 11] = [
        "cognitoIdentityPoolId",
        "cognitoIdentityId",
        "principalOrgId",
        "cognitoAuthenticationType",
        "userArn",
        "userAgent",
        "accountId",
        "caller",
        "accessKey",
        "cognitoAuthenticationProvider",
        "user",
    ];
    for (pointer, keys) in [("/requestContext", &CONTEXT[..]), ("/requestContext/identity", &IDENTITY)] {
        if let Some(Value::Object(object)) = event.pointer_mut(pointer) {
            for key in keys {
                object.entry(*key).or_insert(Value::Null);
            }
        }
    }
}

fn last_values(multi: &Multi) -> Single {
    multi.iter().filter_map(|(name, values)| Some((name.clone(), values.last()?.clone()))).collect()
}
