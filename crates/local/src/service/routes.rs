//! The routes of the WebSocket API and its authorizer: the `websocket` events of functions.

use std::collections::BTreeMap;

use super::error::Problem;
use super::findings::Findings;
use super::intrinsics::Intrinsics;
use super::key_path::KeyPath;
use super::schema::{Function, Websocket};
use crate::gateway::Authorizer;

/// The framework's default for the identity source of an authorizer.
const DEFAULT_IDENTITY_SOURCE: &str = "route.request.header.Auth";

/// The prefixes of an identity source of a WebSocket API. A name follows each
/// ([CreateAuthorizer](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-authorizers.html)).
const IDENTITY_SOURCES: [&str; 4] =
    ["route.request.header.", "route.request.querystring.", "context.", "stageVariables."];

/// Adds the routes that lead to the function `key`.
pub(super) fn add(
    routes: &mut BTreeMap<String, String>,
    key: &str,
    definition: &Function,
    at: &KeyPath,
    findings: &Findings,
) {
    for (index, event) in definition.events.iter().enumerate() {
        let Some(Websocket { route, .. }) = &event.websocket else {
            continue;
        };
        let at = at.key("events").index(index).key("websocket");
        findings.keep(add_route(routes, route, key, &at));
    }
}

/// Adds a route that leads to the function `key`.
pub(super) fn add_route(
    routes: &mut BTreeMap<String, String>,
    route: &str,
    key: &str,
    at: &KeyPath,
) -> Result<(), Problem> {
    if route.is_empty() {
        return Err(Problem::new(at, "a route key is needed"));
    }
    if route.starts_with('$') && !["$connect", "$disconnect", "$default"].contains(&route) {
        return Err(Problem::new(at, format!("`{route}` is not one of `$connect`, `$disconnect`, `$default`")));
    }
    match routes.insert(route.to_owned(), key.to_owned()) {
        Some(other) => Err(Problem::new(at, format!("the route `{route}` leads to the function `{other}` already"))),
        None => Ok(()),
    }
}

/// Returns the authorizer of the `$connect` event, if `definition` has such an event and the event has an authorizer.
pub(super) fn authorizer(
    definition: &Function,
    at: &KeyPath,
    names: &BTreeMap<String, String>,
    intrinsics: &Intrinsics,
) -> Result<Option<Authorizer>, Problem> {
    let mut found = None;
    for (index, event) in definition.events.iter().enumerate() {
        let Some(Websocket { route, authorizer: Some(authorizer), .. }) = &event.websocket else {
            continue;
        };
        let at = at.key("events").index(index).key("websocket").key("authorizer");
        if route != "$connect" {
            return Err(Problem::new(&at, "only `$connect` can have an authorizer"));
        }
        let function = match (&authorizer.arn, &authorizer.name) {
            (Some(arn), _) => {
                let arn = intrinsics.text(arn, &at)?;
                let key = names.iter().find(|(_, name)| arn.ends_with(&format!(":function:{name}"))).map(|it| it.0);
                key.cloned().ok_or_else(|| Problem::new(&at, format!("`{arn}` is not a function of this service")))?
            }
            (None, Some(name)) if names.contains_key(name) => name.clone(),
            (None, Some(name)) => return Err(Problem::new(&at, format!("there is no function `{name}`"))),
            (None, None) => return Err(Problem::new(&at, "expected `name` or `arn`")),
        };
        let default = || vec![DEFAULT_IDENTITY_SOURCE.to_owned()];
        let identity_sources = authorizer.identity_source.clone().unwrap_or_else(default);
        for (index, source) in identity_sources.iter().enumerate() {
            let is_known = |prefix: &str| source.strip_prefix(prefix).is_some_and(|name| !name.is_empty());
            if !IDENTITY_SOURCES.iter().any(|prefix| is_known(prefix)) {
                let reason = format!("`{source}` does not begin with one of `{}`", IDENTITY_SOURCES.join("`, `"));
                return Err(Problem::new(&at.key("identitySource").index(index), reason));
            }
        }
        found = Some(Authorizer { function, identity_sources });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
