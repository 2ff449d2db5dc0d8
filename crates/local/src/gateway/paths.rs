//! The paths under which the API is reached.
//!
//! Implements ["Disable the default endpoint for WebSocket
//! APIs"](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-disable-default-endpoint.html). On
//! AWS the default endpoint, whose path is the stage, is a host, and each custom domain, whose paths are the keys of its
//! mappings, is another; here all of them are paths of one port.

/// The default endpoint and the custom domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The path of the default endpoint, unless that is disabled.
    pub stage: Option<String>,
}

impl Paths {
    /// Whether a client may connect at this path, which stands between two `/` or is empty. The root is as with a custom
    /// domain whose mapping has no key.
    pub(super) fn connect(&self, path: &str) -> bool {
        path.is_empty() || self.stage.as_deref() == Some(path)
    }

    /// Whether this path may stand in front of `/@connections`. Without it, callers would not notice here that they leave
    /// out the stage; so the root may only when there is nothing else.
    pub(super) fn are_called(&self, path: &str) -> bool {
        self.stage.as_deref() == Some(path) || (path.is_empty() && self.stage.is_none())
    }

    /// The path that functions and people are told of: `/{stage}`, or nothing for the root.
    #[must_use]
    pub fn usual(&self) -> String {
        self.stage.as_ref().map(|stage| format!("/{stage}")).unwrap_or_default()
    }
}
