//! The definition of a WebSocket API, as plain data.

use std::collections::{BTreeMap, BTreeSet};

use super::api_key::ApiKeys;
use super::model::RequestModels;
use super::paths::Paths;

/// The definition of a WebSocket API. It names functions by their keys, and [`Functions`](super::Functions) has them.
#[derive(Debug, Clone)]
pub struct Definition {
    /// `requestContext.apiId` in events. On AWS it has ten lower-case letters and digits.
    pub api_id: String,
    /// The ARN that policies name: `arn:aws:execute-api:{region}:{account}:{api-id}`.
    pub arn: String,
    /// The one stage.
    pub stage: String,
    /// `stageVariables` in events. An empty map leaves the member out.
    pub stage_variables: BTreeMap<String, String>,
    /// The paths that clients and callers use.
    pub paths: Paths,
    /// For example `$request.body.action`.
    pub route_selection_expression: String,
    /// The keys of functions by route key. `$connect`, `$disconnect` and `$default` are optional.
    pub routes: BTreeMap<String, String>,
    /// The keys of the routes with a route response. Such a route sends the body of its result to the sender of the
    /// message. It has no effect on `$connect` and `$disconnect`, because they have no sender.
    pub two_way_routes: BTreeSet<String>,
    /// The request models by route key. Only routes with a `ModelSelectionExpression` have them.
    pub request_models: BTreeMap<String, RequestModels>,
    /// The authorizer. It runs before `$connect`, even if there is no such route.
    pub authorizer: Option<Authorizer>,
    /// Whether a handshake must be signed and the signer's role must allow it: `$connect` has the `AuthorizationType`
    /// `AWS_IAM`.
    pub is_iam_authorized: bool,
    /// The API keys. A client must have one of them, so an empty list refuses every client. `None` asks for no key.
    pub api_keys: Option<ApiKeys>,
}

/// A function that decides which clients may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorizer {
    /// The key of the function.
    pub function: String,
    /// The values that a handshake must have, or the authorizer is not invoked. Each is `route.request.header.{name}`,
    /// `route.request.querystring.{name}`, `context.{name}` or `stageVariables.{name}`.
    pub identity_sources: Vec<String>,
}

impl Definition {
    /// Returns the resource that a policy must allow so that a client can connect.
    pub(super) fn connect_arn(&self) -> String {
        format!("{}/{}/$connect", self.arn, self.stage)
    }
}
