//! API keys: a client must have one if `$connect` requires it.
//!
//! This module implements ["Choose an API key source in API
//! Gateway"](https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-api-key-source.html) for WebSocket
//! APIs. It does not implement the quotas and throttles of usage plans.

use std::fmt;

use http::StatusCode;

use super::connection::Identity;
use super::refusal::Refusal;

/// The API keys of a stage. A client must have one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeys {
    /// The place where the gateway looks for a client's key.
    pub source: KeySource,
    /// The keys that are enabled and in a usage plan of the stage.
    pub keys: Vec<ApiKey>,
}

/// An API key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// `identity.apiKeyId` in events. It has ten lower-case letters and digits.
    pub id: String,
    /// The secret that the client sends. It has 20 to 128 characters.
    pub value: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The value of `ApiKeySelectionExpression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// `$request.header.x-api-key`: the client sends the key in a header.
    Header,
    /// `$context.authorizer.usageIdentifierKey`: the authorizer returns the key.
    Authorizer,
}

impl ApiKeys {
    /// Writes the client's key into `identity`. Refuses the client if its key is missing or not in the list.
    pub(super) fn identify(&self, key: Option<&str>, identity: &mut Identity) -> Result<(), Refusal> {
        let known = key.and_then(|key| self.keys.iter().find(|known| known.value == key));
        let known = known.ok_or(Refusal::new(StatusCode::FORBIDDEN, "the API key is missing or not valid"))?;
        identity.api_key = Some(known.value.clone());
        identity.api_key_id = Some(known.id.clone());
        Ok(())
    }
}
