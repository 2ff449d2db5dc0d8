//! API keys: which clients may connect when `$connect` asks for one.
//!
//! Implements ["Choose an API key source in API
//! Gateway"](https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-api-key-source.html) for WebSocket
//! APIs. Not here: the quotas and throttles of usage plans.

use std::fmt;

use http::StatusCode;

use super::connection::Identity;
use super::refusal::Refused;

/// The keys of which a client must have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeys {
    /// Where a client's key is.
    pub source: KeySource,
    /// Those that are enabled, and in a usage plan of the stage.
    pub keys: Vec<ApiKey>,
}

/// A key of clients.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// `identity.apiKeyId` in events; ten lower-case letters and digits.
    pub id: String,
    /// 20 to 128 characters.
    pub value: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// `ApiKeySelectionExpression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// `$request.header.x-api-key`
    Header,
    /// `$context.authorizer.usageIdentifierKey`
    Authorizer,
}

impl ApiKeys {
    /// Notes whose key it is, or refuses the client.
    pub(super) fn identify(&self, key: Option<&str>, identity: &mut Identity) -> Result<(), Refused> {
        let known = key.and_then(|key| self.keys.iter().find(|known| known.value == key));
        let known = known.ok_or(Refused(StatusCode::FORBIDDEN, "no API key, or none that may be used"))?;
        identity.api_key = Some(known.value.clone());
        identity.api_key_id = Some(known.id.clone());
        Ok(())
    }
}
